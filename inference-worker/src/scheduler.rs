//! Decides what the next step computes. Pure: it knows sequences, lengths and blocks, and no tensors.
//!
//! A step has one budget of tokens. Running sequences come first, so that answers flow; what is left goes to prompts, in
//! pieces, and to those that wait, as `waiting` says. Among equals the higher priority comes first, then who came
//! earlier. When blocks run out the last in this order, the youngest of the lowest priority, gives its own back and starts
//! over later (its blocks often still hold their content, then it starts over for free). The first is never the victim
//! while another exists, and `add` refuses what could not run alone, so everything finishes.
//!
//! A step may be planned before the tokens of the one before it are known: `promise` puts `PROMISED` in the place of a
//! token, which `complete` fills. At most one token of a sequence is promised when a step is planned. A block is findable
//! from when all its tokens are known; a sequence that has given its last token and was promised none has no work.

use std::collections::BTreeMap;

use schemas::chat::Priority;

use crate::{
    kv::{BLOCK, Blocks, PrefixHash, chain},
    waiting::{Place, Waiting},
};

/// Names a sequence within one scheduler.
pub type SequenceId = u64;

/// Stands for a token that a step under way will yield.
pub const PROMISED: u32 = u32::MAX;

/// The bounds of a step.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tokens computed in one step, of all sequences.
    pub step_tokens: usize,
    /// Sequences that run at the same time.
    pub running: usize,
}

/// One sequence's share of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Whose.
    pub sequence: SequenceId,
    /// Position of the first token.
    pub start: usize,
    /// The tokens to compute; the last may be [`PROMISED`].
    pub tokens: Vec<u32>,
    /// The blocks of all positions up to the last of these.
    pub blocks: Vec<u32>,
    /// The last token is the last known: the step yields the next.
    pub yields: bool,
}

/// The state of all sequences.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    blocks: Blocks,
    sequences: BTreeMap<SequenceId, Sequence>,
    /// Admitted, in the order of their places.
    running: Vec<SequenceId>,
    /// Not admitted yet, or sent back for want of blocks.
    waiting: Waiting,
    /// Sequences that were ever added.
    added: u64,
    /// Times that one gave its blocks to another.
    preemptions: u64,
}

#[derive(Debug)]
struct Sequence {
    place: Place,
    tokens: Vec<u32>,
    /// The last of these are not known yet.
    promised: usize,
    /// Tokens whose keys and values were there when it was first admitted.
    found: usize,
    /// Tokens whose keys and values are stored.
    computed: usize,
    blocks: Vec<u32>,
    /// Hashes of the full blocks so far.
    hashes: Vec<PrefixHash>,
}

impl Scheduler {
    /// A scheduler over that many free blocks.
    pub fn new(limits: Limits, blocks: usize) -> Self {
        Self::with_blocks(limits, Blocks::new(blocks))
    }

    /// The same over blocks of which nobody holds any; what they hold may be found again.
    pub fn with_blocks(limits: Limits, blocks: Blocks) -> Self {
        assert!(limits.step_tokens > 0 && limits.running > 0, "a step must be able to do something");
        let (sequences, running, waiting) = (BTreeMap::new(), Vec::new(), Waiting::default());
        Self { limits, blocks, sequences, running, waiting, added: 0, preemptions: 0 }
    }

    /// Tokens that one sequence can reach when it has all blocks.
    pub fn capacity(&self) -> usize {
        self.blocks.total() * BLOCK
    }

    /// Queues a sequence that will never grow beyond `capacity` tokens.
    pub fn add(&mut self, id: SequenceId, tenant: u64, priority: Priority, tokens: Vec<u32>) {
        assert!(!tokens.is_empty() && tokens.len() <= self.capacity(), "the engine checks lengths before it adds");
        let place = Place { tenant, priority, arrived: self.added, ran: false };
        let (blocks, hashes) = (Vec::new(), Vec::new());
        let sequence = Sequence { place, tokens, promised: 0, found: 0, computed: 0, blocks, hashes };
        assert!(self.sequences.insert(id, sequence).is_none(), "sequence ids are used once");
        self.added += 1;
        self.waiting.insert(id, place);
    }

    /// Tokens of a sequence that were not computed for it: blocks held them when it was first admitted.
    pub fn found(&self, id: SequenceId) -> usize {
        self.sequences.get(&id).map_or(0, |sequence| sequence.found)
    }

    /// Nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Sequences admitted and not finished.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait to be admitted, for the first time or again.
    pub fn waiting(&self) -> usize {
        self.sequences.len() - self.running.len()
    }

    /// How often a sequence gave its blocks to another, since the beginning.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Forgets what unused blocks hold, and names them.
    pub fn forget_unused(&mut self) -> Vec<u32> {
        self.blocks.forget_unused()
    }

    /// The accounts of the blocks.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Gives up the blocks, of which nobody may hold any.
    pub fn into_blocks(self) -> Blocks {
        assert!(self.is_idle(), "sequences are removed before their blocks are given up");
        self.blocks
    }

