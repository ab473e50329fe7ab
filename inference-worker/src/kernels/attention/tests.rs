//! Paged attention against the formula written plainly, and tokens together against each alone.

use super::*;

fn number(seed: usize) -> f32 {
    let mixed = (seed as u32).wrapping_mul(2_654_435_769).rotate_left(13).wrapping_mul(2_246_822_519);
    (mixed >> 8) as f32 / (1 << 23) as f32 - 1.0
}

/// `softmax(q k / sqrt(width)) v` over the positions of the view, in double precision.
fn plain(shape: HeadShape, view: View<'_>, query: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f64> {
    let group = shape.heads / shape.kv_heads;
    let mut out = Vec::new();
    for (head, query) in query.chunks_exact(shape.width).enumerate() {
        let of = |row: &[f32]| row[head / group * shape.width..][..shape.width].to_vec();
        let scores: Vec<f64> = (view.from..=view.position)
            .map(|at| {
                let dot: f64 = query.iter().zip(of(&keys[at])).map(|(q, k)| f64::from(*q) * f64::from(k)).sum();
                (dot / (shape.width as f64).sqrt()).exp()
            })
            .collect();
        let sum: f64 = scores.iter().sum();
        out.extend((0..shape.width).map(|dim| {
            let weighted = (view.from..=view.position).zip(&scores);
            weighted.map(|(at, score)| score * f64::from(of(&values[at])[dim])).sum::<f64>() / sum
        }));
    }
    out
}

#[test]
fn tokens_together_get_what_the_formula_gives_and_what_each_gets_alone() {
    for (heads, kv_heads, width) in [(6, 2, 64), (4, 4, 10), (7, 1, 24), (2, 1, 80)] {
        let shape = HeadShape { heads, kv_heads, width };
        // Blocks in no order; positions beyond the last hold what someone else left.
        let table = [5, 0, 7, 2, 6];
        let mut cache = KvCache::new(8, 2, shape);
        let row = |seed: usize| (0..kv_heads * width).map(|at| number(seed * 7_919 + at)).collect::<Vec<_>>();
        let (keys, values): (Vec<_>, Vec<_>) = (0..80).map(|at| (row(at), row(at + 500))).unzip();
        for (at, (key, value)) in keys.iter().zip(&values).enumerate() {
            cache.write(1, table[at / BLOCK], at % BLOCK, key, value);
        }
        let stride = heads * width + 3;
        for window in [usize::MAX, 20] {
            for positions in [vec![0], vec![14, 15, 16, 17], (60..67).collect(), vec![3, 40, 79]] {
                let view =
                    |position: usize| View { blocks: &table, position, from: (position + 1).saturating_sub(window) };
                let views: Vec<View<'_>> = positions.iter().map(|&position| view(position)).collect();
                let queries: Vec<f32> = (0..views.len() * stride).map(|at| 3.0 * number(at + 90_000)).collect();
                let mut scratch = AttentionScratch::default();
                for isa in Isa::available() {
                    let work = Work { cache: &cache, layer: 1, views: &views, queries: &queries, stride };
                    let mut out = vec![0.0; views.len() * heads * width];
                    attend(isa, &work, &mut scratch, &mut out);
                    let wanted = views
                        .iter()
                        .zip(queries.chunks_exact(stride))
                        .flat_map(|(view, query)| plain(shape, *view, &query[..heads * width], &keys, &values));
                    for (ours, wanted) in out.iter().zip(wanted) {
                        assert!((f64::from(*ours) - wanted).abs() < 2e-6, "{isa:?}, {shape:?}: {ours}, not {wanted}");
                    }
                }
                let mut together = vec![0.0; views.len() * heads * width];
                cache.attend(1, &views, &queries, stride, &mut scratch, &mut together);
                for (token, (view, ours)) in views.iter().zip(together.chunks_exact(heads * width)).enumerate() {
                    let mut alone = vec![0.0; heads * width];
                    cache.attend(1, &[*view], &queries[token * stride..], stride, &mut scratch, &mut alone);
                    assert_eq!(ours, alone, "{shape:?}, {positions:?}, token {token}: company changes nothing");
                }
            }
        }
    }
}
