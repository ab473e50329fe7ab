//! The gateway on a real bus, with a scripted orchestrator and workers behind it.
//! Skips, and says so, where there is no `nats-server`.

mod grpc;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures::StreamExt;
use runtime::bus::{self, Bus, Kind};
use runtime::config::Secret;
use runtime::{Runtime, Tasks, clock};
use schemas::decision::{Draft, ExecutionCompleted, ExecutionStarted, FactsDigest, InferenceRequested};
use schemas::fact::InferenceCompleted;
use schemas::rpc::{AgentType, Model, Reply, Tool};
use schemas::token::FrameKind;
use schemas::wire::encode;
use schemas::{
    EffectId, Event, ExecutionId, Fact, FactBody, FinishReason, Frame, Partition, Record, Usage, stream, subject,
};
use serde_json::{Value, json};

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
struct House {
    url: String,
    grpc: String,
    runtime: Runtime,
    http: reqwest::Client,
    _server: Server,
}

impl House {
    async fn start() -> Option<Self> {
        let server = server().await?;
        let config = bus::Config { url: server.url.clone(), ..bus::Config::default() };
        let bus = Bus::connect(&config, "test").await.unwrap();
        bus::provision(&bus).await.unwrap();
        let runtime = Runtime { bus, tasks: Tasks::new(), metrics: Default::default() };
        let config = gateway::Config { http: "127.0.0.1:0".into(), body_bytes_max: 4_096, ..Default::default() };
        let edge = gateway::serve(config, Secret::new("hush".into()), runtime.clone()).await.unwrap();
        let (http, grpc) = (reqwest::Client::new(), format!("http://{}", edge.grpc.unwrap()));
        Some(Self { url: format!("http://{}", edge.http), grpc, runtime, http, _server: server })
    }

    /// Registers an agent type, a model and a tool, and answers every chat.
    async fn furnish(&self) {
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

    fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.http.post(format!("{}{path}", self.url)).header("X-Internal-Auth", "hush").json(body)
    }

    async fn get(&self, path: &str) -> Value {
        let request = self.http.get(format!("{}{path}", self.url)).header("X-Internal-Auth", "hush");
        request.send().await.unwrap().json().await.unwrap()
    }

    async fn ask(&self, path: &str, body: &Value) -> (u16, Value) {
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

fn hi() -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}]})
}

async fn sse(request: reqwest::RequestBuilder) -> Vec<(String, Option<String>, Value)> {
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let text = tokio::time::timeout(Duration::from_secs(20), response.text()).await.expect("it ends").unwrap();
    let events = text.split("\n\n").filter(|e| e.contains("event:")).map(|event| {
        let field = |name: &str| event.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned());
        (field("event:").unwrap(), field("id:"), serde_json::from_str(&field("data:").unwrap()).unwrap())
    });
    events.collect()
}

