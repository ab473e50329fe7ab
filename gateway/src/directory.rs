//! What there is to ask for: models, tools and agent types, asked on the bus and remembered for a second. One request asks
//! then; others that come in the next moment make do with what was known before.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
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
/// How long an old list will do while somebody asks for the new one: answers come in milliseconds.
const STALE: Duration = Duration::from_millis(1_200);
/// How long after a model was seen loaded a request for it is still accepted: its worker may be starting anew.
const RECENTLY: Duration = Duration::from_secs(600);
/// How long a worker may take to say what it has.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A list as it was answered last.
struct Remembered<T> {
    known: Mutex<Known<T>>,
    /// Held by who asks, so that not everybody does.
    asking: tokio::sync::Mutex<()>,
}

struct Known<T> {
    list: Option<(Instant, Arc<Vec<T>>)>,
    /// Times that it was forgotten.
    forgotten: u64,
}

/// The turn to ask.
struct Turn<'a> {
    /// What is asked before something changed is not remembered after it.
    forgotten: u64,
    /// None where others ask, too, because nothing is known that would do for them.
    _asking: Option<tokio::sync::MutexGuard<'a, ()>>,
}

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
            models: Remembered::new(),
            tools: Remembered::new(),
            agents: Remembered::new(),
            workers: Remembered::new(),
            seen: Mutex::default(),
        }
    }

    /// Loaded models, sorted by name: what one worker answers, and what the others announce.
    pub(crate) async fn models(&self) -> Result<Arc<Vec<Model>>, Failure> {
        let turn = match self.models.get() {
            Ok(models) => return Ok(models),
            Err(turn) => turn,
        };
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
        Ok(self.models.remember(&turn, models))
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
        let turn = match self.tools.get() {
            Ok(tools) => return Ok(Some(tools)),
            Err(turn) => turn,
        };
        Ok(self.ask::<Tool>(subject::RPC_TOOLS).await?.map(|tools| self.tools.remember(&turn, tools)))
    }

    /// The agent types that count, sorted by name.
    pub(crate) async fn agents(&self) -> Result<Arc<Vec<AgentType>>, Failure> {
        let turn = match self.agents.get() {
            Ok(agents) => return Ok(agents),
            Err(turn) => turn,
        };
        let team = agent::effective(self.agents_of_all_sources().await?);
        Ok(self.agents.remember(&turn, team.into_values().map(|(_, agent)| agent).collect()))
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
        self.agents.forget();
        Ok(())
    }

    /// Removes a registered agent type.
    pub(crate) async fn unregister(&self, name: &str) -> Result<(), Failure> {
        let bucket = self.bus.bucket(stream::BUCKET_CONFIG).await?;
        bucket.purge(Source::Registered.key(name)).await.map_err(|e| bus::Error::Broken(e.to_string()))?;
        self.agents.forget();
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
        match self.workers.get() {
            Ok(workers) => Ok(workers),
            Err(turn) => self.workers_of(turn).await,
        }
    }

    /// The same as it is at this moment.
    pub(crate) async fn workers_now(&self) -> Result<Arc<Vec<Worker>>, Failure> {
        self.workers_of(self.workers.turn()).await
    }

    async fn workers_of(&self, turn: Turn<'_>) -> Result<Arc<Vec<Worker>>, Failure> {
        let found = self.bucket::<Worker>(stream::BUCKET_WORKERS, ">").await?;
        Ok(self.workers.remember(&turn, found.into_values().collect()))
    }

    /// Looks again at the models when they are asked for next: they have just changed.
    pub(crate) fn forget_models(&self) {
        self.models.forget();
        self.workers.forget();
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

impl<T> Remembered<T> {
    fn new() -> Self {
        Self { known: Mutex::new(Known { list: None, forgotten: 0 }), asking: tokio::sync::Mutex::default() }
    }

    /// What is remembered, or else the turn to ask for it.
    fn get(&self) -> Result<Arc<Vec<T>>, Turn<'_>> {
        let known = self.known();
        let turn = |asking| Err(Turn { forgotten: known.forgotten, _asking: asking });
        let Some((at, list)) = &known.list else { return turn(None) };
        let age = clock::instant().duration_since(*at);
        if age < FRESH {
            return Ok(Arc::clone(list));
        }
        match self.asking.try_lock() {
            Err(_) if age < STALE => Ok(Arc::clone(list)),
            asking => turn(asking.ok()),
        }
    }

    /// The turn to ask, whatever is remembered.
    fn turn(&self) -> Turn<'_> {
        Turn { forgotten: self.known().forgotten, _asking: None }
    }

    /// Remembers a list, unless it is empty: what is not there yet is asked for each time, so that it is seen at once.
    fn remember(&self, turn: &Turn<'_>, list: Vec<T>) -> Arc<Vec<T>> {
        let list = Arc::new(list);
        let mut known = self.known();
        if known.forgotten == turn.forgotten && !list.is_empty() {
            known.list = Some((clock::instant(), Arc::clone(&list)));
        }
        list
    }

    fn forget(&self) {
        let mut known = self.known();
        (known.list, known.forgotten) = (None, known.forgotten + 1);
    }

    fn known(&self) -> MutexGuard<'_, Known<T>> {
        self.known.lock().expect("no panic while the lock is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_asks_and_the_others_make_do_with_what_was_known() {
        let remembered = Remembered::new();
        let aged = |age: Duration, list: Vec<i32>| {
            let then = clock::instant().checked_sub(age).expect("the machine is up for longer");
            remembered.known().list = Some((then, Arc::new(list)));
        };
        let first = remembered.get().expect_err("nothing is known");
        assert!(remembered.get().is_err(), "everybody asks");
        remembered.remember(&first, vec![1]);
        assert_eq!(*remembered.get().ok().expect("fresh"), [1]);

        aged(FRESH, vec![1]);
        let turn = remembered.get().expect_err("it is old");
        assert_eq!(*remembered.get().ok().expect("somebody asks"), [1]);
        aged(STALE, vec![1]);
        assert!(remembered.get().is_err(), "too old for anybody");

        remembered.forget();
        let now = remembered.get().expect_err("it was forgotten");
        remembered.remember(&now, vec![]);
        assert!(remembered.get().is_err(), "who starts first is seen at once");
        remembered.remember(&turn, vec![1]);
        assert!(remembered.get().is_err(), "what was asked before a change is not remembered");
    }
}
