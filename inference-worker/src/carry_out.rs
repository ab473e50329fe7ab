//! One job from claim to verdict: its tokens on the bus, its result in the log.

use std::pin::{Pin, pin};

use futures::{
    FutureExt,
    future::{Fuse, FusedFuture},
};
use runtime::{
    bus::{Delivery, ObjectError},
    clock,
};
use schemas::{
    Fact, FactBody, Frame, InferenceJob, Message,
    chat::{TokenLogprob, Truncation},
    fact::{FailureClass, InferenceFailed},
    job::Purpose,
    presence::Hold,
    token::FrameKind,
    wire::Nanos,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    answered::{Given, as_summary, completed, next_frame},
    backend::Backend,
    engine::{Event, Outcome, Rejection, Request},
    remote::UNKNOWN_ID,
    results::{Found, tokens_max},
    sample::Sampling,
    service::{RETRY_AFTER, Service},
    traced,
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
        let now = clock::now();
        traced::record(job, &self.id, taken_at, now, &body);
        tracing::debug!(effect = %job.effect, attempt = job.attempt, outcome = body.name(), "an inference has ended");
        let mut fact = Fact::new(job.exec, now, body);
        fact.cause = Some(self.id.clone());
        fact.trace = job.trace.clone();
        let verdict = match self.runtime.bus.append_fact(&fact).await {
            Ok(_) => {
                self.metrics.answered(backend.name(), &fact.body);
                delivery.done().await
            }
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
            Ok(given) => FactBody::InferenceCompleted(completed(job, &self.id, taken_at, given)),
            Err((class, detail)) => {
                let (effect, attempt, worker) = (job.effect.clone(), job.attempt, self.id.clone());
                FactBody::InferenceFailed(InferenceFailed { effect, attempt, worker, class, detail })
            }
        };
        if let FactBody::InferenceCompleted(completed) = &body {
            end.n = completed.answer_tokens();
            end.finish = Some(completed.finish);
            end.usage = Some(completed.usage);
        }
        self.publish(job, &end).await;
        match job.purpose {
            Purpose::Answer => body,
            Purpose::Summary => as_summary(body),
        }
    }

    /// Gives the answer that is known, or lets the model make it; `published` counts its tokens.
    async fn generate(
        &self,
        backend: &Backend,
        job: &InferenceJob,
        published: &mut u64,
    ) -> Result<Given, (FailureClass, String)> {
        let since = clock::instant();
        let produced = match job.attempt {
            _ if !backend.continues() => self.start_over(job).await,
            1 => Produced::default(),
            _ => self.produced(job).await,
        };
        *published = produced.ids.len() as u64;
        let found = match self.results.key(job, backend.identity().as_deref()) {
            Some(key) => self.results.find(key, job.attempt).await,
            None => Found::Nowhere,
        };
        let claim = match found {
            // What an earlier attempt has said stands.
            Found::Known(known) if known.ids.starts_with(&produced.ids) => {
                let mut outcome = Outcome::clone(&known);
                outcome.cached_tokens = outcome.prompt_tokens;
                outcome.first_token = since.elapsed();
                self.repeat(job, &outcome, published).await;
                outcome.total = since.elapsed();
                return Ok(Given { outcome, cached: true });
            }
            Found::Nothing(claim) => Some(claim),
            Found::Known(_) | Found::Nowhere => None,
        };
        let waited = since.elapsed();
        let mut outcome = self.compute(backend, job, produced, published).await?;
        if let Some(claim) = claim {
            self.results.keep(claim, &outcome);
        }
        (outcome.first_token, outcome.total) = (outcome.first_token + waited, outcome.total + waited);
        Ok(Given { outcome: *outcome, cached: false })
    }

    /// Publishes the tokens of a known answer behind those that were published.
    async fn repeat(&self, job: &InferenceJob, outcome: &Outcome, published: &mut u64) {
        while let Some(frame) = next_frame(job, outcome, *published as usize) {
            *published += frame.ids.len() as u64;
            self.publish(job, &frame).await;
        }
    }

    /// Runs the model and publishes tokens as they come; `published` counts them.
    async fn compute(
        &self,
        backend: &Backend,
        job: &InferenceJob,
        produced: Produced,
        published: &mut u64,
    ) -> Result<Box<Outcome>, (FailureClass, String)> {
        let messages = self.whole(&job.messages).await?;
        let submitted = backend.submit(request(job, &messages, produced)).await;
        let mut running = submitted.map_err(|rejection| (class_of(&rejection), format!("generate: {rejection}")))?;
        let mut taken = pin!(Fuse::terminated());
        loop {
            let Said { ids, text, logprobs, end } = gather(&mut running.events, taken.as_mut()).await;
            if !ids.is_empty() {
                let n = std::mem::replace(published, *published + ids.len() as u64);
                let frame = Frame { ids, text, logprobs, ..Frame::new(job.attempt, n, FrameKind::Delta) };
                self.publish(job, &frame).await;
            }
            match end {
                Some(end) => return end,
                None if job.purpose == Purpose::Answer => taken.set(self.runtime.bus.tokens_taken().fuse()),
                None => {}
            }
        }
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
            return self.start_over(job).await;
        }
        produced
    }

    /// Makes readers forget what they were shown, so that the answer can begin anew. Those who were shown nothing do not
    /// notice, so a backend that cannot continue begins like this always: this job may have been handed out before.
    async fn start_over(&self, job: &InferenceJob) -> Produced {
        self.publish(job, &Frame::new(job.attempt, 0, FrameKind::Restart)).await;
        Produced::default()
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

/// What an engine has said since the last frame.
#[derive(Default)]
struct Said {
    ids: Vec<u32>,
    text: String,
    logprobs: Vec<TokenLogprob>,
    /// The answer, or why there is none, once nothing follows.
    end: Option<Result<Box<Outcome>, (FailureClass, String)>>,
}

/// Waits for something to say, and takes with it what has piled up: what is there, and what comes before the server has
/// `taken` the last frame. The end is not waited with.
async fn gather(
    events: &mut mpsc::UnboundedReceiver<Event>,
    mut taken: Pin<&mut impl FusedFuture<Output = bool>>,
) -> Said {
    let mut said = Said::default();
    loop {
        tokio::select! {
            biased;
            event = events.recv() => {
                said.end = match event {
                    Some(Event::Token { id, text, logprob }) => {
                        said.ids.push(id);
                        said.text.push_str(&text);
                        said.logprobs.extend(logprob);
                        continue;
                    }
                    Some(Event::Finished(outcome)) => Some(Ok(outcome)),
                    Some(Event::Failed(why)) => Some(Err((FailureClass::Internal, format!("generate: {why}")))),
                    Some(Event::Refused(why)) => Some(Err((FailureClass::BadRequest, format!("generate: {why}")))),
                    None => Some(Err(failure(FailureClass::Internal, "generate: the engine ended without an answer"))),
                };
                return said;
            }
            _ = &mut taken, if !taken.is_terminated() => {}
            () = std::future::ready(()), if taken.is_terminated() && !said.ids.is_empty() => return said,
        }
    }
}

const fn class_of(rejection: &Rejection) -> FailureClass {
    match rejection {
        Rejection::PromptTooLong { .. } | Rejection::Overflow(_) => FailureClass::Overflow,
        Rejection::Overloaded(_) => FailureClass::Overloaded,
        Rejection::Refused(_) => FailureClass::Refused,
        Rejection::Template(_) | Rejection::Tokenise(_) | Rejection::Unusable(_) => FailureClass::BadRequest,
        Rejection::Stopped | Rejection::Broken(_) => FailureClass::Internal,
    }
}

fn request(job: &InferenceJob, messages: &[Message], produced: Produced) -> Request {
    let json = |value| serde_json::to_value(value).expect("messages have string keys");
    let tokens_max = Some(tokens_max(job)).filter(|limit| *limit > 0);
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
        tokens_max: tokens_max.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        stop: job.sampling.stop.clone(),
        tool_choice: job.sampling.tool_choice.clone(),
        one_call: job.sampling.parallel_tool_calls == Some(false),
        response_format: job.sampling.response_format.clone(),
        produced: produced.ids,
        produced_logprobs: produced.logprobs,
        tenant: tenant(job.user_id.as_deref()),
        priority: job.priority,
        alternatives: job.sampling.answers() as usize - 1,
        truncate: job.truncation == Truncation::Auto,
    }
}

