//! Decides what the next step computes. Pure: it knows sequences, lengths and blocks, and no tensors.
//!
//! A step has one budget of tokens. Running sequences come first, oldest first, so that answers flow; what is left
//! goes to prompts, in pieces. When blocks run out the youngest sequence gives its own back and starts over later
//! (its blocks often still hold their content, then it starts over for free). The oldest is never the victim while
//! another exists, and `add` refuses what could not run alone, so everything finishes.

use std::collections::{BTreeMap, VecDeque};

use crate::kv::{BLOCK, Blocks, PrefixHash, chain};

/// Names a sequence within one scheduler.
pub type SequenceId = u64;

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
    /// The tokens to compute.
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
    /// Admitted, oldest first.
    running: Vec<SequenceId>,
    /// Sent back for want of blocks; before all who never ran.
    preempted: VecDeque<SequenceId>,
    /// Never ran: one queue for each tenant, served in turn.
    waiting: BTreeMap<u64, VecDeque<SequenceId>>,
    last_tenant: u64,
}

#[derive(Debug)]
struct Sequence {
    tokens: Vec<u32>,
    /// Tokens whose keys and values are stored.
    computed: usize,
    /// Of these, how many were there when it was first admitted.
    cached: Option<usize>,
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
        Self {
            limits,
            blocks,
            sequences: BTreeMap::new(),
            running: Vec::new(),
            preempted: VecDeque::new(),
            waiting: BTreeMap::new(),
            last_tenant: 0,
        }
    }

    /// Tokens that one sequence can reach when it has all blocks.
    pub fn capacity(&self) -> usize {
        self.blocks.total() * BLOCK
    }

    /// Queues a sequence that will never grow beyond `capacity` tokens.
    pub fn add(&mut self, id: SequenceId, tenant: u64, tokens: Vec<u32>) {
        assert!(!tokens.is_empty() && tokens.len() <= self.capacity(), "the engine checks lengths before it adds");
        let sequence = Sequence { tokens, computed: 0, cached: None, blocks: Vec::new(), hashes: Vec::new() };
        assert!(self.sequences.insert(id, sequence).is_none(), "sequence ids are used once");
        self.waiting.entry(tenant).or_default().push_back(id);
    }

    /// Nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Sequences admitted and not finished.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Forgets what unused blocks hold, and names them.
    pub fn forget_unused(&mut self) -> Vec<u32> {
        self.blocks.forget_unused()
    }

    /// The accounts of the blocks.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Tokens at the beginning of a sequence that were found in blocks when it was first admitted.
    pub fn cached(&self, id: SequenceId) -> usize {
        self.sequences.get(&id).and_then(|sequence| sequence.cached).unwrap_or(0)
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
        // First those with one token to go, then the rest of running prompts, then new ones.
        for decoding in [true, false] {
            let mut index = 0;
            while index < self.running.len() && budget > 0 {
                let id = self.running[index];
                index += 1;
                let left = self.sequences[&id].left();
                if (left == 1) != decoding || step.iter().any(|chunk: &Chunk| chunk.sequence == id) {
                    continue;
                }
                if let Some(chunk) = self.plan(id, left.min(budget), &step) {
                    budget -= chunk.tokens.len();
                    step.push(chunk);
                    index = self.running.iter().position(|&other| other == id).map_or(index, |at| at + 1);
                }
            }
        }
        while budget > 0 && self.running.len() < self.limits.running {
            let Some(id) = self.next_waiting() else { break };
            let left = self.admit(id);
            match self.plan_without_preemption(id, left.min(budget)) {
                Some(chunk) => {
                    self.running.push(id);
                    budget -= chunk.tokens.len();
                    step.push(chunk);
                }
                None => {
                    self.give_back(id);
                    self.preempted.push_front(id);
                    break;
                }
            }
        }
        step
    }

    /// Records that a chunk was computed, and the token it yielded.
    pub fn complete(&mut self, id: SequenceId, next: Option<u32>) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.tokens.extend(next);
        }
    }

    /// Forgets a sequence, finished or not, and frees what it held.
    pub fn remove(&mut self, id: SequenceId) {
        if !self.sequences.contains_key(&id) {
            return;
        }
        self.give_back(id);
        self.sequences.remove(&id);
        self.running.retain(|&other| other != id);
        self.preempted.retain(|&other| other != id);
        self.waiting.retain(|_, queue| {
            queue.retain(|&other| other != id);
            !queue.is_empty()
        });
    }

    /// A chunk for a running sequence; younger ones not yet in the step give way.
    fn plan(&mut self, id: SequenceId, count: usize, step: &[Chunk]) -> Option<Chunk> {
        loop {
            if let Some(chunk) = self.plan_without_preemption(id, count) {
                return Some(chunk);
            }
            let victim = *self.running.iter().rev().find(|&&other| step.iter().all(|chunk| chunk.sequence != other))?;
            self.give_back(victim);
            self.running.retain(|&other| other != victim);
            self.preempted.push_front(victim);
            if victim == id {
                return None;
            }
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
        for block in sequence.hashes.len()..end / BLOCK {
            let hash = chain(sequence.hashes.last(), &sequence.tokens[block * BLOCK..][..BLOCK]);
            self.blocks.publish(sequence.blocks[block], hash);
            sequence.hashes.push(hash);
        }
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
        sequence.cached.get_or_insert(sequence.computed);
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

    fn next_waiting(&mut self) -> Option<SequenceId> {
        if let Some(id) = self.preempted.pop_front() {
            return Some(id);
        }
        let after = self.waiting.range(self.last_tenant.wrapping_add(1)..).next();
        let tenant = *after.or_else(|| self.waiting.iter().next())?.0;
        self.last_tenant = tenant;
        let queue = self.waiting.get_mut(&tenant).expect("the tenant was just found");
        let id = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&tenant);
        }
        id
    }
}

impl Sequence {
    fn left(&self) -> usize {
        self.tokens.len() - self.computed
    }
}
