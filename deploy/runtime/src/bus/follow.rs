//! Follows a whole partition of the log, facts and decisions, for those who derive something from it and write down
//! themselves how far they are.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PriorityPolicy, pull};
use bytes::Bytes;
use futures::StreamExt;
use schemas::{Partition, stream, subject};
use serde::Deserialize;

use super::log::{Stored, parse_subject, place_of_reply, stored};
use super::place::is_single;
use super::provision::ensure_consumer;
use super::pull::Pull;
use super::{Bus, Error, REPLY_TIMEOUT, request};
use crate::clock;

/// Messages asked for at a time: they wait in memory, for all partitions at once.
const BATCH: usize = 128;
/// How long one pull waits; shorter than the time after which a silent follower is replaced.
const EXPIRES: Duration = Duration::from_secs(1);

/// A message of a partition; without content when its subject names no execution of it.
pub type Placed = (u64, Option<Stored>);

/// Messages in the order of the log, and how many more there are.
#[derive(Debug, Default)]
pub struct Run {
    /// Them.
    pub messages: Vec<Placed>,
    /// Messages behind them.
    pub pending: u64,
    reply: Option<String>,
}

/// Follows one partition, as one of several that take turns: the server serves one of them at a time, and another when
/// that one falls silent.
pub struct Follow {
    client: Client,
    partition: Partition,
    pull: Pull,
}

impl Follow {
    /// What comes next: waits for a message, and then for as many as come within `linger`, up to `messages_max`. Empty
    /// when there was none for a while, or another one is served.
    ///
    /// # Errors
    /// When the consumer is gone or the connection closed: follow anew.
    pub async fn next(&mut self, messages_max: usize, linger: Duration) -> Result<Run, Error> {
        let mut run = Run::default();
        let mut until = None;
        while run.messages.len() < messages_max {
            let next = self.pull.next();
            let message = match until {
                None => next.await?,
                Some(until) => match tokio::time::timeout_at(until, next).await {
                    Ok(message) => message?,
                    Err(_) => break,
                },
            };
            let Some(message) = message else {
                if run.messages.is_empty() {
                    return Ok(run);
                }
                continue;
            };
            let Some(reply) = message.reply.clone() else { continue };
            let (sequence, stored_at) = place_of_reply(&reply);
            let place = parse_subject(&message.subject).ok().filter(|(exec, _)| exec.partition() == self.partition);
            let read = |(exec, kind)| Stored { exec, sequence, stored_at, kind, payload: message.payload.clone() };
            run.messages.push((sequence, place.map(read)));
            run.pending = reply.rsplit('.').next().and_then(|pending| pending.parse().ok()).unwrap_or(0);
            run.reply = Some(reply.to_string());
            until.get_or_insert_with(|| tokio::time::Instant::now() + linger);
        }
        Ok(run)
    }

    /// These messages and all before them need not come again.
    ///
    /// # Errors
    /// When the connection is closed; they will come again, which must do no harm.
    pub async fn done(&self, run: &Run) -> Result<(), Error> {
        match &run.reply {
            Some(reply) => self.client.publish(reply.clone(), "+ACK".into()).await.map_err(Error::broken),
            None => Ok(()),
        }
    }
}

/// Everything that is stored in the log, republished, as it happens.
pub struct Seen(async_nats::Subscriber);

impl Seen {
    /// The next message; none when the connection is closed. Messages may be lost, which shows as a hole in the sequences
    /// of a partition. Cancel safe.
    pub async fn next(&mut self) -> Option<Stored> {
        loop {
            let message = self.0.next().await?;
            match stored(&message, &message.subject) {
                Ok(stored) => return Some(stored),
                Err(error) => tracing::debug!(%error, subject = %message.subject, "skipped a republished message"),
            }
        }
    }
}

impl Bus {
    /// Follows a partition under `name`, from the message of sequence `from` on where nobody has done so before. Those who
    /// use the same name take turns. The server forgets a name that nobody used for a week.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn follow(&self, partition: Partition, name: &str, from: u64) -> Result<Follow, Error> {
        let log = subject::log_stream(partition);
        let single = is_single(self, &log).await?;
        let config = pull::Config {
            durable_name: Some(name.to_owned()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from.max(1) },
            // The follower writes down how far it is: one acknowledgement of many messages only spares the server work.
            ack_policy: AckPolicy::All,
            ack_wait: stream::FOLLOWER_ACK_WAIT,
            max_ack_pending: 16 * i64::try_from(BATCH).unwrap_or(i64::MAX),
            inactive_threshold: stream::FOLLOWER_KEPT,
            // On disk the server would write it through ten times a second.
            memory_storage: single,
            priority_policy: PriorityPolicy::PinnedClient,
            priority_groups: vec![stream::OWNER_GROUP.to_owned()],
            priority_timeout: stream::FOLLOWER_TIMEOUT,
            ..pull::Config::default()
        };
        ensure_consumer(self, &log, name, config).await?;
        let pull = Pull::new(&self.log, &log, name, Some(stream::OWNER_GROUP), BATCH, EXPIRES).await?;
        Ok(Follow { client: self.log.clone(), partition, pull })
    }

    /// Everything that is stored in the log from now on.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn seen(&self) -> Result<Seen, Error> {
        let messages = self.log.subscribe(subject::SEEN_ALL).await.map_err(Error::broken)?;
        self.log.flush().await.map_err(Error::broken)?;
        Ok(Seen(messages))
    }

    /// Sequence of the newest message of every partition.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn last_sequences(&self) -> Result<BTreeMap<Partition, u64>, Error> {
        let last = |partition| async move { Ok::<_, Error>((partition, self.last_sequence(partition).await?)) };
        Ok(futures::future::try_join_all(Partition::all().map(last)).await?.into_iter().collect())
    }

    /// Tells this log from every other one: when it was created, in hexadecimal nanoseconds.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn log_identity(&self) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Info {
            created: Option<String>,
        }
        let first = Partition::all().next().expect("there are partitions");
        let subject = format!("$JS.API.STREAM.INFO.{}", subject::log_stream(first));
        let reply = request(&self.log, subject, None, Bytes::new(), REPLY_TIMEOUT).await?;
        let info: Info = serde_json::from_slice(&reply.payload)
            .map_err(|e| Error::Broken(format!("read the state of a stream: {e}")))?;
        let created = info.created.as_deref().and_then(clock::parse);
        created
            .map(|at| format!("{at:x}"))
            .ok_or_else(|| Error::Broken("a stream does not say when it was created".into()))
    }
}
