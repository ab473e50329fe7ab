//! Dead letters: quarantines what a consumer gives up on, lists what waits, sends a message again, removes a letter.
//!
//! A letter is written once, on the condition that its message has none yet: whoever meets the message again, however
//! late, finds it quarantined. What the server gives up by itself, it says in advisories, which land in the same stream
//! and are turned into letters by [`Bus::collect_dead_letters`].

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::{HeaderMap, Message};
use schemas::dead_letter::{DeadLetter, Reason, Settled, Settlement, is_request, objection};
use schemas::wire::{Schema, encode};
use schemas::{ExecutionId, stream, subject};
use serde::Deserialize;
use serde_json::json;

use super::log::direct_get;
use super::pull::{Pull, header};
use super::{Bus, Error, REPLY_TIMEOUT, publish, request};
use crate::{Tasks, clock};

/// Name of the consumer of the server's advisories, which collecting processes share.
pub(super) const ADVISORIES_CONSUMER: &str = "dead-letters";
/// Advisories asked for at a time, and how long one pull waits.
const ADVISORIES_BATCH: usize = 16;
const ADVISORIES_EXPIRES: Duration = Duration::from_secs(5);
/// How long a broken consumer is left alone, and how long an advisory waits whose letter was not written.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Bytes that a letter needs beside the message it copies and its own envelope: headers of the publish itself.
const ROOM: usize = 4 << 10;
/// Letters read at a time, and their bytes at most.
const READ_BATCH: u64 = 256;
const READ_BYTES: u64 = 4 << 20;
/// How a worker says, taking a message off a queue, which letter was written about it.
pub(super) const TERMINATED: &str = "dead letter ";
/// How the server says that a message was deleted while somebody held it: an orchestrator withdrew a job.
const WITHDRAWN: &str = "Unacknowledged message was deleted";

/// Why nothing was done with a letter.
#[derive(Debug, thiserror::Error)]
pub enum LetterError {
    /// No letter has this id.
    #[error("there is no dead letter {0:?}")]
    Unknown(String),
    /// It was settled before.
    #[error("dead letter {id} was {how} by {by} already")]
    Settled {
        /// The letter.
        id: String,
        /// How, in a word.
        how: &'static str,
        /// By whom.
        by: String,
    },
    /// Sent again it would be given up again.
    #[error("dead letter {id} would be given up again: {why}")]
    StillDead {
        /// The letter.
        id: String,
        /// What is wrong with its message.
        why: String,
    },
    /// Its message can never be sent again.
    #[error("the message of dead letter {id} cannot be sent again: {why}")]
    Never {
        /// The letter.
        id: String,
        /// Why.
        why: String,
    },
    /// The bus failed.
    #[error(transparent)]
    Bus(#[from] Error),
}

/// A letter and the sequence under which it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptLetter {
    /// The letter.
    pub letter: DeadLetter,
    /// Its sequence in the stream of dead letters.
    pub sequence: u64,
}

impl Bus {
    /// Copies the message at `sequence` of `stream` into a letter. Returns the letter's id; none when there is no such
    /// message (any more). A message that has a letter, waiting or settled, keeps that one.
    ///
    /// # Errors
    /// When the letter is not known to be written. Asking again is safe.
    pub async fn quarantine(
        &self,
        stream: &str,
        sequence: u64,
        reason: Reason,
        detail: &str,
    ) -> Result<Option<String>, Error> {
        let Some(message) = self.message_at(stream, sequence).await? else {
            return Ok(None);
        };
        let letter = self.letter(stream, sequence, reason, detail);
        let letter = DeadLetter {
            subject: header(&message, "Nats-Subject").unwrap_or_default(),
            stored_at: header(&message, "Nats-Time-Stamp").and_then(|t| clock::parse(&t)).unwrap_or_default(),
            headers: headers_of(&message),
            payload: Some(message.payload.to_vec()),
            ..letter
        };
        let letter = DeadLetter { exec: exec_of(&letter.subject), ..letter };
        self.write_letter(letter).await.map(Some)
    }

    fn letter(&self, stream: &str, sequence: u64, reason: Reason, detail: &str) -> DeadLetter {
        DeadLetter {
            schema: DeadLetter::SCHEMA.to_owned(),
            stream: stream.to_owned(),
            sequence,
            subject: String::new(),
            stored_at: 0,
            reason,
            detail: detail.to_owned(),
            next_step: reason.next_step().to_owned(),
            at: clock::now(),
            by: self.process.to_string(),
            exec: None,
            headers: BTreeMap::new(),
            payload: None,
            settled: None,
        }
    }

