//! How tokens are drawn: numbers as the request has them, checked, or refused by field, bound and value.

use schemas::Sampling;
use schemas::api::{AgentConfig, ChatRequest};
use schemas::chat::ANSWERS_MAX;
use serde_json::Number;

use crate::problem::Failure;

/// Draws are all but even by then. OpenAI's API ends at 2.
const TEMPERATURE_MAX: f64 = 10.0;
/// Beyond every vocabulary.
const TOP_K_MAX: u64 = 10_000_000;
/// Beyond every window.
const TOKENS_MAX: u64 = 100_000_000;
/// As in OpenAI's API.
const TOP_LOGPROBS_MAX: u64 = 20;
/// Stop texts: more would be searched for after every token.
const STOPS_MAX: usize = 16;
/// Bytes of one stop text: as much text is held back from a stream.
const STOP_BYTES_MAX: usize = 1_024;
/// Probabilities of one answer: they are kept in one message of the log, which holds some megabytes.
const LOGPROBS_MAX: u64 = 50_000;

/// Tokens of several answers to one request together: they, too, are kept in one message.
const ANSWERS_TOKENS_MAX: u64 = 1_000_000;

/// A chat's sampling; `seed` is taken when the request has none.
pub(super) fn chat(request: &ChatRequest, seed: u64) -> Result<Sampling, Failure> {
    let stop = request.stop.as_ref().map(|stop| stop.0.clone()).unwrap_or_default();
    check_stop(&stop)?;
    let top_logprobs = whole("top_logprobs", request.top_logprobs.as_ref(), 0, TOP_LOGPROBS_MAX)?;
    if top_logprobs.is_some() && !request.logprobs {
        let detail = "`top_logprobs` is given without `logprobs`";
        return Err(Failure::invalid(detail, "send `logprobs`: true with it, or leave it out"));
    }
    Ok(Sampling {
        temperature: between("temperature", request.temperature.as_ref(), 0.0, TEMPERATURE_MAX)?,
        top_p: part("top_p", request.top_p.as_ref(), 1.0)?,
        max_tokens: whole("max_tokens", request.max_tokens.as_ref(), 1, TOKENS_MAX)?,
        seed: Some(whole("seed", request.seed.as_ref(), 0, u64::MAX)?.unwrap_or(seed)),
        stop,
        top_k: whole("top_k", request.top_k.as_ref(), 0, TOP_K_MAX)?,
        min_p: between("min_p", request.min_p.as_ref(), 0.0, 1.0)?,
        repetition_penalty: part("repetition_penalty", request.repetition_penalty.as_ref(), 2.0)?,
        presence_penalty: between("presence_penalty", request.presence_penalty.as_ref(), -2.0, 2.0)?,
        frequency_penalty: between("frequency_penalty", request.frequency_penalty.as_ref(), -2.0, 2.0)?,
        logprobs: request.logprobs,
        top_logprobs,
        n: whole("n", request.n.as_ref(), 1, ANSWERS_MAX.into())?.filter(|n| *n > 1),
        // Without tools there is no call to bound, and several may come where nothing else is said.
        parallel_tool_calls: request.parallel_tool_calls.filter(|several| !several && !request.tools.is_empty()),
        ..Sampling::default()
    })
}

/// An agent's sampling.
pub(super) fn agent(config: &AgentConfig, seed: u64) -> Result<Sampling, Failure> {
    if let Some(n) = config.n.as_ref().filter(|n| n.as_u64() != Some(1)) {
        let detail = format!("`config.n` is {n}; it must be 1: an agent goes on with its answer, so it has one");
        return Err(Failure::invalid(detail, "leave it out, or ask several agents, or a chat"));
    }
    Ok(Sampling {
        temperature: between("config.temperature", config.temperature.as_ref(), 0.0, TEMPERATURE_MAX)?,
        top_p: part("config.top_p", config.top_p.as_ref(), 1.0)?,
        seed: Some(whole("config.seed", config.seed.as_ref(), 0, u64::MAX)?.unwrap_or(seed)),
        top_k: whole("config.top_k", config.top_k.as_ref(), 0, TOP_K_MAX)?,
        min_p: between("config.min_p", config.min_p.as_ref(), 0.0, 1.0)?,
        repetition_penalty: part("config.repetition_penalty", config.repetition_penalty.as_ref(), 2.0)?,
        presence_penalty: between("config.presence_penalty", config.presence_penalty.as_ref(), -2.0, 2.0)?,
        frequency_penalty: between("config.frequency_penalty", config.frequency_penalty.as_ref(), -2.0, 2.0)?,
        ..Sampling::default()
    })
}

