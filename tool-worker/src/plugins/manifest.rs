//! Reads the file of a tool. Pure: the text comes as an argument.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemas::agent::Refused;
use serde::Deserialize;
use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::{Program, Quota, RESULT_BYTES_MAX, Uses};
use crate::registry::{self, Approval, Means, Registry, SideEffect, Tool};

/// What a file says.
#[derive(Debug, Clone)]
pub(super) struct Manifest {
    /// The tool, but for what its program needs.
    pub(super) tool: Tool,
    /// Its program.
    pub(super) program: Program,
    /// What that does with workspaces.
    pub(super) uses: Uses,
}

/// A field of a file that cannot be what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// The field, with its table before it.
    pub(crate) field: String,
    /// What is wrong with it, and what would be right; goes on where the name of the field ends.
    pub(crate) reason: String,
}

/// The fields of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    description: String,
    command: Vec<String>,
    #[serde(default)]
    parameters: Option<toml::Value>,
    #[serde(default)]
    result: Option<toml::Value>,
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    effect: Option<Effect>,
    #[serde(default)]
    approval: Asks,
    #[serde(default)]
    workspace: Uses,
    #[serde(default)]
    reads: Vec<PathBuf>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    limits: Quota,
}

/// A side effect by its name on the wire, but for unknown names: here they are mistakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Effect {
    Computes,
    ReadsWorkspace,
    ReachesNetwork,
    ChangesWorkspace,
    ActsElsewhere,
}

/// The same for approvals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Asks {
    #[default]
    AgentType,
    Always,
}

/// Reads the file with this stem.
///
/// # Errors
/// It describes no tool; with its line and the reason.
pub(super) fn read(stem: &str, text: &str) -> Result<Manifest, Refused> {
    let file: File = toml::from_str(text).map_err(|error| Refused {
        file: file_of(stem),
        line: error.span().map(|span| line_at(text, span.start)),
        reason: error.message().to_owned(),
    })?;
    manifest(stem, file).map_err(|wrong| refusal(stem, text, &wrong))
}

/// What is wrong, with the file and the line.
pub(super) fn refusal(stem: &str, text: &str, wrong: &Wrong) -> Refused {
    let reason = format!("`{}` {}", wrong.field, wrong.reason);
    Refused { file: file_of(stem), line: line_of(text, &wrong.field), reason }
}

/// The name of the file with this stem.
pub(super) fn file_of(stem: &str) -> String {
    format!("{stem}.toml")
}

fn manifest(stem: &str, file: File) -> Result<Manifest, Wrong> {
    let wrong = |field: &str, reason: String| Wrong { field: field.to_owned(), reason };
    if file.name != stem {
        let reason =
            format!("is {:?}: call the file {}, so that each name has one file", file.name, file_of(&file.name));
        return Err(wrong("name", reason));
    }
    let no_arguments = || serde_json::json!({"type": "object", "properties": {}, "additionalProperties": false});
    let parameters = file.parameters.map(|schema| json(schema).map_err(|why| wrong("parameters", why))).transpose()?;
    let result = file.result.map(|schema| json(schema).map_err(|why| wrong("result", why))).transpose()?;
    let effect = effect(file.effect, file.workspace).map_err(|why| wrong("effect", why))?;
    let tool = Tool {
        name: file.name,
        description: file.description,
        parameters: parameters.unwrap_or_else(no_arguments),
        result,
        effect,
        approval: match file.approval {
            Asks::AgentType => Approval::AgentType,
            Asks::Always => Approval::Always,
        },
        permissions: [].into(),
        // Set when it is known what commands get.
        timeout: Duration::from_secs(1),
        result_bytes_max: RESULT_BYTES_MAX,
        unavailable: None,
        means: Means::Runner,
    };
    // What any tool must be; whether its name is free is seen when it is registered.
    if let Err(error) = Registry::default().with(tool.clone()) {
        return Err(match error {
            registry::Error::Field { field, reason, .. } => wrong(field, reason),
            registry::Error::Name(_) => {
                wrong("name", "must have 1 to 64 lower-case letters, digits, `-` or `_`".to_owned())
            }
            registry::Error::Taken(_) => unreachable!("an empty registry has no names"),
        });
    }
    let program = Program {
        command: file.command,
        image: file.image,
        reads: file.reads,
        environment: file.environment,
        quota: file.limits,
    };
    program.check()?;
    Ok(Manifest { tool, program, uses: file.workspace })
}

/// What a call changes: what its author says, if that can be; else the worst that can be.
fn effect(said: Option<Effect>, uses: Uses) -> Result<SideEffect, String> {
    match (said, uses) {
        (None, Uses::Write) | (Some(Effect::ChangesWorkspace), Uses::Write) => Ok(SideEffect::ChangesWorkspace),
        (None | Some(Effect::ActsElsewhere), _) => Ok(SideEffect::ActsElsewhere),
        (Some(Effect::Computes), Uses::None) => Ok(SideEffect::Computes),
        (Some(Effect::ReadsWorkspace), Uses::Read) => Ok(SideEffect::ReadsWorkspace),
        (Some(Effect::Computes), _) => Err("is \"computes\", which needs workspace = \"none\"".to_owned()),
        (Some(Effect::ReadsWorkspace), _) => Err("is \"reads_workspace\", which needs workspace = \"read\"".to_owned()),
        (Some(Effect::ChangesWorkspace), _) => {
            Err("is \"changes_workspace\", which needs workspace = \"write\"".to_owned())
        }
        (Some(Effect::ReachesNetwork), _) => {
            Err("is \"reaches_network\", and no box has a network: a server of tools may (tools.mcp)".to_owned())
        }
    }
}

/// A schema, written as a table or as JSON in a text.
fn json(schema: toml::Value) -> Result<Value, String> {
    match schema {
        toml::Value::String(text) => serde_json::from_str(&text).map_err(|error| format!("is no JSON: {error}")),
        toml::Value::Table(_) if holds_a_date(&schema) => Err("holds a date, which JSON does not have".to_owned()),
        toml::Value::Table(table) => serde_json::to_value(table).map_err(|error| format!("is no JSON: {error}")),
        other => Err(format!("is a {}, expected a table, or JSON in a text", other.type_str())),
    }
}

fn holds_a_date(value: &toml::Value) -> bool {
    match value {
        toml::Value::Datetime(_) => true,
        toml::Value::Table(table) => table.values().any(holds_a_date),
        toml::Value::Array(values) => values.iter().any(holds_a_date),
        _ => false,
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// The line that sets a field; none when it is left out.
fn line_of(text: &str, field: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut line = None;
    for step in field.split('.') {
        let (key, value) = table.iter().find(|(key, _)| key.get_ref() == step)?;
        line = Some(line_at(text, key.span().start));
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    line
}

#[cfg(test)]
mod tests;
