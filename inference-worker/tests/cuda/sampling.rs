//! The kernel that picks tokens against the host's `Sampling::pick`: the same token for the same logits, seed and
//! position, but where rounding decides.

use inference_worker::sample::Sampling;

use crate::{NULL, Parameter, Random, bench::everywhere, twins::NONE};

/// A row's parameters as the kernel takes them.
fn words(sampling: &Sampling) -> [u32; 8] {
    let seed = [sampling.seed as u32, (sampling.seed >> 32) as u32];
    let (temperature, top_p, min_p) = (sampling.temperature, sampling.top_p, sampling.min_p);
    [temperature.to_bits(), sampling.top_k as u32, top_p.to_bits(), min_p.to_bits(), seed[0], seed[1], 0, 0]
}

/// The tokens of rows of logits, row `r` drawn for position `positions[r] + 1`: from every place where kernels run.
fn sample(logits: &[f32], samplings: &[Sampling], positions: &[u32], allowed: Option<&[u32]>) -> Vec<Vec<u32>> {
    let rows = samplings.len();
    let vocabulary = logits.len() / rows;
    let parameters: Vec<u32> = samplings.iter().flat_map(words).collect();
    everywhere(|bench| {
        let (logits, parameters) = (bench.holding(logits), bench.holding(&parameters));
        let (positions, allowed) = (bench.holding(positions), allowed.map(|allowed| bench.holding(allowed)));
        let tokens = bench.empty::<u32>(rows);
        let arguments: [&dyn Parameter; 7] = [&logits, &parameters, &positions, &1_u32, &allowed, &tokens, &vocabulary];
        bench.launch("sample", [rows, 1, 1], 1_024, 0, &arguments);
        tokens.values()
    })
}

/// How far beside the point that was drawn a token lies, as a part of the whole: 0 where it contains it.
fn distance(logits: &[f32], sampling: &Sampling, position: usize, token: u32) -> f64 {
    let largest = logits.iter().copied().filter(|logit| logit.is_finite()).fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| f64::from(((logit - largest) / sampling.temperature).exp());
    let mut order: Vec<(f64, u32)> = logits
        .iter()
        .zip(0..)
        .filter(|(logit, _)| logit.is_finite())
        .map(|(logit, id)| (weight(*logit), id))
        .filter(|(weight, _)| *weight > 0.0)
        .collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let enough = order.iter().map(|(weight, _)| weight).sum::<f64>() * f64::from(sampling.top_p);
    let mut sum = 0.0;
    let mut kept = Vec::new();
    for (at, &(weight, id)) in order.iter().enumerate() {
        // What stands on the border of a cut may be on either side.
        if at > 0 && (sampling.top_p < 1.0 && sum >= enough * (1.0 + 1e-5) || weight < f64::from(sampling.min_p)) {
            break;
        }
        kept.push((sum, sum + weight, id));
        sum += weight;
    }
    let total = sum;
    // The draw, as the one token of a row of equal tokens that is picked.
    let even = Sampling { temperature: 1.0, seed: sampling.seed, ..Sampling::default() };
    const STEPS: usize = 1 << 16;
    let point = f64::from(even.pick(&vec![0.0; STEPS], position).unwrap()) / STEPS as f64;
    let Some((start, end, _)) = kept.iter().find(|(_, _, id)| *id == token) else {
        return f64::INFINITY;
    };
    (start / total - (point + 1.0 / STEPS as f64)).max(point - end / total).max(0.0)
}

fn assert_as_on_the_host(seed: u64, vocabulary: usize, spread: f32, samplings: &[Sampling]) {
    println!("seed {seed}, vocabulary {vocabulary}, spread {spread}");
    let mut random = Random(seed);
    let rows = samplings.len();
    let mut logits = random.floats(rows * vocabulary, spread);
    // Ties, and what is no number.
    for _ in 0..rows * vocabulary / 8 {
        let (from, to) = (random.below(logits.len()), random.below(logits.len()));
        logits[to] = logits[from];
    }
    for nothing in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let at = random.below(logits.len());
        logits[at] = nothing;
    }
    let positions: Vec<u32> = (0..rows).map(|_| random.below(100_000) as u32).collect();
    for tokens in sample(&logits, samplings, &positions, None) {
        let mut different = 0;
        for (row, (token, sampling)) in tokens.iter().zip(samplings).enumerate() {
            let own: Vec<f32> = logits[row * vocabulary..][..vocabulary]
                .iter()
                .map(|logit| if logit.is_finite() { *logit } else { f32::NAN })
                .collect();
            let position = positions[row] as usize + 1;
            let wanted = sampling.pick(&own, position).unwrap();
            if *token != wanted {
                different += 1;
                assert!(sampling.temperature > 0.0, "the likeliest of row {row} is {wanted}, not {token}");
                let apart = distance(&own, sampling, position, *token);
                assert!(apart < 3e-5, "row {row}, {sampling:?}: {token} instead of {wanted}, {apart} apart");
            }
        }
        assert!(different <= 1 + rows / 20, "{different} of {rows} tokens are others than on the host");
    }
}

