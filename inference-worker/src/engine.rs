//! Runs one model: a thread that plans a step, computes it, and tells every requester about its token.
//!
//! The thread sleeps while there is nothing to do. Submitting renders and tokenises on the caller's thread, so that
//! the step loop only computes. A cancelled request is gone before the next step is planned.
//!
//! What computes may pick tokens itself (a GPU does). Then the next step is begun before the last one's tokens are known,
//! so that the device never waits for this thread. What holds throughout:
//!
//! - At most two steps are under way, and a token of the older is the only one that the newer may use without anyone here
//!   knowing it. The scheduler was promised that token, and has taken blocks for it.
//! - A step that yields anything that is picked here, or among what a grammar allows, is finished before the next is planned.
//! - A token that was drawn too early is thrown away: its sequence had ended, or, behind the mark of a call, was bound by
//!   then. What it wrote is behind everything that is known of its sequence, and is written again before it is read.
//! - Steps are done in the order in which they are begun, so blocks may change hands while a step that uses them is under
//!   way: whoever gets them writes later.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use rayon::iter::{IntoParallelRefMutIterator, ParallelIterator};
use schemas::{
    ToolSpec,
    chat::{FunctionCall, Priority, ResponseFormat, TokenLogprob, ToolChoice, TopLogprob},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    sync::{mpsc as events, watch},
    task::JoinHandle,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    answer::{Answer, FinishReason},
    compute::{Compute, Cpu, Row, Step, Wanted},
    constraint::{CALLS_MAX, Constraint},
    cuda::{self, device::Fault},
    figures::Figures,
    kernels::team::Team,
    kv::{BLOCK, Blocks},
    model_directory::Model,
    prefixes::Prefixes,
    sample::{self, Sampling, Seen},
    scheduler::{Chunk, Limits, Scheduler, SequenceId},
    tool_calls::{Family, ToolCall},
    truncation,
};

/// The bounds of one engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Requests that run at the same time. Default 128: beyond it a step of a small model takes too long.
    pub slots: usize,
    /// Tokens in one step. Default 512.
    pub step_tokens: usize,
    /// Memory for keys and values, in bytes; taken as needed. Default 64 MiB.
    pub cache_bytes_max: usize,
    /// How long without work until the memory for keys and values is given back. Default 30 s.
    pub cache_idle: Duration,
    /// What bounds it on a GPU, where the memory for keys and values is taken at once and kept.
    pub gpu: cuda::Limits,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            slots: 128,
            step_tokens: 512,
            cache_bytes_max: 64 << 20,
            cache_idle: Duration::from_secs(30),
            gpu: cuda::Limits::default(),
        }
    }
}

/// What to answer, and how.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The conversation, in OpenAI's shape.
    pub messages: Vec<Value>,
    /// The tools the model may call, in OpenAI's shape.
    pub tools: Vec<Value>,
    /// How tokens are picked.
    pub sampling: Sampling,
    /// Whether tools may or must be called.
    pub tool_choice: Option<ToolChoice>,
    /// At most one call: behind it the answer ends.
    pub one_call: bool,
    /// What form the text must have.
    pub response_format: Option<ResponseFormat>,
    /// At most this many tokens; the window bounds it as well.
    pub tokens_max: Option<usize>,
    /// The answer ends before any of these.
    pub stop: Vec<String>,
    /// Tokens an earlier attempt has already produced; the answer continues after them.
    pub produced: Vec<u32>,
    /// How likely those were, if that is asked.
    pub produced_logprobs: Vec<TokenLogprob>,
    /// Requests of one tenant queue behind each other, not in front of other tenants.
    pub tenant: u64,
    /// Who goes first where there is no room for all.
    pub priority: Priority,
    /// Answers besides the first. They share its prompt, which is computed once; the one after `i` others draws with
    /// `seed + i`.
    pub alternatives: usize,
    /// Leave out the oldest exchanges of a conversation that does not fit the window.
    pub truncate: bool,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// One token, and the text that became certain with it (possibly none).
    Token {
        /// The token.
        id: u32,
        /// The text.
        text: String,
        /// How likely it was, if that is asked.
        logprob: Option<TokenLogprob>,
    },
    /// The end.
    Finished(Box<Outcome>),
    /// The model cannot go on; the text says why.
    Failed(String),
    /// What the request demands of the answer cannot be met; the text says why.
    Refused(String),
}

