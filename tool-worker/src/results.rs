//! Results of calls that only read, kept until a file they could have read changes: in this process, and for all
//! workers where they share results ([`runtime::cache`]).
//!
//! A result is known by everything that decides it: the program, the tool, its arguments, how much of it is shown, the
//! workspace and its [`revision`]. Equal calls that come at the same time are carried out once. Nothing here is the
//! truth: what is lost is called again. Where looking for changes costs more than it saves, calls are just carried out.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use moka::sync::Cache;
use prometheus::{IntCounterVec, Opts};
use runtime::cache::Space;
use runtime::{Runtime, clock};
use schemas::fact::Sandbox;
use schemas::rpc;
use schemas::stream::TOOL_RESULT_TTL;
use schemas::wire::{Nanos, decode, encode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

use crate::executor::{Outcome, Ready};
use crate::registry::{Means, Tool};
use crate::revision::{Revision, Sight, Unseen, revision};

/// Part of every key: another number where the same call is answered otherwise, or kept in another form.
const VERSION: u32 = 1;
/// Bytes of results kept in this process.
const MEMORY_BYTES_MAX: u64 = 16 << 20;
/// Bytes of one result: beyond it, keeping costs more than calling again.
const ENTRY_BYTES_MAX: usize = 256 << 10;
/// How long others may take to say what they hold: the call would have begun by then.
const LOOK_UP_MAX: Duration = Duration::from_millis(250);
/// How long a workspace is left alone in which looking for changes did not pay.
const LEFT_ALONE: Duration = Duration::from_secs(300);
/// Looking may take this part of what a call takes.
const LOOK_SHARE: u32 = 2;
/// Workspaces of which it is remembered; beyond it, all is forgotten.
const REMEMBERED_MAX: usize = 1_024;

/// What a result is known by.
type Key = [u8; 32];
/// Where one call waits for an equal one.
type UnderWay = Arc<OnceCell<Outcome>>;

/// The results known to this worker.
pub(crate) struct Results {
    runtime: Runtime,
    memory: Cache<Key, Arc<Kept>>,
    under_way: Mutex<BTreeMap<Key, UnderWay>>,
    /// Until when no changes are looked for, and why not is the price.
    too_dear: Mutex<BTreeMap<(PathBuf, Sight), Instant>>,
    asked: IntCounterVec,
}

/// Ends what others could wait for, also when it is given up.
struct Done<'a> {
    under_way: &'a Mutex<BTreeMap<Key, UnderWay>>,
    key: Key,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.under_way.lock().expect("no panic while the lock is held").remove(&self.key);
    }
}

/// A call whose result may be known.
pub(crate) struct Question<'a> {
    tool: &'a Tool,
    arguments: &'a Map<String, Value>,
    bytes_max: usize,
    workspace: &'a Path,
    /// What is behind the tool.
    version: String,
}

impl<'a> Question<'a> {
    /// None where nothing is to be kept: the call has no workspace, as one that reads an object, or is not pure.
    pub(crate) fn of(ready: &'a Ready) -> Option<Self> {
        let (tool, workspace) = (ready.tool(), ready.workspace()?.path());
        let (arguments, bytes_max) = (ready.arguments(), ready.result_bytes_max());
        let version = match &tool.means {
            Means::Runner => String::new(),
            Means::Handler(handler) => handler.version()?,
        };
        tool.effect.is_pure().then_some(Self { tool, arguments, bytes_max, workspace, version })
    }

    fn sight(&self) -> Sight {
        match &self.tool.means {
            Means::Runner => Sight::of(&self.tool.name, self.arguments),
            Means::Handler(_) => Sight::Tree,
        }
    }
}

/// Everything that decides a result. Who asks is no part of it: whether they may is decided before, and no pure tool is
/// told.
#[derive(Serialize)]
struct Decides<'a> {
    version: u32,
    program: &'static str,
    /// Name, description and schemas.
    tool: &'a rpc::Tool,
    /// The program behind it: another version of a plugin answers otherwise.
    behind: &'a str,
    arguments: Value,
    bytes_max: usize,
    workspace: &'a Path,
    revision: Revision,
}

/// The same value, with the names of every object in order: how a caller sorts them means nothing.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<&String, &Value> = fields.iter().collect();
            Value::Object(sorted.into_iter().map(|(name, value)| (name.clone(), canonical(value))).collect())
        }
        Value::Array(values) => Value::Array(values.iter().map(canonical).collect()),
        plain => plain.clone(),
    }
}

/// A result as others read it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    at: Nanos,
    result: String,
    full: Option<String>,
    sandbox: Sandbox,
}

impl Results {
    /// # Errors
    /// Two workers share one registry.
    pub(crate) fn new(runtime: Runtime) -> Result<Self, prometheus::Error> {
        let counted = Opts::new("vlinders_tool_cache_total", "Tool calls whose result could have been known already");
        let asked = IntCounterVec::new(counted, &["outcome"])?;
        runtime.metrics.register(Box::new(asked.clone()))?;
        let memory = Cache::builder()
            .max_capacity(MEMORY_BYTES_MAX)
            .weigher(|_, kept: &Arc<Kept>| u32::try_from(kept.bytes()).unwrap_or(u32::MAX))
            .time_to_live(TOOL_RESULT_TTL)
            .build();
        let (under_way, too_dear) = (Mutex::default(), Mutex::default());
        Ok(Self { runtime, memory, under_way, too_dear, asked })
    }

