//! The one source of everything that is left to chance: SplitMix64, so that a seed means the same on every machine and
//! with every version of every crate.

use schemas::wire::Nanos;

use super::MILLISECOND;

pub(super) struct Chance(u64);

impl Chance {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// From 0, below `end`. The bias of the remainder is far below what any fault rate here could show.
    pub(super) const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// An index into something of `len` elements.
    pub(super) const fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    pub(super) fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.index(among.len())]
    }

    pub(super) const fn percent(&mut self, of: u64) -> bool {
        self.below(100) < of
    }

    pub(super) const fn permille(&mut self, of: u64) -> bool {
        self.below(1_000) < of
    }

    /// A span between two numbers of milliseconds.
    pub(super) const fn span(&mut self, from_ms: u64, to_ms: u64) -> Nanos {
        (from_ms as Nanos) * MILLISECOND + self.below((to_ms - from_ms) * 1_000) as Nanos * (MILLISECOND / 1_000)
    }
}