fn samplings(count: u64) -> Vec<Sampling> {
    let plain = Sampling { temperature: 1.0, ..Sampling::default() };
    let kinds = [
        Sampling::default(),
        plain.clone(),
        Sampling { temperature: 0.3, ..plain.clone() },
        Sampling { temperature: 2.5, ..plain.clone() },
        Sampling { top_k: 1, ..plain.clone() },
        Sampling { top_k: 5, ..plain.clone() },
        Sampling { top_k: 50, temperature: 1.7, ..plain.clone() },
        Sampling { top_p: 0.9, ..plain.clone() },
        Sampling { top_p: 1e-7, ..plain.clone() },
        Sampling { min_p: 0.05, ..plain.clone() },
        Sampling { min_p: 1.0, ..plain.clone() },
        Sampling { top_k: 40, top_p: 0.8, min_p: 0.02, temperature: 0.8, ..plain.clone() },
        Sampling { top_k: 100_000_000, top_p: 0.5, ..plain.clone() },
        Sampling { temperature: 1e-20, ..plain },
    ];
    (0..count)
        .map(|seed| Sampling { seed: seed * 0x1234_5678_9abc, ..kinds[seed as usize % kinds.len()].clone() })
        .collect()
}

#[test]
fn tokens_are_those_that_the_host_would_pick() {
    for (seed, (vocabulary, spread)) in (1..).zip([(7, 2.0), (1_000, 2.0), (3_072, 5.0), (4_099, 0.5)]) {
        assert_as_on_the_host(seed, vocabulary, spread, &samplings(84));
    }
}

#[test]
fn a_large_vocabulary_is_no_other_case() {
    assert_as_on_the_host(9, 151_936, 3.0, &samplings(14));
}

#[test]
fn what_weighs_next_to_nothing_counts_where_it_is_many() {
    // Each weighs less than a millionth, and together they are a tenth of the whole.
    let vocabulary = 100_000;
    let mut random = Random(11);
    let mut row: Vec<f32> = (0..vocabulary).map(|_| -14.2 + 0.3 * random.float()).collect();
    row[777] = 0.0;
    let hot = Sampling { temperature: 1.0, ..Sampling::default() };
    let kinds = [hot.clone(), Sampling { top_k: 60_000, ..hot.clone() }, Sampling { top_p: 0.96, ..hot.clone() }];
    let samplings: Vec<Sampling> = (0..36).map(|seed| Sampling { seed, ..kinds[seed as usize % 3].clone() }).collect();
    let positions = vec![20; samplings.len()];
    let wanted: Vec<u32> = samplings.iter().map(|sampling| sampling.pick(&row, 21).unwrap()).collect();
    assert!(wanted.iter().any(|token| *token != 777), "some draws lead there");
    for tokens in sample(&row.repeat(samplings.len()), &samplings, &positions, None) {
        for ((token, wanted), sampling) in tokens.iter().zip(&wanted).zip(&samplings) {
            let apart = if token == wanted { 0.0 } else { distance(&row, sampling, 21, *token) };
            assert!(apart < 3e-5, "{sampling:?}: {token} instead of {wanted}, {apart} apart");
        }
    }
}

#[test]
fn equal_tokens_are_drawn_by_their_ids() {
    let (rows, vocabulary) = (40, 2_500);
    let samplings: Vec<Sampling> =
        (0..rows).map(|seed| Sampling { temperature: 1.0, top_k: 1_000, seed, ..Sampling::default() }).collect();
    let positions = vec![3; rows as usize];
    for tokens in sample(&vec![1.5; rows as usize * vocabulary], &samplings, &positions, None) {
        for (token, sampling) in tokens.iter().zip(&samplings) {
            let wanted = sampling.pick(&vec![1.5; vocabulary], 4).unwrap();
            assert!(token.abs_diff(wanted) <= 1, "{token} instead of {wanted}");
            assert!(*token < 1_000, "only the first thousand are left");
        }
    }
}

#[test]
fn nothing_is_picked_of_nothing() {
    let picks = |tokens: Vec<Vec<u32>>, wanted: u32| tokens.iter().for_each(|tokens| assert_eq!(tokens, &[wanted]));
    let nothing = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].repeat(100);
    let hot = [Sampling { temperature: 1.0, ..Sampling::default() }];
    picks(sample(&nothing, &hot, &[0], None), NONE);
    picks(sample(&nothing, &[Sampling::default()], &[0], None), NONE);
    // One number is enough, and tokens that are not allowed are as if they were none.
    let mut one = nothing.clone();
    one[123] = -3.0;
    one[50] = 7.0;
    let mut allowed = [u32::MAX; 10];
    allowed[1] &= !(1 << 18);
    picks(sample(&one, &hot, &[0], Some(&allowed)), 123);
    picks(sample(&one, &[Sampling::default()], &[0], Some(&allowed)), 123);
    picks(sample(&one, &hot, &[0], Some(&[0; 10])), NONE);
}

#[test]
fn the_likeliest_is_the_first_of_its_kind() {
    for (seed, vocabulary) in [(1, 3), (2, 4_096), (3, 10_001)] {
        let mut random = Random(seed);
        let rows = 6;
        // Few different values, so that there are ties everywhere.
        let mut logits: Vec<f32> = (0..rows * vocabulary).map(|_| random.below(50) as f32 - 25.0).collect();
        logits[0] = f32::INFINITY;
        logits[1] = f32::NAN;
        for tokens in everywhere(|bench| {
            let (logits, tokens) = (bench.holding(&logits), bench.empty::<u32>(rows));
            bench.launch("argmax", [rows, 1, 1], 1_024, 0, &[&logits, &NULL, &tokens, &vocabulary]);
            tokens.values()
        }) {
            for (row, token) in logits.chunks_exact(vocabulary).zip(tokens) {
                assert_eq!(Sampling::default().pick(row, 0), Some(token), "seed {seed}, vocabulary {vocabulary}");
            }
        }
    }
}
