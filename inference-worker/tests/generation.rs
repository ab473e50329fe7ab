//! The tiny model, asked as the service asks it: seeds, stop texts, bound answers and calls.

use std::{
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};

use inference_worker::{
    answer::FinishReason,
    constraint::{CALLS_MAX, Grammars},
    engine::{Engine, EngineConfig, Event, Outcome, Request},
    kernels::team::Team,
    kv::BLOCK,
    model_directory::Model,
    sample::Sampling,
    tool_calls::{Family, Parser, Part},
};
use runtime::clock;
use schemas::ToolSpec;
use schemas::chat::{FunctionCall, ResponseFormat, ToolChoice};
use serde_json::{Value, json};

static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let model = Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")).unwrap();
    Engine::start(Arc::new(model), Arc::new(Team::alone()), &EngineConfig::default()).unwrap()
});

fn ask(text: &str) -> Request {
    Request { messages: vec![json!({"role": "user", "content": text})], tokens_max: Some(120), ..Request::default() }
}

fn tool(name: &str, parameters: &Value) -> Value {
    json!({"type": "function", "function": {"name": name, "description": "", "parameters": parameters}})
}

/// The tools of the agent type `coder`, as the tiny model knows them.
fn tools() -> Vec<Value> {
    let text = json!({"type": "string"});
    let whole = json!({"type": "integer", "minimum": 1});
    vec![
        tool(
            "search_code",
            &json!({"type": "object", "properties": {"query": text, "path": text}, "required": ["query"], "additionalProperties": false}),
        ),
        tool(
            "read_file",
            &json!({"type": "object", "properties": {"path": text, "start": whole, "end": whole}, "required": ["path"], "additionalProperties": false}),
        ),
    ]
}

/// Runs to the end: tokens and outcome, or why there is none.
fn run(request: Request) -> Result<(Vec<u32>, Outcome), String> {
    let mut running = ENGINE.submit(request).map_err(|rejection| rejection.to_string())?;
    let mut ids = Vec::new();
    loop {
        match running.events.blocking_recv().expect("an end is announced") {
            Event::Token { id, .. } => ids.push(id),
            Event::Finished(outcome) => return Ok((ids, *outcome)),
            Event::Failed(why) | Event::Refused(why) => return Err(why),
        }
    }
}

fn format(schema: Value) -> Option<ResponseFormat> {
    Some(ResponseFormat::JsonSchema { schema })
}

#[test]
fn a_seed_gives_the_same_text_and_another_seed_another() {
    let drawn = |seed| {
        let sampling = Sampling { temperature: 2.0, seed, ..Sampling::default() };
        run(Request { sampling, ..ask("hello") }).unwrap().0
    };
    assert_eq!(drawn(7), drawn(7));
    assert_ne!(drawn(7), drawn(8));
}

#[test]
fn a_stop_text_that_spans_tokens_ends_the_answer_before_it() {
    let (ids, whole) = run(ask("hello")).unwrap();
    assert_eq!(whole.text, "Hello! Ask me about the code in this workspace.");
    // Part of one token, two whole ones, and part of a fourth.
    let stop = vec!["e code in t".to_owned(), "never".to_owned()];
    let (stopped, outcome) = run(Request { stop, ..ask("hello") }).unwrap();
    assert_eq!((outcome.text.as_str(), outcome.reason), ("Hello! Ask me about th", FinishReason::Stop));
    assert_eq!(stopped, ids[..stopped.len()]);
}

#[test]
fn probabilities_are_said_for_each_token() {
    let sampling = Sampling { logprobs: Some(3), ..Sampling::default() };
    let (ids, outcome) = run(Request { sampling, ..ask("hello") }).unwrap();
    assert_eq!(outcome.logprobs.len(), ids.len());
    for token in &outcome.logprobs {
        assert_eq!((token.top_logprobs[0].token.as_str(), token.top_logprobs.len()), (token.token.as_str(), 3));
    }
    assert_eq!(outcome.logprobs.last().map(|token| token.token.as_str()), Some("<|im_end|>"));
}

