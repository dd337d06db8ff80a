//! A rate limiter: the generic cell rate algorithm, with one atomic integer per client.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Time for which a limit per second accumulates unused units.
const BURST: Duration = Duration::from_secs(4);

const MINUTE: Duration = Duration::from_secs(60);

/// Reference instant of all rates. It precedes every use of a limit.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A number of units per time. Unused units accumulate up to a burst.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    nanoseconds_per_unit: u64,
    /// Time for which unused units accumulate.
    burst: Duration,
}

impl RateLimit {
    /// Creates a limit of `units` per second, at least one, with bursts of four seconds.
    pub fn per_second(units: usize) -> Self {
        Self::new(units, Duration::from_secs(1), |_| BURST)
    }

    /// Creates a limit of `units` per minute, at least one. [`Rate::try_charge`] permits `units` at
    /// once, one unit at a time.
    pub fn per_minute(units: usize) -> Self {
        Self::new(units, MINUTE, |unit| MINUTE.saturating_sub(unit))
    }

    /// Creates a limit. `burst` computes the burst from the duration of one unit.
    fn new(units: usize, period: Duration, burst: impl FnOnce(Duration) -> Duration) -> Self {
        LazyLock::force(&EPOCH);
        let units = u128::try_from(units).unwrap_or(u128::MAX).max(1);
        let nanoseconds = period.as_nanos() / units;
        let nanoseconds_per_unit = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
        Self {
            nanoseconds_per_unit,
            burst: burst(Duration::from_nanos(nanoseconds_per_unit)),
        }
    }

    fn cost(self, units: usize) -> u64 {
        let units = u64::try_from(units).unwrap_or(u64::MAX);
        self.nanoseconds_per_unit.saturating_mul(units)
    }

    /// Returns the time until `paid_at` is ahead of the clock by at most a burst.
    fn excess(self, paid_at: u64, now: u64) -> Duration {
        Duration::from_nanos(paid_at.saturating_sub(now)).saturating_sub(self.burst)
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
        let (now, cost) = (nanoseconds(now), limit.cost(units));
        let pay = |paid_at: u64| Some(paid_at.max(now).saturating_add(cost));
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let before = self.paid_at.fetch_update(set, fetch, pay);
        let paid_at = before.unwrap_or_else(|paid_at| paid_at).max(now);
        limit.excess(paid_at.saturating_add(cost), now)
    }

    /// Uses `units` if earlier uses are within the limit.
    ///
    /// # Errors
    /// Returns the time until earlier uses are within the limit. No units are used.
    pub fn try_charge(&self, limit: RateLimit, units: usize, now: Instant) -> Result<(), Duration> {
        let (now, cost) = (nanoseconds(now), limit.cost(units));
        let pay = |paid_at: u64| {
            let is_within = limit.excess(paid_at, now).is_zero();
            is_within.then(|| paid_at.max(now).saturating_add(cost))
        };
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let paid = self.paid_at.fetch_update(set, fetch, pay);
        paid.map(drop).map_err(|paid_at| limit.excess(paid_at, now))
    }

    /// Returns whether earlier uses no longer affect the limit, so that the rate equals a new one.
    pub fn is_idle(&self, now: Instant) -> bool {
        self.paid_at.load(Ordering::Relaxed) <= nanoseconds(now)
    }
}

fn nanoseconds(now: Instant) -> u64 {
    let elapsed = now.saturating_duration_since(*EPOCH).as_nanos();
    u64::try_from(elapsed).unwrap_or(u64::MAX)
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

    #[test]
    fn units_of_one_minute_are_available_and_refill_evenly() {
        let start = Instant::now();
        let (rate, limit) = (Rate::default(), RateLimit::per_minute(6));
        let count = |millis| {
            let now = start + Duration::from_millis(millis);
            let charge = |_: &usize| rate.try_charge(limit, 1, now).is_ok();
            (0..100).filter(charge).count()
        };
        assert_eq!(count(0), 6);
        assert_eq!(count(9_999), 0);
        assert_eq!(count(10_000), 1);
        assert_eq!(count(40_000), 3);
        assert_eq!(count(10_000_000), 6);
        assert_eq!(count(0), 0, "an earlier instant");
    }

    #[test]
    fn concurrent_charges_do_not_exceed_the_limit() {
        let (rate, now) = (Rate::default(), Instant::now());
        let limit = RateLimit::per_minute(1000);
        let charge = || (0..1000).filter(|_| rate.try_charge(limit, 1, now).is_ok());
        let charged: usize = std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(|| charge().count()));
            threads.map(|thread| thread.join().unwrap()).iter().sum()
        });
        assert_eq!(charged, 1000);
    }
}
