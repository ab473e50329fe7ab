//! OpenAI's own Python client and LangChain, which know nothing of this server.

use std::process::Stdio;

use anyhow::{Context, ensure};
use pipeline_tests::{PATIENCE, System, embedding_model, python, repository};
use tokio::process::Command;

#[tokio::test]
async fn openais_clients_work_unchanged() -> anyhow::Result<()> {
    let Some(python) = python("openai-clients")? else { return Ok(()) };
    let mut system = System::start_without(&["inference-worker"]).await?;
    let embedding = embedding_model().map(|model| model.display().to_string());
    let arguments = embedding.iter().flat_map(|model| ["--embedding-models", model]).collect::<Vec<_>>();
    system.start_role_with("inference-worker", &arguments, &[]).await?;
    let clients = Command::new(python)
        .arg(repository().join("tests/openai-clients/clients.py"))
        .arg(format!("{}/v1", system.http))
        .arg(system.secret())
        .args(["tiny", if embedding.is_some() { "all-minilm-l6-v2" } else { "-" }])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let clients = tokio::time::timeout(3 * PATIENCE, clients).await.context("the clients did not end")??;
    let (said, wrong) = (String::from_utf8_lossy(&clients.stdout), String::from_utf8_lossy(&clients.stderr));
    println!("{said}");
    ensure!(clients.status.success(), "{said}\n{wrong}");
    ensure!(said.lines().count() == 12, "every check is told: {said}");
    Ok(())
}