/// Users are told apart by a hash of their name; two that collide share a turn.
fn tenant(user: Option<&str>) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    user.unwrap_or_default().bytes().fold(0xcbf2_9ce4_8422_2325, mix)
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

/// Joins frames of all attempts into what they hold from token 0 up to the first hole, since the last new beginning.
/// Behind tokens of a remote model, which have no ids, nobody can continue.
fn contiguous(frames: &[Frame], logprobs: bool) -> Produced {
    let mut known = Produced::default();
    let begun = frames.iter().enumerate().filter(|(_, frame)| frame.k == FrameKind::Restart);
    let (attempt, from) = begun.map(|(at, frame)| (frame.attempt, at)).max().unwrap_or_default();
    let counts = |frame: &&Frame| frame.k == FrameKind::Delta && frame.attempt >= attempt;
    let whole = |frame: &&Frame| !logprobs || frame.logprobs.len() == frame.ids.len();
    for frame in frames[from..].iter().filter(counts).filter(whole) {
        let count = known.ids.len() as u64;
        if frame.n <= count {
            let skip = (count - frame.n) as usize;
            known.ids.extend(frame.ids.iter().skip(skip));
            known.logprobs.extend(frame.logprobs.iter().skip(skip).cloned());
        }
    }
    if known.ids.iter().all(|id| *id == UNKNOWN_ID) { Produced::default() } else { known }
}

