//! Tensor parallelism: several ranks hold a part of every layer each, and sum what their parts give.
//!
//! A rank has some of the heads of a layer and some of the width of its feed-forward half; twice a layer all ranks add up
//! what they computed (all-reduce) and go on with the same numbers. Key-value heads that are fewer than the ranks stand in
//! several of them. `Threads` lets ranks meet within a process: what ranks on several GPUs do, where every test can run it.
//! A `Meeting` is the same for bytes, and can be ended by a rank that fails: nobody waits for it in vain.

use std::{
    ops::Range,
    sync::{Arc, Barrier, Condvar, Mutex, MutexGuard},
};

use crate::architecture::Architecture;

/// One of the processors that compute a model together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rank {
    /// Which, from 0.
    pub index: usize,
    /// How many there are.
    pub of: usize,
}

/// Sums over ranks.
pub trait AllReduce: Sync {
    /// Replaces `values` by the sum of what every rank has called this with; each gets the same numbers, bit for bit. All
    /// ranks call it equally often, with as many values.
    fn sum(&self, values: &mut [f32]);
}

/// The only rank.
#[derive(Debug)]
pub struct Alone;

impl AllReduce for Alone {
    fn sum(&self, _: &mut [f32]) {}
}

/// One rank of several that are threads of a process.
#[derive(Debug)]
pub struct Threads {
    index: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    given: Vec<Mutex<Vec<f32>>>,
    met: Barrier,
}

impl Threads {
    /// One for each rank; each belongs to a thread of its own.
    pub fn ranks(count: usize) -> Vec<Self> {
        let given = (0..count).map(|_| Mutex::default()).collect();
        let shared = Arc::new(Shared { given, met: Barrier::new(count) });
        (0..count).map(|index| Self { index, shared: Arc::clone(&shared) }).collect()
    }
}

impl AllReduce for Threads {
    fn sum(&self, values: &mut [f32]) {
        let given = |rank: usize| self.shared.given[rank].lock().expect("no rank panics while it reads or writes");
        {
            let mut own = given(self.index);
            own.clear();
            own.extend_from_slice(values);
        }
        self.shared.met.wait();
        values.fill(0.0);
        // In the order of ranks, so that all get the same.
        for rank in 0..self.shared.given.len() {
            for (sum, value) in values.iter_mut().zip(given(rank).iter()) {
                *sum += value;
            }
        }
        // Nobody gives anew before all have read.
        self.shared.met.wait();
    }
}

/// Ranks of a process exchange what each has, until one of them parts.
#[derive(Debug)]
pub struct Meeting {
    state: Mutex<Met>,
    changed: Condvar,
}

#[derive(Debug)]
struct Met {
    given: Vec<Option<Vec<u8>>>,
    /// What all had given the last time.
    told: Arc<Vec<Vec<u8>>>,
    rounds: u64,
    parted: bool,
}

/// A rank has parted: there will be no exchange any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another rank has parted")]
pub struct Parted;

impl Meeting {
    /// For so many ranks.
    pub fn of(ranks: usize) -> Arc<Self> {
        let met = Met { given: vec![None; ranks], told: Arc::default(), rounds: 0, parted: false };
        Arc::new(Self { state: Mutex::new(met), changed: Condvar::new() })
    }

    /// Gives what this rank has, waits for the others, and returns what all have given, in the order of ranks. All call it
    /// equally often.
    ///
    /// # Errors
    /// One has parted, before or meanwhile.
    pub fn exchange(&self, rank: usize, own: Vec<u8>) -> Result<Arc<Vec<Vec<u8>>>, Parted> {
        let mut met = self.lock();
        if met.parted {
            return Err(Parted);
        }
        let round = met.rounds;
        let before = met.given[rank].replace(own);
        assert!(before.is_none(), "rank {rank} gives once in a round");
        if met.given.iter().all(Option::is_some) {
            met.told = Arc::new(met.given.iter_mut().filter_map(Option::take).collect());
            met.rounds += 1;
            self.changed.notify_all();
        }
        // The next round ends only when this rank has given again, so what is told is still that of this one.
        let met = self.changed.wait_while(met, |met| met.rounds == round && !met.parted).expect(UNBROKEN);
        if met.rounds == round { Err(Parted) } else { Ok(Arc::clone(&met.told)) }
    }

