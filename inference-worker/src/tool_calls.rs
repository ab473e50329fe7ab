//! Finds tool calls in an answer, in the markup of the model's family.
//!
//! | family | a call |
//! |---|---|
//! | Hermes, Qwen | `<tool_call>{"name": …, "arguments": {…}}</tool_call>` |
//! | Llama 3 | `{"name": …, "parameters": {…}}`, alone or behind `<\|python_tag\|>`, several with `;` between |
//! | Mistral | `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]name[ARGS]{…}` for each |
//! | pythonic | `[name(key=value, …), …]`, alone or between `<\|python_start\|>` and `<\|python_end\|>` |
//!
//! One state machine serves streamed and whole answers, so they cannot disagree. Text that may yet turn out to be
//! markup is held back until it is decided: markup never leaks, however the text is cut. A closing mark inside a
//! string does not close. Blank space around calls is dropped. Where no mark says that a call begins, what turns out to
//! be none is text.

mod family;
mod pythonic;
mod scan;

pub use family::Family;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use scan::{Brackets, Quoted};

/// What may stand between two calls of Llama 3.
const SEPARATORS: &[char] = &[';', ' ', '\n', '\r', '\t'];

/// A call the model asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The tool.
    pub name: String,
    /// Its arguments, a JSON object.
    pub arguments: Value,
}

/// What a piece of the answer turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Text for the reader.
    Content(String),
    /// A call.
    Call(ToolCall),
    /// Something in the place of a call that is none.
    Malformed {
        /// What stood there.
        text: String,
        /// Why it is no call.
        reason: String,
    },
}

/// The state machine; `push` text as it comes, then `finish`.
#[derive(Debug)]
pub struct Parser {
    /// None finds no calls: all is text.
    family: Option<Family>,
    state: State,
    held: String,
    /// Text has been passed on.
    spoken: bool,
    after_call: bool,
}

#[derive(Debug)]
enum State {
    Content,
    /// Behind an opening mark, up to the closing mark.
    Marked(Quoted),
    /// A value in brackets, which ends where they close.
    Value {
        brackets: Brackets,
        bare: bool,
    },
}

impl Parser {
    /// A machine for a family's calls; without one all is text.
    pub fn new(family: Option<Family>) -> Self {
        Self { family, state: State::Content, held: String::new(), spoken: false, after_call: false }
    }

    /// What is certain after this text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.advance(&mut parts) {}
        parts
    }

    /// The end of the answer: a call may lack its closing mark, held text is text.
    pub fn finish(&mut self) -> Vec<Part> {
        let rest = std::mem::take(&mut self.held);
        let mut parts = Vec::new();
        match std::mem::replace(&mut self.state, State::Content) {
            // Behind a call stand separators, which are no text.
            State::Content if self.after_call && self.family == Some(Family::Llama) => {
                self.content(rest.trim_start_matches(SEPARATORS).to_owned(), &mut parts);
            }
            State::Content => self.content(rest, &mut parts),
            State::Marked(_) => parts.push(malformed_or(call(&rest, "arguments"), &rest)),
            State::Value { bare, .. } => {
                let bare = bare && !self.family.is_some_and(|family| family.surely_a_call(&rest));
                self.value(&rest, bare, &mut parts);
            }
        }
        parts
    }

    /// What stands behind the beginning of a call that has not ended yet; none while it may still turn out to be text.
    pub fn begun(&self) -> Option<&str> {
        match &self.state {
            State::Content => None,
            State::Value { bare: true, .. } => {
                self.family.is_some_and(|family| family.surely_a_call(&self.held)).then_some(&self.held)
            }
            State::Marked(_) | State::Value { .. } => Some(&self.held),
        }
    }

    /// Takes one part off the held text; says whether there may be more.
    fn advance(&mut self, parts: &mut Vec<Part>) -> bool {
        let Some(family) = self.family else {
            let text = std::mem::take(&mut self.held);
            self.content(text, parts);
            return false;
        };
        match &mut self.state {
            State::Content => self.search(family, parts),
            State::Marked(quoted) => {
                let close = family.close();
                let Some(at) = quoted.find(&self.held, close) else {
                    return false;
                };
                let text = self.take(at + close.len());
                parts.push(malformed_or(call(&text[..at], family.arguments_key()), &text[..at]));
                self.ended();
                true
            }
            State::Value { brackets, bare } => {
                let bare = *bare;
                let Some(end) = brackets.end(&self.held) else {
                    return false;
                };
                let text = self.take(end);
                self.value(&text, bare, parts);
                true
            }
        }
    }

    /// Looks for the beginning of a call.
    fn search(&mut self, family: Family, parts: &mut Vec<Part>) -> bool {
        if let Some(bracket) = family.bare().filter(|_| !self.spoken || (self.after_call && family == Family::Llama)) {
            let separators = if self.after_call { SEPARATORS } else { &SEPARATORS[1..] };
            let text = self.held.trim_start_matches(separators);
            if text.is_empty() {
                return false;
            }
            if text.starts_with(bracket) {
                let blank = self.held.len() - text.len();
                self.take(blank);
                self.state = State::Value { brackets: family.brackets(), bare: true };
                return true;
            }
        }
        let first = |mark: &'static str| self.held.find(mark).map(|at| (at, mark));
        if let Some((at, mark)) = family.visible().iter().filter_map(|mark| first(mark)).min() {
            let text = self.take(at + mark.len());
            let opens = mark == family.open();
            let text = if opens { text[..at].trim_end() } else { &text[..at] };
            self.content(text.to_owned(), parts);
            // Any other mark closes what is closed already, and is dropped.
            match family {
                _ if !opens => {}
                Family::Hermes => self.state = State::Marked(Quoted::default()),
                _ => self.state = State::Value { brackets: family.brackets(), bare: false },
            }
            return true;
        }
        // Blank space may stand before a mark, and the last characters may begin one.
        let beginning = family.visible().iter().map(|mark| longest_beginning(&self.held, mark)).max().unwrap_or(0);
        let certain = self.held[..self.held.len() - beginning].trim_end().len();
        let text = self.take(certain);
        self.content(text, parts);
        false
    }

    /// A whole value in brackets: its calls, or what it is instead.
    fn value(&mut self, text: &str, bare: bool, parts: &mut Vec<Part>) {
        self.state = State::Content;
        let found = match self.family {
            Some(Family::Pythonic) => pythonic::calls(text),
            Some(Family::Mistral) => mistral(text),
            _ => call(text, "parameters").map(|call| vec![call]),
        };
        match found {
            Ok(calls) => {
                parts.extend(calls.into_iter().map(Part::Call));
                self.ended();
            }
            Err(_) if bare => self.content(text.to_owned(), parts),
            Err(reason) => {
                parts.push(Part::Malformed { text: text.trim().to_owned(), reason });
                self.ended();
            }
        }
    }

    fn ended(&mut self) {
        self.state = State::Content;
        self.after_call = true;
    }

    fn take(&mut self, bytes: usize) -> String {
        let rest = self.held.split_off(bytes);
        std::mem::replace(&mut self.held, rest)
    }

    fn content(&mut self, text: String, parts: &mut Vec<Part>) {
        let text = if self.after_call { text.trim_start().to_owned() } else { text };
        if !text.is_empty() {
            self.after_call = false;
            self.spoken = true;
            parts.push(Part::Content(text));
        }
    }
}