fn arguments(call: &FunctionCall) -> Value {
    serde_json::from_str(&call.arguments).unwrap()
}

#[test]
fn an_answer_that_nothing_binds_is_what_it_was() {
    // Offering tools prepares a grammar that is never entered here; what is said must not change by it.
    let mut plain = ask("hello");
    plain.tools = vec![json!("no tool that a grammar could be made of")];
    let mut offered = ask("hello");
    offered.tools = tools();
    let rendered = |request: &Request| ENGINE.model().template.render(&request.messages, &request.tools).unwrap();
    plain.messages = vec![json!({"role": "user", "content": "hello"})];
    plain.tools.clear();
    assert_ne!(rendered(&plain), rendered(&offered));
    let (free, _) = run(Request { tool_choice: Some(ToolChoice::None), ..offered.clone() }).unwrap();
    assert_eq!(free, run(plain).unwrap().0, "tool_choice none asks as if there were no tools");
}

#[test]
fn a_call_ends_as_a_valid_call() {
    for text in ["Read lines 1-3 of LICENSE.", "Where is parse_config defined?", "Read src/main.rs"] {
        let (_, outcome) = run(Request { tools: tools(), tokens_max: None, ..ask(text) }).unwrap();
        assert_eq!(outcome.malformed, [], "{text}");
        assert_eq!((outcome.reason, outcome.tool_calls.len()), (FinishReason::ToolCalls, 1), "{text}: {outcome:?}");
        assert!(outcome.completion_tokens < 100, "{text}: {outcome:?}");
        let call = &outcome.tool_calls[0];
        let known = tools().into_iter().find(|tool| tool["function"]["name"] == call.name.as_str()).unwrap();
        for (key, value) in arguments(call).as_object().unwrap() {
            let kind = &known["function"]["parameters"]["properties"][key]["type"];
            assert_eq!(value.is_i64(), kind == "integer", "{text}: {call:?}");
        }
    }
}

#[test]
fn an_answer_with_one_call_at_most_ends_behind_it() {
    let asked = |text: &str, one_call| {
        let system = json!({"role": "system", "content": "You are Vlinder, a code assistant."});
        let messages = vec![system, json!({"role": "user", "content": text})];
        Request { messages, tools: tools(), one_call, ..Request::default() }
    };
    let texts = ["Find TokenReader and Liveness.", "Where are TokenReader and Liveness defined?"];
    let both = texts.map(|text| (text, run(asked(text, false)).unwrap().1));
    let (text, both) = both.into_iter().find(|(_, both)| both.tool_calls.len() == 2).expect("the model calls twice");
    let (_, one) = run(asked(text, true)).unwrap();
    assert_eq!((&one.tool_calls[..], one.reason), (&both.tool_calls[..1], FinishReason::ToolCalls));
    assert!(one.completion_tokens < both.completion_tokens && one.malformed.is_empty(), "{one:?}");
    // What an earlier attempt has produced ends it as well.
    let produced = both.ids.clone();
    let (more, again) = run(Request { produced, ..asked(text, true) }).unwrap();
    assert!(more.is_empty(), "{more:?}");
    assert_eq!(again.tool_calls, one.tool_calls);
    let (_, bound) = run(Request { tool_choice: Some(ToolChoice::Required), ..asked(text, true) }).unwrap();
    assert_eq!((bound.tool_calls, bound.reason), (one.tool_calls, FinishReason::ToolCalls));
    // Where there is no call there is nothing to end.
    let (_, said) = run(asked("hello", true)).unwrap();
    assert_eq!((said.reason, said.tool_calls.len()), (FinishReason::Stop, 0), "{said:?}");
}

