//! Proves a partition of the log while it is read in order: every execution is folded and every decision decided again
//! as its messages come by, and nothing is kept of an execution that has ended but that it has. Pure.

use std::collections::{BTreeMap, BTreeSet};

use runtime::bus::{Kind, Stored};
use schemas::ExecutionId;
use serde::Serialize;

use crate::history::{Difference, Verifier};

/// Where the log is not what the rules made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// The execution; none when messages of nobody knows whom are missing.
    pub execution_id: Option<ExecutionId>,
    /// Index of the decision in its execution.
    pub decision: Option<u64>,
    /// Its sequence in the partition's stream.
    pub sequence: u64,
    /// What differs.
    pub difference: String,
}

/// What was found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Executions seen.
    pub executions: u64,
    /// Messages read.
    pub events: u64,
    /// Decisions that came out again byte for byte.
    pub decisions: u64,
    /// Facts that nobody can read; they count in the hashes and led to nothing.
    pub unreadable: u64,
    /// The first difference of each execution.
    pub broken: Vec<Broken>,
}

impl Found {
    /// Adds what was found in another partition.
    pub fn add(&mut self, other: Self) {
        self.executions += other.executions;
        self.events += other.events;
        self.decisions += other.decisions;
        self.unreadable += other.unreadable;
        self.broken.extend(other.broken);
    }
}

/// The audit of one partition.
#[derive(Default)]
pub struct Audit {
    open: BTreeMap<ExecutionId, Verifier>,
    /// Executions that have ended, with the number of their decisions: none may follow.
    closed: BTreeMap<ExecutionId, u64>,
    /// Executions with a difference: what follows rests on it.
    given_up: BTreeSet<ExecutionId>,
    /// The sequence that comes next.
    next: Option<u64>,
    /// What was found.
    pub found: Found,
}

impl Audit {
    /// An audit that begins with the message `sequence`.
    #[must_use]
    pub fn from(sequence: u64) -> Self {
        Self { next: Some(sequence), ..Self::default() }
    }

    /// Takes the next message of the partition. A hole before it is a difference: a log loses nothing by itself.
    pub fn take(&mut self, message: &Stored) {
        self.arrive(message.sequence);
        self.found.events += 1;
        self.verify(message);
    }

    /// A message under a subject that names no execution: it is nobody's, and not missing.
    pub fn pass(&mut self, sequence: u64) {
        self.arrive(sequence);
        self.found.events += 1;
        self.found.unreadable += 1;
    }

    /// Whether messages of this execution were taken before. Where an audit begins in the middle, what an unknown
    /// execution did earlier has to be taken first, by [`Self::catch_up`].
    #[must_use]
    pub fn knows(&self, exec: ExecutionId) -> bool {
        self.open.contains_key(&exec) || self.closed.contains_key(&exec) || self.given_up.contains(&exec)
    }

    /// Takes an earlier message of an execution, out of turn.
    pub fn catch_up(&mut self, message: &Stored) {
        self.found.events += 1;
        self.verify(message);
    }

    /// The partition ends before `sequence`.
    pub fn end(&mut self, sequence: u64) {
        self.arrive(sequence);
    }

    fn arrive(&mut self, sequence: u64) {
        let expected = self.next.replace(sequence + 1).unwrap_or(sequence);
        if expected < sequence {
            let last = sequence - 1;
            let difference = if last == expected {
                format!("message {expected} is missing")
            } else {
                format!("messages {expected} to {last} are missing")
            };
            self.found.broken.push(Broken { execution_id: None, decision: None, sequence: expected, difference });
        }
    }

    fn verify(&mut self, message: &Stored) {
        let exec = message.exec;
        if self.given_up.contains(&exec) {
            return;
        }
        if let Some(decisions) = self.closed.get(&exec).copied() {
            if message.kind == Kind::Decision {
                let difference = "a decision after the end: the rules decide nothing there".to_owned();
                self.give_up(exec, Difference { n: decisions, sequence: message.sequence, difference });
            }
            return;
        }
        let executions = &mut self.found.executions;
        let verifier = self.open.entry(exec).or_insert_with(|| {
            *executions += 1;
            Verifier::new(exec)
        });
        match verifier.take(message) {
            Err(difference) => self.give_up(exec, difference),
            Ok(readable) => {
                self.found.unreadable += u64::from(!readable);
                self.found.decisions += u64::from(message.kind == Kind::Decision);
                if verifier.is_closed() {
                    let decisions = verifier.verified().decisions;
                    self.open.remove(&exec);
                    self.closed.insert(exec, decisions);
                }
            }
        }
    }

    fn give_up(&mut self, exec: ExecutionId, difference: Difference) {
        self.open.remove(&exec);
        self.closed.remove(&exec);
        self.given_up.insert(exec);
        let Difference { n, sequence, difference } = difference;
        self.found.broken.push(Broken { execution_id: Some(exec), decision: Some(n), sequence, difference });
    }
}