/// Answers of `window` tokens each at most, and their probabilities, must fit one message.
pub(super) fn check_size(sampling: &Sampling, window: u32) -> Result<(), Failure> {
    let each = 1 + u64::from(sampling.top_logprobs.unwrap_or(0));
    let window = if window == 0 { u32::MAX } else { window };
    let tokens = u64::from(sampling.max_tokens.unwrap_or(window).min(window));
    let answers = u64::from(sampling.answers());
    let many = if answers > 1 { format!("{answers} answers of ") } else { String::new() };
    if answers > 1 && tokens * answers > ANSWERS_TOKENS_MAX {
        let detail = format!("{many}up to {tokens} tokens are more than {ANSWERS_TOKENS_MAX} for one request");
        let next = format!("lower `max_tokens` to {} or fewer, or `n`", ANSWERS_TOKENS_MAX / answers);
        return Err(Failure::invalid(detail, next));
    }
    if !sampling.logprobs || tokens * each * answers <= LOGPROBS_MAX {
        return Ok(());
    }
    let detail = format!(
        "`logprobs` for {many}up to {tokens} tokens with {each} probabilities each are more than {LOGPROBS_MAX} in one request"
    );
    let next = format!("lower `max_tokens` to {} or fewer, or `top_logprobs`", LOGPROBS_MAX / each / answers);
    Err(Failure::invalid(detail, next))
}

/// Whether answers may be kept for equal requests: nothing is drawn, or by a seed that the caller chose, and the caller
/// does not object. A seed that was drawn here gives an answer that nobody can ask for again.
pub(super) fn may_cache(sampling: &Sampling, seed: Option<&Number>, wanted: Option<bool>) -> bool {
    wanted != Some(false) && (sampling.is_greedy() || seed.is_some())
}

fn check_stop(stop: &[String]) -> Result<(), Failure> {
    if stop.len() > STOPS_MAX {
        let detail = format!("`stop` holds {} texts, at most {STOPS_MAX} are taken", stop.len());
        return Err(Failure::invalid(detail, "send fewer"));
    }
    match stop.iter().find(|text| text.is_empty() || text.len() > STOP_BYTES_MAX) {
        None => Ok(()),
        Some(text) if text.is_empty() => Err(Failure::invalid("`stop` holds an empty text", "leave it out")),
        Some(text) => {
            let detail = format!("`stop` holds a text of {} bytes, at most {STOP_BYTES_MAX} are taken", text.len());
            Err(Failure::invalid(detail, "send a shorter one"))
        }
    }
}

/// A number from `low` to `high`, both included.
fn between(field: &str, number: Option<&Number>, low: f64, high: f64) -> Result<Option<f32>, Failure> {
    bounded(field, number, &format!("{low} to {high}"), |value| (low..=high).contains(&value))
}

/// A number above 0, up to `high`.
fn part(field: &str, number: Option<&Number>, high: f64) -> Result<Option<f32>, Failure> {
    bounded(field, number, &format!("above 0, up to {high}"), |value| value > 0.0 && value <= high)
}

fn bounded(
    field: &str,
    number: Option<&Number>,
    bound: &str,
    fits: impl Fn(f64) -> bool,
) -> Result<Option<f32>, Failure> {
    let Some(number) = number else { return Ok(None) };
    match number.as_f64() {
        // What fits must still fit when rounded: a top_p of 1e-60 is no top_p of 0.
        Some(value) if fits(value) && fits(f64::from(value as f32)) => Ok(Some(value as f32)),
        _ => Err(outside(field, number, &format!("a number {bound}"))),
    }
}

/// A whole number from `low` to `high`, both included.
fn whole<T: TryFrom<u64>>(field: &str, number: Option<&Number>, low: u64, high: u64) -> Result<Option<T>, Failure> {
    let Some(number) = number else { return Ok(None) };
    let value = number.as_u64().filter(|value| (low..=high).contains(value));
    match value.and_then(|value| T::try_from(value).ok()) {
        Some(value) => Ok(Some(value)),
        None => Err(outside(field, number, &format!("a whole number {low} to {high}"))),
    }
}

fn outside(field: &str, value: &Number, bound: &str) -> Failure {
    Failure::invalid(format!("`{field}` is {value}; it must be {bound}"), "correct it or leave it out")
}
