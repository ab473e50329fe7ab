//! Keeps the bucket `vl_config` in step with what is built in and with the files of a directory, without a restart.
//!
//! Every orchestrator of a system should see the same directory: each of them writes what it sees.

use std::collections::BTreeMap;
use std::path::PathBuf;

use runtime::manifests::{LOOK_EVERY, Signature, read, signature};
use runtime::{Bus, Runtime, bus};
use schemas::agent::{Refused, Source};
use schemas::rpc::AgentType;
use schemas::wire::{decode, encode};
use schemas::{stream, subject};
use serde::Serialize;

use super::manifest::{self, Stem};

/// Writes the built-in agent types, takes up those of the directory, and follows the directory from then on.
pub(crate) async fn start(runtime: &Runtime, directory: Option<PathBuf>) -> Result<(), bus::Error> {
    for agent in super::builtin() {
        write(&runtime.bus, &Source::BuiltIn.key(&agent.name), &agent).await?;
    }
    let Some(directory) = directory else { return Ok(()) };
    let mut followed = Followed { directory, seen: None, told: BTreeMap::new() };
    followed.look(&runtime.bus).await?;
    let runtime = runtime.clone();
    let tasks = runtime.tasks.clone();
    tasks.spawn_essential("agent types", async move {
        let soft = runtime.tasks.soft();
        loop {
            tokio::select! {
                () = soft.cancelled() => return Ok::<(), bus::Error>(()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if let Err(error) = followed.look(&runtime.bus).await {
                tracing::warn!(%error, "agent types were not taken up; trying again");
            }
        }
    });
    Ok(())
}

/// A directory and how it was seen last.
struct Followed {
    directory: PathBuf,
    /// None when it should be read again whether it changed or not.
    seen: Option<Signature>,
    /// Refusals that were logged.
    told: BTreeMap<Stem, Refused>,
}

impl Followed {
    async fn look(&mut self, bus: &Bus) -> Result<(), bus::Error> {
        let signature = match signature(&self.directory).await {
            Ok(signature) => signature,
            Err(error) => {
                // A directory that is gone for a moment (a mount, a checkout) takes no agent type with it.
                tracing::warn!(directory = %self.directory.display(), %error, "the directory of agent types cannot be read");
                return Ok(());
            }
        };
        if self.seen.as_ref() == Some(&signature) {
            return Ok(());
        }
        self.seen = None;
        let unsettled = self.take_up(bus, &signature).await?;
        // What was refused for somebody who is not registered is looked at again: he may be by then.
        self.seen = (!unsettled).then_some(signature);
        Ok(())
    }

    /// Brings the bucket in step with the files.
    async fn take_up(&mut self, bus: &Bus, signature: &Signature) -> Result<bool, bus::Error> {
        let (mut files, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
        for (path, bytes, _) in signature {
            let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            match read(path, *bytes).await {
                Ok(text) => drop(files.insert(stem, text)),
                Err(reason) => {
                    let file = path.file_name().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
                    unreadable.insert(stem, Refused { file, line: None, reason });
                }
            }
        }
        let known = agents(bus).await?;
        let (manifests, others): (Vec<_>, Vec<_>) = known.into_iter().partition(|(s, _)| *s == Source::Manifest);
        let there = |stem: &str| files.contains_key(stem) || unreadable.contains_key(stem);
        let before: BTreeMap<Stem, AgentType> = manifests.into_iter().map(|(_, a)| (a.name.clone(), a)).collect();
        let kept = before.iter().filter(|(stem, _)| there(stem)).map(|(s, a)| (s.clone(), a.clone())).collect();
        let mut admitted = manifest::admit(&files, &kept, &others);
        for (stem, agent) in &admitted.agents {
            if write(bus, &Source::Manifest.key(stem), agent).await? {
                tracing::info!(agent = stem, "an agent type was taken from its file");
            }
        }
        for stem in before.keys().filter(|stem| !there(stem)) {
            remove(bus, &Source::Manifest.key(stem)).await?;
            tracing::info!(agent = stem, "an agent type went with its file");
        }
        admitted.refused.append(&mut unreadable);
        self.report(bus, admitted.refused).await?;
        Ok(admitted.unsettled)
    }

    /// Logs what is refused now and was not before, and writes it where everybody can see it.
    async fn report(&mut self, bus: &Bus, refused: BTreeMap<Stem, Refused>) -> Result<(), bus::Error> {
        let mut written = Vec::new();
        for (stem, refusal) in &refused {
            let key = format!("{}{}", Refused::PREFIX, subject::token(stem));
            write(bus, &key, refusal).await?;
            written.push(key);
            if self.told.get(stem) != Some(refusal) {
                let Refused { file, line, reason } = refusal;
                tracing::warn!(directory = %self.directory.display(), file, line, reason, "an agent type was refused; the others work");
            }
        }
        let known = bus.entries(stream::BUCKET_CONFIG, Refused::FILTER).await?;
        for (key, _) in known.iter().filter(|(key, _)| !written.contains(key)) {
            remove(bus, key).await?;
        }
        self.told = refused;
        Ok(())
    }
}

/// All agent types of all sources. One that cannot be read counts as missing.
async fn agents(bus: &Bus) -> Result<Vec<(Source, AgentType)>, bus::Error> {
    let mut found = Vec::new();
    for source in Source::ALL {
        for (key, value) in bus.entries(stream::BUCKET_CONFIG, &source.key(">")).await? {
            match decode(&value) {
                Ok(agent) => found.push((source, agent)),
                Err(error) => tracing::warn!(key, %error, "passed over an agent type that cannot be read"),
            }
        }
    }
    Ok(found)
}

/// Writes an entry unless it stands there already; returns whether it was written.
async fn write<T: Serialize + Sync>(bus: &Bus, key: &str, value: &T) -> Result<bool, bus::Error> {
    let bucket = bus.bucket(stream::BUCKET_CONFIG).await?;
    let value = encode(value);
    if bucket.get(key).await.map_err(broken)?.is_some_and(|found| found == value) {
        return Ok(false);
    }
    bucket.put(key, value.into()).await.map_err(broken)?;
    Ok(true)
}

async fn remove(bus: &Bus, key: &str) -> Result<(), bus::Error> {
    bus.bucket(stream::BUCKET_CONFIG).await?.purge(key).await.map_err(broken)
}

fn broken(error: impl std::fmt::Display) -> bus::Error {
    bus::Error::Broken(error.to_string())
}
