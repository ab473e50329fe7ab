//! Answers in OpenAI's shape: completions, chunks of streams, vectors, models. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use schemas::api::{Answer, AnswerUsage, Choice, EmbeddingsAnswer, ToolCallReport};
use schemas::chat::{FinishReason, TokenLogprob};
use schemas::rpc::Model;
use schemas::wire::Nanos;
use schemas::{ExecutionId, ToolCall};
use serde_json::{Value, json};

/// What all chunks of a stream, or the one answer, begin with.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) exec: ExecutionId,
    pub(super) created: Nanos,
    pub(super) model: String,
}

impl Head {
    fn with(&self, object: &str, choices: &[Value]) -> Value {
        json!({
            "id": format!("chatcmpl-{}", self.exec),
            "object": object,
            "created": self.created / 1_000_000_000,
            "model": self.model,
            "choices": choices,
        })
    }

    /// The whole answer.
    pub(super) fn completion(&self, answer: &Answer) -> Value {
        let choices: Vec<Value> = choices(answer)
            .iter()
            .map(|choice| {
                let calls = &choice.message.tool_calls;
                let content = if choice.message.content.is_empty() && !calls.is_empty() {
                    Value::Null
                } else {
                    json!(choice.message.content)
                };
                let mut message = json!({"role": "assistant", "content": content, "refusal": null});
                if !calls.is_empty() {
                    message["tool_calls"] = json!(calls);
                }
                json!({
                    "index": choice.index,
                    "message": message,
                    "logprobs": choice.logprobs.as_ref().map(|logprobs| likelihoods(&logprobs.content)),
                    "finish_reason": finish(choice.finish_reason),
                })
            })
            .collect();
        let mut completion = self.with("chat.completion", &choices);
        completion["usage"] = usage(&answer.usage);
        completion
    }

    /// One chunk of choice `index`.
    pub(super) fn chunk(
        &self,
        index: u32,
        delta: &Value,
        logprobs: &[TokenLogprob],
        ends: Option<FinishReason>,
    ) -> Value {
        let logprobs = if logprobs.is_empty() { Value::Null } else { likelihoods(logprobs) };
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": ends.map(finish)});
        self.with("chat.completion.chunk", &[choice])
    }

    /// What a stream says after its text: calls, the other answers, how each ended, and the token counts if they are wanted.
    pub(super) fn rest(&self, answer: &Answer, with_usage: bool) -> Vec<Value> {
        let mut chunks = Vec::new();
        for choice in choices(answer) {
            let index = choice.index;
            if index > 0 {
                let delta = json!({"role": "assistant", "content": choice.message.content});
                let logprobs = choice.logprobs.as_ref().map_or(&[][..], |logprobs| &logprobs.content);
                chunks.push(self.chunk(index, &delta, logprobs, None));
            }
            for (at, call) in choice.message.tool_calls.iter().enumerate() {
                let mut call = json!(call);
                call["index"] = json!(at);
                chunks.push(self.chunk(index, &json!({"tool_calls": [call]}), &[], None));
            }
            chunks.push(self.chunk(index, &json!({}), &[], Some(choice.finish_reason)));
        }
        if with_usage {
            let mut last = self.with("chat.completion.chunk", &[]);
            last["usage"] = usage(&answer.usage);
            chunks.push(last);
        }
        chunks
    }
}

/// All answers; a single one stands in the answer itself.
fn choices(answer: &Answer) -> Vec<Choice> {
    if !answer.choices.is_empty() {
        return answer.choices.clone();
    }
    let calls = answer.tool_calls.iter().map(call).collect();
    vec![Choice {
        index: 0,
        message: schemas::Message {
            tool_calls: calls,
            ..schemas::Message::text(schemas::Role::Assistant, &answer.response)
        },
        finish_reason: answer.finish_reason.unwrap_or(FinishReason::Stop),
        logprobs: answer.logprobs.clone(),
    }]
}

/// Arguments are text, as the model wrote them.
fn call(report: &ToolCallReport) -> ToolCall {
    let arguments = match &report.arguments {
        Value::String(text) => text.clone(),
        arguments => arguments.to_string(),
    };
    ToolCall::new(&report.call_id, &report.name, arguments)
}

fn finish(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
    }
}

fn usage(usage: &AnswerUsage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.tokens,
        "prompt_tokens_details": {"cached_tokens": usage.prompt_tokens_details.cached_tokens},
    })
}

