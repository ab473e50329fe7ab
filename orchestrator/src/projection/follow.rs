//! From the log into the tables: opens them, then follows every partition.
//!
//! What the server hands out is only taken where it begins right behind what the tables hold; whatever else happens, a
//! gap, a table that was emptied, another process that was faster, the log itself is read from there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use runtime::bus::{self, Placed, Run};
use schemas::Partition;

use super::store::{self, Store};
use super::{BUILDING, Backoff, LOOK, Shared};

/// Messages written in one transaction at most.
const MESSAGES_MAX: usize = 512;
/// How long a message may wait for others, so that a busy partition does not need a transaction for each: what lists
/// show is that much older than the log.
const LINGER: Duration = Duration::from_millis(100);
/// How often the tables are looked at: whether they answer, and whether somebody has emptied them.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Why following was broken off.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Bus(#[from] bus::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Opens the tables and follows the log until the soft token falls.
pub(super) async fn run(shared: Arc<Shared>) {
    let soft = shared.runtime.tasks.soft();
    let mut backoff = Backoff::new();
    let store = loop {
        let opened = tokio::select! {
            () = soft.cancelled() => return,
            opened = open(&shared) => opened,
        };
        match opened {
            Ok(store) => break store,
            Err(error) => shared.note("open", Some(error.to_string())),
        }
        tokio::select! {
            () = soft.cancelled() => return,
            () = shared.open.notified() => {}
            () = tokio::time::sleep(backoff.next()) => {}
        }
    };
    shared.note("open", None);
    tracing::info!(database = shared.target.name(), "executions are projected");
    shared.store.send_replace(Some(store.clone()));
    for partition in Partition::all() {
        shared.runtime.tasks.spawn_background(follow(shared.clone(), store.clone(), partition));
    }
    tokio::select! {
        () = soft.cancelled() => {}
        () = look(&shared, &store) => {}
    }
}

async fn open(shared: &Shared) -> Result<Store, Error> {
    let store = Store::open(&shared.target, &shared.log, shared.takes_over()).await?;
    let last = shared.runtime.bus.last_sequences().await?;
    let positions = store.positions().await?;
    let held = |partition: &Partition| positions.get(partition).map_or(0, |position| position.sequence);
    let missing: u64 = last.iter().map(|(partition, last)| last.saturating_sub(held(partition))).sum();
    if missing > BUILDING {
        store.begin_building(&last).await?;
    }
    Ok(store)
}

