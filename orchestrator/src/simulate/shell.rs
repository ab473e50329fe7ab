//! An orchestrator: the steps of `partition` and `carry_out`, one at a time, so that it can die, stall or be overtaken
//! between any two of them. What is folded and decided, ordered and reported is the real thing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use runtime::bus::{Kind, Stored};
use schemas::fact::{EffectLost, TimerFired};
use schemas::wire::{Nanos, encode};
use schemas::{EffectId, Event, ExecutionId, Fact, FactBody, Partition, Record};

use super::world::{Fate, STEP_MAX, Wakeup, World};
use super::{MILLISECOND, SECOND};
use crate::execution::{Execution, Rules};
use crate::history::{History, Snapshot};
use crate::work::{self, Order};

/// As in the real shell.
const RETRY_AFTER: Nanos = 300 * MILLISECOND;
const STALE_MAX: usize = 32;
/// Rarer in the real shell; here executions are short.
const SNAPSHOT_EVERY: u64 = 3;

/// One orchestrator. All but its number of lives is lost when it dies.
#[derive(Default)]
pub(super) struct Orchestrator {
    pub(super) up: bool,
    pub(super) life: u64,
    /// Until when it does not reach the bus.
    pub(super) cut_until: Nanos,
    /// Until when it does nothing at all, and does not know it.
    stalled_until: Nanos,
    /// How far its clock is ahead.
    pub(super) skew: Nanos,
    owned: BTreeMap<ExecutionId, Owned>,
    tasks: BTreeMap<ExecutionId, Task>,
    /// Number of the newest handing out of each partition.
    seen: BTreeMap<Partition, u64>,
}

/// What it knows about an execution and did about it.
struct Owned {
    history: History,
    placed: BTreeMap<EffectId, (u32, Option<u64>)>,
    fired: BTreeSet<(String, Nanos)>,
    indexed: Option<u64>,
    reported: bool,
    /// Cancelled children that were told.
    told: BTreeSet<EffectId>,
    /// Somebody else was handed a fact since.
    stale: bool,
    alarm: Option<Nanos>,
}

impl Owned {
    const fn new(history: History) -> Self {
        Self {
            history,
            placed: BTreeMap::new(),
            fired: BTreeSet::new(),
            indexed: None,
            reported: false,
            told: BTreeSet::new(),
            stale: false,
            alarm: None,
        }
    }

    fn wake(&self) -> Option<(String, Nanos)> {
        self.history.execution.wake().filter(|timer| !self.fired.contains(timer))
    }

    /// The order of an open effect that has none yet.
    fn next_order(&self, now: Nanos) -> Option<(EffectId, u32, Order)> {
        let execution = &self.history.execution;
        let is_placed = |id: &EffectId, attempt: u32| self.placed.get(id).is_some_and(|(placed, _)| *placed == attempt);
        let mut missing = execution.effects.open_effects().filter(|(id, effect)| !is_placed(id, effect.attempt));
        missing
            .find_map(|(id, effect)| Some((id.clone(), effect.attempt, work::order(execution, id, effect, &[], now)?)))
    }

    /// Cancelled children that were not told.
    fn untold(&self) -> Vec<Withdrawal> {
        let unwanted = work::unwanted_children(&self.history.execution);
        let untold = unwanted.filter(|(effect, _)| !self.told.contains(effect));
        untold.map(|(effect, child)| Withdrawal { effect: effect.clone(), child }).collect()
    }
}

/// What it has in hand for one execution.
struct Task {
    inputs: VecDeque<Input>,
    stage: Stage,
    /// When it last took something in.
    began: Nanos,
}

#[derive(Clone)]
enum Input {
    Fact(Stored),
    Recover,
    Republish,
}

enum Stage {
    Begin,
    Decide(usize),
    Find(Box<Record>, usize),
    Withdraw(Vec<Withdrawal>, usize),
    Order,
    Report,
    Leave,
    Index,
    Acknowledge,
}

