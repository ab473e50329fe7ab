//! What the gateway counts.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

/// From a millisecond to the longest generation.
const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];

/// Counters of the edge. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    requests: IntCounterVec,
    response: HistogramVec,
    first_token: Histogram,
    /// Dead letters that wait, as of the newest scrape.
    pub(crate) dead_letters: IntGauge,
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
        };
        registry.register(Box::new(this.requests.clone()))?;
        registry.register(Box::new(this.response.clone()))?;
        registry.register(Box::new(this.first_token.clone()))?;
        registry.register(Box::new(this.dead_letters.clone()))?;
        Ok(this)
    }

    pub(crate) fn answered(&self, endpoint: &str, status: u16, took: Duration) {
        self.requests.with_label_values(&[endpoint, &status.to_string()]).inc();
        self.response.with_label_values(&[endpoint]).observe(took.as_secs_f64());
    }

    pub(crate) fn first_token(&self, took: Duration) {
        self.first_token.observe(took.as_secs_f64());
    }
}
