//! Who owns which partition, and what follows when that changes.
//!
//! The server pins each partition to one of the orchestrators that ask for its facts, and lets go of one that falls
//! silent. Facts find their owner by themselves; timers and lost workers make none, so a partition whose owner has gone
//! is taken up from the index, by whoever notices. Two that both believe they own a partition do no harm: the append is
//! the fence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::TryStreamExt;
use runtime::{Runtime, bus};
use schemas::{ExecutionId, Partition, stream};
use tokio::sync::mpsc;

use crate::partition::Command;

/// How often the owners are looked up. With the server's patience it bounds how long a partition may be nobody's.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks from one writing down of how far a partition's facts are dealt with to the next. From a server that was stopped
/// comes again what was dealt with since, and whatever stood behind a fact that was not.
const KEEP_EVERY: usize = 4;
/// How long the last of these may hold up the end.
const KEEP_WITHIN: Duration = Duration::from_secs(1);

/// Where the shells of this process are told things.
pub(crate) type Shells = BTreeMap<Partition, mpsc::Sender<Command>>;

/// The pins under which this process owns partitions. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Pins(Arc<Mutex<BTreeMap<Partition, String>>>);

impl Pins {
    /// The server's word about a partition, as its shell heard it.
    pub(crate) fn set(&self, partition: Partition, pin: Option<&str>) {
        let mut pins = self.0.lock().expect("no panic while the lock is held");
        match pin {
            Some(pin) if pins.get(&partition).is_some_and(|known| known == pin) => {}
            Some(pin) => drop(pins.insert(partition, pin.to_owned())),
            None => drop(pins.remove(&partition)),
        }
    }

    fn get(&self, partition: Partition) -> Option<String> {
        self.0.lock().expect("no panic while the lock is held").get(&partition).cloned()
    }
}

/// Whose a partition is, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stance {
    /// This process is its owner.
    Own,
    /// Nobody is: it is quiet, or its owner has gone.
    Adopt,
    /// Another process is.
    Yield,
}

impl Stance {
    fn of(owner: Option<&str>, mine: Option<&str>) -> Self {
        match owner {
            None => Self::Adopt,
            Some(owner) if mine == Some(owner) => Self::Own,
            Some(_) => Self::Yield,
        }
    }
}

/// Looks the owners up, again and again: takes up a partition when its owner changes to this process or to nobody,
/// lets go of it when somebody else owns it.
pub(crate) async fn watch(runtime: Runtime, pins: Pins, shells: Shells) -> Result<(), bus::Error> {
    let soft = runtime.tasks.soft();
    let mut stances: BTreeMap<Partition, Stance> = BTreeMap::new();
    let mut looks = 0;
    while soft.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        looks += 1;
        if looks % KEEP_EVERY == 0 {
            keep_places(&runtime, &stances).await;
        }
        let mut taken = BTreeSet::new();
        for partition in Partition::all() {
            // A server that does not answer says nothing about anybody.
            let Ok(owner) = runtime.bus.owner(partition).await else { continue };
            let stance = Stance::of(owner.as_deref(), pins.get(partition).as_deref());
            if stances.insert(partition, stance) == Some(stance) {
                continue;
            }
            match stance {
                Stance::Own | Stance::Adopt => drop(taken.insert(partition)),
                Stance::Yield => tell(&shells, partition, Command::Yield).await,
            }
        }
        if !taken.is_empty()
            && let Err(error) = recover(&runtime, &shells, &taken).await
        {
            tracing::warn!(%error, "open executions were not listed; trying again");
            stances.retain(|partition, _| !taken.contains(partition));
        }
    }
    let _ = tokio::time::timeout(KEEP_WITHIN, keep_places(&runtime, &stances)).await;
    Ok(())
}

/// Writes down how far the partitions of this process are.
async fn keep_places(runtime: &Runtime, stances: &BTreeMap<Partition, Stance>) {
    let own = stances.iter().filter(|(_, stance)| **stance == Stance::Own);
    let kept = own.map(|(partition, _)| async move {
        if let Err(error) = runtime.bus.keep_place(*partition).await {
            tracing::debug!(%partition, %error, "how far its facts are dealt with is not written down");
        }
    });
    futures::future::join_all(kept).await;
}

/// Hands every execution of these partitions that may be open to its shell.
pub(crate) async fn recover(
    runtime: &Runtime,
    shells: &Shells,
    partitions: &BTreeSet<Partition>,
) -> Result<(), bus::Error> {
    let bucket = runtime.bus.bucket(stream::BUCKET_OPEN).await?;
    let keys = bucket.keys().await.map_err(|e| bus::Error::Broken(e.to_string()))?;
    let keys: Vec<String> = keys.try_collect().await.map_err(|e| bus::Error::Broken(e.to_string()))?;
    let indexed = keys.iter().filter_map(|key| key.split('.').nth(1)?.parse::<ExecutionId>().ok());
    let mut open: BTreeMap<ExecutionId, bool> =
        indexed.filter(|exec| partitions.contains(&exec.partition())).map(|exec| (exec, true)).collect();
    // Those too young for the index are found by their facts, which nobody acknowledged.
    for partition in partitions {
        for exec in runtime.bus.unacknowledged(*partition).await? {
            open.entry(exec).or_insert(false);
        }
    }
    if !open.is_empty() {
        tracing::info!(executions = open.len(), "taking up executions that may be open");
    }
    for (exec, indexed) in open {
        tell(shells, exec.partition(), Command::Recover(exec, indexed)).await;
    }
    Ok(())
}

async fn tell(shells: &Shells, partition: Partition, command: Command) {
    if let Some(commands) = shells.get(&partition) {
        // A closed channel means shutdown.
        let _ = commands.send(command).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_ours_nobodys_or_somebody_elses() {
        assert_eq!(Stance::of(Some("a"), Some("a")), Stance::Own);
        assert_eq!(Stance::of(Some("b"), Some("a")), Stance::Yield);
        assert_eq!(Stance::of(Some("b"), None), Stance::Yield);
        assert_eq!(Stance::of(None, Some("a")), Stance::Adopt, "the server has let go of us");
        assert_eq!(Stance::of(None, None), Stance::Adopt);
    }
}
