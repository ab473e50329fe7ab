//! The models of this worker at run time: a task owns them, and loads, drains and unloads them as it is asked.
//!
//! `registry` decides, `plan` says what fits and `places` where, `catalogue` what there is, `kept` holds what unloaded
//! models had computed; `drain` lets a model finish, `questions` is how others ask, and `demand` asks when jobs wait. The
//! task never blocks: files are read on threads of their own, so that everything that is loaded goes on answering.

pub(crate) mod catalogue;
mod demand;
mod drain;
mod kept;
mod places;
pub(crate) mod plan;
mod questions;
mod registry;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use runtime::clock;
use schemas::{
    models::{Change, Gpu, InferenceState, Operation},
    rpc,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use drain::Unfinished;

use crate::{
    backend::Backend,
    config::Config,
    cuda::{OnDevice, driver::Cuda},
    engine::Engine,
    kernels::team::Team,
    model_directory::{self, Model},
    prefixes::Prefixes,
    service::{Error, Service},
    weights::Progress,
};
use catalogue::{Catalogue, Found, Identity};
use kept::Kept;
use places::{Cards, Place, Room};
use plan::Plan;
use registry::{Act, Registry, refusal};

/// What may wait for the task: it answers each message in microseconds.
const MESSAGES_MAX: usize = 64;
/// How often the directories are looked at.
const SCAN_EVERY: Duration = Duration::from_secs(5);
/// How often the progress of a load is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// What this worker says of its models, as of now.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Announced {
    /// Everything, for its entry.
    pub(crate) state: InferenceState,
    /// The models it offers.
    pub(crate) offered: Vec<rpc::Model>,
    /// Requests it takes at once.
    pub(crate) slots: usize,
}

/// A handle on the task. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Models {
    service: Arc<Service>,
    catalogue: Arc<Catalogue>,
    cards: Arc<Cards>,
    messages: mpsc::Sender<Message>,
    announced: watch::Receiver<Announced>,
}

type Reply = Result<Operation, rpc::Refusal>;

enum Message {
    Change {
        change: Change,
        found: BTreeMap<String, Found>,
        rooms: Vec<Room>,
        reply: oneshot::Sender<Reply>,
    },
    Found(BTreeMap<String, Found>),
    Loaded {
        model: String,
        read: Result<Box<Read>, String>,
    },
    Drained {
        model: String,
        left: Option<(Identity, Prefixes)>,
        rooms: Vec<Room>,
    },
    /// It can compute no more, for this reason.
    Lost {
        model: String,
        reason: String,
        /// Which of its GPUs, by their ranks.
        ranks: Vec<usize>,
    },
    Gpus(Vec<Gpu>),
}

/// A model that was read.
struct Read {
    model: Model,
    /// Which files it was read from, if they did not change meanwhile.
    identity: Option<Identity>,
}

