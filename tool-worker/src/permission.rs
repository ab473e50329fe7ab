//! Who may call what, beside what agent types say: by user, as configured.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::registry::Registry;

/// What one user may call, under `[tools.users.NAME]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct User {
    /// These tools and no others. None: all of them.
    pub allow: Option<Vec<String>>,
    /// Not these, whatever is allowed.
    pub deny: Vec<String>,
}

/// All users of whom something is configured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Permissions(BTreeMap<String, User>);

impl Permissions {
    /// # Errors
    /// A tool is named that there is not; the text says where.
    pub(crate) fn new(users: &BTreeMap<String, User>, registry: &Registry) -> Result<Self, String> {
        for (name, user) in users {
            for (key, tools) in [("allow", user.allow.as_ref()), ("deny", Some(&user.deny))] {
                for tool in tools.into_iter().flatten() {
                    if registry.tools().all(|known| known.name != tool) {
                        return Err(format!("tools.users.{name}.{key}: there is no tool {tool:?}"));
                    }
                }
            }
        }
        Ok(Self(users.clone()))
    }

    /// Refuses what this user may not call. Of users that nobody spoke of, nothing is refused.
    pub(crate) fn check(&self, user: Option<&str>, tool: &str) -> Result<(), Failure> {
        let Some((name, user)) = user.and_then(|name| self.0.get_key_value(name)) else { return Ok(()) };
        let named = |tools: &[String]| tools.iter().any(|named| named == tool);
        if named(&user.deny) || user.allow.as_deref().is_some_and(|allow| !named(allow)) {
            return Err(Failure::refused(format!("{name} may not call {tool} (whoever runs this server decides)")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permissions(allow: Option<&[&str]>, deny: &[&str]) -> Result<Permissions, String> {
        let owned = |tools: &[&str]| tools.iter().map(|tool| (*tool).to_owned()).collect::<Vec<_>>();
        let user = User { allow: allow.map(owned), deny: owned(deny) };
        Permissions::new(&[("ann".to_owned(), user)].into(), &Registry::built_in())
    }

    #[test]
    fn a_user_may_call_what_is_allowed_and_not_denied() {
        let of_ann = permissions(Some(&["read_file", "search_code"]), &["search_code"]).unwrap();
        let may = |user: Option<&str>, tool: &str| of_ann.check(user, tool).is_ok();
        assert!(may(Some("ann"), "read_file"));
        assert!(!may(Some("ann"), "search_code") && !may(Some("ann"), "analyze_code"));
        assert!(may(Some("bob"), "analyze_code") && may(None, "search_code"));
        let denied = permissions(None, &["web_search"]).unwrap();
        assert!(denied.check(Some("ann"), "read_file").is_ok());
        let refused = denied.check(Some("ann"), "web_search").unwrap_err();
        assert_eq!(refused.detail, "ann may not call web_search (whoever runs this server decides)");
    }

    #[test]
    fn a_mistyped_tool_is_found_at_the_start() {
        let wrong = permissions(None, &["web_serch"]).unwrap_err();
        assert_eq!(wrong, "tools.users.ann.deny: there is no tool \"web_serch\"");
    }
}
