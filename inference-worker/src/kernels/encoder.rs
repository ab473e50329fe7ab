//! What encoders do beside products and attention: norms with mean and bias, and the gates of their feed-forward layers.

use crate::kernels::{elementwise::exp, for_each_isa, multiply_add};

for_each_isa! {
    /// `x = (x - mean) / deviation * weight + bias` for every row of `weight.len()` values.
    pub fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) = layer_norm_rows;
}

for_each_isa! {
    /// `x += y + bias`, then the norm of each row.
    pub fn add_layer_norm(x: &mut [f32], y: &[f32], added: &[f32], weight: &[f32], bias: &[f32], epsilon: f32) = add_layer_norm_rows;
}

for_each_isa! {
    /// `x += bias` for every row of `bias.len()` values.
    pub fn add_bias(x: &mut [f32], bias: &[f32]) = add_bias_rows;
}

for_each_isa! {
    /// `x = gelu(x + bias)` by the error function, which is right to 2e-7.
    pub fn gelu(x: &mut [f32], bias: &[f32]) = gelu_rows;
}

for_each_isa! {
    /// `x = gelu(x + bias)` as it is approximated by the hyperbolic tangent.
    pub fn gelu_tanh(x: &mut [f32], bias: &[f32]) = gelu_tanh_rows;
}

for_each_isa! {
    /// `x = max(x + bias, 0)`.
    pub fn relu(x: &mut [f32], bias: &[f32]) = relu_rows;
}

#[inline(always)]
fn sum<const FUSED: bool>(x: &[f32], square: bool, less: f32) -> f32 {
    let mut sums = [0.0_f32; 16];
    let (lanes, rest) = x.as_chunks::<16>();
    let add = |sum: &mut f32, value: &f32| {
        let value = value - less;
        *sum = if square { multiply_add::<FUSED>(value, value, *sum) } else { *sum + value };
    };
    for lane in lanes {
        sums.iter_mut().zip(lane).for_each(|(sum, value)| add(sum, value));
    }
    sums.iter_mut().zip(rest).for_each(|(sum, value)| add(sum, value));
    sums.iter().sum()
}

#[inline(always)]
fn layer_norm_rows<const FUSED: bool>(x: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    let width = weight.len();
    for x in x.chunks_exact_mut(width) {
        let mean = sum::<FUSED>(x, false, 0.0) / width as f32;
        let scale = 1.0 / (sum::<FUSED>(x, true, mean) / width as f32 + epsilon).sqrt();
        for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
            *x = multiply_add::<FUSED>((*x - mean) * scale, *weight, *bias);
        }
    }
}

#[inline(always)]
fn add_layer_norm_rows<const FUSED: bool>(
    x: &mut [f32],
    y: &[f32],
    added: &[f32],
    weight: &[f32],
    bias: &[f32],
    epsilon: f32,
) {
    let width = weight.len();
    for (x, y) in x.chunks_exact_mut(width).zip(y.chunks_exact(width)) {
        for ((x, y), added) in x.iter_mut().zip(y).zip(added) {
            *x += y + added;
        }
        layer_norm_rows::<FUSED>(x, weight, bias, epsilon);
    }
}

#[inline(always)]
fn add_bias_rows<const FUSED: bool>(x: &mut [f32], bias: &[f32]) {
    for x in x.chunks_exact_mut(bias.len()) {
        for (x, bias) in x.iter_mut().zip(bias) {
            *x += bias;
        }
    }
}

/// The error function by formula 7.1.26 of Abramowitz and Stegun.
#[inline(always)]
fn erf<const FUSED: bool>(x: f32) -> f32 {
    let t = 1.0 / multiply_add::<FUSED>(0.327_591_1, x.abs(), 1.0);
    let mut p = 1.061_405_4;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = multiply_add::<FUSED>(p, t, coefficient);
    }
    (1.0 - p * t * exp::<FUSED>(-x * x)).copysign(x)
}

