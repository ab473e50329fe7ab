//! The log: append a fact, commit a decision, read one execution, follow a partition, watch live.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures::stream::{Peekable, Stream, StreamExt};
use schemas::dead_letter::objection;
use schemas::wire::{Nanos, encode};
use schemas::{ExecutionId, Fact, Partition, Record, stream, subject};
use serde::Deserialize;
use serde_json::json;

use super::pull::{Pull, header};
use super::{Bus, Error, REPLY_TIMEOUT, publish, request};
use crate::clock;

/// Messages asked for at a time when an execution is read.
const READ_BATCH: u64 = 512;
/// Bytes of such a batch at most, where a whole partition is read: all sixteen are read at once over one connection, and
/// the server closes one on which more than 64 MiB wait.
const READ_BYTES: u64 = 2 << 20;
/// Facts handed out at a time; they are small and handled in milliseconds.
const FACTS_BATCH: usize = 64;
/// How long one pull waits. Shorter than the owner's timeout, so that a quiet owner stays the owner.
const FACTS_EXPIRES: Duration = Duration::from_secs(1);
/// How long nobody's fact waits when it could not be quarantined.
const QUARANTINE_RETRY: Duration = Duration::from_secs(1);

/// A stored fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its sequence in the partition's stream.
    pub sequence: u64,
    /// It was there already.
    pub duplicate: bool,
}

/// How a commit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commit {
    /// The decision is in the log at this sequence.
    Done(u64),
    /// It may or may not be, or somebody else wrote: read the execution again and decide again.
    Stale,
}

/// What a stored message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A fact.
    Fact,
    /// A decision.
    Decision,
}

/// One message of an execution as the log holds it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The execution.
    pub exec: ExecutionId,
    /// Its sequence in the partition's stream.
    pub sequence: u64,
    /// When the server stored it, by the server's clock; writing it through to disk follows.
    pub stored_at: Nanos,
    /// Fact or decision.
    pub kind: Kind,
    /// The bytes as they were written.
    pub payload: Bytes,
}

impl Bus {
    /// Appends a fact; the same fact is stored once.
    ///
    /// # Errors
    /// When it is not known to be stored. Asking again is safe.
    pub async fn append_fact(&self, fact: &Fact) -> Result<Appended, Error> {
        let headers = headers(Some(fact.body.name()), &fact.message_id(), &fact.trace);
        let ack = publish(&self.log, subject::fact(fact.exec), headers, encode(fact).into()).await?;
        Ok(Appended { sequence: ack.seq, duplicate: ack.duplicate })
    }

