//! A worker whose model costs nothing: it does all that a real one does on the bus (announces itself, pulls one job for each
//! free slot, claims it, says what it holds, publishes each token, appends the result, acknowledges the job), and makes the
//! tokens up.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use runtime::bus::{Delivery, JobQueue};
use runtime::{Runtime, clock};
use schemas::fact::InferenceCompleted;
use schemas::presence::{Hold, Holds, Worker};
use schemas::rpc::{Model, Reply};
use schemas::token::FrameKind;
use schemas::wire::encode;
use schemas::{Fact, FactBody, FinishReason, Frame, InferenceJob, Usage, stream, subject};
use tokio::sync::{Semaphore, mpsc};

use super::{MODEL, until_closed};

/// Pullers, as that many worker processes would have.
const PULLERS: usize = 4;
/// Jobs of each puller at once.
const SLOTS: usize = 64;

#[derive(Clone)]
struct Engine {
    id: String,
    runtime: Runtime,
    held: Arc<Mutex<BTreeSet<Hold>>>,
    tokens: u64,
    every: Duration,
}

/// Serves until standard input ends.
pub(crate) async fn serve(runtime: Runtime, tokens: u64, every: Duration) -> anyhow::Result<()> {
    start(runtime, tokens, every).await?;
    println!("ready");
    until_closed().await
}

/// Serves for as long as the runtime does.
pub(crate) async fn start(runtime: Runtime, tokens: u64, every: Duration) -> anyhow::Result<()> {
    let id = format!("engine-{}", clock::process_token());
    let engine = Engine { id, runtime, held: Arc::default(), tokens, every };
    let Runtime { bus, tasks, .. } = &engine.runtime;
    let held = Arc::clone(&engine.held);
    let holds = move || Holds { effects: held.lock().expect("no panic").iter().cloned().collect() };
    bus.serve_liveness(tasks, &engine.id, holds).await?;
    for _ in 0..PULLERS {
        tasks.spawn(engine.clone().pull(bus.inference_jobs(MODEL).await?));
    }
    let models = vec![Model { name: MODEL.into(), kind: "chat".into(), window: 8_192 }];
    let (presence, entry) = (bus.bucket(stream::BUCKET_WORKERS).await?, worker(&engine.id, &models));
    presence.put(&entry.id, encode(&entry).into()).await?;
    tasks.spawn(async move {
        loop {
            tokio::time::sleep(stream::WORKER_ENTRY_TTL / 3).await;
            if let Err(error) = presence.put(&entry.id, encode(&entry).into()).await {
                return eprintln!("the engine is not announced any more: {error}");
            }
        }
    });
    bus.serve(tasks, subject::RPC_MODELS, move |(): ()| std::future::ready(Reply::Ok(models.clone()))).await?;
    Ok(())
}

impl Engine {
    async fn pull(self, mut queue: JobQueue<InferenceJob>) {
        let slots = Arc::new(Semaphore::new(SLOTS));
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await.expect("never closed");
            match queue.next().await {
                Ok(Some(delivery)) => {
                    let this = self.clone();
                    self.runtime.tasks.spawn(async move {
                        if let Err(error) = this.carry_out(delivery).await {
                            eprintln!("an answer was not given: {error}");
                        }
                        drop(slot);
                    });
                }
                Ok(None) => {}
                Err(error) => return eprintln!("the queue broke: {error}"),
            }
        }
    }

    async fn carry_out(&self, delivery: Delivery<InferenceJob>) -> anyhow::Result<()> {
        let (bus, job) = (&self.runtime.bus, &delivery.job);
        let (exec, effect, attempt) = (job.exec, job.effect.clone(), job.attempt);
        let hold = Hold { exec, effect: effect.clone(), attempt, worker: self.id.clone() };
        self.held.lock().expect("no panic").insert(hold.clone());
        bus.claim(&hold).await?;
        // Another attempt goes on behind what was published, as a real worker does.
        let before = if attempt > 1 { bus.read_tokens(exec, &effect).await? } else { Vec::new() };
        let first = before.iter().map(|frame| frame.n + frame.ids.len() as u64).max().unwrap_or(0);
        let tokens = job.sampling.max_tokens.map_or(self.tokens, u64::from);
        let mut text: String = (0..first).map(token).collect();
        let (model, mut said) = mpsc::unbounded_channel();
        let every = self.every;
        self.runtime.tasks.spawn(async move {
            let mut due = tokio::time::Instant::now();
            for n in first..tokens {
                match every.is_zero() {
                    // Others have their turn between two tokens, as in the floor.
                    true => tokio::task::yield_now().await,
                    false => {
                        due += every;
                        tokio::time::sleep_until(due).await;
                    }
                }
                if model.send(n).is_err() {
                    return;
                }
            }
        });
        while let Some(n) = said.recv().await {
            let mut frame = Frame { ids: vec![n as u32], text: token(n), ..Frame::new(attempt, n, FrameKind::Delta) };
            // As from a real worker, what has piled up while the server was behind leaves in one frame.
            while let Ok(n) = said.try_recv() {
                frame.ids.push(n as u32);
                frame.text.push_str(&token(n));
            }
            text.push_str(&frame.text);
            bus.publish_tokens(exec, &effect, &frame).await?;
            if frame.n + (frame.ids.len() as u64) < tokens {
                bus.tokens_taken().await;
            }
        }
        let answer = InferenceCompleted {
            effect,
            attempt,
            worker: self.id.clone(),
            text,
            tool_calls: Vec::new(),
            finish: FinishReason::Stop,
            usage: Usage::new(10, tokens),
            cached_tokens: 0,
            timing: Default::default(),
            logprobs: Vec::new(),
            alternatives: Vec::new(),
            cached: false,
            dropped_messages: 0,
        };
        bus.append_fact(&Fact::new(exec, clock::now(), FactBody::InferenceCompleted(answer))).await?;
        delivery.done().await?;
        self.held.lock().expect("no panic").remove(&hold);
        Ok(())
    }
}

/// What a worker says of itself.
fn worker(id: &str, models: &[Model]) -> Worker {
    Worker {
        id: id.to_owned(),
        role: "inference".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        slots: (PULLERS * SLOTS) as u32,
        models: models.to_vec(),
        tools: Vec::new(),
        inference: None,
        sandbox: None,
        refused: Vec::new(),
        vectors: None,
        cache: None,
    }
}

/// The `n`th token of every answer.
pub(crate) fn token(n: u64) -> String {
    format!("t{n} ")
}
