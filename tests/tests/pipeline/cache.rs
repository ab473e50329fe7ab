//! Results that workers share: in buckets of the bus and in Redis alike, computed once by all of them, and no loss but of
//! time when the server is away.

use std::time::Duration;

use anyhow::Context;
use pipeline_tests::{PATIENCE, Redis, System};
use runtime::Cache;
use runtime::cache::{Config, Lease, Leased, Space};
use runtime::config::Secret;
use schemas::stream::{BUCKET_LEASES, LEASE_TTL};
use serde_json::{Value, json};

const HOUR: Duration = Duration::from_secs(3_600);

fn held(leased: Leased) -> anyhow::Result<Lease> {
    match leased {
        Leased::Yes(lease) => Ok(lease),
        other => anyhow::bail!("{other:?}"),
    }
}

/// The lease, as soon as nobody else has it.
async fn free(cache: &Cache, key: &str) -> anyhow::Result<Lease> {
    let wait = async {
        loop {
            if let Leased::Yes(lease) = cache.lease(Space::Results, key).await {
                return lease;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.context("the lease stays with another")
}

/// What every store must do, for two processes that share it. `steal` ends the lease on a key behind its holder's back.
async fn conforms(one: &Cache, other: &Cache, steal: impl AsyncFn(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    assert_eq!(one.get(Space::Results, "a").await, None);
    assert!(one.put(Space::Results, "a", b"first", HOUR, None).await);
    assert_eq!(other.get(Space::Results, "a").await.as_deref(), Some(&b"first"[..]));
    assert_eq!(other.get(Space::ToolResults, "a").await, None, "another space");
    assert!(other.put(Space::Results, "a", b"", HOUR, None).await);
    assert_eq!(one.get(Space::Results, "a").await.as_deref(), Some(&b""[..]), "nothing is a value, too");

    let first = held(one.lease(Space::Results, "b").await)?;
    assert!(matches!(other.lease(Space::Results, "b").await, Leased::ToAnother));
    drop(held(other.lease(Space::ToolResults, "b").await)?);
    drop(held(other.lease(Space::Results, "c").await)?);
    // It lasts for as long as it is held: time itself is tried here.
    tokio::time::sleep(LEASE_TTL + LEASE_TTL / 2).await;
    assert!(matches!(other.lease(Space::Results, "b").await, Leased::ToAnother) && !first.is_lost());
    let number = first.number();
    drop(first);
    let second = free(other, "b").await?;
    assert!(second.number() > number, "{} after {number}", second.number());

    // Who has stood still for longer than its lease does not overwrite what the next one has put.
    steal("b").await?;
    let third = free(one, "b").await?;
    assert!(third.number() > second.number());
    assert!(one.put(Space::Results, "b", b"third", HOUR, Some(&third)).await);
    assert!(!other.put(Space::Results, "b", b"second", HOUR, Some(&second)).await);
    assert_eq!(other.get(Space::Results, "b").await.as_deref(), Some(&b"third"[..]));
    let lost = async {
        while !second.is_lost() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, lost).await.context("its holder does not learn that it is lost")?;
    // What the loser gives back is not the lease of another.
    drop(second);
    assert!(matches!(other.lease(Space::Results, "b").await, Leased::ToAnother));
    Ok(())
}

fn of_redis(redis: &Redis, bus: runtime::Bus) -> anyhow::Result<Cache> {
    let config = Config { redis: Some(Secret::new(redis.url())), timeout_ms: 2_000, ..Config::default() };
    Cache::open(&config, bus).map_err(anyhow::Error::msg)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_keep_results_and_leases() -> anyhow::Result<()> {
    let mut system = System::new()?;
    system.start_nats().await?;
    let bus = system.bus().await?;
    runtime::bus::provision(&bus).await?;
    let leases = bus.bucket(BUCKET_LEASES).await?;
    let steal = async |key: &str| Ok(leases.delete(format!("vl_results.{key}")).await?);
    conforms(&Cache::on_bus(bus.clone()), &Cache::on_bus(system.bus().await?), steal).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_keeps_results_and_leases() -> anyhow::Result<()> {
    let Some(mut redis) = Redis::start().await? else { return Ok(()) };
    let mut system = System::new()?;
    system.start_nats().await?;
    let bus = system.bus().await?;
    let (one, other) = (of_redis(&redis, bus.clone())?, of_redis(&redis, bus)?);
    let steal = async |key: &str| {
        assert_eq!(redis.say(&format!("DEL vlinders:lease:results:{key}")).await?, ":1");
        Ok(())
    };
    conforms(&one, &other, steal).await?;
    let keys = redis.keys().await?;
    assert!(keys.contains(&"vlinders:results:a".to_owned()), "{keys:?}");
    let lives: u64 = redis.say("TTL vlinders:results:a").await?.trim_start_matches(':').parse()?;
    assert!((3_500..=3_600).contains(&lives), "{lives}");

    // A number is not given out twice, though the server has forgotten all.
    let before = held(one.lease(Space::Results, "d").await)?.number();
    redis.crash()?;
    assert_eq!(one.get(Space::Results, "a").await, None);
    assert!(matches!(one.lease(Space::Results, "d").await, Leased::Unknown));
    assert!(!one.put(Space::Results, "a", b"x", HOUR, None).await);
    let trouble = one.state().await;
    assert!(trouble.store.starts_with("Redis at 127.0.0.1:") && trouble.trouble.is_some(), "{trouble:?}");
    redis.resume().await?;
    let again = free(&one, "d").await?;
    assert!(again.number() > before, "{} after {before}", again.number());
    assert_eq!(one.state().await.trouble, None);
    Ok(())
}

/// A request whose result follows from it alone.
fn question(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 12})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_share_answers_in_redis_and_do_without_it() -> anyhow::Result<()> {
    let Some(mut redis) = Redis::start().await? else { return Ok(()) };
    let mut system = System::start_with(&format!("[cache]\nredis = \"{}\"\n", redis.url())).await?;
    let (status, first) = system.ask("/internal/chat", &question("hello")).await?;
    assert!(status == 200 && first["cached"] != true, "{first}");
    let kept = async || Ok(redis.keys().await?.iter().any(|key| key.starts_with("vlinders:results:")));
    assert!(until(kept).await?, "the answer is kept where others find it");

    // Another process, with a memory of its own.
    system.kill_role("inference-worker").await?;
    system.start_role("inference-worker").await?;
    let (_, again) = system.ask("/internal/chat", &question("hello")).await?;
    assert_eq!((&again["response"], &again["cached"]), (&first["response"], &json!(true)), "{again}");
    let health: Value = system.get("/health").send().await?.json().await?;
    let told = health["parts"]["cache"].as_object().context("what workers say of it")?;
    assert!(told.len() >= 2, "inference and tool workers share results: {health}");
    assert!(
        told.values().all(|cache| cache["store"].as_str().is_some_and(|store| store.starts_with("Redis at"))),
        "{health}"
    );

    redis.crash()?;
    let (status, without) = system.ask("/internal/chat", &question("hello again")).await?;
    assert_eq!(status, 200, "{without}");
    let told = async || {
        let health: Value = system.get("/health").send().await?.json().await?;
        let workers = health["parts"]["cache"].as_object().context("what workers say of it")?;
        Ok(workers.values().any(|cache| cache["trouble"].is_string()))
    };
    assert!(until(told).await?, "it says that Redis is away");
    Ok(())
}

/// Whether it becomes true in time.
async fn until(is: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<bool> {
    let wait = async {
        loop {
            match is().await {
                Ok(false) => tokio::task::yield_now().await,
                answer => return answer,
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or(Ok(false))
}
