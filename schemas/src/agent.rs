//! The rules of agent types, wherever they come from: what a well-formed one is, whom it may ask, and which of several
//! of the same name counts.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::chat::DELEGATE;
use crate::fact::Join;
use crate::rpc::AgentType;
use crate::subject;

/// Inferences at most, of any agent type.
pub const ITERATIONS_MAX: u32 = 1_000;
/// Tokens at most.
pub const TOKENS_MAX: u64 = 100_000_000;
/// Tool calls at most.
pub const TOOL_CALLS_MAX: u32 = 10_000;
/// Wall time at most: a week.
pub const DEADLINE_MS_MAX: u64 = 7 * 24 * 3_600 * 1_000;
/// Executions that one may ask for at most.
pub const CHILDREN_MAX: u32 = 256;
/// Levels of agents at most.
pub const DEPTH_MAX: u32 = 8;
/// A person has a day to allow a call.
pub const APPROVAL_MS_MAX: u64 = 24 * 3_600 * 1_000;
/// Bytes of a system prompt at most.
pub const SYSTEM_BYTES_MAX: usize = 64 << 10;
/// Bytes of a description at most: it stands in the prompt of those who may ask.
pub const DESCRIPTION_BYTES_MAX: usize = 1_000;
/// Names in one list at most.
const LIST_MAX: usize = 64;

/// Where an agent type comes from. Of several of the same name, the last in this order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// It comes with the program.
    BuiltIn,
    /// A file in the directory of agent types.
    Manifest,
    /// Somebody registered it through the API.
    Registered,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::BuiltIn, Self::Manifest, Self::Registered];

    const fn prefix(self) -> &'static str {
        match self {
            Self::BuiltIn => "agent",
            Self::Manifest => "agent-manifest",
            Self::Registered => "agent-registered",
        }
    }

    /// The key in the bucket `vl_config`.
    #[must_use]
    pub fn key(self, name: &str) -> String {
        format!("{}.{name}", self.prefix())
    }

    /// Source and name of a key; none when the key holds no agent type.
    #[must_use]
    pub fn of_key(key: &str) -> Option<(Self, &str)> {
        let (prefix, name) = key.split_once('.')?;
        Self::ALL.into_iter().find(|source| source.prefix() == prefix).map(|source| (source, name))
    }

    /// The source in words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::BuiltIn => "built in",
            Self::Manifest => "a manifest in the directory of agent types",
            Self::Registered => "registered through the API",
        }
    }
}

/// Agent types by name, each with where it comes from.
pub type Team = BTreeMap<String, (Source, AgentType)>;

/// Of several agent types of one name, the one that counts.
#[must_use]
pub fn effective(found: impl IntoIterator<Item = (Source, AgentType)>) -> Team {
    let mut team = Team::new();
    for (source, agent) in found {
        match team.get(&agent.name) {
            Some((known, _)) if *known > source => {}
            _ => drop(team.insert(agent.name.clone(), (source, agent))),
        }
    }
    team
}

/// A manifest that was not taken. Stored in the bucket `vl_config` beside the agent types, so that everybody can see; those
/// of tools stand in the presence of their worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// The file; of a server of tools, the setting that names it.
    pub file: String,
    /// The line that is wrong, from 1; none when it is no single line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl Refused {
    /// Prefix of its keys.
    pub const PREFIX: &'static str = "agent-refused.";
    /// What matches all its keys.
    pub const FILTER: &'static str = "agent-refused.>";
}

/// What is wrong with an agent type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {reason}")]
pub struct Wrong {
    /// The field, for example `policy.approve`.
    pub field: &'static str,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

fn wrong(field: &'static str, reason: impl Into<String>) -> Wrong {
    Wrong { field, reason: reason.into() }
}

/// Checks an agent type by itself.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(agent: &AgentType) -> Result<(), Wrong> {
    if agent.name.is_empty() || subject::token(&agent.name) != agent.name {
        let reason = format!("is {:?}: 1 to 64 lower-case letters, digits, `-` or `_`", agent.name);
        return Err(wrong("name", reason));
    }
    for (field, text, max) in
        [("description", &agent.description, DESCRIPTION_BYTES_MAX), ("system", &agent.system, SYSTEM_BYTES_MAX)]
    {
        if text.trim().is_empty() {
            return Err(wrong(field, "is empty"));
        }
        if text.len() > max {
            return Err(wrong(field, format!("has {} bytes, at most {max} are allowed", text.len())));
        }
    }
    check_lists(agent)?;
    check_limits(agent)?;
    check_policy(agent)
}

