//! Products of a few activation rows with a large weight matrix that never changes.
//!
//! A weight is packed once, at load, into panels of 32 output columns, so that the inner loop reads it front to back
//! in whole cache lines. The packed form is the only copy: an embedding row is gathered from it as well, which is
//! what lets tied models hold their largest matrix once. Quantised weights stay so (`quantised`): few rows read them as
//! they are, for many rows each panel is unpacked once.

use std::{cell::Cell, ops::Range};

use crate::kernels::{
    Isa, Lane, isa,
    quantised::{self, PANELS_FOR_ONE_ROW, Quantised},
};

/// Output columns in one panel.
pub(super) const PANEL: usize = 32;
pub(super) const LANES: usize = PANEL / 16;
/// Below this many multiply-adds a product is done by the calling thread: waking another costs more.
const PARALLEL_MULTIPLY_ADDS: usize = 400_000;
/// Above this many rows two threads pack the activations.
const PARALLEL_ROWS: usize = 64;

thread_local! {
    /// The buffer for packed activations, kept from one product to the next.
    static ACTIVATIONS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// A weight matrix as its file holds it, row-major `[outputs, inputs]`.
#[derive(Debug, Clone, PartialEq)]
pub enum Matrix {
    /// Floats.
    Float(Vec<f32>),
    /// Bytes with scales.
    Quantised(Quantised),
}

/// How a matrix lies in memory, known before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Floats.
    Float,
    /// Bytes with scales.
    Quantised {
        /// Inputs that share a scale.
        group: usize,
        /// Scales of sixteen bits, and no offsets.
        plain: bool,
    },
}

impl Matrix {
    fn into_floats(self) -> Vec<f32> {
        match self {
            Self::Float(values) => values,
            Self::Quantised(quantised) => quantised.floats(),
        }
    }
}

/// A weight matrix `[outputs, inputs]`, packed by panels of outputs.
#[derive(Debug)]
pub struct Packed {
    weights: Weights,
    inputs: usize,
    outputs: usize,
}

#[derive(Debug)]
enum Weights {
    Float(Vec<Lane>),
    Quantised(quantised::Panels),
}

impl Packed {
    /// Packs matrices of equal input width, one below the other. They stay quantised when all of them are.
    pub fn stack(parts: Vec<Matrix>, inputs: usize) -> Self {
        let mut all_quantised = Vec::new();
        let mut floats = Vec::new();
        for part in parts {
            match part {
                Matrix::Quantised(part) if floats.is_empty() => all_quantised.push(part),
                part => {
                    floats.extend(all_quantised.drain(..).map(|earlier| earlier.floats()));
                    floats.push(part.into_floats());
                }
            }
        }
        if floats.is_empty() {
            let outputs = all_quantised.iter().map(|part| part.values.len()).sum::<usize>() / inputs;
            let weights = Weights::Quantised(quantised::Panels::pack(&all_quantised, inputs));
            return Self { weights, inputs, outputs };
        }
        let outputs = floats.iter().map(Vec::len).sum::<usize>() / inputs;
        let mut lanes = vec![Lane::ZERO; outputs.div_ceil(PANEL) * inputs * LANES];
        let rows = floats.iter().flat_map(|part| part.chunks_exact(inputs));
        for (output, row) in rows.enumerate() {
            let panel = output / PANEL * inputs * LANES + output % PANEL / 16;
            for (input, &value) in row.iter().enumerate() {
                lanes[panel + input * LANES].0[output % 16] = value;
            }
        }
        Self { weights: Weights::Float(lanes), inputs, outputs }
    }

    /// Width of an activation row.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Width of a result row.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes the weights take in memory.
    pub fn bytes(&self) -> usize {
        match &self.weights {
            Weights::Float(lanes) => size_of_val(lanes.as_slice()),
            Weights::Quantised(panels) => panels.bytes(),
        }
    }

