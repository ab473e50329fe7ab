//! The tools there are: what each is called, what it takes, what it may cost.
//!
//! Every call passes [`Registry::check`] before anything runs. A model reads the refusals, so they name the argument
//! and say what was expected. Tools that cannot be used here stay listed with the reason, so that nobody has to guess.

use std::collections::BTreeMap;
use std::time::Duration;

use jsonschema::Validator;
use jsonschema::error::ValidationErrorKind;
use schemas::rpc;
pub use schemas::rpc::{Approval, SideEffect};
use serde_json::{Map, Value, json};

use crate::failure::Failure;

/// One tool.
#[derive(Debug, Clone)]
pub struct Tool {
    /// Its name, a subject token.
    pub name: &'static str,
    /// What it does, for the model.
    pub description: &'static str,
    /// JSON schema of its arguments.
    pub parameters: Value,
    /// What a call changes or reaches.
    pub effect: SideEffect,
    /// Wall time of one call.
    pub timeout: Duration,
    /// Bytes of result text.
    pub result_bytes_max: usize,
    /// Why it cannot be used here; none when it can.
    pub unavailable: Option<String>,
    /// What its result text says, for people.
    pub result: &'static str,
    /// Who must allow a call.
    pub approval: Approval,
}

impl Tool {
    /// What a call is permitted, by name.
    fn permissions(&self) -> Vec<String> {
        let permitted = match self.effect {
            SideEffect::ReadsWorkspace => "workspace:read",
            SideEffect::ReachesNetwork => "network:public",
        };
        vec![permitted.to_owned()]
    }
}

/// Longest arguments accepted, as JSON text. The longest useful one is a regex.
const ARGUMENTS_BYTES_MAX: usize = 64 * 1024;
/// Wall time of a built-in: a large repository is searched in a second or two.
const BUILT_IN_TIMEOUT: Duration = Duration::from_secs(10);
/// Wall time of a tool that waits for others: the longest that fetching may be allowed, and what is made of it.
const NETWORK_TIMEOUT: Duration = Duration::from_secs(130);
/// Result text of a built-in; a model's window is the scarce thing.
const RESULT_BYTES_MAX: usize = 32 * 1024;

/// All tools, each with its compiled schema.
#[derive(Debug)]
pub struct Registry {
    tools: BTreeMap<&'static str, (Tool, Validator)>,
}

impl Registry {
    /// The built-in tools.
    #[must_use]
    pub fn built_in() -> Self {
        let with_validator = |tool: Tool| {
            let validator =
                jsonschema::validator_for(&tool.parameters).expect("built-in schemas are valid, a test compiles them");
            (tool.name, (tool, validator))
        };
        Self { tools: built_ins().into_iter().map(with_validator).collect() }
    }

    /// Has a person allow each call of these tools.
    ///
    /// # Errors
    /// One of them is not there.
    pub(crate) fn require_approval(&mut self, names: &[String]) -> Result<(), String> {
        for name in names {
            let no_such = || format!("tools.approve: there is no tool {name:?}");
            self.tools.get_mut(name.as_str()).ok_or_else(no_such)?.0.approval = Approval::Always;
        }
        Ok(())
    }

    /// Says why a tool cannot be used here, or that it can.
    pub(crate) fn set_unavailable(&mut self, name: &str, reason: Option<String>) {
        if let Some((tool, _)) = self.tools.get_mut(name) {
            tool.unavailable = reason;
        }
    }

    /// Every tool in alphabetical order.
    pub fn tools(&self) -> impl Iterator<Item = &Tool> {
        self.tools.values().map(|(tool, _)| tool)
    }

    /// The registry as it is told to others.
    #[must_use]
    pub fn listing(&self) -> Vec<rpc::Tool> {
        let listed = |tool: &Tool| rpc::Tool {
            name: tool.name.to_owned(),
            description: tool.description.to_owned(),
            parameters: tool.parameters.clone(),
            unavailable: tool.unavailable.clone(),
            result: Some(json!({"type": "string", "description": tool.result})),
            effect: Some(tool.effect),
            approval: Some(tool.approval),
            permissions: tool.permissions(),
            timeout_ms: u64::try_from(tool.timeout.as_millis()).ok(),
        };
        self.tools().map(listed).collect()
    }

    /// Finds the tool and reads its arguments, given as JSON text. An argument that is `null` counts as left out:
    /// models write that for "no opinion".
    pub fn check(&self, name: &str, arguments: &str) -> Result<(&Tool, Map<String, Value>), Failure> {
        let (tool, validator) = self.tools.get(name).ok_or_else(|| self.no_such_tool(name))?;
        if let Some(reason) = &tool.unavailable {
            return Err(Failure::refused(format!("{name} is not available: {reason}")));
        }
        let arguments = read_arguments(tool, arguments)?;
        let instance = Value::Object(arguments);
        let wrong: Vec<String> = validator.iter_errors(&instance).map(|error| in_words(tool, &error)).take(4).collect();
        if !wrong.is_empty() {
            return Err(Failure::bad_request(format!("{}; usage: {}", wrong.join("; "), usage(tool))));
        }
        match instance {
            Value::Object(arguments) => Ok((tool, arguments)),
            _ => unreachable!("built as an object above"),
        }
    }

