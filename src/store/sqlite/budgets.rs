//! Budget windows.
//!
//! Limits are checked and charges applied in the transaction that stores the job. Transactions run
//! one after another, so concurrent jobs cannot exceed a limit together.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, params};

use super::SqliteStore;
use crate::store::{BudgetEntry, BudgetStore, Error};
use crate::time::Time;

#[async_trait]
impl BudgetStore for SqliteStore {
    async fn balances(&self, windows: &[String], now: Time) -> Result<Vec<i64>, Error> {
        let windows = windows.to_vec();
        self.read(move |db| {
            let balances = windows.iter().map(|name| balance(db, name, now));
            Ok(balances.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    async fn charge_once(&self, key: &str, entry: BudgetEntry, now: Time) -> Result<bool, Error> {
        // A window of its own records the charge, until the charged window ends.
        let record = BudgetEntry {
            window: format!("{}#{key}", entry.window),
            amount: 1,
            ..entry.clone()
        };
        self.write(move |db, _| {
            if balance(db, &record.window, now)? > 0 {
                return Ok(true);
            }
            let entries = [entry, record];
            if exceeded_window(db, &entries[..1], now)?.is_some() {
                return Ok(false);
            }
            charge(db, &entries, now)?;
            Ok(true)
        })
        .await
    }
}

/// Returns the window of the first entry that would exceed its limit.
pub(super) fn exceeded_window<'a>(
    db: &Connection,
    entries: &'a [BudgetEntry],
    now: Time,
) -> rusqlite::Result<Option<&'a str>> {
    for (index, entry) in entries.iter().enumerate() {
        let Some(limit) = entry.limit else {
            continue;
        };
        let mut charged = balance(db, &entry.window, now)?;
        for window in &entry.earlier_windows {
            charged = charged.saturating_add(balance(db, window, now)?);
        }
        let same_window = entries[..=index]
            .iter()
            .filter(|other| other.window == entry.window);
        let charged = same_window.fold(charged, |sum, other| sum.saturating_add(other.amount));
        if charged > limit {
            return Ok(Some(&entry.window));
        }
    }
    Ok(None)
}

/// Adds the amounts regardless of limits. Entries of windows that have ended are discarded.
pub(super) fn charge(db: &Connection, entries: &[BudgetEntry], now: Time) -> rusqlite::Result<()> {
    for entry in entries.iter().filter(|entry| entry.window_ends_at > now) {
        let balance = balance(db, &entry.window, now)?.saturating_add(entry.amount);
        db.prepare_cached("INSERT OR REPLACE INTO budget_windows VALUES (?, ?, ?)")?
            .execute((&entry.window, balance, entry.window_ends_at.millis()))?;
    }
    Ok(())
}

fn balance(db: &Connection, window: &str, now: Time) -> rusqlite::Result<i64> {
    let balance = db
        .prepare_cached("SELECT balance FROM budget_windows WHERE name = ? AND ends_at > ?")?
        .query_row(params![window, now.millis()], |row| row.get(0))
        .optional()?;
    Ok(balance.unwrap_or(0))
}
