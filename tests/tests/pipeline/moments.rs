//! The moments between two steps. A process that dies leaves nothing but the log, the queues and what it had taken
//! from them. So each moment is made exactly, by doing what the process would have done up to it; then the real
//! process starts. A series of real kills at random moments follows, with its seed printed.

use std::time::Duration;

use anyhow::ensure;
use orchestrator::execution::Rules;
use orchestrator::history::History;
use orchestrator::work::{self, Order};
use pipeline_tests::{PATIENCE, System, answered, conversation, events};
use runtime::bus::{Bus, Commit};
use schemas::chat::Role;
use schemas::wire::encode;
use schemas::{EffectId, ExecutionId, Fact, FactBody, ToolJob, stream, subject};
use serde_json::{Value, json};

/// How far an orchestrator came before it died.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Reached {
    Taken,
    Committed,
    Queued,
    Indexed,
}

/// Plays an orchestrator that takes the execution's newest fact, comes as far as `reached`, and dies.
async fn die(bus: &Bus, exec: ExecutionId, reached: Reached) -> anyhow::Result<()> {
    let mut facts = bus.facts(exec.partition()).await?;
    let newest = bus.read_execution(exec, 0).await?.last().expect("a fact").sequence;
    loop {
        // Dropped without an acknowledgement, as a dead process drops it.
        if facts.next().await?.is_some_and(|fact| fact.stored.sequence == newest) {
            break;
        }
    }
    let mut history = History::new(exec);
    for message in bus.read_execution(exec, 0).await? {
        history.fold(&message).expect("the test wrote it");
    }
    if reached >= Reached::Committed {
        let record = history.decide(Rules::current()).expect("something follows");
        let Commit::Done(sequence) = bus.commit(&record, history.sequence).await? else {
            anyhow::bail!("somebody else decided");
        };
        history.commit(&record, sequence);
    }
    if reached >= Reached::Queued {
        for (id, effect) in history.execution.effects.open_effects() {
            match work::order(&history.execution, id, effect, &[], runtime::clock::now()) {
                Some(Order::Inference(job)) => drop(bus.queue(job.as_ref()).await?),
                Some(Order::Tool(job)) => drop(bus.queue(job.as_ref()).await?),
                Some(Order::Analysis(job)) => drop(bus.queue(job.as_ref()).await?),
                Some(Order::Child(_)) | None => {}
            }
        }
    }
    if reached >= Reached::Indexed {
        let bucket = bus.bucket(stream::BUCKET_OPEN).await?;
        bucket.put(format!("{}.{exec}", exec.partition()), "1".into()).await?;
    }
    Ok(())
}

/// Execution ids of as many partitions, so that no fact of one is taken with another's.
fn ids(count: usize) -> Vec<ExecutionId> {
    let mut ids: Vec<ExecutionId> = Vec::new();
    while ids.len() < count {
        let id = runtime::clock::execution_id();
        if ids.iter().all(|other| other.partition() != id.partition()) {
            ids.push(id);
        }
    }
    ids
}

