//! Starts the real thing for tests: a nats-server of our own and `vlinders` processes, on free ports, in a temporary
//! directory, and ends exactly the processes it started.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use runtime::bus::{self, Bus};
use schemas::chat::Role;
use schemas::chat::Sampling;
use schemas::fact::{ExecutionSubmitted, Kind, Limits};
use schemas::{ExecutionId, Fact, FactBody, Message};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Nothing a test waits for takes longer, even on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The roles of a whole system, in the order in which they are started.
pub const ROLES: [&str; 5] = ["orchestrator", "inference-worker", "analysis-worker", "tool-worker", "gateway"];

/// The secret of every test's gateway.
const SECRET: &str = "test-secret";

/// A whole system, each role a process of its own.
pub struct System {
    directory: TempDir,
    nats: Option<Child>,
    nats_port: u16,
    roles: Vec<(String, Child)>,
    /// Where the gateway listens.
    pub http: String,
    client: reqwest::Client,
}

/// The repository, which is also the workspace of the tests' tools.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the repository").to_owned()
}

/// The `vlinders` program that was built with these tests.
fn program() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let program = test.ancestors().nth(2).context("a test lies in target/PROFILE/deps")?.join("vlinders");
    ensure!(program.is_file(), "{} is not built: run the tests with --workspace", program.display());
    Ok(program)
}

#[expect(clippy::disallowed_methods, reason = "where deploy/install puts programs stands in the environment")]
fn nats_server() -> anyhow::Result<PathBuf> {
    let mut path: Vec<PathBuf> =
        std::env::var_os("PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default();
    path.extend(std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache/vlinders/bin")));
    path.into_iter()
        .map(|d| d.join("nats-server"))
        .find(|f| f.is_file())
        .context("nats-server is missing: deploy/install installs it")
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl System {
    /// Starts everything and waits until it is ready.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut system = Self {
            directory,
            nats: None,
            nats_port: free_port()?,
            roles: Vec::new(),
            http: String::new(),
            client: reqwest::Client::new(),
        };
        system.start_nats().await?;
        for role in ROLES {
            system.start_role(role).await?;
        }
        Ok(system)
    }

    /// Starts the nats-server, with what an earlier one left on disk.
    ///
    /// # Errors
    /// When it does not open its port.
    pub async fn start_nats(&mut self) -> anyhow::Result<()> {
        let store = self.directory.path().join("nats");
        let child = Command::new(nats_server()?)
            .args(["-js", "-a", "127.0.0.1", "-p", &self.nats_port.to_string(), "-sd"])
            .arg(store)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        self.nats = Some(child);
        let open = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", self.nats_port)).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, open).await.context("nats-server did not open its port")
    }

    /// `kill -9` of the nats-server.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn kill_nats(&mut self) -> anyhow::Result<()> {
        let mut nats = self.nats.take().context("nats-server runs")?;
        Ok(nats.kill().await?)
    }

    /// Where NATS listens.
    #[must_use]
    pub fn nats_url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.nats_port)
    }

    /// Starts one more process of a role and waits for its ready line.
    ///
    /// # Errors
    /// When it ends or says nothing.
    pub async fn start_role(&mut self, role: &str) -> anyhow::Result<()> {
        let mut command = Command::new(program()?);
        command.arg(role).args(["--json", "--nats", &self.nats_url()]);
        match role {
            "gateway" => drop(command.args(["--http", "127.0.0.1:0"])),
            "tool-worker" => drop(command.arg("--workspace").arg(repository())),
            "inference-worker" => drop(command.arg("--models").arg(repository().join("inference-worker/models/tiny"))),
            _ => {}
        }
        let log = std::fs::File::options().append(true).create(true).open(self.directory.path().join("log"))?;
        let mut child = command
            .env("VLINDERS_SECRET", SECRET)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.context("no ready line")??;
        let line = line.with_context(|| format!("{role} ended before it was ready:\n{}", self.log()))?;
        let ready: Value = serde_json::from_str(&line)?;
        if let Some(http) = ready["http"].as_str() {
            http.clone_into(&mut self.http);
        }
        self.roles.push((role.to_owned(), child));
        Ok(())
    }

    /// `kill -9` of the oldest process of a role.
    ///
    /// # Errors
    /// When there is none.
    pub async fn kill_role(&mut self, role: &str) -> anyhow::Result<()> {
        let index = self.roles.iter().position(|(r, _)| r == role).with_context(|| format!("no {role} runs"))?;
        let (_, mut child) = self.roles.remove(index);
        Ok(child.kill().await?)
    }

    /// What all processes logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The system's bus, for a look into the log.
    ///
    /// # Errors
    /// When NATS does not answer.
    pub async fn bus(&self) -> anyhow::Result<Bus> {
        Ok(Bus::connect(&bus::Config { url: self.nats_url(), ..bus::Config::default() }, "test").await?)
    }

    /// A request with the secret.
    pub fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.http)).header("X-Internal-Auth", SECRET).json(body)
    }

    /// A question with the secret.
    pub fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}{path}", self.http)).header("X-Internal-Auth", SECRET)
    }

    /// Sends a request and returns status and JSON body.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn ask(&self, path: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
        let response = tokio::time::timeout(PATIENCE, self.post(path, body).send()).await.context("no answer")??;
        let status = response.status().as_u16();
        Ok((status, response.json().await?))
    }

    /// Starts a streamed request; returns its execution and the open stream.
    ///
    /// # Errors
    /// When it is not accepted.
    pub async fn open(&self, path: &str, mut body: Value) -> anyhow::Result<(ExecutionId, reqwest::Response)> {
        body["stream"] = json!(true);
        let response = self.post(path, &body).send().await?;
        ensure!(response.status().is_success(), "{}: {}", response.status(), response.text().await?);
        let id = response.headers().get("x-execution-id").context("no X-Execution-Id")?.to_str()?.parse()?;
        Ok((id, response))
    }

    /// Runs a client command of `vlinders` against this system's gateway; returns its exit code and its JSON.
    ///
    /// # Errors
    /// When it prints no JSON.
    pub async fn client(&self, arguments: &[&str]) -> anyhow::Result<(Option<i32>, Value)> {
        let mut command = Command::new(program()?);
        command.args(arguments).args(["--json", "--url", &self.http]).env("VLINDERS_SECRET", SECRET).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await.context("the command did not end")??;
        let json = serde_json::from_slice(&output.stdout);
        Ok((output.status.code(), json.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?))
    }

    /// Appends a request to the log without a gateway, as any NATS client may.
    ///
    /// # Errors
    /// When it is not stored.
    pub async fn submit(&self, question: &str) -> anyhow::Result<ExecutionId> {
        let exec = runtime::clock::execution_id();
        let now = runtime::clock::now();
        let limits = Limits { iterations: 1, tokens: 10_000, deadline: now + 60_000_000_000, ..Limits::default() };
        let request = ExecutionSubmitted {
            model: "tiny".to_owned(),
            window: 1_024,
            messages: vec![Message::text(Role::User, question)],
            sampling: Sampling { seed: Some(1), ..Sampling::default() },
            ..ExecutionSubmitted::new(Kind::Chat, "chat", limits)
        };
        let fact = Fact::new(exec, now, FactBody::ExecutionSubmitted(Box::new(request)));
        self.bus().await?.append_fact(&fact).await?;
        Ok(exec)
    }

    /// Waits for an execution to end; returns its view.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn ended(&self, exec: ExecutionId) -> anyhow::Result<Value> {
        let path = format!("/internal/executions/{exec}");
        let end = async {
            loop {
                if let Ok(response) = self.get(&path).send().await
                    && let Ok(view) = response.json::<Value>().await
                    && !["submitted", "running", "paused"].contains(&view["status"].as_str().unwrap_or("running"))
                {
                    return view;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, end).await.with_context(|| format!("{exec} did not end:\n{}", self.log()))
    }

    /// Proves an execution's log: every decision comes out again, and it ended exactly once.
    ///
    /// # Errors
    /// When it does not.
    pub async fn prove(&self, exec: ExecutionId) -> anyhow::Result<()> {
        let messages = self.bus().await?.read_execution(exec, 0).await?;
        orchestrator::history::verify(exec, &messages)?;
        let records = messages.iter().filter_map(|m| schemas::Record::read(&m.payload).ok());
        let ends = records.flat_map(|r| r.events).filter(schemas::Event::is_terminal).count();
        ensure!(ends == 1, "{exec} ended {ends} times");
        Ok(())
    }
}