fn check_lists(agent: &AgentType) -> Result<(), Wrong> {
    for (field, names) in [("models", &agent.models), ("tools", &agent.tools), ("agents", &agent.agents)] {
        if names.len() > LIST_MAX {
            return Err(wrong(field, format!("has {} names, at most {LIST_MAX} are allowed", names.len())));
        }
        let mut seen = BTreeSet::new();
        for name in names {
            if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
                return Err(wrong(field, format!("holds {name:?}, which is no name")));
            }
            if !seen.insert(name) {
                return Err(wrong(field, format!("names {name} twice")));
            }
        }
    }
    if agent.tools.iter().any(|name| name == DELEGATE) {
        return Err(wrong(
            "tools",
            format!("names {DELEGATE}, which is offered by itself where `agents` names others"),
        ));
    }
    Ok(())
}

fn check_limits(agent: &AgentType) -> Result<(), Wrong> {
    let bounds: [(&'static str, u64, u64, bool, &str); 6] = [
        ("max_iterations", agent.max_iterations.into(), ITERATIONS_MAX.into(), true, ""),
        ("max_tokens", agent.max_tokens, TOKENS_MAX, true, ""),
        (
            "max_tool_calls",
            agent.max_tool_calls.into(),
            TOOL_CALLS_MAX.into(),
            !agent.tools.is_empty(),
            " because `tools` names some",
        ),
        ("deadline_ms", agent.deadline_ms, DEADLINE_MS_MAX, true, ""),
        (
            "max_children",
            agent.max_children.into(),
            CHILDREN_MAX.into(),
            !agent.agents.is_empty(),
            " because `agents` names others",
        ),
        (
            "max_depth",
            agent.max_depth.into(),
            DEPTH_MAX.into(),
            !agent.agents.is_empty(),
            " because `agents` names others",
        ),
    ];
    for (field, value, max, needed, why) in bounds {
        let min = u64::from(needed);
        if value < min || value > max {
            return Err(wrong(field, format!("is {value}, must be {min} to {max}{why}")));
        }
    }
    Ok(())
}

fn check_policy(agent: &AgentType) -> Result<(), Wrong> {
    let policy = &agent.policy;
    if let Some(name) = policy.approve.iter().find(|name| !agent.tools.contains(name)) {
        let tools = if agent.tools.is_empty() { "none".to_owned() } else { agent.tools.join(", ") };
        return Err(wrong("policy.approve", format!("names {name}, which is none of its tools: {tools}")));
    }
    if policy.approval_ms > APPROVAL_MS_MAX {
        let reason = format!("is {}, must be at most {APPROVAL_MS_MAX} (a day)", policy.approval_ms);
        return Err(wrong("policy.approval_ms", reason));
    }
    if let Join::Quorum(wanted) = policy.join
        && !(1..=agent.max_children).contains(&wanted)
    {
        let reason = format!("wants a quorum of {wanted}, must be 1 to `max_children` ({})", agent.max_children);
        return Err(wrong("policy.join", reason));
    }
    match &policy.small_model {
        Some(name) if name.trim().is_empty() => Err(wrong("policy.small_model", "is empty: leave it out")),
        _ => Ok(()),
    }
}

/// Checks whom an agent type may ask: each must be in the team, and none may lead back to it.
///
/// # Errors
/// Who is missing, or the circle.
pub fn check_team(agent: &AgentType, team: &Team) -> Result<(), Wrong> {
    if let Some(name) = agent.agents.iter().find(|name| **name != agent.name && !team.contains_key(*name)) {
        let known: Vec<&str> = team.keys().map(String::as_str).filter(|known| *known != agent.name).collect();
        let reason = format!("names {name}, which is not registered; registered are: {}", known.join(", "));
        return Err(wrong("agents", reason));
    }
    match circle(agent, team) {
        Some(path) => Err(wrong("agents", format!("leads in a circle: {}", path.join(" → ")))),
        None => Ok(()),
    }
}

/// A way from an agent type back to itself.
fn circle(agent: &AgentType, team: &Team) -> Option<Vec<String>> {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut paths: Vec<Vec<&str>> = agent.agents.iter().map(|name| vec![name.as_str()]).collect();
    while let Some(path) = paths.pop() {
        let last = path.last().copied().unwrap_or_default();
        if last == agent.name {
            let whole = std::iter::once(agent.name.as_str()).chain(path);
            return Some(whole.map(str::to_owned).collect());
        }
        if seen.insert(last)
            && let Some((_, next)) = team.get(last)
        {
            paths.extend(next.agents.iter().map(|name| path.iter().copied().chain([name.as_str()]).collect()));
        }
    }
    None
}

#[cfg(test)]
mod tests;
