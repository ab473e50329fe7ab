//! The calls of a turn: tools, children and approvals, asked for all at once and joined when enough is known.

use schemas::chat::MALFORMED_CALL;
use schemas::decision::{
    ApprovalRequested, ApprovalResolved, BudgetReserved, ChildRequested, EffectCancelled, TimerCancelled, TimerSet,
    ToolOutcome, ToolRequested, ToolsJoined, ToolsRequested,
};
use schemas::fact::{AgentSpec, ExecutionSubmitted, Join, Kind, Limits, Verdict};
use schemas::wire::Nanos;
use schemas::{EffectId, Event, ExecutionId, ToolCall};
use serde::Deserialize;

use crate::execution::{DELEGATE, Execution, State, Work};

/// How long a call waits for a person unless the agent type says otherwise.
const APPROVAL: Nanos = 600_000_000_000;
/// A child ends before its parent, so that the parent can still say what came of it.
const CHILD_MARGIN: Nanos = 500_000_000;

/// Arguments of [`DELEGATE`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Delegate {
    pub(crate) agent: String,
    pub(crate) task: String,
}

impl Execution {
    /// Asks for all calls of a turn at once. A call that cannot be carried out is refused here, in words for the model.
    pub(super) fn request_calls(&self, request: &ExecutionSubmitted, turn: u32) -> Vec<Event> {
        let mut left = self.budget.tool_calls_left();
        let mut children_left = self.budget.children_left();
        let (mut tools, mut children, mut approvals) = (Vec::new(), Vec::new(), Vec::new());
        for (ordinal, call) in self.calls().iter().enumerate() {
            let name = call.function.name.clone();
            let mut refused = self.refusal(request, &name);
            if refused.is_none() && name == DELEGATE && request.kind == Kind::Agent {
                match self.child_spec(request, call) {
                    Ok(_) if children_left == 0 => {
                        refused = Some("error: no more agents may be asked; answer with what is known".to_owned());
                    }
                    Ok(spec) => {
                        children_left -= 1;
                        children.push((ordinal, spec));
                        continue;
                    }
                    Err(why) => refused = Some(why),
                }
            }
            if refused.is_none() && left == 0 {
                refused = Some("error: the limit of tool calls is reached; answer with what is known".to_owned());
            } else if refused.is_none() {
                left -= 1;
            }
            let effect = EffectId::tool(turn, ordinal);
            if refused.is_none() && request.policy.approve.contains(&name) {
                approvals.extend(self.ask_person(request, &effect, &name));
            }
            let (ordinal, deadline) = (ordinal as u32, self.tool_deadline());
            tools.push(ToolRequested { effect, attempt: 1, ordinal, name, deadline, refused });
        }
        let mut events = Vec::new();
        if !tools.is_empty() {
            events.push(Event::ToolsRequested(ToolsRequested { turn, calls: tools }));
        }
        events.extend(approvals);
        let share = self.budget.tokens_left() / (children.len() as u64 + 1);
        let grandchildren = children_left / (children.len() as u32 + 1);
        for (ordinal, spec) in children {
            events.extend(self.ask_child(turn, ordinal, spec, share, grandchildren));
        }
        events
    }

    /// Why a call cannot be carried out, in words for the model; none when it can.
    fn refusal(&self, request: &ExecutionSubmitted, name: &str) -> Option<String> {
        if request.kind != Kind::Agent || request.tools.iter().any(|t| t.function.name == name) {
            return None;
        }
        if name == MALFORMED_CALL {
            return Some("error: the tool call is not valid JSON".to_owned());
        }
        let offered: Vec<&str> = request.tools.iter().map(|t| t.function.name.as_str()).collect();
        Some(format!("error: no such tool: {name}; tools are {}", offered.join(", ")))
    }

