//! `vlinders index`: indexes a workspace through the gateway, shows how far it is, and goes on where that is wanted.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use http::Method;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use indicatif::{ProgressBar, ProgressStyle};
use notify::{EventKind, RecursiveMode, Watcher};
use schemas::api::IndexAnswer;
use schemas::code::{FilesDone, IndexReport, Plan};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::cli::{Index, IndexWhat, ListIndexes};
use crate::client::report;
use crate::gateway_client::GatewayClient;
use crate::settings::Usage;
use crate::sse::Events;

/// Changes that come this soon after one another are indexed together: an editor writes a file in several steps.
const QUIET: Duration = Duration::from_millis(40);
/// Of more changed files, the workspace is looked through as a whole.
const PATHS_MAX: usize = 1_000;
/// Files left out that are named to a person.
const SKIPPED_SHOWN: usize = 10;

/// Indexes or lists; exit code 1 when something was not indexed that should have been.
pub(crate) async fn run(options: Index) -> anyhow::Result<ExitCode> {
    if let Some(IndexWhat::Ls(options)) = options.what {
        return list(options).await;
    }
    let directory = options.directory.as_deref().context("name a directory")?;
    // Where the server runs on another machine, it knows the directory and this one need not.
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let workspace = directory.to_str().ok_or_else(|| Usage(format!("{} is not UTF-8", directory.display())))?;
    let server = Server { gateway: options.target.gateway()?, workspace: workspace.to_owned() };
    // Before anything is read: what changes meanwhile is read again.
    let changes = if options.watch { Some(watch(&directory)?) } else { None };
    let Some(answer) = server.index(&options.path, options.fresh).await? else { return Ok(ExitCode::from(1)) };
    let code = told(&answer, options.json);
    match changes {
        None => Ok(code),
        Some((_watcher, changes)) => server.follow(&directory, changes, options.json).await,
    }
}

struct Server {
    gateway: GatewayClient,
    workspace: String,
}

impl Server {
    /// Indexes, and shows how far it is. None when it did not work, which is reported.
    async fn index(&self, paths: &[String], fresh: bool) -> anyhow::Result<Option<Value>> {
        let body = json!({"workspace": self.workspace, "paths": paths, "fresh": fresh, "stream": true});
        let response = self.gateway.post("/internal/index", &body).await?;
        if !response.status().is_success() {
            let status = response.status();
            report(&response.json().await.unwrap_or_default(), &status.to_string());
            return Ok(None);
        }
        let (mut events, mut execution, bar) = (Events::new(response), String::new(), bar());
        while let Some((name, data)) = events.next().await? {
            match name.as_str() {
                "started" => execution = data["execution_id"].as_str().unwrap_or_default().to_owned(),
                "tool_result" => advance(&bar, &data),
                "done" => {
                    bar.finish_and_clear();
                    return Ok(Some(data));
                }
                "error" => {
                    bar.finish_and_clear();
                    report(&data, "the workspace was not indexed");
                    return Ok(None);
                }
                _ => {}
            }
        }
        bail!("the stream ended before the end; indexing goes on: `vlinders executions {execution}`")
    }

    /// Indexes what changes, until somebody stops it.
    async fn follow(
        &self,
        directory: &Path,
        mut changes: UnboundedReceiver<PathBuf>,
        as_json: bool,
    ) -> anyhow::Result<ExitCode> {
        let ignored = ignored(directory);
        if !as_json {
            eprintln!("watching {}; Ctrl-C ends it", directory.display());
        }
        loop {
            let first = tokio::select! {
                first = changes.recv() => first,
                _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
            };
            let Some(first) = first else { bail!("{} is no longer watched", directory.display()) };
            let mut changed = BTreeSet::from([first]);
            while let Ok(Some(more)) = tokio::time::timeout(QUIET, changes.recv()).await {
                changed.insert(more);
            }
            let mut paths: Vec<String> =
                changed.iter().filter_map(|path| worth_indexing(directory, path, &ignored)).collect();
            if paths.is_empty() {
                continue;
            }
            if paths.len() > PATHS_MAX {
                paths.clear();
            }
            if let Some(answer) = self.index(&paths, false).await? {
                told(&answer, as_json);
            }
        }
    }
}

/// A directory's changes, for as long as the watcher lives.
fn watch(directory: &Path) -> anyhow::Result<(notify::RecommendedWatcher, UnboundedReceiver<PathBuf>)> {
    let (sender, receiver) = unbounded_channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if let Ok(event) = event
            && !matches!(event.kind, EventKind::Access(_))
        {
            for path in event.paths {
                let _ = sender.send(path);
            }
        }
    })
    .context("watch files")?;
    let watched = watcher.watch(directory, RecursiveMode::Recursive);
    watched.with_context(|| {
        format!("watch {} (the system's limit is fs.inotify.max_user_watches)", directory.display())
    })?;
    Ok((watcher, receiver))
}

