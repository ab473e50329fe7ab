//! What goes wrong by itself. Lost answers, stalls and deaths between two steps happen where the steps are.

use schemas::wire::Nanos;
use schemas::{ExecutionId, Partition};

use super::SECOND;
use super::world::{Wakeup, World};

impl World {
    pub(super) fn something_goes_wrong(&mut self) {
        if !self.is_faulty() {
            return self.all_is_well();
        }
        let orchestrator = self.chance.index(self.orchestrators.len());
        let worker = self.chance.index(self.workers.len());
        match self.chance.below(12) {
            0 | 1 => self.kill_orchestrator(orchestrator),
            2 | 3 => self.kill_worker(worker),
            4 => {
                let until = self.now + self.chance.span(100, 20_000);
                self.orchestrators[orchestrator].cut_until = until;
                self.note(|| format!("orchestrator {orchestrator} is cut off"));
            }
            5 => {
                let until = self.now + self.chance.span(100, 20_000);
                self.workers[worker].cut_until = until;
                self.note(|| format!("worker {worker} is cut off"));
            }
            6 => {
                self.down_until = self.now + self.chance.span(100, 8_000);
                self.note(|| "the bus is down".to_owned());
            }
            7 => {
                // Its server restarts: memory streams are empty, and every orchestrator notices.
                self.queue.wipe();
                self.note(|| "the queues are empty".to_owned());
                self.republish();
            }
            8 => {
                let skew = self.skew();
                self.note(|| format!("the clock of orchestrator {orchestrator} jumps to {skew}"));
                self.jump(orchestrator, skew);
            }
            9 => {
                self.workers[worker].skew = self.skew();
                self.note(|| format!("the clock of worker {worker} jumps"));
            }
            _ => {
                let partitions: Vec<Partition> = self.index.keys().map(ExecutionId::partition).collect();
                if !partitions.is_empty() {
                    let partition = self.chance.pick(&partitions);
                    self.pin(partition, orchestrator);
                }
            }
        }
        let next = self.chance.span(500, 9_000);
        self.after(next, Wakeup::Fault);
    }

    fn skew(&mut self) -> Nanos {
        match self.chance.below(3) {
            0 => 0,
            1 => self.chance.span(0, 60_000) - 30 * SECOND,
            _ => self.chance.span(0, 2_000) - SECOND,
        }
    }

    fn all_is_well(&mut self) {
        self.note(|| "all is well from now on".to_owned());
        for orchestrator in 0..self.orchestrators.len() {
            self.jump(orchestrator, 0);
        }
    }
}
