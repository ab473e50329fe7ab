//! From what the engine gave, or what was known, to what is published of it: the fact, and the frames of a known answer.

use std::time::Duration;

use schemas::{
    FactBody, Frame, InferenceJob, ToolCall, Usage,
    fact::{Alternative, CompressionCompleted, CompressionFailed, InferenceCompleted, InferenceTiming},
    token::FrameKind,
    wire::Nanos,
};

use crate::{answer::FinishReason, engine::Outcome};

/// Tokens of a known answer that leave in one frame: few frames, each far smaller than a message may be.
const FRAME_TOKENS_MAX: usize = 128;

/// An answer, and whether it had been known.
pub(crate) struct Given {
    pub(crate) outcome: Outcome,
    pub(crate) cached: bool,
}

/// The frame of a known answer that begins with token `from`; none behind the last.
pub(crate) fn next_frame(job: &InferenceJob, outcome: &Outcome, from: usize) -> Option<Frame> {
    let to = outcome.ids.len().min(from + FRAME_TOKENS_MAX);
    let ids = outcome.ids.get(from..to).filter(|ids| !ids.is_empty())?;
    let end_of = |tokens: usize| tokens.checked_sub(1).and_then(|last| outcome.ends.get(last)).map_or(0, |end| *end);
    Some(Frame {
        ids: ids.to_vec(),
        text: outcome.text.get(end_of(from)..end_of(to)).unwrap_or_default().to_owned(),
        logprobs: outcome.logprobs.get(from..to).unwrap_or_default().to_vec(),
        ..Frame::new(job.attempt, from as u64, FrameKind::Delta)
    })
}

/// The fact of an answer.
pub(crate) fn completed(job: &InferenceJob, worker: &str, taken_at: Nanos, given: Given) -> InferenceCompleted {
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let Given { mut outcome, cached } = given;
    let others = std::mem::take(&mut outcome.alternatives);
    let completion_tokens =
        outcome.completion_tokens + others.iter().map(|other| other.completion_tokens).sum::<usize>();
    let other = |(index, other): (usize, Outcome)| Alternative {
        tool_calls: tool_calls(&format!("call-{}-{index}", job.effect), &other),
        finish: finish(other.reason),
        completion_tokens: other.completion_tokens as u64,
        text: other.text,
        logprobs: other.logprobs,
    };
    InferenceCompleted {
        effect: job.effect.clone(),
        attempt: job.attempt,
        worker: worker.to_owned(),
        tool_calls: tool_calls(&format!("call-{}", job.effect), &outcome),
        finish: finish(outcome.reason),
        usage: Usage::new(outcome.prompt_tokens as u64, completion_tokens as u64),
        cached_tokens: outcome.cached_tokens as u64,
        timing: InferenceTiming {
            queue_us: u64::try_from((taken_at - job.queued_at) / 1_000).unwrap_or(0),
            prefill_us: micros(outcome.first_token),
            decode_us: micros(outcome.total.saturating_sub(outcome.first_token)),
        },
        text: outcome.text,
        logprobs: outcome.logprobs,
        alternatives: (1..).zip(others).map(other).collect(),
        cached,
        dropped_messages: u32::try_from(outcome.dropped_messages).unwrap_or(u32::MAX),
    }
}

/// The same end, as the fact about a summary.
pub(crate) fn as_summary(body: FactBody) -> FactBody {
    match body {
        FactBody::InferenceCompleted(f) => FactBody::CompressionCompleted(CompressionCompleted {
            effect: f.effect,
            attempt: f.attempt,
            worker: f.worker,
            summary: f.text,
            usage: f.usage,
        }),
        FactBody::InferenceFailed(f) => FactBody::CompressionFailed(CompressionFailed {
            effect: f.effect,
            attempt: f.attempt,
            worker: f.worker,
            class: f.class,
            detail: f.detail,
        }),
        other => other,
    }
}

/// The calls of one answer. A malformed call goes on as a call: the tool worker refuses it, and the model reads why.
fn tool_calls(name: &str, outcome: &Outcome) -> Vec<ToolCall> {
    let calls = outcome.tool_calls.iter().map(|call| (call.name.as_str(), call.arguments.clone()));
    let malformed = outcome.malformed.iter().map(|(text, _)| (schemas::chat::MALFORMED_CALL, text.clone()));
    let call =
        |(index, (tool, arguments)): (usize, (&str, String))| ToolCall::new(format!("{name}-{index}"), tool, arguments);
    calls.chain(malformed).enumerate().map(call).collect()
}

const fn finish(reason: FinishReason) -> schemas::FinishReason {
    match reason {
        FinishReason::Stop => schemas::FinishReason::Stop,
        FinishReason::Length => schemas::FinishReason::Length,
        FinishReason::ToolCalls => schemas::FinishReason::ToolCalls,
    }
}
