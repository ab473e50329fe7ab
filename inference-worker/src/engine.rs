//! Runs one model: a thread that plans a step, computes it, and tells every requester about its token.
//!
//! The thread sleeps while there is nothing to do. Submitting renders and tokenises on the caller's thread, so that
//! the step loop only computes. A cancelled request is gone before the next step is planned.

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
    chat::{ResponseFormat, TokenLogprob, ToolChoice, TopLogprob},
};
use serde_json::Value;
use tokio::sync::mpsc as events;

use crate::{
    answer::{Answer, FinishReason},
    constraint::Constraint,
    kv::BLOCK,
    model::{Batch, Scratch},
    model_directory::Model,
    prefixes::Prefixes,
    sample::{self, Sampling, Seen},
    scheduler::{Chunk, Limits, Scheduler, SequenceId},
    tool_calls::{Family, ToolCall},
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
    /// Threads that compute. Default: one for each CPU.
    pub threads: usize,
    /// How long without work until the memory for keys and values is given back. Default 30 s.
    pub cache_idle: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { slots: 128, step_tokens: 512, cache_bytes_max: 64 << 20, threads, cache_idle: Duration::from_secs(30) }
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
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Why it ended.
    pub reason: FinishReason,
    /// The whole text for the reader.
    pub text: String,
    /// The calls the model asks for.
    pub tool_calls: Vec<ToolCall>,
    /// Text and reason of what should have been calls.
    pub malformed: Vec<(String, String)>,
    /// How likely each token was, if that is asked.
    pub logprobs: Vec<TokenLogprob>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that had been computed for an earlier request.
    pub cached_tokens: usize,
    /// Tokens of the answer, those of earlier attempts included.
    pub completion_tokens: usize,
    /// From submission to the first new token.
    pub first_token: Duration,
    /// From submission to the end.
    pub total: Duration,
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
    next_id: Arc<AtomicU64>,
    slots: usize,
    window: usize,
}

/// A request under way. Dropping it ends the request: its place is free before the next step.
#[derive(Debug)]
pub struct Running {
    /// What happens to it, in order.
    pub events: events::UnboundedReceiver<Event>,
    _cancel: CancelOnDrop,
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
    Submit(Box<Active>),
    Cancel(SequenceId),
    HandOver(mpsc::SyncSender<Prefixes>),
}

struct Active {
    id: SequenceId,
    tenant: u64,
    prompt: Vec<u32>,
    answer: Answer,
    tokens_max: usize,
    sampling: Sampling,
    seen: Seen,
    constraint: Constraint,
    logprobs: Vec<TokenLogprob>,
    events: events::UnboundedSender<Event>,
    submitted: Instant,
    first_token: Option<Duration>,
}

