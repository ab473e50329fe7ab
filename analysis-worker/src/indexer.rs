//! The three jobs of an index execution: plan, read, finish. Each may be carried out again at any time, by any worker:
//! what it writes has names that follow from what it read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rayon::prelude::*;
use runtime::bus::{Bus, ObjectError};
use runtime::clock;
use schemas::AnalysisJob;
use schemas::code::{
    self, FilesDone, FilesRequest, FinishRequest, IndexReport, IndexRequest, Indexed, PARTS_MAX, Plan, PlannedFiles,
    Skipped, skip,
};
use schemas::fact::FailureClass;
use schemas::wire::{decode, encode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::catalogue::{Catalogue, Code};
use crate::config::Config;
use crate::embedder::{self, Embedder};
use crate::reading::{self, Bounds, Read, Reading};
use crate::vectors::{self, Collection, Filter, LIMIT_MAX, Point, VectorStore};
use crate::walk::walk;
use crate::workspace::{Roots, Unread, Workspace};

/// The collection of code.
pub(crate) const COLLECTION: &str = "code_embeddings";
/// Bytes of the files of one part: some seconds of embedding.
const PART_BYTES: u64 = 128 << 10;
/// Files of one part; every file costs a write.
const PART_FILES: usize = 64;
/// Entries written at once.
const WRITES: usize = 16;
/// Values of one condition.
const VALUES: usize = 500;
/// Points of one upsert.
const POINTS: usize = 256;
/// The media type of a plan's list.
const LIST: &str = "application/msgpack";

/// Carries out jobs.
pub(crate) struct Indexer {
    pub(crate) bus: Bus,
    pub(crate) roots: Roots,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) store: Arc<dyn VectorStore>,
    pub(crate) embedder: Arc<Embedder>,
    pub(crate) config: Config,
}

/// Why a job gave no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) class: FailureClass,
    pub(crate) detail: String,
}

impl Failure {
    fn bad_request(detail: impl Display) -> Self {
        Self { class: FailureClass::BadRequest, detail: format!("{detail}") }
    }

    fn internal(detail: impl Display) -> Self {
        Self { class: FailureClass::Internal, detail: format!("{detail}") }
    }
}

/// What the pieces of a part got.
#[derive(Debug, Default)]
struct Vectors {
    model: Option<String>,
    embedded: u64,
    reused: u64,
    waited: Duration,
}

