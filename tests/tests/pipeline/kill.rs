//! `kill -9` of each part in the middle of the work: everything accepted ends as it would have, with one history.

use pipeline_tests::{System, read_events, text};
use runtime::bus::Stored;
use schemas::{Fact, FactBody};
use serde_json::{Value, json};

/// An agent request whose answer takes a while: a search and the answer about it.
fn agent(system: &System) -> Value {
    json!({"agent_type": "coder", "instruction": "Where is TokenReader defined?", "workspace": system.workspace(), "config": {"max_iterations": 4, "cache": false}})
}

/// How an execution ended: status and answer. Greedy decoding makes it the same each time.
fn end(view: &Value) -> (&Value, &Value) {
    (&view["status"], &view["response"])
}

/// The end of the same request when nothing is disturbed.
async fn undisturbed(system: &System) -> anyhow::Result<Value> {
    let (exec, _stream) = system.open("/internal/agent", agent(system)).await?;
    let view = system.ended(exec).await?;
    assert!(view["response"].as_str().is_some_and(|text| !text.is_empty()), "{view}");
    Ok(view)
}

/// Kills `role` once a stream has shown an event called `at`, starts another, and wants every execution to end as one
/// that nothing disturbed.
async fn killed(role: &str, at: &str) -> anyhow::Result<()> {
    let mut system = System::start().await?;
    let wanted = undisturbed(&system).await?;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(system.open("/internal/agent", agent(&system)).await?);
    }
    let (_, first) = &mut open[0];
    read_events(first, |events| events.iter().any(|(name, _)| name == at)).await?;
    system.kill_role(role).await?;
    system.start_role(role).await?;
    for (exec, _) in &open {
        let view = system.ended(*exec).await?;
        assert_eq!(end(&view), end(&wanted), "{role} killed at {at}: {view}\n{}", system.log());
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
    let (exec, mut stream) = system.open("/internal/agent", agent(&system)).await?;
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
    let wanted = undisturbed(&system).await?;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(system.open("/internal/agent", agent(&system)).await?);
    }
    read_events(&mut open[0].1, |events| events.iter().any(|(name, _)| name == "tool_call")).await?;
    system.kill_nats().await?;
    system.start_nats().await?;
    for (exec, _) in &open {
        let view = system.ended(*exec).await?;
        assert_eq!(end(&view), end(&wanted), "{view}\n{}", system.log());
        system.prove(*exec).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_standby_takes_up_what_a_dead_owner_left_even_where_nothing_more_happens() -> anyhow::Result<()> {
    let mut system = System::start_without(&["inference-worker"]).await?;
    let exec = runtime::clock::execution_id();
    let deadline = runtime::clock::now() + 9_000_000_000;
    let mut fact = system.request(exec, "hello", &[]);
    if let FactBody::ExecutionSubmitted(request) = &mut fact.body {
        request.limits.deadline = deadline;
    }
    system.bus().await?.append_fact(&fact).await?;
    system.log_until(exec, |messages| messages.len() == 2).await?;
    // The first one owns the partition now; the second stands by.
    system.start_role("orchestrator").await?;
    system.kill_role("orchestrator").await?;
    // No fact comes any more that could find an owner: only the clock says that the deadline has passed.
    let view = system.ended(exec).await?;
    assert_eq!(view["status"], "timed_out", "{view}\n{}", system.log());
    let late = runtime::clock::now() - deadline;
    assert!(late >= 0, "it ended before its time");
    println!("ended {} ms after its deadline", late / 1_000_000);
    let lost = |m: &Stored| Fact::read(&m.payload).is_ok_and(|fact| matches!(fact.body, FactBody::EffectLost(_)));
    let log = system.prove(exec).await?;
    assert!(!log.iter().any(lost), "no worker ever came for its job, so none can have lost it");
    Ok(())
}
