//! What an open effect asks of others: a job for a worker, or the request of another execution. Pure: the same state
//! gives the same work.

use std::collections::BTreeMap;

use schemas::chat::{Priority, Truncation};
use schemas::fact::{CancelMode, CancelRequested, ChildClosed, ExecutionSubmitted, Kind, Limits, Outcome, Parent};
use schemas::job::{AnalysisJob, InferenceJob, Purpose, ToolJob};
use schemas::trace::below;
use schemas::wire::{Nanos, Schema};
use schemas::{EffectId, ExecutionId, Fact, FactBody, Message, Role, Sampling};

use crate::execution::{Delegate, Effect, Execution, State, Work, estimate};

/// What is to be done about an open effect.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// For an inference worker.
    Inference(Box<InferenceJob>),
    /// For a tool worker.
    Tool(Box<ToolJob>),
    /// For an analysis worker.
    Analysis(Box<AnalysisJob>),
    /// The first fact of another execution.
    Child(Box<Fact>),
}

/// One tool result may fill a quarter of the window. Code runs at about five bytes to two tokens.
fn result_bytes_max(window: u32) -> u64 {
    u64::from(window) / 4 * 5 / 2
}

/// The order of an open effect, none when it is not open. `history` stands before the execution's own messages.
#[must_use]
pub fn order(execution: &Execution, id: &EffectId, effect: &Effect, history: &[Message], now: Nanos) -> Option<Order> {
    let (exec, request) = (execution.exec?, execution.request.as_deref()?);
    let State::Open { deadline } = effect.state else {
        return None;
    };
    let inference = |model: &str, messages: Vec<Message>, tokens_max: u64| InferenceJob {
        schema: InferenceJob::SCHEMA.to_owned(),
        exec,
        effect: id.clone(),
        attempt: effect.attempt,
        deadline,
        queued_at: now,
        trace: carrier(execution),
        model: model.to_owned(),
        messages,
        tools: request.tools.clone(),
        sampling: request.sampling.clone(),
        tokens_max,
        user_id: request.user_id.clone(),
        purpose: Purpose::Answer,
        priority: request.priority,
        truncation: request.truncation,
        cache: request.cache,
    };
    Some(match &effect.work {
        Work::Inference { tokens_max, .. } => {
            let earlier = recent(history, request.window, execution.context.tokens());
            let messages = earlier.into_iter().chain(execution.context.messages().iter().cloned()).collect();
            Order::Inference(Box::new(inference(&request.model, messages, *tokens_max)))
        }
        Work::Compression { history, tokens_max } => {
            let model = request.policy.small_model.as_deref().unwrap_or(&request.model);
            let job = inference(model, vec![Message::text(Role::User, history)], *tokens_max);
            let sampling = Sampling { temperature: Some(0.0), ..Sampling::default() };
            Order::Inference(Box::new(InferenceJob {
                tools: vec![],
                sampling,
                purpose: Purpose::Summary,
                // Work goes on beside it.
                priority: Priority::Low,
                truncation: Truncation::Disabled,
                ..job
            }))
        }
        Work::Tool { call } if request.kind == Kind::Index => Order::Analysis(Box::new(AnalysisJob {
            schema: AnalysisJob::SCHEMA.to_owned(),
            exec,
            effect: id.clone(),
            attempt: effect.attempt,
            deadline,
            queued_at: now,
            trace: carrier(execution),
            kind: call.function.name.clone(),
            arguments: call.function.arguments.clone(),
        })),
        Work::Tool { call } => Order::Tool(Box::new(ToolJob {
            schema: ToolJob::SCHEMA.to_owned(),
            exec,
            effect: id.clone(),
            attempt: effect.attempt,
            deadline,
            queued_at: now,
            trace: carrier(execution),
            tool: call.function.name.clone(),
            arguments: call.function.arguments.clone(),
            workspace: request.workspace.clone(),
            user_id: request.user_id.clone(),
            result_bytes_max: result_bytes_max(request.window),
            agent: request.agent.clone(),
            // A call that a person must allow is open only once one has.
            approved: request.kind == Kind::Tool || request.policy.approve.contains(&call.function.name),
            fresh: request.fresh_tools,
        })),
        Work::Child { call, child, agent, limits } => {
            let parent = Parent { exec, effect: id.clone(), attempt: effect.attempt };
            let task = serde_json::from_str::<Delegate>(&call.function.arguments).ok()?.task;
            let body = submission(request, parent, agent, &task, *limits)?;
            let mut fact = Fact::new(*child, now, FactBody::ExecutionSubmitted(Box::new(body)));
            fact.cause = Some(format!("{exec}/{id}"));
            fact.trace = carrier(execution);
            Order::Child(Box::new(fact))
        }
    })
}