    /// Writes a letter unless its message has one.
    async fn write_letter(&self, mut letter: DeadLetter) -> Result<String, Error> {
        let id = letter.id();
        let room = self.log.server_info().max_payload.saturating_sub(ROOM);
        if letter.payload.is_some() && encode(&letter).len() > room {
            letter.payload = None;
        }
        let mut written = self.put_letter(&letter, 0).await;
        if let (Err(Error::Full(_) | Error::Refused { .. }), Some(_)) = (&written, &letter.payload) {
            // An operator may allow smaller letters than messages.
            letter.payload = None;
            written = self.put_letter(&letter, 0).await;
        }
        match written {
            Ok(_) => {
                let (stream, sequence, reason) = (&letter.stream, letter.sequence, letter.reason.name());
                tracing::error!(id, stream, sequence, reason, detail = letter.detail, "a message became a dead letter");
                self.dead_letters.with_label_values(&[reason]).inc();
                Ok(id)
            }
            Err(Error::Stale(_)) => Ok(id),
            Err(error) => Err(error),
        }
    }

    /// Stores a letter if the newest one of its id still has the sequence `expected` (0 for none).
    async fn put_letter(&self, letter: &DeadLetter, expected: u64) -> Result<u64, Error> {
        let (id, subject) = (letter.id(), letter.kept_on());
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", subject.as_str());
        headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string().as_str());
        headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", subject::dead_letter_any(&id).as_str());
        headers.insert("Vl-Type", "dead-letter");
        publish(&self.log, subject, headers, encode(letter).into()).await.map(|ack| ack.seq)
    }

    /// How many letters wait for somebody.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn dead_letters_waiting(&self) -> Result<u64, Error> {
        let request = json!({"seq": 1, "next_by_subj": subject::DEAD_LETTERS_WAITING, "batch": 1});
        let first = direct_get(&self.log, stream::DEAD_LETTERS, &request).await?;
        let behind = |m: &Message| header(m, "Nats-Num-Pending")?.parse::<u64>().ok();
        Ok(first.first().map_or(0, |first| 1 + behind(first).unwrap_or(0)))
    }

    /// Letters kept behind the sequence `after`, oldest first, `limit` at most: those that wait, or also those settled.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn dead_letters(&self, after: u64, limit: usize, settled: bool) -> Result<Vec<KeptLetter>, Error> {
        let filter = if settled { subject::DEAD_LETTERS_ALL } else { subject::DEAD_LETTERS_WAITING };
        let (mut from, mut letters) = (after + 1, Vec::new());
        while letters.len() < limit {
            let request = json!({"seq": from, "next_by_subj": filter, "batch": READ_BATCH, "max_bytes": READ_BYTES});
            let batch = direct_get(&self.log, stream::DEAD_LETTERS, &request).await?;
            let Some(last) = batch.last() else { break };
            from = sequence_of(last)? + 1;
            for message in &batch {
                letters.push(kept(message)?);
            }
        }
        letters.truncate(limit);
        Ok(letters)
    }

    /// One letter; none when there is none of this id.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn dead_letter(&self, id: &str) -> Result<Option<KeptLetter>, Error> {
        // Anything else would be a pattern, or no subject.
        if subject::token(id) != id {
            return Ok(None);
        }
        let request = json!({"multi_last": [subject::dead_letter_any(id)], "batch": 2});
        let found = direct_get(&self.log, stream::DEAD_LETTERS, &request).await?;
        // Between settling a letter and deleting the one that waited there are two.
        let found: Vec<KeptLetter> = found.iter().map(kept).collect::<Result<_, _>>()?;
        Ok(found.into_iter().max_by_key(|kept| kept.sequence))
    }

    /// Publishes the message of a letter again, once, and settles the letter when the server has it. Returns the letter
    /// as it is now. Without `force`, only a message that would not be given up again at once.
    ///
    /// # Errors
    /// When it was not published, or is not known to be settled: then asking again publishes nothing twice within the
    /// window in which its stream knows message ids.
    pub async fn redrive(&self, id: &str, force: bool, by: &str) -> Result<KeptLetter, LetterError> {
        let found = self.waiting(id).await?;
        let letter = &found.letter;
        let never = |why: &str| LetterError::Never { id: id.to_owned(), why: why.to_owned() };
        if letter.subject.ends_with(".decision") {
            return Err(never("a decision counts only where it was made; the execution has decided anew"));
        }
        let payload = match &letter.payload {
            Some(payload) => payload.clone(),
            None => self.message_of(letter).await?.ok_or_else(|| never("its bytes are gone"))?,
        };
        if let Some(why) = self.objection(letter, &payload).await?
            && !force
        {
            return Err(LetterError::StillDead { id: id.to_owned(), why });
        }
        let mut headers = HeaderMap::new();
        for (name, values) in letter.headers.iter().filter(|(name, _)| !name.starts_with("Nats-")) {
            values.iter().for_each(|value| headers.append(name.as_str(), value.as_str()));
        }
        // The id it had may still be known, and would swallow it.
        headers.insert("Nats-Msg-Id", format!("redrive/{id}").as_str());
        let client = if letter.subject.starts_with("vl.v1.log.") { &self.log } else { &self.jobs };
        let ack = publish(client, letter.subject.clone(), headers, payload.into()).await?;
        self.settle(found, Settlement::Redriven, by, Some(ack.seq)).await
    }

    /// Removes a letter: its copy of the message goes, what remains says that it was removed and by whom.
    ///
    /// # Errors
    /// When it is not known to be removed. Asking again is safe.
    pub async fn remove_dead_letter(&self, id: &str, by: &str) -> Result<KeptLetter, LetterError> {
        let mut found = self.waiting(id).await?;
        found.letter.payload = None;
        self.settle(found, Settlement::Removed, by, None).await
    }

    async fn waiting(&self, id: &str) -> Result<KeptLetter, LetterError> {
        let found = self.dead_letter(id).await?.ok_or_else(|| LetterError::Unknown(id.to_owned()))?;
        match &found.letter.settled {
            None => Ok(found),
            Some(Settled { how, by, .. }) => {
                let how = match how {
                    Settlement::Redriven => "redriven",
                    Settlement::Removed => "removed",
                };
                Err(LetterError::Settled { id: id.to_owned(), how, by: by.clone() })
            }
        }
    }

    async fn settle(
        &self,
        found: KeptLetter,
        how: Settlement,
        by: &str,
        sequence: Option<u64>,
    ) -> Result<KeptLetter, LetterError> {
        let settled = Some(Settled { how, at: clock::now(), by: by.to_owned(), sequence });
        let letter = DeadLetter { settled, ..found.letter };
        let sequence = self.put_letter(&letter, found.sequence).await?;
        self.unqueue(stream::DEAD_LETTERS, found.sequence).await?;
        Ok(KeptLetter { letter, sequence })
    }

    /// Why a message would be given up again.
    async fn objection(&self, letter: &DeadLetter, payload: &[u8]) -> Result<Option<String>, Error> {
        if let Some((_, why)) = objection(&letter.subject, payload) {
            return Ok(Some(why));
        }
        if let (Reason::UnknownExecution, Some(exec)) = (letter.reason, letter.exec) {
            let log = self.read_execution(exec, 0).await?;
            if !log.iter().any(|stored| is_request(&stored.payload)) {
                return Ok(Some(format!("the log still holds no request of execution {exec}")));
            }
        }
        Ok((letter.reason == Reason::NeverAskedFor).then(|| letter.detail.clone()))
    }

    /// A stored message by its place; none when it is gone.
    async fn message_at(&self, stream: &str, sequence: u64) -> Result<Option<Message>, Error> {
        let request = json!({"seq": sequence, "next_by_subj": ">", "batch": 1});
        let found = direct_get(&self.log, stream, &request).await?.into_iter().next();
        Ok(found.filter(|message| sequence_of(message).is_ok_and(|found| found == sequence)))
    }

    /// The message of a letter that holds no copy, if its stream still has it.
    async fn message_of(&self, letter: &DeadLetter) -> Result<Option<Vec<u8>>, Error> {
        let found = self.message_at(&letter.stream, letter.sequence).await?;
        let stored_at = |m: &Message| header(m, "Nats-Time-Stamp").and_then(|t| clock::parse(&t));
        Ok(found.filter(|m| stored_at(m) == Some(letter.stored_at)).map(|m| m.payload.to_vec()))
    }

    /// Turns the server's advisories into letters until the soft token falls. Any number of processes may do it.
    ///
    /// # Errors
    /// When the stream of dead letters is missing or the connection closed.
    pub async fn collect_dead_letters(&self, tasks: &Tasks) -> Result<(), Error> {
        let mut advisories = self.advisories().await?;
        let (bus, soft) = (self.clone(), tasks.soft());
        tasks.spawn(async move {
            while let Some(next) = soft.run_until_cancelled(advisories.next()).await {
                match next {
                    Ok(Some(message)) => bus.take_advisory(&message).await,
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(%error, "the server's advisories cannot be followed; trying again");
                        soft.run_until_cancelled(tokio::time::sleep(RETRY_AFTER)).await;
                        if let Ok(again) = bus.advisories().await {
                            advisories = again;
                        }
                    }
                }
            }
        });
        Ok(())
    }

    async fn advisories(&self) -> Result<Pull, Error> {
        let (stream, consumer) = (stream::DEAD_LETTERS, ADVISORIES_CONSUMER);
        Pull::new(&self.log, stream, consumer, None, ADVISORIES_BATCH, ADVISORIES_EXPIRES).await
    }

    /// One advisory from its delivery to its verdict: it goes when its letter is there.
    async fn take_advisory(&self, message: &Message) {
        let Some(reply) = message.reply.as_ref() else { return };
        let verdict = match self.letter_of_advisory(&message.payload).await {
            Ok(()) => self.drop_advisory(reply).await,
            Err(error) => {
                tracing::warn!(%error, "a message that the server gave up is not quarantined yet; trying again");
                let nak = format!("-NAK {{\"delay\": {}}}", RETRY_AFTER.as_nanos());
                self.log.publish(reply.clone(), nak.into()).await.map_err(Error::broken)
            }
        };
        if let Err(error) = verdict {
            tracing::debug!(%error, "a verdict on an advisory was not confirmed; it comes again, or goes with its age");
        }
    }

    /// Acknowledged first: to delete what is in somebody's hands is worth an advisory to the server.
    async fn drop_advisory(&self, reply: &str) -> Result<(), Error> {
        request(&self.log, reply.to_owned(), None, "+ACK".into(), REPLY_TIMEOUT).await?;
        let (sequence, _) = super::log::place_of_reply(reply);
        self.unqueue(stream::DEAD_LETTERS, sequence).await
    }

    async fn letter_of_advisory(&self, bytes: &[u8]) -> Result<(), Error> {
        let Ok(advisory) = serde_json::from_slice::<Advisory>(bytes) else {
            return Ok(());
        };
        let Advisory { stream, consumer, stream_seq, deliveries, reason, .. } = &advisory;
        // The account may have streams of others.
        let ours = stream::streams().iter().any(|ours| &ours.name == stream) && stream != stream::DEAD_LETTERS;
        if !ours || (advisory.is_terminated() && reason == WITHDRAWN) {
            return Ok(());
        }
        if advisory.is_terminated() {
            let told = reason.strip_prefix(TERMINATED);
            if let Some(id) = told
                && self.dead_letter(id).await?.is_some()
            {
                return Ok(());
            }
            let detail = format!("taken off the queue by a worker of consumer {consumer}, which said: {reason:?}");
            let stored_at = clock::parse(&advisory.timestamp).unwrap_or_else(clock::now);
            let letter = self.letter(stream, *stream_seq, Reason::Terminated, &detail);
            return self.write_letter(DeadLetter { stored_at, ..letter }).await.map(drop);
        }
        let detail = format!("handed out {deliveries} times to workers of consumer {consumer}, and never finished");
        // Without the message nobody wants it any more: it was finished after all, or withdrawn.
        if self.quarantine(stream, *stream_seq, Reason::GivenUp, &detail).await?.is_some()
            && [stream::INFERENCE_JOBS, stream::TOOL_JOBS, stream::ANALYSIS_JOBS].contains(&stream.as_str())
        {
            // Nobody is handed it any more, and it would take room in the queue for ever.
            self.unqueue(stream, *stream_seq).await?;
        }
        Ok(())
    }
}

