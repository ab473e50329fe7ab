//! Products of a few activation rows with a large weight matrix that never changes.
//!
//! A weight is packed once, at load, into panels of 32 output columns, so that the inner loop reads it front to back
//! in whole cache lines. The packed form is the only copy: an embedding row is gathered from it as well, which is
//! what lets tied models hold their largest matrix once. Quantised weights stay so (`quantised`).

use std::{cell::Cell, ops::Range};

use half::f16;

use crate::kernels::{
    Isa, Lane, isa,
    matrix::{Form, Matrix, SixteenKind},
    pages::Pages,
    quantised::{self, Activations},
    team::Team,
};

/// Output columns in one panel.
pub(super) const PANEL: usize = 32;
pub(super) const LANES: usize = PANEL / 16;
/// Below this many multiply-adds a product is done by the calling thread: waking another costs more.
const PARALLEL_MULTIPLY_ADDS: usize = 400_000;
/// Above this many rows two threads pack the activations.
const PARALLEL_ROWS: usize = 64;

/// Bytes ahead of what is computed that are asked for: the hardware looks ahead within a page only.
#[cfg(target_arch = "x86_64")]
pub(super) const AHEAD: usize = 4096;

thread_local! {
    /// The buffer for packed activations, kept from one product to the next.
    static ACTIVATIONS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// The same for activations that are rounded to bytes.
    static ROUNDED: Cell<Activations> = Cell::default();
}

/// A weight matrix `[outputs, inputs]`, packed by panels of outputs.
#[derive(Debug)]
pub struct Packed {
    weights: Weights,
    inputs: usize,
    outputs: usize,
    /// Activations meet quantised weights as they are, not rounded to bytes.
    exact: bool,
}

#[derive(Debug)]
enum Weights {
    Float(Pages<Lane>),
    /// Floats of 16 bits; they meet activations as the floats of 32 bits that they stand for.
    Sixteen(SixteenKind, Pages<[[f16; 16]; LANES]>),
    Quantised(quantised::Panels),
}

impl Packed {
    /// Packs matrices of equal input width, one below the other. They stay quantised, or of 16 bits, when all of them are.
    pub fn stack(parts: Vec<Matrix>, inputs: usize) -> Self {
        let outputs = parts.iter().map(|part| part.rows(inputs)).sum();
        let weights = match Self::stack_quantised(parts, inputs) {
            Ok(panels) => Weights::Quantised(panels),
            Err(parts) => Self::stack_floats(parts, inputs, outputs),
        };
        Self { weights, inputs, outputs, exact: false }
    }

    fn stack_quantised(parts: Vec<Matrix>, inputs: usize) -> Result<quantised::Panels, Vec<Matrix>> {
        if !parts.iter().all(|part| matches!(part, Matrix::Quantised(_))) {
            return Err(parts);
        }
        let quantised = parts.into_iter().filter_map(|part| match part {
            Matrix::Quantised(part) => Some(part),
            Matrix::Float(_) | Matrix::Sixteen(..) => None,
        });
        Ok(quantised::Panels::pack(&quantised.collect::<Vec<_>>(), inputs))
    }

    fn stack_floats(parts: Vec<Matrix>, inputs: usize, outputs: usize) -> Weights {
        let places = outputs.div_ceil(PANEL) * inputs;
        let sixteen = match parts.first() {
            Some(Matrix::Sixteen(kind, _)) => Some(*kind),
            _ => None,
        };
        let all_are = |kind| parts.iter().all(|part| matches!(part, Matrix::Sixteen(other, _) if *other == kind));
        if let Some(kind) = sixteen.filter(|kind| all_are(*kind)) {
            let mut lanes: Pages<[[f16; 16]; LANES]> = Pages::zeros_for_weights(places);
            let bits = parts.iter().flat_map(|part| match part {
                Matrix::Sixteen(_, bits) => bits.chunks_exact(inputs),
                Matrix::Float(_) | Matrix::Quantised(_) => unreachable!("all parts are of this kind"),
            });
            for (output, row) in bits.enumerate() {
                for (input, &bits) in row.iter().enumerate() {
                    let lane = &mut lanes[output / PANEL * inputs + input][output % PANEL / 16];
                    lane[output % 16] = f16::from_bits(bits);
                }
            }
            return Weights::Sixteen(kind, lanes);
        }
        let mut lanes: Pages<Lane> = Pages::zeros_for_weights(places * LANES);
        let mut output = 0;
        for part in parts {
            for row in part.into_floats().chunks_exact(inputs) {
                let panel = output / PANEL * inputs * LANES + output % PANEL / 16;
                for (input, &value) in row.iter().enumerate() {
                    lanes[panel + input * LANES].0[output % 16] = value;
                }
                output += 1;
            }
        }
        Weights::Float(lanes)
    }

