//! The packed kernels of every instruction set against products written plainly.

use super::*;

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
    let half = |value: f32| half::f16::from_f32(value * 0.01).to_f32();
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

fn check(name: &str, packed: &Packed, weights: &[f32]) {
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
        let wanted = plain(&x, weights, inputs);
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
        check(&format!("floats {outputs} x {inputs}"), &packed, &parts.concat());
    }
}

#[test]
fn quantised_products_equal_plain_ones_and_do_not_depend_on_company() {
    for (outputs, inputs, offsets, group) in
        [(3, 32, false, 32), (161, 64, false, 32), (140, 96, true, 32), (200, 64, false, 16)]
    {
        let parts = [quantised(1, outputs, inputs, group, offsets), quantised(5, 7, inputs, 32, false)];
        let packed = Packed::stack(parts.clone().map(Matrix::Quantised).into(), inputs);
        assert!(matches!(packed.weights, Weights::Quantised(_)), "stays quantised");
        check(
            &format!("quantised {outputs} x {inputs} by {group}"),
            &packed,
            &parts.map(|part| part.floats()).concat(),
        );
    }
}

#[test]
fn a_quantised_matrix_beside_floats_becomes_floats() {
    let (first, second) = (quantised(1, 40, 32, 32, true), numbers(2, 3 * 32));
    let weights = [first.floats(), second.clone(), first.floats()].concat();
    let parts = vec![Matrix::Quantised(first.clone()), Matrix::Float(second), Matrix::Quantised(first)];
    check("mixed", &Packed::stack(parts, 32), &weights);
}

#[test]
fn rows_can_be_put_in_another_order() {
    let matrix = quantised(1, 6, 64, 32, true);
    let order = [4, 0, 3, 1, 5, 2];
    let floats = matrix.floats();
    let wanted: Vec<f32> = order.iter().flat_map(|&row: &usize| floats[row * 64..][..64].to_vec()).collect();
    assert_eq!(matrix.permuted(|row| order[row]).floats(), wanted);
}
