//! The cache of keys and values in blocks, and causal attention over it.
//!
//! A block holds sixteen positions of every layer. Keys lie transposed, sixteen positions of one dimension beside
//! each other, so that one vector holds sixteen scores and nothing is summed across a vector. Memory for a block is
//! taken when the block is first used: an idle worker holds none.

use crate::kernels::{
    Isa, Lane,
    elementwise::exp,
    isa,
    pages::Pages,
    sixteen::{self, Sixteen},
};

/// Positions in one block.
pub const BLOCK: usize = 16;

/// Keys and values of all blocks of one model.
#[derive(Debug)]
pub struct KvCache {
    blocks: Vec<Option<Pages<Lane>>>,
    layers: usize,
    shape: HeadShape,
}

/// The dimensions attention needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub width: usize,
}

impl HeadShape {
    fn value_lanes(self) -> usize {
        self.width.div_ceil(16)
    }

    fn key_block(self) -> usize {
        self.kv_heads * self.width
    }

    fn value_block(self) -> usize {
        self.kv_heads * BLOCK * self.value_lanes()
    }

    fn layer_block(self) -> usize {
        self.key_block() + self.value_block()
    }

    /// Bytes one block takes in a model of that many layers.
    pub fn block_bytes(self, layers: usize) -> usize {
        layers * self.layer_block() * size_of::<Lane>()
    }
}

impl KvCache {
    /// A cache of `blocks` blocks, none of them allocated yet.
    pub fn new(blocks: usize, layers: usize, shape: HeadShape) -> Self {
        Self { blocks: std::iter::repeat_with(|| None).take(blocks).collect(), layers, shape }
    }

    /// Stores the key and value of one position, `kv_heads * width` values each.
    pub fn write(&mut self, layer: usize, block: u32, slot: usize, key: &[f32], value: &[f32]) {
        let shape = self.shape;
        let lanes = self.layers * shape.layer_block();
        let storage = self.blocks[block as usize].get_or_insert_with(|| Pages::zeros(lanes));
        let storage = &mut storage[layer * shape.layer_block()..][..shape.layer_block()];
        let (keys, values) = storage.split_at_mut(shape.key_block());
        for (lane, &key) in keys.iter_mut().zip(key) {
            lane.0[slot] = key;
        }
        let lanes = shape.value_lanes();
        for (head, value) in value.chunks_exact(shape.width).enumerate() {
            let into = &mut values[(head * BLOCK + slot) * lanes..][..lanes];
            for (lane, value) in into.iter_mut().zip(value.chunks(16)) {
                lane.0[..value.len()].copy_from_slice(value);
            }
        }
    }

    /// Bytes its blocks take now.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().flatten().map(|block| size_of_val(&**block)).sum()
    }

    /// Bytes one of its blocks takes.
    pub fn block_bytes(&self) -> usize {
        self.shape.block_bytes(self.layers)
    }

    /// Whether a block takes memory now.
    pub fn holds(&self, block: u32) -> bool {
        self.blocks[block as usize].is_some()
    }

    /// Whether both were made for as many blocks of the same shape.
    pub fn is_like(&self, other: &Self) -> bool {
        (self.blocks.len(), self.layers, self.shape) == (other.blocks.len(), other.layers, other.shape)
    }

    /// Gives back the memory of a block; what it held is gone.
    pub fn give_back(&mut self, block: u32) {
        self.blocks[block as usize] = None;
    }

    /// Causal attention of some tokens of one sequence, each over positions `from..=position` of its view.
    ///
    /// `queries` holds a row of `stride` values for each token, of which the first `heads * width` are its queries;
    /// `out` receives `heads * width` values for each. A token's result does not depend on the others; together they
    /// read each key and value once.
    pub fn attend(
        &self,
        layer: usize,
        views: &[View<'_>],
        queries: &[f32],
        stride: usize,
        scratch: &mut AttentionScratch,
        out: &mut [f32],
    ) {
        assert!(queries.len() >= views.len().saturating_sub(1) * stride + self.shape.heads * self.shape.width);
        attend(isa(), &Work { cache: self, layer, views, queries, stride }, scratch, out);
    }

    fn layer(&self, block: u32, layer: usize) -> (&[Lane], &[Lane]) {
        let storage = self.blocks[block as usize].as_ref().expect("a block is written before it is read");
        let storage = &storage[layer * self.shape.layer_block()..][..self.shape.layer_block()];
        storage.split_at(self.shape.key_block())
    }
}

/// The positions one token looks at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The block table of its sequence.
    pub blocks: &'a [u32],
    /// Its own position, the last it sees.
    pub position: usize,
    /// The first it sees; above zero with a sliding window.
    pub from: usize,
}

/// Tokens of one sequence that are worth computing together.
pub const TOKENS_TOGETHER: usize = ROWS_MAX;
/// Query rows of one tile: their sums fill the registers.
const ROWS_MAX: usize = 6;

