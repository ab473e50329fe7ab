//! How good searches are: questions whose right files are known, about this repository and two crates that it is built from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use pipeline_tests::{System, repository};
use schemas::code::By;
use serde_json::{Value, json};

use crate::indexing::{index, search, with_model};

/// Files that are looked at.
const FIRST: usize = 5;

/// Asks every question in each way. A question counts when one of its right files is among the first five.
pub(crate) async fn asked(questions: &Path, sources: &Path) -> anyhow::Result<Value> {
    let questions: Vec<Value> = serde_json::from_slice(&std::fs::read(questions)?)?;
    let system = with_model().await?;
    let places: BTreeSet<&str> = questions.iter().filter_map(|question| question["in"].as_str()).collect();
    let mut trees = BTreeMap::new();
    for place in places {
        let tree = system.workspace().join(place);
        copy(place, sources, &tree)?;
        index(&system, &tree, json!({})).await?;
        trees.insert(place, tree);
    }
    let (mut words, mut meaning, mut both) = (0, 0, 0);
    let mut missed = Vec::new();
    for question in &questions {
        let (place, text) =
            (question["in"].as_str().context("a place")?, question["question"].as_str().context("a text")?);
        let right: Vec<&str> = question["files"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let tree = trees.get(place).context("an indexed place")?;
        for file in &right {
            ensure!(tree.join(file).is_file(), "{place} has no {file}");
        }
        let by = async |by: By| finds(&system, tree, text, &right, by).await;
        words += usize::from(by(By::Words).await?);
        meaning += usize::from(by(By::Meaning).await?);
        match by(By::Both).await? {
            true => both += 1,
            false => missed.push(format!("{place}: {text}")),
        }
    }
    let of = |count: usize| count as f64 / questions.len() as f64;
    Ok(json!({
        "questions": questions.len(), "words": of(words), "meaning": of(meaning), "both": of(both), "missed": missed,
    }))
}

async fn finds(system: &System, tree: &Path, text: &str, right: &[&str], by: By) -> anyhow::Result<bool> {
    let (_, found) = search(system, tree, text, by).await?;
    let mut files: Vec<&str> = Vec::new();
    for piece in &found.pieces {
        if !files.contains(&piece.path.as_str()) {
            files.push(&piece.path);
        }
    }
    Ok(files.iter().take(FIRST).any(|file| right.contains(file)))
}

/// This repository's files as git knows them, or the sources of a crate.
fn copy(place: &str, sources: &Path, tree: &Path) -> anyhow::Result<()> {
    let (from, files): (PathBuf, Vec<PathBuf>) = if place == "repository" {
        // Without tests and measurements, whose names say what the code does that they are about.
        let listed = Command::new("git").args(["ls-files", "*/src/*.rs"]).current_dir(repository()).output()?;
        (
            repository(),
            String::from_utf8(listed.stdout)?
                .lines()
                .filter(|path| !path.contains("tests"))
                .map(PathBuf::from)
                .collect(),
        )
    } else {
        let named = |entry: &std::fs::DirEntry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.strip_prefix(place)
                .is_some_and(|rest| rest.strip_prefix('-').is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit())))
        };
        let entry = std::fs::read_dir(sources)?.filter_map(Result::ok).find(named);
        let from = entry.with_context(|| format!("no sources of {place} in {}", sources.display()))?.path().join("src");
        let (mut files, mut open) = (Vec::new(), vec![from.clone()]);
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(&directory)? {
                let path = entry?.path();
                if path.is_dir() {
                    open.push(path);
                } else if path.extension().is_some_and(|e| e == "rs") {
                    files.push(path.strip_prefix(&from)?.to_owned());
                }
            }
        }
        (from, files)
    };
    for file in files {
        let to = tree.join(&file);
        std::fs::create_dir_all(to.parent().context("it lies in a directory")?)?;
        std::fs::copy(from.join(&file), to)?;
    }
    Ok(())
}