impl Stage {
    /// Names it, for the stage at which the orchestrators of a run like to die.
    const fn number(&self) -> usize {
        match self {
            Self::Begin => 0,
            Self::Decide(_) => 1,
            Self::Find(..) => 2,
            Self::Withdraw(..) => 3,
            Self::Order => 4,
            Self::Report => 5,
            Self::Leave => 6,
            Self::Index => 7,
            Self::Acknowledge => 8,
        }
    }
}

struct Withdrawal {
    effect: EffectId,
    child: ExecutionId,
}

/// The next stage; none when the input is done with; an error when the bus failed.
type Next = Result<Option<Stage>, ()>;

impl Orchestrator {
    /// What it believes about executions.
    pub(super) fn memories(&self) -> impl Iterator<Item = (ExecutionId, u64, &Execution)> {
        self.owned.iter().filter(|(_, o)| !o.stale).map(|(id, o)| (*id, o.history.sequence, &o.history.execution))
    }

    const fn reaches(&self, now: Nanos) -> bool {
        self.up && self.cut_until <= now && self.stalled_until <= now
    }
}

impl World {
    pub(super) fn start_orchestrator(&mut self, who: usize) {
        let this = &mut self.orchestrators[who];
        *this = Orchestrator { up: true, life: this.life + 1, skew: this.skew, ..Orchestrator::default() };
        let life = this.life;
        self.note(|| format!("orchestrator {who} starts"));
        let open: Vec<ExecutionId> = self.index.keys().copied().collect();
        for exec in open {
            self.put_in(who, exec, Input::Recover);
        }
        let first = self.chance.span(100, 1_000);
        self.after(first, Wakeup::Round { who, life });
        self.after(first, Wakeup::Sweep { who, life });
    }

    pub(super) fn kill_orchestrator(&mut self, who: usize) {
        let this = &mut self.orchestrators[who];
        if !std::mem::take(&mut this.up) {
            return;
        }
        (this.owned, this.tasks) = Default::default();
        self.counts.kills += 1;
        self.note(|| format!("orchestrator {who} dies"));
        let back = self.chance.span(50, 20_000);
        self.after(back, Wakeup::Start { worker: false, who });
    }

    fn is_alive(&self, who: usize, life: u64) -> bool {
        self.orchestrators[who].up && self.orchestrators[who].life == life
    }

    // --- what comes in -------------------------------------------------------------------------------------------

    pub(super) fn deliver(&mut self, partition: Partition) {
        let Some(owner) = self.owner(partition) else {
            return self.deliver_at(partition, self.now + SECOND);
        };
        for _ in 0..1 + self.chance.index(3) {
            let Some((stored, number)) = self.log.stream(partition).hand_out(self.now) else { break };
            let exec = stored.exec;
            if self.is_faulty() && self.chance.permille(15) {
                self.note(|| format!("delivery {} to {owner} is lost", stored.sequence));
                continue;
            }
            self.note(|| format!("delivery {exec} {} to {owner}", stored.sequence));
            let this = &mut self.orchestrators[owner];
            if this.seen.insert(partition, number) != Some(number - 1) {
                let others = this.owned.iter_mut().filter(|(exec, _)| exec.partition() == partition);
                others.for_each(|(_, owned)| owned.stale = true);
            }
            self.put_in(owner, exec, Input::Fact(stored));
        }
        if let Some(due) = self.log.stream(partition).next_due(self.now) {
            let soon = self.chance.span(0, 5);
            self.deliver_at(partition, due.max(self.now + soon + 1));
        }
    }

    /// The orchestrator that a partition's consumer is pinned to. When it does not pull, another one is chosen after a
    /// while; the first may not know for longer still.
    fn owner(&mut self, partition: Partition) -> Option<usize> {
        if self.now < self.down_until {
            return None;
        }
        let pinned = self.log.stream(partition).consumer.pinned;
        if let Some(owner) = pinned.filter(|owner| self.orchestrators[*owner].reaches(self.now)) {
            return Some(owner);
        }
        let there: Vec<usize> =
            (0..self.orchestrators.len()).filter(|who| self.orchestrators[*who].reaches(self.now)).collect();
        if there.is_empty() || (pinned.is_some() && self.chance.percent(60)) {
            return None;
        }
        let owner = self.chance.pick(&there);
        self.pin(partition, owner);
        Some(owner)
    }

