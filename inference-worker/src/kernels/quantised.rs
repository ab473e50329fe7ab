//! Weights that stay quantised in memory: one byte each, with a scale for every small group of inputs.
//!
//! Every block format of GGUF that is read becomes this one form without loss, save for the rounding of a product of
//! two scales: a four-bit weight is a byte with a small value. Panels have the shape of `matmul`'s, so a panel can be
//! unpacked into floats once and meet many rows; a few rows meet the bytes directly. Both ways compute the same numbers
//! in the same order.

use half::f16;

use crate::kernels::{
    Isa, Lane,
    matmul::{LANES, PANEL},
};

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

    /// The same rows in another order: row `n` of the result is row `from(n)`.
    #[must_use]
    pub fn permuted(&self, from: impl Fn(usize) -> usize) -> Self {
        let rows = self.values.len() / self.inputs;
        let groups = self.inputs / self.group;
        let pick = |all: &[f32]| (0..rows).flat_map(|row| all[from(row) * groups..][..groups].to_vec()).collect();
        Self {
            values: (0..rows).flat_map(|row| self.values[from(row) * self.inputs..][..self.inputs].to_vec()).collect(),
            scales: pick(&self.scales),
            offsets: self.offsets.as_deref().map(pick),
            ..*self
        }
    }
}

/// The panels of a quantised matrix.
#[derive(Debug)]
pub(super) struct Panels {
    inputs: usize,
    group: usize,
    /// By panel, input and column.
    values: Vec<Row>,
    scales: Scales,
}

/// The bytes of one input in one panel.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
struct Row([i8; PANEL]);

/// By panel, group and column.
#[derive(Debug)]
enum Scales {
    /// Sixteen bits, no offsets.
    Half(Vec<[f16; PANEL]>),
    /// Scales and offsets.
    Full(Vec<[[f32; PANEL]; 2]>),
}

