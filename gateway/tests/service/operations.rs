//! Who works, what each holds, and what waits where.

use runtime::{Runtime, clock};
use schemas::presence::{Hold, Holds, Worker};
use schemas::wire::{Schema, encode};
use schemas::{EffectId, ToolJob, stream};
use serde_json::{Value, json};

use crate::house::House;

fn tool_job() -> ToolJob {
    ToolJob {
        schema: ToolJob::SCHEMA.to_owned(),
        exec: clock::execution_id(),
        effect: EffectId::tool(1, 0),
        attempt: 1,
        deadline: clock::now() + 30_000_000_000,
        queued_at: clock::now(),
        trace: Default::default(),
        tool: "read_file".to_owned(),
        arguments: "{}".to_owned(),
        workspace: None,
        user_id: None,
        result_bytes_max: 0,
        agent: String::new(),
        approved: false,
        fresh: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_works_what_is_held_and_what_waits_is_told() {
    let Some(house) = House::start().await else { return };
    let Runtime { bus, tasks, .. } = &house.runtime;
    assert_eq!(house.get("/internal/workers").await, json!({"workers": []}));
    let worker = Worker {
        id: "tool-1".into(),
        role: "tool".into(),
        version: "0.1.0".into(),
        slots: 2,
        models: vec![],
        tools: vec![],
        inference: None,
        sandbox: None,
        refused: vec![],
        vectors: None,
        cache: None,
    };
    let bucket = bus.bucket(stream::BUCKET_WORKERS).await.unwrap();
    bucket.put(&worker.id, encode(&worker).into()).await.unwrap();
    let shown = house.get("/internal/workers").await["workers"][0].clone();
    assert_eq!(
        (&shown["id"], &shown["slots"], &shown["holds"]),
        (&json!("tool-1"), &json!(2), &Value::Null),
        "{shown}"
    );
    let hold =
        Hold { exec: clock::execution_id(), effect: EffectId::tool(1, 0), attempt: 2, worker: worker.id.clone() };
    let holds = Holds { effects: vec![hold.clone()] };
    bus.serve_liveness(tasks, &worker.id, move || holds.clone()).await.unwrap();
    let shown = house.get("/internal/workers").await["workers"][0].clone();
    let held = json!([{"execution_id": hold.exec, "effect": "1-tool-0", "attempt": 2}]);
    assert_eq!(shown["holds"], held, "{shown}");

    let of = |queues: &Value, name: &str| {
        let streams = queues["streams"].as_array().unwrap();
        streams.iter().find(|stream| stream["name"] == name).unwrap_or_else(|| panic!("{name} of {queues}")).clone()
    };
    let before = of(&house.get("/internal/queues").await, stream::TOOL_JOBS);
    assert_eq!((&before["messages"], &before["first_at"], &before["consumers"]), (&json!(0), &Value::Null, &json!([])));
    let mut queue = bus.tool_jobs().await.unwrap();
    let (first, second) = (tool_job(), tool_job());
    for job in [&first, &second] {
        bus.queue(job).await.unwrap();
    }
    let held = queue.next().await.unwrap().expect("a job is there");
    let queues = house.get("/internal/queues").await;
    let jobs = of(&queues, stream::TOOL_JOBS);
    assert_eq!((&jobs["group"], &jobs["messages"], &jobs["storage"]), (&json!("jobs"), &json!(2), &json!("memory")));
    let consumer = &jobs["consumers"][0];
    let told = (&consumer["name"], &consumer["pending"], &consumer["ack_pending"], &consumer["redelivered"]);
    assert_eq!(told, (&json!("tools"), &json!(1), &json!(1), &json!(0)), "{jobs}");
    assert_eq!(consumer["oldest_at"], jobs["first_at"], "the one in hand was first: {jobs}");
    assert!(consumer["oldest_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{jobs}");
    assert_eq!(queues["streams"].as_array().unwrap().iter().filter(|s| s["group"] == "log").count(), 16);
    held.done().await.unwrap();
    let jobs = of(&house.get("/internal/queues").await, stream::TOOL_JOBS);
    assert_eq!((&jobs["messages"], &jobs["consumers"][0]["ack_pending"]), (&json!(1), &json!(0)), "{jobs}");
}
