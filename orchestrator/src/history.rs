//! Folds the log of one execution into its state, seals decisions, and verifies them by deciding again. Pure.

use runtime::bus::{Kind, Stored};
use schemas::decision::{Draft, FactsDigest};
use schemas::wire::{Schema, decode, encode};
use schemas::{Event, ExecutionId, Fact, Record};
use serde::{Deserialize, Serialize};

use crate::execution::{Execution, Rules};

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

/// A history as it was right after a decision: a cache that saves reading what came before. It is never the truth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// `snapshot/1.0`.
    pub schema: String,
    /// The execution.
    pub exec: ExecutionId,
    /// Log sequence of the decision.
    pub sequence: u64,
    /// Decisions up to it.
    pub decisions: u64,
    /// Its hash.
    pub last_hash: String,
    /// The state.
    pub execution: Execution,
}

impl Schema for Snapshot {
    // The state is not part of the wire: a change of it is a new major version, and older snapshots are not read.
    const SCHEMA: &'static str = "snapshot/1.0";
}

impl Snapshot {
    /// Reads a snapshot of this version; none when the bytes are anything else.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        decode::<Self>(bytes).ok().filter(|snapshot| Self::reads(&snapshot.schema))
    }
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

    /// What a snapshot holds; the log goes on behind it.
    #[must_use]
    pub fn restore(snapshot: Snapshot) -> Self {
        Self {
            exec: snapshot.exec,
            execution: snapshot.execution,
            sequence: snapshot.sequence,
            facts: FactsDigest::default(),
            decisions: snapshot.decisions,
            last_hash: snapshot.last_hash,
        }
    }

    /// A snapshot, if the newest message is a decision.
    #[must_use]
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.facts.is_empty().then(|| Snapshot {
            schema: Snapshot::SCHEMA.to_owned(),
            exec: self.exec,
            sequence: self.sequence,
            decisions: self.decisions,
            last_hash: self.last_hash.clone(),
            execution: self.execution.clone(),
        })
    }

    /// Decisions so far.
    #[must_use]
    pub const fn decisions(&self) -> u64 {
        self.decisions
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
    pub fn decide(&self, rules: Rules) -> Option<Record> {
        let events = self.execution.clone().settle(rules);
        (!events.is_empty()).then(|| self.seal(rules, events))
    }

    fn seal(&self, rules: Rules, events: Vec<Event>) -> Record {
        let draft = Draft {
            exec: self.exec,
            n: self.decisions,
            at: self.execution.now,
            machine: rules.version,
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
        record.hash.as_str().clone_into(&mut self.last_hash);
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

/// Folds a whole log and decides every decision again, by the rules of the version that made it; each must come out
/// byte for byte as it was written.
///
/// # Errors
/// The first difference.
pub fn verify(exec: ExecutionId, messages: &[Stored]) -> Result<Verified, Difference> {
    walk(exec, messages, None)
}

/// Decides every decision again by the rules of `version`, and compares what was decided: what a change of the rules
/// would do to executions that are under way.
///
/// # Errors
/// The first decision that would come out otherwise.
pub fn verify_as(exec: ExecutionId, messages: &[Stored], rules: Rules) -> Result<Verified, Difference> {
    walk(exec, messages, Some(rules))
}

fn walk(exec: ExecutionId, messages: &[Stored], other: Option<Rules>) -> Result<Verified, Difference> {
    let mut verifier = Verifier { other, ..Verifier::new(exec) };
    for message in messages {
        verifier.take(message)?;
    }
    Ok(verifier.verified)
}

/// Verifies an execution message by message, as they are read.
pub struct Verifier {
    history: History,
    /// Rules to decide by instead of those that made each decision.
    other: Option<Rules>,
    /// Sequences of the facts since the newest decision.
    facts: Vec<u64>,
    verified: Verified,
}

impl Verifier {
    /// An execution of which nothing was read.
    #[must_use]
    pub fn new(exec: ExecutionId) -> Self {
        let verified = Verified { events: 0, decisions: 0, final_hash: String::new(), unreadable: Vec::new() };
        Self { history: History::new(exec), other: None, facts: Vec::new(), verified }
    }

    /// Takes the next message; returns whether it could be read.
    ///
    /// # Errors
    /// When it is a decision that does not come out again.
    pub fn take(&mut self, message: &Stored) -> Result<bool, Difference> {
        self.verified.events += 1;
        match message.kind {
            Kind::Fact => self.facts.push(message.sequence),
            Kind::Decision => {
                let found = check(&self.history, message, self.other).map_err(|d| self.blame(&d))?;
                self.verified.decisions += 1;
                found.hash.as_str().clone_into(&mut self.verified.final_hash);
                self.facts.clear();
            }
        }
        match self.history.fold(message) {
            Ok(()) => Ok(true),
            Err(unreadable) => {
                self.verified.unreadable.push(unreadable);
                Ok(false)
            }
        }
    }

    /// A decision rests on facts, and it may be one of them that was changed.
    fn blame(&self, found: &Difference) -> Difference {
        let facts: Vec<String> = self.facts.iter().map(u64::to_string).collect();
        let rests = if facts.is_empty() { "no new fact".to_owned() } else { format!("facts at {}", facts.join(", ")) };
        Difference { difference: format!("{} (it rests on {rests})", found.difference), ..found.clone() }
    }

    /// Whether the execution has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.history.execution.is_closed()
    }

    /// What was found so far.
    #[must_use]
    pub const fn verified(&self) -> &Verified {
        &self.verified
    }
}

fn check(history: &History, message: &Stored, other: Option<Rules>) -> Result<Record, Difference> {
    let differs = |difference: String| Difference { n: history.decisions, sequence: message.sequence, difference };
    let found = Record::read(&message.payload).map_err(|e| differs(e.to_string()))?;
    let Some(rules) = other.or(Rules::of(found.machine)) else {
        return Err(differs(format!("made by machine version {}, which this program does not hold", found.machine)));
    };
    let Some(decided) = history.decide(rules) else {
        return Err(differs(format!("the log holds {}, the rules decide nothing", names(&found.events))));
    };
    let same = match other {
        // Other rules have another number, and with it another hash.
        Some(_) => decided.events == found.events,
        None => encode(&decided) == message.payload,
    };
    if same {
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
