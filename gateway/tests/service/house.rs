//! A gateway on a nats-server of its own, with a scripted orchestrator and workers behind it.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gateway::Secrets;
use runtime::Runtime;
use runtime::bus::{self, Bus};
use schemas::decision::{Draft, ExecutionCompleted, ExecutionStarted, FactsDigest, InferenceRequested};
use schemas::fact::InferenceCompleted;
use schemas::rpc::{AgentType, Model, Reply, Tool};
use schemas::token::FrameKind;
use schemas::wire::encode;
use schemas::{
    EffectId, Event, ExecutionId, Fact, FactBody, FinishReason, Frame, Partition, Record, Usage, stream, subject,
};
use serde_json::Value;

/// A private server that ends with the test.
struct Server {
    process: Child,
    url: String,
    _data: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "a test finds its server as the shell does")]
async fn server() -> Option<Server> {
    let data = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cached = format!("{}/.cache/vlinders/bin/nats-server", std::env::var("HOME").unwrap_or_default());
    let process = ["nats-server", &cached].into_iter().find_map(|program| {
        let mut command = Command::new(program);
        command.args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"]).arg(data.path());
        command.stderr(Stdio::null()).spawn().ok()
    });
    let Some(process) = process else {
        eprintln!("SKIPPED: there is no nats-server on the path or in ~/.cache/vlinders/bin");
        return None;
    };
    let server = Server { process, url: format!("nats://127.0.0.1:{port}"), _data: data };
    tokio::time::timeout(Duration::from_secs(10), async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the server starts");
    Some(server)
}

/// A gateway, and what is scripted behind it.
pub(crate) struct House {
    pub(crate) url: String,
    pub(crate) grpc: String,
    pub(crate) runtime: Runtime,
    pub(crate) http: reqwest::Client,
    _server: Server,
}

impl House {
    pub(crate) async fn start() -> Option<Self> {
        let config = gateway::Config { body_bytes_max: 4_096, ..Default::default() };
        Self::start_with(config, Secrets::new("hush")).await
    }

    /// On a free port.
    pub(crate) async fn start_with(config: gateway::Config, secrets: Secrets) -> Option<Self> {
        let server = server().await?;
        let nats = bus::Config { url: server.url.clone(), ..bus::Config::default() };
        let bus = Bus::connect(&nats, "test").await.unwrap();
        bus::provision(&bus).await.unwrap();
        let runtime = Runtime::new(bus);
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let config = gateway::Config { http: "127.0.0.1:0".into(), ..config };
        let edge = gateway::serve(config, secrets, runtime.clone()).await.unwrap();
        let (http, grpc) = (reqwest::Client::new(), format!("http://{}", edge.grpc.unwrap()));
        Some(Self { url: format!("{scheme}://{}", edge.http), grpc, runtime, http, _server: server })
    }

    /// Registers an agent type, a model and a tool, and answers every chat.
    pub(crate) async fn furnish(&self) {
        let Runtime { bus, tasks, .. } = &self.runtime;
        let chat = AgentType {
            name: "chat".into(),
            description: String::new(),
            system: "Be brief.".into(),
            models: vec![],
            tools: vec![],
            max_iterations: 1,
            max_tokens: 1_000,
            max_tool_calls: 0,
            deadline_ms: 20_000,
            agents: vec![],
            max_children: 0,
            max_depth: 0,
            policy: Default::default(),
        };
        let config = bus.bucket(stream::BUCKET_CONFIG).await.unwrap();
        config.put("agent.chat", encode(&chat).into()).await.unwrap();
        let models = vec![Model { name: "tiny".into(), kind: "chat".into(), window: 512 }];
        bus.serve(tasks, subject::RPC_MODELS, move |(): ()| std::future::ready(Reply::Ok(models.clone())))
            .await
            .unwrap();
        bus.serve(tasks, subject::RPC_TOOLS, |(): ()| std::future::ready(Vec::<Tool>::new())).await.unwrap();
        for partition in Partition::all() {
            let (bus, tasks_of_it) = (bus.clone(), tasks.clone());
            tasks.spawn(async move {
                let mut facts = bus.facts(partition).await.unwrap();
                while !tasks_of_it.soft().is_cancelled() {
                    let Ok(Some(fact)) = facts.next().await else { continue };
                    let read = Fact::read(&fact.stored.payload).unwrap();
                    if let FactBody::ExecutionSubmitted(request) = read.body {
                        let silent = request.messages.iter().any(|m| m.content == "wait");
                        script(&bus, read.exec, fact.stored.sequence, silent).await;
                    }
                    fact.done().await.unwrap();
                }
            });
        }
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.http.post(format!("{}{path}", self.url)).header("X-Internal-Auth", "hush").json(body)
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let request = self.http.get(format!("{}{path}", self.url)).header("X-Internal-Auth", "hush");
        request.send().await.unwrap().json().await.unwrap()
    }

    pub(crate) async fn ask(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = self.post(path, body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }
}

/// Takes a chat up and answers "Hello", of which the second frame is lost; a silent one stays open.
async fn script(bus: &Bus, exec: ExecutionId, submitted: u64, silent: bool) {
    let (effect, facts) = (EffectId::inference(1), FactsDigest::default());
    let draft = |n, facts_upto| Draft { exec, n, at: 1, machine: 1, facts_upto, facts: &facts, prev_hash: "" };
    let infer = Event::InferenceRequested(InferenceRequested {
        effect: effect.clone(),
        attempt: 1,
        turn: 1,
        context: 2,
        tokens_max: 0,
        deadline: 0,
    });
    let started = Event::ExecutionStarted(ExecutionStarted { model: "tiny".into() });
    let first = Record::seal(&draft(0, submitted), vec![started, infer]);
    let bus::Commit::Done(_) = bus.commit(&first, submitted).await.unwrap() else { panic!("stale") };
    if silent {
        return;
    }
    let frame = Frame {
        attempt: 1,
        n: 0,
        ids: vec![7],
        text: "Hel".into(),
        k: FrameKind::Delta,
        finish: None,
        usage: None,
        logprobs: Vec::new(),
    };
    bus.publish_tokens(exec, &effect, &frame).await.unwrap();
    bus.flush().await.unwrap();
    // The answer is written once the token could be read: the streams of tokens and of the log are not ordered.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let answer = FactBody::InferenceCompleted(InferenceCompleted {
        effect: effect.clone(),
        attempt: 1,
        worker: "w".into(),
        text: "Hello".into(),
        tool_calls: vec![],
        finish: FinishReason::Stop,
        usage: Usage::new(5, 2),
        cached_tokens: 0,
        timing: Default::default(),
        logprobs: Vec::new(),
        alternatives: Vec::new(),
        cached: false,
        dropped_messages: 0,
    });
    let answered = bus.append_fact(&Fact::new(exec, 2, answer)).await.unwrap().sequence;
    let end = Event::ExecutionCompleted(ExecutionCompleted {
        result: effect,
        finish: Some(FinishReason::Stop),
        iterations: 1,
        usage: Usage::new(5, 2),
    });
    bus.commit(&Record::seal(&draft(1, answered), vec![end]), answered).await.unwrap();
}
