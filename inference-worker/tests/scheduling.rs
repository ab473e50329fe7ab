//! The scheduler under random load: budgets hold, blocks neither leak nor are written by two, higher priorities go first,
//! nothing waits for ever, everything finishes.

use std::collections::{BTreeMap, BTreeSet};

use inference_worker::{
    kv::{BLOCK, Blocks, chain},
    scheduler::{Limits, PROMISED, Scheduler},
    waiting::OVERTAKEN_MAX,
};
use proptest::prelude::*;
use schemas::chat::Priority;

#[derive(Debug, Clone)]
struct Load {
    prompt: usize,
    family: u32,
    answer: usize,
    tenant: u64,
    priority: Priority,
    comes_at: usize,
    cancelled_at: Option<usize>,
}

fn load() -> impl Strategy<Value = Load> {
    let size = (1..60_usize, 0..3_u32, 1..40_usize);
    let comes_at = prop_oneof![Just(0), 0..40_usize];
    (size, 0..4_u64, priority(), comes_at, proptest::option::weighted(0.2, 0..30_usize)).prop_map(
        |((prompt, family, answer), tenant, priority, comes_at, cancelled_at)| Load {
            prompt,
            family,
            answer,
            tenant,
            priority,
            comes_at,
            cancelled_at,
        },
    )
}