impl Panels {
    /// Packs matrices of equal width, one below the other.
    pub(super) fn pack(parts: &[Quantised], inputs: usize) -> Self {
        let outputs = parts.iter().map(|part| part.values.len()).sum::<usize>() / inputs;
        let panels = outputs.div_ceil(PANEL);
        let group = parts.iter().map(|part| part.group).min().expect("at least one matrix");
        let groups = inputs / group;
        let mut values = vec![Row([0; PANEL]); panels * inputs];
        let mut scales = if parts.iter().all(|part| part.half_scales && part.offsets.is_none()) {
            Scales::Half(vec![[f16::ZERO; PANEL]; panels * groups])
        } else {
            Scales::Full(vec![[[0.0; PANEL]; 2]; panels * groups])
        };
        let mut output = 0;
        for part in parts {
            for (row, bytes) in part.values.chunks_exact(inputs).enumerate() {
                let (panel, column) = (output / PANEL, output % PANEL);
                for (into, &byte) in values[panel * inputs..][..inputs].iter_mut().zip(bytes) {
                    into.0[column] = byte;
                }
                for at in 0..groups {
                    let from = row * (inputs / part.group) + at * group / part.group;
                    match &mut scales {
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
        Self { inputs, group, values, scales }
    }

    /// Copies one row of the matrix.
    pub(super) fn row(&self, output: usize, into: &mut [f32]) {
        let (panel, column) = (output / PANEL, output % PANEL);
        let rows = &self.values[panel * self.inputs..][..self.inputs];
        for (at, (into, rows)) in into.chunks_exact_mut(self.group).zip(rows.chunks_exact(self.group)).enumerate() {
            let (scale, offset) = self.group_scale(panel * (self.inputs / self.group) + at);
            for (into, row) in into.iter_mut().zip(rows) {
                *into = f32::from(row.0[column]) * scale[column] + offset[column];
            }
        }
    }

    /// One panel as floats, in the layout of packed floats: `inputs * 2` lanes.
    #[allow(unsafe_code, reason = "calls functions compiled for an instruction set")]
    pub(super) fn unpack(&self, isa: Isa, panel: usize, into: &mut [Lane]) {
        assert_eq!(into.len(), self.inputs * LANES, "one panel");
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the features, and the length was just checked.
            Isa::Avx512 => unsafe { unpack_avx512(self, panel, into) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the features, and the length was just checked.
            Isa::Avx2 => unsafe { unpack_avx2(self, panel, into) },
            Isa::Portable => unpack_portable(self, panel, into),
        }
    }

    /// Scales and offsets of one group of one panel, in two vectors each.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx2,fma")]
    #[inline]
    #[allow(unsafe_code, reason = "vector loads")]
    fn scale_vectors(&self, at: usize) -> ([std::arch::x86_64::__m512; 2], [std::arch::x86_64::__m512; 2]) {
        use std::arch::x86_64::*;
        // SAFETY: the slices hold two vectors of sixteen; the loads are unaligned.
        unsafe {
            match &self.scales {
                Scales::Half(all) => {
                    let from = all[at].as_ptr().cast::<__m256i>();
                    let scale = [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))];
                    (scale.map(|half| _mm512_cvtph_ps(half)), [_mm512_setzero_ps(); 2])
                }
                Scales::Full(all) => {
                    let [scale, offset] = &all[at];
                    let load =
                        |from: &[f32; PANEL]| [_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(16))];
                    (load(scale), load(offset))
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
    pub(super) fn bytes_of(panels: usize, inputs: usize, parts: &[(usize, bool)]) -> usize {
        let group = parts.iter().map(|(group, _)| *group).min().expect("at least one matrix");
        let plain = parts.iter().all(|(_, plain)| *plain);
        let scales = if plain { size_of::<[f16; PANEL]>() } else { size_of::<[[f32; PANEL]; 2]>() };
        panels * (inputs * PANEL + inputs / group * scales)
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Half(all) => size_of_val(all.as_slice()),
            Scales::Full(all) => size_of_val(all.as_slice()),
        };
        self.values.len() * PANEL + scales
    }
}

/// SAFETY: the caller has checked for AVX-512F, and that `into` holds one panel.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
#[allow(unsafe_code, reason = "vector intrinsics on raw pointers")]
unsafe fn unpack_avx512(panels: &Panels, panel: usize, into: &mut [Lane]) {
    use std::arch::x86_64::*;
    let groups = panels.inputs / panels.group;
    let into = into.as_mut_ptr().cast::<f32>();
    let rows = panels.values[panel * panels.inputs..][..panels.inputs].as_ptr();
    for at in 0..groups {
        let (scale, offset) = panels.scale_vectors(panel * groups + at);
        for input in at * panels.group..(at + 1) * panels.group {
            // SAFETY: `input` is below `inputs`, so the row is one of the panel's, and its place in `into` exists; rows
            // are 32 and lanes 64 bytes aligned.
            unsafe {
                let from = rows.add(input).cast::<__m128i>();
                for half in 0..2 {
                    let value = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(from.add(half))));
                    let weight = _mm512_fmadd_ps(value, scale[half], offset[half]);
                    _mm512_store_ps(into.add(input * PANEL + half * 16), weight);
                }
            }
        }
    }
}

/// SAFETY: the caller has checked for AVX2 and FMA, and that `into` holds one panel.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[allow(unsafe_code, reason = "vector intrinsics on raw pointers")]
unsafe fn unpack_avx2(panels: &Panels, panel: usize, into: &mut [Lane]) {
    use std::arch::x86_64::*;
    let groups = panels.inputs / panels.group;
    let into = into.as_mut_ptr().cast::<f32>();
    let rows = panels.values[panel * panels.inputs..][..panels.inputs].as_ptr().cast::<i8>();
    for at in 0..groups {
        let (scale, offset) = panels.group_scale(panel * groups + at);
        for part in 0..4 {
            // SAFETY: scale and offset hold four vectors of eight; `input` is below `inputs`, as above.
            unsafe {
                let scale = _mm256_loadu_ps(scale.as_ptr().add(part * 8));
                let offset = _mm256_loadu_ps(offset.as_ptr().add(part * 8));
                for input in at * panels.group..(at + 1) * panels.group {
                    let bytes = _mm_loadl_epi64(rows.add(input * PANEL + part * 8).cast());
                    let value = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
                    _mm256_store_ps(into.add(input * PANEL + part * 8), _mm256_fmadd_ps(value, scale, offset));
                }
            }
        }
    }
}

fn unpack_portable(panels: &Panels, panel: usize, into: &mut [Lane]) {
    let rows = &panels.values[panel * panels.inputs..][..panels.inputs];
    let groups = panels.inputs / panels.group;
    let by_group = into.chunks_exact_mut(panels.group * LANES).zip(rows.chunks_exact(panels.group));
    for (at, (into, rows)) in by_group.enumerate() {
        let (scale, offset) = panels.group_scale(panel * groups + at);
        for (lanes, row) in into.chunks_exact_mut(LANES).zip(rows) {
            for (half, lane) in lanes.iter_mut().enumerate() {
                for (column, weight) in lane.0.iter_mut().enumerate() {
                    let column = half * 16 + column;
                    *weight = f32::from(row.0[column]) * scale[column] + offset[column];
                }
            }
        }
    }
}

/// A few rows against neighbouring panels, the weights unpacked on the way.
pub(super) struct Tile<'a> {
    /// Activations by input and row.
    pub(super) x: &'a [f32],
    pub(super) weights: &'a Panels,
    /// The first panel.
    pub(super) panel: usize,
    /// Where the results of the first row and panel go.
    pub(super) y: *mut f32,
    /// From one row of results to the next.
    pub(super) y_stride: usize,
    /// Columns of results from `y` to the end of a row.
    pub(super) columns: usize,
}

/// How many panels a tile of one row takes: as many sums as hide the latency of one addition.
pub(super) const PANELS_FOR_ONE_ROW: usize = 4;

macro_rules! by_rows {
    ($tile:ident, $function:ident, $count:ident, $panels:ident, $($rows:literal)*) => {
        match ($count, $panels) {
            (1, PANELS_FOR_ONE_ROW) => $function::<1, PANELS_FOR_ONE_ROW>($tile),
            $(($rows, 1) => $function::<$rows, 1>($tile),)*
            _ => unreachable!("a tile has at most twelve rows, and one panel unless it has one row"),
        }
    };
}

impl Tile<'_> {
    /// Computes `count` rows against `panels` panels: one, or `PANELS_FOR_ONE_ROW` for a single row.
    #[allow(unsafe_code, reason = "calls functions compiled for an instruction set")]
    pub(super) fn compute(&self, isa: Isa, count: usize, panels: usize) {
        let (inputs, groups) = (self.weights.inputs, self.weights.inputs / self.weights.group);
        let scales = match &self.weights.scales {
            Scales::Half(all) => all.len(),
            Scales::Full(all) => all.len(),
        };
        assert!(self.x.len() >= count * inputs);
        assert!(self.weights.values.len() >= (self.panel + panels) * inputs);
        assert!(scales >= (self.panel + panels) * groups);
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the features, and the lengths were just checked.
            Isa::Avx512 => unsafe { by_rows!(self, avx512, count, panels, 1 2 3 4 5 6 7 8 9 10 11 12) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the features, and the lengths were just checked.
            Isa::Avx2 => unsafe { by_rows!(self, avx2, count, panels, 1 2 3) },
            Isa::Portable => by_rows!(self, portable, count, panels, 1 2),
        }
    }

