//! What there is to ask for: models, tools and agent types, asked on the bus and remembered for a second.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use runtime::{Bus, bus, clock};
use schemas::agent::{self, Refused, Source};
use schemas::presence::Worker;
use schemas::rpc::{AgentType, FindWorkspace, Model, Reply, Tool, Workspace};
use schemas::wire::{decode, encode};
use schemas::{stream, subject};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::problem::Failure;

/// How long an answer is remembered: a new worker is seen after that.
const FRESH: Duration = Duration::from_secs(1);
/// How long after a model was seen loaded a request for it is still accepted: its worker may be starting anew.
const RECENTLY: Duration = Duration::from_secs(600);
/// How long a worker may take to say what it has.
const TIMEOUT: Duration = Duration::from_secs(2);

type Remembered<T> = Mutex<Option<(Instant, Arc<Vec<T>>)>>;

/// Agent types, and files that hold none.
pub(crate) struct Registry {
    pub(crate) agents: Vec<(Source, AgentType)>,
    pub(crate) refused: Vec<Refused>,
}

/// Looks things up. One for each process.
pub(crate) struct Directory {
    bus: Bus,
    models: Remembered<Model>,
    tools: Remembered<Tool>,
    agents: Remembered<AgentType>,
    workers: Remembered<Worker>,
    /// Models that were loaded, and when that was seen last.
    seen: Mutex<BTreeMap<String, (Instant, Model)>>,
}

/// A list, bare or in a reply: workers answer in either way.
#[derive(Deserialize)]
#[serde(untagged)]
enum Listed<T> {
    Bare(Vec<T>),
    Reply(Reply<Vec<T>>),
}