/// A finished answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Why it ended.
    pub reason: FinishReason,
    /// The whole text for the reader.
    pub text: String,
    /// The calls the model asks for; their arguments are JSON objects, as text.
    pub tool_calls: Vec<FunctionCall>,
    /// Text and reason of what should have been calls.
    pub malformed: Vec<(String, String)>,
    /// How likely each token was, if that is asked.
    pub logprobs: Vec<TokenLogprob>,
    /// Its tokens, those of earlier attempts included.
    pub ids: Vec<u32>,
    /// Bytes of the text behind each token; with `ids` none where they are not known.
    pub ends: Vec<usize>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of them did not have to be computed.
    pub cached_tokens: usize,
    /// Messages that the prompt was left without.
    pub dropped_messages: usize,
    /// Tokens of the answer, those of earlier attempts included.
    pub completion_tokens: usize,
    /// From submission to the first new token.
    pub first_token: Duration,
    /// From submission to the end, that of the alternatives included.
    pub total: Duration,
    /// The other answers, if any were asked for; these have none.
    pub alternatives: Vec<Outcome>,
}

impl Outcome {
    /// Leaves out all calls but the first; what should have been one only where there is no other.
    pub(crate) fn keep_one_call(&mut self) {
        self.malformed.truncate(usize::from(self.tool_calls.is_empty()));
        self.tool_calls.truncate(1);
    }
}

/// Why a request is not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Rejection {
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {tokens} tokens, the window of {model} holds {window}")]
    PromptTooLong {
        /// The model.
        model: String,
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens the window holds.
        window: usize,
    },
    /// The conversation does not fit the model's template.
    #[error("the conversation does not fit the chat template: {0}")]
    Template(String),
    /// The text cannot be tokenised, or nothing is left of it.
    #[error("the prompt cannot be tokenised: {0}")]
    Tokenise(String),
    /// What the request demands of the answer cannot be met.
    #[error("{0}")]
    Unusable(String),
    /// A server that answers in our place has no room for prompt and answer, in its words.
    #[error("{0}")]
    Overflow(String),
    /// It has no time for us, or is not there.
    #[error("{0}")]
    Overloaded(String),
    /// It does not serve us.
    #[error("{0}")]
    Refused(String),
    /// The engine has stopped.
    #[error("the engine of this model has stopped")]
    Stopped,
    /// A fault of ours.
    #[error("submit: {0}")]
    Broken(String),
}

/// A handle on a running engine; dropping the last ends its thread.
#[derive(Debug, Clone)]
pub struct Engine {
    model: Arc<Model>,
    commands: mpsc::Sender<Command>,
    active: Arc<AtomicUsize>,
    computed: Arc<AtomicU64>,
    next_id: Arc<AtomicU64>,
    lost: watch::Receiver<Option<String>>,
    figures: Figures,
    slots: usize,
    window: usize,
}

/// A request under way. Dropping it ends the request: its place is free before the next step.
#[derive(Debug)]
pub struct Running {
    /// What happens to it, in order.
    pub events: events::UnboundedReceiver<Event>,
    _end: EndOnDrop,
}

impl Running {
    /// A request that a task of its own carries out.
    pub(crate) fn of_task(events: events::UnboundedReceiver<Event>, task: JoinHandle<()>) -> Self {
        Self { events, _end: EndOnDrop::Task(AbortOnDropHandle::new(task)) }
    }
}

