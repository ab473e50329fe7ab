//! Several workers of one machine and one directory.

use std::path::Path;
use std::time::Duration;

use analysis_worker::vectors::{Collection, Config, Error, Filter, Kept, Lock, Point, VectorStore, open};
use runtime::{Bus, Tasks, clock};
use serde_json::Map;

use crate::conformance::{Numbers, conformance};
use crate::nats::{self, Nats};
use crate::{PATIENCE, child};

const TIMEOUT: Duration = Duration::from_secs(20);
/// Within which there is a new keeper: about a second, and more on a loaded machine.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(3);

fn collection() -> Collection {
    Collection { name: "code_embeddings".to_owned(), dimensions: 16, indexed: vec![] }
}

async fn worker(directory: &Path, bus: &Bus, tasks: &Tasks) -> Kept {
    Kept::open(directory, TIMEOUT, bus, tasks).await.expect("it opens")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_keeper_and_another_worker_keep_all_promises() {
    let Some(nats) = Nats::start().await else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let tasks = Tasks::new();
    let keeper = worker(directory.path(), &nats.bus().await, &tasks).await;
    let other = worker(directory.path(), &nats.bus().await, &tasks).await;
    assert!(keeper.describe().contains("this process"), "{}", keeper.describe());
    assert!(other.describe().contains("another process"), "{}", other.describe());
    tokio::join!(conformance(&keeper), conformance(&other));
    keeper.ensure(&collection()).await.expect("made");
    assert_eq!(other.count("code_embeddings", &Filter::everything()).await, Ok(0), "they see the same");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn another_worker_takes_over_when_the_keeper_is_killed() {
    let Some(nats) = Nats::start().await else { return };
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("nats"), &nats.url).expect("written");
    let mut keeper = child("workers::keeps_until_it_is_killed", directory.path());
    assert_eq!(keeper.did().await, "0");
    let tasks = Tasks::new();
    let vectors = directory.path().join("vectors");
    let heir = worker(&vectors, &nats.bus().await, &tasks).await;
    // One that would be the keeper, too, and asks in the middle of it.
    let asking = worker(&vectors, &nats.bus().await, &tasks).await;
    while keeper.did().await != "30" {}
    let everything = &Filter::everything();
    assert!(heir.count("code_embeddings", everything).await.expect("answered by the keeper") >= 30);

    let mut numbers = Numbers::new(2);
    let mut kept = 0;
    let mut slowest = Duration::ZERO;
    let keeping = async {
        for _ in 0..200 {
            let point = Point { id: numbers.id(), vector: numbers.vector(16), payload: Map::new() };
            let began = clock::instant();
            asking.upsert("code_embeddings", vec![point]).await.expect("kept by whoever is the keeper");
            slowest = slowest.max(clock::instant().duration_since(began));
            kept += 1;
        }
    };
    let killing = async {
        let mut last = keeper.did().await;
        while last != "40" {
            last = keeper.did().await;
        }
        keeper.killed().await.pop().unwrap_or(last).parse::<u64>().expect("a number")
    };
    let ((), told) = tokio::join!(keeping, killing);
    let count = heir.count("code_embeddings", everything).await.expect("somebody keeps");
    assert!((kept + told..=kept + told + 1).contains(&count), "{count} points are left of {told} and {kept}");
    println!("{count} points are left of {told} and {kept}; the slowest call took {slowest:?}");
    assert!(slowest < TAKEN_OVER_WITHIN, "{slowest:?}");
    let who = [heir.describe(), asking.describe()];
    assert_eq!(who.iter().filter(|who| who.contains("this process")).count(), 1, "{who:?}");
}

#[tokio::test]
#[ignore = "a part of the test above, in a process of its own"]
async fn keeps_until_it_is_killed() {
    let url = std::fs::read_to_string("nats").expect("the address");
    let bus = nats::bus(&url).await;
    let keeper = worker(Path::new("vectors"), &bus, &Tasks::new()).await;
    assert!(keeper.describe().contains("this process"));
    keeper.ensure(&collection()).await.expect("made");
    println!("did 0");
    let mut numbers = Numbers::new(1);
    for kept in 1.. {
        let point = Point { id: numbers.id(), vector: numbers.vector(16), payload: Map::new() };
        keeper.upsert("code_embeddings", vec![point]).await.expect("kept");
        println!("did {kept}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn another_worker_takes_over_when_the_keeper_ends() {
    let Some(nats) = Nats::start().await else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let (ending, tasks) = (Tasks::new(), Tasks::new());
    let keeper = worker(directory.path(), &nats.bus().await, &ending).await;
    let other = worker(directory.path(), &nats.bus().await, &tasks).await;
    other.ensure(&collection()).await.expect("made");
    // As long as it finishes its own work, it keeps.
    ending.stop();
    assert_eq!(other.count("code_embeddings", &Filter::everything()).await, Ok(0));
    assert_eq!(keeper.count("code_embeddings", &Filter::everything()).await, Ok(0));
    ending.drained(PATIENCE).await;
    drop(keeper);
    assert_eq!(other.count("code_embeddings", &Filter::everything()).await, Ok(0));
    assert!(other.describe().contains("this process"), "{}", other.describe());
}

#[tokio::test]
async fn a_question_that_nobody_answers_fails_in_time() {
    let Some(nats) = Nats::start().await else { return };
    let directory = tempfile::tempdir().expect("a directory");
    // Somebody has the directory and does not answer, as one that is stopped.
    let _lock = Lock::take(directory.path()).expect("a directory").expect("free");
    let config = Config { dir: Some(directory.path().to_owned()), timeout_ms: 500, ..Config::default() };
    let tasks = Tasks::new();
    let store = open(&config, &nats.bus().await, &tasks).await.expect("it may be answered later");
    let began = clock::instant();
    let error = store.count("code_embeddings", &Filter::everything()).await.expect_err("nobody answers");
    assert!(matches!(&error, Error::Unreachable { reason, .. } if reason.contains("nobody answers")), "{error}");
    let took = clock::instant().duration_since(began);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn two_directories_on_one_bus_are_two_stores() {
    let Some(nats) = Nats::start().await else { return };
    let (here, there) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let tasks = Tasks::new();
    let _keeper_there = worker(there.path(), &nats.bus().await, &tasks).await;
    let _keeper_here = worker(here.path(), &nats.bus().await, &tasks).await;
    let other_here = worker(here.path(), &nats.bus().await, &tasks).await;
    let other_there = worker(there.path(), &nats.bus().await, &tasks).await;
    other_here.ensure(&collection()).await.expect("made");
    let unknown = Error::UnknownCollection("code_embeddings".to_owned());
    assert_eq!(other_there.count("code_embeddings", &Filter::everything()).await, Err(unknown));
}