#[test]
fn a_call_that_must_come_comes() {
    let required = Some(ToolChoice::Required);
    let (said, _) = run(Request { tools: tools(), ..ask("hello") }).unwrap();
    let (_, outcome) =
        run(Request { tools: tools(), tool_choice: required.clone(), ..ask("Read src/main.rs") }).unwrap();
    assert_eq!((outcome.reason, outcome.malformed.len()), (FinishReason::ToolCalls, 0), "{outcome:?}");
    // Where the model would rather talk, it calls; it may not find an end, and then the answer says so.
    let (called, outcome) = run(Request { tools: tools(), tool_choice: required, ..ask("hello") }).unwrap();
    assert_ne!(said[0], called[0]);
    assert!(outcome.text.is_empty() && outcome.tool_calls.len() + outcome.malformed.len() == 1, "{outcome:?}");
    for name in ["search_code", "read_file"] {
        let choice = Some(ToolChoice::Function { name: name.to_owned() });
        let request = Request { tools: tools(), tool_choice: choice, ..ask("Where is main defined?") };
        let (_, outcome) = run(request).unwrap();
        assert_eq!(outcome.tool_calls.iter().map(|call| call.name.as_str()).collect::<Vec<_>>(), [name], "{outcome:?}");
        assert_eq!((outcome.text.as_str(), outcome.reason), ("", FinishReason::ToolCalls));
    }
}

#[test]
fn after_a_bound_call_to_a_tool_it_never_saw_the_model_ends() {
    let weather = || {
        let city =
            json!({"type": "object", "properties": {"city": {"enum": ["Delft", "Ghent"]}}, "required": ["city"]});
        let add = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["a"]});
        Request { tools: vec![tool("get_weather", &city), tool("add", &add)], tokens_max: None, ..ask("hello") }
    };
    for choice in [ToolChoice::Required, ToolChoice::Function { name: "get_weather".to_owned() }] {
        let (_, outcome) = run(Request { tool_choice: Some(choice), ..weather() }).unwrap();
        let known = |call: &FunctionCall| {
            (call.name == "get_weather" && ["Delft", "Ghent"].iter().any(|city| arguments(call)["city"] == *city))
                || (call.name == "add" && arguments(call)["a"].is_i64())
        };
        assert!(!outcome.tool_calls.is_empty() && outcome.tool_calls.iter().all(known), "{outcome:?}");
        assert_eq!((outcome.text.as_str(), outcome.reason), ("", FinishReason::ToolCalls), "{outcome:?}");
    }
}

#[test]
fn json_fits_its_schema_whatever_the_model_would_rather_say() {
    let schema = json!({"type": "object", "properties": {"kind": {"enum": ["fix", "feature"]}, "lines": {"type": "integer", "minimum": 3, "maximum": 40},
        "done": {"type": "boolean"}}, "required": ["kind", "lines", "done"], "additionalProperties": false});
    for seed in 0..8 {
        let sampling = Sampling { temperature: 1.5, seed, ..Sampling::default() };
        let request =
            Request { response_format: format(schema.clone()), sampling, tokens_max: Some(300), ..ask("hello") };
        let (_, outcome) = run(request).unwrap();
        let answer: Value = serde_json::from_str(&outcome.text).unwrap_or_else(|why| panic!("{why}: {outcome:?}"));
        assert!(["fix", "feature"].iter().any(|kind| answer["kind"] == *kind), "{answer}");
        assert!(answer["lines"].as_i64().is_some_and(|lines| (3..=40).contains(&lines)), "{answer}");
        assert!(answer["done"].is_boolean() && answer.as_object().unwrap().len() == 3, "{answer}");
        assert_eq!(outcome.reason, FinishReason::Stop);
    }
    let request = Request { response_format: Some(ResponseFormat::JsonObject), tokens_max: Some(400), ..ask("hello") };
    let (_, outcome) = run(request).unwrap();
    let read = serde_json::from_str::<Value>(&outcome.text);
    assert!(read.is_ok_and(|value| value.is_object()) || outcome.reason == FinishReason::Length, "{outcome:?}");
    assert!(outcome.text.starts_with('{'), "{outcome:?}");
}

