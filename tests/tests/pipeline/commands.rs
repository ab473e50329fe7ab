//! Commands through the whole pipeline: an answer, an agent type that names the tool or does not, and what is left of one
//! whose worker is killed.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::Context;
use pipeline_tests::{PATIENCE, System};
use serde_json::{Value, json};

/// A system whose workspace other users may read, as commands of a worker that is root are. None where no commands run,
/// which is said; where `CI` says that everything is there, they must.
async fn system() -> anyhow::Result<Option<System>> {
    let system = System::start().await?;
    std::fs::set_permissions(system.directory(), std::fs::Permissions::from_mode(0o755))?;
    let health: Value = system.get("/health").send().await?.json().await?;
    let workers = health["parts"]["sandbox"].as_object().context("tool workers")?;
    let refused = workers.values().find_map(|worker| worker["commands_refused"].as_str());
    if let Some(reason) = refused {
        anyhow::ensure!(!in_ci(), "{reason}");
        eprintln!("SKIPPED: {reason}");
        return Ok(None);
    }
    assert!(workers.values().all(|worker| worker["commands"].to_string().contains("memory-limit")), "{health}");
    Ok(Some(system))
}

#[expect(clippy::disallowed_methods, reason = "whether a machine must have everything is said in its environment")]
fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|ci| ci == "true")
}

fn run(system: &System, command: &[&str]) -> Value {
    json!({"tool_name": "run_command", "arguments": {"command": command}, "workspace": system.workspace()})
}

#[tokio::test]
async fn a_command_is_carried_out_confined_and_told_by_its_end() -> anyhow::Result<()> {
    let Some(system) = system().await? else { return Ok(()) };
    let (status, answer) =
        system.ask("/internal/tools/execute", &run(&system, &["sh", "-c", "ls src; exit 4"])).await?;
    assert_eq!((status, &answer["success"]), (200, &json!(true)), "{answer}");
    assert_eq!(answer["result"], "exit code 4\nliveness.rs\nmain.rs\nreader.rs");
    assert!(answer["sandbox"]["enforced"].to_string().contains("memory-limit"), "{answer}");
    let (_, refused) = system.ask("/internal/tools/execute", &run(&system, &["touch", "made"])).await?;
    assert!(refused["result"].as_str().is_some_and(|text| text.contains("cannot touch 'made'")), "{refused}");
    let mut wrong = run(&system, &[]);
    wrong["arguments"] = json!({"command": "ls -l"});
    let (_, wrong) = system.ask("/internal/tools/execute", &wrong).await?;
    assert!(wrong["error"].as_str().is_some_and(|text| text.starts_with("argument `command` is \"ls -l\"")), "{wrong}");
    Ok(())
}

/// Processes that have this word on their command line.
fn alive(marker: &str) -> usize {
    let has = |entry: std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == marker.as_bytes())
    };
    std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok).map(has).filter(|has| *has).count()
}

/// Waits for something to be so.
async fn until(what: &str, so: impl Fn() -> bool) -> anyhow::Result<()> {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.with_context(|| format!("waited for: {what}"))
}

#[tokio::test]
async fn a_worker_killed_with_a_command_leaves_no_process_of_it() -> anyhow::Result<()> {
    let Some(mut system) = system().await? else { return Ok(()) };
    let marker = format!("{}.5", 80_000 + std::process::id() % 10_000);
    let script = format!("sleep {marker} & setsid sleep {marker} & sleep {marker}");
    let asked = system.post("/internal/tools/execute", &run(&system, &["sh", "-c", &script])).send();
    let runs = until("the command runs", || alive(&marker) >= 3);
    tokio::select! {
        answered = asked => anyhow::bail!("it was answered: {}", answered?.text().await?),
        runs = runs => runs?,
    }
    system.kill_role("tool-worker").await?;
    until("all of it is gone", || alive(&marker) == 0).await
}
