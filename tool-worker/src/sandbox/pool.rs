//! Boxes that wait for their one call, a few for each purpose in use.
//!
//! Only the bookkeeping: what is taken, what should be prepared, what has waited too long. It knows neither boxes nor
//! clocks. A box is handed out once; nothing ever comes back.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Purposes for which boxes wait at once; a box costs some memory and two processes.
const PURPOSES_MAX: usize = 8;
/// How long boxes of a purpose wait after its last call: people read answers for a while before they ask on.
const IDLE_MAX: Duration = Duration::from_secs(5 * 60);
/// How long one box waits at most. What is older than this and a call together is an orphan, whoever made it.
pub(crate) const AGE_MAX: Duration = Duration::from_secs(10 * 60);

/// Boxes by what they are made for.
#[derive(Debug)]
pub(crate) struct Pool<K, B> {
    shelves: BTreeMap<K, Shelf<B>>,
    boxes_each: usize,
    closed: bool,
}

#[derive(Debug)]
struct Shelf<B> {
    used: Instant,
    boxes: VecDeque<(Instant, B)>,
    coming: usize,
}

/// What comes of asking for a box.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken<B> {
    /// The box, if one waited.
    pub(crate) found: Option<B>,
    /// How many to prepare for later calls; each is promised with this and ends in `put` or `failed`.
    pub(crate) prepare: usize,
    /// Boxes of no more use.
    pub(crate) useless: Vec<B>,
}

impl<K: Ord + Clone, B> Pool<K, B> {
    /// An empty pool that keeps so many boxes for each purpose.
    pub(crate) fn new(boxes_each: usize) -> Self {
        Self { shelves: BTreeMap::new(), boxes_each, closed: false }
    }

    /// Takes the box that has waited longest and is still good.
    pub(crate) fn take(&mut self, made_for: &K, now: Instant) -> Taken<B> {
        let mut useless = Vec::new();
        if self.closed || self.boxes_each == 0 {
            return Taken { found: None, prepare: 0, useless };
        }
        if !self.shelves.contains_key(made_for) && self.shelves.len() >= PURPOSES_MAX {
            let unused = self.shelves.iter().min_by_key(|(_, shelf)| shelf.used).map(|(key, _)| key.clone());
            let shelf = unused.and_then(|key| self.shelves.remove(&key));
            useless.extend(shelf.into_iter().flat_map(Shelf::into_boxes));
        }
        let empty = || Shelf { used: now, boxes: VecDeque::new(), coming: 0 };
        let shelf = self.shelves.entry(made_for.clone()).or_insert_with(empty);
        shelf.used = now;
        let mut found = None;
        while let Some((since, waiting)) = shelf.boxes.pop_front() {
            if now.saturating_duration_since(since) < AGE_MAX {
                found = Some(waiting);
                break;
            }
            useless.push(waiting);
        }
        let prepare = self.boxes_each.saturating_sub(shelf.boxes.len() + shelf.coming);
        shelf.coming += prepare;
        Taken { found, prepare, useless }
    }

    /// Lays a prepared box down; gives it back when nobody wants it any more.
    pub(crate) fn put(&mut self, made_for: &K, now: Instant, prepared: B) -> Option<B> {
        let wanted = self.shelves.get_mut(made_for).filter(|shelf| shelf.coming > 0);
        let Some(shelf) = wanted else { return Some(prepared) };
        shelf.coming -= 1;
        shelf.boxes.push_back((now, prepared));
        None
    }

    /// A promised box does not come.
    pub(crate) fn failed(&mut self, made_for: &K) {
        if let Some(shelf) = self.shelves.get_mut(made_for) {
            shelf.coming = shelf.coming.saturating_sub(1);
        }
    }

    /// Takes out what has waited too long.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<B> {
        let mut expired = Vec::new();
        self.shelves.retain(|_, shelf| {
            let idle = now.saturating_duration_since(shelf.used) >= IDLE_MAX;
            let old = |since: &Instant| idle || now.saturating_duration_since(*since) >= AGE_MAX;
            while let Some((_, waiting)) = shelf.boxes.pop_front_if(|(since, _)| old(since)) {
                expired.push(waiting);
            }
            !idle || shelf.coming > 0
        });
        expired
    }

    /// Takes out everything; from now on there are no warm boxes.
    pub(crate) fn close(&mut self) -> Vec<B> {
        self.closed = true;
        std::mem::take(&mut self.shelves).into_values().flat_map(Shelf::into_boxes).collect()
    }

    /// How many boxes wait.
    pub(crate) fn waiting(&self) -> usize {
        self.shelves.values().map(|shelf| shelf.boxes.len()).sum()
    }
}

impl<B> Shelf<B> {
    fn into_boxes(self) -> impl Iterator<Item = B> {
        self.boxes.into_iter().map(|(_, waiting)| waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::path::PathBuf;

    fn start() -> Instant {
        runtime::clock::instant()
    }

    fn path(name: &str) -> PathBuf {
        PathBuf::from(name)
    }

    #[test]
    fn boxes_are_prepared_up_to_their_number_and_handed_out_once() {
        let (mut pool, now) = (Pool::new(2), start());
        assert_eq!(pool.take(&path("/a"), now), Taken { found: None, prepare: 2, useless: vec![] });
        assert_eq!(pool.take(&path("/a"), now).prepare, 0, "two are on their way");
        assert_eq!(pool.put(&path("/a"), now, 1), None);
        pool.failed(&path("/a"));
        assert_eq!(pool.take(&path("/a"), now), Taken { found: Some(1), prepare: 2, useless: vec![] });
        assert_eq!(pool.take(&path("/a"), now).found, None);
    }

    #[test]
    fn what_waits_too_long_is_given_up() {
        let (mut pool, now) = (Pool::new(2), start());
        pool.take(&path("/idle"), now);
        pool.take(&path("/used"), now);
        pool.put(&path("/idle"), now, 1);
        pool.put(&path("/used"), now, 2);
        pool.failed(&path("/idle"));
        let later = now + IDLE_MAX;
        assert_eq!(pool.put(&path("/used"), later, 3), None);
        pool.shelves.get_mut(&path("/used")).unwrap().used = later;
        assert_eq!(pool.expired(later), [1]);
        assert_eq!(pool.expired(now + AGE_MAX).len(), 2, "idle by then, and old");
        assert_eq!((pool.waiting(), pool.shelves.len()), (0, 0));
    }

    #[test]
    fn the_least_used_purpose_makes_room() {
        let (mut pool, now) = (Pool::new(1), start());
        for n in 0..=PURPOSES_MAX {
            let (workspace, now) = (path(&format!("/{n}")), now + Duration::from_secs(n as u64));
            let taken = pool.take(&workspace, now);
            assert_eq!(taken.useless, if n == PURPOSES_MAX { vec![0] } else { vec![] });
            pool.put(&workspace, now, n);
        }
        assert_eq!(pool.waiting(), PURPOSES_MAX);
        assert_eq!(pool.close().len(), PURPOSES_MAX);
        assert_eq!(pool.take(&path("/1"), now), Taken { found: None, prepare: 0, useless: vec![] });
    }
}
