//! The tools there are: what each is called, what it takes, what it may cost.
//!
//! Every call passes [`Registry::check`] before anything runs. A model reads the refusals, so they name the argument
//! and say what was expected. Tools that cannot be used here stay listed with the reason, so that nobody has to guess.
//!
//! A registry does not change. Where tools come and go while the worker runs, a [`crate::toolbox::Toolbox`] holds the
//! present one, and a call that has begun keeps the one it began with.

mod built_in;
mod tool;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jsonschema::{PatternOptions, Validator};
use schemas::agent::Refused;
use schemas::{rpc, subject};
use serde_json::{Map, Value};

pub use schemas::rpc::{Approval, SideEffect};
pub use tool::{Behalf, Handler, Means, Order, Permission, Tool};

use crate::failure::Failure;

/// Longest arguments accepted, as JSON text. The longest useful one is a regex.
const ARGUMENTS_BYTES_MAX: usize = 64 * 1024;
/// Longest description of a tool: it stands in the prompt of everybody who may call it.
const DESCRIPTION_BYTES_MAX: usize = 4 * 1024;
/// Violations that one refusal names: a model mends a few at a time.
const VIOLATIONS_SHOWN_MAX: usize = 4;

/// Why a tool cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Its name is no subject token.
    #[error("tool {0:?}: a name has 1 to 64 lower-case letters, digits, `-` or `_`")]
    Name(String),
    /// There is one of that name.
    #[error("tool {0}: there is one of that name already")]
    Taken(String),
    /// One of its fields cannot be what it is.
    #[error("tool {tool}: `{field}` {reason}")]
    Field {
        /// The tool.
        tool: String,
        /// The field.
        field: &'static str,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
}

/// All tools, each with its compiled schemas. Cheap to copy.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    tools: BTreeMap<String, Arc<Entry>>,
    /// Tools for which a person must be asked, whatever they say of themselves.
    asking: BTreeSet<String>,
    /// Files and settings that should give tools and do not, or not as they are now; by name.
    refused: BTreeMap<String, Refused>,
}

/// One tool and what its calls are held against.
#[derive(Debug, Clone)]
struct Entry {
    tool: Tool,
    parameters: Validator,
    result: Option<Validator>,
}

/// A call that may be carried out.
#[derive(Debug, Clone)]
pub struct Checked {
    entry: Arc<Entry>,
    /// Its arguments, as they fit the tool.
    pub arguments: Map<String, Value>,
}

impl Registry {
    /// The built-in tools.
    #[must_use]
    pub fn built_in() -> Self {
        let tools = built_in::tools();
        tools.into_iter().fold(Self::default(), |registry, tool| {
            registry.with(tool).expect("built-in tools are well formed and named once, every test builds them")
        })
    }

    /// With one tool more.
    ///
    /// # Errors
    /// It is not well formed, or its name is taken.
    pub fn with(&self, tool: Tool) -> Result<Self, Error> {
        if self.tools.contains_key(&tool.name) {
            return Err(Error::Taken(tool.name));
        }
        let entry = Entry::new(if self.asking.contains(&tool.name) { asked(tool) } else { tool })?;
        let mut tools = self.tools.clone();
        tools.insert(entry.tool.name.clone(), Arc::new(entry));
        Ok(Self { tools, ..self.clone() })
    }

    /// Without the tool of that name, if there is one.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        let mut tools = self.tools.clone();
        tools.remove(name);
        Self { tools, ..self.clone() }
    }

    /// With another reason why a file or setting gives no tools, or with none any more.
    #[must_use]
    pub fn refusing(&self, file: &str, refused: Option<Refused>) -> Self {
        let mut all = self.refused.clone();
        match refused {
            Some(refused) => all.insert(file.to_owned(), refused),
            None => all.remove(file),
        };
        Self { refused: all, ..self.clone() }
    }

    /// What gives no tools though it should, and why.
    #[must_use]
    pub fn refused(&self) -> Vec<Refused> {
        self.refused.values().cloned().collect()
    }

    /// With a person asked before each call of these tools, of those that are there and of those that come later.
    #[must_use]
    pub fn asking(&self, names: &[String]) -> Self {
        let (mut tools, mut asking) = (self.tools.clone(), self.asking.clone());
        for name in names {
            asking.insert(name.clone());
            if let Some(entry) = tools.get_mut(name) {
                *entry = Arc::new(Entry { tool: asked(entry.tool.clone()), ..Entry::clone(entry) });
            }
        }
        Self { tools, asking, ..self.clone() }
    }

    /// Tools for which a person must be asked and that are not there.
    pub fn asked_for_and_missing(&self) -> impl Iterator<Item = &str> {
        self.asking.iter().map(String::as_str).filter(|name| !self.tools.contains_key(*name))
    }

    /// Every tool in alphabetical order.
    pub fn tools(&self) -> impl Iterator<Item = &Tool> {
        self.tools.values().map(|entry| &entry.tool)
    }

    /// One tool.
    #[must_use]
    pub fn tool(&self, name: &str) -> Option<&Tool> {
        self.tools.get(name).map(|entry| &entry.tool)
    }

    /// The registry as it is told to others.
    #[must_use]
    pub fn listing(&self) -> Vec<rpc::Tool> {
        self.tools().map(Tool::listed).collect()
    }

    /// Finds the tool and reads its arguments, given as JSON text. An argument that is `null` counts as left out where
    /// `null` does not fit: models write that for "no opinion".
    ///
    /// # Errors
    /// There is no such tool, it cannot be used, or it does not take these arguments; in words for the model.
    pub fn check(&self, name: &str, arguments: &str) -> Result<Checked, Failure> {
        let entry = self.tools.get(name).ok_or_else(|| self.no_such_tool(name))?;
        if let Some(reason) = &entry.tool.unavailable {
            return Err(Failure::refused(format!("{name} is not available: {reason}")));
        }
        let mut arguments = read_arguments(&entry.tool, arguments)?;
        if !entry.parameters.is_valid(&arguments)
            && let Some(given) = arguments.as_object_mut()
        {
            given.retain(|_, value| !value.is_null());
        }
        let violations = entry.parameters.iter_errors(&arguments);
        let wrong: Vec<String> = violations
            .map(|violation| words::argument(&entry.tool.parameters, &violation))
            .take(VIOLATIONS_SHOWN_MAX)
            .collect();
        if !wrong.is_empty() {
            return Err(Failure::bad_request(format!("{}; usage: {}", wrong.join("; "), words::usage(&entry.tool))));
        }
        match arguments {
            Value::Object(arguments) => Ok(Checked { entry: entry.clone(), arguments }),
            _ => unreachable!("an object was read"),
        }
    }

    fn no_such_tool(&self, name: &str) -> Failure {
        let shown: String = name.chars().take(64).collect();
        let mut names: Vec<&str> =
            self.tools().filter(|tool| tool.unavailable.is_none()).map(|tool| tool.name.as_str()).collect();
        // The nearest comes first: a model that takes the first of the list takes the right one.
        names.sort_by(|a, b| strsim::jaro_winkler(&shown, b).total_cmp(&strsim::jaro_winkler(&shown, a)));
        Failure::unknown(format!("no such tool: {shown} (available: {})", names.join(", ")))
    }
}

