//! From our request to the body that an OpenAI-compatible server reads.
//!
//! What OpenAI's API lacks (`top_k`, `min_p`, a repetition penalty) is sent only where it is asked for, under the names
//! of vLLM and of llama.cpp; servers that know neither refuse it and say so.

use schemas::chat::{ResponseFormat, ToolChoice};
use serde_json::{Map, Value, json};

use crate::engine::Request;

/// The body of a streamed chat completion by the server's model of this name. With `limited` false it leaves the length of
/// the answer to the window.
pub(super) fn body(request: &Request, model: &str, window: usize, limited: bool) -> Value {
    let mut body = json!({
        "model": model,
        "messages": request.messages.iter().cloned().map(message).collect::<Vec<_>>(),
        "stream": true,
        "stream_options": {"include_usage": true},
        "temperature": request.sampling.temperature,
        "seed": seed(request.sampling.seed),
    });
    let fields = body.as_object_mut().expect("an object was made");
    // A limit that no answer reaches would make some servers refuse the request.
    if let Some(limit) = request.tokens_max.filter(|&limit| limited && (window == 0 || limit < window)) {
        fields.insert("max_tokens".to_owned(), json!(limit.max(1)));
    }
    if !request.stop.is_empty() {
        fields.insert("stop".to_owned(), json!(request.stop));
    }
    draws(fields, request);
    tools(fields, request);
    if let Some(format) = &request.response_format {
        fields.insert("response_format".to_owned(), form(format));
    }
    body
}

/// How tokens are drawn, as far as it is not what every server does.
fn draws(fields: &mut Map<String, Value>, request: &Request) {
    let sampling = &request.sampling;
    let mut say = |name: &str, value: Value, asked: bool| {
        if asked {
            fields.insert(name.to_owned(), value);
        }
    };
    say("top_p", json!(sampling.top_p), sampling.top_p < 1.0);
    say("presence_penalty", json!(sampling.presence_penalty), sampling.presence_penalty != 0.0);
    say("frequency_penalty", json!(sampling.frequency_penalty), sampling.frequency_penalty != 0.0);
    say("top_k", json!(sampling.top_k), sampling.top_k > 0);
    say("min_p", json!(sampling.min_p), sampling.min_p > 0.0);
    let repetition = sampling.repetition_penalty != 1.0;
    say("repetition_penalty", json!(sampling.repetition_penalty), repetition);
    // llama.cpp's name, which would else look at the last 64 tokens only.
    say("repeat_penalty", json!(sampling.repetition_penalty), repetition);
    say("repeat_last_n", json!(-1), repetition);
    say("logprobs", json!(true), sampling.logprobs.is_some());
    say("top_logprobs", json!(sampling.logprobs), sampling.logprobs.is_some());
}

/// Tools that may not be called are not offered: the local engine does the same, and the prompt is the shorter for it.
fn tools(fields: &mut Map<String, Value>, request: &Request) {
    if request.tools.is_empty() || request.tool_choice == Some(ToolChoice::None) {
        return;
    }
    fields.insert("tools".to_owned(), request.tools.iter().cloned().map(tool).collect());
    if request.one_call {
        fields.insert("parallel_tool_calls".to_owned(), json!(false));
    }
    let choice = match &request.tool_choice {
        None | Some(ToolChoice::None) => return,
        Some(ToolChoice::Required) => json!("required"),
        Some(ToolChoice::Function { name }) => json!({"type": "function", "function": {"name": name}}),
    };
    fields.insert("tool_choice".to_owned(), choice);
}

fn form(format: &ResponseFormat) -> Value {
    match format {
        ResponseFormat::JsonObject => json!({"type": "json_object"}),
        ResponseFormat::JsonSchema { schema } => {
            json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema}})
        }
    }
}

/// Servers read the arguments of earlier calls as a JSON object and refuse the whole conversation for one that is none,
/// such as what a model wrote in the place of a call.
fn message(mut message: Value) -> Value {
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && let Some(text) = arguments.as_str()
            && !is_object(text)
        {
            *arguments = json!(json!({"text": text}).to_string());
        }
    }
    message
}

/// Tools without parameters have none instead of null.
fn tool(mut tool: Value) -> Value {
    if let Some(parameters) = tool.pointer_mut("/function/parameters")
        && parameters.is_null()
    {
        *parameters = json!({"type": "object", "properties": {}});
    }
    tool
}

/// Whether a text is a JSON object.
pub(super) fn is_object(text: &str) -> bool {
    serde_json::from_str::<Map<String, Value>>(text).is_ok()
}