    fn no_such_tool(&self, name: &str) -> Failure {
        let shown: String = name.chars().take(64).collect();
        let mut names: Vec<&str> =
            self.tools().filter(|tool| tool.unavailable.is_none()).map(|tool| tool.name).collect();
        // The nearest comes first: a model that takes the first of the list takes the right one.
        names.sort_by(|a, b| strsim::jaro_winkler(&shown, b).total_cmp(&strsim::jaro_winkler(&shown, a)));
        Failure::unknown(format!("no such tool: {shown} (available: {})", names.join(", ")))
    }
}

fn read_arguments(tool: &Tool, text: &str) -> Result<Map<String, Value>, Failure> {
    if text.len() > ARGUMENTS_BYTES_MAX {
        return Err(Failure::bad_request(format!(
            "arguments are {} bytes, the limit is {ARGUMENTS_BYTES_MAX}",
            text.len()
        )));
    }
    let text = if text.trim().is_empty() { "{}" } else { text };
    match serde_json::from_str(text) {
        Ok(Value::Object(arguments)) => Ok(arguments.into_iter().filter(|(_, value)| !value.is_null()).collect()),
        Ok(_) => Err(Failure::bad_request(format!("arguments must be a JSON object; usage: {}", usage(tool)))),
        Err(error) => Err(Failure::bad_request(format!("arguments are not JSON ({error}); usage: {}", usage(tool)))),
    }
}

/// One violation, naming the argument and what was expected.
fn in_words(tool: &Tool, error: &jsonschema::ValidationError<'_>) -> String {
    let path = error.instance_path().to_string();
    let argument = path.trim_start_matches('/').replace('/', ".");
    match error.kind() {
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            format!("argument `{name}` is missing, expected {}", expected(tool, name))
        }
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            let names: Vec<String> =
                unexpected.iter().map(|name| format!("`{}`", name.chars().take(64).collect::<String>())).collect();
            format!("unknown argument {}", names.join(", "))
        }
        _ => {
            let found: String = error.instance().to_string().chars().take(64).collect();
            format!("argument `{argument}` is {found}, expected {}", expected(tool, &argument))
        }
    }
}

/// What the schema says of one argument: `an integer of at least 1 (first line to read)`.
fn expected(tool: &Tool, argument: &str) -> String {
    let schema = &tool.parameters["properties"][argument];
    let kind = match schema["type"].as_str() {
        Some("integer") => "an integer",
        Some("boolean") => "true or false",
        Some("string") => "a string that is not empty",
        _ => "another value",
    };
    let least = schema["minimum"].as_u64().map(|least| format!(" of at least {least}")).unwrap_or_default();
    let most = schema["maximum"].as_u64().map(|most| format!(" and at most {most}")).unwrap_or_default();
    let description = schema["description"].as_str().unwrap_or_default();
    format!("{kind}{least}{most} ({description})")
}

