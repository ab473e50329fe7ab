//! The simulator over a fixed budget of seeds: whatever dies, is lost, repeated, delayed or reordered, every execution
//! comes to one end, by one history that proves itself. `cargo run -p orchestrator --example simulate` runs more.

use std::sync::atomic::{AtomicU64, Ordering};

use orchestrator::simulate::coverage::TABLES;
use orchestrator::simulate::{Counts, Coverage, Outcome, Shell, run, run_as};

/// Seeds that every run of the tests goes through; they make more than [`EXECUTIONS`].
const SEEDS: u64 = 160;
const EXECUTIONS: u64 = 2_000;
/// Seeds in which a shell that lacks something is found out; most are in the first ten.
const SEEDS_TO_FIND: u64 = 150;

/// Runs seeds from 1 on all processors, in no particular order, until there are `seeds` or one is `enough`: a seed depends
/// on nothing but itself.
fn run_all(shell: Shell, seeds: u64, enough: impl Fn(&Outcome) -> bool + Sync) -> Vec<Outcome> {
    let next = AtomicU64::new(1);
    let work = || {
        let mut outcomes = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > seeds {
                return outcomes;
            }
            let outcome = run_as(seed, shell, false);
            if enough(&outcome) {
                next.store(seeds + 1, Ordering::Relaxed);
            }
            outcomes.push(outcome);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a seed does not panic")).collect()
    })
}

#[test]
fn every_execution_ends_once_whatever_happens_and_every_transition_is_seen() {
    let outcomes = run_all(Shell::default(), SEEDS, |_| false);
    let failed: Vec<&Outcome> = outcomes.iter().filter(|o| !o.violations.is_empty()).collect();
    for outcome in &failed {
        let seed = outcome.seed;
        println!("seed {seed}: {}", outcome.violations.join("; "));
        println!("repeat: cargo run -p orchestrator --example simulate -- --seeds 1 --from {seed} --trace");
    }
    let (mut coverage, mut counts) = (Coverage::default(), Counts::default());
    outcomes.iter().for_each(|o| (coverage.add(&o.coverage), counts.add(&o.counts)).1);
    let executions: u64 = outcomes.iter().map(|o| o.executions).sum();
    println!("{SEEDS} seeds, {executions} executions, {counts:?}");
    assert!(failed.is_empty(), "{} seeds found something", failed.len());
    assert!(executions >= EXECUTIONS, "{executions} executions");
    for (region, _) in TABLES {
        let (seen, all) = coverage.of_region(region);
        println!("transitions of {region}: {seen} of {all}");
    }
    for (row, count) in coverage.seen() {
        println!("{count:>6} {row:?}");
    }
    assert_eq!(coverage.unknown(), [], "these happen and stand in no table");
    assert_eq!(coverage.missing(), [], "these stand in a table and never happen");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let twice = |seed| [(); 2].map(|()| run_as(seed, Shell::default(), true));
    for seed in [1, 2, 3] {
        let [first, second] = twice(seed);
        println!("seed {seed}: trace {:016x}, {} lines", first.trace, first.lines.len());
        assert_eq!(first.lines, second.lines);
        assert_eq!((first.trace, first.counts), (second.trace, second.counts));
        assert_eq!(first.trace, run(seed).trace, "whether it is kept as text or not");
    }
    assert_ne!(run(1).trace, run(2).trace);
}

/// A simulator that finds nothing proves nothing: things that the shell does for one history are left out once, those
/// whose absence shows soon enough.
#[test]
fn a_shell_that_lacks_anything_is_found_out() {
    for part in ["reads_after_gap", "reads_after_duplicate", "tells_children_by_state", "reads_before_republish"] {
        let shell = Shell::without(part).expect("its own parts");
        let outcomes = run_all(shell, SEEDS_TO_FIND, |outcome| !outcome.violations.is_empty());
        let found = outcomes.iter().find_map(|o| Some((o.seed, o.violations.first()?)));
        let (seed, violation) = found.unwrap_or_else(|| panic!("without {part} nothing is found"));
        println!("without {part}, seed {seed}: {violation}");
    }
}
