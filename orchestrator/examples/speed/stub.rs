//! Workers that answer at once, and do everything else as the real ones do: pull one job for each free slot, claim it,
//! say what they hold when asked, append the result, wait for its acknowledgement, acknowledge the job.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use runtime::bus::{Delivery, JobQueue};
use runtime::{Runtime, clock};
use schemas::fact::{InferenceCompleted, InferenceTiming, Sandbox, ToolCompleted};
use schemas::job::Job;
use schemas::presence::{Hold, Holds};
use schemas::{EffectId, ExecutionId, Fact, FactBody, FinishReason, InferenceJob, ToolCall, ToolJob, Usage};
use tokio::sync::Semaphore;

/// The model's name, which is its pool.
pub(crate) const MODEL: &str = "stub";
/// Pullers of each kind, as that many worker processes would have.
const PULLERS: usize = 4;
/// Jobs of each puller at once.
const SLOTS: usize = 32;

/// What the stub model says: its text, and whether it asks for tools.
pub(crate) type Script = fn(turn: u32) -> Said;

/// One answer of the stub model.
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) calls: usize,
    /// What each of its tools returns.
    pub(crate) result: String,
}

/// When a step began and ended.
pub(crate) type Steps = BTreeMap<EffectId, (Instant, Instant)>;

/// The stub workers, and when each of their steps ran.
#[derive(Clone)]
pub(crate) struct Stub {
    id: String,
    runtime: Runtime,
    script: Script,
    steps: Arc<Mutex<BTreeMap<ExecutionId, Steps>>>,
    held: Arc<Mutex<BTreeSet<Hold>>>,
}

impl Stub {
    pub(crate) async fn start(runtime: Runtime, script: Script) -> anyhow::Result<Self> {
        let id = format!("stub-{}", clock::process_token());
        let this = Self { id, runtime, script, steps: Arc::default(), held: Arc::default() };
        let held = this.held.clone();
        let holds = move || Holds { effects: held.lock().expect("no panic").iter().cloned().collect() };
        this.runtime.bus.serve_liveness(&this.runtime.tasks, &this.id, holds).await?;
        for _ in 0..PULLERS {
            let (models, tools) = (this.runtime.bus.inference_jobs(MODEL).await?, this.runtime.bus.tool_jobs().await?);
            this.runtime.tasks.spawn(this.clone().pull(models, Self::infer));
            this.runtime.tasks.spawn(this.clone().pull(tools, Self::call));
        }
        Ok(this)
    }

    /// The steps of an execution that has ended.
    pub(crate) fn take(&self, exec: ExecutionId) -> Steps {
        self.steps.lock().expect("no panic").remove(&exec).unwrap_or_default()
    }

    async fn pull<J: Job>(self, mut queue: JobQueue<J>, answer: fn(&Self, &J) -> FactBody) {
        let slots = Arc::new(Semaphore::new(SLOTS));
        loop {
            let slot = slots.clone().acquire_owned().await.expect("never closed");
            match queue.next().await {
                Ok(Some(delivery)) => {
                    let this = self.clone();
                    self.runtime.tasks.spawn(async move {
                        this.carry_out(delivery, answer).await;
                        drop(slot);
                    });
                }
                Ok(None) => {}
                Err(error) => return eprintln!("a queue broke: {error}"),
            }
        }
    }

    async fn carry_out<J: Job>(&self, delivery: Delivery<J>, answer: fn(&Self, &J) -> FactBody) {
        let began = clock::instant();
        let job = &delivery.job;
        let (exec, effect, attempt) = (job.exec(), job.effect().clone(), job.attempt());
        let hold = Hold { exec, effect: effect.clone(), attempt, worker: self.id.clone() };
        self.held.lock().expect("no panic").insert(hold.clone());
        self.runtime.bus.claim(&hold).await.expect("the bus is there");
        let fact = Fact::new(exec, clock::now(), answer(self, job));
        let ended = clock::instant();
        self.steps.lock().expect("no panic").entry(exec).or_default().insert(effect, (began, ended));
        self.runtime.bus.append_fact(&fact).await.expect("the log takes facts");
        delivery.done().await.expect("the queue takes verdicts");
        self.held.lock().expect("no panic").remove(&hold);
    }

    fn infer(&self, job: &InferenceJob) -> FactBody {
        let turn = turn(&job.effect);
        let said = (self.script)(turn);
        // No two turns ask the same: an execution that repeats itself is stopped.
        let arguments = format!("{{\"turn\": {turn}}}");
        let call = |i| ToolCall::new(format!("call-{}-{i}", job.effect), format!("tool_{i}"), &arguments);
        FactBody::InferenceCompleted(InferenceCompleted {
            effect: job.effect.clone(),
            attempt: job.attempt,
            worker: self.id.clone(),
            text: said.text,
            tool_calls: (0..said.calls).map(call).collect(),
            finish: if said.calls > 0 { FinishReason::ToolCalls } else { FinishReason::Stop },
            usage: Usage::new(10, 10),
            cached_tokens: 0,
            timing: InferenceTiming::default(),
            logprobs: Vec::new(),
            alternatives: Vec::new(),
            cached: false,
            dropped_messages: 0,
        })
    }

    fn call(&self, job: &ToolJob) -> FactBody {
        FactBody::ToolCompleted(ToolCompleted {
            full: None,
            effect: job.effect.clone(),
            attempt: job.attempt,
            worker: self.id.clone(),
            result: (self.script)(turn(&job.effect)).result,
            duration_us: 0,
            sandbox: Sandbox { tier: "none".to_owned(), enforced: Vec::new() },
        })
    }
}

fn turn(effect: &EffectId) -> u32 {
    effect.as_str().split('-').next().and_then(|t| t.parse().ok()).unwrap_or(0)
}
