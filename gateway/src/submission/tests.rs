use schemas::api::{AgentRequest, ChatRequest};
use schemas::chat::{Priority, Truncation};
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
        result: None,
        effect: None,
        approval: None,
        permissions: vec![],
        timeout_ms: None,
    };
    vec![tool("read_file", None), tool("web_search", Some("no key")), tool("delete_all", None)]
}

fn models() -> Vec<Model> {
    vec![
        Model { name: "embed".into(), kind: "embedding".into(), window: 9 },
        Model { name: "tiny".into(), kind: "chat".into(), window: 512 },
    ]
}

/// Models that are not loaded.
fn loadable() -> Vec<Model> {
    vec![Model { name: "large".into(), kind: "chat".into(), window: 4_096 }]
}

fn submit_chat(body: &Value) -> Result<ExecutionSubmitted, Failure> {
    let (agent, models, tools) = (agent_type(), models(), tools());
    let with = Surroundings {
        agent: &agent,
        agents: &[],
        models: &models,
        loadable: &loadable(),
        tools: &tools,
        now: 5,
        seed: 7,
    };
    read::<ChatRequest>(body.to_string().as_bytes()).and_then(|r| chat(r, &with))
}

fn submit_agent(body: &Value) -> Result<ExecutionSubmitted, Failure> {
    submit_to(&[agent_type()], body)
}

