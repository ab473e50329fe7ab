//! The state machine of one execution. Pure: no I/O, no clock, no randomness, no logging.
//!
//! An execution is five small machines side by side. Each has its transitions in one table, which the tests hold against
//! what really happens, in both directions:
//!
//! | region | states | table |
//! |---|---|---|
//! | [`Phase`] (main) | `New → Ready → Inferring → (Acting → Ready)* → Closed` | [`phase::TABLE`] |
//! | [`Effects`] | `Open → Done / Failed / Lost → …`, one for each effect | [`effects::TABLE`] |
//! | [`Context`] | `Calm ↔ Compressing` | [`context::TABLE`] |
//! | [`Control`] | `Running ↔ Paused`, `→ Draining / Cancelling / Expired` | [`control::TABLE`] |
//! | [`Budget`] | `Within ↔ Exceeded` | [`budget::TABLE`] |
//!
//! [`Execution::apply_fact`] and [`Execution::apply`] change the state and never refuse: it has already happened.
//! [`Execution::decide`] looks and changes nothing. Time is the time of the newest fact.

pub mod budget;
pub mod context;
pub mod control;
mod decide;
pub mod effects;
mod indexing;
pub mod phase;
mod rules;

pub use budget::Budget;
pub(crate) use context::estimate;
pub use context::{Compressing, Context};
pub use control::Control;
pub(crate) use decide::calls::Delegate;
pub use effects::{Effect, Effects, State, Work};
pub use phase::Phase;
pub use rules::{MACHINE, MACHINE_NEXT, Rules};
/// Tools that are called without a model where the agent type says so: at the start, at the end.
pub use schemas::chat::{RECALL, REMEMBER};

use std::collections::BTreeMap;

use schemas::api::Problem;
use schemas::decision::{ChildRequested, CompressionRequested, InferenceRequested, ToolsJoined, ToolsRequested};
use schemas::fact::{ChildClosed, ExecutionRequested, ExecutionSubmitted, Kind, Outcome};
use schemas::wire::Nanos;
use schemas::{Event, ExecutionId, Fact, FactBody, Message, Role, ToolCall, Usage};
use serde::{Deserialize, Serialize};

use indexing::Indexing;

/// A row of a region's table: from which state, on what (the name of a fact, of a decision, or `deadline`), to which.
pub type Transition = (&'static str, &'static str, &'static str);

/// The tool that asks for an execution of another agent type. It is carried out here, by no worker.
pub const DELEGATE: &str = "delegate";

/// One execution.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Execution {
    /// Its id; none before its request arrived.
    pub exec: Option<ExecutionId>,
    /// The request; none before its fact arrived.
    pub request: Option<Box<ExecutionSubmitted>>,
    /// What a plain client asked for, until a gateway has said what it comes to.
    #[serde(default)]
    pub requested: Option<Box<ExecutionRequested>>,
    /// Why that comes to nothing.
    #[serde(default)]
    pub refused: Option<Box<Problem>>,
    /// W3C trace context of the request, which travels with everything that follows from it.
    pub trace: BTreeMap<String, String>,
    /// Where it stands.
    pub phase: Phase,
    /// What was asked of others.
    pub effects: Effects,
    /// What the next prompt is made of.
    pub context: Context,
    /// Whether it should go on.
    pub control: Control,
    /// What it may use and has used.
    pub budget: Budget,
    /// The current turn, from 1; 0 before the first.
    pub turn: u32,
    /// Time of the newest fact.
    pub now: Nanos,
    /// How it ended.
    pub end: Option<End>,
    /// The call that recalls what is known, made before the first turn.
    recall: Option<ToolCall>,
    /// The call that remembers question and answer, made after the last turn.
    #[serde(default)]
    remember: Option<ToolCall>,
    /// It has been carried out.
    #[serde(default)]
    remembered: bool,
    /// Of a request to index: what it has come to.
    #[serde(default)]
    indexing: Option<Box<Indexing>>,
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// In one word.
    pub outcome: Outcome,
    /// The answer, or what went wrong.
    pub text: String,
}

impl Execution {
    // --- apply: what has happened --------------------------------------------------------------------------------