    /// Appends a decision if the execution's last message still has the sequence `expected` (0 for none), and the log
    /// holds no decision of its number.
    ///
    /// After a refusal, and after a lost or ambiguous answer, only the log can say what is the case: read it again and
    /// decide again. A decision that did arrive is found there, and nothing follows a second time.
    ///
    /// # Errors
    /// When the server refuses for another reason.
    pub async fn commit(&self, record: &Record, expected: u64) -> Result<Commit, Error> {
        let mut headers = headers(None, &record.message_id(), &std::collections::BTreeMap::new());
        headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string().as_str());
        headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", subject::execution(record.exec).as_str());
        match publish(&self.log, subject::decision(record.exec), headers, encode(record).into()).await {
            Ok(ack) if !ack.duplicate => Ok(Commit::Done(ack.seq)),
            Ok(_) | Err(Error::Stale(_) | Error::Timeout(_) | Error::Broken(_)) => Ok(Commit::Stale),
            Err(error) => Err(error),
        }
    }

    /// Reads an execution's messages with a sequence above `after`, in order. Empty when there are none.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn read_execution(&self, exec: ExecutionId, after: u64) -> Result<Vec<Stored>, Error> {
        let stream = subject::log_stream(exec.partition());
        let mut messages = Vec::new();
        let mut from = after + 1;
        loop {
            let request = json!({"seq": from, "next_by_subj": subject::execution(exec), "batch": READ_BATCH});
            let batch = direct_get(&self.log, &stream, &request).await?;
            let full = batch.len() as u64 == READ_BATCH;
            for message in batch {
                let subject = header(&message, "Nats-Subject")
                    .ok_or_else(|| Error::Broken("a stored message has no subject".into()))?;
                let stored = stored(&message, &subject)?;
                from = stored.sequence + 1;
                messages.push(stored);
            }
            if !full {
                return Ok(messages);
            }
        }
    }

    /// Executions of a partition that have facts which were handed out and not acknowledged, and of others beside them.
    ///
    /// # Errors
    /// When the consumer does not exist or the server does not answer.
    pub async fn unacknowledged(&self, partition: Partition) -> Result<BTreeSet<ExecutionId>, Error> {
        let name = subject::log_stream(partition);
        let stream = self.js.get_stream_no_info(&name).await.map_err(Error::broken)?;
        let consumer = stream.consumer_info(FACTS_CONSUMER).await.map_err(Error::broken)?;
        let (mut from, upto) = (consumer.ack_floor.stream_sequence + 1, consumer.delivered.stream_sequence);
        let mut found = BTreeSet::new();
        while from <= upto {
            let request =
                json!({"seq": from, "next_by_subj": format!("vl.v1.log.{partition}.*.fact"), "batch": READ_BATCH});
            let batch = direct_get(&self.log, &name, &request).await?;
            if batch.is_empty() {
                break;
            }
            for message in batch {
                from = sequence(&message)? + 1;
                // Nobody's fact waits for nobody.
                let exec = header(&message, "Nats-Subject").and_then(|s| Some(parse_subject(&s).ok()?.0));
                found.extend(exec.filter(|exec| exec.partition() == partition));
            }
        }
        Ok(found)
    }

    /// Follows the facts of a partition as one of its possible owners.
    ///
    /// # Errors
    /// When the consumer does not exist or the connection is closed.
    pub async fn facts(&self, partition: Partition) -> Result<Facts, Error> {
        let pull = Pull::new(
            &self.log,
            &subject::log_stream(partition),
            FACTS_CONSUMER,
            Some(stream::OWNER_GROUP),
            FACTS_BATCH,
            FACTS_EXPIRES,
        )
        .await?;
        Ok(Facts { bus: self.clone(), partition, pull })
    }

    /// The pin of the partition's owner; none when the server has chosen nobody, or the owner has fallen silent.
    ///
    /// # Errors
    /// When the consumer does not exist or the server does not answer.
    pub async fn owner(&self, partition: Partition) -> Result<Option<String>, Error> {
        #[derive(Deserialize)]
        struct Info {
            #[serde(default)]
            priority_groups: Vec<Group>,
        }
        #[derive(Deserialize)]
        struct Group {
            #[serde(default)]
            pinned_client_id: String,
        }
        let subject = format!("$JS.API.CONSUMER.INFO.{}.{FACTS_CONSUMER}", subject::log_stream(partition));
        let reply = request(&self.log, subject, None, Bytes::new(), REPLY_TIMEOUT).await?;
        let info: Info = serde_json::from_slice(&reply.payload)
            .map_err(|e| Error::Broken(format!("read a consumer's state: {e}")))?;
        Ok(info.priority_groups.into_iter().map(|group| group.pinned_client_id).find(|id| !id.is_empty()))
    }

    /// Watches what is stored for one execution, from now on. Messages may be lost: the log is right.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn live(&self, exec: ExecutionId) -> Result<Live, Error> {
        // The server knows the interest before anything that is appended to the log, or read from it, from now on.
        let [facts, decisions] = ["fact", "decision"].map(|kind| self.log.subscribe(subject::seen(exec, kind)));
        let (facts, decisions) = futures::future::try_join(facts, decisions).await.map_err(Error::broken)?;
        Ok(Live { facts: facts.peekable(), decisions: decisions.peekable() })
    }
}

/// Name of the consumer that the possible owners of a partition share.
pub(super) const FACTS_CONSUMER: &str = "orchestrator";

/// The facts of one partition.
pub struct Facts {
    bus: Bus,
    partition: Partition,
    pull: Pull,
}

