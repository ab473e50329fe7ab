//! The scheduler under random load: budgets hold, blocks neither leak nor are written by two, everything finishes.

use std::collections::BTreeMap;

use inference_worker::{
    kv::{BLOCK, Blocks, chain},
    scheduler::{Limits, Scheduler},
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct Load {
    prompt: usize,
    family: u32,
    answer: usize,
    tenant: u64,
    cancelled_at: Option<usize>,
}

fn load() -> impl Strategy<Value = Load> {
    (1..60_usize, 0..3_u32, 1..40_usize, 0..4_u64, proptest::option::weighted(0.2, 0..30_usize)).prop_map(
        |(prompt, family, answer, tenant, cancelled_at)| Load { prompt, family, answer, tenant, cancelled_at },
    )
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
            known.insert(id as u64, tokens.clone());
            scheduler.add(id as u64, load.tenant, tokens);
        }
        let mut steps = 0;
        while !scheduler.is_idle() {
            for (id, load) in loads.iter().enumerate() {
                if load.cancelled_at == Some(steps) {
                    scheduler.remove(id as u64);
                }
            }
            if scheduler.is_idle() {
                break;
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