impl Directory {
    pub(crate) fn new(bus: Bus) -> Self {
        Self {
            bus,
            models: Mutex::default(),
            tools: Mutex::default(),
            agents: Mutex::default(),
            workers: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    /// Loaded models, sorted by name: what one worker answers, and what the others announce.
    pub(crate) async fn models(&self) -> Result<Arc<Vec<Model>>, Failure> {
        if let Some(models) = fresh(&self.models) {
            return Ok(models);
        }
        // Where nobody answers, entries are of workers that have gone. Who answers may have none, and others some.
        let answered = self.ask::<Model>(subject::RPC_MODELS).await?;
        let mut models = answered.clone().unwrap_or_default();
        if answered.is_some() {
            models.extend(self.workers_now().await.unwrap_or_default().iter().flat_map(|w| w.models.clone()));
            models.sort();
            models.dedup_by(|a, b| a.name == b.name);
        }
        let now = clock::instant();
        let mut seen = self.seen.lock().expect("no panic while the lock is held");
        seen.extend(models.iter().map(|model| (model.name.clone(), (now, model.clone()))));
        seen.retain(|_, (at, _)| now.duration_since(*at) < RECENTLY);
        drop(seen);
        Ok(remember(&self.models, models))
    }

    /// Models that are not among the loaded ones: those that a worker could load, is loading or is about to give up, and
    /// those that were loaded a while ago, whose worker may come back.
    pub(crate) async fn loadable(&self, loaded: &[Model]) -> Vec<Model> {
        let workers = self.workers().await.unwrap_or_default();
        let known = workers.iter().filter_map(|worker| worker.inference.as_ref()).flat_map(|state| &state.models);
        let known =
            known.map(|known| Model { name: known.name.clone(), kind: known.kind.clone(), window: known.window });
        let seen = self.seen.lock().expect("no panic while the lock is held");
        let mut models: Vec<Model> = known.chain(seen.values().map(|(_, model)| model.clone())).collect();
        drop(seen);
        models.retain(|model| loaded.iter().all(|there| there.name != model.name));
        // The smallest window that any worker would give it: a prompt that fits there fits everywhere.
        models.sort_by_key(|model| (model.name.clone(), if model.window == 0 { u32::MAX } else { model.window }));
        models.dedup_by(|a, b| a.name == b.name);
        models
    }

    /// Registered tools, or none when no tool worker is there.
    pub(crate) async fn tools(&self) -> Result<Option<Arc<Vec<Tool>>>, Failure> {
        if let Some(tools) = fresh(&self.tools) {
            return Ok(Some(tools));
        }
        Ok(self.ask::<Tool>(subject::RPC_TOOLS).await?.map(|tools| remember(&self.tools, tools)))
    }

    /// The agent types that count, sorted by name.
    pub(crate) async fn agents(&self) -> Result<Arc<Vec<AgentType>>, Failure> {
        if let Some(agents) = fresh(&self.agents) {
            return Ok(agents);
        }
        let team = agent::effective(self.agents_of_all_sources().await?);
        Ok(remember(&self.agents, team.into_values().map(|(_, agent)| agent).collect()))
    }

    /// Every agent type of every source as it is now, and what was refused.
    pub(crate) async fn registry(&self) -> Result<Registry, Failure> {
        let refused: BTreeMap<String, Refused> = self.bucket(stream::BUCKET_CONFIG, Refused::FILTER).await?;
        Ok(Registry { agents: self.agents_of_all_sources().await?, refused: refused.into_values().collect() })
    }

    async fn agents_of_all_sources(&self) -> Result<Vec<(Source, AgentType)>, Failure> {
        let mut found = Vec::new();
        for source in Source::ALL {
            let of_it: BTreeMap<String, AgentType> = self.bucket(stream::BUCKET_CONFIG, &source.key(">")).await?;
            found.extend(of_it.into_values().map(|agent| (source, agent)));
        }
        Ok(found)
    }

    /// Registers an agent type; this gateway knows it at once, others within a second.
    pub(crate) async fn register(&self, agent: &AgentType) -> Result<(), Failure> {
        let bucket = self.bus.bucket(stream::BUCKET_CONFIG).await?;
        let key = Source::Registered.key(&agent.name);
        bucket.put(&key, encode(agent).into()).await.map_err(|e| bus::Error::Broken(e.to_string()))?;
        forget(&self.agents);
        Ok(())
    }

    /// Removes a registered agent type.
    pub(crate) async fn unregister(&self, name: &str) -> Result<(), Failure> {
        let bucket = self.bus.bucket(stream::BUCKET_CONFIG).await?;
        bucket.purge(Source::Registered.key(name)).await.map_err(|e| bus::Error::Broken(e.to_string()))?;
        forget(&self.agents);
        Ok(())
    }

    /// One agent type.
    pub(crate) async fn agent(&self, name: &str) -> Result<AgentType, Failure> {
        let agents = self.agents().await?;
        if agents.is_empty() {
            let detail = "no agent type is registered: no orchestrator has started yet";
            return Err(Failure::new(503, "orchestrator_absent", detail, "start one: `vlinders orchestrator`"));
        }
        let found = agents.iter().find(|a| a.name == name).cloned();
        found.ok_or_else(|| Failure::unknown("agent", name, &agents.iter().map(|a| a.name.clone()).collect::<Vec<_>>()))
    }

    /// Workers that are there.
    pub(crate) async fn workers(&self) -> Result<Arc<Vec<Worker>>, Failure> {
        if let Some(workers) = fresh(&self.workers) {
            return Ok(workers);
        }
        self.workers_now().await
    }

    /// The same as it is at this moment.
    pub(crate) async fn workers_now(&self) -> Result<Arc<Vec<Worker>>, Failure> {
        let found = self.bucket::<Worker>(stream::BUCKET_WORKERS, ">").await?;
        Ok(remember(&self.workers, found.into_values().collect()))
    }

    /// Looks again at the models when they are asked for next: they have just changed.
    pub(crate) fn forget_models(&self) {
        forget(&self.models);
        forget(&self.workers);
    }

    /// Refuses a workspace in which no tool may work. Where nobody can say, the tool worker will, at the call.
    pub(crate) async fn workspace(&self, name: &str) -> Result<(), Failure> {
        let question = FindWorkspace { name: name.to_owned() };
        let answer = self.bus.ask::<_, Reply<Workspace>>(subject::RPC_WORKSPACE, &question, TIMEOUT).await;
        let refusal = match answer {
            Ok(Reply::Err(refusal)) => refusal,
            Ok(Reply::Ok(_)) => return Ok(()),
            Err(error) => {
                tracing::debug!(%error, workspace = name, "nobody says whether tools may work there");
                return Ok(());
            }
        };
        let (status, next) = match refusal.code.as_str() {
            "unknown_workspace" => (404, "name a directory that exists under an allowed root"),
            "workspaces_absent" => (503, "start the tool worker with --workspace DIR"),
            _ => (400, "name a directory under an allowed root, or allow another one at the start with --workspace"),
        };
        Err(Failure::new(status, &refusal.code, refusal.detail, next))
    }

    async fn ask<T: DeserializeOwned>(&self, subject: &str) -> Result<Option<Vec<T>>, Failure> {
        match self.bus.ask::<(), Listed<T>>(subject, &(), TIMEOUT).await {
            Ok(Listed::Bare(list) | Listed::Reply(Reply::Ok(list))) => Ok(Some(list)),
            Ok(Listed::Reply(Reply::Err(refusal))) => {
                Err(Failure::new(503, "worker_refused", refusal.detail, "send it again"))
            }
            Err(bus::Error::NoResponders(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Entries that can be read, by key, of a bucket's keys that match `filter`.
    async fn bucket<T: DeserializeOwned>(&self, name: &str, filter: &str) -> Result<BTreeMap<String, T>, Failure> {
        let mut found = BTreeMap::new();
        for (key, value) in self.bus.entries(name, filter).await? {
            match decode(&value) {
                Ok(value) => drop(found.insert(key, value)),
                Err(error) => tracing::warn!(bucket = name, key, %error, "skipped an entry that cannot be read"),
            }
        }
        Ok(found)
    }
}

fn fresh<T>(remembered: &Remembered<T>) -> Option<Arc<Vec<T>>> {
    let remembered = remembered.lock().expect("no panic while the lock is held");
    remembered.as_ref().filter(|(at, _)| clock::instant().duration_since(*at) < FRESH).map(|(_, list)| list.clone())
}

fn forget<T>(remembered: &Remembered<T>) {
    *remembered.lock().expect("no panic while the lock is held") = None;
}

/// Remembers a list, unless it is empty: what is not there yet is asked for each time.
fn remember<T>(remembered: &Remembered<T>, list: Vec<T>) -> Arc<Vec<T>> {
    let list = Arc::new(list);
    if !list.is_empty() {
        let entry = Some((clock::instant(), list.clone()));
        *remembered.lock().expect("no panic while the lock is held") = entry;
    }
    list
}
