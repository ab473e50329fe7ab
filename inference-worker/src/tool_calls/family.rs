//! How families of models write calls.

use serde::{Deserialize, Serialize};

use super::scan::Brackets;

/// A family of models, by the markup of its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Hermes, Qwen and many others.
    Hermes,
    /// Llama 3.1 and later, with JSON.
    Llama,
    /// Mistral.
    Mistral,
    /// Llama 4 and others that write calls as Python.
    Pythonic,
}

impl Family {
    /// The family whose markup a chat template tells the model to write.
    pub fn of_template(template: &str) -> Option<Self> {
        let tells = |marks: &[&str]| marks.iter().any(|mark| template.contains(mark));
        if tells(&["<tool_call>"]) {
            Some(Self::Hermes)
        } else if tells(&["[TOOL_CALLS]"]) {
            Some(Self::Mistral)
        } else if tells(&["<|python_start|>", "[func_name1("]) {
            Some(Self::Pythonic)
        } else if tells(&["<|python_tag|>", "\"parameters\": dictionary of argument", "\"parameters\": "]) {
            Some(Self::Llama)
        } else {
            None
        }
    }

    /// The mark before a call; empty where none is needed.
    pub fn open(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Llama => "<|python_tag|>",
            Self::Mistral => "[TOOL_CALLS]",
            Self::Pythonic => "<|python_start|>",
        }
    }

    /// The mark behind a call; empty where there is none.
    pub fn close(self) -> &'static str {
        match self {
            Self::Hermes => "</tool_call>",
            Self::Pythonic => "<|python_end|>",
            Self::Llama | Self::Mistral => "",
        }
    }

    /// The key of a call's arguments.
    pub fn arguments_key(self) -> &'static str {
        if self == Self::Llama { "parameters" } else { "arguments" }
    }

    /// Special tokens that a reader of tokens must see, because they are the markup.
    pub(crate) fn visible(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Llama => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"],
            Self::Pythonic => &["<|python_start|>", "<|python_end|>"],
        }
    }

    /// The bracket with which an answer that is a call begins, where no mark is needed.
    pub(super) fn bare(self) -> Option<char> {
        match self {
            Self::Llama => Some('{'),
            Self::Pythonic => Some('['),
            Self::Hermes | Self::Mistral => None,
        }
    }

    pub(super) fn brackets(self) -> Brackets {
        Brackets::new(self == Self::Pythonic)
    }

    /// Whether what begins like this without a mark can only be a call.
    pub(super) fn surely_a_call(self, text: &str) -> bool {
        let text = text.trim_start();
        match self {
            Self::Llama => text.strip_prefix('{').is_some_and(|rest| rest.trim_start().starts_with("\"name\"")),
            Self::Pythonic => text.strip_prefix('[').and_then(|rest| rest.split_once('(')).is_some_and(|(name, _)| {
                let name = name.trim();
                !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '-'))
            }),
            Self::Hermes | Self::Mistral => false,
        }
    }
}