impl Engine {
    /// Starts the thread of one model.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn start(model: Arc<Model>, config: &EngineConfig) -> std::io::Result<Self> {
        Self::start_with(model, config, None)
    }

    /// The same with the prefixes that an earlier engine of the same files left; those that do not fit are dropped.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn start_with(model: Arc<Model>, config: &EngineConfig, kept: Option<Prefixes>) -> std::io::Result<Self> {
        let blocks = (config.cache_bytes_max / model.decoder.block_bytes()).max(2);
        let window = model.decoder.architecture().window.min(blocks * BLOCK);
        let limits = Limits { step_tokens: config.step_tokens, running: config.slots };
        let (commands, inbox) = mpsc::channel();
        let active = Arc::new(AtomicUsize::new(0));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.threads)
            .thread_name(|index| format!("compute-{index}"))
            .build()
            .map_err(std::io::Error::other)?;
        let Prefixes { blocks, cache } = Prefixes::or_empty(kept, model.decoder.cache(blocks), blocks);
        let worker = Worker {
            scheduler: Scheduler::with_blocks(limits, blocks),
            cache,
            model: Arc::clone(&model),
            scratch: Scratch::default(),
            requests: BTreeMap::new(),
            active: Arc::clone(&active),
            cache_idle: config.cache_idle,
        };
        let name = format!("engine-{}", model.name);
        std::thread::Builder::new().name(name).spawn(move || pool.install(move || worker.run(inbox)))?;
        Ok(Self { model, commands, active, next_id: Arc::default(), slots: config.slots, window })
    }

    /// Ends it, and returns what it has computed of prompts. Requests under way fail. None if it had ended already.
    /// Blocks until its step is done.
    pub fn hand_over(&self) -> Option<Prefixes> {
        let (sender, prefixes) = mpsc::sync_channel(1);
        self.commands.send(Command::HandOver(sender)).ok()?;
        prefixes.recv().ok()
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

    /// Requests it could take now without queueing.
    pub fn free_slots(&self) -> usize {
        self.slots.saturating_sub(self.active.load(Ordering::Acquire))
    }

    /// Takes a request; its events begin when there is room.
    ///
    /// # Errors
    /// The conversation does not fit the template or the window, or the engine has stopped.
    pub fn submit(&self, request: Request) -> Result<Running, Rejection> {
        let submitted = now();
        let offered = if request.tool_choice == Some(ToolChoice::None) { &[] } else { request.tools.as_slice() };
        let text = self.model.template.render(&request.messages, offered).map_err(Rejection::Template)?;
        let prompt = self.model.tokenizer.encode(&text).map_err(Rejection::Tokenise)?;
        self.submit_tokens(prompt, request, submitted)
    }

    fn submit_tokens(&self, prompt: Vec<u32>, mut request: Request, submitted: Instant) -> Result<Running, Rejection> {
        let vocabulary = self.model.decoder.architecture().vocabulary;
        if prompt.is_empty() || prompt.iter().chain(&request.produced).any(|&id| id as usize >= vocabulary) {
            return Err(Rejection::Tokenise("a token is outside the model's vocabulary, or there is none".to_owned()));
        }
        if prompt.len() >= self.window {
            return Err(Rejection::PromptTooLong {
                model: self.model.name.clone(),
                tokens: prompt.len(),
                window: self.window,
            });
        }
        let tokens_max = request.tokens_max.unwrap_or(usize::MAX).clamp(1, self.window - prompt.len());
        let mut constraint = self.constraint(&request)?;
        let mut answer = Answer::new(std::mem::take(&mut request.stop), self.family(&request));
        for id in request.produced {
            if answer.finish.is_none() {
                answer.push(&self.model, id, tokens_max);
                let begun = if constraint.watches() { answer.begun() } else { None };
                constraint.push(id, begun.as_deref());
            }
        }
        let seen = if request.sampling.penalises() { Seen::new(&prompt, &answer.ids) } else { Seen::default() };
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = events::unbounded_channel();
        let active = Active {
            id,
            tenant: request.tenant,
            prompt,
            answer,
            tokens_max,
            seen,
            constraint,
            sampling: request.sampling,
            logprobs: request.produced_logprobs,
            events: sender,
            submitted,
            first_token: None,
        };
        self.active.fetch_add(1, Ordering::AcqRel);
        self.commands.send(Command::Submit(Box::new(active))).map_err(|_| Rejection::Stopped)?;
        Ok(Running { events, _cancel: CancelOnDrop { id, commands: self.commands.clone() } })
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
        let choice = request.tool_choice.as_ref();
        let made = self
            .model
            .grammars()
            .and_then(|grammars| grammars.constrain(&tools, choice, request.response_format.as_ref()));
        match made {
            Ok(constraint) => Ok(constraint),
            // Nothing was demanded: calls are read as they come.
            Err(why) if choice.is_none() && request.response_format.is_none() => {
                tracing::debug!(model = self.model.name, %why, "calls are not bound to their schemas");
                Ok(Constraint::free())
            }
            Err(why) => Err(Rejection::Unusable(why.to_string())),
        }
    }
}

