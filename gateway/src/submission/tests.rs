use schemas::api::{AgentRequest, ChatRequest};
use serde_json::json;

use super::*;

fn agent_type() -> AgentType {
    AgentType {
        name: "coder".into(),
        description: String::new(),
        system: "Be brief.".into(),
        models: vec![],
        tools: vec!["read_file".into(), "web_search".into()],
        max_iterations: 4,
        max_tokens: 100,
        max_tool_calls: 8,
        deadline_ms: 1_000,
        agents: vec![],
        max_children: 0,
        max_depth: 0,
        policy: Default::default(),
    }
}

fn tools() -> Vec<Tool> {
    let tool = |name: &str, unavailable: Option<&str>| Tool {
        name: name.into(),
        description: String::new(),
        parameters: json!({}),
        unavailable: unavailable.map(str::to_owned),
    };
    vec![tool("read_file", None), tool("web_search", Some("no key")), tool("delete_all", None)]
}

fn models() -> Vec<Model> {
    vec![
        Model { name: "embed".into(), kind: "embedding".into(), window: 9 },
        Model { name: "tiny".into(), kind: "chat".into(), window: 512 },
    ]
}

fn submit_chat(body: &Value) -> Result<ExecutionSubmitted, Failure> {
    let (agent, models, tools) = (agent_type(), models(), tools());
    let with = Surroundings { agent: &agent, models: &models, tools: &tools, now: 5, seed: 7 };
    read::<ChatRequest>(body.to_string().as_bytes()).and_then(|r| chat(r, &with))
}

fn submit_agent(body: &Value) -> Result<ExecutionSubmitted, Failure> {
    let (kind, models, tools) = (agent_type(), models(), tools());
    let with = Surroundings { agent: &kind, models: &models, tools: &tools, now: 5, seed: 7 };
    read::<AgentRequest>(body.to_string().as_bytes()).and_then(|r| agent(r, &with))
}

fn code(result: Result<ExecutionSubmitted, Failure>) -> (u16, String) {
    let problem = result.expect_err("refused").0;
    (problem.status, problem.code)
}

#[test]
fn a_chat_is_completed_with_system_message_model_window_seed_and_limits() {
    let chat = submit_chat(&json!({"messages": [{"role": "user", "content": "hi"}]})).expect("valid");
    assert_eq!((chat.model.as_str(), chat.window, chat.sampling.seed), ("tiny", 512, Some(7)));
    assert_eq!(chat.messages[0], Message::text(Role::System, "Be brief."));
    assert_eq!(
        chat.limits,
        Limits { iterations: 4, tokens: 100, tool_calls: 8, deadline: 1_000_000_005, ..Limits::default() }
    );
}

#[test]
fn what_is_wrong_with_a_chat_is_named() {
    let hi = json!([{"role": "user", "content": "hi"}]);
    assert_eq!(code(submit_chat(&json!({"messages": []}))), (400, "invalid_request".into()));
    assert_eq!(code(submit_chat(&json!({"messages": hi, "model": "tny"}))), (404, "unknown_model".into()));
    assert_eq!(code(submit_chat(&json!({"messages": hi, "modle": "x"}))), (400, "unknown_field".into()));
    assert_eq!(code(submit_chat(&json!({"messages": hi, "top_p": 0}))), (400, "invalid_request".into()));
    let format = json!({"messages": hi, "response_format": {"type": "json_object"}});
    assert_eq!(code(submit_chat(&format)), (400, "unsupported_response_format".into()));
    let malformed = read::<ChatRequest>(b"{\"messages\": [}").expect_err("no JSON").0;
    assert_eq!((malformed.status, malformed.code.as_str()), (400, "malformed_json"));
    assert!(malformed.detail.contains("line 1 column"), "{}", malformed.detail);
}

#[test]
fn an_agent_gets_its_own_usable_tools_and_no_more_than_its_limits() {
    let body = json!({"agent_type": "coder", "instruction": "go", "context": {"a": 1},
        "config": {"max_iterations": 99, "max_tokens": 10}});
    let agent = submit_agent(&body).expect("valid");
    assert_eq!(agent.tools.iter().map(|t| t.function.name.as_str()).collect::<Vec<_>>(), ["read_file"]);
    assert_eq!((agent.limits.iterations, agent.limits.tokens), (4, 10));
    assert_eq!(agent.messages[1].content, "{\n  \"a\": 1\n}\n\ngo");
}

#[test]
fn a_tool_must_exist_and_be_granted() {
    let with = |name: &str| json!({"agent_type": "coder", "instruction": "go", "config": {"tools": [name]}});
    assert_eq!(code(submit_agent(&with("reed_file"))), (404, "unknown_tool".into()));
    assert_eq!(code(submit_agent(&with("delete_all"))), (400, "invalid_request".into()));
}
