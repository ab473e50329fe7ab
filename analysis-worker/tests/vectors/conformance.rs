//! What every store promises, held against one of them. A store may be used by others meanwhile: each run has collections
//! of its own, and forgets them.

use std::collections::BTreeMap;

use analysis_worker::vectors::{Collection, Error, Filter, Hit, LIMIT_MAX, Point, VectorStore};
use futures::future::join_all;
use runtime::clock;
use schemas::vectors::QUESTION_BYTES_MAX;
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// How far a score may be from the cosine that is computed with twice the digits.
const SCORE_TOLERANCE: f64 = 1e-5;

/// Holds `store` to all promises. The seed of its numbers is printed.
pub(crate) async fn conformance(store: &dyn VectorStore) {
    let seed = clock::now().unsigned_abs();
    println!("{}: seed {seed}", store.describe());
    let run = &Run { store, prefix: format!("conformance_{}", clock::process_token()) };
    let numbers = &mut Numbers::new(seed);
    run.collections_come_and_go().await;
    run.what_cannot_be_kept_is_refused().await;
    run.points_are_replaced_by_their_id().await;
    run.payloads_come_back_as_they_were().await;
    run.filters_choose().await;
    run.points_are_deleted_by_filter().await;
    run.searches_find_what_is_most_alike(numbers).await;
    run.pages_hold_each_point_once(numbers).await;
    run.large_batches_are_kept(numbers).await;
    run.many_may_ask_at_once(numbers).await;
}

/// Numbers that are drawn, the same for the same seed.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// xorshift64*.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Each number between -1 and 1.
    pub(crate) fn vector(&mut self, dimensions: usize) -> Vec<f32> {
        (0..dimensions).map(|_| (self.next() >> 40) as f32 / (1_u32 << 23) as f32 - 1.0).collect()
    }

    pub(crate) fn id(&mut self) -> Uuid {
        Uuid::from_u64_pair(self.next(), self.next())
    }
}

struct Run<'a> {
    store: &'a dyn VectorStore,
    prefix: String,
}

