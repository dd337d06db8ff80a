//! Balances of budget windows.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::Error;
use crate::time::Time;

/// An amount to add to a budget window. A window needs no setup: its balance starts at zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetEntry {
    /// Name of the window.
    pub window: String,
    /// Amount to add, in millionths of the budget unit. A negative amount is a refund.
    pub amount_micros: i64,
    /// Highest balance that [`create`](super::JobStore::create) allows, or `None` for no limit.
    /// [`commit`](super::JobStore::commit) ignores it.
    pub limit_micros: Option<i64>,
    /// End of the window. After it the balance is zero and further amounts are discarded.
    pub window_ends_at: Time,
}

/// Read access to budget windows. [`JobStore`](super::JobStore) charges them together with a job.
#[async_trait]
pub trait BudgetStore: Send + Sync + 'static {
    /// Returns the balances of `windows` at `now`, in millionths and in the order given.
    ///
    /// Each balance is read on its own, so the result is not a consistent snapshot.
    async fn balances(&self, windows: &[String], now: Time) -> Result<Vec<i64>, Error>;
}
