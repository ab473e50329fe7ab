//! The shell of one partition: hands each execution what there is to do about it, one step at a time, many executions
//! side by side.
//!
//! While an execution's step is under way, whatever comes for it waits and is taken in together by the next one.
//! What a step does is in [`crate::step`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use runtime::bus::{FactDelivery, Facts};
use runtime::{bus, clock};
use schemas::wire::Nanos;
use schemas::{ExecutionId, Partition};
use tokio::sync::mpsc;

use crate::carry_out::{Hands, Owned};
use crate::config::Config;
use crate::ownership::Pins;
use crate::step::{self, RETRY_AFTER, Todo, step};

/// Executions whose steps are under way at once. Each waits for the disk most of its time; more than this only makes
/// the facts wait here instead of in the log.
const STEPS_MAX: usize = 128;
/// Executions that only their unacknowledged submission keeps from being forgotten. Half of the facts that the
/// consumer hands out without an acknowledgement, so that results always find room.
const YOUNG_MAX: usize = 512;

/// What a partition can be told.
pub(crate) enum Command {
    /// Take up an execution that may be open; whether it stands in the bucket of open executions.
    Recover(ExecutionId, bool),
    /// The queues may be empty: give every order again.
    Republish,
    /// Somebody else owns the partition: let go of what is idle.
    Yield,
}

/// One thing that happened to a partition.
enum Input {
    Fact(Box<FactDelivery>),
    Command(Command),
    Stepped(ExecutionId, Option<Box<Owned>>),
    Due,
    Nothing,
    Failed(bus::Error),
    Stop,
}

/// An execution that is known here.
enum Slot {
    /// Nothing is under way; the moment it wants to be woken.
    Idle(Box<Owned>, Option<Nanos>),
    /// A step is under way; what came meanwhile.
    Busy(Todo),
}

/// The shell of one partition.
pub(crate) struct Shell {
    partition: Partition,
    pins: Pins,
    /// The pin under which facts came last.
    pin: Option<String>,
    /// Since when: what is older may have been told something that was never delivered here.
    pinned_at: Nanos,
    hands: Hands,
    closed_kept: usize,
    slots: BTreeMap<ExecutionId, Slot>,
    steps: FuturesUnordered<BoxFuture<'static, (ExecutionId, Option<Box<Owned>>)>>,
    /// When which idle execution wants to be woken.
    due: BTreeSet<(Nanos, ExecutionId)>,
    young: BTreeSet<ExecutionId>,
    /// Closed executions that are kept for late facts, and those that are kept for their request, oldest first.
    closed: VecDeque<ExecutionId>,
}

impl Shell {
    pub(crate) fn new(partition: Partition, pins: Pins, hands: Hands, config: &Config) -> Self {
        Self {
            partition,
            pins,
            pin: None,
            pinned_at: Nanos::MAX,
            hands,
            closed_kept: config.closed_kept,
            slots: BTreeMap::new(),
            steps: FuturesUnordered::new(),
            due: BTreeSet::new(),
            young: BTreeSet::new(),
            closed: VecDeque::new(),
        }
    }

