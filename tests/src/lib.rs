//! Starts the real thing for tests: a nats-server of our own and `vlinders` processes, on free ports, in a temporary
//! directory, and ends exactly the processes it started.

mod account;
mod deployed;
mod llama_server;
pub mod otlp;
mod postgres;
mod program;
mod prometheus_server;
mod python;
mod redis;

pub use account::account;
pub use deployed::{Deployed, PLACES};
pub use llama_server::LlamaServer;
pub use postgres::Postgres;
pub use program::{Ended, Up, bare_nats, nats_server, processes_about, run, run_with, secret_of};
pub use prometheus_server::PrometheusServer;
pub use python::python;
pub use redis::Redis;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use orchestrator::history::History;
use runtime::bus::{self, Bus, Stored};
use runtime::config::Secret;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use schemas::chat::{FinishReason, Role, Sampling};
use schemas::fact::{ExecutionSubmitted, InferenceCompleted, Kind, Limits};
use schemas::permission::User;
use schemas::{EffectId, Event, ExecutionId, Fact, FactBody, Message, Record, ToolCall, ToolSpec, Usage};
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

/// The switch for telling every story on a NATS with the deployed configuration.
const DEPLOYED: &str = "VLINDERS_TEST_DEPLOYED";

/// A small workspace whose search results fit a small model's window, and do not change with this repository.
const SOURCES: [(&str, &str); 3] = [
    ("src/reader.rs", "//! Reads tokens.\n\npub struct TokenReader {\n    position: u64,\n}\n"),
    ("src/liveness.rs", "//! Signs of life.\n\npub struct Liveness {\n    watched: u64,\n}\n"),
    ("src/main.rs", "use crate::reader::TokenReader;\n\nfn main() {}\n"),
];

/// A whole system, each role a process of its own.
pub struct System {
    directory: TempDir,
    nats: Option<Child>,
    nats_port: u16,
    /// Where nats-server keeps its files.
    pub store: PathBuf,
    /// Bytes nats-server may keep in files; none for its own default.
    pub store_bytes_max: Option<u64>,
    /// A configuration file for every role that is started.
    pub config: Option<PathBuf>,
    /// Where NATS runs as it is deployed: each role is its own user, with the least that it needs.
    pub deployed: Option<Deployed>,
    roles: Vec<(String, Child)>,
    /// Where each role serves its figures, if the configuration says that it does, in the order of their start.
    pub metrics: Vec<(String, String)>,
    /// Where the gateway listens.
    pub http: String,
    /// The same for gRPC.
    pub grpc: String,
    client: reqwest::Client,
}

/// The repository, which is also the workspace of the tests' tools.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the repository").to_owned()
}

/// The real embedding model; without it the tests that need it say so and pass.
#[expect(clippy::disallowed_methods, reason = "where deploy/install puts models stands in the environment")]
#[must_use]
pub fn embedding_model() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let directory = cache.join("vlinders/models/all-minilm-l6-v2");
    if !directory.exists() {
        println!("{} is missing: deploy/install installs it; skipped", directory.display());
        return None;
    }
    Some(directory)
}

/// Lets this process, and those it starts, have as many files and connections open as the system allows.
///
/// # Errors
/// When the system refuses.
pub fn raise_open_files() -> anyhow::Result<()> {
    let limits = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits })?)
}

/// `VLINDERS_TEST_DEPLOYED=1`: every story is told on a NATS with the deployed configuration.
#[expect(clippy::disallowed_methods, reason = "a switch for the person who changes what roles may do on the bus")]
fn is_deployed_wanted() -> bool {
    std::env::var_os(DEPLOYED).is_some()
}