impl Run<'_> {
    async fn collection(&self, name: &str, dimensions: usize, indexed: &[&str]) -> Collection {
        let indexed = indexed.iter().map(|field| (*field).to_owned()).collect();
        let collection = Collection { name: format!("{}_{name}", self.prefix), dimensions, indexed };
        self.store.ensure(&collection).await.expect("it is made");
        collection
    }

    async fn count(&self, collection: &str, filter: &Filter) -> u64 {
        self.store.count(collection, filter).await.expect("it counts")
    }

    async fn all(&self, collection: &str, filter: &Filter) -> Vec<Point> {
        let page = self.store.scroll(collection, filter, LIMIT_MAX, None, false).await;
        page.expect("it reads").0
    }

    async fn collections_come_and_go(&self) {
        let store = self.store;
        let everything = &Filter::everything();
        let wanted =
            Collection { name: format!("{}_new", self.prefix), dimensions: 3, indexed: vec!["kind".to_owned()] };
        let name = wanted.name.as_str();
        let unknown = Error::UnknownCollection(name.to_owned());
        let point = Point { id: Uuid::from_u128(1), vector: vec![1.0, 0.0, 0.0], payload: Map::new() };
        assert_eq!(store.count(name, everything).await, Err(unknown.clone()));
        assert_eq!(store.search(name, vec![1.0, 0.0, 0.0], everything, 5).await, Err(unknown.clone()));
        assert_eq!(store.scroll(name, everything, 5, None, true).await, Err(unknown.clone()));
        assert_eq!(store.delete(name, &Filter::any("kind", ["a"])).await, Err(unknown.clone()));
        assert_eq!(store.upsert(name, vec![point.clone()]).await, Err(unknown.clone()));
        assert_eq!(store.upsert(name, vec![]).await, Err(unknown.clone()));
        assert_eq!(store.forget(name).await, Ok(()));

        assert_eq!(store.ensure(&wanted).await, Ok(()));
        assert_eq!(store.count(name, everything).await, Ok(0));
        assert_eq!(store.search(name, vec![1.0, 0.0, 0.0], everything, 5).await, Ok(vec![]));
        assert_eq!(store.scroll(name, everything, 5, None, true).await, Ok((vec![], None)));
        assert_eq!(store.delete(name, &Filter::any("kind", ["a"])).await, Ok(()));
        assert_eq!(store.upsert(name, vec![]).await, Ok(()));
        assert_eq!(store.upsert(name, vec![point]).await, Ok(()));
        assert_eq!(store.ensure(&wanted).await, Ok(()), "again");
        let more = Collection { indexed: vec!["kind".to_owned(), "path".to_owned()], ..wanted.clone() };
        assert_eq!(store.ensure(&more).await, Ok(()), "with one more index");
        assert_eq!(store.count(name, everything).await, Ok(1), "and the points are still there");

        let other = Collection { dimensions: 4, ..wanted.clone() };
        let dimensions = Error::Dimensions { collection: name.to_owned(), have: 3, wanted: 4 };
        assert_eq!(store.ensure(&other).await, Err(dimensions));
        assert_eq!(store.forget(name).await, Ok(()));
        assert_eq!(store.count(name, everything).await, Err(unknown));
        assert_eq!(store.ensure(&other).await, Ok(()), "after it was forgotten");
        assert_eq!(store.count(name, everything).await, Ok(0));
        assert_eq!(store.forget(name).await, Ok(()));
    }

    async fn what_cannot_be_kept_is_refused(&self) {
        let store = self.store;
        let refused = |answer: Result<(), Error>| assert!(matches!(answer, Err(Error::Refused(_))), "{answer:?}");
        for name in ["", "Code", "../escape", "a b", &"a".repeat(65)] {
            refused(store.ensure(&Collection { name: name.to_owned(), dimensions: 3, indexed: vec![] }).await);
        }
        refused(store.ensure(&Collection { name: self.prefix.clone(), dimensions: 0, indexed: vec![] }).await);

        let collection = self.collection("refused", 2, &[]).await;
        let name = collection.name.as_str();
        let point = |vector: Vec<f32>| Point { id: Uuid::from_u128(1), vector, payload: Map::new() };
        let dimensions = |wanted| Error::Dimensions { collection: name.to_owned(), have: 2, wanted };
        let everything = &Filter::everything();
        assert_eq!(store.upsert(name, vec![point(vec![1.0, 0.0]), point(vec![1.0; 3])]).await, Err(dimensions(3)));
        assert_eq!(store.upsert(name, vec![point(vec![])]).await, Err(dimensions(0)));
        assert_eq!(store.search(name, vec![1.0], everything, 5).await, Err(dimensions(1)));
        refused(store.upsert(name, vec![point(vec![1.0, f32::NAN])]).await);
        refused(store.search(name, vec![f32::INFINITY, 0.0], everything, 5).await.map(|_| ()));
        refused(store.search(name, vec![1.0, 0.0], everything, LIMIT_MAX + 1).await.map(|_| ()));
        refused(store.scroll(name, everything, LIMIT_MAX + 1, None, false).await.map(|_| ()));
        refused(store.scroll(name, everything, 0, None, false).await.map(|_| ()));
        refused(store.delete(name, everything).await);
        let large = |bytes: usize| Point {
            id: Uuid::from_u128(1),
            vector: vec![1.0, 0.0],
            payload: fields(json!({"code": "x".repeat(bytes)})),
        };
        refused(store.upsert(name, vec![large(QUESTION_BYTES_MAX)]).await);
        assert_eq!(self.count(name, everything).await, 0);
        assert_eq!(store.upsert(name, vec![large(QUESTION_BYTES_MAX - 1_000)]).await, Ok(()));
        store.forget(name).await.expect("forgotten");
    }

    async fn points_are_replaced_by_their_id(&self) {
        let collection = self.collection("replaced", 2, &["kind"]).await;
        let name = collection.name.as_str();
        let id = Uuid::from_u128(7);
        let first = Point { id, vector: vec![1.0, 0.0], payload: fields(json!({"kind": "old", "left": "over"})) };
        let second = Point { id, vector: vec![0.0, 1.0], payload: fields(json!({"kind": "new"})) };
        self.store.upsert(name, vec![first]).await.expect("kept");
        self.store.upsert(name, vec![second.clone()]).await.expect("kept");
        self.store.upsert(name, vec![second.clone()]).await.expect("kept again");
        let everything = &Filter::everything();
        let page = self.store.scroll(name, everything, 10, None, true).await;
        assert_eq!(page, Ok((vec![second], None)));
        assert_eq!(self.count(name, &Filter::any("kind", ["old"])).await, 0);
        let hits = self.store.search(name, vec![0.0, 3.0], everything, 10).await.expect("found");
        assert!(hits.len() == 1 && (hits[0].score - 1.0).abs() < 1e-6, "{hits:?}");
        self.store.forget(name).await.expect("forgotten");
    }

    async fn payloads_come_back_as_they_were(&self) {
        let collection = self.collection("payloads", 2, &["file_path", "names"]).await;
        let name = collection.name.as_str();
        let payload = fields(json!({
            "file_path": "src/Übung/日本語/🦀.rs",
            "code": "fn größe() -> &'static str {\n\t\"\\\"\u{0}\u{7f}\u{202e}\" // конец\r\n}",
            "names": ["größe", "名前", ""],
            "start_line": 1, "end_line": 4_294_967_296_i64, "negative": -5, "weight": 0.125,
            "nested": {"list": [1, "two", null, {"three": [true, false]}], "empty": {}},
            "nothing": null, "none": [], "empty": "", "long": "x".repeat(100_000),
        }));
        let point = Point { id: Uuid::from_u128(u128::MAX), vector: vec![0.6, 0.8], payload };
        self.store.upsert(name, vec![point.clone()]).await.expect("kept");
        for filter in
            [Filter::everything(), Filter::any("file_path", ["src/Übung/日本語/🦀.rs"]), Filter::any("names", ["名前"])]
        {
            let (points, next) = self.store.scroll(name, &filter, 10, None, false).await.expect("read");
            assert_eq!((points.len(), next), (1, None), "{filter:?}");
            assert_eq!(points[0].payload, point.payload);
            let hits = self.store.search(name, vec![3.0, 4.0], &filter, 10).await.expect("found");
            assert_eq!((hits.len(), &hits[0].payload), (1, &point.payload));
        }
        assert_eq!(self.count(name, &Filter::any("names", ["名"])).await, 0, "a part is another word");
        self.store.forget(name).await.expect("forgotten");
    }

    async fn filters_choose(&self) {
        // `language` and `kinds` have an index, `workspace` has none: the answers are the same.
        let collection = self.collection("filters", 2, &["language", "kinds"]).await;
        let name = collection.name.as_str();
        let points = [
            json!({"language": "rust", "kinds": ["function", "struct"], "workspace": "a"}),
            json!({"language": "rust", "kinds": ["function"], "workspace": "b"}),
            json!({"language": "go", "kinds": [], "workspace": "a"}),
            json!({"language": "Rust", "kinds": "function", "workspace": ["a", "b"]}),
            json!({"kinds": null}),
        ];
        let points = points.into_iter().zip(0..).map(|(payload, id)| Point {
            id: Uuid::from_u128(id),
            vector: vec![1.0, id as f32],
            payload: fields(payload),
        });
        self.store.upsert(name, points.collect()).await.expect("kept");
        let nobody: [&str; 0] = [];
        for (filter, expected) in [
            (Filter::everything(), vec![0, 1, 2, 3, 4]),
            (Filter::any("language", ["rust"]), vec![0, 1]),
            (Filter::any("language", ["rust", "go", "cobol"]), vec![0, 1, 2]),
            (Filter::any("language", ["rus"]), vec![]),
            (Filter::any("kinds", ["function"]), vec![0, 1, 3]),
            (Filter::any("kinds", ["struct", "function"]), vec![0, 1, 3]),
            (Filter::any("kinds", ["function"]).and("kinds", ["struct"]), vec![0]),
            (Filter::any("workspace", ["a"]), vec![0, 2, 3]),
            (Filter::any("workspace", ["a"]).and("language", ["rust"]), vec![0]),
            (Filter::any("workspace", ["a"]).and("language", nobody), vec![]),
            (Filter::any("language", nobody), vec![]),
            (Filter::any("missing", ["a"]), vec![]),
        ] {
            let ids = |ids: &[Uuid]| ids.iter().map(Uuid::as_u128).collect::<Vec<_>>();
            let read: Vec<Uuid> = self.all(name, &filter).await.iter().map(|point| point.id).collect();
            assert_eq!(ids(&read), expected, "{filter:?}");
            assert_eq!(self.count(name, &filter).await, expected.len() as u64, "{filter:?}");
            let hits = self.store.search(name, vec![1.0, 0.0], &filter, 10).await.expect("found");
            // The larger the id, the less alike.
            let found: Vec<Uuid> = hits.iter().map(|hit| hit.id).collect();
            assert_eq!(ids(&found), expected, "{filter:?}");
        }
        self.store.forget(name).await.expect("forgotten");
    }

    async fn points_are_deleted_by_filter(&self) {
        let collection = self.collection("deleted", 2, &["file_path"]).await;
        let name = collection.name.as_str();
        let point = |id: u128| Point {
            id: Uuid::from_u128(id),
            vector: vec![1.0, id as f32],
            payload: fields(
                json!({"file_path": format!("{}.rs", id % 3), "workspace": if id < 6 { "a" } else { "b" }}),
            ),
        };
        let everything = &Filter::everything();
        self.store.upsert(name, (0..12).map(point).collect()).await.expect("kept");
        self.store.delete(name, &Filter::any("file_path", ["0.rs"]).and("workspace", ["a"])).await.expect("deleted");
        assert_eq!(self.count(name, everything).await, 10);
        self.store.delete(name, &Filter::any("file_path", ["1.rs", "2.rs", "3.rs"])).await.expect("deleted");
        let nobody: [&str; 0] = [];
        self.store.delete(name, &Filter::any("file_path", nobody)).await.expect("nothing to delete");
        let left: Vec<u128> = self.all(name, everything).await.iter().map(|point| point.id.as_u128()).collect();
        assert_eq!(left, [6, 9]);
        let hits = self.store.search(name, vec![1.0, 0.0], everything, 10).await.expect("found");
        assert_eq!(hits.iter().map(|hit| hit.id.as_u128()).collect::<Vec<_>>(), [6, 9], "the deleted are not found");
        self.store.upsert(name, vec![point(0)]).await.expect("kept again");
        assert_eq!(self.count(name, everything).await, 3);
        self.store.forget(name).await.expect("forgotten");
    }

    async fn searches_find_what_is_most_alike(&self, numbers: &mut Numbers) {
        let dimensions = 48;
        let collection = self.collection("search", dimensions, &["group"]).await;
        let points: Vec<Point> = (0..3_000)
            .map(|n| Point {
                id: numbers.id(),
                vector: numbers.vector(dimensions).iter().map(|x| x * (1 + n % 7) as f32).collect(),
                payload: fields(json!({"group": format!("g{}", n % 5), "n": n})),
            })
            .collect();
        self.store.upsert(&collection.name, points.clone()).await.expect("kept");
        for (n, limit) in [(0, 1), (1, 10), (2, 10), (3, 100), (4, LIMIT_MAX), (5, 0), (6, 7), (7, 25)] {
            let vector = numbers.vector(dimensions);
            let group = [format!("g{}", n % 5), "g1".to_owned()];
            let filter = if n % 2 == 0 { Filter::everything() } else { Filter::any("group", group.clone()) };
            let among = points.iter().filter(|point| n % 2 == 0 || group.iter().any(|g| point.payload["group"] == **g));
            let hits = self.store.search(&collection.name, vector.clone(), &filter, limit).await.expect("found");
            check_hits(&vector, among, limit, &hits);
        }
        self.store.forget(&collection.name).await.expect("forgotten");
    }

    async fn pages_hold_each_point_once(&self, numbers: &mut Numbers) {
        let collection = self.collection("pages", 4, &["half"]).await;
        let name = collection.name.as_str();
        let mut points: Vec<Point> = (0..100)
            .map(|n| Point {
                id: numbers.id(),
                vector: numbers.vector(4),
                payload: fields(json!({"half": if n % 2 == 0 { "even" } else { "odd" }, "n": n})),
            })
            .collect();
        self.store.upsert(name, points.clone()).await.expect("kept");
        points.sort_by_key(|point| point.id);
        for (filter, step) in [(Filter::everything(), 1), (Filter::any("half", ["even"]), 2)] {
            let expected: Vec<&Point> =
                points.iter().filter(|point| step == 1 || point.payload["half"] == "even").collect();
            let (mut read, mut from) = (Vec::new(), None);
            loop {
                let (page, next) = self.store.scroll(name, &filter, 7, from, true).await.expect("read");
                assert!(page.len() <= 7);
                read.extend(page);
                from = next;
                if from.is_none() {
                    break;
                }
            }
            assert_eq!(read.len(), expected.len());
            for (read, expected) in read.iter().zip(expected) {
                assert_eq!((read.id, &read.payload), (expected.id, &expected.payload));
                let length = length(&expected.vector);
                let scaled = expected.vector.iter().map(|x| f64::from(*x) / length);
                assert_eq!(read.vector.len(), 4);
                assert!(read.vector.iter().zip(scaled).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6), "{read:?}");
            }
        }
        let (page, next) = self.store.scroll(name, &Filter::everything(), 3, None, false).await.expect("read");
        assert!(page.iter().all(|point| point.vector.is_empty()), "vectors come where they are wanted");
        // A page begins where the one before said, also when that point is gone meanwhile.
        let next = next.expect("there are more");
        assert_eq!(next, points[3].id);
        let n = points[3].payload["n"].clone();
        let third = Point { payload: fields(json!({"half": "gone", "n": n})), ..points[3].clone() };
        self.store.upsert(name, vec![third]).await.expect("kept");
        self.store.delete(name, &Filter::any("half", ["gone"])).await.expect("deleted");
        let (page, _) = self.store.scroll(name, &Filter::everything(), 2, Some(next), false).await.expect("read");
        assert_eq!(page.iter().map(|point| point.id).collect::<Vec<_>>(), [points[4].id, points[5].id]);
        self.store.forget(name).await.expect("forgotten");
    }

    async fn large_batches_are_kept(&self, numbers: &mut Numbers) {
        let collection = self.collection("large", 384, &[]).await;
        let code = "let x = 1; // \u{1f980}\n".repeat(400);
        let points: Vec<Point> = (0..700)
            .map(|n| Point {
                id: numbers.id(),
                vector: numbers.vector(384),
                payload: fields(json!({"code": code, "n": n})),
            })
            .collect();
        self.store.upsert(&collection.name, points.clone()).await.expect("kept");
        let (mut read, mut from) = (BTreeMap::new(), None);
        loop {
            let page = self.store.scroll(&collection.name, &Filter::everything(), LIMIT_MAX, from, true).await;
            let (page, next) = page.expect("read");
            read.extend(page.into_iter().map(|point| (point.id, point.payload)));
            from = next;
            if from.is_none() {
                break;
            }
        }
        assert!(read == points.iter().map(|point| (point.id, point.payload.clone())).collect(), "something is missing");
        let vector = numbers.vector(384);
        let hits =
            self.store.search(&collection.name, vector.clone(), &Filter::everything(), 100).await.expect("found");
        check_hits(&vector, points.iter(), 100, &hits);
        self.store.forget(&collection.name).await.expect("forgotten");
    }

    async fn many_may_ask_at_once(&self, numbers: &mut Numbers) {
        let collection = self.collection("crowd", 8, &["who"]).await;
        let name = collection.name.as_str();
        let shared = Uuid::from_u128(1);
        let everything = &Filter::everything();
        let writers = (0..8).map(|who: u32| {
            let who = format!("w{who}");
            let batches: Vec<Vec<Point>> = (0..5)
                .map(|_| {
                    let payload = fields(json!({"who": who}));
                    let own = |_| Point { id: numbers.id(), vector: numbers.vector(8), payload: payload.clone() };
                    let mut batch: Vec<Point> = (0..10).map(own).collect();
                    batch.push(Point {
                        id: shared,
                        vector: vec![1.0; 8],
                        payload: fields(json!({"who": "all", "by": who})),
                    });
                    batch
                })
                .collect();
            async move {
                for (n, batch) in (1..).zip(batches) {
                    let kept: Vec<Uuid> = batch.iter().map(|point| point.id).collect();
                    self.store.upsert(name, batch).await.expect("kept");
                    // What is kept is there for whoever asks then.
                    assert_eq!(self.count(name, &Filter::any("who", [who.clone()])).await, n * 10);
                    let found = self.all(name, &Filter::any("who", [who.clone(), "all".to_owned()])).await;
                    assert!(kept.iter().all(|id| found.iter().any(|point| point.id == *id)));
                    let hits = self.store.search(name, vec![1.0; 8], everything, 3).await.expect("found");
                    assert_eq!(hits[0].id, shared);
                }
            }
        });
        let writers: Vec<_> = writers.collect();
        join_all(writers).await;
        assert_eq!(self.count(name, everything).await, 8 * 5 * 10 + 1);
        assert_eq!(self.count(name, &Filter::any("who", ["all"])).await, 1);
        self.store.forget(name).await.expect("forgotten");
    }
}

/// Holds hits against the cosines of all points, computed one by one.
fn check_hits<'a>(vector: &[f32], points: impl Iterator<Item = &'a Point>, limit: usize, hits: &[Hit]) {
    let mut scores: BTreeMap<Uuid, f64> = BTreeMap::new();
    scores.extend(points.map(|point| (point.id, cosine(vector, &point.vector))));
    assert_eq!(hits.len(), limit.min(scores.len()));
    assert!(hits.is_sorted_by(|a, b| a.score >= b.score), "the best come first");
    for hit in hits {
        let score = scores.remove(&hit.id).expect("a point that meets the filter, once");
        assert!(
            (f64::from(hit.score) - score).abs() < SCORE_TOLERANCE,
            "{} is {score} alike, not {}",
            hit.id,
            hit.score
        );
    }
    let worst = hits.last().map_or(f64::INFINITY, |hit| f64::from(hit.score));
    let missed = scores.iter().find(|(_, score)| **score > worst + SCORE_TOLERANCE);
    assert_eq!(missed, None, "the worst hit is {worst} alike");
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    product / (length(a) * length(b))
}

fn length(vector: &[f32]) -> f64 {
    vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt()
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        other => panic!("{other} is no object"),
    }
}
