//! Measures the engine alone: first token of one request, then a hundred requests at once.
//!
//! `cargo run -p inference-worker --example engine_speed -- DIR`

use std::{path::PathBuf, sync::Arc, time::Duration};

use inference_worker::{
    engine::{Engine, EngineConfig, Event, Outcome, Request, Running},
    kernels::team::Team,
    model_directory::Model,
};
use serde_json::json;

fn main() {
    let directory = PathBuf::from(std::env::args().nth(1).expect("the model directory is the first argument"));
    let model = Model::load(&directory).expect("the model loads");
    println!("loaded, resident {} KiB", resident());
    let team = Arc::new(Team::new(2).expect("threads"));
    let engine = Engine::start(Arc::new(model), team, &EngineConfig::default()).expect("the engine starts");
    let mut firsts = Vec::new();
    for round in 0..20 {
        let request = Request {
            messages: vec![json!({"role": "user", "content": words(round, 70)})],
            tokens_max: Some(16),
            ..Request::default()
        };
        let outcome = finish(engine.submit(request).expect("the request fits"));
        if round == 0 {
            println!("{outcome:?}");
        }
        firsts.push((outcome.first_token, outcome.prompt_tokens, (outcome.total - outcome.first_token) / 15));
    }
    firsts.sort();
    println!("first token: median {:?}, worst {:?}", firsts[10], firsts[19]);
    for _ in 0..3 {
        let running: Vec<Running> = (0..100)
            .map(|index| {
                let request = Request {
                    messages: vec![json!({"role": "user", "content": words(index * 7, 30)})],
                    tokens_max: Some(32),
                    ..Request::default()
                };
                engine.submit(request).expect("the request fits")
            })
            .collect();
        let outcomes: Vec<Outcome> = running.into_iter().map(finish).collect();
        let mean = outcomes.iter().map(|outcome| outcome.total).sum::<Duration>() / 100;
        let last = outcomes.iter().map(|outcome| outcome.total).max();
        let tokens: usize = outcomes.iter().map(|outcome| outcome.prompt_tokens).sum();
        println!("100 requests: mean {mean:?}, last {last:?}, {tokens} prompt tokens, resident {} KiB", resident());
    }
}

fn words(seed: usize, count: usize) -> String {
    let list = [
        "where",
        "is",
        "parse_config",
        "defined",
        "in",
        "src/main.rs",
        "find",
        "usages",
        "of",
        "Handler",
        "list",
        "files",
    ];
    (0..count).map(|index| list[(index * 5 + seed * (index % 3 + 1)) % list.len()]).collect::<Vec<_>>().join(" ")
}

fn finish(mut running: Running) -> Outcome {
    while let Some(event) = running.events.blocking_recv() {
        if let Event::Finished(outcome) = event {
            return *outcome;
        }
    }
    panic!("the engine ended without an answer");
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}
