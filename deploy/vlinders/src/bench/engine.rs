//! `vlinders bench engine`: the scheduler alone, and a model behind its engine with nothing around it. What the rest of the
//! pipeline costs is the difference to `vlinders bench`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use inference_worker::engine::{Engine, EngineConfig, Event, Outcome, Request, Running};
use inference_worker::kernels::team::Team;
use inference_worker::model_directory::Model;
use inference_worker::scheduler::{Limits, Scheduler};
use runtime::clock;
use schemas::chat::Priority;
use serde_json::{Value, json};

use super::round;
use crate::cli;
use crate::settings;

/// Sequences that run at the same time, for the scheduler alone.
const RUNNING: [usize; 4] = [1, 32, 128, 256];
/// Tokens of their prompts, and steps that are measured after these are computed.
const PROMPT: usize = 512;
const STEPS: usize = 512;

/// Measures and reports.
pub(crate) fn run(options: &cli::BenchEngine) -> anyhow::Result<ExitCode> {
    let scheduler: Vec<Value> = RUNNING.into_iter().map(scheduler).collect();
    let engine = engine(options)?;
    let report = json!({"scheduler": scheduler, "engine": engine});
    if options.json {
        println!("{report}")
    } else {
        print(&report)
    }
    Ok(ExitCode::SUCCESS)
}

/// What planning costs: all prompts, then one token a step for each sequence.
fn scheduler(running: usize) -> Value {
    // Those that are computed first decode while the others' prompts are.
    let blocks = running * (PROMPT + 2 * STEPS).div_ceil(inference_worker::kv::BLOCK);
    let mut scheduler = Scheduler::new(Limits { step_tokens: 2_048, running }, blocks);
    for id in 0..running as u32 {
        let prompt = (0..PROMPT as u32).map(|token| token | id << 12).collect();
        scheduler.add(u64::from(id), u64::from(id % 7), Priority::Normal, prompt);
    }
    let began = clock::instant();
    let mut prompts = 0;
    while prompts < running * PROMPT {
        prompts += step(&mut scheduler);
    }
    let prefill = clock::instant() - began;
    let began = clock::instant();
    for _ in 0..STEPS {
        step(&mut scheduler);
    }
    let decode = (clock::instant() - began) / STEPS as u32;
    json!({
        "running": running,
        "prompt_tokens_per_second": round(prompts as f64 / prefill.as_secs_f64()),
        "step_us": micros(decode),
        "step_us_per_sequence": round(decode.as_secs_f64() * 1e6 / running as f64),
    })
}

/// One step; the tokens of prompts in it.
fn step(scheduler: &mut Scheduler) -> usize {
    let chunks = scheduler.schedule();
    for chunk in &chunks {
        scheduler.complete(chunk.sequence, chunk.yields.then_some(7));
    }
    chunks.iter().filter(|chunk| chunk.start < PROMPT).map(|chunk| chunk.tokens.len()).sum()
}

/// A model without gateway, log or orchestrator.
fn engine(options: &cli::BenchEngine) -> anyhow::Result<Value> {
    let path = match &options.models {
        Some(path) => path.clone(),
        None => settings::shipped_models(&settings::default_data())
            .context("find the model that comes with the program; name one with --models")?,
    };
    let directory = settings::model_directories(&path)?.remove(0);
    let model = Model::load(&directory).with_context(|| format!("load the model in {}", directory.display()))?;
    let name = model.name.clone();
    let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let config = EngineConfig { cache_bytes_max: 1 << 30, ..EngineConfig::default() };
    let engine = Engine::start(Arc::new(model), Arc::new(Team::new(threads)?), &config)?;
    let mut seed = 1;
    let mut loads = Vec::new();
    // Pages of the model are read before anything counts.
    together(&engine, 1, 16, 2, &mut seed)?;
    for &[at_once, tokens_in, tokens_out] in &options.load {
        let began = clock::instant();
        let outcomes = together(&engine, at_once, tokens_in, tokens_out, &mut seed)?;
        let seconds = (clock::instant() - began).as_secs_f64();
        loads.push(load(at_once, seconds, &outcomes));
    }
    Ok(json!({"model": name, "threads": threads, "loads": loads}))
}

