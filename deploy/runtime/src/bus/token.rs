//! Tokens: published without waiting, read live, and repaired from the stream that listens in.

use std::collections::VecDeque;

use async_nats::{Client, Subscriber};
use futures::StreamExt;
use schemas::wire::{decode, encode};
use schemas::{EffectId, ExecutionId, Frame, stream, subject};
use serde_json::json;

use super::log::direct_get;
use super::{Bus, Error};

/// Frames asked for at a time when an effect's frames are read back.
const READ_BATCH: u64 = 1_024;

impl Bus {
    /// Publishes a frame. It is not acknowledged: the log is what counts.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn publish_tokens(&self, exec: ExecutionId, effect: &EffectId, frame: &Frame) -> Result<(), Error> {
        self.tokens.publish(subject::tokens(exec, effect), encode(frame).into()).await.map_err(Error::broken)
    }

    /// Waits until the server has taken the frames that this process has published so far, for a round trip or two; false
    /// when it has not within a second or two. What piles up meanwhile can leave in one frame: a server that keeps up, and
    /// is nearer than an engine's step is long, gets every token as it comes, and one that is behind or far away gets as
    /// many frames as it can take. Cancel safe.
    pub async fn tokens_taken(&self) -> bool {
        self.pace.taken().await
    }

    /// The frames of an effect that are still kept, in order of arrival.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn read_tokens(&self, exec: ExecutionId, effect: &EffectId) -> Result<Vec<Frame>, Error> {
        read(&self.tokens, exec, effect).await
    }

    /// Reads the frames of an execution live: first those of its first inference, then those of what the reader is turned
    /// to.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn tokens(&self, exec: ExecutionId) -> Result<TokenReader, Error> {
        let (client, effect) = (self.tokens.clone(), EffectId::inference(1));
        let frames = subscribe(&client, exec, &effect).await?;
        Ok(TokenReader { client, exec, effect, frames, position: None, ready: VecDeque::new() })
    }
}

/// To one subject: one with a wildcard costs the server a look at every subject that it remembers. Frames that come before
/// the server knows of it are a gap like any other.
async fn subscribe(client: &Client, exec: ExecutionId, effect: &EffectId) -> Result<Subscriber, Error> {
    client.subscribe(subject::tokens(exec, effect)).await.map_err(Error::broken)
}

async fn read(client: &Client, exec: ExecutionId, effect: &EffectId) -> Result<Vec<Frame>, Error> {
    let mut frames = Vec::new();
    let mut from = 1;
    loop {
        let request = json!({"seq": from, "next_by_subj": subject::tokens(exec, effect), "batch": READ_BATCH});
        let batch = direct_get(client, stream::TOKENS, &request).await?;
        let full = batch.len() as u64 == READ_BATCH;
        for message in batch {
            from = super::pull::header(&message, "Nats-Sequence")
                .and_then(|s| s.parse::<u64>().ok())
                .map_or(from, |s| s + 1);
            frames.push(decode(&message.payload)?);
        }
        if !full {
            return Ok(frames);
        }
    }
}

/// Where a reader stands: the effect and attempt it follows, and the next token it expects.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Position {
    effect: EffectId,
    attempt: u32,
    next: u64,
}

/// What a frame is to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The next one.
    Next,
    /// Of an older attempt or effect, or shown already.
    Old,
    /// Frames are missing before it.
    Gap,
}

impl Position {
    /// Effects are followed in the order of their turns; within one, the newest attempt.
    fn place(this: Option<&Self>, effect: &EffectId, frame: &Frame) -> Place {
        use schemas::token::FrameKind::Restart;
        let expected = match this {
            Some(p) if &p.effect == effect => {
                if frame.attempt < p.attempt {
                    return Place::Old;
                }
                p.next
            }
            Some(p) if turn(effect) < turn(&p.effect) => return Place::Old,
            _ => 0,
        };
        match frame.k {
            Restart => Place::Next,
            _ if frame.n < expected => Place::Old,
            _ if frame.n > expected => Place::Gap,
            _ => Place::Next,
        }
    }
}

fn turn(effect: &EffectId) -> u32 {
    effect.as_str().split('-').next().and_then(|t| t.parse().ok()).unwrap_or(0)
}