/// Servers keep seeds in 31 bits or more. Ours have 64, and each bit of them counts.
const fn seed(seed: u64) -> u64 {
    (seed ^ (seed >> 31) ^ (seed >> 62)) & 0x7fff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sampling;

    fn asked(request: &Request) -> Value {
        body(request, "theirs", 1_000, true)
    }

    fn hello() -> Request {
        Request { messages: vec![json!({"role": "user", "content": "hello"})], ..Request::default() }
    }

    #[test]
    fn a_plain_request_says_nothing_that_a_server_may_not_know() {
        let wanted = json!({
            "model": "theirs", "messages": [{"role": "user", "content": "hello"}], "stream": true,
            "stream_options": {"include_usage": true}, "temperature": 0.0, "seed": 0,
        });
        assert_eq!(asked(&hello()), wanted);
    }

    #[test]
    fn everything_that_is_asked_for_is_said_in_openai_s_shape() {
        let schema = json!({"type": "object"});
        let tool = json!({"type": "function", "function": {"name": "look", "description": "", "parameters": null}});
        let request = Request {
            tools: vec![tool.clone()],
            sampling: Sampling {
                temperature: 0.5,
                top_k: 7,
                top_p: 0.25,
                min_p: 0.125,
                repetition_penalty: 1.5,
                presence_penalty: -1.0,
                frequency_penalty: 0.5,
                seed: u64::MAX,
                logprobs: Some(3),
            },
            tool_choice: Some(ToolChoice::Function { name: "look".to_owned() }),
            response_format: Some(ResponseFormat::JsonSchema { schema: schema.clone() }),
            tokens_max: Some(9),
            stop: vec!["end".to_owned()],
            ..hello()
        };
        let mut offered = tool;
        offered["function"]["parameters"] = json!({"type": "object", "properties": {}});
        let wanted = json!({
            "model": "theirs", "messages": [{"role": "user", "content": "hello"}], "stream": true,
            "stream_options": {"include_usage": true}, "temperature": 0.5, "seed": 3, "max_tokens": 9, "stop": ["end"],
            "top_p": 0.25, "presence_penalty": -1.0, "frequency_penalty": 0.5, "top_k": 7, "min_p": 0.125,
            "repetition_penalty": 1.5, "repeat_penalty": 1.5, "repeat_last_n": -1, "logprobs": true, "top_logprobs": 3,
            "tools": [offered], "tool_choice": {"type": "function", "function": {"name": "look"}},
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema}},
        });
        assert_eq!(asked(&request), wanted);
        let one = asked(&Request { one_call: true, ..request.clone() });
        assert_eq!(one["parallel_tool_calls"], false);
        let required = asked(&Request { tool_choice: Some(ToolChoice::Required), ..request.clone() });
        assert_eq!(required["tool_choice"], "required");
        let none = asked(&Request { tool_choice: Some(ToolChoice::None), ..request.clone() });
        assert_eq!((none.get("tools"), none.get("tool_choice")), (None, None));
        let object = asked(&Request { response_format: Some(ResponseFormat::JsonObject), ..request });
        assert_eq!(object["response_format"], json!({"type": "json_object"}));
    }

    #[test]
    fn a_limit_beyond_the_window_is_left_to_the_window() {
        let request = |limit| Request { tokens_max: Some(limit), ..hello() };
        assert_eq!(asked(&request(999))["max_tokens"], 999);
        assert_eq!(asked(&request(1_000)).get("max_tokens"), None);
        assert_eq!(body(&request(9), "theirs", 1_000, false).get("max_tokens"), None);
        assert_eq!(body(&request(9), "theirs", 0, true)["max_tokens"], 9, "a window that nobody knows bounds nothing");
    }

    #[test]
    fn a_call_of_the_past_that_was_none_does_not_spoil_the_conversation() {
        let call = |arguments: &str| json!({"id": "1", "type": "function", "function": {"name": "look", "arguments": arguments}});
        let said = |arguments: &str| json!({"role": "assistant", "content": "", "tool_calls": [call(arguments)]});
        let messages = vec![said("{\"a\":  1e3}"), said("{\"a\": oops"), said("[1]")];
        let asked = asked(&Request { messages, ..Request::default() });
        let read =
            |at: usize| asked["messages"][at]["tool_calls"][0]["function"]["arguments"].as_str().unwrap().to_owned();
        assert_eq!(read(0), "{\"a\":  1e3}", "what can be read stays as it was written");
        assert_eq!(serde_json::from_str::<Value>(&read(1)).unwrap(), json!({"text": "{\"a\": oops"}));
        assert_eq!(serde_json::from_str::<Value>(&read(2)).unwrap(), json!({"text": "[1]"}));
    }
}
