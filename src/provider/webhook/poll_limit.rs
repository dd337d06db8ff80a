//! Rate limit of the polls that unverified webhooks trigger.
//!
//! Such a webhook can be forged, and every poll is a request on the provider account.

use std::sync::{Mutex, PoisonError};

use crate::time::Time;

const MILLIS_PER_MINUTE: u64 = 60_000;

/// A token bucket with the capacity of one minute. It is full at first.
pub(crate) struct PollLimit {
    per_minute: u64,
    state: Mutex<Bucket>,
}

struct Bucket {
    /// Available polls, in units of 1/60,000 poll.
    available: u64,
    updated_at: Time,
}

impl PollLimit {
    /// Creates a limit of `per_minute` polls. With zero, no poll is allowed.
    pub(crate) fn new(per_minute: usize, now: Time) -> Self {
        let per_minute = u64::try_from(per_minute).unwrap_or(u64::MAX / MILLIS_PER_MINUTE);
        Self {
            per_minute,
            state: Mutex::new(Bucket {
                available: per_minute.saturating_mul(MILLIS_PER_MINUTE),
                updated_at: now,
            }),
        }
    }

    /// Takes one poll. Returns `false` if none is available.
    pub(crate) fn try_acquire(&self, now: Time) -> bool {
        let mut bucket = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = now.saturating_duration_since(bucket.updated_at).as_millis();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        let capacity = self.per_minute.saturating_mul(MILLIS_PER_MINUTE);
        let refill = elapsed.saturating_mul(self.per_minute);
        bucket.available = bucket.available.saturating_add(refill).min(capacity);
        bucket.updated_at = bucket.updated_at.max(now);
        match bucket.available.checked_sub(MILLIS_PER_MINUTE) {
            Some(rest) => {
                bucket.available = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_of_one_minute_are_available_and_refill_evenly() {
        let at = |millis| Time::from_millis(millis);
        let limit = PollLimit::new(6, at(0));
        let count = |millis| (0..100).filter(|_| limit.try_acquire(at(millis))).count();
        assert_eq!(count(0), 6);
        assert_eq!(count(9_999), 0);
        assert_eq!(count(10_000), 1);
        assert_eq!(count(40_000), 3);
        assert_eq!(count(10_000_000), 6);
        assert_eq!(count(0), 0, "the clock was set back");
        assert!(!PollLimit::new(0, at(0)).try_acquire(at(600_000)));
    }
}
