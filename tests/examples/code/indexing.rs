//! How long indexing takes, from the request to its answer.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use pipeline_tests::{System, embedding_model};
use runtime::clock;
use schemas::code::{About, By, Found, SearchCode};
use schemas::rpc::Reply;
use schemas::subject;
use serde_json::{Value, json};

use crate::{median, ms};

/// Longest file that is taken: all are smaller than what is indexed.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(1_500);
/// Searches that are timed.
const SEARCHES: [&str; 6] = [
    "parse a header line",
    "retry with exponential backoff",
    "open a file and read it to the end",
    "hash map with fast lookup",
    "encode a message to bytes",
    "spawn a task and wait for it",
];

/// Without a model: what parsing, cutting and writing cost.
pub(crate) async fn words(sources: &Path, files: usize) -> anyhow::Result<Value> {
    let system = System::start_without(&["inference-worker"]).await?;
    let tree = system.workspace();
    let bytes = fill(sources, &tree, files)?;
    let (cold, report) = index(&system, &tree, json!({})).await?;
    let mut unchanged = Vec::new();
    for _ in 0..5 {
        let (time, report) = index(&system, &tree, json!({})).await?;
        ensure!(report["report"]["done"]["files"] == 0, "something changed: {report}");
        unchanged.push(ms(time));
    }
    let (mut searched, mut by_rg) = (Vec::new(), Vec::new());
    for query in SEARCHES.iter().cycle().take(30) {
        searched.push(ms(search(&system, &tree, query, By::Words).await?.0));
        by_rg.push(ms(rg(&tree, query)?));
    }
    let done = &report["report"]["done"];
    Ok(json!({
        "files": done["files"], "bytes": bytes, "pieces": done["pieces"], "symbols": done["symbols"],
        "cold_ms": ms(cold), "unchanged_ms": median(&mut unchanged), "search_ms": median(&mut searched),
        "rg_ms": median(&mut by_rg),
    }))
}

/// The lines in which `rg` finds any of a query's words, as whoever has no index looks for them.
fn rg(tree: &Path, query: &str) -> anyhow::Result<Duration> {
    let mut command = Command::new("rg");
    command.args(query.split(' ').filter(|word| word.len() > 3).flat_map(|word| ["-e", word]));
    let since = clock::instant();
    let found = command.args(["--ignore-case", "--word-regexp", "--line-number"]).arg(tree).output();
    let found = found.context("ripgrep is missing: deploy/install installs it")?;
    ensure!(found.status.success() && !found.stdout.is_empty(), "rg finds nothing of {query:?}");
    Ok(clock::instant() - since)
}

/// With vectors: what embedding costs, and how soon a change is found.
pub(crate) async fn vectors(sources: &Path, files: usize, rounds: usize) -> anyhow::Result<Value> {
    let system = with_model().await?;
    let tree = system.workspace();
    let bytes = fill(sources, &tree, files)?;
    let (cold, report) = index(&system, &tree, json!({})).await?;
    let done = report["report"]["done"].clone();
    ensure!(done["without_vectors"].is_null(), "without vectors: {report}");
    let mut edits = Vec::new();
    for round in 0..rounds {
        // A word that stood nowhere, in a file of the tree.
        let path = format!("edited_{}.rs", round % 3);
        let text: String =
            (0..40).map(|i| format!("/// Part {i} of round {round}.\nfn part_{i}_{round}() {{}}\n\n")).collect();
        std::fs::write(tree.join(&path), &text)?;
        index(&system, &tree, json!({"paths": [path]})).await?;
        let word = format!("zyxwv{round}");
        std::fs::write(tree.join(&path), format!("{text}/// Tells about {word}.\nfn newest_{round}() {{}}\n"))?;
        let since = clock::instant();
        index(&system, &tree, json!({"paths": [path]})).await?;
        let (_, found) = search(&system, &tree, &word, By::Both).await?;
        edits.push(ms(clock::instant() - since));
        ensure!(found.pieces.first().is_some_and(|piece| piece.code.contains(&word)), "{word} is not found: {found:?}");
    }
    let mut searched = Vec::new();
    for query in SEARCHES.iter().cycle().take(30) {
        searched.push(ms(search(&system, &tree, query, By::Both).await?.0));
    }
    // Times of parts are sums over the worker's slots.
    let share = done["embedding_ms"].as_f64().context("a number")? / done["total_ms"].as_f64().context("a number")?;
    Ok(json!({
        "files": done["files"], "bytes": bytes, "pieces": done["pieces"], "embedded": done["embedded"], "cold_ms": ms(cold),
        "embedding_share": share, "edit_ms": median(&mut edits), "edit_slowest_ms": edits.last(),
        "search_ms": median(&mut searched),
    }))
}

/// A whole system with the embedding model.
pub(crate) async fn with_model() -> anyhow::Result<System> {
    let model = embedding_model().context("the embedding model is missing: deploy/install installs it")?;
    let mut system = System::start_without(&["inference-worker"]).await?;
    let arguments = ["--embedding-models", &model.display().to_string()];
    system.start_role_with("inference-worker", &arguments, &[]).await?;
    Ok(system)
}

pub(crate) async fn index(system: &System, tree: &Path, more: Value) -> anyhow::Result<(Duration, Value)> {
    let mut body = json!({"workspace": tree});
    body.as_object_mut().context("an object")?.extend(more.as_object().cloned().unwrap_or_default());
    let since = clock::instant();
    let answer = tokio::time::timeout(TIMEOUT, system.post("/internal/index", &body).send()).await??;
    let took = clock::instant() - since;
    let status = answer.status();
    let answer: Value = answer.json().await?;
    ensure!(status.is_success(), "{status}: {answer}");
    Ok((took, answer))
}

pub(crate) async fn search(system: &System, tree: &Path, query: &str, by: By) -> anyhow::Result<(Duration, Found)> {
    let workspace = tree.canonicalize()?.display().to_string();
    let (about, languages, paths, kinds) = (About::Query(query.to_owned()), vec![], vec![], vec![]);
    let question = SearchCode { workspace, about, languages, paths, kinds, limit: 20, by };
    let bus = system.bus().await?;
    let since = clock::instant();
    match bus.ask::<_, Reply<Found>>(subject::RPC_SEARCH, &question, TIMEOUT).await? {
        Reply::Ok(found) => Ok((clock::instant() - since, found)),
        Reply::Err(refusal) => anyhow::bail!("{}: {}", refusal.code, refusal.detail),
    }
}

/// Copies so many sources, spread over the crates; returns their bytes.
fn fill(sources: &Path, tree: &Path, files: usize) -> anyhow::Result<u64> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut open = vec![sources.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.retain(|path| path.metadata().is_ok_and(|file| file.len() > 0 && file.len() <= FILE_BYTES_MAX));
    found.sort();
    ensure!(found.len() >= files, "{} holds {} files, not {files}", sources.display(), found.len());
    let step = found.len() / files;
    let mut bytes = 0;
    for path in found.iter().step_by(step.max(1)).take(files) {
        let to = tree.join(path.strip_prefix(sources)?);
        std::fs::create_dir_all(to.parent().context("it lies in a directory")?)?;
        bytes += std::fs::copy(path, to)?;
    }
    Ok(bytes)
}
