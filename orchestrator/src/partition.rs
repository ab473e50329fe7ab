//! The shell of one partition: folds facts, asks the core, commits, carries out, then acknowledges the fact.
//!
//! A crash between any two of these repeats work and loses none: an unacknowledged fact comes again, a commit of the
//! same decision is recognised, an order is given once per attempt.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use runtime::bus::{Commit, FactDelivery, Facts, Kind, Stored};
use runtime::{Runtime, bus, clock};
use schemas::fact::TimerFired;
use schemas::wire::Nanos;
use schemas::{ExecutionId, Fact, FactBody, Partition};
use tokio::sync::mpsc;

use crate::carry_out::{Hands, Owned};
use crate::config::Config;
use crate::execution::Rules;
use crate::history::History;
use crate::liveness::Liveness;
use crate::service::Metrics;

/// How long a fact waits after a failure of the bus.
const RETRY_AFTER: Duration = Duration::from_millis(300);
/// How long a job waits for room in its queue.
const QUEUE_RETRY: Duration = Duration::from_millis(200);
/// Times a decision is taken anew because the log moved on, before the fact is put back.
const STALE_MAX: usize = 32;

/// What a partition can be told.
pub(crate) enum Command {
    /// Take up an open execution.
    Recover(ExecutionId),
    /// The queues may be empty: give every order again.
    Republish,
}

/// One thing that happened to a partition.
enum Input {
    Fact(FactDelivery),
    Command(Command),
    Due,
    Nothing,
    Failed(bus::Error),
    Stop,
}

/// The shell of one partition.
pub(crate) struct Shell {
    partition: Partition,
    config: Config,
    hands: Hands,
    owned: BTreeMap<ExecutionId, Owned>,
    closed: VecDeque<ExecutionId>,
}

impl Shell {
    pub(crate) fn new(
        partition: Partition,
        runtime: Runtime,
        config: Config,
        metrics: Metrics,
        liveness: Liveness,
    ) -> Self {
        let hands = Hands { runtime, metrics, liveness };
        Self { partition, config, hands, owned: BTreeMap::new(), closed: VecDeque::new() }
    }

