//! An execution as it stood after one of its messages: where it was, what was open, what its model would read.

use orchestrator::execution::{Effect, Execution, State, Work};
use orchestrator::history::History;
use runtime::bus::Stored;
use schemas::{EffectId, ExecutionId, Role};
use serde_json::{Value, json};

/// Characters of one message shown to a person; the whole stands in the log.
const TEXT_SHOWN: usize = 200;

/// Folds the messages up to number `at`.
pub(crate) fn after(exec: ExecutionId, messages: &[Stored], at: usize) -> Execution {
    let mut history = History::new(exec);
    for message in messages.iter().take(at + 1) {
        // What cannot be read led to nothing.
        let _ = history.fold(message);
    }
    history.execution
}

/// The state for machines.
pub(crate) fn as_json(exec: ExecutionId, messages: &[Stored], at: usize) -> Value {
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

/// The state for people.
pub(crate) fn tell(exec: ExecutionId, messages: &[Stored], at: usize) {
    let execution = after(exec, messages, at);
    println!("{exec} after message {at}");
    println!("  phase    {}, control {}, turn {}", execution.phase.name(), execution.control.name(), execution.turn);
    let budget = &execution.budget;
    let tokens = match budget.tokens_left() {
        // Without a request there is no limit yet.
        left if execution.request.is_some() => format!("{} tokens used, {left} left", budget.usage.tokens),
        _ => "nothing used".to_owned(),
    };
    println!(
        "  budget   {}: {tokens}, {} inferences, {} tool calls, {} agents",
        budget.name(),
        budget.iterations,
        budget.tool_calls,
        budget.children
    );
    println!("  effects  {}", if execution.effects.iter().next().is_none() { "none" } else { "" });
    for (id, effect) in execution.effects.iter() {
        println!("    {}", in_words(id, effect));
    }
    println!("  context  {} messages, about {} tokens", execution.context.len(), execution.context.tokens());
    for message in execution.context.messages() {
        let speaker = match message.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        };
        let calls: Vec<String> =
            message.tool_calls.iter().map(|c| format!(" {}({})", c.function.name, c.function.arguments)).collect();
        println!("    {speaker:<9} {}{}", shorten(&message.content), calls.concat());
    }
    if let Some(end) = &execution.end {
        println!("  ended    {:?}: {}", end.outcome, shorten(&end.text));
    }
}

fn in_words(id: &EffectId, effect: &Effect) -> String {
    let more = match &effect.state {
        State::Failed { detail, .. } => format!(": {detail}"),
        State::AwaitApproval { word: Some(word), .. } => format!(", {} said {:?}", word.by, word.verdict),
        _ => String::new(),
    };
    format!("{id:<12} {:<14} attempt {} {}{more}", effect.state.name(), effect.attempt, what(effect))
}

fn what(effect: &Effect) -> String {
    match &effect.work {
        Work::Inference { .. } => "the model".to_owned(),
        Work::Tool { call } => format!("{}({})", call.function.name, call.function.arguments),
        Work::Child { child, agent, .. } => format!("agent {agent}, execution {child}"),
        Work::Compression { .. } => "a summary".to_owned(),
    }
}

fn shorten(text: &str) -> String {
    let line = text.replace('\n', " ");
    match line.char_indices().nth(TEXT_SHOWN) {
        None => line,
        Some((end, _)) => format!("{} …", &line[..end]),
    }
}
