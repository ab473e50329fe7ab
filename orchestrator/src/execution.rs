//! The state machine of one execution. Pure: no I/O, no clock, no randomness, no logging.
//!
//! An execution is five small regions side by side:
//!
//! | region | states | moved by |
//! |---|---|---|
//! | [`Phase`] (main) | `New → Ready → Inferring → (Acting → Ready)* → Closed` | decisions |
//! | [`Effects`] | `Open → Done / Failed / Lost`, `Failed → Backoff / Dead`, `→ Cancelled` | results and decisions |
//! | [`Context`] | the messages a prompt is made of; grows only | results and joins |
//! | [`Control`] | `Running → Cancelling / Expired` | cancel and time |
//! | [`Budget`] | limits and what was spent | results |
//!
//! `apply_fact` and `apply` change the state and never refuse: it has already happened. `decide` looks and changes
//! nothing. Time is the time of the newest fact.

mod budget;
mod context;
mod control;
mod effects;

pub use budget::Budget;
pub use context::Context;
pub use control::Control;
pub use effects::{Effect, Effects, State, Work};

use schemas::chat::{FinishReason, MALFORMED_CALL};
use schemas::decision::{
    BudgetExceeded, EffectCancelled, Ended, ExecutionCompleted, ExecutionStarted, InferenceRequested, RetryScheduled,
    ToolOutcome, ToolRequested, ToolsJoined, ToolsRequested, failure_code,
};
use schemas::fact::{ExecutionSubmitted, FailureClass, Kind};
use schemas::wire::Nanos;
use schemas::{EffectId, Event, Fact, FactBody, ToolCall};

/// Version of the rules below. A change of what is decided is a new version beside the old one, which stays as long
/// as a log may hold its decisions.
pub const MACHINE: u32 = 1;

/// Attempts of an effect that keeps failing.
const ATTEMPTS_MAX: u32 = 4;
/// Attempts of an effect whose workers keep dying. Dying is the machine's fault, so it has more patience; without a
/// bound, a request that kills its worker would kill them all.
const ATTEMPTS_LOST_MAX: u32 = 12;
/// First pause before a failed effect is tried again; it doubles with each attempt.
const BACKOFF: Nanos = 200_000_000;
/// How long a tool may take before its effect is given up, whatever its worker says.
const TOOL_DEADLINE: Nanos = 120_000_000_000;
/// Rounds in which deciding must come to rest.
const ROUNDS_MAX: usize = 64;

/// Where an execution stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not taken up.
    New,
    /// Between two steps.
    Ready,
    /// The model is asked.
    Inferring(EffectId),
    /// Tools are asked; the calls in order.
    Acting(Vec<EffectId>),
    /// Nothing follows.
    Closed,
}

/// One execution.
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    /// The request; none before its fact arrived.
    pub request: Option<Box<ExecutionSubmitted>>,
    /// Where it stands.
    pub phase: Phase,
    /// What was asked of workers.
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
}

impl Default for Execution {
    fn default() -> Self {
        Self {
            request: None,
            phase: Phase::New,
            effects: Effects::default(),
            context: Context::default(),
            control: Control::Running,
            budget: Budget::default(),
            turn: 0,
            now: 0,
        }
    }
}

// --- apply: what has happened ------------------------------------------------------------------------------------

impl Execution {
    /// Takes in a fact. Facts that no longer matter (a second submission, a late or unknown result) leave everything
    /// but the time as it is.
    pub fn apply_fact(&mut self, fact: &Fact) {
        self.now = self.now.max(fact.at);
        match &fact.body {
            FactBody::ExecutionSubmitted(request) => self.submit(request),
            FactBody::InferenceCompleted(result) => {
                if self.effects.complete(&result.effect, result.attempt, result.text.clone()) {
                    self.budget.spend(result.usage);
                    self.context.answer(result.text.clone(), result.tool_calls.clone(), result.finish);
                }
            }
            FactBody::InferenceFailed(f) => self.effects.fail(&f.effect, f.attempt, f.class, &f.detail),
            FactBody::ToolCompleted(result) => {
                self.effects.complete(&result.effect, result.attempt, result.result.clone());
            }
            FactBody::ToolFailed(f) => self.effects.fail(&f.effect, f.attempt, f.class, &f.detail),
            FactBody::EffectLost(f) => self.effects.lose(&f.effect, f.attempt),
            FactBody::CancelRequested(cancel) => self.control.cancel(&cancel.by, cancel.reason.as_deref()),
            FactBody::TimerFired(_) => {}
        }
        if self.request.is_some() {
            self.control.expire(self.now, self.budget.deadline());
            if self.control == Control::Running {
                self.effects.expire(self.now);
            }
        }
    }