/// Submits to the first of these agent types.
fn submit_to(agents: &[AgentType], body: &Value) -> Result<ExecutionSubmitted, Failure> {
    let (models, tools) = (models(), tools());
    let with = Surroundings {
        agent: &agents[0],
        agents,
        models: &models,
        loadable: &loadable(),
        tools: &tools,
        now: 5,
        seed: 7,
    };
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
fn a_model_that_must_be_loaded_first_serves_only_who_names_it() {
    let hi = json!([{"role": "user", "content": "hi"}]);
    let chat = submit_chat(&json!({"messages": hi, "model": "large"})).expect("it waits");
    assert_eq!((chat.model.as_str(), chat.window), ("large", 4_096));
    assert_eq!(submit_chat(&json!({"messages": hi})).expect("valid").model, "tiny");
    let problem = submit_chat(&json!({"messages": hi, "model": "lrge"})).expect_err("unknown").0;
    assert_eq!(problem.next_step, "did you mean large? there are: large, tiny");
    let nothing = models::find("large", &[], &[]).expect_err("nobody is there").0;
    assert_eq!((nothing.status, nothing.code.as_str()), (503, "workers_absent"));
}

#[test]
fn what_is_wrong_with_a_chat_is_named() {
    let hi = json!([{"role": "user", "content": "hi"}]);
    assert_eq!(code(submit_chat(&json!({"messages": []}))), (400, "invalid_request".into()));
    assert_eq!(code(submit_chat(&json!({"messages": hi, "model": "tny"}))), (404, "unknown_model".into()));
    assert_eq!(code(submit_chat(&json!({"messages": hi, "modle": "x"}))), (400, "unknown_field".into()));
    assert_eq!(code(submit_chat(&json!({"messages": hi, "top_p": 0}))), (400, "invalid_request".into()));
    let format = json!({"messages": hi, "response_format": {"type": "xml"}});
    assert_eq!(code(submit_chat(&format)), (400, "unsupported_response_format".into()));
    let malformed = read::<ChatRequest>(b"{\"messages\": [}").expect_err("no JSON").0;
    assert_eq!((malformed.status, malformed.code.as_str()), (400, "malformed_json"));
    assert!(malformed.detail.contains("line 1 column"), "{}", malformed.detail);
}

#[test]
fn a_number_out_of_bounds_is_refused_with_its_field_bound_and_value() {
    let refused = [
        ("temperature", json!(-0.5), "0 to 10"),
        ("temperature", json!(1e300), "0 to 10"),
        ("top_p", json!(0), "above 0, up to 1"),
        ("top_p", json!(1e-300), "above 0, up to 1"),
        ("top_k", json!(-1), "0 to 10000000"),
        ("top_k", json!(2.5), "0 to 10000000"),
        ("min_p", json!(1.5), "0 to 1"),
        ("repetition_penalty", json!(0), "above 0, up to 2"),
        ("presence_penalty", json!(2.1), "-2 to 2"),
        ("frequency_penalty", json!(-3), "-2 to 2"),
        ("max_tokens", json!(0), "1 to 100000000"),
        ("seed", json!(-1), "0 to 18446744073709551615"),
        ("top_logprobs", json!(21), "0 to 20"),
        ("n", json!(0), "1 to 16"),
        ("n", json!(1_000), "1 to 16"),
        ("n", json!(1.5), "1 to 16"),
    ];
    for (field, value, bound) in refused {
        let body = json!({"messages": [{"role": "user", "content": "hi"}], "logprobs": true, field: value});
        let problem = submit_chat(&body).expect_err(field).0;
        assert_eq!((problem.status, problem.code.as_str()), (400, "invalid_request"));
        let parts = [format!("`{field}`"), format!(" {value};"), bound.to_owned()];
        assert!(parts.iter().all(|part| problem.detail.contains(part)), "{field}: {}", problem.detail);
        if !matches!(field, "max_tokens" | "top_logprobs" | "n") {
            let body = json!({"agent_type": "coder", "instruction": "go", "config": {field: value}});
            let detail = submit_agent(&body).expect_err(field).0.detail;
            assert!(detail.contains(&format!("`config.{field}`")), "{detail}");
        }
    }
    let text = json!({"messages": [{"role": "user", "content": "hi"}], "min_p": "low"});
    assert!(submit_chat(&text).expect_err("a text").0.detail.starts_with("`min_p`: invalid type"));
}

#[test]
fn sampling_arrives_as_it_was_asked_for() {
    let asked = json!({"messages": [{"role": "user", "content": "hi"}], "temperature": 0.5, "top_p": 1, "top_k": 0,
        "min_p": 0, "repetition_penalty": 2, "presence_penalty": -2, "frequency_penalty": 0.25, "max_tokens": 3,
        "seed": u64::MAX, "stop": ["a", "b"], "logprobs": true, "top_logprobs": 2});
    let expected = Sampling {
        temperature: Some(0.5),
        top_p: Some(1.0),
        top_k: Some(0),
        min_p: Some(0.0),
        repetition_penalty: Some(2.0),
        presence_penalty: Some(-2.0),
        frequency_penalty: Some(0.25),
        max_tokens: Some(3),
        seed: Some(u64::MAX),
        stop: vec!["a".into(), "b".into()],
        logprobs: true,
        top_logprobs: Some(2),
        ..Default::default()
    };
    assert_eq!(submit_chat(&asked).expect("valid").sampling, expected);
}

#[test]
fn one_call_at_most_is_said_only_where_there_could_be_more() {
    let several = |asked: Value| {
        let mut chat = json!({"messages": [{"role": "user", "content": "hi"}]});
        chat.as_object_mut().expect("an object").extend(asked.as_object().expect("fields").clone());
        submit_chat(&chat).expect("valid").sampling.parallel_tool_calls
    };
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    assert_eq!(several(json!({"tools": tools, "parallel_tool_calls": false})), Some(false));
    assert_eq!(several(json!({"tools": tools, "parallel_tool_calls": true})), None);
    assert_eq!(several(json!({"tools": tools})), None);
    assert_eq!(several(json!({"parallel_tool_calls": false})), None);
}

#[test]
fn who_goes_first_and_what_does_not_fit_is_told_in_known_words() {
    let hi = json!([{"role": "user", "content": "hi"}]);
    let chat = submit_chat(&json!({"messages": hi, "priority": "low", "truncation": "auto", "n": 3})).expect("valid");
    assert_eq!((chat.priority, chat.truncation, chat.sampling.n), (Priority::Low, Truncation::Auto, Some(3)));
    let plain = submit_chat(&json!({"messages": hi, "n": 1, "truncation": "disabled"})).expect("valid");
    assert_eq!((plain.priority, plain.truncation, plain.sampling.n), (Priority::Normal, Truncation::Disabled, None));
    for (field, value) in [("priority", "urgent"), ("truncation", "start")] {
        let problem = submit_chat(&json!({"messages": hi, field: value})).expect_err(field).0;
        assert_eq!((problem.status, problem.code.as_str()), (400, "invalid_request"));
        let known = if field == "priority" { "`high`" } else { "`auto`" };
        let parts = [format!("`{field}`"), format!("`{value}`"), known.to_owned()];
        assert!(parts.iter().all(|part| problem.detail.contains(part)), "{}", problem.detail);
    }
    let agent = |config: Value| submit_agent(&json!({"agent_type": "coder", "instruction": "go", "config": config}));
    assert_eq!(agent(json!({"priority": "high", "n": 1})).expect("valid").priority, Priority::High);
    let several = agent(json!({"n": 2})).expect_err("an agent has one").0;
    assert!(several.detail.contains("`config.n` is 2; it must be 1"), "{}", several.detail);
    assert!(agent(json!({"priority": "urgent"})).expect_err("unknown").0.detail.contains("config.priority"));
    assert!(agent(json!({"truncation": "auto"})).expect_err("an agent is summarised").0.detail.contains("truncation"));
}

#[test]
fn only_what_follows_from_the_request_alone_may_be_known_again() {
    let chat = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        submit_chat(&body).expect("valid").cache
    };
    assert!(chat(json!({})) && chat(json!({"temperature": 0})) && chat(json!({"temperature": 0, "seed": 5})));
    assert!(!chat(json!({"temperature": 0.5})), "the seed is drawn");
    assert!(chat(json!({"temperature": 0.5, "seed": 5})));
    assert!(!chat(json!({"cache": false})) && !chat(json!({"temperature": 0.5, "cache": true})));
    let agent = |config: Value| {
        submit_agent(&json!({"agent_type": "coder", "instruction": "go", "config": config})).expect("valid").cache
    };
    assert!(agent(json!({})) && agent(json!({"temperature": 1, "seed": 1})));
    assert!(!agent(json!({"temperature": 1})) && !agent(json!({"cache": false})));
}