impl Facts {
    /// The next fact, or none when there was none for a while. Cancel safe. A message under a subject that names no
    /// execution of this partition is nobody's fact: it is quarantined and passed over.
    ///
    /// # Errors
    /// When the consumer is gone or the connection closed: follow anew.
    pub async fn next(&mut self) -> Result<Option<FactDelivery>, Error> {
        let Some(message) = self.pull.next().await? else {
            return Ok(None);
        };
        let Some(reply) = message.reply.clone() else {
            return Ok(None);
        };
        let (sequence, stored_at) = place_of_reply(&reply);
        let (exec, kind) = match parse_subject(&message.subject) {
            Ok((exec, kind)) if exec.partition() == self.partition => (exec, kind),
            _ => return self.pass_over(&message, sequence, reply.to_string()).await.map(|()| None),
        };
        let stored = Stored { exec, sequence, stored_at, kind, payload: message.payload };
        let (client, reply) = (self.bus.log.clone(), reply.to_string());
        Ok(Some(FactDelivery { stored, read: OnceLock::new(), client, reply }))
    }

    async fn pass_over(&self, message: &Message, sequence: u64, reply: String) -> Result<(), Error> {
        let (stream, payload) = (subject::log_stream(self.partition), &message.payload);
        let verdict = match objection(&message.subject, payload) {
            // It reads, and yet belongs elsewhere: that cannot be.
            None => "+ACK".to_owned(),
            Some((reason, detail)) => match self.bus.quarantine(&stream, sequence, reason, &detail).await {
                Ok(_) => "+ACK".to_owned(),
                Err(error) => {
                    tracing::warn!(subject = %message.subject, %error, "nobody's fact is not quarantined yet; it comes again");
                    format!("-NAK {{\"delay\": {}}}", QUARANTINE_RETRY.as_nanos())
                }
            },
        };
        self.bus.log.publish(reply, verdict.into()).await.map_err(Error::broken)
    }

    /// The pin under which the server chose this process as the partition's owner; none when it did not.
    #[must_use]
    pub fn pin(&self) -> Option<&str> {
        self.pull.pin()
    }
}

/// A fact that waits for its decision.
pub struct FactDelivery {
    /// The message.
    pub stored: Stored,
    read: OnceLock<Option<Fact>>,
    client: Client,
    reply: String,
}

impl FactDelivery {
    /// What it says, read once; none when it cannot be read.
    #[must_use]
    pub fn fact(&self) -> Option<&Fact> {
        self.read.get_or_init(|| Fact::read(&self.stored.payload).ok()).as_ref()
    }

    /// The fact has led to whatever it leads to, and that is stored.
    ///
    /// # Errors
    /// When the connection is closed; the fact will come again, which does no harm.
    pub async fn done(self) -> Result<(), Error> {
        self.client.publish(self.reply, "+ACK".into()).await.map_err(Error::broken)
    }

    /// Not now: hand it out again after `delay`.
    ///
    /// # Errors
    /// When the connection is closed; the fact will come again by itself.
    pub async fn later(self, delay: Duration) -> Result<(), Error> {
        let nak = format!("-NAK {{\"delay\": {}}}", delay.as_nanos());
        self.client.publish(self.reply, nak.into()).await.map_err(Error::broken)
    }
}

/// What is stored for one execution, as it happens.
///
/// Two subscriptions to one subject each: for one with a wildcard the server goes through all subjects that it remembers
/// who listens to, when it comes and when it goes.
pub struct Live {
    facts: Peekable<Subscriber>,
    decisions: Peekable<Subscriber>,
}

impl Live {
    /// The next stored message; none when the connection is closed. Cancel safe.
    pub async fn next(&mut self) -> Option<Stored> {
        loop {
            // The order holds only if what is there is seen: no budget may hide it in the middle.
            tokio::task::consume_budget().await;
            let message = tokio::task::unconstrained(poll_fn(|context| self.poll_message(context))).await?;
            match stored(&message, &message.subject) {
                Ok(stored) => return Some(stored),
                Err(error) => {
                    tracing::warn!(%error, subject = %message.subject, "skipped a republished message");
                }
            }
        }
    }
}