/// Buffers of one thread.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    /// By row and block.
    scores: Vec<Lane>,
    /// By dimension and row.
    queries: Vec<f32>,
}

#[allow(unsafe_code, reason = "calls functions compiled for an instruction set")]
fn attend(isa: Isa, work: &Work<'_>, scratch: &mut AttentionScratch, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx2,fma")]
    fn avx512(work: &Work<'_>, scratch: &mut AttentionScratch, out: &mut [f32]) {
        work.compute::<sixteen::Avx512>(scratch, out);
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2(work: &Work<'_>, scratch: &mut AttentionScratch, out: &mut [f32]) {
        work.compute::<sixteen::Avx2>(scratch, out);
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the CPU has these features.
        Isa::Avx512 => unsafe { avx512(work, scratch, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the CPU has these features.
        Isa::Avx2 => unsafe { avx2(work, scratch, out) },
        Isa::Portable => work.compute::<sixteen::Plain>(scratch, out),
    }
}

/// Some tokens of one sequence in one layer.
struct Work<'a> {
    cache: &'a KvCache,
    layer: usize,
    views: &'a [View<'a>],
    queries: &'a [f32],
    stride: usize,
}

impl Work<'_> {
    #[inline(always)]
    fn compute<V: Sixteen>(&self, scratch: &mut AttentionScratch, out: &mut [f32]) {
        let shape = self.cache.shape;
        let all = self.views.len() * (shape.heads / shape.kv_heads);
        for kv_head in 0..shape.kv_heads {
            let mut row = 0;
            while row < all {
                let rows = (all - row).min(ROWS_MAX);
                let tile = Tile { work: self, kv_head, row };
                match rows {
                    1 => tile.compute::<V, 1>(scratch, out),
                    2 => tile.compute::<V, 2>(scratch, out),
                    3 => tile.compute::<V, 3>(scratch, out),
                    4 => tile.compute::<V, 4>(scratch, out),
                    5 => tile.compute::<V, 5>(scratch, out),
                    _ => tile.compute::<V, ROWS_MAX>(scratch, out),
                }
                row += rows;
            }
        }
    }
}

/// Some query rows that look at the keys of one head: `row` counts the heads of a group within the tokens.
struct Tile<'a> {
    work: &'a Work<'a>,
    kv_head: usize,
    row: usize,
}

