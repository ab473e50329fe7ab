//! A whole small system in one thread, in virtual time, from one seed: the real core and the real order of the shell's
//! steps, against a bus in memory that loses, repeats, delays and reorders, under processes that die between any two
//! steps, are cut off, stall, and have wrong clocks.
//!
//! The same seed gives the same trace, message for message; a seed that finds something is a test. What a run must keep
//! is in `check`. [`Shell`] names what the shell must do beyond asking the core; without any one of these the simulator
//! finds a broken history or a forgotten execution, which is how we know that it looks.
//!
//! The shell here is a model of the real one, step for step, because the real one awaits a server between its steps:
//! a step that changes there changes in `shell` too. Not simulated: tokens, conversations over several executions, the
//! sizes of queues, a log whose replicas lag.

mod bus;
mod chance;
mod check;
pub mod coverage;
mod faults;
mod people;
mod shell;
mod workers;
mod world;

pub use coverage::Coverage;

use schemas::wire::Nanos;

const MILLISECOND: Nanos = 1_000_000;
const SECOND: Nanos = 1_000 * MILLISECOND;

/// What the shell of a partition does so that the log stays one history and nobody is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shell {
    /// The log of a child is read before its first decision: its parent's cancel may stand before its request.
    pub reads_children_first: bool,
    /// What is in memory is read anew when somebody else was handed a fact of the partition in between, and by who
    /// becomes its owner again.
    pub reads_after_gap: bool,
    /// A decision that is found in the log after a refusal or a silence is no ground to go on from what is in memory: more
    /// may stand behind it.
    pub reads_after_refusal: bool,
    /// Which children are to be told of a cancel follows from the state, not from the decision just made: a crash
    /// behind the commit forgets none.
    pub tells_children_by_state: bool,
    /// Before the orders of an execution are given again, its log is read again.
    pub reads_before_republish: bool,
    /// An execution is in the index before its first fact is acknowledged, even when no snapshot can be taken.
    pub indexes_always: bool,
}

impl Default for Shell {
    fn default() -> Self {
        Self {
            reads_children_first: true,
            reads_after_gap: true,
            reads_after_refusal: true,
            tells_children_by_state: true,
            reads_before_republish: true,
            indexes_always: true,
        }
    }
}

impl Shell {
    /// Names of what can be left out. The absence of most shows in the first tens of seeds; of `reads_children_first` in one of
    /// hundreds, of `indexes_always` in one of thousands, for they take several deaths at the right moments.
    pub const PARTS: [&str; 6] = [
        "reads_children_first",
        "reads_after_gap",
        "reads_after_refusal",
        "tells_children_by_state",
        "reads_before_republish",
        "indexes_always",
    ];

    /// A shell that lacks one thing; none when there is no such thing.
    #[must_use]
    pub fn without(part: &str) -> Option<Self> {
        let mut shell = Self::default();
        let missing = match part {
            "reads_children_first" => &mut shell.reads_children_first,
            "reads_after_gap" => &mut shell.reads_after_gap,
            "reads_after_refusal" => &mut shell.reads_after_refusal,
            "tells_children_by_state" => &mut shell.tells_children_by_state,
            "reads_before_republish" => &mut shell.reads_before_republish,
            "indexes_always" => &mut shell.indexes_always,
            _ => return None,
        };
        *missing = false;
        Some(shell)
    }
}

/// What one run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// FNV-1a over everything that happened, in order.
    pub trace: u64,
    /// What was violated; empty when all is well.
    pub violations: Vec<String>,
    /// What moved.
    pub coverage: Coverage,
    /// Executions that ended.
    pub executions: u64,
    /// How much happened.
    pub counts: Counts,
    /// Everything that happened, line by line, if it was asked for.
    pub lines: Vec<String>,
}

/// How much happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Steps of all actors.
    pub steps: u64,
    /// Facts stored.
    pub facts: u64,
    /// Decisions stored.
    pub decisions: u64,
    /// Decisions refused because the log had moved on.
    pub stale: u64,
    /// Jobs carried out.
    pub jobs: u64,
    /// Jobs carried out for an attempt that had been carried out before.
    pub repeated: u64,
    /// Processes killed.
    pub kills: u64,
}

impl Counts {
    /// Adds the counts of another run.
    pub const fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.facts += other.facts;
        self.decisions += other.decisions;
        self.stale += other.stale;
        self.jobs += other.jobs;
        self.repeated += other.repeated;
        self.kills += other.kills;
    }
}

/// Runs one seed to its end.
#[must_use]
pub fn run(seed: u64) -> Outcome {
    run_as(seed, Shell::default(), false)
}

/// Runs one seed with a shell that may lack something; `traced` keeps what happened as text.
#[must_use]
pub fn run_as(seed: u64, shell: Shell, traced: bool) -> Outcome {
    world::World::new(seed, shell, traced).run()
}

/// The log that a seed leaves, by partition: made up, and yet what a real system could have written.
#[cfg(test)]
pub(crate) fn log(seed: u64) -> std::collections::BTreeMap<schemas::Partition, Vec<runtime::bus::Stored>> {
    world::World::new(seed, Shell::default(), false).written()
}
