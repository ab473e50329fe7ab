//! Requests that make no sense, and more of them than anyone should send: each is refused with the reason or answered, and
//! the engine works on.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use inference_worker::{
    engine::{Engine, EngineConfig, Event, Outcome, Rejection, Request, Running},
    kernels::team::Team,
    model_directory::Model,
    sample::Sampling,
};
use serde_json::json;

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/qwen3-gguf/qwen3-gguf.gguf")
}

fn engine(model: Model) -> Engine {
    Engine::start(Arc::new(model), Arc::new(Team::new(2).unwrap()), &EngineConfig::default()).unwrap()
}

fn ask(text: &str) -> Request {
    Request { messages: vec![json!({"role": "user", "content": text})], tokens_max: Some(4), ..Request::default() }
}

fn end(mut running: Running) -> Result<Outcome, String> {
    loop {
        match running.events.blocking_recv().expect("an end is announced") {
            Event::Token { .. } => {}
            Event::Finished(outcome) => return Ok(*outcome),
            Event::Failed(why) | Event::Refused(why) => return Err(why),
        }
    }
}

#[test]
fn absurd_numbers_are_refused_by_name_or_answered() {
    let engine = engine(Model::load(&file()).unwrap());
    let numbers = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, -1.0, 0.0, f32::MIN_POSITIVE];
    type Set = fn(&mut Sampling, f32);
    let fields: [(&str, Set); 6] = [
        ("temperature", |s, value| s.temperature = value),
        ("top_p", |s, value| s.top_p = value),
        ("min_p", |s, value| s.min_p = value),
        ("repetition_penalty", |s, value| s.repetition_penalty = value),
        ("presence_penalty", |s, value| s.presence_penalty = value),
        ("frequency_penalty", |s, value| s.frequency_penalty = value),
    ];
    for (name, set) in fields {
        for number in numbers {
            let mut sampling = Sampling { temperature: 1.0, ..Sampling::default() };
            set(&mut sampling, number);
            match engine.submit(Request { sampling, ..ask("b ab") }) {
                // Penalties beyond all bounds leave no finite logit, and the answer says so.
                Ok(running) => {
                    drop(end(running).map_err(|why| assert!(why.contains("finite"), "{name} {number}: {why}")))
                }
                Err(Rejection::Unusable(why)) => assert!(why.contains(name), "{name} {number}: {why}"),
                Err(other) => panic!("{name} {number}: {other}"),
            }
            assert!(
                number.is_finite()
                    || engine
                        .submit(Request {
                            sampling: {
                                let mut s = Sampling::default();
                                set(&mut s, number);
                                s
                            },
                            ..ask("b")
                        })
                        .is_err(),
                "{name} {number}"
            );
        }
    }
    let huge = Sampling {
        temperature: 1.0,
        top_k: usize::MAX,
        seed: u64::MAX,
        logprobs: Some(usize::MAX),
        ..Sampling::default()
    };
    let outcome = end(engine.submit(Request { sampling: huge, ..ask("b") }).unwrap()).unwrap();
    assert_eq!(outcome.logprobs[0].top_logprobs.len(), 131);
    let stop = (0..10_000).map(|at| format!("never{at}")).collect();
    let endless = Request { tokens_max: Some(usize::MAX), stop, ..ask("b") };
    let outcome = end(engine.submit(endless).unwrap()).unwrap();
    assert!(outcome.prompt_tokens + outcome.completion_tokens <= engine.window());
    let nothing = Request { tokens_max: Some(0), ..ask("b") };
    assert_eq!(end(engine.submit(nothing).unwrap()).unwrap().completion_tokens, 1);
    let foreign = Request { produced: vec![131], ..ask("b") };
    assert!(matches!(engine.submit(foreign), Err(Rejection::Tokenise(why)) if why.contains("vocabulary")));
    // More than any answer can have, as a damaged stream of tokens might hold.
    let outcome =
        end(engine.submit(Request { produced: vec![1; 5_000], tokens_max: None, ..ask("b") }).unwrap()).unwrap();
    assert!(outcome.completion_tokens <= engine.window());
    assert_eq!(engine.free_slots(), engine.slots(), "nothing is left behind");
}

#[test]
fn prompts_that_are_empty_or_too_long_are_refused_with_the_numbers() {
    let engine = engine(Model::load(&file()).unwrap());
    let empty = engine.submit(Request { messages: Vec::new(), ..ask("") }).map(drop).unwrap_err();
    assert!(empty.to_string().contains("empty"), "{empty}");
    let long = engine.submit(ask(&"b".repeat(1_000))).map(drop).unwrap_err();
    assert_eq!(long, Rejection::PromptTooLong { model: "qwen3-gguf".to_owned(), tokens: 1_002, window: 256 });
    assert!(long.to_string().contains("1002") && long.to_string().contains("256"), "{long}");
    assert!(end(engine.submit(ask(&"b".repeat(253))).unwrap()).is_ok(), "one token has room");
    assert!(engine.submit(ask(&"b".repeat(254))).is_err(), "none has");
}

#[test]
fn a_template_that_fails_or_runs_away_is_the_requests_fault_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("strict.gguf");
    std::fs::copy(file(), &path).unwrap();
    let template = "{% macro again(n) %}{{ again(n) }}{% endmacro %}{% for m in messages %}{% if m.content == 'raise' %}\
        {{ raise_exception('no such thing') }}{% elif m.content == 'recurse' %}{{ again(1) }}{% elif m.content == 'loop' %}\
        {% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}{% endif %}{{ m.content }}{% endfor %}";
    let config = json!({"chat_template": template});
    std::fs::write(directory.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let engine = engine(Model::load(&path).unwrap());
    for (text, said) in [("raise", "no such thing"), ("recurse", "recursion"), ("loop", "steps")] {
        let error = engine.submit(ask(text)).map(drop).unwrap_err();
        assert!(matches!(&error, Rejection::Template(why) if why.contains(said)), "{text}: {error}");
    }
    assert!(end(engine.submit(ask("b ab")).unwrap()).is_ok());
}

/// Resident memory of this process, bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    size.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn ten_thousand_requests_at_once_are_all_answered_in_bounded_memory() {
    let engine = engine(Model::load(&file()).unwrap());
    let before = resident();
    // Some are the same, some share a beginning, some are too long, some are let go before they end.
    let asked: Vec<_> = (0..10_000_usize)
        .map(|at| match at % 10 {
            9 => engine.submit(ask(&"b".repeat(300))),
            _ => engine.submit(ask(&format!("{} {}", "ab".repeat(10 + at % 7), at % 200))),
        })
        .collect();
    let (mut answered, mut refused, mut left) = (0, 0, 0);
    for (at, running) in asked.into_iter().enumerate() {
        match running {
            Err(Rejection::PromptTooLong { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
            Ok(running) if at % 10 == 3 => {
                drop(running);
                left += 1;
            }
            Ok(running) => {
                let outcome = end(running).unwrap();
                assert!((1..=4).contains(&outcome.completion_tokens), "{outcome:?}");
                answered += 1;
            }
        }
    }
    assert_eq!((answered, refused, left), (8_000, 1_000, 1_000));
    let grown = resident().saturating_sub(before);
    println!("memory grew by {} MiB", grown >> 20);
    // Tokens, texts and channels of the waiting, and 64 MiB of keys and values.
    assert!(grown < 256 << 20, "memory grew by {} MiB", grown >> 20);
    assert!(end(engine.submit(ask("b ab")).unwrap()).is_ok());
}
