//! The packed kernels of every instruction set against products written plainly.

use super::*;
use crate::kernels::quantised::Quantised;

/// Numbers from -1 to 1 that look random.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_769).wrapping_add(1);
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
    .take(count)
    .collect()
}

fn quantised(seed: u32, outputs: usize, inputs: usize, group: usize, offsets: bool) -> Quantised {
    let groups = outputs * inputs / group;
    let half = |value: f32| f16::from_f32(value * 0.01).to_f32();
    Quantised {
        inputs,
        group,
        values: numbers(seed, outputs * inputs).iter().map(|value| (value * 127.0) as i8).collect(),
        scales: numbers(seed + 1, groups).into_iter().map(half).collect(),
        offsets: offsets.then(|| numbers(seed + 2, groups)),
        half_scales: true,
    }
}

/// `x * weights^T`, summed in double precision.
fn plain(x: &[f32], weights: &[f32], inputs: usize) -> Vec<f64> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    x.chunks_exact(inputs).flat_map(|x| weights.chunks_exact(inputs).map(move |row| dot(x, row))).collect()
}

/// Each group of inputs rounded to bytes with a scale.
fn rounded(x: &[f32], group: usize) -> Vec<f32> {
    let one = |x: &[f32]| -> Vec<f32> {
        let scale = x.iter().fold(0.0_f32, |most, value| most.max(value.abs())) / 127.0;
        x.iter().map(|value| (value / scale).round_ties_even() * scale).collect()
    };
    x.chunks_exact(group).flat_map(one).collect()
}

/// With `group`, activations are rounded by such groups.
fn check(name: &str, packed: &Packed, weights: &[f32], group: Option<usize>) {
    let (inputs, outputs) = (packed.inputs(), packed.outputs());
    let mut row = vec![0.0; inputs];
    packed.row(outputs - 1, &mut row);
    assert_eq!(row, weights[(outputs - 1) * inputs..], "{name}: the last row");
    let team = Team::new(2).unwrap();
    for isa in Isa::available() {
        let most = 60;
        let x = numbers(9, most * inputs);
        let mut alone = vec![0.0; most * outputs];
        for (x, y) in x.chunks_exact(inputs).zip(alone.chunks_exact_mut(outputs)) {
            packed.multiply_with(isa, &Team::alone(), x, y);
        }
        let seen = group.map_or_else(|| x.clone(), |group| rounded(&x, group));
        let wanted = plain(&seen, weights, inputs);
        let scale = wanted.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
        for (at, (ours, wanted)) in alone.iter().zip(&wanted).enumerate() {
            assert!((f64::from(*ours) - wanted).abs() < 1e-5 * scale, "{name}, {isa:?}, {at}: {ours}, not {wanted}");
        }
        for rows in [2, 3, 4, 7, 12, 13, 24, 25, most] {
            let mut together = vec![0.0; rows * outputs];
            packed.multiply_with(isa, &team, &x[..rows * inputs], &mut together);
            assert_eq!(together, alone[..rows * outputs], "{name}, {isa:?}: {rows} rows are each as if alone");
        }
    }
}

#[test]
fn float_products_equal_plain_ones_and_do_not_depend_on_company() {
    for (outputs, inputs) in [(1, 1), (31, 7), (33, 40), (200, 65)] {
        let parts = [numbers(1, outputs * inputs), numbers(2, 5 * inputs)];
        let packed = Packed::stack(parts.clone().map(Matrix::Float).into(), inputs);
        check(&format!("floats {outputs} x {inputs}"), &packed, &parts.concat(), None);
    }
}

#[test]
fn quantised_products_equal_plain_ones_and_do_not_depend_on_company() {
    let full = -127..128;
    for (outputs, inputs, offsets, group, values) in [
        (3, 32, false, 32, full.clone()),
        (161, 64, false, 32, full.clone()),
        (140, 96, true, 32, full.clone()),
        (200, 64, false, 16, -32..32),
        (77, 64, false, 32, -8..8),
        (40, 96, true, 32, 0..16),
        (40, 64, true, 32, 0..32),
    ] {
        let parts = [1, 5].map(|seed| {
            let mut part = quantised(seed, outputs, inputs, group, offsets);
            let span = values.end - values.start;
            part.values.iter_mut().for_each(|v| *v = (i32::from(*v).rem_euclid(span) + values.start) as i8);
            part
        });
        let mut packed = Packed::stack(parts.clone().map(Matrix::Quantised).into(), inputs);
        assert!(matches!(packed.weights, Weights::Quantised(_)), "stays quantised");
        let weights = parts.map(|part| part.floats()).concat();
        let name = format!("quantised {outputs} x {inputs} by {group}, values {values:?}");
        check(&name, &packed, &weights, Some(group));
        packed.be_exact();
        check(&format!("{name}, exact"), &packed, &weights, None);
    }
}

