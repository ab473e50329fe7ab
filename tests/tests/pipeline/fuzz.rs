//! The HTTP API as its own document describes it, asked by schemathesis, which knows nothing else of it: no question makes
//! a fault of the server, none hangs, and every answer is as the document says.

use std::process::Stdio;

use anyhow::{Context, ensure};
use pipeline_tests::{PATIENCE, System, python, repository};
use serde_json::json;
use tokio::process::Command;

/// The same questions in every run; another number asks others.
const SEED: &str = "20261130";

#[tokio::test]
async fn every_answer_is_as_the_document_says_whatever_is_asked() -> anyhow::Result<()> {
    let Some(python) = python("http-fuzz")? else { return Ok(()) };
    let system = System::start().await?;
    let ask =
        json!({"agent_type": "coder", "instruction": "Where is TokenReader defined?", "workspace": system.workspace()});
    let (status, answer) = system.ask("/internal/agent", &ask).await?;
    assert_eq!(status, 200, "{answer}");
    let folder = repository().join("tests/http-fuzz");
    let fuzz = Command::new(python.with_file_name("st"))
        .arg("--config-file")
        .arg(folder.join("schemathesis.toml"))
        .args(["run", &format!("{}/openapi.json", system.http), "--seed", SEED, "--no-color"])
        .env("SCHEMATHESIS_HOOKS", folder.join("hooks.py"))
        .env("GATEWAY_SECRET", system.secret())
        .env("GATEWAY_EXECUTION", answer["execution_id"].as_str().context("an id")?)
        .env("GATEWAY_WORKSPACE", system.workspace())
        .current_dir(system.directory())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let fuzz = tokio::time::timeout(2 * PATIENCE, fuzz).await.context("schemathesis did not end")??;
    let (said, wrong) = (String::from_utf8_lossy(&fuzz.stdout), String::from_utf8_lossy(&fuzz.stderr));
    println!("seed {SEED}\n{said}");
    ensure!(fuzz.status.success(), "{said}\n{wrong}");
    // All of the document but itself, which schemathesis leaves out, and the one stream that never ends.
    let document: serde_json::Value = system.get("/openapi.json").send().await?.json().await?;
    let paths = document["paths"].as_object().context("paths")?;
    let operations: usize = paths.values().filter_map(|path| path.as_object().map(serde_json::Map::len)).sum();
    ensure!(said.contains(&format!("Tested: {}", operations - 2)), "{operations} operations are described: {said}");

    // The system is as it was.
    let health: serde_json::Value = system.get("/health").send().await?.json().await?;
    assert_eq!(health["status"], "ready", "{health}");
    assert_eq!(health["parts"]["dead_letters"]["waiting"], 0, "{health}");
    let (status, answer) = system.ask("/internal/agent", &ask).await?;
    assert_eq!((status, !answer["response"].as_str().unwrap_or_default().is_empty()), (200, true), "{answer}");
    let faults: Vec<String> =
        system.log().lines().filter(|line| line.contains("\"level\":\"ERROR\"")).map(str::to_owned).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    Ok(())
}
