//! Products of rounded rows with quantised panels: sums of bytes times bytes, scaled group by group.
//!
//! The sum of a group is an exact integer whatever the instructions, and groups are added in their order: a row has the
//! same result in any company.

use super::{Activations, Panels, RowScale, Scales};
#[cfg(target_arch = "x86_64")]
use crate::kernels::matmul::AHEAD;
use crate::kernels::{Isa, matmul::PANEL};

/// Rows of one tile where byte products have an instruction: their sums of a group fill the registers.
pub(super) const ROWS_MAX: usize = 8;

/// A few rows against one panel.
pub(in crate::kernels) struct Tile<'a> {
    weights: &'a Panels,
    panel: usize,
    /// By word and row.
    words: &'a [i32],
    /// By group and row.
    scales: &'a [RowScale],
    /// Where the results of the first row go.
    y: *mut f32,
    /// From one row of results to the next.
    y_stride: usize,
    /// Columns of this panel that the matrix has.
    columns: usize,
}

macro_rules! by_rows {
    ($tile:ident, $function:ident, $count:ident, $($rows:literal)*) => {
        match ($count, $tile.weights.nibbles) {
            $(($rows, true) => $function::<$rows, true>($tile), ($rows, false) => $function::<$rows, false>($tile),)*
            _ => unreachable!("tiles have at most eight rows"),
        }
    };
}

impl<'a> Tile<'a> {
    /// Rows `row..row + count` of what was rounded, as `rows_together` cut them; results go to `y`, a row every `y_stride`.
    pub(in crate::kernels) fn new(
        weights: &'a Panels,
        panel: usize,
        x: &'a Activations,
        row: usize,
        count: usize,
        (y, y_stride, columns): (*mut f32, usize, usize),
    ) -> Self {
        let (words, groups) = (weights.inputs / 4, weights.inputs / weights.group);
        Self {
            weights,
            panel,
            words: &x.words[row * words..][..count * words],
            scales: &x.scales[row * groups..][..count * groups],
            y,
            y_stride,
            columns,
        }
    }

    /// Computes all rows of the tile.
    #[allow(unsafe_code, reason = "calls functions compiled for an instruction set")]
    pub(in crate::kernels) fn compute(&self, isa: Isa) {
        let count = self.scales.len() / (self.weights.inputs / self.weights.group);
        let words = self.weights.inputs / if self.weights.nibbles { 8 } else { 4 } * 2;
        assert!(self.weights.values.len() >= (self.panel + 1) * words, "the panel is there");
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the features, as just asked, and the lengths were checked here and in `new`.
            Isa::Avx512 if isa.byte_products() => unsafe { by_rows!(self, avx512, count, 1 2 3 4 5 6 7 8) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the features, and the lengths were checked here and in `new`.
            Isa::Avx512 | Isa::Avx2 => unsafe { by_rows!(self, avx2, count, 1 2) },
            Isa::Portable => by_rows!(self, portable, count, 1 2),
        }
    }

    /// Stores the results of one row, as far as the matrix has such columns.
    #[inline(always)]
    #[allow(unsafe_code, reason = "writes columns that no other thread writes")]
    fn store(&self, row: usize, values: &[f32; PANEL]) {
        // SAFETY: whoever made the tile owns these columns of an output that holds every row; `columns` ends with it.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.y.add(row * self.y_stride), self.columns) }
    }

    const fn groups(&self) -> usize {
        self.weights.inputs / self.weights.group
    }
}

