//! Executions as rows: each message of the log counts once in the tables, whoever dies; the database may go and come
//! again; and what is asked of them over HTTP.

use std::time::Duration;

use anyhow::Context;
use pipeline_tests::{PATIENCE, Postgres, System, events, read_events};
use runtime::bus::{Kind, Stored};
use schemas::executions::{
    AskPerformance, AskProjection, ExecutionRow, Executions, ListExecutions, ListToolCalls, Performance, Projection,
    ProjectionState, ToolCalls,
};
use schemas::fact::{Sandbox, ToolCompleted};
use schemas::permission::User;
use schemas::rpc::Reply;
use schemas::summary::Summary;
use schemas::{EffectId, Event, ExecutionId, Fact, FactBody, Record, subject};
use serde_json::{Value, json};

/// Nothing is computed here: the test plays the model and the tools.
const PLAYED: [&str; 3] = ["inference-worker", "analysis-worker", "tool-worker"];

/// An execution that asks a tool, and ends with an answer.
async fn play(system: &System, exec: ExecutionId) -> anyhow::Result<()> {
    system.answer(exec, 1, "", &[("read_file", json!({"path": "src/main.rs"}))]).await?;
    let asked = |event: &Event| matches!(event, Event::ToolsRequested(_));
    system.log_until(exec, |messages| events(messages).iter().flatten().any(asked)).await?;
    let done = ToolCompleted {
        effect: EffectId::tool(1, 0),
        attempt: 1,
        worker: "played-by-the-test".into(),
        result: "fn main() {}".into(),
        full: None,
        duration_us: 2_500,
        sandbox: Sandbox { tier: "bubblewrap".into(), enforced: vec![] },
    };
    system.bus().await?.append_fact(&Fact::new(exec, runtime::clock::now(), FactBody::ToolCompleted(done))).await?;
    system.answer(exec, 2, "It is empty.", &[]).await?;
    system.log_until(exec, |messages| events(messages).iter().flatten().any(Event::is_terminal)).await?;
    Ok(())
}

async fn submit(system: &System, question: &str, user: &str) -> anyhow::Result<ExecutionId> {
    let exec = runtime::clock::execution_id();
    let mut fact = system.request(exec, question, &["read_file"]);
    if let FactBody::ExecutionSubmitted(request) = &mut fact.body {
        request.user_id = Some(user.to_owned());
    }
    system.bus().await?.append_fact(&fact).await?;
    Ok(exec)
}