impl Active {
    /// The next token, or why there is none.
    fn pick(&mut self, logits: &[f32], position: usize) -> Result<u32, Event> {
        let nothing = || Event::Failed("the model produced no finite logits".to_owned());
        if !self.sampling.penalises() && !self.constraint.binds() {
            return self.sampling.pick(logits, position).ok_or_else(nothing);
        }
        let mut changed = logits.to_vec();
        if self.sampling.penalises() {
            self.sampling.penalise(&mut changed, &self.seen);
        }
        self.constraint.apply(&mut changed).map_err(Event::Refused)?;
        let token = self.sampling.pick(&changed, position).ok_or_else(nothing)?;
        if self.sampling.penalises() {
            self.seen.push(token);
        }
        Ok(token)
    }
}

/// How likely a token was, and the likeliest in its place.
fn logprob(model: &Model, logits: &[f32], token: u32, count: usize) -> TokenLogprob {
    let (logprob, top) = sample::logprobs(logits, token, count);
    let name = |id| model.tokenizer.name(id);
    let top = top.into_iter().map(|(id, logprob)| TopLogprob { token: name(id), logprob });
    TokenLogprob { token: name(token), logprob, top_logprobs: top.collect() }
}

struct Worker {
    model: Arc<Model>,
    scheduler: Scheduler,
    cache: crate::kernels::attention::KvCache,
    scratch: Scratch,
    requests: BTreeMap<SequenceId, Active>,
    active: Arc<AtomicUsize>,
    cache_idle: Duration,
}

impl Worker {
    fn run(mut self, inbox: mpsc::Receiver<Command>) {
        loop {
            if self.scheduler.is_idle() {
                match self.wait(&inbox) {
                    Some(Command::HandOver(to)) => return self.hand_over(inbox, &to),
                    Some(command) => self.take(command),
                    None => return,
                }
            }
            while let Ok(command) = inbox.try_recv() {
                match command {
                    Command::HandOver(to) => return self.hand_over(inbox, &to),
                    command => self.take(command),
                }
            }
            self.step();
        }
    }

    /// Waits for work. After a while without any, the cache gives its memory back; then it waits for as long as it takes.
    fn wait(&mut self, inbox: &mpsc::Receiver<Command>) -> Option<Command> {
        match inbox.recv_timeout(self.cache_idle) {
            Ok(command) => return Some(command),
            Err(mpsc::RecvTimeoutError::Disconnected) => return None,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        for block in self.scheduler.forget_unused() {
            self.cache.give_back(block);
        }
        self.scratch = Scratch::default();
        inbox.recv().ok()
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Submit(request) => {
                let id = request.id;
                let tokens = [request.prompt.as_slice(), &request.answer.ids].concat();
                let ended = request.answer.finish;
                let tenant = request.tenant;
                self.requests.insert(id, *request);
                match ended {
                    Some(reason) => self.finish(id, reason),
                    None => self.scheduler.add(id, tenant, tokens),
                }
            }
            Command::Cancel(id) => drop(self.forget(id)),
            Command::HandOver(_) => unreachable!("it ends the loop"),
        }
    }

    fn hand_over(mut self, inbox: mpsc::Receiver<Command>, to: &mpsc::SyncSender<Prefixes>) {
        // Whoever submits from now on is told that it has stopped.
        drop(inbox);
        for id in self.requests.keys().copied().collect::<Vec<_>>() {
            if let Some(request) = self.forget(id) {
                // A reader that has gone does not miss it.
                let _ = request.events.send(Event::Failed("the model was unloaded".to_owned()));
            }
        }
        // Whoever asked may have stopped waiting: then nothing is kept.
        let _ = to.send(Prefixes { blocks: self.scheduler.into_blocks(), cache: self.cache });
    }

