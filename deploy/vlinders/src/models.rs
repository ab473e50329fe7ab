//! `vlinders models`: what is loaded and what could be, and changes to that; each a request to the gateway. A change is
//! followed to its end unless it should not be.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::cli::{ChangeOptions, Models, ModelsWhat, Target};
use crate::client::{escaped, report};
use crate::gateway_client::GatewayClient;

/// How often a change is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Does what was asked; exit code 1 when the gateway refuses or it comes to nothing.
pub(crate) async fn run(options: Models) -> anyhow::Result<ExitCode> {
    match options.what {
        ModelsWhat::Ls(list) => {
            let (status, answer) = Gateway::of(&list.target)?.ask(Method::GET, "/internal/models", None).await?;
            match (list.json, status.is_success()) {
                (true, _) => println!("{answer}"),
                (false, true) => listed(&answer),
                (false, false) => report(&answer, &status.to_string()),
            }
            Ok(ExitCode::from(u8::from(!status.is_success())))
        }
        ModelsWhat::Load(load) => {
            let path = format!("/internal/models/{}/load", escaped(&load.model));
            change(&load.options, &path, &json!({"worker": load.options.worker})).await
        }
        ModelsWhat::Unload(unload) => {
            let path = format!("/internal/models/{}/unload", escaped(&unload.model));
            change(&unload.options, &path, &json!({"worker": unload.options.worker, "force": unload.force})).await
        }
        ModelsWhat::Switch(switch) => {
            let body = json!({
                "from": switch.from, "to": switch.to, "worker": switch.options.worker, "force": switch.force,
            });
            change(&switch.options, "/internal/models/switch", &body).await
        }
    }
}

async fn change(options: &ChangeOptions, path: &str, body: &Value) -> anyhow::Result<ExitCode> {
    let gateway = Gateway::of(&options.target)?;
    let (status, mut answer) = gateway.ask(Method::POST, path, Some(body)).await?;
    if !status.is_success() {
        if options.json {
            println!("{answer}");
        } else {
            report(&answer, &status.to_string());
        }
        return Ok(ExitCode::from(1));
    }
    if !options.no_wait {
        answer = follow(&gateway, answer).await?;
    }
    let operations = answer["operations"].as_array().map_or(&[][..], Vec::as_slice);
    if options.json {
        println!("{answer}");
    } else {
        operations.iter().for_each(told);
    }
    Ok(ExitCode::from(u8::from(operations.iter().any(|operation| operation["state"] == "failed"))))
}

/// Asks until every operation has ended; on a terminal a line says how far they are.
async fn follow(gateway: &Gateway, mut answer: Value) -> anyhow::Result<Value> {
    let mut line = Line::default();
    let operations = answer["operations"].as_array_mut().context("the gateway names no operation")?;
    loop {
        line.show(
            &operations.iter().filter(|operation| goes_on(operation)).map(progress).collect::<Vec<_>>().join(", "),
        );
        if !operations.iter().any(goes_on) {
            return Ok(answer);
        }
        tokio::time::sleep(LOOK_EVERY).await;
        for operation in operations.iter_mut().filter(|operation| goes_on(operation)) {
            let path = format!("/internal/model-operations/{}", text(operation, "id"));
            let (status, now) = gateway.ask(Method::GET, &path, None).await?;
            if status.is_success() {
                *operation = now;
            } else if status == StatusCode::NOT_FOUND {
                operation["state"] = json!("failed");
                operation["reason"] = json!("the worker has gone");
            }
            // Otherwise the gateway could not look just now.
        }
    }
}

fn goes_on(operation: &Value) -> bool {
    !matches!(text(operation, "state"), "done" | "failed")
}

fn progress(operation: &Value) -> String {
    let percent = operation["progress"].as_f64().map(|part| format!(" {:.0} %", part * 100.0)).unwrap_or_default();
    let model = match (text(operation, "state"), operation["from"].as_str()) {
        ("draining", Some(from)) => from,
        _ => text(operation, "model"),
    };
    format!("{} {model}{percent} on {}", text(operation, "state"), text(operation, "worker"))
}