/// What ends a request when its reader goes.
#[derive(Debug)]
enum EndOnDrop {
    Engine(#[expect(dead_code, reason = "only its drop counts")] CancelOnDrop),
    Task(#[expect(dead_code, reason = "only its drop counts")] AbortOnDropHandle<()>),
}

#[derive(Debug)]
struct CancelOnDrop {
    id: SequenceId,
    commands: mpsc::Sender<Command>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        // An engine that has stopped has nothing to cancel.
        let _ = self.commands.send(Command::Cancel(self.id));
    }
}

enum Command {
    /// The answers to one request, the first in front.
    Submit(Vec<Active>),
    /// The first answer's sequence; it stands for all.
    Cancel(SequenceId),
    HandOver(mpsc::SyncSender<Prefixes>),
}

/// One answer in the making.
struct Active {
    id: SequenceId,
    /// The sequence of the first answer to the same request.
    first: SequenceId,
    tenant: u64,
    priority: Priority,
    prompt: Vec<u32>,
    dropped_messages: usize,
    answer: Answer,
    tokens_max: usize,
    sampling: Sampling,
    seen: Seen,
    constraint: Constraint,
    logprobs: Vec<TokenLogprob>,
    events: events::UnboundedSender<Event>,
    submitted: Instant,
    first_token: Option<Duration>,
    /// Tokens of it that steps under way will yield.
    under_way: usize,
    /// How often such tokens were thrown away.
    thrown_away: u64,
}

impl Engine {
    /// Starts the thread of one model, which computes with `team`.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn start(model: Arc<Model>, team: Arc<Team>, config: &EngineConfig) -> std::io::Result<Self> {
        Self::start_with(model, team, config, None)
    }

