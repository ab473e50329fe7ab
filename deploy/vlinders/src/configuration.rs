//! `vlinders config`: what every setting is, where it comes from, and whether all of them can be used.

use std::process::ExitCode;

use serde_json::{Map, Value, json};

use crate::cli::{Config, ConfigCommand};
use crate::settings::{Settings, shown};

/// Where a value stands that nobody gave.
const DEFAULT: &str = "default";

pub(crate) fn run(options: &Config) -> anyhow::Result<ExitCode> {
    match &options.command {
        ConfigCommand::Show { section } => show(options, section.as_deref()),
        ConfigCommand::Check => check(options),
    }
}

/// One line a setting: its name, its value, its origin.
fn show(options: &Config, section: Option<&str>) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(options.config.as_deref(), Vec::new())?;
    let all = settings.all()?;
    if let Some(section) = section.filter(|wanted| !all.contains_key(*wanted)) {
        let known: Vec<&String> = all.keys().collect();
        anyhow::bail!(crate::settings::Usage(format!("there is no section {section}; there are {known:?}")));
    }
    let wanted = all.iter().filter(|(name, _)| section.is_none_or(|section| section == *name));
    let mut found = Vec::new();
    for (name, values) in wanted {
        let values = values.as_object().cloned().unwrap_or_default();
        for (key, value) in values {
            let name = format!("{name}.{key}");
            let origin = settings.origin(&name).map_or_else(|| DEFAULT.to_owned(), ToString::to_string);
            found.push((name, hidden(&key, value), origin));
        }
    }
    if options.json {
        let found = found.iter().map(|(name, value, origin)| json!({"key": name, "value": value, "origin": origin}));
        println!("{}", Value::Array(found.collect()));
        return Ok(ExitCode::SUCCESS);
    }
    let width = found.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    for (name, value, origin) in &found {
        let value = if value.is_null() { "none".to_owned() } else { value.to_string() };
        let origin = if origin == DEFAULT { String::new() } else { format!("   # {origin}") };
        println!("{name:<width$} = {value}{origin}");
    }
    Ok(ExitCode::SUCCESS)
}

/// A value without what nobody should see: variables of programs hold keys under any name.
fn hidden(key: &str, value: Value) -> Value {
    match value {
        Value::Object(table) => {
            let table = table.into_iter().map(|(key, value)| (key.clone(), hidden(&key, value)));
            Value::Object(table.collect::<Map<_, _>>())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(|value| hidden(key, value)).collect()),
        value => serde_json::to_value(&value)
            .ok()
            .and_then(|value| toml::Value::try_from(value).ok())
            .map_or(value, |value| json!(shown(key, &value))),
    }
}

/// Reads all layers and checks what each service would check when it starts.
fn check(options: &Config) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(options.config.as_deref(), Vec::new())?;
    settings.check()?;
    let given = settings.given();
    if options.json {
        println!("{}", json!({"ok": true, "settings": given}));
    } else {
        println!("{given} settings are given and right; everything else is a default (`vlinders config show`)");
    }
    Ok(ExitCode::SUCCESS)
}