    /// Ends every exchange that others wait for, and those to come.
    pub fn part(&self) {
        self.lock().parted = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Met> {
        self.state.lock().expect(UNBROKEN)
    }
}

const UNBROKEN: &str = "no panic while the lock is held";

impl Rank {
    /// Computes everything.
    pub const ALONE: Self = Self { index: 0, of: 1 };

    /// All of so many, in order.
    pub fn all(of: usize) -> impl Iterator<Item = Self> {
        (0..of).map(move |index| Self { index, of })
    }

    /// Whether it gives the logits, and what is picked of them.
    pub const fn leads(self) -> bool {
        self.index == 0
    }

    /// The shape of what each rank computes.
    ///
    /// # Errors
    /// The heads or the feed-forward width cannot be shared by so many; the text has the numbers.
    pub fn part_of(self, whole: &Architecture) -> Result<Architecture, String> {
        let Architecture { heads, kv_heads, intermediate, .. } = *whole;
        let shared = heads.is_multiple_of(self.of)
            && intermediate.is_multiple_of(self.of)
            && (kv_heads.is_multiple_of(self.of) || self.of.is_multiple_of(kv_heads));
        if !shared {
            return Err(format!(
                "{heads} heads, {kv_heads} key-value heads and a feed-forward width of {intermediate} cannot be shared by {} ranks",
                self.of
            ));
        }
        Ok(Architecture {
            heads: heads / self.of,
            kv_heads: (kv_heads / self.of).max(1),
            intermediate: intermediate / self.of,
            ..whole.clone()
        })
    }

    /// This rank's part of what is shared evenly.
    pub fn share(self, width: usize) -> Range<usize> {
        width / self.of * self.index..width / self.of * (self.index + 1)
    }

    /// The key-value heads that this rank's queries look at.
    pub fn kv_heads(self, whole: &Architecture) -> Range<usize> {
        let first = self.index * whole.kv_heads / self.of;
        first..first + (whole.kv_heads / self.of).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_gets_the_same_sum_however_often() {
        let sums: Vec<Vec<f32>> = std::thread::scope(|scope| {
            let ranks: Vec<_> = Threads::ranks(4).into_iter().collect();
            let threads: Vec<_> = ranks
                .into_iter()
                .map(|rank| {
                    scope.spawn(move || {
                        (0..100)
                            .map(|round| {
                                let mut values = [rank.index as f32 + 0.1, round as f32];
                                rank.sum(&mut values);
                                values[0] * 1_000.0 + values[1]
                            })
                            .collect()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(sums.iter().all(|sum| *sum == sums[0]));
        assert!((sums[0][99] - (6_400.0 + 4.0 * 99.0)).abs() < 0.1, "{}", sums[0][99]);
    }

    #[test]
    fn ranks_exchange_until_one_parts_and_then_nobody_waits() {
        let meeting = Meeting::of(3);
        let ended: Vec<(usize, Result<_, Parted>)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3_u8)
                .map(|rank| {
                    let meeting = &meeting;
                    scope.spawn(move || {
                        let mut rounds = 0;
                        loop {
                            if rank == 1 && rounds == 50 {
                                meeting.part();
                            }
                            match meeting.exchange(rank.into(), vec![rank, rounds as u8]) {
                                Ok(all) => {
                                    assert_eq!(*all, [0, 1, 2].map(|from| vec![from, rounds as u8]));
                                    rounds += 1;
                                }
                                Err(parted) => {
                                    // And so for ever.
                                    assert_eq!(meeting.exchange(rank.into(), Vec::new()), Err(Parted));
                                    return (rounds, Err::<(), _>(parted));
                                }
                            }
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(ended, vec![(50, Err(Parted)); 3]);
    }
}