    /// The same with the prefixes that an earlier engine of the same files left; those that do not fit are dropped.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn start_with(
        model: Arc<Model>,
        team: Arc<Team>,
        config: &EngineConfig,
        kept: Option<Prefixes>,
    ) -> std::io::Result<Self> {
        let (computer, blocks, step_tokens) = match &model.device {
            Some(device) => {
                let started = Arc::clone(device).start(config).map_err(std::io::Error::other)?;
                (started.computer, Blocks::new(started.blocks), config.gpu.step_tokens.max(1))
            }
            None => {
                let blocks = (config.cache_bytes_max / model.decoder.block_bytes()).max(2);
                let Prefixes { blocks, cache } = Prefixes::or_empty(kept, model.decoder.cache(blocks), blocks);
                let computer: Box<dyn Compute> = Box::new(Cpu::new(Arc::clone(&model), team, cache));
                (computer, blocks, config.step_tokens)
            }
        };
        let window = model.decoder.architecture().window.min(blocks.total() * BLOCK);
        let limits = Limits { step_tokens, running: config.slots };
        let (commands, inbox) = mpsc::channel();
        let (active, computed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        let (loses, lost) = watch::channel(None);
        let figures = Figures::new(&model.name);
        let worker = Worker {
            scheduler: Scheduler::with_blocks(limits, blocks),
            model: Arc::clone(&model),
            under_way: None,
            requests: BTreeMap::new(),
            groups: BTreeMap::new(),
            active: Arc::clone(&active),
            computed: Arc::clone(&computed),
            cache_idle: config.cache_idle,
            loses,
            figures: figures.clone(),
        };
        figures.show(&worker.scheduler);
        let name = format!("engine-{}", model.name);
        std::thread::Builder::new().name(name).spawn(move || worker.run(inbox, computer))?;
        Ok(Self {
            model,
            commands,
            active,
            computed,
            next_id: Arc::default(),
            lost,
            figures,
            slots: config.slots,
            window,
        })
    }

    /// Ends it, and returns what it has computed of prompts. Requests under way fail. None if it had ended already.
    /// Blocks until its step is done.
    pub fn hand_over(&self) -> Option<Prefixes> {
        let (sender, prefixes) = mpsc::sync_channel(1);
        self.commands.send(Command::HandOver(sender)).ok()?;
        prefixes.recv().ok()
    }

    /// Why it can compute no more, once it cannot: its device was lost. It has told everyone who asked it by then.
    pub fn lost(&self) -> watch::Receiver<Option<String>> {
        self.lost.clone()
    }

    /// What it shows of itself.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// The model it runs.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Tokens of prompt and answer together that it can hold.
    pub fn window(&self) -> usize {
        self.window
    }

    /// Requests that run at the same time.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Answers it could begin now without queueing.
    pub fn free_slots(&self) -> usize {
        self.slots.saturating_sub(self.active.load(Ordering::Acquire))
    }

    /// Tokens of prompts and answers that it has computed.
    pub fn computed_tokens(&self) -> u64 {
        self.computed.load(Ordering::Acquire)
    }

    /// Takes a request; its events begin when there is room.
    ///
    /// # Errors
    /// The conversation does not fit the template or the window, or the engine has stopped.
    pub fn submit(&self, request: Request) -> Result<Running, Rejection> {
        let submitted = now();
        let offered = if request.tool_choice == Some(ToolChoice::None) { &[] } else { request.tools.as_slice() };
        let encode = |messages: &[Value]| {
            let text = self.model.template.render(messages, offered).map_err(Rejection::Template)?;
            self.model.tokenizer.encode(&text).map_err(Rejection::Tokenise)
        };
        let mut prompt = encode(&request.messages)?;
        let mut dropped_messages = 0;
        if request.truncate && prompt.len() >= self.window {
            let room = request.tokens_max.unwrap_or(usize::MAX).clamp(1, truncation::answer_tokens_max(self.window));
            (prompt, dropped_messages) = truncation::fit(&request.messages, prompt, self.window - room, encode)?;
        }
        self.submit_tokens(&prompt, request, dropped_messages, submitted)
    }

    fn submit_tokens(
        &self,
        prompt: &[u32],
        mut request: Request,
        dropped_messages: usize,
        submitted: Instant,
    ) -> Result<Running, Rejection> {
        request.sampling.check().map_err(Rejection::Unusable)?;
        let vocabulary = self.model.decoder.architecture().vocabulary;
        if prompt.is_empty() {
            return Err(Rejection::Tokenise("it is empty: the conversation says nothing".to_owned()));
        }
        if prompt.iter().chain(&request.produced).any(|&id| id as usize >= vocabulary) {
            return Err(Rejection::Tokenise("a token is outside the model's vocabulary".to_owned()));
        }
        if prompt.len() >= self.window {
            return Err(Rejection::PromptTooLong {
                model: self.model.name.clone(),
                tokens: prompt.len(),
                window: self.window,
            });
        }
        let tokens_max = request.tokens_max.unwrap_or(usize::MAX).clamp(1, self.window - prompt.len());
        let (produced, logprobs) =
            (std::mem::take(&mut request.produced), std::mem::take(&mut request.produced_logprobs));
        let answers = 1 + request.alternatives;
        let first = self.next_id.fetch_add(answers as u64, Ordering::Relaxed);
        let (sender, events) = events::unbounded_channel();
        let begin = |index: usize| -> Result<Active, Rejection> {
            let seed = request.sampling.seed.wrapping_add(index as u64);
            let sampling = Sampling { seed, ..request.sampling.clone() };
            Ok(Active {
                id: first + index as u64,
                first,
                tenant: request.tenant,
                priority: request.priority,
                prompt: prompt.to_vec(),
                dropped_messages,
                answer: Answer::new(request.stop.clone(), self.family(&request), request.one_call),
                tokens_max,
                seen: if sampling.penalises() { Seen::new(prompt, &[]) } else { Seen::default() },
                constraint: self.constraint(&request)?,
                sampling,
                logprobs: Vec::new(),
                events: sender.clone(),
                submitted,
                first_token: None,
                under_way: 0,
                thrown_away: 0,
            })
        };
        let mut active = (0..answers).map(begin).collect::<Result<Vec<_>, _>>()?;
        active[0].resume(&self.model, produced, logprobs);
        self.active.fetch_add(answers, Ordering::AcqRel);
        self.commands.send(Command::Submit(active)).map_err(|_| Rejection::Stopped)?;
        let cancel = CancelOnDrop { id: first, commands: self.commands.clone() };
        Ok(Running { events, _end: EndOnDrop::Engine(cancel) })
    }

    /// The family whose calls may stand in the answer. Where no mark tells a call from text, only if tools are offered.
    fn family(&self, request: &Request) -> Option<Family> {
        let text_only = request.response_format.is_some() || request.tool_choice == Some(ToolChoice::None);
        let marked = matches!(self.model.family, Family::Hermes | Family::Mistral);
        (!text_only && (marked || !request.tools.is_empty())).then_some(self.model.family)
    }

    fn constraint(&self, request: &Request) -> Result<Constraint, Rejection> {
        let tools: Vec<ToolSpec> =
            request.tools.iter().filter_map(|tool| serde_json::from_value(tool.clone()).ok()).collect();
        if tools.is_empty() && request.response_format.is_none() {
            return Ok(Constraint::free());
        }
        let (choice, form) = (request.tool_choice.as_ref(), request.response_format.as_ref());
        let calls_max = if request.one_call { 1 } else { CALLS_MAX };
        let made = self.model.grammars().and_then(|grammars| grammars.constrain(&tools, choice, form, calls_max));
        match made {
            Ok(constraint) => Ok(constraint),
            // Nothing was demanded: calls are read as they come.
            Err(why) if choice.is_none() && form.is_none() => {
                tracing::debug!(model = self.model.name, %why, "calls are not bound to their schemas");
                Ok(Constraint::free())
            }
            Err(why) => Err(Rejection::Unusable(why.to_string())),
        }
    }
}

