//! The box in which every tool call runs.
//!
//! Two halves. Outside, a tier starts one box a call: [`docker`] a container of our own image, [`bubblewrap`] a process in
//! fresh namespaces; in both the workspace is read-only and there is nothing else to see. It keeps the time and the size of
//! the answer. Inside, the runner locks itself up further (the crate `tool_runner`) before it reads the call.
//!
//! There are boxes of two kinds ([`made_for`]). One is for the built-in tools, where our own code reads a workspace. The
//! other is for commands, where any program may run: it shows programs, lets them start processes, and is made only where
//! memory and processes of the whole box are bounded. A self-test tries the escapes inside both at start; a tier that leaks
//! is never used, and nothing runs without one.
//!
//! Boxes are prepared ahead ([`pool`]), so that a call does not wait for its box to start. Each is used once, so nothing
//! that a call leaves in its box is there for another.

mod bubblewrap;
mod choice;
mod docker;
mod ending;
mod made_for;
mod metrics;
mod place;
mod pool;
mod program;
mod running;
mod spawner;
mod system;
mod user;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use runtime::{Tasks, clock};
use schemas::fact::FailureClass;
use tokio::sync::Semaphore;
use tool_runner::CONTAINER_ONLY;
use tool_runner::message::{BoxedAnswer, BoxedCall, Command, Order};

use crate::failure::Failure;
pub use choice::Choice;
use made_for::MadeFor;
pub use made_for::{Access, Limits, Surroundings};
use metrics::Metrics;
pub use place::Place;
use pool::Pool;
use running::Running;
pub use running::{Connected, End, Finished, Rest};
pub(crate) use system::unfit;

/// How often boxes that have waited too long are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(30);
/// How often containers of dead workers are looked for; one costs little while it lies there.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Boxes prepared ahead at once, so that calls in hand keep the machine.
const PREPARED_AT_ONCE: usize = 1;
/// How long a call that has taken a box has the machine for itself before another box is prepared: most are over by then,
/// and the next one comes when a model has read the result.
const PREPARE_AFTER: Duration = Duration::from_millis(20);

/// A tier that has passed its self-test, and the boxes that wait in it.
pub struct Sandbox {
    shared: Arc<Shared>,
}

struct Shared {
    tier: Tier,
    enforced: Vec<String>,
    /// The same for commands, or why there can be none.
    for_commands: Result<Vec<String>, String>,
    pool: Mutex<Pool<MadeFor, Running>>,
    preparing: Semaphore,
    tasks: Tasks,
    metrics: Metrics,
}

