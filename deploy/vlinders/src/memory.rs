//! `vlinders memory`: what is remembered across executions, through the gateway.

use std::process::ExitCode;

use http::Method;
use url::Url;

use crate::cli::{ForgetMemory, ListMemory, Memory, MemoryWhat};

/// Lists or forgets; exit code 1 when a fact was not there.
pub(crate) async fn run(options: Memory) -> anyhow::Result<ExitCode> {
    match options.what {
        MemoryWhat::Ls(options) => list(options).await,
        MemoryWhat::Rm(options) => forget(options).await,
    }
}

async fn list(options: ListMemory) -> anyhow::Result<ExitCode> {
    let gateway = options.target.gateway()?;
    let workspace = options.workspace.map(|workspace| {
        // As the workers name it, where it is on this machine.
        std::fs::canonicalize(&workspace).map_or(workspace, |path| path.display().to_string())
    });
    let given = [("user_id", options.user), ("workspace", workspace), ("limit", Some(options.limit.to_string()))];
    let mut address = Url::parse(&format!("{}/internal/memory", gateway.url))?;
    for (name, value) in given {
        if let Some(value) = value {
            address.query_pairs_mut().append_pair(name, &value);
        }
    }
    let path = address.as_str().strip_prefix(&gateway.url).unwrap_or(address.path());
    let Some(answer) = gateway.answered(Method::GET, path, None).await? else { return Ok(ExitCode::from(1)) };
    if options.json {
        println!("{answer}");
        return Ok(ExitCode::SUCCESS);
    }
    let facts = answer["facts"].as_array().cloned().unwrap_or_default();
    if facts.is_empty() {
        eprintln!("nothing is remembered; agents remember with the tool `remember`");
    }
    for fact in facts {
        let text = |field: &str| fact[field].as_str().unwrap_or("-").to_owned();
        println!(
            "{}  {}  user {}, workspace {}",
            text("id"),
            text("remembered_at"),
            text("user_id"),
            text("workspace")
        );
        for line in text("text").lines() {
            println!("    {line}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn forget(options: ForgetMemory) -> anyhow::Result<ExitCode> {
    let gateway = options.target.gateway()?;
    let mut code = ExitCode::SUCCESS;
    for id in options.ids {
        match gateway.answered(Method::DELETE, &format!("/internal/memory/{id}"), None).await? {
            Some(_) => println!("forgot {id}"),
            None => code = ExitCode::from(1),
        }
    }
    Ok(code)
}
