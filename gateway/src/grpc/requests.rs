//! From messages of the proto to the requests that HTTP reads. What is JSON there is read here; what may stand in it is
//! checked where HTTP checks it.

use schemas::api;
use schemas::chat::{self, FunctionCall, ToolSpec};
use schemas::{ExecutionId, Role};
use serde_json::{Number, Value, json};

use super::proto;
use crate::problem::Failure;

pub(super) fn chat(request: proto::ChatRequest) -> Result<api::ChatRequest, Failure> {
    let messages = request.messages.into_iter().enumerate().map(|(i, m)| message(i, m));
    let tools = request.tools.into_iter().enumerate().map(|(i, tool)| spec(i, tool));
    Ok(api::ChatRequest {
        messages: messages.collect::<Result<_, _>>()?,
        conversation_id: request.conversation_id.as_deref().map(conversation).transpose()?,
        tools: tools.collect::<Result<_, _>>()?,
        priority: priority("priority", request.priority)?,
        truncation: truncation(request.truncation)?,
        model: request.model,
        user_id: request.user_id,
        stream: !request.answer_only,
        temperature: number("temperature", request.temperature)?,
        top_p: number("top_p", request.top_p)?,
        top_k: request.top_k.map(Number::from),
        min_p: number("min_p", request.min_p)?,
        repetition_penalty: number("repetition_penalty", request.repetition_penalty)?,
        presence_penalty: number("presence_penalty", request.presence_penalty)?,
        frequency_penalty: number("frequency_penalty", request.frequency_penalty)?,
        max_tokens: request.max_tokens.map(Number::from),
        seed: request.seed.map(Number::from),
        logprobs: request.logprobs,
        top_logprobs: request.top_logprobs.map(Number::from),
        stop: (!request.stop.is_empty()).then_some(api::OneOrMany(request.stop)),
        response_format: request.response_format.map(response_format).transpose()?,
        tool_choice: request.tool_choice.and_then(tool_choice),
        parallel_tool_calls: request.parallel_tool_calls,
        n: request.n.map(Number::from),
        cache: request.cache,
    })
}

pub(super) fn agent(request: proto::AgentRequest) -> Result<api::AgentRequest, Failure> {
    Ok(api::AgentRequest {
        agent_type: request.agent_type,
        instruction: request.instruction,
        workspace: request.workspace,
        user_id: request.user_id,
        context: request.context.map(Value::String),
        config: request.config.map(config).transpose()?.unwrap_or_default(),
        stream: !request.answer_only,
    })
}

pub(super) fn tool(request: proto::ToolRequest) -> Result<api::ToolRequest, Failure> {
    Ok(api::ToolRequest {
        arguments: json_text("arguments", &request.arguments)?.unwrap_or_else(|| json!({})),
        tool_name: request.tool_name,
        workspace: request.workspace,
        user_id: request.user_id,
        cache: request.cache,
    })
}

fn config(config: proto::AgentConfig) -> Result<api::AgentConfig, Failure> {
    Ok(api::AgentConfig {
        priority: priority("config.priority", config.priority)?,
        model: config.model,
        max_iterations: config.max_iterations,
        max_tokens: config.max_tokens,
        max_tokens_in: config.max_tokens_in,
        max_tokens_out: config.max_tokens_out,
        max_children: config.max_children,
        deadline_ms: config.deadline_ms,
        tools: config.tools.map(|tools| tools.names),
        approve: config.approve,
        temperature: number("config.temperature", config.temperature)?,
        top_p: number("config.top_p", config.top_p)?,
        top_k: config.top_k.map(Number::from),
        min_p: number("config.min_p", config.min_p)?,
        repetition_penalty: number("config.repetition_penalty", config.repetition_penalty)?,
        presence_penalty: number("config.presence_penalty", config.presence_penalty)?,
        frequency_penalty: number("config.frequency_penalty", config.frequency_penalty)?,
        seed: config.seed.map(Number::from),
        n: None,
        cache: config.cache,
    })
}

fn message(i: usize, message: proto::Message) -> Result<chat::Message, Failure> {
    let role = match proto::Role::try_from(message.role) {
        Ok(proto::Role::System) => Role::System,
        Ok(proto::Role::User) => Role::User,
        Ok(proto::Role::Assistant) => Role::Assistant,
        Ok(proto::Role::Tool) => Role::Tool,
        Ok(proto::Role::Unspecified) | Err(_) => return Err(unknown(&format!("messages[{i}].role"), message.role)),
    };
    let call = |call: proto::ToolCall| chat::ToolCall {
        id: call.id,
        kind: "function".to_owned(),
        function: FunctionCall { name: call.name, arguments: call.arguments },
    };
    Ok(chat::Message {
        tool_calls: message.tool_calls.into_iter().map(call).collect(),
        tool_call_id: message.tool_call_id,
        name: message.name,
        ..chat::Message::text(role, message.content)
    })
}

fn spec(i: usize, tool: proto::Tool) -> Result<ToolSpec, Failure> {
    let parameters = json_text(&format!("tools[{i}].parameters"), &tool.parameters)?.unwrap_or(Value::Null);
    Ok(ToolSpec::new(tool.name, tool.description, parameters))
}

