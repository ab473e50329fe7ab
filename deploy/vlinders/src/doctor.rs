//! `vlinders doctor`: what is here, what is missing, and what to do about it.
//!
//! | check | what is looked at |
//! |---|---|
//! | `nats-server`, `models`, `gpus`, `docker`, `bubblewrap` | what a process needs of its machine |
//! | `disk` | whether the data directory can be written, and how long its disk takes to have something safe |
//! | `ports` | whether what is to be listened on is free, and who has it if not |
//! | `jetstream`, `clock` | the NATS server that runs: its version, what it may keep, and its clock beside ours |
//! | `remote`, `gateway`, `tools` | what runs elsewhere or already, and what it refuses |

mod clocks;
mod disk;
mod ports;
mod server;

use std::process::{Command, ExitCode};

use inference_worker::config::Device;
use inference_worker::cuda::{driver, modules, nccl};
use serde_json::json;
use tool_worker::Sandbox;
use tool_worker::sandbox::Choice;

use crate::cli::Doctor;
use crate::{nats, settings};

/// What was seen of one thing.
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    /// What to do about it, where that is not plain from what was found.
    next: Option<String>,
}

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// As it should be.
    Fine,
    /// Not as it should be, and things work all the same; the word says in which way.
    Odd(&'static str),
    /// Nothing starts, or holds, like this.
    Wrong(&'static str),
}

impl Finding {
    fn fine(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, state: State::Fine, found: found.into(), next: None }
    }

    fn odd(what: &'static str, word: &'static str, found: impl Into<String>) -> Self {
        Self { what, state: State::Odd(word), found: found.into(), next: None }
    }

    fn wrong(what: &'static str, word: &'static str, found: impl Into<String>) -> Self {
        Self { what, state: State::Wrong(word), found: found.into(), next: None }
    }

    fn missing(what: &'static str, found: impl Into<String>) -> Self {
        Self::wrong(what, "MISSING", found)
    }

    fn next(self, step: impl Into<String>) -> Self {
        Self { next: Some(step.into()), ..self }
    }
}

/// Looks and reports; exit code 1 when something needed is missing.
pub(crate) async fn run(options: Doctor) -> anyhow::Result<ExitCode> {
    let watch = clocks::Watch::start();
    let data = options.target.data.clone().unwrap_or_else(settings::default_data);
    let mut findings = vec![nats_server(), models(&data), gpus(), device(&options), disk::look(&data)];
    findings.extend(Box::pin(sandboxes(&options)).await?);
    findings.extend(of_settings(&options).await);
    findings.extend(server::look(&options, &watch).await?);
    findings.push(gateway(&options).await);
    findings.extend(refused_tools(&options).await);
    for finding in &findings {
        show(finding, options.json);
    }
    // One kind of sandbox is enough.
    let confined = findings.iter().any(|f| matches!(f.what, DOCKER | BUBBLEWRAP) && f.state == State::Fine);
    let whole = confined && !findings.iter().any(|f| matches!(f.state, State::Wrong(_)));
    if !confined && !options.json {
        println!("without a sandbox every tool call is refused");
    }
    Ok(ExitCode::from(u8::from(!whole)))
}

fn show(finding: &Finding, as_json: bool) {
    let word = match finding.state {
        State::Fine => "ok",
        State::Odd(word) | State::Wrong(word) => word,
    };
    if as_json {
        let needed = matches!(finding.state, State::Wrong(_));
        let mut line =
            json!({"check": finding.what, "ok": finding.state == State::Fine, "state": word, "needed": needed});
        line["found"] = json!(finding.found);
        if let Some(next) = &finding.next {
            line["next_step"] = json!(next);
        }
        println!("{line}");
        return;
    }
    println!("{word:<7} {:<12} {}", finding.what, finding.found);
    if let Some(next) = &finding.next {
        println!("{:<20} -> {next}", "");
    }
}

fn version(program: &std::path::Path) -> String {
    let output = Command::new(program).arg("--version").output();
    output.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

fn nats_server() -> Finding {
    match nats::find(None) {
        Ok(program) => Finding::fine("nats-server", format!("{} at {}", version(&program), program.display())),
        Err(error) => Finding::missing("nats-server", error.to_string()),
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
                Finding::fine(what, found)
            }
            Err(reason) => Finding::odd(what, "absent", reason),
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
            Finding::fine("models", format!("{} in {}", names.join(", "), directory.display()))
        }
        None => Finding::missing("models", "none")
            .next(format!("put a model directory under {}/models or say --models DIR", data.display())),
    }
}

