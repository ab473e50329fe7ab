//! The box in which every tool call runs.
//!
//! Two halves. Outside, a tier starts one box a call: [`docker`] a container of our own image, [`bubblewrap`] a process in
//! fresh namespaces; in both the workspace is read-only and there is nothing else to see. It keeps the time and the size of
//! the answer. Inside, the runner locks itself up further (the crate `tool_runner`) before it reads the call. A self-test tries the
//! escapes inside a box at start; a tier that leaks is never used, and nothing runs without one.
//!
//! Boxes are prepared ahead ([`pool`]), so that a call does not wait for its box to start.

mod bubblewrap;
mod choice;
mod docker;
mod ending;
mod metrics;
mod pool;
mod program;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use runtime::{Tasks, clock};
use tokio::sync::Semaphore;
use tool_runner::CONTAINER_ONLY;
use tool_runner::message::{BoxedAnswer, BoxedCall};

use crate::failure::Failure;
pub use choice::Choice;
use metrics::Metrics;
use pool::{Directory, Pool};

/// How often boxes that have waited too long are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(30);
/// How often containers of dead workers are looked for; one costs little while it lies there.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Boxes prepared ahead at once, so that calls in hand keep the machine.
const PREPARED_AT_ONCE: usize = 1;

/// A tier that has passed its self-test, and the boxes that wait in it.
pub struct Sandbox {
    shared: Arc<Shared>,
}

struct Shared {
    tier: Tier,
    enforced: Vec<String>,
    pool: Mutex<Pool<Waiting>>,
    preparing: Semaphore,
    tasks: Tasks,
    metrics: Metrics,
}

/// The kinds of outer halves.
enum Tier {
    Bubblewrap(bubblewrap::Bubblewrap),
    Docker(Box<docker::Docker>),
}

/// A box that waits for its call.
enum Waiting {
    Bubblewrap(bubblewrap::Waiting),
    Docker(docker::Waiting),
}

/// Why a box gave no answer.
enum Trouble {
    /// The call failed.
    Failed(Failure),
    /// The box went away under it, for no fault of the call.
    Lost(String),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Sandbox {
    /// A tested tier with nothing prepared yet.
    fn new(tier: Tier, enforced: Vec<String>, boxes_each: usize, tasks: Tasks) -> Self {
        let metrics = Metrics::new(tier.name());
        let shared = Arc::new(Shared {
            tier,
            enforced,
            pool: Mutex::new(Pool::new(boxes_each)),
            preparing: Semaphore::new(PREPARED_AT_ONCE),
            tasks: tasks.clone(),
            metrics,
        });
        tasks.spawn(tidy(Arc::downgrade(&shared), tasks.clone()));
        Self { shared }
    }

    /// Its name, as it is written in results.
    #[must_use]
    pub fn tier(&self) -> &'static str {
        self.shared.tier.name()
    }

    /// What is in force around every call, as the self-test found it.
    #[must_use]
    pub fn enforced(&self) -> &[String] {
        &self.shared.enforced
    }

    /// Versions and the like, for people; empty when there is nothing to say.
    #[must_use]
    pub fn described(&self) -> &str {
        match &self.shared.tier {
            Tier::Bubblewrap(_) => "",
            Tier::Docker(docker) => docker.described(),
        }
    }

    /// Has its figures shown.
    pub fn register(&self, registry: &prometheus::Registry) -> Result<(), prometheus::Error> {
        self.shared.metrics.register(registry)
    }

    /// How many boxes wait for a call.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.pool().waiting()
    }

    /// Runs one call in a box of its own. Dropping the future ends the box.
    pub(crate) async fn run(
        &self,
        workspace: &Path,
        call: &BoxedCall,
        timeout: Duration,
    ) -> Result<BoxedAnswer, Failure> {
        let shared = &self.shared;
        if let Some(warm) = shared.take(workspace)? {
            shared.metrics.warm.inc();
            match warm.carry_out(call, timeout).await {
                Err(Trouble::Failed(failure)) => return Err(failure),
                Ok(answer) => return Ok(answer),
                // It may have died while it waited, and tools only read: the call is worth a box of its own.
                Err(Trouble::Lost(why)) => {
                    shared.metrics.lost.inc();
                    tracing::warn!(tier = self.tier(), why, "a box was lost; taking another");
                }
            }
        }
        shared.metrics.cold.inc();
        let cold = shared.tier.prepare(workspace).await?;
        shared.carried_out(cold, call, timeout).await
    }

    /// The same for a workspace that will not be seen again: nothing is prepared for another call there.
    pub(crate) async fn run_once(
        &self,
        workspace: &Path,
        call: &BoxedCall,
        timeout: Duration,
    ) -> Result<BoxedAnswer, Failure> {
        let shared = &self.shared;
        shared.metrics.cold.inc();
        let cold = shared.tier.prepare(workspace).await?;
        shared.carried_out(cold, call, timeout).await
    }

    /// Runs one operation of the self-test in a box of its own. There is no way to run one outside.
    pub async fn probe(&self, workspace: &Path, operation: &str, timeout: Duration) -> Result<String, Failure> {
        Result::from(self.run(workspace, &BoxedCall::probe(operation), timeout).await?.outcome)
    }

    /// The same with nothing but the container around it, to see what that withstands alone. Other tiers refuse.
    pub async fn probe_container(
        &self,
        workspace: &Path,
        operation: &str,
        timeout: Duration,
    ) -> Result<String, Failure> {
        let Tier::Docker(docker) = &self.shared.tier else {
            return Err(Failure::refused("only a container is tried alone"));
        };
        let alone = Waiting::Docker(docker.prepare(workspace, &[CONTAINER_ONLY]).await?);
        Result::from(self.shared.carried_out(alone, &BoxedCall::probe(operation), timeout).await?.outcome)
    }

    /// Ends every box and waits until all are gone. Calls that come later get boxes of their own.
    pub async fn close(&self) {
        let waiting = self.shared.pool().close();
        drop(waiting);
        self.shared.tasks.stop();
        if let Tier::Docker(docker) = &self.shared.tier {
            docker.close().await;
        }
        self.shared.metrics.waiting.set(0);
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // What is being prepared ends; what waits goes with the pool.
        self.shared.tasks.stop();
        drop(self.shared.pool().close());
    }
}

