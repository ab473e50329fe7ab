//! The shell of the orchestrator: provisions, registers agent types, recovers what is open, and follows every
//! partition of the log.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::TryStreamExt;
use prometheus::{IntCounter, IntGauge};
use runtime::bus::provision;
use runtime::{Runtime, bus};
use schemas::{ExecutionId, Partition, stream};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::liveness::Liveness;
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
    provision(&runtime.bus).await?;
    crate::forks::serve(&runtime).await?;
    crate::agents::directory::start(&runtime, config.agents_dir.clone()).await?;
    let metrics = Metrics::new(&runtime.metrics)?;
    let liveness = Liveness::start(&config, &runtime, &metrics).await?;
    let mut partitions = BTreeMap::new();
    for partition in Partition::all() {
        let (commands, received) = mpsc::channel(COMMANDS_MAX);
        partitions.insert(partition, commands);
        let shell =
            partition::Shell::new(partition, runtime.clone(), config.clone(), metrics.clone(), liveness.clone());
        runtime.tasks.spawn_essential("orchestrator partition", shell.run(received));
    }
    recover(&runtime, &partitions).await?;
    let watched = runtime.clone();
    runtime
        .tasks
        .spawn_essential("orchestrator reconnect", async move { follow_connection(watched, partitions).await });
    Ok(())
}

/// Hands every open execution to its partition.
async fn recover(runtime: &Runtime, partitions: &BTreeMap<Partition, mpsc::Sender<Command>>) -> Result<(), bus::Error> {
    let bucket = runtime.bus.bucket(stream::BUCKET_OPEN).await?;
    let keys = bucket.keys().await.map_err(|e| bus::Error::Broken(e.to_string()))?;
    let keys: Vec<String> = keys.try_collect().await.map_err(|e| bus::Error::Broken(e.to_string()))?;
    let open = keys.iter().filter_map(|key| key.split('.').nth(1)?.parse::<ExecutionId>().ok());
    let mut count = 0;
    for exec in open {
        if let Some(commands) = partitions.get(&exec.partition()) {
            count += 1;
            // A closed channel means shutdown.
            let _ = commands.send(Command::Recover(exec)).await;
        }
    }
    if count > 0 {
        tracing::info!(executions = count, "taking up open executions");
    }
    Ok(())
}

/// After a reconnect the server may have lost its memory streams: make them again and fill them from what is open.
async fn follow_connection(
    runtime: Runtime,
    partitions: BTreeMap<Partition, mpsc::Sender<Command>>,
) -> Result<(), bus::Error> {
    let mut connections = runtime.bus.connections();
    connections.mark_unchanged();
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
        if let Err(error) = recover(&runtime, &partitions).await {
            tracing::warn!(%error, "open executions were not listed after a reconnect");
        }
    }
}
