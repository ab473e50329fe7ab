//! A model that goes and comes back: what it had computed of prompts is found again, bit for bit; and what a model will
//! take is known before it is read.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use inference_worker::{
    architecture::Architecture,
    engine::{Engine, EngineConfig, Event, Outcome, Request},
    gguf::GgufFile,
    kernels::team::Team,
    kv::BLOCK,
    model::Decoder,
    model_directory::Model,
    need::Need,
    prefixes::Prefixes,
    sample::Sampling,
    weights::{Progress, SafetensorsFiles},
};
use serde_json::json;

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")
}

fn engine(kept: Option<Prefixes>) -> Engine {
    let (team, config) = (Arc::new(Team::alone()), EngineConfig::default());
    Engine::start_with(Arc::new(Model::load(&tiny()).unwrap()), team, &config, kept).unwrap()
}

/// A prompt of many blocks, with the probabilities of every token of its answer.
fn question() -> Request {
    let text = "where is the parser of the configuration defined, and who calls it? ".repeat(12);
    let sampling = Sampling { logprobs: Some(5), temperature: 1.5, seed: 3, ..Sampling::default() };
    let messages = vec![json!({"role": "user", "content": text})];
    Request { messages, sampling, tokens_max: Some(40), ..Request::default() }
}

fn ask(engine: &Engine) -> Outcome {
    let mut running = engine.submit(question()).unwrap();
    loop {
        match running.events.blocking_recv().expect("an end is announced") {
            Event::Token { .. } => {}
            Event::Finished(outcome) => return *outcome,
            Event::Failed(why) | Event::Refused(why) => panic!("{why}"),
        }
    }
}

/// What was said and how likely each token was, without the times.
fn said(outcome: &Outcome) -> (&str, String) {
    let bits = |token: &schemas::chat::TokenLogprob| format!("{}={:x}", token.token, token.logprob.to_bits());
    (&outcome.text, outcome.logprobs.iter().map(bits).collect::<Vec<_>>().join(" "))
}

#[test]
fn a_model_that_comes_back_finds_its_prefixes_and_answers_bit_for_bit() {
    let first = engine(None);
    let cold = ask(&first);
    assert_eq!(cold.cached_tokens, 0);
    let warm = ask(&first);
    assert!(warm.cached_tokens > 10 * BLOCK && warm.cached_tokens < warm.prompt_tokens, "{warm:?}");
    assert_eq!(said(&warm), said(&cold));
    let left = first.hand_over().expect("it runs");
    assert!(left.tokens() >= warm.cached_tokens && left.bytes() > 0);
    assert!(first.submit(question()).is_err(), "it has ended");
    assert!(first.hand_over().is_none());

    let again = engine(Some(left));
    let back = ask(&again);
    assert_eq!(back.cached_tokens, warm.cached_tokens);
    assert_eq!(said(&back), said(&cold));
}

#[test]
fn of_prefixes_that_were_trimmed_the_rest_is_right() {
    let first = engine(None);
    let cold = ask(&first);
    let cached = ask(&first).cached_tokens;
    let mut left = first.hand_over().expect("it runs");
    let half = left.bytes() / 2;
    left.trim(half);
    assert!(left.bytes() <= half && left.tokens() > 0);
    let back = ask(&engine(Some(left)));
    assert!(back.cached_tokens > 0 && back.cached_tokens < cached, "{} of {cached}", back.cached_tokens);
    assert_eq!(said(&back), said(&cold));
}

#[test]
fn a_request_under_way_is_told_that_the_model_was_unloaded() {
    let engine = engine(None);
    let mut running = engine.submit(Request { tokens_max: None, ..question() }).unwrap();
    assert!(matches!(running.events.blocking_recv(), Some(Event::Token { .. })));
    assert!(engine.hand_over().is_some());
    let end = std::iter::from_fn(|| running.events.blocking_recv()).last();
    assert_eq!(end, Some(Event::Failed("the model was unloaded".to_owned())));
    assert_eq!(engine.free_slots(), engine.slots());
}

#[test]
fn what_a_model_takes_is_known_before_it_is_read() {
    let mut paths = vec![tiny()];
    for name in ["qwen3", "llama", "qwen2", "mistral", "llama-gguf", "qwen3-gguf"] {
        paths.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(name));
    }
    for path in paths {
        let need = Need::of(&path, 1 << 20).unwrap();
        let gguf = path.join(path.file_name().unwrap()).with_extension("gguf");
        let decoder = if gguf.exists() {
            let file = GgufFile::open(&gguf).unwrap();
            Decoder::load(file.architecture(), &file).unwrap()
        } else {
            let architecture = Architecture::read(&path.join("config.json")).unwrap();
            Decoder::load(&architecture, &SafetensorsFiles::open(&path).unwrap()).unwrap()
        };
        assert_eq!(need.weights_bytes, decoder.bytes() as u64, "{}", path.display());
        assert!(need.reading_bytes > 0 && need.stored_bytes > 0);
        let blocks = (1 << 20) / decoder.block_bytes();
        assert_eq!(need.window, decoder.architecture().window.min(blocks * BLOCK), "{}", path.display());
    }
}

#[test]
fn progress_ends_when_everything_was_read() {
    let progress = Progress::default();
    assert!(progress.fraction().abs() < f64::EPSILON);
    Model::load_watched(&tiny(), None, &progress).unwrap();
    assert!((progress.fraction() - 1.0).abs() < f64::EPSILON, "{}", progress.fraction());
}
