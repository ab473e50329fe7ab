//! An execution as it stood after one of its messages: where it was, what was open, what its model would read.

use orchestrator::execution::{Effect, State};
use orchestrator::questions::{after, what};
use runtime::bus::Stored;
use schemas::{EffectId, ExecutionId, Role};

/// Characters of one message shown to a person; the whole stands in the log.
const TEXT_SHOWN: usize = 200;

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

fn shorten(text: &str) -> String {
    let line = text.replace('\n', " ");
    match line.char_indices().nth(TEXT_SHOWN) {
        None => line,
        Some((end, _)) => format!("{} …", &line[..end]),
    }
}