#[test]
fn a_bound_answer_is_taken_over_where_it_was_left() {
    let request = || Request { tools: tools(), ..ask("Read lines 1-3 of LICENSE.") };
    let (ids, whole) = run(request()).unwrap();
    for known in [1, ids.len() / 2, ids.len() - 1, ids.len()] {
        let (rest, outcome) = run(Request { produced: ids[..known].to_vec(), ..request() }).unwrap();
        assert_eq!([&ids[..known], &rest].concat(), ids);
        assert_eq!(outcome.tool_calls, whole.tool_calls);
    }
}

#[test]
fn hostile_schemas_are_refused_in_bounded_time() {
    let pattern = |pattern: &str| json!({"type": "string", "pattern": pattern});
    let exponential = (0..20).map(|i| json!({"properties": {format!("p{i}"): {"type": "string"}}})).collect::<Vec<_>>();
    let many =
        (0..900).map(|i| (format!("p{i}"), json!({"type": "string", "pattern": format!("^(a|b|{i})*c{{0,50}}$")})));
    let refused = [
        ("unsatisfiable", json!({"type": "integer", "minimum": 5, "maximum": 4})),
        ("unsatisfiable all", json!({"allOf": [{"type": "string"}, {"type": "object"}]})),
        ("nothing", json!(false)),
        ("deep", (0..60).fold(json!({}), |inner, _| json!({"items": inner}))),
        ("huge count", json!({"type": "array", "minItems": 1_000_000_000, "items": {"type": "integer"}})),
        ("combinations", json!({"allOf": (0..8).map(|_| json!({"anyOf": exponential})).collect::<Vec<_>>()})),
        ("unknown reference", json!({"$ref": "https://example.com/schema.json"})),
        ("circle", json!({"$ref": "#"})),
        (
            "circle of two",
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        ),
        ("bad pattern", pattern("(")),
    ];
    // What compiles, since patterns unfold as text comes, is bounded at every token.
    let bounded = [
        ("exponential pattern", pattern("^((a?){200}){200}(b{1,500}){500}$")),
        (
            "exponential intersection",
            json!({"allOf": [pattern("^(.*a.{60})$"), pattern("^(.{60}b.*)$"), pattern("^(.*c.{61})$")]}),
        ),
        ("many patterns", json!({"type": "object", "properties": many.collect::<serde_json::Map<_, _>>()})),
        ("large counts", json!({"type": "array", "minItems": 9_999, "items": {"type": "string", "minLength": 9_999}})),
    ];
    let must = refused.into_iter().map(|(name, schema)| (name, schema, true));
    for (name, schema, must) in must.chain(bounded.into_iter().map(|(name, schema)| (name, schema, false))) {
        let since = clock::instant();
        let ended = run(Request { response_format: format(schema), ..ask("hello") });
        let took = since.elapsed();
        println!("{name}: {took:?} {:?}", ended.as_ref().map(|(ids, outcome)| (ids.len(), outcome.reason)));
        assert!(ended.is_err() || !must, "{name}: {ended:?}");
        assert!(took < Duration::from_secs(10), "{name}: {took:?}");
    }
}

#[test]
fn a_call_without_end_is_ended() {
    // The tiny model repeats itself in a string here. What it wrote is kept as far as it helps to see what went wrong.
    let request = Request { tools: tools(), tool_choice: Some(ToolChoice::Required), tokens_max: None, ..ask("hello") };
    let (ids, outcome) = run(request).unwrap();
    assert!(ids.len() < 400, "{}", ids.len());
    let ended = outcome.tool_calls.len() + outcome.malformed.len();
    assert_eq!((outcome.reason, ended), (FinishReason::ToolCalls, 1), "{outcome:?}");
    assert!(outcome.malformed.iter().all(|(text, _)| text.len() < 600), "{outcome:?}");
}

