//! From the chunks of a stream to what its reader sees: tokens, and at the end text, calls, counts. Pure.
//!
//! A remote server tells no token ids: each delta counts as one token with the id 0, whatever it brings (text, a piece
//! of a call, a thought), and where probabilities are asked for, each probability does, so that tokens and
//! probabilities stay in step. No attempt can go on behind such ids. A server that tells no usage is taken at its
//! deltas, and its prompt at two tokens for five bytes, as the orchestrator estimates.

use std::time::Duration;

use schemas::chat::{FunctionCall, TokenLogprob};

use super::{
    chunk::{Choice, Chunk, Counts, Fragment},
    question::is_object,
};
use crate::{
    answer::{FinishReason, shortened},
    engine::{Event, Outcome},
};

/// The id of every token of a remote model.
pub(crate) const UNKNOWN_ID: u32 = 0;
/// Bytes of an answer: text, calls and probabilities. More would not fit into the log.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Calls of one answer.
const CALLS_MAX: usize = 128;

/// Why an answer ends without being one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The server is at fault; another attempt may succeed.
    Failed(String),
    /// The server does not want to answer this.
    Refused(String),
}

/// An answer in the making.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// How many other tokens each probability comes with, if they are asked for.
    others: Option<usize>,
    text: String,
    /// Text behind the last token that has been told.
    held: String,
    calls: Vec<Call>,
    logprobs: Vec<TokenLogprob>,
    tokens: usize,
    bytes: usize,
    usage: Option<Counts>,
    reason: Option<FinishReason>,
}

/// A call in the making.
#[derive(Debug, Default)]
struct Call {
    index: Option<u32>,
    id: String,
    name: String,
    arguments: String,
}

impl Answer {
    /// An empty answer, with probabilities of this many others for each token if they are asked for.
    pub(super) fn new(others: Option<usize>) -> Self {
        Self { others, ..Self::default() }
    }

    /// Whether the server said why it stopped: nothing but counts may follow.
    pub(super) const fn ended(&self) -> bool {
        self.reason.is_some()
    }

    /// Whether anything came that a reader may have seen.
    pub(super) const fn begun(&self) -> bool {
        self.tokens > 0
    }