#[cfg(test)]
mod tests {
    use futures::poll;
    use tokio::sync::oneshot;

    use super::*;

    /// A token of this id, whose text is its number.
    fn token(id: u32) -> Event {
        Event::Token { id, text: id.to_string(), logprob: None }
    }

    #[tokio::test]
    async fn tokens_are_joined_while_the_server_is_behind_and_not_otherwise() {
        let (engine, mut events) = mpsc::unbounded_channel();
        let say = |id| engine.send(token(id)).expect("it is heard");
        say(1);
        let nothing_under_way = pin!(Fuse::<std::future::Pending<bool>>::terminated());
        assert_eq!(gather(&mut events, nothing_under_way).await.ids, [1], "the first leaves at once");

        let (server, takes) = oneshot::channel();
        let mut taken = pin!(takes.map(|taken| taken.is_ok()).fuse());
        let said = {
            let mut gathering = pin!(gather(&mut events, taken.as_mut()));
            for id in 2..5 {
                say(id);
                assert!(poll!(&mut gathering).is_pending(), "the server has not taken the first");
            }
            server.send(()).expect("it is waited for");
            gathering.await
        };
        assert_eq!((said.ids, said.text.as_str()), (vec![2, 3, 4], "234"));
        assert!(said.end.is_none());
        say(5);
        assert_eq!(gather(&mut events, taken.as_mut()).await.ids, [5], "the server has taken all: it leaves at once");
    }

    #[tokio::test]
    async fn the_end_waits_for_no_server() {
        let (engine, mut events) = mpsc::unbounded_channel();
        engine.send(token(1)).expect("it is heard");
        engine.send(Event::Failed("broken".to_owned())).expect("it is heard");
        let behind = pin!(std::future::pending::<bool>().fuse());
        let said = gather(&mut events, behind).await;
        assert_eq!(said.ids, [1]);
        assert!(matches!(said.end, Some(Err((FailureClass::Internal, why))) if why.contains("broken")));
        drop(engine);
        let ended = gather(&mut events, pin!(std::future::pending::<bool>().fuse())).await;
        assert!(matches!(ended.end, Some(Err((FailureClass::Internal, _)))));
    }

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

    #[test]
    fn an_attempt_continues_after_the_last_new_beginning_and_never_after_tokens_without_ids() {
        let restart = |attempt| Frame::new(attempt, 0, FrameKind::Restart);
        let local = [frame(1, 0, &[5, 6]), restart(2), frame(1, 2, &[7]), frame(2, 0, &[8])];
        assert_eq!(contiguous(&local, false).ids, [8]);
        let remote = [frame(1, 0, &[5, 6]), restart(2), frame(2, 0, &[UNKNOWN_ID, UNKNOWN_ID])];
        assert_eq!(contiguous(&remote, false).ids, [0_u32; 0]);
    }
}
