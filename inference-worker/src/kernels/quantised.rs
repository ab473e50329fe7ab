//! Weights that stay quantised in memory: a byte or half a one each, with a scale for every small group of inputs.
//!
//! Every block format of GGUF that is read becomes this one form without loss, save for the rounding of a product of
//! two scales. Weights of four bits stay such: two share a byte. Activations are rounded to bytes as well, each group of
//! a row with a scale of its own, as all engines do that are fast on CPUs: products of bytes are exact integers, summed
//! by instructions made for it. Who wants no such rounding unpacks a panel into floats (`unpack`), at several times the
//! cost.

mod products;

use half::f16;

use crate::kernels::{
    Isa, Lane,
    matmul::{LANES, PANEL},
    matrix::ValueRange,
    pages::{Pages, Plain},
    team::Team,
};

pub(super) use products::Tile;

/// One matrix `[outputs, inputs]`, row-major: `weight = value * scale + offset`, scale and offset by group of inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    /// Width of a row.
    pub inputs: usize,
    /// Inputs that share a scale; divides `inputs`.
    pub group: usize,
    /// `outputs * inputs` values.
    pub values: Vec<i8>,
    /// `outputs * inputs / group` scales.
    pub scales: Vec<f32>,
    /// As many offsets; `None` for zeros.
    pub offsets: Option<Vec<f32>>,
    /// Every scale is a 16-bit float, and may be kept as one.
    pub half_scales: bool,
}

impl Quantised {
    /// The weights as floats.
    pub fn floats(&self) -> Vec<f32> {
        let groups = self.values.chunks_exact(self.group).zip(&self.scales).enumerate();
        let offset = |group: usize| self.offsets.as_ref().map_or(0.0, |offsets| offsets[group]);
        groups
            .flat_map(|(group, (values, scale))| {
                values.iter().map(move |&value| f32::from(value) * scale + offset(group))
            })
            .collect()
    }
}

/// The panels of a quantised matrix.
#[derive(Debug)]
pub(super) struct Panels {
    inputs: usize,
    group: usize,
    /// Two weights share a byte.
    nibbles: bool,
    /// What is added to a weight's value so that it is stored as a number from zero on.
    zero: u8,
    /// By panel, four inputs (eight with nibbles) and half a panel.
    values: Pages<Words>,
    scales: Scales,
}

/// Sixteen columns of four inputs each, a byte for each input from the lowest on. With nibbles the high halves of the
/// bytes are the next four inputs.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Words([u32; 16]);

#[expect(unsafe_code, reason = "integers take every pattern of bits")]
// SAFETY: integers take every pattern of bits.
unsafe impl Plain for Words {}

/// By panel, group and column.
#[derive(Debug)]
enum Scales {
    /// Sixteen bits, no offsets.
    Half(Pages<[f16; PANEL]>),
    /// Scales and offsets.
    Full(Pages<[[f32; PANEL]; 2]>),
}

impl Panels {
    /// Packs matrices of equal width, one below the other.
    pub(super) fn pack(parts: &[Quantised], inputs: usize) -> Self {
        let outputs = parts.iter().map(|part| part.values.len()).sum::<usize>() / inputs;
        let panels = outputs.div_ceil(PANEL);
        let group = parts.iter().map(|part| part.group).min().expect("at least one matrix");
        assert!(group % 8 == 0 && inputs.is_multiple_of(group), "groups are whole pairs of words");
        let groups = inputs / group;
        let all = || parts.iter().flat_map(|part| &part.values);
        let (least, most) = (all().min().copied().unwrap_or(0), all().max().copied().unwrap_or(0));
        let zero = if least >= 0 {
            0
        } else if least >= -8 && most < 8 {
            8
        } else {
            128
        };
        let nibbles = zero != 128 && i16::from(most) + i16::from(zero) < 16;
        let zero = if nibbles { zero } else { 128_u8 };
        let scales = if parts.iter().all(|part| part.half_scales && part.offsets.is_none()) {
            Scales::Half(Pages::zeros_for_weights(panels * groups))
        } else {
            Scales::Full(Pages::zeros_for_weights(panels * groups))
        };
        let words = panels * inputs / if nibbles { 8 } else { 4 } * 2;
        let mut packed = Self { inputs, group, nibbles, zero, values: Pages::zeros_for_weights(words), scales };
        let mut output = 0;
        for part in parts {
            for (row, bytes) in part.values.chunks_exact(inputs).enumerate() {
                let (panel, column) = (output / PANEL, output % PANEL);
                for (input, &byte) in bytes.iter().enumerate() {
                    let (word, shift) = packed.place(panel, column, input);
                    let value = (i16::from(byte) + i16::from(zero)) as u32;
                    packed.values[word].0[column % 16] |= value << shift;
                }
                for at in 0..groups {
                    let from = row * (inputs / part.group) + at * group / part.group;
                    match &mut packed.scales {
                        Scales::Half(all) => all[panel * groups + at][column] = f16::from_f32(part.scales[from]),
                        Scales::Full(all) => {
                            let [scales, offsets] = &mut all[panel * groups + at];
                            scales[column] = part.scales[from];
                            offsets[column] = part.offsets.as_ref().map_or(0.0, |offsets| offsets[from]);
                        }
                    }
                }
                output += 1;
            }
        }
        packed
    }