    fn submit(&mut self, request: &ExecutionSubmitted) {
        if self.request.is_none() {
            self.budget = Budget::new(request.limits);
            self.context = Context::new(request.messages.clone());
            self.request = Some(Box::new(request.clone()));
        }
    }

    /// Takes in a decision.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::ExecutionStarted(_) => self.phase = Phase::Ready,
            Event::InferenceRequested(asked) => {
                self.turn = asked.turn;
                if asked.attempt == 1 {
                    self.budget.iterations += 1;
                }
                self.effects.open(
                    asked.effect.clone(),
                    Work::Inference { tokens_max: asked.tokens_max },
                    asked.attempt,
                    asked.deadline,
                );
                self.phase = Phase::Inferring(asked.effect.clone());
            }
            Event::ToolsRequested(asked) => self.act(asked),
            Event::ToolsJoined(joined) => {
                for outcome in &joined.outcomes {
                    let (call, text) = self.effects.result(&outcome.effect);
                    self.context.tool_result(call, text);
                }
                self.phase = Phase::Ready;
            }
            Event::RetryScheduled(retry) => self.effects.back_off(&retry.effect, retry.at),
            Event::EffectCancelled(cancelled) => self.effects.cancel(&cancelled.effect),
            Event::BudgetExceeded(_) => {}
            Event::ExecutionRejected(_)
            | Event::ExecutionCompleted(_)
            | Event::ExecutionFailed(_)
            | Event::ExecutionCancelled(_)
            | Event::ExecutionTimedOut(_)
            | Event::ExecutionBudgetExhausted(_) => self.phase = Phase::Closed,
        }
    }

    fn act(&mut self, asked: &ToolsRequested) {
        let calls = self.calls().to_vec();
        for request in &asked.calls {
            let Some(call) = calls.get(request.ordinal as usize) else {
                continue;
            };
            let work = Work::Tool { call: call.clone() };
            self.effects.open(request.effect.clone(), work, request.attempt, request.deadline);
            match &request.refused {
                Some(why) => self.effects.refuse(&request.effect, why),
                None if request.attempt == 1 => self.budget.tool_calls += 1,
                None => {}
            }
        }
        if !matches!(self.phase, Phase::Acting(_)) {
            self.phase = Phase::Acting(asked.calls.iter().map(|c| c.effect.clone()).collect());
        }
    }
}

// --- decide: what follows ----------------------------------------------------------------------------------------

