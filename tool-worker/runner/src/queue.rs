//! A bounded queue between one that finds work and those who do it.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};

/// Hands each item to one taker, in order.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    items_max: usize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    /// An empty queue that holds so many items.
    pub(crate) fn new(items_max: usize) -> Self {
        Self { state: Mutex::new(State { items: VecDeque::new(), closed: false }), changed: Condvar::new(), items_max }
    }

    /// Lays an item down, or gives it back when there is no room: then its finder may as well do it.
    pub(crate) fn put(&self, item: T) -> Option<T> {
        let mut state = self.state();
        if state.items.len() >= self.items_max {
            return Some(item);
        }
        state.items.push_back(item);
        drop(state);
        self.changed.notify_one();
        None
    }

    /// Nothing comes any more.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Takes the oldest item; waits for one unless nothing comes any more.
    pub(crate) fn take(&self) -> Option<T> {
        let mut state = self.state();
        loop {
            match state.items.pop_front() {
                Some(item) => return Some(item),
                None if state.closed => return None,
                None => state = self.changed.wait(state).expect("no panic while the lock is held"),
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("no panic while the lock is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_comes_back_and_the_rest_is_taken_once() {
        let queue = Queue::new(2);
        assert_eq!((queue.put(1), queue.put(2), queue.put(3)), (None, None, Some(3)));
        assert_eq!(queue.take(), Some(1));
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| (queue.take(), queue.take(), queue.take()));
            let putter = scope.spawn(|| {
                assert_eq!(queue.put(4), None, "there is room for one");
                queue.close();
            });
            putter.join().unwrap();
            assert_eq!(taker.join().unwrap(), (Some(2), Some(4), None));
        });
    }
}