fn chat_with(more: &Value) -> Result<Sampling, (String, String)> {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    submit_chat(&body).map(|s| s.sampling).map_err(|failure| (failure.0.code, failure.0.detail))
}

#[test]
fn what_an_answer_must_be_is_read_as_openai_writes_it() {
    use schemas::chat::{ResponseFormat, ToolChoice};
    let tools =
        json!([{"type": "function", "function": {"name": "a"}}, {"type": "function", "function": {"name": "b"}}]);
    let choice = |choice: Value| chat_with(&json!({"tools": tools, "tool_choice": choice})).map(|s| s.tool_choice);
    assert_eq!(choice(json!("auto")), Ok(None));
    assert_eq!(choice(json!("none")), Ok(Some(ToolChoice::None)));
    assert_eq!(choice(json!("required")), Ok(Some(ToolChoice::Required)));
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    assert_eq!(choice(named("b")), Ok(Some(ToolChoice::Function { name: "b".into() })));
    assert!(choice(named("c")).is_err_and(|(_, detail)| detail.contains("\"c\"")));
    assert!(choice(json!("any")).is_err_and(|(_, detail)| detail.contains("\"any\"")));
    assert!(chat_with(&json!({"tool_choice": "required"})).is_err_and(|(_, detail)| detail.contains("no `tools`")));

    let format = |format: Value| chat_with(&json!({"response_format": format})).map(|s| s.response_format);
    assert_eq!(format(json!({"type": "text"})), Ok(None));
    assert_eq!(format(json!({"type": "json_object"})), Ok(Some(ResponseFormat::JsonObject)));
    let schema = json!({"type": "object"});
    let with = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    assert_eq!(format(with), Ok(Some(ResponseFormat::JsonSchema { schema })));
    assert!(format(json!({"type": "json_schema"})).is_err_and(|(_, detail)| detail.contains("json_schema.schema")));
    let both = chat_with(&json!({"response_format": {"type": "json_object"}, "tools": tools}));
    assert!(both.is_err_and(|(_, detail)| detail.contains("no tool could be called")));
}

#[test]
fn a_schema_beyond_the_bounds_is_refused_before_anything_compiles_it() {
    let deep = (0..60).fold(json!({}), |inner, _| json!({"items": inner}));
    let format = json!({"response_format": {"type": "json_schema", "json_schema": {"schema": deep}}});
    let (code, detail) = chat_with(&format).expect_err("deep");
    assert_eq!(code, "unusable_schema");
    assert!(detail.starts_with("`response_format.json_schema.schema`: the schema nests"), "{detail}");
    let tools = json!({"tools": [{"type": "function", "function": {"name": "a", "parameters": deep}}]});
    assert!(chat_with(&tools).is_err_and(|(_, detail)| detail.starts_with("`tools[0].function.parameters`")));
}