/// The span of an agent's turns, below which its workers record theirs.
pub(crate) const LOOP: &str = "tool_calling_loop";

/// The span of a whole execution.
pub(crate) const fn whole(kind: Kind) -> &'static str {
    match kind {
        Kind::Agent => "run_agent",
        Kind::Chat => "run_chat",
        Kind::Tool => "run_tool",
        Kind::Index => "run_index",
    }
}

/// The trace context of jobs and children: they lie below the loop, or below the execution itself.
fn carrier(execution: &Execution) -> BTreeMap<String, String> {
    let (Some(exec), Some(request)) = (execution.exec, &execution.request) else { return execution.trace.clone() };
    let name = if request.kind == Kind::Agent { LOOP } else { whole(request.kind) };
    below(&execution.trace, exec, name)
}

/// Of a conversation's earlier parts what leaves room for the present one: all of them, or else the instructions and as
/// many of the newest exchanges as fit three quarters of the window. Each begins with what the user said, so that no call
/// is cut from its results. It follows from the logs alone: given again, a prompt is the same.
fn recent(history: &[Message], window: u32, own: u64) -> Vec<Message> {
    let tokens = |messages: &[Message]| messages.iter().map(estimate).sum::<u64>();
    let room = (u64::from(window) * 3 / 4).saturating_sub(own);
    if window == 0 || tokens(history) <= room {
        return history.to_vec();
    }
    let (system, said): (Vec<Message>, Vec<Message>) = history.iter().cloned().partition(|m| m.role == Role::System);
    let room = room.saturating_sub(tokens(&system));
    let begins = (0..said.len()).filter(|i| said[*i].role == Role::User);
    let from = begins.into_iter().find(|from| tokens(&said[*from..]) <= room).unwrap_or(said.len());
    system.into_iter().chain(said[from..].iter().cloned()).collect()
}

/// The request of a child: its agent type as the parent's request brought it, within its part of the limits.
fn submission(
    request: &ExecutionSubmitted,
    parent: Parent,
    agent: &str,
    task: &str,
    limits: Limits,
) -> Option<ExecutionSubmitted> {
    let spec = request.agents.iter().find(|a| a.name == agent)?;
    Some(ExecutionSubmitted {
        model: spec.model.clone(),
        window: spec.window,
        messages: vec![Message::text(Role::System, &spec.system), Message::text(Role::User, task)],
        tools: spec.tools.clone(),
        workspace: request.workspace.clone(),
        user_id: request.user_id.clone(),
        sampling: Sampling { seed: request.sampling.seed, ..Sampling::default() },
        parent: Some(parent),
        depth: request.depth + 1,
        policy: spec.policy.clone(),
        agents: request.agents.clone(),
        priority: request.priority,
        cache: request.cache,
        fresh_tools: request.fresh_tools,
        ..ExecutionSubmitted::new(Kind::Agent, agent, limits)
    })
}

/// What the parent of an execution that has ended hears; none when it has no parent or has not ended.
#[must_use]
pub fn report(execution: &Execution, now: Nanos) -> Option<Fact> {
    let (child, end) = (execution.exec?, execution.end.as_ref()?);
    let Parent { exec, effect, attempt } = execution.request.as_deref()?.parent.clone()?;
    let text = match end.outcome {
        Outcome::Completed => end.text.clone(),
        _ => format!("the agent gave no answer: {}", end.text),
    };
    let usage = execution.budget.usage;
    let closed = ChildClosed { effect, attempt, child, outcome: end.outcome, text, usage };
    let mut fact = Fact::new(exec, now, FactBody::ChildClosed(closed));
    fact.trace = execution.trace.clone();
    Some(fact)
}

/// Children whose results nobody wants any more: each must be told to end. It follows from the state, not from the
/// decision just made, so that who takes the execution over after a crash tells those that were not told.
pub fn unwanted_children(execution: &Execution) -> impl Iterator<Item = (&EffectId, ExecutionId)> {
    let cancelled = execution.effects.iter().filter(|(_, effect)| effect.state == State::Cancelled);
    cancelled.filter_map(|(id, effect)| Some((id, child_of(effect)?)))
}

/// What a child hears that `parent` no longer wants. Told again, it is the same fact until the parent hears of something
/// new.
#[must_use]
pub fn dismissal(parent: &Execution, child: ExecutionId) -> Option<Fact> {
    let body = CancelRequested {
        by: parent.exec?.to_string(),
        reason: Some("the execution that asked for it no longer wants it".to_owned()),
        mode: CancelMode::Now,
    };
    Some(Fact::new(child, parent.now, FactBody::CancelRequested(body)))
}

/// The execution that carries out an effect, if one does.
#[must_use]
pub fn child_of(effect: &Effect) -> Option<ExecutionId> {
    match &effect.work {
        Work::Child { child, .. } => Some(*child),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
