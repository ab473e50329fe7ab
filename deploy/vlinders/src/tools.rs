//! `vlinders tools`: what tools there are, and a call of one, through the gateway.

use std::process::ExitCode;

use anyhow::Context;
use http::Method;
use schemas::agent::Refused;
use schemas::api::ToolAnswer;
use schemas::rpc::Tool;
use serde_json::{Value, json};

use crate::cli::{ListTools, RunTool, Tools, ToolsWhat};
use crate::settings::Usage;

/// Lists or calls; exit code 1 when a call gave no result.
pub(crate) async fn run(options: Tools) -> anyhow::Result<ExitCode> {
    match options.what {
        ToolsWhat::Ls(options) => list(options).await,
        ToolsWhat::Run(options) => call(options).await,
    }
}

async fn list(options: ListTools) -> anyhow::Result<ExitCode> {
    let gateway = options.target.gateway()?;
    let Some(mut answer) = gateway.answered(Method::GET, "/internal/tools", None).await? else {
        return Ok(ExitCode::from(1));
    };
    if options.json {
        println!("{answer}");
        return Ok(ExitCode::SUCCESS);
    }
    let tools: Vec<Tool> = serde_json::from_value(answer["tools"].take()).context("read the tools")?;
    if tools.is_empty() {
        eprintln!("no tool worker answers; start one: `vlinders tool-worker`");
    }
    for tool in tools {
        let arguments = tool.parameters["properties"].as_object().map(|p| p.keys().cloned().collect::<Vec<_>>());
        println!("{}({})  {}", tool.name, arguments.unwrap_or_default().join(", "), tool.description);
        let approval =
            matches!(tool.approval, Some(schemas::rpc::Approval::Always)).then(|| "asks a person".to_owned());
        let time = tool.timeout_ms.map(|ms| format!("{} s at most", ms as f64 / 1_000.0));
        let said: Vec<String> = tool.permissions.into_iter().chain(time).chain(approval).collect();
        if !said.is_empty() {
            println!("    {}", said.join(", "));
        }
        if let Some(why) = tool.unavailable {
            println!("    not here: {why}");
        }
    }
    let refused: Vec<Refused> = serde_json::from_value(answer["refused"].take()).unwrap_or_default();
    for Refused { file, line, reason } in refused {
        let line = line.map(|line| format!(" line {line}")).unwrap_or_default();
        println!("refused: {file}{line}: {reason}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn call(options: RunTool) -> anyhow::Result<ExitCode> {
    let arguments: Value = serde_json::from_str(&options.arguments).map_err(|error| {
        Usage(format!("--arguments is no JSON: {error}; expected an object such as {{\"path\": \"a.rs\"}}"))
    })?;
    let body = json!({
        "tool_name": options.name,
        "arguments": arguments,
        "workspace": options.workspace,
        "user_id": options.user,
        "cache": !options.fresh,
    });
    let gateway = options.target.gateway()?;
    let asked = gateway.answered(Method::POST, "/internal/tools/execute", Some(&body)).await?;
    let Some(answer) = asked else { return Ok(ExitCode::from(1)) };
    let said: ToolAnswer = serde_json::from_value(answer.clone()).context("read the answer")?;
    if options.json {
        println!("{answer}");
    } else if said.success {
        println!("{}", said.result);
        eprintln!("{} in {:.1} ms, confined by {}", said.execution_id, said.duration_ms, said.sandbox.tier);
    } else {
        eprintln!("vlinders: {}", said.error.unwrap_or_default());
    }
    Ok(ExitCode::from(u8::from(!said.success)))
}