    /// Where a weight lies: which words, and how far up in its column's.
    #[inline(always)]
    fn place(&self, panel: usize, column: usize, input: usize) -> (usize, usize) {
        if self.nibbles {
            ((panel * self.inputs / 8 + input / 8) * 2 + column / 16, input % 4 * 8 + input % 8 / 4 * 4)
        } else {
            ((panel * self.inputs / 4 + input / 4) * 2 + column / 16, input % 4 * 8)
        }
    }

    const fn mask(&self) -> u32 {
        if self.nibbles { 0xf } else { 0xff }
    }

    /// Copies one row of the matrix.
    pub(super) fn row(&self, output: usize, into: &mut [f32]) {
        let (panel, column) = (output / PANEL, output % PANEL);
        for (at, into) in into.chunks_exact_mut(self.group).enumerate() {
            let (scale, offset) = self.group_scale(panel * (self.inputs / self.group) + at);
            for (input, into) in (at * self.group..).zip(into) {
                let (word, shift) = self.place(panel, column, input);
                let value = self.values[word].0[column % 16] >> shift & self.mask();
                *into = (value as i32 - i32::from(self.zero)) as f32 * scale[column] + offset[column];
            }
        }
    }

    /// One panel as floats, in the layout of packed floats: `inputs * 2` lanes.
    #[allow(unsafe_code, reason = "calls functions compiled for an instruction set")]
    pub(super) fn unpack(&self, isa: Isa, panel: usize, into: &mut [Lane]) {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx2,fma")]
        fn avx512(panels: &Panels, panel: usize, into: &mut [Lane]) {
            panels.unpack_panel(panel, into);
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2(panels: &Panels, panel: usize, into: &mut [Lane]) {
            panels.unpack_panel(panel, into);
        }
        assert_eq!(into.len(), self.inputs * LANES, "one panel");
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the features.
            Isa::Avx512 => unsafe { avx512(self, panel, into) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the features.
            Isa::Avx2 => unsafe { avx2(self, panel, into) },
            Isa::Portable => self.unpack_panel(panel, into),
        }
    }

    #[inline(always)]
    fn unpack_panel(&self, panel: usize, into: &mut [Lane]) {
        let groups = self.inputs / self.group;
        for (at, into) in into.chunks_exact_mut(self.group * LANES).enumerate() {
            let (scale, offset) = self.group_scale(panel * groups + at);
            for (input, lanes) in (at * self.group..).zip(into.chunks_exact_mut(LANES)) {
                for (half, lane) in lanes.iter_mut().enumerate() {
                    let (word, shift) = self.place(panel, half * 16, input);
                    let words = &self.values[word].0;
                    for (column, weight) in lane.0.iter_mut().enumerate() {
                        let value = (words[column] >> shift & self.mask()) as i32 - i32::from(self.zero);
                        *weight = value as f32 * scale[half * 16 + column] + offset[half * 16 + column];
                    }
                }
            }
        }
    }

    fn group_scale(&self, at: usize) -> ([f32; PANEL], [f32; PANEL]) {
        match &self.scales {
            Scales::Half(all) => (all[at].map(f16::to_f32), [0.0; PANEL]),
            Scales::Full(all) => (all[at][0], all[at][1]),
        }
    }

    /// Bytes that so many panels will take, of matrices with these groups; `true` for plain scales.
    pub(super) fn bytes_of(panels: usize, inputs: usize, parts: &[(usize, bool, ValueRange)]) -> usize {
        let group = parts.iter().map(|(group, ..)| *group).min().expect("at least one matrix");
        let plain = parts.iter().all(|(_, plain, _)| *plain);
        let scales = if plain { size_of::<[f16; PANEL]>() } else { size_of::<[[f32; PANEL]; 2]>() };
        let all_are = |range| parts.iter().all(|(.., values)| *values == range);
        let nibbles = all_are(ValueRange::SignedFour) || all_are(ValueRange::Four);
        panels * (inputs * PANEL / if nibbles { 2 } else { 1 } + inputs / group * scales)
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Half(all) => size_of_val(&**all),
            Scales::Full(all) => size_of_val(&**all),
        };
        size_of_val(&*self.values) + scales
    }
}

/// Rows rounded to bytes by groups, packed by tiles: within one, the words of an input's four stand beside each other.
#[derive(Debug, Default)]
pub(super) struct Activations {
    /// Four inputs each; by tile, word and row.
    words: Vec<i32>,
    /// By tile, group and row.
    scales: Vec<RowScale>,
}

