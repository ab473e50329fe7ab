//! Whom an agent may ask to do a part of its work: every agent type it can reach, complete, so that replaying the
//! request needs nothing but the log.

use schemas::chat::DELEGATE;
use schemas::fact::AgentSpec;
use schemas::rpc::AgentType;
use schemas::{Message, Role, ToolSpec};
use serde_json::json;

use super::{Surroundings, granted, models, offered, policy};
use crate::problem::Failure;

/// The tool by which `agent` hands a task to those it may ask.
pub(super) fn tool(agent: &AgentType, with: &Surroundings<'_>) -> Result<ToolSpec, Failure> {
    let asked = asked_by(agent, with)?;
    let who: Vec<String> = asked.iter().map(|a| format!("{}: {}", a.name, a.description)).collect();
    let description = format!(
        "Hands a task to another agent and returns its answer. Calls of one answer run side by side. Agents: {}",
        who.join(" ")
    );
    let parameters = json!({
        "type": "object",
        "properties": {
            "agent": {"type": "string", "enum": agent.agents},
            "task": {"type": "string", "description": "All it needs to know: it sees nothing of this conversation."},
        },
        "required": ["agent", "task"],
        "additionalProperties": false,
    });
    Ok(ToolSpec::new(DELEGATE, description, parameters))
}

/// All agent types within reach, nearest first. Where some are reached only through others, the agent itself stands
/// among them, so that it is known whom it may ask directly.
pub(super) fn agents(with: &Surroundings<'_>) -> Result<Vec<AgentSpec>, Failure> {
    let mut reached: Vec<&AgentType> = Vec::new();
    let mut specs = Vec::new();
    let mut level: Vec<&AgentType> = asked_by(with.agent, with)?;
    for depth in 1..=with.agent.max_depth {
        level.retain(|agent| reached.iter().all(|known| known.name != agent.name));
        let mut next: Vec<&AgentType> = Vec::new();
        for agent in level {
            if agent.name == with.agent.name {
                return Err(circle(&with.agent.name));
            }
            if reached.iter().any(|known| known.name == agent.name) {
                continue;
            }
            reached.push(agent);
            // At the last level nobody can be asked any more.
            let asks = if depth < with.agent.max_depth { asked_by(agent, with)? } else { Vec::new() };
            specs.push(spec(agent, !asks.is_empty(), with)?);
            next.extend(asks);
        }
        level = next;
    }
    if specs.iter().any(|spec| !with.agent.agents.contains(&spec.name)) {
        specs.push(spec(with.agent, true, with)?);
    }
    Ok(specs)
}

fn asked_by<'a>(agent: &AgentType, with: &Surroundings<'a>) -> Result<Vec<&'a AgentType>, Failure> {
    let find = |name: &String| {
        with.agents.iter().find(|a| &a.name == name).ok_or_else(|| {
            let detail = format!("agent type {} delegates to {name}, which is not registered", agent.name);
            let next = format!("register {name}, or take it out of the `agents` of {}", agent.name);
            Failure::new(503, "agent_missing", detail, next)
        })
    };
    agent.agents.iter().map(find).collect()
}

fn circle(name: &str) -> Failure {
    let detail = format!("agent type {name} delegates to itself through others");
    Failure::new(503, "agents_in_a_circle", detail, "take one of them out of the `agents` of another")
}

fn spec(agent: &AgentType, asks: bool, with: &Surroundings<'_>) -> Result<AgentSpec, Failure> {
    let mut tools = granted(agent, with.tools);
    if asks {
        tools.push(tool(agent, with)?);
    }
    let system = [Message::text(Role::System, &agent.system)];
    let model = models::preferred(agent, with.models, models::tokens(&system, &offered::least(&tools, &agent.policy)))?;
    Ok(AgentSpec {
        name: agent.name.clone(),
        system: agent.system.clone(),
        model: model.name.clone(),
        window: model.window,
        tools: offered::to_window(tools, model.window, &agent.policy),
        agents: if asks { agent.agents.clone() } else { Vec::new() },
        iterations: agent.max_iterations,
        tokens: agent.max_tokens,
        tool_calls: agent.max_tool_calls,
        deadline_ms: agent.deadline_ms,
        policy: policy(agent, with.models),
    })
}
