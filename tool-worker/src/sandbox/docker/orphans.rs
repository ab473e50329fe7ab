//! Containers of workers that are gone.
//!
//! A worker that dies leaves its containers: those that wait end by themselves, because the engine closes their input, but
//! they still lie there, and one at work may go on. Every container says which process made it. Workers that share an
//! engine see the same processes, so death is known at once; where they do not (each in a container of its own), age
//! tells.

use std::time::Duration;

use super::super::pool::AGE_MAX;

/// A container of an unknown worker is left alone for as long as it may wait, and twice the longest call. A server that a
/// worker keeps may be older, and is then started again.
const UNKNOWN_AGE_MAX: Duration = Duration::from_secs(AGE_MAX.as_secs() + 2 * 3_600);

/// A process for all time: the boot, the namespace its id counts in, the id, and when it started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    boot: String,
    namespace: String,
    process: u32,
    started: u64,
}

/// What is known of a container's worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Lives,
    Dead,
    Unknown,
}

impl Owner {
    /// This process.
    pub(super) fn this() -> Self {
        let process = std::process::id();
        Self { boot: boot(), namespace: namespace(), process, started: started(process).unwrap_or_default() }
    }

    /// As it stands on a label.
    pub(super) fn label(&self) -> String {
        format!("{} {} {} {}", self.boot, self.namespace, self.process, self.started)
    }

    fn read(label: &str) -> Option<Self> {
        let mut parts = label.split(' ').map(str::to_owned);
        let (boot, namespace) = (parts.next()?, parts.next()?);
        let (process, started) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self { boot, namespace, process, started })
    }

    /// Whether the worker of a label lives, as far as this process can see.
    pub(super) fn sees(&self, label: &str) -> Life {
        match Self::read(label) {
            None => Life::Unknown,
            Some(other) if other.boot != self.boot => Life::Dead,
            Some(other) if other.namespace != self.namespace => Life::Unknown,
            Some(other) if started(other.process) == Some(other.started) => Life::Lives,
            Some(_) => Life::Dead,
        }
    }
}

/// Whether a container should be removed.
pub(super) fn is_orphan(life: Life, age: Duration) -> bool {
    match life {
        Life::Lives => false,
        Life::Dead => true,
        Life::Unknown => age >= UNKNOWN_AGE_MAX,
    }
}

fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

fn namespace() -> String {
    let link = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    link.to_string_lossy().into_owned()
}

/// When a process started, in ticks since the boot; none when there is none. The name before it may hold anything.
fn started(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    // The twenty-second field, the name being the second.
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_one_that_has_its_number_later() {
        let this = Owner::this();
        assert_eq!(this.sees(&this.label()), Life::Lives);
        assert_eq!(this.sees(&Owner { started: this.started + 1, ..this.clone() }.label()), Life::Dead);
        assert_eq!(this.sees(&Owner { process: u32::MAX, ..this.clone() }.label()), Life::Dead);
        assert_eq!(this.sees(&Owner { boot: "another".to_owned(), ..this.clone() }.label()), Life::Dead);
        assert_eq!(this.sees(&Owner { namespace: "pid:[1]".to_owned(), ..this.clone() }.label()), Life::Unknown);
        assert_eq!(this.sees("nonsense"), Life::Unknown);
    }

    #[test]
    fn of_a_worker_that_cannot_be_seen_only_age_tells() {
        assert!(is_orphan(Life::Dead, Duration::ZERO));
        assert!(!is_orphan(Life::Lives, UNKNOWN_AGE_MAX * 2));
        assert!(!is_orphan(Life::Unknown, AGE_MAX));
        assert!(is_orphan(Life::Unknown, UNKNOWN_AGE_MAX));
    }
}