    /// The agent type a call delegates to, or why it cannot.
    fn child_spec<'r>(&self, request: &'r ExecutionSubmitted, call: &ToolCall) -> Result<&'r AgentSpec, String> {
        let asked: Delegate = serde_json::from_str(&call.function.arguments)
            .map_err(|_| "error: delegate takes two texts, agent and task".to_owned())?;
        if request.depth >= self.budget.depth_max() {
            return Err("error: agents may not be nested any deeper; do it yourself".to_owned());
        }
        let own = request.agents.iter().find(|a| a.name == request.agent);
        let allowed: Vec<&str> = match own {
            Some(spec) => spec.agents.iter().map(String::as_str).collect(),
            None => request.agents.iter().map(|a| a.name.as_str()).collect(),
        };
        let spec = request.agents.iter().find(|a| a.name == asked.agent && allowed.contains(&a.name.as_str()));
        spec.ok_or_else(|| format!("error: no such agent: {}; agents are {}", asked.agent, allowed.join(", ")))
    }

    fn ask_child(&self, turn: u32, ordinal: usize, spec: &AgentSpec, share: u64, grandchildren: u32) -> [Event; 2] {
        let effect = EffectId::child(turn, ordinal);
        let own =
            self.now.saturating_add(Nanos::try_from(spec.deadline_ms).unwrap_or(Nanos::MAX).saturating_mul(1_000_000));
        let limits = Limits {
            iterations: spec.iterations,
            tokens: spec.tokens.min(share),
            tool_calls: spec.tool_calls,
            deadline: own.min(self.budget.deadline().saturating_sub(CHILD_MARGIN)),
            tokens_in: None,
            tokens_out: None,
            children: grandchildren,
            depth: self.budget.depth_max(),
        };
        let exec = self.id_of_child(&effect);
        let asked = ChildRequested {
            effect: effect.clone(),
            attempt: 1,
            turn,
            ordinal: ordinal as u32,
            child: exec,
            agent: spec.name.clone(),
            limits,
        };
        // At least one: what was never set aside is never settled, and a person may grant more to a child that got nothing.
        let reserved = BudgetReserved { effect, tokens: limits.tokens.max(1) };
        [Event::ChildRequested(asked), Event::BudgetReserved(reserved)]
    }

    fn id_of_child(&self, effect: &EffectId) -> ExecutionId {
        let exec = self.exec.expect("an execution that decides knows its id");
        ExecutionId::child(exec, effect, 1, self.now)
    }

    fn ask_person(&self, request: &ExecutionSubmitted, effect: &EffectId, name: &str) -> [Event; 2] {
        let wait = match request.policy.approval_ms {
            0 => APPROVAL,
            ms => Nanos::try_from(ms).unwrap_or(Nanos::MAX).saturating_mul(1_000_000),
        };
        let expires = self.now.saturating_add(wait).min(self.budget.deadline());
        let approval = ApprovalRequested { approval: effect.clone(), name: name.to_owned(), expires };
        let timer = TimerSet { timer: effect.to_string(), at: expires };
        [Event::ApprovalRequested(approval), Event::TimerSet(timer)]
    }

    /// A person's word takes effect, and so does the end of waiting for it.
    pub(super) fn after_approvals(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for (id, effect) in self.effects.iter() {
            let State::AwaitApproval { expires, word } = &effect.state else { continue };
            let (verdict, via) = match word {
                Some(word) => (word.verdict, "person"),
                None if *expires <= self.now => (Verdict::Deny, "expiry"),
                None => continue,
            };
            if via == "person" {
                events.push(Event::TimerCancelled(TimerCancelled { timer: id.to_string() }));
            }
            let (approval, via, deadline) = (id.clone(), via.to_owned(), self.tool_deadline());
            events.push(Event::ApprovalResolved(ApprovalResolved { approval, verdict, via, deadline }));
        }
        events
    }

    /// Joins a turn whose calls have all come to something; cancels children of which enough have.
    pub(super) fn after_calls(&self, request: &ExecutionSubmitted, calls: &[(u32, EffectId)]) -> Vec<Event> {
        if calls.iter().all(|(_, effect)| self.effects.is_settled(effect)) {
            let outcome = |(_, effect): &(u32, EffectId)| ToolOutcome {
                effect: effect.clone(),
                success: self.effects.is_done(effect),
            };
            let outcomes = calls.iter().map(outcome).collect();
            return vec![Event::ToolsJoined(ToolsJoined { turn: self.turn, outcomes })];
        }
        let children: Vec<&EffectId> = calls
            .iter()
            .map(|(_, effect)| effect)
            .filter(|e| self.effects.get(e).is_some_and(|e| matches!(e.work, Work::Child { .. })))
            .collect();
        if !self.is_enough(request.policy.join, &children) {
            return vec![];
        }
        let open = children.into_iter().filter(|e| !self.effects.is_settled(e));
        open.map(|effect| Event::EffectCancelled(EffectCancelled { effect: effect.clone(), attempt: 1 })).collect()
    }

    fn is_enough(&self, join: Join, children: &[&EffectId]) -> bool {
        let done = children.iter().filter(|e| self.effects.is_done(e)).count();
        let failed = || {
            let failed = |e: &&&EffectId| self.effects.is_settled(e) && !self.effects.is_done(e);
            children.iter().filter(failed).count()
        };
        match join {
            Join::All => false,
            Join::Any => done >= 1,
            Join::Quorum(wanted) => done >= wanted as usize,
            Join::FirstError => failed() >= 1,
        }
    }
}