/// Looks at the tables again and again: says how they are, and wakes whose partition was moved back, or stands still
/// while there is more in the log, such as what was handed to a process that is gone.
async fn look(shared: &Shared, store: &Store) {
    let mut behind: BTreeMap<Partition, u64> = BTreeMap::new();
    let mut away = false;
    loop {
        let positions = store.positions().await;
        shared.note(LOOK, positions.as_ref().err().map(ToString::to_string));
        // While they do not answer, how far they were when they were last seen says how much they lack by now.
        let held = |partition: &Partition| match &positions {
            Ok(positions) => positions.get(partition).map_or(0, |position| position.sequence),
            Err(_) => shared.position(*partition).unwrap_or(0),
        };
        if let Ok(last) = shared.runtime.bus.last_sequences().await {
            let lag: u64 = last.iter().map(|(partition, last)| last.saturating_sub(held(partition))).sum();
            shared.lag.set(i64::try_from(lag).unwrap_or(i64::MAX));
            for partition in Partition::all().filter(|_| positions.is_ok()) {
                let now = held(&partition);
                let moved_back = shared.position(partition).is_some_and(|known| known > now);
                let stands_still = behind.remove(&partition) == Some(now);
                if moved_back || stands_still || away {
                    shared.nudge(partition);
                } else if last.get(&partition).is_some_and(|last| *last > now) {
                    behind.insert(partition, now);
                }
            }
        }
        away = positions.is_err();
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Follows one partition, whatever comes in between.
async fn follow(shared: Arc<Shared>, store: Store, partition: Partition) {
    let soft = shared.runtime.tasks.soft();
    let mut backoff = Backoff::new();
    loop {
        let mut projector = Projector { shared: &shared, store: &store, partition, position: 0, moved: false };
        let error = tokio::select! {
            () = soft.cancelled() => return,
            error = projector.follow() => error,
        };
        if projector.moved {
            backoff = Backoff::new();
        }
        match &error {
            Error::Store(error) => shared.note(&projector.who(), Some(error.to_string())),
            // The whole orchestrator hangs on the log, and says so.
            Error::Bus(error) => tracing::debug!(%partition, %error, "following was broken off; trying again"),
        }
        tokio::select! {
            () = soft.cancelled() => return,
            () = shared.moved[&partition].notified() => {}
            () = tokio::time::sleep(backoff.next()) => {}
        }
    }
}

struct Projector<'a> {
    shared: &'a Shared,
    store: &'a Store,
    partition: Partition,
    /// What the tables hold, as far as this process knows.
    position: u64,
    /// Something was written.
    moved: bool,
}

impl Projector<'_> {
    /// Returns when something fails.
    async fn follow(&mut self) -> Error {
        let Err(error) = self.follow_on().await;
        error
    }

    async fn follow_on(&mut self) -> Result<std::convert::Infallible, Error> {
        let bus = &self.shared.runtime.bus;
        self.catch_up().await?;
        self.shared.note(&self.who(), None);
        let name = format!("projection-{}", self.store.id);
        let mut follow = bus.follow(self.partition, &name, self.position + 1).await?;
        let moved = &self.shared.moved[&self.partition];
        loop {
            // A run that is dropped here is read from the log.
            let run = tokio::select! {
                run = follow.next(MESSAGES_MAX, LINGER) => run?,
                () = moved.notified() => {
                    self.catch_up().await?;
                    continue;
                }
            };
            if !run.messages.is_empty() {
                self.take(&run).await?;
                follow.done(&run).await?;
            }
        }
    }

    /// Writes whatever the log holds and the tables do not.
    async fn catch_up(&mut self) -> Result<(), Error> {
        self.look().await?;
        let last = self.shared.runtime.bus.last_sequence(self.partition).await?;
        self.read_up_to(last).await
    }

    fn who(&self) -> String {
        format!("partition {}", self.partition)
    }

    async fn look(&mut self) -> Result<(), Error> {
        self.position = self.store.position(self.partition).await?;
        self.shared.set_position(self.partition, self.position);
        Ok(())
    }

    async fn take(&mut self, run: &Run) -> Result<(), Error> {
        let Some((last, _)) = run.messages.last() else { return Ok(()) };
        let written = match fresh(&run.messages, self.position) {
            Fresh::Nothing => true,
            Fresh::Next(messages) => self.write(messages).await?,
            Fresh::Gap => false,
        };
        if written { Ok(()) } else { self.read_up_to(*last).await }
    }

    /// Writes what stands in the log up to this sequence, and is not in the tables.
    async fn read_up_to(&mut self, last: u64) -> Result<(), Error> {
        while self.position < last {
            let messages = self.shared.runtime.bus.read_partition(self.partition, self.position + 1, last).await?;
            if messages.is_empty() {
                return Ok(());
            }
            for some in messages.chunks(MESSAGES_MAX) {
                if !self.write(some).await? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes messages that follow what the tables hold; says whether they did.
    async fn write(&mut self, messages: &[Placed]) -> Result<bool, Error> {
        let Some((last, _)) = messages.last() else { return Ok(true) };
        if !self.store.apply(self.partition, self.position, messages).await? {
            self.look().await?;
            return Ok(false);
        }
        self.position = *last;
        self.moved = true;
        self.shared.set_position(self.partition, self.position);
        self.shared.messages.inc_by(messages.len() as u64);
        Ok(true)
    }
}

/// What of a run the tables do not hold.
#[derive(Debug)]
enum Fresh<'a> {
    Nothing,
    /// These, which follow right behind.
    Next(&'a [Placed]),
    /// Something, but not what comes next.
    Gap,
}

fn fresh(messages: &[Placed], position: u64) -> Fresh<'_> {
    if messages.last().is_none_or(|(last, _)| *last <= position) {
        return Fresh::Nothing;
    }
    let known = messages.iter().take_while(|(sequence, _)| *sequence <= position).count();
    let fresh = &messages[known..];
    let follows = fresh.first().is_some_and(|(first, _)| *first == position + 1);
    let in_order = fresh.windows(2).all(|two| two[0].0 + 1 == two[1].0);
    if follows && in_order { Fresh::Next(fresh) } else { Fresh::Gap }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(sequences: &[u64]) -> Vec<Placed> {
        sequences.iter().map(|sequence| (*sequence, None)).collect()
    }

    fn taken(sequences: &[u64], position: u64) -> Option<Vec<u64>> {
        match fresh(&run(sequences), position) {
            Fresh::Nothing => Some(Vec::new()),
            Fresh::Next(messages) => Some(messages.iter().map(|(sequence, _)| *sequence).collect()),
            Fresh::Gap => None,
        }
    }

    #[test]
    fn only_what_follows_right_behind_the_tables_is_taken_from_a_run() {
        assert_eq!(taken(&[5, 6, 7], 4), Some(vec![5, 6, 7]));
        assert_eq!(taken(&[5, 6, 7], 6), Some(vec![7]), "the first two came again");
        assert_eq!(taken(&[5, 6], 9), Some(vec![]), "all of it came again");
        assert_eq!(taken(&[5, 6], 3), None, "4 was lost");
        assert_eq!(taken(&[5, 7], 4), None, "6 was lost");
        assert_eq!(taken(&[], 4), Some(vec![]));
    }
}
