//! Agents and their tools: two at once, one after the other, failing, unknown, and many agents side by side.
//!
//! Where the shipped model answers, several phrasings of its training are tried and one must show the structure: what
//! is tested is the pipeline, not the model. Where the structure must come out, the test plays the model.

use pipeline_tests::{System, conversation, events, tools_asked};
use runtime::bus::Stored;
use schemas::chat::Role;
use schemas::{Event, ExecutionId};
use serde_json::{Value, json};

fn ask(system: &System, instruction: &str) -> Value {
    json!({"agent_type": "coder", "instruction": instruction, "workspace": system.workspace(),
        "config": {"max_iterations": 5}})
}

/// Asks all of these at once; returns the proven logs of those that were answered. All must have ended.
async fn ask_all(system: &System, instructions: &[&str]) -> anyhow::Result<Vec<(ExecutionId, Vec<Stored>)>> {
    let requests: Vec<Value> = instructions.iter().map(|i| ask(system, i)).collect();
    let answers = futures::future::try_join_all(requests.iter().map(|r| system.ask("/internal/agent", r))).await?;
    let mut logs = Vec::new();
    for (status, answer) in answers {
        let exec: ExecutionId = answer["execution_id"].as_str().expect("an execution").parse()?;
        let log = system.prove(exec).await?;
        println!("{status} {:?} {}", tools_asked(&log), answer["response"]);
        if status == 200 {
            logs.push((exec, log));
        }
    }
    Ok(logs)
}

fn tool_results(exec: ExecutionId, log: &[Stored]) -> Vec<String> {
    conversation(exec, log).into_iter().filter(|m| m.role == Role::Tool).map(|m| m.content).collect()
}

#[tokio::test]
async fn the_model_asks_two_tools_at_once_and_one_after_the_other() -> anyhow::Result<()> {
    let system = System::start().await?;
    let parallel = ask_all(
        &system,
        &[
            "Where are TokenReader and Liveness defined?",
            "Find TokenReader and Liveness.",
            "Find the definitions of TokenReader and Liveness.",
            "Locate both TokenReader and Liveness.",
        ],
    )
    .await?;
    let both = parallel.iter().find(|(_, log)| tools_asked(log) == [["search_code", "search_code"]]);
    let (exec, log) = both.expect("one phrasing leads to two calls in one decision");
    let results = tool_results(*exec, log);
    assert!(results[0].contains("src/reader.rs:3") && results[1].contains("src/liveness.rs:3"), "{results:?}");

    let steps = ask_all(
        &system,
        &["Find Liveness and read it.", "Show me the source of Liveness.", "Find Liveness and show me the code."],
    )
    .await?;
    let two = steps.iter().find(|(_, log)| tools_asked(log) == [["search_code"], ["read_file"]]);
    let (exec, log) = two.expect("one phrasing leads to a search and then a read");
    let results = tool_results(*exec, log);
    assert!(results[1].contains("pub struct Liveness {"), "{results:?}");
    Ok(())
}

#[tokio::test]
async fn the_model_is_told_of_a_tool_that_fails_and_the_execution_completes() -> anyhow::Result<()> {
    let system = System::start().await?;
    let logs = ask_all(&system, &["Read src/nothing.rs.", "Open src/nothing.rs.", "Show me src/nothing.rs."]).await?;
    let read = logs.iter().find(|(_, log)| tools_asked(log) == [["read_file"]]);
    let (exec, log) = read.expect("one phrasing leads to a read");
    let results = tool_results(*exec, log);
    assert!(results[0].starts_with("error: ") && results[0].contains("nothing.rs"), "{results:?}");
    let joined = |e: &Event| matches!(e, Event::ToolsJoined(j) if j.outcomes.iter().all(|o| !o.success));
    assert!(events(log).iter().flatten().any(joined));
    Ok(())
}

#[tokio::test]
async fn every_call_of_an_answer_is_asked_in_one_decision_whatever_becomes_of_it() -> anyhow::Result<()> {
    let system = System::start_without(&["inference-worker"]).await?;
    let exec = runtime::clock::execution_id();
    let request = system.request(exec, "go", &["search_code", "read_file"]);
    system.bus().await?.append_fact(&request).await?;
    let search = |name: &str| ("search_code", json!({"query": name}));
    let missing = ("read_file", json!({"path": "src/nothing.rs"}));
    system.answer(exec, 1, "", &[search("TokenReader"), search("Liveness")]).await?;
    system.answer(exec, 2, "", &[missing, ("serch_code", json!({"query": "x"})), search("TokenReader")]).await?;
    system.answer(exec, 3, "", &[("read_file", json!({"path": "src/liveness.rs", "start": 3}))]).await?;
    system.answer(exec, 4, "That is all.", &[]).await?;
    let view = system.ended(exec).await?;
    assert_eq!((&view["status"], &view["response"]), (&json!("completed"), &json!("That is all.")), "{view}");

    let log = system.prove(exec).await?;
    let asked = tools_asked(&log);
    assert_eq!(asked.len(), 3, "one decision a turn: {asked:?}");
    assert_eq!(asked[0], ["search_code", "search_code"]);
    assert_eq!(asked[1], ["read_file", "serch_code", "search_code"]);
    assert_eq!(asked[2], ["read_file"]);
    let results = tool_results(exec, &log);
    assert_eq!(results.len(), 6);
    assert!(results[0].contains("src/reader.rs:3") && results[1].contains("src/liveness.rs:3"), "{results:?}");
    assert!(results[2].starts_with("error: ") && results[2].contains("src/nothing.rs"), "{}", results[2]);
    assert_eq!(results[3], "error: no such tool: serch_code; tools are search_code, read_file");
    assert!(results[4].contains("src/reader.rs:3"), "{}", results[4]);
    assert!(results[5].starts_with("3: pub struct Liveness {"), "{}", results[5]);
    Ok(())
}

#[tokio::test]
async fn thirty_two_agents_at_once_all_complete_with_proven_logs() -> anyhow::Result<()> {
    let system = System::start().await?;
    let instructions: Vec<&str> =
        ["Where is TokenReader defined?", "Where is Liveness defined?"].into_iter().cycle().take(32).collect();
    let logs = ask_all(&system, &instructions).await?;
    assert_eq!(logs.len(), 32, "every one is answered");
    assert!(logs.iter().all(|(_, log)| !tools_asked(log).is_empty()), "every one used a tool");
    Ok(())
}
