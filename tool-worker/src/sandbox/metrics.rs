//! Figures of the sandbox.

use prometheus::{IntCounter, IntGauge, Opts, Registry};

/// Boxes that calls got, boxes that wait, and boxes that were lost.
pub(super) struct Metrics {
    pub(super) warm: IntCounter,
    pub(super) cold: IntCounter,
    pub(super) lost: IntCounter,
    pub(super) waiting: IntGauge,
}

const WARM: &str = "vlinders_sandbox_warm_calls_total";
const COLD: &str = "vlinders_sandbox_cold_calls_total";
const LOST: &str = "vlinders_sandbox_lost_total";
const WAITING: &str = "vlinders_sandbox_waiting_boxes";

impl Metrics {
    pub(super) fn new(tier: &'static str) -> Self {
        let options = |name, help| Opts::new(name, help).const_label("tier", tier);
        let counter =
            |name, help| IntCounter::with_opts(options(name, help)).expect("the names are constant and valid");
        Self {
            warm: counter(WARM, "Tool calls for which a box was waiting."),
            cold: counter(COLD, "Tool calls for which a box had to be started."),
            lost: counter(LOST, "Tool calls whose box went away under them."),
            waiting: IntGauge::with_opts(options(WAITING, "Boxes that wait for a call."))
                .expect("the name is constant and valid"),
        }
    }

    pub(super) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        for counter in [&self.warm, &self.cold, &self.lost] {
            registry.register(Box::new(counter.clone()))?;
        }
        registry.register(Box::new(self.waiting.clone()))
    }
}