    /// Bytes that matrices of these forms and outputs will take, packed one below the other.
    pub fn bytes_of(parts: &[(Form, usize)], inputs: usize) -> usize {
        let panels = parts.iter().map(|(_, outputs)| outputs).sum::<usize>().div_ceil(PANEL);
        let groups = |(form, _): &(Form, usize)| match *form {
            Form::Float => None,
            Form::Quantised { group, plain } => Some((group, plain)),
        };
        match parts.iter().map(groups).collect::<Option<Vec<_>>>() {
            None => panels * inputs * LANES * size_of::<Lane>(),
            Some(groups) => quantised::Panels::bytes_of(panels, inputs, &groups),
        }
    }

    /// Copies one row of the matrix, of `inputs` values.
    pub fn row(&self, output: usize, into: &mut [f32]) {
        assert!(output < self.outputs, "row {output} of {}", self.outputs);
        match &self.weights {
            Weights::Float(lanes) => {
                let panel = output / PANEL * self.inputs * LANES + output % PANEL / 16;
                for (input, value) in into.iter_mut().enumerate() {
                    *value = lanes[panel + input * LANES].0[output % 16];
                }
            }
            Weights::Quantised(panels) => panels.row(output, into),
        }
    }

    /// `y[rows, outputs] = x[rows, inputs] * self^T`, on the current rayon pool when that pays.
    pub fn multiply(&self, x: &[f32], y: &mut [f32]) {
        self.multiply_with(isa(), x, y);
    }

    fn multiply_with(&self, isa: Isa, x: &[f32], y: &mut [f32]) {
        let rows = x.len() / self.inputs;
        assert_eq!(x.len(), rows * self.inputs, "whole activation rows");
        assert_eq!(y.len(), rows * self.outputs, "one result row for each activation row");
        let y = Columns(y.as_mut_ptr());
        if rows == 1 {
            // One row is its own tile.
            self.multiply_tiles(isa, x, &y, rows);
            return;
        }
        let mut packed = ACTIVATIONS.take();
        packed.resize(x.len(), 0.0);
        pack_activations(isa, x, self.inputs, &mut packed);
        self.multiply_tiles(isa, &packed, &y, rows);
        ACTIVATIONS.set(packed);
    }

    /// The same with activations packed in tiles.
    fn multiply_tiles(&self, isa: Isa, x: &[f32], y: &Columns, rows: usize) {
        let panels = self.outputs.div_ceil(PANEL);
        let threads = rayon::current_num_threads();
        if threads == 1 || rows * self.inputs * self.outputs < PARALLEL_MULTIPLY_ADDS {
            self.multiply_panels(isa, x, y, rows, 0..panels);
            return;
        }
        // A few more pieces than threads, so that a thread that comes late does not hold up the rest.
        let pieces = (threads * 3).min(panels);
        rayon::scope(|scope| {
            for piece in 1..pieces {
                scope.spawn(move |_| self.multiply_panels(isa, x, y, rows, share(panels, pieces, piece)));
            }
            self.multiply_panels(isa, x, y, rows, share(panels, pieces, 0));
        });
    }

    fn multiply_panels(&self, isa: Isa, x: &[f32], y: &Columns, rows: usize, panels: Range<usize>) {
        match &self.weights {
            Weights::Float(lanes) => {
                for panel in panels {
                    let weights = &lanes[panel * self.inputs * LANES..][..self.inputs * LANES];
                    self.multiply_panel(isa, x, y, rows, panel, weights);
                }
            }
            Weights::Quantised(weights) if rows <= 2 * isa.tile_rows_max() => {
                self.multiply_quantised(isa, x, y, rows, panels, weights);
            }
            Weights::Quantised(weights) => {
                let mut unpacked = vec![Lane::ZERO; self.inputs * LANES];
                for panel in panels {
                    weights.unpack(isa, panel, &mut unpacked);
                    self.multiply_panel(isa, x, y, rows, panel, &unpacked);
                }
            }
        }
    }

    fn multiply_panel(&self, isa: Isa, x: &[f32], y: &Columns, rows: usize, panel: usize, weights: &[Lane]) {
        let columns = PANEL.min(self.outputs - panel * PANEL);
        let mut row = 0;
        while row < rows {
            let count = isa.tile_rows(rows - row);
            let tile = Tile {
                x: &x[row * self.inputs..][..count * self.inputs],
                weights,
                inputs: self.inputs,
                y: y.0.wrapping_add(row * self.outputs + panel * PANEL),
                y_stride: self.outputs,
                columns,
            };
            tile.compute(isa, count);
            row += count;
        }
    }