#[test]
fn stop_texts_and_probabilities_are_bounded() {
    let with = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        submit_chat(&body).map_err(|failure| failure.0.detail)
    };
    assert!(with(json!({"stop": vec!["x"; 17]})).expect_err("many").contains("17 texts"));
    assert!(with(json!({"stop": ["x".repeat(1_025)]})).expect_err("long").contains("1025 bytes"));
    assert!(with(json!({"stop": ""})).expect_err("empty").contains("empty"));
    assert!(with(json!({"top_logprobs": 2})).expect_err("alone").contains("without `logprobs`"));
    assert!(with(json!({"logprobs": true, "top_logprobs": 20})).is_ok(), "a window of 512 fits");
    let sampling = Sampling { logprobs: true, top_logprobs: Some(20), ..Default::default() };
    let problem = sampling::check_size(&sampling, 32_768).expect_err("too much for one message").0;
    assert!(problem.next_step.contains("2380"), "{}", problem.next_step);
    let four = Sampling { n: Some(4), ..sampling };
    let problem = sampling::check_size(&four, 32_768).expect_err("four times as much").0;
    assert!(problem.next_step.contains("595") && problem.detail.contains("4 answers"), "{problem:?}");
    let texts = Sampling { n: Some(16), ..Default::default() };
    assert!(sampling::check_size(&texts, 32_768).is_ok());
    let problem = sampling::check_size(&texts, 131_072).expect_err("two million tokens").0;
    assert!(problem.detail.contains("1000000") && problem.next_step.contains("62500"), "{problem:?}");
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

/// A team: `lead` may ask `coder` and `scout`, `scout` may ask `coder`.
fn team(max_depth: u32) -> Vec<AgentType> {
    let member = |name: &str, agents: &[&str]| AgentType {
        name: name.into(),
        description: format!("The {name}."),
        agents: agents.iter().map(|a| (*a).to_owned()).collect(),
        max_children: 8,
        max_depth,
        ..agent_type()
    };
    vec![member("lead", &["scout"]), member("scout", &["coder"]), AgentType { max_children: 0, ..agent_type() }]
}

fn go(config: &Value) -> Value {
    json!({"agent_type": "lead", "instruction": "go", "config": config})
}

fn offered(tools: &[ToolSpec]) -> Vec<&str> {
    tools.iter().map(|t| t.function.name.as_str()).collect()
}

#[test]
fn an_agent_brings_all_whom_it_may_ask_and_says_whom_it_may_ask_directly() {
    let lead = submit_to(&team(2), &go(&json!({}))).expect("valid");
    assert_eq!((lead.limits.children, lead.limits.depth), (8, 2));
    assert_eq!(offered(&lead.tools), ["read_file", "delegate"]);
    let tool = &lead.tools[1].function;
    assert_eq!(tool.parameters["properties"]["agent"]["enum"], json!(["scout"]));
    assert!(tool.description.contains("scout: The scout."), "{}", tool.description);
    let brought: Vec<(&str, Vec<&str>, &[String])> =
        lead.agents.iter().map(|a| (a.name.as_str(), offered(&a.tools), a.agents.as_slice())).collect();
    let (scout, coder) = (["scout".to_owned()], ["coder".to_owned()]);
    let expected: Vec<(&str, Vec<&str>, &[String])> = vec![
        ("scout", vec!["read_file", "delegate"], &coder),
        ("coder", vec!["read_file"], &[]),
        ("lead", vec!["read_file", "delegate"], &scout),
    ];
    assert_eq!(brought, expected);
    assert_eq!((lead.agents[1].model.as_str(), lead.agents[1].window, lead.agents[1].tokens), ("tiny", 512, 100));
}

#[test]
fn the_depth_ends_who_may_be_asked_and_no_children_means_alone() {
    let lead = submit_to(&team(1), &go(&json!({}))).expect("valid");
    assert_eq!(lead.agents.iter().map(|a| (a.name.as_str(), a.agents.len())).collect::<Vec<_>>(), [("scout", 0)]);
    assert_eq!(offered(&lead.agents[0].tools), ["read_file"]);
    for config in [json!({"max_children": 0}), json!({"tools": ["read_file"]})] {
        let alone = submit_to(&team(2), &go(&config)).expect("valid");
        assert_eq!((offered(&alone.tools), alone.agents.len()), (vec!["read_file"], 0));
    }
    let only = submit_to(&team(2), &go(&json!({"tools": ["delegate"]}))).expect("valid");
    assert_eq!((offered(&only.tools), only.agents.len()), (vec!["delegate"], 3));
}

