//! Agent types as data: from a directory that changes while everything runs, and through the API.

use pipeline_tests::{PATIENCE, System, Up, run};
use serde_json::{Value, json};

fn manifest(name: &str, more: &str) -> String {
    format!("name = \"{name}\"\ndescription = \"Does things.\"\nsystem = \"Do things.\"\n{more}")
}

/// Waits until the gateway lists what `enough` looks for.
async fn listed(
    ask: impl AsyncFn() -> anyhow::Result<Value>,
    enough: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    let wait = async {
        loop {
            let found = ask().await?;
            if enough(&found) {
                return anyhow::Ok(found);
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the directory is followed")
}

#[tokio::test]
async fn a_directory_is_followed_and_a_wrong_file_harms_no_other() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let agents = data.path().join("agents");
    std::fs::create_dir(&agents)?;
    std::fs::write(agents.join("poet.toml"), manifest("poet", "max_iterations = 3\n"))?;
    std::fs::write(agents.join("bad.toml"), manifest("bad", "max_iterations = 0\n"))?;
    let up = Up::start_with(&data.path().join("data"), &["--agents", agents.to_str().expect("plain")]).await?;
    let (http, secret) = (up.ready["http"].as_str().expect("served").to_owned(), pipeline_tests::secret_of(&up)?);
    let client = reqwest::Client::new();
    let ask = async || -> anyhow::Result<Value> {
        let request = client.get(format!("{http}/internal/agents")).header("X-Internal-Auth", &secret);
        Ok(request.send().await?.json().await?)
    };
    let first = ask().await?;
    assert_eq!((&first["sources"]["poet"], &first["sources"]["coder"]), (&json!("manifest"), &json!("built_in")));
    assert_eq!(
        (&first["refused"][0]["file"], &first["refused"][0]["line"]),
        (&json!("bad.toml"), &json!(4)),
        "{first}"
    );
    assert!(first["refused"][0]["reason"].as_str().is_some_and(|r| r.contains("must be 1 to 1000")), "{first}");

    // One is put right, one is broken and keeps working as it was, one goes.
    std::fs::write(agents.join("bad.toml"), manifest("bad", "max_iterations = 1\n"))?;
    std::fs::write(
        agents.join("poet.toml"),
        manifest("poet", "agents = [\"poet\"]\nmax_children = 1\nmax_depth = 1\n"),
    )?;
    let second = listed(&ask, |found| found["refused"].to_string().contains("poet → poet")).await?;
    assert_eq!(second["sources"]["bad"], "manifest", "{second}");
    assert_eq!(second["sources"]["poet"], "manifest", "{second}");
    std::fs::remove_file(agents.join("poet.toml"))?;
    let gone = |found: &Value| found["sources"]["poet"].is_null() && found["refused"] == json!([]);
    listed(&ask, gone).await?;
    assert_eq!(up.stop().await?, Some(0));

    let nowhere = data.path().join("nowhere");
    let ended =
        run(&["orchestrator", "--nats", "nats://127.0.0.1:9", "--agents", nowhere.to_str().expect("plain")]).await?;
    assert_eq!((ended.code, ended.stderr.contains("agents_dir")), (Some(2), true), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn an_agent_type_is_registered_used_replaced_and_removed_without_a_restart() -> anyhow::Result<()> {
    let system = System::start().await?;
    let put = async |name: &str, body: Value| -> anyhow::Result<(u16, Value)> {
        let path = format!("{}/internal/agents/{name}", system.http);
        let request = reqwest::Client::new().put(path).header("X-Internal-Auth", "test-secret").json(&body);
        let response = request.send().await?;
        Ok((response.status().as_u16(), response.json().await?))
    };
    let delete = async |name: &str| -> anyhow::Result<(u16, Value)> {
        let path = format!("{}/internal/agents/{name}", system.http);
        let response = reqwest::Client::new().delete(path).header("X-Internal-Auth", "test-secret").send().await?;
        Ok((response.status().as_u16(), response.json().await?))
    };
    let greeter =
        json!({"description": "Greets.", "system": "You are Vlinder, a code assistant.", "max_iterations": 1});
    let (status, made) = put("greeter", greeter.clone()).await?;
    assert_eq!((status, &made["agent"]["max_tokens"]), (201, &json!(200_000)), "{made}");
    let ask = json!({"agent_type": "greeter", "instruction": "hello"});
    let (status, answer) = system.ask("/internal/agent", &ask).await?;
    assert_eq!(status, 200, "{answer}");

    let (status, problem) = put("greeter", json!({"description": "x", "system": "x", "agents": ["codr"]})).await?;
    assert_eq!((status, &problem["code"]), (400, &json!("invalid_agent")), "{problem}");
    // The built-in planner asks the coder, who must not ask back.
    let back = json!({"description": "x", "system": "x", "agents": ["planner"], "max_children": 1, "max_depth": 1});
    let (status, problem) = put("coder", back).await?;
    assert!(status == 400 && problem.to_string().contains("coder → planner → coder"), "{problem}");

    // What is built in gives way to what was registered under its name, and comes back.
    let (status, made) = put("coder", greeter).await?;
    assert_eq!((status, &made["replaced"]), (200, &json!("built_in")), "{made}");
    let shown: Value = system.get("/internal/agents/coder").send().await?.json().await?;
    assert_eq!(shown["description"], "Greets.");
    assert_eq!(delete("coder").await?, (200, json!({"removed": "coder", "now": "built_in"})));
    assert_eq!(delete("coder").await?.1["code"], "agent_not_registered");
    assert_eq!(delete("greeter").await?.0, 200);
    assert_eq!(system.ask("/internal/agent", &ask).await?.0, 404);
    Ok(())
}
