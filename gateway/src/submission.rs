//! From a request to the fact that starts an execution: checks and completes it. Pure: what is there (agent types,
//! models, tools), the time and the seed come as arguments.

use schemas::api::{AgentRequest, ChatRequest, ToolRequest};
use schemas::fact::{ExecutionSubmitted, Kind, Limits};
use schemas::rpc::{AgentType, Model, Tool};
use schemas::wire::Nanos;
use schemas::{Message, Role, Sampling, ToolCall, ToolSpec};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::problem::Failure;

/// Reads a body; says where it is wrong.
pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|e| {
        let text = e.to_string();
        if !e.is_data() {
            return Failure::new(400, "malformed_json", format!("the body is not JSON: {text}"), "correct it there");
        }
        let code = if text.starts_with("unknown field") { "unknown_field" } else { "invalid_request" };
        Failure::new(400, code, text, "see the request's fields in the README")
    })
}

/// What a submission rests on beside the request.
pub(crate) struct Surroundings<'a> {
    pub(crate) agent: &'a AgentType,
    pub(crate) models: &'a [Model],
    pub(crate) tools: &'a [Tool],
    pub(crate) now: Nanos,
    pub(crate) seed: u64,
}

/// A chat's submission.
pub(crate) fn chat(request: ChatRequest, with: &Surroundings<'_>) -> Result<ExecutionSubmitted, Failure> {
    check_messages(&request.messages)?;
    check_specs(&request.tools)?;
    if let Some(format) = &request.response_format
        && format.get("type").and_then(Value::as_str) != Some("text")
    {
        return Err(Failure::new(
            400,
            "unsupported_response_format",
            format!("response_format {format} is not carried out"),
            "leave it out, or send {\"type\": \"text\"}",
        ));
    }
    let model = model(request.model.as_deref(), with)?;
    let sampling = Sampling {
        temperature: request.temperature,
        top_p: request.top_p,
        max_tokens: request.max_tokens,
        seed: Some(request.seed.unwrap_or(with.seed)),
        stop: request.stop.map(|s| s.0).unwrap_or_default(),
    };
    check_sampling(&sampling)?;
    let mut messages = request.messages;
    // A continued conversation has its system message already.
    if request.conversation_id.is_none() && messages.iter().all(|m| m.role != Role::System) {
        messages.insert(0, Message::text(Role::System, &with.agent.system));
    }
    Ok(ExecutionSubmitted {
        model: model.name.clone(),
        window: model.window,
        messages,
        tools: request.tools,
        user_id: request.user_id,
        conversation_id: request.conversation_id,
        sampling,
        ..ExecutionSubmitted::new(Kind::Chat, &with.agent.name, limits(with, None, None, None))
    })
}

/// An agent's submission.
pub(crate) fn agent(request: AgentRequest, with: &Surroundings<'_>) -> Result<ExecutionSubmitted, Failure> {
    let config = request.config;
    if request.instruction.trim().is_empty() {
        return Err(Failure::invalid("`instruction` is empty", "say what the agent should do"));
    }
    if config.max_iterations == Some(0) || config.max_tokens == Some(0) || config.deadline_ms == Some(0) {
        return Err(Failure::invalid("a limit in `config` is 0", "leave it out or give it at least 1"));
    }
    let model = model(config.model.as_deref(), with)?;
    let sampling = Sampling {
        temperature: config.temperature,
        seed: Some(config.seed.unwrap_or(with.seed)),
        ..Sampling::default()
    };
    check_sampling(&sampling)?;
    let context = match request.context {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => format!("{text}\n\n"),
        Some(value) => format!("{}\n\n", serde_json::to_string_pretty(&value).unwrap_or_default()),
    };
    let limits = limits(with, config.max_iterations, config.max_tokens, config.deadline_ms);
    Ok(ExecutionSubmitted {
        model: model.name.clone(),
        window: model.window,
        messages: vec![
            Message::text(Role::System, &with.agent.system),
            Message::text(Role::User, format!("{context}{}", request.instruction)),
        ],
        tools: granted(config.tools.as_deref(), with)?,
        workspace: request.workspace,
        user_id: request.user_id,
        sampling,
        ..ExecutionSubmitted::new(Kind::Agent, &with.agent.name, limits)
    })
}

/// A single tool call's submission.
pub(crate) fn tool(
    request: ToolRequest,
    tools: &[Tool],
    now: Nanos,
    deadline_s: u64,
) -> Result<ExecutionSubmitted, Failure> {
    if !request.arguments.is_object() {
        return Err(Failure::invalid("`arguments` is no object", "send an object that fits the tool's parameters"));
    }
    let tool = find(&request.tool_name, tools)?;
    if let Some(why) = &tool.unavailable {
        let detail = format!("the tool {} cannot be used here: {why}", tool.name);
        return Err(Failure::new(503, "tool_unavailable", detail, "see GET /internal/tools for those that can"));
    }
    let deadline = after(now, deadline_s * 1_000);
    let limits = Limits { iterations: 1, tokens: 1, tool_calls: 1, deadline, ..Limits::default() };
    Ok(ExecutionSubmitted {
        call: Some(ToolCall::new("call-0", &request.tool_name, request.arguments.to_string())),
        workspace: request.workspace,
        user_id: request.user_id,
        ..ExecutionSubmitted::new(Kind::Tool, "tool", limits)
    })
}

