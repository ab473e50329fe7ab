//! Takes analysis jobs for free slots, carries them out, and puts the result into the log before it takes the job off the
//! queue. A crash between the two repeats a job; what it writes has the same names the second time, and the log stores its
//! result once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use runtime::bus::{self, Bus, Delivery, JobQueue};
use runtime::{Tasks, clock, lines};
use schemas::fact::{Fact, FactBody, FailureClass, Sandbox, ToolCompleted, ToolFailed};
use schemas::presence::{Hold, Holds};
use schemas::trace::Context;
use schemas::{AnalysisJob, ExecutionId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::indexer::{Failure, Indexer};

/// How long a broken queue is left alone before it is opened again.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// How long a job waits for another try when its result could not be stored.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The worker as far as its jobs go.
pub(crate) struct Jobs {
    pub(crate) id: String,
    bus: Bus,
    indexer: Indexer,
    held: Mutex<BTreeMap<Hold, CancellationToken>>,
}

impl Jobs {
    pub(crate) fn new(id: String, bus: Bus, indexer: Indexer) -> Self {
        Self { id, bus, indexer, held: Mutex::default() }
    }

    /// What this worker has in hand.
    pub(crate) fn holds(&self) -> Holds {
        Holds { effects: self.held().keys().cloned().collect() }
    }

    /// Takes jobs until the soft token falls; `alive` ends when the last of them is done.
    pub(crate) async fn start(self: Arc<Self>, slots: u32, tasks: &Tasks, alive: &Tasks) -> Result<(), bus::Error> {
        let mut cancels = self.bus.cancels().await?;
        let canceller = self.clone();
        alive.spawn(async move {
            while let Some(exec) = cancels.next().await {
                canceller.cancel(exec);
            }
        });
        let queue = self.bus.analysis_jobs().await?;
        let free = Arc::new(Semaphore::new(slots as usize));
        let (intake, working) = (self.take(tasks.clone(), queue, free.clone()), alive.hard());
        tasks.spawn(async move {
            // Also when this task is dropped at the hard token.
            let _until_drained = working.drop_guard();
            intake.await;
            let _all_slots = free.acquire_many(slots).await;
        });
        Ok(())
    }

    async fn take(self: Arc<Self>, tasks: Tasks, mut queue: JobQueue<AnalysisJob>, free: Arc<Semaphore>) {
        let soft = tasks.soft();
        loop {
            let slot = tokio::select! {
                () = soft.cancelled() => return,
                slot = free.clone().acquire_owned() => slot.expect("the semaphore is never closed"),
            };
            let next = tokio::select! {
                () = soft.cancelled() => return,
                next = queue.next() => next,
            };
            match next {
                Ok(Some(delivery)) => {
                    let within = lines::within(Context::read(&delivery.job.trace), Some(delivery.job.exec));
                    tasks.spawn(self.clone().carry_out(delivery, slot).instrument(within));
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "the analysis queue broke; opening it again");
                    tokio::select! {
                        () = soft.cancelled() => return,
                        () = tokio::time::sleep(REOPEN_AFTER) => {}
                    }
                    if let Ok(reopened) = self.bus.analysis_jobs().await {
                        queue = reopened;
                    }
                }
            }
        }
    }

    /// One job from its delivery to its verdict.
    async fn carry_out(self: Arc<Self>, delivery: Delivery<AnalysisJob>, _slot: OwnedSemaphorePermit) {
        let job = &delivery.job;
        let hold = Hold { exec: job.exec, effect: job.effect.clone(), attempt: job.attempt, worker: self.id.clone() };
        let held = Held::new(&self, hold.clone());
        if let Err(error) = self.bus.claim(&hold).await {
            tracing::debug!(%error, "a claim was not announced");
        }
        let began = clock::instant();
        let outcome = tokio::select! {
            () = held.cancelled.cancelled() => Err(failure(FailureClass::Cancelled, "the execution was cancelled")),
            outcome = tokio::time::timeout(clock::until(job.deadline), self.indexer.carry_out(job)) => {
                outcome.unwrap_or_else(|_| Err(failure(FailureClass::Timeout, "the execution's deadline passed")))
            }
        };
        let duration = clock::instant().duration_since(began);
        let fact = fact(&self.id, job, outcome, duration);
        tracing::debug!(effect = %job.effect, outcome = fact.body.name(), "a job has ended");
        // Publish before ack: a crash in between repeats the job, and the log stores its result once.
        let verdict = match self.bus.append_fact(&fact).await {
            Ok(_) => delivery.done().await,
            Err(error) => {
                tracing::warn!(%error, exec = %hold.exec, "a result was not stored; trying again later");
                delivery.retry(RETRY_AFTER).await
            }
        };
        if let Err(error) = verdict {
            tracing::debug!(%error, "a verdict did not arrive; the job comes again");
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<Hold, CancellationToken>> {
        self.held.lock().expect("no panic while the lock is held")
    }

    fn cancel(&self, exec: ExecutionId) {
        for (_, cancelled) in self.held().iter().filter(|(hold, _)| hold.exec == exec) {
            cancelled.cancel();
        }
    }
}

fn failure(class: FailureClass, detail: &str) -> Failure {
    Failure { class, detail: detail.to_owned() }
}

fn fact(worker: &str, job: &AnalysisJob, outcome: Result<String, Failure>, duration: Duration) -> Fact {
    let duration_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let (effect, attempt, worker) = (job.effect.clone(), job.attempt, worker.to_owned());
    let sandbox = Sandbox::default();
    let body = match outcome {
        Ok(result) => {
            FactBody::ToolCompleted(ToolCompleted { full: None, effect, attempt, worker, result, duration_us, sandbox })
        }
        Err(Failure { class, detail }) => {
            FactBody::ToolFailed(ToolFailed { effect, attempt, worker, class, detail, duration_us, sandbox })
        }
    };
    let mut fact = Fact::new(job.exec, clock::now(), body);
    fact.trace.clone_from(&job.trace);
    fact
}

/// What this worker holds, for as long as it holds it.
struct Held<'a> {
    jobs: &'a Jobs,
    hold: Hold,
    cancelled: CancellationToken,
}

impl<'a> Held<'a> {
    fn new(jobs: &'a Jobs, hold: Hold) -> Self {
        let cancelled = CancellationToken::new();
        jobs.held().insert(hold.clone(), cancelled.clone());
        Self { jobs, hold, cancelled }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.jobs.held().remove(&self.hold);
    }
}
