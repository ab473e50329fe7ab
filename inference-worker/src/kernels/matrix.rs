//! A weight matrix as its file holds it, before it is packed: cut for shards, put in another order, or read as floats.

use std::ops::Range;

use half::{bf16, f16};

use crate::kernels::quantised::Quantised;

/// A weight matrix `[outputs, inputs]`, row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum Matrix {
    /// Floats of 32 bits.
    Float(Vec<f32>),
    /// Floats of 16 bits, which stay such in memory.
    Sixteen(SixteenKind, Vec<u16>),
    /// Bytes with scales.
    Quantised(Quantised),
}

/// How a matrix lies in memory, known before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Floats of 32 bits.
    Float,
    /// Floats of 16 bits.
    Sixteen(SixteenKind),
    /// Bytes with scales.
    Quantised {
        /// Inputs that share a scale.
        group: usize,
        /// Scales of sixteen bits, and no offsets.
        plain: bool,
        /// The range of its values.
        values: ValueRange,
    },
}

/// The values of quantised weights; those of four bits share a byte if all that lie together have the same range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueRange {
    /// -8 to 7.
    SignedFour,
    /// 0 to 15.
    Four,
    /// More.
    Eight,
}

/// Which floats of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SixteenKind {
    /// The upper half of a float of 32 bits (bfloat16).
    Brain,
    /// IEEE's half precision.
    Half,
}

impl SixteenKind {
    /// The number that these bits stand for.
    #[inline(always)]
    pub fn float(self, bits: u16) -> f32 {
        match self {
            Self::Brain => bf16::from_bits(bits).to_f32(),
            Self::Half => f16::from_bits(bits).to_f32(),
        }
    }
}

impl Matrix {
    /// The weights as floats of 32 bits.
    pub fn into_floats(self) -> Vec<f32> {
        match self {
            Self::Float(values) => values,
            Self::Sixteen(kind, bits) => bits.into_iter().map(|bits| kind.float(bits)).collect(),
            Self::Quantised(quantised) => quantised.floats(),
        }
    }

    /// How many rows of `inputs` weights it has.
    pub fn rows(&self, inputs: usize) -> usize {
        let weights = match self {
            Self::Float(values) => values.len(),
            Self::Sixteen(_, bits) => bits.len(),
            Self::Quantised(quantised) => quantised.values.len(),
        };
        weights / inputs
    }

    /// Other rows of it: row `n` of the result is row `from(n)`.
    #[must_use]
    pub fn pick(&self, inputs: usize, rows: Range<usize>, from: impl Fn(usize) -> usize) -> Self {
        match self {
            Self::Float(values) => Self::Float(pick(values, inputs, rows, from)),
            Self::Sixteen(kind, bits) => Self::Sixteen(*kind, pick(bits, inputs, rows, from)),
            Self::Quantised(q) => {
                let groups = inputs / q.group;
                Self::Quantised(Quantised {
                    values: pick(&q.values, inputs, rows.clone(), &from),
                    scales: pick(&q.scales, groups, rows.clone(), &from),
                    offsets: q.offsets.as_deref().map(|offsets| pick(offsets, groups, rows, &from)),
                    ..*q
                })
            }
        }
    }

    /// Some inputs of every row; none when they cut through a group that shares a scale.
    #[must_use]
    pub fn columns(&self, inputs: usize, columns: Range<usize>) -> Option<Self> {
        Some(match self {
            Self::Float(values) => Self::Float(cut(values, inputs, columns)),
            Self::Sixteen(kind, bits) => Self::Sixteen(*kind, cut(bits, inputs, columns)),
            Self::Quantised(q) => {
                if !columns.start.is_multiple_of(q.group) || !columns.end.is_multiple_of(q.group) {
                    return None;
                }
                let (groups, of) = (inputs / q.group, columns.start / q.group..columns.end / q.group);
                Self::Quantised(Quantised {
                    inputs: columns.len(),
                    values: cut(&q.values, inputs, columns),
                    scales: cut(&q.scales, groups, of.clone()),
                    offsets: q.offsets.as_deref().map(|offsets| cut(offsets, groups, of)),
                    ..*q
                })
            }
        })
    }
}

fn pick<T: Copy>(all: &[T], width: usize, rows: Range<usize>, from: impl Fn(usize) -> usize) -> Vec<T> {
    rows.flat_map(|row| &all[from(row) * width..][..width]).copied().collect()
}

fn cut<T: Copy>(all: &[T], width: usize, columns: Range<usize>) -> Vec<T> {
    all.chunks_exact(width).flat_map(|row| &row[columns.clone()]).copied().collect()
}
