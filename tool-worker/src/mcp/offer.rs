//! What a server offers, as tools of this worker. Pure.
//!
//! A server's word about what its tools do is a hint and no more: a tool that says it only reads counts as one that asks
//! somebody else, so that nothing of it is taken for the truth later, and any other as one that acts elsewhere.

use std::collections::BTreeSet;
use std::time::Duration;

use rmcp::model;
use schemas::subject;
use serde_json::{Map, Value, json};

use crate::plugins::RESULT_BYTES_MAX;
use crate::registry::{Approval, Means, Permission, Registry, SideEffect, Tool};
use crate::visible::visible_owned;

/// Tools of one server at most.
const TOOLS_MAX: usize = 128;
/// Longest schema, as JSON.
const SCHEMA_BYTES_MAX: usize = 64 * 1024;
/// Longest description; the rest is cut off, since it stands in the prompt of everybody who may call the tool.
const DESCRIPTION_BYTES_MAX: usize = 2 * 1024;

/// What holds for all tools of a server.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    /// The server's name.
    pub(super) server: String,
    /// Of its tools only these.
    pub(super) only: Option<Vec<String>>,
    /// Whether a person must allow each call.
    pub(super) approve: bool,
    /// Wall time of a call.
    pub(super) timeout: Duration,
}

/// One tool of a server.
#[derive(Debug, Clone)]
pub(super) struct Offered {
    /// By the name that the server gives it.
    pub(super) theirs: String,
    /// As it stands in the registry, but for what carries it out.
    pub(super) tool: Tool,
}

impl Offered {
    /// Whether a call that broke off may be made again.
    pub(super) fn reads_only(&self) -> bool {
        self.tool.effect == SideEffect::ReachesNetwork
    }
}

/// The tools that can be offered, and why others cannot.
pub(super) fn tools(listed: &[model::Tool], terms: &Terms) -> (Vec<Offered>, Vec<String>) {
    let (mut offered, mut refused, mut names) = (Vec::new(), Vec::new(), BTreeSet::new());
    if listed.len() > TOOLS_MAX {
        refused.push(format!("it has {} tools, of which the first {TOOLS_MAX} are offered", listed.len()));
    }
    let wanted =
        |tool: &&model::Tool| terms.only.as_ref().is_none_or(|only| only.iter().any(|name| *name == tool.name));
    for tool in listed.iter().filter(wanted).take(TOOLS_MAX) {
        match offer(tool, terms) {
            Ok(offer) if !names.insert(offer.tool.name.clone()) => {
                refused.push(format!("{} would be {}, as another one is", shown(&tool.name), offer.tool.name));
            }
            Ok(offer) => offered.push(offer),
            Err(reason) => refused.push(format!("{}: {reason}", shown(&tool.name))),
        }
    }
    for name in terms.only.iter().flatten() {
        if listed.iter().all(|tool| tool.name != *name) {
            refused.push(format!("it has no tool {name}, which `tools` names"));
        }
    }
    (offered, refused)
}

fn offer(tool: &model::Tool, terms: &Terms) -> Result<Offered, String> {
    let name = format!("{}_{}", terms.server, mapped(&tool.name));
    if subject::token(&name) != name {
        return Err(format!("it would be {}, and a name has at most 64 characters", shown(&name)));
    }
    let parameters = schema(&tool.input_schema)?;
    let result = tool.output_schema.as_ref().map(|result| match bytes(result) {
        bytes if bytes > SCHEMA_BYTES_MAX => Err(too_long(bytes)),
        _ => Ok(Value::Object(Map::clone(result))),
    });
    let result = result.transpose()?;
    let annotations = tool.annotations.as_ref();
    let reads_only = annotations.and_then(|annotations| annotations.read_only_hint) == Some(true);
    let ours = Tool {
        name,
        description: description(tool, &terms.server),
        parameters,
        result,
        effect: if reads_only { SideEffect::ReachesNetwork } else { SideEffect::ActsElsewhere },
        approval: if terms.approve { Approval::Always } else { Approval::AgentType },
        permissions: [Permission::Server(terms.server.clone())].into(),
        timeout: terms.timeout,
        result_bytes_max: RESULT_BYTES_MAX,
        unavailable: None,
        means: Means::Runner,
    };
    Registry::default().with(ours.clone()).map_err(|error| error.to_string())?;
    Ok(Offered { theirs: tool.name.to_string(), tool: ours })
}

/// A name as a token of a subject: what cannot stand there is an underscore.
fn mapped(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' { c } else { '_' };
    name.chars().map(|c| plain(c.to_ascii_lowercase())).collect()
}

/// A schema with what every schema of arguments says.
fn schema(schema: &Map<String, Value>) -> Result<Value, String> {
    let bytes = bytes(schema);
    if bytes > SCHEMA_BYTES_MAX {
        return Err(too_long(bytes));
    }
    let mut schema = schema.clone();
    schema.entry("type").or_insert_with(|| json!("object"));
    Ok(Value::Object(schema))
}

fn bytes(schema: &Map<String, Value>) -> usize {
    serde_json::to_vec(schema).map_or(usize::MAX, |json| json.len())
}

