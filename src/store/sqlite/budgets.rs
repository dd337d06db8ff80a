//! Accounts: sums that a new job may not push past a limit.
//!
//! Invariant: what a job books is booked in the transaction that keeps the job, after all its
//! limits were found to hold, so that of two jobs that race for the last unit one gets it.

use rusqlite::{Connection, OptionalExtension, params};

use crate::store::BudgetEntry;
use crate::time::Time;

/// The account of the first entry whose limit does not hold.
pub(super) fn over_limit<'a>(
    db: &Connection,
    entries: &'a [BudgetEntry],
    now: Time,
) -> rusqlite::Result<Option<&'a str>> {
    for (at, entry) in entries.iter().enumerate() {
        let Some(limit) = entry.limit_micros else {
            continue;
        };
        let booked = entries[..=at]
            .iter()
            .filter(|other| other.window == entry.window)
            .fold(balance(db, &entry.window, now)?, |sum, other| {
                sum.saturating_add(other.amount_micros)
            });
        if booked > limit {
            return Ok(Some(&entry.window));
        }
    }
    Ok(None)
}

/// Books without limits; what belongs to an account that has ended is nobody's any more.
pub(super) fn book(db: &Connection, entries: &[BudgetEntry], now: Time) -> rusqlite::Result<()> {
    for entry in entries.iter().filter(|entry| entry.window_ends_at > now) {
        let balance = balance(db, &entry.window, now)?.saturating_add(entry.amount_micros);
        db.prepare_cached("INSERT OR REPLACE INTO accounts VALUES (?, ?, ?)")?
            .execute(params![
                entry.window,
                balance,
                entry.window_ends_at.millis()
            ])?;
    }
    Ok(())
}

pub(super) fn balance(db: &Connection, account: &str, now: Time) -> rusqlite::Result<i64> {
    let balance = db
        .prepare_cached("SELECT balance FROM accounts WHERE name = ? AND ends_at > ?")?
        .query_row(params![account, now.millis()], |row| row.get(0))
        .optional()?;
    Ok(balance.unwrap_or(0))
}
