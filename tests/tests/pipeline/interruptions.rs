//! What clients and strangers do in the middle: cancel, go away, write nonsense into the log.

use pipeline_tests::{System, read_events, repository};
use serde_json::{Value, json};

fn agent() -> Value {
    json!({"agent_type": "coder", "instruction": "Where is FactsDigest defined?", "workspace": repository(), "config": {"max_iterations": 2}})
}

#[tokio::test]
async fn a_cancelled_execution_ends_and_says_so() -> anyhow::Result<()> {
    let mut system = System::start().await?;
    // Without a worker nothing can finish before the cancel arrives.
    system.kill_role("inference-worker").await?;
    let exec = system.submit("hello").await?;
    let mut stream = system.get(&format!("/internal/executions/{exec}/stream")).send().await?;
    read_events(&mut stream, |events| !events.is_empty()).await?;
    let (status, _) = system.ask(&format!("/internal/executions/{exec}/cancel"), &json!({})).await?;
    assert_eq!(status, 202);
    let events = read_events(&mut stream, |_| false).await?;
    let (name, problem) = events.last().expect("an end");
    assert_eq!((name.as_str(), &problem["code"]), ("error", &json!("cancelled")), "{events:?}");
    assert_eq!(system.ended(exec).await?["status"], "cancelled");
    let (status, view) = system.ask(&format!("/internal/executions/{exec}/cancel"), &json!({})).await?;
    assert_eq!((status, &view["status"]), (200, &json!("cancelled")), "a second cancel changes nothing");
    system.prove(exec).await
}

#[tokio::test]
async fn an_execution_outlives_its_client() -> anyhow::Result<()> {
    let system = System::start().await?;
    let (exec, stream) = system.open("/internal/agent", agent()).await?;
    drop(stream);
    assert_eq!(system.ended(exec).await?["status"], "completed");
    system.prove(exec).await
}

#[tokio::test]
async fn nonsense_in_the_log_is_passed_over_and_reported() -> anyhow::Result<()> {
    let mut system = System::start().await?;
    system.kill_role("inference-worker").await?;
    let exec = system.submit("hello").await?;
    let bus = system.bus().await?;
    bus.reply(schemas::subject::fact(exec), b"\xc1 not a fact".to_vec().into()).await?;
    bus.flush().await?;
    system.start_role("inference-worker").await?;
    assert_eq!(system.ended(exec).await?["status"], "completed");
    let events: Value = system.get(&format!("/internal/executions/{exec}/events")).send().await?.json().await?;
    assert!(events.as_array().expect("a list").iter().any(|e| e["kind"] == "corrupt"), "{events}");
    system.prove(exec).await
}

#[tokio::test]
async fn an_agent_of_which_a_tool_does_not_exist_is_told() -> anyhow::Result<()> {
    let system = System::start().await?;
    let mut ask = agent();
    ask["config"] = json!({"tools": ["serch_code"]});
    let (status, problem) = system.ask("/internal/agent", &ask).await?;
    assert_eq!(status, 404, "{problem}");
    assert!(problem.to_string().contains("search_code"), "{problem}");
    Ok(())
}
