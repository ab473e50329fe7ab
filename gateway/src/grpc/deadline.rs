//! How long a client waits for a call, and when it is answered at the latest. Pure but for the clock it is given.

use std::time::Duration;

use axum::http::HeaderMap;
use runtime::clock;
use schemas::fact::Limits;
use schemas::wire::Nanos;

use crate::requests::GRACE;

/// So long before the client stops waiting it is told that the time is over: its own library would say no more than that.
const AHEAD: Duration = Duration::from_millis(20);

/// When a client stops waiting; none for one that waits as long as it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadline(Option<Nanos>);

impl Deadline {
    /// Reads `grpc-timeout`. What cannot be read is no deadline, as in other servers.
    pub(super) fn of(headers: &HeaderMap, now: Nanos) -> Self {
        let timeout = headers.get("grpc-timeout").and_then(|v| v.to_str().ok()).and_then(timeout);
        Self(timeout.map(|timeout| now.saturating_add(Nanos::try_from(timeout.as_nanos()).unwrap_or(Nanos::MAX))))
    }

    /// The execution ends by then, whether anybody still hears of it or not.
    pub(super) fn bound(self, limits: &mut Limits) {
        limits.deadline = self.0.map_or(limits.deadline, |at| at.min(limits.deadline));
    }

    /// How long to wait for an execution that ends at `end` by itself, and whether that is as long as the client waits.
    pub(super) fn wait(self, end: Option<Nanos>) -> (Duration, bool) {
        let execution = end.map_or(Duration::MAX, |end| clock::until(end) + GRACE);
        match self.0.map(|at| clock::until(at).saturating_sub(AHEAD)) {
            Some(client) if client < execution => (client, true),
            _ => (execution, false),
        }
    }
}

/// At most eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3_600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_in_all_its_units() {
        assert_eq!(timeout("2S"), Some(Duration::from_secs(2)));
        assert_eq!(timeout("1500m"), Some(Duration::from_millis(1_500)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        for wrong in ["", "S", "2", "2s", "-1S", "123456789S", "é"] {
            assert_eq!(timeout(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_client_that_waits_less_bounds_the_execution() {
        let headers = HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), "1m".parse().unwrap())]);
        let mut limits = Limits { deadline: 5_000_000_000, ..Limits::default() };
        Deadline::of(&headers, 7).bound(&mut limits);
        assert_eq!(limits.deadline, 1_000_007);
        Deadline::of(&HeaderMap::new(), 7).bound(&mut limits);
        assert_eq!(limits.deadline, 1_000_007);
    }
}