fn priority() -> impl Strategy<Value = Priority> {
    prop_oneof![Just(Priority::Low), Just(Priority::Normal), Just(Priority::High)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn everything_finishes_and_no_block_is_lost(
        loads in prop::collection::vec(load(), 1..16),
        step_tokens in 1..70_usize,
        running in 1..8_usize,
        blocks in 7..24_usize,
    ) {
        let mut scheduler = Scheduler::new(Limits { step_tokens, running }, blocks);
        // What has been computed into each block, slot by slot: the prefix that the slot stands for.
        let mut contents: BTreeMap<(u32, usize), Vec<u32>> = BTreeMap::new();
        let mut known: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (id, load) in loads.iter().enumerate() {
            let tokens: Vec<u32> = (0..load.prompt as u32).map(|at| at * 3 + load.family * u32::from(at > 20)).collect();
            known.insert(id as u64, tokens);
        }
        let last = loads.iter().map(|load| load.comes_at).max().unwrap_or(0);
        let mut steps = 0;
        while steps <= last || !scheduler.is_idle() {
            for (id, load) in loads.iter().enumerate() {
                if load.comes_at == steps {
                    scheduler.add(id as u64, load.tenant, load.priority, known[&(id as u64)].clone());
                }
                if load.cancelled_at == Some(steps) {
                    scheduler.remove(id as u64);
                }
            }
            if scheduler.is_idle() {
                steps += 1;
                continue;
            }
            // The memory of unused blocks is given back now and then; nobody may rely on what they held.
            if steps % 7 == 3 {
                let unused = scheduler.forget_unused();
                contents.retain(|(block, _), _| !unused.contains(block));
            }
            let step = scheduler.schedule();
            prop_assert!(!step.is_empty(), "a step computes something");
            prop_assert!(step.iter().map(|chunk| chunk.tokens.len()).sum::<usize>() <= step_tokens);
            prop_assert!(scheduler.running() <= running);
            let (accounts, all) = (scheduler.blocks(), blocks as u32);
            let nobodys = (0..all).filter(|block| accounts.holders(*block) == 0).count();
            prop_assert_eq!(accounts.kept(), nobodys - accounts.unfindable().len());
            for chunk in &step {
                for (offset, _) in chunk.tokens.iter().enumerate() {
                    let position = chunk.start + offset;
                    let prefix = known[&chunk.sequence][..=position].to_vec();
                    contents.insert((chunk.blocks[position / BLOCK], position % BLOCK), prefix);
                }
            }
            for chunk in &step {
                let end = chunk.start + chunk.tokens.len();
                for position in 0..end {
                    let slot = (chunk.blocks[position / BLOCK], position % BLOCK);
                    prop_assert_eq!(&contents[&slot], &known[&chunk.sequence][..=position], "what a token sees is its own past");
                }
            }
            for chunk in step.iter().filter(|chunk| chunk.yields) {
                let token = steps as u32 + chunk.sequence as u32;
                scheduler.complete(chunk.sequence, Some(token));
                let tokens = known.get_mut(&chunk.sequence).unwrap();
                tokens.push(token);
                let load = &loads[chunk.sequence as usize];
                if tokens.len() == load.prompt + load.answer {
                    scheduler.remove(chunk.sequence);
                }
            }
            steps += 1;
            prop_assert!(steps < 20_000, "everything finishes");
        }
        prop_assert_eq!(scheduler.blocks().free(), blocks);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// As an engine does whose device picks the tokens: each step is planned before those of the one before it are known, and
    /// now and then a token turns out to have been drawn too early.
    #[test]
    fn planned_one_step_ahead_everything_sees_its_own_past_and_finishes(
        loads in prop::collection::vec(load(), 1..16),
        step_tokens in 1..70_usize,
        running in 1..8_usize,
        blocks in 7..24_usize,
        thrown_away in 2..9_usize,
    ) {
        let mut scheduler = Scheduler::new(Limits { step_tokens, running }, blocks);
        let mut contents: BTreeMap<(u32, usize), Vec<u32>> = BTreeMap::new();
        // All tokens of each, those with them that only the device knows; and how often some were thrown away.
        let mut tokens: BTreeMap<u64, (Vec<u32>, usize)> = BTreeMap::new();
        for (id, load) in loads.iter().enumerate() {
            let prompt: Vec<u32> = (0..load.prompt as u32).map(|at| at * 3 + load.family * u32::from(at > 20)).collect();
            tokens.insert(id as u64, (prompt, 0));
        }
        let last = loads.iter().map(|load| load.comes_at).max().unwrap_or(0);
        let mut under_way: Option<Vec<(u64, usize, usize)>> = None;
        let (mut steps, mut picked) = (0, 0_usize);
        while steps <= last || !scheduler.is_idle() || under_way.is_some() {
            for (id, load) in loads.iter().enumerate() {
                if load.comes_at == steps {
                    scheduler.add(id as u64, load.tenant, load.priority, tokens[&(id as u64)].0.clone());
                }
                if load.cancelled_at == Some(steps) {
                    scheduler.remove(id as u64);
                }
            }
            let step = scheduler.schedule();
            prop_assert!(!step.is_empty() || under_way.is_some() || scheduler.is_idle(), "a step computes something");
            for chunk in &step {
                let all = &tokens[&chunk.sequence].0;
                for (offset, token) in chunk.tokens.iter().enumerate() {
                    let position = chunk.start + offset;
                    prop_assert!(*token == PROMISED || *token == all[position]);
                    contents.insert((chunk.blocks[position / BLOCK], position % BLOCK), all[..=position].to_vec());
                }
            }
            for chunk in &step {
                let end = chunk.start + chunk.tokens.len();
                for position in 0..end {
                    let slot = (chunk.blocks[position / BLOCK], position % BLOCK);
                    prop_assert_eq!(&contents[&slot], &tokens[&chunk.sequence].0[..=position].to_vec());
                }
            }
            let mut newer = Vec::new();
            for chunk in step.iter().filter(|chunk| chunk.yields) {
                let (all, thrown) = tokens.get_mut(&chunk.sequence).unwrap();
                picked += 1;
                all.push(picked as u32 * 5 % 97);
                newer.push((chunk.sequence, all.len() - 1, *thrown));
                let load = &loads[chunk.sequence as usize];
                if all.len() < load.prompt + load.answer {
                    scheduler.promise(chunk.sequence);
                }
            }
            let older = std::mem::replace(&mut under_way, (!step.is_empty()).then_some(newer));
            for (id, place, thrown_before) in older.into_iter().flatten() {
                let (all, thrown) = tokens.get_mut(&id).unwrap();
                if *thrown != thrown_before {
                    continue;
                }
                scheduler.complete(id, Some(all[place]));
                let load = &loads[id as usize];
                if place + 1 == load.prompt + load.answer {
                    scheduler.remove(id);
                } else if place % thrown_away == 1 {
                    // What follows is drawn again, and comes out otherwise.
                    all.truncate(place + 1);
                    *thrown += 1;
                    scheduler.retract(id);
                }
            }
            steps += 1;
            prop_assert!(steps < 20_000, "everything finishes");
        }
        prop_assert_eq!(scheduler.blocks().free(), blocks);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_higher_priority_is_admitted_first_but_for_one_in_eight(
        loads in prop::collection::vec(load(), 1..40),
        running in 1..5_usize,
    ) {
        // Blocks for all, so that who is admitted once stays.
        let mut scheduler = Scheduler::new(Limits { step_tokens: 64, running }, 40 * 8);
        // Who waits, in the order in which they came.
        let mut waiting: Vec<u64> = Vec::new();
        let (mut admitted, mut running, mut overtaking) = (0, BTreeMap::new(), 0);
        let mut steps = 0;
        while admitted < loads.len() {
            for (id, load) in loads.iter().enumerate().filter(|(_, load)| load.comes_at == steps) {
                scheduler.add(id as u64, load.tenant, load.priority, vec![id as u32; load.prompt]);
                waiting.push(id as u64);
            }
            for chunk in scheduler.schedule() {
                let id = chunk.sequence;
                if let Some(place) = waiting.iter().position(|other| *other == id) {
                    let priority = |id: u64| loads[id as usize].priority;
                    let highest = waiting.iter().map(|id| priority(*id)).max().expect("it waits itself");
                    if priority(id) < highest {
                        prop_assert_eq!(overtaking, OVERTAKEN_MAX, "it has its turn");
                        overtaking = 0;
                    } else if waiting[..place].iter().any(|other| priority(*other) < priority(id)) {
                        overtaking += 1;
                        prop_assert!(overtaking <= OVERTAKEN_MAX, "somebody else should have had its turn");
                    }
                    waiting.remove(place);
                    admitted += 1;
                    running.insert(id, loads[id as usize].answer);
                }
                if chunk.yields {
                    scheduler.complete(id, Some(0));
                    let left = running.get_mut(&id).expect("who yields runs");
                    *left -= 1;
                    if *left == 0 {
                        scheduler.remove(id);
                    }
                }
            }
            steps += 1;
        }
    }

    #[test]
    fn nothing_waits_for_ever_however_much_of_a_higher_priority_keeps_coming(
        low in prop::collection::vec((1..60_usize, 1..20_usize), 1..4),
        high in prop::collection::vec((1..60_usize, 1..20_usize, 0..6_u64), 3..9),
        step_tokens in 8..40_usize,
        running in 1..5_usize,
        blocks in 6..14_usize,
    ) {
        let mut scheduler = Scheduler::new(Limits { step_tokens, running }, blocks);
        let mut left: BTreeMap<u64, usize> = BTreeMap::new();
        for (id, (prompt, answer)) in (0..).zip(&low) {
            scheduler.add(id, 9, Priority::Low, vec![id as u32; *prompt]);
            left.insert(id, *answer);
        }
        let lows: BTreeSet<u64> = left.keys().copied().collect();
        let mut coming = (1_000..).zip(high.iter().cycle());
        let mut steps = 0;
        while lows.iter().any(|id| left.contains_key(id)) {
            // There are always twice as many as could run.
            while left.len() < lows.len() + 2 * running {
                let (id, (prompt, answer, tenant)) = coming.next().expect("they keep coming");
                scheduler.add(id, *tenant, Priority::High, vec![id as u32; *prompt]);
                left.insert(id, *answer);
            }
            let step = scheduler.schedule();
            prop_assert!(!step.is_empty());
            for chunk in step.iter().filter(|chunk| chunk.yields) {
                scheduler.complete(chunk.sequence, Some(0));
                let answer = left.get_mut(&chunk.sequence).expect("who yields is known");
                *answer -= 1;
                if *answer == 0 {
                    left.remove(&chunk.sequence);
                    scheduler.remove(chunk.sequence);
                }
            }
            steps += 1;
            prop_assert!(steps < 5_000, "{left:?} still wait");
        }
        left.keys().for_each(|id| scheduler.remove(*id));
        prop_assert_eq!(scheduler.blocks().free(), blocks);
    }
}

/// Runs two sequences that together need more blocks than there are; returns who finished first.
fn first_of_two(older: Priority, younger: Priority) -> u64 {
    let mut scheduler = Scheduler::new(Limits { step_tokens: 64, running: 2 }, 4);
    for (id, priority) in [(0, older), (1, younger)] {
        scheduler.add(id, 0, priority, vec![id as u32; BLOCK + 1]);
    }
    let mut lengths = [BLOCK + 1; 2];
    loop {
        for chunk in scheduler.schedule().iter().filter(|chunk| chunk.yields) {
            scheduler.complete(chunk.sequence, Some(7));
            let length = &mut lengths[chunk.sequence as usize];
            *length += 1;
            if *length == 3 * BLOCK {
                return chunk.sequence;
            }
        }
    }
}

#[test]
fn when_blocks_run_out_the_youngest_of_the_lowest_priority_gives_way() {
    assert_eq!(first_of_two(Priority::Normal, Priority::Normal), 0);
    assert_eq!(first_of_two(Priority::Low, Priority::Normal), 1);
    assert_eq!(first_of_two(Priority::Normal, Priority::High), 1);
    assert_eq!(first_of_two(Priority::High, Priority::Low), 0);
}

/// What may happen to the accounts of blocks.
#[derive(Debug, Clone)]
enum Operation {
    Take,
    /// Share the block of this prefix.
    Share(u32),
    /// One of the held blocks is full and ends this prefix.
    Publish(usize, u32),
    /// One of the holders lets go.
    Release(usize),
    Forget,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => Just(Operation::Take),
        3 => (0..6_u32).prop_map(Operation::Share),
        4 => (any::<usize>(), 0..6_u32).prop_map(|(holder, prefix)| Operation::Publish(holder, prefix)),
        5 => any::<usize>().prop_map(Operation::Release),
        1 => Just(Operation::Forget),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_block_is_never_lost_never_given_twice_and_never_found_under_a_prefix_it_no_longer_holds(
        operations in prop::collection::vec(operation(), 1..200),
        total in 1..9_usize,
    ) {
        let mut blocks = Blocks::new(total);
        // Every share as an entry; what each block is known to hold.
        let mut shares: Vec<u32> = Vec::new();
        let mut holds: BTreeMap<u32, u32> = BTreeMap::new();
        let hash = |prefix: u32| chain(None, &[prefix]);
        for operation in operations {
            match operation {
                Operation::Take => match blocks.take() {
                    Some(block) => {
                        prop_assert!(!shares.contains(&block), "a held block is not given again");
                        holds.remove(&block);
                        shares.push(block);
                    }
                    None => prop_assert!((0..total as u32).all(|block| shares.contains(&block)), "all are held"),
                },
                Operation::Share(prefix) => {
                    let wanted = holds.iter().find(|(_, held)| **held == prefix).map(|(block, _)| *block);
                    prop_assert_eq!(blocks.share(&hash(prefix)), wanted, "found exactly while it is there");
                    shares.extend(wanted);
                }
                Operation::Publish(holder, prefix) if !shares.is_empty() => {
                    let block = shares[holder % shares.len()];
                    blocks.publish(block, hash(prefix));
                    // The first block with a prefix keeps it, and a block keeps its first prefix.
                    if !holds.contains_key(&block) && !holds.values().any(|held| *held == prefix) {
                        holds.insert(block, prefix);
                    }
                }
                Operation::Release(holder) if !shares.is_empty() => {
                    blocks.release(shares.swap_remove(holder % shares.len()));
                }
                Operation::Forget => {
                    for block in blocks.forget_unused() {
                        prop_assert!(!shares.contains(&block), "what is held is not forgotten");
                        holds.remove(&block);
                    }
                }
                Operation::Publish(..) | Operation::Release(_) => {}
            }
            let held = (0..total as u32).filter(|block| shares.contains(block)).count();
            prop_assert_eq!(blocks.free(), total - held, "no block is lost");
            for block in 0..total as u32 {
                let count = shares.iter().filter(|share| **share == block).count();
                prop_assert_eq!(blocks.holders(block) as usize, count);
            }
        }
    }
}
