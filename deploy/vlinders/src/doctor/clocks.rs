//! Whether the clocks agree: deadlines are moments that one machine names and others keep.

use std::time::{Duration, Instant};

use runtime::bus::ServerClock;
use runtime::clock;
use schemas::wire::Nanos;

use super::Finding;

/// Clocks further apart end work too early or too late by as much.
const APART_MAX: Duration = Duration::from_secs(1);
/// A clock that is set moves by more; one that is slewed by less.
const JUMP_MAX: Duration = Duration::from_millis(50);
/// What to do.
const SYNCHRONISE: &str = "keep the time of all machines by NTP (chrony, systemd-timesyncd)";

/// The wall clock beside the one that never jumps, from now on.
pub(super) struct Watch {
    wall: Nanos,
    steady: Instant,
}

impl Watch {
    pub(super) fn start() -> Self {
        Self { wall: clock::now(), steady: clock::instant() }
    }

    /// By how much the wall clock has moved beside the steady one; negative where it went back.
    pub(super) fn moved(&self) -> Nanos {
        let steady = Nanos::try_from(self.steady.elapsed().as_nanos()).unwrap_or(Nanos::MAX);
        clock::now() - self.wall - steady
    }
}

/// Ours beside the server's, if there is one, and what ours has done meanwhile.
pub(super) fn judge(server: Option<ServerClock>, moved: Nanos) -> Finding {
    if moved.unsigned_abs() > nanos(JUMP_MAX) {
        let found = format!("this machine's clock was set while it was looked at, by {}", signed(moved));
        return Finding::odd("clock", "jumps", found).next(SYNCHRONISE);
    }
    let Some(ServerClock { ahead, give_or_take }) = server else {
        return Finding::fine("clock", "steady; there is no server's clock to hold it against");
    };
    let found = format!("the NATS server's is {}, give or take {give_or_take:.1?}", side(ahead));
    if ahead.unsigned_abs() > nanos(APART_MAX) + nanos(give_or_take) {
        let found = format!("{found}: deadlines are kept wrong by as much, and at most {APART_MAX:?} do no harm");
        return Finding::wrong("clock", "WRONG", found).next(SYNCHRONISE);
    }
    Finding::fine("clock", found)
}

fn side(ahead: Nanos) -> String {
    let apart = Duration::from_nanos(ahead.unsigned_abs());
    if ahead < 0 { format!("{apart:.1?} behind ours") } else { format!("{apart:.1?} ahead of ours") }
}

fn signed(moved: Nanos) -> String {
    let by = Duration::from_nanos(moved.unsigned_abs());
    if moved < 0 { format!("-{by:.1?}") } else { format!("{by:.1?}") }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    fn beside(ahead_ms: i64, give_or_take_ms: u64) -> Finding {
        let give_or_take = Duration::from_millis(give_or_take_ms);
        judge(Some(ServerClock { ahead: ahead_ms * 1_000_000, give_or_take }), 0)
    }

    #[test]
    fn clocks_that_are_apart_are_wrong_whoever_is_ahead() {
        assert_eq!(beside(3, 1).state, State::Fine);
        assert_eq!(beside(-900, 1).state, State::Fine);
        for (ahead, said) in [(4_000, "4.0s ahead of ours"), (-4_000, "4.0s behind ours")] {
            let finding = beside(ahead, 1);
            assert_eq!(finding.state, State::Wrong("WRONG"));
            assert!(finding.found.contains(said), "{}", finding.found);
            assert!(finding.next.is_some_and(|next| next.contains("NTP")));
        }
        assert_eq!(beside(1_500, 1_000).state, State::Fine, "a slow answer proves nothing");
        assert_eq!(judge(None, 0).state, State::Fine);
    }

    #[test]
    fn a_clock_that_is_set_meanwhile_is_odd() {
        let finding = judge(None, -3_000_000_000);
        assert_eq!(finding.state, State::Odd("jumps"));
        assert!(finding.found.contains("by -3.0s"), "{}", finding.found);
        assert!(Watch::start().moved().unsigned_abs() < nanos(JUMP_MAX), "two looks at the same moment agree");
    }
}