/// An engine of its own, whose counts no other test changes.
fn engine(step_tokens: usize) -> Engine {
    let model = Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")).unwrap();
    let config = EngineConfig { step_tokens, ..EngineConfig::default() };
    Engine::start(Arc::new(model), Arc::new(Team::alone()), &config).unwrap()
}

/// Lets an engine answer to the end.
fn finish(engine: &Engine, request: Request) -> Outcome {
    let mut running = engine.submit(request).unwrap();
    loop {
        if let Event::Finished(outcome) = running.events.blocking_recv().expect("an end is announced") {
            return *outcome;
        }
    }
}

fn hot(seed: u64) -> Sampling {
    Sampling { temperature: 3.0, seed, logprobs: Some(1), ..Sampling::default() }
}

#[test]
fn several_answers_are_those_of_their_seeds_and_share_one_prompt() {
    // The prompt takes several steps: nobody may begin before the last of them.
    let engine = engine(8);
    let request = |seed| Request { tools: tools(), sampling: hot(seed), ..ask("Where is parse_config defined?") };
    let outcome = finish(&engine, Request { alternatives: 3, ..request(u64::MAX) });
    let computed = engine.computed_tokens() as usize;
    let (prompt, shared) = (outcome.prompt_tokens, (outcome.prompt_tokens - 1) / BLOCK * BLOCK);
    assert!(prompt > 3 * 8, "{prompt}");
    let all: Vec<&Outcome> = std::iter::once(&outcome).chain(&outcome.alternatives).collect();
    // The last token of an answer is not computed: nothing follows it.
    let answers: usize = all.iter().map(|one| one.completion_tokens - 1).sum();
    assert_eq!(computed, prompt + 3 * (prompt - shared) + answers);
    assert_eq!(outcome.alternatives.len(), 3);
    for (one, seed) in all.iter().zip([u64::MAX, 0, 1, 2]) {
        let (ids, alone) = run(request(seed)).unwrap();
        assert_eq!((&one.text, &one.ids, one.reason), (&alone.text, &ids, alone.reason), "seed {seed}");
        assert_eq!((&one.tool_calls, &one.logprobs), (&alone.tool_calls, &alone.logprobs), "seed {seed}");
    }
    assert!(outcome.alternatives.iter().any(|other| other.ids != outcome.ids), "seeds make a difference");
    assert_eq!(engine.free_slots(), engine.slots());
}

#[test]
fn what_is_asked_of_an_answer_holds_for_each_of_several() {
    let schema = json!({"type": "object", "properties": {"lines": {"type": "integer", "minimum": 3, "maximum": 40}},
        "required": ["lines"], "additionalProperties": false});
    let bound = Request { response_format: format(schema), sampling: hot(3), alternatives: 3, ..ask("hello") };
    let outcome = run(bound).unwrap().1;
    for one in std::iter::once(&outcome).chain(&outcome.alternatives) {
        let answer: Value = serde_json::from_str(&one.text).unwrap_or_else(|why| panic!("{why}: {one:?}"));
        assert!(answer["lines"].as_i64().is_some_and(|lines| (3..=40).contains(&lines)), "{answer}");
        assert_eq!(one.logprobs.len(), one.completion_tokens);
    }
    let choice = Some(ToolChoice::Function { name: "read_file".to_owned() });
    let calls = Request { tools: tools(), tool_choice: choice, alternatives: 2, ..ask("Where is main defined?") };
    let outcome = run(calls).unwrap().1;
    for one in &outcome.alternatives {
        assert_eq!((&one.tool_calls, one.reason), (&outcome.tool_calls, FinishReason::ToolCalls), "nothing is drawn");
    }
    let stopped = Request { stop: vec!["the code".to_owned()], alternatives: 2, ..ask("hello") };
    let outcome = run(stopped).unwrap().1;
    assert!(outcome.alternatives.iter().all(|one| one.text == "Hello! Ask me about "), "{outcome:?}");
}

