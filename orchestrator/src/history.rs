//! Folds the log of one execution into its state, seals decisions, and verifies them by deciding again. Pure.

use runtime::bus::{Kind, Stored};
use schemas::decision::{Draft, FactsDigest};
use schemas::{Event, ExecutionId, Fact, Record};

use crate::execution::{Execution, MACHINE};

/// One execution as far as its log was read.
#[derive(Clone, Debug)]
pub struct History {
    /// Its id.
    pub exec: ExecutionId,
    /// Its state.
    pub execution: Execution,
    /// Log sequence of its newest message; 0 when there is none.
    pub sequence: u64,
    facts: FactsDigest,
    decisions: u64,
    last_hash: String,
}

/// A message that is neither a fact nor a decision this version can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its log sequence.
    pub sequence: u64,
    /// What is wrong with it.
    pub reason: String,
}

impl History {
    /// An execution of which nothing is known.
    #[must_use]
    pub fn new(exec: ExecutionId) -> Self {
        Self {
            exec,
            execution: Execution::default(),
            sequence: 0,
            facts: FactsDigest::default(),
            decisions: 0,
            last_hash: String::new(),
        }
    }

    /// Takes in the next message of the log. One that was taken in already is passed over.
    ///
    /// # Errors
    /// When the message cannot be read; the execution goes on without it. The bytes still count in the hash.
    pub fn fold(&mut self, message: &Stored) -> Result<(), Unreadable> {
        if message.sequence <= self.sequence {
            return Ok(());
        }
        self.sequence = message.sequence;
        let unreadable = |reason: String| Unreadable { sequence: message.sequence, reason };
        match message.kind {
            Kind::Fact => {
                self.facts.add(message.sequence, &message.payload);
                let fact = Fact::read(&message.payload).map_err(|e| unreadable(e.to_string()))?;
                if fact.exec != self.exec {
                    return Err(unreadable(format!("a fact of execution {} under this one's subject", fact.exec)));
                }
                self.execution.apply_fact(&fact);
            }
            Kind::Decision => {
                let record = Record::read(&message.payload).map_err(|e| unreadable(e.to_string()))?;
                self.commit(&record, message.sequence);
            }
        }
        Ok(())
    }

    /// What follows from the state, sealed; none when nothing follows. Nothing is changed.
    #[must_use]
    pub fn decide(&self) -> Option<Record> {
        let events = self.execution.clone().settle();
        (!events.is_empty()).then(|| self.seal(events))
    }

    fn seal(&self, events: Vec<Event>) -> Record {
        let draft = Draft {
            exec: self.exec,
            n: self.decisions,
            at: self.execution.now,
            machine: MACHINE,
            facts_upto: self.sequence,
            facts: &self.facts,
            prev_hash: &self.last_hash,
        };
        Record::seal(&draft, events)
    }

    /// Takes in a decision that stands in the log at `sequence`.
    pub fn commit(&mut self, record: &Record, sequence: u64) {
        for event in &record.events {
            self.execution.apply(event);
        }
        self.sequence = sequence;
        self.decisions += 1;
        self.last_hash.clone_from(&record.hash);
        self.facts = FactsDigest::default();
    }
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Messages read.
    pub events: u64,
    /// Decisions re-decided.
    pub decisions: u64,
    /// Hash of the last decision; empty when there is none.
    pub final_hash: String,
    /// Facts that could not be read; they count in the hash and led to nothing.
    pub unreadable: Vec<Unreadable>,
}

/// Where a log and its rules disagree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("decision {n} at sequence {sequence}: {difference}")]
pub struct Difference {
    /// Index of the decision.
    pub n: u64,
    /// Its log sequence.
    pub sequence: u64,
    /// What differs.
    pub difference: String,
}

/// Folds a whole log and decides every decision again; each must come out byte for byte as it was written.
///
/// # Errors
/// The first difference.
pub fn verify(exec: ExecutionId, messages: &[Stored]) -> Result<Verified, Difference> {
    let mut history = History::new(exec);
    let mut verified = Verified { events: 0, decisions: 0, final_hash: String::new(), unreadable: Vec::new() };
    for message in messages {
        verified.events += 1;
        if message.kind == Kind::Decision {
            let found = check(&history, message)?;
            verified.decisions += 1;
            verified.final_hash.clone_from(&found.hash);
        }
        if let Err(unreadable) = history.fold(message) {
            verified.unreadable.push(unreadable);
        }
    }
    Ok(verified)
}

fn check(history: &History, message: &Stored) -> Result<Record, Difference> {
    let differs = |difference: String| Difference { n: history.decisions, sequence: message.sequence, difference };
    let found = Record::read(&message.payload).map_err(|e| differs(e.to_string()))?;
    if found.machine != MACHINE {
        return Err(differs(format!("made by machine version {}, which this program does not hold", found.machine)));
    }
    let Some(decided) = history.decide() else {
        return Err(differs(format!("the log holds {}, the rules decide nothing", names(&found.events))));
    };
    if schemas::wire::encode(&decided) == message.payload {
        return Ok(found);
    }
    Err(differs(describe(&found, &decided)))
}

fn describe(found: &Record, decided: &Record) -> String {
    if found.prev_hash != decided.prev_hash {
        return "the hash of the previous decision does not match: something before was changed".to_owned();
    }
    match found.events.iter().zip(&decided.events).position(|(f, d)| f != d) {
        Some(i) => format!("event {i}: the log holds {:?}, the rules decide {:?}", found.events[i], decided.events[i]),
        None if found.events.len() != decided.events.len() => {
            format!("the log holds {}, the rules decide {}", names(&found.events), names(&decided.events))
        }
        None => "the events agree, the hash does not: a fact was changed".to_owned(),
    }
}

fn names(events: &[Event]) -> String {
    events.iter().map(Event::name).collect::<Vec<_>>().join(", ")
}