    fn step(&mut self) {
        let chunks = self.scheduler.schedule();
        if chunks.is_empty() {
            assert!(self.scheduler.is_idle(), "the scheduler always finds work while there is some");
            return;
        }
        let model = Arc::clone(&self.model);
        let mut scratch = std::mem::take(&mut self.scratch);
        let (cache, requests) = (&mut self.cache, &mut self.requests);
        let yields: BTreeSet<SequenceId> = chunks.iter().filter(|c| c.yields).map(|c| c.sequence).collect();
        let mut bound: Vec<&mut Constraint> = requests
            .iter_mut()
            .filter(|(id, request)| request.constraint.binds() && yields.contains(id))
            .map(|(_, request)| &mut request.constraint)
            .collect();
        let (batch, decoder, scratch_here) = (batch(&chunks), &model.decoder, &mut scratch);
        let logits = if bound.is_empty() {
            decoder.forward(&batch, cache, scratch_here)
        } else {
            // Masks are ready by the time the logits are.
            rayon::join(
                move || decoder.forward(&batch, cache, scratch_here),
                || bound.par_iter_mut().for_each(|constraint| constraint.prepare()),
            )
            .0
        };
        let mut rows = logits.chunks_exact(model.decoder.architecture().vocabulary);
        for chunk in &chunks {
            if chunk.yields {
                let row = rows.next().expect("one row of logits for every chunk that yields");
                self.token(chunk.sequence, row, chunk.start + chunk.tokens.len());
            }
        }
        self.scratch = scratch;
    }

    /// Picks the token of one request and tells its reader.
    fn token(&mut self, id: SequenceId, logits: &[f32], position: usize) {
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        let token = match request.pick(logits, position) {
            Ok(token) => token,
            Err(end) => {
                // A reader that has gone does not miss it.
                let _ = request.events.send(end);
                self.forget(id);
                return;
            }
        };
        let text = request.answer.push(&self.model, token, request.tokens_max);
        let begun = if request.constraint.watches() { request.answer.begun() } else { None };
        request.constraint.push(token, begun.as_deref());
        request.first_token.get_or_insert_with(|| now() - request.submitted);
        let logprob = request.sampling.logprobs.map(|count| logprob(&self.model, logits, token, count));
        request.logprobs.extend(logprob.clone());
        let reader_left = request.events.send(Event::Token { id: token, text, logprob }).is_err();
        let finish = request.answer.finish;
        self.scheduler.complete(id, Some(token));
        match finish {
            _ if reader_left => drop(self.forget(id)),
            Some(reason) => self.finish(id, reason),
            None => {}
        }
    }

    fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        let cached_tokens = self.scheduler.cached(id);
        let Some(request) = self.forget(id) else {
            return;
        };
        let total = now() - request.submitted;
        let outcome = Outcome {
            reason,
            text: request.answer.text,
            tool_calls: request.answer.calls,
            malformed: request.answer.malformed,
            logprobs: request.logprobs,
            prompt_tokens: request.prompt.len(),
            cached_tokens: cached_tokens.min(request.prompt.len()),
            completion_tokens: request.answer.ids.len(),
            first_token: request.first_token.unwrap_or(total),
            total,
        };
        // A reader that has gone does not miss it.
        let _ = request.events.send(Event::Finished(Box::new(outcome)));
    }

    fn forget(&mut self, id: SequenceId) -> Option<Active> {
        self.scheduler.remove(id);
        let request = self.requests.remove(&id);
        if request.is_some() {
            self.active.fetch_sub(1, Ordering::AcqRel);
        }
        request
    }
}

fn batch(chunks: &[Chunk]) -> Batch<'_> {
    let mut batch = Batch::default();
    for (index, chunk) in chunks.iter().enumerate() {
        batch.tokens.extend(&chunk.tokens);
        batch.positions.extend(chunk.start..chunk.start + chunk.tokens.len());
        batch.sequences.extend(chunk.tokens.iter().map(|_| index));
        batch.tables.push(&chunk.blocks);
        if chunk.yields {
            batch.outputs.push(batch.tokens.len() - 1);
        }
    }
    batch
}

#[expect(clippy::disallowed_methods, reason = "measures how long a step takes; nothing is decided by it")]
fn now() -> Instant {
    Instant::now()
}
