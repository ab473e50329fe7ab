//! What the shell does about decisions: queues jobs, asks for children, withdraws what is no longer wanted, tells
//! parents, and keeps the index of open executions. All of it follows from the log and may be done again at any time.

use std::collections::{BTreeMap, BTreeSet};

use prometheus::IntGauge;
use runtime::bus::{Kind, Stored};
use runtime::{Runtime, bus, clock};
use schemas::api::{ExecutionEnd, Problem};
use schemas::chat::{Message, Role};
use schemas::job::Job;
use schemas::wire::{Nanos, encode};
use schemas::{EffectId, Event, ExecutionId, Record, stream, subject};

use crate::completion::Asking;
use crate::execution::Execution;
use crate::history::{History, Snapshot};
use crate::liveness::{Liveness, Place};
use crate::service::Metrics;
use crate::step::Kept;
use crate::useless;
use crate::work::{self, Order};

/// How many conversations may be chained.
const CONVERSATION_DEPTH_MAX: usize = 64;
/// Decisions between two snapshots of an execution: reading that many again takes a few milliseconds.
const SNAPSHOT_EVERY: u64 = 32;

/// An open execution and what the shell did about it.
pub(crate) struct Owned {
    pub(crate) history: History,
    /// What was done about open effects.
    pub(crate) placed: BTreeMap<EffectId, Placed>,
    /// Timers whose facts are on their way.
    pub(crate) fired: BTreeSet<(String, Nanos)>,
    /// An effect found its queue full.
    pub(crate) full: bool,
    /// When to try again then.
    pub(crate) room_at: Option<Nanos>,
    /// Whether and when a gateway is asked what its request comes to.
    pub(crate) asking: Asking,
    /// Its submission, while that is how a successor finds it.
    pub(crate) kept: Option<Kept>,
    /// Counts it among the open ones.
    pub(crate) open: Option<Open>,
    /// Decisions when it was last written to the index; none when it is not there.
    pub(crate) indexed: Option<u64>,
    /// Its parent, and whoever asked for a reply, have been told of its end.
    pub(crate) reported: bool,
    /// Somebody else may have owned it meanwhile.
    pub(crate) distrusted: bool,
    /// Children that were told to end.
    pub(crate) dismissed: BTreeSet<ExecutionId>,
}

/// An effect whose order was given.
pub(crate) struct Placed {
    attempt: u32,
    /// Its job; none for a child.
    job: Option<Place>,
}

impl Owned {
    pub(crate) fn new(exec: ExecutionId) -> Self {
        Self {
            history: History::new(exec),
            placed: BTreeMap::new(),
            fired: BTreeSet::new(),
            full: false,
            room_at: None,
            asking: Asking::default(),
            kept: None,
            open: None,
            indexed: None,
            reported: false,
            distrusted: false,
            dismissed: BTreeSet::new(),
        }
    }

    /// Its request is not in the log: nothing is to be done about it.
    pub(crate) const fn is_unknown(&self) -> bool {
        !self.history.execution.is_known()
    }

    pub(crate) fn wake(&self) -> Option<(String, Nanos)> {
        let armed = self.history.execution.wakes().filter(|timer| !self.fired.contains(timer));
        armed.min_by_key(|(_, at)| *at)
    }
}

/// Counts an open execution for as long as it is kept.
pub(crate) struct Open(IntGauge);

