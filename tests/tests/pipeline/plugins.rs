//! Tools of one's own and of servers, from files and settings to an agent that calls them. The test plays the model.

use std::path::Path;

use pipeline_tests::{PATIENCE, System, conversation};
use runtime::{Tasks, bus};
use schemas::chat::Role;
use schemas::rpc::{Model, Reply};
use schemas::{ExecutionId, subject};
use serde_json::{Value, json};

/// Upper case for a text, as a program of one line.
const SHOUT: &str = r#"name = "shout"
description = "Says it louder."
command = ["python3", "-c", "import json, sys; print(json.load(sys.stdin)['text'].upper())"]
effect = "computes"
parameters = '{"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}'
"#;

/// A server of tools that goes wrong when it is asked to, as an argument of Python.
const WAYWARD: &str = include_str!("../../../tool-worker/tests/wayward/server.py");

/// A system whose tool worker follows `tools` and whose orchestrator follows `agents`, both in its directory.
async fn played() -> anyhow::Result<(System, Tasks)> {
    let mut system = System::new()?;
    let directory = |name: &str| system.directory().join(name);
    let (tools, agents) = (directory("tools"), directory("agents"));
    for directory in [&tools, &agents] {
        std::fs::create_dir_all(directory)?;
    }
    let agent = "name = \"counter\"\ndescription = \"Counts.\"\nsystem = \"Count.\"\ntools = [\"word_count\", \"shout\", \"wayward_echo\", \"wayward_die\"]\n";
    std::fs::write(agents.join("counter.toml"), agent)?;
    std::fs::write(tools.join("word_count.toml"), SHOUT.replace("shout", "word_count").replace(".upper()", "[::-1]"))?;
    let command = json!(["/usr/bin/python3", "-u", "-c", WAYWARD, "greets"]);
    let config = directory("vlinders.toml");
    // A list of texts is written alike in JSON and in TOML.
    std::fs::write(&config, format!("[tools.mcp.wayward]\ncommand = {command}\n"))?;
    system.config = Some(config);
    system.start_nats().await?;
    let bus = system.bus().await?;
    bus::provision(&bus).await?;
    let text = |path: &Path| path.to_str().expect("temporary directories have plain names").to_owned();
    system.start_role_with("orchestrator", &["--agents", &text(&agents)], &[]).await?;
    system.start_role_with("tool-worker", &["--tools", &text(&tools)], &[]).await?;
    system.start_role("gateway").await?;
    let tasks = Tasks::new();
    let models = vec![Model { name: "tiny".into(), kind: "chat".into(), window: 1_024 }];
    bus.serve(&tasks, subject::RPC_MODELS, move |(): ()| std::future::ready(Reply::Ok(models.clone()))).await?;
    Ok((system, tasks))
}

/// Runs the agent, whose model makes this call and then ends; what the model read as the call's result.
async fn agent(system: &System, call: (&str, Value)) -> anyhow::Result<String> {
    let asked = json!({"agent_type": "counter", "instruction": "go"});
    let (exec, _stream): (ExecutionId, _) = system.open("/internal/agent", asked).await?;
    system.answer(exec, 1, "", &[call]).await?;
    system.answer(exec, 2, "Done.", &[]).await?;
    let view = system.ended(exec).await?;
    assert_eq!(view["status"], "completed", "{view}");
    let log = system.prove(exec).await?;
    let result = conversation(exec, &log).into_iter().find(|message| message.role == Role::Tool);
    Ok(result.map(|message| message.content).unwrap_or_default())
}

/// Waits until the gateway's list of tools is as wanted.
async fn listed(system: &System, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let wait = async {
        loop {
            let found: Value = system.get("/internal/tools").send().await?.json().await?;
            if wanted(&found) {
                return anyhow::Ok(found);
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the directory is followed")
}

#[tokio::test]
async fn an_agent_calls_tools_of_files_also_of_those_that_come_after_it() -> anyhow::Result<()> {
    let (system, _tasks) = played().await?;
    let ask = json!({"tool_name": "word_count", "arguments": {"text": "abc"}});
    let (status, answer) = system.ask("/internal/tools/execute", &ask).await?;
    assert_eq!((status, &answer["success"], &answer["result"]), (200, &json!(true), &json!("cba")), "{answer}");
    assert_eq!(answer["sandbox"]["tier"], "bubblewrap", "{answer}");
    assert_eq!(agent(&system, ("word_count", json!({"text": "one two"}))).await?, "owt eno");
    let absent = agent(&system, ("shout", json!({"text": "one"}))).await?;
    assert!(absent.starts_with("error: "), "nobody has it yet: {absent}");

    std::fs::write(system.directory().join("tools/shout.toml"), SHOUT)?;
    let has =
        |found: &Value, name: &str| found["tools"].as_array().is_some_and(|all| all.iter().any(|t| t["name"] == name));
    listed(&system, |found| has(found, "shout")).await?;
    assert_eq!(agent(&system, ("shout", json!({"text": "one two"}))).await?, "ONE TWO");

    std::fs::write(system.directory().join("tools/shout.toml"), format!("{SHOUT}efect = 1\n"))?;
    let found = listed(&system, |found| found["refused"] != json!([])).await?;
    let refused = &found["refused"][0];
    assert_eq!((&refused["file"], &refused["line"]), (&json!("shout.toml"), &json!(6)), "{refused}");
    assert!(refused["reason"].as_str().is_some_and(|reason| reason.contains("unknown field `efect`")), "{refused}");
    assert_eq!(agent(&system, ("shout", json!({"text": "still"}))).await?, "STILL", "its version before serves on");
    std::fs::remove_file(system.directory().join("tools/shout.toml"))?;
    listed(&system, |found| !has(found, "shout") && found["refused"] == json!([])).await?;
    Ok(())
}

#[tokio::test]
async fn an_agent_calls_tools_of_a_server_and_goes_on_when_that_dies() -> anyhow::Result<()> {
    let (system, _tasks) = played().await?;
    let usable = |found: &Value| {
        let tools = found["tools"].as_array().cloned().unwrap_or_default();
        tools.iter().any(|tool| tool["name"] == "wayward_echo" && tool["unavailable"].is_null())
    };
    let found = listed(&system, usable).await?;
    assert_eq!(found["refused"], json!([]), "{found}");
    assert_eq!(agent(&system, ("wayward_echo", json!({"text": "hello"}))).await?, "hello");
    let died = agent(&system, ("wayward_die", json!({}))).await?;
    let why = "error: outcome unknown: wayward_die broke off (the server wayward ended with exit code 3; it says: so long); \
               it may have taken effect";
    assert_eq!(died, why, "it is not called a second time");
    assert_eq!(agent(&system, ("wayward_echo", json!({"text": "again"}))).await?, "again");
    Ok(())
}
