//! `kill -9` of the orchestrator with many executions open, each with an answer that came while nobody decided.

use std::collections::BTreeSet;

use anyhow::ensure;
use futures::StreamExt;
use pipeline_tests::System;
use runtime::clock;
use schemas::ExecutionId;
use serde_json::{Value, json};

use crate::ms;
use crate::played::{answer_all, crowd, patiently};

/// Roles that would answer by themselves.
const PLAYED: [&str; 4] = ["inference-worker", "tool-worker", "analysis-worker", "gateway"];

pub(crate) async fn killed(open: usize, standby: bool) -> anyhow::Result<Value> {
    let mut system = System::start_without(&PLAYED).await?;
    let bus = system.bus().await?;
    let all = crowd(&system, &bus, open).await?;
    if standby {
        system.start_role("orchestrator").await?;
    }
    // Jobs are seen as they are published: each is an effect that goes on.
    let client = async_nats::connect(system.nats_url()).await?;
    let mut jobs = client.subscribe("vl.v1.job.tool.>").await?;
    client.flush().await?;

    let killed = clock::instant();
    system.kill_role("orchestrator").await?;
    answer_all(&bus, all.keys().copied()).await?;
    let answered = clock::instant();
    let began = clock::instant();
    if !standby {
        system.start_role("orchestrator").await?;
    }
    let ready = clock::instant();
    let from = if standby { killed } else { began };
    let mut resumed: BTreeSet<ExecutionId> = BTreeSet::new();
    let (mut first, mut last) = (None, from);
    patiently("the last effect", async {
        while resumed.len() < open {
            let job = jobs.next().await.ok_or_else(|| anyhow::anyhow!("the connection closed"))?;
            let exec: Option<ExecutionId> = job.subject.rsplit('.').next().and_then(|id| id.parse().ok());
            last = clock::instant();
            first.get_or_insert(last);
            resumed.extend(exec);
        }
        Ok(())
    })
    .await?;

    // Each decided once more and no more than once.
    let mut checked = 0;
    for exec in all.keys() {
        let log = bus.read_execution(*exec, 0).await?;
        let asked = pipeline_tests::tools_asked(&log).len();
        ensure!(asked == 1, "{exec} asked for its tool {asked} times\n{}", system.log());
        orchestrator::history::verify(*exec, &log).map_err(|difference| anyhow::anyhow!("{exec}: {difference:?}"))?;
        checked += 1;
    }
    let first = first.unwrap_or(last);
    Ok(json!({
        "open": open,
        "first_effect_ms": ms(first - from),
        "all_effects_ms": ms(last - from),
        "ready_ms": (!standby).then(|| ms(ready - began)),
        "results_stored_ms_after_kill": ms(answered - killed),
        "verified": checked,
    }))
}
