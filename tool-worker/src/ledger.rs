//! Calls that must not be carried out twice.
//!
//! A job may come again: its worker died, or its sign of life was late, or the orchestrator gave the attempt up and made
//! another. A call that only reads is then read again. Any other is written down before it begins, under the name of its
//! execution and effect, which all attempts share, in a bucket on disk; and again with what came of it, before that is
//! told. Whoever finds an entry does not begin: it tells what came of the call, or that nobody knows.

use std::time::Duration;

use runtime::bus::{self, Bus};
use runtime::clock;
use schemas::fact::{FailureClass, Sandbox};
use schemas::object::Reference;
use schemas::stream::BUCKET_TOOL_CALLS;
use schemas::wire::{Nanos, decode, encode};
use schemas::{EffectId, ExecutionId};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// How a call ended, as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) result: Result<String, Failure>,
    /// The whole text, where the result is only its beginning.
    pub(crate) full: Option<Reference>,
    pub(crate) duration: Duration,
    pub(crate) sandbox: Sandbox,
}

/// The calls that all workers have begun.
pub(crate) struct Ledger {
    bus: Bus,
    worker: String,
}

/// What the ledger says of a call.
#[derive(Debug)]
pub(crate) enum Entry {
    /// It is ours to carry out.
    Begun(Begun),
    /// It was carried out.
    Ended(Ended),
    /// It was begun, and nothing more is known.
    Unknown,
}

/// A call that is written down as begun. It must be ended or withdrawn; a call that is neither has an unknown outcome.
#[derive(Debug)]
pub(crate) struct Begun {
    key: String,
    line: Line,
}

/// An entry as it lies in the bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Line {
    worker: String,
    attempt: u32,
    at: Nanos,
    /// Tells our own entry from one of the same worker's other tries.
    token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<End>,
}

/// How a call ended, as it lies in the bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct End {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failed: Option<FailureClass>,
    text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    full: Option<Reference>,
    duration_us: u64,
    sandbox: Sandbox,
}

impl Ledger {
    pub(crate) fn new(bus: Bus, worker: &str) -> Self {
        Self { bus, worker: worker.to_owned() }
    }

    /// Writes a call down as begun, or says what is known of it.
    ///
    /// # Errors
    /// The server does not answer: nothing may begin.
    pub(crate) async fn begin(&self, exec: ExecutionId, effect: &EffectId, attempt: u32) -> Result<Entry, bus::Error> {
        let key = format!("{exec}.{effect}");
        let line =
            Line { worker: self.worker.clone(), attempt, at: clock::now(), token: clock::random_hex(), end: None };
        let created = self.bus.create_entry(BUCKET_TOOL_CALLS, &key, encode(&line).into()).await;
        if matches!(created, Ok(true)) {
            return Ok(Entry::Begun(Begun { key, line }));
        }
        // It is there; or the answer was lost, and then only the bucket knows.
        let there = self.bus.entry(BUCKET_TOOL_CALLS, &key).await?;
        let there: Option<Line> = there.and_then(|bytes| decode(&bytes).ok());
        Ok(match (there, created) {
            (Some(there), _) if there.token == line.token => Entry::Begun(Begun { key, line }),
            (Some(Line { end: Some(end), .. }), _) => Entry::Ended(end.into()),
            (Some(_), _) | (None, Ok(_)) => Entry::Unknown,
            (None, Err(error)) => return Err(error),
        })
    }

    /// Writes down how a call ended.
    ///
    /// # Errors
    /// The server does not answer. The call has been carried out all the same.
    pub(crate) async fn end(&self, begun: Begun, ended: &Ended) -> Result<(), bus::Error> {
        let line = Line { end: Some(ended.into()), ..begun.line };
        let put = self.bus.bucket(BUCKET_TOOL_CALLS).await?.put(&begun.key, encode(&line).into()).await;
        put.map(drop).map_err(|error| bus::Error::Broken(error.to_string()))
    }

    /// Strikes a call out that was not carried out after all: another attempt may.
    ///
    /// # Errors
    /// The server does not answer; the call counts as begun then.
    pub(crate) async fn withdraw(&self, begun: Begun) -> Result<(), bus::Error> {
        let purged = self.bus.bucket(BUCKET_TOOL_CALLS).await?.purge(&begun.key).await;
        purged.map_err(|error| bus::Error::Broken(error.to_string()))
    }
}

/// What is said of a call that was begun before and of which nothing more is known.
pub(crate) fn unknown(tool: &str) -> Ended {
    let detail = format!(
        "outcome unknown: {tool} was begun, and what carried it out did not report back; it may have taken effect. \
         Find out before you call it again"
    );
    let result = Err(Failure { class: FailureClass::OutcomeUnknown, detail });
    Ended { result, full: None, duration: Duration::ZERO, sandbox: Sandbox::default() }
}

impl From<&Ended> for End {
    fn from(ended: &Ended) -> Self {
        let (failed, text) = match &ended.result {
            Ok(text) => (None, text.clone()),
            Err(failure) => (Some(failure.class), failure.detail.clone()),
        };
        let duration_us = u64::try_from(ended.duration.as_micros()).unwrap_or(u64::MAX);
        Self { failed, text, full: ended.full.clone(), duration_us, sandbox: ended.sandbox.clone() }
    }
}

impl From<End> for Ended {
    fn from(end: End) -> Self {
        let result = match end.failed {
            None => Ok(end.text),
            Some(class) => Err(Failure { class, detail: end.text }),
        };
        Self { result, full: end.full, duration: Duration::from_micros(end.duration_us), sandbox: end.sandbox }
    }
}
