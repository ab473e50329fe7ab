//! The models that may be loaded: those that lie in the configured directories, by name.
//!
//! A name from the network is looked up here and never becomes part of a path. Headers are read once for each state of a
//! model's files.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Mutex,
    time::SystemTime,
};

use crate::{
    architecture::Architecture,
    cuda::{Limits, need::GpuNeeds},
    model_directory::{self, is_gguf, is_model, name_of},
    need::Need,
};

/// Models that one worker knows at most: its entry lists them all.
const MODELS_MAX: usize = 256;
/// What a GGUF file may have beside it.
const BESIDE: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];

/// Which files a model is made of: two that are equal hold the same model, as far as a file system can say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    path: PathBuf,
    /// Name, length and time of change.
    files: Vec<(String, u64, SystemTime)>,
}

/// A model that was found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    /// Where.
    pub(crate) path: PathBuf,
    /// What it will need, or why its headers cannot be read: loading it would fail in the same way.
    pub(crate) need: Result<Need, String>,
}

/// What the headers of these files said.
type Headers = (Identity, Result<Need, String>);

/// The directories, and what is known of the models in them.
#[derive(Debug)]
pub(crate) struct Catalogue {
    named: Vec<PathBuf>,
    directories: Vec<PathBuf>,
    cache_bytes_max: usize,
    /// What bounds a model on a GPU, if there is one: the engine's limits, and requests at once.
    gpu: Option<(Limits, usize)>,
    read: Mutex<BTreeMap<PathBuf, Headers>>,
    /// What was complained of: once is enough.
    complained: Mutex<BTreeSet<PathBuf>>,
}

impl Catalogue {
    /// Models by path, which go before those in directories; of several of one name the first counts.
    pub(crate) fn new(named: Vec<PathBuf>, directories: Vec<PathBuf>, cache_bytes_max: usize) -> Self {
        let (read, complained) = Default::default();
        Self { named, directories, cache_bytes_max, gpu: None, read, complained }
    }

    /// The same on a machine with a GPU.
    pub(crate) fn with_gpu(self, limits: Limits, slots: usize) -> Self {
        Self { gpu: Some((limits, slots)), ..self }
    }

    /// What there is now. Reads directories, and the headers of files that are new or have changed.
    pub(crate) fn scan(&self) -> BTreeMap<String, Found> {
        let mut found = BTreeMap::new();
        let directories = self.directories.iter().flat_map(|directory| self.models_in(directory));
        for path in self.named.iter().cloned().chain(directories) {
            let name = name_of(&path);
            if found.len() == MODELS_MAX && !found.contains_key(&name) {
                if self.is_news(&path) {
                    tracing::warn!(path = %path.display(), "more than {MODELS_MAX} models; the rest is not known");
                }
                break;
            }
            found.entry(name).or_insert_with(|| Found { need: self.need(&path), path });
        }
        self.read
            .lock()
            .expect("no panic while the lock is held")
            .retain(|path, _| found.values().any(|f| f.path == *path));
        found
    }

    /// The models in a directory, sorted; none when it cannot be read.
    fn models_in(&self, directory: &Path) -> Vec<PathBuf> {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) => {
                if self.is_news(directory) {
                    tracing::warn!(directory = %directory.display(), %error, "a directory of models cannot be read");
                }
                return Vec::new();
            }
        };
        let mut found: Vec<PathBuf> =
            entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| is_model(path)).collect();
        // A directory goes before a file of its name.
        found.sort_by_key(|path| (is_gguf(path), path.clone()));
        found
    }

    fn is_news(&self, path: &Path) -> bool {
        self.complained.lock().expect("no panic while the lock is held").insert(path.to_owned())
    }

    fn need(&self, path: &Path) -> Result<Need, String> {
        let identity = Identity::of(path);
        let known = || self.read.lock().expect("no panic while the lock is held").get(path).cloned();
        if let (Ok(identity), Some((read, need))) = (&identity, known())
            && read == *identity
        {
            return need;
        }
        let on_gpus = |a: &Architecture| match self.gpu {
            Some((limits, slots)) => GpuNeeds::of(a, &limits, slots),
            None => GpuNeeds::default(),
        };
        let need = Need::with_gpus(path, self.cache_bytes_max, on_gpus).map_err(|error| told(&error));
        if let Ok(identity) = identity {
            let entry = (identity, need.clone());
            self.read.lock().expect("no panic while the lock is held").insert(path.to_owned(), entry);
        }
        need
    }
}

impl Identity {
    /// Looks at a model's files without reading them.
    ///
    /// # Errors
    /// When they cannot be looked at.
    pub(crate) fn of(path: &Path) -> std::io::Result<Self> {
        let path = path.canonicalize()?;
        let mut parts: Vec<PathBuf> = if path.is_file() {
            let beside = BESIDE.iter().map(|name| path.with_file_name(name)).filter(|file| file.exists());
            std::iter::once(path.clone()).chain(beside).collect()
        } else {
            std::fs::read_dir(&path)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?
        };
        parts.sort();
        let mut files = Vec::new();
        for part in parts {
            let metadata = std::fs::metadata(&part)?;
            if metadata.is_file() {
                let name = part.file_name().unwrap_or_default().to_string_lossy().into_owned();
                files.push((name, metadata.len(), metadata.modified()?));
            }
        }
        Ok(Self { path, files })
    }
}

/// The error and its causes in one line.
pub(crate) fn told(error: &model_directory::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(name)
    }

    fn copy(name: &str, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(reference(name)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }

    #[test]
    fn models_are_known_by_name_and_a_named_one_goes_first() {
        let directory = tempfile::tempdir().unwrap();
        copy("qwen3", &directory.path().join("small"));
        copy("qwen3", &directory.path().join("other/small"));
        copy("llama-gguf", &directory.path().join("packed"));
        std::fs::create_dir(directory.path().join("no-model")).unwrap();
        std::fs::write(directory.path().join("notes.txt"), "x").unwrap();
        let named = directory.path().join("other/small");
        let catalogue = Catalogue::new(vec![named.clone()], vec![directory.path().to_owned()], 1 << 20);
        let found = catalogue.scan();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["packed", "small"]);
        assert_eq!(found["small"].path, named);
        assert!(found.values().all(|found| found.need.as_ref().is_ok_and(|need| need.weights_bytes > 0)));
    }

    #[test]
    fn a_model_that_is_broken_or_changes_is_seen_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("small");
        copy("qwen3", &path);
        let catalogue = Catalogue::new(Vec::new(), vec![directory.path().to_owned()], 1 << 20);
        assert!(catalogue.scan()["small"].need.is_ok());
        let before = Identity::of(&path).unwrap();
        assert_eq!(before, Identity::of(&path).unwrap());
        std::fs::write(path.join("config.json"), "{").unwrap();
        assert_ne!(before, Identity::of(&path).unwrap());
        let why = catalogue.scan()["small"].need.clone().expect_err("broken");
        assert!(why.contains("config.json") && why.contains("malformed JSON"), "{why}");
        std::fs::remove_dir_all(&path).unwrap();
        assert!(catalogue.scan().is_empty());
    }
}
