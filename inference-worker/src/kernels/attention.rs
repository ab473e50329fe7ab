//! The cache of keys and values in blocks, and causal attention over it.
//!
//! A block holds sixteen positions of every layer. Keys lie transposed, sixteen positions of one dimension beside
//! each other, so that one vector holds sixteen scores and nothing is summed across a vector. Memory for a block is
//! taken when the block is first used: an idle worker holds none.

use memmap2::MmapMut;

use crate::kernels::{Lane, elementwise::exp, for_each_isa, multiply_add};

/// Positions in one block.
pub const BLOCK: usize = 16;

/// Keys and values of all blocks of one model.
#[derive(Debug)]
pub struct KvCache {
    blocks: Vec<Option<Block>>,
    layers: usize,
    shape: HeadShape,
}

/// The memory of one block, a mapping of its own: given back, it is the system's again at once, which an allocator does
/// not promise.
#[derive(Debug)]
struct Block(MmapMut);

impl Block {
    /// Zeros.
    fn new(lanes: usize) -> Self {
        Self(MmapMut::map_anon(lanes * size_of::<Lane>()).expect("the system has memory for a block of the cache"))
    }

    #[expect(unsafe_code, reason = "a mapping is bytes, the kernels want lanes")]
    fn lanes(&self) -> &[Lane] {
        // SAFETY: a mapping begins at a page, which is aligned for a lane, and holds whole lanes; every bit pattern is a
        // valid lane, and nobody writes while this borrow lives.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() / size_of::<Lane>()) }
    }

    #[expect(unsafe_code, reason = "a mapping is bytes, the kernels want lanes")]
    fn lanes_mut(&mut self) -> &mut [Lane] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() / size_of::<Lane>()) }
    }
}

/// The dimensions attention needs.
#[derive(Debug, Clone, Copy)]
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
        let storage = self.blocks[block as usize].get_or_insert_with(|| Block::new(lanes)).lanes_mut();
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

    /// Gives back the memory of a block; what it held is gone.
    pub fn give_back(&mut self, block: u32) {
        self.blocks[block as usize] = None;
    }

    /// Attention of one token's query heads over positions `from..=position`.
    ///
    /// `scores` is scratch; `out` receives `heads * width` values.
    pub fn attend(&self, layer: usize, view: View<'_>, query: &[f32], scores: &mut Vec<Lane>, out: &mut [f32]) {
        attend(self, layer, view, query, scores, out);
    }

    fn layer(&self, block: u32, layer: usize) -> (&[Lane], &[Lane]) {
        let storage = self.blocks[block as usize].as_ref().expect("a block is written before it is read");
        let storage = &storage.lanes()[layer * self.shape.layer_block()..][..self.shape.layer_block()];
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

for_each_isa! {
    fn attend(cache: &KvCache, layer: usize, view: View<'_>, query: &[f32], scores: &mut Vec<Lane>, out: &mut [f32]) = attend_heads;
}

#[inline(always)]
fn attend_heads<const FUSED: bool>(
    cache: &KvCache,
    layer: usize,
    view: View<'_>,
    query: &[f32],
    scores: &mut Vec<Lane>,
    out: &mut [f32],
) {
    let shape = cache.shape;
    let group = shape.heads / shape.kv_heads;
    let blocks = view.from / BLOCK..view.position / BLOCK + 1;
    let scale = 1.0 / (shape.width as f32).sqrt();
    scores.resize(blocks.len(), Lane::ZERO);
    for (head, (query, out)) in query.chunks_exact(shape.width).zip(out.chunks_exact_mut(shape.width)).enumerate() {
        let kv_head = head / group;
        for (lane, block) in scores.iter_mut().zip(blocks.clone()) {
            let (keys, _) = cache.layer(view.blocks[block], layer);
            score_block::<FUSED>(query, &keys[kv_head * shape.width..][..shape.width], scale, lane);
        }
        mask(scores, view, blocks.start);
        let sum = exponentiate::<FUSED>(scores);
        let lanes = shape.value_lanes();
        let values_of = |block: usize| {
            let (_, values) = cache.layer(view.blocks[block], layer);
            &values[kv_head * BLOCK * lanes..][..BLOCK * lanes]
        };
        let mut first = 0;
        while first < lanes {
            let rest = &mut out[first * 16..];
            if lanes - first >= 4 {
                mix::<FUSED, 4>(scores, blocks.clone(), values_of, lanes, first, 1.0 / sum, rest);
                first += 4;
            } else {
                mix::<FUSED, 1>(scores, blocks.clone(), values_of, lanes, first, 1.0 / sum, rest);
                first += 1;
            }
        }
    }
}

/// Sixteen scores; four chains of additions hide the latency of one.
#[inline(always)]
fn score_block<const FUSED: bool>(query: &[f32], keys: &[Lane], scale: f32, scores: &mut Lane) {
    let mut sums = [[0.0_f32; 16]; 4];
    let (queries, query_rest) = query.as_chunks::<4>();
    let (quads, key_rest) = keys.as_chunks::<4>();
    for (query, keys) in queries.iter().zip(quads) {
        for ((sum, query), key) in sums.iter_mut().zip(query).zip(keys) {
            for (sum, key) in sum.iter_mut().zip(&key.0) {
                *sum = multiply_add::<FUSED>(*query, *key, *sum);
            }
        }
    }
    for (query, key) in query_rest.iter().zip(key_rest) {
        for (sum, key) in sums[0].iter_mut().zip(&key.0) {
            *sum = multiply_add::<FUSED>(*query, *key, *sum);
        }
    }
    for (slot, score) in scores.0.iter_mut().enumerate() {
        *score = ((sums[0][slot] + sums[1][slot]) + (sums[2][slot] + sums[3][slot])) * scale;
    }
}

/// Positions outside the view weigh nothing.
#[inline(always)]
fn mask(scores: &mut [Lane], view: View<'_>, first_block: usize) {
    if let Some(lane) = scores.first_mut() {
        lane.0[..view.from - first_block * BLOCK].fill(f32::NEG_INFINITY);
    }
    if let Some(lane) = scores.last_mut() {
        lane.0[view.position % BLOCK + 1..].fill(f32::NEG_INFINITY);
    }
}

/// Turns scores into weights that sum to the returned value.
#[inline(always)]
fn exponentiate<const FUSED: bool>(scores: &mut [Lane]) -> f32 {
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
            let weight = exp::<FUSED>(*score - largest);
            *score = if *score == f32::NEG_INFINITY { 0.0 } else { weight };
            *sum += *score;
        }
    }
    sums.into_iter().sum()
}

/// The weighted sum of `LANES` lanes of the values, starting at lane `first`.
#[inline(always)]
fn mix<'a, const FUSED: bool, const LANES: usize>(
    weights: &[Lane],
    blocks: std::ops::Range<usize>,
    values_of: impl Fn(usize) -> &'a [Lane],
    lanes: usize,
    first: usize,
    scale: f32,
    out: &mut [f32],
) {
    let mut sums = [[0.0_f32; 16]; LANES];
    for (weights, block) in weights.iter().zip(blocks) {
        for (weight, row) in weights.0.iter().zip(values_of(block).chunks_exact(lanes)) {
            for (sum, lane) in sums.iter_mut().zip(&row[first..first + LANES]) {
                for (sum, value) in sum.iter_mut().zip(&lane.0) {
                    *sum = multiply_add::<FUSED>(*weight, *value, *sum);
                }
            }
        }
    }
    for (out, sum) in out.chunks_mut(16).zip(&sums) {
        for (out, sum) in out.iter_mut().zip(sum) {
            *out = sum * scale;
        }
    }
}
