//! From a request to the fact that starts an execution: checks and completes it. Pure: what is there (agent types,
//! models, tools), the time and the seed come as arguments.

mod binding;
mod delegation;
pub(crate) mod models;
mod offered;
mod sampling;

use schemas::api::{AgentConfig, AgentRequest, ChatRequest, ToolRequest};
use schemas::chat::DELEGATE;
use schemas::fact::{AgentSpec, ExecutionSubmitted, Kind, Limits, Policy};
use schemas::rpc::{AgentType, Approval, Model, Tool};
use schemas::wire::Nanos;
use schemas::{Message, Role, Sampling, ToolCall, ToolSpec};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::problem::Failure;

/// Reads a body; says where it is wrong.
pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    let reader = &mut serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize(&mut *reader).map_err(|error| {
        let path = error.path().to_string();
        (path, error.into_inner())
    });
    let value = read.and_then(|value| reader.end().map(|()| value).map_err(|error| (".".to_owned(), error)));
    value.map_err(|(path, error)| {
        let text = error.to_string();
        if !error.is_data() {
            return Failure::new(400, "malformed_json", format!("the body is not JSON: {text}"), "correct it there");
        }
        let code = if text.starts_with("unknown field") { "unknown_field" } else { "invalid_request" };
        let detail = if path == "." { text } else { format!("`{path}`: {text}") };
        Failure::new(400, code, detail, "see the request's fields in the README")
    })
}

/// What a submission rests on beside the request.
pub(crate) struct Surroundings<'a> {
    pub(crate) agent: &'a AgentType,
    /// All registered agent types, for those that it may delegate to.
    pub(crate) agents: &'a [AgentType],
    pub(crate) models: &'a [Model],
    /// Models that are not loaded and could be, or were a while ago.
    pub(crate) loadable: &'a [Model],
    pub(crate) tools: &'a [Tool],
    pub(crate) now: Nanos,
    pub(crate) seed: u64,
}

/// A chat's submission.
pub(crate) fn chat(request: ChatRequest, with: &Surroundings<'_>) -> Result<ExecutionSubmitted, Failure> {
    check_messages(&request.messages)?;
    check_specs(&request.tools)?;
    binding::check_tools(&request.tools)?;
    let (response_format, tool_choice) = (binding::response_format(&request)?, binding::tool_choice(&request)?);
    let sampling = Sampling { response_format, tool_choice, ..sampling::chat(&request, with.seed)? };
    let cache = sampling::may_cache(&sampling, request.seed.as_ref(), request.cache);
    let mut messages = request.messages;
    // A continued conversation has its system message already.
    let instructed = request.conversation_id.is_some() || messages.iter().any(|m| m.role == Role::System);
    if !instructed && !with.agent.system.is_empty() {
        messages.insert(0, Message::text(Role::System, &with.agent.system));
    }
    let model = models::named_or_preferred(request.model.as_deref(), with, models::tokens(&messages, &request.tools))?;
    sampling::check_size(&sampling, model.window)?;
    Ok(ExecutionSubmitted {
        model: model.name.clone(),
        window: model.window,
        messages,
        tools: request.tools,
        user_id: request.user_id,
        conversation_id: request.conversation_id,
        sampling,
        priority: request.priority,
        truncation: request.truncation,
        cache,
        policy: policy(with.agent, with.models),
        ..ExecutionSubmitted::new(Kind::Chat, &with.agent.name, limits(with, &AgentConfig::default()))
    })
}