/// How the projection is, once it is as wanted.
async fn projection(system: &System, wanted: impl Fn(&Projection) -> bool) -> anyhow::Result<Projection> {
    let bus = system.bus().await?;
    let wait = async {
        loop {
            let asked = bus.ask(subject::RPC_PROJECTION, &AskProjection::Status, Duration::from_secs(10)).await;
            if let Ok(Reply::<Projection>::Ok(told)) = asked
                && wanted(&told)
            {
                return told;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.with_context(|| format!("the projection stands still\n{}", system.log()))
}

fn is_whole(told: &Projection) -> bool {
    told.state == ProjectionState::Following && told.lag_messages == Some(0)
}

/// Everything that can be asked of the tables.
async fn everything(system: &System) -> anyhow::Result<(Vec<ExecutionRow>, Vec<ToolCalls>, Performance)> {
    let bus = system.bus().await?;
    let timeout = Duration::from_secs(10);
    let (mut rows, mut question) = (Vec::new(), ListExecutions { limit: 7, ..ListExecutions::default() });
    loop {
        let Reply::Ok(page) = bus.ask::<_, Reply<Executions>>(subject::RPC_EXECUTIONS, &question, timeout).await?
        else {
            anyhow::bail!("no answer")
        };
        rows.extend(page.executions);
        question.before = page.next;
        if question.before.is_none() {
            break;
        }
    }
    let mut calls = Vec::new();
    for row in &rows {
        let question = ListToolCalls { execution_id: row.execution_id, from: 0 };
        let Reply::Ok(of) = bus.ask(subject::RPC_TOOL_CALLS, &question, timeout).await? else {
            anyhow::bail!("no answer")
        };
        calls.push(of);
    }
    let Reply::Ok(performance) = bus.ask(subject::RPC_PERFORMANCE, &AskPerformance { since: 0 }, timeout).await? else {
        anyhow::bail!("no answer")
    };
    Ok((rows, calls, performance))
}

fn row_of(messages: &[Stored]) -> ExecutionRow {
    let first = Fact::read(&messages[0].payload).expect("the request");
    let mut summary = Summary::begin(&first).expect("the request");
    for message in &messages[1..] {
        match message.kind {
            Kind::Fact => drop(summary.fact(&Fact::read(&message.payload).expect("a fact"))),
            Kind::Decision => drop(summary.decision(&Record::read(&message.payload).expect("a decision"))),
        }
    }
    summary.row
}

#[tokio::test]
async fn every_message_counts_once_whenever_the_orchestrator_dies_and_a_rebuild_finds_the_same() -> anyhow::Result<()> {
    let mut system = System::start_without(&PLAYED).await?;
    let mut executions = Vec::new();
    for n in 0..24 {
        executions.push(submit(&system, &format!("What is in main? {n}"), "u1").await?);
    }
    for (n, exec) in executions.iter().enumerate() {
        play(&system, *exec).await?;
        if n % 6 == 5 {
            // With what has just been stored on its way into the tables.
            system.kill_role("orchestrator").await?;
            system.start_role("orchestrator").await?;
        }
    }
    projection(&system, is_whole).await?;
    let bus = system.bus().await?;
    let found = everything(&system).await?;
    assert_eq!(found.0.len(), executions.len());
    for (row, calls) in found.0.iter().zip(&found.1) {
        let messages = bus.read_execution(row.execution_id, 0).await?;
        assert_eq!(*row, row_of(&messages), "the tables say what the log says");
        let call = &calls.tool_calls[0];
        assert_eq!((calls.tool_calls.len(), call.success, call.duration_ms), (1, Some(true), Some(2.5)), "{call:?}");
    }
    let model = &found.2.models[0];
    assert_eq!((model.inferences, model.errors, model.prompt_tokens), (48, 0, 480), "{model:?}");
    assert_eq!((found.2.tools[0].calls, found.2.tools[0].errors), (24, 0));

    let ended = system.on_nats(User::Gateway, &["projection", "rebuild", "--json"]).await?;
    let told: Value = serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))?;
    assert_eq!((ended.code, told["state"] != "away"), (Some(0), true), "{told}");
    projection(&system, is_whole).await?;
    assert_eq!(everything(&system).await?, found, "row for row");

    // Two orchestrators share the tables; one dies, and nothing is missing or counted twice.
    system.start_role("orchestrator").await?;
    let more = submit(&system, "And now?", "u2").await?;
    play(&system, more).await?;
    system.kill_role("orchestrator").await?;
    let last = submit(&system, "And then?", "u2").await?;
    play(&system, last).await?;
    projection(&system, is_whole).await?;
    let (rows, ..) = everything(&system).await?;
    assert_eq!(rows.len(), executions.len() + 2);
    for exec in [more, last] {
        let row = rows.iter().find(|row| row.execution_id == exec).context("it is listed")?;
        assert_eq!(*row, row_of(&bus.read_execution(exec, 0).await?));
    }
    Ok(())
}

#[tokio::test]
async fn the_database_goes_and_comes_again_and_executions_do_not_notice() -> anyhow::Result<()> {
    let Some(mut postgres) = Postgres::start()? else { return Ok(()) };
    let mut system = System::new()?;
    let file = system.directory().join("vlinders.toml");
    let url = system.directory().join("url");
    std::fs::write(&url, postgres.url("postgres"))?;
    std::fs::write(&file, format!("[projection]\nurl_file = {url:?}\n"))?;
    system.config = Some(file);
    system.start_nats().await?;
    for role in ["orchestrator", "gateway"] {
        system.start_role(role).await?;
    }
    let first = submit(&system, "What is in main?", "u1").await?;
    play(&system, first).await?;
    projection(&system, is_whole).await?;
    assert_eq!(everything(&system).await?.0.len(), 1);

    postgres.crash()?;
    let second = submit(&system, "And now?", "u1").await?;
    play(&system, second).await?;
    let told = projection(&system, |told| told.state == ProjectionState::Away).await?;
    assert!(told.trouble.is_some() && told.lag_messages.is_some_and(|lag| lag > 0), "{told:?}");
    let response = system.get("/internal/executions").send().await?;
    let (status, problem) = (response.status().as_u16(), response.json::<Value>().await?);
    assert_eq!((status, &problem["code"]), (503, &json!("projection_away")), "{problem}");
    let health: Value = system.get("/health").send().await?.json().await?;
    assert_eq!(health["parts"]["projection"]["state"], "away", "{health}");

    postgres.resume()?;
    projection(&system, is_whole).await?;
    let (rows, ..) = everything(&system).await?;
    assert_eq!(rows.iter().map(|row| row.execution_id).collect::<Vec<_>>(), [second, first]);
    assert!(!system.log().contains("vlinders@"), "no URL is logged");
    Ok(())
}

#[tokio::test]
async fn executions_are_listed_watched_and_looked_into_over_http() -> anyhow::Result<()> {
    let system = System::start_without(&PLAYED).await?;
    let mut live = system.get("/internal/executions/live").send().await?;
    assert_eq!(live.status().as_u16(), 200);
    let open = submit(&system, "Wait for me", "u1").await?;
    let done = submit(&system, "What is in main?", "u2").await?;
    play(&system, done).await?;
    let ended = |events: &[(String, Value)]| {
        events.iter().any(|(_, row)| row["execution_id"] == json!(done) && row["status"] == "completed")
    };
    let seen = read_events(&mut live, ended).await?;
    assert!(seen.iter().all(|(name, _)| name == "execution"), "{seen:?}");
    let first = seen.iter().find(|(_, row)| row["execution_id"] == json!(open)).context("it was told of")?;
    assert_eq!((&first.1["title"], &first.1["finished_at"]), (&json!("Wait for me"), &Value::Null));
    projection(&system, is_whole).await?;

    let get = async |path: &str| -> anyhow::Result<(u16, Value)> {
        let response = system.get(path).send().await?;
        Ok((response.status().as_u16(), response.json().await?))
    };
    let (_, listed) = get("/internal/executions").await?;
    let ids = |listed: &Value| -> Vec<Value> {
        listed["executions"].as_array().into_iter().flatten().map(|row| row["execution_id"].clone()).collect()
    };
    assert_eq!((ids(&listed), &listed["next"]), (vec![json!(done), json!(open)], &Value::Null));
    let last = seen.iter().rev().find(|(_, row)| row["execution_id"] == json!(done)).context("it was told of")?;
    assert_eq!(last.1, listed["executions"][0], "the same row");
    for (query, wanted) in [
        ("status=completed,failed", vec![done]),
        ("user_id=u1&kind=agent", vec![open]),
        ("agent_type=planner", vec![]),
        ("q=WAIT%20for", vec![open]),
    ] {
        let (status, listed) = get(&format!("/internal/executions?{query}")).await?;
        assert_eq!((status, ids(&listed)), (200, wanted.iter().map(|id| json!(id)).collect()), "{query}: {listed}");
    }
    let (_, page) = get("/internal/executions?limit=1").await?;
    let next = page["next"].as_str().context("there is more")?;
    let (_, rest) = get(&format!("/internal/executions?limit=1&before={next}")).await?;
    assert_eq!((ids(&page), ids(&rest), &rest["next"]), (vec![json!(done)], vec![json!(open)], &Value::Null));
    for (query, name) in
        [("state=running", "state"), ("status=ended", "status"), ("limit=0", "limit"), ("before=7", "before")]
    {
        let (status, problem) = get(&format!("/internal/executions?{query}")).await?;
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(status == 400 && detail.contains(&format!("`{name}`")), "{query}: {problem}");
    }

    let (_, calls) = get(&format!("/internal/executions/{done}/tool_calls")).await?;
    let call = &calls["tool_calls"][0];
    assert_eq!((&call["tool_name"], &call["arguments"]), (&json!("read_file"), &json!({"path": "src/main.rs"})));
    let (_, state) = get(&format!("/internal/executions/{done}/state?at=1")).await?;
    assert_eq!((&state["phase"], &state["effects"][0]["state"]), (&json!("Inferring"), &json!("Open")), "{state}");
    let (_, end) = get(&format!("/internal/executions/{done}/state")).await?;
    assert_eq!(end["outcome"], "completed", "{end}");
    let (status, problem) = get(&format!("/internal/executions/{done}/state?at=99")).await?;
    assert_eq!((status, &problem["code"]), (400, &json!("out_of_range")));
    let (_, proof) = get(&format!("/internal/executions/{done}/verify")).await?;
    assert_eq!((&proof["verified"], &proof["execution_id"]), (&json!(true), &json!(done)), "{proof}");
    let (status, _) = get(&format!("/internal/executions/{}/verify", runtime::clock::execution_id())).await?;
    assert_eq!(status, 404);
    let (_, performance) = get("/internal/performance?since=10m").await?;
    assert_eq!(performance["executions"], json!({"completed": 1, "running": 1}), "{performance}");
    assert_eq!((&performance["models"][0]["model"], &performance["tools"][0]["calls"]), (&json!("tiny"), &json!(1)));
    let (status, problem) = get("/internal/performance?since=soon").await?;
    assert!(status == 400 && problem["detail"].as_str().is_some_and(|d| d.contains("`since`")), "{problem}");
    let (_, health) = get("/health").await?;
    assert_eq!(health["parts"]["projection"]["state"], "following", "{health}");

    let lines = system.on_nats(User::Auditor, &["executions", "ls", "--status", "running", "--json"]).await?;
    let line: Value = serde_json::from_str(lines.stdout.trim()).with_context(|| format!("{lines:?}"))?;
    assert_eq!((&line["execution_id"], &line["user_id"]), (&json!(open), &json!("u1")));
    Ok(())
}