    /// The new owner takes up what is open. What it knew from an earlier time as the owner may be old by now.
    pub(super) fn pin(&mut self, partition: Partition, owner: usize) {
        let before = self.log.stream(partition).consumer.pinned.replace(owner);
        self.note(|| format!("partition {partition} goes to {owner}"));
        if before != Some(owner) && self.shell.reads_after_gap {
            let owned = &mut self.orchestrators[owner].owned;
            owned.iter_mut().filter(|(exec, _)| exec.partition() == partition).for_each(|(_, o)| o.stale = true);
        }
        self.take_up(partition, owner);
    }

    fn take_up(&mut self, partition: Partition, owner: usize) {
        let owned = &self.orchestrators[owner].owned;
        let known = |exec: &ExecutionId| owned.get(exec).is_some_and(|owned| !owned.stale);
        let open = self.index.keys().filter(|exec| exec.partition() == partition && !known(exec));
        for exec in open.copied().collect::<Vec<_>>() {
            self.put_in(owner, exec, Input::Recover);
        }
    }

    /// An orchestrator finds that it has become an owner, and that executions of its partitions are in nobody's hands.
    pub(super) fn sweep(&mut self, who: usize, life: u64) {
        if !self.is_alive(who, life) {
            return;
        }
        if self.sleeps(who, Wakeup::Sweep { who, life }) {
            return;
        }
        let partitions: BTreeSet<Partition> = self.index.keys().map(ExecutionId::partition).collect();
        for partition in partitions {
            if self.owner(partition) == Some(who) {
                self.take_up(partition, who);
            }
        }
        let again = self.chance.span(4_000, 8_000);
        self.after(again, Wakeup::Sweep { who, life });
    }

    /// The queues may be empty: every orchestrator gives its orders again.
    pub(super) fn republish(&mut self) {
        for who in 0..self.orchestrators.len() {
            let open = self.orchestrators[who].owned.iter().filter(|(_, o)| !o.history.execution.is_closed());
            for exec in open.map(|(exec, _)| *exec).collect::<Vec<_>>() {
                self.put_in(who, exec, Input::Republish);
            }
        }
    }

    fn put_in(&mut self, who: usize, exec: ExecutionId, input: Input) {
        let this = &mut self.orchestrators[who];
        let (life, idle) = (this.life, !this.tasks.contains_key(&exec));
        let task = this.tasks.entry(exec);
        task.or_insert(Task { inputs: VecDeque::new(), stage: Stage::Begin, began: 0 }).inputs.push_back(input);
        if idle {
            self.after(STEP_MAX / 8, Wakeup::Step { who, life, exec });
        }
    }

    // --- one step ------------------------------------------------------------------------------------------------

    pub(super) fn step(&mut self, who: usize, life: u64, exec: ExecutionId) {
        if !self.is_alive(who, life) {
            return;
        }
        if self.sleeps(who, Wakeup::Step { who, life, exec }) {
            return;
        }
        let Some(mut task) = self.orchestrators[who].tasks.remove(&exec) else { return };
        let Some(input) = task.inputs.front().cloned() else { return };
        let next = match std::mem::replace(&mut task.stage, Stage::Begin) {
            Stage::Begin => {
                task.began = self.now;
                self.begin(who, exec, &input)
            }
            Stage::Decide(round) => self.decide(who, exec, round),
            Stage::Find(record, round) => self.find(who, exec, &record, round),
            Stage::Withdraw(rest, round) => self.withdraw(who, exec, rest, round),
            Stage::Order => self.order(who, exec, task.began),
            Stage::Report => self.report(who, exec),
            Stage::Leave => self.leave(who, exec),
            Stage::Index => self.write_index(who, exec),
            Stage::Acknowledge => self.acknowledge(who, exec, &input),
        };
        match next {
            Ok(Some(stage)) => task.stage = stage,
            Ok(None) => drop(task.inputs.pop_front()),
            Err(()) => {
                self.give_back(who, exec, &input);
                task.inputs.pop_front();
            }
        }
        let weak = self.is_faulty() && task.stage.number() == self.weak_spot;
        if task.inputs.is_empty() {
            self.set_alarm(who, exec);
        } else {
            self.orchestrators[who].tasks.insert(exec, task);
            let pause = self.chance.span(0, 4);
            self.after(pause, Wakeup::Step { who, life, exec });
        }
        if self.is_faulty() && self.chance.permille(if weak { 60 } else { 4 }) {
            match self.chance.percent(50) {
                true => self.kill_orchestrator(who),
                false => self.stall(who),
            }
        }
    }