#[test]
fn an_answer_that_is_taken_over_has_the_same_alternatives() {
    let request = || Request { sampling: hot(11), alternatives: 2, ..ask("what can you do?") };
    let (ids, whole) = run(request()).unwrap();
    for known in [1, ids.len() / 2, ids.len()] {
        let produced = ids[..known].to_vec();
        let produced_logprobs = whole.logprobs[..known].to_vec();
        let (rest, outcome) = run(Request { produced, produced_logprobs, ..request() }).unwrap();
        assert_eq!([&ids[..known], &rest].concat(), ids);
        let said = |outcome: &Outcome| -> Vec<(String, Vec<u32>)> {
            outcome.alternatives.iter().map(|one| (one.text.clone(), one.ids.clone())).collect()
        };
        assert_eq!((&outcome.text, said(&outcome)), (&whole.text, said(&whole)), "{known} tokens were known");
    }
}

#[test]
fn a_request_that_is_given_up_frees_the_places_of_all_its_answers() {
    let engine = engine(512);
    let endless = Sampling { temperature: 10.0, seed: 7, ..Sampling::default() };
    let request = Request { sampling: endless, alternatives: 5, tokens_max: None, ..ask("hello") };
    let mut running = engine.submit(request).unwrap();
    for _ in 0..20 {
        assert!(matches!(running.events.blocking_recv(), Some(Event::Token { .. })));
    }
    assert_eq!(engine.free_slots(), engine.slots() - 6);
    drop(running);
    // What comes later is taken in later: by its first token the others are gone.
    let mut next = engine.submit(ask("hello")).unwrap();
    assert!(matches!(next.events.blocking_recv(), Some(Event::Token { .. })));
    assert_eq!(engine.free_slots(), engine.slots() - 1);
}

#[test]
fn tokens_of_a_prompt_that_were_known_are_told() {
    let engine = engine(512);
    let request = || Request { tools: tools(), ..ask("hello") };
    let (first, second) = (finish(&engine, request()), finish(&engine, request()));
    assert_eq!((first.cached_tokens, second.cached_tokens), (0, (first.prompt_tokens - 1) / BLOCK * BLOCK));
    assert_eq!(first.text, second.text);
}

#[test]
fn a_conversation_beyond_the_window_is_cut_only_if_asked() {
    let said = |n: usize| {
        let answer = format!("Registry is defined in src/part_{n}.rs:{}.", 10 + n);
        [
            json!({"role": "user", "content": "Where is Registry defined?"}),
            json!({"role": "assistant", "content": answer}),
        ]
    };
    let system = json!({"role": "system", "content": "You help with code."});
    let last = json!({"role": "user", "content": "hello"});
    let talk = |from: usize| -> Vec<Value> {
        std::iter::once(system.clone()).chain((from..60).flat_map(said)).chain([last.clone()]).collect()
    };
    let request = |messages, truncate| Request { messages, truncate, ..ask("") };
    let window = ENGINE.window();
    let refused = run(request(talk(0), false)).unwrap_err();
    assert!(refused.contains(&format!("holds {window}")), "{refused}");

    let (_, cut) = run(request(talk(0), true)).unwrap();
    assert!(cut.dropped_messages > 0 && cut.dropped_messages % 2 == 0, "{}", cut.dropped_messages);
    assert!(cut.prompt_tokens <= window - 120, "there is room for the answer: {}", cut.prompt_tokens);
    let (_, same) = run(request(talk(cut.dropped_messages / 2), false)).unwrap();
    assert_eq!((&cut.text, cut.prompt_tokens), (&same.text, same.prompt_tokens));
    let (_, more) = run(request(talk(cut.dropped_messages / 2 - 1), false)).unwrap();
    assert!(more.prompt_tokens > window - 120, "no more went than had to");

    let (_, whole) = run(request(talk(50), true)).unwrap();
    assert_eq!(whole.dropped_messages, 0, "what fits stays whole");
    let long = json!({"role": "user", "content": "word ".repeat(3_000)});
    let refused = run(request([talk(50), vec![long]].concat(), true)).unwrap_err();
    assert!(refused.contains(" tokens, the window of tiny holds 1024"), "{refused}");
}

