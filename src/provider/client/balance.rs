//! What is left on a provider's account, where its API tells.
//!
//! Invariant: a hint, never a judge. It is read now and then while the provider is used and once when
//! the credit is gone; all that follows from it is that a submission is tried sooner.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::provider::client::http::Method;
use crate::provider::spec::expression::{Expression, Template, text};
use crate::provider::spec::request_spec::RequestSpec;
use crate::provider::{Provider, RequestError};
use crate::time::Time;

/// The least time between two readings.
const MIN_READ_INTERVAL: Duration = Duration::from_secs(300);

/// How long after its use began it is read, so that what was bought is booked.
const READ_DELAY: Duration = Duration::from_secs(5);

/// How a spec has the balance read.
#[derive(Deserialize)]
#[serde(from = "Keys")]
pub(in crate::provider) struct BalanceSpec {
    call: RequestSpec,
    amount: Expression,
    unit: Option<Template>,
}

/// The keys of the table; read as they stand, so that a mistake names its line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    method: Option<Method>,
    url: Template,
    #[serde(default)]
    headers: BTreeMap<String, Template>,
    body: Option<Expression>,
    /// Over `payload`.
    amount: Expression,
    /// Of what: a currency, or `credits` …; a template over `payload`.
    unit: Option<Template>,
}

impl From<Keys> for BalanceSpec {
    fn from(keys: Keys) -> Self {
        Self {
            call: RequestSpec::new(keys.method, keys.url, keys.headers, keys.body),
            amount: keys.amount,
            unit: keys.unit,
        }
    }
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Balance {
    /// How much is left.
    pub amount: f64,
    /// Of what, where the spec says.
    pub unit: Option<String>,
    /// When it was read.
    pub at: Time,
}

/// The last reading.
#[derive(Debug, Default)]
pub(in crate::provider) struct BalanceCache(Mutex<BalanceState>);

#[derive(Debug, Default)]
struct BalanceState {
    balance: Option<Balance>,
    /// When it was last asked for, in vain or not.
    last_attempt_at: Option<Time>,
    /// When the provider was first used since.
    used_at: Option<Time>,
}

impl BalanceState {
    /// Whether to read it now, the credit having been gone since `dry`.
    fn is_due(&self, dry: Option<Time>, now: Time) -> bool {
        let is_old = self
            .last_attempt_at
            .is_none_or(|at| now.saturating_duration_since(at) >= MIN_READ_INTERVAL);
        let has_settled = self
            .used_at
            .is_some_and(|at| now.saturating_duration_since(at) >= READ_DELAY);
        let is_new = |dry: Time| self.last_attempt_at.is_none_or(|asked_at| asked_at < dry);
        is_old && (has_settled || dry.is_some()) || dry.is_some_and(is_new)
    }
}

impl BalanceCache {
    /// The provider is used.
    pub(in crate::provider) fn mark_used(&self, now: Time) {
        self.known().used_at.get_or_insert(now);
    }

    fn known(&self) -> MutexGuard<'_, BalanceState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Provider {
    /// What was left on its account when that was last read.
    #[must_use]
    pub fn balance(&self) -> Option<Balance> {
        self.balance_cache.known().balance.clone()
    }

    /// Whether it is time to read the balance: whoever is told so does it, and is the only one.
    #[must_use]
    pub fn is_balance_due(&self, now: Time) -> bool {
        let dry = self.gate.out_of_credit_since();
        let mut known = self.balance_cache.known();
        let is_due = self.spec.balance.is_some() && known.is_due(dry, now);
        if is_due {
            known.last_attempt_at = Some(now);
            known.used_at = None;
        }
        is_due
    }

    /// Reads it. Where there is credit again after there was none, a job is tried at once.
    ///
    /// # Errors
    /// [`AskError`]; then what was known stays.
    pub async fn read_balance(&self) -> Result<(), RequestError> {
        let Some(reading) = &self.spec.balance else {
            return Ok(());
        };
        let context = self.base_context();
        let payload = self.send_uncounted(&reading.call, &context).await?;
        let amount = text(&reading.amount.evaluate(&payload));
        let amount: Option<f64> = amount.and_then(|amount| amount.parse().ok());
        let Some(amount) = amount.filter(|amount| amount.is_finite()) else {
            return Err(RequestError::InvalidSpec(
                "balance.amount: is no number".to_owned(),
            ));
        };
        let names = minijinja::context! { payload };
        let unit = reading.unit.as_ref();
        let unit = unit.and_then(|unit| unit.render(&names).ok());
        let unit = unit.map(|unit| unit.to_lowercase());
        let at = Time::now();
        self.balance_cache.known().balance = Some(Balance { amount, unit, at });
        if amount > 0.0 {
            self.gate.probe_after_top_up(at);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balance_is_read_periodically_and_when_credit_runs_out() {
        let at = |seconds: i64| Time::from_millis(seconds * 1000);
        let mut known = BalanceState::default();
        assert!(!known.is_due(None, at(0)), "nobody uses it");
        known.used_at = Some(at(0));
        assert!(!known.is_due(None, at(4)));
        assert!(known.is_due(None, at(5)));
        known.last_attempt_at = Some(at(0));
        assert!(!known.is_due(None, at(299)));
        assert!(known.is_due(None, at(300)));
        known.used_at = None;
        assert!(!known.is_due(None, at(300)));
        assert!(known.is_due(Some(at(10)), at(10)));
        known.last_attempt_at = Some(at(11));
        assert!(!known.is_due(Some(at(10)), at(100)));
        assert!(known.is_due(Some(at(10)), at(311)));
    }

    #[test]
    fn invalid_balance_spec_is_reported() {
        let read = |text: &str| toml::from_str::<BalanceSpec>(text).map(|_| ());
        read("url = 'https://a/b'\namount = 'payload.left'\nunit = '{{ payload.of }}'").unwrap();
        for (text, problem) in [
            ("url = 'https://a/b'", "missing field `amount`"),
            ("amount = 'payload'", "missing field `url`"),
            ("url = 'https://a/b'\namount = 'payload.'", "syntax error"),
            ("url = 'https://a/b'\namount = 'payload'\ntypo = 1", "typo"),
        ] {
            let told = read(text).unwrap_err().to_string();
            assert!(told.contains(problem), "{text}: {told}");
        }
    }
}