    /// Takes in a fact. Facts that no longer matter (a second submission, a late or unknown result) leave everything
    /// but the time as it is.
    pub fn apply_fact(&mut self, fact: &Fact) {
        match &fact.body {
            // A plain client's clock is its own affair.
            FactBody::ExecutionRequested(_) => {}
            _ => self.now = self.now.max(fact.at),
        }
        match &fact.body {
            FactBody::ExecutionSubmitted(request) => self.submit(fact, request),
            FactBody::ExecutionRequested(requested) => self.ask(fact, requested),
            FactBody::ExecutionRefused(problem) => self.refuse(problem),
            FactBody::InferenceCompleted(f) => {
                if self.effects.complete(&f.effect, f.attempt, &f.text, f.usage) {
                    self.budget.spend(f.usage);
                    let tokens = (f.usage.prompt_tokens, f.answer_tokens());
                    self.context.answer(f.text.clone(), f.tool_calls.clone(), f.finish, tokens);
                    self.remember = self.worth_remembering();
                }
            }
            FactBody::ToolCompleted(f) => {
                self.effects.complete(&f.effect, f.attempt, &f.result, Usage::default());
            }
            FactBody::CompressionCompleted(f) => {
                if self.effects.complete(&f.effect, f.attempt, &f.summary, f.usage) {
                    self.budget.spend(f.usage);
                }
            }
            FactBody::ChildClosed(f) => self.child_closed(f),
            FactBody::InferenceFailed(f) => drop(self.effects.fail(&f.effect, f.attempt, f.class, &f.detail)),
            FactBody::ToolFailed(f) => drop(self.effects.fail(&f.effect, f.attempt, f.class, &f.detail)),
            FactBody::CompressionFailed(f) => drop(self.effects.fail(&f.effect, f.attempt, f.class, &f.detail)),
            FactBody::EffectLost(f) => self.effects.lose(&f.effect, f.attempt),
            FactBody::CancelRequested(f) => self.control.cancel(&f.by, f.reason.as_deref(), f.mode),
            FactBody::PauseRequested(f) => self.control.want_pause(&f.by, f.reason.as_deref()),
            FactBody::ResumeRequested(f) => self.control.want_resume(&f.by),
            FactBody::UserMessage(f) => self.context.say(&f.text, f.object.clone()),
            FactBody::BudgetGranted(f) => {
                self.budget.grant(&f.dimension, f.amount);
                self.control.granted(&f.by);
            }
            FactBody::ApprovalDecided(f) => {
                let (by, reason, arguments) = (f.by.clone(), f.reason.clone(), f.arguments.clone());
                self.effects.hear(&f.approval, effects::Word { by, verdict: f.verdict, arguments, reason }, self.now);
            }
            FactBody::TimerFired(_) => {}
        }
        if self.request.is_some() {
            self.control.expire(self.now, self.budget.deadline());
            if !matches!(self.control, Control::Cancelling { .. } | Control::Expired) {
                self.effects.expire(self.now);
            }
        }
    }

    fn ask(&mut self, fact: &Fact, requested: &ExecutionRequested) {
        if self.is_known() {
            return;
        }
        self.trace.clone_from(&fact.trace);
        self.exec = Some(fact.exec);
        self.requested = Some(Box::new(requested.clone()));
    }

    fn refuse(&mut self, problem: &Problem) {
        if self.awaits_completion().is_some() {
            self.refused = Some(Box::new(problem.clone()));
        }
    }

    fn submit(&mut self, fact: &Fact, request: &ExecutionSubmitted) {
        if self.request.is_some() || self.refused.is_some() {
            return;
        }
        self.requested = None;
        self.budget = Budget::new(request.limits);
        self.context = Context::new(request.messages.clone(), &request.tools);
        self.trace.clone_from(&fact.trace);
        self.exec = Some(fact.exec);
        let offered = request.tools.iter().any(|t| t.function.name == RECALL);
        let asked = request.messages.iter().rev().find(|m: &&Message| m.role == Role::User);
        self.recall = asked
            // A question that lies beside the log is too long to be looked up.
            .filter(|said| request.policy.recall && offered && said.object.is_none())
            .map(|said| ToolCall::new("recall-0", RECALL, serde_json::json!({"query": said.content}).to_string()));
        self.indexing = match (&request.kind, &request.call) {
            (Kind::Index, Some(plan)) => Some(Box::new(Indexing::begin(plan.clone()))),
            _ => None,
        };
        self.request = Some(Box::new(request.clone()));
    }

    fn child_closed(&mut self, closed: &ChildClosed) {
        let (id, attempt) = (&closed.effect, closed.attempt);
        let counts = if closed.outcome == Outcome::Completed {
            self.effects.complete(id, attempt, &closed.text, closed.usage)
        } else {
            self.effects.child_failed(id, attempt, &closed.text, closed.usage)
        };
        if counts {
            self.budget.spend(closed.usage);
        }
    }

