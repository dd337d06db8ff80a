//! News about tasks that are no job's yet.
//!
//! Invariant: news is either parked or its task is known, never both, because the writer decides
//! one after the other; so nothing that was parked is left behind.

use rusqlite::{Connection, params};

use super::jobs;
use crate::job::Update;
use crate::store::{BufferOutcome, MAX_BUFFERED_UPDATES};
use crate::time::Time;

/// `news` is an [`Update`] as JSON.
pub(super) fn park(
    db: &Connection,
    provider: &str,
    task_id: &str,
    news: &str,
    now: Time,
) -> rusqlite::Result<BufferOutcome> {
    if let Some(id) = jobs::find_task(db, provider, task_id)? {
        return Ok(BufferOutcome::TaskKnown(id));
    }
    let is_told = db
        .prepare_cached("SELECT 1 FROM parked WHERE provider = ? AND task_id = ? AND news = ?")?
        .exists([provider, task_id, news])?;
    if is_told {
        return Ok(BufferOutcome::Buffered);
    }
    db.prepare_cached(
        "INSERT INTO parked (provider, task_id, news, parked_at) VALUES (?, ?, ?, ?)",
    )?
    .execute(params![provider, task_id, news, now.millis()])?;
    let most = i64::try_from(MAX_BUFFERED_UPDATES).unwrap_or(i64::MAX);
    db.prepare_cached(
        "DELETE FROM parked WHERE seq IN (SELECT seq FROM parked
             WHERE provider = ? AND task_id = ? ORDER BY seq DESC LIMIT -1 OFFSET ?)",
    )?
    .execute(params![provider, task_id, most])?;
    Ok(BufferOutcome::Buffered)
}

/// Unreadable news is told to the log and left out.
pub(super) fn parked(
    db: &Connection,
    provider: &str,
    task_id: &str,
) -> rusqlite::Result<Vec<Update>> {
    let mut statement = db.prepare_cached(
        "SELECT news FROM parked WHERE provider = ? AND task_id = ? ORDER BY seq",
    )?;
    let mut rows = statement.query([provider, task_id])?;
    let mut updates = Vec::new();
    while let Some(row) = rows.next()? {
        updates.extend(jobs::skip_unreadable(jobs::from_json(row, 0), task_id)?);
    }
    Ok(updates)
}

/// Forgets what is parked for a task, unless there is something that is not in `folded`.
pub(super) fn forget(
    db: &Connection,
    provider: &str,
    task_id: &str,
    folded: &[Update],
) -> rusqlite::Result<bool> {
    let updates = parked(db, provider, task_id)?;
    if !updates.iter().all(|update| folded.contains(update)) {
        return Ok(false);
    }
    db.prepare_cached("DELETE FROM parked WHERE provider = ? AND task_id = ?")?
        .execute([provider, task_id])?;
    Ok(true)
}
