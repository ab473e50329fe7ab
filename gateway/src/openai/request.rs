//! OpenAI's chat completion request, read strictly and turned into a chat of ours. Pure.
//!
//! What is understood is carried out; what is not is refused by name, unless leaving it out changes nothing in the answer.

use schemas::api::{ChatRequest, OneOrMany};
use schemas::{Message, Role, ToolCall, ToolSpec};
use serde::Deserialize;
use serde_json::{Number, Value};
use utoipa::ToSchema;

use crate::problem::Failure;

/// `POST /v1/chat/completions`. Everything may be null, as clients write what they leave out.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatCompletion {
    pub(crate) model: Option<String>,
    messages: Vec<Said>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    #[schema(value_type = Option<f64>)]
    temperature: Option<Number>,
    #[schema(value_type = Option<f64>)]
    top_p: Option<Number>,
    #[schema(value_type = Option<u64>)]
    n: Option<Number>,
    stop: Option<OneOrMany>,
    #[schema(value_type = Option<u64>)]
    max_tokens: Option<Number>,
    #[schema(value_type = Option<u64>)]
    max_completion_tokens: Option<Number>,
    #[schema(value_type = Option<f64>)]
    presence_penalty: Option<Number>,
    #[schema(value_type = Option<f64>)]
    frequency_penalty: Option<Number>,
    #[schema(value_type = Option<i64>)]
    seed: Option<Number>,
    logprobs: Option<bool>,
    #[schema(value_type = Option<u64>)]
    top_logprobs: Option<Number>,
    tools: Option<Vec<ToolSpec>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    response_format: Option<Value>,
    user: Option<String>,
    safety_identifier: Option<String>,
    // Not OpenAI's, but what other servers of open models take under these names.
    #[schema(value_type = Option<u64>)]
    top_k: Option<Number>,
    #[schema(value_type = Option<f64>)]
    min_p: Option<Number>,
    #[schema(value_type = Option<f64>)]
    repetition_penalty: Option<Number>,
    // Nothing in the answer depends on these.
    #[serde(rename = "metadata")]
    _metadata: Option<Value>,
    #[serde(rename = "prompt_cache_key")]
    _prompt_cache_key: Option<Value>,
    #[serde(rename = "prompt_cache_retention")]
    _prompt_cache_retention: Option<Value>,
    #[serde(rename = "service_tier")]
    _service_tier: Option<Value>,
    #[serde(rename = "store")]
    _store: Option<bool>,
    // Refused, unless they say what is so anyway; so they are not described.
    #[schema(ignore)]
    audio: Option<Value>,
    #[schema(ignore)]
    function_call: Option<Value>,
    #[schema(ignore)]
    functions: Option<Value>,
    #[schema(ignore)]
    logit_bias: Option<Value>,
    #[schema(ignore)]
    modalities: Option<Value>,
    #[schema(ignore)]
    prediction: Option<Value>,
    #[schema(ignore)]
    reasoning_effort: Option<Value>,
    #[schema(ignore)]
    verbosity: Option<Value>,
    #[schema(ignore)]
    web_search_options: Option<Value>,
}

/// What a stream says beside the text.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

/// A message as clients write it, answers of ours that they send back included.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Said {
    role: String,
    content: Option<Value>,
    name: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
    tool_call_id: Option<String>,
    refusal: Option<String>,
    #[schema(ignore)]
    function_call: Option<Value>,
    #[schema(ignore)]
    audio: Option<Value>,
    #[serde(rename = "annotations")]
    _annotations: Option<Value>,
}

/// What is wanted beside the chat itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Chunks instead of one answer.
    pub(crate) stream: bool,
    /// A last chunk with the token counts.
    pub(crate) usage: bool,
}

impl ChatCompletion {
    /// The same as a chat of ours.
    ///
    /// # Errors
    /// It asks for what is not carried out here.
    pub(crate) fn into_chat(self) -> Result<(ChatRequest, Wanted), Failure> {
        self.check_unsupported()?;
        let wanted = self.wanted()?;
        let max_tokens = match (self.max_tokens, self.max_completion_tokens) {
            (Some(a), Some(b)) if a != b => {
                let detail = format!("`max_tokens` is {a} and `max_completion_tokens` is {b}");
                return Err(Failure::invalid(detail, "send one of them; they mean the same"));
            }
            (a, b) => a.or(b),
        };
        let messages = self.messages.into_iter().enumerate().map(|(i, said)| said.into_message(i));
        let chat = ChatRequest {
            model: self.model,
            messages: messages.collect::<Result<_, _>>()?,
            conversation_id: None,
            tools: self.tools.unwrap_or_default(),
            user_id: self.user.or(self.safety_identifier),
            stream: wanted.stream,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            max_tokens,
            seed: self.seed.map(whole_seed),
            logprobs: self.logprobs.unwrap_or(false),
            // Clients send 0 with `logprobs` false.
            top_logprobs: self.top_logprobs.filter(|n| self.logprobs == Some(true) || n.as_u64() != Some(0)),
            stop: self.stop,
            response_format: self.response_format,
            tool_choice: self.tool_choice,
            parallel_tool_calls: self.parallel_tool_calls,
            n: self.n,
            priority: Default::default(),
            truncation: Default::default(),
            cache: None,
        };
        Ok((chat, wanted))
    }