/// What the server says when a consumer gives a message up.
#[derive(Debug, Deserialize)]
struct Advisory {
    #[serde(rename = "type")]
    kind: String,
    timestamp: String,
    stream: String,
    consumer: String,
    stream_seq: u64,
    #[serde(default)]
    deliveries: u64,
    #[serde(default)]
    reason: String,
}

impl Advisory {
    fn is_terminated(&self) -> bool {
        self.kind.ends_with(".terminated")
    }
}

fn kept(message: &Message) -> Result<KeptLetter, Error> {
    Ok(KeptLetter { letter: DeadLetter::read(&message.payload)?, sequence: sequence_of(message)? })
}

fn sequence_of(message: &Message) -> Result<u64, Error> {
    let sequence = header(message, "Nats-Sequence").and_then(|s| s.parse().ok());
    sequence.ok_or_else(|| Error::Broken("a stored message has no sequence".to_owned()))
}

/// The execution that a subject of the log or of a queue names.
fn exec_of(subject: &str) -> Option<ExecutionId> {
    subject.split('.').find_map(|token| token.parse().ok())
}

/// A message's own headers; those that the server adds when it reads one back say where it stands.
fn headers_of(message: &Message) -> BTreeMap<String, Vec<String>> {
    const ADDED: [&str; 6] =
        ["Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending", "Nats-Last-Sequence"];
    let all = message.headers.iter().flat_map(HeaderMap::iter);
    let own = all.map(|(name, values)| (name.to_string(), values)).filter(|(name, _)| !ADDED.contains(&name.as_str()));
    own.map(|(name, values)| (name, values.iter().map(|value| value.as_str().to_owned()).collect())).collect()
}