    /// Stores the results of one row and panel, as far as the matrix has such columns.
    #[inline(always)]
    #[allow(unsafe_code, reason = "writes columns that no other thread writes")]
    fn store(&self, row: usize, panel: usize, values: &[f32; PANEL]) {
        let columns = PANEL.min(self.columns - panel * PANEL);
        // SAFETY: the caller of `compute` owns these columns of an output that holds every row; `columns` ends with it.
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr(), self.y.add(row * self.y_stride + panel * PANEL), columns);
        }
    }
}

/// SAFETY: the caller has checked for AVX-512F, that `x` holds `ROWS` rows and the weights `PANELS` panels.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
#[allow(unsafe_code, reason = "vector intrinsics on raw pointers")]
unsafe fn avx512<const ROWS: usize, const PANELS: usize>(tile: &Tile<'_>) {
    use std::arch::x86_64::*;
    let Panels { inputs, group, values, .. } = tile.weights;
    let (inputs, group) = (*inputs, *group);
    let groups = inputs / group;
    let x = tile.x.as_ptr();
    let rows = values[tile.panel * inputs..].as_ptr().cast::<i8>();
    let mut sums = [[[_mm512_setzero_ps(); 2]; PANELS]; ROWS];
    for at in 0..groups {
        let mut scale = [[_mm512_setzero_ps(); 2]; PANELS];
        let mut offset = [[_mm512_setzero_ps(); 2]; PANELS];
        for panel in 0..PANELS {
            (scale[panel], offset[panel]) = tile.weights.scale_vectors((tile.panel + panel) * groups + at);
        }
        for input in at * group..(at + 1) * group {
            for panel in 0..PANELS {
                // SAFETY: `input` is below `inputs`, which `x` and the panels were checked to hold.
                unsafe {
                    let from = rows.add((panel * inputs + input) * PANEL).cast::<__m128i>();
                    let weights: [__m512; 2] = std::array::from_fn(|half| {
                        let value = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(from.add(half))));
                        _mm512_fmadd_ps(value, scale[panel][half], offset[panel][half])
                    });
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let value = _mm512_set1_ps(*x.add(input * ROWS + row));
                        for (sum, weight) in sums[panel].iter_mut().zip(weights) {
                            *sum = _mm512_fmadd_ps(value, weight, *sum);
                        }
                    }
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (panel, sums) in sums.iter().enumerate() {
            let mut values = [0.0; PANEL];
            for (half, &sum) in sums.iter().enumerate() {
                // SAFETY: `values` holds two vectors of sixteen.
                unsafe { _mm512_storeu_ps(values.as_mut_ptr().add(half * 16), sum) };
            }
            tile.store(row, panel, &values);
        }
    }
}

