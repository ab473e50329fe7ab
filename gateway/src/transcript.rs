//! What one client has been sent: turns token frames and happenings into events of its stream, each once. Pure.
//!
//! The log is right: when it contradicts what was sent, the client is told to start the text anew.

use std::collections::{BTreeMap, BTreeSet};

use schemas::api::ToolCallReport;
use schemas::chat::TokenLogprob;
use schemas::token::FrameKind;
use schemas::{EffectId, Frame};

use crate::view::{Approval, Happening};

/// One event of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Update {
    /// More text; the id says where a client can resume. The probabilities, if asked, are those of all tokens since
    /// the last event, also of tokens whose text is not certain yet.
    Token { id: String, text: String, logprobs: Vec<TokenLogprob> },
    /// Forget this effect's text: it is this.
    Restart { id: String, text: String, logprobs: Vec<TokenLogprob> },
    /// A tool is asked.
    ToolCall(ToolCallReport),
    /// A call waits for a person.
    Approval(Approval),
    /// A tool call has its outcome.
    ToolResult(ToolCallReport),
    /// Nothing follows.
    Ended,
}

/// The text of one effect as far as it was sent.
#[derive(Clone, Debug, Default)]
struct Sent {
    attempt: u32,
    next: u64,
    text: String,
    /// Frames are missing: nothing more is sent until the log or a restart has the whole.
    broken: bool,
    /// The client holds a text we do not know: the next event replaces it.
    replace: bool,
    complete: bool,
    /// Of tokens that brought no text yet.
    logprobs: Vec<TokenLogprob>,
}

/// What was sent to one client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transcript {
    texts: BTreeMap<EffectId, Sent>,
    calls: BTreeSet<String>,
    approvals: BTreeSet<EffectId>,
    results: BTreeSet<String>,
    resumed: Option<(u32, EffectId, u64)>,
}

impl Transcript {
    /// The transcript of a client that has seen `n` tokens of `effect`, whose frames still kept are these.
    pub(crate) fn resume(effect: &EffectId, n: u64, frames: &[Frame]) -> Self {
        let mut this = Self::default();
        for frame in frames.iter().filter(|f| f.k != FrameKind::End && f.n + f.ids.len() as u64 <= n) {
            this.frame(effect, frame);
        }
        let sent = this.texts.entry(effect.clone()).or_default();
        if sent.next != n || sent.broken {
            *sent = Sent { replace: true, ..Sent::default() };
        }
        this.resumed = Some((turn(effect), effect.clone(), n));
        this
    }

    /// A token frame came.
    pub(crate) fn frame(&mut self, effect: &EffectId, frame: &Frame) -> Option<Update> {
        if self.was_before(effect) {
            return None;
        }
        let sent = self.texts.entry(effect.clone()).or_default();
        if sent.complete || frame.attempt < sent.attempt || frame.k == FrameKind::End {
            return None;
        }
        let end = frame.n + frame.ids.len() as u64;
        if frame.k == FrameKind::Restart {
            (sent.attempt, sent.broken) = (frame.attempt, false);
            sent.logprobs.clone_from(&frame.logprobs);
            return sent.become_text(effect, &frame.text, end);
        }
        if sent.broken || frame.n < sent.next {
            return None;
        }
        if frame.n > sent.next {
            sent.broken = true;
            return None;
        }
        sent.attempt = frame.attempt;
        sent.logprobs.extend_from_slice(&frame.logprobs);
        if sent.replace {
            let whole = format!("{}{}", sent.text, frame.text);
            return sent.become_text(effect, &whole, end);
        }
        // The text so far is not copied for every token of it.
        (sent.next, sent.text) = (end, std::mem::take(&mut sent.text) + &frame.text);
        sent.tell(effect, frame.text.clone())
    }

    /// Something happened in the log.
    pub(crate) fn happened(&mut self, happening: Happening) -> Option<Update> {
        match happening {
            Happening::Text { effect, text, tokens, logprobs } => {
                if self.was_before(&effect) {
                    return None;
                }
                let seen_whole = self.resumed.as_ref().is_some_and(|(_, e, n)| *e == effect && *n >= tokens);
                let sent = self.texts.entry(effect.clone()).or_default();
                if std::mem::replace(&mut sent.complete, true) || (seen_whole && sent.replace) {
                    return None;
                }
                let known = if text.starts_with(sent.text.as_str()) && !sent.replace { sent.next } else { 0 };
                if known == 0 {
                    sent.logprobs.clear();
                }
                let known = usize::try_from(known).unwrap_or(usize::MAX);
                sent.logprobs.extend(logprobs.into_iter().skip(known));
                sent.become_text(&effect, &text, tokens.max(sent.next))
            }
            Happening::ToolCall(call) => self.calls.insert(call.call_id.clone()).then_some(Update::ToolCall(call)),
            Happening::Approval(asked) => {
                self.approvals.insert(asked.effect.clone()).then_some(Update::Approval(asked))
            }
            Happening::ToolResult(call) => {
                self.results.insert(call.call_id.clone()).then_some(Update::ToolResult(call))
            }
            Happening::Ended => Some(Update::Ended),
        }
    }

