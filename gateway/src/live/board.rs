//! Which executions are under way, as far as the live list needs to know: a bounded memory, without I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use runtime::bus::{Kind, Stored};
use schemas::api::Status;
use schemas::executions::ExecutionRow;
use schemas::summary::Summary;
use schemas::{ExecutionId, Fact, Partition, Record};

/// Executions under way that are remembered; the oldest are forgotten, and read again should they change.
const OPEN_MAX: usize = 4_096;
/// Executions remembered to have ended, so that facts that come too late bring no news.
const ENDED_MAX: usize = 4_096;

/// What is known.
#[derive(Default)]
pub(super) struct Board {
    open: BTreeMap<ExecutionId, Open>,
    ended: BTreeSet<ExecutionId>,
    /// In the order in which they ended.
    ended_order: VecDeque<ExecutionId>,
    /// Executions to be read from the log: from which message on there is news.
    unknown: BTreeMap<ExecutionId, u64>,
    /// Executions of which something may have to be told.
    changed: BTreeSet<ExecutionId>,
    /// The newest message of each partition.
    newest: BTreeMap<Partition, u64>,
}

struct Open {
    summary: Summary,
    /// The newest message that was folded.
    sequence: u64,
    /// What those who watch know.
    told: Option<Status>,
}

impl Board {
    /// Takes in a message as it was stored.
    pub(super) fn take(&mut self, message: &Stored) {
        let (exec, sequence) = (message.exec, message.sequence);
        let before = self.newest.insert(exec.partition(), sequence);
        if before.is_some_and(|before| before + 1 != sequence) {
            // Whatever was lost: any execution of the partition may have moved on.
            let concerned = self.open.iter().filter(|(other, _)| other.partition() == exec.partition());
            for (other, open) in concerned {
                self.unknown.entry(*other).or_insert(open.sequence + 1);
            }
        }
        if self.ended.contains(&exec) || self.unknown.contains_key(&exec) {
            return;
        }
        if let Some(open) = self.open.get_mut(&exec) {
            open.fold(message);
            self.changed.insert(exec);
        } else if let Some(summary) = begin(message) {
            self.open.insert(exec, Open { summary, sequence, told: None });
            self.changed.insert(exec);
        } else {
            self.unknown.insert(exec, sequence);
        }
        while self.open.len() > OPEN_MAX {
            self.open.pop_first();
        }
    }

    /// Executions that must be read from the log, some of them.
    pub(super) fn unknown(&self, at_most: usize) -> Vec<ExecutionId> {
        self.unknown.keys().take(at_most).copied().collect()
    }

    /// Takes in the log of such an execution.
    pub(super) fn read(&mut self, exec: ExecutionId, messages: &[Stored]) {
        let Some(news) = self.unknown.remove(&exec) else { return };
        let mut told = self.open.remove(&exec).map(|open| open.told);
        let mut read: Option<Open> = None;
        for message in messages {
            match &mut read {
                None => {
                    let begun = begin(message);
                    read = begun.map(|summary| Open { summary, sequence: message.sequence, told: None });
                }
                Some(open) => {
                    if message.sequence >= news {
                        told.get_or_insert(Some(open.summary.row.status));
                    }
                    open.fold(message);
                }
            }
        }
        if let Some(open) = read {
            self.open.insert(exec, Open { told: told.flatten(), ..open });
            self.changed.insert(exec);
        }
    }

    /// The rows of executions whose status is another one than was told last; those are told with it.
    pub(super) fn changes(&mut self) -> Vec<ExecutionRow> {
        let mut rows = Vec::new();
        for exec in std::mem::take(&mut self.changed) {
            let Some(open) = self.open.get_mut(&exec) else { continue };
            let status = open.summary.row.status;
            if open.told != Some(status) {
                open.told = Some(status);
                rows.push(open.summary.row.clone());
            }
            if open.summary.is_ended() {
                self.open.remove(&exec);
                self.unknown.remove(&exec);
                self.ended.insert(exec);
                self.ended_order.push_back(exec);
                if self.ended_order.len() > ENDED_MAX
                    && let Some(oldest) = self.ended_order.pop_front()
                {
                    self.ended.remove(&oldest);
                }
            }
        }
        rows
    }
}

