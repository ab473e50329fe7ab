//! Workers and a model played by the measurement, and a crowd of executions that wait for them.

use std::collections::BTreeMap;

use futures::StreamExt;
use pipeline_tests::{PATIENCE, System, answered};
use runtime::bus::Bus;
use runtime::{Tasks, clock};
use schemas::rpc::{Model, Reply};
use schemas::{ExecutionId, subject};
use serde_json::{Value, json};

/// Requests under way at once while a crowd is submitted.
const AT_ONCE: usize = 64;

/// Says in the place of an inference worker that a model is loaded.
pub(crate) async fn model(system: &System) -> anyhow::Result<Tasks> {
    let (bus, tasks) = (system.bus().await?, Tasks::new());
    let models = vec![Model { name: "tiny".into(), kind: "chat".into(), window: 1_024 }];
    bus.serve(&tasks, subject::RPC_MODELS, move |(): ()| std::future::ready(Reply::Ok(models.clone()))).await?;
    Ok(tasks)
}

/// Submits agents and waits until each has an inference open. Returns them with what their log holds then.
pub(crate) async fn crowd(system: &System, bus: &Bus, count: usize) -> anyhow::Result<BTreeMap<ExecutionId, usize>> {
    let all: Vec<ExecutionId> = (0..count).map(|_| clock::execution_id()).collect();
    let open = futures::stream::iter(all).map(|exec| async move {
        let request = system.request(exec, "go", &["read_file"]);
        bus.append_fact(&request).await?;
        loop {
            let held = bus.read_execution(exec, 0).await?.len();
            if held == 2 {
                return anyhow::Ok((exec, held));
            }
            tokio::task::yield_now().await;
        }
    });
    let open: Vec<_> = open.buffer_unordered(AT_ONCE).collect().await;
    open.into_iter().collect()
}

/// The answer of the model to its first turn: one call of a tool. It comes while nobody is there to decide.
pub(crate) async fn answer_all(bus: &Bus, all: impl Iterator<Item = ExecutionId>) -> anyhow::Result<()> {
    let call = [("read_file", json!({"path": "src/main.rs"}))];
    let stored = futures::stream::iter(all).map(|exec| {
        let fact = answered(exec, 1, "", &call);
        async move { bus.append_fact(&fact).await }
    });
    let stored: Vec<_> = stored.buffer_unordered(AT_ONCE).collect().await;
    for appended in stored {
        appended?;
    }
    Ok(())
}

/// Waits for something with the patience of the tests.
pub(crate) async fn patiently<T>(what: &str, wait: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(found) => found,
        Err(_) => anyhow::bail!("{what} did not come in {PATIENCE:?}"),
    }
}

/// An agent that may ask others.
pub(crate) fn planner(system: &System) -> Value {
    json!({"agent_type": "planner", "instruction": "go", "workspace": system.workspace()})
}