/// Length of the longest end of `text` that begins `mark`.
pub(crate) fn longest_beginning(text: &str, mark: &str) -> usize {
    (1..mark.len()).rev().find(|&length| mark.is_char_boundary(length) && text.ends_with(&mark[..length])).unwrap_or(0)
}

fn malformed_or(call: Result<ToolCall, String>, text: &str) -> Part {
    match call {
        Ok(call) => Part::Call(call),
        Err(reason) => Part::Malformed { text: text.trim().to_owned(), reason },
    }
}

fn call(text: &str, key: &str) -> Result<ToolCall, String> {
    let json: Value = serde_json::from_str(text.trim()).map_err(|error| format!("not JSON: {error}"))?;
    call_of(&json, key)
}

fn call_of(json: &Value, key: &str) -> Result<ToolCall, String> {
    let name = json.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()).ok_or("\"name\" is missing")?;
    let arguments = match json.get(key).or_else(|| json.get("arguments")).or_else(|| json.get("parameters")) {
        None | Some(Value::Null) if key == "parameters" => return Err(format!("\"{key}\" is missing")),
        None | Some(Value::Null) => Value::Object(serde_json::Map::new()),
        // Some models write the arguments as a string of JSON.
        Some(Value::String(text)) => {
            serde_json::from_str(text).map_err(|error| format!("\"arguments\" is not JSON: {error}"))?
        }
        Some(value) => value.clone(),
    };
    if !arguments.is_object() {
        return Err(format!("\"{key}\" is not an object"));
    }
    Ok(ToolCall { name: name.to_owned(), arguments })
}

/// A list of calls, or one with its name in front.
fn mistral(text: &str) -> Result<Vec<ToolCall>, String> {
    let text = text.trim();
    if text.starts_with('[') {
        let calls: Vec<Value> = serde_json::from_str(text).map_err(|error| format!("no list of calls: {error}"))?;
        return calls.iter().map(|json| call_of(json, "arguments")).collect();
    }
    let at = text.find('{').ok_or("no arguments")?;
    let name = text[..at].split('[').next().unwrap_or_default().trim();
    if name.is_empty() {
        return Err("no name".to_owned());
    }
    let arguments =
        serde_json::from_str(&text[at..]).map_err(|error| format!("the arguments are not JSON: {error}"))?;
    Ok(vec![ToolCall { name: name.to_owned(), arguments }])
}

#[cfg(test)]
mod tests;
