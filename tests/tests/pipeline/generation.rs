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

#[tokio::test]
async fn several_answers_are_in_the_answer_and_at_the_end_of_the_stream() -> anyhow::Result<()> {
    let system = System::start().await?;
    let asked = json!({"n": 3, "temperature": 2.0, "seed": 5, "max_tokens": 24, "logprobs": true, "cache": false});
    let (status, whole) = system.ask("/internal/chat", &hello(&asked)).await?;
    assert_eq!(status, 200, "{whole}");
    let choices = whole["choices"].as_array().expect("choices");
    assert_eq!(choices.iter().map(|choice| &choice["index"]).collect::<Vec<_>>(), [0, 1, 2], "{whole}");
    assert_eq!(choices[0]["message"], json!({"role": "assistant", "content": whole["response"]}));
    let tokens = |choice: &Value| choice["logprobs"]["content"].as_array().map_or(0, Vec::len);
    assert_eq!(whole["usage"]["completion_tokens"], choices.iter().map(tokens).sum::<usize>(), "{whole}");
    for (choice, seed) in choices.iter().zip(5..) {
        let mut alone = asked.clone();
        (alone["n"], alone["seed"]) = (json!(1), json!(seed));
        let (_, alone) = system.ask("/internal/chat", &hello(&alone)).await?;
        assert_eq!(
            (&choice["message"]["content"], &choice["finish_reason"]),
            (&alone["response"], &alone["finish_reason"])
        );
        assert!(alone.get("choices").is_none(), "one answer has no choices: {alone}");
    }
    assert_ne!(choices[0]["message"], choices[1]["message"]);

    let (exec, mut stream) = system.open("/internal/chat", hello(&asked)).await?;
    let events = read_events(&mut stream, |_| false).await?;
    assert_eq!(text(&events), whole["response"].as_str().expect("text"), "the first is streamed, the others are not");
    let (_, done) = events.last().expect("events");
    let messages = |answer: &Value| -> Vec<Value> {
        answer["choices"].as_array().into_iter().flatten().map(|choice| choice["message"].clone()).collect()
    };
    assert_eq!((messages(done), &done["usage"]["tokens"]), (messages(&whole), &whole["usage"]["tokens"]));
    system.prove(exec).await?;

    // The conversation goes on with the first.
    let said =
        json!({"messages": [{"role": "user", "content": "and then?"}], "conversation_id": exec, "max_tokens": 4});
    let (_, next) = system.ask("/internal/chat", &said).await?;
    let apart = json!({"max_tokens": 4, "messages": [{"role": "user", "content": "hello"},
        {"role": "assistant", "content": whole["response"]}, {"role": "user", "content": "and then?"}]});
    let (_, apart) = system.ask("/internal/chat", &apart).await?;
    assert_eq!(
        (&next["response"], &next["usage"]["prompt_tokens"]),
        (&apart["response"], &apart["usage"]["prompt_tokens"])
    );
    Ok(())
}

#[tokio::test]
async fn a_second_equal_request_is_answered_from_what_is_known_unless_something_is_drawn() -> anyhow::Result<()> {
    let system = System::start().await?;
    let ask = async |more: Value| -> anyhow::Result<(Value, bool)> {
        let (status, answer) = system.ask("/internal/chat", &hello(&more)).await?;
        assert_eq!(status, 200, "{answer}");
        let cached = answer["cached"] == json!(true);
        Ok((answer, cached))
    };
    let (first, cached) = ask(json!({})).await?;
    assert!(!cached, "{first}");
    let (second, cached) = ask(json!({"temperature": 0, "user_id": "another"})).await?;
    assert!(cached, "nothing is drawn: {second}");
    let counts =
        |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().zip(answer["usage"]["completion_tokens"].as_u64());
    assert_eq!((&second["response"], counts(&second)), (&first["response"], counts(&first)));
    let details = &second["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert_eq!(details, &second["usage"]["prompt_tokens"]);
    assert!(!ask(json!({"cache": false})).await?.1, "the caller does not want it");
    assert!(!ask(json!({"n": 2})).await?.1, "another question");

    let (exec, mut stream) = system.open("/internal/chat", hello(&json!({}))).await?;
    let events = read_events(&mut stream, |_| false).await?;
    assert_eq!(text(&events), first["response"].as_str().expect("text"), "what is known streams, too");
    assert_eq!(events.last().map(|(_, done)| &done["cached"]), Some(&json!(true)));
    system.prove(exec).await?;

    let drawn = json!({"temperature": 1.5, "max_tokens": 8});
    ask(drawn.clone()).await?;
    assert!(!ask(drawn).await?.1, "each draws anew");
    let seeded = json!({"temperature": 1.5, "max_tokens": 8, "seed": 3});
    let (once, cached) = ask(seeded.clone()).await?;
    let (twice, known) = ask(seeded).await?;
    assert_eq!((cached, known, &once["response"]), (false, true, &twice["response"]), "the caller's own seed");

    let both = futures::future::try_join_all((0..2).map(|_| ask(json!({"max_tokens": 7})))).await?;
    assert_eq!(both.iter().filter(|(_, cached)| !cached).count(), 1, "two at once are computed once: {both:?}");
    Ok(())
}

#[tokio::test]
async fn an_agent_and_its_prompt_are_known_again_unless_it_says_no() -> anyhow::Result<()> {
    let system = System::start().await?;
    let ask = async |cache: bool| -> anyhow::Result<Value> {
        let ask = json!({"agent_type": "coder", "instruction": "Where is TokenReader defined?", "workspace": system.workspace(),
            "config": {"max_iterations": 4, "cache": cache, "priority": "high"}});
        let (status, answer) = system.ask("/internal/agent", &ask).await?;
        assert_eq!(status, 200, "{answer}");
        Ok(answer)
    };
    let first = ask(true).await?;
    let (second, third) = (ask(true).await?, ask(false).await?);
    assert_eq!((&second["response"], &second["cached"]), (&first["response"], &json!(true)));
    assert_eq!((&third["response"], third.get("cached")), (&first["response"], None));
    let known = third["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count");
    assert!(
        known > 0 && known < third["usage"]["prompt_tokens"].as_u64().expect("a count"),
        "blocks are shared: {third}"
    );
    Ok(())
}
