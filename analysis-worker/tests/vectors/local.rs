//! Files of this process.

use std::path::Path;
use std::time::Duration;

use analysis_worker::vectors::{Collection, Error, Filter, Local, Lock, Point, VectorStore};
use runtime::clock;
use serde_json::Map;
use uuid::Uuid;

use crate::child;
use crate::conformance::{Numbers, conformance};

/// Times that the killed process had kept a point when it was killed, at least.
const KEPT_MIN: usize = 200;
/// Points that it kept in turn.
const IDS: usize = 20;

fn open(directory: &Path) -> Local {
    Local::open(Lock::take(directory).expect("a directory").expect("nobody has it")).expect("it opens")
}

fn collection() -> Collection {
    Collection { name: "code_embeddings".to_owned(), dimensions: 16, indexed: vec!["n".to_owned()] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn files_keep_all_promises() {
    let directory = tempfile::tempdir().expect("a directory");
    conformance(&open(directory.path())).await;
}

#[tokio::test]
async fn what_was_kept_is_there_when_it_is_opened_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let point = Point { id: Uuid::from_u128(1), vector: vec![0.25; 16], payload: Map::new() };
    store.ensure(&collection()).await.expect("made");
    store.upsert("code_embeddings", vec![point.clone()]).await.expect("kept");
    drop(store);
    let store = reopened(directory.path()).await;
    let other = Collection { dimensions: 8, ..collection() };
    let dimensions = Error::Dimensions { collection: "code_embeddings".to_owned(), have: 16, wanted: 8 };
    assert_eq!(store.ensure(&other).await, Err(dimensions));
    assert_eq!(store.ensure(&collection()).await, Ok(()));
    let page = store.scroll("code_embeddings", &Filter::everything(), 10, None, true).await;
    assert_eq!(page, Ok((vec![point], None)));
    store.forget("code_embeddings").await.expect("forgotten");
    drop(store);
    let store = reopened(directory.path()).await;
    let unknown = Error::UnknownCollection("code_embeddings".to_owned());
    assert_eq!(store.count("code_embeddings", &Filter::everything()).await, Err(unknown));
}

/// A call that nobody waited for may still have the lock for a moment.
async fn reopened(directory: &Path) -> Local {
    let free = async {
        loop {
            match Lock::take(directory).expect("a directory") {
                Some(lock) => return lock,
                None => tokio::task::yield_now().await,
            }
        }
    };
    Local::open(tokio::time::timeout(crate::PATIENCE, free).await.expect("it is free")).expect("it opens")
}

#[tokio::test]
async fn a_file_does_not_grow_without_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    store.ensure(&collection()).await.expect("made");
    let code = "x".repeat(100_000);
    let payload: Map<String, serde_json::Value> =
        [("code".to_owned(), code.into()), ("n".to_owned(), "a".into())].into_iter().collect();
    let mut numbers = Numbers::new(1);
    let ids: Vec<_> = (0..20).map(|_| numbers.id()).collect();
    // 40 MB are written, and 2 are needed.
    for _ in 0..20 {
        let point = |id: &Uuid| Point { id: *id, vector: vec![0.25; 16], payload: payload.clone() };
        store.upsert("code_embeddings", ids.iter().map(point).collect()).await.expect("kept");
    }
    let bytes = std::fs::metadata(directory.path().join("collections/code_embeddings.vectors")).expect("there").len();
    assert!(bytes < 12 << 20, "{bytes} bytes");
    drop(store);
    let store = reopened(directory.path()).await;
    assert_eq!(store.count("code_embeddings", &Filter::any("n", ["a"])).await, Ok(20));
    let (points, _) = store.scroll("code_embeddings", &Filter::everything(), 100, None, true).await.expect("read");
    assert!(points.iter().all(|point| point.payload == payload && point.vector == [0.25; 16]));
}

