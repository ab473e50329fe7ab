//! A chunk of a streamed chat completion, as far as we read it. Everything may be missing: servers differ.
//!
//! What a model thinks before it answers comes in fields of its own (`reasoning_content`, `reasoning`). It counts as
//! progress and is no part of the text.

use schemas::chat::{TokenLogprob, TopLogprob};
use serde::Deserialize;
use serde_json::Value;

/// The number that servers write for a probability of zero.
const NEVER: f32 = -9_999.0;

#[derive(Debug, Deserialize)]
pub(super) struct Chunk {
    #[serde(default)]
    pub(super) choices: Option<Vec<Choice>>,
    #[serde(default)]
    pub(super) usage: Option<Counts>,
    #[serde(default)]
    pub(super) error: Option<Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Choice {
    #[serde(default)]
    pub(super) index: u32,
    #[serde(default)]
    pub(super) delta: Option<Delta>,
    #[serde(default)]
    pub(super) finish_reason: Option<String>,
    #[serde(default)]
    pub(super) logprobs: Option<Logprobs>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Delta {
    #[serde(default)]
    pub(super) content: Option<String>,
    #[serde(default)]
    pub(super) refusal: Option<String>,
    #[serde(default)]
    pub(super) tool_calls: Option<Vec<Fragment>>,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    reasoning: Option<String>,
}

impl Delta {
    /// Whether a part of the model's thoughts came.
    pub(super) fn thinks(&self) -> bool {
        let some = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        some(&self.reasoning_content) || some(&self.reasoning)
    }
}

/// A piece of a call.
#[derive(Debug, Deserialize)]
pub(super) struct Fragment {
    #[serde(default)]
    pub(super) index: Option<u32>,
    #[serde(default)]
    pub(super) id: Option<String>,
    #[serde(default)]
    pub(super) function: Option<FunctionFragment>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct FunctionFragment {
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    arguments: Option<Value>,
}

impl FunctionFragment {
    /// The arguments as text; some servers send them as JSON, and then whole.
    pub(super) fn arguments(&self) -> String {
        match &self.arguments {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }
}

/// Tokens read and generated.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Counts {
    #[serde(default)]
    pub(super) prompt_tokens: usize,
    #[serde(default)]
    pub(super) completion_tokens: usize,
}

#[derive(Debug, Deserialize)]
pub(super) struct Logprobs {
    #[serde(default)]
    content: Option<Vec<Likely>>,
}

#[derive(Debug, Deserialize)]
struct Likely {
    token: String,
    #[serde(default)]
    logprob: Option<f32>,
    #[serde(default)]
    top_logprobs: Option<Vec<Likely>>,
}

impl Logprobs {
    /// One entry for each token, with this many others at most.
    pub(super) fn entries(self, others: usize) -> impl Iterator<Item = TokenLogprob> {
        let finite = |logprob: Option<f32>| logprob.filter(|logprob| logprob.is_finite()).unwrap_or(NEVER);
        let top = move |likely: Likely| TopLogprob { token: likely.token, logprob: finite(likely.logprob) };
        self.content.unwrap_or_default().into_iter().map(move |likely| TokenLogprob {
            token: likely.token,
            logprob: finite(likely.logprob),
            top_logprobs: likely.top_logprobs.unwrap_or_default().into_iter().take(others).map(top).collect(),
        })
    }
}
