//! What this worker has of each model, and what follows from what people ask and from what came of it. Pure: it holds no
//! model, only names, states and bytes; the shell does what it returns.

use std::collections::{BTreeMap, VecDeque};

use schemas::{
    models::{Change, HostMemory, InferenceState, KnownModel, ModelState, Operation, OperationState},
    rpc::{Model, Refusal},
    subject,
    wire::Nanos,
};

use super::{
    catalogue::Found,
    places::{HowGpus, Place, Places, Room},
    plan::Plan,
};
use crate::need::Need;

/// Operations that ended and are still told about: whoever asked for one reads its end within seconds.
const ENDED_MAX: usize = 16;

/// What the shell should do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Act {
    /// Read this model, then say `loaded`.
    Load(String),
    /// Let what waits for this model finish (with `force` only what is in hand), give it back, then say `unloaded`.
    Drain {
        /// Which.
        model: String,
        /// Only what is in hand.
        force: bool,
    },
}

/// All models of this worker.
#[derive(Debug)]
pub(crate) struct Registry {
    worker: String,
    plan: Plan,
    places: Places,
    models: BTreeMap<String, Entry>,
    /// Names of models that this worker serves from elsewhere.
    reserved: Vec<String>,
    operations: VecDeque<Operation>,
    counted: u64,
}

#[derive(Debug)]
struct Entry {
    kind: &'static str,
    window: u32,
    /// What its headers say, as long as they can be read.
    told: Need,
    /// The same, or what it was found to take once it was read, where it is.
    need: Need,
    state: ModelState,
    /// Loaded at the start, for as long as the process lives.
    fixed: bool,
    /// Its files are there.
    found: bool,
    /// It is wanted again as soon as it is gone.
    again: bool,
    /// Where it is, or is about to be.
    place: Place,
    /// Why it could not be on a GPU, or be there any longer.
    gpu_failed: Option<String>,
}

impl Entry {
    fn new(kind: &'static str, state: ModelState) -> Self {
        Self {
            kind,
            window: 0,
            told: Need::default(),
            need: Need::default(),
            state,
            fixed: false,
            found: true,
            again: false,
            place: Place::Cpu(None),
            gpu_failed: None,
        }
    }

    fn gpus(&self) -> &[u32] {
        match &self.place {
            Place::Gpus(ids) => ids,
            Place::Cpu(_) => &[],
        }
    }

    /// Whether it takes memory.
    const fn is_held(&self) -> bool {
        matches!(self.state, ModelState::Loading { .. } | ModelState::Ready | ModelState::Draining)
    }
}

impl Registry {
    pub(crate) fn new(worker: String, plan: Plan) -> Self {
        Self {
            worker,
            plan,
            places: Places::default(),
            models: BTreeMap::new(),
            reserved: Vec::new(),
            operations: VecDeque::new(),
            counted: 0,
        }
    }

    /// How GPUs are used.
    pub(crate) fn use_gpus(&mut self, how: HowGpus) {
        self.places.how = how;
    }

    /// What is free on the GPUs, just before something is asked.
    pub(crate) fn know_rooms(&mut self, rooms: Vec<Room>) {
        self.places.rooms = rooms;
    }

    /// Where a model is, or is about to be.
    pub(crate) fn place(&self, model: &str) -> Place {
        self.models.get(model).map_or(Place::Cpu(None), |entry| entry.place.clone())
    }

    /// Keeps a name for a model that is not loaded here but served by this worker.
    pub(crate) fn reserve(&mut self, name: String) {
        self.reserved.push(name);
    }

    /// Brings the models that are not held up to date with what lies in the directories.
    pub(crate) fn know(&mut self, found: &BTreeMap<String, Found>) {
        for entry in self.models.values_mut() {
            entry.found = false;
        }
        for (name, found) in found {
            let entry = self.models.entry(name.clone()).or_insert_with(|| Entry::new("chat", ModelState::Known));
            entry.found = true;
            entry.told = found.need.clone().unwrap_or_default();
            if !entry.is_held() {
                entry.need = entry.told.clone();
                entry.window = u32::try_from(entry.need.window).unwrap_or(u32::MAX);
            }
        }
        self.models.retain(|_, entry| entry.found || entry.is_held());
    }

