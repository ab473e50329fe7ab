//! A remote model behind the whole service and a real NATS server: who is offered it, who waits, who starts over.
//!
//! The tests need `nats-server` in the path; without it they say so and pass.

mod nats;
mod scripted;

use std::collections::BTreeMap;

use inference_worker::{Config, serve};
use runtime::{Bus, Runtime, Tasks, clock};
use schemas::{
    EffectId, Fact, FactBody, Frame, InferenceJob, Message, Role, Sampling,
    fact::FailureClass,
    job::Job,
    presence::Worker,
    rpc, stream, subject,
    token::FrameKind,
    wire::{Schema, decode},
};
use serde_json::json;

use scripted::{PATIENCE, Piece, Reply, Server, delta, lines, said};

fn job(attempt: u32) -> InferenceJob {
    InferenceJob {
        schema: InferenceJob::SCHEMA.to_owned(),
        exec: clock::execution_id(),
        effect: EffectId::inference(1),
        attempt,
        deadline: clock::now() + 60_000_000_000,
        queued_at: clock::now(),
        trace: BTreeMap::new(),
        model: "ours".to_owned(),
        messages: vec![Message::text(Role::User, "say something")],
        tools: Vec::new(),
        sampling: Sampling { seed: Some(11), ..Sampling::default() },
        tokens_max: 40,
        user_id: None,
        purpose: Default::default(),
        priority: Default::default(),
        truncation: Default::default(),
        cache: false,
    }
}

async fn worker(bus: &Bus, config: inference_worker::remote::RemoteConfig) -> Tasks {
    let tasks = Tasks::new();
    let runtime = Runtime { tasks: tasks.clone(), ..Runtime::new(bus.clone()) };
    let remote = BTreeMap::from([("ours".to_owned(), config)]);
    serve(Config { remote, ..Config::default() }, runtime).await.unwrap();
    tasks
}

/// Reads the frames of a job that is queued up to its end, and its result.
async fn read(bus: &Bus, job: &InferenceJob) -> (Vec<Frame>, FactBody) {
    let work = async {
        let mut live = bus.live(job.exec()).await.unwrap();
        // A job goes over another connection; an answer on this one says that the server knows of the interest.
        bus.read_execution(job.exec(), 0).await.unwrap();
        let mut tokens = bus.tokens(job.exec()).await.unwrap();
        bus.queue(job).await.unwrap();
        let mut frames = Vec::new();
        while frames.last().is_none_or(|frame: &Frame| frame.k != FrameKind::End) {
            frames.push(tokens.next().await.expect("the connection stays").1);
        }
        let stored = live.next().await.expect("the result is seen");
        (frames, Fact::read(&stored.payload).unwrap().body)
    };
    tokio::time::timeout(PATIENCE, work).await.expect("in time")
}

/// The models that the worker says it serves, to who asks and to who looks.
async fn offered(bus: &Bus) -> (Vec<String>, Vec<String>) {
    let names = |models: &[rpc::Model]| models.iter().map(|model| model.name.clone()).collect::<Vec<_>>();
    let told: rpc::Reply<Vec<rpc::Model>> = bus.ask(subject::RPC_MODELS, &(), PATIENCE).await.unwrap();
    let rpc::Reply::Ok(told) = told else { panic!("{told:?}") };
    let entries = bus.entries(stream::BUCKET_WORKERS, ">").await.unwrap();
    let workers = entries.iter().map(|(_, entry)| decode::<Worker>(entry).unwrap());
    (names(&told), workers.flat_map(|worker| names(&worker.models)).collect())
}

async fn until_offered(bus: &Bus, wanted: &[&str]) {
    let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
    let work = async {
        while offered(bus).await != (wanted.clone(), wanted.clone()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, work).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_of_a_server_that_is_away_wait_until_it_is_back() {
    let Some((_nats, bus)) = nats::start().await else { return };
    let server = Server::start(vec![]);
    let (address, config) = (server.address, server.config());
    drop(server);
    let tasks = worker(&bus, config).await;
    until_offered(&bus, &[]).await;
    let waits = job(1);
    let mut live = bus.live(waits.exec).await.unwrap();
    // A job goes over another connection; an answer on this one says that the server knows of the interest.
    bus.read_execution(waits.exec, 0).await.unwrap();
    bus.queue(&waits).await.unwrap();

    let server = Server::start_at(address, vec![Reply::Stream(vec![Piece::Bytes(said(&["Hi", "!"]))])]);
    let stored = tokio::time::timeout(PATIENCE, live.next()).await.expect("in time").expect("the result is seen");
    let FactBody::InferenceCompleted(completed) = Fact::read(&stored.payload).unwrap().body else { panic!("a result") };
    assert_eq!((completed.text.as_str(), completed.usage.completion_tokens), ("Hi!", 2));
    assert_eq!(server.asked().len(), 1, "it was asked once, and not before it was there");
    until_offered(&bus, &["ours"]).await;
    drop(server);
    until_offered(&bus, &[]).await;
    tasks.stop();
    tasks.drained(std::time::Duration::from_millis(200)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_attempt_starts_over_and_its_reader_knows() {
    let Some((_nats, bus)) = nats::start().await else { return };
    let cut = Reply::Stream(vec![Piece::Bytes(lines(&[delta("Once"), delta(" upon")])), Piece::Cut]);
    let refusal = json!({"error": {"message": "no such role"}}).to_string();
    let bad = Reply::Whole(400, vec![("content-type", "application/json")], refusal);
    let server = Server::start(vec![cut, Reply::Stream(vec![Piece::Bytes(said(&["Twice", " told"]))]), bad]);
    let tasks = worker(&bus, server.config()).await;
    let first = job(1);
    let mut seen = bus.tokens(first.exec).await.unwrap();
    let cut = async {
        while seen.next().await.is_some_and(|(_, frame)| frame.text.is_empty()) {}
        server.cut();
    };
    let ((frames, body), ()) = tokio::join!(read(&bus, &first), cut);
    let FactBody::InferenceFailed(failed) = body else { panic!("{body:?}") };
    assert_eq!(failed.class, FailureClass::Internal, "another attempt may succeed: {}", failed.detail);
    let text: String = frames.iter().map(|frame| frame.text.as_str()).collect();
    assert_eq!(text, "Once upon");

    let second = InferenceJob { attempt: 2, ..first };
    let (frames, body) = read(&bus, &second).await;
    let FactBody::InferenceCompleted(completed) = body else { panic!("{body:?}") };
    assert_eq!(completed.text, "Twice told");
    let told: Vec<(FrameKind, u64, usize)> = frames.iter().map(|frame| (frame.k, frame.n, frame.ids.len())).collect();
    assert_eq!(told[0], (FrameKind::Restart, 0, 0), "{frames:?}");
    assert_eq!(told[1].1, 0, "counted anew: {frames:?}");
    assert_eq!(frames.iter().map(|frame| frame.text.as_str()).collect::<String>(), "Twice told");
    assert_eq!(told.last(), Some(&(FrameKind::End, 2, 0)));

    let (_, body) = read(&bus, &job(1)).await;
    let FactBody::InferenceFailed(failed) = body else { panic!("{body:?}") };
    assert_eq!(failed.class, FailureClass::BadRequest);
    assert_eq!(failed.detail, "generate: the server answered 400 Bad Request: no such role");
    tasks.stop();
    tasks.drained(std::time::Duration::from_millis(200)).await;
}