impl Checked {
    /// The tool as it was when the call was checked.
    #[must_use]
    pub fn tool(&self) -> &Tool {
        &self.entry.tool
    }

    /// Holds a result against what the tool says of its results. Text without a schema is free.
    ///
    /// # Errors
    /// It is no JSON, or does not fit; in words for the model, who can do nothing about it but not rely on the tool.
    pub fn check_result(&self, text: &str) -> Result<(), Failure> {
        let Some(validator) = &self.entry.result else { return Ok(()) };
        let name = &self.entry.tool.name;
        let broken = |why: String| {
            // It has run: trying again is not for us to decide.
            Failure::bad_request(format!("{name} answered something else than it promises: {why}"))
        };
        let value: Value = serde_json::from_str(text).map_err(|error| broken(format!("no JSON ({error})")))?;
        let schema = self.entry.tool.result.as_ref().unwrap_or(&Value::Null);
        let violation = validator.iter_errors(&value).next().map(|violation| words::result(schema, &violation));
        violation.map_or(Ok(()), |why| Err(broken(why)))
    }
}

impl Entry {
    fn new(tool: Tool) -> Result<Self, Error> {
        if tool.name.is_empty() || subject::token(&tool.name) != tool.name {
            return Err(Error::Name(tool.name));
        }
        let wrong = |field, reason: &str| Error::Field { tool: tool.name.clone(), field, reason: reason.to_owned() };
        if tool.description.trim().is_empty() {
            return Err(wrong("description", "is empty: say what the tool does, for the model"));
        }
        if tool.description.len() > DESCRIPTION_BYTES_MAX {
            return Err(wrong("description", &format!("has more than {DESCRIPTION_BYTES_MAX} bytes")));
        }
        if tool.timeout.is_zero() {
            return Err(wrong("timeout", "is zero: no call would ever end in time"));
        }
        if tool.result_bytes_max == 0 {
            return Err(wrong("result_bytes_max", "is zero: no result could be shown"));
        }
        if tool.parameters["type"] != "object" {
            return Err(wrong("parameters", "is no schema of an object: expected \"type\": \"object\" at its top"));
        }
        let compiled = |field, schema: &Value| compile(schema).map_err(|reason| wrong(field, &reason));
        let parameters = compiled("parameters", &tool.parameters)?;
        let result = tool.result.as_ref().map(|schema| compiled("result", schema)).transpose()?;
        Ok(Self { tool, parameters, result })
    }
}

/// The tool with a person asked before each of its calls.
fn asked(tool: Tool) -> Tool {
    Tool { approval: Approval::Always, ..tool }
}

/// A schema from anywhere: it reaches for nothing outside itself, and its patterns take linear time.
fn compile(schema: &Value) -> Result<Validator, String> {
    let options = jsonschema::options().with_pattern_options(PatternOptions::regex());
    options.build(schema).map_err(|error| {
        let at = error.instance_path().to_string();
        let at = if at.is_empty() { "its top".to_owned() } else { at };
        format!("is no JSON schema at {at}: {}", words::shortened(&error.to_string()))
    })
}

fn read_arguments(tool: &Tool, text: &str) -> Result<Value, Failure> {
    if text.len() > ARGUMENTS_BYTES_MAX {
        return Err(Failure::bad_request(format!(
            "arguments are {} bytes, the limit is {ARGUMENTS_BYTES_MAX}",
            text.len()
        )));
    }
    let text = if text.trim().is_empty() { "{}" } else { text };
    let usage = || words::usage(tool);
    match serde_json::from_str(text) {
        Ok(arguments @ Value::Object(_)) => Ok(arguments),
        Ok(_) => Err(Failure::bad_request(format!("arguments must be a JSON object; usage: {}", usage()))),
        Err(error) => Err(Failure::bad_request(format!("arguments are not JSON ({error}); usage: {}", usage()))),
    }
}

#[cfg(test)]
mod tests;
