//! What the worker counts of its answers.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};
use schemas::fact::FactBody;

/// Seconds, from a quick GPU's token to a long queue.
const BUCKETS: [f64; 15] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0];

/// Counted where results are published.
#[derive(Clone)]
pub(crate) struct Metrics {
    tokens: IntCounterVec,
    queued: HistogramVec,
    per_token: HistogramVec,
}

impl Metrics {
    /// Shown by a registry.
    ///
    /// # Errors
    /// Two workers share one registry.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counted = Opts::new("vlinders_tokens_total", "Tokens of prompts and answers that a model has gone through");
        let tokens = IntCounterVec::new(counted, &["model"])?;
        registry.register(Box::new(tokens.clone()))?;
        let histogram = |name: &str, help: &str| {
            let histogram = HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()), &["model"])?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let queued = histogram("vlinders_job_queue_seconds", "From a job's publishing to the worker that took it")?;
        let per_token = histogram(
            "vlinders_time_per_output_token_seconds",
            "Between two tokens of an answer behind its first, the mean of each answer",
        )?;
        Ok(Self { tokens, queued, per_token })
    }

    /// What became of a job of this model. An answer that was known already cost no token again.
    pub(crate) fn answered(&self, model: &str, body: &FactBody) {
        let tokens = match body {
            FactBody::InferenceCompleted(completed) if !completed.cached => {
                let (timing, tokens) = (completed.timing, completed.answer_tokens());
                self.queued.with_label_values(&[model]).observe(seconds(timing.queue_us));
                if tokens > 1 {
                    let per_token = seconds(timing.decode_us) / (tokens - 1) as f64;
                    self.per_token.with_label_values(&[model]).observe(per_token);
                }
                completed.usage.tokens
            }
            FactBody::CompressionCompleted(completed) => completed.usage.tokens,
            _ => return,
        };
        self.tokens.with_label_values(&[model]).inc_by(tokens);
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use schemas::chat::FinishReason;
    use schemas::fact::{InferenceCompleted, InferenceTiming};
    use schemas::{EffectId, Usage};

    use super::*;

    #[test]
    fn tokens_count_once_for_each_answer_that_was_made() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).expect("nobody counts yet");
        let completed = |cached| {
            FactBody::InferenceCompleted(InferenceCompleted {
                effect: EffectId::inference(1),
                attempt: 1,
                worker: "w".to_owned(),
                text: "hi".to_owned(),
                tool_calls: Vec::new(),
                finish: FinishReason::Stop,
                usage: Usage::new(10, 5),
                cached_tokens: 0,
                timing: InferenceTiming { queue_us: 3_000, prefill_us: 0, decode_us: 40_000 },
                logprobs: Vec::new(),
                alternatives: Vec::new(),
                cached,
                dropped_messages: 0,
            })
        };
        for (model, cached) in [("a", false), ("a", true), ("b", false), ("a", false)] {
            metrics.answered(model, &completed(cached));
        }
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
        assert!(text.contains("vlinders_tokens_total{model=\"a\"} 30\n"), "{text}");
        assert!(text.contains("vlinders_tokens_total{model=\"b\"} 15\n"), "{text}");
        // Two answers of five tokens: 10 ms between two of them.
        assert!(text.contains("vlinders_time_per_output_token_seconds_sum{model=\"a\"} 0.02\n"), "{text}");
        assert!(text.contains("vlinders_job_queue_seconds_count{model=\"a\"} 2\n"), "{text}");
        assert!(Metrics::new(&registry).is_err(), "two workers share no registry");
    }
}
