//! `Idempotency-Key`: however often a request is sent, on whichever gateway, it is one execution.

use pipeline_tests::{System, read_events, text};
use runtime::bus::Kind;
use runtime::clock;
use schemas::stream::BUCKET_REQUESTS;
use schemas::wire::{decode, encode};
use schemas::{Fact, FactBody};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Sends a chat under a key to a gateway: the status, whether it was answered before, and the answer.
async fn send(system: &System, http: &str, key: &str, body: &Value) -> anyhow::Result<(u16, bool, Value)> {
    let request = reqwest::Client::new().post(format!("{http}/internal/chat")).header("idempotency-key", key);
    let response = request.header("x-internal-auth", system.secret()).json(body).send().await?;
    let again = response.headers().get("idempotent-replayed").is_some_and(|again| again == "true");
    Ok((response.status().as_u16(), again, response.json().await?))
}

#[tokio::test]
async fn one_key_is_one_execution_on_every_gateway() -> anyhow::Result<()> {
    let mut system = System::start().await?;
    let first = system.http.clone();
    system.start_role("gateway").await?;
    let second = system.http.clone();
    assert_ne!(first, second);
    // Drawn, so that two executions would differ.
    let body = json!({"messages": [{"role": "user", "content": "hello"}], "temperature": 1.5, "max_tokens": 24});

    // Four at once, on both.
    let asked = [&first, &second, &first, &second].map(|http| send(&system, http, "one", &body));
    let answers = futures::future::try_join_all(asked).await?;
    for (status, _, answer) in &answers {
        assert_eq!(*status, 200, "{answer}");
        assert_eq!(answer, &answers[0].2);
    }
    assert!(answers.iter().any(|(_, again, _)| !again), "one of them began it");
    let (_, again, answer) = send(&system, &first, "one", &body).await?;
    assert_eq!((again, &answer), (true, &answers[0].2));
    let exec = answer["execution_id"].as_str().expect("an id").parse()?;
    let log = system.prove(exec).await?;
    let facts = log.iter().filter(|stored| stored.kind == Kind::Fact).map(|stored| Fact::read(&stored.payload));
    let facts = facts.collect::<Result<Vec<_>, _>>()?;
    let submitted = facts.iter().filter(|fact| matches!(fact.body, FactBody::ExecutionSubmitted(_)));
    assert_eq!(submitted.count(), 1, "{facts:?}");

    // As a stream it says the same.
    let streamed = json!({"messages": body["messages"], "temperature": 1.5, "max_tokens": 24, "stream": true});
    let mut replies = Vec::new();
    for _ in 0..2 {
        let mut reply = system.post("/internal/chat", &streamed).header("idempotency-key", "two").send().await?;
        replies.push(read_events(&mut reply, |_| false).await?);
    }
    assert_eq!(text(&replies[0]), text(&replies[1]));
    assert_eq!(replies[0].first(), replies[1].first(), "the same execution");

    // The key is taken: another request is refused, and told of whom.
    let other = json!({"messages": [{"role": "user", "content": "something else"}]});
    let (status, _, problem) = send(&system, &second, "one", &other).await?;
    assert_eq!((status, &problem["code"]), (409, &json!("idempotency_key_reused")), "{problem}");
    assert_eq!(problem["execution_id"], answer["execution_id"]);
    let (status, _, problem) = send(&system, &first, &"k".repeat(256), &other).await?;
    assert_eq!((status, &problem["code"]), (400, &json!("invalid_request")), "{problem}");
    Ok(())
}

#[tokio::test]
async fn a_key_whose_gateway_died_before_the_log_had_the_request_begins_it_once() -> anyhow::Result<()> {
    let system = System::start().await?;
    let body = json!({"messages": [{"role": "user", "content": "hello"}]});
    let (_, _, probe) = send(&system, &system.http, "probe", &body).await?;
    // What a gateway leaves that dies between keeping the key and appending the request.
    let bus = system.bus().await?;
    let bucket = bus.bucket(BUCKET_REQUESTS).await?;
    let name = |key: &str| hex::encode(Sha256::digest(key));
    let kept = bucket.get(name("probe")).await?.expect("the key is kept");
    let mut kept: Value = decode(&kept)?;
    assert_eq!(kept["exec"], probe["execution_id"]);
    let left = clock::execution_id();
    kept["exec"] = json!(left);
    assert!(bus.create_entry(BUCKET_REQUESTS, &name("left"), encode(&kept).into()).await?);

    let (status, again, answer) = send(&system, &system.http, "left", &body).await?;
    assert_eq!((status, again), (200, false), "{answer}");
    assert_eq!(answer["execution_id"], json!(left));
    assert_eq!(answer["response"], probe["response"]);
    Ok(())
}