impl Models {
    /// Loads the configured models, then serves changes in tasks of the runtime.
    ///
    /// # Errors
    /// A configured model cannot be loaded or does not fit.
    pub(crate) async fn start(config: &Config, service: &Arc<Service>, fixed: Vec<rpc::Model>) -> Result<Self, Error> {
        let cache_bytes_max = config.cache_bytes_max;
        let plan = Plan::of_machine(config.memory_bytes_max, cache_bytes_max as u64);
        let looked = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || Cards::look(&config)).await
        };
        let cards =
            Arc::new(looked.expect("looking at GPUs returns errors and does not panic").map_err(Error::Setting)?);
        let mut catalogue = Catalogue::new(config.models.clone(), config.models_dirs.clone(), cache_bytes_max);
        if !cards.is_empty() {
            catalogue = catalogue.with_gpu(config.gpu_limits(), config.slots.max(1));
        }
        let catalogue = Arc::new(catalogue);
        let (messages, inbox) = mpsc::channel(MESSAGES_MAX);
        let (announcing, announced) = watch::channel(Announced::default());
        let mut task = Task {
            registry: Registry::new(service.id.clone(), plan),
            config: config.clone(),
            team: Arc::new(config.team().map_err(Error::Engine)?),
            service: Arc::clone(service),
            kept: Kept::new(config.cache_kept_bytes_max, Duration::from_secs(config.cache_kept_s)),
            catalogue: Arc::clone(&catalogue),
            cards: Arc::clone(&cards),
            found: BTreeMap::new(),
            loading: BTreeMap::new(),
            running: BTreeMap::new(),
            hurry: BTreeMap::new(),
            gpus: Vec::new(),
            scanning: false,
            messages: messages.clone(),
            announcing,
        };
        config.remote.keys().for_each(|name| task.registry.reserve(name.clone()));
        task.registry.use_gpus(cards.how.clone());
        task.know(scan(&catalogue).await);
        for path in &config.models {
            task.load_at_start(path).await?;
        }
        for model in fixed {
            task.registry.fix(model);
        }
        task.announce();
        service.runtime.tasks.spawn(task.run(inbox));
        Ok(Self { service: Arc::clone(service), catalogue, cards, messages, announced })
    }

    /// What this worker says of its models.
    pub(crate) fn announced(&self) -> watch::Receiver<Announced> {
        self.announced.clone()
    }

    /// Tells everybody about the GPUs of this machine.
    pub(crate) async fn tell_gpus(&self, gpus: Vec<Gpu>) {
        // The task has ended: there is nobody to tell.
        let _ = self.messages.send(Message::Gpus(gpus)).await;
    }

    /// Does something on this worker; returns once it has begun.
    async fn change(&self, change: Change) -> Reply {
        let (reply, answer) = oneshot::channel();
        let (found, rooms) = (scan(&self.catalogue).await, rooms(&self.cards).await);
        let stopping = |_| refusal("stopping", "the worker is stopping; ask another");
        self.messages.send(Message::Change { change, found, rooms, reply }).await.map_err(|_| stopping(()))?;
        answer.await.map_err(|_| stopping(()))?
    }
}

async fn scan(catalogue: &Arc<Catalogue>) -> BTreeMap<String, Found> {
    let catalogue = Arc::clone(catalogue);
    let scanned = tokio::task::spawn_blocking(move || catalogue.scan()).await;
    scanned.expect("looking at files returns errors and does not panic")
}

/// What is free on the GPUs.
async fn rooms(cards: &Arc<Cards>) -> Vec<Room> {
    if cards.is_empty() {
        return Vec::new();
    }
    let cards = Arc::clone(cards);
    let measured = tokio::task::spawn_blocking(move || cards.rooms()).await;
    measured.expect("measuring memory returns errors and does not panic")
}

/// A model that answers.
struct Running {
    backend: Backend,
    identity: Option<Identity>,
    /// Ends the pulling of its jobs.
    stop: CancellationToken,
    /// Says that none of its jobs is in hand any more.
    idle: oneshot::Receiver<()>,
}

