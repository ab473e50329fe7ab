//! The bus in memory: the log's partitions with their sequences, conditions, window of known message ids and shared
//! consumer of facts; the work queues; the index of open executions.

use std::collections::{BTreeMap, BTreeSet};

use runtime::bus::{Kind, Stored};
use schemas::wire::{Nanos, encode};
use schemas::{EffectId, ExecutionId, Fact, Partition, Record, stream};

use crate::work::Order;

/// How long a stream knows a message id.
const KNOWN_FOR: Nanos = 120_000_000_000;
/// After which time a fact that nobody acknowledged is handed out again.
const FACT_ACK_WAIT: Nanos = stream::FACT_ACK_WAIT.as_nanos() as Nanos;
/// After which time a job that nobody works on is handed out again.
const JOB_ACK_WAIT: Nanos = stream::JOB_ACK_WAIT.as_nanos() as Nanos;

/// The log.
pub(super) struct Log(BTreeMap<Partition, Stream>);

/// One partition of it.
#[derive(Default)]
pub(super) struct Stream {
    /// The message of sequence `n` stands at `n - 1`.
    messages: Vec<Stored>,
    known: BTreeMap<String, (u64, Nanos)>,
    last: BTreeMap<ExecutionId, u64>,
    last_decision: BTreeMap<ExecutionId, (u64, String)>,
    pub(super) consumer: Consumer,
}

/// The consumer of facts that the possible owners of a partition share.
#[derive(Default)]
pub(super) struct Consumer {
    /// The first message it has not looked at.
    next: u64,
    /// Handed out and not acknowledged: when each is handed out again.
    unacknowledged: BTreeMap<u64, Nanos>,
    /// How often it handed something out.
    handed_out: u64,
    /// The orchestrator it was pinned to.
    pub(super) pinned: Option<usize>,
}

/// The log moved on since.
pub(super) struct Stale;

impl Log {
    pub(super) fn new() -> Self {
        Self(Partition::all().map(|partition| (partition, Stream::default())).collect())
    }

    pub(super) fn stream(&mut self, partition: Partition) -> &mut Stream {
        self.0.get_mut(&partition).expect("every partition has its stream")
    }

    /// Appends a fact. Returns its sequence, and whether it is new.
    pub(super) fn append_fact(&mut self, fact: &Fact, now: Nanos) -> (u64, bool) {
        let stream = self.stream(fact.exec.partition());
        match stream.known(&fact.message_id(), now) {
            Some(sequence) => (sequence, false),
            None => (stream.store(fact.exec, Kind::Fact, encode(fact), fact.message_id(), now), true),
        }
    }

    /// Appends a decision on a condition. The server looks at the condition before it looks at the id: who writes the same
    /// decision twice is refused.
    pub(super) fn append_decision(&mut self, record: &Record, expected: u64, now: Nanos) -> Result<u64, Stale> {
        let stream = self.stream(record.exec.partition());
        if stream.last.get(&record.exec).copied().unwrap_or(0) != expected {
            return Err(Stale);
        }
        let sequence = stream.store(record.exec, Kind::Decision, encode(record), record.message_id(), now);
        stream.last_decision.insert(record.exec, (sequence, record.message_id()));
        Ok(sequence)
    }

    /// Where a decision stands, if it is its execution's last one.
    pub(super) fn find_decision(&mut self, record: &Record) -> Option<u64> {
        let last = self.stream(record.exec.partition()).last_decision.get(&record.exec);
        last.filter(|(_, id)| *id == record.message_id()).map(|(sequence, _)| *sequence)
    }

    /// The messages of an execution behind a sequence.
    pub(super) fn read(&self, exec: ExecutionId, after: u64) -> Vec<Stored> {
        let messages = &self.0[&exec.partition()].messages;
        messages.iter().skip(after as usize).filter(|m| m.exec == exec).cloned().collect()
    }

    /// Every execution of which the log holds anything.
    pub(super) fn executions(&self) -> BTreeSet<ExecutionId> {
        self.0.values().flat_map(|stream| stream.last.keys().copied()).collect()
    }
}

impl Stream {
    #[cfg(test)]
    pub(super) fn messages(&self) -> &[Stored] {
        &self.messages
    }

    fn known(&self, id: &str, now: Nanos) -> Option<u64> {
        self.known.get(id).filter(|(_, at)| now < at + KNOWN_FOR).map(|(sequence, _)| *sequence)
    }

    fn store(&mut self, exec: ExecutionId, kind: Kind, payload: Vec<u8>, id: String, now: Nanos) -> u64 {
        let sequence = self.messages.len() as u64 + 1;
        self.messages.push(Stored { exec, sequence, stored_at: now, kind, payload: payload.into() });
        self.known.insert(id, (sequence, now));
        self.last.insert(exec, sequence);
        sequence
    }