impl Active {
    /// Takes over what an earlier attempt has produced.
    fn resume(&mut self, model: &Model, produced: Vec<u32>, logprobs: Vec<TokenLogprob>) {
        for id in produced {
            if self.answer.finish.is_none() {
                self.answer.push(model, id, self.tokens_max);
                let begun = if self.constraint.watches() { self.answer.begun() } else { None };
                self.constraint.push(id, begun.as_deref());
                if self.sampling.penalises() {
                    self.seen.push(id);
                }
            }
        }
        self.logprobs = logprobs;
    }

    /// The next token, or why there is none.
    fn pick(&mut self, logits: &[f32], position: usize) -> Result<u32, Event> {
        if !self.sampling.penalises() && !self.constraint.binds() {
            return self.sampling.pick(logits, position).ok_or_else(no_number);
        }
        let mut changed = logits.to_vec();
        if self.sampling.penalises() {
            self.sampling.penalise(&mut changed, &self.seen);
        }
        self.constraint.apply(&mut changed).map_err(Event::Refused)?;
        let token = self.sampling.pick(&changed, position).ok_or_else(no_number)?;
        if self.sampling.penalises() {
            self.seen.push(token);
        }
        Ok(token)
    }

    /// What a step shall yield for it: the token, if what computes can pick it as this would.
    fn wants(&self, picks: bool) -> Wanted {
        if !picks || self.sampling.penalises() || self.sampling.logprobs.is_some() {
            Wanted::Logits
        } else if self.constraint.binds() {
            Wanted::Allowed(self.sampling.clone())
        } else {
            Wanted::Token(self.sampling.clone())
        }
    }

    /// What has come of it, when it has ended; so many tokens of its prompt had been found in the cache.
    fn outcome(self, reason: FinishReason, found: usize) -> Outcome {
        let total = now() - self.submitted;
        Outcome {
            reason,
            text: self.answer.text,
            tool_calls: self.answer.calls.into_iter().map(written).collect(),
            malformed: self.answer.malformed,
            logprobs: self.logprobs,
            prompt_tokens: self.prompt.len(),
            cached_tokens: found.min(self.prompt.len()),
            dropped_messages: self.dropped_messages,
            completion_tokens: self.answer.ids.len(),
            ids: self.answer.ids,
            ends: self.answer.ends,
            first_token: self.first_token.unwrap_or(total),
            total,
            alternatives: Vec::new(),
        }
    }
}

/// How likely a token was, and the likeliest in its place.
fn logprob(model: &Model, logits: &[f32], token: u32, count: usize) -> TokenLogprob {
    let (logprob, top) = sample::logprobs(logits, token, count);
    let name = |id| model.tokenizer.name(id);
    let top = top.into_iter().map(|(id, logprob)| TopLogprob { token: name(id), logprob });
    TokenLogprob { token: name(token), logprob, top_logprobs: top.collect() }
}

fn written(call: ToolCall) -> FunctionCall {
    FunctionCall { name: call.name, arguments: call.arguments.to_string() }
}

