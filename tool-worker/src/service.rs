//! The shell: takes tool jobs for free slots, carries them out, and puts the result into the log before it takes the
//! job off the queue. A crash between the two repeats a call that only reads; its result is stored once. Of any other
//! call the ledger tells what came of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use runtime::bus::{self, Bus, Delivery, JobQueue, ObjectError};
use runtime::{Cache, Runtime, Tasks, clock};
use schemas::fact::{Fact, FactBody, FailureClass, Sandbox, ToolCompleted, ToolFailed};
use schemas::presence::{Confinement, Hold, Holds, Worker};
use schemas::rpc::{self, Analyse, FindWorkspace, Outline, Refusal, Reply};
use schemas::{ToolJob, stream, subject};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::calls::Calls;
use crate::commands;
use crate::config::Config;
use crate::executor::{Analyst, Executor, Library};
use crate::failure::Failure;
use crate::ledger::Ended;
use crate::toolbox::Toolbox;
use crate::traced;
use crate::web::Web;
use crate::workspace::{self, Workspace};
use crate::{code, mcp, memory, plugins};

/// Why the worker does not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus does not do what is needed.
    #[error(transparent)]
    Bus(#[from] bus::Error),
    /// A configured workspace root cannot be used.
    #[error(transparent)]
    Workspace(#[from] workspace::Error),
    /// A figure is registered twice.
    #[error("register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A setting is wrong; the text names it.
    #[error("{0}")]
    Settings(String),
}

/// How often the presence is renewed: twice may be missed.
const RENEW_EVERY: Duration = Duration::from_secs(stream::WORKER_ENTRY_TTL.as_secs() / 3);
/// How long the analysis worker may take; its own limit on parsing is shorter.
const ANALYSIS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a broken queue is left alone before it is opened again.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// How long a job waits for another try when its result could not be stored.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Starts to serve and returns; the tasks live in `runtime` until shutdown. Without a working sandbox the worker
/// serves all the same and refuses each call with the reason.
pub async fn serve(config: Config, runtime: Runtime) -> Result<(), Error> {
    let Runtime { bus, tasks, metrics, cache } = runtime.clone();
    let executor = Executor::start(&config, analyst(bus.clone()), library(bus.clone())).await?;
    config.check().map_err(Error::Settings)?;
    Box::pin(equip(&executor, &config, &bus)).await.map_err(Error::Settings)?;
    plugins::start(&config, &executor, &tasks).await;
    let servers = mcp::start(&config, &executor).await.map_err(Error::Settings)?;
    let slots = config.slots.clamp(1, 64);
    let id = format!("tool-{}", clock::process_token());
    let calls = Calls::new(executor, &id, &config, runtime)?;
    let shell = Arc::new(Shell { id, bus: bus.clone(), calls, held: Mutex::default() });
    match shell.calls.executor.sandbox() {
        Ok(sandbox) => {
            sandbox.register(&metrics)?;
            let (tier, enforced) = (sandbox.tier(), sandbox.enforced().join(" "));
            tracing::info!(worker = shell.id, slots, tier, enforced, "carrying out tool calls, confined");
            if let Err(reason) = sandbox.for_commands() {
                tracing::warn!(worker = shell.id, reason, "run_command and plugins that are programs are refused");
            }
        }
        Err(reason) => tracing::error!(worker = shell.id, reason, "no sandbox: every tool call is refused"),
    }
    // Signs of life and cancels matter as long as work is in hand, which is neither the soft nor the hard token.
    let alive = Tasks::new();
    let holder = shell.clone();
    bus.serve_liveness(&alive, &shell.id, move || holder.holds()).await?;
    let toolbox = shell.calls.executor.toolbox().clone();
    bus.serve(&tasks, subject::RPC_TOOLS, move |(): ()| std::future::ready(toolbox.now().listing())).await?;
    let finder = shell.clone();
    let find =
        move |question: FindWorkspace| std::future::ready(found(finder.calls.executor.workspace(&question.name)));
    bus.serve(&tasks, subject::RPC_WORKSPACE, find).await?;
    let mut cancels = bus.cancels().await?;
    let canceller = shell.clone();
    alive.spawn(async move {
        while let Some(exec) = cancels.next().await {
            canceller.cancel(exec);
        }
    });
    let worker = Worker {
        id: shell.id.clone(),
        role: "tool".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        slots,
        models: Vec::new(),
        tools: Vec::new(),
        inference: None,
        sandbox: Some(confinement(&shell.calls.executor)),
        refused: Vec::new(),
        vectors: None,
        cache: None,
    };
    announce(&bus, &tasks, worker, cache, shell.calls.executor.toolbox()).await?;
    let queue = bus.tool_jobs().await?;
    let free = Arc::new(Semaphore::new(slots as usize));
    let (intake, working) = (take_jobs(shell.clone(), tasks.clone(), queue, free.clone()), alive.hard());
    tasks.spawn(async move {
        // Also when this task is dropped at the hard token.
        let _until_drained = working.drop_guard();
        intake.await;
        let _all_slots = free.acquire_many(slots).await;
        // Before the sandbox: their boxes are held open.
        servers.close().await;
        if let Ok(sandbox) = shell.calls.executor.sandbox() {
            sandbox.close().await;
        }
    });
    Ok(())
}

/// Adds the tools that depend on the configuration.
async fn equip(executor: &Executor, config: &Config, bus: &Bus) -> Result<(), String> {
    let web = Web::new(config, executor.boxes())?.tools();
    let run_command = commands::tool(config, &executor.boxes(), executor.roots()).await;
    let of_index = code::tools(bus).into_iter().chain(memory::tools(bus, executor.roots()));
    let more = web.into_iter().chain([run_command]).chain(of_index);
    executor.toolbox().change(|registry| {
        let registry =
            more.into_iter().try_fold(registry.clone(), |registry, tool| registry.without(&tool.name).with(tool));
        registry.map_err(|error| error.to_string()).map(|registry| registry.asking(&config.approve))
    })?;
    for name in executor.toolbox().now().asked_for_and_missing() {
        tracing::warn!(name, "tools.approve names a tool that is not there, or not yet");
    }
    Ok(())
}

struct Shell {
    id: String,
    bus: Bus,
    calls: Calls,
    held: Mutex<BTreeMap<Hold, CancellationToken>>,
}

/// Pulls one job for each free slot, until the soft token falls.
async fn take_jobs(shell: Arc<Shell>, tasks: Tasks, mut queue: JobQueue<ToolJob>, free: Arc<Semaphore>) {
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
                let within = traced::within(&delivery.job);
                tasks.spawn(carry_out(shell.clone(), delivery, slot).instrument(within));
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "the tool queue broke; opening it again");
                tokio::select! {
                    () = soft.cancelled() => return,
                    () = tokio::time::sleep(REOPEN_AFTER) => {}
                }
                if let Ok(reopened) = shell.bus.tool_jobs().await {
                    queue = reopened;
                }
            }
        }
    }
}