    /// It does nothing for a while, as a process does whose machine is suspended: what it had in hand goes on from where
    /// it stood, and everything else has gone on without it.
    fn stall(&mut self, who: usize) {
        self.orchestrators[who].stalled_until = self.now + self.chance.span(10, 40_000);
        self.note(|| format!("orchestrator {who} stalls"));
    }

    /// Puts off what a stalled orchestrator would do.
    fn sleeps(&mut self, who: usize, wakeup: Wakeup) -> bool {
        let until = self.orchestrators[who].stalled_until;
        let sleeps = self.now < until;
        if sleeps {
            self.at(until, wakeup);
        }
        sleeps
    }

    fn fate_of(&mut self, who: usize) -> Fate {
        let cut_until = self.orchestrators[who].cut_until;
        self.fate(cut_until)
    }

    /// Something that either works, or is known to have failed only by its silence.
    fn try_it(&mut self, who: usize) -> Result<(), ()> {
        if self.fate_of(who) == Fate::Fine { Ok(()) } else { Err(()) }
    }

    /// A fact was not dealt with: it is put back, and what is in memory is dropped.
    fn give_back(&mut self, who: usize, exec: ExecutionId, input: &Input) {
        self.note(|| format!("orchestrator {who} puts back {exec}"));
        self.orchestrators[who].owned.remove(&exec);
        if let Input::Fact(stored) = input
            && self.fate_of(who) != Fate::Lost
        {
            let again = self.now + RETRY_AFTER;
            self.log.stream(exec.partition()).put_back(stored.sequence, again);
            self.deliver_at(exec.partition(), again);
        }
    }

    fn owned(&mut self, who: usize, exec: ExecutionId) -> &mut Owned {
        let owned = self.orchestrators[who].owned.get_mut(&exec);
        owned.expect("a task keeps its execution in memory until it is done with it")
    }

    fn begin(&mut self, who: usize, exec: ExecutionId, input: &Input) -> Next {
        let owned = self.orchestrators[who].owned.get(&exec);
        let known = owned.is_some_and(|o| !(o.stale && self.shell.reads_after_gap));
        match input {
            Input::Fact(stored) => {
                let (first, child) = submission(stored);
                if owned.is_none() && first && !(child && self.shell.reads_children_first) {
                    // Nothing stands before the request of an execution that nobody else can name.
                    self.orchestrators[who].owned.insert(exec, Owned::new(History::new(exec)));
                } else if !known {
                    self.load(who, exec)?;
                }
                let owned = self.owned(who, exec);
                owned.history.fold(stored).expect("every fact of the simulation reads");
                if first && owned.history.execution.is_closed() {
                    owned.reported = false;
                }
            }
            Input::Recover => {
                if !known {
                    self.load(who, exec)?;
                }
                // What it owns now is the entry too, which must go when the execution has ended.
                let owned = self.owned(who, exec);
                owned.indexed = owned.indexed.or(Some(owned.history.decisions()));
            }
            Input::Republish => {
                if owned.is_none_or(|o| o.history.execution.is_closed()) {
                    return Ok(None);
                }
                if self.shell.reads_before_republish {
                    self.load(who, exec)?;
                }
                let owned = self.owned(who, exec);
                owned.placed.clear();
                owned.fired.clear();
            }
        }
        Ok(Some(Stage::Decide(0)))
    }

