//! Balance of a provider account.
//!
//! The balance is informational. It is read from time to time while the provider is in use, and
//! once when the credit runs out. A positive balance only makes the next submission happen sooner.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::time::Time;

/// Minimum time between two reads.
const MIN_READ_INTERVAL: Duration = Duration::from_secs(300);

/// Time between the first use of the provider and the read, so that the provider has charged for
/// it.
const READ_DELAY: Duration = Duration::from_secs(5);

/// Balance of a provider account.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Balance {
    /// Remaining credit.
    pub amount: f64,
    /// Currency or other unit of the amount, if the spec has one.
    pub unit: Option<String>,
    /// Time at which the balance was read.
    pub at: Time,
}

/// The last balance, and when to read it again.
#[derive(Debug, Default)]
pub(crate) struct BalanceCache(Mutex<BalanceState>);

#[derive(Debug, Default)]
struct BalanceState {
    balance: Option<Balance>,
    last_attempt_at: Option<Time>,
    /// First use of the provider since the last attempt.
    used_at: Option<Time>,
}

impl BalanceState {
    fn is_due(&self, out_of_credit_since: Option<Time>, now: Time) -> bool {
        let elapsed = |at| now.saturating_duration_since(at);
        let is_old = self
            .last_attempt_at
            .is_none_or(|at| elapsed(at) >= MIN_READ_INTERVAL);
        let is_used = self.used_at.is_some_and(|at| elapsed(at) >= READ_DELAY);
        match out_of_credit_since {
            Some(since) => is_old || self.last_attempt_at.is_none_or(|at| at < since),
            None => is_old && is_used,
        }
    }
}

impl BalanceCache {
    /// Records that the provider is in use.
    pub(super) fn mark_used(&self, now: Time) {
        self.lock().used_at.get_or_insert(now);
    }

    /// Returns the last balance.
    pub(crate) fn last(&self) -> Option<Balance> {
        self.lock().balance.clone()
    }

    /// Stores a balance.
    pub(super) fn set(&self, balance: Balance) {
        self.lock().balance = Some(balance);
    }

    /// Returns whether the balance is due to be read, and records the attempt. The caller must read
    /// it.
    pub(super) fn claim_read(&self, out_of_credit_since: Option<Time>, now: Time) -> bool {
        let mut state = self.lock();
        let is_due = state.is_due(out_of_credit_since, now);
        if is_due {
            state.last_attempt_at = Some(now);
            state.used_at = None;
        }
        is_due
    }

    fn lock(&self) -> MutexGuard<'_, BalanceState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balance_is_read_periodically_and_when_credit_runs_out() {
        let at = |seconds: i64| Time::from_millis(seconds * 1000);
        let mut state = BalanceState::default();
        assert!(!state.is_due(None, at(0)), "the provider is not in use");
        state.used_at = Some(at(0));
        assert!(!state.is_due(None, at(4)));
        assert!(state.is_due(None, at(5)));
        state.last_attempt_at = Some(at(0));
        assert!(!state.is_due(None, at(299)));
        assert!(state.is_due(None, at(300)));
        state.used_at = None;
        assert!(!state.is_due(None, at(300)));
        assert!(state.is_due(Some(at(10)), at(10)));
        state.last_attempt_at = Some(at(11));
        assert!(!state.is_due(Some(at(10)), at(100)));
        assert!(state.is_due(Some(at(10)), at(311)));
    }
}
