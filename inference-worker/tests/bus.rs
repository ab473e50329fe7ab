//! The service against a real NATS server: a job becomes tokens and a result, and a second attempt continues.
//!
//! The tests need `nats-server` in the path; without it they say so and pass.

mod nats;

use std::{path::Path, time::Duration};

use inference_worker::{Config, serve};
use runtime::{Bus, Runtime, Tasks, clock};
use schemas::{
    EffectId, FactBody, Frame, InferenceJob, Message, Role, Sampling, job::Job, token::FrameKind, wire::Schema,
};

/// A model that never ends by itself, with a tokenizer of one token a byte.
fn model(directory: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/qwen3");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(name), directory.join(name)).unwrap();
    }
    // The printable characters that stand for themselves in a byte-level vocabulary, and `Ġ` for the space.
    let characters = (0x21..=0x7e_u32).chain(0xa1..=0xac).chain(0xae..=0xc5).filter_map(char::from_u32);
    let vocab: serde_json::Map<_, _> =
        characters.chain(['Ġ']).enumerate().map(|(id, character)| (character.to_string(), id.into())).collect();
    assert_eq!(vocab.len(), 131);
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    std::fs::write(directory.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config =
        serde_json::json!({"chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"});
    std::fs::write(directory.join("tokenizer_config.json"), config.to_string()).unwrap();
}

fn job(model: &str, attempt: u32) -> InferenceJob {
    InferenceJob {
        schema: InferenceJob::SCHEMA.to_owned(),
        exec: clock::execution_id(),
        effect: EffectId::inference(1),
        attempt,
        deadline: clock::now() + 30_000_000_000,
        queued_at: clock::now(),
        trace: Default::default(),
        model: model.to_owned(),
        messages: vec![Message::text(Role::User, "say something")],
        tools: Vec::new(),
        sampling: Sampling {
            temperature: Some(0.8),
            seed: Some(11),
            frequency_penalty: Some(0.2),
            logprobs: true,
            top_logprobs: Some(2),
            ..Sampling::default()
        },
        tokens_max: 40,
        user_id: None,
        purpose: Default::default(),
    }
}

/// Queues a job and reads its frames up to the end, and its result. The frames are read as every reader reads them:
/// subscribed to before the job is queued. They travel without acknowledgement on a connection of their own, so the
/// result may be in the log before the stream of recent tokens holds the last of them.
async fn run(bus: &Bus, job: &InferenceJob) -> (Vec<Frame>, FactBody) {
    let work = async {
        let mut live = bus.live(job.exec()).await.unwrap();
        let mut tokens = bus.tokens(job.exec()).await.unwrap();
        bus.queue(job).await.unwrap();
        let mut frames = Vec::new();
        while frames.last().is_none_or(|frame: &Frame| frame.k != FrameKind::End) {
            let (effect, frame) = tokens.next().await.expect("the connection stays");
            assert_eq!(effect, job.effect);
            frames.push(frame);
        }
        let stored = live.next().await.expect("the result is seen");
        (frames, schemas::Fact::read(&stored.payload).unwrap().body)
    };
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("in time")
}

/// Publishes a frame as an attempt that died left it: kept in the stream of recent tokens.
async fn leave(bus: &Bus, job: &InferenceJob, frame: &Frame) {
    bus.publish_tokens(job.exec, &job.effect, frame).await.unwrap();
    let kept = async {
        while bus.read_tokens(job.exec, &job.effect).await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), kept).await.expect("the frame is kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_becomes_tokens_and_a_result_and_a_second_attempt_continues() {
    let Some((_server, bus)) = nats::start().await else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("scripted");
    std::fs::create_dir(&path).unwrap();
    model(&path);
    let tasks = Tasks::new();
    let runtime = Runtime { bus: bus.clone(), tasks: tasks.clone(), metrics: Default::default() };
    serve(Config { models: vec![path], ..Config::default() }, runtime).await.unwrap();

    let first = job("scripted", 1);
    let (frames, body) = run(&bus, &first).await;
    let FactBody::InferenceCompleted(first) = body else { panic!("{body:?}") };
    let ids: Vec<u32> = frames.iter().flat_map(|frame| frame.ids.clone()).collect();
    assert_eq!(ids.len(), 40);
    assert_eq!(first.usage.completion_tokens, 40);
    assert_eq!(frames.iter().map(|frame| frame.text.as_str()).collect::<String>(), first.text);
    assert_eq!(frames.iter().flat_map(|frame| frame.logprobs.clone()).collect::<Vec<_>>(), first.logprobs);
    assert!(first.logprobs.iter().all(|token| token.logprob <= 0.0 && token.top_logprobs.len() == 2));
    assert_eq!(frames.last().map(|frame| (frame.k, frame.n)), Some((FrameKind::End, 40)));

    // The first attempt died after nine tokens.
    let second = job("scripted", 2);
    let nine =
        Frame { ids: ids[..9].to_vec(), logprobs: first.logprobs[..9].to_vec(), ..Frame::new(1, 0, FrameKind::Delta) };
    leave(&bus, &second, &nine).await;
    let (frames, body) = run(&bus, &second).await;
    let FactBody::InferenceCompleted(second) = body else { panic!("{body:?}") };
    assert_eq!(frames.iter().flat_map(|frame| frame.ids.clone()).collect::<Vec<_>>(), ids);
    assert_eq!(frames[1].n, 9);
    assert_eq!(second.text, first.text);
    assert_eq!(second.logprobs.len(), 40);
    assert_eq!(second.logprobs, first.logprobs);

    tasks.stop();
    // Signs of life are given until the hard token falls, so this takes the whole grace.
    tasks.drained(Duration::from_millis(200)).await;
}
