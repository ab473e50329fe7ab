//! Whether the holders of open effects are still there.
//!
//! Workers claim what they take and say, when asked, what they hold. A worker that nobody answers for is gone: each
//! effect it held is reported lost, and the core asks again at once. Nothing here decides; a wrong report of a loss
//! costs a second attempt, whose result is fenced like any other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures::StreamExt;
use runtime::{Runtime, bus, clock, lines};
use schemas::fact::EffectLost;
use schemas::presence::{Hold, Holds};
use schemas::trace::Context;
use schemas::{EffectId, ExecutionId, Fact, FactBody, stream};
use tracing::Instrument as _;

use crate::config::Config;
use crate::execution::Execution;
use crate::service::Metrics;
use crate::traced;

/// How long a worker may take to answer. One that is busy and answers later loses nothing; but a question that was on its
/// way to a worker when it died is never answered, and holds up the next round, which finds it gone.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(150);
/// How long a holder may deny an effect before it counts as lost: its result may be on its way.
const DENIED_FOR: Duration = Duration::from_secs(2);
/// How long an effect may be without a holder, its job handed out, before it counts as lost.
const UNHELD_FOR: Duration = Duration::from_millis(1_500);

type Key = (ExecutionId, EffectId, u32);

/// A lost effect.
struct Lost {
    key: Key,
    /// Who held it, when known.
    holder: Option<String>,
    /// Where its execution stands in a trace.
    context: Option<Context>,
}

/// Where a job was queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) stream: &'static str,
    pub(crate) subject: String,
    pub(crate) sequence: u64,
}

struct Watched {
    /// None while it is being queued.
    place: Option<Place>,
    holder: Option<String>,
    /// Since when nobody is known to hold it.
    unheld_since: Instant,
    /// Where its execution stands in a trace.
    context: Option<Context>,
}

/// Watches the holders of open effects. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Liveness {
    watched: Arc<Mutex<BTreeMap<Key, Watched>>>,
}

