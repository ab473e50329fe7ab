//! One job from claim to verdict: its tokens on the bus, its result in the log.

use std::time::Duration;

use runtime::{
    bus::{Delivery, ObjectError},
    clock,
};
use schemas::{
    Fact, FactBody, Frame, InferenceJob, Message, Usage,
    chat::TokenLogprob,
    fact::{
        CompressionCompleted, CompressionFailed, FailureClass, InferenceCompleted, InferenceFailed, InferenceTiming,
    },
    job::Purpose,
    presence::Hold,
    token::FrameKind,
    wire::Nanos,
};
use tokio_util::sync::CancellationToken;

use crate::{
    answer::FinishReason,
    backend::Backend,
    engine::{Event, Outcome, Rejection, Request},
    sample::Sampling,
    service::{RETRY_AFTER, Service},
};

impl Service {
    /// One job from claim to verdict.
    pub(crate) async fn carry_out(&self, backend: &Backend, delivery: Delivery<InferenceJob>) {
        let job = &delivery.job;
        let taken_at = clock::now();
        let stop = CancellationToken::new();
        let key = (job.exec, job.effect.clone());
        self.held.lock().expect("no panic while the lock is held").insert(key.clone(), (job.attempt, stop.clone()));
        let hold = Hold { exec: job.exec, effect: job.effect.clone(), attempt: job.attempt, worker: self.id.clone() };
        if let Err(error) = self.runtime.bus.claim(&hold).await {
            tracing::debug!(%error, "a claim was not announced");
        }
        let body = self.result(backend, job, taken_at, &stop).await;
        self.unfinished.answered(backend.name(), job.exec, &body);
        let mut fact = Fact::new(job.exec, clock::now(), body);
        fact.cause = Some(self.id.clone());
        fact.trace = job.trace.clone();
        let verdict = match self.runtime.bus.append_fact(&fact).await {
            Ok(_) => delivery.done().await,
            Err(error) => {
                tracing::warn!(%error, exec = %key.0, "a result did not reach the log; the job comes again");
                delivery.retry(RETRY_AFTER).await
            }
        };
        if let Err(error) = verdict {
            tracing::debug!(%error, exec = %key.0, "a verdict was not confirmed; the job may come again");
        }
        self.held.lock().expect("no panic while the lock is held").remove(&key);
    }

    /// Generates the answer; says in the tokens how it ended, too.
    async fn result(
        &self,
        backend: &Backend,
        job: &InferenceJob,
        taken_at: Nanos,
        stop: &CancellationToken,
    ) -> FactBody {
        let mut end = Frame::new(job.attempt, 0, FrameKind::End);
        let work = stop.run_until_cancelled(self.generate(backend, job, &mut end.n));
        let result = match tokio::time::timeout(clock::until(job.deadline), work).await {
            Ok(Some(result)) => result,
            Ok(None) => Err(failure(FailureClass::Cancelled, "generate: the execution was cancelled")),
            Err(_) => Err(failure(FailureClass::Timeout, "generate before the deadline")),
        };
        let body = match result {
            Ok(outcome) => FactBody::InferenceCompleted(completed(job, &self.id, taken_at, *outcome)),
            Err((class, detail)) => {
                let (effect, attempt, worker) = (job.effect.clone(), job.attempt, self.id.clone());
                FactBody::InferenceFailed(InferenceFailed { effect, attempt, worker, class, detail })
            }
        };
        if let FactBody::InferenceCompleted(completed) = &body {
            end.n = completed.usage.completion_tokens;
            end.finish = Some(completed.finish);
            end.usage = Some(completed.usage);
        }
        self.publish(job, &end).await;
        match job.purpose {
            Purpose::Answer => body,
            Purpose::Summary => as_summary(body),
        }
    }

