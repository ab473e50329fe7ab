//! What an answer must be: `response_format` and `tool_choice`, as OpenAI's API has them.

use schemas::api::ChatRequest;
use schemas::chat::{ResponseFormat, ToolChoice};
use schemas::{ToolSpec, json_schema};
use serde_json::Value;

use crate::problem::Failure;

/// Tools that one request may offer: the model reads each.
const TOOLS_MAX: usize = 128;

/// The form that the text must have.
pub(super) fn response_format(request: &ChatRequest) -> Result<Option<ResponseFormat>, Failure> {
    let Some(format) = &request.response_format else { return Ok(None) };
    let format = match format.get("type").and_then(Value::as_str) {
        Some("text") => return Ok(None),
        Some("json_object") => ResponseFormat::JsonObject,
        Some("json_schema") => {
            let schema = format.pointer("/json_schema/schema").ok_or_else(|| {
                let detail = "`response_format.json_schema.schema` is missing";
                Failure::invalid(detail, "send {\"type\": \"json_schema\", \"json_schema\": {\"schema\": {…}}}")
            })?;
            check("response_format.json_schema.schema", schema)?;
            ResponseFormat::JsonSchema { schema: schema.clone() }
        }
        _ => {
            let detail = format!("response_format {format} is not carried out");
            let next = "send the type text, json_object or json_schema, or leave it out";
            return Err(Failure::new(400, "unsupported_response_format", detail, next));
        }
    };
    let asks = request.tool_choice.as_ref().and_then(Value::as_str) != Some("none");
    if !request.tools.is_empty() && asks {
        let detail = "`response_format` binds the whole answer, so that no tool could be called";
        return Err(Failure::invalid(detail, "leave `tools` out, or send `tool_choice`: \"none\""));
    }
    Ok(Some(format))
}

/// Whether tools may or must be called; none when the model chooses.
pub(super) fn tool_choice(request: &ChatRequest) -> Result<Option<ToolChoice>, Failure> {
    let Some(choice) = &request.tool_choice else { return Ok(None) };
    let named = choice.pointer("/function/name").and_then(Value::as_str);
    let must = match (choice.as_str(), named) {
        (Some("auto"), _) => return Ok(None),
        (Some("none"), _) => return Ok(Some(ToolChoice::None)),
        (Some("required"), _) => ToolChoice::Required,
        (None, Some(name)) => ToolChoice::Function { name: name.to_owned() },
        _ => {
            let detail = format!("`tool_choice` is {choice}");
            let next =
                "send \"auto\", \"none\", \"required\", or {\"type\": \"function\", \"function\": {\"name\": …}}";
            return Err(Failure::invalid(detail, next));
        }
    };
    if request.tools.is_empty() {
        return Err(Failure::invalid("`tool_choice` asks for a call, and there are no `tools`", "offer at least one"));
    }
    if let ToolChoice::Function { name } = &must
        && !request.tools.iter().any(|tool| tool.function.name == *name)
    {
        let names: Vec<String> = request.tools.iter().map(|tool| tool.function.name.clone()).collect();
        return Err(Failure::invalid(
            format!("`tool_choice` names {name:?}, which is not offered"),
            format!("`tools` offers: {}", names.join(", ")),
        ));
    }
    Ok(Some(must))
}

/// The arguments' schemas must be within their bounds.
pub(super) fn check_tools(tools: &[ToolSpec]) -> Result<(), Failure> {
    if tools.len() > TOOLS_MAX {
        let detail = format!("`tools` offers {}, at most {TOOLS_MAX} are taken", tools.len());
        return Err(Failure::invalid(detail, "offer fewer"));
    }
    tools
        .iter()
        .enumerate()
        .filter(|(_, tool)| !tool.function.parameters.is_null())
        .try_for_each(|(i, tool)| check(&format!("tools[{i}].function.parameters"), &tool.function.parameters))
}

fn check(field: &str, schema: &Value) -> Result<(), Failure> {
    json_schema::check(schema).map_err(|why| {
        Failure::new(400, "unusable_schema", format!("`{field}`: {why}"), "send a smaller or simpler schema")
    })
}
