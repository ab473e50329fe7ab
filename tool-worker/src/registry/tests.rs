use std::time::Duration;

use schemas::fact::FailureClass;
use serde_json::json;

use super::*;

fn refusal(name: &str, arguments: &str) -> Failure {
    Registry::built_in().check(name, arguments).map(|_| ()).unwrap_err()
}

#[test]
fn good_arguments_pass_and_nulls_count_as_left_out() {
    let registry = Registry::built_in();
    let checked = registry.check("read_file", r#"{"path": "a.rs", "start": 3, "end": null}"#).unwrap();
    assert_eq!(checked.tool().name, "read_file");
    assert_eq!(Value::Object(checked.arguments), json!({"path": "a.rs", "start": 3}));
}

#[test]
fn a_wrong_argument_is_named_with_what_was_expected() {
    let usage = "usage: read_file(path, start?, end?)";
    for (arguments, detail) in [
        (
            "{}",
            "argument `path` is missing, expected a string that is not empty (file to read, relative to the workspace)",
        ),
        (r#"{"path": "a", "start": "3"}"#, "argument `start` is \"3\", expected an integer of at least 1 (first line)"),
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
    let failure = refusal("web_search", r#"{"query": "x"}"#);
    assert_eq!(failure.class, FailureClass::Refused);
    assert_eq!(failure.detail, "web_search is not available: no search provider is configured on this server");
    let listing = Registry::built_in().listing();
    let unavailable: Vec<&str> =
        listing.iter().filter(|tool| tool.unavailable.is_some()).map(|tool| tool.name.as_str()).collect();
    assert_eq!(unavailable, ["web_search"]);
    assert_eq!(listing.len(), 4);
}

/// A tool as somebody else would register it.
fn plugin(parameters: Value) -> Tool {
    let like = Registry::built_in().tool("read_file").cloned().unwrap();
    Tool { name: "edit".to_owned(), description: "Edits files.".to_owned(), parameters, ..like }
}

fn refused(change: impl FnOnce(&mut Tool)) -> String {
    let mut tool = plugin(json!({"type": "object"}));
    change(&mut tool);
    Registry::default().with(tool).unwrap_err().to_string()
}

#[test]
fn a_violation_deep_inside_is_found_by_its_path() {
    let parameters = json!({"type": "object", "required": ["edits"], "additionalProperties": false, "properties": {
        "mode": {"enum": ["fast", "careful"], "description": "how"},
        "note": {"type": ["string", "null"]},
        "at": {"type": "string", "pattern": "^[0-9]+$"},
        "edits": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["line"],
            "properties": {"line": {"type": "integer", "minimum": 1, "description": "which"}}}},
        "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}});
    let registry = Registry::default().with(plugin(parameters)).unwrap();
    let usage = "usage: edit(mode?, note?, at?, edits, either?)";
    for (arguments, detail) in [
        (json!({"edits": [{"line": 0}]}), "argument `edits.0.line` is 0, expected an integer of at least 1 (which)"),
        (
            json!({"edits": [{"line": 1}, {}]}),
            "argument `edits.1.line` is missing, expected an integer of at least 1 (which)",
        ),
        (json!({"edits": 7}), "argument `edits` is 7, expected a list"),
        (
            json!({"edits": [{"line": 1}], "mode": "slow"}),
            "argument `mode` is \"slow\", expected one of \"fast\", \"careful\" (how)",
        ),
        (json!({"edits": [{"line": 1}], "at": "x"}), "argument `at` is \"x\", expected a string that matches ^[0-9]+$"),
    ] {
        let failure = registry.check("edit", &arguments.to_string()).unwrap_err();
        assert_eq!(failure.detail, format!("{detail}; {usage}"), "{arguments}");
    }
    let either = registry.check("edit", r#"{"edits": [{"line": 1}], "either": true}"#).unwrap_err().detail;
    assert!(either.starts_with("argument `either` is true, expected what satisfies `anyOf`"), "{either}");
    // A null that the schema allows is no argument left out.
    let checked = registry.check("edit", r#"{"edits": [{"line": 1}], "note": null}"#).unwrap();
    assert_eq!(checked.arguments.get("note"), Some(&Value::Null));
}

#[test]
fn a_tool_that_is_not_well_formed_is_refused_with_the_field() {
    assert_eq!(
        refused(|t| t.name = "Edit!".to_owned()),
        "tool \"Edit!\": a name has 1 to 64 lower-case letters, digits, `-` or `_`"
    );
    assert_eq!(
        refused(|t| t.description = " ".to_owned()),
        "tool edit: `description` is empty: say what the tool does, for the model"
    );
    assert!(refused(|t| t.description = "x".repeat(5_000)).contains("more than 4096 bytes"));
    assert!(refused(|t| t.timeout = Duration::ZERO).contains("`timeout` is zero"));
    assert!(refused(|t| t.parameters = json!({"type": "string"})).contains("`parameters` is no schema of an object"));
    let wrong = refused(|t| t.parameters = json!({"type": "object", "properties": {"a": {"type": "text"}}}));
    assert!(wrong.starts_with("tool edit: `parameters` is no JSON schema at /properties/a/type: "), "{wrong}");
    let elsewhere =
        refused(|t| t.parameters = json!({"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:1/x"}}}));
    assert!(
        elsewhere.starts_with("tool edit: `parameters` is no JSON schema"),
        "nothing is fetched for a schema: {elsewhere}"
    );
    let explodes = refused(|t| t.parameters["properties"] = json!({"a": {"type": "string", "pattern": "(a+)+\\1$"}}));
    assert!(explodes.contains("`parameters` is no JSON schema"), "patterns take linear time: {explodes}");
    let registry = Registry::default().with(plugin(json!({"type": "object"}))).unwrap();
    assert_eq!(registry.with(plugin(json!({"type": "object"}))).unwrap_err(), Error::Taken("edit".to_owned()));
}

#[test]
fn a_structured_result_is_held_against_its_schema() {
    let result = json!({"type": "object", "required": ["lines"], "properties": {"lines": {"type": "integer"}}});
    let tool = Tool { result: Some(result), ..plugin(json!({"type": "object"})) };
    let checked = Registry::default().with(tool).unwrap().check("edit", "{}").unwrap();
    assert_eq!(checked.check_result(r#"{"lines": 3}"#), Ok(()));
    let promised = "edit answered something else than it promises: ";
    let wrong = |text: &str| checked.check_result(text).unwrap_err().detail;
    assert_eq!(wrong("{}"), format!("{promised}field `lines` is missing, expected an integer"));
    assert_eq!(wrong(r#"{"lines": "3"}"#), format!("{promised}field `lines` is \"3\", expected an integer"));
    assert!(wrong("three lines").starts_with(&format!("{promised}no JSON (")));
    let free = Registry::built_in().check("read_file", r#"{"path": "a"}"#).unwrap();
    assert_eq!(free.check_result("three lines"), Ok(()));
}

#[test]
fn the_listing_says_what_a_call_may_do() {
    let always = Registry::built_in().asking(&["web_search".to_owned(), "edit".to_owned()]);
    let listed = |name: &str| always.listing().into_iter().find(|tool| tool.name == name).unwrap();
    let (read, web) = (listed("read_file"), listed("web_search"));
    assert_eq!((read.effect, read.approval), (Some(SideEffect::ReadsWorkspace), Some(Approval::AgentType)));
    assert_eq!((read.permissions, read.timeout_ms), (vec!["workspace:read".to_owned()], Some(10_000)));
    assert_eq!((web.effect, web.approval), (Some(SideEffect::ReachesNetwork), Some(Approval::Always)));
    assert_eq!(web.permissions, ["network:public"]);
    // Also of a tool that comes later.
    assert_eq!(always.asked_for_and_missing().collect::<Vec<_>>(), ["edit"]);
    let always = always.with(plugin(json!({"type": "object"}))).unwrap();
    assert_eq!(
        (always.tool("edit").unwrap().approval, always.asked_for_and_missing().next()),
        (Approval::Always, None)
    );
}
