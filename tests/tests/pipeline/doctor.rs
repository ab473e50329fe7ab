//! `vlinders doctor`: what it says of a machine on which something is wrong, and of one on which nothing is.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::Context;
use pipeline_tests::{Ended, System, Up, bare_nats, free_port, run, run_with};
use serde_json::{Value, json};
use tokio::process::Command;

/// What it says of each check by that name.
fn of(told: &Ended, check: &str) -> anyhow::Result<Vec<Value>> {
    let lines = told.stdout.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
    let lines = lines.with_context(|| format!("{told:?}"))?;
    Ok(lines.into_iter().filter(|line| line["check"] == check).collect())
}

fn one(told: &Ended, check: &str) -> anyhow::Result<Value> {
    let mut found = of(told, check)?;
    anyhow::ensure!(found.len() == 1, "{check}: {found:?} in {told:?}");
    Ok(found.remove(0))
}

/// A configuration file in a directory.
fn settings(directory: &tempfile::TempDir, text: &str) -> anyhow::Result<String> {
    let file = directory.path().join("vlinders.toml");
    std::fs::write(&file, text)?;
    Ok(file.display().to_string())
}

#[tokio::test]
async fn a_system_that_runs_is_well_and_its_clock_and_server_are_told() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let up = Up::start(data.path()).await?;
    let http = up.ready["http"].as_str().context("it serves")?.trim_start_matches("http://").to_owned();
    let config = tempfile::tempdir()?;
    let file = settings(&config, &format!("[gateway]\nhttp = \"{http}\"\ngrpc = \"off\"\n"))?;
    let data = data.path().display().to_string();
    let told = run(&["doctor", "--json", "--data", &data, "--config", &file]).await?;
    assert_eq!(told.code, Some(0), "{told:?}");
    let jetstream = one(&told, "jetstream")?;
    assert_eq!(jetstream["ok"], true, "{jetstream}");
    assert!(jetstream["found"].as_str().is_some_and(|found| found.contains("version 2.")), "{jetstream}");
    let clock = one(&told, "clock")?;
    assert_eq!(clock["ok"], true, "{clock}");
    assert!(clock["found"].as_str().is_some_and(|found| found.contains("ours, give or take")), "{clock}");
    let disk = one(&told, "disk")?;
    assert!(disk["found"].as_str().is_some_and(|found| found.contains("facts a second")), "{disk}");
    assert_eq!(disk["needed"], false, "{disk}");
    // Its own port is in good hands.
    let ports = one(&told, "ports")?;
    assert_eq!(ports["ok"], true, "{ports}");
    assert!(ports["found"].as_str().is_some_and(|found| found.contains("is served already, by vlinders")), "{ports}");
    assert_eq!(one(&told, "gateway")?["ok"], true);
    assert_eq!(up.stop().await?, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_port_that_somebody_has_and_a_directory_that_cannot_be_written_fail() -> anyhow::Result<()> {
    let (directory, taken) = (tempfile::tempdir()?, TcpListener::bind("127.0.0.1:0")?);
    let address = taken.local_addr()?;
    let text = format!("[gateway]\nhttp = \"{address}\"\ngrpc = \"{address}\"\n[telemetry]\nmetrics = \"{address}\"\n");
    let file = settings(&directory, &text)?;
    // Below a file there is no directory, whoever asks.
    let data = format!("{file}/data");
    let told = run(&["doctor", "--json", "--data", &data, "--config", &file]).await?;
    assert_eq!(told.code, Some(1), "{told:?}");
    let ports = of(&told, "ports")?;
    assert_eq!(ports.len(), 3, "{ports:?}");
    for port in &ports {
        assert_eq!(
            (&port["ok"], &port["state"], &port["needed"]),
            (&json!(false), &json!("TAKEN"), &json!(true)),
            "{port}"
        );
        let holder = format!("(process {})", std::process::id());
        assert!(port["found"].as_str().is_some_and(|found| found.contains(&holder)), "{port}");
        assert!(port["next_step"].as_str().is_some_and(|next| next.contains("port 0")), "{port}");
    }
    let disk = one(&told, "disk")?;
    assert_eq!((&disk["ok"], &disk["needed"]), (&json!(false), &json!(true)), "{disk}");
    assert!(disk["next_step"].as_str().is_some_and(|next| next.contains("--data")), "{disk}");
    // For people it says the same, and what to do below each.
    let told = run(&["doctor", "--data", &data, "--config", &file]).await?;
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.stdout.contains("TAKEN   ports") && told.stdout.contains("-> stop it, or choose"), "{told:?}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_named_and_not_there_or_has_no_jetstream_fails() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().display().to_string();
    let port = free_port()?;
    let url = format!("nats://127.0.0.1:{port}");
    let away = run(&["doctor", "--json", "--data", &data, "--nats", &url]).await?;
    let jetstream = one(&away, "jetstream")?;
    assert_eq!((away.code, &jetstream["needed"]), (Some(1), &json!(true)), "{away:?}");
    assert!(jetstream["found"].as_str().is_some_and(|found| found.contains(&url)), "{jetstream}");

    let mut server = bare_nats(port, &[]).await?;
    let without = run(&["doctor", "--json", "--data", &data, "--nats", &url]).await?;
    let jetstream = one(&without, "jetstream")?;
    assert_eq!((without.code, &jetstream["ok"]), (Some(1), &json!(false)), "{without:?}");
    assert!(
        jetstream["found"].as_str().is_some_and(|found| found.contains("has no JetStream: start it")),
        "{jetstream}"
    );
    server.kill().await?;

    // One that nobody named may rest.
    let resting = run(&["doctor", "--json", "--data", &data]).await?;
    let jetstream = one(&resting, "jetstream")?;
    assert_eq!((&jetstream["state"], &jetstream["needed"]), (&json!("at rest"), &json!(false)), "{jetstream}");
    Ok(())
}

/// A library that makes the clock of the program wrong into which it is loaded.
async fn wrong_clock(directory: &Path) -> anyhow::Result<PathBuf> {
    let (source, library) = (directory.join("wrong_clock.c"), directory.join("wrong_clock.so"));
    std::fs::write(&source, include_str!("wrong_clock.c"))?;
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]).arg(&library).arg(&source).output();
    let compiled = compiled.await.context("the C compiler, which cargo links with, is there")?;
    anyhow::ensure!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    Ok(library)
}

