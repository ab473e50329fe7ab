//! `vlinders up`: a private nats-server and all roles in one process.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use runtime::config::Secret;
use runtime::{Bus, Cache, Runtime, bus, telemetry};

use crate::cli::Up;
use crate::endpoint::Ready;
use crate::nats::{self, Server};
use crate::roles::{self, Role};
use crate::settings::{self, Settings, Usage};

/// Starts everything, serves until a signal, and stops in order.
pub(crate) async fn run(options: Up) -> anyhow::Result<ExitCode> {
    let data = options.data.clone().unwrap_or_else(settings::default_data);
    std::fs::create_dir_all(&data).map_err(|e| Usage(format!("create the data directory {}: {e}", data.display())))?;
    let data = data.canonicalize().with_context(|| format!("find {}", data.display()))?;
    let settings = load(&options, &data)?;
    settings.check()?;
    let _telemetry = telemetry::start(&settings.telemetry, "up")?;
    settings.log();
    let _lock = lock(&data)?;
    // What an earlier run left when it was killed leads clients nowhere.
    Ready::withdraw(&data);
    let program = nats::find(options.nats_server.as_deref())?;
    let (secret, secret_file) = settings::secret(Some(&data.join("secret")))?;
    let nats_data = data.join("nats");
    std::fs::create_dir_all(&nats_data).with_context(|| format!("create {}", nats_data.display()))?;
    let mut server = Server::start(&program, &nats_data).await?;
    let code = Box::pin(serve(&options, &data, &settings, &secret, secret_file, &mut server)).await;
    // However it ended, also in the middle of the start: nobody is led here any more, and no server is left behind.
    Ready::withdraw(&data);
    server.stop().await;
    code
}

/// Starts the roles on the server that runs, and serves until a signal or a failure.
async fn serve(
    options: &Up,
    data: &Path,
    settings: &Settings,
    secret: &Secret,
    secret_file: Option<PathBuf>,
    server: &mut Server,
) -> anyhow::Result<ExitCode> {
    let nats = bus::Config { url: server.url.clone(), ..settings.nats.clone() };
    let bus = Bus::connect(&nats, "up").await?;
    bus::provision(&bus).await?;
    let cache = Cache::open(&settings.cache, bus.clone()).map_err(Usage)?;
    let runtime = Runtime { cache, ..Runtime::new(bus) };
    runtime.bus.register_metrics(&runtime.metrics)?;
    let probe = roles::probe(&settings.telemetry, "up", &runtime).await?;
    let models = match options.without.contains(&Role::Inference) {
        true => Vec::new(),
        false => settings.inference.model_names(),
    };
    let secrets = settings::secrets(secret, secret_file.as_deref());
    let mut edge = None;
    for role in Role::ALL.into_iter().filter(|role| !options.without.contains(role)) {
        // Each role takes its own section; reading them again is cheap and keeps the roles apart.
        let settings = load(options, data)?;
        edge = roles::start(role, settings, Some(secrets.clone()), &runtime).await?.or(edge);
    }
    let metrics = probe.as_ref().map(|probe| format!("http://{}", probe.address));
    let tls = settings.gateway.tls.is_some();
    let ready = Ready { models, metrics, ..Ready::at(edge, tls, server.url.clone(), secret_file) };
    let signals = roles::Signals::listen()?;
    if let Some(probe) = &probe {
        probe.started();
    }
    ready.publish(data)?;
    roles::announce(&ready, "vlinders", options.json)?;
    if !options.json {
        explain(&ready, data);
    }

    let tasks = runtime.tasks.clone();
    let code = tokio::select! {
        code = roles::until_stopped(&tasks, signals) => code,
        why = server.ended() => {
            tasks.fail(why.clone());
            let _ = tasks.drained(std::time::Duration::from_secs(1)).await;
            Err(anyhow::anyhow!("{why}; see {}/nats/nats.log", data.display()))
        }
    };
    let _ = runtime.bus.flush().await;
    code
}

fn load(options: &Up, data: &Path) -> anyhow::Result<Settings> {
    let mut flags = Vec::new();
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
    let tools = data.join("tools");
    if settings.tools.plugins_dir.is_none() && tools.is_dir() {
        settings.tools.plugins_dir = Some(tools);
    }
    settings::add_shipped_models(&mut settings.inference, data)?;
    settings::place_vectors(&mut settings.analysis, data);
    settings.projection.data = Some(data.to_owned());
    // A box of bubblewrap starts in milliseconds and loads nothing between calls, which suits one person's machine; a
    // server's worker, a process of its own, prefers containers.
    if !settings.says("tools.sandbox") && settings.tools.bubblewrap.exists() {
        settings.tools.sandbox = tool_worker::sandbox::Choice::Bubblewrap;
    }
    if options.json {
        settings.telemetry.format = telemetry::Format::Json;
    }
    Ok(settings)
}

/// One `vlinders up` for each data directory.
fn lock(data: &Path) -> anyhow::Result<std::fs::File> {
    let file = data.join("lock");
    let lock = std::fs::File::create(&file).with_context(|| format!("create {}", file.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(_) => Err(Usage(format!(
            "another vlinders runs with data in {}; stop it or choose another --data",
            data.display()
        ))
        .into()),
    }
}

fn explain(ready: &Ready, data: &Path) {
    let models = if ready.models.is_empty() { "none (say --models DIR)".to_owned() } else { ready.models.join(", ") };
    println!("  models   {models}");
    println!("  data     {}", data.display());
    if let Some(secret) = &ready.secret_file {
        println!("  secret   {} (header X-Internal-Auth)", secret.display());
    }
    if let Some(grpc) = &ready.grpc {
        println!("  grpc     {grpc}");
    }
    println!("  nats     {}", ready.nats);
    println!("  try      vlinders agent \"Where is main defined?\" --data {}", data.display());
}