/// What belongs to one group of one row.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct RowScale {
    /// An activation is its byte times this.
    scale: f32,
    /// The sum of the group's activations, for weights with offsets.
    sum: f32,
    /// What weights stored from zero on add too much to the sum of products, negated.
    correction: i32,
}

impl Activations {
    /// Rounds rows of `weights.inputs` values.
    pub(super) fn round(&mut self, isa: Isa, team: &Team, weights: &Panels, x: &[f32]) {
        let (inputs, group) = (weights.inputs, weights.group);
        let rows = x.len() / inputs;
        self.words.resize(rows * inputs / 4, 0);
        self.scales.resize(rows * inputs / group, RowScale::default());
        let (mut words, mut scales) = (self.words.as_mut_slice(), self.scales.as_mut_slice());
        let mut tiles = Vec::new();
        let mut row = 0;
        while row < rows {
            let count = isa.rows_together(rows - row);
            let (word, scale);
            (word, words) = words.split_at_mut(count * inputs / 4);
            (scale, scales) = scales.split_at_mut(count * inputs / group);
            tiles.push((&x[row * inputs..][..count * inputs], word, scale));
            row += count;
        }
        let one = |(x, words, scales): (&[f32], &mut [i32], &mut [RowScale])| {
            round_tile(isa, &Rounding { inputs, group, zero: i32::from(weights.zero) }, x, words, scales);
        };
        if rows < ROWS_ALONE { tiles.into_iter().for_each(one) } else { team.each(tiles, one) }
    }
}

/// Fewer rows are rounded by the calling thread.
const ROWS_ALONE: usize = 32;

struct Rounding {
    inputs: usize,
    group: usize,
    zero: i32,
}

#[allow(unsafe_code, reason = "calls functions compiled for an instruction set")]
fn round_tile(isa: Isa, how: &Rounding, x: &[f32], words: &mut [i32], scales: &mut [RowScale]) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
    fn avx512(how: &Rounding, x: &[f32], words: &mut [i32], scales: &mut [RowScale]) {
        how.tile(x, words, scales);
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2(how: &Rounding, x: &[f32], words: &mut [i32], scales: &mut [RowScale]) {
        how.tile(x, words, scales);
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a CPU with byte products (see `byte_products`) has these features.
        Isa::Avx512 if isa.byte_products() => unsafe { avx512(how, x, words, scales) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the CPU has the features.
        Isa::Avx512 | Isa::Avx2 => unsafe { avx2(how, x, words, scales) },
        Isa::Portable => how.tile(x, words, scales),
    }
}

impl Rounding {
    #[inline(always)]
    fn tile(&self, x: &[f32], words: &mut [i32], scales: &mut [RowScale]) {
        let rows = x.len() / self.inputs;
        for (row, x) in x.chunks_exact(self.inputs).enumerate() {
            for (at, x) in x.chunks_exact(self.group).enumerate() {
                // As bits, so that what is not a number counts as the largest and is not lost.
                let bits = x.iter().fold(0, |most: u32, value| most.max(value.abs().to_bits()));
                let largest = f32::from_bits(bits);
                let (scale, inverse) = match largest {
                    0.0 => (0.0, 0.0),
                    _ if largest.is_finite() => (largest / 127.0, 127.0 / largest),
                    _ => (f32::NAN, 0.0),
                };
                let mut sum = 0;
                let into = words[at * self.group / 4 * rows + row..].iter_mut().step_by(rows);
                for (four, into) in x.as_chunks::<4>().0.iter().zip(into) {
                    let bytes = four.map(|value| nearest(value * inverse));
                    sum += bytes.iter().map(|byte| i32::from(*byte)).sum::<i32>();
                    *into = i32::from_le_bytes(bytes.map(|byte| byte as u8));
                }
                scales[at * rows + row] = RowScale { scale, sum: scale * sum as f32, correction: -self.zero * sum };
            }
        }
    }
}

/// The nearest whole number of a small float, ties to the even one: adding this moves the fraction out of the mantissa.
#[inline(always)]
fn nearest(x: f32) -> i8 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT).to_bits().wrapping_sub(SHIFT.to_bits()) as i8
}

impl Isa {
    /// Whether sums of products of bytes have an instruction of their own here.
    pub(super) fn byte_products(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            }
            _ => false,
        }
    }

    /// How many rows the next tile of byte products takes.
    pub(super) fn rows_together(self, left: usize) -> usize {
        let most = if self.byte_products() { products::ROWS_MAX } else { 2 };
        match left {
            _ if left <= most => left,
            // Two middling tiles are faster than a full one and a thin one.
            _ if left < 2 * most => left.div_ceil(2),
            _ => most,
        }
    }
}
