//! What each kernel computes, said plainly and in double precision: the kernels are held against this.
//!
//! Nothing here is fast, and nothing is cut into tiles, splits or fragments. Names and layouts are the kernels'.

use std::ops::Range;

use half::{bf16, f16};

/// Positions in one block of the cache.
pub(crate) const BLOCK: usize = 16;
/// What is not there: a slot, a token.
pub(crate) const NONE: u32 = u32::MAX;

/// The dimensions of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heads {
    /// Query heads.
    pub(crate) heads: usize,
    /// Key-value heads.
    pub(crate) kv_heads: usize,
    /// Width of one head.
    pub(crate) width: usize,
}

/// Keys or values of one layer, `[blocks, kv_heads, 16, width]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cached<'a> {
    /// All of them.
    pub(crate) values: &'a [bf16],
    /// Their shape.
    pub(crate) heads: Heads,
}

impl<'a> Cached<'a> {
    /// The vector of a head at a position of the sequence with this table.
    pub(crate) fn at(&self, table: &[u32], kv_head: usize, position: usize) -> &'a [bf16] {
        let slot = table[position / BLOCK] as usize * BLOCK + position % BLOCK;
        &self.values[line(self.heads, kv_head, slot)]
    }
}

/// Where a head's vector of a slot lies.
pub(crate) fn line(heads: Heads, kv_head: usize, slot: usize) -> Range<usize> {
    let line = (slot / BLOCK * heads.kv_heads + kv_head) * BLOCK + slot % BLOCK;
    line * heads.width..(line + 1) * heads.width
}

/// The row of a token in the table of embeddings; zeros outside of it.
pub(crate) fn embed(table: &[bf16], token: u32, hidden: usize) -> Vec<f64> {
    let row = table.chunks_exact(hidden).nth(token as usize);
    row.map_or(vec![0.0; hidden], |row| row.iter().map(|value| f64::from(*value)).collect())
}

/// `x / rms(x) * weight`.
pub(crate) fn rms_norm(x: &[f64], weight: &[f32], epsilon: f32) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(epsilon)).sqrt();
    x.iter().zip(weight).map(|(x, weight)| x * scale * f64::from(*weight)).collect()
}

/// `silu(gate) * up`.
pub(crate) fn gated(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}

/// The first half of a row's values gates the second.
pub(crate) fn silu_multiply(gate_up: &[bf16]) -> Vec<f64> {
    let (gates, ups) = gate_up.split_at(gate_up.len() / 2);
    gates.iter().zip(ups).map(|(gate, up)| gated(f64::from(*gate), f64::from(*up))).collect()
}

/// Turns the pairs `(i, i + half)` of a head by the angles of a position. The angle is rounded to `f32`, as the decoder on
/// the host rounds it.
pub(crate) fn rotate(head: &[f64], inverse_frequencies: &[f32], amplitude: f32, position: u32) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out = head.to_vec();
    for (pair, frequency) in inverse_frequencies.iter().enumerate() {
        let (sine, cosine) = f64::from(position as f32 * frequency).sin_cos();
        let (sine, cosine) = (sine * f64::from(amplitude), cosine * f64::from(amplitude));
        out[pair] = head[pair] * cosine - head[half + pair] * sine;
        out[half + pair] = head[half + pair] * cosine + head[pair] * sine;
    }
    out
}

/// One query over some positions of the cache.
pub(crate) fn attend(
    query: &[bf16],
    (keys, values): (Cached<'_>, Cached<'_>),
    table: &[u32],
    kv_head: usize,
    positions: Range<usize>,
    scale: f32,
) -> Vec<f64> {
    let score = |position: usize| {
        let key = keys.at(table, kv_head, position);
        query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() * f64::from(scale)
    };
    let scores: Vec<f64> = positions.clone().map(score).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut out = vec![0.0; query.len()];
    for (weight, position) in weights.iter().zip(positions) {
        for (out, value) in out.iter_mut().zip(values.at(table, kv_head, position)) {
            *out += weight / total * f64::from(*value);
        }
    }
    out
}

/// The positions a token sees; a window of 0 is none.
pub(crate) fn seen(position: usize, window: usize) -> Range<usize> {
    let from = if window == 0 { 0 } else { (position + 1).saturating_sub(window) };
    from..position + 1
}

/// `out[n] = sum over k of x[k] * weight[n, k]`.
pub(crate) fn product(x: &[bf16], weight: &[bf16]) -> Vec<f64> {
    let output = |row: &[bf16]| x.iter().zip(row).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
    weight.chunks_exact(x.len()).map(output).collect()
}

/// The 32 weights of a block of Q8_0: a scale in f16, and bytes.
pub(crate) fn dequantise_q8_0(block: &[u8; 34]) -> Vec<f64> {
    let scale = f64::from(f16::from_le_bytes([block[0], block[1]]));
    block[2..].iter().map(|byte| scale * f64::from(*byte as i8)).collect()
}

/// The 256 weights of a block of Q4_K: scale and minimum in f16, eight groups' own in six bits, and half bytes.
pub(crate) fn dequantise_q4_k(block: &[u8; 144]) -> Vec<f64> {
    let scale = f64::from(f16::from_le_bytes([block[0], block[1]]));
    let minimum = f64::from(f16::from_le_bytes([block[2], block[3]]));
    let packed = &block[4..16];
    let weight = |at: usize| {
        let (group, within) = (at / 32, at % 32);
        let (own_scale, own_minimum) = match group {
            0..4 => (packed[group] & 63, packed[group + 4] & 63),
            _ => {
                let low = packed[group + 4];
                ((low & 15) | (packed[group - 4] >> 6) << 4, (low >> 4) | (packed[group] >> 6) << 4)
            }
        };
        let byte = block[16 + group / 2 * 32 + within];
        let nibble = if group % 2 == 0 { byte & 15 } else { byte >> 4 };
        scale * f64::from(own_scale) * f64::from(nibble) - minimum * f64::from(own_minimum)
    };
    (0..256).map(weight).collect()
}

/// What a sequence in decoding gives its next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decoding {
    /// The token whose key and value the step stores.
    pub(crate) input: u32,
    /// Its position.
    pub(crate) position: u32,
    /// Where its key and value go.
    pub(crate) slot: u32,
    /// Positions stored after it; 0 where no sequence is.
    pub(crate) context: u32,
}

/// The state of the step after the one that picked a token.
pub(crate) fn advance(now: Decoding, picked: u32, table: &[u32]) -> Decoding {
    if now.context == 0 {
        return now;
    }
    let position = now.position + 1;
    let block = table.get(position as usize / BLOCK).copied().filter(|block| *block != NONE);
    Decoding {
        input: if picked == NONE { 0 } else { picked },
        position,
        slot: block.map_or(NONE, |block| block * BLOCK as u32 + position % BLOCK as u32),
        context: now.context + 1,
    }
}