impl Shared {
    fn pool(&self) -> MutexGuard<'_, Pool<Waiting>> {
        self.pool.lock().expect("no panic while the lock is held")
    }

    /// A box that waited, if there is one, and others on their way.
    fn take(self: &Arc<Self>, workspace: &Path) -> Result<Option<Waiting>, Failure> {
        let directory = directory(workspace)?;
        loop {
            let taken = self.pool().take(workspace, directory, clock::instant());
            for _ in 0..taken.prepare {
                self.tasks.spawn(prepare(Arc::downgrade(self), self.tasks.clone(), workspace.to_owned(), directory));
            }
            self.count();
            let Some(mut found) = taken.found else { return Ok(None) };
            // One that died while it waited is as good as none.
            if found.alive() {
                return Ok(Some(found));
            }
        }
    }

    async fn carried_out(&self, waiting: Waiting, call: &BoxedCall, timeout: Duration) -> Result<BoxedAnswer, Failure> {
        waiting.carry_out(call, timeout).await.map_err(|trouble| match trouble {
            Trouble::Failed(failure) => failure,
            Trouble::Lost(why) => {
                self.metrics.lost.inc();
                tracing::error!(tier = self.tier.name(), why, "a call lost its box");
                Failure::internal(why)
            }
        })
    }

    fn count(&self) {
        let waiting = self.pool().waiting();
        self.metrics.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }
}

/// Prepares one box for later. What fails here fails again, and says so, when a call needs the box.
async fn prepare(shared: Weak<Shared>, tasks: Tasks, workspace: std::path::PathBuf, directory: Directory) {
    let prepared = async {
        let shared = shared.upgrade()?;
        let _turn = shared.preparing.acquire().await.expect("the semaphore is never closed");
        Some(shared.tier.prepare(&workspace).await)
    };
    let soft = tasks.soft();
    let prepared = tokio::select! {
        () = soft.cancelled() => None,
        prepared = prepared => prepared,
    };
    let (Some(prepared), Some(shared)) = (prepared, shared.upgrade()) else { return };
    let unwanted = match prepared {
        Ok(waiting) => shared.pool().put(&workspace, directory, clock::instant(), waiting),
        Err(failure) => {
            tracing::debug!(%failure, "no box was prepared");
            shared.pool().failed(&workspace, directory);
            None
        }
    };
    drop(unwanted);
    shared.count();
}

/// Gives up what has waited too long, and looks for what dead workers left.
async fn tidy(shared: Weak<Shared>, tasks: Tasks) {
    let soft = tasks.soft();
    let mut swept = clock::instant();
    loop {
        tokio::select! {
            () = soft.cancelled() => return,
            () = tokio::time::sleep(TIDY_EVERY) => {}
        }
        let Some(shared) = shared.upgrade() else { return };
        let now = clock::instant();
        let expired = shared.pool().expired(now);
        drop(expired);
        shared.count();
        if let Tier::Docker(docker) = &shared.tier
            && now.saturating_duration_since(swept) >= SWEEP_EVERY
        {
            docker.sweep().await;
            swept = now;
        }
    }
}

fn directory(workspace: &Path) -> Result<Directory, Failure> {
    let metadata = std::fs::metadata(workspace)
        .map_err(|error| Failure::internal(format!("the workspace cannot be opened: {error}")))?;
    Ok(Directory { device: metadata.dev(), inode: metadata.ino() })
}

impl Tier {
    fn name(&self) -> &'static str {
        match self {
            Self::Bubblewrap(_) => "bubblewrap",
            Self::Docker(_) => "docker",
        }
    }

    /// What it enforces before the runner does anything.
    fn enforced(&self) -> &[&'static str] {
        match self {
            Self::Bubblewrap(_) => &bubblewrap::ENFORCED,
            Self::Docker(docker) => docker.enforced(),
        }
    }

    async fn prepare(&self, workspace: &Path) -> Result<Waiting, Failure> {
        match self {
            Self::Bubblewrap(bubblewrap) => bubblewrap.prepare(workspace).map(Waiting::Bubblewrap),
            Self::Docker(docker) => docker.prepare(workspace, &[]).await.map(Waiting::Docker),
        }
    }
}

impl Waiting {
    fn alive(&mut self) -> bool {
        match self {
            Self::Bubblewrap(waiting) => waiting.alive(),
            Self::Docker(waiting) => waiting.alive(),
        }
    }

    async fn carry_out(self, call: &BoxedCall, timeout: Duration) -> Result<BoxedAnswer, Trouble> {
        match self {
            Self::Bubblewrap(waiting) => waiting.carry_out(call, timeout).await.map_err(Trouble::Failed),
            Self::Docker(waiting) => waiting.carry_out(call, timeout).await,
        }
    }
}
