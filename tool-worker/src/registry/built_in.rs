//! The tools that come with the worker. Three of them a shipped model was trained with: their words stand in its prompts.

use std::time::Duration;

use schemas::rpc::RARE_ARGUMENT;
use serde_json::{Value, json};

use super::{Approval, Means, Permission, SideEffect, Tool};

/// Wall time of a built-in: a large repository is searched in a second or two.
const BUILT_IN_TIMEOUT: Duration = Duration::from_secs(10);
/// Result text of a built-in; a model's window is the scarce thing.
const RESULT_BYTES_MAX: usize = 32 * 1024;

/// Marks an argument that few calls need.
fn rare(mut schema: Value) -> Value {
    schema[RARE_ARGUMENT] = json!(true);
    schema
}

pub(super) fn tools() -> Vec<Tool> {
    let path = |what: &str| json!({"type": "string", "minLength": 1, "description": what});
    let query = |what: &str| json!({"type": "string", "minLength": 1, "maxLength": 1000, "description": what});
    vec![
        reads(
            "search_code",
            "Search the workspace for text; lines that define it come first.",
            &json!({
                "query": query("text to find, or a pattern when regex is true"),
                "path": path("file or directory to search, relative to the workspace"),
                "regex": {"type": "boolean", "description": "whether query is a regular expression"},
                "max": {"type": "integer", "minimum": 1, "maximum": 1000, "description": "matches to show, 5 unless given"},
                "offset": rare(json!({"type": "integer", "minimum": 0, "description": "matches to leave out, to see those after them"})),
                "globs": rare(json!({
                    "type": "array",
                    "items": {"type": "string", "minLength": 1, "maxLength": 200},
                    "maxItems": 32,
                    "description": "names of files to search, such as *.rs, or with ! in front not to",
                })),
                "case": rare(json!({
                    "type": "string",
                    "enum": ["smart", "sensitive", "ignore"],
                    "description": "smart unless given: it counts if query has a capital",
                })),
                "context": rare(json!({"type": "integer", "minimum": 0, "maximum": 20, "description": "lines to show around each match"})),
                "columns": rare(json!({"type": "boolean", "description": "whether to say where in its line each match begins"})),
            }),
            &["query"],
        ),
        reads(
            "read_file",
            "Read a file, or some of its lines.",
            &json!({
                "path": path("file to read, relative to the workspace"),
                "start": {"type": "integer", "minimum": 1, "description": "first line"},
                "end": {"type": "integer", "minimum": 1, "description": "last line, included"},
            }),
            &["path"],
        ),
        reads(
            "analyze_code",
            "List what a source file imports and defines, or the files of a directory.",
            &json!({"path": path("source file or directory, relative to the workspace")}),
            &["path"],
        ),
        Tool {
            unavailable: Some("no search provider is configured on this server".to_owned()),
            effect: SideEffect::ReachesNetwork,
            permissions: [Permission::PublicNetwork].into(),
            ..reads("web_search", "Search the web.", &json!({"query": query("what to look for")}), &["query"])
        },
    ]
}

/// A tool that only reads the workspace, in a box.
fn reads(name: &str, description: &str, properties: &Value, required: &[&str]) -> Tool {
    Tool {
        name: name.to_owned(),
        description: description.to_owned(),
        parameters: json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false}),
        result: None,
        effect: SideEffect::ReadsWorkspace,
        approval: Approval::AgentType,
        permissions: [Permission::ReadWorkspace].into(),
        timeout: BUILT_IN_TIMEOUT,
        result_bytes_max: RESULT_BYTES_MAX,
        unavailable: None,
        means: Means::Runner,
    }
}