impl Tile<'_> {
    #[inline(always)]
    fn compute<V: Sixteen, const ROWS: usize>(&self, scratch: &mut AttentionScratch, out: &mut [f32]) {
        let shape = self.work.cache.shape;
        let views: [View<'_>; ROWS] = std::array::from_fn(|row| self.work.views[self.place(row).0]);
        // What any row sees; what one of them does not see will weigh nothing for it.
        let first = views.iter().map(|view| view.from / BLOCK).min().expect("a tile has rows");
        let last = views.iter().map(|view| view.position / BLOCK).max().expect("a tile has rows");
        let blocks = &views[0].blocks[first..=last];
        scratch.queries.resize(shape.width * ROWS, 0.0);
        for row in 0..ROWS {
            let (token, head) = self.place(row);
            let query = &self.work.queries[token * self.work.stride + head * shape.width..][..shape.width];
            for (into, value) in scratch.queries.iter_mut().skip(row).step_by(ROWS).zip(query) {
                *into = *value;
            }
        }
        scratch.scores.resize(ROWS * blocks.len(), Lane::ZERO);
        self.score::<V, ROWS>(blocks, scratch);
        let mut scales = [0.0; ROWS];
        for ((row, scale), scores) in scales.iter_mut().enumerate().zip(scratch.scores.chunks_exact_mut(blocks.len())) {
            mask(scores, views[row], first);
            *scale = 1.0 / exponentiate::<V>(scores);
        }
        let lanes = shape.value_lanes();
        let mut lane = 0;
        while lane < lanes {
            lane += if V::MANY && lanes - lane >= 4 {
                let sums = self.mix::<V, ROWS, 4>(blocks, &scratch.scores, lane);
                self.store(&sums, &scales, lane, out)
            } else {
                let sums = self.mix::<V, ROWS, 1>(blocks, &scratch.scores, lane);
                self.store(&sums, &scales, lane, out)
            };
        }
    }

    /// Writes finished lanes of every row, and says how many.
    #[inline(always)]
    fn store<const ROWS: usize, const LANES: usize>(
        &self,
        sums: &[[[f32; 16]; LANES]; ROWS],
        scales: &[f32; ROWS],
        lane: usize,
        out: &mut [f32],
    ) -> usize {
        let shape = self.work.cache.shape;
        for ((row, sums), scale) in sums.iter().enumerate().zip(scales) {
            let (token, head) = self.place(row);
            let out = &mut out[(token * shape.heads + head) * shape.width..][..shape.width];
            for (out, sum) in out[lane * 16..].chunks_mut(16).zip(sums) {
                for (out, sum) in out.iter_mut().zip(sum) {
                    *out = sum * scale;
                }
            }
        }
        LANES
    }

    /// Token and head of a row of this tile.
    #[inline(always)]
    fn place(&self, row: usize) -> (usize, usize) {
        let group = self.work.cache.shape.heads / self.work.cache.shape.kv_heads;
        let row = self.row + row;
        (row / group, self.kv_head * group + row % group)
    }

    /// The scores of all rows with sixteen keys at a time; dimensions are added in their order.
    #[inline(always)]
    fn score<V: Sixteen, const ROWS: usize>(&self, blocks: &[u32], scratch: &mut AttentionScratch) {
        let width = self.work.cache.shape.width;
        let scale = 1.0 / (width as f32).sqrt();
        let keys_of = |block: u32| &self.work.cache.layer(block, self.work.layer).0[self.kv_head * width..][..width];
        let (queries, _) = scratch.queries.as_chunks::<ROWS>();
        // Two blocks at once hide the latency of an addition, where the registers suffice.
        let (pairs, single) = if V::MANY { blocks.as_chunks::<2>() } else { (&[][..], blocks) };
        for (at, &[block, next]) in pairs.iter().enumerate() {
            let mut sums = [[V::zero(); 2]; ROWS];
            for ((query, key), next) in queries.iter().zip(keys_of(block)).zip(keys_of(next)) {
                for (query, sums) in query.iter().zip(&mut sums) {
                    *sums = [sums[0].add_product(*query, key), sums[1].add_product(*query, next)];
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (half, sums) in sums.iter().enumerate() {
                    scratch.scores[row * blocks.len() + at * 2 + half].0 = sums.to_array().map(|sum| sum * scale);
                }
            }
        }
        for (at, &block) in (pairs.len() * 2..).zip(single) {
            let mut sums = [V::zero(); ROWS];
            for (query, key) in queries.iter().zip(keys_of(block)) {
                for (query, sum) in query.iter().zip(&mut sums) {
                    *sum = sum.add_product(*query, key);
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                scratch.scores[row * blocks.len() + at].0 = sums.to_array().map(|sum| sum * scale);
            }
        }
    }

    /// The weighted sums of `LANES` lanes of the values, starting at lane `first`; positions are added in their order.
    #[inline(always)]
    fn mix<V: Sixteen, const ROWS: usize, const LANES: usize>(
        &self,
        blocks: &[u32],
        weights: &[Lane],
        first: usize,
    ) -> [[[f32; 16]; LANES]; ROWS] {
        let lanes = self.work.cache.shape.value_lanes();
        let mut sums = [[V::zero(); LANES]; ROWS];
        for (at, &block) in blocks.iter().enumerate() {
            let values = self.work.cache.layer(block, self.work.layer).1;
            let values = &values[self.kv_head * BLOCK * lanes..][..BLOCK * lanes];
            let weights: [&Lane; ROWS] = std::array::from_fn(|row| &weights[row * blocks.len() + at]);
            for (slot, values) in values.chunks_exact(lanes).enumerate() {
                let values = values[first..].first_chunk::<LANES>().expect("the head has so many lanes");
                for (sums, weights) in sums.iter_mut().zip(&weights) {
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum = sum.add_product(weights.0[slot], value);
                    }
                }
            }
        }
        sums.map(|row| row.map(Sixteen::to_array))
    }
}

/// Positions outside the view weigh nothing.
#[inline(always)]
fn mask(scores: &mut [Lane], view: View<'_>, first_block: usize) {
    for (at, lane) in scores.iter_mut().enumerate() {
        let start = (first_block + at) * BLOCK;
        if start < view.from || start + BLOCK > view.position + 1 {
            for (position, score) in (start..).zip(&mut lane.0) {
                if position < view.from || position > view.position {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}

#[inline(always)]
fn exp_of<V: Sixteen>(x: f32) -> f32 {
    if V::FUSED { exp::<true>(x) } else { exp::<false>(x) }
}

/// Turns scores into weights that sum to the returned value.
#[inline(always)]
fn exponentiate<V: Sixteen>(scores: &mut [Lane]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; 16];
    for lane in scores.iter() {
        for (largest, score) in largest.iter_mut().zip(&lane.0) {
            *largest = if *score > *largest { *score } else { *largest };
        }
    }
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0_f32; 16];
    for lane in scores.iter_mut() {
        for (score, sum) in lane.0.iter_mut().zip(&mut sums) {
            // The exponential saturates at a tiny number; a masked score must weigh exactly nothing.
            let weight = exp_of::<V>(*score - largest);
            *score = if *score == f32::NEG_INFINITY { 0.0 } else { weight };
            *sum += *score;
        }
    }
    sums.into_iter().sum()
}

#[cfg(test)]
mod tests;