/// A port that nobody listens on.
///
/// # Errors
/// When there is none.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl System {
    /// Starts everything and waits until it is ready.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_without(&[]).await
    }

    /// The same without some roles, which a test starts later or plays itself.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start_without(missing: &[&str]) -> anyhow::Result<Self> {
        Self::new()?.up(missing).await
    }

    /// Starts everything with this configuration (TOML).
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start_with(config: &str) -> anyhow::Result<Self> {
        let mut system = Self::new()?;
        let file = system.directory().join("vlinders.toml");
        std::fs::write(&file, config)?;
        system.config = Some(file);
        system.up(&[]).await
    }

    /// Starts everything on a NATS with the deployed configuration.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start_deployed() -> anyhow::Result<Self> {
        let mut system = Self::new()?;
        system.deploy()?;
        system.up(&[]).await
    }

    /// From now on NATS is started as it is deployed.
    ///
    /// # Errors
    /// When openssl is missing.
    pub fn deploy(&mut self) -> anyhow::Result<()> {
        let (clients, monitoring) = (format!("127.0.0.1:{}", self.nats_port), format!("127.0.0.1:{}", free_port()?));
        let store = self.store.display().to_string();
        let places = [clients.as_str(), &monitoring, &store, "/nowhere"];
        let deployed = Deployed::lay_out(&self.directory().join("deployed"), places)?;
        self.deployed = Some(deployed);
        Ok(())
    }

    async fn up(self, missing: &[&str]) -> anyhow::Result<Self> {
        let mut system = self;
        system.start_nats().await?;
        // Where NATS is deployed, orchestrators make the streams, and all others wait for them.
        if system.deployed.is_none() || missing.contains(&"orchestrator") {
            bus::provision(&system.bus().await?).await?;
        }
        for role in ROLES.into_iter().filter(|role| !missing.contains(role)) {
            system.start_role(role).await?;
        }
        Ok(system)
    }

    /// A system of which nothing runs yet.
    ///
    /// # Errors
    /// When there is no directory or no port for it.
    pub fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut system = Self {
            store: directory.path().join("nats"),
            store_bytes_max: None,
            directory,
            nats: None,
            nats_port: free_port()?,
            config: None,
            deployed: None,
            roles: Vec::new(),
            metrics: Vec::new(),
            http: String::new(),
            grpc: String::new(),
            client: reqwest::Client::new(),
        };
        if is_deployed_wanted() {
            system.deploy()?;
        }
        for (path, text) in SOURCES {
            let file = system.workspace().join(path);
            std::fs::create_dir_all(file.parent().context("a file lies in a directory")?)?;
            std::fs::write(file, text)?;
        }
        Ok(system)
    }

    /// The secret of this system's gateways.
    #[must_use]
    pub const fn secret(&self) -> &'static str {
        SECRET
    }

    /// A small workspace of this system's own, allowed beside the repository.
    #[must_use]
    pub fn workspace(&self) -> PathBuf {
        self.directory.path().join("workspace")
    }

    /// This system's directory, for what a test adds.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts the nats-server, with what an earlier one left on disk.
    ///
    /// # Errors
    /// When it does not open its port.
    pub async fn start_nats(&mut self) -> anyhow::Result<()> {
        let limit = self.store_bytes_max.map(|bytes| format!("max_file_store: {bytes}")).unwrap_or_default();
        let text = format!(
            "listen: \"127.0.0.1:{}\"\nmax_payload: 9MB\njetstream {{\n  store_dir: {:?}\n  {limit}\n}}\n",
            self.nats_port, self.store
        );
        let config = match &self.deployed {
            Some(deployed) => {
                deployed.keep_files(&self.store, self.store_bytes_max)?;
                deployed.directory.join("nats.conf")
            }
            None => {
                let config = self.directory.path().join("nats.conf");
                std::fs::write(&config, text)?;
                config
            }
        };
        let log = std::fs::File::options().append(true).create(true).open(self.directory.path().join("nats.log"))?;
        let child = Command::new(nats_server()?)
            .arg("-c")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(log)
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

    /// SIGTERM for the nats-server, which writes down what it holds.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop_nats(&mut self) -> anyhow::Result<()> {
        let mut nats = self.nats.take().context("nats-server runs")?;
        let id = nats.id().context("it runs")?.to_string();
        ensure!(Command::new("kill").args(["-TERM", &id]).status().await?.success(), "kill -TERM {id}");
        tokio::time::timeout(PATIENCE, nats.wait()).await.context("nats-server did not end")??;
        Ok(())
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
        let models = repository().join("inference-worker/models/tiny").display().to_string();
        let arguments: &[&str] = if role == "inference-worker" { &["--models", &models] } else { &[] };
        self.start_role_with(role, arguments, &[]).await
    }

    /// The same with more arguments, and settings from the environment.
    ///
    /// # Errors
    /// When it ends or says nothing.
    pub async fn start_role_with(
        &mut self,
        role: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let mut command = program::vlinders()?;
        command.arg(role).args(["--json", "--nats", &self.nats_url()]);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        match role {
            "gateway" => {
                command.args(["--http", "127.0.0.1:0"]);
            }
            "tool-worker" => {
                command.arg("--workspace").arg(repository()).arg("--workspace").arg(self.workspace());
                // The same on every machine; what containers add is tested where they are made.
                command.env("VLINDERS_TOOLS__SANDBOX", "bubblewrap");
            }
            "analysis-worker" => {
                command.arg("--workspace").arg(repository()).arg("--workspace").arg(self.workspace());
                // Where vectors are kept, which all of them share.
                command.env("XDG_DATA_HOME", self.directory());
            }
            "orchestrator" => {
                // Where the tables are, which all of them share.
                command.env("XDG_DATA_HOME", self.directory());
            }
            _ => {}
        }
        if let Some(deployed) = &self.deployed {
            command.envs(deployed.environment(role));
        }
        command.args(arguments).envs(environment.iter().copied());
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
            ready["grpc"].as_str().unwrap_or_default().clone_into(&mut self.grpc);
        }
        if let Some(metrics) = ready["metrics"].as_str() {
            self.metrics.push((role.to_owned(), metrics.to_owned()));
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

    /// SIGSTOP for the oldest process of a role: it is there and does nothing.
    ///
    /// # Errors
    /// When there is none.
    pub async fn halt_role(&self, role: &str) -> anyhow::Result<()> {
        let running = self.roles.iter().find(|(r, _)| r == role).with_context(|| format!("no {role} runs"))?;
        let id = running.1.id().context("it runs")?.to_string();
        ensure!(Command::new("kill").args(["-STOP", &id]).status().await?.success(), "kill -STOP {id}");
        Ok(())
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
        Ok(Bus::connect(&self.bus_config(), "test").await?)
    }

    /// How a test reaches the bus: as somebody who may do anything there.
    #[must_use]
    pub fn bus_config(&self) -> bus::Config {
        let mut config = bus::Config { url: self.nats_url(), ..bus::Config::default() };
        if self.deployed.is_some() {
            config.user = Some("test".to_owned());
            config.password = Some(Secret::new("test".to_owned()));
            // Roles answer whoever may ask them, and nobody else.
            config.inbox_prefix = Some("_INBOX_gateway".to_owned());
        }
        config
    }

    /// A connection that may do anything, for what no process of ours does.
    ///
    /// # Errors
    /// When NATS does not answer.
    pub async fn nats(&self) -> anyhow::Result<async_nats::Client> {
        let options = match &self.deployed {
            Some(_) => async_nats::ConnectOptions::with_user_and_password("test".to_owned(), "test".to_owned()),
            None => async_nats::ConnectOptions::new(),
        };
        Ok(options.connect(self.nats_url()).await?)
    }

    /// Runs a command of `vlinders` that asks NATS itself, as this user where NATS is deployed, and returns how it ended.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn on_nats(&self, user: User, arguments: &[&str]) -> anyhow::Result<Ended> {
        let url = self.nats_url();
        let environment = self.deployed.as_ref().map(|deployed| deployed.environment(user.name())).unwrap_or_default();
        run_with(&[arguments, &["--nats", url.as_str()]].concat(), &environment).await
    }

    /// A request with the secret.
    pub fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.http)).header("X-Internal-Auth", SECRET).json(body)
    }

    /// The same as PUT.
    pub fn put(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client.put(format!("{}{path}", self.http)).header("X-Internal-Auth", SECRET).json(body)
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
        let mut command = program::vlinders()?;
        command.args(arguments).args(["--json", "--url", &self.http]).env("VLINDERS_SECRET", SECRET).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await.context("the command did not end")??;
        let json = serde_json::from_slice(&output.stdout);
        Ok((output.status.code(), json.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?))
    }

    /// Runs a client command of `vlinders` against this system's gateway, and returns how it ended.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn plain_client(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        let mut command = program::vlinders()?;
        command.args(arguments).args(["--url", &self.http]).env("VLINDERS_SECRET", SECRET).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await.context("the command did not end")??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        Ok(Ended { code: output.status.code(), stdout, stderr })
    }

    /// Appends a request to the log without a gateway, as any NATS client may.
    ///
    /// # Errors
    /// When it is not stored.
    pub async fn submit(&self, question: &str) -> anyhow::Result<ExecutionId> {
        let exec = runtime::clock::execution_id();
        self.bus().await?.append_fact(&self.request(exec, question, &[])).await?;
        Ok(exec)
    }

    /// The fact of a request: of a chat, or of an agent when it is offered tools.
    #[must_use]
    pub fn request(&self, exec: ExecutionId, question: &str, tools: &[&str]) -> Fact {
        let now = runtime::clock::now();
        let (kind, agent) = if tools.is_empty() { (Kind::Chat, "chat") } else { (Kind::Agent, "coder") };
        let deadline = now + 120_000_000_000;
        let limits = Limits { iterations: 8, tokens: 100_000, tool_calls: 16, deadline, ..Limits::default() };
        let request = ExecutionSubmitted {
            model: "tiny".to_owned(),
            window: 1_024,
            messages: vec![Message::text(Role::User, question)],
            tools: tools.iter().map(|name| ToolSpec::new(*name, "", parameters(name))).collect(),
            workspace: Some(self.workspace().display().to_string()),
            sampling: Sampling { seed: Some(1), ..Sampling::default() },
            ..ExecutionSubmitted::new(kind, agent, limits)
        };
        Fact::new(exec, now, FactBody::ExecutionSubmitted(Box::new(request)))
    }

    /// Waits until the log of an execution holds what `enough` looks for; returns it.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn log_until(
        &self,
        exec: ExecutionId,
        enough: impl Fn(&[Stored]) -> bool,
    ) -> anyhow::Result<Vec<Stored>> {
        let bus = self.bus().await?;
        let mut live = bus.live(exec).await?;
        let wait = async {
            loop {
                if let Ok(messages) = bus.read_execution(exec, 0).await
                    && enough(&messages)
                {
                    return messages;
                }
                // What is republished may be lost with a connection; a second later the log is read anyway.
                let _ = tokio::time::timeout(Duration::from_secs(1), live.next()).await;
            }
        };
        if let Ok(messages) = tokio::time::timeout(PATIENCE, wait).await {
            return Ok(messages);
        }
        let told = |m: &Stored| match Record::read(&m.payload) {
            Ok(record) => record.events.iter().map(Event::name).collect::<Vec<_>>().join(", "),
            Err(_) => Fact::read(&m.payload).map_or("corrupt", |fact| fact.body.name()).to_owned(),
        };
        let held: Vec<String> = bus.read_execution(exec, 0).await?.iter().map(told).collect();
        anyhow::bail!("the log of {exec} stands still at\n{}\n{}", held.join("\n"), self.log())
    }

    /// Answers in place of the model: waits until the inference of `turn` is asked for and appends its result.
    ///
    /// # Errors
    /// When it is not asked for.
    pub async fn answer(
        &self,
        exec: ExecutionId,
        turn: u32,
        text: &str,
        calls: &[(&str, Value)],
    ) -> anyhow::Result<()> {
        let effect = EffectId::inference(turn);
        let asked = |event: &Event| matches!(event, Event::InferenceRequested(asked) if asked.effect == effect);
        self.log_until(exec, |messages| events(messages).iter().flatten().any(asked)).await?;
        let fact = answered(exec, turn, text, calls);
        self.bus().await?.append_fact(&fact).await?;
        Ok(())
    }

    /// Waits for an execution to end; returns its view.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn ended(&self, exec: ExecutionId) -> anyhow::Result<Value> {
        self.log_until(exec, |messages| events(messages).iter().flatten().any(Event::is_terminal)).await?;
        let response = self.get(&format!("/internal/executions/{exec}")).send().await?;
        Ok(response.json().await?)
    }

    /// Proves an execution's log: every decision comes out again, it ended exactly once, and no effect was carried
    /// out or counted where a result stood already. Returns its messages.
    ///
    /// # Errors
    /// When it does not.
    pub async fn prove(&self, exec: ExecutionId) -> anyhow::Result<Vec<Stored>> {
        let messages = self.bus().await?.read_execution(exec, 0).await?;
        orchestrator::history::verify(exec, &messages)?;
        let ends = events(&messages).iter().flatten().filter(|e| e.is_terminal()).count();
        ensure!(ends == 1, "{exec} ended {ends} times");
        account(&messages).with_context(|| format!("{exec}"))?;
        Ok(messages)
    }
}

