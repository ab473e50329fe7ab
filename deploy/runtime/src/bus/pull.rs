//! A pull consumer, by hand: one request at a time, so that nothing is hoarded in the client, with the pin of a
//! priority group, and without ever hanging on a lost answer.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use futures::StreamExt;
use serde_json::json;

use super::Error;

/// The id a pinned client repeats with every request.
const PIN: &str = "Nats-Pin-Id";
/// How long the server may take to confirm that it sends nothing more.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Pulls messages of one durable consumer.
pub(super) struct Pull {
    client: Client,
    subject: String,
    inbox: String,
    replies: Subscriber,
    group: Option<&'static str>,
    pin: Option<String>,
    batch: usize,
    expires: Duration,
    outstanding: usize,
    /// When an answer to the open request is overdue.
    overdue: tokio::time::Instant,
}

impl Pull {
    /// A puller that asks for `batch` messages at a time and asks again at least every `expires`.
    pub(super) async fn new(
        client: &Client,
        stream: &str,
        consumer: &str,
        group: Option<&'static str>,
        batch: usize,
        expires: Duration,
    ) -> Result<Self, Error> {
        let inbox = client.new_inbox();
        let replies = client.subscribe(inbox.clone()).await.map_err(Error::broken)?;
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
        Ok(Self {
            client: client.clone(),
            subject,
            inbox,
            replies,
            group,
            pin: None,
            batch,
            expires,
            outstanding: 0,
            overdue: tokio::time::Instant::now(),
        })
    }

    /// The id under which the server chose this puller as the only one of its group.
    pub(super) fn pin(&self) -> Option<&str> {
        self.pin.as_deref()
    }

    /// The next message, or none when there was none within `expires`. Cancel safe.
    ///
    /// # Errors
    /// When the consumer or the stream is gone, or the connection closed: build the puller anew.
    pub(super) async fn next(&mut self) -> Result<Option<Message>, Error> {
        if self.outstanding == 0 {
            self.ask().await?;
        }
        let reply = tokio::time::timeout_at(self.overdue, self.replies.next()).await;
        let Ok(reply) = reply else {
            self.outstanding = 0;
            return Ok(None);
        };
        let message = reply.ok_or_else(|| Error::Broken("the subscription of a consumer closed".to_owned()))?;
        match message.status {
            None => {
                self.outstanding = self.outstanding.saturating_sub(1);
                if let Some(pin) = header(&message, PIN) {
                    self.pin = Some(pin);
                }
                Ok(Some(message))
            }
            Some(StatusCode::IDLE_HEARTBEAT) => Ok(None),
            // 404 none there, 408 expired, 423 the pin went to somebody else.
            Some(status) if [404, 408, 423].contains(&status.as_u16()) => {
                self.outstanding = 0;
                if status.as_u16() == 423 {
                    self.pin = None;
                }
                Ok(None)
            }
            Some(StatusCode::NO_RESPONDERS) => Err(Error::NoResponders(self.subject.clone())),
            Some(status) => Err(Error::Broken(format!(
                "the consumer answered {status}: {}",
                message.description.unwrap_or_default()
            ))),
        }
    }

    /// Asks for nothing more, and returns what the server had sent already.
    ///
    /// # Errors
    /// When the connection is closed.
    pub(super) async fn close(mut self) -> Result<Vec<Message>, Error> {
        self.replies.drain().await.map_err(Error::broken)?;
        let mut left = Vec::new();
        // The subscription ends once the server has confirmed it; what is no message says how a request went.
        while let Ok(Some(reply)) = tokio::time::timeout(CLOSE_TIMEOUT, self.replies.next()).await {
            left.extend(reply.status.is_none().then_some(reply));
        }
        Ok(left)
    }

    async fn ask(&mut self) -> Result<(), Error> {
        let mut request = json!({"batch": self.batch, "expires": self.expires.as_nanos() as u64});
        if let Some(group) = self.group {
            request["group"] = json!(group);
            if let Some(pin) = &self.pin {
                request["id"] = json!(pin);
            }
        }
        // A second more than the server takes: a lost answer costs one round, never the loop.
        self.overdue = tokio::time::Instant::now() + self.expires + Duration::from_secs(1);
        self.outstanding = self.batch;
        self.client
            .publish_with_reply(self.subject.clone(), self.inbox.clone(), request.to_string().into())
            .await
            .map_err(Error::broken)
    }
}

/// One header's value as text.
pub(super) fn header(message: &Message, name: &str) -> Option<String> {
    message.headers.as_ref().and_then(|h: &HeaderMap| h.get(name)).map(|v| v.as_str().to_owned())
}
