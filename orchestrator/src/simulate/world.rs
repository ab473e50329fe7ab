//! The world: who is in it, what happens next, and what has happened.

use std::collections::{BTreeMap, BTreeSet};

use runtime::bus::Stored;
use schemas::decision::ExecutionPaused;
use schemas::wire::{Nanos, encode};
use schemas::{EffectId, Event, ExecutionId, Fact, FactBody, Partition, Record};

use super::bus::{Log, Queue};
use super::chance::Chance;
use super::people::Temper;
use super::shell::Orchestrator;
use super::workers::Worker;
use super::{Counts, Coverage, MILLISECOND, Outcome, SECOND, Shell, check};
use crate::work::Order;

/// Virtual time at which a run begins: ids hold a time, and it must be positive.
const BEGIN: Nanos = 1_700_000_000 * SECOND;
/// Virtual time after which nothing goes wrong any more, so that everything can come to its end.
const FAULTS: Nanos = 240 * SECOND;
/// Steps after which a run that has not come to rest never will.
const STEPS_MAX: u64 = 300_000;

/// What can happen next.
#[derive(Clone, Debug)]
pub(super) enum Wakeup {
    /// The consumer of a partition may have something to hand out.
    Deliver(Partition),
    /// An orchestrator takes the next step with an execution.
    Step { who: usize, life: u64, exec: ExecutionId },
    /// An orchestrator's timer for an execution.
    Due { who: usize, life: u64, exec: ExecutionId },
    /// An orchestrator asks whether the holders of its open effects are there.
    Round { who: usize, life: u64 },
    /// An orchestrator looks whether it has become the owner of something.
    Sweep { who: usize, life: u64 },
    /// A worker looks for a job.
    Pull { who: usize, life: u64 },
    /// A worker says that it is at a job, or is done with it.
    Work { who: usize, life: u64 },
    /// Somebody or something appends a fact.
    Append(Box<Fact>),
    /// A process comes back.
    Start { worker: bool, who: usize },
    /// Something goes wrong.
    Fault,
}

impl Wakeup {
    /// Whether it only goes on because time does.
    const fn is_background(&self) -> bool {
        matches!(self, Self::Round { .. } | Self::Sweep { .. } | Self::Pull { .. } | Self::Fault)
    }
}

/// How an answer of the bus is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Fine,
    /// Nothing was done, and no answer came.
    Lost,
    /// It was done, and no answer came.
    Unanswered,
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) shell: Shell,
    pub(super) chance: Chance,
    pub(super) now: Nanos,
    agenda: BTreeMap<(Nanos, u64), Wakeup>,
    scheduled: u64,
    /// Wakeups that are no background.
    due: u64,
    /// When each partition's consumer is looked at next.
    deliveries: BTreeMap<Partition, Nanos>,
    pub(super) log: Log,
    pub(super) queue: Queue,
    /// The index of open executions, with snapshots.
    pub(super) index: BTreeMap<ExecutionId, Vec<u8>>,
    pub(super) orchestrators: Vec<Orchestrator>,
    pub(super) workers: Vec<Worker>,
    /// Until when nobody reaches the bus.
    pub(super) down_until: Nanos,
    /// The stage before which orchestrators of this run often die or stall: deaths spread evenly seldom meet what takes
    /// two or three of them at the right moments.
    pub(super) weak_spot: usize,
    /// Requested and not ended.
    pub(super) open: BTreeSet<ExecutionId>,
    pub(super) tempers: BTreeMap<ExecutionId, Temper>,
    /// Orders as they were given first, by message id.
    ordered: BTreeMap<String, Order>,
    /// Results in the log: when each was stored.
    results: BTreeMap<(ExecutionId, EffectId, u32), Nanos>,
    pub(super) done: BTreeSet<(ExecutionId, EffectId, u32)>,
    pub(super) violations: Vec<String>,
    pub(super) counts: Counts,
    trace: u64,
    traced: bool,
    lines: Vec<String>,
}

