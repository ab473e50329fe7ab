//! What people do while an execution runs: allow and deny calls, pause and resume, say more, grant more, cancel with
//! care; and agents that ask other agents. The test plays the model, so each story is the same every time.

use pipeline_tests::{System, conversation, events, read_events};
use runtime::Tasks;
use runtime::bus::Stored;
use schemas::chat::Role;
use schemas::rpc::{Model, Reply};
use schemas::{Event, ExecutionId, Fact, FactBody, subject};
use serde_json::{Value, json};

/// A system without an inference worker, whose gateway is told that the model is loaded.
async fn played() -> anyhow::Result<(System, Tasks)> {
    let system = System::start_without(&["inference-worker"]).await?;
    let (bus, tasks) = (system.bus().await?, Tasks::new());
    let models = vec![Model { name: "tiny".into(), kind: "chat".into(), window: 1_024 }];
    bus.serve(&tasks, subject::RPC_MODELS, move |(): ()| std::future::ready(Reply::Ok(models.clone()))).await?;
    Ok((system, tasks))
}

fn agent(system: &System, agent_type: &str, config: &Value) -> Value {
    json!({"agent_type": agent_type, "instruction": "go", "workspace": system.workspace(), "config": config})
}

fn holds(log: &[Stored], wanted: impl Fn(&Event) -> bool) -> bool {
    events(log).iter().flatten().any(wanted)
}

async fn view(system: &System, exec: ExecutionId) -> anyhow::Result<Value> {
    Ok(system.get(&format!("/internal/executions/{exec}")).send().await?.json().await?)
}

#[tokio::test]
async fn a_planner_hands_parts_to_others_and_answers_from_what_they_found() -> anyhow::Result<()> {
    let (system, _tasks) = played().await?;
    let (exec, mut stream) = system.open("/internal/agent", agent(&system, "planner", &json!({}))).await?;
    let part = |agent: &str, task: &str| ("delegate", json!({"agent": agent, "task": task}));
    system.answer(exec, 1, "", &[part("coder", "find it"), part("researcher", "read it"), part("chat", "x")]).await?;
    let asked = |log: &[Stored]| {
        let children = |event: &Event| match event {
            Event::ChildRequested(asked) => Some((asked.agent.clone(), asked.child)),
            _ => None,
        };
        events(log).iter().flatten().filter_map(children).collect::<Vec<_>>()
    };
    let log = system.log_until(exec, |log| asked(log).len() == 2).await?;
    let waits = view(&system, exec).await?["waiting_for"].to_string();
    for (agent, child) in asked(&log) {
        assert!(waits.contains(&format!("the agent {agent}, execution {child}")), "{waits}");
        system.answer(child, 1, &format!("{agent} says so."), &[]).await?;
    }
    system.answer(exec, 2, "Both say so.", &[]).await?;
    let view = system.ended(exec).await?;
    assert_eq!((&view["status"], &view["response"]), (&json!("completed"), &json!("Both say so.")), "{view}");
    let log = system.prove(exec).await?;
    let read: Vec<String> =
        conversation(exec, &log).into_iter().filter(|m| m.role == Role::Tool).map(|m| m.content).collect();
    assert_eq!(read[..2], ["coder says so.".to_owned(), "researcher says so.".to_owned()]);
    assert!(read[2].starts_with("error: no such agent: chat; agents are coder, researcher"), "{}", read[2]);
    for (agent, child) in asked(&log) {
        let log = system.prove(child).await?;
        let Ok(Fact { body: FactBody::ExecutionSubmitted(request), .. }) = Fact::read(&log[0].payload) else {
            panic!("the first message is the request");
        };
        assert_eq!((request.agent, request.model.as_str(), request.window), (agent, "tiny", 1_024));
        assert!(request.tools.iter().any(|t| t.function.name == "search_code"), "its own tools");
        assert!(request.tools.iter().all(|t| t.function.name != "delegate"), "it asks nobody");
    }
    let events = read_events(&mut stream, |_| false).await?;
    let results = events.iter().filter(|(name, _)| name == "tool_result").count();
    assert_eq!((results, events.last().map(|(name, _)| name.as_str())), (3, Some("done")), "{events:?}");
    Ok(())
}