    /// Takes in a model that is there for as long as the process lives, and whose memory is nobody's to plan.
    pub(crate) fn fix(&mut self, model: Model) {
        let kind = if model.kind == "embedding" { "embedding" } else { "chat" };
        let entry = Entry { window: model.window, fixed: true, found: false, ..Entry::new(kind, ModelState::Ready) };
        self.models.insert(model.name, entry);
    }

    /// Begins what is asked, joins what goes on already, or refuses.
    pub(crate) fn ask(&mut self, change: &Change, now: Nanos) -> Result<(Operation, Vec<Act>), Refusal> {
        self.take_back(change, now);
        let goes_on =
            |operation: &&Operation| operation.state == OperationState::Running && operation.change == *change;
        if let Some(same) = self.operations.iter().find(goes_on) {
            return Ok((same.clone(), Vec::new()));
        }
        let (acts, done) = match change {
            Change::Load { model } => self.load(model)?,
            Change::Unload { model, force } => self.unload(model, *force)?,
            Change::Switch { from, to, force } => self.switch(from, to, *force)?,
        };
        self.counted += 1;
        let operation = Operation {
            id: format!("{}.{}", self.worker, self.counted),
            worker: self.worker.clone(),
            change: change.clone(),
            state: if done { OperationState::Done } else { OperationState::Running },
            started_at: now,
            ended_at: done.then_some(now),
        };
        self.operations.push_back(operation.clone());
        self.forget_ended();
        Ok((operation, acts))
    }

    /// The last word counts: a model that was to come back once it is gone, and is now to go after all, does not come back,
    /// and whoever waited for it is told.
    fn take_back(&mut self, change: &Change, now: Nanos) {
        let gone = match change {
            Change::Unload { model, .. } => model,
            Change::Switch { from, .. } => from,
            Change::Load { .. } => return,
        };
        if !self.models.get_mut(gone).is_some_and(|entry| std::mem::take(&mut entry.again)) {
            return;
        }
        let comes = |change: &Change| match change {
            Change::Load { model } => model == gone,
            Change::Switch { to, .. } => to == gone,
            Change::Unload { .. } => false,
        };
        for mut operation in self.running(comes) {
            operation.state = OperationState::Failed { reason: format!("{gone} was unloaded meanwhile") };
            self.put(operation, now);
        }
    }

    /// A model was read: so many bytes of weights and such a window, or why not. One that could not be put on a GPU is tried
    /// on the CPUs, unless it must not be there.
    pub(crate) fn loaded(&mut self, model: &str, result: &Result<(u64, u32), String>, now: Nanos) -> Vec<Act> {
        let Some(entry) = self.models.get_mut(model) else { return Vec::new() };
        let on_gpus = !entry.gpus().is_empty();
        if let (Err(reason), true, false) = (result, on_gpus, self.places.how.demanded) {
            entry.gpu_failed = Some(reason.clone());
            entry.state = ModelState::Known;
            return match self.load(model) {
                Ok((acts, _)) => acts,
                Err(refusal) => self.ended(model, &Err(format!("{reason}; on the CPUs: {}", refusal.detail)), now),
            };
        }
        self.ended(model, result, now)
    }

