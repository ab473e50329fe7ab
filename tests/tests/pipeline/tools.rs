//! Tools from outside: several calls at once, and the command line.

use pipeline_tests::System;
use serde_json::{Value, json};

async fn system() -> anyhow::Result<System> {
    let system = System::start_without(&["inference-worker"]).await?;
    std::fs::write(system.workspace().join("src/three.rs"), "one\ntwo\nthree\n")?;
    Ok(system)
}

#[tokio::test]
async fn a_batch_is_answered_in_its_order_and_a_bad_call_holds_up_no_other() -> anyhow::Result<()> {
    let system = system().await?;
    let read = |line: u32| json!({"tool_name": "read_file", "arguments": {"path": "src/three.rs", "start": line, "end": line}});
    let mut calls: Vec<Value> = (1..=3).map(read).collect();
    calls.insert(1, json!({"tool_name": "raed_file", "arguments": {}}));
    calls.push(json!({"tool_name": "read_file", "arguments": {"path": "nowhere"}}));
    let (status, answer) = system.ask("/internal/tools/execute_batch", &json!({"calls": calls})).await?;
    assert_eq!(status, 200, "{answer}");
    let results = answer["results"].as_array().expect("a list").clone();
    let texts: Vec<&str> = results.iter().map(|r| r["result"].as_str().unwrap_or_default()).collect();
    assert_eq!(texts, ["1: one", "", "2: two", "3: three", ""], "{answer}");
    assert_eq!(results[1]["problem"]["code"], "unknown_tool");
    assert!(results[1]["problem"]["next_step"].as_str().is_some_and(|next| next.contains("read_file")), "{answer}");
    assert!(results[4]["error"].as_str().is_some_and(|error| error.contains("no such file: nowhere")), "{answer}");
    for calls in [json!([]), json!(vec![read(1); 65])] {
        let (status, problem) = system.ask("/internal/tools/execute_batch", &json!({"calls": calls})).await?;
        assert_eq!((status, problem["next_step"].as_str()), (400, Some("send 1 to 64 at once")));
    }
    Ok(())
}

#[tokio::test]
async fn the_command_line_lists_and_calls_tools() -> anyhow::Result<()> {
    let system = system().await?;
    let (code, listed) = system.client(&["tools", "ls"]).await?;
    let tools = listed["tools"].as_array().expect("a list");
    let of = |name: &str| tools.iter().find(|tool| tool["name"] == name).cloned().unwrap_or_default();
    assert_eq!((code, tools.len()), (Some(0), 6));
    let (read, web) = (of("read_file"), of("web_search"));
    assert_eq!((&read["effect"], &read["permissions"]), (&json!("reads_workspace"), &json!(["workspace:read"])));
    assert_eq!((&read["approval"], &read["timeout_ms"]), (&json!("agent_type"), &json!(10_000)));
    assert_eq!((&web["effect"], web["unavailable"].is_string()), (&json!("reaches_network"), true));
    let arguments = r#"{"path": "src/three.rs", "start": 2, "end": 2}"#;
    let (code, answer) = system.client(&["tools", "run", "read_file", "--arguments", arguments]).await?;
    assert_eq!((code, &answer["result"], &answer["success"]), (Some(0), &json!("2: two"), &json!(true)));
    let (code, answer) = system.client(&["tools", "run", "read_file", "--arguments", "{}"]).await?;
    assert_eq!((code, &answer["success"]), (Some(1), &json!(false)));
    let ended = system.plain_client(&["tools", "run", "read_file", "--arguments", "{"]).await?;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("--arguments is no JSON"), "{}", ended.stderr);
    Ok(())
}