/// One job from its delivery to its verdict.
async fn carry_out(shell: Arc<Shell>, delivery: Delivery<ToolJob>, _slot: OwnedSemaphorePermit) {
    let job = &delivery.job;
    let hold = Hold { exec: job.exec, effect: job.effect.clone(), attempt: job.attempt, worker: shell.id.clone() };
    let (held, taken_at) = (Held::new(&shell, hold.clone()), clock::now());
    if let Err(error) = shell.bus.claim(&hold).await {
        tracing::debug!(%error, "a claim was not announced");
    }
    let outcome = tokio::select! {
        () = held.cancelled.cancelled() => Err(ended(FailureClass::Cancelled, "the execution was cancelled")),
        outcome = tokio::time::timeout(clock::until(job.deadline), shell.calls.carry_out(job)) => {
            outcome.map_err(|_| ended(FailureClass::Timeout, "the execution's deadline passed"))
        }
    };
    let ended = match outcome {
        Ok(Ok(ended)) => ended,
        Ok(Err(error)) => {
            tracing::warn!(%error, exec = %hold.exec, "a tool call could not be carried out; trying again later");
            if let Err(error) = delivery.retry(RETRY_AFTER).await {
                tracing::debug!(%error, "a verdict did not arrive; the job comes again");
            }
            return;
        }
        Err(ended) => {
            if let Err(failure) = &ended.result {
                shell.calls.given_up(&job.tool, failure.class);
            }
            ended
        }
    };
    let fact = fact(&shell.id, job, ended);
    traced::record(job, &shell.id, taken_at, &fact);
    tracing::debug!(tool = job.tool, effect = %job.effect, outcome = fact.body.name(), "a tool call has ended");
    // Publish before ack: a crash in between repeats the call, and the log stores its result once.
    let verdict = match shell.bus.append_fact(&fact).await {
        Ok(_) => delivery.done().await,
        Err(error) => {
            tracing::warn!(%error, exec = %hold.exec, "a tool result was not stored; trying again later");
            delivery.retry(RETRY_AFTER).await
        }
    };
    if let Err(error) = verdict {
        tracing::debug!(%error, "a verdict did not arrive; the job comes again");
    }
}

fn fact(worker: &str, job: &ToolJob, ended: Ended) -> Fact {
    let duration_us = u64::try_from(ended.duration.as_micros()).unwrap_or(u64::MAX);
    let (effect, attempt) = (job.effect.clone(), job.attempt);
    let (worker, sandbox, full) = (worker.to_owned(), ended.sandbox, ended.full);
    let body = match ended.result {
        Ok(result) => {
            FactBody::ToolCompleted(ToolCompleted { full, effect, attempt, worker, result, duration_us, sandbox })
        }
        Err(Failure { class, detail }) => {
            FactBody::ToolFailed(ToolFailed { effect, attempt, worker, class, detail, duration_us, sandbox })
        }
    };
    let mut fact = Fact::new(job.exec, clock::now(), body);
    fact.trace.clone_from(&job.trace);
    fact
}

fn ended(class: FailureClass, detail: &str) -> Ended {
    Ended {
        result: Err(Failure { class, detail: detail.to_owned() }),
        full: None,
        duration: Duration::ZERO,
        sandbox: Sandbox::default(),
    }
}

