//! Dead letters: copies of messages that a consumer gave up on, with where each came from, why, and what to do.
//!
//! A letter has one id, made of where its message stands, so that a message has one letter however often and by however
//! many it is given up. It is kept on [`subject::dead_letter`] while it waits for somebody, and on
//! [`subject::settled_letter`] once it was sent again or removed.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fact::FactBody;
use crate::ids::ExecutionId;
use crate::job::{InferenceJob, Job, ToolJob};
use crate::subject;
use crate::wire::{DecodeError, Nanos, Schema, read};
use crate::{Fact, Record};

/// A message that was given up, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetter {
    /// `dead-letter/1.0`.
    pub schema: String,
    /// The stream that holds, or held, the message.
    pub stream: String,
    /// Its sequence there.
    pub sequence: u64,
    /// Its subject; empty when the message was gone before anybody could look at it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// When it was stored there, by the server's clock.
    pub stored_at: Nanos,
    /// Why it was given up.
    pub reason: Reason,
    /// What is wrong with it, for people.
    pub detail: String,
    /// What to do about it, for people.
    pub next_step: String,
    /// When it was given up.
    pub at: Nanos,
    /// Who gave it up: a process, or the consumer that the server gave it up for.
    pub by: String,
    /// The execution it names, if it names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecutionId>,
    /// Its headers as they were.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Vec<String>>,
    /// Its bytes as they were. None when they were gone, when they are too large for a copy beside this envelope (the
    /// stream still has them), or when the letter was removed.
    #[serde(default, with = "serde_bytes", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<crate::wire::Bytes>")]
    pub payload: Option<Vec<u8>>,
    /// What became of it; none while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<Settled>,
}

impl Schema for DeadLetter {
    const SCHEMA: &'static str = "dead-letter/1.0";
}

/// Why a message was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its bytes are no message of the kind that its subject says.
    Malformed,
    /// It is of a version that the reader does not know.
    UnknownVersion,
    /// It stands under a subject that names no execution, or an execution of another partition.
    Misplaced,
    /// A fact of an execution of which the log holds no request.
    UnknownExecution,
    /// A fact about something that an execution, which has ended, never asked for.
    NeverAskedFor,
    /// A job that was handed out as often as jobs may be, and nobody finished.
    GivenUp,
    /// A job that a worker took off the queue as one that can never be carried out.
    Terminated,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Malformed,
        Self::UnknownVersion,
        Self::Misplaced,
        Self::UnknownExecution,
        Self::NeverAskedFor,
        Self::GivenUp,
        Self::Terminated,
    ];

    /// Why a message that cannot be decoded is given up.
    #[must_use]
    pub const fn of(error: &DecodeError) -> Self {
        match error {
            DecodeError::Malformed(_) | DecodeError::Json(_) => Self::Malformed,
            DecodeError::Schema { .. } => Self::UnknownVersion,
        }
    }

    /// Its name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownVersion => "unknown_version",
            Self::Misplaced => "misplaced",
            Self::UnknownExecution => "unknown_execution",
            Self::NeverAskedFor => "never_asked_for",
            Self::GivenUp => "given_up",
            Self::Terminated => "terminated",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub const fn next_step(self) -> &'static str {
        match self {
            Self::Malformed => "find who publishes there and correct that; then remove this letter",
            Self::UnknownVersion => "upgrade the program that gave it up, then redrive this letter",
            Self::Misplaced => "correct the subject where it is published, publish it anew, and remove this letter",
            Self::UnknownExecution => "redrive it once the execution's request is in the log, or remove it",
            Self::NeverAskedFor => "find who sent it: the execution has ended and never waited for it; then remove it",
            Self::GivenUp => {
                "find in the workers' logs why nobody finished it, then redrive it while it is still wanted"
            }
            Self::Terminated => "find the reason in the workers' logs; then remove this letter",
        }
    }
}

/// What became of a letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Settled {
    /// How.
    pub how: Settlement,
    /// When.
    pub at: Nanos,
    /// By whom.
    pub by: String,
    /// For a message that was sent again: its new sequence in its stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

/// How a letter is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Settlement {
    /// Its message was published again.
    Redriven,
    /// Nobody wants it any more.
    Removed,
}

impl DeadLetter {
    /// The letter's id, one token: stream, sequence and the second in which the message was stored. The second is there
    /// because the sequences of a queue in memory begin anew with its server.
    #[must_use]
    pub fn id(&self) -> String {
        id(&self.stream, self.sequence, self.stored_at)
    }

    /// Where it is kept now.
    #[must_use]
    pub fn kept_on(&self) -> String {
        match self.settled {
            None => subject::dead_letter(&self.id()),
            Some(_) => subject::settled_letter(&self.id()),
        }
    }