/// SAFETY: the caller has checked for AVX-512 F, BW, DQ, VL and VNNI, and that the tile has `ROWS` rows of the form that
/// `NIBBLES` says.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
#[allow(unsafe_code, reason = "vector intrinsics on raw pointers")]
unsafe fn avx512<const ROWS: usize, const NIBBLES: bool>(tile: &Tile<'_>) {
    use std::arch::x86_64::*;
    let weights = tile.weights;
    let groups = tile.groups();
    // Words of the activations in a group, and steps: a step reads two vectors of weights.
    let quads = weights.group / 4;
    let steps = if NIBBLES { quads / 2 } else { quads };
    let mut values = weights.values[tile.panel * groups * steps * 2..].as_ptr().cast::<__m512i>();
    let mut x = tile.words.as_ptr();
    let low = _mm512_set1_epi8(0xf);
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for at in 0..groups {
        let scales = &tile.scales[at * ROWS..][..ROWS];
        let mut dots: [[__m512i; 2]; ROWS] = std::array::from_fn(|row| [_mm512_set1_epi32(scales[row].correction); 2]);
        for _ in 0..steps {
            // SAFETY: all groups together read the panel's values and the tile's words once each, from their starts on; a
            // prefetch may ask for any address.
            unsafe {
                let both = [_mm512_load_si512(values), _mm512_load_si512(values.add(1))];
                _mm_prefetch::<_MM_HINT_T0>(values.cast::<i8>().wrapping_add(AHEAD));
                _mm_prefetch::<_MM_HINT_T0>(values.cast::<i8>().wrapping_add(AHEAD + 64));
                values = values.add(2);
                let first = if NIBBLES { both.map(|v| _mm512_and_si512(v, low)) } else { both };
                for (row, dots) in dots.iter_mut().enumerate() {
                    let word = _mm512_set1_epi32(*x.add(row));
                    dots[0] = _mm512_dpbusd_epi32(dots[0], first[0], word);
                    dots[1] = _mm512_dpbusd_epi32(dots[1], first[1], word);
                }
                x = x.add(ROWS);
                if NIBBLES {
                    let second = both.map(|v| _mm512_and_si512(_mm512_srli_epi16::<4>(v), low));
                    for (row, dots) in dots.iter_mut().enumerate() {
                        let word = _mm512_set1_epi32(*x.add(row));
                        dots[0] = _mm512_dpbusd_epi32(dots[0], second[0], word);
                        dots[1] = _mm512_dpbusd_epi32(dots[1], second[1], word);
                    }
                    x = x.add(ROWS);
                }
            }
        }
        let place = tile.panel * groups + at;
        // SAFETY: scales and offsets are two vectors each; the loads are unaligned.
        let (scale, offset): ([__m512; 2], Option<[__m512; 2]>) = unsafe {
            match &weights.scales {
                Scales::Half(all) => {
                    let from = all[place].as_ptr().cast::<__m256i>();
                    let halves = [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))];
                    (halves.map(|half| _mm512_cvtph_ps(half)), None)
                }
                Scales::Full(all) => {
                    let load =
                        |from: &[f32; PANEL]| [_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(16))];
                    (load(&all[place][0]), Some(load(&all[place][1])))
                }
            }
        };
        for ((sums, dots), row) in sums.iter_mut().zip(&dots).zip(scales) {
            let (row_scale, row_sum) = (_mm512_set1_ps(row.scale), _mm512_set1_ps(row.sum));
            for half in 0..2 {
                let product = _mm512_mul_ps(scale[half], row_scale);
                sums[half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[half]), product, sums[half]);
                if let Some(offset) = offset {
                    sums[half] = _mm512_fmadd_ps(offset[half], row_sum, sums[half]);
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        let mut values = [0.0; PANEL];
        for (half, &sum) in sums.iter().enumerate() {
            // SAFETY: `values` holds two vectors of sixteen.
            unsafe { _mm512_storeu_ps(values.as_mut_ptr().add(half * 16), sum) };
        }
        tile.store(row, &values);
    }
}

