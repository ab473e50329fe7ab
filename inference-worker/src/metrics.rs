//! What the worker counts of its answers.

use prometheus::{IntCounterVec, Opts, Registry};
use schemas::fact::FactBody;

/// Counted where results are published.
#[derive(Clone)]
pub(crate) struct Metrics {
    tokens: IntCounterVec,
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
        Ok(Self { tokens })
    }

    /// What became of a job of this model. An answer that was known already cost no token again.
    pub(crate) fn answered(&self, model: &str, body: &FactBody) {
        let tokens = match body {
            FactBody::InferenceCompleted(completed) if !completed.cached => completed.usage.tokens,
            FactBody::CompressionCompleted(completed) => completed.usage.tokens,
            _ => return,
        };
        self.tokens.with_label_values(&[model]).inc_by(tokens);
    }
}

#[cfg(test)]
mod tests {
    use schemas::chat::FinishReason;
    use schemas::fact::InferenceCompleted;
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
                timing: Default::default(),
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
        assert!(Metrics::new(&registry).is_err(), "two workers share no registry");
    }
}
