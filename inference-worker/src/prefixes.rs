//! What a model's engine has computed of prompts: blocks, their index, and the keys and values in them.
//!
//! An engine that ends hands it over, and another one of the same files goes on with it: a beginning that was computed
//! once is found again, bit for bit.

use crate::{
    kernels::attention::{HeadShape, KvCache},
    kv::{BLOCK, Blocks},
};

/// Blocks that nobody holds, and what is in them.
#[derive(Debug)]
pub struct Prefixes {
    pub(crate) blocks: Blocks,
    pub(crate) cache: KvCache,
}

impl Prefixes {
    /// Nothing: what was computed cannot be kept.
    pub(crate) fn empty() -> Self {
        let shape = HeadShape { heads: 1, kv_heads: 1, width: 1 };
        Self { blocks: Blocks::new(0), cache: KvCache::new(0, 1, shape) }
    }

    /// What was kept, if it has the shape of `cache`; otherwise that empty cache with so many blocks.
    pub(crate) fn or_empty(kept: Option<Self>, cache: KvCache, blocks: usize) -> Self {
        let kept = kept.filter(|kept| kept.cache.is_like(&cache) && kept.blocks.total() == blocks);
        kept.unwrap_or_else(|| Self { blocks: Blocks::new(blocks), cache })
    }

    /// Bytes they take.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.cache.bytes() as u64
    }

    /// Tokens whose keys and values can be found again.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.blocks.findable() * BLOCK
    }

    /// Gives back what can never be found again and then the longest unused, until at most so many bytes are taken.
    pub fn trim(&mut self, bytes_max: u64) {
        // The last block of a sequence is seldom full, and an unfinished one has no hash.
        for block in self.blocks.unfindable() {
            if self.cache.holds(block) {
                self.cache.give_back(block);
            }
        }
        let over = self.bytes().saturating_sub(bytes_max);
        for block in self.blocks.forget_oldest(over.div_ceil(self.cache.block_bytes() as u64) as usize) {
            self.cache.give_back(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::chain;

    /// Eight blocks, of which the first `full` are written, published and free again.
    fn prefixes(full: u32) -> Prefixes {
        let shape = HeadShape { heads: 1, kv_heads: 1, width: 16 };
        let mut prefixes = Prefixes { blocks: Blocks::new(8), cache: KvCache::new(8, 1, shape) };
        let taken: Vec<u32> = (0..full).map(|_| prefixes.blocks.take().expect("free")).collect();
        for block in &taken {
            prefixes.cache.write(0, *block, 0, &[1.0; 16], &[1.0; 16]);
            prefixes.blocks.publish(*block, chain(None, &[*block]));
        }
        for block in taken {
            prefixes.blocks.release(block);
        }
        prefixes
    }

    #[test]
    fn the_longest_unused_goes_first_when_room_is_short() {
        let mut kept = prefixes(4);
        let block = kept.cache.block_bytes() as u64;
        assert_eq!((kept.bytes(), kept.tokens()), (4 * block, 4 * BLOCK));
        kept.trim(2 * block + 1);
        assert_eq!((kept.bytes(), kept.tokens()), (2 * block, 2 * BLOCK));
        let found = |kept: &mut Prefixes, n: u32| kept.blocks.share(&chain(None, &[n])).is_some();
        assert_eq!([0, 1, 2, 3].map(|n| found(&mut kept, n)), [false, false, true, true]);
    }

    #[test]
    fn what_nobody_can_find_again_is_given_back_first() {
        let mut kept = prefixes(2);
        // Half full when its owner ended: it has memory and no hash.
        let block = kept.blocks.take().expect("free");
        kept.cache.write(0, block, 0, &[1.0; 16], &[1.0; 16]);
        kept.blocks.release(block);
        let bytes = kept.cache.block_bytes() as u64;
        kept.trim(u64::MAX);
        assert_eq!((kept.bytes(), kept.tokens()), (2 * bytes, 2 * BLOCK));
    }

    #[test]
    fn prefixes_of_another_shape_are_dropped() {
        let shape = HeadShape { heads: 1, kv_heads: 1, width: 32 };
        let used = Prefixes::or_empty(Some(prefixes(3)), KvCache::new(8, 1, shape), 8);
        assert_eq!((used.tokens(), used.bytes()), (0, 0));
        let same = HeadShape { heads: 1, kv_heads: 1, width: 16 };
        assert_eq!(Prefixes::or_empty(Some(prefixes(3)), KvCache::new(8, 1, same), 8).tokens(), 3 * BLOCK);
    }
}
