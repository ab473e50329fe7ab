//! The `vlinders` program from outside: runs it to its end, or starts `vlinders up`, and looks for what it left.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::{DEPLOYED, PATIENCE, SECRET};

/// A run of the `vlinders` program, which takes no switch of the tests for a setting.
pub(crate) fn vlinders() -> anyhow::Result<Command> {
    let mut command = Command::new(program()?);
    command.env_remove(DEPLOYED);
    Ok(command)
}

/// The `vlinders` program that was built with these tests.
fn program() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let program = test.ancestors().nth(2).context("a test lies in target/PROFILE/deps")?.join("vlinders");
    ensure!(program.is_file(), "{} is not built: run the tests with --workspace", program.display());
    Ok(program)
}

/// The nats-server program.
///
/// # Errors
/// When it is not installed.
#[expect(clippy::disallowed_methods, reason = "where deploy/install puts programs stands in the environment")]
pub fn nats_server() -> anyhow::Result<PathBuf> {
    let mut path: Vec<PathBuf> =
        std::env::var_os("PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default();
    path.extend(std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache/vlinders/bin")));
    path.into_iter()
        .map(|d| d.join("nats-server"))
        .find(|f| f.is_file())
        .context("nats-server is missing: deploy/install installs it")
}

/// Starts a nats-server of its own with more arguments, and waits until it listens.
///
/// # Errors
/// When it is not installed, or does not open its port.
pub async fn bare_nats(port: u16, arguments: &[&str]) -> anyhow::Result<Child> {
    let child = Command::new(nats_server()?)
        .args(["-a", "127.0.0.1", "-p", &port.to_string()])
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let open = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, open).await.context("nats-server did not open its port")?;
    Ok(child)
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

/// Runs `vlinders` with these arguments to its end.
///
/// # Errors
/// When it does not end.
pub async fn run(arguments: &[&str]) -> anyhow::Result<Ended> {
    run_with(arguments, &[]).await
}

/// The same with more variables.
///
/// # Errors
/// When it does not end.
pub async fn run_with(arguments: &[&str], environment: &[(&'static str, String)]) -> anyhow::Result<Ended> {
    let mut command = vlinders()?;
    command.args(arguments).env("VLINDERS_SECRET", SECRET).envs(environment.iter().cloned());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .with_context(|| format!("vlinders {} did not end", arguments.join(" ")))??;
    Ok(Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A `vlinders up` that runs.
pub struct Up {
    child: Child,
    /// Its ready line.
    pub ready: Value,
}

impl Up {
    /// Starts it with data in `data` and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(data: &Path) -> anyhow::Result<Self> {
        Self::start_with(data, &[]).await
    }

    /// The same with more arguments.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start_with(data: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut child = vlinders()?
            .args(["up", "--json", "--http", "127.0.0.1:0", "--data"])
            .arg(data)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.context("no ready line")??;
        let ready = serde_json::from_str(&line.context("it ended before it was ready")?)?;
        Ok(Self { child, ready })
    }

    /// SIGTERM; returns its exit code.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(mut self) -> anyhow::Result<Option<i32>> {
        let id = self.child.id().context("it runs")?.to_string();
        ensure!(Command::new("kill").args(["-TERM", &id]).status().await?.success(), "kill -TERM {id}");
        Ok(tokio::time::timeout(PATIENCE, self.child.wait()).await.context("it did not end")??.code())
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}

/// The secret of a `vlinders up`.
///
/// # Errors
/// When its file cannot be read.
pub fn secret_of(up: &Up) -> anyhow::Result<String> {
    let file = up.ready["secret_file"].as_str().context("the ready line names the secret's file")?;
    Ok(std::fs::read_to_string(file)?.trim().to_owned())
}

/// The command lines of all processes that name `path`.
///
/// # Errors
/// When the processes cannot be listed.
pub fn processes_about(path: &Path) -> anyhow::Result<Vec<String>> {
    let path = path.to_str().context("temporary directories have plain names")?;
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(path) && entry.file_name() != own.as_str() {
            found.push(command);
        }
    }
    Ok(found)
}