    fn wanted(&self) -> Result<Wanted, Failure> {
        let stream = self.stream.unwrap_or(false);
        if self.stream_options.is_some() && !stream {
            let detail = "`stream_options` is given without `stream`: true";
            return Err(Failure::invalid(detail, "send `stream`: true with it, or leave it out"));
        }
        let usage = self.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false);
        Ok(Wanted { stream, usage })
    }

    fn check_unsupported(&self) -> Result<(), Failure> {
        let empty = |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
        let only_text = |value: &Value| *value == serde_json::json!(["text"]);
        let next = "leave it out: the models here do not take it";
        let unsupported = [
            ("audio", self.audio.is_some(), next),
            ("function_call", self.function_call.is_some(), "send `tool_choice` instead"),
            ("functions", self.functions.is_some(), "send `tools` instead"),
            ("logit_bias", self.logit_bias.as_ref().is_some_and(|bias| !empty(bias)), next),
            ("modalities", self.modalities.as_ref().is_some_and(|wanted| !only_text(wanted)), "send [\"text\"]"),
            ("prediction", self.prediction.is_some(), next),
            ("reasoning_effort", self.reasoning_effort.as_ref().is_some_and(|effort| effort != "none"), next),
            ("verbosity", self.verbosity.as_ref().is_some_and(|verbosity| verbosity != "medium"), next),
            ("web_search_options", self.web_search_options.is_some(), "ask an agent that has the tool web_search"),
        ];
        if let Some((field, _, next)) = unsupported.into_iter().find(|(_, given, _)| *given) {
            let detail = format!("`{field}` is not carried out here");
            return Err(Failure::new(400, "unsupported_parameter", detail, next));
        }
        Ok(())
    }
}

impl Said {
    fn into_message(self, i: usize) -> Result<Message, Failure> {
        let role = match self.role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            other => {
                let detail = format!("`messages[{i}].role` is {other:?}");
                return Err(Failure::invalid(detail, "send system, developer, user, assistant or tool"));
            }
        };
        if self.function_call.is_some() || self.audio.is_some() {
            let field = if self.audio.is_some() { "audio" } else { "function_call" };
            let detail = format!("`messages[{i}].{field}` is not carried out here");
            return Err(Failure::new(400, "unsupported_parameter", detail, "send `content` and `tool_calls`"));
        }
        let content = match self.content {
            None | Some(Value::Null) => self.refusal.unwrap_or_default(),
            Some(content) => text(content, i)?,
        };
        Ok(Message {
            tool_calls: self.tool_calls.unwrap_or_default(),
            tool_call_id: self.tool_call_id,
            name: self.name,
            ..Message::text(role, content)
        })
    }
}

/// A text, or parts that are texts.
fn text(content: Value, message: usize) -> Result<String, Failure> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => {
            let kind = if other.is_object() { "an object" } else { "no text" };
            let detail = format!("`messages[{message}].content` is {kind}");
            return Err(Failure::invalid(detail, "send a text, or a list of parts of the type text"));
        }
    };
    let mut whole = String::new();
    for (i, part) in parts.iter().enumerate() {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or("none");
        let said = match kind {
            "text" => part.get("text"),
            "refusal" => part.get("refusal"),
            _ => None,
        };
        let Some(said) = said.and_then(Value::as_str) else {
            let detail = format!("`messages[{message}].content[{i}]` is of the type {kind}; the models here read text");
            return Err(Failure::new(
                400,
                "unsupported_content",
                detail,
                "send parts {\"type\": \"text\", \"text\": …}",
            ));
        };
        whole.push_str(said);
    }
    Ok(whole)
}

/// OpenAI's seeds may be negative: any whole number is one of 64 bits.
fn whole_seed(seed: Number) -> Number {
    match seed.as_i64() {
        Some(negative) if negative < 0 => negative.cast_unsigned().into(),
        _ => seed,
    }
}

/// `POST /v1/embeddings`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Embeddings {
    pub(crate) model: Option<String>,
    #[schema(value_type = OneOrMany)]
    input: Value,
    encoding_format: Option<String>,
    pub(crate) dimensions: Option<u64>,
    #[serde(rename = "user")]
    _user: Option<String>,
}