    /// Runs the model and publishes tokens as they come; `published` counts them.
    async fn generate(
        &self,
        backend: &Backend,
        job: &InferenceJob,
        published: &mut u64,
    ) -> Result<Box<Outcome>, (FailureClass, String)> {
        let produced = if job.attempt > 1 { self.produced(job).await } else { Produced::default() };
        *published = produced.ids.len() as u64;
        let messages = self.whole(&job.messages).await?;
        let submitted = backend.submit(request(job, &messages, produced)).await;
        let mut running = submitted.map_err(|rejection| (class_of(&rejection), format!("generate: {rejection}")))?;
        while let Some(event) = running.events.recv().await {
            let mut frame = Frame::new(job.attempt, *published, FrameKind::Delta);
            let mut next = Some(event);
            // What has piled up while the bus was slow leaves in one frame.
            while let Some(Event::Token { id, text, logprob }) = next {
                frame.ids.push(id);
                frame.text.push_str(&text);
                frame.logprobs.extend(logprob);
                next = running.events.try_recv().ok();
            }
            if !frame.ids.is_empty() {
                *published += frame.ids.len() as u64;
                self.publish(job, &frame).await;
            }
            match next {
                Some(Event::Finished(outcome)) => return Ok(outcome),
                Some(Event::Failed(reason)) => {
                    return Err((FailureClass::Internal, format!("generate: {reason}")));
                }
                Some(Event::Refused(reason)) => {
                    return Err((FailureClass::BadRequest, format!("generate: {reason}")));
                }
                Some(Event::Token { .. }) | None => {}
            }
        }
        Err(failure(FailureClass::Internal, "generate: the engine ended without an answer"))
    }

    /// The prompt with the texts that lie in the object store.
    async fn whole(&self, messages: &[Message]) -> Result<Vec<Message>, (FailureClass, String)> {
        let mut whole = messages.to_vec();
        for message in &mut whole {
            let Some(reference) = message.object.take() else { continue };
            let text = self.runtime.bus.text(&reference).await.map_err(|error| {
                let class = match &error {
                    ObjectError::Bus(_) => FailureClass::Internal,
                    ObjectError::Missing(_) | ObjectError::Damaged(_) | ObjectError::TooLarge(_) => {
                        FailureClass::BadRequest
                    }
                };
                (class, format!("read the prompt: {error}"))
            })?;
            message.content.insert_str(0, &text);
        }
        Ok(whole)
    }

    /// The tokens that earlier attempts published, as far as they are known without a hole.
    async fn produced(&self, job: &InferenceJob) -> Produced {
        let frames = self.runtime.bus.read_tokens(job.exec, &job.effect).await.unwrap_or_else(|error| {
            tracing::warn!(%error, exec = %job.exec, "the tokens of earlier attempts cannot be read; starting over");
            Vec::new()
        });
        let produced = contiguous(&frames, job.sampling.logprobs);
        if produced.ids.is_empty() {
            // Somebody may have seen tokens that are no longer kept.
            let restart = Frame::new(job.attempt, 0, FrameKind::Restart);
            self.publish(job, &restart).await;
        }
        produced
    }

    async fn publish(&self, job: &InferenceJob, frame: &Frame) {
        // Nobody reads a summary along.
        if job.purpose == Purpose::Summary {
            return;
        }
        if let Err(error) = self.runtime.bus.publish_tokens(job.exec, &job.effect, frame).await {
            tracing::debug!(%error, exec = %job.exec, "tokens were not published; the log will have them");
        }
    }
}

const fn class_of(rejection: &Rejection) -> FailureClass {
    match rejection {
        Rejection::PromptTooLong { .. } => FailureClass::Overflow,
        Rejection::Template(_) | Rejection::Tokenise(_) | Rejection::Unusable(_) => FailureClass::BadRequest,
        Rejection::Stopped | Rejection::Broken(_) => FailureClass::Internal,
    }
}

fn request(job: &InferenceJob, messages: &[Message], produced: Produced) -> Request {
    let json = |value| serde_json::to_value(value).expect("messages have string keys");
    let limits = [(job.tokens_max > 0).then_some(job.tokens_max), job.sampling.max_tokens.map(u64::from)];
    Request {
        messages: messages.iter().map(json).collect(),
        tools: job.tools.iter().map(|tool| serde_json::to_value(tool).expect("tools have string keys")).collect(),
        sampling: Sampling {
            temperature: job.sampling.temperature.unwrap_or(0.0),
            top_k: job.sampling.top_k.map_or(0, |count| count as usize),
            top_p: job.sampling.top_p.unwrap_or(1.0),
            min_p: job.sampling.min_p.unwrap_or(0.0),
            repetition_penalty: job.sampling.repetition_penalty.unwrap_or(1.0),
            presence_penalty: job.sampling.presence_penalty.unwrap_or(0.0),
            frequency_penalty: job.sampling.frequency_penalty.unwrap_or(0.0),
            seed: job.sampling.seed.unwrap_or(0),
            logprobs: job.sampling.logprobs.then_some(job.sampling.top_logprobs.unwrap_or(0) as usize),
        },
        tokens_max: limits.into_iter().flatten().min().map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        stop: job.sampling.stop.clone(),
        tool_choice: job.sampling.tool_choice.clone(),
        response_format: job.sampling.response_format.clone(),
        produced: produced.ids,
        produced_logprobs: produced.logprobs,
        tenant: tenant(job.user_id.as_deref()),
    }
}

