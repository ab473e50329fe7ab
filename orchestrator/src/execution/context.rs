//! The context region: the messages a prompt is made of. It only grows; decisions name a length of it.

use schemas::ToolCall;
use schemas::chat::{FinishReason, Message, Role};

/// The conversation of an execution.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Context {
    messages: Vec<Message>,
    finish: Option<FinishReason>,
}

impl Context {
    pub(super) fn new(messages: Vec<Message>) -> Self {
        Self { messages, finish: None }
    }

    pub(super) fn answer(&mut self, text: String, tool_calls: Vec<ToolCall>, finish: FinishReason) {
        self.messages.push(Message { tool_calls, ..Message::text(Role::Assistant, text) });
        self.finish = Some(finish);
    }

    pub(super) fn tool_result(&mut self, call: Option<ToolCall>, text: String) {
        if let Some(call) = call {
            self.messages.push(Message::tool_result(call.id, call.function.name, text));
        }
    }

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

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
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
}
