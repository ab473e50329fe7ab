//! Attention over the paged cache: one token of each sequence, with its context in splits, and runs of tokens in tiles.

use half::bf16;

use crate::{
    Parameter, Random, assert_rounded,
    bench::everywhere,
    twins::{self, BLOCK, Cached, Heads, NONE},
};

/// A cache that holds some sequences, each in blocks from anywhere. What no sequence has stored is NaN, and no table leads
/// anywhere beyond its sequence.
struct Stored {
    heads: Heads,
    keys: Vec<bf16>,
    values: Vec<bf16>,
    tables: Vec<u32>,
    table_stride: usize,
}

impl Stored {
    fn new(random: &mut Random, heads: Heads, lengths: &[usize]) -> Self {
        let blocks_of = |length: &usize| length.div_ceil(BLOCK);
        let table_stride = lengths.iter().map(blocks_of).max().unwrap() + 1;
        let total: usize = lengths.iter().map(blocks_of).sum::<usize>() + 2;
        let mut free = random.permutation(total);
        let nothing = vec![bf16::from_bits(u16::MAX); total * heads.kv_heads * BLOCK * heads.width];
        let (mut keys, mut values) = (nothing.clone(), nothing);
        let mut tables = Vec::new();
        for length in lengths {
            let own = free.split_off(free.len() - blocks_of(length));
            for position in 0..*length {
                let slot = own[position / BLOCK] as usize * BLOCK + position % BLOCK;
                for kv_head in 0..heads.kv_heads {
                    let line = twins::line(heads, kv_head, slot);
                    keys[line.clone()].copy_from_slice(&random.brains(heads.width, 1.0));
                    values[line].copy_from_slice(&random.brains(heads.width, 1.0));
                }
            }
            tables.extend(own.iter().copied().chain(std::iter::repeat(NONE)).take(table_stride));
        }
        Self { heads, keys, values, tables, table_stride }
    }

    fn table(&self, sequence: usize) -> &[u32] {
        &self.tables[sequence * self.table_stride..][..self.table_stride]
    }

    /// What one token's heads get.
    fn twin(&self, queries: &[bf16], sequence: usize, position: usize, window: usize, scale: f32) -> Vec<f64> {
        let Heads { heads, kv_heads, width } = self.heads;
        let cached = |values| Cached { values, heads: self.heads };
        let cache = (cached(self.keys.as_slice()), cached(self.values.as_slice()));
        let head = |head: usize| {
            let query = &queries[head * width..][..width];
            let seen = twins::seen(position, window);
            twins::attend(query, cache, self.table(sequence), head / (heads / kv_heads), seen, scale)
        };
        (0..heads).flat_map(head).collect()
    }
}

