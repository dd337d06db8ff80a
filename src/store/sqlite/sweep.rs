//! Deletion of expired data.

use rusqlite::Connection;

use super::command::Changes;
use super::{outbox, sql_limit};
use crate::store::{BUFFERED_UPDATE_TTL, Error, Retention, WAITING_RETENTION};
use crate::time::Time;

/// Maximum number of jobs, waiting deliveries, buffered updates and budget windows, each, that one
/// sweep deletes. It bounds how long a sweep delays other writes.
const SWEEP_BATCH: usize = 100;

pub(super) fn sweep(
    db: &Connection,
    now: Time,
    retention: Retention,
    changes: &mut Changes,
) -> Result<usize, Error> {
    let finished = "SELECT id FROM jobs WHERE finished_at < ? ORDER BY finished_at LIMIT ?";
    // A job is never updated before it is created. The index of creation times therefore limits the
    // search, and updates of jobs do not change it.
    let active = "SELECT id FROM jobs
                  WHERE finished_at IS NULL AND created_at < ?1 AND updated_at < ?1 LIMIT ?2";
    let mut ids = expired_jobs(db, finished, now - retention.terminal, SWEEP_BATCH)?;
    let remaining = SWEEP_BATCH - ids.len();
    let unfinished = expired_jobs(db, active, now - retention.active, remaining)?;
    changes.deletes_unfinished |= !unfinished.is_empty();
    ids.extend(unfinished);
    let mut delete_job = db.prepare_cached("DELETE FROM jobs WHERE id = ?")?;
    let mut delete_key = db.prepare_cached("DELETE FROM idempotency_keys WHERE job_id = ?")?;
    for id in &ids {
        delete_job.execute([id])?;
        delete_key.execute([id])?;
        outbox::delete_ended(db, id)?;
    }
    let waiting = outbox::delete_waiting_since(db, now - WAITING_RETENTION, SWEEP_BATCH)?;
    let (updates_before, limit) = (now - BUFFERED_UPDATE_TTL, sql_limit(SWEEP_BATCH));
    let updates = db
        .prepare_cached(
            "DELETE FROM buffered_updates WHERE seq IN (SELECT seq FROM buffered_updates
                 WHERE received_at < ? ORDER BY received_at LIMIT ?)",
        )?
        .execute([updates_before.millis(), limit])?;
    let windows = db
        .prepare_cached(
            "DELETE FROM budget_windows WHERE name IN (SELECT name FROM budget_windows
                 WHERE ends_at <= ? ORDER BY ends_at LIMIT ?)",
        )?
        .execute([now.millis(), limit])?;
    Ok(ids.len() + waiting + updates + windows)
}

fn expired_jobs(
    db: &Connection,
    sql: &str,
    before: Time,
    limit: usize,
) -> rusqlite::Result<Vec<String>> {
    db.prepare_cached(sql)?
        .query_map([before.millis(), sql_limit(limit)], |row| row.get(0))?
        .collect()
}
