//! A rate limit: the generic cell rate algorithm, in one atomic word.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Duration of a burst. The units of this duration may be used at once.
const BURST: Duration = Duration::from_secs(4);

/// Reference instant of all rates. It precedes every use of a limit.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A number of units per second, with bursts of four seconds.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    nanoseconds_per_unit: u64,
}

impl RateLimit {
    /// Creates a limit of `units` per second.
    pub fn per_second(units: usize) -> Self {
        let units = u64::try_from(units).unwrap_or(u64::MAX).max(1);
        LazyLock::force(&EPOCH);
        Self {
            nanoseconds_per_unit: 1_000_000_000 / units,
        }
    }
}

/// The units that one client has used.
#[derive(Debug, Default)]
pub struct Rate {
    /// Theoretical arrival time of the algorithm, in nanoseconds since [`EPOCH`].
    paid_at: AtomicU64,
}

impl Rate {
    /// Uses `units`, even if they exceed the limit. Returns the time until they are within the
    /// limit, which is zero within a burst.
    pub fn charge(&self, limit: RateLimit, units: usize, now: Instant) -> Duration {
        let now = nanoseconds(now);
        let units = u64::try_from(units).unwrap_or(u64::MAX);
        let cost = limit.nanoseconds_per_unit.saturating_mul(units);
        let pay = |paid_at: u64| Some(paid_at.max(now).saturating_add(cost));
        let before = self
            .paid_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay);
        let paid_at = before.unwrap_or_else(|paid_at| paid_at).max(now);
        excess(paid_at.saturating_add(cost), now)
    }

    /// Uses `units` if earlier uses are within the limit.
    ///
    /// # Errors
    /// Returns the time until earlier uses are within the limit. No units are used.
    pub fn try_charge(&self, limit: RateLimit, units: usize, now: Instant) -> Result<(), Duration> {
        let wait = excess(self.paid_at.load(Ordering::Relaxed), nanoseconds(now));
        if wait.is_zero() {
            self.charge(limit, units, now);
            Ok(())
        } else {
            Err(wait)
        }
    }

    /// Returns whether no earlier use counts any more, so that the rate equals a new one.
    pub fn is_idle(&self, now: Instant) -> bool {
        self.paid_at.load(Ordering::Relaxed) <= nanoseconds(now)
    }
}

fn nanoseconds(now: Instant) -> u64 {
    let elapsed = now.saturating_duration_since(*EPOCH).as_nanos();
    u64::try_from(elapsed).unwrap_or(u64::MAX)
}

/// Returns the time until `paid_at` is within a burst.
fn excess(paid_at: u64, now: u64) -> Duration {
    Duration::from_nanos(paid_at.saturating_sub(now)).saturating_sub(BURST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 10;

    #[test]
    fn burst_passes_and_excess_waits() {
        let (rate, limit) = (Rate::default(), RateLimit::per_second(LIMIT));
        let now = Instant::now();
        for _ in 0..40 {
            assert_eq!(rate.charge(limit, 1, now), Duration::ZERO);
        }
        let wait = Duration::from_millis(100);
        assert_eq!(rate.charge(limit, 1, now), wait);
        assert_eq!(rate.try_charge(limit, 1, now), Err(wait));
        assert_eq!(rate.try_charge(limit, 1, now + wait), Ok(()));
        assert!(!rate.is_idle(now + Duration::from_secs(4)));
        assert!(rate.is_idle(now + Duration::from_secs(5)));
    }

    #[test]
    fn unused_time_gives_one_burst_at_most() {
        let (rate, limit) = (Rate::default(), RateLimit::per_second(LIMIT));
        let later = Instant::now() + Duration::from_secs(3600);
        assert_eq!(rate.charge(limit, 40, later), Duration::ZERO);
        assert_eq!(rate.charge(limit, 10, later), Duration::from_secs(1));
    }
}
