//! Results of inferences that would come out the same again: kept in this process, and for all workers where they share
//! results ([`runtime::cache`]).
//!
//! A result is known by everything that decides it: the program, the model's files, the prompt, and how it is answered.
//! Whether it may be kept was decided at the edge ([`InferenceJob::cache`]). Equal requests that come while one of them is
//! computed wait for that one, in this process or by its lease in another; when it comes to nothing, each computes for
//! itself. Nothing here is the truth: what is lost is computed again.

use std::{sync::Arc, time::Duration};

use moka::sync::Cache;
use prometheus::{IntCounterVec, Opts};
use runtime::{
    Runtime,
    cache::{Lease, Leased, Space},
    clock,
};
use schemas::{
    InferenceJob, Message, Sampling, ToolSpec,
    chat::Truncation,
    wire::{Nanos, decode, encode},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    engine::Outcome,
    sharing::{Key, Part, Promise, UnderWay},
};

/// Part of every key: another number where the same request is answered otherwise, or kept in another form.
const VERSION: u32 = 1;
/// Bytes of results kept in this process.
const MEMORY_BYTES_MAX: u64 = 32 << 20;
/// Bytes of one result for others: beyond it, sending it around costs more than it saves others.
const ENTRY_BYTES_MAX: usize = 256 << 10;
/// How long others may take to say what they hold: the engine would have begun by then.
const LOOK_UP_MAX: Duration = Duration::from_millis(250);
/// Pauses between looks for what another worker computes: they double up to the longest.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// How long a request waits for an equal one of another worker: then it might as well have been computed here.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The results known to this worker.
pub(crate) struct Results {
    runtime: Runtime,
    kept_for: Duration,
    memory: Cache<Key, Arc<Outcome>>,
    under_way: Arc<UnderWay<Outcome>>,
    asked: IntCounterVec,
}

/// What is known of a result.
pub(crate) enum Found {
    /// All of it.
    Known(Arc<Outcome>),
    /// Nothing: compute it, and let others know.
    Nothing(Claim),
    /// Nothing, and who computed it gave none: compute it for yourself.
    Nowhere,
}

/// Who holds it computes a result that others wait for.
pub(crate) struct Claim {
    promise: Promise<Outcome>,
    /// That no other worker computes it; none where that is not known.
    lease: Option<Lease>,
}

/// Everything that decides a result.
#[derive(Serialize)]
struct Question<'a> {
    version: u32,
    program: &'static str,
    model: &'a str,
    messages: &'a [Message],
    tools: &'a [ToolSpec],
    sampling: Sampling,
    tokens_max: u64,
    truncation: Truncation,
}

/// A result as others read it.
#[derive(Serialize, Deserialize)]
struct Entry {
    at: Nanos,
    outcome: Outcome,
}

impl Results {
    /// Keeps results for this long; not at all when it is zero.
    ///
    /// # Errors
    /// Two workers share one registry.
    pub(crate) fn new(runtime: Runtime, kept_for: Duration) -> Result<Self, prometheus::Error> {
        let counted = Opts::new("vlinders_result_cache_total", "Inferences whose result could have been known already");
        let asked = IntCounterVec::new(counted, &["outcome"])?;
        runtime.metrics.register(Box::new(asked.clone()))?;
        let memory = Cache::builder()
            .max_capacity(MEMORY_BYTES_MAX)
            .weigher(|_, outcome: &Arc<Outcome>| u32::try_from(bytes(outcome)).unwrap_or(u32::MAX))
            .time_to_live(kept_for)
            .build();
        Ok(Self { runtime, kept_for, memory, under_way: UnderWay::new(), asked })
    }

    /// What the result of a job is known by; none when it may not be kept. `model` names everything about the model that
    /// decides it.
    pub(crate) fn key(&self, job: &InferenceJob, model: Option<&str>) -> Option<Key> {
        let model = model.filter(|_| job.cache && !self.kept_for.is_zero())?;
        Some(key(job, model))
    }

