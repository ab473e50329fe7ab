//! The shell of one partition: folds facts, asks the core, commits, queues jobs, then acknowledges the fact.
//!
//! A crash between any two of these repeats work and loses none: an unacknowledged fact comes again, a commit of the
//! same decision is recognised, a job is queued once per attempt.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use runtime::bus::{Commit, FactDelivery, Facts, Kind, Stored};
use runtime::{Runtime, bus, clock};
use schemas::chat::{Message, Role};
use schemas::fact::TimerFired;
use schemas::wire::Nanos;
use schemas::{EffectId, Event, ExecutionId, Fact, FactBody, Partition, Record, stream};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::history::History;
use crate::liveness::Liveness;
use crate::service::Metrics;
use crate::work::{self, AnyJob};

/// How long a fact waits after a failure of the bus.
const RETRY_AFTER: Duration = Duration::from_millis(300);
/// How long a job waits for room in its queue.
const QUEUE_RETRY: Duration = Duration::from_millis(200);
/// How many conversations may be chained.
const CONVERSATION_DEPTH_MAX: usize = 64;
/// Times a decision is taken anew because the log moved on, before the fact is put back.
const STALE_MAX: usize = 32;

/// What a partition can be told.
pub(crate) enum Command {
    /// Take up an open execution.
    Recover(ExecutionId),
    /// The queues may be empty: queue every open effect again.
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

/// An open execution and what the shell did about it.
struct Owned {
    history: History,
    /// Effects whose jobs are queued: attempt, stream, and the job's sequence there.
    queued: BTreeMap<EffectId, (u32, &'static str, u64)>,
    indexed: bool,
    /// Timers whose facts are on their way.
    fired: BTreeSet<(String, Nanos)>,
    /// An effect found its queue full.
    waiting_for_room: bool,
}

impl Owned {
    fn new(exec: ExecutionId) -> Self {
        Self {
            history: History::new(exec),
            queued: BTreeMap::new(),
            indexed: false,
            fired: BTreeSet::new(),
            waiting_for_room: false,
        }
    }

    fn wake(&self) -> Option<(String, Nanos)> {
        self.history.execution.wake().filter(|timer| !self.fired.contains(timer))
    }
}

/// The shell of one partition.
pub(crate) struct Shell {
    partition: Partition,
    runtime: Runtime,
    config: Config,
    metrics: Metrics,
    liveness: Liveness,
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
        Self { partition, runtime, config, metrics, liveness, owned: BTreeMap::new(), closed: VecDeque::new() }
    }

