//! A crowd of streams across the death of the worker that writes them all: another one takes over, and every reader has,
//! token for token, what nobody would have disturbed.

use anyhow::Context;
use futures::future::try_join_all;
use pipeline_tests::{System, read_events, text};
use runtime::bus::Stored;
use schemas::{Fact, FactBody};
use serde_json::{Value, json};

/// Streams at once.
const STREAMS: usize = 32;
/// Events with tokens that each reader has before the worker dies.
const TOKENS_BEFORE: usize = 4;

/// A request with a long answer that is not the same as the others', nor the same thing again and again: numbers, of
/// which those said before become less likely.
fn request(stream: usize, more: &Value) -> Value {
    let numbers = json!({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99_999}, "minItems": 24, "maxItems": 30});
    let mut body = json!({
        "messages": [{"role": "user", "content": format!("Give me numbers for list {stream}, please.")}],
        "response_format": {"type": "json_schema", "json_schema": {"schema": numbers}},
        "frequency_penalty": 0.4, "max_tokens": 120, "logprobs": true,
        // What was computed undisturbed must not stand in for what is taken over.
        "cache": false,
    });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn tokens_of(data: &Value) -> Vec<Value> {
    data["logprobs"]["content"].as_array().cloned().unwrap_or_default()
}

/// What a reader has in the end, and every token with its probability, each as it came.
fn read(events: &[(String, Value)]) -> anyhow::Result<(String, Vec<Value>)> {
    let (name, done) = events.last().context("no event")?;
    anyhow::ensure!(name == "done", "the stream ended with {name}: {done}");
    let whole = text(events);
    assert_eq!(whole, done["response"].as_str().unwrap_or_default(), "the stream's text is the answer");
    assert!(!events.iter().any(|(name, _)| name == "restart"), "what was published stays: nobody has to begin anew");
    let streamed: Vec<Value> =
        events.iter().filter(|(n, _)| n == "token").flat_map(|(_, data)| tokens_of(data)).collect();
    assert_eq!(streamed, tokens_of(done), "every token once and in order");
    assert_eq!(done["usage"]["completion_tokens"], streamed.len(), "{done}");
    Ok((whole, streamed))
}

/// Asks for all streams; with a death in the middle when asked.
async fn streams(
    system: &mut System,
    more: impl Fn(usize) -> Value,
    death: bool,
) -> anyhow::Result<Vec<(String, Vec<Value>)>> {
    let open = (0..STREAMS).map(|stream| system.open("/internal/chat", request(stream, &more(stream))));
    let mut open = try_join_all(open).await?;
    let begun = open.iter_mut().map(|(_, stream)| {
        read_events(stream, |events| events.iter().filter(|(name, _)| name == "token").count() >= TOKENS_BEFORE)
    });
    let begun = try_join_all(begun).await?;
    if death {
        // The other is there already, so nothing but the death itself stands between the two.
        system.start_role("inference-worker").await?;
        system.kill_role("inference-worker").await?;
    }
    let rest = try_join_all(open.iter_mut().map(|(_, stream)| read_events(stream, |_| false))).await?;
    let mut answers = Vec::new();
    let mut taken_over = 0;
    for ((exec, _), (mut events, rest)) in open.iter().zip(begun.into_iter().zip(rest)) {
        events.extend(rest);
        answers.push(read(&events).with_context(|| format!("{exec}\n{}", system.log()))?);
        let log = system.prove(*exec).await?;
        let lost = |m: &Stored| Fact::read(&m.payload).is_ok_and(|fact| matches!(fact.body, FactBody::EffectLost(_)));
        taken_over += usize::from(log.iter().any(lost));
    }
    println!("{taken_over} of {STREAMS} answers were taken over");
    assert!(!death || taken_over >= STREAMS / 2, "only {taken_over} answers were still under way");
    Ok(answers)
}

/// The same requests, undisturbed and with a death in the middle.
async fn compare(more: impl Fn(usize) -> Value + Copy) -> anyhow::Result<()> {
    let mut system = System::start().await?;
    let wanted = streams(&mut system, more, false).await?;
    assert!(wanted.iter().all(|(_, tokens)| tokens.len() > 40), "answers are long enough to die in");
    let mut different = wanted.clone();
    different.dedup();
    assert_eq!(different.len(), STREAMS, "no two are the same");
    let disturbed = streams(&mut system, more, true).await?;
    for (stream, (wanted, disturbed)) in wanted.iter().zip(&disturbed).enumerate() {
        assert_eq!(disturbed, wanted, "stream {stream}");
    }
    Ok(())
}

#[tokio::test]
async fn a_crowd_of_streams_is_taken_over_token_for_token() -> anyhow::Result<()> {
    compare(|_| json!({})).await
}

#[tokio::test]
async fn a_crowd_of_streams_with_seeds_is_taken_over_token_for_token() -> anyhow::Result<()> {
    compare(|stream| json!({"temperature": 1.0, "seed": 1_000 + stream})).await
}