impl Execution {
    /// Decides until nothing more follows, applying each event. The returned events are one decision; empty when
    /// nothing follows.
    pub fn settle(&mut self) -> Vec<Event> {
        let mut decided = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let events = self.decide();
            if events.is_empty() {
                return decided;
            }
            for event in &events {
                self.apply(event);
            }
            decided.extend(events);
        }
        unreachable!("deciding came to no rest within {ROUNDS_MAX} rounds: a rule repeats itself");
    }

    /// What follows from the state as it is. The first rule that has something to say wins: closed, cancel,
    /// deadline, start, failures, joins, budget, the next step.
    #[must_use]
    pub fn decide(&self) -> Vec<Event> {
        let Some(request) = self.request.as_deref() else {
            return vec![];
        };
        if self.phase == Phase::Closed {
            return vec![];
        }
        if let Some(events) = self.stop() {
            return events;
        }
        if self.phase == Phase::New {
            return vec![start(request)];
        }
        let failures = self.after_failures(request);
        if !failures.is_empty() {
            return failures;
        }
        match &self.phase {
            Phase::Ready => self.next_step(request),
            Phase::Inferring(effect) if self.effects.is_done(effect) => self.after_answer(request, effect),
            Phase::Acting(calls) if calls.iter().all(|c| self.effects.is_settled(c)) => {
                vec![self.join(calls)]
            }
            _ => vec![],
        }
    }

    /// Cancel and deadline beat everything but an end.
    fn stop(&self) -> Option<Vec<Event>> {
        let end = match &self.control {
            Control::Running => return None,
            Control::Cancelling { by, reason } => {
                let why = reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
                Event::ExecutionCancelled(self.ended("cancelled", format!("cancelled by {by}{why}")))
            }
            Control::Expired => Event::ExecutionTimedOut(self.ended(
                "deadline",
                "the deadline passed before the answer was complete; allow more time or ask for less".to_owned(),
            )),
        };
        Some(self.end_with(end))
    }

    /// Cancels what is open, then ends.
    fn end_with(&self, end: Event) -> Vec<Event> {
        let mut events: Vec<Event> = self
            .effects
            .unfinished()
            .map(|(effect, attempt)| Event::EffectCancelled(EffectCancelled { effect: effect.clone(), attempt }))
            .collect();
        events.push(end);
        events
    }

    /// Retries, re-issues, gives up.
    fn after_failures(&self, request: &ExecutionSubmitted) -> Vec<Event> {
        let mut events = Vec::new();
        for (id, effect) in self.effects.iter() {
            match &effect.state {
                State::Lost if effect.attempt < ATTEMPTS_LOST_MAX => events.push(self.ask_again(id, effect)),
                State::Lost => {
                    return self.give_up(
                        request,
                        id,
                        FailureClass::Internal,
                        "the workers that carried it out kept dying",
                    );
                }
                State::Failed { class, .. } if class.retryable() && effect.attempt < ATTEMPTS_MAX => {
                    events.push(Event::RetryScheduled(RetryScheduled {
                        effect: id.clone(),
                        attempt: effect.attempt + 1,
                        at: self.now + (BACKOFF << (effect.attempt - 1)),
                        reason: failure_code(*class).to_owned(),
                    }))
                }
                State::Failed { class, detail } if matches!(effect.work, Work::Inference { .. }) => {
                    return self.give_up(request, id, *class, detail);
                }
                State::Backoff { until } if *until <= self.now => events.push(self.ask_again(id, effect)),
                _ => {}
            }
        }
        events
    }

    fn ask_again(&self, id: &EffectId, effect: &Effect) -> Event {
        let attempt = effect.attempt + 1;
        match &effect.work {
            Work::Inference { tokens_max } => Event::InferenceRequested(InferenceRequested {
                effect: id.clone(),
                attempt,
                turn: self.turn,
                context: self.context.len(),
                tokens_max: *tokens_max,
                deadline: self.budget.deadline(),
            }),
            Work::Tool { call } => Event::ToolsRequested(ToolsRequested {
                turn: self.turn,
                calls: vec![ToolRequested {
                    effect: id.clone(),
                    attempt,
                    ordinal: self.calls().iter().position(|c| c.id == call.id).unwrap_or(0) as u32,
                    name: call.function.name.clone(),
                    deadline: self.tool_deadline(),
                    refused: None,
                }],
            }),
        }
    }

    fn give_up(
        &self,
        request: &ExecutionSubmitted,
        effect: &EffectId,
        class: FailureClass,
        detail: &str,
    ) -> Vec<Event> {
        let what = if request.kind == Kind::Tool { "the tool" } else { "the model" };
        self.end_with(Event::ExecutionFailed(
            self.ended(failure_code(class), format!("{what} failed ({effect}): {detail}")),
        ))
    }

    fn next_step(&self, request: &ExecutionSubmitted) -> Vec<Event> {
        if request.kind == Kind::Tool {
            return self.single_tool(request);
        }
        if let Some(exceeded) = self.budget.exceeded() {
            return self.exhausted(exceeded);
        }
        let turn = self.turn + 1;
        vec![Event::InferenceRequested(InferenceRequested {
            effect: EffectId::inference(turn),
            attempt: 1,
            turn,
            context: self.context.len(),
            tokens_max: self.budget.tokens_left().min(request.sampling.max_tokens.map_or(u64::MAX, u64::from)),
            deadline: self.budget.deadline(),
        })]
    }

    fn exhausted(&self, exceeded: BudgetExceeded) -> Vec<Event> {
        let detail = format!(
            "{} of {} {} used before the answer was complete",
            exceeded.used, exceeded.limit, exceeded.dimension
        );
        let code = exceeded.dimension.clone();
        vec![Event::BudgetExceeded(exceeded), Event::ExecutionBudgetExhausted(self.ended(&code, detail))]
    }

    /// The whole life of a request for one tool: ask, then end.
    fn single_tool(&self, request: &ExecutionSubmitted) -> Vec<Event> {
        let effect = EffectId::tool(0, 0);
        if self.effects.is_settled(&effect) {
            return vec![self.completed(effect, None)];
        }
        vec![self.request_tools(request, 0)]
    }

    fn after_answer(&self, request: &ExecutionSubmitted, effect: &EffectId) -> Vec<Event> {
        if request.kind == Kind::Agent && !self.calls().is_empty() {
            return vec![self.request_tools(request, self.turn)];
        }
        vec![self.completed(effect.clone(), self.context.finish())]
    }

    /// Asks all tools of a turn at once. A call that cannot be carried out is refused here, in words for the model.
    fn request_tools(&self, request: &ExecutionSubmitted, turn: u32) -> Event {
        let mut left = self.budget.tool_calls_left();
        let calls = self.calls().iter().enumerate().map(|(ordinal, call)| {
            let name = call.function.name.clone();
            let refused = match refusal(request, &name) {
                Some(why) => Some(why),
                None if left == 0 => {
                    Some("error: the limit of tool calls is reached; answer with what is known".to_owned())
                }
                None => {
                    left -= 1;
                    None
                }
            };
            ToolRequested {
                effect: EffectId::tool(turn, ordinal),
                attempt: 1,
                ordinal: ordinal as u32,
                name,
                deadline: self.tool_deadline(),
                refused,
            }
        });
        Event::ToolsRequested(ToolsRequested { turn, calls: calls.collect() })
    }

    fn join(&self, calls: &[EffectId]) -> Event {
        let outcomes =
            calls.iter().map(|effect| ToolOutcome { effect: effect.clone(), success: self.effects.is_done(effect) });
        Event::ToolsJoined(ToolsJoined { turn: self.turn, outcomes: outcomes.collect() })
    }

    fn completed(&self, result: EffectId, finish: Option<FinishReason>) -> Event {
        Event::ExecutionCompleted(ExecutionCompleted {
            result,
            finish,
            iterations: self.budget.iterations,
            usage: self.budget.usage,
        })
    }

    fn ended(&self, code: &str, detail: String) -> Ended {
        Ended { code: code.to_owned(), detail, iterations: self.budget.iterations, usage: self.budget.usage }
    }

    fn tool_deadline(&self) -> Nanos {
        self.budget.deadline().min(self.now + TOOL_DEADLINE)
    }

    /// The calls that are to be carried out: of the last answer, or of the request itself.
    fn calls(&self) -> &[ToolCall] {
        match self.request.as_deref() {
            Some(ExecutionSubmitted { kind: Kind::Tool, call: Some(call), .. }) => std::slice::from_ref(call),
            _ => self.context.calls(),
        }
    }

    // --- what the shell asks -------------------------------------------------------------------------------------

    /// Whether nothing can follow.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// The next moment at which the passing of time changes something: the timer's name and the moment.
    #[must_use]
    pub fn wake(&self) -> Option<(String, Nanos)> {
        if self.is_closed() || self.request.is_none() {
            return None;
        }
        let deadline = ("deadline".to_owned(), self.budget.deadline());
        self.effects.wakes().map(|(id, at)| (id.to_string(), at)).chain([deadline]).min_by_key(|(_, at)| *at)
    }
}

