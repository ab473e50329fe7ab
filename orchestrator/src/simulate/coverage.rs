//! Which transitions really happen, to be held against the tables of the regions in both directions.

use std::collections::{BTreeMap, BTreeSet};

use schemas::{EffectId, Event, Fact};

use crate::execution::{Execution, Transition, budget, context, control, effects, phase};

/// The tables, by region.
pub const TABLES: [(&str, &[Transition]); 5] = [
    ("phase", phase::TABLE),
    ("effects", effects::TABLE),
    ("context", context::TABLE),
    ("control", control::TABLE),
    ("budget", budget::TABLE),
];

/// A row of a region's table.
pub type Row = (&'static str, Transition);

/// How often each transition was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<Row, u64>);

/// The names of all states of an execution.
struct Names {
    regions: [(&'static str, &'static str); 4],
    effects: BTreeMap<EffectId, &'static str>,
}

impl Names {
    fn of(execution: &Execution) -> Self {
        Self {
            regions: [
                ("phase", execution.phase.name()),
                ("context", execution.context.name()),
                ("control", execution.control.name()),
                ("budget", execution.budget.name()),
            ],
            effects: execution.effects.iter().map(|(id, e)| (id.clone(), e.state.name())).collect(),
        }
    }
}

impl Coverage {
    /// Takes in a fact and notes what it moves, and what the time it brings moves.
    pub fn fact(&mut self, execution: &mut Execution, fact: &Fact) {
        let before = Names::of(execution);
        // The same fact without its time: what is left to happen is the time's doing.
        let mut untimed = execution.clone();
        untimed.apply_fact(&Fact { at: execution.now, ..fact.clone() });
        let between = Names::of(&untimed);
        execution.apply_fact(fact);
        self.note(&before, fact.body.name(), &between);
        self.note(&between, "deadline", &Names::of(execution));
    }

    /// Takes in an event and notes what it moves.
    pub fn event(&mut self, execution: &mut Execution, event: &Event) {
        let before = Names::of(execution);
        execution.apply(event);
        self.note(&before, event.name(), &Names::of(execution));
    }

    fn note(&mut self, before: &Names, on: &'static str, after: &Names) {
        for ((region, from), (_, to)) in before.regions.iter().zip(&after.regions) {
            // A turn that follows a turn is a step of the main region, though its state has the same name.
            let turns = *region == "phase" && STEPS.contains(&(*from, on, *to));
            if from != to || turns {
                self.see(region, (from, on, to));
            }
        }
        for (id, to) in &after.effects {
            let from = before.effects.get(id).copied().unwrap_or("-");
            if from != *to {
                self.see("effects", (from, on, to));
            }
        }
    }

    fn see(&mut self, region: &'static str, row: Transition) {
        *self.0.entry((region, row)).or_default() += 1;
    }

    /// Adds what another run has seen.
    pub fn add(&mut self, other: &Self) {
        for (row, count) in &other.0 {
            *self.0.entry(*row).or_default() += count;
        }
    }

    /// Rows that were seen, with how often.
    pub fn seen(&self) -> impl Iterator<Item = (Row, u64)> {
        self.0.iter().map(|(row, count)| (*row, *count))
    }

    /// Rows of the tables that were never seen.
    #[must_use]
    pub fn missing(&self) -> Vec<Row> {
        rows().filter(|row| !self.0.contains_key(row)).collect()
    }

    /// Transitions that no table has.
    #[must_use]
    pub fn unknown(&self) -> Vec<Row> {
        let known: BTreeSet<Row> = rows().collect();
        self.0.keys().filter(|row| !known.contains(*row)).copied().collect()
    }

    /// Rows seen, and all rows, of one region.
    #[must_use]
    pub fn of_region(&self, region: &str) -> (usize, usize) {
        let all = rows().filter(|row| row.0 == region);
        all.fold((0, 0), |(seen, all), row| (seen + usize::from(self.0.contains_key(&row)), all + 1))
    }
}

/// Steps of the main region from a state to the same one.
const STEPS: [Transition; 2] =
    [("Inferring", "inference.requested", "Inferring"), ("Acting", "child.requested", "Acting")];

/// All rows of all tables.
fn rows() -> impl Iterator<Item = Row> {
    TABLES.into_iter().flat_map(|(region, table)| table.iter().map(move |row| (region, *row)))
}