#[test]
fn an_agent_that_asks_nobody_knows_or_itself_is_refused_with_what_to_do() {
    let mut two = team(2);
    two.truncate(2);
    let problem = submit_to(&two, &go(&json!({}))).expect_err("no coder").0;
    assert_eq!((problem.status, problem.code.as_str()), (503, "agent_missing"));
    assert!(problem.detail.contains("scout delegates to coder"), "{}", problem.detail);
    assert!(problem.next_step.contains("register coder"), "{}", problem.next_step);
    two[1].agents = vec!["lead".into()];
    assert_eq!(code(submit_to(&two, &go(&json!({})))), (503, "agents_in_a_circle".into()));
}

#[test]
fn what_needs_a_person_needs_one_at_every_level() {
    let lead = submit_to(&team(2), &go(&json!({"approve": ["read_file"]}))).expect("valid");
    assert_eq!(lead.policy.approve, ["read_file"]);
    assert!(lead.agents.iter().all(|a| a.policy.approve == ["read_file"]));
    for name in ["delegate", "delete_all"] {
        let problem = submit_to(&team(2), &go(&json!({"approve": [name]}))).expect_err("not a tool of theirs").0;
        assert_eq!((problem.status, problem.code.as_str()), (400, "invalid_request"));
        assert!(problem.detail.contains(name), "{}", problem.detail);
    }
}

#[test]
fn what_a_tool_worker_wants_asked_about_stands_in_the_request_of_every_agent_that_may_call_it() {
    let (models, team) = (models(), team(2));
    let mut tools = tools();
    let submit = |tools: &[Tool]| {
        let with =
            Surroundings { agent: &team[0], agents: &team, models: &models, loadable: &[], tools, now: 5, seed: 7 };
        read::<AgentRequest>(go(&json!({})).to_string().as_bytes()).and_then(|r| agent(r, &with)).expect("valid")
    };
    assert!(submit(&tools).policy.approve.is_empty());
    tools.iter_mut().for_each(|tool| tool.approval = Some(Approval::Always));
    let lead = submit(&tools);
    assert_eq!(lead.policy.approve, ["read_file"], "of those that it is offered");
    assert!(lead.agents.iter().all(|a| a.policy.approve == ["read_file"]));
}

#[test]
fn who_wants_nothing_that_was_kept_wants_tools_called_anew() {
    let fresh = |config: Value| {
        submit_agent(&json!({"agent_type": "coder", "instruction": "go", "config": config})).expect("valid").fresh_tools
    };
    assert!(fresh(json!({"cache": false})) && !fresh(json!({"cache": true})) && !fresh(json!({})));
    let call = |cache: Value| {
        let body = json!({"tool_name": "read_file", "arguments": {}, "cache": cache});
        let request = read::<ToolRequest>(body.to_string().as_bytes()).expect("well formed");
        tool(request, &tools(), 5, 60).expect("valid").fresh_tools
    };
    assert!(call(json!(false)) && !call(json!(true)) && !call(Value::Null));
}

#[test]
fn limits_of_a_request_are_its_own_or_the_agent_types() {
    let config = json!({"max_tokens_in": 50, "max_tokens_out": 9, "max_children": 99});
    let limits = submit_to(&team(2), &go(&config)).expect("valid").limits;
    assert_eq!((limits.tokens_in, limits.tokens_out, limits.children), (Some(50), Some(9), 8));
    let problem = submit_to(&team(2), &go(&json!({"max_tokens_out": 0}))).expect_err("zero").0;
    assert!(problem.detail.contains("max_tokens_out"), "{}", problem.detail);
}

#[test]
fn the_first_preferred_model_that_is_loaded_and_holds_the_prompt_serves() {
    let model = |name: &str, window| Model { name: name.into(), kind: "chat".into(), window };
    let models = [model("large", 4_096), model("small", 100), model("unknown", 0)];
    let preferring =
        |names: &[&str]| AgentType { models: names.iter().map(|n| (*n).to_owned()).collect(), ..agent_type() };
    let chosen = |names: &[&str], tokens| {
        models::preferred(&preferring(names), &models, tokens).map(|m| m.name.clone()).map_err(|f| f.0.code)
    };
    assert_eq!(chosen(&["missing", "small", "large"], 50), Ok("small".into()));
    assert_eq!(chosen(&["missing", "small", "large"], 100), Ok("large".into()));
    assert_eq!(chosen(&["small", "large"], 9_999), Ok("large".into()), "the tokenizer will judge");
    assert_eq!(chosen(&[], 50), Ok("large".into()));
    assert_eq!(chosen(&["missing"], 50), Err("workers_absent".into()));
    assert_eq!(models::tokens(&[Message::text(Role::User, "x".repeat(50))], &[]), 20);
}
