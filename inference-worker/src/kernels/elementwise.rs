//! The row-wise steps between products: norms, the gate of the feed-forward layer, rotary positions.

use crate::kernels::{for_each_isa, multiply_add};

for_each_isa! {
    /// `out = x / rms(x) * weight` for every row of `weight.len()` values.
    pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) = rms_norm_rows;
}

for_each_isa! {
    /// `x += y`, then `out = x / rms(x) * weight`, for every row of `weight.len()` values: the end of one half of a layer
    /// and the beginning of the next, while the row is at hand.
    pub fn add_rms_norm(x: &mut [f32], y: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) = add_rms_norm_rows;
}

for_each_isa! {
    /// The same in place, for `width` values at the start of each `stride`: the per-head norm of queries and keys.
    pub fn rms_norm_in_place(x: &mut [f32], weight: &[f32], epsilon: f32) = rms_norm_rows_in_place;
}

for_each_isa! {
    /// `out = silu(gate) * up` for rows `[gate | up]` of twice `width` values.
    pub fn silu_multiply(gate_up: &[f32], width: usize, out: &mut [f32]) = silu_multiply_rows;
}

for_each_isa! {
    /// `x += y`.
    pub fn add(x: &mut [f32], y: &[f32]) = add_all;
}

for_each_isa! {
    /// Rotates the pairs `(i, i + half)` of one head by the angles whose cosines and sines are given.
    pub fn rotate(head: &mut [f32], cosines: &[f32], sines: &[f32]) = rotate_head;
}

#[inline(always)]
fn rms_norm_rows<const FUSED: bool>(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        let scale = inverse_rms::<FUSED>(x, epsilon);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

#[inline(always)]
fn add_rms_norm_rows<const FUSED: bool>(x: &mut [f32], y: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = weight.len();
    for ((x, y), out) in x.chunks_exact_mut(width).zip(y.chunks_exact(width)).zip(out.chunks_exact_mut(width)) {
        add_all::<FUSED>(x, y);
        rms_norm_rows::<FUSED>(x, weight, epsilon, out);
    }
}

#[inline(always)]
fn rms_norm_rows_in_place<const FUSED: bool>(x: &mut [f32], weight: &[f32], epsilon: f32) {
    for x in x.chunks_exact_mut(weight.len()) {
        let scale = inverse_rms::<FUSED>(x, epsilon);
        for (x, weight) in x.iter_mut().zip(weight) {
            *x = *x * scale * weight;
        }
    }
}

/// Sixteen partial sums, so that the order of additions is fixed and vectors can be used.
#[inline(always)]
fn inverse_rms<const FUSED: bool>(x: &[f32], epsilon: f32) -> f32 {
    let mut sums = [0.0_f32; 16];
    let (lanes, rest) = x.as_chunks::<16>();
    for lane in lanes {
        for (sum, value) in sums.iter_mut().zip(lane) {
            *sum = multiply_add::<FUSED>(*value, *value, *sum);
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *sum = multiply_add::<FUSED>(*value, *value, *sum);
    }
    1.0 / (sums.iter().sum::<f32>() / x.len() as f32 + epsilon).sqrt()
}

#[inline(always)]
fn silu_multiply_rows<const FUSED: bool>(gate_up: &[f32], width: usize, out: &mut [f32]) {
    for (row, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (gate, up) = row.split_at(width);
        for ((out, &gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp::<FUSED>(-gate)) * up;
        }
    }
}

#[inline(always)]
fn add_all<const FUSED: bool>(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[inline(always)]
fn rotate_head<const FUSED: bool>(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let (first, second) = head.split_at_mut(cosines.len());
    for (((a, b), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
        (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
    }
}

/// `e^x` to within two units in the last place, in operations that vectorise; the ends saturate.
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    // x = n * ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial; 2^n by building the exponent bits.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the rounded integer in the low bits.
    let x = x.clamp(-87.0, 88.0);
    let shifted = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = multiply_add::<FUSED>(n, -LN_2_LOW, multiply_add::<FUSED>(n, -LN_2_HIGH, x));
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = multiply_add::<FUSED>(p, r, coefficient);
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    p * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adding_and_normalising_together_equals_one_after_the_other() {
        let values = |seed: usize| (0..3 * 37).map(move |at| ((at * 31 + seed * 17) % 23) as f32 / 7.0 - 1.5);
        let (mut x, y): (Vec<f32>, Vec<f32>) = (values(1).collect(), values(2).collect());
        let weight: Vec<f32> = values(3).take(37).collect();
        let mut apart = x.clone();
        let (mut wanted, mut out) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        add(&mut apart, &y);
        rms_norm(&apart, &weight, 1e-6, &mut wanted);
        add_rms_norm(&mut x, &y, &weight, 1e-6, &mut out);
        assert_eq!((x, out), (apart.clone(), wanted.clone()));
        // And against the formula, in double precision.
        for (row, wanted) in apart.chunks_exact(37).zip(wanted.chunks_exact(37)) {
            let square = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>() / 37.0;
            for ((x, weight), wanted) in row.iter().zip(&weight).zip(wanted) {
                let plain = f64::from(*x) / (square + 1e-6).sqrt() * f64::from(*weight);
                assert!((plain - f64::from(*wanted)).abs() < 1e-5, "{wanted} instead of {plain}");
            }
        }
    }

    #[test]
    fn the_gate_equals_its_formula() {
        let gate_up: Vec<f32> = (0..2 * 50).map(|at| (at % 41) as f32 - 20.0).collect();
        let mut out = vec![0.0; 50];
        silu_multiply(&gate_up, 50, &mut out);
        for (at, out) in out.iter().enumerate() {
            let (gate, up) = (f64::from(gate_up[at]), f64::from(gate_up[50 + at]));
            let wanted = gate / (1.0 + (-gate).exp()) * up;
            assert!((wanted - f64::from(*out)).abs() <= 1e-6 * wanted.abs().max(1.0), "{out} instead of {wanted}");
        }
    }
}