    /// Plans the next step. Every chunk must be computed, then reported to `complete`.
    pub fn schedule(&mut self) -> Vec<Chunk> {
        let mut budget = self.limits.step_tokens;
        let mut step = Vec::new();
        let mut short_of_blocks = false;
        let sequences = &self.sequences;
        self.running.sort_unstable_by_key(|id| sequences[id].place.order());
        // First those with one token to go, then the rest of running prompts, then new ones.
        for decoding in [true, false] {
            let mut index = 0;
            while index < self.running.len() && budget > 0 {
                let id = self.running[index];
                index += 1;
                let left = self.sequences[&id].left();
                // Its last token is still to come.
                if left == 0 {
                    continue;
                }
                if (left == 1) != decoding || step.iter().any(|chunk: &Chunk| chunk.sequence == id) {
                    continue;
                }
                match self.plan(id, left.min(budget), &step) {
                    Some(chunk) => {
                        budget -= chunk.tokens.len();
                        step.push(chunk);
                    }
                    None => short_of_blocks = true,
                }
            }
        }
        // Blocks that one waits for are not given to others.
        while budget > 0 && !short_of_blocks && self.running.len() < self.limits.running {
            let Some(id) = self.waiting.next() else { break };
            let left = self.admit(id);
            let Some(chunk) = self.plan_without_preemption(id, left.min(budget)) else {
                self.give_back(id);
                break;
            };
            let place = self.waiting.admit(id);
            self.sequences.entry(id).and_modify(|sequence| sequence.place = place);
            self.running.push(id);
            budget -= chunk.tokens.len();
            step.push(chunk);
        }
        step
    }

    /// Says that a chunk of a step under way will yield a token, so that the step behind it may already use it.
    pub fn promise(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.tokens.push(PROMISED);
            sequence.promised += 1;
        }
    }

    /// Records that a chunk was computed, and the token it yielded: the one that was promised first, or another.
    pub fn complete(&mut self, id: SequenceId, next: Option<u32>) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let Some(token) = next else { return };
        if sequence.promised == 0 {
            sequence.tokens.push(token);
            return;
        }
        let place = sequence.tokens.len() - sequence.promised;
        sequence.tokens[place] = token;
        sequence.promised -= 1;
        sequence.publish(&mut self.blocks);
    }

    /// Takes all promises back: what follows the last known token is computed again, in a later step.
    pub fn retract(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.tokens.truncate(sequence.tokens.len() - sequence.promised);
        sequence.promised = 0;
        sequence.computed = sequence.computed.min(sequence.tokens.len() - 1);
    }

    /// Forgets a sequence, finished or not, and frees what it held.
    pub fn remove(&mut self, id: SequenceId) {
        if !self.sequences.contains_key(&id) {
            return;
        }
        self.give_back(id);
        self.sequences.remove(&id);
        self.running.retain(|&other| other != id);
        self.waiting.remove(id);
    }

    /// A chunk for a running sequence; those behind it that are not in the step give way. None when what it lacks is held
    /// by those in the step: it keeps its own until they have gone on.
    fn plan(&mut self, id: SequenceId, count: usize, step: &[Chunk]) -> Option<Chunk> {
        loop {
            if let Some(chunk) = self.plan_without_preemption(id, count) {
                return Some(chunk);
            }
            let victim = *self.running.iter().rev().find(|&&other| step.iter().all(|chunk| chunk.sequence != other))?;
            if victim == id {
                return None;
            }
            self.give_back(victim);
            self.preemptions += 1;
            self.running.retain(|&other| other != victim);
            self.waiting.insert(victim, self.sequences[&victim].place);
        }
    }

    fn plan_without_preemption(&mut self, id: SequenceId, count: usize) -> Option<Chunk> {
        let sequence = self.sequences.get_mut(&id).expect("queues hold known sequences");
        let end = sequence.computed + count;
        let missing = end.div_ceil(BLOCK).saturating_sub(sequence.blocks.len());
        if missing > self.blocks.free() {
            return None;
        }
        for _ in 0..missing {
            sequence.blocks.push(self.blocks.take().expect("free blocks were just counted"));
        }
        let start = std::mem::replace(&mut sequence.computed, end);
        sequence.publish(&mut self.blocks);
        Some(Chunk {
            sequence: id,
            start,
            tokens: sequence.tokens[start..end].to_vec(),
            blocks: sequence.blocks.clone(),
            yields: end == sequence.tokens.len(),
        })
    }

    /// Gives a sequence the blocks that already hold its beginning; returns the tokens left to compute.
    fn admit(&mut self, id: SequenceId) -> usize {
        let sequence = self.sequences.get_mut(&id).expect("queues hold known sequences");
        // The last token is always computed: its logits are not in the cache.
        for tokens in sequence.tokens[..sequence.tokens.len() - 1].chunks_exact(BLOCK) {
            let hash = chain(sequence.hashes.last(), tokens);
            let Some(block) = self.blocks.share(&hash) else {
                break;
            };
            sequence.blocks.push(block);
            sequence.hashes.push(hash);
            sequence.computed += BLOCK;
        }
        if !sequence.place.ran {
            sequence.found = sequence.computed;
        }
        sequence.left()
    }

    fn give_back(&mut self, id: SequenceId) {
        let sequence = self.sequences.get_mut(&id).expect("queues hold known sequences");
        // Last block first, so that beginnings, which others may share, survive longest.
        for block in sequence.blocks.drain(..).rev() {
            self.blocks.release(block);
        }
        sequence.hashes.clear();
        sequence.computed = 0;
    }
}

impl Sequence {
    fn left(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Makes the full blocks findable whose tokens are all known.
    fn publish(&mut self, blocks: &mut Blocks) {
        let known = self.computed.min(self.tokens.len() - self.promised);
        for block in self.hashes.len()..known / BLOCK {
            let hash = chain(self.hashes.last(), &self.tokens[block * BLOCK..][..BLOCK]);
            blocks.publish(self.blocks[block], hash);
            self.hashes.push(hash);
        }
    }
}