impl Open {
    pub(crate) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Carries out what executions of one partition decided.
#[derive(Clone)]
pub(crate) struct Hands {
    pub(crate) runtime: Runtime,
    pub(crate) metrics: Metrics,
    pub(crate) liveness: Liveness,
}

impl Hands {
    /// Gives the order of every open effect that has none yet, all at once.
    pub(crate) async fn order_open(&self, owned: &mut Owned) -> Result<(), bus::Error> {
        let execution = &owned.history.execution;
        let Some(exec) = execution.exec else { return Ok(()) };
        (owned.full, owned.room_at) = (false, None);
        let mut history = None;
        let mut orders = Vec::new();
        for (id, effect) in execution.effects.open_effects() {
            if let Some(placed) = owned.placed.get(id).filter(|p| p.attempt == effect.attempt) {
                if let Some(place) = &placed.job {
                    self.liveness.watch(execution, id, effect.attempt, place);
                }
                continue;
            }
            if history.is_none() {
                history = Some(self.conversation(&owned.history).await?);
            }
            let before = history.as_deref().unwrap_or(&[]);
            if let Some(order) = work::order(execution, id, effect, before, clock::now()) {
                if !matches!(order, Order::Child(_)) {
                    self.liveness.expect(execution, id, effect.attempt);
                }
                orders.push((id.clone(), effect.attempt, order));
            }
        }
        let given = futures::future::join_all(orders.iter().map(|(_, _, order)| self.give(order))).await;
        for ((id, attempt, _), job) in orders.into_iter().zip(given) {
            match job {
                Ok(job) => {
                    if let Some(place) = &job {
                        self.metrics.jobs.inc();
                        self.liveness.watch(execution, &id, attempt, place);
                        tracing::debug!(effect = %id, attempt, "its job is queued");
                    }
                    // Another attempt of the same effect may still be queued; nobody wants it.
                    if let Some(old) = owned.placed.insert(id, Placed { attempt, job }).and_then(|p| p.job) {
                        let _ = self.runtime.bus.unqueue(old.stream, old.sequence).await;
                    }
                }
                Err(bus::Error::Full(why)) => {
                    tracing::warn!(%exec, effect = %id, %why, "waiting for room in the queue");
                    owned.full = true;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns where a job was queued; none for a child.
    async fn give(&self, order: &Order) -> Result<Option<Place>, bus::Error> {
        match order {
            Order::Inference(job) => self.queue(stream::INFERENCE_JOBS, job.as_ref()).await.map(Some),
            Order::Tool(job) => self.queue(stream::TOOL_JOBS, job.as_ref()).await.map(Some),
            Order::Analysis(job) => self.queue(stream::ANALYSIS_JOBS, job.as_ref()).await.map(Some),
            Order::Child(fact) => self.runtime.bus.append_fact(fact).await.map(|_| None),
        }
    }

    async fn queue<J: Job>(&self, stream: &'static str, job: &J) -> Result<Place, bus::Error> {
        let sequence = self.runtime.bus.queue(job).await?.sequence;
        Ok(Place { stream, subject: job.subject(), sequence })
    }

    /// Takes back the orders that a decision made pointless, and tells workers at once.
    pub(crate) async fn withdraw(&self, owned: &mut Owned, record: &Record) {
        let exec = record.exec;
        let cancelled: Vec<&EffectId> = record
            .events
            .iter()
            .filter_map(|event| match event {
                Event::EffectCancelled(cancelled) => Some(&cancelled.effect),
                _ => None,
            })
            .collect();
        for effect in &cancelled {
            let job = owned.placed.remove(effect).and_then(|placed| placed.job);
            if let Some(place) = job
                && let Err(error) = self.runtime.bus.unqueue(place.stream, place.sequence).await
            {
                tracing::debug!(%exec, %effect, %error, "a cancelled job stays in its queue; its result will be ignored");
            }
        }
        if !cancelled.is_empty()
            && let Err(error) = self.runtime.bus.announce_cancel(exec).await
        {
            tracing::debug!(%exec, %error, "workers were not told of a cancel; their results will be ignored");
        }
    }

    /// Tells children that nobody wants any more to end. It follows from the state, so that who takes the execution over
    /// tells those that a dead owner did not.
    pub(crate) async fn dismiss(&self, owned: &mut Owned) -> Result<(), bus::Error> {
        let execution = &owned.history.execution;
        let unwanted = work::unwanted_children(execution).map(|(_, child)| child);
        let unwanted: Vec<ExecutionId> = unwanted.filter(|child| !owned.dismissed.contains(child)).collect();
        for child in unwanted {
            if let Some(fact) = work::dismissal(execution, child) {
                self.runtime.bus.append_fact(&fact).await?;
                self.runtime.bus.announce_cancel(child).await?;
            }
            owned.dismissed.insert(child);
        }
        Ok(())
    }

    /// Tells whoever waits for the end: the parent, by a fact in its log, and the reply subject of a plain NATS client.
    pub(crate) async fn report(&self, owned: &mut Owned) -> Result<(), bus::Error> {
        if std::mem::replace(&mut owned.reported, true) {
            return Ok(());
        }
        let execution = &owned.history.execution;
        if let Some(fact) = work::report(execution, clock::now())
            && let Err(error) = self.runtime.bus.append_fact(&fact).await
        {
            owned.reported = false;
            return Err(error);
        }
        let requested = execution.requested.as_deref().and_then(|requested| requested.reply.clone());
        let reply = execution.request.as_deref().and_then(|r| r.reply.clone()).or(requested);
        let reply = reply.filter(|subject| subject::may_be_answered(subject));
        if let (Some(subject), Some(end)) = (reply, &execution.end) {
            let exec = owned.history.exec;
            let told = ExecutionEnd {
                execution_id: exec,
                status: end.outcome,
                response: end.text.clone(),
                iterations: execution.budget.iterations,
                usage: execution.budget.usage,
                problem: execution.refused.as_deref().map(|p| Problem { execution_id: Some(exec), ..p.clone() }),
            };
            self.runtime.bus.reply(subject, serde_json::json!(told).to_string().into_bytes().into()).await?;
        }
        Ok(())
    }

    /// Notes an open execution where a successor finds it, with a snapshot now and then.
    pub(crate) async fn index(&self, owned: &mut Owned) -> Result<(), bus::Error> {
        let decisions = owned.history.decisions();
        if owned.indexed.is_some_and(|then| decisions < then + SNAPSHOT_EVERY) {
            return Ok(());
        }
        let value = match owned.history.snapshot() {
            Some(snapshot) => encode(&snapshot),
            // Between two decisions there is nothing to write yet: a mark will do until the next one comes.
            None if owned.indexed.is_none() => Vec::new(),
            None => return Ok(()),
        };
        let bucket = self.runtime.bus.bucket(stream::BUCKET_OPEN).await?;
        let put = bucket.put(index_key(owned.history.exec), value.into()).await;
        put.map_err(|e| bus::Error::Broken(e.to_string()))?;
        owned.indexed = Some(decisions);
        Ok(())
    }

    /// Takes an execution that has ended out of the index.
    pub(crate) async fn unindex(&self, owned: &mut Owned) -> Result<(), bus::Error> {
        if owned.indexed.is_none() {
            return Ok(());
        }
        let bucket = self.runtime.bus.bucket(stream::BUCKET_OPEN).await?;
        bucket.purge(index_key(owned.history.exec)).await.map_err(|e| bus::Error::Broken(e.to_string()))?;
        owned.indexed = None;
        Ok(())
    }

    /// Reads an execution: from its snapshot where there is one, else from its beginning.
    pub(crate) async fn load(&self, exec: ExecutionId) -> Result<History, bus::Error> {
        let mut history = match self.snapshot(exec).await {
            Some(snapshot) => History::restore(snapshot),
            None => History::new(exec),
        };
        for stored in self.runtime.bus.read_execution(exec, history.sequence).await? {
            if let Err(unreadable) = history.fold(&stored) {
                let sequence = unreadable.sequence;
                tracing::error!(%exec, sequence, reason = %unreadable.reason, "skipped a message of the log that cannot be read");
                // A fact is quarantined when it is delivered; a decision is delivered to nobody.
                if stored.kind == Kind::Decision
                    && let Err(error) = self.quarantine(&history.execution, &stored).await
                {
                    tracing::warn!(%exec, sequence, %error, "a decision that cannot be read is not quarantined yet");
                }
            }
        }
        Ok(history)
    }

    /// Quarantines a message if it is of no use to its execution, which has taken it in.
    pub(crate) async fn quarantine(&self, execution: &Execution, stored: &Stored) -> Result<(), bus::Error> {
        let Some((reason, detail)) = useless::reason(execution, stored) else {
            return Ok(());
        };
        let stream = subject::log_stream(stored.exec.partition());
        self.runtime.bus.quarantine(&stream, stored.sequence, reason, &detail).await.map(drop)
    }

    /// A snapshot of this version; anything else is passed over.
    async fn snapshot(&self, exec: ExecutionId) -> Option<Snapshot> {
        let bucket = self.runtime.bus.bucket(stream::BUCKET_OPEN).await.ok()?;
        let bytes = bucket.get(index_key(exec)).await.ok()??;
        Snapshot::read(&bytes).filter(|snapshot| snapshot.exec == exec)
    }

    /// The messages of the executions that this one continues, oldest first.
    async fn conversation(&self, of: &History) -> Result<Vec<Message>, bus::Error> {
        let request = of.execution.request.as_deref();
        let mut parts = Vec::new();
        let mut next = request.and_then(|r| r.conversation_id);
        while let Some(exec) = next.filter(|_| parts.len() < CONVERSATION_DEPTH_MAX) {
            let history = self.load(exec).await?;
            parts.push(history.execution.context.messages().to_vec());
            next = history.execution.request.as_deref().and_then(|r| r.conversation_id);
        }
        let mut messages: Vec<Message> = parts.into_iter().rev().flatten().collect();
        // One system message: the newest request's, or the one the conversation began with.
        let own = request.is_some_and(|r| r.messages.iter().any(|m| m.role == Role::System));
        let mut first = !own;
        messages.retain(|m| m.role != Role::System || std::mem::take(&mut first));
        Ok(messages)
    }
}

fn index_key(exec: ExecutionId) -> String {
    format!("{}.{exec}", exec.partition())
}