/// Why a call cannot be carried out, in words for the model; none when it can.
fn refusal(request: &ExecutionSubmitted, name: &str) -> Option<String> {
    if request.kind != Kind::Agent || request.tools.iter().any(|t| t.function.name == name) {
        return None;
    }
    if name == MALFORMED_CALL {
        return Some("error: the tool call is not valid JSON".to_owned());
    }
    let offered: Vec<&str> = request.tools.iter().map(|t| t.function.name.as_str()).collect();
    Some(format!("error: no such tool: {name}; tools are {}", offered.join(", ")))
}

fn start(request: &ExecutionSubmitted) -> Event {
    let problem = match request.kind {
        Kind::Tool if request.call.is_none() => Some("a tool request names no call"),
        Kind::Chat | Kind::Agent if request.messages.is_empty() => Some("there are no messages"),
        Kind::Chat | Kind::Agent if request.model.is_empty() => Some("no model is named"),
        _ => None,
    };
    match problem {
        None => Event::ExecutionStarted(ExecutionStarted { model: request.model.clone() }),
        Some(detail) => Event::ExecutionRejected(Ended {
            code: "bad_request".to_owned(),
            detail: detail.to_owned(),
            iterations: 0,
            usage: Default::default(),
        }),
    }
}

#[cfg(test)]
mod tests;
