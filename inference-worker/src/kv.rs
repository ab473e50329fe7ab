//! Which block of the cache belongs to whom: reference counts, and the index of shared prefixes.
//!
//! A full block is known by a hash chained over all tokens up to its end, so equal prefixes find each other whether
//! their first owner still runs or has finished. A freed block keeps its hash until it is needed for something else;
//! the longest unused goes first. Hashes are 128 bits of SHA-256: a collision is not a case to handle.

use std::collections::{BTreeMap, VecDeque};

use sha2::{Digest, Sha256};

pub use crate::kernels::attention::BLOCK;

/// The hash of a prefix that ends at a block's end.
pub type PrefixHash = [u8; 16];

/// The accounts of all blocks.
#[derive(Debug)]
pub struct Blocks {
    counts: Vec<u32>,
    hashes: Vec<Option<PrefixHash>>,
    by_hash: BTreeMap<PrefixHash, u32>,
    /// Unused blocks, longest unused first. May hold blocks that were taken again by hash: see `stale`.
    free: VecDeque<(u32, u64)>,
    /// Counts up when a block leaves the free list by hash, which makes its old entry stale.
    generations: Vec<u64>,
    free_count: usize,
    /// Of the free blocks, those with a hash.
    kept_count: usize,
}

impl Blocks {
    /// `total` blocks, all free.
    pub fn new(total: usize) -> Self {
        Self {
            counts: vec![0; total],
            hashes: vec![None; total],
            by_hash: BTreeMap::new(),
            free: (0..total as u32).map(|block| (block, 0)).collect(),
            generations: vec![0; total],
            free_count: total,
            kept_count: 0,
        }
    }

    /// Blocks that can be taken now.
    pub fn free(&self) -> usize {
        self.free_count
    }

    /// Blocks that nobody holds and that can be found by their hash.
    pub fn kept(&self) -> usize {
        self.kept_count
    }

    /// All blocks.
    pub fn total(&self) -> usize {
        self.counts.len()
    }

    /// Takes a block for new content; what it held is forgotten.
    pub fn take(&mut self) -> Option<u32> {
        loop {
            let (block, generation) = self.free.pop_front()?;
            let index = block as usize;
            if self.generations[index] != generation {
                continue;
            }
            self.forget(block);
            debug_assert_eq!(self.counts[index], 0, "a free block has no owner");
            self.generations[index] += 1;
            self.counts[index] = 1;
            self.free_count -= 1;
            return Some(block);
        }
    }

    /// Takes a share in the block that holds this prefix's end, if there is one.
    pub fn share(&mut self, hash: &PrefixHash) -> Option<u32> {
        let block = *self.by_hash.get(hash)?;
        let index = block as usize;
        if self.counts[index] == 0 {
            self.generations[index] += 1;
            self.free_count -= 1;
            self.kept_count -= 1;
        }
        self.counts[index] += 1;
        Some(block)
    }

    /// Makes a full block findable. The first block with a hash keeps it.
    pub fn publish(&mut self, block: u32, hash: PrefixHash) {
        if self.hashes[block as usize].is_none() && !self.by_hash.contains_key(&hash) {
            self.by_hash.insert(hash, block);
            self.hashes[block as usize] = Some(hash);
        }
    }

    /// Gives back one share.
    pub fn release(&mut self, block: u32) {
        let index = block as usize;
        assert!(self.counts[index] > 0, "block {block} is released by nobody who holds it");
        self.counts[index] -= 1;
        if self.counts[index] == 0 {
            self.free.push_back((block, self.generations[index]));
            self.free_count += 1;
            self.kept_count += usize::from(self.hashes[index].is_some());
        }
    }

    /// Forgets what unused blocks hold, and names them: nobody will find their content again.
    pub fn forget_unused(&mut self) -> Vec<u32> {
        let unused: Vec<u32> = (0..self.counts.len() as u32).filter(|b| self.counts[*b as usize] == 0).collect();
        unused.iter().for_each(|block| self.forget(*block));
        unused
    }

    /// Blocks that can be found by their hash.
    pub fn findable(&self) -> usize {
        self.by_hash.len()
    }

    /// Unused blocks that no hash leads to.
    pub fn unfindable(&self) -> Vec<u32> {
        (0..self.counts.len() as u32)
            .filter(|block| self.counts[*block as usize] == 0 && self.hashes[*block as usize].is_none())
            .collect()
    }

    /// Forgets what the longest unused blocks hold, `count` of those that hold something, and names them.
    pub fn forget_oldest(&mut self, count: usize) -> Vec<u32> {
        let current = |&&(block, generation): &&(u32, u64)| {
            self.generations[block as usize] == generation && self.hashes[block as usize].is_some()
        };
        let oldest: Vec<u32> = self.free.iter().filter(current).take(count).map(|(block, _)| *block).collect();
        oldest.iter().for_each(|block| self.forget(*block));
        oldest
    }

    /// Nobody finds what a free block holds any more.
    fn forget(&mut self, block: u32) {
        if let Some(hash) = self.hashes[block as usize].take() {
            self.by_hash.remove(&hash);
            self.kept_count -= 1;
        }
    }

    /// How many hold this block.
    pub fn holders(&self, block: u32) -> u32 {
        self.counts[block as usize]
    }
}

/// The hash of a prefix, from that of the prefix one block shorter and the block's tokens.
pub fn chain(parent: Option<&PrefixHash>, tokens: &[u32]) -> PrefixHash {
    let mut hasher = Sha256::new();
    hasher.update(parent.unwrap_or(&[0; 16]));
    for token in tokens {
        hasher.update(token.to_le_bytes());
    }
    let digest = hasher.finalize();
    let mut hash = [0; 16];
    hash.copy_from_slice(&digest[..16]);
    hash
}
