//! The one place that reads time and makes ids. Everything else takes them as arguments.

use std::time::{Duration, Instant, SystemTime};

use schemas::ExecutionId;
use schemas::wire::Nanos;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Nanoseconds since the Unix epoch, UTC.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the sanctioned place")]
pub fn now() -> Nanos {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Nanos::try_from(since.as_nanos()).unwrap_or(Nanos::MAX)
}

/// A point on the monotonic clock, for measuring.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the sanctioned place")]
pub fn instant() -> Instant {
    Instant::now()
}

/// How long until `at`; zero when it has passed.
#[must_use]
pub fn until(at: Nanos) -> Duration {
    Duration::from_nanos(u64::try_from(at.saturating_sub(now())).unwrap_or(0))
}

/// A moment in RFC 3339, for example `2026-01-31T12:00:00Z`; none when the text is anything else.
#[must_use]
pub fn parse(rfc3339: &str) -> Option<Nanos> {
    let at = OffsetDateTime::parse(rfc3339, &Rfc3339).ok()?;
    Nanos::try_from(at.unix_timestamp_nanos()).ok()
}

/// A moment as people write it: in RFC 3339, or so long before `now` (`90s`, `15m`, `2h`, `7d`); none when the text is
/// anything else.
#[must_use]
pub fn moment(text: &str, now: Nanos) -> Option<Nanos> {
    let before = || {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return None,
        };
        let number: i64 = number.parse().ok().filter(|n| *n >= 0)?;
        now.checked_sub(number.checked_mul(seconds)?.checked_mul(1_000_000_000)?)
    };
    parse(text).or_else(before)
}

/// A new execution id: a UUIDv7, so that ids sort by time.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the sanctioned place")]
pub fn execution_id() -> ExecutionId {
    ExecutionId::new(uuid::Uuid::now_v7())
}

/// A short random token for names of processes, for example `7f3a09c2`.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the sanctioned place")]
pub fn process_token() -> String {
    uuid::Uuid::new_v4().simple().to_string()[..8].to_owned()
}

/// 128 random bits as hex.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the sanctioned place")]
pub fn random_hex() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_a_duration_before_now() {
        let now = 1_000_000_000_000_000;
        let before = |text: &str| moment(text, now).map(|at| (now - at) / 1_000_000_000);
        assert_eq!(before("90s"), Some(90));
        assert_eq!(before("2h"), Some(7_200));
        assert_eq!(moment("1970-01-01T00:00:01Z", now), Some(1_000_000_000));
        for wrong in ["", "h", "-1h", "yesterday", "1w", "99999999999999d", "1é"] {
            assert_eq!(moment(wrong, now), None, "{wrong}");
        }
    }
}