    /// Hands out the next fact: one that is overdue, else a new one. With it comes the number of the handing out, by
    /// which a client sees whether somebody else was handed something in between.
    pub(super) fn hand_out(&mut self, now: Nanos) -> Option<(Stored, u64)> {
        let consumer = &mut self.consumer;
        let overdue = consumer.unacknowledged.iter().find(|(_, again)| **again <= now).map(|(sequence, _)| *sequence);
        let sequence = overdue.or_else(|| {
            let new = self.messages.iter().skip(consumer.next as usize).find(|m| m.kind == Kind::Fact);
            consumer.next = new.map_or(self.messages.len() as u64, |m| m.sequence);
            new.map(|m| m.sequence)
        })?;
        consumer.unacknowledged.insert(sequence, now + FACT_ACK_WAIT);
        consumer.handed_out += 1;
        Some((self.messages[sequence as usize - 1].clone(), consumer.handed_out))
    }

    pub(super) fn acknowledge(&mut self, sequence: u64) {
        self.consumer.unacknowledged.remove(&sequence);
    }

    /// Not now: hand it out again at `again`.
    pub(super) fn put_back(&mut self, sequence: u64, again: Nanos) {
        self.consumer.unacknowledged.entry(sequence).and_modify(|at| *at = again);
    }

    /// When something can next be handed out; none when everything is acknowledged.
    pub(super) fn next_due(&self, now: Nanos) -> Option<Nanos> {
        let new = self.messages.iter().skip(self.consumer.next as usize).any(|m| m.kind == Kind::Fact);
        if new { Some(now) } else { self.consumer.unacknowledged.values().min().copied() }
    }
}

/// The work queues, as one. They live in memory: a restart of their server empties them.
#[derive(Default)]
pub(super) struct Queue {
    jobs: BTreeMap<u64, Job>,
    known: BTreeMap<String, (u64, Nanos)>,
    last: u64,
}

/// A queued job.
#[derive(Clone)]
pub(super) struct Job {
    pub(super) sequence: u64,
    pub(super) exec: ExecutionId,
    pub(super) effect: EffectId,
    pub(super) attempt: u32,
    pub(super) order: Order,
    /// Who holds it: a worker and its life.
    pub(super) holder: Option<(usize, u64)>,
    /// When it is handed out again unless its holder says that it is at it.
    pub(super) again: Nanos,
    pub(super) deliveries: i64,
}

impl Queue {
    /// Queues a job once per attempt. Returns its sequence, and whether it is new.
    pub(super) fn push(
        &mut self,
        exec: ExecutionId,
        effect: &EffectId,
        attempt: u32,
        order: Order,
        now: Nanos,
    ) -> (u64, bool) {
        let id = format!("{exec}/{effect}/{attempt}");
        if let Some((sequence, _)) = self.known.get(&id).filter(|(_, at)| now < at + KNOWN_FOR) {
            return (*sequence, false);
        }
        self.last += 1;
        let sequence = self.last;
        self.known.insert(id, (sequence, now));
        let effect = effect.clone();
        self.jobs
            .insert(sequence, Job { sequence, exec, effect, attempt, order, holder: None, again: 0, deliveries: 0 });
        (sequence, true)
    }

    /// Jobs that can be handed out.
    pub(super) fn waiting(&self, now: Nanos) -> Vec<u64> {
        let waits = |job: &&Job| job.again <= now && job.deliveries < stream::JOB_DELIVERIES_MAX;
        self.jobs.values().filter(waits).map(|job| job.sequence).collect()
    }

    pub(super) fn take(&mut self, sequence: u64, worker: (usize, u64), now: Nanos) -> Option<Job> {
        let job = self.jobs.get_mut(&sequence)?;
        (job.holder, job.again) = (Some(worker), now + JOB_ACK_WAIT);
        job.deliveries += 1;
        Some(job.clone())
    }

    /// The holder is at it. Returns whether the job is still its own.
    pub(super) fn progress(&mut self, sequence: u64, worker: (usize, u64), now: Nanos) -> bool {
        let own = self.jobs.get_mut(&sequence).filter(|job| job.holder == Some(worker));
        own.map(|job| job.again = now + JOB_ACK_WAIT).is_some()
    }

    pub(super) fn remove(&mut self, sequence: u64) {
        self.jobs.remove(&sequence);
    }

    pub(super) fn of(&self, exec: ExecutionId, effect: &EffectId, attempt: u32) -> Option<&Job> {
        self.jobs.values().find(|job| job.exec == exec && job.effect == *effect && job.attempt == attempt)
    }

    pub(super) fn wipe(&mut self) {
        (self.jobs, self.known) = Default::default();
    }
}
