//! Cancelling an agent with three others at work below it: from the request until the workers of all three are told.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use futures::StreamExt;
use pipeline_tests::{System, events};
use runtime::clock;
use schemas::{Event, ExecutionId};
use serde_json::{Value, json};

use crate::played::{model, patiently, planner};
use crate::spread;

const CHILDREN: usize = 3;

pub(crate) async fn told(trees: usize) -> anyhow::Result<Value> {
    let system = System::start_without(&["inference-worker"]).await?;
    let _tasks = model(&system).await?;
    let bus = system.bus().await?;
    let mut grown = Vec::new();
    for _ in 0..trees {
        let (exec, _stream) = system.open("/internal/agent", planner(&system)).await?;
        let part = |agent: &str, task: &str| ("delegate", json!({"agent": agent, "task": task}));
        let parts = [part("coder", "find it"), part("researcher", "read it"), part("coder", "explain it")];
        system.answer(exec, 1, "", &parts).await?;
        let log = system.log_until(exec, |log| children(&events(log)).len() == CHILDREN).await?;
        let leaves = children(&events(&log));
        for leaf in &leaves {
            let asked = |event: &Event| matches!(event, Event::InferenceRequested(_));
            system.log_until(*leaf, |log| events(log).iter().flatten().any(asked)).await?;
        }
        grown.push((exec, leaves));
    }
    let mut cancels = bus.cancels().await?;
    bus.flush().await?;
    let (mut accepted, mut all) = (Vec::new(), Vec::new());
    for (exec, leaves) in &grown {
        let began = clock::instant();
        let mut left: BTreeSet<ExecutionId> = leaves.iter().copied().collect();
        let request = async {
            let answer = system.ask(&format!("/internal/executions/{exec}/cancel"), &json!({})).await?;
            anyhow::Ok((answer.0, clock::instant()))
        };
        let heard = patiently("the last leaf's cancel", async {
            while !left.is_empty() {
                left.remove(&cancels.next().await.context("the connection closed")?);
            }
            Ok(clock::instant())
        });
        let ((status, answered), heard) = futures::future::try_join(request, heard).await?;
        ensure!(status == 202, "the tree had ended: {status}");
        accepted.push(answered - began);
        all.push(heard - began);
    }
    for exec in grown.iter().flat_map(|(exec, leaves)| std::iter::once(exec).chain(leaves)) {
        let view = system.ended(*exec).await?;
        ensure!(view["status"] == "cancelled", "{exec}: {view}");
        system.prove(*exec).await?;
    }
    Ok(
        json!({"trees": trees, "leaves": CHILDREN, "accepted_ms": spread(&mut accepted), "all_leaves_told_ms": spread(&mut all)}),
    )
}

fn children(decided: &[Vec<Event>]) -> Vec<ExecutionId> {
    let child = |event: &Event| match event {
        Event::ChildRequested(asked) => Some(asked.child),
        _ => None,
    };
    decided.iter().flatten().filter_map(child).collect()
}
