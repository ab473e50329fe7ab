//! Starts roles: one by one against a NATS that is there, or all of them for `vlinders up`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use runtime::config::Secret;
use runtime::{Bus, Runtime, Tasks, bus, telemetry};
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
    if role == Role::Orchestrator {
        settings.orchestrator.check().map_err(Usage)?;
        settings.projection.data = Some(settings::default_data());
        settings.projection.check().map_err(Usage)?;
    }
    if role == Role::Inference {
        settings.inference.check().map_err(Usage)?;
    }
    if role == Role::Tools {
        settings.tools.check().map_err(Usage)?;
    }
    if role == Role::Analysis {
        settings::place_vectors(&mut settings.analysis, &settings::default_data());
        settings.analysis.check().map_err(Usage)?;
    }
    let _telemetry = telemetry::start(&settings.telemetry, role.name())?;
    settings.log();
    let bus = Bus::connect(&settings.nats, role.name()).await?;
    bus::provision(&bus).await?;
    let runtime = Runtime { bus, tasks: Tasks::new(), metrics: prometheus::Registry::new() };
    runtime.bus.register_metrics(&runtime.metrics)?;
    let secret = if role == Role::Gateway { Some(settings::secret(None)?.0) } else { None };
    let models = settings.inference.model_names();
    let nats = settings.nats.url.clone();
    let http = start(role, settings, secret, &runtime).await?;
    let ready = Ready { ready: true, http: http.map(|a| format!("http://{a}")), nats, secret_file: None, models };
    let signals = Signals::listen()?;
    announce(&ready, role.name(), options.json)?;
    until_stopped(&runtime.tasks, signals).await
}

/// Starts one role and returns when it is ready.
pub(crate) async fn start(
    role: Role,
    settings: Settings,
    secret: Option<Secret>,
    runtime: &Runtime,
) -> anyhow::Result<Option<SocketAddr>> {
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
            let secret = secret.ok_or_else(|| Usage("the gateway needs a secret".to_owned()))?;
            return Ok(Some(gateway::serve(settings.gateway, secret, runtime).await?));
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
