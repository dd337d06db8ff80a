//! Timestamps, backoff and jitter.
//!
//! Invariant: a [`Time`] has millisecond precision, so a value read back from a store or a document
//! equals the value that was written.

use std::fmt;
use std::ops::{Add, Range, Sub};
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use rand::RngExt;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point in time, in milliseconds since the Unix epoch.
///
/// Formats as RFC 3339 in UTC with three decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(i64);

impl Time {
    /// Returns the current time of the system clock.
    #[must_use]
    pub fn now() -> Self {
        Self(Timestamp::now().as_millisecond())
    }

    /// Creates a time from milliseconds since the Unix epoch, clamped to the range of RFC 3339.
    #[must_use]
    pub fn from_millis(millis: i64) -> Self {
        let (min, max) = (
            Timestamp::MIN.as_millisecond(),
            Timestamp::MAX.as_millisecond(),
        );
        Self(millis.clamp(min, max))
    }

    /// Returns the milliseconds since the Unix epoch.
    #[must_use]
    pub fn millis(self) -> i64 {
        self.0
    }

    /// Converts to a [`jiff::Timestamp`].
    #[must_use]
    pub fn timestamp(self) -> Timestamp {
        Timestamp::from_millisecond(self.0).unwrap_or(Timestamp::MAX)
    }

    /// Returns the time elapsed since `earlier`, or zero if `earlier` is later.
    #[must_use]
    pub fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl From<Timestamp> for Time {
    fn from(timestamp: Timestamp) -> Self {
        Self(timestamp.as_millisecond())
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        let span = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis(self.0.saturating_add(span))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;
    fn sub(self, span: Duration) -> Self {
        let span = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis(self.0.saturating_sub(span))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.timestamp())
    }
}

impl FromStr for Time {
    type Err = jiff::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<Timestamp>().map(Self::from)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(|_| {
            de::Error::custom("must be an RFC 3339 timestamp such as 2026-01-31T12:00:00Z")
        })
    }
}

/// Returns `initial` doubled for each attempt after the first, at most `max`.
#[must_use]
pub fn exponential_backoff(initial: Duration, max: Duration, attempt: u32) -> Duration {
    let factor = 2u32.saturating_pow(attempt.saturating_sub(1));
    initial.saturating_mul(factor).min(max)
}

/// Returns `span` multiplied by a random factor from `factors`.
#[must_use]
pub fn random_jitter(span: Duration, factors: Range<f64>) -> Duration {
    span.mul_f64(rand::rng().random_range(factors))
}

/// Returns `span` lengthened by up to 10%, always by the same factor for one `key`. Spreads timers that
/// would otherwise expire together.
#[must_use]
pub fn deterministic_jitter(span: Duration, key: &str) -> Duration {
    span + span / 10 * (stable_hash(key) % 1024) / 1024
}

/// Returns the 32-bit FNV-1a hash of `text`. It is the same in every process and on every node.
#[must_use]
pub fn stable_hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_round_trips_as_rfc3339_with_milliseconds() {
        let time = Time::from_millis(1_795_428_000_120);
        assert_eq!(time.to_string(), "2026-11-23T10:00:00.120Z");
        assert_eq!(time.to_string().parse::<Time>().unwrap(), time);
    }

    #[test]
    fn out_of_range_times_are_clamped() {
        let edge = Time::from_millis(i64::MAX);
        assert_eq!(edge + Duration::from_secs(1), edge);
        assert!(edge.to_string().starts_with("9999-"));
    }
}