    /// Takes in a decision.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::ExecutionStarted(_) => self.phase = Phase::Ready,
            Event::InferenceRequested(asked) => self.infer(asked),
            Event::ToolsRequested(asked) => self.act(asked),
            Event::ChildRequested(asked) => self.delegate(asked),
            Event::ApprovalRequested(asked) => {
                if let Some(call) = self.effects.get(&asked.approval).and_then(call_of) {
                    self.effects.await_approval(&asked.approval, call, asked.expires);
                }
            }
            Event::ApprovalResolved(resolved) => {
                self.effects.resolve(&resolved.approval, resolved.verdict, resolved.deadline);
            }
            Event::ToolsJoined(joined) => self.join(joined),
            Event::ContextMeasured(measured) => self.context.measure(measured.messages),
            Event::CompressionRequested(asked) => self.compress(asked),
            Event::ContextReplaced(replaced) => {
                let summary = replaced.summary.as_ref().map(|effect| self.effects.text(effect).to_owned());
                self.context.replace(replaced.from, replaced.to, summary, replaced.tokens);
            }
            Event::BudgetReserved(reserved) => {
                self.effects.reserve(&reserved.effect, reserved.tokens);
                self.budget.reserve(reserved.tokens);
            }
            Event::BudgetSettled(settled) => {
                let reserved = self.effects.settle(&settled.effect);
                self.budget.release(reserved);
            }
            Event::BudgetExceeded(_) => self.budget.exceed(),
            Event::RetryScheduled(retry) => self.effects.back_off(&retry.effect, retry.at),
            Event::EffectCancelled(cancelled) => self.effects.cancel(&cancelled.effect),
            Event::ExecutionPaused(paused) => self.control.paused(&paused.by),
            Event::ExecutionResumed(_) => self.control.resumed(),
            // Timers follow from the state; the log names them for people.
            Event::TimerSet(_) | Event::TimerCancelled(_) | Event::StuckDetected(_) => {}
            Event::ExecutionCompleted(_) => {
                let tool = self.request.as_deref().is_some_and(|r| matches!(r.kind, Kind::Tool | Kind::Index));
                let role = if tool { Role::Tool } else { Role::Assistant };
                self.close(Outcome::Completed, self.context.last(role).to_owned());
            }
            Event::ExecutionRejected(ended) => self.close(Outcome::Rejected, ended.detail.clone()),
            Event::ExecutionFailed(ended) => self.close(Outcome::Failed, ended.detail.clone()),
            Event::ExecutionCancelled(ended) => self.close(Outcome::Cancelled, ended.detail.clone()),
            Event::ExecutionTimedOut(ended) => self.close(Outcome::TimedOut, ended.detail.clone()),
            Event::ExecutionBudgetExhausted(ended) => self.close(Outcome::BudgetExhausted, ended.detail.clone()),
        }
    }

    fn infer(&mut self, asked: &InferenceRequested) {
        self.turn = asked.turn;
        self.remembered = false;
        if asked.attempt == 1 {
            self.budget.iterations += 1;
            self.context.take_pending();
        }
        let work = Work::Inference { tokens_max: asked.tokens_max, replacements: self.context.replacements() };
        self.effects.open(&asked.effect, work, asked.attempt, asked.deadline);
        self.phase = Phase::Inferring(asked.effect.clone());
    }

    fn act(&mut self, asked: &ToolsRequested) {
        if self.indexing.is_some() {
            self.turn = asked.turn;
        }
        for request in &asked.calls {
            // Arguments that a person edited stay edited when the call is made again.
            let known = self.effects.get(&request.effect).and_then(call_of);
            let Some(call) = known.or_else(|| self.calls().get(request.ordinal as usize).cloned()) else {
                continue;
            };
            match &request.refused {
                Some(why) => self.effects.refuse(&request.effect, call, why),
                None => {
                    self.effects.open(&request.effect, Work::Tool { call }, request.attempt, request.deadline);
                    if request.attempt == 1 {
                        self.budget.tool_calls += 1;
                    }
                }
            }
            self.phase.act(request.ordinal, &request.effect);
        }
    }

    fn delegate(&mut self, asked: &ChildRequested) {
        let Some(call) = self.calls().get(asked.ordinal as usize).cloned() else {
            return;
        };
        let (child, agent, limits) = (asked.child, asked.agent.clone(), asked.limits);
        let work = Work::Child { call, child, agent, limits };
        self.effects.open(&asked.effect, work, asked.attempt, limits.deadline);
        self.budget.children += 1;
        self.phase.act(asked.ordinal, &asked.effect);
    }

    fn join(&mut self, joined: &ToolsJoined) {
        if self.indexing.is_some() {
            return self.join_index(joined);
        }
        // Before the results stand behind the answer.
        let remembering = joined.turn > 0 && self.context.calls().is_empty();
        let mut print = Fingerprint::default();
        for outcome in &joined.outcomes {
            let (call, text) = self.effects.take_result(&outcome.effect);
            if let Some(call) = &call {
                print.add(&[&call.function.name, &call.function.arguments, &text]);
            }
            match (&self.recall, joined.turn) {
                (Some(_), 0) if outcome.success => self.context.recalled(&text),
                (Some(_), 0) => {}
                _ if remembering => self.remembered = true,
                _ => self.context.tool_result(call, text),
            }
        }
        if joined.turn == 0 {
            self.recall = None;
        }
        self.context.turn_ended(joined.turn, print.0);
        self.phase = Phase::Ready;
    }

    fn join_index(&mut self, joined: &ToolsJoined) {
        let mut results = Vec::new();
        for outcome in &joined.outcomes {
            let (call, text) = self.effects.take_result(&outcome.effect);
            if joined.turn == Indexing::ENDS && outcome.success {
                self.context.tool_result(call, text.clone());
            }
            results.push(if outcome.success { Ok(text) } else { Err(text) });
        }
        if let Some(indexing) = &mut self.indexing {
            indexing.joined(results);
        }
        self.phase = Phase::Ready;
    }

    fn compress(&mut self, asked: &CompressionRequested) {
        let history = self.context.as_history(asked.from, asked.to);
        let work = Work::Compression { history, tokens_max: asked.tokens_max };
        self.effects.open(&asked.effect, work, asked.attempt, asked.deadline);
        if asked.attempt == 1 {
            self.context.compress(Compressing { effect: asked.effect.clone(), from: asked.from, to: asked.to });
        }
    }

    fn close(&mut self, outcome: Outcome, text: String) {
        self.phase = Phase::Closed;
        self.end = Some(End { outcome, text });
    }

    // --- what the shell asks -------------------------------------------------------------------------------------

    /// Whether anything was ever asked of it.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.request.is_some() || self.requested.is_some()
    }

    /// What a plain client asked for, while nobody has said what it comes to.
    #[must_use]
    pub fn awaits_completion(&self) -> Option<&ExecutionRequested> {
        self.requested.as_deref().filter(|_| self.refused.is_none())
    }

    /// Whether nothing can follow.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// The next moment at which the passing of time changes something: the timer's name and the moment.
    #[must_use]
    pub fn wake(&self) -> Option<(String, Nanos)> {
        self.wakes().min_by_key(|(_, at)| *at)
    }

    /// All moments at which the passing of time changes something, in no order.
    pub fn wakes(&self) -> impl Iterator<Item = (String, Nanos)> {
        let over = self.is_closed() || self.request.is_none();
        let deadline = (!over).then(|| ("deadline".to_owned(), self.budget.deadline()));
        // While it waits for somebody, nothing is asked for again.
        let waits = matches!(self.control, Control::Paused { .. } | Control::Draining { .. });
        let wakes = self.effects.wakes().filter(move |_| !over).filter(move |(id, _)| {
            !waits || matches!(self.effects.get(id).map(|e| &e.state), Some(State::Open { .. }))
        });
        wakes.map(|(id, at)| (id.to_string(), at)).chain(deadline)
    }

    /// The call that keeps question and answer for later executions, where the agent type says so and this was the answer.
    fn worth_remembering(&self) -> Option<ToolCall> {
        let request = self.request.as_deref().filter(|r| r.kind == Kind::Agent && r.policy.remember)?;
        let offered = request.tools.iter().any(|tool| tool.function.name == REMEMBER);
        let answer = self.context.last(Role::Assistant).trim();
        if !offered || !self.context.calls().is_empty() || answer.is_empty() {
            return None;
        }
        let asked = brief(self.context.last(Role::User), ASKED_CHARS_MAX);
        let fact = format!("Asked: {asked}\nAnswered: {}", brief(answer, ANSWERED_CHARS_MAX));
        Some(ToolCall::new("remember-0", REMEMBER, serde_json::json!({"fact": fact}).to_string()))
    }

    /// The calls that are to be carried out: of the last answer, of the request itself, or those that recall, remember and
    /// index.
    fn calls(&self) -> &[ToolCall] {
        match (self.request.as_deref(), &self.recall) {
            (Some(ExecutionSubmitted { kind: Kind::Tool, call: Some(call), .. }), _) => std::slice::from_ref(call),
            _ if self.indexing.is_some() => self.indexing.as_deref().map_or(&[], |indexing| &indexing.calls),
            (_, Some(recall)) if self.turn == 0 => std::slice::from_ref(recall),
            _ if self.turn > 0 && self.context.calls().is_empty() => self.remember.as_slice(),
            _ => self.context.calls(),
        }
    }
}

/// How much of a question is remembered.
const ASKED_CHARS_MAX: usize = 500;
/// How much of its answer.
const ANSWERED_CHARS_MAX: usize = 1_500;

fn brief(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn call_of(effect: &Effect) -> Option<ToolCall> {
    match &effect.work {
        Work::Tool { call } | Work::Child { call, .. } => Some(call.clone()),
        Work::Inference { .. } | Work::Compression { .. } => None,
    }
}

/// FNV-1a over the parts of a turn, to see whether it comes again.
struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fingerprint {
    fn add(&mut self, parts: &[&str]) {
        for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests;
