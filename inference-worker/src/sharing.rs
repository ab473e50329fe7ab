//! Equal work that is under way at the same time is done once: who comes first does it, the others wait for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;

/// What equal work is known by.
pub(crate) type Key = [u8; 32];

type Awaited<T> = watch::Receiver<Option<Arc<T>>>;

/// The work that is under way.
#[derive(Debug)]
pub(crate) struct UnderWay<T> {
    awaited: Mutex<BTreeMap<Key, Awaited<T>>>,
}

/// How one takes part in the work.
pub(crate) enum Part<T> {
    /// Nobody is at it.
    Do(Promise<T>),
    /// Somebody is.
    Await(Waiter<T>),
}

/// Who holds it does the work. Dropping it before the result is there tells the others that none will come.
#[derive(Debug)]
pub(crate) struct Promise<T> {
    under_way: Arc<UnderWay<T>>,
    /// What the work is known by.
    pub(crate) key: Key,
    result: watch::Sender<Option<Arc<T>>>,
}

/// Who holds it waits for the work of another.
#[derive(Debug)]
pub(crate) struct Waiter<T>(Awaited<T>);

impl<T> UnderWay<T> {
    /// Nothing is under way.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { awaited: Mutex::default() })
    }

    /// Takes part in the work of this key.
    pub(crate) fn join(self: &Arc<Self>, key: Key) -> Part<T> {
        let mut awaited = self.awaited.lock().expect("no panic while the lock is held");
        if let Some(result) = awaited.get(&key) {
            return Part::Await(Waiter(result.clone()));
        }
        let (result, receiver) = watch::channel(None);
        awaited.insert(key, receiver);
        Part::Do(Promise { under_way: Arc::clone(self), key, result })
    }
}

impl<T> Promise<T> {
    /// The result is there.
    pub(crate) fn keep(self, result: Arc<T>) {
        self.result.send_replace(Some(result));
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        self.under_way.awaited.lock().expect("no panic while the lock is held").remove(&self.key);
    }
}

impl<T> Waiter<T> {
    /// The result; none when who was at it gave up.
    pub(crate) async fn result(mut self) -> Option<Arc<T>> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|result| result.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of one who comes first and two who come later.
    fn three(under_way: &Arc<UnderWay<u32>>) -> (Promise<u32>, Waiter<u32>, Waiter<u32>) {
        match std::array::from_fn(|_| under_way.join([1; 32])) {
            [Part::Do(promise), Part::Await(second), Part::Await(third)] => (promise, second, third),
            _ => panic!("the first does it"),
        }
    }

    #[tokio::test]
    async fn what_one_does_the_others_get() {
        let under_way = UnderWay::new();
        let (promise, second, third) = three(&under_way);
        assert!(matches!(under_way.join([2; 32]), Part::Do(_)), "other work is its own");
        let give = async { promise.keep(Arc::new(7)) };
        let (second, third, ()) = tokio::join!(second.result(), third.result(), give);
        assert_eq!((second, third), (Some(Arc::new(7)), Some(Arc::new(7))));
        assert!(matches!(under_way.join([1; 32]), Part::Do(_)), "who comes behind it begins anew");
    }

    #[tokio::test]
    async fn nobody_waits_for_one_who_gave_up() {
        let under_way = UnderWay::new();
        let (promise, second, third) = three(&under_way);
        let give_up = async { drop(promise) };
        let (second, third, ()) = tokio::join!(second.result(), third.result(), give_up);
        assert_eq!((second, third), (None, None));
        assert!(matches!(under_way.join([1; 32]), Part::Do(_)));
    }
}