/// SAFETY: the caller has checked for AVX2 and FMA, that `x` holds `ROWS` rows and the weights `PANELS` panels.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[allow(unsafe_code, reason = "vector intrinsics on raw pointers")]
unsafe fn avx2<const ROWS: usize, const PANELS: usize>(tile: &Tile<'_>) {
    use std::arch::x86_64::*;
    let Panels { inputs, group, values, .. } = tile.weights;
    let (inputs, group) = (*inputs, *group);
    let groups = inputs / group;
    let x = tile.x.as_ptr();
    // Four vectors of eight are the registers' fill: panels follow each other.
    for panel in 0..PANELS {
        let rows = values[(tile.panel + panel) * inputs..].as_ptr().cast::<i8>();
        let mut sums = [[_mm256_setzero_ps(); 4]; ROWS];
        for at in 0..groups {
            let (scale, offset) = tile.weights.group_scale((tile.panel + panel) * groups + at);
            for input in at * group..(at + 1) * group {
                // SAFETY: `input` is below `inputs`, which `x` and the panel were checked to hold; scale and offset hold
                // four vectors of eight.
                unsafe {
                    let weights: [__m256; 4] = std::array::from_fn(|part| {
                        let bytes = _mm_loadl_epi64(rows.add(input * PANEL + part * 8).cast());
                        let value = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
                        let scale = _mm256_loadu_ps(scale.as_ptr().add(part * 8));
                        _mm256_fmadd_ps(value, scale, _mm256_loadu_ps(offset.as_ptr().add(part * 8)))
                    });
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let value = _mm256_set1_ps(*x.add(input * ROWS + row));
                        for (sum, weight) in sums.iter_mut().zip(weights) {
                            *sum = _mm256_fmadd_ps(value, weight, *sum);
                        }
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let mut values = [0.0; PANEL];
            for (part, &sum) in sums.iter().enumerate() {
                // SAFETY: `values` holds four vectors of eight.
                unsafe { _mm256_storeu_ps(values.as_mut_ptr().add(part * 8), sum) };
            }
            tile.store(row, panel, &values);
        }
    }
}

fn portable<const ROWS: usize, const PANELS: usize>(tile: &Tile<'_>) {
    let weights = tile.weights;
    let groups = weights.inputs / weights.group;
    for panel in 0..PANELS {
        let mut sums = [[0.0_f32; PANEL]; ROWS];
        let rows = &weights.values[(tile.panel + panel) * weights.inputs..][..weights.inputs];
        for (at, rows) in rows.chunks_exact(weights.group).enumerate() {
            let (scale, offset) = weights.group_scale((tile.panel + panel) * groups + at);
            for (input, bytes) in rows.iter().enumerate() {
                let unpacked: [f32; PANEL] =
                    std::array::from_fn(|column| f32::from(bytes.0[column]) * scale[column] + offset[column]);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = tile.x[(at * weights.group + input) * ROWS + row];
                    for (sum, weight) in sums.iter_mut().zip(&unpacked) {
                        *sum += value * weight;
                    }
                }
            }
        }
        for (row, values) in sums.iter().enumerate() {
            tile.store(row, panel, values);
        }
    }
}