/// Follows the frames of one execution: each effect's newest attempt, without holes and without repeats.
pub struct TokenReader {
    client: Client,
    exec: ExecutionId,
    /// The effect whose frames come.
    effect: EffectId,
    frames: Subscriber,
    position: Option<Position>,
    ready: VecDeque<(EffectId, Frame)>,
}

impl TokenReader {
    /// Follows the inference of a later turn from its first frame on; the one before has said all it had to. One that is
    /// followed already, and an earlier one, change nothing.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn turn_to(&mut self, effect: &EffectId) -> Result<(), Error> {
        if turn(effect) > turn(&self.effect) {
            self.frames = subscribe(&self.client, self.exec, effect).await?;
            self.effect = effect.clone();
            // Its worker may have been faster.
            self.fill().await;
        }
        Ok(())
    }

    /// The next frame; none when the connection is closed. Cancel safe.
    ///
    /// A hole is filled from the stream of recent tokens; what that no longer holds is left out, and whoever needs
    /// the whole text takes it from the log.
    pub async fn next(&mut self) -> Option<(EffectId, Frame)> {
        loop {
            if let Some((effect, frame)) = self.ready.pop_front() {
                if Position::place(self.position.as_ref(), &effect, &frame) == Place::Old {
                    continue;
                }
                self.advance(&effect, &frame);
                return Some((effect, frame));
            }
            let message = self.frames.next().await?;
            let frame: Frame = match decode(&message.payload) {
                Ok(frame) => frame,
                Err(error) => {
                    tracing::warn!(%error, subject = %message.subject, "skipped a token message");
                    continue;
                }
            };
            if Position::place(self.position.as_ref(), &self.effect, &frame) == Place::Gap {
                self.fill().await;
            }
            self.ready.push_back((self.effect.clone(), frame));
        }
    }

    async fn fill(&mut self) {
        match read(&self.client, self.exec, &self.effect).await {
            Ok(frames) => self.ready.extend(frames.into_iter().map(|f| (self.effect.clone(), f))),
            Err(error) => {
                tracing::warn!(%error, exec = %self.exec, "a gap in the tokens was not filled");
            }
        }
    }

    fn advance(&mut self, effect: &EffectId, frame: &Frame) {
        let next = frame.n + frame.ids.len() as u64;
        self.position = Some(Position { effect: effect.clone(), attempt: frame.attempt, next });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::token::FrameKind;

    fn frame(attempt: u32, n: u64, count: usize) -> Frame {
        Frame {
            attempt,
            n,
            ids: vec![7; count],
            text: String::new(),
            k: FrameKind::Delta,
            finish: None,
            usage: None,
            logprobs: Vec::new(),
        }
    }

    fn at(turn: u32, attempt: u32, next: u64) -> Option<Position> {
        Some(Position { effect: EffectId::inference(turn), attempt, next })
    }

    #[test]
    fn a_reader_takes_what_comes_next_and_notices_holes() {
        let effect = EffectId::inference(1);
        assert_eq!(Position::place(None, &effect, &frame(1, 0, 1)), Place::Next);
        assert_eq!(Position::place(None, &effect, &frame(1, 3, 1)), Place::Gap);
        assert_eq!(Position::place(at(1, 1, 3).as_ref(), &effect, &frame(1, 3, 2)), Place::Next);
        assert_eq!(Position::place(at(1, 1, 3).as_ref(), &effect, &frame(1, 2, 1)), Place::Old);
    }

    #[test]
    fn a_newer_attempt_continues_and_an_older_one_is_dropped() {
        let effect = EffectId::inference(1);
        assert_eq!(Position::place(at(1, 1, 3).as_ref(), &effect, &frame(2, 3, 1)), Place::Next);
        assert_eq!(Position::place(at(1, 2, 5).as_ref(), &effect, &frame(1, 5, 1)), Place::Old);
        assert_eq!(Position::place(at(2, 1, 0).as_ref(), &effect, &frame(1, 9, 1)), Place::Old);
        assert_eq!(Position::place(at(1, 1, 9).as_ref(), &EffectId::inference(2), &frame(1, 0, 1)), Place::Next);
    }
}
