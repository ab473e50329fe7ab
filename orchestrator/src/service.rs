//! The shell of the orchestrator: provisions, registers agent types, recovers what is open, and follows every
//! partition of the log.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::{IntCounter, IntGauge};
use runtime::bus::provision;
use runtime::{Runtime, bus};
use schemas::Partition;
use tokio::sync::{mpsc, watch};

use crate::carry_out::Hands;
use crate::config::Config;
use crate::liveness::Liveness;
use crate::ownership::{self, Pins, Shells};
use crate::partition::{self, Command};

/// Commands waiting for a partition: recoveries and republications. Senders wait, so nothing is dropped.
const COMMANDS_MAX: usize = 256;
/// How often a provisioning after a reconnect is tried again.
const PROVISION_RETRY: Duration = Duration::from_millis(250);

/// The orchestrator could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is out of bounds.
    #[error("{0}")]
    Config(String),
    /// The bus failed.
    #[error(transparent)]
    Bus(#[from] bus::Error),
    /// A metric was registered twice.
    #[error("register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Counted where things are published and verdicts given.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) facts: IntCounter,
    pub(crate) steps: IntCounter,
    pub(crate) decisions: IntCounter,
    pub(crate) jobs: IntCounter,
    pub(crate) lost: IntCounter,
    pub(crate) open: IntGauge,
}

impl Metrics {
    fn new(registry: &prometheus::Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let open = IntGauge::new("vlinders_executions_open", "Executions this orchestrator has open")?;
        registry.register(Box::new(open.clone()))?;
        Ok(Self {
            facts: counter("vlinders_facts_total", "Facts taken in")?,
            steps: counter("vlinders_steps_total", "Steps begun: times an execution was looked at")?,
            decisions: counter("vlinders_decisions_total", "Decisions appended to the log")?,
            jobs: counter("vlinders_jobs_total", "Jobs queued")?,
            lost: counter("vlinders_effects_lost_total", "Effects whose worker was gone")?,
            open,
        })
    }
}

/// Serves the orchestrator until the soft token falls. Returns when it is ready; the work goes on in tasks.
///
/// # Errors
/// When it cannot start.
pub async fn serve(config: Config, runtime: Runtime) -> Result<(), Error> {
    config.check().map_err(Error::Config)?;
    // From before the first look: a server that comes back in the middle is noticed.
    let mut connections = runtime.bus.connections();
    connections.mark_unchanged();
    provision(&runtime.bus).await?;
    runtime.bus.collect_dead_letters(&runtime.tasks).await?;
    crate::forks::serve(&runtime).await?;
    crate::questions::serve(&runtime).await?;
    crate::agents::directory::start(&runtime, config.agents_dir.clone()).await?;
    let metrics = Metrics::new(&runtime.metrics)?;
    let liveness = Liveness::start(&config, &runtime, &metrics).await?;
    let (pins, mut partitions) = (Pins::default(), BTreeMap::new());
    for partition in Partition::all() {
        let (commands, received) = mpsc::channel(COMMANDS_MAX);
        partitions.insert(partition, commands);
        let (runtime_, metrics, liveness) = (runtime.clone(), metrics.clone(), liveness.clone());
        let shell =
            partition::Shell::new(partition, pins.clone(), Hands { runtime: runtime_, metrics, liveness }, &config);
        runtime.tasks.spawn_essential("orchestrator partition", shell.run(received));
    }
    let all = Partition::all().collect();
    ownership::recover(&runtime, &partitions, &all).await?;
    let (watched, shells) = (runtime.clone(), partitions.clone());
    runtime.tasks.spawn_essential("orchestrator owners", ownership::watch(watched, pins, shells));
    let watched = runtime.clone();
    runtime.tasks.spawn_essential("orchestrator reconnect", async move {
        follow_connection(watched, connections, partitions).await
    });
    Ok(())
}

/// After a reconnect the server may have lost its memory streams: make them again and fill them from what is open.
async fn follow_connection(
    runtime: Runtime,
    mut connections: watch::Receiver<u64>,
    partitions: Shells,
) -> Result<(), bus::Error> {
    let soft = runtime.tasks.soft();
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            changed = connections.changed() => if changed.is_err() { return Ok(()) },
        }
        while let Err(error) = provision(&runtime.bus).await {
            if matches!(error, bus::Error::Incompatible { .. }) {
                return Err(error);
            }
            tracing::warn!(%error, "the bus is not whole yet after a reconnect; trying again");
            tokio::select! {
                () = soft.cancelled() => return Ok(()),
                () = tokio::time::sleep(PROVISION_RETRY) => {}
            }
        }
        for commands in partitions.values() {
            let _ = commands.send(Command::Republish).await;
        }
        if let Err(error) = ownership::recover(&runtime, &partitions, &Partition::all().collect()).await {
            tracing::warn!(%error, "open executions were not listed after a reconnect");
        }
    }
}