    fn ended(&mut self, model: &str, result: &Result<(u64, u32), String>, now: Nanos) -> Vec<Act> {
        let Some(entry) = self.models.get_mut(model) else { return Vec::new() };
        entry.state = match result {
            Ok((bytes, window)) => {
                entry.window = *window;
                entry.need.weights_bytes = *bytes;
                entry.need.reading_bytes = 0;
                ModelState::Ready
            }
            Err(reason) => ModelState::Failed { reason: reason.clone() },
        };
        let mut acts = Vec::new();
        for mut operation in self.running(|change| !matches!(change, Change::Unload { .. }) && change.model() == model)
        {
            operation.state = match (result, &operation.change) {
                (Err(reason), _) => OperationState::Failed { reason: reason.clone() },
                (Ok(_), Change::Switch { from, force, .. }) => match self.unload(from, *force) {
                    Ok((more, _)) => {
                        acts.extend(more);
                        OperationState::Running
                    }
                    // Somebody else has unloaded it meanwhile.
                    Err(_) => OperationState::Done,
                },
                (Ok(_), _) => OperationState::Done,
            };
            self.put(operation, now);
        }
        acts
    }

    /// A model computes no more, because its GPU does not, or one of several (which, by their ranks). It goes, and comes
    /// back on the CPUs unless it must not be there.
    pub(crate) fn lost(&mut self, model: &str, reason: &str, ranks: &[usize]) -> Vec<Act> {
        let Some(entry) = self.models.get_mut(model) else { return Vec::new() };
        self.places.lost.extend(ranks.iter().filter_map(|rank| entry.gpus().get(*rank)));
        entry.gpu_failed = Some(reason.to_owned());
        if entry.state == ModelState::Ready {
            entry.state = ModelState::Draining;
            entry.again = !self.places.how.demanded;
        }
        vec![Act::Drain { model: model.to_owned(), force: true }]
    }

    /// A model is gone.
    pub(crate) fn unloaded(&mut self, model: &str, now: Nanos) -> Vec<Act> {
        let Some(entry) = self.models.get_mut(model) else { return Vec::new() };
        let again = std::mem::take(&mut entry.again);
        entry.state = match &entry.gpu_failed {
            Some(reason) if !again && self.places.how.demanded => ModelState::Failed { reason: reason.clone() },
            _ => ModelState::Known,
        };
        if !again {
            entry.gpu_failed = None;
        }
        let ends = |change: &Change| match change {
            Change::Unload { model: gone, .. } | Change::Switch { from: gone, .. } => gone == model,
            Change::Load { .. } => false,
        };
        for mut operation in self.running(ends) {
            // A switch whose new model is still being read goes on until that is there.
            let waits = matches!(&operation.change, Change::Switch { to, .. } if !self.is_ready(to));
            if !waits {
                operation.state = OperationState::Done;
                self.put(operation, now);
            }
        }
        if !again {
            return Vec::new();
        }
        match self.load(model) {
            Ok((acts, _)) => acts,
            Err(refusal) => {
                for mut operation in self.running(|change| !ends(change) && change.model() == model) {
                    operation.state = OperationState::Failed { reason: refusal.detail.clone() };
                    self.put(operation, now);
                }
                if let Some(entry) = self.models.get_mut(model)
                    && let Some(reason) = entry.gpu_failed.take()
                {
                    let reason = format!("{reason}; on the CPUs: {}", refusal.detail);
                    entry.state = ModelState::Failed { reason };
                }
                Vec::new()
            }
        }
    }

    /// So much of a model was read.
    pub(crate) fn progress(&mut self, model: &str, fraction: f64) {
        if let Some(Entry { state: ModelState::Loading { progress }, .. }) = self.models.get_mut(model) {
            *progress = fraction;
        }
    }