/// Users are told apart by a hash of their name; two that collide share a turn.
fn tenant(user: Option<&str>) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    user.unwrap_or_default().bytes().fold(0xcbf2_9ce4_8422_2325, mix)
}

fn completed(job: &InferenceJob, worker: &str, taken_at: Nanos, outcome: Outcome) -> InferenceCompleted {
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let name = |index: usize| format!("call-{}-{index}", job.effect);
    let calls = outcome.tool_calls.into_iter().map(|call| (call.name, call.arguments.to_string()));
    // A malformed call goes on as a call: the tool worker refuses it, and the model reads why.
    let malformed = outcome.malformed.into_iter().map(|(text, _)| (schemas::chat::MALFORMED_CALL.to_owned(), text));
    InferenceCompleted {
        effect: job.effect.clone(),
        attempt: job.attempt,
        worker: worker.to_owned(),
        text: outcome.text,
        tool_calls: calls
            .chain(malformed)
            .enumerate()
            .map(|(index, (tool, arguments))| schemas::ToolCall::new(name(index), tool, arguments))
            .collect(),
        finish: match outcome.reason {
            FinishReason::Stop => schemas::FinishReason::Stop,
            FinishReason::Length => schemas::FinishReason::Length,
            FinishReason::ToolCalls => schemas::FinishReason::ToolCalls,
        },
        usage: Usage::new(outcome.prompt_tokens as u64, outcome.completion_tokens as u64),
        cached_tokens: outcome.cached_tokens as u64,
        timing: InferenceTiming {
            queue_us: u64::try_from((taken_at - job.queued_at) / 1_000).unwrap_or(0),
            prefill_us: micros(outcome.first_token),
            decode_us: micros(outcome.total.saturating_sub(outcome.first_token)),
        },
        logprobs: outcome.logprobs,
    }
}

/// The same end, as the fact about a summary.
fn as_summary(body: FactBody) -> FactBody {
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

fn failure(class: FailureClass, detail: &str) -> (FailureClass, String) {
    (class, detail.to_owned())
}

/// What earlier attempts are known to have produced.
#[derive(Debug, Default)]
struct Produced {
    ids: Vec<u32>,
    /// One for each id, if they are asked for.
    logprobs: Vec<TokenLogprob>,
}

/// Joins frames of all attempts into what they hold from token 0 up to the first hole.
fn contiguous(frames: &[Frame], logprobs: bool) -> Produced {
    let mut known = Produced::default();
    let whole = |frame: &&Frame| !logprobs || frame.logprobs.len() == frame.ids.len();
    for frame in frames.iter().filter(|frame| frame.k == FrameKind::Delta).filter(whole) {
        let count = known.ids.len() as u64;
        if frame.n <= count {
            let skip = (count - frame.n) as usize;
            known.ids.extend(frame.ids.iter().skip(skip));
            known.logprobs.extend(frame.logprobs.iter().skip(skip).cloned());
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(attempt: u32, n: u64, ids: &[u32]) -> Frame {
        Frame { ids: ids.to_vec(), ..Frame::new(attempt, n, FrameKind::Delta) }
    }

    #[test]
    fn an_attempt_continues_after_what_is_known_without_a_hole() {
        let frames = [frame(1, 0, &[5]), frame(1, 1, &[6, 7]), frame(2, 2, &[7, 8]), frame(2, 5, &[9])];
        assert_eq!(contiguous(&frames, false).ids, [5, 6, 7, 8]);
        assert_eq!(contiguous(&frames[1..], false).ids, [0_u32; 0]);
        assert_eq!(contiguous(&frames, true).ids, [0_u32; 0], "tokens without the probabilities asked for are a hole");
    }
}