struct Worker {
    model: Arc<Model>,
    scheduler: Scheduler,
    /// The step that was begun and whose tokens nobody here knows.
    under_way: Option<UnderWay>,
    requests: BTreeMap<SequenceId, Active>,
    /// By the sequence of the first answer.
    groups: BTreeMap<SequenceId, Group>,
    active: Arc<AtomicUsize>,
    computed: Arc<AtomicU64>,
    cache_idle: Duration,
    loses: watch::Sender<Option<String>>,
    figures: Figures,
}

/// A step that was begun: what it will yield, in order.
struct UnderWay {
    rows: Vec<Expected>,
    /// Something of it is picked here, or among what is said when it is finished.
    waits: bool,
}

struct Expected {
    sequence: SequenceId,
    /// Of the token.
    position: usize,
    /// How often tokens of the request had been thrown away when this one was asked for.
    thrown_away: u64,
}

/// The answers to one request.
struct Group {
    /// Not begun yet: until the first has computed the prompt, they could not share it.
    waiting: Vec<Active>,
    /// What has come of each.
    outcomes: Vec<Option<Outcome>>,
}

impl Worker {
    fn run(mut self, inbox: mpsc::Receiver<Command>, mut computer: Box<dyn Compute>) {
        loop {
            if self.scheduler.is_idle() {
                if let Err(fault) = self.collect(&mut *computer) {
                    return self.lose(inbox, &fault);
                }
                self.figures.show(&self.scheduler);
                match self.wait(&inbox, &mut *computer) {
                    Some(Command::HandOver(to)) => return self.hand_over(inbox, computer, &to),
                    Some(command) => self.take(command),
                    None => return,
                }
            }
            while let Ok(command) = inbox.try_recv() {
                match command {
                    Command::HandOver(to) => return self.hand_over(inbox, computer, &to),
                    command => self.take(command),
                }
            }
            if let Err(fault) = self.step(&mut *computer) {
                return self.lose(inbox, &fault);
            }
        }
    }

    /// Waits for work. After a while without any, the cache gives its memory back; then it waits for as long as it takes.
    fn wait(&mut self, inbox: &mpsc::Receiver<Command>, computer: &mut dyn Compute) -> Option<Command> {
        match inbox.recv_timeout(self.cache_idle) {
            Ok(command) => return Some(command),
            Err(mpsc::RecvTimeoutError::Disconnected) => return None,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        computer.rest(&mut || self.scheduler.forget_unused());
        self.figures.show(&self.scheduler);
        inbox.recv().ok()
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Submit(mut answers) => {
                let outcomes = vec![None; answers.len()];
                let first = answers.remove(0);
                self.groups.insert(first.id, Group { waiting: answers, outcomes });
                self.begin(first);
            }
            Command::Cancel(first) => self.forget(first),
            Command::HandOver(_) => unreachable!("it ends the loop"),
        }
    }

    fn begin(&mut self, request: Active) {
        let (id, tenant, priority, ended) = (request.id, request.tenant, request.priority, request.answer.finish);
        let tokens = [request.prompt.as_slice(), &request.answer.ids].concat();
        self.requests.insert(id, request);
        match ended {
            Some(reason) => self.finish(id, reason),
            None => self.scheduler.add(id, tenant, priority, tokens),
        }
    }

    /// The prompt has been computed: the other answers to the same request begin, and find it in the cache.
    fn begin_others(&mut self, first: SequenceId) {
        let waiting = self.groups.get_mut(&first).map(|group| std::mem::take(&mut group.waiting));
        waiting.into_iter().flatten().for_each(|other| self.begin(other));
    }

    fn hand_over(
        mut self,
        inbox: mpsc::Receiver<Command>,
        mut computer: Box<dyn Compute>,
        to: &mpsc::SyncSender<Prefixes>,
    ) {
        // Whoever submits from now on is told that it has stopped.
        drop(inbox);
        // What was promised to be in a block is there before anybody finds it.
        if let Err(fault) = self.collect(&mut *computer) {
            tracing::warn!(model = self.model.name, %fault, "the last step was not finished");
        }
        self.fail_all("the model was unloaded");
        let Self { scheduler, model, .. } = self;
        // Who hears of the end may count on the memory.
        drop(model);
        // Whoever asked may have stopped waiting: then nothing is kept.
        let _ = to.send(computer.end(scheduler.into_blocks()));
    }

