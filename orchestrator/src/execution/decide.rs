//! What follows from a state. The first rule that has something to say wins: closed, cancel, deadline, start, pause,
//! approvals, failures, accounts, room in the window, joins, limits, the next step.

pub(crate) mod calls;
mod room;

use schemas::api::Problem;
use schemas::chat::FinishReason;
use schemas::decision::{
    BudgetExceeded, BudgetReserved, BudgetSettled, CompressionRequested, EffectCancelled, Ended, ExecutionCompleted,
    ExecutionPaused, ExecutionResumed, ExecutionStarted, InferenceRequested, RetryScheduled, StuckDetected, TimerSet,
    ToolRequested, ToolsRequested, failure_code,
};
use schemas::fact::{AtLimit, ExecutionSubmitted, FailureClass, Kind};
use schemas::wire::Nanos;
use schemas::{EffectId, Event};

use super::control::PAUSED_BY_BUDGET;
use super::indexing::Indexing;
use super::{Control, Effect, Execution, Phase, Rules, State, Work};

/// Attempts of an effect that keeps failing.
const ATTEMPTS_MAX: u32 = 4;
/// Attempts of an effect whose workers keep dying. Dying is the machine's fault, so it has more patience; without a
/// bound, a request that kills its worker would kill them all.
const ATTEMPTS_LOST_MAX: u32 = 12;
/// First pause before a failed effect is tried again; it doubles with each attempt.
const BACKOFF: Nanos = 200_000_000;
/// How long a tool or a summary may take before its effect is given up, whatever its worker says.
const TOOL_DEADLINE: Nanos = 120_000_000_000;
/// Rounds in which deciding must come to rest.
const ROUNDS_MAX: usize = 64;

