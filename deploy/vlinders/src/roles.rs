//! Starts roles: one by one against a NATS that is there, or all of them for `vlinders up`.

use std::process::ExitCode;
use std::time::Duration;

use gateway::Secrets;
use runtime::probe::Probe;
use runtime::{Bus, Cache, Runtime, Tasks, bus, telemetry};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::endpoint::Ready;
use crate::settings::{self, Settings, Usage};

/// How long work in hand may take to finish after a SIGTERM; a second signal ends it at once.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// A role a process can play.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    Gateway,
    Orchestrator,
    #[value(name = "inference-worker")]
    Inference,
    #[value(name = "tool-worker")]
    Tools,
    #[value(name = "analysis-worker")]
    Analysis,
}

impl Role {
    pub(crate) const ALL: [Self; 5] = [Self::Orchestrator, Self::Inference, Self::Analysis, Self::Tools, Self::Gateway];

    const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Orchestrator => "orchestrator",
            Self::Inference => "inference-worker",
            Self::Tools => "tool-worker",
            Self::Analysis => "analysis-worker",
        }
    }
}

/// One role as its own process.
pub(crate) async fn run(role: Role, options: crate::cli::Role) -> anyhow::Result<ExitCode> {
    let mut flags = Vec::new();
    if let Some(url) = &options.nats {
        flags.push(("nats", "url", toml::Value::String(url.clone())));
    }
    if let Some(http) = &options.http {
        flags.push(("gateway", "http", toml::Value::String(http.to_string())));
    }
    if let Some(grpc) = &options.grpc {
        flags.push(("gateway", "grpc", toml::Value::String(grpc.clone())));
    }
    if !options.workspace.is_empty() {
        // Tools read there, and it may be indexed.
        for section in ["tools", "analysis"] {
            flags.push((section, "workspaces", settings::path_list(&options.workspace)));
        }
    }
    flags.extend(settings::model_flags(options.models.as_deref(), &options.models_dir)?);
    if let Some(models) = &options.embedding_models {
        let found = settings::model_directories(models)?;
        flags.push(("inference", "embedding_models", settings::path_list(&found)));
    }
    if let Some(agents) = &options.agents {
        flags.push(("orchestrator", "agents_dir", toml::Value::String(agents.display().to_string())));
    }
    if let Some(tools) = &options.tools {
        flags.push(("tools", "plugins_dir", toml::Value::String(tools.display().to_string())));
    }
    let mut settings = Settings::load(options.config.as_deref(), flags)?;
    if options.json {
        settings.telemetry.format = telemetry::Format::Json;
    }
    if role == Role::Inference {
        settings::add_shipped_models(&mut settings.inference, &settings::default_data())?;
    }
    if role == Role::Analysis {
        settings::place_vectors(&mut settings.analysis, &settings::default_data());
    }
    if role == Role::Orchestrator {
        settings.projection.data = Some(settings::default_data());
        settings.projection.check().map_err(Usage)?;
    }
    settings.cache.check().map_err(Usage)?;
    match role {
        Role::Orchestrator => settings.orchestrator.check(),
        Role::Inference => settings.inference.check(),
        Role::Tools => settings.tools.check(),
        Role::Analysis => settings.analysis.check(),
        Role::Gateway => settings.gateway.check(),
    }
    .map_err(Usage)?;
    let _telemetry = telemetry::start(&settings.telemetry, role.name())?;
    settings.log();
    let mut signals = Signals::listen()?;
    let (runtime, ready) = tokio::select! {
        begun = Box::pin(begin(role, settings)) => begun?,
        // The first process of a container is ended by no signal that it does not listen to, and a start may take a while.
        () = signals.any() => return Ok(ExitCode::SUCCESS),
    };
    announce(&ready, role.name(), options.json)?;
    until_stopped(&runtime.tasks, signals).await
}