/// `read_file(path, start?, end?)`.
fn usage(tool: &Tool) -> String {
    let required: Vec<&str> =
        tool.parameters["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let names = tool.parameters["properties"].as_object().into_iter().flat_map(Map::keys);
    let shown: Vec<String> =
        names.map(|name| if required.contains(&name.as_str()) { name.clone() } else { format!("{name}?") }).collect();
    format!("{}({})", tool.name, shown.join(", "))
}

fn built_ins() -> Vec<Tool> {
    let path = |what: &str| json!({"type": "string", "minLength": 1, "description": what});
    let query = |what: &str| json!({"type": "string", "minLength": 1, "maxLength": 1000, "description": what});
    let reads = |name, description, result, properties: Value, required: Value| Tool {
        name,
        description,
        result,
        approval: Approval::AgentType,
        parameters: json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false}),
        effect: SideEffect::ReadsWorkspace,
        timeout: BUILT_IN_TIMEOUT,
        result_bytes_max: RESULT_BYTES_MAX,
        unavailable: None,
    };
    let semantic = reads(
        "semantic_search",
        "Find code by meaning.",
        "Places, best first.",
        json!({"query": query("what the code is about")}),
        json!(["query"]),
    );
    let web = reads(
        "web_search",
        "Search the web.",
        "Titles, addresses and excerpts.",
        json!({
            "query": {"type": "string", "minLength": 1, "maxLength": 400, "description": "what to look for"},
            "max": {"type": "integer", "minimum": 1, "maximum": 20, "description": "results to show, 5 unless given"},
        }),
        json!(["query"]),
    );
    let page = reads(
        "fetch_page",
        "Read a page of the web as text.",
        "The page's address, title and text, with links.",
        json!({"url": {"type": "string", "minLength": 1, "maxLength": 4096, "description": "its address, with http:// or https://"}}),
        json!(["url"]),
    );
    vec![
        reads(
            "search_code",
            "Search the workspace for text; lines that define it come first.",
            "The number of matches, then lines as `path:line: code`.",
            json!({
                "query": query("text to find, or a pattern when regex is true"),
                "path": path("file or directory to search, relative to the workspace"),
                "regex": {"type": "boolean", "description": "whether query is a regular expression"},
                "max": {"type": "integer", "minimum": 1, "maximum": 50, "description": "lines to show, 8 unless given"},
            }),
            json!(["query"]),
        ),
        reads(
            "read_file",
            "Read a file, or some of its lines.",
            "Lines as `number: code`.",
            json!({
                "path": path("file to read, relative to the workspace"),
                "start": {"type": "integer", "minimum": 1, "description": "first line"},
                "end": {"type": "integer", "minimum": 1, "description": "last line, included"},
            }),
            json!(["path"]),
        ),
        reads(
            "analyze_code",
            "List what a source file imports and defines.",
            "The number of lines, imports and symbols, a line each.",
            json!({"path": path("source file, relative to the workspace")}),
            json!(["path"]),
        ),
        Tool { unavailable: Some("this server has no vector index; use search_code".to_owned()), ..semantic },
        Tool {
            unavailable: Some("no search provider is configured on this server".to_owned()),
            effect: SideEffect::ReachesNetwork,
            timeout: NETWORK_TIMEOUT,
            ..web
        },
        Tool {
            unavailable: Some("this server fetches no pages".to_owned()),
            effect: SideEffect::ReachesNetwork,
            timeout: NETWORK_TIMEOUT,
            ..page
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::fact::FailureClass;

    fn refusal(name: &str, arguments: &str) -> Failure {
        Registry::built_in().check(name, arguments).map(|_| ()).unwrap_err()
    }

    #[test]
    fn good_arguments_pass_and_nulls_count_as_left_out() {
        let registry = Registry::built_in();
        let (tool, arguments) = registry.check("read_file", r#"{"path": "a.rs", "start": 3, "end": null}"#).unwrap();
        assert_eq!(tool.name, "read_file");
        assert_eq!(Value::Object(arguments), json!({"path": "a.rs", "start": 3}));
    }

    #[test]
    fn a_wrong_argument_is_named_with_what_was_expected() {
        let usage = "usage: read_file(path, start?, end?)";
        for (arguments, detail) in [
            (
                "{}",
                "argument `path` is missing, expected a string that is not empty (file to read, relative to the workspace)",
            ),
            (
                r#"{"path": "a", "start": "3"}"#,
                "argument `start` is \"3\", expected an integer of at least 1 (first line)",
            ),
            (r#"{"path": "a", "start": 0}"#, "argument `start` is 0, expected an integer of at least 1 (first line)"),
            (r#"{"path": "a", "line": 1}"#, "unknown argument `line`"),
            ("[1]", "arguments must be a JSON object"),
        ] {
            let failure = refusal("read_file", arguments);
            assert_eq!(failure.class, FailureClass::BadRequest);
            assert_eq!(failure.detail, format!("{detail}; {usage}"), "{arguments}");
        }
        assert!(refusal("read_file", "{\"path\"").detail.starts_with("arguments are not JSON ("));
        assert!(
            refusal("read_file", &format!("{{\"path\": \"{}\"}}", "a".repeat(70_000)))
                .detail
                .contains("the limit is 65536")
        );
    }

    #[test]
    fn an_unknown_tool_lists_the_nearest_first() {
        let failure = refusal("read_files", "{}");
        assert_eq!(failure.class, FailureClass::Unknown);
        assert_eq!(failure.detail, "no such tool: read_files (available: read_file, search_code, analyze_code)");
    }

    #[test]
    fn an_unavailable_tool_says_why_and_stays_listed() {
        let failure = refusal("semantic_search", r#"{"query": "x"}"#);
        assert_eq!(failure.class, FailureClass::Refused);
        assert_eq!(
            failure.detail,
            "semantic_search is not available: this server has no vector index; use search_code"
        );
        let listing = Registry::built_in().listing();
        let unavailable: Vec<&str> =
            listing.iter().filter(|tool| tool.unavailable.is_some()).map(|tool| tool.name.as_str()).collect();
        assert_eq!(unavailable, ["fetch_page", "semantic_search", "web_search"]);
        assert_eq!(listing.len(), 6);
    }
}