impl World {
    pub(super) fn new(seed: u64, shell: Shell, traced: bool) -> Self {
        let mut world = Self {
            seed,
            shell,
            chance: Chance::new(seed),
            now: BEGIN,
            agenda: BTreeMap::new(),
            scheduled: 0,
            due: 0,
            deliveries: BTreeMap::new(),
            log: Log::new(),
            queue: Queue::default(),
            index: BTreeMap::new(),
            orchestrators: Vec::new(),
            workers: Vec::new(),
            down_until: 0,
            weak_spot: 0,
            open: BTreeSet::new(),
            tempers: BTreeMap::new(),
            ordered: BTreeMap::new(),
            results: BTreeMap::new(),
            done: BTreeSet::new(),
            violations: Vec::new(),
            counts: Counts::default(),
            trace: 0xcbf2_9ce4_8422_2325,
            traced,
            lines: Vec::new(),
        };
        world.weak_spot = world.chance.index(9);
        for who in 0..2 + world.chance.index(2) {
            world.orchestrators.push(Orchestrator::default());
            world.start_orchestrator(who);
        }
        for who in 0..3 + world.chance.index(3) {
            world.workers.push(Worker::default());
            world.start_worker(who);
        }
        world.submit_requests();
        world.after(5 * SECOND, Wakeup::Fault);
        world
    }

    /// Runs until every execution has ended and nothing more is on its way.
    pub(super) fn run(mut self) -> Outcome {
        self.live();
        self.finish()
    }

    /// The log that a run leaves.
    #[cfg(test)]
    pub(super) fn written(mut self) -> BTreeMap<Partition, Vec<Stored>> {
        self.live();
        Partition::all().map(|partition| (partition, self.log.stream(partition).messages().to_vec())).collect()
    }

    fn live(&mut self) {
        while !(self.due == 0 && self.open.is_empty()) {
            let Some(((at, _), wakeup)) = self.agenda.pop_first() else { break };
            self.due -= u64::from(!wakeup.is_background());
            self.now = self.now.max(at);
            self.counts.steps += 1;
            if self.counts.steps > STEPS_MAX {
                let open: Vec<String> = self.open.iter().map(ToString::to_string).collect();
                self.violated(format!("came to no rest; still open: {}", open.join(", ")));
                break;
            }
            self.wake(wakeup);
        }
    }

    fn wake(&mut self, wakeup: Wakeup) {
        match wakeup {
            Wakeup::Deliver(partition) => {
                // One that was scheduled for later, before an earlier one was: that one did its work.
                if self.deliveries.get(&partition).is_some_and(|at| *at <= self.now) {
                    self.deliveries.remove(&partition);
                    self.deliver(partition);
                }
            }
            Wakeup::Step { who, life, exec } => self.step(who, life, exec),
            Wakeup::Due { who, life, exec } => self.fire(who, life, exec),
            Wakeup::Round { who, life } => self.ask_workers(who, life),
            Wakeup::Sweep { who, life } => self.sweep(who, life),
            Wakeup::Pull { who, life } => self.pull(who, life),
            Wakeup::Work { who, life } => self.work(who, life),
            Wakeup::Append(fact) => drop(self.append_fact(&fact)),
            Wakeup::Start { worker: true, who } => self.start_worker(who),
            Wakeup::Start { worker: false, who } => self.start_orchestrator(who),
            Wakeup::Fault => self.something_goes_wrong(),
        }
    }

    fn finish(mut self) -> Outcome {
        let mut coverage = Coverage::default();
        let mut executions = 0;
        if self.violations.is_empty() {
            let logs: BTreeMap<ExecutionId, Vec<Stored>> =
                self.log.executions().into_iter().map(|exec| (exec, self.log.read(exec, 0))).collect();
            let memories: Vec<_> = self.orchestrators.iter().flat_map(Orchestrator::memories).collect();
            let found = check::all(&logs, &memories, &mut coverage);
            executions = logs.len() as u64;
            self.violations.extend(found);
        }
        Outcome {
            seed: self.seed,
            trace: self.trace,
            violations: self.violations,
            coverage,
            executions,
            counts: self.counts,
            lines: self.lines,
        }
    }

    // --- time ----------------------------------------------------------------------------------------------------

    pub(super) fn after(&mut self, span: Nanos, wakeup: Wakeup) {
        self.at(self.now + span, wakeup);
    }

    pub(super) fn at(&mut self, at: Nanos, wakeup: Wakeup) {
        self.due += u64::from(!wakeup.is_background());
        self.scheduled += 1;
        self.agenda.insert((at.max(self.now), self.scheduled), wakeup);
    }

    /// A delivery of a partition; one that is scheduled for earlier serves as well.
    pub(super) fn deliver_at(&mut self, partition: Partition, at: Nanos) {
        if self.deliveries.get(&partition).is_none_or(|known| *known > at) {
            self.deliveries.insert(partition, at);
            self.at(at, Wakeup::Deliver(partition));
        }
    }

    /// Whether things still go wrong.
    pub(super) const fn is_faulty(&self) -> bool {
        self.now < BEGIN + FAULTS
    }