impl Live {
    /// The older of the next fact and the next decision, in the order of the log.
    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Option<Message>> {
        let (mut facts, mut decisions) = (Pin::new(&mut self.facts), Pin::new(&mut self.decisions));
        let mut older = |context: &mut Context<'_>| {
            let decision = decisions.as_mut().poll_peek(context).map(|message| message.map(|m| sequence(m).ok()));
            // Both come over one connection, in order: what is older than this decision is there by now.
            let fact = facts.as_mut().poll_peek(context).map(|message| message.map(|m| sequence(m).ok()));
            (fact, decision)
        };
        let (mut fact, mut decision) = older(context);
        if fact.is_ready() && decision.is_pending() {
            // And what is older than this fact, which may have come in between.
            (fact, decision) = older(context);
        }
        match (fact, decision) {
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            (Poll::Ready(None), _) | (_, Poll::Ready(None)) => Poll::Ready(None),
            (Poll::Ready(Some(fact)), Poll::Ready(Some(decision))) if fact < decision => facts.poll_next(context),
            (Poll::Ready(_), Poll::Pending) => facts.poll_next(context),
            (_, Poll::Ready(_)) => decisions.poll_next(context),
        }
    }
}

/// A message that the server read back or republished, whose log subject is `subject`.
pub(super) fn stored(message: &Message, subject: &str) -> Result<Stored, Error> {
    let sequence = sequence(message)?;
    let stored_at = stored_at(message).ok_or_else(|| Error::Broken("a stored message has no time".into()))?;
    let (exec, kind) = parse_subject(subject)?;
    Ok(Stored { exec, sequence, stored_at, kind, payload: message.payload.clone() })
}

/// When a message that the server read back or republished was stored.
pub(super) fn stored_at(message: &Message) -> Option<Nanos> {
    header(message, "Nats-Time-Stamp").and_then(|time| clock::parse(&time))
}

/// The sequence of a message that the server read back or republished.
pub(super) fn sequence(message: &Message) -> Result<u64, Error> {
    let sequence = header(message, "Nats-Sequence").and_then(|s| s.parse().ok());
    sequence.ok_or_else(|| Error::Broken("a stored message has no sequence".into()))
}

/// `vl.v1.log.<part>.<exec>.<kind>`, and the same under `seen`.
pub(super) fn parse_subject(subject: &str) -> Result<(ExecutionId, Kind), Error> {
    let mut tokens = subject.split('.').skip(4);
    let exec = tokens.next().and_then(|t| t.parse().ok());
    let kind = match tokens.next() {
        Some("fact") => Some(Kind::Fact),
        Some("decision") => Some(Kind::Decision),
        _ => None,
    };
    exec.zip(kind).ok_or_else(|| Error::Broken(format!("{subject} is not a subject of the log")))
}

/// Sequence and time of storing in an acknowledgement subject, in either of its two forms:
/// `….<deliveries>.<sequence>.<consumer sequence>.<time>.<pending>`.
pub(super) fn place_of_reply(reply: &str) -> (u64, Nanos) {
    let tokens: Vec<&str> = reply.split('.').collect();
    let index = if tokens.len() >= 12 { 7 } else { 5 };
    let sequence = tokens.get(index).and_then(|t| t.parse().ok()).unwrap_or(0);
    (sequence, tokens.get(index + 2).and_then(|t| t.parse().ok()).unwrap_or(0))
}

/// Messages of a stream by one batched request.
pub(super) async fn direct_get(
    client: &Client,
    stream: &str,
    request: &serde_json::Value,
) -> Result<Vec<Message>, Error> {
    let inbox = client.new_inbox();
    let mut replies = client.subscribe(inbox.clone()).await.map_err(Error::broken)?;
    let subject = format!("$JS.API.DIRECT.GET.{stream}");
    client.publish_with_reply(subject.clone(), inbox, request.to_string().into()).await.map_err(Error::broken)?;
    let mut messages = Vec::new();
    loop {
        let reply =
            tokio::time::timeout(REPLY_TIMEOUT, replies.next()).await.map_err(|_| Error::Timeout(REPLY_TIMEOUT))?;
        let message = reply.ok_or_else(|| Error::Broken("the connection closed".to_owned()))?;
        match message.status.map(|s| s.as_u16()) {
            None => messages.push(message),
            // 204 ends a batch, 404 says that there is nothing.
            Some(204 | 404) => return Ok(messages),
            Some(503) => return Err(Error::NoResponders(subject)),
            Some(status) => {
                return Err(Error::Broken(format!(
                    "reading {stream} answered {status}: {}",
                    message.description.unwrap_or_default()
                )));
            }
        }
    }
}