/// The kinds of outer halves.
enum Tier {
    Bubblewrap(Box<bubblewrap::Bubblewrap>),
    Docker(Box<docker::Docker>),
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
    fn new(
        tier: Tier,
        enforced: Vec<String>,
        for_commands: Result<Vec<String>, String>,
        boxes_each: usize,
        tasks: &Tasks,
    ) -> Self {
        let metrics = Metrics::new(tier.name());
        let shared = Arc::new(Shared {
            tier,
            enforced,
            for_commands,
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

    /// What is in force around every command, or why none is carried out here.
    pub fn for_commands(&self) -> Result<&[String], &str> {
        self.shared.for_commands.as_deref().map_err(String::as_str)
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
        workspace: &Place,
        call: &BoxedCall,
        timeout: Duration,
    ) -> Result<BoxedAnswer, Failure> {
        let (shared, made_for) = (&self.shared, MadeFor::Tool(workspace.clone()));
        if let Some(warm) = shared.take(&made_for) {
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
        let cold = shared.tier.prepare(&made_for).await?;
        cold.carry_out(call, timeout).await.map_err(|trouble| shared.failure(trouble))
    }

    /// The same for a workspace that will not be seen again: nothing is prepared for another call there.
    pub(crate) async fn run_once(
        &self,
        workspace: &Place,
        call: &BoxedCall,
        timeout: Duration,
    ) -> Result<BoxedAnswer, Failure> {
        let shared = &self.shared;
        shared.metrics.cold.inc();
        let cold = shared.tier.prepare(&MadeFor::Tool(workspace.clone())).await?;
        cold.carry_out(call, timeout).await.map_err(|trouble| shared.failure(trouble))
    }

    /// Runs a command to its end in a box of its own: `given` is what it reads, and of what it writes `bytes_max` are kept.
    /// Dropping the future ends the box. A command is started once: if its box is lost, that is the result.
    pub async fn command(
        &self,
        surroundings: &Surroundings,
        command: Command,
        given: &[u8],
        timeout: Duration,
        bytes_max: usize,
    ) -> Result<Finished, Failure> {
        let prepared = self.prepared(surroundings).await?;
        let finished = prepared.finish(&Order::Run(command), given, timeout, bytes_max).await;
        finished.map_err(|trouble| self.shared.failure(trouble))
    }

    /// Starts a command that goes on running, and connects with it.
    pub async fn connect(&self, surroundings: &Surroundings, command: Command) -> Result<Connected, Failure> {
        let prepared = self.prepared(surroundings).await?;
        prepared.connect(&Order::Run(command)).await.map_err(|trouble| self.shared.failure(trouble))
    }

    /// Finds an image and the variables it sets. The id is what a command's surroundings should name, so that another
    /// image of the same name is not taken for it. The reason of a failure says what to do.
    pub async fn image(&self, name: &str) -> Result<(String, Vec<String>), String> {
        match &self.shared.tier {
            Tier::Docker(docker) => docker.image(name).await,
            Tier::Bubblewrap(_) => {
                Err(format!("the image {name} needs a Docker engine, and the sandbox is bubblewrap"))
            }
        }
    }

    async fn prepared(&self, surroundings: &Surroundings) -> Result<Running, Failure> {
        let shared = &self.shared;
        if let Err(reason) = &shared.for_commands {
            return Err(Failure::refused(format!("no command runs here: {reason}")));
        }
        if let Some(reason) = surroundings.reads.iter().find_map(|path| unfit(path)) {
            return Err(Failure::refused(reason));
        }
        let made_for = MadeFor::Command(surroundings.clone());
        if let Some(warm) = shared.take(&made_for) {
            shared.metrics.warm.inc();
            return Ok(warm);
        }
        shared.metrics.cold.inc();
        // Whatever went wrong, the command was not begun.
        let begun = |failure: Failure| match failure.class {
            FailureClass::Internal => Failure::overloaded(failure.detail),
            _ => failure,
        };
        shared.tier.prepare(&made_for).await.map_err(begun)
    }

    /// Runs one operation of the self-test in a box for commands. There is no way to run one outside.
    pub async fn probe_command(
        &self,
        surroundings: &Surroundings,
        operation: &str,
        timeout: Duration,
    ) -> Result<String, Failure> {
        let prepared = self.prepared(surroundings).await?;
        let answer = prepared.probe(operation, timeout).await.map_err(|trouble| self.shared.failure(trouble))?;
        Result::from(answer.outcome)
    }

    /// Runs one operation of the self-test in a box of its own. There is no way to run one outside.
    pub async fn probe(&self, workspace: &Path, operation: &str, timeout: Duration) -> Result<String, Failure> {
        let place = looked_at(workspace)?;
        Result::from(self.run(&place, &BoxedCall::probe(operation), timeout).await?.outcome)
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
        let alone = docker.prepare(&MadeFor::Tool(looked_at(workspace)?), &[CONTAINER_ONLY]).await?;
        let answer = alone.carry_out(&BoxedCall::probe(operation), timeout).await;
        Result::from(answer.map_err(|trouble| self.shared.failure(trouble))?.outcome)
    }

    /// Ends every box and waits until all are gone. Calls that come later get boxes of their own.
    pub async fn close(&self) {
        let waiting = self.shared.pool().close();
        drop(waiting);
        self.shared.tasks.stop();
        self.shared.tier.close().await;
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
    fn pool(&self) -> MutexGuard<'_, Pool<MadeFor, Running>> {
        self.pool.lock().expect("no panic while the lock is held")
    }

    /// A box that waited, if there is one, and others on their way.
    fn take(self: &Arc<Self>, made_for: &MadeFor) -> Option<Running> {
        loop {
            let taken = self.pool().take(made_for, clock::instant());
            for _ in 0..taken.prepare {
                self.tasks.spawn(prepare(Arc::downgrade(self), self.tasks.clone(), made_for.clone()));
            }
            self.count();
            let mut found = taken.found?;
            // One that died while it waited is as good as none.
            if found.alive() {
                return Some(found);
            }
        }
    }

    fn failure(&self, trouble: Trouble) -> Failure {
        match trouble {
            Trouble::Failed(failure) => failure,
            Trouble::Lost(why) => {
                self.metrics.lost.inc();
                tracing::error!(tier = self.tier.name(), why, "a call lost its box");
                Failure::internal(why)
            }
        }
    }

    fn count(&self) {
        let waiting = self.pool().waiting();
        self.metrics.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }
}

/// Prepares one box for later. What fails here fails again, and says so, when a call needs the box.
async fn prepare(shared: Weak<Shared>, tasks: Tasks, made_for: MadeFor) {
    let prepared = async {
        tokio::time::sleep(PREPARE_AFTER).await;
        let shared = shared.upgrade()?;
        let _turn = shared.preparing.acquire().await.expect("the semaphore is never closed");
        Some(shared.tier.prepare(&made_for).await)
    };
    let soft = tasks.soft();
    let prepared = tokio::select! {
        () = soft.cancelled() => None,
        prepared = prepared => prepared,
    };
    let (Some(prepared), Some(shared)) = (prepared, shared.upgrade()) else { return };
    let unwanted = match prepared {
        Ok(waiting) => shared.pool().put(&made_for, clock::instant(), waiting),
        Err(failure) => {
            tracing::debug!(%failure, "no box was prepared");
            shared.pool().failed(&made_for);
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

fn looked_at(workspace: &Path) -> Result<Place, Failure> {
    Place::at(workspace).map_err(|error| Failure::internal(format!("the workspace cannot be opened: {error}")))
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

    /// What it enforces around commands besides; why it can run none.
    fn bounded(&self) -> Result<&[String], &str> {
        match self {
            Self::Bubblewrap(bubblewrap) => bubblewrap.bounded(),
            Self::Docker(docker) => docker.bounded().map(|()| &[][..]),
        }
    }

    async fn prepare(&self, made_for: &MadeFor) -> Result<Running, Failure> {
        match self {
            Self::Bubblewrap(bubblewrap) => bubblewrap.prepare(made_for).await,
            Self::Docker(docker) => docker.prepare(made_for, &[]).await,
        }
    }

    async fn close(&self) {
        match self {
            Self::Bubblewrap(bubblewrap) => bubblewrap.close().await,
            Self::Docker(docker) => docker.close().await,
        }
    }
}
