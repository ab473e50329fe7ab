//! More requests at once than are let in: each has an answer or is told when to come again, and afterwards everything is
//! as before.

use std::collections::BTreeMap;

use anyhow::Context;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pipeline_tests::{PATIENCE, System};
use serde_json::{Value, json};

/// Requests at once.
const REQUESTS: usize = 3_000;
/// Of these the edge lets in at once.
const OPEN_MAX: usize = 600;

#[tokio::test]
async fn thousands_of_chats_at_once_are_answered_or_told_to_come_again() -> anyhow::Result<()> {
    pipeline_tests::raise_open_files()?;
    let mut system = System::start_without(&["gateway"]).await?;
    let config = system.directory().join("gateway.toml");
    std::fs::write(&config, format!("[gateway]\nrequests_open_max = {OPEN_MAX}\n"))?;
    system.start_role_with("gateway", &["--config", &config.display().to_string()], &[]).await?;
    let chat = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1});
    let one = || async {
        let response = tokio::time::timeout(PATIENCE, system.post("/internal/chat", &chat).send()).await??;
        let status = response.status().as_u16();
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (kind, after) = (header("content-type"), header("retry-after"));
        let body: Value = response.json().await?;
        match status {
            200 => assert_eq!(
                (&body["finish_reason"], &body["usage"]["completion_tokens"]),
                (&json!("length"), &json!(1)),
                "{body}"
            ),
            429 => {
                assert_eq!(kind.as_deref(), Some("application/problem+json"), "{body}");
                assert_eq!(body["code"], "queue_full", "{body}");
                let after = after.context("Retry-After is missing")?;
                assert!(after.parse::<u64>().is_ok_and(|seconds| seconds >= 1), "Retry-After: {after}");
            }
            other => panic!("{other}: {body}\n{}", system.log()),
        }
        anyhow::Ok(status)
    };
    let mut asked: FuturesUnordered<_> = (0..REQUESTS).map(|_| one()).collect();
    let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
    while let Some(status) = asked.next().await {
        *counts.entry(status.with_context(|| system.log())?).or_default() += 1;
    }
    println!("{counts:?}");
    assert_eq!(counts.values().sum::<usize>(), REQUESTS);
    // Those let in at once, and whoever came when there was room again.
    assert!(counts.get(&200).is_some_and(|answered| *answered >= OPEN_MAX), "{counts:?}");
    assert!(counts.contains_key(&429), "nobody was told to come again, so nothing was too much: {counts:?}");
    // Everybody lives and has room again.
    let (status, answer) =
        system.ask("/internal/chat", &json!({"messages": [{"role": "user", "content": "hello"}]})).await?;
    assert_eq!((status, &answer["finish_reason"]), (200, &json!("stop")), "{answer}");
    let health: Value = system.get("/health").send().await?.json().await?;
    assert_eq!(health["ready"], json!(true), "{health}");
    Ok(())
}