#[tokio::test]
async fn an_acknowledged_point_survives_a_kill() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut process = child("local::keeps_points_until_it_is_killed", directory.path());
    let mut kept = 0;
    while kept < KEPT_MIN {
        kept = process.did().await.parse().expect("a number");
        assert!(Lock::take(directory.path()).expect("a directory").is_none(), "it has the lock");
    }
    let kept = process.killed().await.last().map_or(kept, |last| last.parse().expect("a number"));
    let store = open(directory.path());
    let (points, _) = store.scroll("code_embeddings", &Filter::everything(), 100, None, false).await.expect("read");
    let left: Vec<usize> = points.iter().map(|point| point.payload["n"].as_u64().expect("a number") as usize).collect();
    println!("{left:?} are left of {kept} acknowledged");
    // The last one may have been kept and not yet told.
    let begun = kept + 1;
    for id in 0..IDS {
        let acknowledged = kept - (kept + IDS - id) % IDS;
        assert!(left[id] == acknowledged || left[id] == begun && begun % IDS == id, "{left:?}");
    }
}

#[tokio::test]
#[ignore = "a part of the test above, in a process of its own"]
async fn keeps_points_until_it_is_killed() {
    let store = open(Path::new("."));
    store.ensure(&collection()).await.expect("made");
    let mut numbers = Numbers::new(1);
    let code = "x".repeat(200_000);
    for kept in 0.. {
        // Each point again and again, so that the file is written anew every few dozens of times.
        let payload = serde_json::json!({"n": kept, "code": code}).as_object().cloned().expect("an object");
        let point = Point { id: Uuid::from_u128(kept as u128 % IDS as u128), vector: numbers.vector(16), payload };
        store.upsert("code_embeddings", vec![point]).await.expect("kept");
        println!("did {kept}");
    }
}

/// What things cost, for people: `cargo test -p analysis-worker --test vectors -- --ignored --nocapture what_it_costs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "it takes minutes and proves nothing"]
async fn what_it_costs() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let (total, dimensions) = (20_000, 384);
    let wanted = Collection { name: "costs".to_owned(), dimensions, indexed: vec!["file_path".to_owned()] };
    store.ensure(&wanted).await.expect("made");
    let mut numbers = Numbers::new(1);
    let code = "fn f() {}\n".repeat(100);
    let mut points: Vec<Point> = (0..total)
        .map(|n| {
            let payload = serde_json::json!({"file_path": format!("src/{}.rs", n / 20), "code": code, "start_line": n});
            let serde_json::Value::Object(payload) = payload else { unreachable!("it is one") };
            Point { id: numbers.id(), vector: numbers.vector(dimensions), payload }
        })
        .collect();
    let one = points[0].clone();
    let began = clock::instant();
    let mut batches = Vec::new();
    while !points.is_empty() {
        let batch = points.drain(..points.len().min(200)).collect();
        let began = clock::instant();
        store.upsert("costs", batch).await.expect("kept");
        batches.push(clock::instant().duration_since(began));
    }
    let took = clock::instant().duration_since(began);
    batches.sort();
    println!("upsert: {:.0} points/s in batches of 200; a batch {}", total as f64 / took.as_secs_f64(), told(&batches));
    let mut singles = Vec::new();
    for _ in 0..50 {
        let began = clock::instant();
        store.upsert("costs", vec![one.clone()]).await.expect("kept");
        singles.push(clock::instant().duration_since(began));
    }
    singles.sort();
    println!("upsert of one: {}", told(&singles));
    println!("search: {}", searches(&store, &mut numbers).await);
    let began = clock::instant();
    drop(store);
    let store = reopened(directory.path()).await;
    println!("closed and opened again in {:?}", clock::instant().duration_since(began));
    let some = Filter::any("file_path", (0..10).map(|n| format!("src/{n}.rs")));
    let began = clock::instant();
    store.search("costs", numbers.vector(dimensions), &some, 10).await.expect("found");
    println!("one search among 200: {:?}", clock::instant().duration_since(began));
}

async fn searches(store: &Local, numbers: &mut Numbers) -> String {
    let mut took = Vec::new();
    for _ in 0..100 {
        let vector = numbers.vector(384);
        let began = clock::instant();
        let hits = store.search("costs", vector, &Filter::everything(), 10).await.expect("found");
        took.push(clock::instant().duration_since(began));
        assert_eq!(hits.len(), 10);
    }
    took.sort();
    told(&took)
}

fn told(sorted: &[Duration]) -> String {
    format!("p50 {:?}, p95 {:?}", sorted[sorted.len() / 2], sorted[sorted.len() * 95 / 100])
}