impl Embeddings {
    /// The texts, and whether vectors are wanted as base64 of their bytes.
    ///
    /// # Errors
    /// They are no texts, or wanted in a form that there is not.
    pub(crate) fn texts(&self) -> Result<(Vec<String>, bool), Failure> {
        let base64 = match self.encoding_format.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(other) => {
                return Err(Failure::invalid(format!("`encoding_format` is {other:?}"), "send float or base64"));
            }
        };
        let texts = match &self.input {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(texts) => texts.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        let texts = texts.ok_or_else(|| {
            let tokens = self.input.as_array().is_some_and(|list| list.iter().any(|t| t.is_number() || t.is_array()));
            let (detail, next) = if tokens {
                let next =
                    "send texts: token ids are another tokenizer's (LangChain: check_embedding_ctx_length=False)";
                ("`input` holds token ids", next)
            } else {
                ("`input` is neither a text nor a list of texts", "send one text or several")
            };
            Failure::invalid(detail, next)
        })?;
        Ok((texts, base64))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chat(fields: &Value) -> Result<(ChatRequest, Wanted), Failure> {
        let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hello"}]});
        for (field, value) in fields.as_object().expect("fields") {
            body[field] = value.clone();
        }
        crate::submission::read::<ChatCompletion>(body.to_string().as_bytes())?.into_chat()
    }

    fn refused(fields: &Value) -> (String, String) {
        let problem = chat(fields).expect_err("refused").0;
        (problem.code, problem.detail)
    }

    #[test]
    fn what_clients_send_becomes_a_chat() {
        let (chat, wanted) = chat(&json!({
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
                {"role": "assistant", "content": null, "refusal": null, "audio": null, "function_call": null, "annotations": [],
                 "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                {"role": "tool", "tool_call_id": "a", "content": "done"},
            ],
            "stream": true, "stream_options": {"include_usage": true}, "max_completion_tokens": 5, "seed": -1,
            "logit_bias": {}, "user": "ann", "top_logprobs": 0, "stop": null, "reasoning_effort": null,
            "metadata": {"a": "b"}, "store": false, "modalities": ["text"], "parallel_tool_calls": false,
        }))
        .expect("a chat");
        assert_eq!(wanted, Wanted { stream: true, usage: true });
        assert_eq!(chat.messages[0], Message::text(Role::System, "Be brief."));
        assert_eq!((chat.messages[1].content.as_str(), chat.messages[1].tool_calls.len()), ("", 1));
        assert_eq!(chat.messages[2].tool_call_id.as_deref(), Some("a"));
        assert_eq!((chat.max_tokens, chat.seed), (Some(5.into()), Some(u64::MAX.into())));
        assert_eq!((chat.user_id.as_deref(), chat.top_logprobs), (Some("ann"), None));
        assert_eq!(chat.parallel_tool_calls, Some(false));
    }

    #[test]
    fn what_is_not_carried_out_is_refused_by_name() {
        let unsupported = |fields: &Value, name: &str| {
            let (code, detail) = refused(fields);
            assert_eq!(code, "unsupported_parameter");
            assert!(detail.starts_with(&format!("`{name}`")), "{detail}");
        };
        unsupported(&json!({"logit_bias": {"50256": -100}}), "logit_bias");
        unsupported(&json!({"functions": []}), "functions");
        unsupported(&json!({"modalities": ["text", "audio"]}), "modalities");
        unsupported(&json!({"reasoning_effort": "high"}), "reasoning_effort");

        let (code, detail) = refused(&json!({"temprature": 1}));
        assert!(code == "unknown_field" && detail.contains("temprature"), "{detail}");
        let (_, detail) = refused(&json!({"stream_options": {"include_usage": true}}));
        assert!(detail.contains("without `stream`"), "{detail}");
        let (_, detail) = refused(&json!({"max_tokens": 1, "max_completion_tokens": 2}));
        assert!(detail.contains("`max_completion_tokens` is 2"), "{detail}");
        let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
        let (code, detail) = refused(&json!({"messages": image}));
        assert!(code == "unsupported_content" && detail.contains("messages[0].content[0]"), "{detail}");
        let (_, detail) = refused(&json!({"messages": [{"role": "function", "content": "x", "name": "f"}]}));
        assert!(detail.contains("`messages[0].role`"), "{detail}");
    }

    #[test]
    fn texts_are_embedded_and_token_ids_refused() {
        let texts = |body: Value| serde_json::from_value::<Embeddings>(body).expect("read").texts();
        assert_eq!(texts(json!({"input": "a"})).expect("texts"), (vec!["a".to_owned()], false));
        let two = texts(json!({"input": ["a", "b"], "encoding_format": "base64", "user": "x"})).expect("texts");
        assert_eq!(two, (vec!["a".to_owned(), "b".to_owned()], true));
        for tokens in [json!([1, 2]), json!([[1, 2]])] {
            let problem = texts(json!({ "input": tokens })).expect_err("refused").0;
            assert!(problem.next_step.contains("check_embedding_ctx_length"), "{}", problem.next_step);
        }
        assert!(texts(json!({"input": "a", "encoding_format": "int8"})).is_err());
    }
}
