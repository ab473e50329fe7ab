//! Room in the window: it is measured after every message, a part of the context is summarised beside the work from
//! three quarters on, and from nineteen twentieths on the work waits for that. Where the request wants the oldest
//! exchanges left out instead, the worker does it, which knows how many tokens they really are.

use schemas::chat::Truncation;
use schemas::decision::{CompressionRequested, ContextMeasured, ContextReplaced};
use schemas::fact::{ExecutionSubmitted, FailureClass, Kind};
use schemas::{EffectId, Event};

use super::ATTEMPTS_MAX;
use crate::execution::{Compressing, Effect, Execution, Phase, Rules, State, Work};

/// Share of the window, in percent, from which on a part of the context is summarised.
const COMPRESS_FROM: u64 = 75;
/// Share from which on the next inference waits for it.
const WAIT_FROM: u64 = 95;
/// Share of the window that a summary may take.
const SUMMARY_SHARE: u64 = 12;
/// A summary that keeps more than this share of what it stands for is none.
const PROGRESS: u64 = 80;

impl Execution {
    /// Measures, asks for a summary, puts one where the messages were.
    pub(super) fn make_room(&self, request: &ExecutionSubmitted, rules: Rules) -> Vec<Event> {
        if matches!(request.kind, Kind::Tool | Kind::Index) || request.window == 0 {
            return vec![];
        }
        if rules.accounts && !self.context.is_measured() {
            return vec![Event::ContextMeasured(ContextMeasured {
                tokens: self.context.tokens(),
                window: request.window,
                messages: self.context.len(),
            })];
        }
        if !rules.compresses || request.truncation == Truncation::Auto {
            return vec![];
        }
        if self.context.compressing().is_some() {
            return self.after_compression(request);
        }
        // A turn under way is not cut: its calls and their results belong together.
        let between = !matches!(self.phase, Phase::Acting(_));
        let answered = self.is_answered() || self.remembered;
        let over = !rules.compresses_to_the_end && answered && !self.leads_on(request);
        if between && !over && self.is_fuller_than(request, COMPRESS_FROM) {
            return self.relieve(request).unwrap_or_default();
        }
        vec![]
    }

    /// Whether the next inference has to wait for a summary that is being made.
    pub(super) fn must_wait_for_room(&self, request: &ExecutionSubmitted, rules: Rules) -> bool {
        rules.compresses && self.is_fuller_than(request, WAIT_FROM) && self.is_compressing()
    }

    /// What helps a model whose window the prompt did not fit; none when nothing does.
    pub(super) fn after_overflow(
        &self,
        request: &ExecutionSubmitted,
        id: &EffectId,
        effect: &Effect,
        class: FailureClass,
        rules: Rules,
    ) -> Option<Vec<Event>> {
        let Work::Inference { replacements, .. } = effect.work else { return None };
        let helps = rules.compresses && request.truncation == Truncation::Disabled;
        if class != FailureClass::Overflow || !helps || effect.attempt >= ATTEMPTS_MAX {
            return None;
        }
        if replacements < self.context.replacements() {
            return Some(self.ask_again(id, effect, rules));
        }
        if self.is_compressing() {
            return Some(vec![]);
        }
        self.relieve(request)
    }

    /// Whether a summary is on its way, or has come and will take the place of its messages. Who waits for one that will
    /// not come, waits for ever.
    fn is_compressing(&self) -> bool {
        let Some(part) = self.context.compressing() else { return false };
        match self.effects.get(&part.effect).map(|effect| (&effect.state, effect.attempt)) {
            Some((State::Open { .. } | State::Lost | State::Backoff { .. }, _)) => true,
            Some((State::Failed { class, .. }, attempt)) => class.retryable() && attempt < ATTEMPTS_MAX,
            Some((State::Done, _)) => self.summary_helps(part),
            _ => false,
        }
    }

    /// Whether a summary saves enough to be put where its messages are.
    fn summary_helps(&self, part: &Compressing) -> bool {
        let was = self.context.tokens_between(part.from, part.to);
        let summary = self.effects.text(&part.effect);
        !summary.is_empty() && tokens_of_summary(summary) * 100 <= was * PROGRESS
    }

    /// Whether a model is at the newest prompt, which then stays as it was asked for: given again, it is the same.
    fn is_prompt_out(&self) -> bool {
        matches!(&self.phase, Phase::Inferring(asked) if !self.effects.is_settled(asked))
    }

    fn is_fuller_than(&self, request: &ExecutionSubmitted, percent: u64) -> bool {
        request.window > 0 && self.context.tokens() * 100 >= u64::from(request.window) * percent
    }

    /// Summarises what can be summarised, else drops what can be dropped; none when neither would help.
    fn relieve(&self, request: &ExecutionSubmitted) -> Option<Vec<Event>> {
        if self.context.compressing().is_none()
            && let Some((from, to)) = self.context.compressible(request.window)
        {
            return Some(vec![Event::CompressionRequested(CompressionRequested {
                effect: EffectId::compression(self.context.next_compression()),
                attempt: 1,
                from,
                to,
                tokens_max: (u64::from(request.window) * SUMMARY_SHARE / 100).max(16),
                deadline: self.tool_deadline(),
            })]);
        }
        if self.is_prompt_out() {
            return None;
        }
        self.drop_outputs(request).map(|event| vec![event])
    }

    fn drop_outputs(&self, request: &ExecutionSubmitted) -> Option<Event> {
        let (from, to, saved) = self.context.droppable(request.window)?;
        let tokens = self.context.tokens().saturating_sub(saved);
        Some(Event::ContextReplaced(ContextReplaced { from, to, summary: None, tokens }))
    }

    /// A summary that came takes the place of its messages; one that will not come, or saves nothing, is done without.
    fn after_compression(&self, request: &ExecutionSubmitted) -> Vec<Event> {
        if self.is_prompt_out() {
            return vec![];
        }
        let Some(part) = self.context.compressing() else { return vec![] };
        let Some(effect) = self.effects.get(&part.effect) else { return vec![] };
        match &effect.state {
            State::Done => {}
            State::Failed { class, .. } if class.retryable() && effect.attempt < ATTEMPTS_MAX => return vec![],
            State::Failed { .. } | State::Cancelled => return self.drop_outputs(request).into_iter().collect(),
            _ => return vec![],
        }
        if !self.summary_helps(part) {
            return self.drop_outputs(request).into_iter().collect();
        }
        let was = self.context.tokens_between(part.from, part.to);
        let summary = tokens_of_summary(self.effects.text(&part.effect));
        let tokens = (self.context.tokens() + summary).saturating_sub(was);
        let (from, to, summary) = (part.from, part.to, Some(part.effect.clone()));
        vec![Event::ContextReplaced(ContextReplaced { from, to, summary, tokens })]
    }
}

fn tokens_of_summary(summary: &str) -> u64 {
    summary.len() as u64 * 2 / 5 + 16
}