#[tokio::test]
async fn a_call_waits_for_a_person_who_allows_edits_or_denies_it() -> anyhow::Result<()> {
    let (system, _tasks) = played().await?;
    let config = json!({"approve": ["read_file"]});
    let (exec, mut stream) = system.open("/internal/agent", agent(&system, "coder", &config)).await?;
    let read = |path: &str| ("read_file", json!({"path": path}));
    system.answer(exec, 1, "", &[read("src/main.rs"), read("src/nothing.rs"), read("src/reader.rs")]).await?;
    let asked = read_events(&mut stream, |events| events.iter().filter(|(name, _)| name == "approval").count() == 3);
    let asked: Vec<Value> = asked.await?.into_iter().filter(|(name, _)| name == "approval").map(|(_, e)| e).collect();
    assert_eq!((&asked[0]["effect"], &asked[0]["name"]), (&json!("1-tool-0"), &json!("read_file")));
    assert_eq!(asked[1]["arguments"], json!({"path": "src/nothing.rs"}));
    assert!(asked[0]["expires"].as_str().is_some_and(|at| at.ends_with('Z')), "{asked:?}");
    let waits = view(&system, exec).await?["waiting_for"].to_string();
    assert!(waits.contains("1-tool-0: approval of read_file until "), "{waits}");

    let path = format!("/internal/executions/{exec}/approve");
    let (status, problem) = system.ask(&path, &json!({"effect": "1-tool-7", "verdict": "allow"})).await?;
    assert_eq!((status, &problem["code"]), (409, &json!("not_awaiting_approval")), "{problem}");
    assert!(problem["next_step"].as_str().is_some_and(|s| s.contains("1-tool-0 (read_file)")), "{problem}");
    let (status, _) = system.ask(&path, &json!({"effect": "1-tool-0", "verdict": "allow", "by": "ann"})).await?;
    assert_eq!(status, 202);
    let edit = json!({"effect": "1-tool-1", "verdict": "edit", "arguments": {"path": "src/liveness.rs"}});
    assert_eq!(system.ask(&path, &edit).await?.0, 202);
    let deny = json!({"effect": "1-tool-2", "verdict": "deny", "reason": "not that one"});
    assert_eq!(system.ask(&path, &deny).await?.0, 202);

    // A client that comes now is asked about nothing any more.
    system.log_until(exec, |log| holds(log, |e| matches!(e, Event::ToolsJoined(_)))).await?;
    let mut late = system.get(&format!("/internal/executions/{exec}/stream")).send().await?;
    system.answer(exec, 2, "Done.", &[]).await?;
    let events = read_events(&mut late, |_| false).await?;
    assert!(events.iter().all(|(name, _)| name != "approval"), "{events:?}");
    let done = &events.last().expect("an end").1;
    assert_eq!(done["tool_calls"][1]["arguments"], json!({"path": "src/liveness.rs"}), "{done}");
    let log = system.prove(exec).await?;
    let results: Vec<String> =
        conversation(exec, &log).into_iter().filter(|m| m.role == Role::Tool).map(|m| m.content).collect();
    assert!(results[0].contains("fn main"), "{results:?}");
    assert!(results[1].contains("pub struct Liveness"), "{results:?}");
    assert_eq!(results[2], "error: this call was not allowed: not that one");
    let (status, problem) = system.ask(&path, &deny).await?;
    assert_eq!((status, &problem["code"]), (409, &json!("execution_ended")), "{problem}");
    Ok(())
}

#[tokio::test]
async fn an_execution_pauses_hears_more_and_goes_on() -> anyhow::Result<()> {
    let (system, _tasks) = played().await?;
    let (exec, _stream) = system.open("/internal/agent", agent(&system, "coder", &json!({}))).await?;
    let tell = async |what: &str, body: Value| system.ask(&format!("/internal/executions/{exec}/{what}"), &body).await;
    // Paused before it began, it would read everything in its first prompt.
    system.log_until(exec, |log| holds(log, |e| matches!(e, Event::InferenceRequested(_)))).await?;
    assert_eq!(tell("resume", json!({})).await?.1["code"], "not_paused");
    let (status, _) = tell("pause", json!({"by": "ann", "reason": "lunch"})).await?;
    assert_eq!(status, 202);
    system.log_until(exec, |log| holds(log, |e| matches!(e, Event::ExecutionPaused(_)))).await?;
    let shown = view(&system, exec).await?;
    assert_eq!(shown["status"], "paused", "{shown}");
    assert!(shown["waiting_for"].to_string().contains("resume: paused by ann (lunch)"), "{shown}");
    for _ in 0..2 {
        let (status, _) = tell("messages", json!({"text": "in French, please", "id": "m1"})).await?;
        assert!(status == 202 || status == 200, "said once, however often it is sent");
    }
    assert_eq!(tell("resume", json!({})).await?.0, 202);
    system.log_until(exec, |log| holds(log, |e| matches!(e, Event::ExecutionResumed(_)))).await?;
    system.answer(exec, 1, "Hello.", &[]).await?;
    system.answer(exec, 2, "Bonjour.", &[]).await?;
    let view = system.ended(exec).await?;
    assert_eq!((&view["status"], &view["response"]), (&json!("completed"), &json!("Bonjour.")), "{view}");
    let log = system.prove(exec).await?;
    let said: Vec<String> =
        conversation(exec, &log).into_iter().filter(|m| m.role == Role::User).map(|m| m.content).collect();
    assert_eq!(said, ["go", "in French, please"]);
    for what in ["pause", "resume"] {
        let (status, problem) = tell(what, json!({})).await?;
        assert_eq!((status, &problem["code"]), (409, &json!("execution_ended")), "{problem}");
    }
    let nobody = format!("/internal/executions/{}/pause", runtime::clock::execution_id());
    let (status, problem) = system.ask(&nobody, &json!({})).await?;
    assert_eq!((status, &problem["code"]), (404, &json!("unknown_execution")), "{problem}");
    Ok(())
}

#[tokio::test]
async fn a_graceful_cancel_lets_what_is_open_finish() -> anyhow::Result<()> {
    let (system, _tasks) = played().await?;
    let (exec, _stream) = system.open("/internal/agent", agent(&system, "coder", &json!({}))).await?;
    system.log_until(exec, |log| holds(log, |e| matches!(e, Event::InferenceRequested(_)))).await?;
    let path = format!("/internal/executions/{exec}/cancel");
    let (status, problem) = system.ask(&path, &json!({"mode": "softly"})).await?;
    assert_eq!(status, 400, "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("graceful")), "{problem}");
    let (status, _) = system.ask(&path, &json!({"mode": "graceful", "reason": "enough", "by": "ann"})).await?;
    assert_eq!(status, 202);
    let pause = format!("/internal/executions/{exec}/pause");
    assert_eq!(system.ask(&pause, &json!({})).await?.1["code"], "execution_cancelling");
    system.answer(exec, 1, "So far.", &[]).await?;
    let view = system.ended(exec).await?;
    assert_eq!((&view["status"], &view["response"]), (&json!("cancelled"), &json!("So far.")), "{view}");
    assert_eq!(view["error"], "cancelled: cancelled by ann: enough", "{view}");
    system.prove(exec).await?;
    Ok(())
}
