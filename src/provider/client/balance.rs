//! Balance of a provider account, and the schedule of account checks.
//!
//! The balance is read periodically while the provider is in use. Reading it is also the account
//! check that shows whether an auth or quota error concerns the account.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::time::Time;

/// Minimum time between two reads.
const MIN_READ_INTERVAL: Duration = Duration::from_secs(300);

/// Minimum time between two checks that the circuit breaker requests.
const MIN_CHECK_INTERVAL: Duration = Duration::from_secs(10);

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
    fn is_due(&self, is_wanted: bool, now: Time) -> bool {
        let has_passed = |since: Option<Time>, interval| {
            since.is_none_or(|at| now.saturating_duration_since(at) >= interval)
        };
        let is_used = self.used_at.is_some() && has_passed(self.used_at, READ_DELAY);
        if is_wanted {
            has_passed(self.last_attempt_at, MIN_CHECK_INTERVAL)
        } else {
            is_used && has_passed(self.last_attempt_at, MIN_READ_INTERVAL)
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

    /// Returns whether the account is due to be checked, and records the attempt. The caller must
    /// check it.
    pub(super) fn claim_read(&self, is_wanted: bool, now: Time) -> bool {
        let mut state = self.lock();
        let is_due = state.is_due(is_wanted, now);
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
    fn account_is_checked_periodically_and_when_it_is_suspect() {
        let at = |seconds: i64| Time::from_millis(seconds * 1000);
        let mut state = BalanceState::default();
        assert!(!state.is_due(false, at(0)), "the provider is not in use");
        state.used_at = Some(at(0));
        assert!(!state.is_due(false, at(4)));
        assert!(state.is_due(false, at(5)));
        state.last_attempt_at = Some(at(0));
        assert!(!state.is_due(false, at(299)));
        assert!(state.is_due(false, at(300)));
        state.used_at = None;
        assert!(!state.is_due(false, at(300)));
        assert!(!state.is_due(true, at(9)));
        assert!(state.is_due(true, at(10)));
        state.last_attempt_at = None;
        assert!(state.is_due(true, at(0)));
    }
}