/// Headers of a durable message. What its subject says, the execution and whether it is a decision, they do not repeat:
/// it would be stored with each.
pub(super) fn headers(
    kind: Option<&str>,
    message_id: &str,
    trace: &std::collections::BTreeMap<String, String>,
) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", message_id);
    if let Some(kind) = kind {
        headers.insert("Vl-Type", kind);
    }
    for (key, value) in trace {
        headers.insert(key.as_str(), value.as_str());
    }
    headers
}

/// For those who read the whole log.
impl Bus {
    /// Sequence of a partition's newest message; 0 when there is none.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn last_sequence(&self, partition: Partition) -> Result<u64, Error> {
        let stream = self.js.get_stream(subject::log_stream(partition)).await.map_err(Error::broken)?;
        Ok(stream.cached_info().state.last_sequence)
    }

    /// The next messages of a partition in order, of sequences `from` to `to`; empty when there are none. Each comes
    /// with its sequence, and without content when its subject names no execution.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn read_partition(
        &self,
        partition: Partition,
        from: u64,
        to: u64,
    ) -> Result<Vec<(u64, Option<Stored>)>, Error> {
        let stream = subject::log_stream(partition);
        let request = json!({"seq": from, "next_by_subj": ">", "batch": READ_BATCH, "max_bytes": READ_BYTES});
        let mut messages = Vec::new();
        for message in direct_get(&self.log, &stream, &request).await? {
            let sequence = sequence(&message)?;
            if sequence > to {
                break;
            }
            let subject = header(&message, "Nats-Subject").unwrap_or_default();
            messages.push((sequence, stored(&message, &subject).ok()));
        }
        Ok(messages)
    }

    /// Sequence of a partition's first message that was stored at `at` or later; behind `last` when there is none.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn first_since(&self, partition: Partition, at: Nanos, last: u64) -> Result<u64, Error> {
        let stream = subject::log_stream(partition);
        // Times of storing grow with the sequence.
        let (mut before, mut since) = (0, last + 1);
        while before + 1 < since {
            let middle = before.midpoint(since);
            let request = json!({"seq": middle, "next_by_subj": ">", "batch": 1});
            let found = direct_get(&self.log, &stream, &request).await?;
            match found.first().and_then(stored_at) {
                Some(stored_at) if stored_at < at => before = middle,
                _ => since = middle,
            }
        }
        Ok(since)
    }

    /// The newest executions, newest first (their ids sort by time).
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn newest_executions(&self, limit: usize) -> Result<Vec<ExecutionId>, Error> {
        use futures::TryStreamExt;
        let mut ids = BTreeSet::new();
        for partition in Partition::all() {
            let stream = self.js.get_stream(subject::log_stream(partition)).await.map_err(Error::broken)?;
            let mut subjects =
                stream.info_with_subjects(format!("vl.v1.log.{partition}.*.fact")).await.map_err(Error::broken)?;
            while let Some((subject, _)) = subjects.try_next().await.map_err(Error::broken)? {
                if let Ok((exec, _)) = parse_subject(&subject) {
                    ids.insert(exec);
                    if ids.len() > limit {
                        ids.pop_first();
                    }
                }
            }
        }
        Ok(ids.into_iter().rev().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_subject_says_where_and_when_a_message_was_stored() {
        let short = "$JS.ACK.VL_LOG_3.orchestrator.1.42.7.1700000000123456789.0";
        let long = "$JS.ACK._.HASH.VL_LOG_3.orchestrator.1.42.7.1700000000123456789.0.token";
        assert_eq!(place_of_reply(short), (42, 1_700_000_000_123_456_789));
        assert_eq!(place_of_reply(long), (42, 1_700_000_000_123_456_789));
    }

    #[test]
    fn times_are_read_with_as_many_digits_as_the_server_writes() {
        assert_eq!(clock::parse("2023-11-14T22:13:20.123456789Z"), Some(1_700_000_000_123_456_789));
        assert_eq!(clock::parse("2023-11-14T22:13:20Z"), Some(1_700_000_000_000_000_000));
        assert_eq!(clock::parse("yesterday"), None);
    }
}
