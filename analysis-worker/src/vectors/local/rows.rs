//! The points of a collection as they are in memory: all that a search compares. Payloads stay in the file, but for the
//! words of the fields that have an index.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::log::{Change, Described, Place, payload};
use crate::vectors::Filter;

/// Bytes that a point takes in the file beside its numbers and its payload.
const POINT_BYTES: u64 = 25;

/// The points.
pub(super) struct Rows {
    described: Described,
    ids: BTreeMap<Uuid, usize>,
    slots: Vec<Option<Slot>>,
    /// Of all slots, one after another.
    vectors: Vec<f32>,
    free: Vec<usize>,
    /// Slots whose words were not read yet.
    unread: Vec<usize>,
    /// Each word of an indexed field, by a number.
    words: BTreeMap<String, u32>,
    bytes: u64,
}

struct Slot {
    id: Uuid,
    payload: Place,
    /// For each indexed field the numbers of its words.
    words: Vec<Vec<u32>>,
}

/// Conditions as they are held against a point.
pub(super) struct Test<'a> {
    /// An indexed field and the numbers of words of which it must have one.
    indexed: Vec<(usize, Vec<u32>)>,
    /// Fields without an index.
    others: Vec<(&'a str, &'a [String])>,
}

impl Rows {
    pub(super) fn new() -> Self {
        Self {
            described: Described { dimensions: 0, indexed: Vec::new() },
            ids: BTreeMap::new(),
            slots: Vec::new(),
            vectors: Vec::new(),
            free: Vec::new(),
            unread: Vec::new(),
            words: BTreeMap::new(),
            bytes: 0,
        }
    }

    pub(super) fn described(&self) -> &Described {
        &self.described
    }

    /// Bytes that the points take in the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The points from an id on, in the order of their ids.
    pub(super) fn from(&self, from: Uuid) -> impl Iterator<Item = (Uuid, usize)> {
        self.ids.range(from..).map(|(id, slot)| (*id, *slot))
    }

    pub(super) fn vector(&self, slot: usize) -> &[f32] {
        let dimensions = self.described.dimensions;
        &self.vectors[slot * dimensions..][..dimensions]
    }

    pub(super) fn payload(&self, slot: usize) -> Place {
        self.slot(slot).payload
    }

    pub(super) fn id(&self, slot: usize) -> Uuid {
        self.slot(slot).id
    }

    fn slot(&self, slot: usize) -> &Slot {
        self.slots[slot].as_ref().expect("only slots in use are handed out")
    }

    /// Does what was done. The words of indexed fields are read by [`Rows::read_words`].
    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Described(described) => {
                self.described = described;
                self.unread = self.ids.values().copied().collect();
            }
            Change::Kept { id, vector, payload } => {
                self.remove(id);
                let slot = self.free.pop().unwrap_or_else(|| {
                    self.slots.push(None);
                    self.vectors.resize(self.slots.len() * self.described.dimensions, 0.0);
                    self.slots.len() - 1
                });
                let begins = slot * self.described.dimensions;
                self.vectors[begins..begins + self.described.dimensions].copy_from_slice(&vector);
                self.slots[slot] = Some(Slot { id, payload, words: Vec::new() });
                self.ids.insert(id, slot);
                self.unread.push(slot);
                self.bytes += self.size(payload);
            }
            Change::Deleted { id } => self.remove(id),
        }
    }

    fn remove(&mut self, id: Uuid) {
        let Some(slot) = self.ids.remove(&id) else { return };
        let removed = self.slots[slot].take().expect("an id has a slot");
        self.free.push(slot);
        self.bytes -= self.size(removed.payload);
    }

    fn size(&self, payload: Place) -> u64 {
        POINT_BYTES + 4 * self.described.dimensions as u64 + u64::from(payload.bytes)
    }

    /// Reads the words of indexed fields of the points that came since.
    pub(super) fn read_words(&mut self, file: &File) -> io::Result<()> {
        let mut unread = std::mem::take(&mut self.unread);
        unread.sort_unstable();
        unread.dedup();
        for slot in unread {
            let Some(point) = &mut self.slots[slot] else { continue };
            if self.described.indexed.is_empty() {
                continue;
            }
            let payload = payload(file, point.payload)?;
            point.words.clear();
            for field in &self.described.indexed {
                let words = words(&payload, field).map(|word| {
                    let next = u32::try_from(self.words.len()).expect("the words fit the memory");
                    *self.words.entry(word.to_owned()).or_insert(next)
                });
                point.words.push(words.collect());
            }
        }
        Ok(())
    }

    /// Prepares a filter.
    pub(super) fn test<'a>(&self, filter: &'a Filter) -> Test<'a> {
        let mut test = Test { indexed: Vec::new(), others: Vec::new() };
        for condition in &filter.all {
            match self.described.indexed.iter().position(|field| *field == condition.field) {
                Some(field) => {
                    let any = condition.any.iter().filter_map(|word| self.words.get(word).copied());
                    test.indexed.push((field, any.collect()));
                }
                None => test.others.push((&condition.field, &condition.any)),
            }
        }
        test
    }

    /// Whether the point meets the conditions. Those on fields without an index read the file.
    pub(super) fn meets(&self, slot: usize, test: &Test<'_>, file: &File) -> io::Result<bool> {
        let point = self.slot(slot);
        let has = |(field, any): &(usize, Vec<u32>)| {
            point.words.get(*field).is_some_and(|words| words.iter().any(|word| any.contains(word)))
        };
        if !test.indexed.iter().all(has) {
            return Ok(false);
        }
        if test.others.is_empty() {
            return Ok(true);
        }
        let payload = payload(file, point.payload)?;
        Ok(test.others.iter().all(|(field, any)| words(&payload, field).any(|word| any.iter().any(|any| any == word))))
    }

    /// Slots and cosines of the points that meet the conditions, in no order. `vector` has the length 1.
    pub(super) fn scores(&self, vector: &[f32], test: &Test<'_>, file: &File) -> io::Result<Vec<(f32, usize)>> {
        let mut scores = Vec::new();
        for (slot, point) in self.slots.iter().enumerate() {
            if point.is_some() && self.meets(slot, test, file)? {
                scores.push((product(self.vector(slot), vector), slot));
            }
        }
        Ok(scores)
    }
}

/// The words of a field: itself, or those of its elements.
fn words<'a>(payload: &'a Map<String, Value>, field: &str) -> impl Iterator<Item = &'a str> {
    let value = payload.get(field);
    let list = value.and_then(Value::as_array).into_iter().flatten();
    value.into_iter().chain(list).filter_map(Value::as_str)
}

/// The vector with length 1; one without a length stays as it is, and is like nothing.
pub(super) fn scaled(vector: &[f32]) -> Vec<f32> {
    let square: f64 = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    if square == 0.0 {
        return vector.to_vec();
    }
    let length = square.sqrt();
    vector.iter().map(|x| (f64::from(*x) / length) as f32).collect()
}

/// Sums that do not wait for each other, so that the compiler computes many at once.
fn product(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
