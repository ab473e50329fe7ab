//! What is wrong with arguments and results, in words that a model can act on: where, what stands there, what belongs
//! there.

use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind;
use serde_json::{Map, Value};

use super::Tool;

/// Characters shown of what was found: enough to recognise it.
const FOUND_CHARS_MAX: usize = 64;
/// Characters of what a schema or its compiler says.
const SAID_CHARS_MAX: usize = 200;
/// Values of a list that are shown.
const VALUES_SHOWN_MAX: usize = 12;

/// One violation of a tool's parameters.
pub(super) fn argument(schema: &Value, violation: &ValidationError<'_>) -> String {
    in_words(schema, violation, "argument", "the arguments")
}

/// One violation of what a tool says of its results.
pub(super) fn result(schema: &Value, violation: &ValidationError<'_>) -> String {
    in_words(schema, violation, "field", "the result")
}

/// `read_file(path, start?, end?)`.
pub(super) fn usage(tool: &Tool) -> String {
    let required: Vec<&str> =
        tool.parameters["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let names = tool.parameters["properties"].as_object().into_iter().flat_map(Map::keys);
    let shown: Vec<String> =
        names.map(|name| if required.contains(&name.as_str()) { name.clone() } else { format!("{name}?") }).collect();
    format!("{}({})", tool.name, shown.join(", "))
}

/// The beginning of what somebody says.
pub(super) fn shortened(text: &str) -> String {
    cut(text, SAID_CHARS_MAX)
}

fn in_words(schema: &Value, violation: &ValidationError<'_>, part: &str, whole: &str) -> String {
    let path = violation.instance_path().to_string();
    let name = path.trim_start_matches('/').replace('/', ".");
    let at = if name.is_empty() { whole.to_owned() } else { format!("{part} `{name}`") };
    match violation.kind() {
        ValidationErrorKind::Required { property } => {
            let property = property.as_str().unwrap_or_default();
            let missing = if name.is_empty() { property.to_owned() } else { format!("{name}.{property}") };
            format!("{part} `{missing}` is missing, expected {}", expected(schema_at(schema, &missing)))
        }
        ValidationErrorKind::AdditionalProperties { unexpected }
        | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
            let shown = |name: &String| format!("`{}`", cut(name, FOUND_CHARS_MAX));
            let names: Vec<String> = unexpected.iter().map(shown).collect();
            let within = if name.is_empty() { String::new() } else { format!(" in `{name}`") };
            format!("unknown {part} {}{within}", names.join(", "))
        }
        kind => {
            let found = cut(&violation.instance().to_string(), FOUND_CHARS_MAX);
            let place = schema_at(schema, &name);
            // Where the schema is not a plain tree, what was violated says more than what stands beside it.
            let expected = match place.get("type").is_some() || place.get("enum").is_some() {
                true => expected(place),
                false => format!("what satisfies `{}`: {}", kind.keyword(), shortened(&violation.to_string())),
            };
            format!("{at} is {found}, expected {expected}")
        }
    }
}

/// The part of a schema that speaks of one value; `null` where no plain way leads there.
fn schema_at<'a>(schema: &'a Value, name: &str) -> &'a Value {
    name.split('.').filter(|step| !step.is_empty()).fold(schema, |schema, step| match step.parse::<usize>() {
        Ok(_) if schema["items"].is_object() => &schema["items"],
        _ => &schema["properties"][step],
    })
}

/// What a schema says of one value: `an integer of at least 1 (first line to read)`.
fn expected(schema: &Value) -> String {
    let number = |name: &str| schema[name].as_number();
    let not_empty = schema["minLength"].as_u64().is_some_and(|least| least > 0);
    let kind = match schema["type"].as_str() {
        _ if schema["enum"].is_array() => one_of(&schema["enum"]),
        Some("integer") => "an integer".to_owned(),
        Some("number") => "a number".to_owned(),
        Some("boolean") => "true or false".to_owned(),
        Some("string") if not_empty => "a string that is not empty".to_owned(),
        Some("string") => "a string".to_owned(),
        Some("array") => "a list".to_owned(),
        Some("object") => "an object".to_owned(),
        _ => "another value".to_owned(),
    };
    let least = number("minimum").map(|least| format!(" of at least {least}")).unwrap_or_default();
    let most = number("maximum").map(|most| format!(" and at most {most}")).unwrap_or_default();
    let long = number("maxLength").map(|most| format!(" of at most {most} characters")).unwrap_or_default();
    let pattern = schema["pattern"].as_str().map(|pattern| format!(" that matches {}", shortened(pattern)));
    let description = schema["description"].as_str().map(|said| format!(" ({})", shortened(said)));
    format!("{kind}{least}{most}{long}{}{}", pattern.unwrap_or_default(), description.unwrap_or_default())
}

fn one_of(values: &Value) -> String {
    let values = values.as_array().map(Vec::as_slice).unwrap_or_default();
    let shown: Vec<String> = values.iter().take(VALUES_SHOWN_MAX).map(|value| shortened(&value.to_string())).collect();
    let more = if values.len() > shown.len() { ", …" } else { "" };
    format!("one of {}{more}", shown.join(", "))
}

fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