    /// Nothing can be computed any more: everyone is told, and so is whoever owns the engine.
    fn lose(mut self, inbox: mpsc::Receiver<Command>, fault: &Fault) {
        let reason = fault.to_string();
        tracing::error!(model = self.model.name, reason, "the model computes no more");
        // Before anyone hears of it, so that whoever asks again does not ask here.
        let _ = self.loses.send(Some(reason.clone()));
        while let Ok(command) = inbox.try_recv() {
            // Whoever wanted what was computed gets nothing; those who were about to begin are told below.
            if !matches!(command, Command::HandOver(_)) {
                self.take(command);
            }
        }
        drop(inbox);
        self.fail_all(&reason);
    }

    fn fail_all(&mut self, reason: &str) {
        for first in self.groups.keys().copied().collect::<Vec<_>>() {
            if let Some(request) = self.requests.range(first..).next().map(|(_, request)| request) {
                // A reader that has gone does not miss it.
                let _ = request.events.send(Event::Failed(reason.to_owned()));
            }
            self.forget(first);
        }
    }

    /// Begins the next step, then finishes the one before it, and this one, too, if its tokens are picked here.
    fn step(&mut self, computer: &mut dyn Compute) -> Result<(), Fault> {
        let chunks = self.scheduler.schedule();
        self.figures.show(&self.scheduler);
        if chunks.is_empty() {
            if self.under_way.is_none() {
                assert!(self.scheduler.is_idle(), "the scheduler always finds work while there is some");
            }
            return self.collect(computer);
        }
        let tokens: usize = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        self.computed.fetch_add(tokens as u64, Ordering::AcqRel);
        self.figures.stepped(chunks.len(), tokens);
        let begun = self.begin_step(computer, chunks)?;
        self.collect(computer)?;
        let waits = begun.waits;
        self.under_way = Some(begun);
        if waits { self.collect(computer) } else { Ok(()) }
    }

    fn begin_step(&mut self, computer: &mut dyn Compute, chunks: Vec<Chunk>) -> Result<UnderWay, Fault> {
        let mut begun = UnderWay { rows: Vec::new(), waits: !computer.picks() };
        let mut wanted = Vec::new();
        for chunk in chunks.iter().filter(|chunk| chunk.yields) {
            let request = self.requests.get_mut(&chunk.sequence).expect("who is scheduled has asked");
            let wants = request.wants(computer.picks());
            begun.rows.push(Expected {
                sequence: chunk.sequence,
                position: chunk.start + chunk.tokens.len(),
                thrown_away: request.thrown_away,
            });
            request.under_way += 1;
            match wants {
                Wanted::Logits | Wanted::Allowed(_) => begun.waits = true,
                Wanted::Token(_) => {
                    // One that reaches its limit has surely ended.
                    if request.answer.ids.len() + request.under_way < request.tokens_max {
                        self.scheduler.promise(chunk.sequence);
                    }
                }
            }
            wanted.push(wants);
        }
        computer.begin(Step { chunks, wanted })?;
        Ok(begun)
    }

    /// Finishes the step under way, if there is one.
    fn collect(&mut self, computer: &mut dyn Compute) -> Result<(), Fault> {
        let Some(step) = self.under_way.take() else { return Ok(()) };
        let yields: BTreeSet<SequenceId> = step.rows.iter().map(|row| row.sequence).collect();
        let mut bound: Vec<&mut Constraint> = self
            .requests
            .iter_mut()
            .filter(|(id, request)| request.constraint.binds() && yields.contains(id))
            .map(|(_, request)| &mut request.constraint)
            .collect();
        let rows = if computer.picks() {
            // The device computes meanwhile.
            bound.par_iter_mut().for_each(|constraint| constraint.prepare());
            let vocabulary = self.model.decoder.architecture().vocabulary;
            let requests = &mut self.requests;
            computer.finish(&mut |row| {
                requests.get_mut(&step.rows[row].sequence).and_then(|request| request.constraint.allowed(vocabulary))
            })
        } else {
            std::thread::scope(|scope| {
                if !bound.is_empty() {
                    // Masks are ready by the time the logits are.
                    scope.spawn(|| bound.iter_mut().for_each(|constraint| constraint.prepare()));
                }
                computer.finish(&mut |_| None)
            })
        }?;
        assert_eq!(rows.len(), step.rows.len(), "one row for every chunk that yields");
        for (expected, row) in step.rows.iter().zip(rows) {
            self.token(expected, row);
        }
        Ok(())
    }