/// An agent's submission.
pub(crate) fn agent(request: AgentRequest, with: &Surroundings<'_>) -> Result<ExecutionSubmitted, Failure> {
    let config = request.config;
    if request.instruction.trim().is_empty() {
        return Err(Failure::invalid("`instruction` is empty", "say what the agent should do"));
    }
    check_limits(&config)?;
    let sampling = sampling::agent(&config, with.seed)?;
    let cache = sampling::may_cache(&sampling, config.seed.as_ref(), config.cache);
    let context = match request.context {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => format!("{text}\n\n"),
        Some(value) => format!("{}\n\n", serde_json::to_string_pretty(&value).unwrap_or_default()),
    };
    let messages = vec![
        Message::text(Role::System, &with.agent.system),
        Message::text(Role::User, format!("{context}{}", request.instruction)),
    ];
    let limits = limits(with, &config);
    let mut tools = wanted(config.tools.as_deref(), with)?;
    let mut agents = Vec::new();
    let delegates = config.tools.as_ref().is_none_or(|tools| tools.iter().any(|name| name == DELEGATE));
    if delegates && limits.children > 0 && limits.depth > 0 && !with.agent.agents.is_empty() {
        tools.push(delegation::tool(with.agent, with)?);
        agents = delegation::agents(with)?;
    }
    let mut policy = policy(with.agent, with.models);
    approve(&config.approve, &tools, &mut policy, &mut agents)?;
    approve_always(with.tools, &tools, &mut policy, &mut agents);
    let tokens = models::tokens(&messages, &offered::least(&tools, &policy));
    let model = models::named_or_preferred(config.model.as_deref(), with, tokens)?;
    let tools = offered::to_window(tools, model.window, &policy);
    Ok(ExecutionSubmitted {
        model: model.name.clone(),
        window: model.window,
        messages,
        tools,
        workspace: request.workspace,
        user_id: request.user_id,
        sampling,
        priority: config.priority,
        cache,
        fresh_tools: config.cache == Some(false),
        policy,
        agents,
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
        fresh_tools: request.cache == Some(false),
        ..ExecutionSubmitted::new(Kind::Tool, "tool", limits)
    })
}

fn check_messages(messages: &[Message]) -> Result<(), Failure> {
    if messages.is_empty() {
        return Err(Failure::invalid("`messages` is empty", "send at least one message of the role user"));
    }
    if let Some(i) = messages.iter().position(|m| m.object.is_some()) {
        let detail = format!("messages[{i}] names an `object`, which this server does by itself");
        return Err(Failure::invalid(detail, "send the text as `content`, however long"));
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

fn find<'a>(name: &str, tools: &'a [Tool]) -> Result<&'a Tool, Failure> {
    let names = || tools.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    tools.iter().find(|t| t.name == name).ok_or_else(|| Failure::unknown("tool", name, &names()))
}

/// The agent type's tools that exist and can be used here, in the agent type's order, which is the order its author
/// had in mind for the model.
fn granted(agent: &AgentType, tools: &[Tool]) -> Vec<ToolSpec> {
    let named = agent.tools.iter().filter_map(|name| tools.iter().find(|t| &t.name == name));
    let usable = named.filter(|t| t.unavailable.is_none());
    usable.map(|t| ToolSpec::new(&t.name, &t.description, t.parameters.clone())).collect()
}

/// The granted tools, or those of them that the request wants.
fn wanted(wanted: Option<&[String]>, with: &Surroundings<'_>) -> Result<Vec<ToolSpec>, Failure> {
    let mut granted = granted(with.agent, with.tools);
    let Some(wanted) = wanted else { return Ok(granted) };
    for name in wanted {
        if name == DELEGATE && !with.agent.agents.is_empty() {
            continue;
        }
        if name != DELEGATE {
            find(name, with.tools)?;
        }
        if !with.agent.tools.contains(name) {
            let detail = format!("agent type {} may not use the tool {name}", with.agent.name);
            return Err(Failure::invalid(detail, format!("it may use: {}", with.agent.tools.join(", "))));
        }
    }
    granted.retain(|tool| wanted.contains(&tool.function.name));
    Ok(granted)
}

/// The agent type's rules. A model for summaries that is not loaded is done without.
fn policy(agent: &AgentType, models: &[Model]) -> Policy {
    let mut policy = agent.policy.clone();
    policy.small_model = policy.small_model.filter(|name| models.iter().any(|m| &m.name == name));
    policy
}