    /// Leaves activations as they are where the weights are quantised: slower, and without their rounding.
    pub fn be_exact(&mut self) {
        self.exact = true;
    }

    /// Whether activations are left as they are.
    pub fn is_exact(&self) -> bool {
        self.exact
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
            Weights::Float(lanes) => size_of_val(&**lanes),
            Weights::Sixteen(_, lanes) => size_of_val(&**lanes),
            Weights::Quantised(panels) => panels.bytes(),
        }
    }

    /// Bytes that matrices of these forms and outputs will take, packed one below the other.
    pub fn bytes_of(parts: &[(Form, usize)], inputs: usize) -> usize {
        let panels = parts.iter().map(|(_, outputs)| outputs).sum::<usize>().div_ceil(PANEL);
        let quantised = |(form, _): &(Form, usize)| match *form {
            Form::Float | Form::Sixteen(_) => None,
            Form::Quantised { group, plain, values } => Some((group, plain, values)),
        };
        if let Some(quantised) = parts.iter().map(quantised).collect::<Option<Vec<_>>>() {
            return quantised::Panels::bytes_of(panels, inputs, &quantised);
        }
        let all_sixteen = |kind| parts.iter().all(|(form, _)| *form == Form::Sixteen(kind));
        let sixteen = all_sixteen(SixteenKind::Brain) || all_sixteen(SixteenKind::Half);
        panels * inputs * PANEL * if sixteen { size_of::<f16>() } else { size_of::<f32>() }
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
            Weights::Sixteen(kind, lanes) => {
                let lanes = &lanes[output / PANEL * self.inputs..][..self.inputs];
                for (lane, value) in lanes.iter().zip(into) {
                    *value = kind.float(lane[output % PANEL / 16][output % 16].to_bits());
                }
            }
            Weights::Quantised(panels) => panels.row(output, into),
        }
    }

    /// `y[rows, outputs] = x[rows, inputs] * self^T`, with the whole team when that pays.
    pub fn multiply(&self, team: &Team, x: &[f32], y: &mut [f32]) {
        self.multiply_with(isa(), team, x, y);
    }

    fn multiply_with(&self, isa: Isa, team: &Team, x: &[f32], y: &mut [f32]) {
        let rows = x.len() / self.inputs;
        assert_eq!(x.len(), rows * self.inputs, "whole activation rows");
        assert_eq!(y.len(), rows * self.outputs, "one result row for each activation row");
        let y = Columns(y.as_mut_ptr());
        if let (Weights::Quantised(weights), false) = (&self.weights, self.exact) {
            let mut rounded = ROUNDED.take();
            rounded.round(isa, team, weights, x);
            self.share_panels(team, rows, |panels| self.multiply_rounded(isa, weights, &rounded, &y, rows, panels));
            ROUNDED.set(rounded);
        } else if rows == 1 {
            // One row is its own tile.
            self.share_panels(team, rows, |panels| self.multiply_panels(isa, x, &y, rows, panels));
        } else {
            let mut packed = ACTIVATIONS.take();
            packed.resize(x.len(), 0.0);
            pack_activations(isa, team, x, self.inputs, &mut packed);
            self.share_panels(team, rows, |panels| self.multiply_panels(isa, &packed, &y, rows, panels));
            ACTIVATIONS.set(packed);
        }
    }

    /// Has all panels computed, by the team when that pays.
    fn share_panels(&self, team: &Team, rows: usize, work: impl Fn(Range<usize>) + Sync) {
        let panels = self.outputs.div_ceil(PANEL);
        let threads = team.threads();
        if threads == 1 || rows * self.inputs * self.outputs < PARALLEL_MULTIPLY_ADDS {
            return work(0..panels);
        }
        // A few more pieces than threads, so that a thread that comes late does not hold up the rest.
        let pieces = (threads * 3).min(panels);
        team.run(pieces, |piece| work(share(panels, pieces, piece)));
    }

    /// Panels against activations packed in tiles.
    fn multiply_panels(&self, isa: Isa, x: &[f32], y: &Columns, rows: usize, panels: Range<usize>) {
        match &self.weights {
            Weights::Float(lanes) => {
                for panel in panels {
                    let weights = &lanes[panel * self.inputs * LANES..][..self.inputs * LANES];
                    self.multiply_panel(isa, x, y, rows, panel, Panel::Float(weights));
                }
            }
            Weights::Sixteen(kind, lanes) => {
                for panel in panels {
                    let weights = &lanes[panel * self.inputs..][..self.inputs];
                    self.multiply_panel(isa, x, y, rows, panel, Panel::Sixteen(*kind, weights));
                }
            }
            Weights::Quantised(weights) => {
                let mut unpacked = vec![Lane::ZERO; self.inputs * LANES];
                for panel in panels {
                    weights.unpack(isa, panel, &mut unpacked);
                    self.multiply_panel(isa, x, y, rows, panel, Panel::Float(&unpacked));
                }
            }
        }
    }

    fn multiply_panel(&self, isa: Isa, x: &[f32], y: &Columns, rows: usize, panel: usize, weights: Panel<'_>) {
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

    fn multiply_rounded(
        &self,
        isa: Isa,
        weights: &quantised::Panels,
        x: &Activations,
        y: &Columns,
        rows: usize,
        panels: Range<usize>,
    ) {
        for panel in panels {
            let columns = PANEL.min(self.outputs - panel * PANEL);
            let mut row = 0;
            while row < rows {
                let count = isa.rows_together(rows - row);
                let into = (y.0.wrapping_add(row * self.outputs + panel * PANEL), self.outputs, columns);
                quantised::Tile::new(weights, panel, x, row, count, into).compute(isa);
                row += count;
            }
        }
    }
}