    /// Reads a letter and checks its version.
    ///
    /// # Errors
    /// When the bytes are no letter, or one of a version this code does not know.
    pub fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        read(bytes, |letter: &Self| &letter.schema)
    }
}

/// The id of the letter about the message at `sequence` of `stream`, stored at `stored_at`.
#[must_use]
pub fn id(stream: &str, sequence: u64, stored_at: Nanos) -> String {
    subject::token(&format!("{stream}-{sequence}-{}", stored_at / 1_000_000_000))
}

/// Why a message under `subject` cannot be what that subject says: nothing when it can.
#[must_use]
pub fn objection(subject: &str, payload: &[u8]) -> Option<(Reason, String)> {
    let tokens: Vec<&str> = subject.split('.').collect();
    let wrong = |error: DecodeError| Some((Reason::of(&error), error.to_string()));
    match tokens.as_slice() {
        ["vl", "v1", "log", partition, exec, kind @ ("fact" | "decision")] => {
            let Ok(exec) = exec.parse::<ExecutionId>() else {
                return Some((Reason::Misplaced, format!("{exec:?} in its subject is no execution id")));
            };
            if exec.partition().to_string() != *partition {
                let detail = format!("{exec} belongs to partition {}, not {partition}", exec.partition());
                return Some((Reason::Misplaced, detail));
            }
            let named = match *kind {
                "fact" => Fact::read(payload).map(|fact| fact.exec),
                _ => Record::read(payload).map(|record| record.exec),
            };
            match named {
                Ok(named) if named == exec => None,
                Ok(named) => {
                    Some((Reason::Malformed, format!("it is about execution {named}, its subject names {exec}")))
                }
                Err(error) => wrong(error),
            }
        }
        ["vl", "v1", "job", "infer", ..] => InferenceJob::read(payload).err().and_then(wrong),
        ["vl", "v1", "job", "tool", ..] => ToolJob::read(payload).err().and_then(wrong),
        _ => Some((Reason::Misplaced, format!("nobody reads {subject:?}"))),
    }
}

/// Whether a fact is the request of its execution.
#[must_use]
pub fn is_request(payload: &[u8]) -> bool {
    Fact::read(payload).is_ok_and(|fact| matches!(fact.body, FactBody::ExecutionSubmitted(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fact::ResumeRequested;
    use crate::wire::encode;

    fn fact(exec: ExecutionId, schema: &str) -> Vec<u8> {
        let body = FactBody::ResumeRequested(ResumeRequested { by: "ann".into() });
        encode(&Fact { schema: schema.into(), ..Fact::new(exec, 1, body) })
    }

    #[test]
    fn a_message_is_held_against_its_subject() {
        let exec: ExecutionId = "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical");
        let other: ExecutionId = "0192f0c1-7a3b-7c4d-8e5f-001122334456".parse().expect("canonical");
        let here = subject::fact(exec);
        let reason = |subject: &str, payload: &[u8]| objection(subject, payload).map(|(reason, _)| reason);
        assert_eq!(reason(&here, &fact(exec, "fact/1.7")), None, "a newer minor version");
        assert_eq!(reason(&here, &fact(exec, "fact/2.0")), Some(Reason::UnknownVersion));
        assert_eq!(reason(&here, &fact(other, "fact/1.0")), Some(Reason::Malformed));
        assert_eq!(reason(&here, b"\x01"), Some(Reason::Malformed));
        assert_eq!(reason(&subject::decision(exec), &fact(exec, "fact/1.0")), Some(Reason::UnknownVersion));
        let elsewhere = here.replacen(&format!(".{}.", exec.partition()), ".99.", 1);
        assert_eq!(reason(&elsewhere, &fact(exec, "fact/1.0")), Some(Reason::Misplaced));
        assert_eq!(reason("vl.v1.log.3.nobody.fact", &fact(exec, "fact/1.0")), Some(Reason::Misplaced));
        assert_eq!(reason("vl.v1.job.tool.x.y", b"junk"), Some(Reason::Malformed));
        assert_eq!(reason("vl.v1.elsewhere", b"junk"), Some(Reason::Misplaced));
    }

    #[test]
    fn a_future_version_is_recognised_whatever_its_body_looks_like() {
        let future = serde_json::json!({"schema": "fact/2.0", "what": ["nobody", "knows"]});
        let error = Fact::read(&encode(&future)).expect_err("of the future").to_string();
        assert_eq!(error, "message is fact/2.0, this version reads fact/1.0");
    }

    #[test]
    fn reasons_are_written_as_they_are_named() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::json!(reason), serde_json::json!(reason.name()));
        }
    }
}
