//! `vlinders doctor`: what is here, what is missing, and what to do about it.

use std::process::{Command, ExitCode};

use inference_worker::config::Device;
use inference_worker::cuda::{driver, modules};
use serde_json::json;
use tool_worker::Sandbox;
use tool_worker::sandbox::Choice;

use crate::cli::Doctor;
use crate::{nats, settings};

struct Finding {
    what: &'static str,
    ok: bool,
    found: String,
}

/// Looks and reports; exit code 1 when something needed is missing.
pub(crate) async fn run(options: Doctor) -> anyhow::Result<ExitCode> {
    let data = options.target.data.clone().unwrap_or_else(settings::default_data);
    let mut findings = vec![nats_server(), models(&data), gpus(), device(&options)];
    findings.extend(Box::pin(sandboxes(&options)).await?);
    findings.extend(remotes(&options).await);
    findings.push(gateway(&options).await);
    findings.extend(refused_tools(&options).await);
    for finding in &findings {
        if options.json {
            println!("{}", json!({"check": finding.what, "ok": finding.ok, "found": finding.found}));
        } else {
            let mark = match (finding.ok, finding.what) {
                (true, _) => "ok",
                (false, "gateway") => "at rest",
                (false, "remote") => "away",
                (false, DOCKER | BUBBLEWRAP) => "absent",
                (false, "tools") => "refused",
                (false, _) => "MISSING",
            };
            println!("{mark:<7} {:<12} {}", finding.what, finding.found);
        }
    }
    // The gateway may rest, servers of remote models may be away, a file of a tool may be wrong, and one kind of sandbox is enough; everything else is
    // needed to start.
    let confined = findings.iter().any(|f| matches!(f.what, DOCKER | BUBBLEWRAP) && f.ok);
    let optional = ["gateway", "remote", "tools", DOCKER, BUBBLEWRAP];
    let whole = confined && findings.iter().filter(|f| !optional.contains(&f.what)).all(|f| f.ok);
    if !confined && !options.json {
        println!("without a sandbox every tool call is refused");
    }
    Ok(ExitCode::from(u8::from(!whole)))
}

