//! What is kept of models that were unloaded: the prefixes their engines left, within a bound, for a while.
//!
//! They are taken up when the same files are loaded again. The oldest model's go first; a model that needs the memory
//! goes before all of them.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{models::catalogue::Identity, prefixes::Prefixes};

/// The prefixes of models that are gone. Pure: time comes as an argument.
#[derive(Debug)]
pub(crate) struct Kept {
    bytes_max: u64,
    idle: Duration,
    /// Oldest first.
    models: VecDeque<(Identity, Prefixes, Instant)>,
}

impl Kept {
    pub(crate) const fn new(bytes_max: u64, idle: Duration) -> Self {
        Self { bytes_max, idle, models: VecDeque::new() }
    }

    /// Keeps what an engine left.
    pub(crate) fn keep(&mut self, identity: Identity, mut prefixes: Prefixes, now: Instant) {
        self.models.retain(|(other, ..)| *other != identity);
        prefixes.trim(self.bytes_max);
        if prefixes.bytes() == 0 {
            return;
        }
        self.models.push_back((identity, prefixes, now));
        self.shrink_to(self.bytes_max);
    }

    /// What was kept of these files.
    pub(crate) fn take(&mut self, identity: &Identity) -> Option<Prefixes> {
        let index = self.models.iter().position(|(other, ..)| other == identity)?;
        self.models.remove(index).map(|(_, prefixes, _)| prefixes)
    }

    /// Bytes that are kept.
    pub(crate) fn bytes(&self) -> u64 {
        self.models.iter().map(|(_, prefixes, _)| prefixes.bytes()).sum()
    }

    /// Gives back whole models, oldest first, until at most so many bytes are kept.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        while self.bytes() > bytes {
            self.models.pop_front();
        }
    }

    /// Gives back what has been kept for long enough.
    pub(crate) fn expire(&mut self, now: Instant) {
        let idle = self.idle;
        self.models.retain(|(.., since)| now.saturating_duration_since(*since) < idle);
    }

    /// When something is to be given back.
    pub(crate) fn expires(&self) -> Option<Instant> {
        self.models.front().map(|(.., since)| *since + self.idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::attention::{HeadShape, KvCache};
    use crate::kv::{Blocks, chain};

    const SHAPE: HeadShape = HeadShape { heads: 1, kv_heads: 1, width: 16 };

    fn prefixes(blocks: u32) -> Prefixes {
        let mut prefixes = Prefixes { blocks: Blocks::new(8), cache: KvCache::new(8, 1, SHAPE) };
        for _ in 0..blocks {
            let block = prefixes.blocks.take().unwrap();
            prefixes.cache.write(0, block, 0, &[1.0; 16], &[1.0; 16]);
            prefixes.blocks.publish(block, chain(None, &[block]));
        }
        (0..blocks).for_each(|block| prefixes.blocks.release(block));
        prefixes
    }

    fn identity(directory: &tempfile::TempDir, name: &str) -> Identity {
        let path = directory.path().join(name);
        std::fs::write(&path, name).unwrap();
        Identity::of(&path).unwrap()
    }

    #[test]
    fn the_oldest_model_goes_first_and_the_same_files_get_theirs_back() {
        let directory = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| identity(&directory, name));
        let block = SHAPE.block_bytes(1) as u64;
        let now = runtime::clock::instant();
        let mut kept = Kept::new(4 * block, Duration::from_secs(10));
        kept.keep(a.clone(), prefixes(2), now);
        kept.keep(b.clone(), prefixes(2), now);
        kept.keep(c.clone(), prefixes(1), now);
        assert_eq!(kept.bytes(), 3 * block, "the oldest went");
        assert!(kept.take(&a).is_none());
        assert_eq!(kept.take(&b).map(|kept| kept.bytes()), Some(2 * block));
        assert!(kept.take(&b).is_none(), "it is taken up once");
        // A model that is larger than the bound keeps what was used last.
        kept.keep(a.clone(), prefixes(6), now);
        assert_eq!((kept.bytes(), kept.take(&c).is_none()), (4 * block, true));
        std::fs::write(directory.path().join("a"), "changed").unwrap();
        assert!(kept.take(&Identity::of(&directory.path().join("a")).unwrap()).is_none(), "other files get nothing");
        assert!(kept.take(&a).is_some());
    }

    #[test]
    fn after_a_while_the_memory_is_given_back() {
        let directory = tempfile::tempdir().unwrap();
        let a = identity(&directory, "a");
        let now = runtime::clock::instant();
        let mut kept = Kept::new(u64::MAX, Duration::from_secs(10));
        assert_eq!(kept.expires(), None);
        kept.keep(a.clone(), prefixes(1), now);
        assert_eq!(kept.expires(), Some(now + Duration::from_secs(10)));
        kept.expire(now + Duration::from_secs(9));
        assert!(kept.bytes() > 0);
        kept.expire(now + Duration::from_secs(10));
        assert_eq!(kept.bytes(), 0);
        kept.keep(a, prefixes(0), now);
        assert_eq!(kept.expires(), None, "nothing is kept of a model that computed nothing");
    }
}