    /// Bytes that models take or may take.
    pub(crate) fn taken(&self) -> u64 {
        self.each_taken().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Bytes for models altogether.
    pub(crate) const fn max(&self) -> u64 {
        self.plan.max_bytes
    }

    /// What this worker says of itself.
    pub(crate) fn state(&self, kept_bytes: u64) -> InferenceState {
        let known = |(name, entry): (&String, &Entry)| KnownModel {
            name: name.clone(),
            kind: entry.kind.to_owned(),
            window: entry.window,
            state: entry.state.clone(),
            weights_bytes: entry.need.weights_bytes,
            cache_bytes_max: if entry.fixed { 0 } else { self.plan.cache_bytes_max },
            device: entry.is_held().then(|| entry.place.to_string()),
        };
        InferenceState {
            models: self.models.iter().map(known).collect(),
            operations: self.operations.iter().cloned().collect(),
            memory: HostMemory { max_bytes: self.plan.max_bytes, taken_bytes: self.taken(), kept_bytes },
            gpus: Vec::new(),
        }
    }

    /// The models that are offered.
    pub(crate) fn offered(&self) -> Vec<Model> {
        let ready = self.models.iter().filter(|(_, entry)| entry.state == ModelState::Ready);
        let model = |(name, entry): (&String, &Entry)| Model {
            name: name.clone(),
            kind: entry.kind.to_owned(),
            window: entry.window,
        };
        ready.map(model).collect()
    }

    /// What happened so far is nobody's business: the start.
    pub(crate) fn forget_operations(&mut self) {
        self.operations.retain(|operation| operation.state == OperationState::Running);
    }

    /// What must be done, and whether that was all.
    fn load(&mut self, model: &str) -> Result<(Vec<Act>, bool), Refusal> {
        let Some(entry) = self.models.get_mut(model) else {
            return Err(self.unknown(model));
        };
        match entry.state {
            ModelState::Ready => return Ok((Vec::new(), true)),
            ModelState::Loading { .. } => return Ok((Vec::new(), false)),
            ModelState::Draining => {
                entry.again = true;
                return Ok((Vec::new(), false));
            }
            ModelState::Known | ModelState::Failed { .. } => {}
        }
        // What it took elsewhere says nothing of where it goes now.
        entry.need = entry.told.clone();
        let (need, gpu_failed) = (entry.need.clone(), entry.gpu_failed.clone());
        // Jobs are queued under the name's token: two models of one token would take each other's.
        let twin = |(name, entry): &(&String, &Entry)| {
            *name != model && entry.is_held() && subject::token(name) == subject::token(model)
        };
        let reserved = self.reserved.iter().find(|name| subject::token(name) == subject::token(model));
        if let Some(twin) = self.models.iter().find(twin).map(|(name, _)| name).or(reserved) {
            let detail = format!("{model} and {twin}, which is served here, have the same queue; rename one of them");
            return Err(refusal("name_taken", detail));
        }
        let place = match gpu_failed {
            // It was tried, and is tried there again when it was gone for another reason.
            Some(why) => Place::Cpu(Some(why)),
            None => {
                let chosen = self.places.choose(model, &need, |gpu| self.taken_on(gpu));
                chosen.map_err(|why| refusal("no_room", why))?
            }
        };
        // On a GPU it takes memory of the machine only while it is read.
        let (plan, on_host) = match place {
            Place::Gpus(_) => (Plan { cache_bytes_max: 0, ..self.plan }, Need { weights_bytes: 0, ..need }),
            Place::Cpu(_) => (self.plan, need),
        };
        plan.admit(model, &on_host, self.each_taken()).map_err(|no_room| {
            let next = "unload a model (`vlinders models unload NAME`), or raise inference.memory_bytes_max";
            refusal("no_room", format!("{no_room}; {next}"))
        })?;
        let entry = self.models.get_mut(model).expect("it was just found");
        entry.state = ModelState::Loading { progress: 0.0 };
        entry.place = place;
        Ok((vec![Act::Load(model.to_owned())], false))
    }

    fn unload(&mut self, model: &str, force: bool) -> Result<(Vec<Act>, bool), Refusal> {
        let drain = || vec![Act::Drain { model: model.to_owned(), force }];
        match self.models.get_mut(model) {
            Some(Entry { fixed: true, kind, .. }) => {
                let detail =
                    format!("{model} ({kind}) is there as long as its worker runs; stop that, or start it without");
                Err(refusal("fixed_model", detail))
            }
            Some(entry @ Entry { state: ModelState::Ready, .. }) => {
                entry.state = ModelState::Draining;
                Ok((drain(), false))
            }
            // In a hurry after all.
            Some(Entry { state: ModelState::Draining, .. }) => Ok((if force { drain() } else { Vec::new() }, false)),
            Some(Entry { state: ModelState::Loading { .. }, .. }) => {
                Err(refusal("model_busy", format!("{model} is being loaded; unload it when that is done")))
            }
            Some(_) => {
                let loaded = names(self.offered().iter().map(|model| model.name.as_str()));
                Err(refusal("not_loaded", format!("{model} is not loaded; loaded are: {loaded}")))
            }
            None => Err(self.unknown(model)),
        }
    }

    fn switch(&mut self, from: &str, to: &str, force: bool) -> Result<(Vec<Act>, bool), Refusal> {
        if from == to {
            return Err(refusal("same_model", format!("{from} cannot be switched to itself; name two models")));
        }
        match self.models.get(from) {
            Some(Entry { fixed: false, state: ModelState::Ready | ModelState::Draining, .. }) => {}
            // Refused for the same reasons, and nothing was begun.
            _ => return self.unload(from, force),
        }
        let (acts, ready) = self.load(to).map_err(|mut refusal| {
            if refusal.code == "no_room" {
                let both = format!(
                    "; a switch needs room for both: where requests for {from} may wait or fail meanwhile, unload it first"
                );
                refusal.detail.push_str(&both);
            }
            refusal
        })?;
        if ready { self.unload(from, force) } else { Ok((acts, false)) }
    }

    fn unknown(&self, model: &str) -> Refusal {
        let known = names(self.models.keys().map(String::as_str));
        refusal(
            "unknown_model",
            format!("there is no model {model:?} in the directories of {}; there are: {known}", self.worker),
        )
    }

    fn is_ready(&self, model: &str) -> bool {
        self.models.get(model).is_some_and(|entry| entry.state == ModelState::Ready)
    }

    fn each_taken(&self) -> Vec<(String, u64)> {
        let held = self.models.iter().filter(|(_, entry)| entry.is_held() && !entry.fixed);
        let counted = |entry: &Entry| match entry.place {
            Place::Gpus(_) => 0,
            Place::Cpu(_) => self.plan.counted(entry.need.weights_bytes),
        };
        held.map(|(name, entry)| (name.clone(), counted(entry) + entry.need.reading_bytes)).collect()
    }

    /// Bytes that models which are being read will take on a GPU. Those that are there have taken them.
    fn taken_on(&self, gpu: u32) -> u64 {
        let reads = |entry: &&Entry| matches!(entry.state, ModelState::Loading { .. }) && entry.gpus().contains(&gpu);
        let need = |entry: &Entry| entry.need.gpus.on(entry.gpus().len()).ok();
        self.models.values().filter(reads).filter_map(need).map(|need| need.total()).sum()
    }

    /// Copies of the operations under way whose change is of interest.
    fn running(&self, of: impl Fn(&Change) -> bool) -> Vec<Operation> {
        let running = |operation: &&Operation| operation.state == OperationState::Running && of(&operation.change);
        self.operations.iter().filter(running).cloned().collect()
    }

    fn put(&mut self, mut changed: Operation, now: Nanos) {
        if changed.state != OperationState::Running {
            changed.ended_at = Some(now);
        }
        if let Some(operation) = self.operations.iter_mut().find(|operation| operation.id == changed.id) {
            *operation = changed;
        }
        self.forget_ended();
    }

    fn forget_ended(&mut self) {
        let ended = |operation: &Operation| operation.state != OperationState::Running;
        let mut more = self.operations.iter().filter(|operation| ended(operation)).count().saturating_sub(ENDED_MAX);
        self.operations.retain(|operation| {
            let goes = more > 0 && ended(operation);
            more -= usize::from(goes);
            !goes
        });
    }
}

pub(crate) fn refusal(code: &str, detail: impl Into<String>) -> Refusal {
    Refusal { code: code.to_owned(), detail: detail.into() }
}

/// Names for people.
pub(crate) fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests;
