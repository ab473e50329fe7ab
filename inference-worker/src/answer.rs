//! From the ids of one answer to what its reader sees: text, tool calls, and the reason for its end.
//!
//! The same ids give the same deltas, whoever feeds them: a worker that takes over feeds the ids of its predecessor
//! first and goes on where that one stopped.

use serde::{Deserialize, Serialize};

use crate::{
    detokenize::Utf8Stream,
    model_directory::Model,
    tool_calls::{Family, Parser, Part, ToolCall, longest_beginning},
};

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// The model ended it, or a stop string appeared.
    Stop,
    /// The token limit or the window is reached.
    Length,
    /// The model asks for tools.
    ToolCalls,
}

/// An answer in the making.
#[derive(Debug)]
pub struct Answer {
    utf8: Utf8Stream,
    bytes: Vec<u8>,
    parser: Parser,
    stop: Vec<String>,
    /// Text held back because it may begin a stop string.
    held: String,
    /// The ids so far, the end token included.
    pub ids: Vec<u32>,
    /// Bytes of the text behind each of them.
    pub ends: Vec<usize>,
    /// The text for the reader so far.
    pub text: String,
    /// The calls so far.
    pub calls: Vec<ToolCall>,
    /// Tokens since the call that is being written began.
    call_tokens: usize,
    /// What stood between call marks and was no call: text and reason.
    pub malformed: Vec<(String, String)>,
    /// Behind the first call, or what should have been one, it ends.
    one_call: bool,
    /// Set once the answer has ended.
    pub finish: Option<FinishReason>,
}

impl Answer {
    /// An empty answer that ends before any of these strings and may hold calls of this family, or one at most.
    pub fn new(stop: Vec<String>, family: Option<Family>, one_call: bool) -> Self {
        Self {
            utf8: Utf8Stream::default(),
            bytes: Vec::new(),
            parser: Parser::new(family),
            stop: stop.into_iter().filter(|text| !text.is_empty()).collect(),
            held: String::new(),
            ids: Vec::new(),
            ends: Vec::new(),
            text: String::new(),
            calls: Vec::new(),
            call_tokens: 0,
            malformed: Vec::new(),
            one_call,
            finish: None,
        }
    }

    /// The bytes behind the beginning of a call that has not ended yet.
    pub fn begun(&self) -> Option<Vec<u8>> {
        let begun = self.parser.begun().filter(|_| self.finish.is_none())?;
        Some([begun.as_bytes(), self.held.as_bytes(), self.utf8.held()].concat())
    }

    /// Takes the next token and returns the text that became certain; `tokens_max` counts all tokens of the answer.
    pub fn push(&mut self, model: &Model, id: u32, tokens_max: usize) -> String {
        let before = self.text.len();
        self.ids.push(id);
        self.advance(model, id, tokens_max);
        self.ends.push(self.text.len());
        self.text[before..].to_owned()
    }

    fn advance(&mut self, model: &Model, id: u32, tokens_max: usize) {
        if model.end_tokens.contains(&id) {
            self.end(FinishReason::Stop);
            return;
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        model.tokenizer.append_bytes(id, &mut bytes);
        let text = self.utf8.push(&bytes);
        self.bytes = bytes;
        let stopped = self.take(&text);
        self.call_tokens = if self.parser.begun().is_some() { self.call_tokens + 1 } else { 0 };
        if stopped || self.has_its_call() || self.call_tokens > call_tokens_max(tokens_max) {
            self.end(FinishReason::Stop);
        } else if self.ids.len() >= tokens_max {
            self.end(FinishReason::Length);
        }
    }

    /// Passes text on as far as it is not part of a stop string; says whether one appeared.
    fn take(&mut self, text: &str) -> bool {
        self.held.push_str(text);
        if let Some(at) = self.stop.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            let certain = std::mem::take(&mut self.held);
            let parts = self.parser.push(&certain);
            self.keep(parts);
            return true;
        }
        let undecided = self.stop.iter().map(|stop| longest_beginning(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - undecided);
        let certain = std::mem::replace(&mut self.held, rest);
        let parts = self.parser.push(&certain);
        self.keep(parts);
        false
    }

    fn end(&mut self, reason: FinishReason) {
        let mut rest = std::mem::take(&mut self.held);
        rest.push_str(&self.utf8.finish());
        let parts = self.parser.push(&rest);
        self.keep(parts);
        let parts = self.parser.finish();
        self.keep(parts);
        let calls = reason == FinishReason::Stop && !(self.calls.is_empty() && self.malformed.is_empty());
        self.finish = Some(if calls { FinishReason::ToolCalls } else { reason });
    }

    /// Whether no other call may come.
    fn has_its_call(&self) -> bool {
        self.one_call && !(self.calls.is_empty() && self.malformed.is_empty())
    }

    fn keep(&mut self, parts: Vec<Part>) {
        for part in parts {
            match part {
                Part::Call(_) | Part::Malformed { .. } if self.has_its_call() => {}
                Part::Content(text) => self.text.push_str(&text),
                Part::Call(call) => self.calls.push(call),
                Part::Malformed { text, reason } => self.malformed.push((shortened(text), reason)),
            }
        }
    }
}

/// Tokens of one call: a model that repeats itself inside one would else fill the window, and nothing could follow.
fn call_tokens_max(tokens_max: usize) -> usize {
    (tokens_max / 4).max(256)
}

/// Bytes of a malformed call that are kept: the model reads them to see what it did, and more says no more.
const MALFORMED_BYTES_MAX: usize = 512;

/// As much of the text of a malformed call as is kept.
pub(crate) fn shortened(mut text: String) -> String {
    if text.len() > MALFORMED_BYTES_MAX {
        text.truncate(text.floor_char_boundary(MALFORMED_BYTES_MAX));
        text.push('…');
    }
    text
}