/// What the topmost `.gitignore` leaves out. The worker knows all of them; this only keeps builds from asking it all the
/// time.
fn ignored(directory: &Path) -> Gitignore {
    let mut builder = GitignoreBuilder::new(directory);
    builder.add(directory.join(".gitignore"));
    builder.build().unwrap_or_else(|_| Gitignore::empty())
}

/// The path below the directory, unless it is hidden or ignored.
fn worth_indexing(directory: &Path, path: &Path, ignored: &Gitignore) -> Option<String> {
    let relative = path.strip_prefix(directory).ok()?;
    let hidden = relative.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"."));
    if hidden || ignored.matched_path_or_any_parents(relative, path.is_dir()).is_ignore() {
        return None;
    }
    relative.to_str().map(str::to_owned)
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} files, {per_sec:.0}, {eta} to go {msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn advance(bar: &ProgressBar, result: &Value) {
    let text = result["result"].as_str().unwrap_or_default();
    if result["call_id"] == "plan" {
        if let Ok(plan) = serde_json::from_str::<Plan>(text) {
            bar.set_length(plan.files - plan.unchanged);
        }
    } else if let Ok(done) = serde_json::from_str::<FilesDone>(text) {
        bar.inc(done.files + done.skipped.len() as u64 + done.skipped_more);
        if let Some(why) = done.without_vectors {
            bar.set_message(format!("(without vectors: {why})"));
        }
    }
}

/// Says what came of it.
fn told(answer: &Value, as_json: bool) -> ExitCode {
    if as_json {
        println!("{answer}");
    }
    let Ok(IndexAnswer { report, duration_ms, .. }) = serde_json::from_value::<IndexAnswer>(answer.clone()) else {
        eprintln!("vlinders: the answer cannot be read");
        return ExitCode::from(1);
    };
    let IndexReport { files, unchanged, removed, done, failed, .. } = &report;
    if !as_json {
        println!(
            "{files} files: {} indexed, {unchanged} unchanged, {removed} removed, in {:.1} s",
            done.files,
            duration_ms / 1_000.0
        );
        if done.pieces > 0 {
            println!(
                "{} pieces, {} embedded, {} known; {} definitions",
                done.pieces, done.embedded, done.reused, done.symbols
            );
        }
        let skipped = done.skipped.len() as u64 + done.skipped_more;
        for left_out in done.skipped.iter().take(SKIPPED_SHOWN) {
            println!("left out: {}: {}", left_out.path, left_out.reason);
        }
        if skipped > SKIPPED_SHOWN as u64 {
            println!("left out: {} more", skipped - SKIPPED_SHOWN as u64);
        }
    }
    if let Some(why) = &done.without_vectors {
        eprintln!("vlinders: found by words only: {why}; index again once that is mended");
    }
    for why in failed {
        eprintln!("vlinders: a part was not indexed: {why}; index again to try it again");
    }
    ExitCode::from(u8::from(!failed.is_empty()))
}

async fn list(options: ListIndexes) -> anyhow::Result<ExitCode> {
    let gateway = options.target.gateway()?;
    let Some(answer) = gateway.answered(Method::GET, "/internal/index", None).await? else {
        return Ok(ExitCode::from(1));
    };
    if options.json {
        println!("{answer}");
        return Ok(ExitCode::SUCCESS);
    }
    let indexes = answer["indexes"].as_array().cloned().unwrap_or_default();
    if indexes.is_empty() {
        eprintln!("nothing is indexed; index a workspace: `vlinders index DIR`");
    }
    for index in indexes {
        let text = |field: &str| index[field].as_str().unwrap_or("-").to_owned();
        println!(
            "{}  {} files, vectors of {}, {}",
            text("workspace"),
            index["files"],
            text("model"),
            text("indexed_at")
        );
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_and_ignored_files_are_not_worth_a_question() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(".gitignore"), "target/\n*.log\n").unwrap();
        let ignored = ignored(directory.path());
        let worth = |path: &str| worth_indexing(directory.path(), &directory.path().join(path), &ignored);
        assert_eq!(worth("src/a.rs").as_deref(), Some("src/a.rs"));
        for path in ["target/debug/x.d", "a.log", ".git/index", "src/.a.swp"] {
            assert_eq!(worth(path), None, "{path}");
        }
        assert_eq!(worth_indexing(directory.path(), Path::new("/etc/passwd"), &ignored), None);
    }
}