    /// Runs until the soft token falls.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> Result<(), bus::Error> {
        let soft = self.hands.runtime.tasks.soft();
        let mut facts: Option<Facts> = None;
        loop {
            if facts.is_none() {
                facts = self.hands.runtime.bus.facts(self.partition).await.ok();
            }
            let due = self.next_due();
            let input = tokio::select! {
                () = soft.cancelled() => Input::Stop,
                Some(command) = commands.recv() => Input::Command(command),
                () = tokio::time::sleep(due) => Input::Due,
                next = next_fact(&mut facts) => match next {
                    Ok(Some(fact)) => Input::Fact(fact),
                    Ok(None) => Input::Nothing,
                    Err(error) => Input::Failed(error),
                },
            };
            match input {
                Input::Stop => return Ok(()),
                Input::Nothing => {}
                Input::Fact(fact) => self.take(fact).await,
                Input::Due => self.fire().await,
                Input::Command(Command::Recover(exec)) => self.recover(exec).await,
                Input::Command(Command::Republish) => self.republish().await,
                Input::Failed(error) => {
                    tracing::debug!(partition = %self.partition, %error, "following the facts anew");
                    facts = None;
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    /// One fact: fold, decide, commit, carry out, acknowledge.
    async fn take(&mut self, fact: FactDelivery) {
        self.hands.metrics.facts.inc();
        let exec = fact.stored.exec;
        let verdict = match self.handle(&fact.stored).await {
            Ok(()) => fact.done().await,
            Err(error) => {
                tracing::warn!(%exec, %error, "a fact was put back");
                self.forget(exec);
                fact.later(RETRY_AFTER).await
            }
        };
        if let Err(error) = verdict {
            tracing::debug!(%exec, %error, "an acknowledgement was not sent; the fact will come again");
        }
    }

    async fn handle(&mut self, stored: &Stored) -> Result<(), bus::Error> {
        let exec = stored.exec;
        let first = is_submission(stored);
        if !self.owned.contains_key(&exec) {
            let mut owned = Owned::new(exec);
            // The first fact needs no reading: if it was not the first, the commit says so.
            if !first {
                owned.history = self.hands.load(exec).await?;
            }
            self.owned.insert(exec, owned);
        }
        if let Some(owned) = self.owned.get_mut(&exec) {
            fold(&mut owned.history, stored);
            if first && owned.history.execution.is_closed() {
                // Asked for again by a parent that has not heard of the end: it is told once more.
                owned.reported = false;
            }
        }
        self.advance(exec).await
    }

    async fn recover(&mut self, exec: ExecutionId) {
        if let Err(error) = self.take_up(exec).await {
            tracing::warn!(%exec, %error, "an open execution was not taken up; its next fact will");
            self.forget(exec);
        }
    }

    /// Takes up an execution that the index lists. One of its facts may have come before: then what it owns is the
    /// entry, which must go when the execution has ended.
    async fn take_up(&mut self, exec: ExecutionId) -> Result<(), bus::Error> {
        if !self.owned.contains_key(&exec) {
            let history = self.hands.load(exec).await?;
            self.owned.insert(exec, Owned { history, ..Owned::new(exec) });
        }
        if let Some(owned) = self.owned.get_mut(&exec).filter(|o| o.indexed.is_none()) {
            owned.indexed = Some(owned.history.decisions());
            self.hands.metrics.open.inc();
        }
        self.advance(exec).await
    }

    async fn republish(&mut self) {
        let open: Vec<ExecutionId> =
            self.owned.iter().filter(|(_, o)| !o.history.execution.is_closed()).map(|(exec, _)| *exec).collect();
        for exec in open {
            if let Some(owned) = self.owned.get_mut(&exec) {
                owned.placed.clear();
                owned.fired.clear();
            }
            if let Err(error) = self.advance(exec).await {
                tracing::warn!(%exec, %error, "orders were not given again");
                self.forget(exec);
            }
        }
    }

    /// Commits what follows, then does what was decided.
    async fn advance(&mut self, exec: ExecutionId) -> Result<(), bus::Error> {
        let Some(owned) = self.owned.get_mut(&exec) else {
            return Ok(());
        };
        let hands = &self.hands;
        for _ in 0..STALE_MAX {
            let Some(record) = owned.history.decide(Rules::current()) else {
                break;
            };
            match hands.runtime.bus.commit(&record, owned.history.sequence).await? {
                Commit::Done(sequence) => {
                    hands.metrics.decisions.inc();
                    owned.history.commit(&record, sequence);
                    hands.liveness.forget(exec);
                    hands.withdraw(owned, &record).await;
                }
                // A fact folded optimistically may not have been the first: begin anew from the log.
                Commit::Stale => owned.history = hands.load(exec).await?,
            }
        }
        if owned.history.execution.is_closed() {
            return self.close(exec).await;
        }
        hands.order_open(owned).await?;
        hands.index(owned).await
    }

    async fn close(&mut self, exec: ExecutionId) -> Result<(), bus::Error> {
        self.hands.liveness.forget(exec);
        if let Some(owned) = self.owned.get_mut(&exec) {
            // First told, then forgotten: a crash in between tells twice, which does no harm.
            self.hands.report(owned).await?;
            self.hands.unindex(owned).await?;
        }
        if !self.closed.contains(&exec) {
            self.closed.push_back(exec);
        }
        while self.closed.len() > self.config.closed_kept {
            if let Some(oldest) = self.closed.pop_front() {
                self.forget(oldest);
            }
        }
        Ok(())
    }

    /// Drops what is in memory; the log brings it back.
    fn forget(&mut self, exec: ExecutionId) {
        if self.owned.remove(&exec).is_some_and(|owned| owned.indexed.is_some()) {
            self.hands.metrics.open.dec();
        }
        self.closed.retain(|e| *e != exec);
    }

    /// How long until some execution wants to be woken.
    fn next_due(&self) -> Duration {
        let timers = self.owned.values().filter_map(Owned::wake).map(|(_, at)| clock::until(at));
        let room = self.owned.values().any(|o| o.waits_for_room).then_some(QUEUE_RETRY);
        timers.chain(room).min().unwrap_or(Duration::from_secs(3_600))
    }

    /// Appends the facts of timers whose moment has come, and tries again where a queue was full.
    async fn fire(&mut self) {
        let now = clock::now();
        let mut due: Vec<(ExecutionId, String, Nanos)> = Vec::new();
        for (exec, owned) in &self.owned {
            if let Some((timer, at)) = owned.wake().filter(|(_, at)| *at <= now) {
                due.push((*exec, timer, at));
            }
        }
        for (exec, timer, at) in due {
            let fact = Fact::new(exec, now, FactBody::TimerFired(TimerFired { timer: timer.clone(), due: at }));
            match self.hands.runtime.bus.append_fact(&fact).await {
                Ok(_) => {
                    if let Some(owned) = self.owned.get_mut(&exec) {
                        owned.fired.insert((timer, at));
                    }
                }
                Err(error) => {
                    tracing::warn!(%exec, timer, %error, "a timer's fact was not stored; trying again");
                }
            }
        }
        for (exec, owned) in self.owned.iter_mut().filter(|(_, o)| o.waits_for_room) {
            if let Err(error) = self.hands.order_open(owned).await {
                tracing::warn!(%exec, %error, "a job was not queued; trying again");
            }
        }
    }
}

async fn next_fact(facts: &mut Option<Facts>) -> Result<Option<FactDelivery>, bus::Error> {
    match facts {
        Some(facts) => facts.next().await,
        None => Err(bus::Error::Broken("the facts cannot be followed".to_owned())),
    }
}

fn is_submission(stored: &Stored) -> bool {
    stored.kind == Kind::Fact
        && Fact::read(&stored.payload).is_ok_and(|f| matches!(f.body, FactBody::ExecutionSubmitted(_)))
}

fn fold(history: &mut History, stored: &Stored) {
    if let Err(unreadable) = history.fold(stored) {
        tracing::error!(exec = %stored.exec, sequence = unreadable.sequence, reason = %unreadable.reason, "skipped a message of the log that cannot be read");
    }
}