    /// The outcome of a call: the kept one, or that of `call`, which is then kept.
    pub(crate) async fn find_or(&self, question: &Question<'_>, call: impl Future<Output = Outcome>) -> Outcome {
        let since = clock::instant();
        let Some(key) = self.key(question).await else {
            self.count("off");
            return call.await;
        };
        let looked = clock::instant().duration_since(since);
        if let Some(kept) = self.memory.get(&key) {
            self.count("hit_memory");
            return kept.outcome(clock::instant().duration_since(since));
        }
        let cell = self.under_way.lock().expect("no panic while the lock is held").entry(key).or_default().clone();
        let mut own = false;
        // Whoever is first does it; when that one is given up, the next does.
        let outcome = cell.get_or_init(|| async {
            own = true;
            let _done = Done { under_way: &self.under_way, key };
            if let Some(kept) = self.look_up(&key).await {
                self.count("hit_store");
                let outcome = kept.outcome(clock::instant().duration_since(since));
                self.memory.insert(key, Arc::new(kept));
                return outcome;
            }
            self.count("miss");
            let outcome = call.await;
            self.judge_price(question, looked, outcome.duration);
            self.keep(key, &outcome);
            outcome
        });
        let outcome = outcome.await.clone();
        if !own {
            self.count("hit_shared");
        }
        outcome
    }

    /// What the result is known by; none where that is not known, or too dear to find out.
    async fn key(&self, question: &Question<'_>) -> Option<Key> {
        let sight = question.sight();
        let place = (question.workspace.to_owned(), sight);
        let now = clock::instant();
        {
            let mut too_dear = self.too_dear.lock().expect("no panic while the lock is held");
            if too_dear.get(&place).is_some_and(|until| *until > now) {
                return None;
            }
            too_dear.remove(&place);
        }
        let (workspace, arguments) = (question.workspace.to_owned(), question.arguments.clone());
        let looked = move || revision(&workspace, sight, &arguments, clock::now());
        let revision = match tokio::task::spawn_blocking(looked).await.ok()? {
            Ok(revision) => revision,
            Err(Unseen::Unsettled) => return None,
            Err(Unseen::TooMuch) => {
                self.leave_alone(question);
                return None;
            }
        };
        let decides = Decides {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION"),
            tool: &question.tool.listed(),
            behind: &question.version,
            arguments: canonical(&Value::Object(question.arguments.clone())),
            bytes_max: question.bytes_max,
            workspace: question.workspace,
            revision,
        };
        Some(Sha256::digest(encode(&decides)).into())
    }

    /// Leaves a workspace alone in which looking took too much of what calling takes.
    fn judge_price(&self, question: &Question<'_>, looked: Duration, called: Duration) {
        if looked * LOOK_SHARE <= called {
            return;
        }
        tracing::debug!(workspace = %question.workspace.display(), ?looked, ?called, "looking for changes does not pay");
        self.leave_alone(question);
    }

    fn leave_alone(&self, question: &Question<'_>) {
        let mut too_dear = self.too_dear.lock().expect("no panic while the lock is held");
        if too_dear.len() >= REMEMBERED_MAX {
            too_dear.clear();
        }
        too_dear.insert((question.workspace.to_owned(), question.sight()), clock::instant() + LEFT_ALONE);
    }

    async fn look_up(&self, key: &Key) -> Option<Kept> {
        let key = hex::encode(key);
        let found = self.runtime.cache.get(Space::ToolResults, &key);
        let bytes = tokio::time::timeout(LOOK_UP_MAX, found).await.ok()??;
        let kept: Kept = decode(&bytes).ok()?;
        let kept_for = Nanos::try_from(TOOL_RESULT_TTL.as_nanos()).unwrap_or(Nanos::MAX);
        (clock::now() - kept.at < kept_for).then_some(kept)
    }

    /// Keeps a result; what failed is tried again.
    fn keep(&self, key: Key, outcome: &Outcome) {
        let Ok(result) = &outcome.result else { return };
        let (full, sandbox) = (outcome.full.clone(), outcome.sandbox.clone());
        let kept = Kept { at: clock::now(), result: result.clone(), full, sandbox };
        if kept.bytes() > ENTRY_BYTES_MAX {
            return;
        }
        let bytes = encode(&kept);
        self.memory.insert(key, Arc::new(kept));
        let cache = self.runtime.cache.clone();
        self.runtime.tasks.spawn(async move {
            cache.put(Space::ToolResults, &hex::encode(key), &bytes, TOOL_RESULT_TTL, None).await;
        });
    }

    fn count(&self, outcome: &str) {
        self.asked.with_label_values(&[outcome]).inc();
    }
}

impl Kept {
    fn outcome(&self, duration: Duration) -> Outcome {
        let (full, sandbox) = (self.full.clone(), self.sandbox.clone());
        Outcome { result: Ok(self.result.clone()), full, duration, sandbox }
    }

    fn bytes(&self) -> usize {
        256 + self.result.len() + self.full.as_ref().map_or(0, String::len)
    }
}
