//! What an execution waits for: calls that need a person, agents it asked, a pause. And what people have told it.

use std::collections::BTreeMap;

use schemas::decision::{ApprovalRequested, Event, ExecutionPaused};
use schemas::fact::{AtLimit, ExecutionSubmitted, FactBody, Kind, Limits, UserMessage, Verdict};
use schemas::wire::Nanos;
use schemas::{EffectId, ExecutionId};
use serde_json::Value;

use super::rfc3339;

/// Who pauses an execution that reached a limit.
const BUDGET: &str = "budget";

/// A call that waits for a person.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Approval {
    pub(crate) effect: EffectId,
    pub(crate) name: String,
    /// The call's arguments; a string when the model wrote no valid JSON.
    pub(crate) arguments: Value,
    /// When waiting counts as a denial.
    pub(crate) expires: Nanos,
}

/// What a person said about a call; it counts from the next decision on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Word {
    pub(crate) by: String,
    pub(crate) verdict: Verdict,
    arguments: Option<String>,
    reason: Option<String>,
}

/// What a call became when the waiting was over.
pub(super) enum Resolved {
    /// It is carried out, with other arguments than the model wrote.
    Edited(Value),
    /// It is not: what the model reads.
    Denied(String),
    /// It is carried out as it is.
    Allowed,
}

/// What an execution waits for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiting {
    approvals: BTreeMap<EffectId, (Approval, Option<Word>)>,
    children: BTreeMap<EffectId, (String, ExecutionId)>,
    paused: Option<ExecutionPaused>,
    /// Somebody wants a pause that has not been decided yet.
    pausing: bool,
    /// Somebody wants the end.
    cancelling: bool,
    /// Messages said meanwhile, by their ids.
    said: BTreeMap<String, UserMessage>,
    limits: Limits,
    /// Inferences asked for.
    asked: u32,
    asks_for_more: bool,
    kind: Option<Kind>,
}

impl Waiting {
    pub(super) fn submitted(&mut self, request: &ExecutionSubmitted) {
        self.limits = request.limits;
        self.asks_for_more = request.policy.at_limit == AtLimit::Ask;
        self.kind = Some(request.kind);
    }

    pub(super) fn fact(&mut self, body: &FactBody, at: Nanos) {
        match body {
            FactBody::PauseRequested(_) => self.pausing = true,
            FactBody::ResumeRequested(_) => self.pausing = false,
            FactBody::CancelRequested(_) => self.cancelling = true,
            FactBody::UserMessage(f) => drop(self.said.insert(f.id.clone(), f.clone())),
            FactBody::BudgetGranted(f) => self.grant(&f.dimension, f.amount),
            FactBody::ApprovalDecided(f) => {
                if let Some((_, word)) = self.approvals.get_mut(&f.approval).filter(|(a, _)| a.expires > at) {
                    let (by, arguments, reason) = (f.by.clone(), f.arguments.clone(), f.reason.clone());
                    word.get_or_insert(Word { by, verdict: f.verdict, arguments, reason });
                }
            }
            _ => {}
        }
    }

    fn grant(&mut self, dimension: &str, amount: u64) {
        let small = u32::try_from(amount).unwrap_or(u32::MAX);
        if dimension == "iterations" {
            self.limits.iterations = self.limits.iterations.saturating_add(small);
        }
    }

    pub(super) fn event(&mut self, event: &Event) {
        match event {
            Event::InferenceRequested(e) if e.attempt == 1 => self.asked += 1,
            Event::ChildRequested(e) => drop(self.children.insert(e.effect.clone(), (e.agent.clone(), e.child))),
            Event::EffectCancelled(e) => drop(self.approvals.remove(&e.effect)),
            Event::ExecutionPaused(e) => (self.paused, self.pausing) = (Some(e.clone()), false),
            Event::ExecutionResumed(_) => self.paused = None,
            event if event.is_terminal() => self.approvals.clear(),
            _ => {}
        }
    }