/// Connects, and serves one role; returns when it is ready.
async fn begin(role: Role, settings: Settings) -> anyhow::Result<(Runtime, Ready)> {
    let bus = Bus::connect(&settings.nats, role.name()).await?;
    let cache = Cache::open(&settings.cache, bus.clone()).map_err(Usage)?;
    let runtime = Runtime { cache, ..Runtime::new(bus) };
    runtime.bus.register_metrics(&runtime.metrics)?;
    let probe = probe(&settings.telemetry, role.name(), &runtime).await?;
    bus::provision(&runtime.bus).await?;
    let secrets = if role == Role::Gateway {
        let (secret, file) = settings::secret(None)?;
        Some(settings::secrets(&secret, file.as_deref()))
    } else {
        None
    };
    let models = settings.inference.model_names();
    let nats = settings.nats.url.clone();
    let tls = settings.gateway.tls.is_some();
    let edge = start(role, settings, secrets, &runtime).await?;
    let metrics = probe.as_ref().map(|probe| format!("http://{}", probe.address));
    if let Some(probe) = &probe {
        probe.started();
    }
    Ok((runtime, Ready { models, metrics, ..Ready::at(edge, tls, nats, None) }))
}

/// Serves metrics and health where the settings want that.
pub(crate) async fn probe(
    settings: &telemetry::Config,
    name: &'static str,
    runtime: &Runtime,
) -> anyhow::Result<Option<Probe>> {
    match &settings.metrics {
        Some(address) => Ok(Some(Probe::start(address, name, runtime).await?)),
        None => Ok(None),
    }
}

/// Starts one role and returns when it is ready: with where it listens, if it is the gateway.
pub(crate) async fn start(
    role: Role,
    settings: Settings,
    secrets: Option<Secrets>,
    runtime: &Runtime,
) -> anyhow::Result<Option<gateway::Addresses>> {
    let runtime = runtime.clone();
    match role {
        Role::Orchestrator => {
            orchestrator::serve(settings.orchestrator, runtime.clone()).await?;
            orchestrator::projection::serve(settings.projection, runtime).await?;
        }
        Role::Inference => inference_worker::serve(settings.inference, runtime).await?,
        Role::Tools => tool_worker::serve(settings.tools, runtime).await?,
        Role::Analysis => analysis_worker::serve(settings.analysis, runtime).await?,
        Role::Gateway => {
            let secrets = secrets.ok_or_else(|| Usage("the gateway needs a secret".to_owned()))?;
            return Ok(Some(gateway::serve(settings.gateway, secrets, runtime).await?));
        }
    }
    Ok(None)
}

/// The ready line: JSON on stdout for machines, a sentence for people.
pub(crate) fn announce(ready: &Ready, name: &str, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string(ready)?);
        return Ok(());
    }
    match &ready.http {
        Some(http) => println!("{name} is ready at {http}"),
        None => println!("{name} is ready"),
    }
    Ok(())
}

/// The signals that ask a process to end. Listened to before it says that it is ready: whoever reads that may ask at
/// once, and would kill a process that does not listen yet.
pub(crate) struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    pub(crate) fn listen() -> anyhow::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// Either of them.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Waits for a signal or a failure, drains, and says how it ended.
pub(crate) async fn until_stopped(tasks: &Tasks, signals: Signals) -> anyhow::Result<ExitCode> {
    let Signals { mut term, mut int } = signals;
    let soft = tasks.soft();
    tokio::select! {
        _ = term.recv() => tracing::info!("draining after SIGTERM; a second signal ends at once"),
        _ = int.recv() => tracing::info!("draining after Ctrl-C; a second one ends at once"),
        () = soft.cancelled() => {}
    }
    tasks.stop();
    let hard = tasks.hard();
    tokio::select! {
        in_time = tasks.drained(GRACE) => if !in_time { tracing::warn!("work was left unfinished; it goes on elsewhere or at the next start") },
        _ = term.recv() => hard.cancel(),
        _ = int.recv() => hard.cancel(),
    }
    match tasks.failure() {
        None => Ok(ExitCode::SUCCESS),
        Some(why) => anyhow::bail!(why),
    }
}