fn response_format(format: proto::ResponseFormat) -> Result<Value, Failure> {
    use proto::response_format::Form;
    Ok(match format.form {
        None => json!({"type": "text"}),
        Some(Form::JsonObject(_)) => json!({"type": "json_object"}),
        Some(Form::JsonSchema(schema)) => {
            let schema = json_text("response_format.json_schema", &schema)?;
            json!({"type": "json_schema", "json_schema": {"schema": schema}})
        }
    })
}

/// None where the model chooses.
fn tool_choice(choice: proto::ToolChoice) -> Option<Value> {
    use proto::tool_choice::{Choice, Mode};
    Some(match choice.choice? {
        Choice::Function(name) => json!({"type": "function", "function": {"name": name}}),
        Choice::Mode(mode) => match Mode::try_from(mode) {
            Ok(Mode::Unspecified | Mode::Auto) => return None,
            Ok(Mode::None) => json!("none"),
            Ok(Mode::Required) => json!("required"),
            // Refused where choices are checked.
            Err(_) => json!(mode),
        },
    })
}

fn priority(field: &str, priority: i32) -> Result<chat::Priority, Failure> {
    match proto::Priority::try_from(priority) {
        Ok(proto::Priority::Unspecified | proto::Priority::Normal) => Ok(chat::Priority::Normal),
        Ok(proto::Priority::Low) => Ok(chat::Priority::Low),
        Ok(proto::Priority::High) => Ok(chat::Priority::High),
        Err(_) => Err(unknown(field, priority)),
    }
}

fn truncation(truncation: i32) -> Result<chat::Truncation, Failure> {
    match proto::Truncation::try_from(truncation) {
        Ok(proto::Truncation::Unspecified | proto::Truncation::Disabled) => Ok(chat::Truncation::Disabled),
        Ok(proto::Truncation::Auto) => Ok(chat::Truncation::Auto),
        Err(_) => Err(unknown("truncation", truncation)),
    }
}

fn unknown(field: &str, value: i32) -> Failure {
    Failure::invalid(format!("`{field}` is {value}, which means nothing"), "send one of the values of the proto")
}

fn conversation(id: &str) -> Result<ExecutionId, Failure> {
    let wrong = |e: schemas::ids::InvalidId| format!("`conversation_id`: {e}");
    id.parse().map_err(|e| Failure::invalid(wrong(e), "send the id of an earlier execution"))
}

/// JSON knows no infinity and nothing that is no number.
fn number(field: &str, value: Option<f64>) -> Result<Option<Number>, Failure> {
    let Some(value) = value else { return Ok(None) };
    let wrong = || Failure::invalid(format!("`{field}` is {value}"), "send a number, or leave it out");
    Number::from_f64(value).map(Some).ok_or_else(wrong)
}

/// JSON text; none where there is none.
fn json_text(field: &str, text: &str) -> Result<Option<Value>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |e: serde_json::Error| {
        Failure::new(400, "malformed_json", format!("`{field}` is not JSON: {e}"), "correct it there")
    };
    serde_json::from_str(text).map(Some).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(role: proto::Role, content: &str) -> proto::Message {
        proto::Message { role: role.into(), content: content.to_owned(), ..Default::default() }
    }

    #[test]
    fn a_chat_is_the_one_that_http_reads() {
        let asked = proto::ChatRequest {
            messages: vec![said(proto::Role::User, "hi")],
            temperature: Some(0.5),
            top_k: Some(3),
            stop: vec!["end".into()],
            tools: vec![proto::Tool {
                name: "f".into(),
                parameters: r#"{"type": "object"}"#.into(),
                ..Default::default()
            }],
            tool_choice: Some(proto::ToolChoice { choice: Some(proto::tool_choice::Choice::Function("f".into())) }),
            priority: proto::Priority::High.into(),
            parallel_tool_calls: Some(false),
            ..Default::default()
        };
        let json = json!({
            "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5, "top_k": 3, "stop": "end", "stream": true,
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}}, "priority": "high", "parallel_tool_calls": false,
        });
        let read: api::ChatRequest = serde_json::from_value(json).expect("a chat");
        assert_eq!(chat(asked).expect("a chat"), read);
    }

    #[test]
    fn what_json_could_not_say_is_refused_by_name() {
        let detail = |request| chat(request).expect_err("refused").0.detail;
        let with = |temperature| proto::ChatRequest { temperature: Some(temperature), ..Default::default() };
        assert_eq!(detail(with(f64::NAN)), "`temperature` is NaN");
        assert_eq!(detail(with(f64::INFINITY)), "`temperature` is inf");
        let nobody = proto::ChatRequest { messages: vec![said(proto::Role::Unspecified, "hi")], ..Default::default() };
        assert_eq!(detail(nobody), "`messages[0].role` is 0, which means nothing");
        let tool = proto::ToolRequest { arguments: "{".into(), ..Default::default() };
        assert_eq!(super::tool(tool).expect_err("refused").0.code, "malformed_json");
    }

    #[test]
    fn no_tools_and_any_tools_are_two_things() {
        let with = |tools| proto::AgentRequest {
            config: Some(proto::AgentConfig { tools, ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(agent(with(None)).expect("an agent").config.tools, None);
        assert_eq!(agent(with(Some(proto::Names::default()))).expect("an agent").config.tools, Some(vec![]));
    }
}