    /// Runs until the soft token falls.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> Result<(), bus::Error> {
        let soft = self.runtime.tasks.soft();
        let mut facts: Option<Facts> = None;
        loop {
            if facts.is_none() {
                facts = self.runtime.bus.facts(self.partition).await.ok();
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

    /// One fact: fold, decide, commit, queue, acknowledge.
    async fn take(&mut self, fact: FactDelivery) {
        self.metrics.facts.inc();
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
        if !self.owned.contains_key(&exec) {
            let mut owned = Owned::new(exec);
            // The first fact needs no reading: if it was not the first, the commit says so.
            if !is_submission(stored) {
                catch_up(&self.runtime, &mut owned.history).await?;
            }
            self.owned.insert(exec, owned);
        }
        if let Some(owned) = self.owned.get_mut(&exec) {
            fold(&mut owned.history, stored);
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
            let mut owned = Owned::new(exec);
            catch_up(&self.runtime, &mut owned.history).await?;
            self.owned.insert(exec, owned);
        }
        if let Some(owned) = self.owned.get_mut(&exec).filter(|o| !o.indexed) {
            owned.indexed = true;
            self.metrics.open.inc();
        }
        self.advance(exec).await
    }

    async fn republish(&mut self) {
        let open: Vec<ExecutionId> =
            self.owned.iter().filter(|(_, o)| !o.history.execution.is_closed()).map(|(exec, _)| *exec).collect();
        for exec in open {
            if let Some(owned) = self.owned.get_mut(&exec) {
                owned.queued.clear();
                owned.fired.clear();
            }
            if let Err(error) = self.advance(exec).await {
                tracing::warn!(%exec, %error, "jobs were not queued again");
                self.forget(exec);
            }
        }
    }

    /// Commits what follows, then does what was decided.
    async fn advance(&mut self, exec: ExecutionId) -> Result<(), bus::Error> {
        let Some(owned) = self.owned.get_mut(&exec) else {
            return Ok(());
        };
        for _ in 0..STALE_MAX {
            let Some(record) = owned.history.decide() else {
                break;
            };
            match self.runtime.bus.commit(&record, owned.history.sequence).await? {
                Commit::Done(sequence) => {
                    self.metrics.decisions.inc();
                    owned.history.commit(&record, sequence);
                    self.liveness.forget(exec);
                    withdraw(&self.runtime, exec, owned, &record).await;
                }
                Commit::Stale => catch_up(&self.runtime, &mut owned.history).await?,
            }
        }
        if owned.history.execution.is_closed() {
            return self.close(exec).await;
        }
        self.queue_open(exec).await?;
        self.index(exec).await
    }

    /// Queues a job for every open effect that has none yet.
    async fn queue_open(&mut self, exec: ExecutionId) -> Result<(), bus::Error> {
        let Some(owned) = self.owned.get_mut(&exec) else {
            return Ok(());
        };
        let execution = &owned.history.execution;
        let mut history = None;
        owned.waiting_for_room = false;
        for (id, effect) in execution.effects.open_effects() {
            if owned.queued.get(id).is_some_and(|(attempt, ..)| *attempt == effect.attempt) {
                self.liveness.watch(exec, id, effect.attempt, owned.queued[id].1);
                continue;
            }
            if history.is_none() {
                history = Some(
                    conversation(&self.runtime, execution.request.as_deref().and_then(|r| r.conversation_id)).await?,
                );
            }
            let before = history.as_deref().unwrap_or(&[]);
            let Some(job) = work::job(exec, execution, id, effect, before, clock::now()) else {
                continue;
            };
            let (stream, queued) = match &job {
                AnyJob::Inference(job) => (stream::INFERENCE_JOBS, self.runtime.bus.queue(job.as_ref()).await),
                AnyJob::Tool(job) => (stream::TOOL_JOBS, self.runtime.bus.queue(job.as_ref()).await),
            };
            match queued {
                Ok(queued) => {
                    self.metrics.jobs.inc();
                    // Another attempt of the same effect may still be queued; nobody wants it.
                    if let Some((_, stream, old)) =
                        owned.queued.insert(id.clone(), (effect.attempt, stream, queued.sequence))
                    {
                        let _ = self.runtime.bus.unqueue(stream, old).await;
                    }
                    self.liveness.watch(exec, id, effect.attempt, stream);
                }
                Err(bus::Error::Full(why)) => {
                    tracing::warn!(%exec, effect = %id, %why, "waiting for room in the queue");
                    owned.waiting_for_room = true;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Notes an open execution where a successor finds it.
    async fn index(&mut self, exec: ExecutionId) -> Result<(), bus::Error> {
        let Some(owned) = self.owned.get_mut(&exec).filter(|o| !o.indexed) else {
            return Ok(());
        };
        let bucket = self.runtime.bus.bucket(stream::BUCKET_OPEN).await?;
        let value = owned.history.sequence.to_string();
        bucket
            .put(format!("{}.{exec}", self.partition), value.into())
            .await
            .map_err(|e| bus::Error::Broken(e.to_string()))?;
        owned.indexed = true;
        self.metrics.open.inc();
        Ok(())
    }

    async fn close(&mut self, exec: ExecutionId) -> Result<(), bus::Error> {
        self.liveness.forget(exec);
        if self.owned.get(&exec).is_some_and(|o| o.indexed) {
            let bucket = self.runtime.bus.bucket(stream::BUCKET_OPEN).await?;
            bucket.purge(format!("{}.{exec}", self.partition)).await.map_err(|e| bus::Error::Broken(e.to_string()))?;
            self.metrics.open.dec();
            if let Some(owned) = self.owned.get_mut(&exec) {
                owned.indexed = false;
            }
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
        self.owned.remove(&exec);
        self.closed.retain(|e| *e != exec);
    }

    /// How long until some execution wants to be woken.
    fn next_due(&self) -> Duration {
        let timers = self.owned.values().filter_map(Owned::wake).map(|(_, at)| clock::until(at));
        let room = self.owned.values().any(|o| o.waiting_for_room).then_some(QUEUE_RETRY);
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
            match self.runtime.bus.append_fact(&fact).await {
                Ok(_) => {
                    if let Some(owned) = self.owned.get_mut(&exec) {
                        owned.fired.insert((timer, at));
                    }
                }
                Err(error) => {
                    tracing::warn!(%exec, timer, %error, "a timer's fact was not stored; trying again")
                }
            }
        }
        let waiting: Vec<ExecutionId> =
            self.owned.iter().filter(|(_, o)| o.waiting_for_room).map(|(exec, _)| *exec).collect();
        for exec in waiting {
            if let Err(error) = self.queue_open(exec).await {
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

/// Reads what the log holds beyond what is known.
async fn catch_up(runtime: &Runtime, history: &mut History) -> Result<(), bus::Error> {
    // A fact folded optimistically may not have been the first: begin anew from the log.
    *history = History::new(history.exec);
    for stored in runtime.bus.read_execution(history.exec, 0).await? {
        fold(history, &stored);
    }
    Ok(())
}

/// Takes jobs off the queues that the decision made pointless, and tells workers at once.
async fn withdraw(runtime: &Runtime, exec: ExecutionId, owned: &mut Owned, record: &Record) {
    let cancelled: Vec<&EffectId> = record
        .events
        .iter()
        .filter_map(|event| match event {
            Event::EffectCancelled(cancelled) => Some(&cancelled.effect),
            _ => None,
        })
        .collect();
    if cancelled.is_empty() {
        return;
    }
    for effect in cancelled {
        if let Some((_, stream, sequence)) = owned.queued.remove(effect)
            && let Err(error) = runtime.bus.unqueue(stream, sequence).await
        {
            tracing::debug!(%exec, %effect, %error, "a cancelled job stays in its queue; its result will be ignored");
        }
    }
    if let Err(error) = runtime.bus.announce_cancel(exec).await {
        tracing::debug!(%exec, %error, "workers were not told of a cancel; their results will be ignored");
    }
}

/// The messages of the executions that an execution continues, oldest first.
async fn conversation(runtime: &Runtime, from: Option<ExecutionId>) -> Result<Vec<Message>, bus::Error> {
    let mut parts = Vec::new();
    let mut next = from;
    while let Some(exec) = next.filter(|_| parts.len() < CONVERSATION_DEPTH_MAX) {
        let mut history = History::new(exec);
        catch_up(runtime, &mut history).await?;
        parts.push(history.execution.context.messages().to_vec());
        next = history.execution.request.as_deref().and_then(|r| r.conversation_id);
    }
    // The newest request brings its own system message.
    Ok(parts.into_iter().rev().flatten().filter(|m| m.role != Role::System).collect())
}