impl Open {
    fn fold(&mut self, message: &Stored) {
        if message.sequence <= self.sequence {
            return;
        }
        self.sequence = message.sequence;
        // What cannot be read led to nothing.
        match message.kind {
            Kind::Fact => {
                if let Ok(fact) = Fact::read(&message.payload) {
                    self.summary.fact(&fact);
                }
            }
            Kind::Decision => {
                if let Ok(record) = Record::read(&message.payload) {
                    self.summary.decision(&record);
                }
            }
        }
    }
}

fn begin(message: &Stored) -> Option<Summary> {
    let fact = (message.kind == Kind::Fact).then(|| Fact::read(&message.payload).ok())??;
    Summary::begin(&fact)
}

#[cfg(test)]
mod tests {
    use schemas::FactBody;
    use schemas::decision::{Draft, Ended, Event, ExecutionStarted, FactsDigest};
    use schemas::fact::{CancelRequested, ExecutionSubmitted, Kind as RequestKind, Limits};
    use schemas::wire::encode;

    use super::*;

    fn exec() -> ExecutionId {
        "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical id")
    }

    fn stored(sequence: u64, kind: Kind, payload: Vec<u8>) -> Stored {
        Stored { exec: exec(), sequence, stored_at: 0, kind, payload: payload.into() }
    }

    fn submitted(sequence: u64) -> Stored {
        let request = ExecutionSubmitted::new(RequestKind::Chat, "chat", Limits::default());
        let fact = Fact::new(exec(), 1, FactBody::ExecutionSubmitted(Box::new(request)));
        stored(sequence, Kind::Fact, encode(&fact))
    }

    fn decided(sequence: u64, n: u64, event: Event) -> Stored {
        let facts = FactsDigest::default();
        let draft = Draft { exec: exec(), n, at: 2, machine: 3, facts_upto: 1, facts: &facts, prev_hash: "" };
        stored(sequence, Kind::Decision, encode(&Record::seal(&draft, vec![event])))
    }

    fn started(sequence: u64) -> Stored {
        decided(sequence, 0, Event::ExecutionStarted(ExecutionStarted { model: "tiny".into() }))
    }

    fn cancelled(sequence: u64) -> Stored {
        let ended = Ended { code: "c".into(), detail: String::new(), iterations: 0, usage: Default::default() };
        decided(sequence, 1, Event::ExecutionCancelled(ended))
    }

    fn late(sequence: u64) -> Stored {
        let cancel = CancelRequested { by: "p".into(), reason: None, mode: Default::default() };
        stored(sequence, Kind::Fact, encode(&Fact::new(exec(), 3, FactBody::CancelRequested(cancel))))
    }

    fn told(board: &mut Board) -> Vec<Status> {
        board.changes().iter().map(|row| row.status).collect()
    }

    #[test]
    fn each_status_is_told_once_and_those_in_between_are_not() {
        let mut board = Board::default();
        board.take(&submitted(1));
        assert_eq!(told(&mut board), [Status::Submitted]);
        board.take(&started(2));
        board.take(&cancelled(3));
        assert_eq!(told(&mut board), [Status::Cancelled], "it ran for no time at all");
        board.take(&late(4));
        assert_eq!((told(&mut board), board.unknown(9)), (vec![], vec![]), "nothing counts behind the end");
    }

    #[test]
    fn an_execution_that_began_before_is_read_and_only_its_news_are_told() {
        let mut board = Board::default();
        board.take(&late(3));
        assert_eq!(board.unknown(9), [exec()]);
        board.read(exec(), &[submitted(1), started(2), late(3)]);
        assert_eq!(told(&mut board), [], "it runs as before");
        board.take(&cancelled(4));
        assert_eq!(told(&mut board), [Status::Cancelled]);
    }

    #[test]
    fn what_was_lost_is_read_from_the_log() {
        let mut board = Board::default();
        board.take(&submitted(1));
        assert_eq!(told(&mut board), [Status::Submitted]);
        // The end was lost; another execution's message of the partition shows it.
        board.take(&late(4));
        assert_eq!(board.unknown(9), [exec()]);
        board.read(exec(), &[submitted(1), started(2), cancelled(3), late(4)]);
        assert_eq!(told(&mut board), [Status::Cancelled]);
    }
}
