//! Picks the next token from logits.
//!
//! The random number depends on the seed and the position alone: whoever continues a request picks as the first
//! worker would have. Ties go to the lower id. The order is: penalties, temperature, top_k, top_p, min_p, draw.

use std::collections::{BTreeMap, BTreeSet};

/// How tokens are picked.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 picks the likeliest token; higher flattens the distribution.
    pub temperature: f32,
    /// Only this many of the likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability; 1 for all.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the likeliest; 0 for all.
    pub min_p: f32,
    /// Divides the logits of tokens of prompt and answer, multiplies them where they are negative; 1 for none.
    pub repetition_penalty: f32,
    /// Taken once from the logits of tokens of the answer; 0 for none.
    pub presence_penalty: f32,
    /// Taken from them for each time they stand in the answer; 0 for none.
    pub frequency_penalty: f32,
    /// Same seed, same text.
    pub seed: u64,
    /// Whether to say how likely each token was, and how many others with it.
    pub logprobs: Option<usize>,
}

/// The tokens that penalties look at.
#[derive(Debug, Default)]
pub struct Seen {
    prompt: BTreeSet<u32>,
    answer: BTreeMap<u32, u32>,
}

impl Seen {
    /// The tokens of a prompt, and of an answer so far.
    pub fn new(prompt: &[u32], answer: &[u32]) -> Self {
        let mut seen = Self { prompt: prompt.iter().copied().collect(), answer: BTreeMap::new() };
        answer.iter().for_each(|&id| seen.push(id));
        seen
    }

    /// Another token of the answer.
    pub fn push(&mut self, id: u32) {
        *self.answer.entry(id).or_default() += 1;
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            logprobs: None,
        }
    }
}

impl Sampling {
    /// Whether any penalty changes logits.
    pub fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Refuses numbers that nothing can be drawn with, whoever sent them.
    ///
    /// # Errors
    /// A number is none, or out of its bounds; the text says which.
    pub fn check(&self) -> Result<(), String> {
        let numbers = [
            ("temperature", self.temperature, self.temperature >= 0.0),
            ("top_p", self.top_p, self.top_p > 0.0),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p)),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0.0),
            ("presence_penalty", self.presence_penalty, true),
            ("frequency_penalty", self.frequency_penalty, true),
        ];
        match numbers.into_iter().find(|(_, value, fits)| !value.is_finite() || !fits) {
            None => Ok(()),
            Some((name, value, _)) => Err(format!("`{name}` is {value}, nothing can be drawn with it")),
        }
    }

    /// Makes tokens that were seen less likely (more likely, where a penalty says so).
    pub fn penalise(&self, logits: &mut [f32], seen: &Seen) {
        if self.repetition_penalty != 1.0 {
            for &id in seen.prompt.iter().chain(seen.answer.keys().filter(|id| !seen.prompt.contains(id))) {
                let logit = &mut logits[id as usize];
                *logit = if *logit > 0.0 { *logit / self.repetition_penalty } else { *logit * self.repetition_penalty };
            }
        }
        for (&id, &times) in &seen.answer {
            logits[id as usize] -= self.presence_penalty + self.frequency_penalty * times as f32;
        }
    }

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
        // The likeliest weighs 1 and stands first.
        let kept = &kept[..kept.partition_point(|(weight, _)| *weight >= self.min_p).max(1)];
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

/// The natural logarithms of the probabilities of a token and of the `count` likeliest, likeliest first, before penalties
/// and temperature.
pub fn logprobs(logits: &[f32], id: u32, count: usize) -> (f32, Vec<(u32, f32)>) {
    let largest = logits.iter().copied().filter(|logit| logit.is_finite()).fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().filter(|logit| logit.is_finite()).map(|logit| f64::from(logit - largest).exp()).sum();
    let of = |logit: f32| (f64::from(logit - largest) - sum.ln()) as f32;
    let mut likeliest: Vec<(f32, u32)> =
        logits.iter().copied().zip(0..).filter(|(logit, _)| count > 0 && logit.is_finite()).collect();
    let by_logit = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if count > 0 && count < likeliest.len() {
        likeliest.select_nth_unstable_by(count - 1, by_logit);
        likeliest.truncate(count);
    }
    likeliest.sort_unstable_by(by_logit);
    (of(logits[id as usize]), likeliest.into_iter().map(|(logit, id)| (id, of(logit))).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, f32::NAN];

    fn drawn(sampling: &Sampling) -> BTreeSet<u32> {
        (0..4_000).map(|position| sampling.pick(&LOGITS, position).unwrap()).collect()
    }

    #[test]
    fn filters_leave_only_what_they_promise() {
        let hot = Sampling { temperature: 1.0, ..Sampling::default() };
        assert_eq!(drawn(&hot), [0, 1, 2, 3].into());
        assert_eq!(drawn(&Sampling { top_k: 2, ..hot.clone() }), [1, 2].into());
        // Probabilities: 0.657, 0.242, 0.089, 0.012.
        assert_eq!(drawn(&Sampling { top_p: 0.6, ..hot.clone() }), [1].into());
        assert_eq!(drawn(&Sampling { top_p: 0.7, ..hot.clone() }), [1, 2].into());
        // Relative to the likeliest: 1, 0.37, 0.14, 0.02.
        assert_eq!(drawn(&Sampling { min_p: 0.1, ..hot.clone() }), [0, 1, 2].into());
        assert_eq!(drawn(&Sampling { min_p: 1.0, ..hot.clone() }), [1].into());
        assert_eq!(drawn(&Sampling { min_p: 0.2, top_k: 3, ..hot }), [1, 2].into());
    }

    #[test]
    fn a_seed_decides_the_draw_and_another_seed_another_one() {
        let draw = |seed| -> Vec<u32> {
            let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
            (0..64).map(|position| sampling.pick(&LOGITS, position).unwrap()).collect()
        };
        assert_eq!(draw(u64::MAX), draw(u64::MAX));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let sampling = Sampling { temperature: 1.0, seed: 9, ..Sampling::default() };
        let likeliest = (0..20_000).filter(|&position| sampling.pick(&LOGITS, position) == Some(1)).count();
        let expected = logprobs(&LOGITS, 1, 0).0.exp() * 20_000.0;
        assert!((likeliest as f32 - expected).abs() < 300.0, "{likeliest}, expected {expected}");
    }

    #[test]
    fn penalties_count_as_their_names_say() {
        let seen = Seen::new(&[0, 3], &[1, 1, 0]);
        let changed = |sampling: Sampling| {
            let mut logits = LOGITS;
            assert!(sampling.penalises());
            sampling.penalise(&mut logits, &seen);
            logits[..4].to_vec()
        };
        let default = Sampling::default();
        assert_eq!(changed(Sampling { repetition_penalty: 2.0, ..default.clone() }), [0.5, 1.5, 2.0, -2.0]);
        assert_eq!(changed(Sampling { presence_penalty: 0.5, ..default.clone() }), [0.5, 2.5, 2.0, -1.0]);
        assert_eq!(changed(Sampling { frequency_penalty: 0.5, ..default.clone() }), [0.5, 2.0, 2.0, -1.0]);
        assert!(!default.penalises());
    }

    #[test]
    fn probabilities_sum_to_one_and_come_likeliest_first() {
        let (own, all) = logprobs(&LOGITS, 2, 9);
        assert_eq!(all.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 0, 3]);
        assert_eq!(own, all[1].1);
        let sum: f32 = all.iter().map(|(_, logprob)| logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        assert_eq!(logprobs(&LOGITS, 2, 1).1, all[..1]);
    }
}