    /// Picks the token of one request, if that was not done, and tells its reader.
    fn token(&mut self, expected: &Expected, row: Row<'_>) {
        let id = expected.sequence;
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        if request.thrown_away != expected.thrown_away {
            return;
        }
        request.under_way -= 1;
        let picked = match row {
            Row::Logits(logits) => request.pick(logits, expected.position),
            Row::Token(token) => match request.constraint.stuck() {
                Some(why) => Err(Event::Refused(why)),
                None => token.ok_or_else(no_number),
            },
        };
        let token = match picked {
            Ok(token) => token,
            Err(end) => {
                // A reader that has gone does not miss it.
                let _ = request.events.send(end);
                let first = request.first;
                self.forget(first);
                return;
            }
        };
        let text = request.answer.push(&self.model, token, request.tokens_max);
        let begun = if request.constraint.watches() { request.answer.begun() } else { None };
        request.constraint.push(token, begun.as_deref());
        request.first_token.get_or_insert_with(|| now() - request.submitted);
        let logprob = match (row, request.sampling.logprobs) {
            (Row::Logits(logits), Some(count)) => Some(logprob(&self.model, logits, token, count)),
            _ => None,
        };
        request.logprobs.extend(logprob.clone());
        let (first, finish) = (request.first, request.answer.finish);
        // The others come whole.
        let reader_left = match id == first {
            true => request.events.send(Event::Token { id: token, text, logprob }).is_err(),
            false => request.events.is_closed(),
        };
        self.scheduler.complete(id, Some(token));
        // Whoever drew the next one did not know that it would be bound.
        if request.under_way > 0 && request.constraint.binds() {
            request.under_way = 0;
            request.thrown_away += 1;
            self.scheduler.retract(id);
        }
        if reader_left {
            self.forget(first);
            return;
        }
        self.begin_others(first);
        if let Some(reason) = finish {
            self.finish(id, reason);
        }
    }

    fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        let found = self.scheduler.found(id);
        self.scheduler.remove(id);
        let Some(request) = self.requests.remove(&id) else {
            return;
        };
        self.active.fetch_sub(1, Ordering::AcqRel);
        let (first, events, submitted) = (request.first, request.events.clone(), request.submitted);
        let outcome = request.outcome(reason, found);
        self.begin_others(first);
        let Some(group) = self.groups.get_mut(&first) else {
            return;
        };
        group.outcomes[(id - first) as usize] = Some(outcome);
        if group.outcomes.iter().any(Option::is_none) {
            return;
        }
        let group = self.groups.remove(&first);
        let mut outcomes = group.into_iter().flat_map(|group| group.outcomes).flatten();
        if let Some(outcome) = outcomes.next() {
            let outcome = Outcome { alternatives: outcomes.collect(), total: now() - submitted, ..outcome };
            // A reader that has gone does not miss it.
            let _ = events.send(Event::Finished(Box::new(outcome)));
        }
    }

    /// Ends a request with all its answers; their places are free before the next step.
    fn forget(&mut self, first: SequenceId) {
        let Some(group) = self.groups.remove(&first) else {
            return;
        };
        let mut answers = group.waiting.len();
        for id in first..first + group.outcomes.len() as u64 {
            self.scheduler.remove(id);
            answers += usize::from(self.requests.remove(&id).is_some());
        }
        self.active.fetch_sub(answers, Ordering::AcqRel);
    }
}

fn no_number() -> Event {
    Event::Failed("the model produced no finite logits".to_owned())
}

#[expect(clippy::disallowed_methods, reason = "measures how long a step takes; nothing is decided by it")]
fn now() -> Instant {
    Instant::now()
}