fn load(at_once: usize, seconds: f64, outcomes: &[Outcome]) -> Value {
    let sum = |of: fn(&Outcome) -> usize| outcomes.iter().map(of).sum::<usize>();
    let (tokens_in, tokens_out) = (sum(|o| o.prompt_tokens), sum(|o| o.completion_tokens));
    let mut first: Vec<Duration> = outcomes.iter().map(|outcome| outcome.first_token).collect();
    first.sort_unstable();
    let decoding = outcomes.iter().map(|o| o.total.saturating_sub(o.first_token)).max().unwrap_or_default();
    let after_first = tokens_out.saturating_sub(at_once) as f64;
    json!({
        "at_once": at_once,
        "prompt_tokens": tokens_in,
        "tokens": tokens_out,
        "seconds": round(seconds),
        "prompt_tokens_per_second": round(tokens_in as f64 / first[first.len() - 1].as_secs_f64()),
        "tokens_per_second": round(tokens_out as f64 / seconds),
        "decode_tokens_per_second": (after_first > 0.0).then(|| round(after_first / decoding.as_secs_f64())),
        "first_token_ms_p50": round(first[first.len() / 2].as_secs_f64() * 1e3),
    })
}

/// Requests that share no beginning, until all are answered.
fn together(
    engine: &Engine,
    count: usize,
    tokens_in: usize,
    tokens_out: usize,
    seed: &mut u64,
) -> anyhow::Result<Vec<Outcome>> {
    let running: Vec<Running> = (0..count)
        .map(|_| {
            let messages = vec![json!({"role": "user", "content": words(engine.model(), tokens_in, seed)})];
            let request = Request { messages, tokens_max: Some(tokens_out), ..Request::default() };
            engine.submit(request).context("ask the engine; take a model with a larger window")
        })
        .collect::<Result<_, _>>()?;
    running.into_iter().map(finish).collect()
}

/// Words that look random, and make about so many tokens.
fn words(model: &Model, tokens: usize, seed: &mut u64) -> String {
    let mut text = String::new();
    while model.tokenizer.encode(&text).map_or(tokens, |ids| ids.len()) < tokens {
        // As many as are surely missing, then one by one.
        for _ in 0..(tokens / 8).max(1) {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let letters = (0..3).map(|at| char::from(b'a' + (*seed >> (33 + at * 8)) as u8 % 26));
            text.push(' ');
            text.extend(letters);
        }
    }
    text
}

fn finish(mut running: Running) -> anyhow::Result<Outcome> {
    while let Some(event) = running.events.blocking_recv() {
        match event {
            Event::Finished(outcome) => return Ok(*outcome),
            Event::Failed(why) | Event::Refused(why) => anyhow::bail!(why),
            Event::Token { .. } => {}
        }
    }
    anyhow::bail!("the engine ended without an answer")
}

fn micros(duration: Duration) -> f64 {
    round(duration.as_secs_f64() * 1e6)
}

fn print(report: &Value) {
    println!("the scheduler alone, prompts of {PROMPT} tokens\n");
    println!("{:>9}{:>18}{:>14}{:>20}", "running", "prompt tokens/s", "µs a step", "µs a sequence");
    for row in report["scheduler"].as_array().into_iter().flatten() {
        let at = |key: &str| row[key].as_f64().unwrap_or_default();
        println!(
            "{:>9}{:>18.0}{:>14.1}{:>20.2}",
            at("running"),
            at("prompt_tokens_per_second"),
            at("step_us"),
            at("step_us_per_sequence")
        );
    }
    let engine = &report["engine"];
    println!("\nthe engine of {}, {} threads\n", engine["model"].as_str().unwrap_or_default(), engine["threads"]);
    println!(
        "{:>9}{:>10}{:>8}{:>18}{:>12}{:>20}",
        "at once", "tokens in", "out", "first token ms", "tokens/s", "decode tokens/s"
    );
    for row in engine["loads"].as_array().into_iter().flatten() {
        let at = |key: &str| row[key].as_f64().unwrap_or_default();
        println!(
            "{:>9}{:>10}{:>8}{:>18.1}{:>12.1}{:>20.1}",
            at("at_once"),
            at("prompt_tokens"),
            at("tokens"),
            at("first_token_ms_p50"),
            at("tokens_per_second"),
            at("decode_tokens_per_second")
        );
    }
}