    /// What is known under a key. Waits while an equal request is computed; a later attempt waits for no other worker, whose
    /// lease may be that of the dead one.
    pub(crate) async fn find(&self, key: Key, attempt: u32) -> Found {
        let (how, found) = match self.under_way.join(key) {
            Part::Await(waiter) => match waiter.result().await {
                Some(outcome) => ("hit_shared", Found::Known(outcome)),
                None => ("miss", Found::Nowhere),
            },
            Part::Do(promise) => match (self.memory.get(&key), promise) {
                (Some(outcome), promise) => {
                    promise.keep(Arc::clone(&outcome));
                    ("hit_memory", Found::Known(outcome))
                }
                (None, promise) => match Box::pin(self.of_others(&key, attempt == 1)).await {
                    Ok((how, outcome)) => {
                        self.memory.insert(key, Arc::clone(&outcome));
                        promise.keep(Arc::clone(&outcome));
                        (how, Found::Known(outcome))
                    }
                    Err(lease) => ("miss", Found::Nothing(Claim { promise, lease })),
                },
            },
        };
        self.asked.with_label_values(&[how]).inc();
        found
    }

    /// The result is there: keeps it, and tells those who wait.
    pub(crate) fn keep(self: &Arc<Self>, claim: Claim, outcome: &Outcome) {
        let Claim { promise, lease } = claim;
        let (key, outcome) = (promise.key, Arc::new(outcome.clone()));
        // First the memory: who comes behind the promise looks there.
        self.memory.insert(key, Arc::clone(&outcome));
        promise.keep(Arc::clone(&outcome));
        let this = Arc::clone(self);
        self.runtime.tasks.spawn(async move { this.share(key, &outcome, lease).await });
    }