/// Why the pieces of a part got no vectors.
#[derive(Debug, thiserror::Error)]
enum NoVectors {
    #[error(transparent)]
    Embedder(#[from] embedder::Error),
    #[error(transparent)]
    Store(#[from] vectors::Error),
}

impl Indexer {
    /// Carries out a job and gives its result, a JSON text.
    pub(crate) async fn carry_out(&self, job: &AnalysisJob) -> Result<String, Failure> {
        let result = match job.kind.as_str() {
            code::PLAN => json!(self.plan(arguments(job)?).await?),
            code::FILES => json!(self.files(arguments(job)?).await?),
            code::FINISH => json!(self.finish(arguments(job)?, job).await?),
            other => return Err(Failure { class: FailureClass::Unknown, detail: format!("there is no job {other}") }),
        };
        Ok(result.to_string())
    }

    /// Compares the workspace with what is indexed.
    async fn plan(&self, request: IndexRequest) -> Result<Plan, Failure> {
        let below = wanted(&request.paths)?;
        let workspace = Arc::new(self.roots.find(&request.workspace).map_err(Failure::bad_request)?);
        if request.fresh {
            self.forget_other_dimensions().await;
        }
        let code = self.catalogue.begin(&workspace.path).await.map_err(Failure::internal)?;
        // Where no model is there, vectors are no reason to read a file again.
        let model = self.embedder.model().await.ok();
        let (files_max, bytes_max) = (self.config.files_max, self.config.file_bytes_max);
        let (looked_at, fresh) = (code.clone(), request.fresh);
        let compared = tokio::task::spawn_blocking(move || {
            compare(&workspace, &looked_at, &below, model.as_deref(), fresh, files_max, bytes_max)
        });
        let Compared { read, remove, unchanged, skipped, cut } = compared.await.map_err(Failure::internal)?;
        let mut plan = Plan {
            workspace: code.workspace.clone(),
            files: (read.len() as u64) + unchanged,
            unchanged,
            removed: remove.len() as u64,
            parts: parts(&read),
            ..Plan::default()
        };
        if cut {
            let reason = format!("the workspace has more than {files_max} files, and only these are indexed");
            skip(&mut plan.skipped, &mut plan.skipped_more, Skipped { path: ".".to_owned(), reason });
        }
        for skipped in skipped {
            skip(&mut plan.skipped, &mut plan.skipped_more, skipped);
        }
        if !read.is_empty() || !remove.is_empty() {
            let read = read.into_iter().map(|(path, _)| path).collect();
            let list = encode(&PlannedFiles { read, remove, fresh: request.fresh });
            plan.list = Some(self.bus.put_object(&list, LIST).await.map_err(Failure::internal)?);
        }
        Ok(plan)
    }

    /// A collection that another model filled is given up when everything is made anew.
    async fn forget_other_dimensions(&self) {
        let Ok(model) = self.embedder.model().await else { return };
        let Ok(vector) = self.embedder.embed(&model, "x").await else { return };
        let collection = collection(vector.len());
        if let Err(vectors::Error::Dimensions { have, wanted, .. }) = self.store.ensure(&collection).await {
            tracing::warn!(have, wanted, "the vectors of another model are deleted");
            if let Err(error) = self.store.forget(COLLECTION).await {
                tracing::warn!(%error, "the vectors of another model were not deleted");
            }
        }
    }

    /// Reads a part of the files.
    async fn files(&self, request: FilesRequest) -> Result<FilesDone, Failure> {
        let began = clock::instant();
        let workspace = Arc::new(self.roots.find(&request.workspace).map_err(Failure::bad_request)?);
        let list = self.list(&request.list).await?;
        let range = request.from as usize..request.to as usize;
        let paths = list.read.get(range).ok_or_else(|| Failure::bad_request("the plan has no such part"))?.to_vec();
        let code = self.catalogue.begin(&workspace.path).await.map_err(Failure::internal)?;
        let bounds = Bounds {
            bytes_max: self.config.file_bytes_max,
            limits: self.config.limits(),
            parse_within: Duration::from_millis(self.config.parse_timeout_ms),
        };
        let reading = tokio::task::spawn_blocking(move || reading::read_all(&workspace, &paths, &bounds));
        let Reading { mut read, skipped, gone } = reading.await.map_err(Failure::internal)?;
        let mut done = FilesDone::default();
        for skipped in skipped {
            skip(&mut done.skipped, &mut done.skipped_more, skipped);
        }
        // What can no longer be indexed is not found as it was.
        let known: Vec<String> = gone.into_iter().filter(|path| code.read().files.contains_key(path)).collect();
        self.remove(&code, &known).await?;
        let vectors = match self.vectors(&code, &read, list.fresh).await {
            Ok(vectors) => vectors,
            Err(why) => {
                tracing::warn!(workspace = code.workspace, %why, "indexed without vectors");
                done.without_vectors = Some(why.to_string());
                Vectors::default()
            }
        };
        for file in &mut read {
            file.entry.model.clone_from(&vectors.model);
            done.files += 1;
            done.bytes += file.entry.text.len() as u64;
            done.pieces += file.entry.pieces.len() as u64;
            done.symbols += file.entry.symbols.len() as u64;
        }
        let writes = read.into_iter().map(|file| self.catalogue.put(&code, file.entry));
        let written = futures::stream::iter(writes).buffer_unordered(WRITES).try_collect::<Vec<()>>().await;
        written.map_err(Failure::internal)?;
        (done.embedded, done.reused) = (vectors.embedded, vectors.reused);
        done.embedding_ms = milliseconds(vectors.waited);
        done.total_ms = milliseconds(clock::instant().duration_since(began));
        Ok(done)
    }

    /// Gives every piece its vector: one that is known, or a new one. What the files had before is taken out.
    async fn vectors(&self, code: &Code, read: &[Read], fresh: bool) -> Result<Vectors, NoVectors> {
        let model = self.embedder.model().await?;
        let texts: BTreeMap<&str, &str> = read.iter().flat_map(Read::texts).collect();
        let mut known = if fresh { BTreeMap::new() } else { self.known(code, &model, &texts).await? };
        let missing: Vec<(&str, &str)> =
            texts.iter().filter(|(hash, _)| !known.contains_key(**hash)).map(|(hash, text)| (*hash, *text)).collect();
        let asked = clock::instant();
        let made =
            self.embedder.embed_all(&model, missing.iter().map(|(_, text)| (*text).to_owned()).collect()).await?;
        let waited = clock::instant().duration_since(asked);
        let embedded = missing.len() as u64;
        known.extend(missing.iter().map(|(hash, _)| (*hash).to_owned()).zip(made));
        if let Some(vector) = known.values().next() {
            self.store.ensure(&collection(vector.len())).await?;
        }
        let before: Vec<&str> = {
            let held = code.read();
            let indexed = |path: &&str| held.files.get(*path).is_some_and(|file| file.entry.model.is_some());
            read.iter().map(|file| file.entry.path.as_str()).filter(indexed).collect()
        };
        if !before.is_empty() {
            let filter = Filter::any("workspace", [&code.workspace]).and("file_path", before);
            self.store.delete(COLLECTION, &filter).await?;
        }
        let pieces = read.iter().flat_map(|file| (0..file.entry.pieces.len()).map(move |number| (file, number)));
        let points = pieces.filter_map(|(file, number)| {
            let vector = known.get(&file.entry.pieces[number].hash)?;
            Some(point(&code.workspace, &model, file, number, vector.clone()))
        });
        let points: Vec<Point> = points.collect();
        let reused = points.len() as u64 - embedded.min(points.len() as u64);
        for points in points.chunks(POINTS) {
            self.store.upsert(COLLECTION, points.to_vec()).await?;
        }
        Ok(Vectors { model: Some(model), embedded, reused, waited })
    }

    /// Vectors that pieces of this workspace have already, by what was embedded: of unchanged parts of changed files, and of
    /// files that were renamed.
    async fn known(
        &self,
        code: &Code,
        model: &str,
        texts: &BTreeMap<&str, &str>,
    ) -> Result<BTreeMap<String, Vec<f32>>, vectors::Error> {
        let wanted: Vec<&str> = {
            let held = code.read();
            let pieces = held.files.values().filter(|file| file.entry.model.as_deref() == Some(model));
            let hashes: BTreeSet<&str> =
                pieces.flat_map(|file| file.entry.pieces.iter().map(|piece| piece.hash.as_str())).collect();
            texts.keys().copied().filter(|hash| hashes.contains(hash)).collect()
        };
        let mut known = BTreeMap::new();
        for hashes in wanted.chunks(VALUES) {
            let filter =
                Filter::any("workspace", [&code.workspace]).and("model", [model]).and("hash", hashes.iter().copied());
            let mut from = None;
            loop {
                let (points, next) = self.store.scroll(COLLECTION, &filter, LIMIT_MAX, from, true).await?;
                for point in points {
                    if let Some(hash) = point.payload.get("hash").and_then(Value::as_str) {
                        known.insert(hash.to_owned(), point.vector);
                    }
                }
                from = next;
                if from.is_none() {
                    break;
                }
            }
        }
        Ok(known)
    }

    /// Takes out what is gone, and notes that the workspace is indexed.
    async fn finish(&self, request: FinishRequest, job: &AnalysisJob) -> Result<IndexReport, Failure> {
        let code = self.catalogue.begin(&request.workspace).await.map_err(Failure::internal)?;
        let mut report = request.report;
        if let Some(list) = &request.list {
            let removed = self.list(list).await?.remove;
            self.remove(&code, &removed).await?;
            report.removed = removed.len() as u64;
        }
        let (files, model) = {
            let held = code.read();
            let model = held.files.values().find_map(|file| file.entry.model.clone());
            (held.files.len() as u64, model)
        };
        let indexed = Indexed { workspace: request.workspace, files, model, exec: job.exec, at: clock::now() };
        self.catalogue.finish(&code, indexed).await.map_err(Failure::internal)?;
        Ok(report)
    }

    /// Takes files out: their vectors first, for what is not in the catalogue would never be taken out again.
    async fn remove(&self, code: &Code, paths: &[String]) -> Result<(), Failure> {
        for paths in paths.chunks(VALUES) {
            let filter = Filter::any("workspace", [&code.workspace]).and("file_path", paths.iter().map(String::as_str));
            match self.store.delete(COLLECTION, &filter).await {
                Ok(()) | Err(vectors::Error::UnknownCollection(_)) => {}
                // They are found no more: what is not in the catalogue is passed over.
                Err(error) => tracing::warn!(workspace = code.workspace, %error, "vectors of removed files stay"),
            }
            self.catalogue.remove(code, paths).await.map_err(Failure::internal)?;
        }
        Ok(())
    }

    async fn list(&self, name: &str) -> Result<PlannedFiles, Failure> {
        match self.bus.object(name).await {
            Ok((bytes, _)) => decode(&bytes).map_err(|error| Failure::bad_request(format!("the plan: {error}"))),
            Err(ObjectError::Missing(name)) => Err(Failure::bad_request(format!("there is no plan {name}"))),
            Err(error) => Err(Failure::internal(error)),
        }
    }
}

fn arguments<T: serde::de::DeserializeOwned>(job: &AnalysisJob) -> Result<T, Failure> {
    serde_json::from_str(&job.arguments).map_err(|error| Failure::bad_request(format!("{}: {error}", job.kind)))
}

/// The collection for vectors of this many numbers.
pub(crate) fn collection(dimensions: usize) -> Collection {
    let indexed = ["workspace", "file_path", "language", "kinds", "hash", "model"].map(str::to_owned).to_vec();
    Collection { name: COLLECTION.to_owned(), dimensions, indexed }
}

fn point(workspace: &str, model: &str, file: &Read, number: usize, vector: Vec<f32>) -> Point {
    let (entry, piece) = (&file.entry, &file.entry.pieces[number]);
    let key = format!("{}:{}-{}", entry.path, piece.start_line, piece.end_line);
    let payload = json!({
        "file_path": entry.path, "language": entry.language, "code": file.code(number), "symbols": piece.symbols,
        "start_line": piece.start_line, "end_line": piece.end_line, "workspace": workspace, "key": key,
        "kinds": piece.kinds, "hash": piece.hash, "model": model,
    });
    let Value::Object(payload) = payload else { unreachable!("an object was just written") };
    // The same lines of the same file are the same point, whoever writes it.
    let id = Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("file://{workspace}/{key}").as_bytes());
    Point { id, vector, payload }
}

/// Paths below which files are wanted, without what would lead elsewhere.
fn wanted(paths: &[String]) -> Result<Vec<String>, Failure> {
    let clean = |path: &String| {
        let clean = path.trim_start_matches("./").trim_end_matches('/');
        match clean.starts_with('/') || clean.split('/').any(|part| part == "..") {
            true => Err(Failure::bad_request(format!("{path}: name paths relative to the workspace, without `..`"))),
            false => Ok(if clean == "." { String::new() } else { clean.to_owned() }),
        }
    };
    paths.iter().map(clean).collect()
}

fn is_below(path: &str, below: &[String]) -> bool {
    let lies = |parent: &String| {
        parent.is_empty()
            || path.strip_prefix(parent.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    below.is_empty() || below.iter().any(lies)
}

#[derive(Default)]
struct Compared {
    /// Files to read and their bytes.
    read: Vec<(String, u64)>,
    remove: Vec<String>,
    unchanged: u64,
    skipped: Vec<Skipped>,
    cut: bool,
}

/// Looks at every file, and holds its content against what is indexed.
fn compare(
    workspace: &Workspace,
    code: &Code,
    below: &[String],
    model: Option<&str>,
    fresh: bool,
    files_max: usize,
    bytes_max: u64,
) -> Compared {
    enum Is {
        Changed,
        Unchanged,
        NotIndexable(Option<String>),
    }
    let walked = walk(&workspace.path, files_max);
    let here: Vec<_> = walked.files.into_iter().filter(|file| is_below(&file.path, below)).collect();
    let known: BTreeMap<String, (String, Option<String>)> = {
        let held = code.read();
        let known = held.files.iter().filter(|(path, _)| is_below(path, below));
        known.map(|(path, file)| (path.clone(), (file.entry.hash.clone(), file.entry.model.clone()))).collect()
    };
    let judged = here.par_iter().map(|file| match workspace.read(&file.path, bytes_max) {
        Ok(content) if reading::is_binary(&content) => Is::NotIndexable(None),
        Ok(content) => match known.get(&file.path) {
            Some((hash, made_by))
                if !fresh && *hash == hash_of(&content) && (model.is_none() || model == made_by.as_deref()) =>
            {
                Is::Unchanged
            }
            _ => Is::Changed,
        },
        Err(Unread::Gone | Unread::NoFile) => Is::NotIndexable(None),
        Err(unread) => Is::NotIndexable(Some(unread.to_string())),
    });
    let judged: Vec<Is> = judged.collect();
    let mut compared = Compared { skipped: walked.skipped, cut: walked.cut, ..Compared::default() };
    let mut there = BTreeSet::new();
    for (file, is) in here.into_iter().zip(judged) {
        match is {
            Is::Unchanged => compared.unchanged += 1,
            Is::Changed => compared.read.push((file.path.clone(), file.bytes)),
            Is::NotIndexable(reason) => {
                compared.skipped.extend(reason.map(|reason| Skipped { path: file.path, reason }));
                continue;
            }
        }
        there.insert(file.path);
    }
    compared.remove = known.into_keys().filter(|path| !there.contains(path)).collect();
    compared
}

pub(crate) fn hash_of(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

/// Cuts a list into parts of about the same bytes.
fn parts(files: &[(String, u64)]) -> Vec<(u32, u32)> {
    let bytes: u64 = files.iter().map(|(_, bytes)| bytes).sum();
    let most = PARTS_MAX as u64 / 2;
    let (bytes_max, files_max) = (PART_BYTES.max(bytes / most), PART_FILES.max(files.len().div_ceil(most as usize)));
    let (mut parts, mut from, mut sum) = (Vec::new(), 0, 0);
    for (at, (_, bytes)) in files.iter().enumerate() {
        if at > from && (sum + bytes > bytes_max || at - from >= files_max) {
            parts.push((from as u32, at as u32));
            (from, sum) = (at, 0);
        }
        sum += bytes;
    }
    if from < files.len() {
        parts.push((from as u32, files.len() as u32));
    }
    parts
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_list_and_are_not_too_many() {
        for (count, bytes) in [(0, 1), (1, 1), (64, 10), (65, 10), (10, 1 << 20), (20_000, 3_000), (500, 400_000)] {
            let files: Vec<(String, u64)> = (0..count).map(|i| (i.to_string(), bytes)).collect();
            let parts = parts(&files);
            assert!(parts.len() <= PARTS_MAX, "{count} files of {bytes}: {}", parts.len());
            let mut next = 0;
            for (from, to) in &parts {
                assert!(*from == next && from < to);
                next = *to;
            }
            assert_eq!(next as usize, count);
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let wanted = |path: &str| wanted(&[path.to_owned()]);
        assert_eq!(wanted("./src/").unwrap(), ["src"]);
        assert_eq!(wanted(".").unwrap(), [""]);
        for path in ["..", "a/../b", "/etc"] {
            assert!(wanted(path).is_err(), "{path}");
        }
        assert!(is_below("src/a.rs", &["src".into()]) && !is_below("src2/a.rs", &["src".into()]));
        assert!(is_below("a", &[]) && is_below("a", &[String::new()]));
    }
}