/// The events of each decision, in order.
#[must_use]
pub fn events(messages: &[Stored]) -> Vec<Vec<Event>> {
    messages.iter().filter_map(|m| Record::read(&m.payload).ok()).map(|record| record.events).collect()
}

/// The conversation that the model read last, or would read next.
#[must_use]
pub fn conversation(exec: ExecutionId, messages: &[Stored]) -> Vec<Message> {
    let mut history = History::new(exec);
    for message in messages {
        let _ = history.fold(message);
    }
    history.execution.context.messages().to_vec()
}

/// The names of the tools that each decision asked for at once; decisions that asked for none are left out.
#[must_use]
pub fn tools_asked(messages: &[Stored]) -> Vec<Vec<String>> {
    let asked = |event: &Event| match event {
        Event::ToolsRequested(asked) => Some(asked.calls.iter().map(|c| c.name.clone()).collect()),
        _ => None,
    };
    events(messages).iter().flatten().filter_map(asked).collect()
}

/// The result of the first attempt of a turn's inference, as a worker writes it.
#[must_use]
pub fn answered(exec: ExecutionId, turn: u32, text: &str, calls: &[(&str, Value)]) -> Fact {
    let effect = EffectId::inference(turn);
    let tool_calls = calls.iter().enumerate();
    let body = FactBody::InferenceCompleted(InferenceCompleted {
        attempt: 1,
        worker: "played-by-the-test".to_owned(),
        text: text.to_owned(),
        tool_calls: tool_calls
            .map(|(i, (name, arguments))| ToolCall::new(format!("call-{effect}-{i}"), *name, arguments.to_string()))
            .collect(),
        finish: if calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls },
        usage: Usage::new(10, 5),
        cached_tokens: 0,
        timing: Default::default(),
        logprobs: Vec::new(),
        alternatives: Vec::new(),
        cached: false,
        dropped_messages: 0,
        effect,
    });
    Fact::new(exec, runtime::clock::now(), body)
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

/// The arguments of a tool, as the model reads them.
fn parameters(tool: &str) -> Value {
    let names: &[&str] = match tool {
        "search_code" => &["query", "path", "regex", "max"],
        "read_file" => &["path", "start", "end"],
        _ => &[],
    };
    let properties: serde_json::Map<String, Value> = names.iter().map(|name| ((*name).to_owned(), json!({}))).collect();
    json!({"type": "object", "properties": properties})
}