    /// Takes the next chunk; returns the tokens that came with it.
    ///
    /// # Errors
    /// The server reports an error, or the answer is larger than an answer may be.
    pub(super) fn take(&mut self, chunk: Chunk) -> Result<Vec<Event>, Broken> {
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(reported(&error));
        }
        // Counts so far come with each chunk of some servers: the last are the whole.
        self.usage = chunk.usage.or(self.usage);
        let mut tokens = Vec::new();
        for choice in chunk.choices.unwrap_or_default().into_iter().filter(|choice| choice.index == 0) {
            tokens.extend(self.choice(choice)?);
        }
        if self.bytes > ANSWER_BYTES_MAX {
            return Err(Broken::Failed(format!("the answer has more than {ANSWER_BYTES_MAX} bytes")));
        }
        Ok(tokens)
    }

    /// The whole, once the stream has ended. `prompt_bytes` were sent.
    pub(super) fn finish(mut self, prompt_bytes: usize, first_token: Option<Duration>, total: Duration) -> Outcome {
        let (mut calls, mut malformed) = (Vec::new(), Vec::new());
        self.calls.sort_by_key(|call| call.index);
        for call in std::mem::take(&mut self.calls) {
            call.settle(&mut calls, &mut malformed);
        }
        let called = !(calls.is_empty() && malformed.is_empty());
        let reason = match self.reason {
            Some(FinishReason::Length) => FinishReason::Length,
            // Some servers say `stop` behind a call that had to come.
            _ if called => FinishReason::ToolCalls,
            _ => FinishReason::Stop,
        };
        let estimate = Counts { prompt_tokens: prompt_bytes * 2 / 5, completion_tokens: self.tokens };
        let counts = self.usage.unwrap_or(estimate);
        Outcome {
            reason,
            text: self.text,
            tool_calls: calls,
            malformed,
            logprobs: self.logprobs,
            prompt_tokens: counts.prompt_tokens,
            completion_tokens: counts.completion_tokens,
            first_token: first_token.unwrap_or(total),
            total,
            ids: Vec::new(),
            ends: Vec::new(),
            cached_tokens: 0,
            dropped_messages: 0,
            alternatives: Vec::new(),
        }
    }

    fn choice(&mut self, choice: Choice) -> Result<Vec<Event>, Broken> {
        let delta = choice.delta.unwrap_or_default();
        let thinks = delta.thinks();
        // What a model says instead of an answer is what its reader should see.
        let text = delta.content.unwrap_or_default() + delta.refusal.as_deref().unwrap_or_default();
        let fragments = delta.tool_calls.unwrap_or_default();
        let entries: Vec<TokenLogprob> = match (self.others, choice.logprobs) {
            (Some(others), Some(logprobs)) => logprobs.entries(others).collect(),
            _ => Vec::new(),
        };
        let progress = thinks || !text.is_empty() || !fragments.is_empty();
        for fragment in fragments {
            self.fragment(fragment)?;
        }
        if let Some(reason) = choice.finish_reason {
            self.reason = Some(read_reason(&reason)?);
        }
        self.bytes += text.len() + entries.iter().map(bytes_of).sum::<usize>();
        self.text.push_str(&text);
        self.held.push_str(&text);
        Ok(self.tell(entries, progress))
    }

    /// The tokens of one delta, the last of them with its text. Once probabilities came, text without any waits for the
    /// next that has some, or for the end.
    fn tell(&mut self, mut entries: Vec<TokenLogprob>, progress: bool) -> Vec<Event> {
        let token = |text, logprob| Event::Token { id: UNKNOWN_ID, text, logprob };
        let Some(last) = entries.pop() else {
            if !progress || !self.logprobs.is_empty() {
                return Vec::new();
            }
            self.tokens += 1;
            return vec![token(std::mem::take(&mut self.held), None)];
        };
        self.tokens += entries.len() + 1;
        self.logprobs.extend(entries.iter().cloned().chain([last.clone()]));
        let before = entries.into_iter().map(|entry| token(String::new(), Some(entry)));
        before.chain([token(std::mem::take(&mut self.held), Some(last))]).collect()
    }

    /// Joins a piece to its call. Some servers leave the index out, and some count every call as the first: then a new
    /// id or, without ids, a name begins another call.
    fn fragment(&mut self, fragment: Fragment) -> Result<(), Broken> {
        let function = fragment.function.unwrap_or_default();
        let (id, name) = (fragment.id.unwrap_or_default(), function.name.clone().unwrap_or_default());
        let arguments = function.arguments();
        let same = |call: &Call| match fragment.index {
            Some(_) => call.index == fragment.index && (id.is_empty() || call.id.is_empty() || call.id == id),
            None => name.is_empty() || (!id.is_empty() && call.id == id),
        };
        self.bytes += id.len() + name.len() + arguments.len();
        let known = self.calls.iter().rposition(same);
        if known.is_none() {
            if self.calls.len() == CALLS_MAX {
                return Err(Broken::Failed(format!("the answer has more than {CALLS_MAX} calls")));
            }
            self.calls.push(Call { index: fragment.index, ..Call::default() });
        }
        let at = known.unwrap_or(self.calls.len() - 1);
        let call = &mut self.calls[at];
        if call.id.is_empty() {
            call.id = id;
        }
        if call.name.is_empty() {
            call.name = name;
        }
        call.arguments.push_str(&arguments);
        Ok(())
    }
}

impl Call {
    /// A call whose arguments are an object stays as it was written; everything else is shown to the model.
    fn settle(mut self, calls: &mut Vec<FunctionCall>, malformed: &mut Vec<(String, String)>) {
        if self.arguments.trim().is_empty() {
            self.arguments = "{}".to_owned();
        }
        if !self.name.is_empty() && is_object(&self.arguments) {
            calls.push(FunctionCall { name: self.name, arguments: self.arguments });
            return;
        }
        let why = if self.name.is_empty() { "it names no tool" } else { "its arguments are no JSON object" };
        let text = format!("{{\"name\": \"{}\", \"arguments\": {}}}", self.name, self.arguments);
        malformed.push((shortened(text), why.to_owned()));
    }
}

fn read_reason(reason: &str) -> Result<FinishReason, Broken> {
    match reason {
        "length" | "max_tokens" => Ok(FinishReason::Length),
        "tool_calls" | "function_call" => Ok(FinishReason::ToolCalls),
        "content_filter" => Err(Broken::Refused("the server's content filter ended the answer".to_owned())),
        "error" | "abort" | "cancelled" => Err(Broken::Failed(format!("the server ended the answer with `{reason}`"))),
        // `stop`, and the names that servers have for it: the model ended its turn.
        _ => Ok(FinishReason::Stop),
    }
}

/// An error in the place of a chunk: what is our fault stays so in the next attempt.
pub(super) fn reported(error: &serde_json::Value) -> Broken {
    let words = super::refusal::words(error).unwrap_or_else(|| error.to_string());
    let text = format!("the server broke off: {words}");
    let code = error.get("code").and_then(serde_json::Value::as_u64);
    match code {
        Some(400..=499) if code != Some(429) => Broken::Refused(text),
        _ => Broken::Failed(text),
    }
}

fn bytes_of(entry: &TokenLogprob) -> usize {
    let number = size_of::<f32>();
    entry.token.len() + number + entry.top_logprobs.iter().map(|top| top.token.len() + number).sum::<usize>()
}

#[cfg(test)]
mod tests;