    /// Runs until the soft token falls.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> Result<(), bus::Error> {
        let soft = self.hands.runtime.tasks.soft();
        let mut facts: Option<Facts> = None;
        loop {
            if facts.is_none() {
                facts = self.hands.runtime.bus.facts(self.partition).await.ok();
            }
            let due = self.due.first().map_or(Duration::from_secs(3_600), |(at, _)| clock::until(*at));
            let input = tokio::select! {
                () = soft.cancelled() => Input::Stop,
                Some((exec, owned)) = self.steps.next() => Input::Stepped(exec, owned),
                Some(command) = commands.recv() => Input::Command(command),
                () = tokio::time::sleep(due) => Input::Due,
                next = next_fact(&mut facts), if self.steps.len() < STEPS_MAX => match next {
                    Ok(Some(fact)) => Input::Fact(Box::new(fact)),
                    Ok(None) => Input::Nothing,
                    Err(error) => Input::Failed(error),
                },
            };
            let pin = facts.as_ref().and_then(Facts::pin);
            self.pins.set(self.partition, pin);
            if pin.is_some() && pin != self.pin.as_deref() {
                self.pin = pin.map(str::to_owned);
                self.pinned_at = clock::now();
                self.distrust();
            }
            match input {
                Input::Stop => return self.stop().await,
                Input::Nothing => {}
                Input::Fact(fact) => self.fact(*fact),
                Input::Stepped(exec, owned) => self.stepped(exec, owned),
                Input::Due => self.wake(),
                Input::Command(Command::Recover(exec, indexed)) => self.recover(exec, indexed),
                Input::Command(Command::Republish) => self.republish(),
                Input::Command(Command::Yield) => self.let_go().await,
                Input::Failed(error) => {
                    tracing::debug!(partition = %self.partition, %error, "following the facts anew");
                    facts = None;
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    fn fact(&mut self, fact: FactDelivery) {
        self.hands.metrics.facts.inc();
        self.give(fact.stored.exec, Todo { facts: vec![fact], ..Todo::default() });
    }

    fn recover(&mut self, exec: ExecutionId, indexed: bool) {
        // One that is known already must learn that it stands in the index, so that its entry goes when it has ended.
        if indexed || !self.slots.contains_key(&exec) {
            self.give(exec, Todo { recover: true, indexed, ..Todo::default() });
        }
    }

    fn republish(&mut self) {
        let open: Vec<ExecutionId> =
            self.slots.iter().filter(|(_, slot)| !slot.is_closed()).map(|(exec, _)| *exec).collect();
        for exec in open {
            self.give(exec, Todo { republish: true, ..Todo::default() });
        }
    }

    /// The partition was given to us anew: somebody else may have taken in facts meanwhile that memory misses.
    fn distrust(&mut self) {
        let all: Vec<ExecutionId> = self.slots.keys().copied().collect();
        for exec in all {
            match self.slots.get_mut(&exec) {
                Some(Slot::Busy(waiting)) => waiting.reload = true,
                Some(Slot::Idle(owned, _)) => owned.distrusted = true,
                None => {}
            }
        }
    }

    /// Leaves what nothing is under way for to the owner, who has it from the log.
    async fn let_go(&mut self) {
        let idle = |slot: &Slot| matches!(slot, Slot::Idle(..));
        let idle: Vec<ExecutionId> = self.slots.iter().filter(|(_, s)| idle(s)).map(|(exec, _)| *exec).collect();
        for exec in idle {
            if let Some(Slot::Idle(owned, _)) = self.slots.remove(&exec) {
                self.hands.liveness.forget(exec);
                self.young.remove(&exec);
                step::let_go(*owned).await;
            }
        }
        self.due.clear();
        self.closed.clear();
    }

    fn wake(&mut self) {
        let now = clock::now();
        while let Some((at, exec)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, exec));
            self.give(exec, Todo { woken: true, ..Todo::default() });
        }
    }

    /// Begins a step, or lets it wait for the one under way.
    fn give(&mut self, exec: ExecutionId, mut todo: Todo) {
        let mut owned = match self.slots.insert(exec, Slot::Busy(Todo::default())) {
            Some(Slot::Busy(mut waiting)) => {
                waiting.add(todo);
                self.slots.insert(exec, Slot::Busy(waiting));
                return;
            }
            Some(Slot::Idle(owned, due)) => {
                if let Some(at) = due {
                    self.due.remove(&(at, exec));
                }
                owned
            }
            None => {
                let mut owned = Box::new(Owned::new(exec));
                owned.distrusted = exec.made_at() <= self.pinned_at;
                owned
            }
        };
        todo.index |= self.young.len() >= YOUNG_MAX;
        todo.reload |= std::mem::take(&mut owned.distrusted);
        self.hands.metrics.steps.inc();
        self.steps.push(Box::pin(step(self.hands.clone(), owned, todo)));
    }

    /// A step has ended: begins the next one if something came meanwhile. None means the execution must be read
    /// anew from the log.
    fn stepped(&mut self, exec: ExecutionId, owned: Option<Box<Owned>>) {
        let Some(Slot::Busy(waiting)) = self.slots.remove(&exec) else {
            return;
        };
        self.young.remove(&exec);
        if let Some(mut owned) = owned {
            owned.distrusted |= waiting.reload;
            if owned.kept.is_some() {
                self.young.insert(exec);
            }
            let due = step::due(&owned);
            if let Some(at) = due {
                self.due.insert((at, exec));
            }
            if owned.history.execution.is_closed() || owned.is_unknown() {
                self.keep_closed(exec);
            }
            self.slots.insert(exec, Slot::Idle(owned, due));
        } else {
            self.closed.retain(|e| *e != exec);
        }
        if !waiting.is_empty() {
            self.give(exec, waiting);
        }
    }

    fn keep_closed(&mut self, exec: ExecutionId) {
        if !self.closed.contains(&exec) {
            self.closed.push_back(exec);
        }
        while self.closed.len() > self.closed_kept {
            // One with a step under way comes back here when that has ended.
            if let Some(oldest) = self.closed.pop_front()
                && self.slots.get(&oldest).is_some_and(Slot::is_at_rest)
            {
                self.slots.remove(&oldest);
            }
        }
    }

    /// Lets the steps under way end, and puts back what has not been begun and what only we know of.
    async fn stop(mut self) -> Result<(), bus::Error> {
        while let Some((exec, owned)) = self.steps.next().await {
            let Some(Slot::Busy(waiting)) = self.slots.remove(&exec) else {
                continue;
            };
            waiting.put_back().await;
            if let Some(owned) = owned {
                step::let_go(*owned).await;
            }
        }
        for slot in std::mem::take(&mut self.slots).into_values() {
            if let Slot::Idle(owned, _) = slot {
                step::let_go(*owned).await;
            }
        }
        Ok(())
    }
}

impl Slot {
    fn is_closed(&self) -> bool {
        matches!(self, Self::Idle(owned, _) if owned.history.execution.is_closed())
    }

    /// Nothing is lost when it is forgotten.
    fn is_at_rest(&self) -> bool {
        self.is_closed() || matches!(self, Self::Idle(owned, _) if owned.is_unknown())
    }
}

async fn next_fact(facts: &mut Option<Facts>) -> Result<Option<FactDelivery>, bus::Error> {
    match facts {
        Some(facts) => facts.next().await,
        None => Err(bus::Error::Broken("the facts cannot be followed".to_owned())),
    }
}
