//! What a request may say about how its answer is made: draws, forms, calls.

use pipeline_tests::{System, read_events, repository, text};
use serde_json::{Value, json};

fn hello(more: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hello"}]});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

#[tokio::test]
async fn a_drawn_seed_is_recorded_and_gives_the_same_text_again() -> anyhow::Result<()> {
    let system = System::start().await?;
    let hot = json!({"temperature": 3.0, "top_k": 50, "presence_penalty": 0.5, "max_tokens": 24});
    let (status, first) = system.ask("/internal/chat", &hello(&hot)).await?;
    assert_eq!(status, 200, "{first}");
    let exec = first["execution_id"].as_str().expect("an id");
    let log: Value = system.get(&format!("/internal/executions/{exec}/events")).send().await?.json().await?;
    let submitted = log.as_array().or_else(|| log["events"].as_array()).expect("messages")[0].clone();
    let sampling = &submitted["data"]["sampling"];
    assert_eq!((&sampling["top_k"], &sampling["presence_penalty"]), (&json!(50), &json!(0.5)), "{submitted}");
    let mut again = hot;
    again["seed"] = sampling["seed"].clone();
    assert!(again["seed"].is_u64(), "{submitted}");
    let (_, second) = system.ask("/internal/chat", &hello(&again)).await?;
    assert_eq!(second["response"], first["response"]);
    again["seed"] = json!(again["seed"].as_u64().expect("a seed") ^ 1);
    let (_, other) = system.ask("/internal/chat", &hello(&again)).await?;
    assert_ne!(other["response"], first["response"]);
    Ok(())
}

#[tokio::test]
async fn probabilities_are_in_the_answer_and_in_the_stream() -> anyhow::Result<()> {
    let system = System::start().await?;
    let ask = hello(&json!({"logprobs": true, "top_logprobs": 2, "stream": true}));
    let (exec, mut stream) = system.open("/internal/chat", ask).await?;
    let events = read_events(&mut stream, |_| false).await?;
    let (_, done) = events.last().expect("events");
    let whole = done["logprobs"]["content"].as_array().expect("probabilities");
    assert_eq!(done["usage"]["completion_tokens"], whole.len(), "{done}");
    assert!(whole.iter().all(|token| token["top_logprobs"].as_array().is_some_and(|top| top.len() == 2)));
    let tokens = events.iter().filter(|(name, _)| name == "token");
    let streamed: Vec<&Value> =
        tokens.filter_map(|(_, data)| data["logprobs"]["content"].as_array()).flatten().collect();
    assert_eq!(streamed, whole.iter().collect::<Vec<_>>(), "each once and in order");
    system.prove(exec).await?;
    Ok(())
}

#[tokio::test]
async fn an_answer_has_the_form_that_was_asked_for() -> anyhow::Result<()> {
    let system = System::start().await?;
    let schema = json!({"type": "object", "properties": {"found": {"type": "boolean"}, "lines": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["found", "lines"], "additionalProperties": false});
    let form = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}, "stream": true});
    let (exec, mut stream) = system.open("/internal/chat", hello(&form)).await?;
    let events = read_events(&mut stream, |_| false).await?;
    let answer: Value = serde_json::from_str(&text(&events))?;
    assert!(answer["found"].is_boolean() && answer["lines"].as_u64().is_some_and(|lines| lines <= 99), "{answer}");
    system.prove(exec).await?;

    let nothing =
        json!({"type": "json_schema", "json_schema": {"schema": {"type": "integer", "minimum": 4, "maximum": 3}}});
    let (status, problem) = system.ask("/internal/chat", &hello(&json!({"response_format": nothing}))).await?;
    assert_eq!((status, &problem["code"]), (400, &json!("bad_request")), "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|why| why.contains("minimum (4)")), "{problem}");

    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": {"type": "object",
        "properties": {"city": {"enum": ["Delft", "Ghent"]}}, "required": ["city"]}}});
    let named = json!({"type": "function", "function": {"name": "weather"}});
    let (_, called) = system.ask("/internal/chat", &hello(&json!({"tools": [tool], "tool_choice": named}))).await?;
    assert_eq!((&called["response"], &called["finish_reason"]), (&json!(""), &json!("tool_calls")), "{called}");
    assert_eq!(called["tool_calls"].as_array().map(Vec::len), Some(1), "{called}");
    assert!(["Delft", "Ghent"].iter().any(|city| called["tool_calls"][0]["arguments"] == json!({"city": city})));
    Ok(())
}

/// The tiny model writes `1-3` where a number belongs, and never found out of it again.
#[tokio::test]
async fn a_call_that_would_run_away_is_a_call() -> anyhow::Result<()> {
    let system = System::start().await?;
    let ask = json!({"agent_type": "coder", "instruction": "Read lines 1-3 of LICENSE.", "workspace": repository()});
    let (status, answer) = system.ask("/internal/agent", &ask).await?;
    assert_eq!(status, 200, "{answer}");
    let call = &answer["tool_calls"][0];
    assert_eq!((&call["name"], &call["success"]), (&json!("read_file"), &json!(true)), "{answer}");
    assert!(answer["usage"]["tokens"].as_u64().is_some_and(|tokens| tokens < 600), "{answer}");
    Ok(())
}
