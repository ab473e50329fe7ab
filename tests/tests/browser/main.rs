//! The console in a real browser, against a real system; one module a story. Every story ends with two questions: did
//! the page report any error, and did the browser ask anybody but the gateway?
//!
//! Where there is no Chromium and chromedriver the stories say that they are skipped, and fail where CI=true.

mod approval;
mod browser;
mod dead_letters;
mod door;
mod executions;
mod looks;
mod units;

use pipeline_tests::System;
use runtime::Tasks;
use schemas::rpc::{Model, Reply};
use schemas::subject;
use serde_json::{Value, json};

/// A system without an inference worker, whose gateway is told that the model is loaded: the test plays the model.
async fn played() -> anyhow::Result<(System, Tasks)> {
    let system = System::start_without(&["inference-worker"]).await?;
    let (bus, tasks) = (system.bus().await?, Tasks::new());
    let models = vec![Model { name: "tiny".into(), kind: "chat".into(), window: 1_024 }];
    bus.serve(&tasks, subject::RPC_MODELS, move |(): ()| std::future::ready(Reply::Ok(models.clone()))).await?;
    Ok((system, tasks))
}

fn agent(system: &System, instruction: &str, config: &Value) -> Value {
    json!({"agent_type": "coder", "instruction": instruction, "workspace": system.workspace(), "user_id": "ann", "config": config})
}

/// Whether the gateway lists executions: without a projection of the log it cannot, which the page must say.
async fn lists(system: &System) -> anyhow::Result<bool> {
    Ok(system.get("/internal/executions").send().await?.status().is_success())
}
