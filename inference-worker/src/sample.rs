//! Picks the next token from logits.
//!
//! The random number depends on the seed and the position alone: whoever continues a request picks as the first
//! worker would have. Ties go to the lower id.

/// How tokens are picked.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 picks the likeliest token; higher flattens the distribution.
    pub temperature: f32,
    /// Only this many of the likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability; 1 for all.
    pub top_p: f32,
    /// Same seed, same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// The token for a position; `None` when no logit is a number.
    pub fn pick(&self, logits: &[f32], position: usize) -> Option<u32> {
        let best = greedy(logits)?;
        if self.temperature <= 0.0 || self.top_k == 1 {
            return Some(best);
        }
        let largest = logits[best as usize];
        let mut candidates: Vec<(f32, u32)> = logits
            .iter()
            .zip(0..)
            .map(|(&logit, id)| (((logit - largest) / self.temperature).exp(), id))
            .filter(|(weight, _)| *weight > 0.0)
            .collect();
        let by_weight = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if self.top_k > 0 && self.top_k < candidates.len() {
            candidates.select_nth_unstable_by(self.top_k - 1, by_weight);
            candidates.truncate(self.top_k);
        }
        candidates.sort_unstable_by(by_weight);
        let kept = nucleus(&candidates, self.top_p);
        let total: f32 = kept.iter().map(|(weight, _)| weight).sum();
        let mut left = uniform(self.seed, position as u64) * total;
        for &(weight, id) in kept {
            left -= weight;
            if left < 0.0 {
                return Some(id);
            }
        }
        kept.last().map(|&(_, id)| id)
    }
}

fn greedy(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(f32, u32)> = None;
    for (&logit, id) in logits.iter().zip(0..) {
        if logit.is_finite() && best.is_none_or(|(largest, _)| logit > largest) {
            best = Some((logit, id));
        }
    }
    best.map(|(_, id)| id)
}

/// The shortest beginning of the sorted candidates that reaches the probability; never empty.
fn nucleus(sorted: &[(f32, u32)], top_p: f32) -> &[(f32, u32)] {
    if top_p >= 1.0 {
        return sorted;
    }
    let enough = sorted.iter().map(|(weight, _)| weight).sum::<f32>() * top_p;
    let mut sum = 0.0;
    let count = sorted.iter().take_while(|(weight, _)| {
        let wanted = sum < enough;
        sum += weight;
        wanted
    });
    &sorted[..count.count().max(1)]
}

/// A number in `[0, 1)`: two rounds of splitmix64 over seed and position.
fn uniform(seed: u64, position: u64) -> f32 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let bits =
        mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)).wrapping_add(position.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (bits >> 40) as f32 / (1_u64 << 24) as f32
}
