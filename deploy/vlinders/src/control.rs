//! What people tell an execution from the command line: each a request to the gateway, which says what is wrong with it.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::cli::{Approve, Cancel, Fork, Grant, Pause, Resume, Say, Tell};
use crate::client::report;
use crate::settings::Usage;

/// `vlinders pause`
pub(crate) async fn pause(options: Pause) -> anyhow::Result<ExitCode> {
    let body = json!({"reason": options.reason, "by": options.tell.by});
    tell(&options.tell, "pause", &body).await
}

/// `vlinders resume`
pub(crate) async fn resume(options: Resume) -> anyhow::Result<ExitCode> {
    tell(&options.tell, "resume", &json!({"by": options.tell.by})).await
}

/// `vlinders cancel`
pub(crate) async fn cancel(options: Cancel) -> anyhow::Result<ExitCode> {
    let mode = if options.graceful { "graceful" } else { "now" };
    let body = json!({"mode": mode, "reason": options.reason, "by": options.tell.by});
    tell(&options.tell, "cancel", &body).await
}

/// `vlinders approve`
pub(crate) async fn approve(options: Approve) -> anyhow::Result<ExitCode> {
    let arguments = options.edit.as_deref().map(serde_json::from_str::<Value>).transpose();
    let arguments = arguments.map_err(|e| Usage(format!("--edit is no JSON: {e}")))?;
    let verdict = match (&arguments, options.deny) {
        (Some(_), _) => "edit",
        (None, true) => "deny",
        (None, false) => "allow",
    };
    let body = json!({
        "effect": options.effect, "verdict": verdict, "arguments": arguments, "reason": options.reason,
        "by": options.tell.by,
    });
    tell(&options.tell, "approve", &body).await
}

/// `vlinders say`
pub(crate) async fn say(options: Say) -> anyhow::Result<ExitCode> {
    let body = json!({"text": options.text, "id": options.id, "by": options.tell.by});
    tell(&options.tell, "messages", &body).await
}

/// `vlinders grant`
pub(crate) async fn grant(options: Grant) -> anyhow::Result<ExitCode> {
    let body = json!({"dimension": options.dimension, "amount": options.amount, "by": options.tell.by});
    tell(&options.tell, "grant", &body).await
}

/// `vlinders fork`
pub(crate) async fn fork(options: Fork) -> anyhow::Result<ExitCode> {
    let body = json!({"at": options.at, "model": options.model, "message": options.message});
    tell(&options.tell, "fork", &body).await
}

/// Sends it and shows the execution as it stands.
async fn tell(options: &Tell, what: &str, body: &Value) -> anyhow::Result<ExitCode> {
    let gateway = options.target.gateway()?;
    let path = format!("/internal/executions/{}/{what}", options.execution);
    let response = gateway.post(&path, body).await?;
    let status = response.status();
    let answer: Value = response.json().await.unwrap_or_default();
    if options.json {
        println!("{answer}");
    } else if status.is_success() {
        let said = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
        println!("{}  {}  {}", said("execution_id"), said("status"), said("agent_type"));
        for waits in answer["waiting_for"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            println!("  waits for {waits}");
        }
    } else {
        report(&answer, &status.to_string());
    }
    Ok(ExitCode::from(u8::from(!status.is_success())))
}
