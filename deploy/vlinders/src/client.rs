//! `vlinders chat` and `vlinders agent`: ask the gateway and show what happens while it happens.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use serde_json::{Value, json};

use crate::cli::{Agent, Chat, Target};
use crate::sse::Events;

/// Bytes of one tool result shown to a person; the whole stands in the log.
const RESULT_SHOWN: usize = 600;

/// `vlinders chat`
pub(crate) async fn chat(options: Chat) -> anyhow::Result<ExitCode> {
    let body = json!({
        "messages": [{"role": "user", "content": options.message}],
        "model": options.model,
        "max_tokens": options.max_tokens,
        "conversation_id": options.conversation,
        "stream": true,
    });
    ask(&options.target, "/internal/chat", &body, options.json).await
}

/// `vlinders agent`
pub(crate) async fn agent(options: Agent) -> anyhow::Result<ExitCode> {
    let body = json!({
        "agent_type": options.agent_type,
        "instruction": options.instruction,
        "workspace": options.workspace,
        "config": {"model": options.model, "approve": options.approve},
        "stream": true,
    });
    ask(&options.target, "/internal/agent", &body, options.json).await
}

async fn ask(target: &Target, path: &str, body: &Value, as_json: bool) -> anyhow::Result<ExitCode> {
    let gateway = target.gateway()?;
    let response = gateway.post(path, body).await?;
    if !response.status().is_success() {
        let status = response.status();
        let problem: Value = response.json().await.unwrap_or_default();
        report(&problem, &status.to_string());
        return Ok(ExitCode::from(1));
    }
    let mut shown = Shown { as_json, ..Shown::default() };
    let mut events = Events::new(response);
    while let Some((name, data)) = events.next().await? {
        shown.event(&name, &data)?;
    }
    match shown.ended {
        Some(code) => Ok(ExitCode::from(code)),
        None => bail!(
            "the stream ended before the answer; the execution goes on: `vlinders executions {}`",
            shown.execution
        ),
    }
}

/// What a person has seen so far.
#[derive(Default)]
struct Shown {
    as_json: bool,
    execution: String,
    in_line: bool,
    ended: Option<u8>,
}

impl Shown {
    fn event(&mut self, name: &str, data: &Value) -> anyhow::Result<()> {
        match name {
            "done" => self.ended = Some(0),
            "error" => self.ended = Some(1),
            "started" => self.execution = data["execution_id"].as_str().unwrap_or_default().to_owned(),
            _ => {}
        }
        if self.as_json {
            println!("{}", json!({"event": name, "data": data}));
            return Ok(());
        }
        match name {
            "started" => eprintln!("execution {}", self.execution),
            "token" => {
                print!("{}", data["text"].as_str().unwrap_or_default());
                std::io::stdout().flush()?;
                self.in_line = true;
            }
            "restart" => {
                self.new_line();
                println!("(the answer begins anew)\n{}", data["text"].as_str().unwrap_or_default());
            }
            "tool_call" => {
                self.new_line();
                println!("→ {}({})", data["name"].as_str().unwrap_or_default(), data["arguments"]);
            }
            "approval" => {
                self.new_line();
                let text = |field: &str| data[field].as_str().unwrap_or_default().to_owned();
                println!("? {}({}) waits for a person until {}:", text("name"), data["arguments"], text("expires"));
                println!("  vlinders approve {} {} [--deny | --edit JSON]", self.execution, text("effect"));
            }
            "tool_result" => {
                self.new_line();
                let mark = if data["success"] == json!(true) { "←" } else { "✗" };
                for line in shorten(data["result"].as_str().unwrap_or_default()).lines() {
                    println!("{mark} {line}");
                }
            }
            "done" => {
                self.new_line();
                let usage = &data["usage"];
                eprintln!(
                    "{} tokens in, {} out, {} steps",
                    usage["prompt_tokens"], usage["completion_tokens"], data["iterations"]
                );
            }
            "error" => {
                self.new_line();
                report(data, "the execution failed");
            }
            _ => {}
        }
        Ok(())
    }

    fn new_line(&mut self) {
        if std::mem::take(&mut self.in_line) {
            println!();
        }
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(RESULT_SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{} …", &text[..end]),
    }
}

/// A problem document in two lines.
pub(crate) fn report(problem: &Value, otherwise: &str) {
    eprintln!("vlinders: {}", problem["detail"].as_str().unwrap_or(otherwise));
    if let Some(next) = problem["next_step"].as_str() {
        eprintln!("  next: {next}");
    }
}

/// A value as it stands in a part of a URL.
pub(crate) fn escaped(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    value.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