    fn was_before(&self, effect: &EffectId) -> bool {
        self.resumed.as_ref().is_some_and(|(resumed, _, _)| turn(effect) < *resumed)
    }
}

impl Sent {
    /// The effect's text up to token `next` is `text`: sends what is new, or all of it when the old was wrong.
    fn become_text(&mut self, effect: &EffectId, text: &str, next: u64) -> Option<Update> {
        let new = text.strip_prefix(self.text.as_str()).map(str::to_owned);
        self.next = next;
        text.clone_into(&mut self.text);
        match new {
            Some(new) if !std::mem::take(&mut self.replace) => self.tell(effect, new),
            _ => {
                self.replace = false;
                let logprobs = std::mem::take(&mut self.logprobs);
                Some(Update::Restart { id: self.id(effect), text: text.to_owned(), logprobs })
            }
        }
    }

    /// Sends text that continues what was sent.
    fn tell(&mut self, effect: &EffectId, text: String) -> Option<Update> {
        // Probabilities wait for the next text; behind the last there is none.
        if text.is_empty() && (!self.complete || self.logprobs.is_empty()) {
            return None;
        }
        Some(Update::Token { id: self.id(effect), text, logprobs: std::mem::take(&mut self.logprobs) })
    }

    /// Where a client that has all of this can resume.
    fn id(&self, effect: &EffectId) -> String {
        format!("{effect}.{}", self.next)
    }
}

fn turn(effect: &EffectId) -> u32 {
    effect.as_str().split('-').next().and_then(|t| t.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(n: u64, text: &str) -> Frame {
        Frame { ids: vec![7], text: text.to_owned(), ..Frame::new(1, n, FrameKind::Delta) }
    }

    fn text(text: &str, tokens: u64) -> Happening {
        Happening::Text { effect: EffectId::inference(1), text: text.to_owned(), tokens, logprobs: Vec::new() }
    }

    fn token(n: u64, text: &str) -> Option<Update> {
        Some(Update::Token { id: format!("1-infer-0.{n}"), text: text.to_owned(), logprobs: Vec::new() })
    }

    #[test]
    fn a_repeat_is_dropped_and_the_log_sends_what_a_hole_left_out() {
        let (mut sent, effect) = (Transcript::default(), EffectId::inference(1));
        assert_eq!(sent.frame(&effect, &delta(0, "Hel")), token(1, "Hel"));
        assert_eq!(sent.frame(&effect, &delta(0, "Hel")), None);
        assert_eq!(sent.frame(&effect, &delta(2, "!")), None);
        assert_eq!(sent.happened(text("Hello!", 3)), token(3, "lo!"));
        assert_eq!(sent.happened(text("Hello!", 3)), None);
        assert_eq!(sent.frame(&effect, &delta(3, "late")), None);
    }

    #[test]
    fn a_log_that_contradicts_starts_the_text_anew() {
        let (mut sent, effect) = (Transcript::default(), EffectId::inference(1));
        sent.frame(&effect, &delta(0, "Hi"));
        let restart = Update::Restart { id: "1-infer-0.2".into(), text: "Hello".into(), logprobs: Vec::new() };
        assert_eq!(sent.happened(text("Hello", 2)), Some(restart));
    }

    #[test]
    fn each_probability_is_sent_once_and_none_is_lost() {
        let (mut sent, effect) = (Transcript::default(), EffectId::inference(1));
        let of = |token: &str| TokenLogprob { token: token.to_owned(), logprob: -1.0, top_logprobs: vec![] };
        let with = |n: u64, text: &str, token: &str| Frame { logprobs: vec![of(token)], ..delta(n, text) };
        assert_eq!(sent.frame(&effect, &with(0, "", "a")), None, "no text yet");
        let Some(Update::Token { logprobs, .. }) = sent.frame(&effect, &with(1, "ab", "b")) else { panic!("text") };
        assert_eq!(logprobs, [of("a"), of("b")]);
        assert_eq!(sent.frame(&effect, &with(3, "d", "d")), None, "a hole");
        let all = ["a", "b", "c", "d", "<end>"].map(of).to_vec();
        let whole = Happening::Text { effect, text: "ab".into(), tokens: 5, logprobs: all };
        let Some(Update::Token { text, logprobs, .. }) = sent.happened(whole) else { panic!("the rest") };
        assert_eq!((text.as_str(), logprobs), ("", ["c", "d", "<end>"].map(of).to_vec()));
    }

    #[test]
    fn a_resumed_client_gets_the_rest_or_a_restart_when_the_frames_are_gone() {
        let effect = EffectId::inference(1);
        let mut kept = Transcript::resume(&effect, 1, &[delta(0, "Hel"), delta(1, "lo")]);
        assert_eq!(kept.happened(text("Hello", 2)), token(2, "lo"));
        let mut gone = Transcript::resume(&effect, 1, &[]);
        let restart = Update::Restart { id: "1-infer-0.2".into(), text: "Hello".into(), logprobs: Vec::new() };
        assert_eq!(gone.happened(text("Hello", 2)), Some(restart));
        assert_eq!(Transcript::resume(&effect, 2, &[]).happened(text("Hello", 2)), None);
    }
}