fn too_long(bytes: usize) -> String {
    format!("it has a schema of {bytes} bytes, at most {SCHEMA_BYTES_MAX} are taken")
}

fn description(tool: &model::Tool, server: &str) -> String {
    let said = tool.description.as_deref().map(str::trim).filter(|text| !text.is_empty());
    let titled = tool.title.as_deref().map(str::trim).filter(|text| !text.is_empty());
    let text = said.or(titled).map_or_else(|| format!("{} of the server {server}.", tool.name), str::to_owned);
    let text = visible_owned(text);
    match text.len() > DESCRIPTION_BYTES_MAX {
        true => format!("{}…", &text[..text.floor_char_boundary(DESCRIPTION_BYTES_MAX)]),
        false => text,
    }
}

/// A name that somebody else gave, as it may be shown.
fn shown(name: &str) -> String {
    visible_owned(name.chars().take(80).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> Terms {
        Terms { server: "time".into(), only: None, approve: false, timeout: Duration::from_secs(1) }
    }

    fn listed(tools: Value) -> Vec<model::Tool> {
        serde_json::from_value(tools).unwrap()
    }

    #[test]
    fn tools_get_the_server_before_their_names_and_its_schemas() {
        let schema = json!({"properties": {"zone": {"type": "string"}}});
        let result = json!({"type": "object", "required": ["now"]});
        let given = json!([{"name": "Get.Now", "description": " Says\u{200b} it. ", "inputSchema": schema, "outputSchema": result}]);
        let (offered, refused) = tools(&listed(given), &terms());
        assert_eq!((offered.len(), refused), (1, vec![]));
        let Offered { theirs, tool } = &offered[0];
        assert_eq!((theirs.as_str(), tool.name.as_str()), ("Get.Now", "time_get_now"));
        assert_eq!(tool.description, "Says\\u{200b} it.", "nothing hidden in it");
        assert_eq!(tool.parameters["type"], "object", "said where the server left it out");
        assert_eq!(tool.result, Some(result));
        assert_eq!(tool.permissions, [Permission::Server("time".into())].into());
    }

    #[test]
    fn a_hint_never_makes_a_tool_pure() {
        let with = |annotations: Value| json!([{"name": "t", "inputSchema": {}, "annotations": annotations}]);
        for (annotations, effect) in [
            (json!(null), SideEffect::ActsElsewhere),
            (json!({}), SideEffect::ActsElsewhere),
            (json!({"idempotentHint": true, "destructiveHint": false}), SideEffect::ActsElsewhere),
            (json!({"readOnlyHint": false}), SideEffect::ActsElsewhere),
            (json!({"readOnlyHint": true, "openWorldHint": false, "idempotentHint": true}), SideEffect::ReachesNetwork),
        ] {
            let (offered, _) = tools(&listed(with(annotations.clone())), &terms());
            assert_eq!(offered[0].tool.effect, effect, "{annotations}");
            assert!(!offered[0].tool.effect.is_pure());
            assert_eq!(offered[0].reads_only(), effect == SideEffect::ReachesNetwork);
        }
    }

    #[test]
    fn what_cannot_be_offered_is_refused_by_name_and_the_rest_is_offered() {
        let given = json!([
            {"name": "a b", "inputSchema": {}},
            {"name": "a_b", "inputSchema": {}},
            {"name": "x".repeat(80), "inputSchema": {}},
            {"name": "list", "inputSchema": {"type": "array"}},
            {"name": "odd", "inputSchema": {"properties": {"a": {"$ref": "http://example.com/schema"}}}},
            {"name": "huge", "inputSchema": {"description": "x".repeat(70_000)}},
            {"name": "good", "inputSchema": {}},
        ]);
        let (offered, refused) = tools(&listed(given), &terms());
        let names: Vec<&str> = offered.iter().map(|offered| offered.tool.name.as_str()).collect();
        assert_eq!(names, ["time_a_b", "time_good"]);
        assert_eq!(refused.len(), 5, "{refused:?}");
        assert_eq!(refused[0], "a_b would be time_a_b, as another one is");
        assert!(refused[1].ends_with("and a name has at most 64 characters"), "{}", refused[1]);
        assert!(refused[2].contains("`parameters` is no schema of an object"), "{}", refused[2]);
        assert!(refused[3].starts_with("odd: "), "{}", refused[3]);
        assert!(refused[4].starts_with("huge: it has a schema of 70"), "{}", refused[4]);
    }

    #[test]
    fn only_what_is_named_is_offered_where_something_is() {
        let given = listed(json!([{"name": "a", "inputSchema": {}}, {"name": "b", "inputSchema": {}}]));
        let terms = Terms { only: Some(vec!["b".into(), "c".into()]), approve: true, ..terms() };
        let (offered, refused) = tools(&given, &terms);
        assert_eq!(offered.len(), 1);
        assert_eq!((offered[0].tool.name.as_str(), offered[0].tool.approval), ("time_b", Approval::Always));
        assert_eq!(refused, ["it has no tool c, which `tools` names"]);
    }
}
