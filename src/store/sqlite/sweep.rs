//! Forgetting what has been kept long enough.
//!
//! Invariant: a job goes together with its key, and one sweep is a bounded piece of work.

use rusqlite::{Connection, params};

use crate::store::{BUFFERED_UPDATE_TTL, Retention};
use crate::time::Time;

/// The most jobs, news and accounts that one sweep forgets of each, so that writers wait for
/// milliseconds only.
const SWEEP_BATCH: usize = 250;

pub(super) fn sweep(db: &Connection, now: Time, retention: Retention) -> rusqlite::Result<usize> {
    let done = "SELECT id FROM jobs WHERE finished_at < ? ORDER BY finished_at LIMIT ?";
    let mut ids = outdated(db, done, now - retention.terminal, SWEEP_BATCH)?;
    let active = "SELECT id FROM jobs WHERE finished_at IS NULL AND updated_at < ?
                  ORDER BY updated_at LIMIT ?";
    ids.extend(outdated(
        db,
        active,
        now - retention.active,
        SWEEP_BATCH - ids.len(),
    )?);
    let mut forget_job = db.prepare_cached("DELETE FROM jobs WHERE id = ?")?;
    let mut forget_key = db.prepare_cached("DELETE FROM idempotency WHERE job_id = ?")?;
    for id in &ids {
        forget_job.execute([id])?;
        forget_key.execute([id])?;
    }
    let news = db
        .prepare_cached(
            "DELETE FROM parked WHERE seq IN
             (SELECT seq FROM parked WHERE parked_at < ? ORDER BY parked_at LIMIT ?)",
        )?
        .execute(params![
            (now - BUFFERED_UPDATE_TTL).millis(),
            as_sql_limit(SWEEP_BATCH)
        ])?;
    let accounts = db
        .prepare_cached(
            "DELETE FROM accounts WHERE name IN
             (SELECT name FROM accounts WHERE ends_at <= ? ORDER BY ends_at LIMIT ?)",
        )?
        .execute(params![now.millis(), as_sql_limit(SWEEP_BATCH)])?;
    Ok(ids.len() + news + accounts)
}

fn outdated(
    db: &Connection,
    sql: &str,
    before: Time,
    limit: usize,
) -> rusqlite::Result<Vec<String>> {
    db.prepare_cached(sql)?
        .query_map([before.millis(), as_sql_limit(limit)], |row| row.get(0))?
        .collect()
}

fn as_sql_limit(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