impl Liveness {
    /// Starts listening to claims and asking workers.
    pub(crate) async fn start(config: &Config, runtime: &Runtime, metrics: &Metrics) -> Result<Self, bus::Error> {
        let this = Self { watched: Arc::default() };
        let mut claims = runtime.bus.claims().await?;
        let listener = this.clone();
        runtime.tasks.spawn_background(async move {
            while let Some(hold) = claims.next().await {
                listener.held(&hold);
            }
        });
        let (asker, runtime_, metrics, every) =
            (this.clone(), runtime.clone(), metrics.clone(), Duration::from_millis(config.liveness_every_ms));
        runtime.tasks.spawn(async move {
            let soft = runtime_.tasks.soft();
            while soft.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
                if !asker.lock().is_empty() {
                    asker.round(&runtime_, &metrics).await;
                }
            }
        });
        Ok(this)
    }

    /// The job of an effect's attempt is about to be queued: whoever takes it may say so before the queue has answered.
    pub(crate) fn expect(&self, execution: &Execution, effect: &EffectId, attempt: u32) {
        self.entry(execution, effect, attempt, |_| {});
    }

    /// An attempt of an effect is open and its job queued.
    pub(crate) fn watch(&self, execution: &Execution, effect: &EffectId, attempt: u32, place: &Place) {
        self.entry(execution, effect, attempt, |watched| {
            // Queued anew after a queue was lost, it has another place.
            if watched.place.as_ref() != Some(place) {
                (watched.place, watched.unheld_since) = (Some(place.clone()), clock::instant());
            }
        });
    }

    fn entry(&self, execution: &Execution, effect: &EffectId, attempt: u32, then: impl FnOnce(&mut Watched)) {
        let Some(exec) = execution.exec else { return };
        let watched = || {
            let (unheld_since, context) = (clock::instant(), traced::place(execution));
            Watched { place: None, holder: None, unheld_since, context }
        };
        then(self.lock().entry((exec, effect.clone(), attempt)).or_insert_with(watched));
    }

    /// Nothing of an execution needs watching until it is watched again.
    pub(crate) fn forget(&self, exec: ExecutionId) {
        self.lock().retain(|(e, ..), _| *e != exec);
    }

    fn held(&self, hold: &Hold) {
        let key = (hold.exec, hold.effect.clone(), hold.attempt);
        if let Some(watched) = self.lock().get_mut(&key) {
            watched.holder = Some(hold.worker.clone());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Watched>> {
        self.watched.lock().expect("no panic while the lock is held")
    }

    /// Asks every worker once and reports what is lost.
    async fn round(&self, runtime: &Runtime, metrics: &Metrics) {
        let workers = self.workers(runtime).await;
        let answers = futures::future::join_all(workers.into_iter().map(|id| async {
            let answer = runtime.bus.ask_worker(&id, ANSWER_TIMEOUT).await;
            (id, answer)
        }));
        let mut gone = BTreeSet::new();
        let mut present = BTreeMap::new();
        for (id, answer) in answers.await {
            match answer {
                Ok(Some(holds)) => drop(present.insert(id, holds)),
                Ok(None) => drop(gone.insert(id)),
                Err(error) => self.silent(&id, &error),
            }
        }
        let (mut lost, unheld) = self.compare(&gone, &present);
        lost.extend(self.orphans(runtime, unheld).await);
        for lost in lost {
            let within = lines::within(lost.context, Some(lost.key.0));
            self.report(runtime, metrics, lost).instrument(within).await;
        }
    }

    /// A worker did not answer in time: that is logged of each effect that it holds, as a part of its execution.
    fn silent(&self, worker: &str, error: &bus::Error) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let holds = |watched: &Watched| watched.holder.as_deref() == Some(worker);
        let held: Vec<_> = {
            let watched = self.lock();
            let held = watched.iter().filter(|(_, watched)| holds(watched));
            held.map(|(key, watched)| (key.clone(), watched.context)).collect()
        };
        for ((exec, effect, attempt), context) in held {
            lines::within(context, Some(exec)).in_scope(|| {
                tracing::debug!(%effect, attempt, worker, %error, "its worker gave no sign of life in time");
            });
        }
    }

    /// Workers worth asking: known holders and everybody who registered.
    async fn workers(&self, runtime: &Runtime) -> BTreeSet<String> {
        let mut workers: BTreeSet<String> = self.lock().values().filter_map(|w| w.holder.clone()).collect();
        if let Ok(entries) = runtime.bus.entries(stream::BUCKET_WORKERS, ">").await {
            workers.extend(entries.into_iter().map(|(id, _)| id));
        }
        workers
    }

    /// Brings what is known up to date. Returns what is lost for sure, and what nobody is known to hold.
    fn compare(&self, gone: &BTreeSet<String>, present: &BTreeMap<String, Holds>) -> (Vec<Lost>, Vec<(Lost, Place)>) {
        let now = clock::instant();
        let (mut lost, mut unheld) = (Vec::new(), Vec::new());
        for holds in present.values() {
            holds.effects.iter().for_each(|hold| self.held(hold));
        }
        for (key, watched) in self.lock().iter_mut() {
            let holds = |worker: &String| {
                present
                    .get(worker)
                    .is_none_or(|h| h.effects.iter().any(|e| (e.exec, &e.effect, e.attempt) == (key.0, &key.1, key.2)))
            };
            let of = || Lost { key: key.clone(), holder: watched.holder.clone(), context: watched.context };
            match &watched.holder {
                Some(worker) if gone.contains(worker) => lost.push(of()),
                Some(worker) if holds(worker) => watched.unheld_since = now,
                Some(_) if now.duration_since(watched.unheld_since) > DENIED_FOR => lost.push(of()),
                None if now.duration_since(watched.unheld_since) > UNHELD_FOR => {
                    unheld.extend(watched.place.clone().map(|place| (of(), place)))
                }
                _ => {}
            }
        }
        (lost, unheld)
    }

    /// Of the effects nobody holds, those whose jobs were handed out: their holder died before anybody knew it.
    async fn orphans(&self, runtime: &Runtime, unheld: Vec<(Lost, Place)>) -> Vec<Lost> {
        let mut progress = BTreeMap::new();
        for stream in unheld.iter().map(|(_, place)| place.stream).collect::<BTreeSet<_>>() {
            match runtime.bus.job_progress(stream).await {
                Ok(found) => drop(progress.insert(stream, found)),
                Err(error) => tracing::debug!(stream, %error, "a queue did not say how far it is"),
            }
        }
        let handed_out =
            |place: &Place| progress.get(place.stream).is_some_and(|p| p.handed_out(&place.subject, place.sequence));
        unheld.into_iter().filter(|(_, place)| handed_out(place)).map(|(lost, _)| lost).collect()
    }

    async fn report(&self, runtime: &Runtime, metrics: &Metrics, lost: Lost) {
        let Lost { key, holder: worker, .. } = lost;
        let (exec, effect, attempt) = key.clone();
        tracing::warn!(%exec, %effect, attempt, worker = worker.as_deref().unwrap_or("unknown"), "the worker is gone; asking another");
        let fact = Fact::new(exec, clock::now(), FactBody::EffectLost(EffectLost { effect, attempt, worker }));
        match runtime.bus.append_fact(&fact).await {
            Ok(_) => {
                metrics.lost.inc();
                self.lock().remove(&key);
            }
            Err(error) => tracing::warn!(%exec, %error, "a loss was not stored; trying again"),
        }
    }
}