fn check_messages(messages: &[Message]) -> Result<(), Failure> {
    if messages.is_empty() {
        return Err(Failure::invalid("`messages` is empty", "send at least one message of the role user"));
    }
    match messages.iter().position(|m| m.role == Role::Tool && m.tool_call_id.is_none()) {
        None => Ok(()),
        Some(i) => {
            let detail = format!("messages[{i}] is a tool's result without `tool_call_id`");
            Err(Failure::invalid(detail, "name the call it answers"))
        }
    }
}

fn check_specs(tools: &[ToolSpec]) -> Result<(), Failure> {
    let mut names = std::collections::BTreeSet::new();
    for (i, tool) in tools.iter().enumerate() {
        let name = &tool.function.name;
        if tool.kind != "function" || name.is_empty() || !names.insert(name) {
            let detail = format!("tools[{i}] ({name:?}) is no function with a name of its own");
            return Err(Failure::invalid(detail, "give each tool the type function and a unique name"));
        }
    }
    Ok(())
}

fn check_sampling(sampling: &Sampling) -> Result<(), Failure> {
    let wrong = if sampling.temperature.is_some_and(|t| !(0.0..=10.0).contains(&t)) {
        "`temperature` is outside 0 to 10"
    } else if sampling.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
        "`top_p` is outside (0, 1]"
    } else if sampling.max_tokens == Some(0) {
        "`max_tokens` is 0"
    } else if sampling.stop.iter().any(String::is_empty) {
        "`stop` holds an empty text"
    } else {
        return Ok(());
    };
    Err(Failure::invalid(wrong, "correct it or leave it out"))
}

/// The named model, or the first of the agent type's preferences that is loaded.
fn model<'a>(name: Option<&str>, with: &Surroundings<'a>) -> Result<&'a Model, Failure> {
    let chat: Vec<&Model> = with.models.iter().filter(|m| m.kind != "embedding").collect();
    if chat.is_empty() {
        let detail = "no model is loaded: no inference worker answers";
        return Err(Failure::new(503, "workers_absent", detail, "start one (`vlinders inference-worker`) or wait"));
    }
    let loaded = |name: &str| chat.iter().copied().find(|m| m.name == name);
    let names = || chat.iter().map(|m| m.name.clone()).collect::<Vec<_>>();
    match name {
        Some(name) => loaded(name).ok_or_else(|| Failure::unknown("model", name, &names())),
        None if with.agent.models.is_empty() => Ok(chat[0]),
        None => with.agent.models.iter().find_map(|name| loaded(name)).ok_or_else(|| {
            let wanted = with.agent.models.join(", ");
            let detail = format!("none of the models of agent type {} is loaded: {wanted}", with.agent.name);
            Failure::new(503, "workers_absent", detail, format!("load one, or name one of: {}", names().join(", ")))
        }),
    }
}

fn find<'a>(name: &str, tools: &'a [Tool]) -> Result<&'a Tool, Failure> {
    let names = || tools.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    tools.iter().find(|t| t.name == name).ok_or_else(|| Failure::unknown("tool", name, &names()))
}

/// The agent type's tools that exist, can be used here, and are wanted.
fn granted(wanted: Option<&[String]>, with: &Surroundings<'_>) -> Result<Vec<ToolSpec>, Failure> {
    for name in wanted.unwrap_or_default() {
        find(name, with.tools)?;
        if !with.agent.tools.contains(name) {
            let detail = format!("agent type {} may not use the tool {name}", with.agent.name);
            return Err(Failure::invalid(detail, format!("it may use: {}", with.agent.tools.join(", "))));
        }
    }
    // In the agent type's order, which is the order its author had in mind for the model.
    let named = with.agent.tools.iter().filter_map(|name| with.tools.iter().find(|t| &t.name == name));
    let tools = named.filter(|t| t.unavailable.is_none() && wanted.is_none_or(|wanted| wanted.contains(&t.name)));
    Ok(tools.map(|t| ToolSpec::new(&t.name, &t.description, t.parameters.clone())).collect())
}

/// What the request asks for, within the agent type's limits.
fn limits(with: &Surroundings<'_>, iterations: Option<u32>, tokens: Option<u64>, deadline_ms: Option<u64>) -> Limits {
    let agent = with.agent;
    Limits {
        iterations: iterations.unwrap_or(u32::MAX).min(agent.max_iterations),
        tokens: tokens.unwrap_or(u64::MAX).min(agent.max_tokens),
        tool_calls: agent.max_tool_calls,
        deadline: after(with.now, deadline_ms.unwrap_or(u64::MAX).min(agent.deadline_ms)),
        ..Limits::default()
    }
}

fn after(now: Nanos, ms: u64) -> Nanos {
    now.saturating_add(Nanos::try_from(ms).unwrap_or(Nanos::MAX).saturating_mul(1_000_000))
}

#[cfg(test)]
mod tests;