    /// Reads an execution, from its snapshot where there is one. What was done about it stays known.
    fn load(&mut self, who: usize, exec: ExecutionId) -> Result<(), ()> {
        self.try_it(who)?;
        let snapshot = self.index.get(&exec).and_then(|bytes| Snapshot::read(bytes)).filter(|s| s.exec == exec);
        let cached = snapshot.is_some();
        let mut history = snapshot.map_or_else(|| History::new(exec), History::restore);
        for stored in self.log.read(exec, history.sequence) {
            history.fold(&stored).expect("every message of the simulation reads");
        }
        // Reading everything again is dear: it is done now and then, and for all at the end.
        if cached && self.chance.percent(25) && self.folded_anew(exec, history.sequence) != history.execution {
            self.violated(format!("a snapshot of {exec} and the rest of its log differ from the log"));
        }
        let owned = self.orchestrators[who].owned.entry(exec).or_insert_with(|| Owned::new(History::new(exec)));
        (owned.history, owned.stale) = (history, false);
        Ok(())
    }

    fn folded_anew(&self, exec: ExecutionId, upto: u64) -> Execution {
        let mut history = History::new(exec);
        for stored in self.log.read(exec, 0).iter().take_while(|m| m.sequence <= upto) {
            history.fold(stored).expect("every message of the simulation reads");
        }
        history.execution
    }

    fn decide(&mut self, who: usize, exec: ExecutionId, round: usize) -> Next {
        let owned = self.owned(who, exec);
        let decided = if round < STALE_MAX { owned.history.decide(Rules::current()) } else { None };
        let Some(record) = decided else {
            let untold = if self.shell.tells_children_by_state { self.owned(who, exec).untold() } else { vec![] };
            if !untold.is_empty() {
                return Ok(Some(Stage::Withdraw(untold, STALE_MAX)));
            }
            let closed = self.owned(who, exec).history.execution.is_closed();
            return Ok(Some(if closed { Stage::Report } else { Stage::Order }));
        };
        let expected = owned.history.sequence;
        let fate = self.fate_of(who);
        let stored = if fate == Fate::Lost { None } else { self.append_decision(&record, expected) };
        match stored.filter(|_| fate == Fate::Fine) {
            // It stood there already, and the log may have gone on since.
            Some((_, false)) if self.shell.reads_after_duplicate => {
                self.load(who, exec)?;
                Ok(Some(Stage::Decide(round + 1)))
            }
            Some((sequence, _)) => Ok(Some(self.committed(who, exec, &record, sequence, round))),
            None => Ok(Some(Stage::Find(Box::new(record), round))),
        }
    }

    /// After a refusal or a silence the log says whether the decision stands.
    fn find(&mut self, who: usize, exec: ExecutionId, record: &Record, round: usize) -> Next {
        self.try_it(who)?;
        if let Some(sequence) = self.log.find_decision(record)
            && !self.shell.reads_after_duplicate
        {
            return Ok(Some(self.committed(who, exec, record, sequence, round)));
        }
        self.load(who, exec)?;
        Ok(Some(Stage::Decide(round + 1)))
    }

    fn committed(&mut self, who: usize, exec: ExecutionId, record: &Record, sequence: u64, round: usize) -> Stage {
        let by_state = self.shell.tells_children_by_state;
        let owned = self.owned(who, exec);
        owned.history.commit(record, sequence);
        let cancelled = record.events.iter().filter_map(|event| match event {
            Event::EffectCancelled(cancelled) => Some(&cancelled.effect),
            _ => None,
        });
        let mut children = Vec::new();
        let mut jobs = Vec::new();
        for effect in cancelled {
            jobs.extend(owned.placed.remove(effect).and_then(|(_, job)| job));
            let child = owned.history.execution.effects.get(effect).and_then(work::child_of);
            children.extend(child.map(|child| Withdrawal { effect: effect.clone(), child }));
        }
        if by_state {
            children = owned.untold();
        }
        jobs.into_iter().for_each(|job| self.queue.remove(job));
        Stage::Withdraw(children, round)
    }