fn told(operation: &Value) {
    let (model, worker) = (text(operation, "model"), text(operation, "worker"));
    let done = match text(operation, "what") {
        "load" => format!("{model} is loaded on {worker}"),
        "unload" => format!("{model} is unloaded from {worker}"),
        _ => format!("{model} has taken the place of {} on {worker}", text(operation, "from")),
    };
    match text(operation, "state") {
        "done" => println!("{done}"),
        "failed" => {
            eprintln!("vlinders: {} {model} on {worker}: {}", text(operation, "what"), text(operation, "reason"));
        }
        _ => println!("{}: {}", text(operation, "id"), progress(operation)),
    }
}

fn listed(answer: &Value) {
    let workers = answer["workers"].as_array().map_or(&[][..], Vec::as_slice);
    let described: Vec<&str> =
        workers.iter().flat_map(|w| w["models"].as_array().into_iter().flatten()).map(|m| text(m, "name")).collect();
    let models = answer["models"].as_array().map_or(&[][..], Vec::as_slice);
    // Models of workers that describe nothing else.
    for model in models.iter().filter(|model| !described.contains(&text(model, "name"))) {
        println!("{:<24} {:<10} {:<9} window {}", text(model, "name"), "ready", text(model, "kind"), model["window"]);
    }
    for worker in workers {
        let memory = &worker["memory"];
        let bytes = |field: &str| size(memory[field].as_u64().unwrap_or(0));
        let kept = match memory["kept_bytes"].as_u64() {
            Some(1..) => format!(", {} kept of earlier prompts", bytes("kept_bytes")),
            _ => String::new(),
        };
        println!("{}: {} of {} taken{kept}", text(worker, "id"), bytes("taken_bytes"), bytes("max_bytes"));
        for model in worker["models"].as_array().into_iter().flatten() {
            let percent = model["progress"].as_f64().map(|part| format!(" {:.0} %", part * 100.0)).unwrap_or_default();
            let takes = match model["weights_bytes"].as_u64() {
                Some(weights @ 1..) => {
                    format!(
                        ", weights {}, cache up to {}",
                        size(weights),
                        size(model["cache_bytes_max"].as_u64().unwrap_or(0))
                    )
                }
                _ => String::new(),
            };
            let state = format!("{}{percent}", text(model, "state"));
            println!(
                "  {:<24} {state:<14} {:<9} window {}{takes}{}",
                text(model, "name"),
                text(model, "kind"),
                model["window"],
                place(model)
            );
            if let Some(reason) = model["reason"].as_str() {
                println!("    {reason}");
            }
        }
        for gpu in worker["gpus"].as_array().into_iter().flatten() {
            let part =
                gpu["utilization"].as_f64().map(|part| format!(", {:.0} % busy", part * 100.0)).unwrap_or_default();
            let memory = match (gpu["memory_used_bytes"].as_u64(), gpu["memory_total_bytes"].as_u64()) {
                (Some(used), Some(total)) => format!(", {} of {} taken", size(used), size(total)),
                _ => String::new(),
            };
            println!("  gpu {} {}{memory}{part}", gpu["id"], text(gpu, "name"));
        }
    }
    if models.is_empty() && workers.is_empty() {
        println!("no inference worker is there");
    }
}

/// Where a model lies, if that is told.
fn place(model: &Value) -> String {
    model["device"].as_str().map(|device| format!(", on {device}")).unwrap_or_default()
}

/// One line that is written over and over, where somebody looks.
#[derive(Default)]
struct Line {
    /// Characters of what stands there.
    width: usize,
}

impl Line {
    fn show(&mut self, text: &str) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let width = std::mem::replace(&mut self.width, text.chars().count());
        eprint!("\r{text:<width$}");
        if text.is_empty() {
            eprint!("\r");
        }
        // A terminal that takes nothing more shows nothing.
        let _ = std::io::stderr().flush();
    }
}

struct Gateway(GatewayClient);

impl Gateway {
    fn of(target: &Target) -> anyhow::Result<Self> {
        target.gateway().map(Self)
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<(StatusCode, Value)> {
        let response = self.0.ask(method, path, body).await?;
        Ok((response.status(), response.json().await.unwrap_or_default()))
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}
