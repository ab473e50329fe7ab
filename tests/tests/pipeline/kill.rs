//! `kill -9` of each part in the middle of the work: everything accepted completes, with one history.

use pipeline_tests::{System, read_events, repository, text};
use serde_json::{Value, json};

/// An agent request whose answer takes a while: a search and the answer about it.
fn agent() -> Value {
    json!({"agent_type": "coder", "instruction": "Where is FactsDigest defined?", "workspace": repository(), "config": {"max_iterations": 2}})
}

/// Kills `role` once a stream has shown an event called `at`, starts another, and wants every execution whole.
async fn killed(role: &str, at: &str) -> anyhow::Result<()> {
    let mut system = System::start().await?;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(system.open("/internal/agent", agent()).await?);
    }
    let (_, first) = &mut open[0];
    read_events(first, |events| events.iter().any(|(name, _)| name == at)).await?;
    system.kill_role(role).await?;
    system.start_role(role).await?;
    for (exec, _) in &open {
        let view = system.ended(*exec).await?;
        assert_eq!(view["status"], "completed", "{role} killed at {at}: {view}\n{}", system.log());
        system.prove(*exec).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_orchestrator_dies_right_after_it_took_up_a_request() -> anyhow::Result<()> {
    killed("orchestrator", "started").await
}

#[tokio::test]
async fn the_orchestrator_dies_with_tools_under_way() -> anyhow::Result<()> {
    killed("orchestrator", "tool_call").await
}

#[tokio::test]
async fn the_inference_worker_dies_before_its_first_token() -> anyhow::Result<()> {
    killed("inference-worker", "started").await
}

#[tokio::test]
async fn the_inference_worker_dies_in_the_middle_of_an_answer() -> anyhow::Result<()> {
    killed("inference-worker", "token").await
}

#[tokio::test]
async fn the_tool_worker_dies_with_calls_in_hand() -> anyhow::Result<()> {
    killed("tool-worker", "tool_call").await
}

#[tokio::test]
async fn the_analysis_worker_and_the_gateway_die() -> anyhow::Result<()> {
    killed("analysis-worker", "started").await?;
    killed("gateway", "tool_call").await
}

#[tokio::test]
async fn a_client_sees_one_text_across_the_death_of_its_worker() -> anyhow::Result<()> {
    let mut system = System::start().await?;
    let (exec, mut stream) = system.open("/internal/agent", agent()).await?;
    let mut events = read_events(&mut stream, |events| events.iter().filter(|(n, _)| n == "token").count() > 2).await?;
    system.kill_role("inference-worker").await?;
    system.start_role("inference-worker").await?;
    events.extend(read_events(&mut stream, |_| false).await?);
    let (name, done) = events.last().expect("events");
    assert_eq!(name, "done", "{events:?}");
    assert_eq!(text(&events), done["response"].as_str().expect("text"), "neither a hole nor a repeat");
    system.prove(exec).await?;
    Ok(())
}

#[tokio::test]
async fn nats_dies_and_comes_back() -> anyhow::Result<()> {
    let mut system = System::start().await?;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(system.open("/internal/agent", agent()).await?);
    }
    read_events(&mut open[0].1, |events| events.iter().any(|(name, _)| name == "tool_call")).await?;
    system.kill_nats().await?;
    system.start_nats().await?;
    for (exec, _) in &open {
        let view = system.ended(*exec).await?;
        assert_eq!(view["status"], "completed", "{view}\n{}", system.log());
        system.prove(*exec).await?;
    }
    Ok(())
}
