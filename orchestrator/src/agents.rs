//! Agent types: data, not code. The built-in ones are written to the bucket `vl_config` at start, where the edge finds
//! them beside those from the files of a directory and those that were registered through the API. Of several of one
//! name the registered one counts, then the file, then what is built in.

pub(crate) mod directory;
mod manifest;

use schemas::rpc::AgentType;

use crate::execution::DELEGATE;

const SYSTEM: &str = "You are Vlinder, a code assistant.";
/// The last ones are for models with a window that has room for them.
const TOOLS: [&str; 11] = [
    "search_code",
    "semantic_search",
    "read_file",
    "analyze_code",
    "web_search",
    "web_fetch",
    "similar_code",
    "repository_outline",
    "code_dependencies",
    "remember",
    "recall",
];

/// All built-in agent types.
#[must_use]
pub fn builtin() -> Vec<AgentType> {
    let agent = |name: &str, description: &str, tools: &[&str], iterations: u32| AgentType {
        name: name.to_owned(),
        description: description.to_owned(),
        system: SYSTEM.to_owned(),
        models: vec![],
        tools: tools.iter().map(|t| (*t).to_owned()).collect(),
        max_iterations: iterations,
        max_tokens: 200_000,
        max_tool_calls: iterations * 8,
        deadline_ms: 300_000,
        agents: vec![],
        max_children: 0,
        max_depth: 0,
        policy: Default::default(),
    };
    let mut planner = agent("planner", "Breaks a task into parts and hands them to others.", &TOOLS, 20);
    planner.system = format!(
        "{SYSTEM} Break the task into parts, hand each part to an agent with {DELEGATE}, several at once where they do \
         not need each other, and answer from what they found."
    );
    planner.agents = vec!["coder".to_owned(), "researcher".to_owned()];
    planner.max_children = 8;
    planner.max_depth = 2;
    vec![
        agent("chat", "Answers without tools.", &[], 1),
        agent("coder", "Answers questions about the code of a workspace.", &TOOLS, 12),
        agent("researcher", "Looks things up, in the workspace and on the web.", &TOOLS, 20),
        planner,
    ]
}

#[cfg(test)]
mod tests {
    use schemas::agent::{Source, check, check_team, effective};

    use super::*;

    #[test]
    fn what_is_built_in_keeps_the_rules() {
        let team = effective(builtin().into_iter().map(|agent| (Source::BuiltIn, agent)));
        for agent in builtin() {
            assert_eq!(check(&agent), Ok(()));
            assert_eq!(check_team(&agent, &team), Ok(()));
        }
    }

    #[test]
    fn the_edge_offers_the_tool_that_the_core_carries_out() {
        assert_eq!(schemas::chat::DELEGATE, DELEGATE);
    }
}