#[test]
fn weights_of_four_bits_take_half_a_byte() {
    let mut part = quantised(1, 64, 64, 32, false);
    let bytes = |part: &Quantised| Packed::stack(vec![Matrix::Quantised(part.clone())], 64).bytes();
    let (whole, scales) = (bytes(&part), 64 * 2 * 2);
    part.values.iter_mut().for_each(|value| *value >>= 4);
    assert_eq!(whole - scales, 64 * 64);
    assert_eq!(bytes(&part) - scales, 64 * 64 / 2);
}

#[test]
fn what_is_not_a_number_stays_so() {
    let packed = Packed::stack(vec![Matrix::Quantised(quantised(1, 40, 64, 32, false))], 64);
    for isa in Isa::available() {
        for wrong in [f32::NAN, f32::INFINITY] {
            let mut y = vec![0.0; 40];
            let mut x = vec![1.0; 64];
            x[37] = wrong;
            packed.multiply_with(isa, &Team::alone(), &x, &mut y);
            assert!(y.iter().all(|value| value.is_nan()), "{isa:?}, {wrong}");
        }
    }
}

#[test]
fn a_quantised_matrix_beside_floats_becomes_floats() {
    let (first, second) = (quantised(1, 40, 32, 32, true), numbers(2, 3 * 32));
    let weights = [first.floats(), second.clone(), first.floats()].concat();
    let parts = vec![Matrix::Quantised(first.clone()), Matrix::Float(second), Matrix::Quantised(first)];
    check("mixed", &Packed::stack(parts, 32), &weights, None);
}

#[test]
fn rows_and_columns_can_be_picked_and_quantised_groups_are_not_cut() {
    let matrix = Matrix::Quantised(quantised(1, 6, 64, 32, true));
    let sixteen = numbers(1, 6 * 64).into_iter().map(|value| half::bf16::from_f32(value).to_bits()).collect();
    for matrix in [matrix, Matrix::Sixteen(SixteenKind::Brain, sixteen), Matrix::Float(numbers(1, 6 * 64))] {
        let order = [4, 0, 3, 1, 5, 2];
        let floats = matrix.clone().into_floats();
        let wanted: Vec<f32> = order[1..4].iter().flat_map(|&row: &usize| floats[row * 64..][..64].to_vec()).collect();
        assert_eq!(matrix.pick(64, 1..4, |row| order[row]).into_floats(), wanted);
        let wanted: Vec<f32> = floats.chunks_exact(64).flat_map(|row| &row[32..]).copied().collect();
        assert_eq!(matrix.columns(64, 32..64).unwrap().into_floats(), wanted);
        assert_eq!(matrix.columns(64, 16..48).is_none(), matches!(matrix, Matrix::Quantised(_)));
    }
}

#[test]
fn sixteen_bits_count_as_the_numbers_they_stand_for() {
    for kind in [SixteenKind::Brain, SixteenKind::Half] {
        for (outputs, inputs) in [(1, 1), (33, 40), (200, 65)] {
            let bits = numbers(3, outputs * inputs).into_iter().map(|value| match kind {
                SixteenKind::Brain => half::bf16::from_f32(value).to_bits(),
                SixteenKind::Half => f16::from_f32(value).to_bits(),
            });
            let matrix = Matrix::Sixteen(kind, bits.collect());
            let weights = matrix.clone().into_floats();
            let packed = Packed::stack(vec![matrix], inputs);
            assert_eq!(packed.bytes(), outputs.div_ceil(PANEL) * PANEL * inputs * 2);
            check(&format!("{kind:?} {outputs} x {inputs}"), &packed, &weights, None);
        }
    }
}
