//! Who may call what, beside what agent types say of themselves: by user and by agent type, as configured.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::registry::Registry;

/// Whoever has no rule of their own, and who says no name.
pub const ANYBODY: &str = "*";

/// What one user or agent type may call, under `[tools.users.NAME]` or `[tools.agents.NAME]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// These tools and no others. None: all of them.
    pub allow: Option<Vec<String>>,
    /// Not these, whatever is allowed.
    pub deny: Vec<String>,
}

/// Rules by name.
pub type Rules = BTreeMap<String, Rule>;

/// All rules. A call must pass both that of its user and that of its agent type.
#[derive(Debug, Clone, Default)]
pub(crate) struct Permissions {
    pub(crate) users: Rules,
    pub(crate) agents: Rules,
}

impl Permissions {
    /// Names of tools in rules that are not there, with where they stand: mistyped, or of a plugin that comes later.
    pub(crate) fn missing(&self, registry: &Registry) -> Vec<(String, String)> {
        let mut missing = Vec::new();
        for (section, rules) in [("users", &self.users), ("agents", &self.agents)] {
            for (name, rule) in rules {
                for (key, tools) in [("allow", rule.allow.as_ref()), ("deny", Some(&rule.deny))] {
                    let unknown = tools.into_iter().flatten().filter(|tool| registry.tool(tool).is_none());
                    missing.extend(unknown.map(|tool| (format!("tools.{section}.{name}.{key}"), tool.clone())));
                }
            }
        }
        missing
    }

    /// Refuses what this user, or this agent type, may not call. Where nobody set a rule, nothing is refused.
    pub(crate) fn check(&self, user: Option<&str>, agent: &str, tool: &str) -> Result<(), Failure> {
        let agent = Some(agent).filter(|agent| !agent.is_empty());
        for (rules, name, kind) in [(&self.users, user, "user"), (&self.agents, agent, "agent type")] {
            let rule = name.and_then(|name| rules.get(name)).or_else(|| rules.get(ANYBODY));
            if !rule.is_none_or(|rule| rule.allows(tool)) {
                let who = name.map_or_else(|| format!("whoever names no {kind}"), |name| format!("the {kind} {name}"));
                let detail = format!("{who} may not call {tool} (whoever runs this server decides)");
                return Err(Failure::refused(detail));
            }
        }
        Ok(())
    }
}

impl Rule {
    fn allows(&self, tool: &str) -> bool {
        let named = |tools: &[String]| tools.iter().any(|named| named == tool);
        !named(&self.deny) && self.allow.as_deref().is_none_or(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: Option<&[&str]>, deny: &[&str]) -> Rule {
        let owned = |tools: &[&str]| tools.iter().map(|tool| (*tool).to_owned()).collect::<Vec<_>>();
        Rule { allow: allow.map(owned), deny: owned(deny) }
    }

    fn of(users: &[(&str, Rule)], agents: &[(&str, Rule)]) -> Permissions {
        let rules =
            |rules: &[(&str, Rule)]| rules.iter().map(|(name, rule)| ((*name).to_owned(), rule.clone())).collect();
        Permissions { users: rules(users), agents: rules(agents) }
    }

    #[test]
    fn a_call_passes_what_is_allowed_and_not_denied_to_its_user_and_its_agent_type() {
        let ann = rule(Some(&["read_file", "search_code"]), &["search_code"]);
        let permissions = of(&[("ann", ann)], &[("coder", rule(None, &["web_search"]))]);
        let may = |user, agent, tool| permissions.check(user, agent, tool).is_ok();
        assert!(may(Some("ann"), "coder", "read_file") && !may(Some("ann"), "coder", "search_code"));
        assert!(!may(Some("ann"), "chat", "analyze_code"), "what is not in the list is not allowed");
        assert!(may(Some("bob"), "chat", "web_search") && may(None, "", "web_search"));
        assert!(!may(Some("bob"), "coder", "web_search"), "the agent type's rule holds for everybody");
        let refused = permissions.check(Some("bob"), "coder", "web_search").unwrap_err();
        assert_eq!(refused.detail, "the agent type coder may not call web_search (whoever runs this server decides)");
    }

    #[test]
    fn a_rule_for_anybody_holds_where_there_is_no_other() {
        let permissions = of(&[(ANYBODY, rule(Some(&[]), &[])), ("ann", rule(None, &[]))], &[]);
        assert!(permissions.check(Some("ann"), "", "read_file").is_ok());
        assert!(permissions.check(Some("bob"), "", "read_file").is_err());
        let nameless = permissions.check(None, "coder", "read_file").unwrap_err();
        assert_eq!(nameless.detail, "whoever names no user may not call read_file (whoever runs this server decides)");
    }

    #[test]
    fn a_tool_that_is_not_there_is_named_with_its_place() {
        let permissions = of(&[("ann", rule(None, &["web_serch", "read_file"]))], &[]);
        let missing = permissions.missing(&Registry::built_in());
        assert_eq!(missing, [("tools.users.ann.deny".to_owned(), "web_serch".to_owned())]);
    }
}
