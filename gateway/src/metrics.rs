//! What the gateway counts.

use std::time::Duration;

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use runtime::bus::Backlog;
use schemas::wire::Nanos;

/// From a millisecond to the longest generation.
const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];

/// Counters of the edge. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    requests: IntCounterVec,
    response: HistogramVec,
    first_token: Histogram,
    dead_letters: IntGauge,
    queue_waiting: IntGaugeVec,
    queue_unserved: IntGaugeVec,
    queue_held: IntGaugeVec,
    queue_oldest: GaugeVec,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let histogram = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
        let this = Self {
            requests: IntCounterVec::new(
                Opts::new("vlinders_requests_total", "Requests answered"),
                &["endpoint", "status"],
            )?,
            response: HistogramVec::new(
                histogram("vlinders_response_seconds", "From a request to the head of its answer"),
                &["endpoint"],
            )?,
            first_token: Histogram::with_opts(histogram(
                "vlinders_time_to_first_token_seconds",
                "From a streamed request to its first token",
            ))?,
            dead_letters: IntGauge::new("vlinders_dead_letters_waiting", "Dead letters that wait for somebody")?,
            queue_waiting: IntGaugeVec::new(
                Opts::new("vlinders_queue_waiting_jobs", "Jobs that no worker was given yet"),
                &["queue"],
            )?,
            queue_unserved: IntGaugeVec::new(
                Opts::new("vlinders_queue_unserved_jobs", "Jobs that wait for workers which have never been there"),
                &["queue"],
            )?,
            queue_held: IntGaugeVec::new(
                Opts::new("vlinders_queue_held_jobs", "Jobs that workers have and have not finished"),
                &["queue"],
            )?,
            queue_oldest: GaugeVec::new(
                Opts::new("vlinders_queue_oldest_seconds", "Age of the oldest job that waits; 0 when none does"),
                &["queue"],
            )?,
        };
        registry.register(Box::new(this.requests.clone()))?;
        registry.register(Box::new(this.response.clone()))?;
        registry.register(Box::new(this.first_token.clone()))?;
        registry.register(Box::new(this.dead_letters.clone()))?;
        registry.register(Box::new(this.queue_waiting.clone()))?;
        registry.register(Box::new(this.queue_unserved.clone()))?;
        registry.register(Box::new(this.queue_held.clone()))?;
        registry.register(Box::new(this.queue_oldest.clone()))?;
        Ok(this)
    }

    pub(crate) fn answered(&self, endpoint: &str, status: u16, took: Duration) {
        self.requests.with_label_values(&[endpoint, &status.to_string()]).inc();
        self.response.with_label_values(&[endpoint]).observe(took.as_secs_f64());
    }

    pub(crate) fn first_token(&self, took: Duration) {
        self.first_token.observe(took.as_secs_f64());
    }

    /// So many dead letters wait.
    pub(crate) fn dead_letters(&self, waiting: u64) {
        self.dead_letters.set(whole(waiting));
    }

    /// A queue as it stands now; none when nobody knows, and then nothing is shown of it.
    pub(crate) fn queue(&self, name: &str, backlog: Option<Backlog>, now: Nanos) {
        let Some(Backlog { waiting, unserved, held, oldest_at }) = backlog else {
            // An error says that it was not shown.
            let _ = self.queue_waiting.remove_label_values(&[name]);
            let _ = self.queue_unserved.remove_label_values(&[name]);
            let _ = self.queue_held.remove_label_values(&[name]);
            let _ = self.queue_oldest.remove_label_values(&[name]);
            return;
        };
        self.queue_waiting.with_label_values(&[name]).set(whole(waiting));
        self.queue_unserved.with_label_values(&[name]).set(whole(unserved));
        self.queue_held.with_label_values(&[name]).set(whole(held));
        // The server's clock may be ahead of ours.
        let age = oldest_at.map_or(0, |at| now.saturating_sub(at).max(0));
        self.queue_oldest.with_label_values(&[name]).set(age as f64 / 1e9);
    }
}

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_nobody_knows_of_any_more_is_not_shown() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).expect("nobody counts yet");
        let shown = || prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
        let second = 1_000_000_000;
        metrics.queue(
            "tools",
            Some(Backlog { waiting: 3, unserved: 1, held: 2, oldest_at: Some(5 * second) }),
            7 * second,
        );
        metrics.queue(
            "inference",
            Some(Backlog { waiting: 1, unserved: 0, held: 0, oldest_at: Some(9 * second) }),
            7 * second,
        );
        let text = shown();
        assert!(text.contains("vlinders_queue_waiting_jobs{queue=\"tools\"} 3\n"), "{text}");
        assert!(text.contains("vlinders_queue_unserved_jobs{queue=\"tools\"} 1\n"), "{text}");
        assert!(text.contains("vlinders_queue_held_jobs{queue=\"tools\"} 2\n"), "{text}");
        assert!(text.contains("vlinders_queue_oldest_seconds{queue=\"tools\"} 2\n"), "{text}");
        assert!(text.contains("vlinders_queue_oldest_seconds{queue=\"inference\"} 0\n"), "its clock is ahead: {text}");
        metrics.queue("tools", None, 8 * second);
        assert!(!shown().contains("\"tools\"") && shown().contains("\"inference\""), "{}", shown());
    }
}
