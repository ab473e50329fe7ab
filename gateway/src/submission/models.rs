//! Which model serves an agent: the one that was named, or the first of the agent type's preferences that is loaded
//! and whose window fits the prompt. Only a model that was named may still have to be loaded.

use schemas::rpc::{AgentType, Model};
use schemas::{Message, ToolSpec};

use super::Surroundings;
use crate::problem::Failure;

/// Tokens of a prompt, estimated: two for five bytes, as the orchestrator estimates. Only the model's own tokenizer
/// knows, so nothing is refused for this number.
pub(super) fn tokens(messages: &[Message], tools: &[ToolSpec]) -> u64 {
    let calls = |m: &Message| m.tool_calls.iter().map(|c| c.function.arguments.len()).sum::<usize>();
    let said: usize = messages.iter().map(|m| m.content.len() + calls(m)).sum();
    let offered =
        |t: &ToolSpec| t.function.name.len() + t.function.description.len() + t.function.parameters.to_string().len();
    (said + tools.iter().map(offered).sum::<usize>()) as u64 * 2 / 5
}

/// The model that was named, or the agent type's preferred one.
pub(super) fn named_or_preferred<'a>(
    name: Option<&str>,
    with: &Surroundings<'a>,
    tokens: u64,
) -> Result<&'a Model, Failure> {
    let Some(name) = name else {
        return preferred(with.agent, with.models, tokens);
    };
    find(name, with.models, with.loadable)
}

/// The chat model of that name: a loaded one, or one that a worker could load, for which the request waits.
pub(crate) fn find<'a>(name: &str, loaded: &'a [Model], loadable: &'a [Model]) -> Result<&'a Model, Failure> {
    let all = || loaded.iter().chain(loadable).filter(|m| m.kind != "embedding");
    if let Some(model) = all().find(|m| m.name == name) {
        return Ok(model);
    }
    if all().next().is_none() {
        chat_models(loaded)?;
    }
    let mut names: Vec<String> = all().map(|m| m.name.clone()).collect();
    names.sort();
    names.dedup();
    Err(Failure::unknown("model", name, &names))
}

/// The first of the agent type's preferences that is loaded and whose window holds so many tokens; where none does, the
/// one with the largest window.
pub(super) fn preferred<'a>(agent: &AgentType, models: &'a [Model], tokens: u64) -> Result<&'a Model, Failure> {
    let chat = chat_models(models)?;
    let candidates: Vec<&Model> = if agent.models.is_empty() {
        chat.clone()
    } else {
        agent.models.iter().filter_map(|name| chat.iter().copied().find(|m| &m.name == name)).collect()
    };
    let fits = candidates.iter().find(|m| m.window == 0 || u64::from(m.window) > tokens);
    let widest = || candidates.iter().rev().max_by_key(|m| m.window);
    fits.or_else(widest).copied().ok_or_else(|| {
        let wanted = agent.models.join(", ");
        let detail = format!("none of the models of agent type {} is loaded: {wanted}", agent.name);
        let names: Vec<&str> = chat.iter().map(|m| m.name.as_str()).collect();
        let next = format!("load one, or name one of these in `config.model` or the agent type: {}", names.join(", "));
        Failure::new(503, "workers_absent", detail, next)
    })
}

fn chat_models(models: &[Model]) -> Result<Vec<&Model>, Failure> {
    let chat: Vec<&Model> = models.iter().filter(|m| m.kind != "embedding").collect();
    if chat.is_empty() {
        let detail = "no model is loaded: no inference worker answers";
        return Err(Failure::new(503, "workers_absent", detail, "start one (`vlinders inference-worker`) or wait"));
    }
    Ok(chat)
}
