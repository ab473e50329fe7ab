//! Finds tool calls in an answer: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Hermes and Qwen write them.
//!
//! One state machine serves streamed and whole answers, so they cannot disagree. Text that may yet turn out to be
//! markup is held back until it is decided: markup never leaks, however the text is cut. A closing mark inside a
//! JSON string does not close. Blank space around calls is dropped.

use serde_json::Value;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// A call the model asks for.
#[derive(Debug, Clone, PartialEq)]
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
    /// Something between the marks that is no call.
    Malformed {
        /// What stood there.
        text: String,
        /// Why it is no call.
        reason: String,
    },
}

/// The state machine; `push` text as it comes, then `finish`.
#[derive(Debug, Default)]
pub struct Parser {
    state: State,
    held: String,
    after_call: bool,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Content,
    Call(Json),
}

/// Where in a JSON text we are, as far as strings go.
#[derive(Debug, Default)]
struct Json {
    scanned: usize,
    in_string: bool,
    escaped: bool,
}

impl Parser {
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
        match std::mem::take(&mut self.state) {
            State::Content => self.content(rest, &mut parts),
            State::Call(_) => parts.push(parse(&rest)),
        }
        parts
    }

    /// Takes one part off the held text; says whether there may be more.
    fn advance(&mut self, parts: &mut Vec<Part>) -> bool {
        match &mut self.state {
            State::Content => {
                if let Some(at) = self.held.find(OPEN) {
                    let rest = self.held.split_off(at + OPEN.len());
                    let text = std::mem::replace(&mut self.held, rest);
                    self.content(text[..at].trim_end().to_owned(), parts);
                    self.state = State::Call(Json::default());
                    return true;
                }
                // Blank space may stand before a mark, and the last characters may begin one.
                let undecided = self.held.len() - longest_beginning(&self.held, OPEN);
                let certain = self.held[..undecided].trim_end().len();
                let rest = self.held.split_off(certain);
                let text = std::mem::replace(&mut self.held, rest);
                self.content(text, parts);
                false
            }
            State::Call(json) => {
                let Some(at) = json.find_close(&self.held) else {
                    return false;
                };
                let rest = self.held.split_off(at + CLOSE.len());
                let text = std::mem::replace(&mut self.held, rest);
                parts.push(parse(&text[..at]));
                self.state = State::Content;
                self.after_call = true;
                true
            }
        }
    }

    fn content(&mut self, text: String, parts: &mut Vec<Part>) {
        let text = if self.after_call { text.trim_start().to_owned() } else { text };
        if !text.is_empty() {
            self.after_call = false;
            parts.push(Part::Content(text));
        }
    }
}

impl Json {
    /// The place of the first closing mark outside strings; remembers how far it has looked.
    fn find_close(&mut self, text: &str) -> Option<usize> {
        while let Some(&byte) = text.as_bytes().get(self.scanned) {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
            } else if byte == b'"' {
                self.in_string = true;
            } else if byte == b'<' {
                let rest = &text[self.scanned..];
                if rest.starts_with(CLOSE) {
                    return Some(self.scanned);
                }
                if CLOSE.starts_with(rest) {
                    return None;
                }
            }
            self.scanned += 1;
        }
        None
    }
}

/// Length of the longest end of `text` that begins `mark`.
pub(crate) fn longest_beginning(text: &str, mark: &str) -> usize {
    (1..mark.len()).rev().find(|&length| mark.is_char_boundary(length) && text.ends_with(&mark[..length])).unwrap_or(0)
}

fn parse(text: &str) -> Part {
    match call(text) {
        Ok(call) => Part::Call(call),
        Err(reason) => Part::Malformed { text: text.trim().to_owned(), reason },
    }
}

fn call(text: &str) -> Result<ToolCall, String> {
    let json: Value = serde_json::from_str(text.trim()).map_err(|error| format!("not JSON: {error}"))?;
    let name = json.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()).ok_or("\"name\" is missing")?;
    let arguments = match json.get("arguments").or_else(|| json.get("parameters")) {
        None | Some(Value::Null) => Value::Object(serde_json::Map::new()),
        // Some models write the arguments as a string of JSON.
        Some(Value::String(text)) => {
            serde_json::from_str(text).map_err(|error| format!("\"arguments\" is not JSON: {error}"))?
        }
        Some(value) => value.clone(),
    };
    if !arguments.is_object() {
        return Err("\"arguments\" is not an object".to_owned());
    }
    Ok(ToolCall { name: name.to_owned(), arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWERS: [&str; 8] = [
        "plain text with < and <tool and \n\n blanks  \n",
        "Looking.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": 1}}\n</tool_call>",
        "<tool_call>{\"name\":\"a\"}</tool_call>\n<tool_call>{\"name\":\"b\",\"arguments\":\"{}\"}</tool_call>\n done é🦋",
        "<tool_call>{\"name\": \"say\", \"arguments\": {\"t\": \"</tool_call> \\\" <tool_call>\"}}</tool_call>after",
        "<tool_call>{\"name\": \"open\", \"arguments\": {}}",
        "x <tool_call>not json</tool_call> y <tool_call>{\"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"broken</tool_call> rest",
        "<<tool_call>>{}</tool_call",
    ];

    fn run<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Vec<Part> {
        let mut parser = Parser::default();
        let mut parts: Vec<Part> = pieces.into_iter().flat_map(|piece| parser.push(piece)).collect();
        parts.extend(parser.finish());
        let mut joined: Vec<Part> = Vec::new();
        for part in parts {
            match (joined.last_mut(), part) {
                (Some(Part::Content(text)), Part::Content(more)) => text.push_str(&more),
                (_, part) => joined.push(part),
            }
        }
        joined
    }

    #[test]
    fn every_split_reads_like_the_whole() {
        for answer in ANSWERS {
            let whole = run([answer]);
            let cuts: Vec<usize> = (0..=answer.len()).filter(|&at| answer.is_char_boundary(at)).collect();
            for (index, &first) in cuts.iter().enumerate() {
                for &second in &cuts[index..] {
                    assert_eq!(run([&answer[..first], &answer[first..second], &answer[second..]]), whole, "{answer:?}");
                }
            }
            let each = cuts.windows(2).map(|pair| &answer[pair[0]..pair[1]]);
            assert_eq!(run(each), whole, "{answer:?} one by one");
        }
    }

    #[test]
    fn a_closing_mark_in_a_string_does_not_close() {
        let parts = run([ANSWERS[3]]);
        assert!(matches!(&parts[0], Part::Call(call) if call.arguments["t"] == "</tool_call> \" <tool_call>"));
        assert_eq!(parts[1], Part::Content("after".to_owned()));
    }

    #[test]
    fn a_malformed_call_is_a_value() {
        let parts = run([ANSWERS[5]]);
        assert!(matches!(&parts[1], Part::Malformed { text, .. } if text == "not json"));
        assert!(matches!(&parts[3], Part::Malformed { reason, .. } if reason.contains("name")));
    }
}
