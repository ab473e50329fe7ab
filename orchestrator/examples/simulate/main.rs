//! Runs the simulator over more seeds than the tests do.
//!
//!     cargo run -p orchestrator --example simulate -- [simulate] [--seeds N] [--from SEED] [--trace] [--without PART]
//!
//! `--without` leaves out one thing that the shell does ([`Shell::PARTS`]), to see what it is for. Prints each seed that finds something, with the command that repeats it, and ends with 1 if there was one.

use std::process::ExitCode;

use orchestrator::simulate::coverage::TABLES;
use orchestrator::simulate::{Counts, Coverage, Shell, run_as};

struct Arguments {
    seeds: u64,
    from: u64,
    trace: bool,
    shell: Shell,
}

fn main() -> ExitCode {
    let Some(arguments) = arguments(std::env::args().skip(1)) else {
        eprintln!("usage: simulate [--seeds N] [--from SEED] [--trace] [--without PART]");
        eprintln!("parts: {}", Shell::PARTS.join(", "));
        return ExitCode::from(2);
    };
    let (mut coverage, mut counts, mut executions, mut found) = (Coverage::default(), Counts::default(), 0, 0);
    for seed in (arguments.from..).take(usize::try_from(arguments.seeds).unwrap_or(usize::MAX)) {
        let outcome = run_as(seed, arguments.shell, arguments.trace);
        outcome.lines.iter().for_each(|line| println!("{line}"));
        if arguments.seeds <= 20 || !outcome.violations.is_empty() {
            println!("seed {seed}: {} executions, trace {:016x}", outcome.executions, outcome.trace);
        }
        for violation in &outcome.violations {
            println!("seed {seed}: {violation}");
        }
        if !outcome.violations.is_empty() {
            found += 1;
            println!("repeat: cargo run -p orchestrator --example simulate -- --seeds 1 --from {seed} --trace");
        }
        coverage.add(&outcome.coverage);
        counts.add(&outcome.counts);
        executions += outcome.executions;
    }
    println!("{} seeds, {executions} executions, {found} seeds found something; {counts:?}", arguments.seeds);
    for (region, _) in TABLES {
        let (seen, all) = coverage.of_region(region);
        println!("transitions of {region}: {seen} of {all}");
    }
    // A few seeds see few.
    if arguments.seeds >= 100 {
        coverage.missing().iter().for_each(|row| println!("never seen: {row:?}"));
    }
    coverage.unknown().iter().for_each(|row| println!("in no table: {row:?}"));
    if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn arguments(mut given: impl Iterator<Item = String>) -> Option<Arguments> {
    let mut arguments = Arguments { seeds: 100, from: 1, trace: false, shell: Shell::default() };
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "simulate" => {}
            "--trace" => arguments.trace = true,
            "--without" => arguments.shell = Shell::without(&given.next()?)?,
            "--seeds" => arguments.seeds = given.next()?.parse().ok()?,
            "--from" => arguments.from = given.next()?.parse().ok()?,
            _ => return None,
        }
    }
    Some(arguments)
}