    /// What another worker knows, or computes now; else the right to compute it, if that could be had.
    async fn of_others(&self, key: &Key, waits: bool) -> Result<(&'static str, Arc<Outcome>), Option<Lease>> {
        if let Some(outcome) = self.look_up(key).await {
            return Ok(("hit_store", outcome));
        }
        let waited = async {
            let mut pause = PAUSE;
            loop {
                match self.runtime.cache.lease(Space::Results, &hex::encode(key)).await {
                    // Its last holder may have put the result between the look and the lease.
                    Leased::Yes(lease) => break self.look_up(key).await.ok_or(Some(lease)),
                    Leased::ToAnother if waits => {}
                    Leased::ToAnother | Leased::Unknown => break Err(None),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
                if let Some(outcome) = self.look_up(key).await {
                    break Ok(outcome);
                }
            }
        };
        let found = tokio::time::timeout(WAIT_MAX, waited).await.unwrap_or(Err(None));
        found.map(|outcome| ("hit_shared", outcome))
    }

    async fn look_up(&self, key: &Key) -> Option<Arc<Outcome>> {
        let key = hex::encode(key);
        let found = self.runtime.cache.get(Space::Results, &key);
        let bytes = tokio::time::timeout(LOOK_UP_MAX, found).await.ok()??;
        let entry: Entry = decode(&bytes).ok()?;
        let kept_for = i64::try_from(self.kept_for.as_nanos()).unwrap_or(i64::MAX);
        (clock::now() - entry.at < kept_for).then(|| Arc::new(entry.outcome))
    }

    async fn share(&self, key: Key, outcome: &Outcome, lease: Option<Lease>) {
        let bytes = encode(&Entry { at: clock::now(), outcome: outcome.clone() });
        if bytes.len() <= ENTRY_BYTES_MAX {
            let (cache, key) = (&self.runtime.cache, hex::encode(key));
            cache.put(Space::Results, &key, &bytes, self.kept_for, lease.as_ref()).await;
        }
    }
}

/// The hash of everything that decides the result of a job.
fn key(job: &InferenceJob, model: &str) -> Key {
    let mut sampling = Sampling { max_tokens: None, ..job.sampling.clone() };
    if sampling.is_greedy() {
        // Nothing is drawn, so nothing that tells how decides anything.
        let Sampling { temperature, top_p, top_k, min_p, seed, .. } = &mut sampling;
        (*temperature, *top_p, *top_k, *min_p, *seed) = (None, None, None, None, None);
    }
    let question = Question {
        version: VERSION,
        program: env!("CARGO_PKG_VERSION"),
        model,
        messages: &job.messages,
        tools: &job.tools,
        sampling,
        tokens_max: tokens_max(job),
        truncation: job.truncation,
    };
    Sha256::digest(encode(&question)).into()
}

/// Tokens that each answer of a job may have; 0 for as many as the window leaves.
pub(crate) fn tokens_max(job: &InferenceJob) -> u64 {
    let limits = [(job.tokens_max > 0).then_some(job.tokens_max), job.sampling.max_tokens.map(u64::from)];
    limits.into_iter().flatten().min().unwrap_or(0)
}

/// About as many as a result takes in memory.
fn bytes(outcome: &Outcome) -> usize {
    let logprobs = outcome.logprobs.iter().map(|token| 64 * (1 + token.top_logprobs.len())).sum::<usize>();
    let calls = outcome.tool_calls.iter().map(|call| 256 + call.arguments.to_string().len()).sum::<usize>();
    let own = 256 + outcome.text.len() + 12 * outcome.ids.len() + logprobs + calls;
    own + outcome.alternatives.iter().map(bytes).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use schemas::{EffectId, Role, chat::Priority, wire::Schema};

    use super::*;

    fn job(change: impl FnOnce(&mut InferenceJob)) -> InferenceJob {
        let mut job = InferenceJob {
            schema: InferenceJob::SCHEMA.to_owned(),
            exec: clock::execution_id(),
            effect: EffectId::inference(1),
            attempt: 1,
            deadline: clock::now(),
            queued_at: 0,
            trace: Default::default(),
            model: "tiny".to_owned(),
            messages: vec![Message::text(Role::User, "hello")],
            tools: Vec::new(),
            sampling: Sampling { temperature: Some(0.5), seed: Some(7), ..Sampling::default() },
            tokens_max: 40,
            user_id: None,
            purpose: Default::default(),
            priority: Priority::Normal,
            truncation: Truncation::Disabled,
            cache: true,
        };
        change(&mut job);
        job
    }

    #[test]
    fn a_result_is_known_by_what_decides_it_and_by_nothing_else() {
        let of = |change: fn(&mut InferenceJob)| key(&job(change), "model");
        let same: [fn(&mut InferenceJob); 5] = [
            |_| {},
            |job| (job.attempt, job.effect) = (2, EffectId::inference(3)),
            |job| job.user_id = Some("ann".to_owned()),
            |job| (job.priority, job.deadline) = (Priority::High, 1),
            |job| (job.sampling.max_tokens, job.tokens_max) = (Some(40), 90),
        ];
        for (index, change) in same.into_iter().enumerate() {
            assert_eq!(of(change), of(|_| {}), "{index}");
        }
        let other: [fn(&mut InferenceJob); 11] = [
            |job| job.sampling.seed = Some(8),
            |job| job.sampling.temperature = Some(0.25),
            |job| job.sampling.n = Some(2),
            |job| job.sampling.stop = vec!["x".to_owned()],
            |job| job.sampling.logprobs = true,
            |job| job.sampling.frequency_penalty = Some(0.5),
            |job| job.sampling.tool_choice = Some(schemas::chat::ToolChoice::Required),
            |job| job.sampling.response_format = Some(schemas::chat::ResponseFormat::JsonObject),
            |job| job.messages.push(Message::text(Role::User, "")),
            |job| job.tools.push(ToolSpec::new("x", "", serde_json::json!({}))),
            |job| job.tokens_max = 41,
        ];
        let mut keys = vec![of(|_| {}), key(&job(|_| {}), "another"), of(|job| job.truncation = Truncation::Auto)];
        keys.extend(other.map(of));
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all, "each of these decides something");
    }

    #[test]
    fn where_nothing_is_drawn_no_seed_decides_anything() {
        let greedy = |seed, top_p| {
            let sampling = Sampling { temperature: Some(0.0), seed, top_p, ..Sampling::default() };
            key(&job(|job| job.sampling = sampling), "model")
        };
        assert_eq!(greedy(Some(1), None), greedy(Some(2), Some(0.5)));
        assert_eq!(greedy(None, None), key(&job(|job| job.sampling = Sampling::default()), "model"));
    }
}