/// Of kernels for a width of 64, of 128 and of any, the one for this.
fn kernel(width: usize, which: [&'static str; 3]) -> &'static str {
    match width {
        64 => which[0],
        128 => which[1],
        _ => which[2],
    }
}

/// Weights are rounded to bf16 before they meet the values, which are of the order of 1.
const SLACK: f64 = 6e-3;

fn decode(
    seed: u64,
    heads: Heads,
    contexts: &[usize],
    window: usize,
    splits: usize,
    blocks_least: usize,
    sharpness: f32,
) {
    let what = format!("seed {seed}, {heads:?}, window {window}, {splits} splits of at least {blocks_least}");
    println!("{what}");
    let mut random = Random(seed);
    let stored = Stored::new(&mut random, heads, contexts);
    let Heads { heads: all, kv_heads, width } = heads;
    let (count, stride) = (contexts.len(), (all + 2 * kv_heads) * width);
    let qkv = random.brains(count * stride, sharpness);
    let scale = 1.0 / (width as f32).sqrt();
    let lengths: Vec<u32> = contexts.iter().map(|context| *context as u32).collect();
    for out in everywhere(|bench| {
        let (qkv, tables) = (bench.holding(&qkv), bench.holding(&stored.tables));
        let (keys, values) = (bench.holding(&stored.keys), bench.holding(&stored.values));
        let contexts = bench.holding(&lengths);
        let room = if splits > 1 { count * all * splits } else { 0 };
        let parts = (room > 0).then(|| bench.empty::<f32>(room * width));
        let sums = (room > 0).then(|| bench.empty::<f32>(room * 2));
        let out = bench.empty::<bf16>(count * all * width);
        let arguments: [&dyn Parameter; 16] = [
            &qkv,
            &stride,
            &keys,
            &values,
            &tables,
            &stored.table_stride,
            &contexts,
            &scale,
            &window,
            &all,
            &kv_heads,
            &width,
            &blocks_least,
            &parts,
            &sums,
            &out,
        ];
        let grid = [kv_heads * (all / kv_heads).div_ceil(8), splits, count];
        let which = ["decode_attention_64", "decode_attention_128", "decode_attention_any"];
        bench.launch(kernel(width, which), grid, 128, 0, &arguments);
        if splits > 1 {
            let arguments: [&dyn Parameter; 9] =
                [&parts, &sums, &contexts, &window, &all, &width, &blocks_least, &splits, &out];
            bench.launch("merge_splits", [all, count, 1], 128, 0, &arguments);
        }
        out.values().into_iter().map(bf16::to_bits).collect::<Vec<_>>()
    }) {
        let out: Vec<bf16> = out.into_iter().map(bf16::from_bits).collect();
        for (sequence, (context, out)) in contexts.iter().zip(out.chunks_exact(all * width)).enumerate() {
            let twin = match context {
                0 => vec![0.0; all * width],
                context => stored.twin(&qkv[sequence * stride..], sequence, context - 1, window, scale),
            };
            assert_rounded(out, &twin, SLACK, &format!("{what}, context {context}"));
        }
    }
}

#[test]
fn a_token_sees_its_whole_context_in_one_split() {
    // Around the bounds of blocks of the cache and of rounds of the four warps; rows that are not in use among them.
    let contexts = [1, 0, 2, 15, 16, 17, 31, 33, 64, 65, 100, 0, 129];
    for (seed, (heads, kv_heads, width)) in
        (1..).zip([(4, 1, 128), (4, 2, 64), (7, 1, 128), (8, 1, 64), (2, 2, 128), (10, 1, 64), (24, 2, 128)])
    {
        decode(seed, Heads { heads, kv_heads, width }, &contexts, 0, 1, 8, 2.0);
    }
}

#[test]
fn splits_and_their_merge_change_nothing() {
    let contexts = [1, 63, 64, 65, 0, 128, 129, 300, 700];
    for (seed, (heads, kv_heads, width)) in (10..).zip([(4, 1, 128), (6, 2, 64), (9, 1, 64), (6, 3, 32)]) {
        for (splits, blocks_least) in [(2, 1), (3, 8), (16, 4)] {
            decode(seed, Heads { heads, kv_heads, width }, &contexts, 0, splits, blocks_least, 2.0);
        }
    }
}

#[test]
fn a_window_hides_what_lies_before_it() {
    let contexts = [1, 16, 39, 40, 41, 64, 200, 333];
    for (seed, (heads, kv_heads, width)) in (20..).zip([(4, 1, 128), (4, 4, 64), (4, 2, 16)]) {
        for (window, splits) in [(1, 1), (40, 1), (40, 4), (129, 3)] {
            decode(seed, Heads { heads, kv_heads, width }, &contexts, window, splits, 1, 2.0);
        }
    }
}

#[test]
fn scores_that_differ_widely_are_weighed_well() {
    // The largest score so far is exceeded again and again, and by much.
    decode(30, Heads { heads: 8, kv_heads: 2, width: 128 }, &[5, 400, 1_000], 0, 1, 8, 40.0);
    decode(31, Heads { heads: 8, kv_heads: 2, width: 64 }, &[5, 400, 1_000], 0, 5, 4, 40.0);
    prefill(32, Heads { heads: 4, kv_heads: 2, width: 128 }, &[(0, 40), (300, 30)], 0, false, 40.0);
    // So widely that a weight which is not scaled anew is infinite.
    prefill(33, Heads { heads: 2, kv_heads: 2, width: 64 }, &[(420, 128)], 0, false, 300.0);
}

#[test]
fn every_other_width_of_heads_is_served() {
    for (seed, (heads, kv_heads, width)) in (40..).zip([(2, 1, 8), (4, 2, 16), (4, 4, 32), (3, 1, 96), (2, 2, 256)]) {
        decode(seed, Heads { heads, kv_heads, width }, &[1, 0, 17, 90], 0, 1, 8, 2.0);
    }
}

/// A run of tokens of one sequence: where it begins, and how many there are.
type Run = (usize, usize);

/// Every run is of a sequence of its own; `of_one` lets them all be of one sequence, each going on where the last ended.
fn prefill(seed: u64, heads: Heads, runs: &[Run], window: usize, of_one: bool, sharpness: f32) {
    let what = format!("seed {seed}, {heads:?}, runs {runs:?}, window {window}");
    println!("{what}");
    let mut random = Random(seed);
    let Heads { heads: all, kv_heads, width } = heads;
    let ends: Vec<usize> = runs.iter().map(|(start, count)| start + count).collect();
    let lengths = if of_one { vec![*ends.iter().max().unwrap()] } else { ends };
    let stored = Stored::new(&mut random, heads, &lengths);
    let group = all / kv_heads;
    let count: usize = runs.iter().map(|(_, count)| count).sum();
    let stride = (all + 2 * kv_heads) * width;
    let qkv = random.brains(count * stride, sharpness);
    let scale = 1.0 / (width as f32).sqrt();
    let mut tiles: Vec<[u32; 4]> = vec![[0, 0, 0, 0]];
    // Sequence and position of each token of the batch.
    let mut places = Vec::new();
    for (run, (start, tokens)) in runs.iter().enumerate() {
        let sequence = if of_one { 0 } else { run };
        let mut done = 0;
        while done < *tokens {
            let now = (tokens - done).min(128 / group);
            tiles.push([sequence, places.len() + done, now, start + done].map(|number| number as u32));
            done += now;
        }
        places.extend((*start..start + tokens).map(|position| (sequence, position)));
    }
    let which = ["prefill_attention_64", "prefill_attention_128", "prefill_attention_any"];
    let (name, shared) = (
        kernel(width, which),
        match width {
            64 => 32 << 10,
            128 => 64 << 10,
            _ => 0,
        },
    );
    for out in everywhere(|bench| {
        let (qkv, tables) = (bench.holding(&qkv), bench.holding(&stored.tables));
        let (keys, values) = (bench.holding(&stored.keys), bench.holding(&stored.values));
        // A row more than there are tokens: it stays as it is.
        let (list, out) = (bench.holding(tiles.as_flattened()), bench.empty::<u16>((count + 1) * all * width));
        let arguments: [&dyn Parameter; 13] = [
            &qkv,
            &stride,
            &keys,
            &values,
            &tables,
            &stored.table_stride,
            &list,
            &scale,
            &window,
            &all,
            &kv_heads,
            &width,
            &out,
        ];
        bench.launch(name, [tiles.len(), kv_heads, 1], 128, shared, &arguments);
        out.values()
    }) {
        let (rows, rest) = out.split_at(count * all * width);
        assert!(rest.iter().all(|bits| *bits == u16::MAX), "{what}: a row that no tile names was written");
        for (token, ((sequence, position), out)) in places.iter().zip(rows.chunks_exact(all * width)).enumerate() {
            let twin = stored.twin(&qkv[token * stride..], *sequence, *position, window, scale);
            let out: Vec<bf16> = out.iter().map(|bits| bf16::from_bits(*bits)).collect();
            assert_rounded(&out, &twin, SLACK, &format!("{what}, position {position} of sequence {sequence}"));
        }
    }
}

#[test]
fn a_run_sees_what_came_before_it_and_itself() {
    // From the start and later, of one token and of many, whole tiles and parts.
    let runs = [(0, 1), (0, 5), (0, 70), (3, 20), (64, 64), (100, 33), (17, 1)];
    for (seed, (heads, kv_heads, width)) in
        (50..).zip([(4, 1, 128), (4, 4, 64), (7, 1, 64), (2, 1, 128), (6, 3, 32), (2, 2, 8)])
    {
        prefill(seed, Heads { heads, kv_heads, width }, &runs, 0, false, 2.0);
    }
}

#[test]
fn a_window_hides_what_lies_before_it_from_every_token_of_a_run() {
    let runs = [(0, 150), (90, 40), (200, 7)];
    for (seed, (heads, kv_heads, width)) in (60..).zip([(4, 1, 128), (3, 3, 64), (4, 2, 16)]) {
        for window in [1, 20, 64, 100] {
            prefill(seed, Heads { heads, kv_heads, width }, &runs, window, false, 2.0);
        }
    }
}

#[test]
fn what_lies_just_within_a_border_is_seen_and_what_lies_just_beyond_is_not() {
    let (one, two) = (Heads { heads: 2, kv_heads: 2, width: 64 }, Heads { heads: 4, kv_heads: 2, width: 64 });
    // The last of 64 positions is hidden from the first row of a warp only; the first is hidden from its last row only; the
    // last is all that its first row sees of them.
    prefill(80, one, &[(62, 40), (126, 3)], 0, false, 2.0);
    prefill(81, one, &[(0, 128)], 95, false, 2.0);
    prefill(82, one, &[(0, 128)], 127, false, 2.0);
    prefill(83, two, &[(100, 64)], 22, false, 2.0);
}

#[test]
fn shapes_from_anywhere_are_computed() {
    let mut random = Random(90);
    for seed in 91..99 {
        let (kv_heads, group) = (1 + random.below(2), 1 + random.below(12));
        let heads = Heads { heads: kv_heads * group, kv_heads, width: [64, 128, 24][random.below(3)] };
        let window = [0, 0, 1 + random.below(150)][random.below(3)];
        let contexts: Vec<usize> = (0..3).map(|_| random.below(260)).collect();
        decode(seed, heads, &contexts, window, 1 + random.below(6), 1 + random.below(9), 3.0);
        let runs: Vec<Run> = (0..2).map(|_| (random.below(130), 1 + random.below(50))).collect();
        prefill(seed, heads, &runs, window, false, 2.0);
    }
}

#[test]
fn a_prompt_in_pieces_sees_what_it_sees_whole() {
    let heads = Heads { heads: 4, kv_heads: 2, width: 64 };
    prefill(70, heads, &[(0, 40), (40, 1), (41, 63), (104, 24)], 0, true, 2.0);
    prefill(71, Heads { width: 128, ..heads }, &[(0, 64), (64, 65)], 0, true, 2.0);
}