    /// Tells one cancelled child.
    fn withdraw(&mut self, who: usize, exec: ExecutionId, mut rest: Vec<Withdrawal>, round: usize) -> Next {
        let Some(Withdrawal { effect, child }) = rest.pop() else {
            return Ok(Some(Stage::Decide(round)));
        };
        let fact = work::dismissal(&self.owned(who, exec).history.execution, child);
        let fact = fact.expect("who asked for a child knows its own id");
        match self.fate_of(who) {
            Fate::Lost if self.shell.tells_children_by_state => return Err(()),
            Fate::Lost => {}
            Fate::Fine | Fate::Unanswered => drop(self.append_fact(&fact)),
        }
        self.owned(who, exec).told.insert(effect);
        Ok(Some(Stage::Withdraw(rest, round)))
    }

    /// Gives one order that was not given yet.
    fn order(&mut self, who: usize, exec: ExecutionId, read: Nanos) -> Next {
        let now = self.now + self.orchestrators[who].skew;
        let order = self.owned(who, exec).next_order(now);
        let Some((effect, attempt, order)) = order else {
            return Ok(Some(Stage::Index));
        };
        self.check_order(exec, &effect, attempt, &order);
        let fate = self.fate_of(who);
        if fate == Fate::Lost {
            return Err(());
        }
        let job = match order {
            Order::Child(fact) => {
                self.append_fact(&fact);
                None
            }
            order => {
                let (sequence, new) = self.queue.push(exec, &effect, attempt, order, self.now);
                self.note(|| format!("job {exec}/{effect}/{attempt}{}", if new { "" } else { " known" }));
                if new {
                    self.check_issue(exec, &effect, attempt, read);
                    self.call_a_worker();
                }
                Some(sequence)
            }
        };
        if fate == Fate::Unanswered {
            return Err(());
        }
        let before = self.owned(who, exec).placed.insert(effect, (attempt, job));
        if let Some((_, Some(old))) = before {
            self.queue.remove(old);
        }
        Ok(Some(Stage::Order))
    }

    fn report(&mut self, who: usize, exec: ExecutionId) -> Next {
        let now = self.now + self.orchestrators[who].skew;
        let owned = self.owned(who, exec);
        if !std::mem::replace(&mut owned.reported, true)
            && let Some(fact) = work::report(&owned.history.execution, now)
        {
            let fate = self.fate_of(who);
            if fate != Fate::Lost {
                self.append_fact(&fact);
            }
            if fate != Fate::Fine {
                return Err(());
            }
        }
        Ok(Some(Stage::Leave))
    }

    fn leave(&mut self, who: usize, exec: ExecutionId) -> Next {
        if self.owned(who, exec).indexed.is_some() {
            self.try_it(who)?;
            self.index.remove(&exec);
            self.owned(who, exec).indexed = None;
        }
        Ok(Some(Stage::Acknowledge))
    }

    fn write_index(&mut self, who: usize, exec: ExecutionId) -> Next {
        let always = self.shell.indexes_always;
        let owned = self.owned(who, exec);
        let (decisions, requested) = (owned.history.decisions(), owned.history.execution.request.is_some());
        if owned.indexed.is_none_or(|then| decisions >= then + SNAPSHOT_EVERY) {
            let entry = match owned.history.snapshot() {
                Some(snapshot) => Some(encode(&snapshot)),
                // Its name is enough to be found; the log has the rest.
                None => (always && requested && owned.indexed.is_none()).then(Vec::new),
            };
            if let Some(entry) = entry {
                self.try_it(who)?;
                self.index.insert(exec, entry);
                self.owned(who, exec).indexed = Some(decisions);
            }
        }
        Ok(Some(Stage::Acknowledge))
    }

    fn acknowledge(&mut self, who: usize, exec: ExecutionId, input: &Input) -> Next {
        if let Input::Fact(stored) = input
            && self.fate_of(who) != Fate::Lost
        {
            self.log.stream(exec.partition()).acknowledge(stored.sequence);
        }
        let owned = self.owned(who, exec);
        let (sequence, stale, closed) = (owned.history.sequence, owned.stale, owned.history.execution.is_closed());
        if !stale && self.chance.percent(10) {
            let logged = self.folded_anew(exec, sequence);
            if self.owned(who, exec).history.execution != logged {
                self.violated(format!("{exec} in memory differs from its log up to {sequence}"));
            }
        }
        // Only some of the closed ones are kept.
        if closed && self.chance.percent(40) {
            self.orchestrators[who].owned.remove(&exec);
        }
        Ok(None)
    }

