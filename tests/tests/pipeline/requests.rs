//! Requests that go well, and requests that are refused.

use pipeline_tests::{System, read_events, repository, text};
use serde_json::json;

#[tokio::test]
async fn a_chat_is_answered_streamed_and_proven() -> anyhow::Result<()> {
    let system = System::start().await?;
    let hello = json!({"messages": [{"role": "user", "content": "hello"}]});
    let (status, whole) = system.ask("/internal/chat", &hello).await?;
    assert_eq!(status, 200, "{whole}");
    assert_eq!(whole["response"], "Hello! Ask me about the code in this workspace.");

    let (exec, mut stream) = system.open("/internal/chat", hello).await?;
    let events = read_events(&mut stream, |_| false).await?;
    assert_eq!(events.first().map(|(name, _)| name.as_str()), Some("started"));
    let (name, done) = events.last().expect("events");
    assert_eq!((name.as_str(), &done["response"]), ("done", &whole["response"]));
    assert_eq!(text(&events), whole["response"].as_str().expect("text"), "the stream says what the answer says");
    system.prove(exec).await?;
    Ok(())
}

#[tokio::test]
async fn an_agent_uses_a_tool_and_every_step_is_in_the_log() -> anyhow::Result<()> {
    let system = System::start().await?;
    let ask = json!({"agent_type": "coder", "instruction": "Where is TokenReader defined?", "workspace": system.workspace(), "config": {"max_iterations": 4}});
    let (exec, mut stream) = system.open("/internal/agent", ask).await?;
    let events = read_events(&mut stream, |_| false).await?;
    let call = events.iter().find(|(name, _)| name == "tool_call").expect("a tool call");
    assert_eq!(call.1["name"], "search_code");
    assert_eq!(call.1["arguments"], json!({"query": "TokenReader"}));
    let result = events.iter().find(|(name, _)| name == "tool_result").expect("its result");
    let found = result.1["result"].as_str().expect("text");
    assert!(found.contains("src/reader.rs:3"), "{found}");
    assert_eq!(events.last().map(|(name, _)| name.as_str()), Some("done"));
    system.prove(exec).await?;
    Ok(())
}

#[tokio::test]
async fn a_single_tool_is_carried_out_confined() -> anyhow::Result<()> {
    let system = System::start().await?;
    let read = json!({"tool_name": "read_file", "arguments": {"path": "LICENSE", "start": 1, "end": 1}, "workspace": repository()});
    let (status, answer) = system.ask("/internal/tools/execute", &read).await?;
    assert_eq!((status, &answer["success"]), (200, &json!(true)), "{answer}");
    assert_eq!(answer["sandbox"]["tier"], "bubblewrap");
    let health: serde_json::Value = system.get("/health").send().await?.json().await?;
    let workers = health["parts"]["sandbox"].as_object().expect("the workers that carry out tools");
    assert_eq!(workers.len(), 1, "{health}");
    assert!(
        workers
            .values()
            .all(|worker| worker["tier"] == "bubblewrap" && worker["enforced"] == answer["sandbox"]["enforced"])
    );
    let escape =
        json!({"tool_name": "read_file", "arguments": {"path": "../../etc/passwd"}, "workspace": repository()});
    let (_, answer) = system.ask("/internal/tools/execute", &escape).await?;
    assert_eq!(answer["success"], json!(false), "{answer}");
    assert!(answer["error"].as_str().is_some_and(|e| e.contains("outside the workspace")), "{answer}");
    Ok(())
}

#[tokio::test]
async fn a_hundred_chats_at_once_all_complete() -> anyhow::Result<()> {
    let system = System::start().await?;
    let hello =
        json!({"messages": [{"role": "user", "content": "what can you do?"}], "max_tokens": 32, "cache": false});
    let all = futures::future::try_join_all((0..100).map(|_| system.ask("/internal/chat", &hello))).await?;
    for (status, answer) in &all {
        assert_eq!(*status, 200, "{answer}");
        assert_eq!(answer["response"], all[0].1["response"]);
    }
    Ok(())
}

#[tokio::test]
async fn health_may_be_asked_as_often_as_anybody_likes() -> anyhow::Result<()> {
    let system = System::start().await?;
    for n in 0..1_200 {
        let health: serde_json::Value = system.get("/health").send().await?.json().await?;
        assert_eq!(health["parts"]["workers"], json!({"analysis": 1, "inference": 1, "tool": 1}), "asked {n} times");
    }
    Ok(())
}

#[tokio::test]
async fn a_bench_says_where_the_time_to_the_first_token_went() -> anyhow::Result<()> {
    let system = System::start().await?;
    let (code, report) = system.client(&["bench", "--requests", "6", "--concurrent", "2", "--max-tokens", "8"]).await?;
    assert_eq!((code, &report["answered"], &report["failed"]), (Some(0), &json!(6), &json!(0)), "{report}");
    assert_eq!(report["tokens"], 6 * 8, "{report}");
    let stages = report["stages_ms"].as_object().expect("stages");
    let sum: f64 = stages.values().filter_map(|stage| stage["mean"].as_f64()).sum();
    let whole = report["first_token_ms"]["mean"].as_f64().expect("a number");
    assert!((sum - whole).abs() < 0.1, "the stages' means add up to the whole but for rounding: {report}");
    Ok(())
}