/// Reads server-sent events until `until` says enough; returns name and data of each.
///
/// # Errors
/// When the stream breaks or stays silent.
pub async fn read_events(
    response: &mut reqwest::Response,
    until: impl Fn(&[(String, Value)]) -> bool,
) -> anyhow::Result<Vec<(String, Value)>> {
    let mut events = Vec::new();
    let mut buffer = String::new();
    while !until(&events) {
        let chunk = tokio::time::timeout(PATIENCE, response.chunk()).await.context("the stream is silent")??;
        let Some(chunk) = chunk else { break };
        buffer.push_str(&String::from_utf8_lossy(&chunk));
        while let Some(end) = buffer.find("\n\n") {
            let event: String = buffer.drain(..end + 2).collect();
            let field = |name: &str| event.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
            if let (Some(name), Some(data)) = (field("event:"), field("data:")) {
                events.push((name.to_owned(), serde_json::from_str(data)?));
            }
        }
    }
    Ok(events)
}

/// The text that a reader of these events has in the end.
#[must_use]
pub fn text(events: &[(String, Value)]) -> String {
    events.iter().fold(String::new(), |mut text, (name, data)| {
        match name.as_str() {
            "restart" => data["text"].as_str().unwrap_or_default().clone_into(&mut text),
            "token" => text.push_str(data["text"].as_str().unwrap_or_default()),
            _ => {}
        }
        text
    })
}