/// Draws among what is allowed, as a model without any sense would, and reads what came.
fn drawn(
    grammars: &Grammars,
    family: Family,
    choice: Option<&ToolChoice>,
    calls_max: usize,
    begun: &str,
    seed: u64,
) -> Vec<Part> {
    let model = ENGINE.model();
    let specs: Vec<ToolSpec> = tools().into_iter().map(|tool| serde_json::from_value(tool).unwrap()).collect();
    let mut constraint = grammars.constrain(&specs, choice, None, calls_max).unwrap();
    let mut parser = Parser::new(Some(family));
    let mut parts = parser.push(begun);
    if choice.is_none() {
        assert!(!constraint.binds(), "before a call nothing is bound");
        constraint.push(0, parser.begun().map(str::as_bytes));
        assert!(constraint.binds(), "{begun:?} begins a call");
    }
    let mut text = begun.to_owned();
    for position in 0..2_000 {
        let mut logits: Vec<f32> = (0..model.decoder.architecture().vocabulary as u32)
            // Short texts come to an end.
            .map(|id| if ["\"", "'", "}", "]", ")"].contains(&model.tokenizer.name(id).as_str()) { 7.0 } else { 0.0 })
            .collect();
        constraint.apply(&mut logits).unwrap_or_else(|why| panic!("{why} after {text:?}"));
        let id = Sampling { temperature: 1.0, seed, ..Sampling::default() }.pick(&logits, position).unwrap();
        if model.end_tokens.contains(&id) {
            break;
        }
        let mut bytes = Vec::new();
        model.tokenizer.append_bytes(id, &mut bytes);
        let piece = String::from_utf8_lossy(&bytes).into_owned();
        text.push_str(&piece);
        parts.extend(parser.push(&piece));
        constraint.push(id, parser.begun().map(str::as_bytes));
        if choice.is_none() && !parts.is_empty() {
            break;
        }
    }
    parts.extend(parser.finish());
    println!("{family:?} {choice:?}: {text:?}");
    parts
}

#[test]
fn each_family_is_bound_to_calls_that_its_parser_reads() {
    let model = ENGINE.model();
    let begun = [
        (Family::Hermes, "<tool_call>\n{\"name\": \"re"),
        (Family::Llama, "{\"name\": \"read_file\","),
        (Family::Mistral, "[TOOL_CALLS] [{\"na"),
        (Family::Pythonic, "[read_file("),
    ];
    for (family, begun) in begun {
        let vocabulary = model.decoder.architecture().vocabulary;
        let grammars = Grammars::new(&model.tokenizer, vocabulary, &model.end_tokens, family).unwrap();
        for seed in 0..5 {
            for (choice, begun, calls_max) in [
                (None, begun, CALLS_MAX),
                (None, begun, 1),
                (Some(&ToolChoice::Required), "", CALLS_MAX),
                (Some(&ToolChoice::Required), "", 1),
            ] {
                let parts = drawn(&grammars, family, choice, calls_max, begun, seed);
                assert!((1..=calls_max).contains(&parts.len()), "{family:?}: {parts:?}");
                for part in &parts {
                    let Part::Call(call) = part else { panic!("{family:?}: {part:?}") };
                    assert!(["read_file", "search_code"].contains(&call.name.as_str()), "{call:?}");
                    let known = ["path", "start", "end", "query"];
                    assert!(
                        call.arguments.as_object().unwrap().keys().all(|key| known.contains(&key.as_str())),
                        "{call:?}"
                    );
                }
            }
        }
    }
}