/// What follows from the settings: the ports that they name, and one finding for each remote model. Or why that cannot be
/// known.
async fn of_settings(options: &Doctor) -> Vec<Finding> {
    let configured = settings::Settings::load(options.config.as_deref(), Vec::new())
        .and_then(|settings| Ok((settings.inference.remotes().map_err(settings::Usage)?, settings)));
    let (remotes, settings) = match configured {
        Ok(configured) => configured,
        Err(error) => return vec![Finding::missing("settings", error.to_string())],
    };
    let mut findings = ports::look(&settings);
    for remote in remotes {
        findings.push(match remote.look().await {
            Ok(found) => Finding::fine("remote", format!("{}: {found}", remote.name())),
            Err(found) => Finding::odd("remote", "away", format!("{}: {found}", remote.name())),
        });
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
    Finding::fine("gpus", found)
}

/// What chat models compute on, as a worker with this configuration would choose.
fn device(options: &Doctor) -> Finding {
    let what = "device";
    let config = match settings::Settings::load(options.config.as_deref(), Vec::new()) {
        Ok(settings) => settings.inference,
        Err(error) => return Finding::wrong(what, "WRONG", error.to_string()),
    };
    if config.device == Device::Cpu {
        return Finding::fine(what, "the CPUs, as inference.device says");
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
            let each: Vec<String> = each.collect();
            if each.is_empty() {
                return Finding::wrong(what, "WRONG", "inference.gpus names no GPU of this machine");
            }
            let slow = if driver::has_blas() { String::new() } else { format!("; {}", driver::NO_BLAS) };
            let together = match each.len() {
                1 => String::new(),
                _ => nccl::version().map_or_else(|why| format!("; {why}"), |version| format!("; NCCL {version}")),
            };
            let each = each.join(", ");
            Finding::fine(what, format!("{each}; the CPUs for models that do not fit{slow}{together}"))
        }
        Err(why) if config.device == Device::Cuda => {
            Finding::missing(what, format!("inference.device is \"cuda\", and no GPU can be used: {why}"))
        }
        Err(why) => Finding::fine(what, format!("the CPUs: {why}")),
    }
}

async fn gateway(options: &Doctor) -> Finding {
    let found = match options.target.gateway() {
        Err(error) => Err(error.to_string()),
        Ok(gateway) => match gateway.get("/health").await {
            Ok(response) => {
                let status = response.status();
                let health: serde_json::Value = response.json().await.unwrap_or_default();
                let letters = match health["parts"]["dead_letters"]["waiting"].as_u64() {
                    None => "nobody knows how many dead letters wait".to_owned(),
                    Some(0) => "no dead letter waits".to_owned(),
                    Some(waiting) => format!("{waiting} dead letters wait: `vlinders dead-letters ls`"),
                };
                Ok(format!("{} answers {status}; {letters}", gateway.url))
            }
            Err(error) => Err(format!("{} does not answer: {error:#}", gateway.url)),
        },
    };
    match found {
        Ok(found) => Finding::fine("gateway", found),
        Err(found) => Finding::odd("gateway", "at rest", found),
    }
}

/// What a running system refuses of the files and servers that should give it tools.
async fn refused_tools(options: &Doctor) -> Vec<Finding> {
    let ask = async {
        let gateway = options.target.gateway().ok()?;
        let response = gateway.get("/internal/tools").await.ok()?;
        response.json::<serde_json::Value>().await.ok()
    };
    let listed = ask.await.unwrap_or_default();
    let refused = listed["refused"].as_array().cloned().unwrap_or_default();
    let told = |refused: serde_json::Value| {
        let text = |field: &str| refused[field].as_str().unwrap_or_default().to_owned();
        let line = refused["line"].as_u64().map(|line| format!(" line {line}")).unwrap_or_default();
        Finding::odd("tools", "refused", format!("{}{line}: {}", text("file"), text("reason")))
    };
    refused.into_iter().map(told).collect()
}
