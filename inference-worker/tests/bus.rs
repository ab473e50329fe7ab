//! The service against a real NATS server: a job becomes tokens and a result, and a second attempt continues.
//!
//! The tests need `nats-server` in the path; without it they say so and pass.

mod nats;

use std::{path::Path, time::Duration};

use inference_worker::{Config, serve};
use runtime::{Bus, Runtime, clock};
use schemas::{
    EffectId, FactBody, Frame, InferenceJob, Message, Role, Sampling, fact::InferenceCompleted, job::Job,
    token::FrameKind, wire::Schema,
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
        priority: Default::default(),
        truncation: Default::default(),
        cache: false,
    }
}

/// Queues a job and reads its frames up to the end, and its result. The frames are read as every reader reads them:
/// subscribed to before the job is queued. They travel without acknowledgement on a connection of their own, so the
/// result may be in the log before the stream of recent tokens holds the last of them.
async fn run(bus: &Bus, job: &InferenceJob) -> (Vec<Frame>, FactBody) {
    let work = async {
        let mut live = bus.live(job.exec()).await.unwrap();
        // A job goes over another connection; an answer on this one says that the server knows of the interest.
        bus.read_execution(job.exec(), 0).await.unwrap();
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

/// A worker with the model `scripted` that lies in this directory.
async fn worker(bus: &Bus, directory: &Path) -> Runtime {
    let path = directory.join("scripted");
    if !path.exists() {
        std::fs::create_dir(&path).unwrap();
        model(&path);
    }
    let runtime = Runtime::new(bus.clone());
    serve(Config { models: vec![path], ..Config::default() }, runtime.clone()).await.unwrap();
    runtime
}

/// Ends a worker. Signs of life are given until the hard token falls, so this takes the whole grace.
async fn end(worker: &Runtime) {
    worker.tasks.stop();
    worker.tasks.drained(Duration::from_millis(200)).await;
}

/// How often a worker counted that outcome of a look for a known result.
fn counted(worker: &Runtime, outcome: &str) -> u64 {
    let families = worker.metrics.gather();
    let family = families.iter().find(|family| family.name() == "vlinders_result_cache_total");
    let metrics = family.map(prometheus::proto::MetricFamily::get_metric).unwrap_or_default();
    let counted = metrics.iter().filter(|metric| metric.get_label().iter().any(|label| label.value() == outcome));
    counted.map(|metric| metric.get_counter().get_value() as u64).sum()
}

fn completed(body: FactBody) -> InferenceCompleted {
    match body {
        FactBody::InferenceCompleted(completed) => completed,
        other => panic!("{other:?}"),
    }
}

/// What an answer says, without where and when it was made.
fn said(completed: &InferenceCompleted) -> InferenceCompleted {
    let (cached, cached_tokens) = (false, 0);
    let worker = String::new();
    InferenceCompleted { cached, cached_tokens, worker, timing: Default::default(), ..completed.clone() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_answers_come_with_the_first_and_only_the_first_is_streamed() {
    let Some((_server, bus)) = nats::start().await else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let worker = worker(&bus, directory.path()).await;
    let (_, one) = run(&bus, &job("scripted", 1)).await;
    let mut several = job("scripted", 1);
    several.sampling.n = Some(3);
    let (frames, all) = run(&bus, &several).await;
    let (one, all) = (completed(one), completed(all));
    assert_eq!((&all.text, &all.logprobs), (&one.text, &one.logprobs));
    assert_eq!(frames.iter().map(|frame| frame.text.as_str()).collect::<String>(), all.text);
    assert_eq!(frames.last().map(|frame| (frame.n, frame.usage)), Some((40, Some(all.usage))));
    assert_eq!((all.usage.prompt_tokens, all.usage.completion_tokens), (one.usage.prompt_tokens, 120));
    assert_eq!((all.alternatives.len(), all.answer_tokens()), (2, 40));
    for (other, seed) in all.alternatives.iter().zip([12, 13]) {
        let mut alone = job("scripted", 1);
        alone.sampling.seed = Some(seed);
        let alone = completed(run(&bus, &alone).await.1);
        assert_eq!((&other.text, &other.logprobs, other.finish), (&alone.text, &alone.logprobs, alone.finish));
    }
    end(&worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_equal_job_is_answered_from_what_is_known_if_it_may_be() {
    let Some((_server, bus)) = nats::start().await else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let first = worker(&bus, directory.path()).await;
    let may =
        |cache| InferenceJob { cache, sampling: Sampling { n: Some(2), ..job("", 1).sampling }, ..job("scripted", 1) };
    let (frames, computed) = run(&bus, &may(true)).await;
    let computed = completed(computed);
    assert!(!computed.cached && computed.text.len() > 10, "{computed:?}");

    let again = may(true);
    let (known_frames, known) = run(&bus, &again).await;
    let known = completed(known);
    assert!(known.cached && known.cached_tokens == known.usage.prompt_tokens, "{known:?}");
    assert_eq!(said(&known), said(&computed));
    let ids = |frames: &[Frame]| frames.iter().flat_map(|frame| frame.ids.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&known_frames), ids(&frames));
    assert_eq!(known_frames.iter().map(|frame| frame.text.as_str()).collect::<String>(), computed.text);
    let logprobs = known_frames.iter().flat_map(|frame| frame.logprobs.clone()).collect::<Vec<_>>();
    assert_eq!((logprobs, known_frames.len()), (computed.logprobs.clone(), 2), "one frame, and the end");

    // An attempt that died had published nine tokens.
    let second = InferenceJob { attempt: 2, ..may(true) };
    let (nine, logprobs) = (ids(&frames)[..9].to_vec(), computed.logprobs[..9].to_vec());
    leave(&bus, &second, &Frame { ids: nine, logprobs, ..Frame::new(1, 0, FrameKind::Delta) }).await;
    let (frames_of_second, known) = run(&bus, &second).await;
    assert_eq!(frames_of_second.iter().map(|frame| frame.n).collect::<Vec<_>>(), [0, 9, 40]);
    assert!(completed(known).cached);

    let refused = completed(run(&bus, &may(false)).await.1);
    assert!(!refused.cached, "the job may not use it");
    let mut other = may(true);
    other.sampling.seed = Some(99);
    assert!(!completed(run(&bus, &other).await.1).cached);
    assert_eq!((counted(&first, "hit_memory"), counted(&first, "miss")), (2, 2));
    end(&first).await;

    // Another worker knows it from the bucket.
    let second = worker(&bus, directory.path()).await;
    let known = completed(run(&bus, &may(true)).await.1);
    assert!(known.cached, "{known:?}");
    assert_eq!((said(&known), counted(&second, "hit_store")), (said(&computed), 1));
    end(&second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_jobs_at_the_same_time_are_computed_once_by_one_of_two_workers() {
    let Some((_server, bus)) = nats::start().await else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = (worker(&bus, directory.path()).await, worker(&bus, directory.path()).await);
    let jobs: Vec<InferenceJob> = (0..16).map(|_| InferenceJob { cache: true, ..job("scripted", 1) }).collect();
    let results = futures::future::join_all(jobs.iter().map(|job| run(&bus, job))).await;
    let facts: Vec<InferenceCompleted> = results.into_iter().map(|(_, body)| completed(body)).collect();
    assert_eq!(facts.iter().filter(|fact| !fact.cached).count(), 1);
    assert!(facts.iter().all(|fact| fact.text == facts[0].text));
    assert_eq!(counted(&one, "miss") + counted(&other, "miss"), 1);
    end(&one).await;
    end(&other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_becomes_tokens_and_a_result_and_a_second_attempt_continues() {
    let Some((_server, bus)) = nats::start().await else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let worker = worker(&bus, directory.path()).await;

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

    end(&worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_wait_for_a_server_that_is_behind_and_not_for_ever() {
    let Some((server, bus)) = nats::start().await else {
        return;
    };
    let taken_by_all = || futures::future::join_all((0..100).map(|_| bus.tokens_taken()));
    assert!(taken_by_all().await.into_iter().all(|taken| taken));
    server.signal("STOP");
    // The last of its threads may stand still a moment later.
    let stands_still = async { while bus.tokens_taken().await {} };
    tokio::time::timeout(Duration::from_secs(20), stands_still).await.expect("nobody waits for ever");
    let behind = tokio::time::timeout(Duration::from_secs(20), taken_by_all()).await;
    assert!(behind.expect("all wait for the same echoes").into_iter().all(|taken| !taken));
    server.signal("CONT");
    let caught_up = async { while !bus.tokens_taken().await {} };
    tokio::time::timeout(Duration::from_secs(20), caught_up).await.expect("an echo comes again");
}
