//! Who waits to be computed, and who is next. Pure.
//!
//! The highest priority goes first, within one whoever ran before and had to give its blocks back, then tenants in turn.
//! But after [`OVERTAKEN_MAX`] admissions of others that came later, whoever has waited longest is next, and counts as of
//! high priority from then on: it came before those that overtook it, so it is not sent back for their sake. Nothing
//! waits for ever, however much of a higher priority keeps coming.

use std::{cmp::Reverse, collections::BTreeMap};

use schemas::chat::Priority;

use crate::scheduler::SequenceId;

/// Admissions that may overtake sequences of a lower priority, until one of these has its turn.
pub const OVERTAKEN_MAX: usize = 7;

/// A sequence's place among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// On whose behalf it runs.
    pub tenant: u64,
    /// Who goes first.
    pub priority: Priority,
    /// How many came before it.
    pub arrived: u64,
    /// It was admitted once.
    pub ran: bool,
}

impl Place {
    /// Who comes first when there is not enough for all.
    pub fn order(&self) -> (Reverse<Priority>, u64) {
        (Reverse(self.priority), self.arrived)
    }
}

/// The sequences that wait.
#[derive(Debug, Default)]
pub struct Waiting {
    places: BTreeMap<SequenceId, Place>,
    /// The tenant that had its turn last.
    last_tenant: u64,
    /// Admissions that overtook others since one of those had its turn.
    overtaking: usize,
}

impl Waiting {
    /// Puts a sequence among those that wait.
    pub fn insert(&mut self, id: SequenceId, place: Place) {
        self.places.insert(id, place);
    }

    /// Takes one out that is no longer wanted.
    pub fn remove(&mut self, id: SequenceId) {
        self.places.remove(&id);
    }

    /// Who should be admitted next.
    pub fn next(&self) -> Option<SequenceId> {
        let first = self.first()?;
        match self.longest_overtaken_by(first) {
            Some(longest) if self.overtaking >= OVERTAKEN_MAX => Some(longest),
            _ => Some(first),
        }
    }

    /// Takes out who [`Waiting::next`] named; its place from now on.
    pub fn admit(&mut self, id: SequenceId) -> Place {
        let has_its_turn = self.first() != Some(id);
        let overtakes = self.longest_overtaken_by(id).is_some();
        let mut place = self.places.remove(&id).expect("who is next waits");
        if !std::mem::replace(&mut place.ran, true) {
            self.last_tenant = place.tenant;
        }
        if has_its_turn {
            (place.priority, self.overtaking) = (Priority::High, 0);
        } else if overtakes {
            self.overtaking += 1;
        }
        place
    }

    fn first(&self) -> Option<SequenceId> {
        let next_tenant = self.last_tenant.wrapping_add(1);
        let rank = |place: &Place| {
            let turn = if place.ran { 0 } else { place.tenant.wrapping_sub(next_tenant) };
            (Reverse(place.priority), !place.ran, turn, place.arrived)
        };
        self.places.iter().min_by_key(|(_, place)| rank(place)).map(|(id, _)| *id)
    }

    /// Of those that came before this one and have a lower priority, the one that came first.
    fn longest_overtaken_by(&self, id: SequenceId) -> Option<SequenceId> {
        let one = self.places.get(&id)?;
        let overtaken = |place: &Place| place.priority < one.priority && place.arrived < one.arrived;
        let overtaken = self.places.iter().filter(|(_, place)| overtaken(place));
        overtaken.min_by_key(|(_, place)| place.arrived).map(|(id, _)| *id)
    }
}
