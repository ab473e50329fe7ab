//! The edge over gRPC, asked by a client that is not ours: code that grpcio-tools generates from the proto.

use pipeline_tests::{PATIENCE, System, python, repository};
use serde_json::{Value, json};

#[tokio::test]
async fn a_client_in_python_has_all_of_it() -> anyhow::Result<()> {
    let Some(python) = python("python-clients")? else { return Ok(()) };
    let system = System::start().await?;
    let client = tokio::process::Command::new(python)
        .arg(repository().join("tests/python-clients/grpc_client.py"))
        .args([system.grpc.trim_start_matches("http://"), system.secret()])
        .arg(repository().join("schemas/proto"))
        .arg(system.workspace())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE * 2, client).await??;
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), system.log());
    let seen: Value = serde_json::from_slice(&output.stdout)?;
    let hello = "Hello! Ask me about the code in this workspace.";
    assert_eq!(seen["chat"]["response"], hello);
    for (what, status) in
        [("chat", "completed"), ("agent", "completed"), ("tool", "completed"), ("cancelled", "cancelled")]
    {
        let exec = seen[what]["execution_id"].as_str().expect("an id").parse()?;
        let view = system.ended(exec).await?;
        assert_eq!(view["status"], json!(status), "{what}: {view}");
        system.prove(exec).await?;
    }
    Ok(())
}