    fn multiply_quantised(
        &self,
        isa: Isa,
        x: &[f32],
        y: &Columns,
        rows: usize,
        panels: Range<usize>,
        weights: &quantised::Panels,
    ) {
        let mut panel = panels.start;
        while panel < panels.end {
            let several = rows == 1 && panels.end - panel >= PANELS_FOR_ONE_ROW;
            let wide = if several { PANELS_FOR_ONE_ROW } else { 1 };
            let mut row = 0;
            while row < rows {
                let count = isa.tile_rows(rows - row);
                let tile = quantised::Tile {
                    x: &x[row * self.inputs..][..count * self.inputs],
                    weights,
                    panel,
                    y: y.0.wrapping_add(row * self.outputs + panel * PANEL),
                    y_stride: self.outputs,
                    columns: self.outputs - panel * PANEL,
                };
                tile.compute(isa, count, wide);
                row += count;
            }
            panel += wide;
        }
    }
}

/// Packs rows by tiles: within one, the values of an input stand beside each other, so that a kernel reads them front to
/// back and with one pointer. Each tile takes the place its rows had.
fn pack_activations(isa: Isa, x: &[f32], inputs: usize, packed: &mut [f32]) {
    let most = isa.tile_rows_max();
    let rows = x.len() / inputs;
    if rows > PARALLEL_ROWS && rayon::current_num_threads() > 1 {
        // Cut where a tile begins, so that both parts fall into the tiles of the whole.
        let half = rows / 2 / most * most * inputs;
        let (first, second) = packed.split_at_mut(half);
        rayon::join(
            || pack_tiles(isa, &x[..half], inputs, first, true),
            || pack_tiles(isa, &x[half..], inputs, second, false),
        );
    } else {
        pack_tiles(isa, x, inputs, packed, false);
    }
}

/// With `full` all tiles are full ones; otherwise the last two share what is left.
fn pack_tiles(isa: Isa, x: &[f32], inputs: usize, packed: &mut [f32], full: bool) {
    let rows = x.len() / inputs;
    let mut row = 0;
    while row < rows {
        let count = if full { isa.tile_rows_max() } else { isa.tile_rows(rows - row) };
        let from = &x[row * inputs..][..count * inputs];
        let into = &mut packed[row * inputs..][..count * inputs];
        for (input, into) in into.chunks_exact_mut(count).enumerate() {
            for (row, into) in into.iter_mut().enumerate() {
                *into = from[row * inputs + input];
            }
        }
        row += count;
    }
}

/// The start of the output, shared by threads that write different columns.
struct Columns(*mut f32);

#[allow(unsafe_code, reason = "threads write disjoint panels of one output")]
// SAFETY: the pointer is used only inside `multiply`, which holds the output exclusively and gives every panel of
// columns to exactly one thread.
unsafe impl Sync for Columns {}

/// The part of `0..total` that falls to one of `pieces`.
fn share(total: usize, pieces: usize, piece: usize) -> Range<usize> {
    total * piece / pieces..total * (piece + 1) / pieces
}

impl Isa {
    /// As many rows as fit the registers beside one panel.
    fn tile_rows_max(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => 12,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 3,
            Self::Portable => 2,
        }
    }

    /// How many rows the next tile takes.
    fn tile_rows(self, left: usize) -> usize {
        let most = self.tile_rows_max();
        match left {
            _ if left <= most => left,
            // Two middling tiles are faster than a full one and a thin one.
            _ if left < 2 * most => left.div_ceil(2),
            _ => most,
        }
    }
}

/// Some rows against one panel.
struct Tile<'a> {
    /// Activations by input and row.
    x: &'a [f32],
    weights: &'a [Lane],
    inputs: usize,
    y: *mut f32,
    y_stride: usize,
    columns: usize,
}

macro_rules! by_rows {
    ($tile:ident, $function:ident, $count:ident, $($rows:literal)*) => {
        match $count {
            $($rows => $function::<$rows>($tile),)*
            _ => unreachable!("tiles have at most twelve rows"),
        }
    };
}

