//! Requests that cannot be carried out: each is refused with a code, what is wrong, and what to do, and none is half
//! accepted.

use pipeline_tests::{System, repository};
use serde_json::{Value, json};

/// A request, the status and the code it is refused with, and what the refusal must say.
type Case = (&'static str, Value, u16, &'static str, &'static [&'static str]);

fn cases(system: &System) -> Vec<Case> {
    let user = |text: &str| json!([{"role": "user", "content": text}]);
    let agent = |workspace: Value| json!({"agent_type": "coder", "instruction": "x", "workspace": workspace});
    let tool = |workspace: Value| json!({"tool_name": "read_file", "arguments": {"path": "x"}, "workspace": workspace});
    let nested = (0..50).fold(json!({}), |inner, _| json!({"items": inner}));
    let deep = json!({"type": "json_schema", "json_schema": {"schema": nested}});
    let missing = json!(repository().join("nowhere"));
    let escape = json!(system.workspace().join("../../.."));
    let (chat, agents, tools) = ("/internal/chat", "/internal/agent", "/internal/tools/execute");
    vec![
        (chat, json!({"messages": []}), 400, "invalid_request", &["`messages`", "at least one"]),
        (chat, json!({"messages": user("x"), "modle": "tiny"}), 400, "unknown_field", &["modle"]),
        (chat, json!({"messages": user("x"), "model": "tinny"}), 404, "unknown_model", &["did you mean tiny?"]),
        (
            chat,
            json!({"messages": user(&"word ".repeat(5_000))}),
            413,
            "overflow",
            &["tokens, the window of tiny holds 1024", "larger window"],
        ),
        (
            chat,
            json!({"messages": user("x"), "temperature": 1e308}),
            400,
            "invalid_request",
            &["`temperature`", "1e+308", "0 to 10"],
        ),
        (chat, json!({"messages": user("x"), "top_p": -1}), 400, "invalid_request", &["`top_p`"]),
        (chat, json!({"messages": user("x"), "max_tokens": 1e18}), 400, "invalid_request", &["`max_tokens`"]),
        (chat, json!({"messages": user("x"), "max_tokens": 0}), 400, "invalid_request", &["`max_tokens`"]),
        (
            chat,
            json!({"messages": user("x"), "stop": vec!["x"; 100_000]}),
            400,
            "invalid_request",
            &["`stop`", "at most 16"],
        ),
        (chat, json!({"messages": user("x"), "temperature": -1}), 400, "invalid_request", &["`temperature`"]),
        (chat, json!({"messages": user("x"), "top_k": -3}), 400, "invalid_request", &["`top_k` is -3", "0 to "]),
        (chat, json!({"messages": user("x"), "max_tokens": "many"}), 400, "invalid_request", &["`max_tokens`"]),
        (chat, json!({"messages": user("x"), "n": 0}), 400, "invalid_request", &["`n` is 0", "1 to 16"]),
        (chat, json!({"messages": user("x"), "n": 1_000}), 400, "invalid_request", &["`n` is 1000", "1 to 16"]),
        (chat, json!({"messages": user("x"), "priority": "now"}), 400, "invalid_request", &["`now`", "`normal`"]),
        (chat, json!({"messages": user("x"), "truncation": "start"}), 400, "invalid_request", &["`start`", "`auto`"]),
        (chat, json!({"messages": user("x"), "cache": "no"}), 400, "invalid_request", &["`cache`", "boolean"]),
        (
            agents,
            json!({"agent_type": "coder", "instruction": "x", "config": {"n": 2}}),
            400,
            "invalid_request",
            &["`config.n` is 2", "must be 1"],
        ),
        (chat, json!({"messages": user("x"), "response_format": deep}), 400, "unusable_schema", &["32 levels"]),
        (agents, json!({"agent_type": "codr", "instruction": "x"}), 404, "unknown_agent", &["did you mean coder?"]),
        (agents, json!({"agent_type": "coder", "instruction": " "}), 400, "invalid_request", &["`instruction`"]),
        (tools, json!({"tool_name": "serch_code", "arguments": {}}), 404, "unknown_tool", &["mean search_code?"]),
        (tools, json!({"tool_name": "read_file", "arguments": [1]}), 400, "invalid_request", &["`arguments`"]),
        (tools, json!({"tool_name": "web_search", "arguments": {}}), 503, "tool_unavailable", &["provider"]),
        ("/internal/embeddings", json!({"input": "x"}), 503, "embeddings_absent", &["embedding model"]),
        (agents, agent(missing.clone()), 404, "unknown_workspace", &["nowhere", "allowed roots: "]),
        (tools, tool(missing), 404, "unknown_workspace", &["nowhere", "exists"]),
        (agents, agent(json!("/etc")), 400, "workspace_outside", &["/etc", "allowed roots: ", "--workspace"]),
        (tools, tool(json!("/etc")), 400, "workspace_outside", &["/etc", "--workspace"]),
        (agents, agent(escape.clone()), 400, "workspace_outside", &["not under an allowed root"]),
        (tools, tool(escape), 400, "workspace_outside", &["not under an allowed root"]),
        ("/internal/nothing", json!({}), 404, "unknown_endpoint", &["/internal/nothing"]),
    ]
}

#[tokio::test]
async fn what_cannot_be_carried_out_is_refused_with_a_next_step() -> anyhow::Result<()> {
    let system = System::start().await?;
    for (path, body, status, code, said) in cases(&system) {
        let (found, problem) = system.ask(path, &body).await?;
        assert_eq!((found, &problem["code"]), (status, &json!(code)), "{path} {problem}");
        assert!(problem["next_step"].as_str().is_some_and(|s| !s.is_empty()), "{problem}");
        for part in said {
            assert!(problem.to_string().contains(part), "{part:?} is missing in {problem}");
        }
    }
    // The prompt beyond the window is the only one that nobody but the model's tokenizer can judge.
    let accepted = system.bus().await?.newest_executions(100).await?;
    assert_eq!(accepted.len(), 1, "a refused request leaves nothing in the log");

    let client = reqwest::Client::new();
    let post = |secret: Option<&str>, body: &'static str| {
        let request = client.post(format!("{}/internal/chat", system.http)).body(body);
        match secret {
            Some(secret) => request.header("X-Internal-Auth", secret),
            None => request,
        }
    };
    for (body, place) in [("{\"messages\": [}", "line 1 column 15"), ("{\n\"messages\": nul", "line 2 column")] {
        let response = post(Some("test-secret"), body).send().await?;
        assert_eq!(response.status(), 400);
        let problem: Value = response.json().await?;
        assert_eq!(problem["code"], "malformed_json");
        assert!(problem["detail"].as_str().is_some_and(|d| d.contains(place)), "{problem}");
    }
    for body in [&b"{\"messages\": \"\xff\xfe\"}"[..], b"\xc3\x28", b"\xed\xa0\x80", b"\x00", b""] {
        let request = client.post(format!("{}/internal/chat", system.http)).header("X-Internal-Auth", "test-secret");
        let response = request.body(body).send().await?;
        assert_eq!(response.status(), 400, "{body:?}");
        let problem: Value = response.json().await?;
        assert_eq!(problem["code"], "malformed_json", "{body:?}: {problem}");
    }
    for secret in [None, Some(""), Some("wrong"), Some("test-secret2")] {
        let response = post(secret, "{").send().await?;
        assert_eq!(response.status(), 403, "{secret:?}");
        let problem: Value = response.json().await?;
        assert_eq!(problem["code"], "forbidden");
        assert!(!problem.to_string().contains("test-secret"), "the secret is not told");
    }
    Ok(())
}