#[tokio::test]
async fn an_orchestrator_may_die_between_any_two_steps() -> anyhow::Result<()> {
    let mut system = System::start_without(&["orchestrator"]).await?;
    let bus = system.bus().await?;
    let mut all = Vec::new();
    let ids = ids(8);
    for (i, reached) in [Reached::Taken, Reached::Committed, Reached::Queued, Reached::Indexed].into_iter().enumerate()
    {
        // With the request as its newest fact.
        bus.append_fact(&system.request(ids[i], "hello", &[])).await?;
        die(&bus, ids[i], reached).await?;
        all.push((ids[i], reached, "request"));
        // With an answer as its newest fact: what is decided is the end.
        let late = ids[4 + i];
        bus.append_fact(&system.request(late, "hello", &[])).await?;
        die(&bus, late, Reached::Committed).await?;
        bus.append_fact(&answered(late, 1, "Said by the test.", &[])).await?;
        die(&bus, late, reached).await?;
        all.push((late, reached, "answer"));
    }
    drop(bus);
    system.start_role("orchestrator").await?;
    for (exec, reached, newest) in all {
        let view = system.ended(exec).await?;
        assert_eq!(view["status"], "completed", "{newest} {reached:?}: {view}");
        let log = system.prove(exec).await?;
        assert_eq!(events(&log).len(), 2, "{newest} {reached:?}: one decision to begin and one to end");
        if newest == "answer" {
            assert_eq!(view["response"], "Said by the test.", "{reached:?}: the answer was there already");
        }
    }
    // What is closed is no longer listed as open.
    let open = system.bus().await?.bucket(stream::BUCKET_OPEN).await?;
    let none_open = async {
        for exec in ids {
            while open.get(format!("{}.{exec}", exec.partition())).await?.is_some() {
                tokio::task::yield_now().await;
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, none_open).await.expect("closed executions leave the index")
}

/// Waits until nothing is left in a job queue.
async fn queue_empty(system: &System, name: &str) -> anyhow::Result<()> {
    let context = async_nats::jetstream::new(system.nats().await?);
    let mut queue = context.get_stream(name).await?;
    let empty = async {
        while queue.info().await?.state.messages > 0 {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, empty).await.expect("the queue empties")
}

#[tokio::test]
async fn a_worker_may_die_with_its_result_in_the_log_and_its_job_still_queued() -> anyhow::Result<()> {
    let mut system = System::start_without(&["inference-worker", "tool-worker"]).await?;
    let bus = system.bus().await?;
    let exec = runtime::clock::execution_id();
    bus.append_fact(&system.request(exec, "go", &["read_file"])).await?;

    // Takes the inference's job, stores its result twice (the second beyond the reach of deduplication), and dies.
    let mut jobs = bus.inference_jobs("tiny").await?;
    let taken = async {
        while jobs.next().await?.is_none() {}
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, taken).await.expect("a job")?;
    let call = ("read_file", json!({"path": "src/main.rs"}));
    let result = answered(exec, 1, "", &[call]);
    bus.append_fact(&result).await?;
    bus.reply(subject::fact(exec), encode(&result).into()).await?;

    // The same with the tool's job.
    let mut jobs = bus.tool_jobs().await?;
    let job: ToolJob = loop {
        if let Some(delivery) = tokio::time::timeout(PATIENCE, jobs.next()).await.expect("a job")? {
            break delivery.job.clone();
        }
    };
    let body = FactBody::ToolCompleted(schemas::fact::ToolCompleted {
        full: None,
        effect: job.effect.clone(),
        attempt: job.attempt,
        worker: "played-by-the-test".to_owned(),
        result: "1: said by the test".to_owned(),
        duration_us: 1,
        sandbox: Default::default(),
    });
    let result = Fact::new(exec, runtime::clock::now(), body);
    bus.append_fact(&result).await?;
    bus.reply(subject::fact(exec), encode(&result).into()).await?;

    system.start_role("tool-worker").await?;
    system.start_role("inference-worker").await?;
    let view = system.ended(exec).await?;
    assert_eq!(view["status"], "completed", "{view}");
    // The jobs come again and their results with them, which must change nothing.
    queue_empty(&system, stream::TOOL_JOBS).await?;
    queue_empty(&system, stream::INFERENCE_JOBS).await?;
    let log = system.prove(exec).await?;
    let results = |wanted: &EffectId| {
        let facts = log.iter().filter_map(|m| Fact::read(&m.payload).ok());
        facts
            .filter(|f| match &f.body {
                FactBody::InferenceCompleted(f) => &f.effect == wanted,
                FactBody::ToolCompleted(f) => &f.effect == wanted,
                _ => false,
            })
            .count()
    };
    assert_eq!(results(&EffectId::inference(1)), 2, "the test wrote two, the worker's own is recognised");
    assert_eq!(results(&EffectId::tool(1, 0)), 2);
    let told = conversation(exec, &log);
    let roles: Vec<Role> = told.iter().take(3).map(|m| m.role).collect();
    assert_eq!(roles, [Role::User, Role::Assistant, Role::Tool], "each result was used once: {told:?}");
    assert_eq!(told.iter().filter(|m| m.content == "1: said by the test").count(), 1, "{told:?}");
    Ok(())
}

/// SplitMix64: a series that its seed brings back.
struct Series(u64);

impl Series {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[expect(clippy::disallowed_methods, reason = "a switch for the person who repeats a failed series")]
fn seed() -> u64 {
    std::env::var("PIPELINE_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| u64::from_str_radix(&runtime::clock::random_hex()[..13], 16).unwrap_or(1))
}

/// Roles that are killed in turn.
const VICTIMS: [&str; 4] = ["orchestrator", "inference-worker", "tool-worker", "gateway"];
/// Kills in one series.
const KILLS: u64 = 52;
/// Messages in the log of an agent's execution before its end: request, decision, answer, decision, result, decision,
/// answer.
const MOMENTS: u64 = 7;

#[tokio::test]
async fn no_series_of_kills_loses_or_repeats_anything() -> anyhow::Result<()> {
    let seed = seed();
    println!("PIPELINE_SEED={seed}");
    let mut series = Series(seed);
    let mut system = System::start().await?;
    let mut all = Vec::new();
    for kill in 0..KILLS {
        let role = VICTIMS[(kill % 4) as usize];
        let moment = series.below(MOMENTS);
        let exec = runtime::clock::execution_id();
        let bus = system.bus().await?;
        let mut live = bus.live(exec).await?;
        bus.append_fact(&system.request(exec, "Where is Liveness defined?", &["search_code"])).await?;
        all.push(exec);
        for _ in 0..=moment {
            // Lost with a connection or not to come any more: then this is the moment.
            let _ = tokio::time::timeout(Duration::from_secs(2), live.next()).await;
        }
        system.kill_role(role).await?;
        println!("{kill}: killed {role} after message {moment} of {exec}");
        system.start_role(role).await?;
    }
    for exec in all {
        let view = system.ended(exec).await?;
        ensure!(view["status"] == "completed", "{exec}: {view}\n{}", system.log());
        system.prove(exec).await?;
    }
    Ok(())
}

/// Killed at the sight of what it just wrote: before it could take its job off the queue, or queue what it decided.
#[tokio::test]
async fn a_process_killed_at_the_sight_of_what_it_wrote_is_followed_up() -> anyhow::Result<()> {
    for (role, at) in
        [("inference-worker", "inference.completed"), ("tool-worker", "tool.completed"), ("orchestrator", "decision")]
    {
        let mut system = System::start().await?;
        let exec = runtime::clock::execution_id();
        let bus = system.bus().await?;
        let mut live = bus.live(exec).await?;
        bus.append_fact(&system.request(exec, "Where is Liveness defined?", &["search_code"])).await?;
        loop {
            let stored = tokio::time::timeout(PATIENCE, live.next()).await?.expect("the connection stays");
            let name = Fact::read(&stored.payload).map_or("decision", |fact| fact.body.name());
            if name == at {
                break;
            }
        }
        system.kill_role(role).await?;
        system.start_role(role).await?;
        let view: Value = system.ended(exec).await?;
        assert_eq!(view["status"], "completed", "{role} at {at}: {view}");
        system.prove(exec).await?;
    }
    Ok(())
}