impl Tile<'_> {
    #[allow(unsafe_code, reason = "calls functions compiled for an instruction set")]
    fn compute(&self, isa: Isa, count: usize) {
        assert!(self.x.len() >= count * self.inputs && self.weights.len() == self.inputs * LANES);
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the features, and the lengths were just checked.
            Isa::Avx512 => unsafe { by_rows!(self, avx512, count, 1 2 3 4 5 6 7 8 9 10 11 12) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the features, and the lengths were just checked.
            Isa::Avx2 => unsafe { by_rows!(self, avx2, count, 1 2 3) },
            Isa::Portable => by_rows!(self, portable, count, 1 2),
        }
    }

    /// Stores the first `columns` of a finished row.
    #[inline(always)]
    #[allow(unsafe_code, reason = "writes columns that no other thread writes")]
    fn store(&self, row: usize, values: &[f32; PANEL]) {
        // SAFETY: `multiply` checked that the output holds every row, `columns` ends with the matrix, and this panel
        // of columns belongs to this thread alone.
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr(), self.y.add(row * self.y_stride), self.columns);
        }
    }
}

/// SAFETY: the caller has checked for AVX-512F, that `x` holds `ROWS` rows and `weights` one panel.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
#[allow(unsafe_code, reason = "vector intrinsics on raw pointers")]
unsafe fn avx512<const ROWS: usize>(tile: &Tile<'_>) {
    use std::arch::x86_64::*;
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    let x = tile.x.as_ptr();
    let weights = tile.weights.as_ptr().cast::<f32>();
    for input in 0..tile.inputs {
        // SAFETY: `input` is below `inputs`, which both slices were checked to hold; lanes are 64-byte aligned.
        unsafe {
            let first = _mm512_load_ps(weights.add(input * PANEL));
            let second = _mm512_load_ps(weights.add(input * PANEL + 16));
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = _mm512_set1_ps(*x.add(input * ROWS + row));
                sums[0] = _mm512_fmadd_ps(value, first, sums[0]);
                sums[1] = _mm512_fmadd_ps(value, second, sums[1]);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        let mut values = [0.0; PANEL];
        // SAFETY: `values` holds two vectors.
        unsafe {
            _mm512_storeu_ps(values.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(values.as_mut_ptr().add(16), sums[1]);
        }
        tile.store(row, &values);
    }
}

/// SAFETY: the caller has checked for AVX2 and FMA, that `x` holds `ROWS` rows and `weights` one panel.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[allow(unsafe_code, reason = "vector intrinsics on raw pointers")]
unsafe fn avx2<const ROWS: usize>(tile: &Tile<'_>) {
    use std::arch::x86_64::*;
    let mut sums = [[_mm256_setzero_ps(); 4]; ROWS];
    let x = tile.x.as_ptr();
    let weights = tile.weights.as_ptr().cast::<f32>();
    for input in 0..tile.inputs {
        // SAFETY: `input` is below `inputs`, which both slices were checked to hold; lanes are 64-byte aligned.
        unsafe {
            let panel: [__m256; 4] = std::array::from_fn(|part| _mm256_load_ps(weights.add(input * PANEL + part * 8)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = _mm256_set1_ps(*x.add(input * ROWS + row));
                for (sum, weight) in sums.iter_mut().zip(panel) {
                    *sum = _mm256_fmadd_ps(value, weight, *sum);
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
        tile.store(row, &values);
    }
}

fn portable<const ROWS: usize>(tile: &Tile<'_>) {
    let mut sums = [[0.0_f32; PANEL]; ROWS];
    for (input, lanes) in tile.weights.chunks_exact(LANES).enumerate() {
        for (row, sums) in sums.iter_mut().enumerate() {
            let value = tile.x[input * ROWS + row];
            for (half, lane) in sums.chunks_exact_mut(16).zip(lanes) {
                for (sum, weight) in half.iter_mut().zip(&lane.0) {
                    *sum += value * weight;
                }
            }
        }
    }
    for (row, values) in sums.iter().enumerate() {
        tile.store(row, values);
    }
}

#[cfg(test)]
mod tests;
