use std::sync::{Mutex, atomic::AtomicU32};

use super::*;

#[test]
fn every_piece_is_computed_once_however_many_rounds_follow_each_other() {
    let team = Team::new(4).unwrap();
    for round in 0..20_000_usize {
        let pieces = round % 17;
        let counts: Vec<AtomicU32> = (0..pieces).map(|_| AtomicU32::new(0)).collect();
        team.run(pieces, |piece| {
            counts[piece].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "round {round}");
    }
}

#[test]
fn members_that_fell_asleep_come_back() {
    let team = Team::new(3).unwrap();
    for _ in 0..50 {
        while !team.members.iter().all(|member| member.asleep.load(Ordering::SeqCst)) {
            std::thread::yield_now();
        }
        // Nobody can finish before all three are here.
        let here = std::sync::Barrier::new(3);
        team.run(3, |_| {
            here.wait();
        });
    }
}

#[test]
fn items_are_moved_to_one_call_each() {
    let team = Team::new(3).unwrap();
    let texts: Vec<String> = (0..100).map(|index| index.to_string()).collect();
    let seen = Mutex::new(Vec::new());
    team.each(texts.clone(), |text| seen.lock().unwrap().push(text));
    let mut seen = seen.into_inner().unwrap();
    seen.sort_by_key(|text| text.parse::<usize>().unwrap());
    assert_eq!(seen, texts);
}

#[test]
fn work_within_work_and_work_of_several_callers_end() {
    let team = Team::new(2).unwrap();
    let sum = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    team.run(8, |piece| {
                        team.run(4, |inner| {
                            sum.fetch_add(piece * inner, Ordering::Relaxed);
                        })
                    });
                }
            });
        }
    });
    assert_eq!(sum.into_inner(), 4 * 500 * 28 * 6);
}

#[test]
fn a_panic_reaches_the_caller_and_the_team_goes_on() {
    let team = Team::new(2).unwrap();
    for bad in 0..8 {
        let run = || team.run(8, |piece| assert_ne!(piece, bad, "on purpose"));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "piece {bad}");
        let count = AtomicUsize::new(0);
        team.run(8, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 8);
        assert!(!team.lent.load(Ordering::Relaxed), "the next caller has the team again");
    }
}
