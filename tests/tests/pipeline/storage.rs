//! A disk that is full: requests are refused with a next step, nothing is half accepted, and with room the service
//! goes on by itself.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use pipeline_tests::System;
use schemas::permission::User;
use schemas::{ExecutionId, subject};
use serde_json::{Value, json};
use tokio::process::Command;

const MIB: usize = 1 << 20;

/// Dead letters may take 64 MiB, which the server sets aside. An operator of a small machine allows less.
async fn allow_fewer_dead_letters(system: &System) -> anyhow::Result<()> {
    let context = async_nats::jetstream::new(system.nats().await?);
    let definition = schemas::stream::streams().into_iter().find(|s| s.name == schemas::stream::DEAD_LETTERS);
    let definition = definition.context("defined")?;
    let config = async_nats::jetstream::stream::Config {
        name: definition.name,
        subjects: definition.subjects,
        max_age: definition.max_age.unwrap_or_default(),
        max_bytes: MIB as i64,
        allow_direct: true,
        ..Default::default()
    };
    context.create_stream(config).await?;
    Ok(())
}

/// Writes into the log until the server takes no more, in ever smaller pieces.
async fn fill(system: &System) -> anyhow::Result<()> {
    let client = system.nats().await?;
    let context = async_nats::jetstream::new(client);
    let exec = runtime::clock::execution_id();
    for bytes in [MIB, 64 << 10, 1 << 10, 64] {
        // Noise, because the log is compressed.
        let noise = std::iter::repeat_with(runtime::clock::random_hex).flat_map(String::into_bytes);
        let noise: Vec<u8> = noise.take(bytes).collect();
        for _ in 0..4_096 {
            let stored = context.publish(subject::fact(exec), noise.clone().into()).await?.await;
            if stored.is_err() {
                break;
            }
        }
    }
    Ok(())
}

/// Wants a request to be refused because the log is full, and not to be in it.
async fn refused(system: &System, hello: &Value) -> anyhow::Result<()> {
    let (status, problem) = system.ask("/internal/chat", hello).await?;
    assert_eq!((status, &problem["code"]), (507, &json!("log_full")), "{problem}");
    assert!(problem["next_step"].as_str().is_some_and(|s| s.contains("free disk space")), "{problem}");
    let exec: ExecutionId = problem["execution_id"].as_str().context("which it was")?.parse()?;
    assert!(system.bus().await?.read_execution(exec, 0).await?.is_empty(), "it is half accepted");
    Ok(())
}

fn hello() -> Value {
    json!({"messages": [{"role": "user", "content": "hello"}]})
}

/// With room again: what was under way completes, and so does what comes.
async fn goes_on(system: &System, open: ExecutionId) -> anyhow::Result<()> {
    assert_eq!(system.ended(open).await?["status"], "completed");
    system.prove(open).await?;
    let (status, answer) = system.ask("/internal/chat", &hello()).await?;
    assert_eq!(status, 200, "{answer}");
    Ok(())
}

#[tokio::test]
async fn a_full_log_refuses_with_a_next_step_and_goes_on_by_itself_with_more_room() -> anyhow::Result<()> {
    let mut system = System::new()?;
    system.store_bytes_max = Some(4 * MIB as u64);
    system.start_nats().await?;
    let ended = system.on_nats(User::Orchestrator, &["orchestrator", "--json"]).await?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("no room for stream VL_DLQ of 64 MiB"), "{ended:?}");
    assert!(ended.stderr.contains("raise max_file_store"), "{ended:?}");

    allow_fewer_dead_letters(&system).await?;
    for role in ["orchestrator", "tool-worker", "gateway", "inference-worker"] {
        system.start_role(role).await?;
    }
    let (status, answer) = system.ask("/internal/chat", &hello()).await?;
    assert_eq!(status, 200, "there is room at first: {answer}");

    // One execution is under way when the log fills up, and its answer finds no room.
    system.kill_role("inference-worker").await?;
    let exec = system.submit("hello").await?;
    system.log_until(exec, |messages| messages.len() == 2).await?;
    fill(&system).await?;
    system.start_role("inference-worker").await?;
    refused(&system, &hello()).await?;

    system.kill_nats().await?;
    system.store_bytes_max = Some(64 * MIB as u64);
    system.start_nats().await?;
    goes_on(&system, exec).await
}

/// A file system of a few megabytes, taken away again at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None where this process may not mount.
    async fn mount(at: &Path, mib: usize) -> anyhow::Result<Option<Self>> {
        std::fs::create_dir_all(at)?;
        let size = format!("size={mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output().await;
        Ok(mounted.is_ok_and(|o| o.status.success()).then(|| Self(at.to_owned())))
    }

    /// What some other program wrote there leaves no byte.
    fn fill(&self) -> anyhow::Result<()> {
        let mut file = std::fs::File::create(self.0.join("other"))?;
        while file.write(&[7; 4_096]).is_ok() {}
        Ok(())
    }

    async fn grow(&self, mib: usize) -> anyhow::Result<()> {
        let size = format!("remount,size={mib}m");
        let status = Command::new("mount").args(["-o", &size]).arg(&self.0).status().await?;
        anyhow::ensure!(status.success(), "remount: {status}");
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the server of a failed test may still have files open.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_with_a_next_step_and_goes_on_after_a_restart_of_nats_with_more_room() -> anyhow::Result<()>
{
    let disk = tempfile::tempdir()?;
    let Some(disk) = SmallDisk::mount(&disk.path().join("small"), 24).await? else {
        eprintln!("SKIPPED: this process may not mount a file system, so no disk was full");
        return Ok(());
    };
    let mut system = System::new()?;
    system.store = disk.0.join("nats");
    // More than the disk has: the server finds out when the disk says so.
    system.store_bytes_max = Some(4_096 * MIB as u64);
    system.start_nats().await?;
    for role in ["orchestrator", "tool-worker", "gateway", "inference-worker"] {
        system.start_role(role).await?;
    }
    system.kill_role("inference-worker").await?;
    let exec = system.submit("hello").await?;
    system.log_until(exec, |messages| messages.len() == 2).await?;
    disk.fill()?;
    system.start_role("inference-worker").await?;
    // The server itself does not answer: all that can be said is where to look.
    // A request of several pages: the last one of a file may still hold a small one.
    let noise: String = std::iter::repeat_with(runtime::clock::random_hex).take(512).collect();
    let large = json!({"messages": [{"role": "user", "content": noise}]});
    let (status, problem) = system.ask("/internal/chat", &large).await?;
    assert_eq!((status, &problem["code"]), (503, &json!("log_unavailable")), "{problem}");
    assert!(problem["next_step"].as_str().is_some_and(|s| s.contains("free disk space and restart it")), "{problem}");

    disk.grow(96).await?;
    system.kill_nats().await?;
    system.start_nats().await?;
    goes_on(&system, exec).await
}