    // --- timers and signs of life --------------------------------------------------------------------------------

    fn set_alarm(&mut self, who: usize, exec: ExecutionId) {
        let (life, skew, now) = (self.orchestrators[who].life, self.orchestrators[who].skew, self.now);
        let Some(owned) = self.orchestrators[who].owned.get_mut(&exec) else { return };
        let Some((_, at)) = owned.wake() else { return };
        let at = now.max(at - skew);
        if owned.alarm.is_none_or(|alarm| alarm > at) {
            owned.alarm = Some(at);
            self.at(at, Wakeup::Due { who, life, exec });
        }
    }

    /// Its clock jumps: what is due by the new time is due.
    pub(super) fn jump(&mut self, who: usize, skew: Nanos) {
        self.orchestrators[who].skew = skew;
        self.orchestrators[who].owned.values_mut().for_each(|owned| owned.alarm = None);
        for exec in self.orchestrators[who].owned.keys().copied().collect::<Vec<_>>() {
            self.set_alarm(who, exec);
        }
    }

    pub(super) fn fire(&mut self, who: usize, life: u64, exec: ExecutionId) {
        if !self.is_alive(who, life) {
            return;
        }
        if self.sleeps(who, Wakeup::Due { who, life, exec }) {
            return;
        }
        let local = self.now + self.orchestrators[who].skew;
        let Some(owned) = self.orchestrators[who].owned.get_mut(&exec) else { return };
        if owned.alarm.is_none_or(|alarm| alarm > self.now) {
            return;
        }
        owned.alarm = None;
        if let Some((timer, due)) = owned.wake().filter(|(_, at)| *at <= local) {
            let fact = Fact::new(exec, local, FactBody::TimerFired(TimerFired { timer: timer.clone(), due }));
            let fate = self.fate_of(who);
            if fate != Fate::Lost {
                self.append_fact(&fact);
            }
            if fate == Fate::Fine {
                self.owned(who, exec).fired.insert((timer, due));
            } else {
                let again = self.now + 500 * MILLISECOND;
                self.owned(who, exec).alarm = Some(again);
                return self.at(again, Wakeup::Due { who, life, exec });
            }
        }
        self.set_alarm(who, exec);
    }

    /// Reports what nobody holds any more; now and then wrongly.
    pub(super) fn ask_workers(&mut self, who: usize, life: u64) {
        if !self.is_alive(who, life) {
            return;
        }
        if self.sleeps(who, Wakeup::Round { who, life }) {
            return;
        }
        let mut placed = Vec::new();
        for (exec, owned) in &self.orchestrators[who].owned {
            let open = owned.history.execution.effects.open_effects();
            let jobs = open.filter(|(id, e)| owned.placed.get(id).is_some_and(|p| p.0 == e.attempt && p.1.is_some()));
            placed.extend(jobs.map(|(id, e)| (*exec, id.clone(), e.attempt)));
        }
        for (exec, effect, attempt) in placed {
            let lost = match self.queue.of(exec, &effect, attempt) {
                None => 30,
                Some(job) => match job.holder {
                    None => 0,
                    Some((worker, life)) if self.workers[worker].holds(life, job.sequence) => 0,
                    Some(_) => 60,
                },
            };
            let wrong = self.is_faulty() && self.chance.permille(1);
            if (wrong || self.chance.percent(lost)) && self.fate_of(who) != Fate::Lost {
                let body = FactBody::EffectLost(EffectLost { effect, attempt, worker: None });
                self.append_fact(&Fact::new(exec, self.now + self.orchestrators[who].skew, body));
            }
        }
        let again = self.chance.span(700, 1_300);
        self.after(again, Wakeup::Round { who, life });
    }
}

/// Whether a message is a request, and whether it is that of a child.
fn submission(stored: &Stored) -> (bool, bool) {
    match Fact::read(&stored.payload).map(|fact| fact.body) {
        Ok(FactBody::ExecutionSubmitted(request)) if stored.kind == Kind::Fact => (true, request.parent.is_some()),
        _ => (false, false),
    }
}