#[inline(always)]
fn gelu_rows<const FUSED: bool>(x: &mut [f32], bias: &[f32]) {
    for x in x.chunks_exact_mut(bias.len()) {
        for (x, bias) in x.iter_mut().zip(bias) {
            let value = *x + bias;
            *x = 0.5 * value * (1.0 + erf::<FUSED>(value * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

#[inline(always)]
fn gelu_tanh_rows<const FUSED: bool>(x: &mut [f32], bias: &[f32]) {
    // Twice the square root of 2 / pi.
    const TWICE: f32 = 1.595_769;
    for x in x.chunks_exact_mut(bias.len()) {
        for (x, bias) in x.iter_mut().zip(bias) {
            let value = *x + bias;
            // (1 + tanh(z)) / 2 is the logistic function of 2 z.
            let z = TWICE * multiply_add::<FUSED>(0.044_715 * value * value, value, value);
            *x = value / (1.0 + exp::<FUSED>(-z));
        }
    }
}

#[inline(always)]
fn relu_rows<const FUSED: bool>(x: &mut [f32], bias: &[f32]) {
    for x in x.chunks_exact_mut(bias.len()) {
        for (x, bias) in x.iter_mut().zip(bias) {
            *x = (*x + bias).max(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|at| ((at * 7_919 + seed * 104_729) % 1_000) as f32 / 250.0 - 2.0).collect()
    }

    #[test]
    fn gates_equal_their_formulas() {
        let (x, bias) = (values(3 * 70, 1), values(70, 2));
        type Gate = (fn(&mut [f32], &[f32]), fn(f64) -> f64);
        let all: [Gate; 2] = [
            (relu, |x| x.max(0.0)),
            (gelu_tanh, |x| {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
            }),
        ];
        for (ours, formula) in all {
            let mut out = x.clone();
            ours(&mut out, &bias);
            for (at, out) in out.iter().enumerate() {
                let wanted = formula(f64::from(x[at]) + f64::from(bias[at % 70]));
                assert!((wanted - f64::from(*out)).abs() < 2e-6, "{out} instead of {wanted}");
            }
        }
    }

    #[test]
    fn the_error_function_is_right() {
        // From tables.
        for (x, wanted) in
            [(0.0, 0.0), (0.5, 0.520_499_9), (1.0, 0.842_700_8), (2.0, 0.995_322_3), (-1.0, -0.842_700_8)]
        {
            assert!((erf::<false>(x) - wanted).abs() < 3e-7, "{x}");
        }
        let mut out = [3.0, -3.0, 0.0, 1.0];
        gelu(&mut out, &[0.0; 4]);
        for (out, wanted) in out.iter().zip([2.995_950_2, -0.004_049_8, 0.0, 0.841_344_8]) {
            assert!((out - wanted).abs() < 1e-6, "{out}");
        }
    }

    #[test]
    fn norms_equal_their_formula() {
        let (mut x, y) = (values(2 * 50, 3), values(2 * 50, 4));
        let (added, weight, bias) = (values(50, 5), values(50, 6), values(50, 7));
        let plain: Vec<f64> =
            x.iter().zip(&y).enumerate().map(|(at, (x, y))| f64::from(x + y + added[at % 50])).collect();
        add_layer_norm(&mut x, &y, &added, &weight, &bias, 1e-12);
        for (row, out) in plain.chunks_exact(50).zip(x.chunks_exact(50)) {
            let mean = row.iter().sum::<f64>() / 50.0;
            let deviation = (row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 50.0 + 1e-12).sqrt();
            for (at, out) in out.iter().enumerate() {
                let wanted = (row[at] - mean) / deviation * f64::from(weight[at]) + f64::from(bias[at]);
                assert!((wanted - f64::from(*out)).abs() < 1e-5, "{out} instead of {wanted}");
            }
        }
    }
}
