//! `vlinders bench`: real streamed chats through a running gateway. The client's clock says how long the first token
//! and the answer took; the log says where the time to the first token went.

mod engine;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, bail};
use futures::StreamExt;
use runtime::clock;
use schemas::wire::Nanos;
use serde_json::{Value, json};

use crate::cli;
use crate::gateway_client::GatewayClient;
use crate::sse::Events;

/// The stages of a time to first token, in order. Together they are the whole of it.
const STAGES: [(&str, &str); 6] = [
    ("accept", "request sent → fact stored"),
    ("decide", "fact stored → decision stored"),
    ("dispatch", "decision stored → job published"),
    ("queue", "job published → taken by a worker"),
    ("prefill", "taken → first token"),
    ("deliver", "first token → with the client"),
];

/// One chat as its client saw it.
struct Asked {
    execution: String,
    sent: Nanos,
    first_token: Nanos,
    ended: Nanos,
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// What to do where nothing answers.
const START: &str = "nothing is measured; start it with `vlinders up`";

/// Where the chats go.
struct Gateway(GatewayClient);

/// Asks and reports; exit code 1 when an answer failed.
pub(crate) async fn run(options: cli::Bench) -> anyhow::Result<ExitCode> {
    if let Some(cli::BenchOf::Engine(options)) = &options.of {
        return tokio::task::block_in_place(|| engine::run(options));
    }
    let gateway = Gateway(options.target.gateway()?);
    let model = gateway.model(options.model.as_deref()).await?;
    // Connections are opened and the model's pages read before anything counts.
    gateway.ask(&chat(&model, 0, options.max_tokens)).await.context("ask once before measuring")?;

    let began = clock::now();
    let asked = futures::stream::iter(0..options.requests)
        .map(|n| {
            let (gateway, body) = (&gateway, chat(&model, n, options.max_tokens));
            async move { gateway.ask(&body).await }
        })
        .buffer_unordered(options.concurrent as usize)
        .collect::<Vec<_>>()
        .await;
    let seconds = (clock::now() - began) as f64 / 1e9;

    let (mut answered, mut failures) = (Vec::new(), Vec::new());
    for outcome in asked {
        match outcome {
            Ok(asked) => answered.push(asked),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    if answered.is_empty() {
        bail!("none of {} chats was answered; the first: {}", options.requests, failures[0]);
    }
    let mut stages = BTreeMap::new();
    for asked in &answered {
        for (name, nanos) in gateway.stages(asked).await? {
            stages.entry(name).or_insert_with(Vec::new).push(nanos);
        }
    }
    let report = report(&options, &model, seconds, &answered, &failures, &mut stages);
    if options.json {
        println!("{report}");
    } else {
        print(&report);
    }
    Ok(ExitCode::from(u8::from(!failures.is_empty())))
}

/// A conversation with a tool's output to repeat, so that also a tiny model has `max_tokens` to say. Each is its own.
fn chat(model: &str, n: u32, max_tokens: u32) -> Value {
    let path = format!("src/service_{n}.rs");
    let symbols = "Request, Reply, Session, Router, Listener, Handler, Connection, Registry, Deadline, Cursor";
    let call = json!({"id": "call-0", "type": "function",
        "function": {"name": "analyze_code", "arguments": json!({"path": path}).to_string()}});
    json!({
        "model": model,
        "messages": [
            {"role": "user", "content": format!("What does {path} define?")},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call-0", "content": format!("120 lines\nimports: none\nsymbols: {symbols}")},
        ],
        "max_tokens": max_tokens,
        "temperature": 0,
        // What is measured is computed, also when it was asked before.
        "cache": false,
        "stream": true,
    })
}

impl Gateway {
    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let response = self.0.get(path).await.context(START)?;
        let status = response.status();
        let body: Value = response.json().await.with_context(|| format!("read the answer to GET {path}"))?;
        if status.is_success() { Ok(body) } else { bail!("{}", problem(&body, &status.to_string())) }
    }

    /// The model to ask: the wanted one, which must be loaded, or the first.
    async fn model(&self, wanted: Option<&str>) -> anyhow::Result<String> {
        let answer = self.get("/internal/models").await?;
        let models = answer["models"].as_array().into_iter().flatten().filter(|m| m["kind"] != "embedding");
        let names: Vec<&str> = models.filter_map(|m| m["name"].as_str()).collect();
        match (wanted, names.first()) {
            (_, None) => bail!("no model is loaded: start `vlinders inference-worker`, or `vlinders up --models DIR`"),
            (None, Some(first)) => Ok((*first).to_owned()),
            (Some(wanted), _) if names.contains(&wanted) => Ok(wanted.to_owned()),
            (Some(wanted), _) => bail!("the model {wanted} is not loaded; loaded: {}", names.join(", ")),
        }
    }

    /// One chat from the request to the end of its stream.
    async fn ask(&self, body: &Value) -> anyhow::Result<Asked> {
        let sent = clock::now();
        let response = self.0.post("/internal/chat", body).await.context(START)?;
        if !response.status().is_success() {
            let status = response.status();
            bail!("{}", problem(&response.json().await.unwrap_or_default(), &status.to_string()));
        }
        let mut events = Events::new(response);
        let mut first_token = None;
        while let Some((name, data)) = events.next().await? {
            match name.as_str() {
                "token" | "restart" => _ = first_token.get_or_insert_with(clock::now),
                "error" => bail!("{}", problem(&data, "the execution failed")),
                "done" => {
                    let count = |what: &str| data["usage"][what].as_u64().unwrap_or(0);
                    return Ok(Asked {
                        execution: data["execution_id"].as_str().unwrap_or_default().to_owned(),
                        sent,
                        first_token: first_token.context("the answer has no text: ask for more with --max-tokens")?,
                        ended: clock::now(),
                        prompt_tokens: count("prompt_tokens"),
                        completion_tokens: count("completion_tokens"),
                    });
                }
                _ => {}
            }
        }
        bail!("the stream ended before the answer")
    }

    async fn stages(&self, asked: &Asked) -> anyhow::Result<Vec<(&'static str, Nanos)>> {
        let events = self.get(&format!("/internal/executions/{}/events", asked.execution)).await?;
        Ok(stages(asked, events.as_array().map_or(&[], Vec::as_slice)).unwrap_or_default())
    }
}

/// What each stage took, in the order of [`STAGES`]; none when the answer took more than one attempt, whose first
/// token nobody recorded. All processes share one clock here: over several machines their skew shows.
fn stages(asked: &Asked, events: &[Value]) -> Option<Vec<(&'static str, Nanos)>> {
    let stored_at = |kind: &str, name: Option<&str>| {
        let event = events.iter().find(|e| e["kind"] == kind && name.is_none_or(|name| e["type"] == name));
        event?["stored_at_ns"].as_i64()
    };
    let fact = stored_at("fact", Some("execution.submitted"))?;
    let decision = stored_at("decision", None)?;
    let completed = events.iter().find(|e| e["type"] == "inference.completed")?;
    if completed["data"]["attempt"] != 1 {
        return None;
    }
    let timing = |what: &str| completed["data"]["timing"][what].as_i64().map(|us| us * 1_000);
    let (queue, prefill, decode) = (timing("queue_us")?, timing("prefill_us")?, timing("decode_us")?);
    let taken = completed["at_ns"].as_i64()? - decode - prefill;
    let moments = [asked.sent, fact, decision, taken - queue, taken, taken + prefill, asked.first_token];
    Some(STAGES.iter().zip(moments.windows(2)).map(|((name, _), m)| (*name, m[1] - m[0])).collect())
}

fn problem(problem: &Value, otherwise: &str) -> String {
    let detail = problem["detail"].as_str().unwrap_or(otherwise);
    match problem["next_step"].as_str() {
        Some(next) => format!("{detail}; next: {next}"),
        None => detail.to_owned(),
    }
}

fn report(
    options: &cli::Bench,
    model: &str,
    seconds: f64,
    answered: &[Asked],
    failures: &[String],
    stages: &mut BTreeMap<&'static str, Vec<Nanos>>,
) -> Value {
    let mut first: Vec<Nanos> = answered.iter().map(|a| a.first_token - a.sent).collect();
    let mut whole: Vec<Nanos> = answered.iter().map(|a| a.ended - a.sent).collect();
    let tokens: u64 = answered.iter().map(|a| a.completion_tokens).sum();
    let prompt: u64 = answered.iter().map(|a| a.prompt_tokens).sum();
    let count = answered.len() as f64;
    let mut shown = serde_json::Map::new();
    for (name, _) in STAGES {
        if let Some(times) = stages.get_mut(name) {
            shown.insert(name.to_owned(), spread(times));
        }
    }
    json!({
        "model": model, "requests": options.requests, "concurrent": options.concurrent,
        "max_tokens": options.max_tokens, "answered": answered.len(), "failed": failures.len(),
        "first_failure": failures.first(), "seconds": round(seconds),
        "tokens": tokens, "tokens_per_second": round(tokens as f64 / seconds),
        "prompt_tokens_mean": round(prompt as f64 / count), "completion_tokens_mean": round(tokens as f64 / count),
        "first_token_ms": spread(&mut first), "answer_ms": spread(&mut whole), "stages_ms": shown,
    })
}

/// Percentiles by nearest rank, and the mean; milliseconds.
fn spread(times: &mut [Nanos]) -> Value {
    times.sort_unstable();
    let ms = |nanos: f64| round(nanos / 1e6);
    let at = |percent: usize| ms(times[(times.len() * percent).div_ceil(100).max(1) - 1] as f64);
    let mean = times.iter().sum::<Nanos>() as f64 / times.len() as f64;
    json!({"p50": at(50), "p95": at(95), "p99": at(99), "max": at(100), "mean": ms(mean)})
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn print(report: &Value) {
    println!(
        "{} of {} chats answered by {}, {} at once, in {} s: {} tokens/s",
        report["answered"],
        report["requests"],
        report["model"].as_str().unwrap_or_default(),
        report["concurrent"],
        report["seconds"],
        report["tokens_per_second"],
    );
    println!(
        "  {} tokens in and {} out on average, {} out at most",
        report["prompt_tokens_mean"], report["completion_tokens_mean"], report["max_tokens"]
    );
    if let Some(failure) = report["first_failure"].as_str() {
        println!("  {} FAILED; the first: {failure}", report["failed"]);
    }
    println!("\n{:<14}{:>9}{:>9}{:>9}{:>9}{:>9}", "ms", "p50", "p95", "p99", "max", "mean");
    let line = |name: &str, times: &Value, what: &str| {
        let time = |at: &str| format!("{:>9.2}", times[at].as_f64().unwrap_or_default());
        let times = ["p50", "p95", "p99", "max", "mean"].map(time).concat();
        println!("{name:<14}{times}  {what}");
    };
    line("first token", &report["first_token_ms"], "");
    for (name, what) in STAGES {
        if report["stages_ms"].get(name).is_some() {
            line(&format!("  {name}"), &report["stages_ms"][name], what);
        }
    }
    line("answer", &report["answer_ms"], "");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stages_are_the_whole_time_to_the_first_token() {
        let asked = Asked {
            execution: String::new(),
            sent: 1_000_000,
            first_token: 9_500_000,
            ended: 20_000_000,
            prompt_tokens: 1,
            completion_tokens: 1,
        };
        let completed = |attempt: u32| {
            json!({"kind": "fact", "type": "inference.completed", "at_ns": 15_000_000, "data": {
                "attempt": attempt, "timing": {"queue_us": 500, "prefill_us": 4_000, "decode_us": 6_000}}})
        };
        let events = |attempt| {
            let fact = json!({"kind": "fact", "type": "execution.submitted", "stored_at_ns": 2_000_000});
            let decision = json!({"kind": "decision", "type": "inference.requested", "stored_at_ns": 3_500_000});
            [fact, decision, completed(attempt)]
        };
        let found = stages(&asked, &events(1)).expect("all events are there");
        assert_eq!(
            found,
            [
                ("accept", 1_000_000),
                ("decide", 1_500_000),
                ("dispatch", 1_000_000),
                ("queue", 500_000),
                ("prefill", 4_000_000),
                ("deliver", 500_000)
            ]
        );
        assert_eq!(found.iter().map(|(_, t)| t).sum::<Nanos>(), asked.first_token - asked.sent);
        assert_eq!(stages(&asked, &events(2)), None, "a second attempt's first token is not the client's");
    }

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let mut times: Vec<Nanos> = (1..=200).rev().map(|ms| ms * 1_000_000).collect();
        let expected = json!({"p50": 100.0, "p95": 190.0, "p99": 198.0, "max": 200.0, "mean": 100.5});
        assert_eq!(spread(&mut times), expected);
        assert_eq!(spread(&mut [5_000_000])["p99"], 5.0);
    }
}
