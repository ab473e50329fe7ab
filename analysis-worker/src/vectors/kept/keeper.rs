//! The keeper: one of the processes that would be it, and what it answers the others.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use runtime::{Bus, Tasks, clock};
use schemas::rpc::{Refusal, Reply};
use schemas::vectors::{ANSWER_BYTES_MAX, Answer, Question};
use schemas::wire::encode;
use tokio::sync::watch;
use uuid::Uuid;

use crate::vectors::{Error, Local, Lock, Point, VectorStore, lock};

/// How often those who do not have the lock look whether it is free: a system call.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often it is tried to open what could not be opened: somebody must repair it.
const REPAIR_EVERY: Duration = Duration::from_secs(5);

/// Who keeps the directory.
#[derive(Clone)]
pub(super) enum Keeper {
    /// This process.
    Me(Arc<Local>),
    /// Another one, by the name with which it signed; one that did not sign yet is not to be told from the last.
    Another(String),
}

/// A process that keeps the directory, or would.
pub(super) struct Candidate {
    pub(super) directory: PathBuf,
    pub(super) subject: String,
    pub(super) bus: Bus,
    /// Others may need the keeper as long as it works: it answers until the hard token falls, not the soft one.
    pub(super) keeping: Tasks,
}

impl Candidate {
    /// Tries to become the keeper; says who is.
    pub(super) async fn stand(&self) -> Result<Keeper, Error> {
        let directory = self.directory.clone();
        let opening = tokio::task::spawn_blocking(move || {
            let lock = Lock::take(&directory).map_err(|error| at(&directory, &error))?;
            lock.map(Local::open).transpose()
        });
        let opened = opening.await.unwrap_or_else(|error| Err(at(&self.directory, &error)))?;
        let Some(local) = opened.map(Arc::new) else {
            return Ok(Keeper::Another(lock::keeper(&self.directory)));
        };
        let kept = local.clone();
        let answer = move |question: Question| {
            let local = kept.clone();
            async move { reply(answered(&*local, question).await) }
        };
        let served = self.bus.serve(&self.keeping, &self.subject, answer).await;
        served.map_err(|error| Error::Unreachable { at: self.subject.clone(), reason: error.to_string() })?;
        // Now the others may ask: who waits for an answer of the keeper before asks this one.
        if let Err(error) = lock::sign(&self.directory, &clock::random_hex()) {
            tracing::warn!(%error, "the new keeper of the vectors could not sign; who waits for the last one waits longer");
        }
        tracing::info!(directory = %self.directory.display(), "keeping the vectors of this machine");
        Ok(Keeper::Me(local))
    }

    /// Becomes the keeper when there is none, and says who is. Keeps until it is dropped.
    pub(super) async fn watch(self, said: watch::Sender<Keeper>) {
        let _answering = self.keeping.hard().drop_guard();
        let mut pause = LOOK_EVERY;
        while matches!(*said.borrow(), Keeper::Another(_)) {
            tokio::time::sleep(pause).await;
            match self.stand().await {
                Ok(now) => {
                    pause = LOOK_EVERY;
                    said.send_if_modified(|keeper| {
                        let other = !matches!((&*keeper, &now), (Keeper::Another(a), Keeper::Another(b)) if a == b);
                        *keeper = now;
                        other
                    });
                }
                Err(error) => {
                    tracing::error!(%error, "nobody keeps the vectors of this machine");
                    pause = REPAIR_EVERY;
                }
            }
        }
        pending::<()>().await;
    }
}

/// The answer of a store that is open.
pub(super) async fn answered(store: &dyn VectorStore, question: Question) -> Result<Answer, Error> {
    match question {
        Question::Ensure { collection } => store.ensure(&collection).await.map(|()| Answer::Done),
        Question::Upsert { collection, points } => store.upsert(&collection, points).await.map(|()| Answer::Done),
        Question::Delete { collection, filter } => store.delete(&collection, &filter).await.map(|()| Answer::Done),
        Question::Search { collection, vector, filter, limit } => {
            store.search(&collection, vector, &filter, limit).await.map(Answer::Hits)
        }
        Question::Scroll { collection, filter, limit, from, with_vectors } => {
            let page = store.scroll(&collection, &filter, limit, from, with_vectors).await;
            page.map(|(points, next)| Answer::Page { points, next })
        }
        Question::Count { collection, filter } => store.count(&collection, &filter).await.map(Answer::Count),
        Question::Forget { collection } => store.forget(&collection).await.map(|()| Answer::Done),
    }
}

/// An answer as it travels, within the bounds of a message.
fn reply(answer: Result<Answer, Error>) -> Reply<Answer> {
    let refusal = |code: &str, detail: String| Reply::Err(Refusal { code: code.to_owned(), detail });
    match answer {
        Ok(Answer::Hits(hits)) if encode(&hits).len() > ANSWER_BYTES_MAX => {
            refusal("refused", format!("{} hits are more than {ANSWER_BYTES_MAX} bytes; ask for fewer", hits.len()))
        }
        Ok(Answer::Page { points, next }) => Reply::Ok(cut(points, next)),
        Ok(answer) => Reply::Ok(answer),
        Err(Error::UnknownCollection(_)) => Reply::Ok(Answer::NoCollection),
        Err(Error::Dimensions { have, wanted, .. }) => Reply::Ok(Answer::Dimensions { have, wanted }),
        Err(Error::Refused(why)) => refusal("refused", why),
        Err(Error::Broken(why) | Error::Unreachable { reason: why, .. }) => refusal("broken", why),
    }
}

/// As much of a page as fits one message, and at least one point.
fn cut(mut points: Vec<Point>, next: Option<Uuid>) -> Answer {
    let mut bytes = 0;
    let fits = points.iter().take_while(|point| {
        bytes += encode(point).len();
        bytes <= ANSWER_BYTES_MAX
    });
    let fits = fits.count().max(1);
    let next = points.get(fits).map(|point| point.id).or(next);
    points.truncate(fits);
    Answer::Page { points, next }
}

fn at(directory: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Broken(format!("{}: {error}", directory.display()))
}