fn likelihoods(content: &[TokenLogprob]) -> Value {
    let token = |token: &str, logprob: f32| json!({"token": token, "logprob": logprob, "bytes": token.as_bytes()});
    let content: Vec<Value> = content
        .iter()
        .map(|t| {
            let mut shown = token(&t.token, t.logprob);
            let others: Vec<Value> = t.top_logprobs.iter().map(|t| token(&t.token, t.logprob)).collect();
            shown["top_logprobs"] = json!(others);
            shown
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// Vectors as lists of numbers, or as base64 of little-endian 32-bit floats.
pub(super) fn embeddings(answer: &EmbeddingsAnswer, base64: bool) -> Value {
    let vector = |vector: &Vec<f32>| {
        if !base64 {
            return json!(vector);
        }
        let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
        json!(BASE64.encode(&bytes))
    };
    let data: Vec<Value> = answer
        .embeddings
        .iter()
        .enumerate()
        .map(|(index, embedding)| json!({"object": "embedding", "index": index, "embedding": vector(embedding)}))
        .collect();
    let tokens = answer.usage.prompt_tokens;
    json!({
        "object": "list",
        "data": data,
        "model": answer.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })
}

/// A model. When it was made is not known; how many tokens it reads is, and stands where other servers of open models say it.
pub(super) fn model(model: &Model) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "vlinders",
        "max_model_len": model.window,
        "kind": model.kind,
    })
}

#[cfg(test)]
mod tests {
    use schemas::Usage;

    use super::*;

    fn head() -> Head {
        Head {
            exec: "0192f0c1-0000-7000-8000-000000000007".parse().expect("an id"),
            created: 1_700_000_000_123_456_789,
            model: "tiny".to_owned(),
        }
    }

    fn answer() -> Answer {
        Answer {
            execution_id: head().exec,
            response: "Hello".to_owned(),
            tool_calls: vec![],
            iterations: 1,
            finish_reason: Some(FinishReason::Stop),
            usage: AnswerUsage::new(Usage::new(3, 2), 1),
            logprobs: None,
            choices: vec![],
            cached: false,
            dropped_messages: 0,
        }
    }

    #[test]
    fn an_answer_is_a_completion() {
        let shown = head().completion(&answer());
        assert_eq!(shown["created"], 1_700_000_000);
        assert_eq!(shown["choices"][0]["message"]["content"], "Hello");
        assert_eq!(shown["choices"][0]["finish_reason"], "stop");
        assert_eq!(shown["usage"]["total_tokens"], 5);
        assert_eq!(shown["usage"]["prompt_tokens_details"]["cached_tokens"], 1);
    }

    #[test]
    fn calls_keep_the_text_of_their_arguments_and_stand_in_a_stream_whole() {
        let report = |arguments: Value| ToolCallReport {
            call_id: "c".to_owned(),
            name: "f".to_owned(),
            arguments,
            success: None,
            result: None,
        };
        let calls = vec![report(json!({"a": 1})), report(json!("not json"))];
        let answer = Answer {
            tool_calls: calls,
            response: String::new(),
            finish_reason: Some(FinishReason::ToolCalls),
            ..answer()
        };
        let message = &head().completion(&answer)["choices"][0]["message"];
        assert_eq!(message["content"], Value::Null);
        assert_eq!(message["tool_calls"][0]["function"]["arguments"], r#"{"a":1}"#);
        assert_eq!(message["tool_calls"][1]["function"]["arguments"], "not json");
        let rest = head().rest(&answer, true);
        assert_eq!(rest.len(), 4);
        assert_eq!(rest[1]["choices"][0]["delta"]["tool_calls"][0]["index"], 1);
        assert_eq!(rest[2]["choices"][0]["finish_reason"], "tool_calls");
        assert_eq!(rest[3]["usage"]["completion_tokens"], 2);
    }

    #[test]
    fn vectors_survive_base64() {
        let answer = EmbeddingsAnswer {
            model: "m".to_owned(),
            embeddings: vec![vec![1.0, -0.5]],
            dimensions: 2,
            usage: Usage::new(4, 0),
            truncated: vec![],
        };
        let shown = embeddings(&answer, true);
        assert_eq!(shown["data"][0]["embedding"], "AACAPwAAAL8=");
        assert_eq!(embeddings(&answer, false)["data"][0]["embedding"], json!([1.0, -0.5]));
    }
}