struct Task {
    registry: Registry,
    config: Config,
    /// What all engines compute with.
    team: Arc<Team>,
    service: Arc<Service>,
    kept: Kept,
    catalogue: Arc<Catalogue>,
    cards: Arc<Cards>,
    found: BTreeMap<String, Found>,
    loading: BTreeMap<String, Arc<Progress>>,
    running: BTreeMap<String, Running>,
    /// How models that go are told to go faster.
    hurry: BTreeMap<String, CancellationToken>,
    gpus: Vec<Gpu>,
    /// Somebody looks at the directories already: a file system that hangs holds up one thread, not one more each time.
    scanning: bool,
    messages: mpsc::Sender<Message>,
    announcing: watch::Sender<Announced>,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        let soft = self.service.runtime.tasks.soft();
        let mut scanned = clock::instant();
        loop {
            let message = tokio::time::timeout(self.pause(clock::instant()), inbox.recv());
            match soft.run_until_cancelled(message).await {
                // It holds a sender itself, so the channel never ends before the task does.
                None | Some(Ok(None)) => return,
                Some(Ok(Some(message))) => self.take(message).await,
                Some(Err(_)) => {}
            }
            let now = clock::instant();
            self.kept.expire(now);
            if now.duration_since(scanned) >= SCAN_EVERY {
                scanned = now;
                self.look_around();
            }
            self.announce();
        }
    }

    /// How long nothing needs to be done.
    fn pause(&self, now: Instant) -> Duration {
        let expires = self.kept.expires().map_or(SCAN_EVERY, |at| at.saturating_duration_since(now));
        if self.loading.is_empty() { expires.min(SCAN_EVERY) } else { PROGRESS_EVERY }
    }

    async fn take(&mut self, message: Message) {
        let now = clock::now();
        let acts = match message {
            Message::Change { change, found, rooms, reply } => {
                self.know(found);
                self.registry.know_rooms(rooms);
                let (answer, acts) = match self.registry.ask(&change, now) {
                    Ok((operation, acts)) => (Ok(operation), acts),
                    Err(refusal) => (Err(refusal), Vec::new()),
                };
                tracing::info!(?change, refused = answer.as_ref().err().map(|r| r.detail.as_str()), "models");
                // Whoever asked may have gone; it is done all the same.
                let _ = reply.send(answer);
                acts
            }
            Message::Found(found) => {
                self.scanning = false;
                self.know(found);
                Vec::new()
            }
            Message::Loaded { model, read } => {
                self.loading.remove(&model);
                let result = match read {
                    Ok(read) => self.take_up(&model, *read).map_err(|error| format!("start an engine: {error}")),
                    Err(reason) => Err(reason),
                };
                match &result {
                    Ok((weights_bytes, window)) => tracing::info!(model, weights_bytes, window, "loaded"),
                    Err(reason) => tracing::warn!(model, reason, "not loaded"),
                }
                self.registry.loaded(&model, &result, now)
            }
            Message::Lost { model, reason, ranks } => {
                tracing::error!(model, reason, "its GPU computes no more");
                self.registry.lost(&model, &reason, &ranks)
            }
            Message::Drained { model, left, rooms } => {
                self.registry.know_rooms(rooms);
                tracing::info!(model, kept = left.as_ref().map(|(_, left)| left.bytes()), "unloaded");
                self.hurry.remove(&model);
                if let Some((identity, prefixes)) = left {
                    self.kept.keep(identity, prefixes, clock::instant());
                }
                self.registry.unloaded(&model, now)
            }
            Message::Gpus(gpus) => {
                self.gpus = gpus;
                Vec::new()
            }
        };
        for act in acts {
            match act {
                Act::Load(model) => self.load(model),
                Act::Drain { model, force } => self.drain(model, force),
            }
        }
    }

    fn know(&mut self, found: BTreeMap<String, Found>) {
        self.registry.know(&found);
        self.found = found;
    }

    fn look_around(&mut self) {
        if std::mem::replace(&mut self.scanning, true) {
            return;
        }
        let (catalogue, messages) = (Arc::clone(&self.catalogue), self.messages.clone());
        self.service.runtime.tasks.spawn(async move {
            let found = scan(&catalogue).await;
            // The task has ended: nobody needs to know.
            let _ = messages.send(Message::Found(found)).await;
        });
    }

    /// Reads a model on a thread of its own: whatever runs goes on, and a shutdown does not wait for it.
    fn load(&mut self, model: String) {
        let progress = Arc::new(Progress::default());
        self.loading.insert(model.clone(), Arc::clone(&progress));
        // What is kept of other models gives way to one that was admitted.
        self.kept.shrink_to(self.registry.max().saturating_sub(self.registry.taken()));
        let reading = self.read(&model, &progress);
        let (messages, soft) = (self.messages.clone(), self.service.runtime.tasks.soft());
        self.service.runtime.tasks.spawn(async move {
            let read = match reading {
                Ok(reading) => match soft.run_until_cancelled(reading).await {
                    Some(read) => read.unwrap_or_else(|_| Err("reading it crashed; see the log".to_owned())),
                    None => return,
                },
                Err(error) => Err(format!("start a thread: {error}")),
            };
            // The task has ended, and with it the need for this model.
            let _ = messages.send(Message::Loaded { model, read }).await;
        });
    }

    fn read(
        &self,
        model: &str,
        progress: &Arc<Progress>,
    ) -> std::io::Result<oneshot::Receiver<Result<Box<Read>, String>>> {
        let path = self.found.get(model).map(|found| found.path.clone()).unwrap_or_default();
        let (family, progress) = (self.config.tool_calls.get(model).copied(), Arc::clone(progress));
        let place = self.registry.place(model);
        match &place {
            Place::Gpus(_) => tracing::info!(model, place = %place, "goes on a GPU"),
            Place::Cpu(Some(why)) => tracing::warn!(model, why, "goes on the CPUs"),
            Place::Cpu(None) => {}
        }
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new().name(format!("load-{model}")).spawn(move || {
            let before = Identity::of(&path).ok();
            let read = match place {
                Place::Cpu(_) => Model::load_watched(&path, family, &progress).map_err(|error| catalogue::told(&error)),
                Place::Gpus(ids) => Cuda::open_together(&ids).map_err(|why| why.to_string()).and_then(|gpus| {
                    let loaded = Model::load_across(&path, family, &progress, &gpus);
                    loaded.map_err(|error| catalogue::told(&error))
                }),
            };
            let unchanged = before.filter(|before| Identity::of(&path).is_ok_and(|after| after == *before));
            let read = read.map(|model| Box::new(Read { model, identity: unchanged }));
            // The worker is stopping.
            let _ = sender.send(read);
        })?;
        Ok(receiver)
    }

    /// Starts the engine of a model that was read, with what was kept of it, and pulls its jobs. Returns the bytes of its
    /// weights and its window.
    fn take_up(&mut self, name: &str, read: Read) -> std::io::Result<(u64, u32)> {
        let Read { mut model, identity } = read;
        if self.config.exact_activations {
            model.decoder.be_exact();
        }
        let kept = identity.as_ref().and_then(|identity| self.kept.take(identity));
        if let Some(kept) = &kept {
            tracing::info!(model = name, tokens = kept.tokens(), "goes on with what it had computed");
        }
        let weights_bytes = model.device.as_ref().map_or_else(|| model.decoder.bytes(), |device| device.bytes()) as u64;
        let engine = Engine::start_with(Arc::new(model), Arc::clone(&self.team), &self.config.engine(), kept)?;
        if let Some(device) = &engine.model().device {
            self.watch(name, &engine, Arc::downgrade(device));
        }
        if let Err(error) = engine.figures().register(&self.service.runtime.metrics) {
            tracing::warn!(model = name, %error, "its figures are not shown");
        }
        let backend = Backend::Engine(engine);
        let window = u32::try_from(backend.window()).unwrap_or(u32::MAX);
        // Shutdown ends the pulling, too.
        let stop = self.service.runtime.tasks.soft().child_token();
        let (done, idle) = oneshot::channel();
        let pulling = Arc::clone(&self.service).pull(backend.clone(), stop.clone());
        self.service.runtime.tasks.spawn(async move {
            pulling.await;
            // Nobody waits for a model that stays until the end.
            let _ = done.send(());
        });
        self.running.insert(name.to_owned(), Running { backend, identity, stop, idle });
        Ok((weights_bytes, window))
    }

    /// Hears of the loss of what a model computes on.
    fn watch(&self, name: &str, engine: &Engine, device: Weak<dyn OnDevice>) {
        let (mut lost, model, messages) = (engine.lost(), name.to_owned(), self.messages.clone());
        let soft = self.service.runtime.tasks.soft();
        self.service.runtime.tasks.spawn(async move {
            // An engine that has ended loses nothing any more.
            let Some(Ok(reason)) =
                soft.run_until_cancelled(lost.wait_for(Option::is_some)).await.map(|lost| lost.map(|why| why.clone()))
            else {
                return;
            };
            let ranks = device.upgrade().map(|device| device.lost()).unwrap_or_default();
            // The task has ended, and with it the need for this model.
            let _ = messages.send(Message::Lost { model, reason: reason.unwrap_or_default(), ranks }).await;
        });
    }

    fn drain(&mut self, model: String, force: bool) {
        // Shutdown is a hurry, too.
        let soft = self.service.runtime.tasks.soft();
        let hurry = self.hurry.entry(model.clone()).or_insert_with(|| soft.child_token()).clone();
        if force {
            hurry.cancel();
        }
        // On its way already.
        let Some(running) = self.running.remove(&model) else { return };
        let (service, messages, cards) = (Arc::clone(&self.service), self.messages.clone(), Arc::clone(&self.cards));
        let figures = running.backend.figures().cloned();
        let at_most = Duration::from_secs(self.config.drain_s_max);
        self.service.runtime.tasks.spawn(async move {
            let finished = service.finish_waiting(running.backend.name(), at_most);
            hurry.run_until_cancelled(finished).await;
            running.stop.cancel();
            // An error is the end of the pulling, too.
            let _ = running.idle.await;
            service.unfinished.forget(&model);
            let gone = tokio::task::spawn_blocking(move || {
                let left = running.backend.hand_over();
                // The last handle: its weights are given back here, not on a thread that others wait for.
                drop(running.backend);
                running.identity.zip(left)
            });
            let left = gone.await.unwrap_or_default();
            if let Some(figures) = figures {
                // An error says that they were not shown.
                let _ = figures.unregister(&service.runtime.metrics);
            }
            let rooms = rooms(&cards).await;
            // The task has ended, and all memory is given back.
            let _ = messages.send(Message::Drained { model, left, rooms }).await;
        });
    }

    /// Loads a model that the configuration names, and waits for it.
    async fn load_at_start(&mut self, path: &PathBuf) -> Result<(), Error> {
        let name = model_directory::name_of(path);
        if self.found.get(&name).is_some_and(|found| found.path != *path) {
            return Err(Error::Twice { name });
        }
        let unusable = |reason| Error::Model { directory: path.clone(), reason };
        self.registry.know_rooms(rooms(&self.cards).await);
        let change = Change::Load { model: name.clone() };
        let refused = |refusal: rpc::Refusal| Error::Refused { directory: path.clone(), reason: refusal.detail };
        let (_, acts) = self.registry.ask(&change, clock::now()).map_err(refused)?;
        if acts.is_empty() {
            return Ok(());
        }
        loop {
            let reading = self.read(&name, &Arc::default()).map_err(Error::Engine)?;
            let read = reading.await.unwrap_or_else(|_| Err("reading it crashed; see the log".to_owned()));
            let loaded = match read {
                Ok(read) => {
                    let family = read.model.family;
                    let taken = self.take_up(&name, *read).map_err(|error| format!("start an engine: {error}"));
                    taken.inspect(|_| tracing::info!(model = name, tool_calls = ?family, "loaded"))
                }
                Err(reason) => Err(reason),
            };
            // What was refused on a GPU is read once more, for the CPUs.
            let again = !self.registry.loaded(&name, &loaded, clock::now()).is_empty();
            match loaded {
                Ok(_) => break,
                Err(reason) if again => tracing::warn!(model = name, reason, "not on a GPU"),
                Err(reason) => return Err(unusable(reason)),
            }
        }
        self.registry.forget_operations();
        Ok(())
    }

    /// Tells whoever listens, if anything has changed.
    fn announce(&mut self) {
        for (model, progress) in &self.loading {
            self.registry.progress(model, progress.fraction());
        }
        let mut state = self.registry.state(self.kept.bytes());
        state.gpus.clone_from(&self.gpus);
        let slots = self.running.values().map(|running| running.backend.slots()).sum();
        let now = Announced { state, offered: self.registry.offered(), slots };
        self.announcing.send_if_modified(|announced| {
            let changed = *announced != now;
            *announced = now;
            changed
        });
    }
}