/// What this worker holds, for as long as it holds it.
struct Held<'a> {
    shell: &'a Shell,
    hold: Hold,
    cancelled: CancellationToken,
}

impl<'a> Held<'a> {
    fn new(shell: &'a Shell, hold: Hold) -> Self {
        let cancelled = CancellationToken::new();
        shell.held().insert(hold.clone(), cancelled.clone());
        Self { shell, hold, cancelled }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.shell.held().remove(&self.hold);
    }
}

impl Shell {
    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<Hold, CancellationToken>> {
        self.held.lock().expect("no panic while the lock is held")
    }

    fn holds(&self) -> Holds {
        Holds { effects: self.held().keys().cloned().collect() }
    }

    fn cancel(&self, exec: schemas::ExecutionId) {
        for (_, cancelled) in self.held().iter().filter(|(hold, _)| hold.exec == exec) {
            cancelled.cancel();
        }
    }
}

/// How calls are confined, for those who look at the workers.
fn confinement(executor: &Executor) -> Confinement {
    match executor.sandbox() {
        Ok(sandbox) => {
            let (commands, commands_refused) = match sandbox.for_commands() {
                Ok(enforced) => (enforced.to_vec(), None),
                Err(reason) => (Vec::new(), Some(reason.to_owned())),
            };
            Confinement {
                tier: sandbox.tier().to_owned(),
                enforced: sandbox.enforced().to_vec(),
                refused: None,
                commands,
                commands_refused,
            }
        }
        Err(reason) => Confinement {
            tier: "none".to_owned(),
            enforced: Vec::new(),
            refused: Some(reason.to_owned()),
            commands: Vec::new(),
            commands_refused: Some(reason.to_owned()),
        },
    }
}

/// Writes the presence again and again, and whenever tools come or go; withdraws it when no more work is taken.
async fn announce(bus: &Bus, tasks: &Tasks, worker: Worker, cache: Cache, toolbox: &Toolbox) -> Result<(), Error> {
    let bucket = bus.bucket(stream::BUCKET_WORKERS).await?;
    let (soft, mut changes) = (tasks.soft(), toolbox.changes());
    tasks.spawn(async move {
        loop {
            let registry = changes.borrow_and_update().clone();
            let (tools, refused) = (registry.listing(), registry.refused());
            let cache = Some(cache.state().await);
            let entry = schemas::wire::encode(&Worker { tools, refused, cache, ..worker.clone() });
            if let Err(error) = bucket.put(&worker.id, entry.into()).await {
                tracing::warn!(%error, "the presence was not renewed");
            }
            tokio::select! {
                () = soft.cancelled() => break,
                () = tokio::time::sleep(RENEW_EVERY) => {}
                // The toolbox lives as long as the shell, which ends after this task.
                Ok(()) = changes.changed() => {}
            }
        }
        if let Err(error) = bucket.delete(&worker.id).await {
            tracing::debug!(%error, "the presence was not withdrawn; it expires by itself");
        }
    });
    Ok(())
}

/// Whether tools may work there, for those who ask before they submit.
fn found(workspace: Result<Workspace, workspace::Error>) -> Reply<rpc::Workspace> {
    let error = match workspace {
        Ok(workspace) => return Reply::Ok(rpc::Workspace { path: workspace.path().display().to_string() }),
        Err(error) => error,
    };
    let code = match &error {
        workspace::Error::NoRoots | workspace::Error::BadRoot { .. } => "workspaces_absent",
        workspace::Error::Missing { .. } => "unknown_workspace",
        workspace::Error::Outside { .. } | workspace::Error::ReadOnly { .. } => "workspace_outside",
    };
    Reply::Err(Refusal { code: code.to_owned(), detail: error.to_string() })
}

/// Reads objects over the bus.
fn library(bus: Bus) -> Library {
    Arc::new(move |name| {
        let bus = bus.clone();
        Box::pin(async move {
            match bus.object(&name).await {
                Ok((content, _)) => Ok(String::from_utf8_lossy(&content).into_owned()),
                Err(ObjectError::Bus(error)) => Err(Failure::internal(format!("read object {name}: {error}"))),
                Err(error) => Err(Failure::bad_request(error.to_string())),
            }
        })
    })
}

/// Asks the analysis workers over the bus.
fn analyst(bus: Bus) -> Analyst {
    Arc::new(move |path, code| {
        let bus = bus.clone();
        Box::pin(async move {
            let question = Analyse { path, code };
            let answer = bus.ask::<_, Reply<Outline>>(subject::RPC_ANALYSIS, &question, ANALYSIS_TIMEOUT);
            match answer.await {
                Ok(Reply::Ok(outline)) => Ok(outline),
                Ok(Reply::Err(refusal)) => Err(Failure::bad_request(refusal.detail)),
                Err(bus::Error::NoResponders(_)) => Err(Failure::internal("no analysis worker is running")),
                Err(error) => Err(Failure::internal(format!("the analysis worker did not answer: {error}"))),
            }
        })
    })
}