/// A person must allow these tools, whoever asks for them.
fn approve(names: &[String], tools: &[ToolSpec], policy: &mut Policy, agents: &mut [AgentSpec]) -> Result<(), Failure> {
    let offers = |tools: &[ToolSpec], name: &String| tools.iter().any(|tool| &tool.function.name == name);
    for name in names {
        if name == DELEGATE {
            let detail = format!("`config.approve` names {DELEGATE}, which is no call of a tool");
            return Err(Failure::invalid(detail, "name the tools that the agents below it use"));
        }
        let mut holders: Vec<&mut Policy> = Vec::new();
        if offers(tools, name) {
            holders.push(policy);
        }
        holders.extend(agents.iter_mut().filter(|a| offers(&a.tools, name)).map(|a| &mut a.policy));
        if holders.is_empty() {
            let names = tools.iter().chain(agents.iter().flat_map(|a| &a.tools)).map(|t| t.function.name.as_str());
            let names: std::collections::BTreeSet<&str> = names.filter(|name| *name != DELEGATE).collect();
            let names = if names.is_empty() { "none".to_owned() } else { Vec::from_iter(names).join(", ") };
            let detail = format!("`config.approve` names {name}, which neither it nor an agent below it may use");
            return Err(Failure::invalid(detail, format!("tools they use: {names}")));
        }
        for policy in holders {
            if !policy.approve.contains(name) {
                policy.approve.push(name.clone());
            }
        }
    }
    Ok(())
}

/// Of some tools their worker says that a person must allow each call, whatever agent types say. Written into the request,
/// that is a part of the log like the rest of the policy, and stays what it was for this execution.
fn approve_always(listed: &[Tool], tools: &[ToolSpec], policy: &mut Policy, agents: &mut [AgentSpec]) {
    let always = |tool: &ToolSpec| {
        let name = &tool.function.name;
        listed.iter().any(|listed| &listed.name == name && listed.approval == Some(Approval::Always))
    };
    let offers = agents.iter_mut().map(|agent| (agent.tools.as_slice(), &mut agent.policy));
    for (tools, policy) in offers.chain([(tools, policy)]) {
        for tool in tools.iter().filter(|tool| always(tool)) {
            if !policy.approve.contains(&tool.function.name) {
                policy.approve.push(tool.function.name.clone());
            }
        }
    }
}

fn check_limits(config: &AgentConfig) -> Result<(), Failure> {
    let limits = [
        ("max_iterations", config.max_iterations.map(u64::from)),
        ("max_tokens", config.max_tokens),
        ("max_tokens_in", config.max_tokens_in),
        ("max_tokens_out", config.max_tokens_out),
        ("deadline_ms", config.deadline_ms),
    ];
    match limits.into_iter().find(|(_, limit)| *limit == Some(0)) {
        None => Ok(()),
        Some((name, _)) => Err(Failure::invalid(format!("`config.{name}` is 0"), "leave it out or give it at least 1")),
    }
}

/// What the request asks for, within the agent type's limits.
fn limits(with: &Surroundings<'_>, config: &AgentConfig) -> Limits {
    let agent = with.agent;
    let max = u64::MAX;
    Limits {
        iterations: config.max_iterations.unwrap_or(u32::MAX).min(agent.max_iterations),
        tokens: config.max_tokens.unwrap_or(max).min(agent.max_tokens),
        tool_calls: agent.max_tool_calls,
        deadline: after(with.now, config.deadline_ms.unwrap_or(max).min(agent.deadline_ms)),
        tokens_in: config.max_tokens_in,
        tokens_out: config.max_tokens_out,
        children: config.max_children.unwrap_or(u32::MAX).min(agent.max_children),
        depth: agent.max_depth,
    }
}

pub(crate) fn after(now: Nanos, ms: u64) -> Nanos {
    now.saturating_add(Nanos::try_from(ms).unwrap_or(Nanos::MAX).saturating_mul(1_000_000))
}

#[cfg(test)]
mod tests;
