//! The block formats of GGUF, each into bytes with scales: `weight = value * scale + offset`.

use candle_core::quantized::GgmlDType;
use half::f16;

use crate::{
    kernels::{
        matrix::{Form, SixteenKind, ValueRange},
        quantised::Quantised,
    },
    weights::BlockKind,
};

/// Which blocks of these a device widens.
pub(super) fn kind(kind: GgmlDType) -> Option<BlockKind> {
    match kind {
        GgmlDType::Q8_0 => Some(BlockKind::Q8_0),
        GgmlDType::Q4K => Some(BlockKind::Q4K),
        _ => None,
    }
}

/// Unpacks whole blocks of rows of `inputs` weights; `None` for a format that is not known.
pub(super) fn unpack(kind: GgmlDType, bytes: &[u8], inputs: usize) -> Option<Quantised> {
    let mut out = Unpacked::default();
    match kind {
        GgmlDType::Q4_0 => bytes.as_chunks::<18>().0.iter().for_each(|block| out.q4_0(block)),
        GgmlDType::Q4_1 => bytes.as_chunks::<20>().0.iter().for_each(|block| out.q4_1(block)),
        GgmlDType::Q5_0 => bytes.as_chunks::<22>().0.iter().for_each(|block| out.q5_0(block)),
        GgmlDType::Q5_1 => bytes.as_chunks::<24>().0.iter().for_each(|block| out.q5_1(block)),
        GgmlDType::Q8_0 => bytes.as_chunks::<34>().0.iter().for_each(|block| out.q8_0(block)),
        GgmlDType::Q4K => bytes.as_chunks::<144>().0.iter().for_each(|block| out.q4_k(block)),
        GgmlDType::Q5K => bytes.as_chunks::<176>().0.iter().for_each(|block| out.q5_k(block)),
        GgmlDType::Q6K => bytes.as_chunks::<210>().0.iter().for_each(|block| out.q6_k(block)),
        _ => return None,
    }
    Some(Quantised {
        inputs,
        group: group(kind),
        values: out.values,
        scales: out.scales,
        offsets: (!out.offsets.is_empty()).then_some(out.offsets),
        half_scales: has_half_scales(kind),
    })
}

/// Inputs that share a scale.
fn group(kind: GgmlDType) -> usize {
    if kind == GgmlDType::Q6K { 16 } else { 32 }
}

/// How tensors of this kind will lie in memory.
pub(super) fn form(kind: GgmlDType) -> Form {
    match kind {
        GgmlDType::F32 => Form::Float,
        GgmlDType::F16 => Form::Sixteen(SixteenKind::Half),
        GgmlDType::BF16 => Form::Sixteen(SixteenKind::Brain),
        kind => Form::Quantised { group: group(kind), plain: has_half_scales(kind), values: values(kind) },
    }
}

fn values(kind: GgmlDType) -> ValueRange {
    match kind {
        GgmlDType::Q4_0 => ValueRange::SignedFour,
        GgmlDType::Q4_1 | GgmlDType::Q4K => ValueRange::Four,
        _ => ValueRange::Eight,
    }
}

/// Scales of sixteen bits, and no offsets.
fn has_half_scales(kind: GgmlDType) -> bool {
    matches!(kind, GgmlDType::Q4_0 | GgmlDType::Q5_0 | GgmlDType::Q8_0)
}

#[derive(Default)]
struct Unpacked {
    values: Vec<i8>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
}

impl Unpacked {
    fn q4_0(&mut self, block: &[u8; 18]) {
        self.scales.push(half(block, 0));
        self.nibbles(&block[2..], |_, nibble| nibble as i8 - 8);
    }

    fn q4_1(&mut self, block: &[u8; 20]) {
        self.scales.push(half(block, 0));
        self.offsets.push(half(block, 2));
        self.nibbles(&block[4..], |_, nibble| nibble as i8);
    }

    fn q5_0(&mut self, block: &[u8; 22]) {
        self.scales.push(half(block, 0));
        let high = fifth_bits(block, 2);
        self.nibbles(&block[6..], |at, nibble| (nibble | high(at)) as i8 - 16);
    }

    fn q5_1(&mut self, block: &[u8; 24]) {
        self.scales.push(half(block, 0));
        self.offsets.push(half(block, 2));
        let high = fifth_bits(block, 4);
        self.nibbles(&block[8..], |at, nibble| (nibble | high(at)) as i8);
    }

    fn q8_0(&mut self, block: &[u8; 34]) {
        self.scales.push(half(block, 0));
        self.values.extend(block[2..].iter().map(|&byte| byte as i8));
    }

    fn q4_k(&mut self, block: &[u8; 144]) {
        self.scales_and_minimums(block);
        for pair in block[16..].chunks_exact(32) {
            self.nibbles(pair, |_, nibble| nibble as i8);
        }
    }

    fn q5_k(&mut self, block: &[u8; 176]) {
        self.scales_and_minimums(block);
        let high = &block[16..48];
        for (pair, bytes) in block[48..].chunks_exact(32).enumerate() {
            // Each bit of a high byte belongs to one of the eight groups.
            self.nibbles(bytes, |at, nibble| (nibble | ((high[at % 32] >> (2 * pair + at / 32)) & 1) << 4) as i8);
        }
    }

    fn q6_k(&mut self, block: &[u8; 210]) {
        let scale = half(block, 208);
        self.scales.extend(block[192..208].iter().map(|&byte| scale * f32::from(byte as i8)));
        for (low, high) in block[..128].chunks_exact(64).zip(block[128..192].chunks_exact(32)) {
            for quarter in 0..4 {
                self.values.extend((0..32).map(|at| {
                    let low = low[at + 32 * (quarter % 2)] >> (4 * (quarter / 2)) & 0xf;
                    let high = high[at] >> (2 * quarter) & 3;
                    (low | high << 4) as i8 - 32
                }));
            }
        }
    }

    /// First the low halves of all bytes, then the high ones; `value` gets the index among them.
    fn nibbles(&mut self, bytes: &[u8], value: impl Fn(usize, u8) -> i8) {
        self.values.extend(bytes.iter().enumerate().map(|(at, byte)| value(at, byte & 0xf)));
        self.values.extend(bytes.iter().enumerate().map(|(at, byte)| value(at + bytes.len(), byte >> 4)));
    }

    /// Eight six-bit scales and minimums of a super-block, packed in the twelve bytes after the two halves.
    fn scales_and_minimums(&mut self, block: &[u8]) {
        let (scale, minimum) = (half(block, 0), half(block, 2));
        let packed = &block[4..16];
        for group in 0..8 {
            let (s, m) = if group < 4 {
                (packed[group] & 63, packed[group + 4] & 63)
            } else {
                let both = packed[group + 4];
                (both & 0xf | packed[group - 4] >> 6 << 4, both >> 4 | packed[group] >> 6 << 4)
            };
            self.scales.push(scale * f32::from(s));
            self.offsets.push(-(minimum * f32::from(m)));
        }
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The fifth bit of each weight, in its place above a nibble.
fn fifth_bits(block: &[u8], at: usize) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    move |weight| ((bits >> weight & 1) as u8) << 4
}

#[cfg(test)]
mod tests;
