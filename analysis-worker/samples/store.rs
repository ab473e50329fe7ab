//! A store of items.
mod journal;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap as Map};
use std::fmt::{self, Display}; // for people
use super::*;

/// How many items are kept.
///
/// More are refused.
pub const LIMIT: usize = 8;

#[derive(Debug, Clone)]
/// Keeps items by name.
pub struct Store<T> {
    items: Map<String, T>,
    pub seen: u64,
}

pub enum State {
    Open,
    Closed { reason: String },
}

pub trait Keep {
    type Item;
    fn keep(&mut self, item: Self::Item) -> bool;
}

impl<T: Display> Keep for Store<T> {
    type Item = T;

    // Refuses what is too much.
    fn keep(&mut self, item: T) -> bool {
        struct Guard;
        fn name_of<T: Display>(item: &T) -> String {
            format!("{item}")
        }
        let _guard = Guard;
        self.items.insert(name_of(&item), item).is_none()
    }
}

macro_rules! store {
    () => { Store::default() };
}

pub mod inner {
    pub async fn open(path: &str) -> super::State {
        super::State::Open
    }
}
