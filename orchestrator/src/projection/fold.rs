//! A run of messages of one partition, folded into what changes in the tables. Pure.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use runtime::bus::{Kind, Placed, Stored};
use schemas::executions::ToolCallRow;
use schemas::summary::{Change, InferenceRow, Summary, instruction, shortened};
use schemas::{EffectId, ExecutionId, Fact, FactBody, Partition, Record};

/// Bytes of an instruction or a response at most; the log has the whole.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// What the tables know of an execution before the run.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Known {
    /// It goes on from here.
    Open(Box<Summary>),
    /// It has ended: nothing that follows counts.
    Ended,
}

/// What changes in the tables.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Executions, each once.
    pub(super) executions: BTreeMap<ExecutionId, Execution>,
    /// Tool calls, each once, as they are after the run.
    pub(super) calls: BTreeMap<(ExecutionId, EffectId), ToolCallRow>,
    /// Inferences that ended.
    pub(super) inferences: BTreeMap<(ExecutionId, EffectId, u32), InferenceRow>,
    /// Messages that could not be read, and led to nothing.
    pub(super) unreadable: u64,
}

/// An execution after the run.
#[derive(Debug)]
pub(super) struct Execution {
    pub(super) summary: Summary,
    /// What was asked and where in the log that stands, if it came in this run.
    pub(super) begun: Option<(i64, String)>,
    /// The newest answer, if there is one since.
    pub(super) response: Option<String>,
}

/// The executions of which the run says something.
pub(super) fn mentioned(messages: &[Placed]) -> BTreeSet<ExecutionId> {
    messages.iter().filter_map(|(_, stored)| Some(stored.as_ref()?.exec)).collect()
}

/// Folds the run.
pub(super) fn fold(partition: Partition, messages: &[Placed], mut known: BTreeMap<ExecutionId, Known>) -> Changes {
    let mut changes = Changes::default();
    for (sequence, stored) in messages {
        let Some(stored) = stored else { continue };
        let Some(message) = Message::read(stored) else {
            changes.unreadable += 1;
            continue;
        };
        let exec = stored.exec;
        let execution = match changes.executions.entry(exec) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(vacant) => match (known.remove(&exec), &message) {
                (Some(Known::Open(summary)), _) => {
                    vacant.insert(Execution { summary: *summary, begun: None, response: None })
                }
                (Some(Known::Ended), _) => {
                    known.insert(exec, Known::Ended);
                    continue;
                }
                (None, Message::Fact(fact)) => {
                    // Anything but a request is nobody's fact.
                    if let (Some(summary), FactBody::ExecutionSubmitted(request)) = (Summary::begin(fact), &fact.body) {
                        let asked = shortened(&instruction(request), TEXT_BYTES_MAX);
                        let begun = Some((place(partition, *sequence), asked));
                        vacant.insert(Execution { summary, begun, response: None });
                    }
                    continue;
                }
                (None, Message::Decision(_)) => continue,
            },
        };
        let found = match &message {
            Message::Fact(fact) => execution.summary.fact(fact),
            Message::Decision(record) => execution.summary.decision(record),
        };
        for change in found {
            match change {
                Change::Call(call) => drop(changes.calls.insert((exec, call.effect.clone()), call)),
                Change::Inference(row) => {
                    changes.inferences.insert((exec, row.effect.clone(), row.attempt), *row);
                }
                Change::Response(text) => execution.response = Some(shortened(&text, TEXT_BYTES_MAX)),
            }
        }
    }
    changes
}

/// The id of an execution whose request stands there: no two have the same, and building anew gives the same again.
fn place(partition: Partition, sequence: u64) -> i64 {
    let place = sequence.saturating_mul(u64::from(schemas::ids::PARTITIONS)) + u64::from(partition.number());
    i64::try_from(place).unwrap_or(i64::MAX)
}

enum Message {
    Fact(Box<Fact>),
    Decision(Box<Record>),
}

impl Message {
    /// None when it cannot be read, or says that it belongs to another execution.
    fn read(stored: &Stored) -> Option<Self> {
        match stored.kind {
            Kind::Fact => {
                let fact = Fact::read(&stored.payload).ok().filter(|fact| fact.exec == stored.exec)?;
                Some(Self::Fact(Box::new(fact)))
            }
            Kind::Decision => {
                let record = Record::read(&stored.payload).ok().filter(|record| record.exec == stored.exec)?;
                Some(Self::Decision(Box::new(record)))
            }
        }
    }
}

#[cfg(test)]
mod tests;