/// Packs rows by tiles: within one, the values of an input stand beside each other, so that a kernel reads them front to
/// back and with one pointer. Each tile takes the place its rows had.
fn pack_activations(isa: Isa, team: &Team, x: &[f32], inputs: usize, packed: &mut [f32]) {
    let most = isa.tile_rows_max();
    let rows = x.len() / inputs;
    if rows > PARALLEL_ROWS && team.threads() > 1 {
        // Cut where a tile begins, so that both parts fall into the tiles of the whole.
        let half = rows / 2 / most * most * inputs;
        let (first, second) = packed.split_at_mut(half);
        let parts = vec![(&x[..half], first, true), (&x[half..], second, false)];
        team.each(parts, |(x, packed, full)| pack_tiles(isa, x, inputs, packed, full));
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

/// The weights of one panel.
#[derive(Clone, Copy)]
enum Panel<'a> {
    Float(&'a [Lane]),
    Sixteen(SixteenKind, &'a [[[f16; 16]; LANES]]),
}

/// Some rows against one panel.
struct Tile<'a> {
    /// Activations by input and row.
    x: &'a [f32],
    weights: Panel<'a>,
    inputs: usize,
    y: *mut f32,
    y_stride: usize,
    columns: usize,
}

/// Kinds of weights, as a constant that kernels are compiled for.
const FLOAT: u8 = 0;
const BRAIN: u8 = 1;
const HALF: u8 = 2;

macro_rules! by_rows {
    ($tile:ident, $function:ident, $count:ident, $($rows:literal)*) => {
        match ($count, $tile.kind()) {
            $(
                ($rows, FLOAT) => $function::<$rows, FLOAT>($tile),
                ($rows, BRAIN) => $function::<$rows, BRAIN>($tile),
                ($rows, HALF) => $function::<$rows, HALF>($tile),
            )*
            _ => unreachable!("tiles have at most twelve rows, of three kinds"),
        }
    };
}

impl Tile<'_> {
    const fn kind(&self) -> u8 {
        match self.weights {
            Panel::Float(_) => FLOAT,
            Panel::Sixteen(SixteenKind::Brain, _) => BRAIN,
            Panel::Sixteen(SixteenKind::Half, _) => HALF,
        }
    }

    const fn start(&self) -> *const u8 {
        match self.weights {
            Panel::Float(lanes) => lanes.as_ptr().cast(),
            Panel::Sixteen(_, lanes) => lanes.as_ptr().cast(),
        }
    }

    #[allow(unsafe_code, reason = "calls functions compiled for an instruction set")]
    fn compute(&self, isa: Isa, count: usize) {
        let inputs = match self.weights {
            Panel::Float(lanes) => lanes.len() / LANES,
            Panel::Sixteen(_, lanes) => lanes.len(),
        };
        assert!(self.x.len() >= count * self.inputs && inputs == self.inputs);
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

/// SAFETY: the caller has checked for AVX-512F, that `x` holds `ROWS` rows and `weights` one panel of that kind.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
#[allow(unsafe_code, reason = "vector intrinsics on raw pointers")]
unsafe fn avx512<const ROWS: usize, const KIND: u8>(tile: &Tile<'_>) {
    use std::arch::x86_64::*;
    let bytes = if KIND == FLOAT { 4 } else { 2 };
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    let mut x = tile.x.as_ptr();
    let mut weights = tile.start();
    for _ in 0..tile.inputs {
        // SAFETY: an input has 32 weights and `ROWS` activations, and both slices were checked to hold all inputs; lanes are
        // 64-byte aligned where they are loaded so; a prefetch may ask for any address.
        unsafe {
            let panel: [__m512; 2] = std::array::from_fn(|half| {
                let from = weights.add(half * 16 * bytes);
                match KIND {
                    FLOAT => _mm512_load_ps(from.cast()),
                    BRAIN => {
                        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
                    }
                    _ => _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())),
                }
            });
            for line in 0..bytes / 2 {
                _mm_prefetch::<_MM_HINT_T0>(weights.wrapping_add(AHEAD + 64 * line).cast());
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = _mm512_set1_ps(*x.add(row));
                sums[0] = _mm512_fmadd_ps(value, panel[0], sums[0]);
                sums[1] = _mm512_fmadd_ps(value, panel[1], sums[1]);
            }
            x = x.add(ROWS);
            weights = weights.add(PANEL * bytes);
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

/// SAFETY: the caller has checked for AVX2, FMA and F16C, that `x` holds `ROWS` rows and `weights` one panel of that kind.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
#[allow(unsafe_code, reason = "vector intrinsics on raw pointers")]
unsafe fn avx2<const ROWS: usize, const KIND: u8>(tile: &Tile<'_>) {
    use std::arch::x86_64::*;
    let bytes = if KIND == FLOAT { 4 } else { 2 };
    let mut sums = [[_mm256_setzero_ps(); 4]; ROWS];
    let mut x = tile.x.as_ptr();
    let mut weights = tile.start();
    for _ in 0..tile.inputs {
        // SAFETY: an input has 32 weights and `ROWS` activations, and both slices were checked to hold all inputs; lanes are
        // 64-byte aligned where they are loaded so.
        unsafe {
            let panel: [__m256; 4] = std::array::from_fn(|part| {
                let from = weights.add(part * 8 * bytes);
                match KIND {
                    FLOAT => _mm256_load_ps(from.cast()),
                    BRAIN => {
                        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                    }
                    _ => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                }
            });
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = _mm256_set1_ps(*x.add(row));
                for (sum, weight) in sums.iter_mut().zip(panel) {
                    *sum = _mm256_fmadd_ps(value, weight, *sum);
                }
            }
            x = x.add(ROWS);
            weights = weights.add(PANEL * bytes);
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

fn portable<const ROWS: usize, const KIND: u8>(tile: &Tile<'_>) {
    let mut sums = [[0.0_f32; PANEL]; ROWS];
    for input in 0..tile.inputs {
        let weights: [f32; PANEL] = match tile.weights {
            Panel::Float(lanes) => std::array::from_fn(|column| lanes[input * LANES + column / 16].0[column % 16]),
            Panel::Sixteen(kind, lanes) => {
                std::array::from_fn(|column| kind.float(lanes[input][column / 16][column % 16].to_bits()))
            }
        };
        for (row, sums) in sums.iter_mut().enumerate() {
            let value = tile.x[input * ROWS + row];
            for (sum, weight) in sums.iter_mut().zip(&weights) {
                *sum += value * weight;
            }
        }
    }
    for (row, values) in sums.iter().enumerate() {
        tile.store(row, values);
    }
}

#[cfg(test)]
mod tests;
