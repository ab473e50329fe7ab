//! Settings as people see them: each with its origin, secrets hidden, mistakes named.

use std::collections::BTreeSet;

use pipeline_tests::{repository, run};
use serde_json::{Value, json};

#[tokio::test]
async fn every_setting_is_shown_with_its_origin_and_no_secret() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("vlinders.toml");
    let text = "[gateway]\nbody_bytes_max = 1000\n[nats]\nuser = \"ann\"\npassword = \"hidden\"\n\
        [inference.remote.large]\nurl = \"http://127.0.0.1:9/v1\"\napi_key = \"hidden\"\n\
        [tools.mcp.time]\ncommand = [\"date\"]\nenvironment = { TOKEN = \"hidden\" }\n";
    std::fs::write(&file, text)?;
    let file = file.display().to_string();
    let shown = run(&["config", "show", "--json", "--config", &file]).await?;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    let all: Vec<Value> = serde_json::from_str(&shown.stdout)?;
    let of = |key: &str| all.iter().find(|setting| setting["key"] == key).cloned().unwrap_or_default();
    let body = of("gateway.body_bytes_max");
    assert_eq!((&body["value"], &body["origin"]), (&json!(1_000), &json!(format!("file {file}"))));
    let keep = of("gateway.keep_alive_s");
    assert_eq!((&keep["value"], &keep["origin"]), (&json!(15), &json!("default")));
    assert_eq!(of("nats.password")["value"], "…");
    for section in ["nats", "telemetry", "gateway", "orchestrator", "inference", "tools", "analysis"] {
        assert!(all.iter().any(|s| s["key"].as_str().is_some_and(|key| key.starts_with(&format!("{section}.")))));
    }
    let people = run(&["config", "show", "gateway", "--config", &file]).await?;
    assert!(people.stdout.contains(&format!("= 1000   # file {file}")), "{people:?}");
    assert!(!people.stdout.contains("nats."), "{people:?}");
    assert!(!shown.stdout.contains("hidden") && !people.stdout.contains("hidden"), "a secret is shown");
    let none = run(&["config", "show", "gatewy", "--config", &file]).await?;
    assert!(none.code == Some(2) && none.stderr.contains("gateway"), "{none:?}");
    Ok(())
}

#[tokio::test]
async fn every_setting_is_explained_where_people_look() -> anyhow::Result<()> {
    let readme = std::fs::read_to_string(repository().join("README.md"))?;
    let words: BTreeSet<&str> = readme.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).collect();
    let shown = run(&["config", "show", "--json"]).await?;
    let all: Vec<Value> = serde_json::from_str(&shown.stdout)?;
    // Sections of sections have theirs below them.
    let mut names: Vec<String> = Vec::new();
    for setting in &all {
        names.extend(setting["key"].as_str().map(str::to_owned));
        names.extend(setting["value"].as_object().into_iter().flatten().map(|(key, _)| key.clone()));
    }
    let missing = names.iter().filter(|name| !words.contains(name.rsplit('.').next().unwrap_or(name)));
    assert_eq!(missing.collect::<Vec<_>>(), [""; 0], "the README does not say what these are");
    assert!(all.len() > 50, "{all:?}");
    Ok(())
}

#[tokio::test]
async fn a_wrong_setting_is_found_before_anything_starts() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("vlinders.toml");
    let path = file.display().to_string();
    let right = run(&["config", "check"]).await?;
    assert_eq!(right.code, Some(0), "{right:?}");
    for (text, said) in [
        ("[gateway]\nhtpp = \"x\"\n", "htpp"),
        ("[gateway]\nrequests_open_max = 0\n", "gateway.requests_open_max is 0"),
        ("[gatewy]\nhttp = \"x\"\n", "unknown section [gatewy]"),
        ("[gateway\n", "vlinders.toml"),
    ] {
        std::fs::write(&file, text)?;
        let wrong = run(&["config", "check", "--config", &path]).await?;
        assert!(wrong.code == Some(2) && wrong.stderr.contains(said), "{wrong:?}");
    }
    Ok(())
}

#[tokio::test]
async fn shells_are_told_what_there_is() -> anyhow::Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).await?;
        assert!(script.code == Some(0) && script.stdout.contains("dead-letters"), "{shell}: {}", script.stderr);
    }
    Ok(())
}
