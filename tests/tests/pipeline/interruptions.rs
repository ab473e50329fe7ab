//! What clients and strangers do in the middle: cancel, go away, write nonsense into the log.

use pipeline_tests::{System, read_events};
use serde_json::{Value, json};

fn agent(system: &System) -> Value {
    json!({"agent_type": "coder", "instruction": "Where is TokenReader defined?", "workspace": system.workspace(), "config": {"max_iterations": 4, "cache": false}})
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
    system.prove(exec).await?;
    Ok(())
}

#[tokio::test]
async fn an_execution_outlives_its_client() -> anyhow::Result<()> {
    let system = System::start().await?;
    let (exec, stream) = system.open("/internal/agent", agent(&system)).await?;
    drop(stream);
    let view = system.ended(exec).await?;
    assert!(view["response"].as_str().is_some_and(|text| !text.is_empty()), "{view}");
    system.prove(exec).await?;
    Ok(())
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
    system.prove(exec).await?;
    Ok(())
}

#[tokio::test]
async fn an_agent_of_which_a_tool_does_not_exist_is_told() -> anyhow::Result<()> {
    let system = System::start().await?;
    let mut ask = agent(&system);
    ask["config"] = json!({"tools": ["serch_code"]});
    let (status, problem) = system.ask("/internal/agent", &ask).await?;
    assert_eq!(status, 404, "{problem}");
    assert!(problem.to_string().contains("search_code"), "{problem}");
    Ok(())
}

/// A chat whose tokens flow for a while: at this temperature the end of the turn is one token in thousands.
fn endless() -> Value {
    json!({"messages": [{"role": "user", "content": "hello"}], "temperature": 10.0, "seed": 7})
}

/// Waits for the last frame of the answer; returns how many tokens were published.
async fn tokens_published(system: &System, exec: schemas::ExecutionId) -> anyhow::Result<usize> {
    let (bus, effect) = (system.bus().await?, schemas::EffectId::inference(1));
    let frames = async {
        loop {
            let frames = bus.read_tokens(exec, &effect).await?;
            if frames.last().is_some_and(|frame| frame.k == schemas::token::FrameKind::End) {
                return anyhow::Ok(frames);
            }
            tokio::task::yield_now().await;
        }
    };
    let frames = tokio::time::timeout(pipeline_tests::PATIENCE, frames).await??;
    Ok(frames.iter().map(|frame| frame.ids.len()).sum())
}

#[tokio::test]
async fn a_cancel_while_tokens_flow_stops_them() -> anyhow::Result<()> {
    let system = System::start().await?;
    let (exec, mut stream) = system.open("/internal/chat", endless()).await?;
    read_events(&mut stream, |events| events.iter().any(|(name, _)| name == "token")).await?;
    let (status, _) = system.ask(&format!("/internal/executions/{exec}/cancel"), &json!({})).await?;
    assert_eq!(status, 202);
    let events = read_events(&mut stream, |_| false).await?;
    let (name, problem) = events.last().expect("an end");
    assert_eq!((name.as_str(), &problem["code"]), ("error", &json!("cancelled")), "{events:?}");
    let published = tokens_published(&system, exec).await?;
    assert!(published < 900, "the worker stopped in the middle, after {published} tokens");
    system.prove(exec).await?;
    Ok(())
}

#[tokio::test]
async fn a_client_that_goes_ends_its_execution_when_it_asked_for_that() -> anyhow::Result<()> {
    let mut system = System::start().await?;
    // In the middle of a stream.
    let mut body = endless();
    body["stream"] = json!(true);
    let request = system.post("/internal/chat", &body).header("X-Cancel-On-Disconnect", "true");
    let mut stream = request.send().await?;
    let exec = stream.headers()["x-execution-id"].to_str()?.parse()?;
    read_events(&mut stream, |events| events.iter().any(|(name, _)| name == "token")).await?;
    drop(stream);
    let view = system.ended(exec).await?;
    assert_eq!(view["status"], "cancelled", "{view}");
    assert!(view["error"].as_str().is_some_and(|e| e.contains("the client disconnected")), "{view}");
    assert!(tokens_published(&system, exec).await? < 900);
    system.prove(exec).await?;

    // While it waits for the whole answer, which cannot come.
    system.kill_role("inference-worker").await?;
    let bus = system.bus().await?;
    let request = system.post("/internal/chat", &endless()).header("X-Cancel-On-Disconnect", "true");
    let accepted = async {
        loop {
            if let Some(newest) = bus.newest_executions(1).await?.into_iter().find(|newest| *newest != exec) {
                return anyhow::Ok(newest);
            }
        }
    };
    let waiting = tokio::select! {
        _ = request.send() => panic!("there is nobody to answer"),
        waiting = accepted => waiting?,
    };
    let view = system.ended(waiting).await?;
    assert_eq!(view["status"], "cancelled", "{view}");
    system.prove(waiting).await?;

    // One that finished is not cancelled when its client goes afterwards.
    system.start_role("inference-worker").await?;
    let hello = json!({"messages": [{"role": "user", "content": "hello"}]});
    let answered = system.post("/internal/chat", &hello).header("X-Cancel-On-Disconnect", "true").send().await?;
    let answer: Value = answered.json().await?;
    let exec = answer["execution_id"].as_str().expect("an execution").parse()?;
    assert_eq!(system.ended(exec).await?["status"], "completed");
    Ok(())
}
