//! Token frames: the fast path beside the log. Frames may be lost or repeated; the log is right.
//!
//! `n` counts tokens of an (execution, effect) from 0 without holes, over all attempts: an attempt that takes over
//! continues after the frames already published. A reader follows the newest attempt and drops late frames of an
//! older one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::chat::{FinishReason, TokenLogprob, Usage};

/// A few tokens, the end, or a new beginning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Frame {
    /// The attempt that wrote it, from 1.
    pub attempt: u32,
    /// Index of the first token of `ids`; in an end frame, the number of tokens of the whole answer.
    pub n: u64,
    /// Token ids. Their text may come later, when it is complete UTF-8 and no markup.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<u32>,
    /// Text that can be shown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// What the frame is.
    pub k: FrameKind,
    /// In an end frame: why it ended. None when the attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<FinishReason>,
    /// In an end frame: tokens read and generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// One entry for each of `ids`, if that was asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
}

impl Frame {
    /// A frame of a kind, with no tokens.
    #[must_use]
    pub fn new(attempt: u32, n: u64, k: FrameKind) -> Self {
        Self { attempt, n, ids: Vec::new(), text: String::new(), k, finish: None, usage: None, logprobs: Vec::new() }
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FrameKind {
    /// More tokens.
    Delta,
    /// Nothing follows from this attempt.
    End,
    /// Forget what was shown: `text` is the answer up to token `n + ids.len()`.
    Restart,
}
