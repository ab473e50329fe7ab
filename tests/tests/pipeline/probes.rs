//! What machines ask of a process: its health and its figures; and processes that wait for the streams that another makes.

use std::time::Duration;

use anyhow::{Context, ensure};
use pipeline_tests::{PATIENCE, System, free_port, run};
use runtime::bus::{self, Bus};
use schemas::subject;
use serde_json::Value;

/// Status and body of a question to a process' own listener.
async fn ask(url: &str) -> anyhow::Result<(u16, String)> {
    let response = tokio::time::timeout(PATIENCE, reqwest::get(url)).await.context("no answer")??;
    Ok((response.status().as_u16(), response.text().await?))
}

#[tokio::test]
async fn every_role_tells_whether_it_takes_work_and_what_it_counts() -> anyhow::Result<()> {
    let mut system =
        System::start_without(&["gateway", "orchestrator", "inference-worker", "tool-worker", "analysis-worker"])
            .await?;
    let mut listeners = Vec::new();
    for (role, figure) in [
        ("orchestrator", "vlinders_decisions_total"),
        ("tool-worker", "vlinders_sandbox_waiting_boxes"),
        ("gateway", "vlinders_dead_letters_waiting"),
    ] {
        let address = format!("127.0.0.1:{}", free_port()?);
        system.start_role_with(role, &[], &[("VLINDERS_TELEMETRY__METRICS", &address)]).await?;
        let (status, health) = ask(&format!("http://{address}/health")).await?;
        let health: Value = serde_json::from_str(&health)?;
        ensure!(status == 200 && health["ready"] == true && health["role"] == role, "{role}: {status} {health}");
        let (status, figures) = ask(&format!("http://{address}/metrics")).await?;
        ensure!(status == 200 && figures.contains(figure), "{role}: {status} {figures}");
        let probed = run(&["health", "--url", &format!("http://{address}")]).await?;
        ensure!(probed.code == Some(0), "{role}: {probed:?}");
        listeners.push(address);
    }
    // Without NATS they live and take no work: a restart would cure nothing.
    system.kill_nats().await?;
    for address in &listeners {
        let url = format!("http://{address}");
        let away = async {
            while ask(&format!("{url}/health")).await?.0 == 200 {}
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, away).await.context("it still takes work")??;
        ensure!(run(&["health", "--url", &url]).await?.code == Some(1));
        ensure!(run(&["health", "--url", &url, "--live"]).await?.code == Some(0));
    }
    system.start_nats().await?;
    for address in &listeners {
        let back = async {
            while ask(&format!("http://{address}/health")).await?.0 != 200 {}
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, back).await.context("it does not come back")??;
    }
    ensure!(run(&["health"]).await?.code == Some(2), "without a setting nobody knows whom to ask");
    Ok(())
}

/// Waits until a process shows each of these lines.
async fn until_shown(address: &str, lines: &[&str]) -> anyhow::Result<String> {
    let mut last = String::new();
    let shown = async {
        while !lines.iter().all(|line| last.lines().any(|shown| shown == *line)) {
            last = ask(&format!("{address}/metrics")).await?.1;
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(PATIENCE, shown).await {
        Ok(asked) => asked.map(|()| last),
        Err(_) => anyhow::bail!("not all of {lines:?} are shown:\n{last}"),
    }
}

#[tokio::test]
async fn a_gateway_shows_what_waits_in_every_queue_and_for_how_long() -> anyhow::Result<()> {
    let mut system = System::start_without(&["gateway", "inference-worker", "tool-worker", "analysis-worker"]).await?;
    system.start_role_with("gateway", &[], &[("VLINDERS_TELEMETRY__METRICS", "127.0.0.1:0")]).await?;
    let address = system.metrics.first().context("the gateway shows figures")?.1.clone();
    until_shown(&address, &["vlinders_queue_waiting_jobs{queue=\"inference\"} 0"]).await?;
    for _ in 0..2 {
        system.submit("hello").await?;
    }
    until_shown(
        &address,
        &[
            "vlinders_queue_waiting_jobs{queue=\"inference\"} 2",
            "vlinders_queue_held_jobs{queue=\"inference\"} 0",
            "vlinders_queue_waiting_jobs{queue=\"tools\"} 0",
            "vlinders_queue_waiting_jobs{queue=\"analysis\"} 0",
            "vlinders_dead_letters_waiting 0",
        ],
    )
    .await?;
    // Nobody takes for lost what this test, which is no worker, takes.
    system.kill_role("orchestrator").await?;
    let bus = system.bus().await?;
    let mut jobs = bus.inference_jobs("tiny").await?;
    let _held = tokio::time::timeout(PATIENCE, jobs.next()).await??.context("a job waits")?;
    let waiting = "vlinders_queue_waiting_jobs{queue=\"inference\"} 1";
    let shown = until_shown(&address, &[waiting, "vlinders_queue_held_jobs{queue=\"inference\"} 1"]).await?;
    let oldest = |queue: &str| {
        let line = format!("vlinders_queue_oldest_seconds{{queue=\"{queue}\"}} ");
        shown.lines().find_map(|shown| shown.strip_prefix(&line)).and_then(|seconds| seconds.parse::<f64>().ok())
    };
    ensure!(oldest("inference").is_some_and(|seconds| seconds > 0.0) && oldest("tools") == Some(0.0), "{shown}");

    // What is given up is shown where machines look, too.
    let nonsense = async_nats::jetstream::new(system.nats().await?);
    let _second = tokio::time::timeout(PATIENCE, jobs.next()).await??.context("another waits")?;
    nonsense.publish(subject::inference_job("tiny", runtime::clock::execution_id()), "no job".into()).await?.await?;
    ensure!(tokio::time::timeout(PATIENCE, jobs.next()).await??.is_none(), "it is no job");
    until_shown(&address, &["vlinders_dead_letters_waiting 1"]).await?;
    Ok(())
}

#[tokio::test]
async fn who_may_not_create_streams_waits_for_who_may() -> anyhow::Result<()> {
    let mut system = System::new()?;
    system.start_nats().await?;
    let waits = bus::Config { provision: false, ..system.bus_config() };
    let waiting = Bus::connect(&waits, "gateway").await?;
    let mut waited = Box::pin(bus::provision(&waiting));
    let too_early = tokio::time::timeout(Duration::from_secs(1), &mut waited).await;
    ensure!(too_early.is_err(), "nothing is there yet: {too_early:?}");
    bus::provision(&system.bus().await?).await?;
    tokio::time::timeout(PATIENCE, waited).await.context("it waits on")??;
    Ok(())
}
