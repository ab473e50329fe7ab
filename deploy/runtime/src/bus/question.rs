//! Stateless questions and answers: NATS requests, served in queue groups so that one process answers.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use schemas::ExecutionId;
use schemas::presence::Holds;
use schemas::wire::{decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Bus, Error, request};
use crate::Tasks;

/// All servers of a question share it, so that each question has one answer.
const QUEUE: &str = "vlinders";
/// Questions a process answers at once; more wait in the subscription.
const ANSWERS_AT_ONCE: usize = 64;

impl Bus {
    /// Asks a question and waits for the answer.
    ///
    /// # Errors
    /// [`Error::NoResponders`] when nobody serves it; otherwise when no answer came or it cannot be read.
    pub async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        subject: &str,
        question: &Q,
        timeout: Duration,
    ) -> Result<A, Error> {
        let reply = request(&self.jobs, subject.to_owned(), None, encode(question).into(), timeout).await?;
        Ok(decode(&reply.payload)?)
    }

    /// Serves a question until the soft token falls. The answers run side by side, each in a task of its own.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn serve<Q, A, F, Fut>(&self, tasks: &Tasks, subject: &str, answer: F) -> Result<(), Error>
    where
        Q: DeserializeOwned + Send + 'static,
        A: Serialize + Send + 'static,
        F: Fn(Q) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = A> + Send + 'static,
    {
        let questions = self.jobs.queue_subscribe(subject.to_owned(), QUEUE.to_owned()).await.map_err(Error::broken)?;
        self.jobs.flush().await.map_err(Error::broken)?;
        let (client, soft) = (self.jobs.clone(), tasks.soft());
        tasks.spawn(async move {
            let answered = questions.take_until(soft.cancelled_owned()).for_each_concurrent(ANSWERS_AT_ONCE, |message| {
                let (client, answer) = (client.clone(), answer.clone());
                async move {
                    let Some(reply) = message.reply else { return };
                    match decode::<Q>(&message.payload) {
                        Ok(question) => {
                            let bytes = encode(&answer(question).await);
                            if let Err(error) = client.publish(reply, bytes.into()).await {
                                tracing::warn!(%error, "an answer was not sent");
                            }
                        }
                        Err(error) => tracing::warn!(subject = %message.subject, %error, "ignored a question that cannot be read"),
                    }
                }
            });
            answered.await;
        });
        Ok(())
    }

    /// Answers "are you there, and what do you hold?" for worker `id` until the hard token falls.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn serve_liveness(
        &self,
        tasks: &Tasks,
        id: &str,
        holds: impl Fn() -> Holds + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let mut questions = self.jobs.subscribe(schemas::subject::worker(id)).await.map_err(Error::broken)?;
        self.jobs.flush().await.map_err(Error::broken)?;
        let client = self.jobs.clone();
        tasks.spawn(async move {
            while let Some(message) = questions.next().await {
                let Some(reply) = message.reply else { continue };
                if let Err(error) = client.publish(reply, encode(&holds()).into()).await {
                    tracing::warn!(%error, "a question for a sign of life was not answered");
                }
            }
        });
        Ok(())
    }

    /// Claims of workers, as they come: each says who took which effect.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn claims(
        &self,
    ) -> Result<impl futures::Stream<Item = schemas::presence::Hold> + Send + Unpin + use<>, Error> {
        let claims = self.jobs.subscribe(schemas::subject::CLAIM_ALL).await.map_err(Error::broken)?;
        Ok(claims.filter_map(|m| std::future::ready(decode(&m.payload).ok())))
    }

    /// Executions that somebody just asked to cancel.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn cancels(&self) -> Result<impl futures::Stream<Item = ExecutionId> + Send + Unpin + use<>, Error> {
        let cancels = self.jobs.subscribe(schemas::subject::CANCEL_ALL).await.map_err(Error::broken)?;
        Ok(cancels.filter_map(|m| std::future::ready(m.subject.rsplit('.').next().and_then(|t| t.parse().ok()))))
    }

    /// Sends a message to a reply subject that a client named.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn reply(&self, subject: String, payload: Bytes) -> Result<(), Error> {
        self.log.publish(subject, payload).await.map_err(Error::broken)
    }
}