    pub(super) fn ask(&mut self, asked: &ApprovalRequested, arguments: Value) -> Approval {
        let (effect, name) = (asked.approval.clone(), asked.name.clone());
        let approval = Approval { effect, name, arguments, expires: asked.expires };
        self.approvals.insert(asked.approval.clone(), (approval.clone(), None));
        approval
    }

    pub(super) fn resolve(&mut self, effect: &EffectId, verdict: Verdict) -> Resolved {
        let word = self.approvals.remove(effect).and_then(|(_, word)| word);
        let (arguments, reason) = word.clone().map_or((None, None), |w| (w.arguments, w.reason));
        match (verdict, arguments) {
            (Verdict::Deny, _) => Resolved::Denied(match (word, reason) {
                (None, _) => "error: nobody allowed this call in time".to_owned(),
                (_, Some(reason)) => format!("error: this call was not allowed: {reason}"),
                (_, None) => "error: this call was not allowed".to_owned(),
            }),
            (_, Some(text)) => Resolved::Edited(serde_json::from_str(&text).unwrap_or(Value::String(text))),
            (_, None) => Resolved::Allowed,
        }
    }

    // --- what is the case ----------------------------------------------------------------------------------------

    /// Calls that wait for a person, each with what was said about it since the last decision.
    pub(crate) fn approvals(&self) -> impl Iterator<Item = &(Approval, Option<Word>)> {
        self.approvals.values()
    }

    /// Whether it waits, or will, until somebody lets it go on.
    pub(crate) const fn is_paused(&self) -> bool {
        self.paused.is_some() || self.pausing
    }

    /// Why only more of something lets it go on, if that is so.
    pub(crate) fn limit_reached(&self) -> Option<&str> {
        let paused = self.paused.as_ref().filter(|p| p.by == BUDGET)?;
        Some(paused.reason.as_deref().unwrap_or("a limit was reached"))
    }

    pub(crate) const fn is_cancelling(&self) -> bool {
        self.cancelling
    }

    /// What was said under this id.
    pub(crate) fn said(&self, id: &str) -> Option<&UserMessage> {
        self.said.get(id)
    }

    /// Why nothing will read another message, if that is so.
    pub(crate) fn is_deaf(&self) -> Option<String> {
        match self.kind {
            Some(Kind::Tool) => Some("it is a single tool call, which no model reads".to_owned()),
            Some(Kind::Index) => Some("it indexes code, and no model reads along".to_owned()),
            _ if !self.asks_for_more && self.asked >= self.limits.iterations => {
                Some(format!("{} of {} inferences were asked for already", self.asked, self.limits.iterations))
            }
            _ => None,
        }
    }

    /// What it may use, with everything granted so far.
    pub(crate) const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What it waits for, in words: `<effect>: …` for each open effect, and the pause.
    pub(super) fn words<'a>(
        &'a self,
        open: impl Iterator<Item = &'a EffectId>,
        tool: impl Fn(&EffectId) -> Option<String>,
    ) -> Vec<String> {
        let what = |effect: &EffectId| match (self.approvals.get(effect), self.children.get(effect)) {
            (Some((a, _)), _) => format!("approval of {} until {}", a.name, rfc3339(a.expires)),
            (_, Some((agent, child))) => format!("the agent {agent}, execution {child}"),
            _ if effect.as_str().contains("-infer-") => "the model".to_owned(),
            _ if effect.as_str().contains("-compress-") => "a summary".to_owned(),
            _ => format!("the tool {}", tool(effect).unwrap_or_default()),
        };
        let mut words: Vec<String> = open.map(|effect| format!("{effect}: {}", what(effect))).collect();
        if let Some(paused) = &self.paused {
            let why = paused.reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default();
            let next = if self.limit_reached().is_some() { "grant" } else { "resume" };
            words.push(format!("{next}: paused by {}{why}", paused.by));
        }
        words
    }
}
