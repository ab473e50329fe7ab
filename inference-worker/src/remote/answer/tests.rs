use serde_json::{Value, json};

use super::*;

/// A token's text and probability.
type Told = (String, Option<f32>);

/// Feeds chunks and returns the tokens and the outcome.
fn feed(others: Option<usize>, chunks: &[Value]) -> Result<(Vec<Told>, Outcome), Broken> {
    let mut answer = Answer::new(others);
    let mut tokens = Vec::new();
    for chunk in chunks {
        for event in answer.take(serde_json::from_value(chunk.clone()).unwrap())? {
            let Event::Token { id: UNKNOWN_ID, text, logprob } = event else { panic!("{event:?}") };
            tokens.push((text, logprob.map(|entry| entry.logprob)));
        }
    }
    Ok((tokens, answer.finish(100, None, Duration::ZERO)))
}

fn delta(delta: &Value) -> Value {
    json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

fn end(reason: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

fn fragment(fragment: &Value) -> Value {
    delta(&json!({"tool_calls": [fragment]}))
}

fn calls(outcome: &Outcome) -> Vec<(&str, &str)> {
    outcome.tool_calls.iter().map(|call| (call.name.as_str(), call.arguments.as_str())).collect()
}

#[test]
fn text_comes_as_it_is_written_and_thoughts_do_not() {
    let chunks = [
        delta(&json!({"role": "assistant", "content": null})),
        delta(&json!({"reasoning_content": "hm"})),
        delta(&json!({"reasoning": "well", "content": ""})),
        delta(&json!({"content": "Hel"})),
        delta(&json!({"content": "lo"})),
        end("stop"),
        json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}}),
    ];
    let (tokens, outcome) = feed(None, &chunks).unwrap();
    let texts: Vec<&str> = tokens.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!(texts, ["", "", "Hel", "lo"]);
    assert_eq!((outcome.text.as_str(), outcome.reason), ("Hello", FinishReason::Stop));
    assert_eq!((outcome.prompt_tokens, outcome.completion_tokens), (7, 5));
}

#[test]
fn without_usage_deltas_count_and_the_prompt_is_estimated() {
    let chunks = [delta(&json!({"content": "a"})), delta(&json!({"content": "b"})), end("length")];
    let (_, outcome) = feed(None, &chunks).unwrap();
    assert_eq!((outcome.prompt_tokens, outcome.completion_tokens), (40, 2));
    assert_eq!(outcome.reason, FinishReason::Length);
}

#[test]
fn pieces_of_calls_are_joined_by_their_index_and_stay_as_written() {
    let chunks = [
        fragment(&json!({"index": 1, "id": "b", "function": {"name": "read", "arguments": ""}})),
        fragment(
            &json!({"index": 0, "id": "a", "type": "function", "function": {"name": "find", "arguments": "{\"n\":  "}}),
        ),
        fragment(&json!({"index": 1, "function": {"arguments": "{\"x\": 1e3"}})),
        fragment(&json!({"index": 0, "function": {"arguments": "12345678901234567890}"}})),
        fragment(&json!({"index": 1, "function": {"arguments": "}"}})),
        end("tool_calls"),
    ];
    let (tokens, outcome) = feed(None, &chunks).unwrap();
    assert_eq!(calls(&outcome), [("find", "{\"n\":  12345678901234567890}"), ("read", "{\"x\": 1e3}")]);
    assert_eq!((outcome.reason, tokens.len()), (FinishReason::ToolCalls, 5));
}

#[test]
fn servers_that_count_no_calls_are_understood() {
    let zero = |id: &str, name: &str| json!({"index": 0, "id": id, "function": {"name": name, "arguments": {"a": 1}}});
    let (_, outcome) = feed(None, &[fragment(&zero("1", "x")), fragment(&zero("2", "y")), end("stop")]).unwrap();
    assert_eq!(calls(&outcome), [("x", "{\"a\":1}"), ("y", "{\"a\":1}")]);
    assert_eq!(outcome.reason, FinishReason::ToolCalls, "whatever the server calls it");
    let named = |name: &str| fragment(&json!({"function": {"name": name, "arguments": "{"}}));
    let more = || fragment(&json!({"function": {"arguments": "}"}}));
    let (_, outcome) = feed(None, &[named("x"), more(), named("y"), more(), end("tool_calls")]).unwrap();
    assert_eq!(calls(&outcome), [("x", "{}"), ("y", "{}")]);
}