/// SAFETY: the caller has checked for AVX2 and FMA, and that the tile has `ROWS` rows of the form that `NIBBLES` says.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[allow(unsafe_code, reason = "vector intrinsics on raw pointers")]
unsafe fn avx2<const ROWS: usize, const NIBBLES: bool>(tile: &Tile<'_>) {
    use std::arch::x86_64::*;
    let weights = tile.weights;
    let groups = tile.groups();
    let quads = weights.group / 4;
    let steps = if NIBBLES { quads / 2 } else { quads };
    let ones = _mm256_set1_epi16(1);
    let low = _mm256_set1_epi8(0xf);
    let signs = _mm256_set1_epi8(-128);
    // Eight columns at a time: the registers hold no more.
    let mut results = [[0.0_f32; PANEL]; ROWS];
    for part in 0..4 {
        let mut values = weights.values[tile.panel * groups * steps * 2..].as_ptr().cast::<__m256i>();
        // SAFETY: a step holds four parts of eight columns.
        values = unsafe { values.add(part) };
        let mut x = tile.words.as_ptr();
        let mut sums = [_mm256_setzero_ps(); ROWS];
        for at in 0..groups {
            let scales = &tile.scales[at * ROWS..][..ROWS];
            // Bytes are made signed again below, nibbles are not.
            let mut dots: [__m256i; ROWS] =
                std::array::from_fn(|row| _mm256_set1_epi32(if NIBBLES { scales[row].correction } else { 0 }));
            for _ in 0..steps {
                // SAFETY: all groups together read the panel's part and the tile's words once each, from their starts on.
                unsafe {
                    let both = _mm256_load_si256(values);
                    values = values.add(4);
                    let halves = [both, _mm256_srli_epi16::<4>(both)];
                    for half in halves.iter().take(if NIBBLES { 2 } else { 1 }) {
                        for (row, dot) in dots.iter_mut().enumerate() {
                            let word = _mm256_set1_epi32(*x.add(row));
                            let pairs = if NIBBLES {
                                _mm256_maddubs_epi16(_mm256_and_si256(*half, low), word)
                            } else {
                                // The sign goes to the activation, so that no sum of two products overflows.
                                let weight = _mm256_xor_si256(*half, signs);
                                _mm256_maddubs_epi16(_mm256_abs_epi8(weight), _mm256_sign_epi8(word, weight))
                            };
                            *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(pairs, ones));
                        }
                        x = x.add(ROWS);
                    }
                }
            }
            let (scale, offset) = weights.group_scale(tile.panel * groups + at);
            // SAFETY: scale and offset hold four vectors of eight.
            let (scale, offset) = unsafe {
                (_mm256_loadu_ps(scale.as_ptr().add(part * 8)), _mm256_loadu_ps(offset.as_ptr().add(part * 8)))
            };
            for ((sum, dot), row) in sums.iter_mut().zip(&dots).zip(scales) {
                let product = _mm256_mul_ps(scale, _mm256_set1_ps(row.scale));
                *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(*dot), product, *sum);
                *sum = _mm256_fmadd_ps(offset, _mm256_set1_ps(row.sum), *sum);
            }
        }
        for (sum, result) in sums.iter().zip(&mut results) {
            // SAFETY: a row of results holds four vectors of eight.
            unsafe { _mm256_storeu_ps(result.as_mut_ptr().add(part * 8), *sum) };
        }
    }
    for (row, values) in results.iter().enumerate() {
        tile.store(row, values);
    }
}

fn portable<const ROWS: usize, const NIBBLES: bool>(tile: &Tile<'_>) {
    let weights = tile.weights;
    let groups = tile.groups();
    let mut sums = [[0.0_f32; PANEL]; ROWS];
    for at in 0..groups {
        let mut dots = [[0_i32; PANEL]; ROWS];
        for quad in at * weights.group / 4..(at + 1) * weights.group / 4 {
            for half in 0..2 {
                let (word, shift) = weights.place(tile.panel, half * 16, quad * 4);
                for (row, dots) in dots.iter_mut().enumerate() {
                    let x = tile.words[quad * ROWS + row].to_le_bytes();
                    for (dot, word) in dots[half * 16..].iter_mut().zip(&weights.values[word].0) {
                        for (byte, x) in x.iter().enumerate() {
                            let value = word >> (shift + byte * 8) & if NIBBLES { 0xf } else { 0xff };
                            *dot += value as i32 * i32::from(*x as i8);
                        }
                    }
                }
            }
        }
        let (scale, offset) = weights.group_scale(tile.panel * groups + at);
        for ((sums, dots), row) in sums.iter_mut().zip(&dots).zip(&tile.scales[at * ROWS..]) {
            for column in 0..PANEL {
                sums[column] += (dots[column] + row.correction) as f32 * (scale[column] * row.scale);
                sums[column] += offset[column] * row.sum;
            }
        }
    }
    for (row, values) in sums.iter().enumerate() {
        tile.store(row, values);
    }
}