impl Execution {
    /// Decides until nothing more follows, applying each event. The returned events are one decision; empty when
    /// nothing follows.
    pub fn settle(&mut self, rules: Rules) -> Vec<Event> {
        let mut decided = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let events = self.decide(rules);
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

    /// What follows from the state as it is.
    #[must_use]
    pub fn decide(&self, rules: Rules) -> Vec<Event> {
        let Some(request) = self.request.as_deref() else {
            return self.rejected();
        };
        if self.phase == Phase::Closed {
            return vec![];
        }
        if let Some(events) = self.stop() {
            return events;
        }
        if self.phase == Phase::New {
            return start(request, rules, self.budget.deadline());
        }
        if let Some(event) = self.change_of_mind() {
            return vec![event];
        }
        let accounts = self.settlements();
        if !accounts.is_empty() {
            return accounts;
        }
        if self.control != Control::Running {
            return vec![];
        }
        let groups: [&dyn Fn() -> Vec<Event>; 3] =
            [&|| self.after_approvals(), &|| self.after_failures(request, rules), &|| self.make_room(request, rules)];
        if let Some(events) = groups.iter().map(|group| group()).find(|events| !events.is_empty()) {
            return events;
        }
        match &self.phase {
            Phase::Ready => self.next_step(request, rules),
            Phase::Inferring(effect) if self.is_answered() => self.after_answer(request, effect, rules),
            Phase::Acting(calls) => self.after_calls(request, calls),
            _ => vec![],
        }
    }

    /// What a plain client asks for comes to nothing.
    fn rejected(&self) -> Vec<Event> {
        match self.refused.as_deref() {
            Some(Problem { code, detail, next_step, .. }) if self.phase != Phase::Closed => {
                vec![Event::ExecutionRejected(self.ended(code, format!("{detail}; {next_step}")))]
            }
            _ => vec![],
        }
    }

    /// Cancel and deadline beat everything but an end.
    fn stop(&self) -> Option<Vec<Event>> {
        let cancelled = |by: &str, reason: &Option<String>| {
            let why = reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
            Event::ExecutionCancelled(self.ended("cancelled", format!("cancelled by {by}{why}")))
        };
        let end = match &self.control {
            Control::Cancelling { by, reason } => cancelled(by, reason),
            Control::Draining { by, reason } if self.effects.open_effects().next().is_none() => cancelled(by, reason),
            Control::Expired => Event::ExecutionTimedOut(self.ended(
                "deadline",
                "the deadline passed before the answer was complete; allow more time or ask for less".to_owned(),
            )),
            _ => return None,
        };
        Some(self.end_with(end))
    }

    /// A wish to wait or to go on takes effect.
    fn change_of_mind(&self) -> Option<Event> {
        match &self.control {
            Control::Pausing { by, reason } => {
                Some(Event::ExecutionPaused(ExecutionPaused { by: by.clone(), reason: reason.clone() }))
            }
            Control::Resuming { by } => Some(Event::ExecutionResumed(ExecutionResumed { by: by.clone() })),
            _ => None,
        }
    }

    /// Cancels what is open, closes the accounts, then ends.
    fn end_with(&self, end: Event) -> Vec<Event> {
        let cancel = |(effect, attempt): (&EffectId, u32)| {
            Event::EffectCancelled(EffectCancelled { effect: effect.clone(), attempt })
        };
        let mut events: Vec<Event> = self.effects.unfinished().map(cancel).collect();
        events.extend(self.accounts(|_| true));
        events.push(end);
        events
    }

    /// What finished effects have used is settled; what was set aside beyond it is free again.
    fn settlements(&self) -> Vec<Event> {
        let over = |state: &State| matches!(state, State::Done | State::Dead | State::Cancelled | State::Failed { .. });
        self.accounts(over)
    }

    fn accounts(&self, which: impl Fn(&State) -> bool) -> Vec<Event> {
        let reserved = self.effects.iter().filter(|(_, e)| e.reserved > 0 && which(&e.state));
        let settled =
            reserved.map(|(id, e)| Event::BudgetSettled(BudgetSettled { effect: id.clone(), tokens: e.used }));
        settled.collect()
    }

    /// Retries, re-issues, gives up.
    fn after_failures(&self, request: &ExecutionSubmitted, rules: Rules) -> Vec<Event> {
        let mut events = Vec::new();
        for (id, effect) in self.effects.iter() {
            match &effect.state {
                State::Lost if effect.attempt < ATTEMPTS_LOST_MAX => events.extend(self.ask_again(id, effect, rules)),
                // Work goes on without a summary.
                State::Lost if matches!(effect.work, Work::Compression { .. }) => {
                    let (effect, attempt) = (id.clone(), effect.attempt);
                    events.push(Event::EffectCancelled(EffectCancelled { effect, attempt }));
                }
                State::Lost => {
                    let detail = "the workers that carried it out kept dying";
                    return self.give_up(request, id, FailureClass::Internal, detail);
                }
                State::Failed { class, .. } if class.retryable() && effect.attempt < ATTEMPTS_MAX => {
                    events.push(Event::RetryScheduled(RetryScheduled {
                        effect: id.clone(),
                        attempt: effect.attempt + 1,
                        at: self.now + (BACKOFF << (effect.attempt - 1)),
                        reason: failure_code(*class).to_owned(),
                    }));
                }
                State::Failed { class, detail } if matches!(effect.work, Work::Inference { .. }) => {
                    match self.after_overflow(request, id, effect, *class, rules) {
                        Some(relief) => events.extend(relief),
                        None => return self.give_up(request, id, *class, detail),
                    }
                }
                State::Backoff { until } if *until <= self.now => events.extend(self.ask_again(id, effect, rules)),
                _ => {}
            }
        }
        events
    }

    fn ask_again(&self, id: &EffectId, effect: &Effect, rules: Rules) -> Vec<Event> {
        let attempt = effect.attempt + 1;
        match &effect.work {
            Work::Inference { tokens_max, .. } => self.ask_model(id, attempt, self.turn, *tokens_max, rules),
            Work::Tool { call } => vec![Event::ToolsRequested(ToolsRequested {
                turn: self.turn,
                calls: vec![ToolRequested {
                    effect: id.clone(),
                    attempt,
                    ordinal: self.calls().iter().position(|c| c.id == call.id).unwrap_or(0) as u32,
                    name: call.function.name.clone(),
                    deadline: self.tool_deadline(),
                    refused: None,
                }],
            })],
            Work::Compression { tokens_max, .. } => {
                let Some(part) = self.context.compressing() else { return vec![] };
                vec![Event::CompressionRequested(CompressionRequested {
                    effect: id.clone(),
                    attempt,
                    from: part.from,
                    to: part.to,
                    tokens_max: *tokens_max,
                    deadline: self.tool_deadline(),
                })]
            }
            // Nobody holds a child: it is an execution of its own and answers for itself.
            Work::Child { .. } => vec![],
        }
    }

    /// Asks the model, and sets aside what the answer may cost.
    fn ask_model(&self, id: &EffectId, attempt: u32, turn: u32, tokens_max: u64, rules: Rules) -> Vec<Event> {
        let context = if attempt == 1 { self.context.len_with_pending() } else { self.context.len() };
        let mut events = vec![Event::InferenceRequested(InferenceRequested {
            effect: id.clone(),
            attempt,
            turn,
            context,
            tokens_max,
            deadline: self.budget.deadline(),
        })];
        let reserved = self.effects.get(id).map_or(0, |e| e.reserved);
        if rules.accounts && reserved == 0 {
            let window = u64::from(self.request.as_deref().map_or(0, |r| r.window));
            let room = if window == 0 { tokens_max } else { window };
            let prompt = self.context.tokens();
            let one = prompt.saturating_add(tokens_max).min(room);
            // The prompt is read once, however many answers there are.
            let others = u64::from(self.answers() - 1).saturating_mul(one.saturating_sub(prompt));
            let tokens = one.saturating_add(others).min(self.budget.tokens_left()).max(1);
            events.push(Event::BudgetReserved(BudgetReserved { effect: id.clone(), tokens }));
        }
        events
    }

    fn give_up(
        &self,
        request: &ExecutionSubmitted,
        effect: &EffectId,
        class: FailureClass,
        detail: &str,
    ) -> Vec<Event> {
        let what = match request.kind {
            Kind::Tool => "the tool",
            Kind::Index => "the analysis",
            Kind::Chat | Kind::Agent => "the model",
        };
        self.end_with(Event::ExecutionFailed(
            self.ended(failure_code(class), format!("{what} failed ({effect}): {detail}")),
        ))
    }

    fn next_step(&self, request: &ExecutionSubmitted, rules: Rules) -> Vec<Event> {
        if request.kind == Kind::Tool {
            return self.single_tool(request);
        }
        if let Some(indexing) = &self.indexing {
            return self.next_of_index(request, indexing);
        }
        if self.remembered && !self.leads_on(request) {
            return self.completed(EffectId::inference(self.turn), self.context.finish());
        }
        if self.turn == 0 && self.recall.is_some() {
            return self.request_calls(request, 0);
        }
        if rules.notices_loops
            && let Some((pattern, turns)) = self.context.repetition()
        {
            let detail = "the same calls gave the same results again and again; ask differently or offer other tools";
            let mut events = vec![Event::StuckDetected(StuckDetected { pattern: pattern.to_owned(), turns })];
            events.extend(self.end_with(Event::ExecutionFailed(self.ended("stuck", detail.to_owned()))));
            return events;
        }
        self.next_turn(request, rules)
    }

    /// Asks the model for the next turn, if the limits allow one.
    fn next_turn(&self, request: &ExecutionSubmitted, rules: Rules) -> Vec<Event> {
        if let Some(exceeded) = self.budget.exceeded() {
            return self.exhausted(request, exceeded);
        }
        if self.must_wait_for_room(request, rules) {
            return vec![];
        }
        let turn = self.turn + 1;
        let asked = request.sampling.max_tokens.map_or(u64::MAX, u64::from);
        // What is left is shared by all answers; none may have no bound, which 0 would mean.
        let share = (self.budget.tokens_out_left() / u64::from(self.answers())).max(1);
        self.ask_model(&EffectId::inference(turn), 1, turn, share.min(asked), rules)
    }

    /// Answers to each prompt.
    fn answers(&self) -> u32 {
        self.request.as_deref().map_or(1, |request| request.sampling.answers())
    }

    fn exhausted(&self, request: &ExecutionSubmitted, exceeded: BudgetExceeded) -> Vec<Event> {
        let BudgetExceeded { used, limit, dimension } = &exceeded;
        if request.policy.at_limit == AtLimit::Ask {
            let reason = Some(format!("{used} of {limit} {dimension} used; grant more to go on"));
            let paused = ExecutionPaused { by: PAUSED_BY_BUDGET.to_owned(), reason };
            return vec![Event::BudgetExceeded(exceeded), Event::ExecutionPaused(paused)];
        }
        let detail = format!("{used} of {limit} {dimension} used before the answer was complete");
        let ended = self.ended(dimension, detail);
        let mut events = vec![Event::BudgetExceeded(exceeded)];
        events.extend(self.end_with(Event::ExecutionBudgetExhausted(ended)));
        events
    }

    /// The whole life of a request for one tool: ask, then end.
    fn single_tool(&self, request: &ExecutionSubmitted) -> Vec<Event> {
        let effect = EffectId::tool(0, 0);
        if self.effects.is_settled(&effect) {
            return self.completed(effect, None);
        }
        self.request_calls(request, 0)
    }

    /// An index execution asks for its next calls, or ends.
    fn next_of_index(&self, request: &ExecutionSubmitted, indexing: &Indexing) -> Vec<Event> {
        match &indexing.ended {
            None => self.request_calls(request, indexing.turn),
            Some(Ok(())) => self.completed(EffectId::tool(Indexing::ENDS, 0), None),
            Some(Err(why)) => self.end_with(Event::ExecutionFailed(self.ended("index", why.clone()))),
        }
    }

    fn after_answer(&self, request: &ExecutionSubmitted, effect: &EffectId, rules: Rules) -> Vec<Event> {
        if !self.leads_on(request) {
            // Unless nothing may be called any more.
            if self.remember.is_some() && self.budget.tool_calls_left() > 0 {
                return self.request_calls(request, self.turn);
            }
            return self.completed(effect.clone(), self.context.finish());
        }
        if self.context.calls().is_empty() {
            self.next_turn(request, rules)
        } else {
            self.request_calls(request, self.turn)
        }
    }

    /// Whether the turn's answer is there.
    fn is_answered(&self) -> bool {
        matches!(&self.phase, Phase::Inferring(effect) if self.effects.is_done(effect))
    }

    /// Whether the turn's answer is not the last: an agent calls tools, or somebody said more meanwhile and the limits
    /// allow another. Calls that go back to the caller end it all the same: only the caller has their results, and no
    /// prompt may stand without them.
    fn leads_on(&self, request: &ExecutionSubmitted) -> bool {
        match self.context.calls().is_empty() {
            true => self.context.has_pending() && self.budget.exceeded().is_none(),
            false => request.kind == Kind::Agent,
        }
    }

    fn completed(&self, result: EffectId, finish: Option<FinishReason>) -> Vec<Event> {
        self.end_with(Event::ExecutionCompleted(ExecutionCompleted {
            result,
            finish,
            iterations: self.budget.iterations,
            usage: self.budget.usage,
        }))
    }

    fn ended(&self, code: &str, detail: String) -> Ended {
        Ended { code: code.to_owned(), detail, iterations: self.budget.iterations, usage: self.budget.usage }
    }

    fn tool_deadline(&self) -> Nanos {
        // Parts wait for one another in the queue.
        if self.indexing.is_some() {
            return self.budget.deadline();
        }
        self.budget.deadline().min(self.now + TOOL_DEADLINE)
    }
}

fn start(request: &ExecutionSubmitted, rules: Rules, deadline: Nanos) -> Vec<Event> {
    let problem = match request.kind {
        Kind::Tool | Kind::Index if request.call.is_none() => Some("a request for a tool or an index names no call"),
        Kind::Chat | Kind::Agent if request.messages.is_empty() => Some("there are no messages"),
        Kind::Chat | Kind::Agent if request.model.is_empty() => Some("no model is named"),
        _ => None,
    };
    if let Some(detail) = problem {
        return vec![Event::ExecutionRejected(Ended {
            code: "bad_request".to_owned(),
            detail: detail.to_owned(),
            iterations: 0,
            usage: Default::default(),
        })];
    }
    let mut events = vec![Event::ExecutionStarted(ExecutionStarted { model: request.model.clone() })];
    if rules.accounts {
        events.push(Event::TimerSet(TimerSet { timer: "deadline".to_owned(), at: deadline }));
    }
    events
}