    /// What becomes of one thing that somebody asks of the bus.
    pub(super) const fn fate(&mut self, cut_until: Nanos) -> Fate {
        if self.now < cut_until || self.now < self.down_until {
            return Fate::Lost;
        }
        match self.is_faulty() {
            true if self.chance.permille(10) => Fate::Lost,
            true if self.chance.permille(10) => Fate::Unanswered,
            _ => Fate::Fine,
        }
    }

    // --- what happened -------------------------------------------------------------------------------------------

    /// Notes what happened.
    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        let line = format!("{:>12} {}", (self.now - BEGIN) / 1_000, what());
        self.hash(line.as_bytes());
        if self.traced {
            self.lines.push(line);
        }
    }

    fn hash(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.trace = (self.trace ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub(super) fn violated(&mut self, what: String) {
        self.note(|| format!("VIOLATED {what}"));
        self.violations.push(what);
    }

    /// Stores a fact and sets going whoever waits for it.
    pub(super) fn append_fact(&mut self, fact: &Fact) -> u64 {
        let (sequence, new) = self.log.append_fact(fact, self.now);
        self.note(|| format!("fact {} {} {sequence}{}", fact.exec, fact.body.name(), if new { "" } else { " known" }));
        if new {
            self.hash(&encode(fact));
            self.counts.facts += 1;
            if let FactBody::ExecutionSubmitted(_) = &fact.body {
                let ended = self.log.read(fact.exec, 0).iter().any(check::is_end);
                if !ended {
                    self.open.insert(fact.exec);
                }
            }
            if let Some((effect, attempt)) = fact.body.result_of() {
                self.results.entry((fact.exec, effect.clone(), attempt)).or_insert(self.now);
            }
            let delay = self.chance.span(0, 3);
            self.deliver_at(fact.exec.partition(), self.now + delay);
        }
        sequence
    }

    /// Stores a decision, if nothing was stored since; people who wait for it begin to think.
    pub(super) fn append_decision(&mut self, record: &Record, expected: u64) -> Option<u64> {
        let Ok(sequence) = self.log.append_decision(record, expected, self.now) else {
            self.counts.stale += 1;
            self.note(|| format!("decision {} {} stale", record.exec, record.n));
            return None;
        };
        let names = || record.events.iter().map(Event::name).collect::<Vec<_>>().join(" ");
        self.note(|| format!("decision {} {} {sequence} {}", record.exec, record.n, names()));
        self.hash(record.hash.as_str().as_bytes());
        self.counts.decisions += 1;
        for event in &record.events {
            match event {
                Event::ApprovalRequested(asked) => self.ask_person(record.exec, &asked.approval),
                Event::ExecutionPaused(ExecutionPaused { by, .. }) => self.somebody_sees_a_pause(record, by),
                Event::ChildRequested(_) => self.somebody_sees_a_child(record.exec),
                end if end.is_terminal() => drop(self.open.remove(&record.exec)),
                _ => {}
            }
        }
        Some(sequence)
    }

    /// A job is queued that nobody has queued in a while. No result may have been in the log when whoever queues it
    /// last read the log, at `read`.
    pub(super) fn check_issue(&mut self, exec: ExecutionId, effect: &EffectId, attempt: u32, read: Nanos) {
        let key = (exec, effect.clone(), attempt);
        if self.results.get(&key).is_some_and(|stored| *stored < read) {
            self.violated(format!("{exec}/{effect}/{attempt} is asked for again behind its result"));
        }
    }

    /// An order given again is the same as before, and a prompt holds every call with its result.
    pub(super) fn check_order(&mut self, exec: ExecutionId, effect: &EffectId, attempt: u32, order: &Order) {
        if let Order::Inference(job) = order
            && let Err(why) = check::prompt(&job.messages)
        {
            self.violated(format!("the prompt of {exec}/{effect}: {why}"));
        }
        let id = format!("{exec}/{effect}/{attempt}");
        let order = timeless(order);
        match self.ordered.get(&id) {
            Some(first) if *first != order => self.violated(format!("the order {id} changed between two issues")),
            Some(_) => {}
            None => drop(self.ordered.insert(id, order)),
        }
    }
}

/// An order without the time at which it was given.
fn timeless(order: &Order) -> Order {
    let mut order = order.clone();
    match &mut order {
        Order::Inference(job) => job.queued_at = 0,
        Order::Tool(job) => job.queued_at = 0,
        Order::Analysis(job) => job.queued_at = 0,
        Order::Child(fact) => fact.at = 0,
    }
    order
}

/// A short pause between two steps of a process.
pub(super) const STEP_MAX: Nanos = 4 * MILLISECOND;
