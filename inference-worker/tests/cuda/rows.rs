//! The kernels that go row by row: embeddings, norms, rotation, the gate, products, weights from files.

use half::bf16;

use crate::{
    NULL, Parameter, Random, assert_close, assert_rounded,
    bench::{Bench, everywhere},
    twins::{self, Decoding, Heads, NONE},
};

fn wide(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

#[test]
fn embeddings_are_those_of_the_tokens() {
    for (seed, hidden) in [(1, 8), (2, 256), (3, 2_048), (4, 4_104)] {
        let mut random = Random(seed);
        let vocabulary = 50;
        let table = random.brains(vocabulary * hidden, 1.0);
        let tokens = [0, 49, 7, 50, NONE];
        for x in everywhere(|bench| {
            let x = bench.empty::<f32>(tokens.len() * hidden);
            let (table, tokens) = (bench.holding(&table), bench.holding(&tokens));
            bench.launch("embed", [tokens.values().len(), 1, 1], 256, 0, &[&table, &tokens, &x, &vocabulary, &hidden]);
            x.values()
        }) {
            for (row, token) in x.chunks_exact(hidden).zip(tokens) {
                assert_close(row, &twins::embed(&table, token, hidden), 0.0, &format!("token {token}, width {hidden}"));
            }
        }
    }
}

#[test]
fn norms_equal_their_formula() {
    // Widths below, at and above what a block holds in registers.
    for (seed, hidden, rows) in [(1, 8, 3), (2, 256, 2), (3, 1_000, 5), (4, 5_120, 2), (5, 8_192, 1), (6, 9_000, 2)] {
        let mut random = Random(seed);
        let what = format!("seed {seed}, width {hidden}");
        let (x, weight) = (random.floats(rows * hidden, 3.0), random.floats(hidden, 1.0));
        let (projected, bias) = (random.brains(rows * hidden, 2.0), random.floats(hidden, 1.0));
        let picked: Vec<u32> = random.permutation(rows)[..rows.div_ceil(2)].to_vec();
        let epsilon = 1e-5_f32;

        for normed in everywhere(|bench| {
            let (x, weight, out) = (bench.holding(&x), bench.holding(&weight), bench.empty::<bf16>(rows * hidden));
            bench.launch("rms_norm", [rows, 1, 1], 256, 0, &[&x, &NULL, &weight, &epsilon, &out, &hidden]);
            out.values()
        }) {
            for (row, out) in x.chunks_exact(hidden).zip(normed.chunks_exact(hidden)) {
                let row: Vec<f64> = row.iter().copied().map(f64::from).collect();
                assert_rounded(out, &twins::rms_norm(&row, &weight, epsilon), 1e-6, &what);
            }
        }

        for (bias, listed) in [(None, false), (Some(&bias), true), (Some(&bias), false), (None, true)] {
            let list: Vec<u32> = if listed { picked.clone() } else { (0..rows as u32).collect() };
            for (sums, normed) in everywhere(|bench| {
                let (x, projected) = (bench.holding(&x), bench.holding(&projected));
                let (weight, bias) = (bench.holding(&weight), bias.map(|bias| bench.holding(bias)));
                let rows = listed.then(|| bench.holding(&list));
                let out = bench.empty::<bf16>(list.len() * hidden);
                let arguments: [&dyn Parameter; 8] = [&x, &projected, &bias, &rows, &weight, &epsilon, &out, &hidden];
                bench.launch("add_rms_norm", [list.len(), 1, 1], 256, 0, &arguments);
                (x.values(), out.values())
            }) {
                for row in 0..rows {
                    let whole = row * hidden..(row + 1) * hidden;
                    let added =
                        |at: usize| f64::from(projected[at]) + bias.map_or(0.0, |bias| f64::from(bias[at % hidden]));
                    let place = list.iter().position(|listed| *listed as usize == row);
                    let sum: Vec<f64> =
                        whole.clone().map(|at| f64::from(x[at]) + place.map_or(0.0, |_| added(at))).collect();
                    assert_close(&sums[whole], &sum, 1e-6, &what);
                    if let Some(place) = place {
                        let out = &normed[place * hidden..][..hidden];
                        assert_rounded(out, &twins::rms_norm(&sum, &weight, epsilon), 1e-6, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn the_gate_equals_its_formula() {
    for (seed, width, rows) in [(1, 8, 3), (2, 512, 2), (3, 2_048, 1), (4, 5_000, 2)] {
        let mut random = Random(seed);
        let mut gate_up = random.brains(rows * 2 * width, 6.0);
        // Where the exponential overflows on either side.
        gate_up[0] = bf16::from_f32(-200.0);
        gate_up[1] = bf16::from_f32(200.0);
        for out in everywhere(|bench| {
            let (gate_up, out) = (bench.holding(&gate_up), bench.empty::<bf16>(rows * width));
            bench.launch("silu_multiply", [width.div_ceil(2_048), rows, 1], 256, 0, &[&gate_up, &out, &width]);
            out.values()
        }) {
            for (row, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact(width)) {
                assert_rounded(out, &twins::silu_multiply(row), 1e-6, &format!("seed {seed}, width {width}"));
            }
        }
    }
}

#[test]
fn heads_are_normalised_rotated_and_stored() {
    let shapes = [
        (Heads { heads: 4, kv_heads: 2, width: 64 }, true, true),
        (Heads { heads: 7, kv_heads: 1, width: 128 }, true, false),
        (Heads { heads: 2, kv_heads: 2, width: 8 }, false, true),
        (Heads { heads: 3, kv_heads: 3, width: 256 }, true, true),
        (Heads { heads: 8, kv_heads: 2, width: 96 }, false, false),
    ];
    for (seed, (heads, biased, normed)) in (1..).zip(shapes) {
        let mut random = Random(seed);
        let what = format!("seed {seed}, {heads:?}");
        let Heads { heads: queries, kv_heads, width } = heads;
        let all = queries + 2 * kv_heads;
        // Near and far: beyond a million, an angle in f32 has lost its fraction, and is still the same angle.
        let positions = [0_u32, 1, 1_000, 131_071, 3_000_000];
        let slots = [35_u32, 0, NONE, 16, 31];
        let count = positions.len();
        let qkv = random.brains(count * all * width, 1.5);
        let bias = random.floats(all * width, 1.0);
        let norms = [random.floats(width, 1.0), random.floats(width, 1.0)];
        let frequencies: Vec<f32> =
            (0..width / 2).map(|pair| 1.0 / 1e6_f32.powf(2.0 * pair as f32 / width as f32)).collect();
        let (amplitude, epsilon, cached) = (1.25_f32, 1e-6_f32, 3 * kv_heads * twins::BLOCK * width);
        for (after, keys, values) in everywhere(|bench| {
            let qkv = bench.holding(&qkv);
            let bias = biased.then(|| bench.holding(&bias));
            let [query_norm, key_norm] = norms.each_ref().map(|norm| normed.then(|| bench.holding(norm)));
            let (frequencies, positions) = (bench.holding(&frequencies), bench.holding(&positions));
            let (slots, keys, values) = (bench.holding(&slots), bench.empty::<u16>(cached), bench.empty::<u16>(cached));
            let arguments: [&dyn Parameter; 14] = [
                &qkv,
                &bias,
                &query_norm,
                &key_norm,
                &epsilon,
                &frequencies,
                &amplitude,
                &positions,
                &slots,
                &keys,
                &values,
                &queries,
                &kv_heads,
                &width,
            ];
            bench.launch("rotate_and_store", [count, all.div_ceil(4), 1], 128, 0, &arguments);
            let bits: Vec<u16> = qkv.values().iter().map(|value| value.to_bits()).collect();
            (bits, keys.values(), values.values())
        }) {
            let brains = |bits: &[u16]| bits.iter().map(|bits| bf16::from_bits(*bits)).collect::<Vec<_>>();
            let mut written = 0;
            for token in 0..count {
                for head in 0..all {
                    let place = (token * all + head) * width..(token * all + head + 1) * width;
                    let mut vector = wide(&qkv[place.clone()]);
                    if biased {
                        let own = &bias[head * width..];
                        vector.iter_mut().zip(own).for_each(|(value, bias)| *value += f64::from(*bias));
                    }
                    let (is_query, is_value) = (head < queries, head >= queries + kv_heads);
                    if !is_value {
                        if normed {
                            vector = twins::rms_norm(&vector, &norms[usize::from(!is_query)], epsilon);
                        }
                        vector = twins::rotate(&vector, &frequencies, amplitude, positions[token]);
                    }
                    // A rotation adds two products, so it may cancel.
                    let slack = 1e-5;
                    if is_query {
                        assert_rounded(&brains(&after[place]), &vector, slack, &what);
                        continue;
                    }
                    let same: Vec<u16> = qkv[place.clone()].iter().map(|value| value.to_bits()).collect();
                    assert_eq!(after[place], same, "{what}: keys and values stay in the row");
                    if slots[token] != NONE {
                        let kv_head = (head - queries) % kv_heads;
                        let line = twins::line(heads, kv_head, slots[token] as usize);
                        let stored = if is_value { &values[line] } else { &keys[line] };
                        assert_rounded(&brains(stored), &vector, slack, &what);
                        written += width;
                    }
                }
            }
            let untouched = keys.iter().chain(&values).filter(|bits| **bits == u16::MAX).count();
            assert_eq!(untouched, 2 * cached - written, "{what}: nothing else is written");
        }
    }
}

#[test]
fn products_equal_sums_of_products() {
    for (seed, count, inputs, outputs) in [(1, 1, 8, 5), (2, 33, 200, 40), (3, 5, 64, 129), (4, 64, 72, 32)] {
        let mut random = Random(seed);
        let what = format!("seed {seed}, {count} x {inputs} x {outputs}");
        let (x, weight) = (random.brains(count * inputs, 1.0), random.brains(outputs * inputs, 1.0));
        let grid = [outputs.div_ceil(32), count.div_ceil(32), 1];
        let run = |bench: Bench| {
            let (x, weight) = (bench.holding(&x), bench.holding(&weight));
            let (rounded, whole) = (bench.empty::<bf16>(count * outputs), bench.empty::<f32>(count * outputs));
            bench.launch("product_bf16", grid, 256, 0, &[&x, &weight, &rounded, &count, &inputs, &outputs]);
            bench.launch("product_f32", grid, 256, 0, &[&x, &weight, &whole, &count, &inputs, &outputs]);
            (rounded.values(), whole.values())
        };
        for (rounded, whole) in everywhere(run) {
            for (token, x) in x.chunks_exact(inputs).enumerate() {
                let twin = twins::product(x, &weight);
                assert_rounded(&rounded[token * outputs..][..outputs], &twin, 1e-4, &what);
                assert_close(&whole[token * outputs..][..outputs], &twin, 1e-5, &what);
            }
        }
    }
}

#[test]
fn products_of_few_tokens_equal_sums_of_products() {
    // Rows that end within a part, a warp's turn and a round of the warps; outputs that fill no tile.
    let shapes = [(1, 8, 5), (8, 128, 16), (3, 1_000, 40), (5, 2_048, 33), (7, 2_056, 8), (2, 3_080, 50)];
    for (seed, (count, inputs, outputs)) in (1..).zip(shapes) {
        let mut random = Random(seed);
        let what = format!("seed {seed}, {count} x {inputs} x {outputs}");
        let (x, weight) = (random.brains(count * inputs, 1.0), random.brains(2 * outputs * inputs, 0.1));
        let run = |bench: Bench| {
            let (x, weight) = (bench.holding(&x), bench.holding(&weight[..outputs * inputs]));
            let (rounded, whole) = (bench.empty::<bf16>(count * outputs), bench.empty::<f32>(count * outputs));
            let grid = [outputs.div_ceil(16), 1, 1];
            bench.launch("skinny_product_bf16", grid, 256, 0, &[&x, &weight, &rounded, &count, &inputs, &outputs]);
            bench.launch("skinny_product_f32", grid, 256, 0, &[&x, &weight, &whole, &count, &inputs, &outputs]);
            (rounded.values(), whole.values())
        };
        let gated = |bench: Bench| {
            let (x, weight, out) = (bench.holding(&x), bench.holding(&weight), bench.empty::<bf16>(count * outputs));
            let arguments: [&dyn Parameter; 6] = [&x, &weight, &out, &count, &inputs, &outputs];
            bench.launch("skinny_gated", [outputs.div_ceil(8), 1, 1], 256, 0, &arguments);
            out.values()
        };
        let all = |bench: Bench| (run(bench), gated(bench));
        for ((rounded, whole), gated) in everywhere(all) {
            for (token, x) in x.chunks_exact(inputs).enumerate() {
                let own = token * outputs..(token + 1) * outputs;
                let twin = twins::product(x, &weight);
                assert_rounded(&rounded[own.clone()], &twin[..outputs], 1e-4, &what);
                assert_close(&whole[own.clone()], &twin[..outputs], 1e-5, &what);
                let twin: Vec<f64> =
                    twin[..outputs].iter().zip(&twin[outputs..]).map(|(gate, up)| twins::gated(*gate, *up)).collect();
                assert_rounded(&gated[own], &twin, 1e-4, &what);
            }
        }
    }
}

#[test]
fn blocks_of_files_become_their_weights() {
    let mut random = Random(5);
    let count = 19_usize;
    let half = |random: &mut Random| half::f16::from_f32(random.normal(0.3)).to_le_bytes();
    let mut eights: Vec<[u8; 34]> = Vec::new();
    let mut fours: Vec<[u8; 144]> = Vec::new();
    for _ in 0..count {
        let mut eight = [0; 34].map(|_: u8| random.bits() as u8);
        eight[..2].copy_from_slice(&half(&mut random));
        eights.push(eight);
        let mut four = [0; 144].map(|_: u8| random.bits() as u8);
        four[..2].copy_from_slice(&half(&mut random));
        four[2..4].copy_from_slice(&half(&mut random));
        fours.push(four);
    }
    // A scale below the smallest normal one, and none.
    eights[0][..2].copy_from_slice(&[0x11, 0x82]);
    eights[1][..2].copy_from_slice(&[0, 0]);
    let unpacked = |kernel: &'static str, bytes: &[u8], weights: usize| {
        everywhere(|bench| {
            let (blocks, out) = (bench.holding(bytes), bench.empty::<bf16>(count * weights));
            bench.launch(kernel, [count.div_ceil(8), 1, 1], 256, 0, &[&blocks, &out, &count]);
            out.values()
        })
    };
    let rounded = |weights: Vec<f64>| weights.into_iter().map(|weight| bf16::from_f32(weight as f32));
    let twin: Vec<bf16> = eights.iter().flat_map(|block| rounded(twins::dequantise_q8_0(block))).collect();
    for out in unpacked("dequantise_q8_0", eights.as_flattened(), 32) {
        assert_eq!(out, twin);
    }
    let twin: Vec<bf16> = fours.iter().flat_map(|block| rounded(twins::dequantise_q4_k(block))).collect();
    for out in unpacked("dequantise_q4_k", fours.as_flattened(), 256) {
        assert_eq!(out, twin);
    }
}

#[test]
fn decoding_goes_on_where_it_stands() {
    let table_stride = 3_usize;
    let rows = [
        (Decoding { input: 5, position: 14, slot: 142, context: 15 }, 77, [8, 9, NONE]),
        // Into the next block; into one that is not there; past the table; nothing was picked; no sequence.
        (Decoding { input: 5, position: 15, slot: 143, context: 16 }, 78, [8, 3, NONE]),
        (Decoding { input: 6, position: 31, slot: 63, context: 32 }, 79, [8, 3, NONE]),
        (Decoding { input: 6, position: 47, slot: 47, context: 48 }, 80, [0, 1, 2]),
        (Decoding { input: 7, position: 16, slot: 48, context: 17 }, NONE, [8, 3, 4]),
        (Decoding { input: 9, position: 9, slot: NONE, context: 0 }, 81, [0, 0, 0]),
    ];
    let rows = rows.repeat(30);
    let count = rows.len();
    let column = |of: fn(&Decoding) -> u32| rows.iter().map(|(now, ..)| of(now)).collect::<Vec<u32>>();
    let picked: Vec<u32> = rows.iter().map(|(_, picked, _)| *picked).collect();
    let tables: Vec<u32> = rows.iter().flat_map(|(.., table)| *table).collect();
    let all = everywhere(|bench| {
        let inputs = bench.holding(&column(|now| now.input));
        let positions = bench.holding(&column(|now| now.position));
        let slots = bench.holding(&column(|now| now.slot));
        let contexts = bench.holding(&column(|now| now.context));
        let (picked, tables) = (bench.holding(&picked), bench.holding(&tables));
        let arguments: [&dyn Parameter; 8] =
            [&picked, &inputs, &positions, &slots, &contexts, &tables, &table_stride, &count];
        bench.launch("advance", [count.div_ceil(128), 1, 1], 128, 0, &arguments);
        [inputs.values(), positions.values(), slots.values(), contexts.values()]
    });
    for [inputs, positions, slots, contexts] in all {
        for (at, (now, picked, table)) in rows.iter().enumerate() {
            let after = Decoding { input: inputs[at], position: positions[at], slot: slots[at], context: contexts[at] };
            assert_eq!(after, twins::advance(*now, *picked, table), "{now:?}");
        }
    }
}

#[test]
fn a_step_is_fed_with_what_the_one_before_picked() {
    let (picked, inputs) = ([7_u32, 8, 9], [1_u32, 2, 3, 4, 5]);
    let sources = [2, NONE, 0, 0, NONE];
    let fed = |bench: Bench| {
        let (picked, sources, inputs) = (bench.holding(&picked), bench.holding(&sources), bench.holding(&inputs));
        bench.launch("feed", [1, 1, 1], 128, 0, &[&picked, &sources, &inputs, &5_u32]);
        inputs.values()
    };
    for inputs in everywhere(fed) {
        assert_eq!(inputs, [9, 2, 7, 7, 5]);
    }
}