#[tokio::test]
async fn a_machine_whose_clock_is_wrong_hears_by_how_much_from_the_server() -> anyhow::Result<()> {
    let without = ["gateway", "inference-worker", "tool-worker", "analysis-worker"];
    let (system, directory) = (System::start_without(&without).await?, tempfile::tempdir()?);
    let library = wrong_clock(directory.path()).await?.display().to_string();
    let data = directory.path().join("data").display().to_string();
    let url = system.nats_url();
    let clock = async |ahead_s: i64| -> anyhow::Result<Value> {
        let mut environment = system.deployed.as_ref().map(|d| d.environment("orchestrator")).unwrap_or_default();
        environment.extend([("LD_PRELOAD", library.clone()), ("CLOCK_AHEAD_S", ahead_s.to_string())]);
        one(&run_with(&["doctor", "--json", "--data", &data, "--nats", &url], &environment).await?, "clock")
    };
    let right = clock(0).await?;
    assert_eq!(right["ok"], true, "{right}");
    for (ahead_s, side) in [(30, "behind ours"), (-30, "ahead of ours")] {
        let wrong = clock(ahead_s).await?;
        assert_eq!((&wrong["ok"], &wrong["state"], &wrong["needed"]), (&json!(false), &json!("WRONG"), &json!(true)));
        let found = wrong["found"].as_str().context("a finding")?;
        assert!((found.contains("30.0s ") || found.contains("29.9s ")) && found.contains(side), "{wrong}");
        assert!(wrong["next_step"].as_str().is_some_and(|next| next.contains("NTP")), "{wrong}");
    }
    Ok(())
}
