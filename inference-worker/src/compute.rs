//! What computes the steps of an engine: this machine's CPUs, or a GPU.
//!
//! A step is begun and finished. One that picks tokens itself may have two under way: the second may use tokens that the
//! first has not told yet, which it knows as [`PROMISED`](crate::scheduler::PROMISED).

use std::sync::Arc;

use crate::{
    cuda::device::Fault,
    kernels::{attention::KvCache, team::Team},
    kv::Blocks,
    model::{Batch, Decoder, Scratch},
    model_directory::Model,
    prefixes::Prefixes,
    sample::Sampling,
    scheduler::Chunk,
};

/// A planned step.
#[derive(Debug, Clone)]
pub struct Step {
    /// What is computed.
    pub chunks: Vec<Chunk>,
    /// What is wanted of each chunk that yields a token, in their order.
    pub wanted: Vec<Wanted>,
}

/// What is wanted of a chunk that yields.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// The logits: the token is picked by whoever asks.
    Logits,
    /// The token, picked like this, for the position behind the chunk.
    Token(Sampling),
    /// The same among those that are allowed, which is said when the step is finished.
    Allowed(Sampling),
}

/// The tokens that are allowed for a row, by its number among those that yield: a bit for each token, the lowest of a word
/// first; none where all are.
pub type Allowed<'a> = dyn FnMut(usize) -> Option<Vec<u32>> + 'a;

/// What a chunk yielded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Row<'a> {
    /// Logits.
    Logits(&'a [f32]),
    /// The token; none where no logit was a number.
    Token(Option<u32>),
}

/// Computes the steps of one engine, on its thread.
pub trait Compute: Send {
    /// Whether it can be asked for tokens. It is then asked for the next step before it has finished one.
    fn picks(&self) -> bool;

    /// Begins a step behind those under way.
    ///
    /// # Errors
    /// The device refuses it or is lost; then nothing more can be computed.
    fn begin(&mut self, step: Step) -> Result<(), Fault>;

    /// Finishes the step that was begun first, and gives a row for each of its chunks that yield. `allowed` is asked for rows
    /// that want it, while the device computes; such a step is finished before the next is begun.
    ///
    /// # Errors
    /// The device is lost; then nothing more can be computed.
    fn finish(&mut self, allowed: &mut Allowed<'_>) -> Result<Vec<Row<'_>>, Fault>;

    /// Nothing is under way: gives back what memory it can. `forget` names the blocks that nobody uses, and nobody will find
    /// again what they hold; it is asked only where that gives memory back.
    fn rest(&mut self, forget: &mut dyn FnMut() -> Vec<u32>);

    /// Ends, and hands over what the blocks hold, if that can be kept.
    fn end(self: Box<Self>, blocks: Blocks) -> Prefixes;
}

/// The CPUs.
pub(crate) struct Cpu {
    model: Arc<Model>,
    team: Arc<Team>,
    cache: KvCache,
    scratch: Scratch,
    begun: Option<Step>,
}

impl Cpu {
    pub(crate) fn new(model: Arc<Model>, team: Arc<Team>, cache: KvCache) -> Self {
        Self { model, team, cache, scratch: Scratch::default(), begun: None }
    }

    fn decoder(&self) -> &Decoder {
        &self.model.decoder
    }
}

impl Compute for Cpu {
    fn picks(&self) -> bool {
        false
    }

    fn begin(&mut self, step: Step) -> Result<(), Fault> {
        assert!(self.begun.is_none(), "one step at a time");
        self.begun = Some(step);
        Ok(())
    }

    fn finish(&mut self, _: &mut Allowed<'_>) -> Result<Vec<Row<'_>>, Fault> {
        let step = self.begun.take().expect("a step was begun");
        let vocabulary = self.decoder().architecture().vocabulary;
        let logits = self.model.decoder.forward(&self.team, &batch(&step.chunks), &mut self.cache, &mut self.scratch);
        Ok(logits.chunks_exact(vocabulary).map(Row::Logits).collect())
    }

    fn rest(&mut self, forget: &mut dyn FnMut() -> Vec<u32>) {
        forget().into_iter().for_each(|block| self.cache.give_back(block));
        self.scratch = Scratch::default();
    }

    fn end(self: Box<Self>, blocks: Blocks) -> Prefixes {
        let Self { model, cache, .. } = *self;
        // Who hears of the end may count on the memory.
        drop(model);
        Prefixes { blocks, cache }
    }
}

/// The chunks as a ragged batch.
pub fn batch(chunks: &[Chunk]) -> Batch<'_> {
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
