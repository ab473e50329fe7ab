//! What an engine shows of itself: how much it computes in a step, whom it makes wait, and how full its memory for keys and
//! values is.
//!
//! Its thread writes a handful of atomic numbers with each step; whoever scrapes reads them and never holds the thread up.

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntGauge, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::scheduler::Scheduler;

/// Sequences of a step: up to the slots of a large GPU.
const SEQUENCES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
/// Tokens of a step: from one answer to the longest step.
const TOKENS: [f64; 13] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0, 2_048.0, 4_096.0];

/// The figures of one engine, labelled with its model. They are shown from `register` to `unregister`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Figures {
    step_sequences: Histogram,
    step_tokens: Histogram,
    running: IntGauge,
    waiting: IntGauge,
    preemptions: IntCounter,
    used: IntGauge,
    kept: IntGauge,
    total: IntGauge,
}

impl Figures {
    /// Those of an engine that has done nothing yet.
    pub(crate) fn new(model: &str) -> Self {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("model", model);
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
            Histogram::with_opts(opts).expect("names are well formed and bounds ascend")
        };
        let gauge = |name: &str, help: &str| IntGauge::with_opts(opts(name, help)).expect("names are well formed");
        Self {
            step_sequences: histogram("vlinders_step_sequences", "Sequences computed in one step", &SEQUENCES),
            step_tokens: histogram("vlinders_step_tokens", "Tokens computed in one step", &TOKENS),
            running: gauge("vlinders_sequences_running", "Answers that steps go on with"),
            waiting: gauge("vlinders_sequences_waiting", "Answers that wait for a place or for memory"),
            preemptions: IntCounter::with_opts(opts(
                "vlinders_preemptions_total",
                "Times that an answer gave its memory to another, to be computed again later",
            ))
            .expect("names are well formed"),
            used: gauge("vlinders_kv_used_blocks", "Blocks of keys and values that answers hold"),
            kept: gauge("vlinders_kv_kept_blocks", "Blocks that nobody holds and that a prompt may find again"),
            total: gauge("vlinders_kv_total_blocks", "Blocks of keys and values that there may be"),
        }
    }

    /// From now on whoever scrapes sees them.
    ///
    /// # Errors
    /// The registry shows those of a model of this name already.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.clone()))
    }

    /// Nobody sees them any more.
    ///
    /// # Errors
    /// The registry does not show them.
    pub fn unregister(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.unregister(Box::new(self.clone()))
    }

    /// A step of so many sequences and tokens has begun.
    pub(crate) fn stepped(&self, sequences: usize, tokens: usize) {
        self.step_sequences.observe(sequences as f64);
        self.step_tokens.observe(tokens as f64);
    }

    /// This is how things stand.
    pub(crate) fn show(&self, scheduler: &Scheduler) {
        let (blocks, whole) = (scheduler.blocks(), |count: usize| i64::try_from(count).unwrap_or(i64::MAX));
        self.running.set(whole(scheduler.running()));
        self.waiting.set(whole(scheduler.waiting()));
        self.preemptions.inc_by(scheduler.preemptions().saturating_sub(self.preemptions.get()));
        self.used.set(whole(blocks.total() - blocks.free()));
        self.kept.set(whole(blocks.kept()));
        self.total.set(whole(blocks.total()));
    }

    fn each(&self) -> [&dyn Collector; 8] {
        let Self { step_sequences, step_tokens, running, waiting, preemptions, used, kept, total } = self;
        [step_sequences, step_tokens, running, waiting, preemptions, used, kept, total]
    }
}

impl Collector for Figures {
    fn desc(&self) -> Vec<&Desc> {
        self.each().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.each().into_iter().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use schemas::chat::Priority;

    use super::*;
    use crate::{kv::BLOCK, scheduler::Limits};

    #[test]
    fn a_full_memory_and_who_waits_for_it_are_shown_until_the_model_goes() {
        let registry = Registry::new();
        let figures = ["a", "b"].map(Figures::new);
        figures.iter().for_each(|figures| figures.register(&registry).expect("each has a name of its own"));
        assert!(Figures::new("a").register(&registry).is_err(), "two models of one name");
        let shown = || prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
        let says = |figure: &str, value: u64| {
            let line = format!("{figure}{{model=\"a\"}} {value}\n");
            assert!(shown().contains(&line), "{line} is not in\n{}", shown());
        };

        // Two that grow out of what there is for both, and a third for whom there is no place.
        let mut scheduler = Scheduler::new(Limits { step_tokens: 8 * BLOCK, running: 2 }, 4);
        for id in 0..3 {
            scheduler.add(id, 0, Priority::Normal, vec![id as u32; 2 * BLOCK - 1]);
        }
        let step = |scheduler: &mut Scheduler| {
            let chunks = scheduler.schedule();
            figures[0].stepped(chunks.len(), chunks.iter().map(|chunk| chunk.tokens.len()).sum());
            figures[0].show(scheduler);
            chunks.iter().filter(|chunk| chunk.yields).for_each(|chunk| scheduler.complete(chunk.sequence, Some(9)));
        };
        step(&mut scheduler);
        for (figure, value) in [
            ("vlinders_step_sequences_sum", 2),
            ("vlinders_step_tokens_sum", 2 * (2 * BLOCK as u64 - 1)),
            ("vlinders_sequences_running", 2),
            ("vlinders_sequences_waiting", 1),
            ("vlinders_preemptions_total", 0),
            ("vlinders_kv_used_blocks", 4),
            ("vlinders_kv_kept_blocks", 0),
            ("vlinders_kv_total_blocks", 4),
        ] {
            says(figure, value);
        }
        step(&mut scheduler);
        step(&mut scheduler);
        says("vlinders_preemptions_total", 1);
        says("vlinders_sequences_waiting", 2);
        (0..3).for_each(|id| scheduler.remove(id));
        figures[0].show(&scheduler);
        says("vlinders_kv_used_blocks", 0);
        says("vlinders_kv_kept_blocks", scheduler.blocks().findable() as u64);
        assert!(scheduler.blocks().findable() > 0);

        figures[0].unregister(&registry).expect("it was shown");
        let text = shown();
        assert!(!text.contains("model=\"a\"") && text.contains("model=\"b\""), "{text}");
        Figures::new("a").register(&registry).expect("a model may come back");
    }
}