fn names(events: &[(String, Option<String>, Value)]) -> Vec<&str> {
    events.iter().map(|(name, _, _)| name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_is_answered_streamed_resumed_and_listed() {
    let Some(house) = House::start().await else { return };
    house.furnish().await;

    let (status, answer) = house.ask("/internal/chat", &hi()).await;
    assert_eq!((status, &answer["response"]), (200, &json!("Hello")), "{answer}");
    assert_eq!(answer["finish_reason"], "stop");

    let mut streamed = hi();
    streamed["stream"] = json!(true);
    let events = sse(house.post("/internal/chat", &streamed)).await;
    assert_eq!(names(&events), ["started", "token", "token", "done"]);
    assert_eq!((events[1].1.as_deref(), &events[1].2), (Some("1-infer-0.1"), &json!({"text": "Hel"})));
    assert_eq!((events[2].1.as_deref(), &events[2].2), (Some("1-infer-0.2"), &json!({"text": "lo"})));
    let id = events[0].2["execution_id"].as_str().unwrap().to_owned();

    let again = || house.http.get(format!("{}/internal/executions/{id}/stream", house.url));
    let again = || again().header("X-Internal-Auth", "hush");
    let whole = sse(again()).await;
    assert_eq!(names(&whole), ["started", "token", "done"]);
    assert_eq!(whole[1].2["text"], "Hello");
    let rest = sse(again().header("Last-Event-ID", "1-infer-0.1")).await;
    assert_eq!((names(&rest), &rest[1].2["text"]), (vec!["started", "token", "done"], &json!("lo")));
    assert_eq!(names(&sse(again().header("Last-Event-ID", "1-infer-0.2")).await), ["started", "done"]);

    let view = house.get(&format!("/internal/executions/{id}")).await;
    assert_eq!((&view["status"], &view["agent_type"]), (&json!("completed"), &json!("chat")));
    let log = house.get(&format!("/internal/executions/{id}/events")).await;
    let types: Vec<&str> = log.as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["execution.submitted", "inference.requested", "inference.completed", "execution.completed"]);
    let followed = house.http.get(format!("{}/internal/executions/{id}/events?follow=true&from=2", house.url));
    assert_eq!(names(&sse(followed.header("X-Internal-Auth", "hush")).await), ["event", "event"]);
    assert_eq!(house.get("/health").await["ready"], true);
    let metrics = house.http.get(format!("{}/metrics", house.url)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("vlinders_requests_total{endpoint=\"/internal/chat\",status=\"200\"} 2"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_with_a_code() {
    let Some(house) = House::start().await else { return };
    let code = |(status, problem): (u16, Value)| (status, problem["code"].as_str().unwrap_or_default().to_owned());
    assert_eq!(code(house.ask("/internal/chat", &hi()).await), (503, "orchestrator_absent".into()));
    house.furnish().await;

    let without = house.http.post(format!("{}/internal/chat", house.url)).body("{").send().await.unwrap();
    assert_eq!(without.status(), 403);
    assert_eq!(without.headers()["content-type"], "application/problem+json");
    assert_eq!(code(house.ask("/internal/chat", &json!({"messages": []})).await), (400, "invalid_request".into()));
    let large = json!({"messages": [{"role": "user", "content": "x".repeat(5_000)}]});
    assert_eq!(code(house.ask("/internal/chat", &large).await), (413, "body_too_large".into()));
    let agent = json!({"agent_type": "chta", "instruction": "go"});
    assert_eq!(code(house.ask("/internal/agent", &agent).await), (404, "unknown_agent".into()));
    let tool = json!({"tool_name": "nothing", "arguments": {}});
    assert_eq!(code(house.ask("/internal/tools/execute", &tool).await), (404, "unknown_tool".into()));
    let embed = json!({"input": "text"});
    assert_eq!(code(house.ask("/internal/embeddings", &embed).await), (503, "embeddings_absent".into()));
    let nowhere = format!("/internal/executions/{}", clock::execution_id());
    assert_eq!(house.get(&nowhere).await["code"], "unknown_execution");
    let mut other = hi();
    other["conversation_id"] = json!(clock::execution_id());
    assert_eq!(code(house.ask("/internal/chat", &other).await), (404, "unknown_conversation".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_is_a_fact_and_so_is_a_disconnect_that_asks_for_it() {
    let Some(house) = House::start().await else { return };
    house.furnish().await;
    let waits = json!({"messages": [{"role": "user", "content": "wait"}], "stream": true});
    for by_endpoint in [true, false] {
        let request = house.post("/internal/chat", &waits);
        let request = if by_endpoint { request } else { request.header("X-Cancel-On-Disconnect", "true") };
        let response = request.send().await.unwrap();
        let id: ExecutionId = response.headers()["x-execution-id"].to_str().unwrap().parse().unwrap();
        if by_endpoint {
            let (status, view) = house.ask(&format!("/internal/executions/{id}/cancel"), &json!({})).await;
            assert_eq!((status, &view["execution_id"]), (202, &json!(id)));
        }
        let mut body = response.bytes_stream();
        body.next().await.unwrap().unwrap();
        drop(body);
        let cancelled = async {
            loop {
                let log = house.runtime.bus.read_execution(id, 0).await.unwrap();
                let facts = log.iter().filter(|s| s.kind == Kind::Fact).map(|s| Fact::read(&s.payload).unwrap());
                if facts.into_iter().any(|f| matches!(f.body, FactBody::CancelRequested(_))) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), cancelled).await.expect("the cancel is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let Some(house) = House::start().await else { return };
    let http = house.url.trim_start_matches("http://").to_owned();
    let config = gateway::Config { http: http.clone(), ..Default::default() };
    let runtime = Runtime { metrics: Default::default(), ..house.runtime.clone() };
    let error = gateway::serve(config, Secret::new("hush".into()), runtime).await.expect_err("taken").to_string();
    assert!(error.contains(&http) && error.contains("choose another port"), "{error}");
}
