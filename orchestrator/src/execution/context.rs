//! The context region: the messages a prompt is made of, how full the window is, and what is being summarised.
//!
//! The context grows at its end; decisions name a length of it. Only `context.replaced` takes something out, and says
//! what: the messages themselves stay in the log.

use schemas::chat::{FinishReason, Message, Role};
use schemas::object::Reference;
use schemas::{EffectId, ToolCall, ToolSpec};
use serde::{Deserialize, Serialize};

use super::Transition;

/// Tokens that a message takes beside its text: role and markers.
const TOKENS_PER_MESSAGE: u64 = 6;
/// Longest text of one message that a summariser reads, bytes: the gist stands at the front.
const SUMMARISED_BYTES_MAX: usize = 600;

/// The conversation of an execution.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Context {
    messages: Vec<Message>,
    /// Said while the model was at work; part of the prompt from the next inference on.
    pending: Vec<Message>,
    finish: Option<FinishReason>,
    /// The model's own count: tokens of the first messages.
    counted: Option<Counted>,
    /// Messages when it was last measured.
    measured: u64,
    /// What is being summarised.
    compressing: Option<Compressing>,
    /// Compressions asked for.
    compressions: u32,
    /// How often a part was replaced.
    replacements: u32,
    /// One fingerprint a turn, over its calls and their results.
    trail: Vec<(u32, u64)>,
    /// Bytes of the tools' descriptions, which stand in every prompt.
    tools_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Counted {
    messages: u64,
    tokens: u64,
}

/// A part of the context that is being summarised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compressing {
    /// The compression's effect.
    pub effect: EffectId,
    /// The first message of the part.
    pub from: u64,
    /// The first behind it.
    pub to: u64,
}

/// What moves it between its two states. A compression that failed for good keeps it in `Compressing` unless outputs of
/// tools can be dropped instead: it is not tried again.
pub const TABLE: &[Transition] =
    &[("Calm", "compression.requested", "Compressing"), ("Compressing", "context.replaced", "Calm")];

impl Context {
    pub(super) fn new(messages: Vec<Message>, tools: &[ToolSpec]) -> Self {
        let tools_bytes = tools.iter().map(|t| t.function.name.len() + t.function.parameters.to_string().len());
        Self { messages, tools_bytes: tools_bytes.sum::<usize>() as u64, ..Self::default() }
    }

