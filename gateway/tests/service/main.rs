//! The gateway on a real bus, with a scripted orchestrator and workers behind it.
//! Skips, and says so, where there is no `nats-server`.

mod grpc;
mod house;
mod listening;
mod operations;

use std::time::Duration;

use futures::StreamExt;
use gateway::Secrets;
use runtime::bus::Kind;
use runtime::{Runtime, clock};
use schemas::{ExecutionId, Fact, FactBody};
use serde_json::{Value, json};

use house::House;

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
    let error = gateway::serve(config, Secrets::new("hush"), runtime).await.expect_err("taken").to_string();
    assert!(error.contains(&http) && error.contains("choose another port"), "{error}");
}