fn version(program: &std::path::Path) -> String {
    let output = Command::new(program).arg("--version").output();
    output.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

fn nats_server() -> Finding {
    match nats::find(None) {
        Ok(program) => {
            Finding { what: "nats-server", ok: true, found: format!("{} at {}", version(&program), program.display()) }
        }
        Err(error) => Finding { what: "nats-server", ok: false, found: error.to_string() },
    }
}

const DOCKER: &str = "docker";
const BUBBLEWRAP: &str = "bubblewrap";

/// Starts each kind of sandbox as a worker does, with its self-test.
async fn sandboxes(options: &Doctor) -> anyhow::Result<Vec<Finding>> {
    let settings = settings::Settings::load(options.config.as_deref(), Vec::new())?;
    let mut findings = Vec::new();
    for (what, tier) in [(DOCKER, Choice::Docker), (BUBBLEWRAP, Choice::Bubblewrap)] {
        let config = tool_worker::Config { sandbox: tier, warm_boxes: 0, ..settings.tools.clone() };
        findings.push(match Box::pin(Sandbox::start(&config)).await {
            Ok(sandbox) => {
                let about = match tier {
                    Choice::Docker => sandbox.described().to_owned(),
                    Choice::Bubblewrap | Choice::Auto => version(&config.bubblewrap),
                };
                sandbox.close().await;
                let enforced = sandbox.enforced().join(" ");
                let commands = match sandbox.for_commands() {
                    Ok(enforced) => format!("around commands {}", enforced.join(" ")),
                    Err(reason) => format!("runs no commands: {reason}"),
                };
                let found = format!("{about}; passed the self-test; enforces {enforced}; {commands}");
                Finding { what, ok: true, found }
            }
            Err(reason) => Finding { what, ok: false, found: reason },
        });
    }
    Ok(findings)
}

fn models(data: &std::path::Path) -> Finding {
    match settings::shipped_models(data) {
        Some(directory) => {
            let names = settings::model_directories(&directory).unwrap_or_default();
            let names: Vec<String> =
                names.iter().filter_map(|m| m.file_name()).map(|n| n.to_string_lossy().into_owned()).collect();
            Finding { what: "models", ok: true, found: format!("{} in {}", names.join(", "), directory.display()) }
        }
        None => Finding {
            what: "models",
            ok: false,
            found: format!("none: put a model directory under {}/models or say --models DIR", data.display()),
        },
    }
}

/// One finding for each remote model that is configured, or why that cannot be known.
async fn remotes(options: &Doctor) -> Vec<Finding> {
    let configured = settings::Settings::load(options.config.as_deref(), Vec::new())
        .and_then(|settings| Ok(settings.inference.remotes().map_err(settings::Usage)?));
    let remotes = match configured {
        Ok(remotes) => remotes,
        Err(error) => return vec![Finding { what: "settings", ok: false, found: error.to_string() }],
    };
    let mut findings = Vec::new();
    for remote in remotes {
        let looked = remote.look().await;
        let (ok, Ok(found) | Err(found)) = (looked.is_ok(), looked);
        findings.push(Finding { what: "remote", ok, found: format!("{}: {found}", remote.name()) });
    }
    findings
}

/// No GPU is nothing that is missing: models run on CPUs.
fn gpus() -> Finding {
    let found = match inference_worker::gpus::Gpus::open() {
        Err(why) => format!("none is measured: {why}"),
        Ok(gpus) => {
            let each = gpus.sample().into_iter().map(|gpu| {
                let memory = gpu.memory_total_bytes.map(|bytes| format!(" with {} MiB", bytes >> 20));
                format!("{} {}{}", gpu.id, gpu.name, memory.unwrap_or_default())
            });
            each.collect::<Vec<_>>().join(", ")
        }
    };
    Finding { what: "gpus", ok: true, found }
}

/// What chat models compute on, as a worker with this configuration would choose.
fn device(options: &Doctor) -> Finding {
    let what = "device";
    let config = match settings::Settings::load(options.config.as_deref(), Vec::new()) {
        Ok(settings) => settings.inference,
        Err(error) => return Finding { what, ok: false, found: error.to_string() },
    };
    if config.device == Device::Cpu {
        return Finding { what, ok: true, found: "the CPUs, as inference.device says".to_owned() };
    }
    match driver::find() {
        Ok(found) => {
            let allowed = |gpu: &&driver::Found| config.gpus.is_empty() || config.gpus.contains(&gpu.id);
            let each = found.iter().filter(allowed).map(|gpu| {
                let kernels = if modules::shipped(gpu.capability) { "shipped" } else { "built by NVRTC" };
                let (major, minor) = gpu.capability;
                let memory = gpu.memory >> 20;
                format!("GPU {} ({}, {memory} MiB, capability {major}.{minor}, kernels {kernels})", gpu.id, gpu.name)
            });
            let each = each.collect::<Vec<_>>().join(", ");
            match each.is_empty() {
                true => Finding { what, ok: false, found: "inference.gpus names no GPU of this machine".to_owned() },
                false => {
                    let slow = if driver::has_blas() { String::new() } else { format!("; {}", driver::NO_BLAS) };
                    Finding { what, ok: true, found: format!("{each}; the CPUs for models that do not fit{slow}") }
                }
            }
        }
        Err(why) if config.device == Device::Cuda => {
            Finding { what, ok: false, found: format!("inference.device is \"cuda\", and no GPU can be used: {why}") }
        }
        Err(why) => Finding { what, ok: true, found: format!("the CPUs: {why}") },
    }
}

async fn gateway(options: &Doctor) -> Finding {
    let found = match options.target.gateway() {
        Err(error) => Err(error.to_string()),
        Ok((url, _)) => match reqwest::get(format!("{url}/health")).await {
            Ok(response) => {
                let status = response.status();
                let health: serde_json::Value = response.json().await.unwrap_or_default();
                let letters = match health["parts"]["dead_letters"]["waiting"].as_u64() {
                    None => "nobody knows how many dead letters wait".to_owned(),
                    Some(0) => "no dead letter waits".to_owned(),
                    Some(waiting) => format!("{waiting} dead letters wait: `vlinders dead-letters ls`"),
                };
                Ok(format!("{url} answers {status}; {letters}"))
            }
            Err(error) => Err(format!("{url} does not answer: {error}")),
        },
    };
    Finding { what: "gateway", ok: found.is_ok(), found: found.unwrap_or_else(|e| e) }
}

/// What a running system refuses of the files and servers that should give it tools.
async fn refused_tools(options: &Doctor) -> Vec<Finding> {
    let ask = async {
        let (url, secret) = options.target.gateway().ok()?;
        let request = reqwest::Client::new().get(format!("{url}/internal/tools"));
        let response = request.header("X-Internal-Auth", secret).send().await.ok()?;
        response.json::<serde_json::Value>().await.ok()
    };
    let listed = ask.await.unwrap_or_default();
    let refused = listed["refused"].as_array().cloned().unwrap_or_default();
    let told = |refused: serde_json::Value| {
        let text = |field: &str| refused[field].as_str().unwrap_or_default().to_owned();
        let line = refused["line"].as_u64().map(|line| format!(" line {line}")).unwrap_or_default();
        Finding { what: "tools", ok: false, found: format!("{}{line}: {}", text("file"), text("reason")) }
    };
    refused.into_iter().map(told).collect()
}