    /// The state's name, as in the table.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        if self.compressing.is_some() { "Compressing" } else { "Calm" }
    }

    // --- what happened -------------------------------------------------------------------------------------------

    /// The model answered a prompt of `prompt` tokens, all messages so far, with `answer` tokens.
    pub(super) fn answer(
        &mut self,
        text: String,
        tool_calls: Vec<ToolCall>,
        finish: FinishReason,
        (prompt, answer): (u64, u64),
    ) {
        self.messages.push(Message { tool_calls, ..Message::text(Role::Assistant, text) });
        self.finish = Some(finish);
        self.counted = Some(Counted { messages: self.len(), tokens: prompt + answer });
    }

    pub(super) fn tool_result(&mut self, call: Option<ToolCall>, text: String) {
        if let Some(call) = call {
            self.messages.push(Message::tool_result(call.id, call.function.name, text));
        }
    }

    pub(super) fn say(&mut self, text: &str, object: Option<Reference>) {
        self.pending.push(Message { object, ..Message::text(Role::User, text) });
    }

    /// What was said meanwhile is part of the prompt from now on.
    pub(super) fn take_pending(&mut self) {
        self.messages.append(&mut self.pending);
    }

    /// What is known from earlier executions goes where instructions stand: behind the system prompt.
    pub(super) fn recalled(&mut self, text: &str) {
        let known = format!("Known from earlier work:\n{text}");
        match self.messages.first_mut().filter(|m| m.role == Role::System) {
            Some(system) => system.content = format!("{}\n\n{known}", system.content),
            None => self.messages.insert(0, Message::text(Role::System, known)),
        }
        self.counted = None;
    }

    pub(super) fn turn_ended(&mut self, turn: u32, fingerprint: u64) {
        self.trail.push((turn, fingerprint));
    }

    pub(super) const fn measure(&mut self, messages: u64) {
        self.measured = messages;
    }

    pub(super) fn compress(&mut self, compressing: Compressing) {
        self.compressing = Some(compressing);
        self.compressions += 1;
    }

    /// Puts the summary where the part was, or drops the outputs of tools in it.
    pub(super) fn replace(&mut self, from: u64, to: u64, summary: Option<String>, tokens: u64) {
        let (from, to) = (from as usize, (to as usize).min(self.messages.len()));
        match summary {
            Some(summary) => {
                let message = Message::text(Role::User, format!("Summary of what came before: {summary}"));
                self.messages.splice(from.min(to)..to, [message]);
            }
            None => self.messages[from.min(to)..to].iter_mut().filter(|m| is_droppable(m)).for_each(drop_output),
        }
        self.compressing = None;
        self.replacements += 1;
        self.counted = Some(Counted { messages: self.len(), tokens });
        self.measured = self.len();
    }

    // --- what is the case ----------------------------------------------------------------------------------------

    /// Its messages, oldest first.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Number of messages.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.messages.len() as u64
    }

    /// Number of messages of the next prompt.
    #[must_use]
    pub fn len_with_pending(&self) -> u64 {
        self.len() + self.pending.len() as u64
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether something was said that no prompt holds yet.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The tool calls of the newest answer; empty once their results are in.
    #[must_use]
    pub fn calls(&self) -> &[ToolCall] {
        self.messages.last().filter(|m| m.role == Role::Assistant).map_or(&[], |m| &m.tool_calls)
    }

    /// Why the newest answer ended.
    #[must_use]
    pub const fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// The text of the newest message of a role; empty when there is none.
    #[must_use]
    pub fn last(&self, role: Role) -> &str {
        self.messages.iter().rev().find(|m| m.role == role).map_or("", |m| m.content.as_str())
    }

    /// Tokens of the whole prompt: the model's own count as far as it goes, an estimate from there on.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        let (known, tokens) = match self.counted {
            Some(counted) => (counted.messages as usize, counted.tokens),
            None => (0, self.tools_bytes * 2 / 5),
        };
        let new = self.messages.iter().skip(known).chain(&self.pending);
        tokens + new.map(estimate).sum::<u64>()
    }

    pub(super) const fn is_measured(&self) -> bool {
        self.measured == self.messages.len() as u64
    }

    /// What is being summarised.
    #[must_use]
    pub const fn compressing(&self) -> Option<&Compressing> {
        self.compressing.as_ref()
    }

    pub(super) const fn next_compression(&self) -> u32 {
        self.compressions + 1
    }

    pub(super) const fn replacements(&self) -> u32 {
        self.replacements
    }

    /// The part of the context that may be summarised: behind the instructions and the task, before the recent quarter
    /// of the window, and never between a call and its result. None when it would save less than a tenth of the window.
    #[must_use]
    pub fn compressible(&self, window: u32) -> Option<(u64, u64)> {
        let from = self.pinned();
        let mut to = self.messages.len();
        let mut recent = 0;
        while to > from && recent < u64::from(window) / 4 {
            to -= 1;
            recent += estimate(&self.messages[to]);
        }
        while to > from && !self.may_cut(to) {
            to -= 1;
        }
        let saved: u64 = self.messages.get(from..to)?.iter().map(estimate).sum();
        (to > from + 1 && saved >= u64::from(window) / 10).then_some((from as u64, to as u64))
    }

    /// The part in which outputs of tools can be dropped, and the tokens that would save; the newest turn stays whole.
    #[must_use]
    pub fn droppable(&self, window: u32) -> Option<(u64, u64, u64)> {
        let from = self.pinned();
        let newest = self.messages.iter().rposition(|m| m.role == Role::Assistant)?;
        let outputs = self.messages.get(from..newest)?.iter().filter(|m| is_droppable(m));
        let saved: u64 = outputs.map(|m| estimate(m).saturating_sub(2 * TOKENS_PER_MESSAGE)).sum();
        (saved >= u64::from(window) / 10).then_some((from as u64, newest as u64, saved))
    }

    /// Tokens of a part, estimated.
    #[must_use]
    pub fn tokens_between(&self, from: u64, to: u64) -> u64 {
        self.messages.iter().take(to as usize).skip(from as usize).map(estimate).sum()
    }

    /// A part of the conversation as a summariser reads it.
    #[must_use]
    pub fn as_history(&self, from: u64, to: u64) -> String {
        let mut text = String::from("Summarize this conversation:");
        for message in self.messages.iter().take(to as usize).skip(from as usize) {
            let speaker = match message.role {
                Role::System => "system",
                Role::User => "user",
                Role::Assistant => "assistant",
                Role::Tool => "tool",
            };
            let calls = message.tool_calls.iter().map(|c| format!("{}({})", c.function.name, c.function.arguments));
            let beside = message.object.iter().map(|o| format!("(a text of {} bytes that is not shown here)", o.bytes));
            let said = beside.chain(Some(shorten(&message.content)).filter(|t| !t.is_empty())).chain(calls);
            text.push_str(&format!("\n{speaker}: {}", said.collect::<Vec<_>>().join(" ")));
        }
        text
    }

    /// The turns that show that the execution repeats itself, and how; none when it does not.
    #[must_use]
    pub fn repetition(&self) -> Option<(&'static str, Vec<u32>)> {
        let tail = |n: usize| self.trail.len().checked_sub(n).map(|from| &self.trail[from..]);
        let turns = |tail: &[(u32, u64)]| tail.iter().map(|(turn, _)| *turn).collect();
        if let Some(last) = tail(3)
            && last.iter().all(|(_, print)| *print == last[0].1)
        {
            return Some(("repeat", turns(last)));
        }
        let last = tail(6)?;
        let alternates = last.iter().enumerate().all(|(i, (_, print))| *print == last[i % 2].1);
        alternates.then(|| ("alternate", turns(last)))
    }

    /// Messages that are never summarised: the instructions and the first thing said.
    fn pinned(&self) -> usize {
        let instructions = self.messages.iter().take_while(|m| m.role == Role::System).count();
        (instructions + 1).min(self.messages.len())
    }

    /// Whether the context may be cut before this message: a call and its result stay together.
    fn may_cut(&self, at: usize) -> bool {
        let after_call = at > 0 && !self.messages[at - 1].tool_calls.is_empty();
        !after_call && self.messages.get(at).is_none_or(|m| m.role != Role::Tool)
    }
}

/// Tokens of a message, estimated from its bytes: code runs at about five bytes to two tokens.
pub(crate) fn estimate(message: &Message) -> u64 {
    let calls: usize = message.tool_calls.iter().map(|c| c.function.name.len() + c.function.arguments.len() + 30).sum();
    (message.text_bytes() + calls as u64) * 2 / 5 + TOKENS_PER_MESSAGE
}

fn is_droppable(message: &Message) -> bool {
    message.role == Role::Tool && message.content.len() > 64
}

fn drop_output(message: &mut Message) {
    message.content = format!("(output of {} bytes dropped)", message.content.len());
}

fn shorten(text: &str) -> String {
    match text.char_indices().map(|(i, _)| i).find(|i| *i >= SUMMARISED_BYTES_MAX) {
        Some(end) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
