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
    /// Amount to add, in the unit of the window: millionths of the budget unit, jobs or bytes. A
    /// negative amount is a refund.
    pub amount: i64,
    /// Highest balance that [`create`](super::JobStore::create) allows, or `None` for no limit.
    /// [`commit`](super::JobStore::commit) ignores it.
    pub limit: Option<i64>,
    /// Earlier windows whose balances count toward the limit. They can still be refunded, but
    /// are no longer charged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_windows: Vec<String>,
    /// End of the window. After it the balance is zero and further amounts are discarded.
    pub window_ends_at: Time,
}

/// Budget windows. [`JobStore`](super::JobStore) charges most of them together with a job.
#[async_trait]
pub trait BudgetStore: Send + Sync + 'static {
    /// Returns the balances of `windows` at `now`, each in the unit of its window and in the order
    /// given.
    ///
    /// Each balance is read on its own, so the result is not a consistent snapshot.
    async fn balances(&self, windows: &[String], now: Time) -> Result<Vec<i64>, Error>;

    /// Adds an entry to its window, at most once for each `key`. Returns false, and adds nothing, if
    /// the balance would exceed [`BudgetEntry::limit`].
    ///
    /// An entry that was added before is not checked again. On success the change is durable.
    /// [`BudgetEntry::earlier_windows`] must be empty.
    async fn charge_once(&self, key: &str, entry: BudgetEntry, now: Time) -> Result<bool, Error>;
}
