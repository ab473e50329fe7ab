//! Keeps the tools in step with the files of a directory, without a restart.
//!
//! Every worker of a system should see the same directory, since any of them may be given a call.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::PathBuf;

use runtime::Tasks;
use runtime::manifests::{LOOK_EVERY, Signature, read, signature};
use schemas::agent::Refused;

use super::manifest::{self, file_of};
use super::{Shelf, manifest::Wrong};
use crate::registry::{Registry, Tool};

/// A file's name without its ending: the name of its tool.
type Stem = String;

/// Takes up the files and follows them from then on.
pub(super) async fn start(path: PathBuf, shelf: Shelf, tasks: &Tasks) {
    let mut followed =
        Followed { path, shelf, seen: None, unreadable: None, taken: BTreeMap::new(), told: BTreeMap::new() };
    followed.look().await;
    let soft = tasks.soft();
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = soft.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            followed.look().await;
        }
    });
}

/// A directory and how it was seen last.
struct Followed {
    path: PathBuf,
    shelf: Shelf,
    /// None when it should be read again whether it changed or not.
    seen: Option<Signature>,
    /// Why it could not be read at the last look.
    unreadable: Option<String>,
    /// Files that have a tool, with the text it was made of.
    taken: BTreeMap<Stem, String>,
    /// What is refused, as it was told.
    told: BTreeMap<Stem, Refused>,
}

/// What one look found.
#[derive(Default)]
struct Found {
    there: BTreeSet<Stem>,
    /// Tools of files that are new or have changed, with their text.
    fresh: Vec<(Stem, String, Tool)>,
    refused: BTreeMap<Stem, Refused>,
    /// Whether one was refused for what may change without its file: another look may come to another end.
    unsettled: bool,
}

impl Followed {
    async fn look(&mut self) {
        let signature = match signature(&self.path).await {
            Ok(signature) => signature,
            Err(error) => {
                // A directory that is gone for a moment (a mount, a checkout) takes no tool with it.
                let error = error.to_string();
                if self.unreadable.as_ref() != Some(&error) {
                    tracing::warn!(directory = %self.path.display(), error, "the directory of tools cannot be read");
                }
                self.unreadable = Some(error);
                return;
            }
        };
        self.unreadable = None;
        if self.seen.as_ref() == Some(&signature) {
            return;
        }
        let mut found = self.read(&signature).await;
        let settled = !self.take_up(&mut found);
        self.report(found.refused);
        self.seen = settled.then_some(signature);
    }

    /// Reads what is there and makes tools of what has changed.
    async fn read(&self, signature: &Signature) -> Found {
        let mut found = Found::default();
        for (path, bytes, _) in signature {
            let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            found.there.insert(stem.clone());
            let text = match read(path, *bytes).await {
                Ok(text) => text,
                Err(reason) => {
                    let refused = Refused { file: file_of(&stem), line: None, reason };
                    found.refused.insert(stem, refused);
                    continue;
                }
            };
            if self.taken.get(&stem) == Some(&text) {
                continue;
            }
            let manifest = match manifest::read(&stem, &text) {
                Ok(manifest) => manifest,
                Err(refused) => {
                    found.refused.insert(stem, refused);
                    continue;
                }
            };
            match self.shelf.tool(manifest).await {
                Ok(tool) => found.fresh.push((stem, text, tool)),
                Err(wrong) => {
                    found.unsettled = true;
                    let refused = manifest::refusal(&stem, &text, &wrong);
                    found.refused.insert(stem, refused);
                }
            }
        }
        found
    }

    /// Brings the tools in step with what was found, all at once. Returns whether another look may find more.
    fn take_up(&mut self, found: &mut Found) -> bool {
        let gone: Vec<Stem> = self.taken.keys().filter(|stem| !found.there.contains(*stem)).cloned().collect();
        if gone.is_empty() && found.fresh.is_empty() && found.refused == self.told {
            return found.unsettled;
        }
        let fresh = std::mem::take(&mut found.fresh);
        let toolbox = self.shelf.toolbox.clone();
        let changed = toolbox.change(|registry| {
            let mut registry = gone.iter().fold(registry.clone(), |registry, stem| registry.without(stem));
            for stem in &gone {
                self.taken.remove(stem);
                tracing::info!(tool = stem, "a tool went with its file");
            }
            for (stem, text, tool) in fresh {
                match self.with(&registry, &stem, tool) {
                    Ok(with) => {
                        registry = with;
                        tracing::info!(tool = stem, "a tool was taken from its file");
                        self.taken.insert(stem, text);
                    }
                    Err(wrong) => {
                        found.unsettled = true;
                        let refused = manifest::refusal(&stem, &text, &wrong);
                        found.refused.insert(stem, refused);
                    }
                }
            }
            for stem in self.told.keys().filter(|stem| !found.refused.contains_key(*stem)) {
                registry = registry.refusing(&file_of(stem), None);
            }
            for (stem, refused) in &found.refused {
                registry = registry.refusing(&file_of(stem), Some(refused.clone()));
            }
            Ok::<Registry, Infallible>(registry)
        });
        match changed {
            Ok(()) => found.unsettled,
            Err(never) => match never {},
        }
    }

    /// The registry with a file's tool in the place of the version before it, which is the only one it may replace.
    fn with(&self, registry: &Registry, stem: &str, tool: Tool) -> Result<Registry, Wrong> {
        let before = if self.taken.contains_key(stem) { registry.without(stem) } else { registry.clone() };
        before.with(tool).map_err(|_| Wrong {
            field: "name".to_owned(),
            reason: format!(
                "is {stem:?}, and there is a tool of that name already: choose another, for the file as well"
            ),
        })
    }

    /// Logs what is refused now and was not before.
    fn report(&mut self, refused: BTreeMap<Stem, Refused>) {
        for (stem, Refused { file, line, reason }) in &refused {
            if self.told.get(stem) == refused.get(stem) {
                continue;
            }
            let before = if self.taken.contains_key(stem) { "; its version before serves on" } else { "" };
            tracing::warn!(directory = %self.path.display(), file, line, reason, "a tool was refused{before}");
        }
        self.told = refused;
    }
}