#[test]
fn what_is_no_call_is_shown_to_the_model() {
    let chunks = [
        fragment(&json!({"index": 0, "function": {"name": "find", "arguments": "{\"query\": \"a"}})),
        fragment(&json!({"index": 1, "function": {"name": "list", "arguments": " "}})),
        fragment(&json!({"index": 2, "function": {"arguments": "{}"}})),
        end("stop"),
    ];
    let (_, outcome) = feed(None, &chunks).unwrap();
    assert_eq!(calls(&outcome), [("list", "{}")]);
    let texts: Vec<&str> = outcome.malformed.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!(texts, ["{\"name\": \"find\", \"arguments\": {\"query\": \"a}", "{\"name\": \"\", \"arguments\": {}}"]);
    assert_eq!(outcome.reason, FinishReason::ToolCalls);
    let chunks = [fragment(&json!({"index": 0, "function": {"name": "find", "arguments": "{"}})), end("length")];
    let (_, outcome) = feed(None, &chunks).unwrap();
    assert_eq!((outcome.reason, outcome.malformed.len()), (FinishReason::Length, 1));
}

#[test]
fn tokens_and_probabilities_stay_in_step() {
    let likely = |token: &str, logprob: Value| {
        let top: Vec<Value> = ["a", "b", "c"].iter().map(|top| json!({"token": top, "logprob": -1.0})).collect();
        json!({"token": token, "logprob": logprob, "top_logprobs": top})
    };
    let with = |text: &str, content: Vec<Value>| json!({"choices": [{"delta": {"content": text}, "logprobs": {"content": content}}]});
    let chunks = [
        with("ab", vec![likely("a", json!(-0.5)), likely("b", json!(null))]),
        delta(&json!({"content": "c"})),
        with("d", vec![likely("d", json!(-0.25))]),
        delta(&json!({"content": "e"})),
        end("stop"),
    ];
    let (tokens, outcome) = feed(Some(2), &chunks).unwrap();
    let told = |text: &str, logprob: f32| (text.to_owned(), Some(logprob));
    assert_eq!(tokens, [told("", -0.5), told("ab", NEVER), told("cd", -0.25)]);
    assert_eq!((outcome.text.as_str(), outcome.completion_tokens), ("abcde", 3));
    assert_eq!(outcome.logprobs.len(), 3);
    assert!(outcome.logprobs.iter().all(|entry| entry.top_logprobs.len() == 2));
    let (tokens, outcome) = feed(None, &chunks).unwrap();
    assert_eq!((tokens.len(), outcome.logprobs), (4, Vec::new()), "nobody asked for any");
}

const NEVER: f32 = -9_999.0;

#[test]
fn an_error_in_the_stream_is_ours_or_theirs() {
    let error = |code: Value| json!({"error": {"message": "no such thing", "code": code}});
    let words = "the server broke off: no such thing".to_owned();
    assert_eq!(feed(None, &[error(json!(400))]).unwrap_err(), Broken::Refused(words.clone()));
    assert_eq!(feed(None, &[error(json!(500))]).unwrap_err(), Broken::Failed(words.clone()));
    assert_eq!(feed(None, &[error(json!("overloaded"))]).unwrap_err(), Broken::Failed(words));
    assert!(matches!(feed(None, &[end("content_filter")]).unwrap_err(), Broken::Refused(_)));
    assert!(matches!(feed(None, &[end("abort")]).unwrap_err(), Broken::Failed(_)));
}

#[test]
fn an_answer_without_bounds_is_ended() {
    let much = "x".repeat(1 << 20);
    let chunks: Vec<Value> = (0..5).map(|_| delta(&json!({"content": much}))).collect();
    assert!(matches!(feed(None, &chunks).unwrap_err(), Broken::Failed(why) if why.contains("4194304 bytes")));
    let chunks: Vec<Value> = (0..200).map(|index| fragment(&json!({"index": index}))).collect();
    assert!(matches!(feed(None, &chunks).unwrap_err(), Broken::Failed(why) if why.contains("128 calls")));
}

#[test]
fn other_choices_than_the_first_are_nobody_s() {
    let other =
        json!({"choices": [{"index": 1, "delta": {"content": "no"}}, {"index": 0, "delta": {"content": "yes"}}]});
    let (_, outcome) = feed(None, &[other, end("stop")]).unwrap();
    assert_eq!(outcome.text, "yes");
}
