//! What can be asked about one execution: its state after any of its messages, and whether its decisions come out again.
//! Folded from its log each time; on threads of their own, so that a long log holds up no partition.

use runtime::bus::{Bus, Stored};
use runtime::{Runtime, bus};
use schemas::rpc::{AskState, AskVerification, Refusal, Reply};
use schemas::{ExecutionId, subject, wire};
use serde_json::{Value, json};

use crate::execution::{Effect, Execution, Rules, Work};
use crate::history::{self, History};

/// Bytes of an answer at most: it travels as one message.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Answers both until the soft token falls.
pub(crate) async fn serve(runtime: &Runtime) -> Result<(), bus::Error> {
    let bus = runtime.bus.clone();
    let ask_state = move |asked: AskState| {
        let bus = bus.clone();
        async move { about(&bus, asked.exec, move |messages| state_at(asked, messages)).await }
    };
    runtime.bus.serve(&runtime.tasks, subject::RPC_STATE, ask_state).await?;
    let bus = runtime.bus.clone();
    let verify = move |asked: AskVerification| {
        let bus = bus.clone();
        async move { about(&bus, asked.exec, move |messages| Ok(verification(asked.exec, messages, None).1)).await }
    };
    runtime.bus.serve(&runtime.tasks, subject::RPC_VERIFY, verify).await
}

/// Reads an execution and answers from its messages.
async fn about(
    bus: &Bus,
    exec: ExecutionId,
    answer: impl FnOnce(&[Stored]) -> Result<Value, Refusal> + Send + 'static,
) -> Reply<Value> {
    let messages = match bus.read_execution(exec, 0).await {
        Ok(messages) if messages.is_empty() => {
            return Reply::Err(refusal("unknown_execution", format!("there is no execution {exec}")));
        }
        Ok(messages) => messages,
        Err(error) => return Reply::Err(refusal("log_unavailable", error.to_string())),
    };
    match tokio::task::spawn_blocking(move || answer(&messages)).await {
        Ok(Ok(answer)) => Reply::Ok(answer),
        Ok(Err(refusal)) => Reply::Err(refusal),
        Err(error) => Reply::Err(refusal("internal", error.to_string())),
    }
}

fn refusal(code: &str, detail: String) -> Refusal {
    Refusal { code: code.to_owned(), detail }
}

fn state_at(asked: AskState, messages: &[Stored]) -> Result<Value, Refusal> {
    let last = messages.len().saturating_sub(1);
    let at = asked.at.map_or(last, |at| usize::try_from(at).unwrap_or(usize::MAX));
    if at > last {
        let detail = format!("the execution has the messages 0 to {last}, there is none of number {at}");
        return Err(refusal("out_of_range", detail));
    }
    let state = state(asked.exec, messages, at);
    let bytes = wire::encode(&state).len();
    if bytes > ANSWER_BYTES_MAX {
        let detail = format!("the state after message {at} has {bytes} bytes, {ANSWER_BYTES_MAX} fit an answer");
        return Err(refusal("too_large", detail));
    }
    Ok(state)
}

/// An execution after its message `at`.
#[must_use]
pub fn after(exec: ExecutionId, messages: &[Stored], at: usize) -> Execution {
    let mut history = History::new(exec);
    for message in messages.iter().take(at + 1) {
        // What cannot be read led to nothing.
        let _ = history.fold(message);
    }
    history.execution
}

/// The state after message `at`, as `vlinders replay --at` prints it.
#[must_use]
pub fn state(exec: ExecutionId, messages: &[Stored], at: usize) -> Value {
    let execution = after(exec, messages, at);
    let effects: Vec<Value> = execution
        .effects
        .iter()
        .map(|(id, e)| json!({"effect": id, "what": what(e), "attempt": e.attempt, "state": e.state.name()}))
        .collect();
    json!({
        "execution_id": exec,
        "at": at,
        "sequence": messages.get(at).map(|m| m.sequence),
        "phase": execution.phase.name(),
        "control": execution.control.name(),
        "turn": execution.turn,
        "budget": execution.budget,
        "effects": effects,
        "context_tokens": execution.context.tokens(),
        "context": execution.context.messages(),
        "outcome": execution.end.as_ref().map(|end| end.outcome),
        "answer": execution.end.as_ref().map(|end| end.text.clone()),
    })
}

/// What an effect asks of others, for people.
#[must_use]
pub fn what(effect: &Effect) -> String {
    match &effect.work {
        Work::Inference { .. } => "the model".to_owned(),
        Work::Tool { call } => format!("{}({})", call.function.name, call.function.arguments),
        Work::Child { child, agent, .. } => format!("agent {agent}, execution {child}"),
        Work::Compression { .. } => "a summary".to_owned(),
    }
}

/// Decides everything again, by the rules that made it or by others: what was found, and that as
/// `vlinders replay --verify --json` prints it.
pub fn verification(
    exec: ExecutionId,
    messages: &[Stored],
    rules: Option<Rules>,
) -> (Result<history::Verified, history::Difference>, Value) {
    let found = match rules {
        None => history::verify(exec, messages),
        Some(rules) => history::verify_as(exec, messages, rules),
    };
    let mut shown = match &found {
        Ok(verified) => json!({
            "execution_id": exec, "events": verified.events, "decisions": verified.decisions, "verified": true,
            "final_hash": verified.final_hash,
        }),
        Err(difference) => json!({
            "execution_id": exec, "events": messages.len(), "verified": false, "decision": difference.n,
            "sequence": difference.sequence, "difference": difference.difference,
        }),
    };
    if let Some(rules) = rules {
        shown["machine"] = json!(rules.version);
    }
    (found, shown)
}
