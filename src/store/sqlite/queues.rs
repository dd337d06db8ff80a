//! Work queues: due jobs, claims and leases.
//!
//! One column per queue holds the time at which a job can be claimed: `submit_claimable_at` and
//! `poll_at`. A claim moves that time into the future, so an abandoned claim expires without
//! cleanup. The single writer counts and assigns concurrency slots in one step.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, Row, ToSql, params, params_from_iter};

use super::{SqliteStore, duration_millis, jobs, sql_limit};
use crate::job::{Job, JobId};
use crate::store::codec::skip_corrupt;
use crate::store::turns::{MAX_DUE_JOBS, Turns};
use crate::store::{CLAIM_LEASE, Error, Queue, WorkQueues};
use crate::time::{Time, deterministic_jitter};

const COUNT_HELD_SLOTS: &str = "SELECT count(*) FROM jobs WHERE provider = ? AND holds_slot";

const COUNT_CLAIMED: &str = "SELECT count(*) FROM jobs
    WHERE provider = ? AND submit_claimable_at <> submit_at AND submit_claimable_at > ?";

const DUE_SUBMISSIONS: &str = "SELECT rowid, owner FROM jobs
    WHERE provider = ? AND submit_claimable_at <= ? ORDER BY submit_claimable_at LIMIT ?";

const CLAIMED_SUBMISSION: &str = "SELECT document, internal, id FROM jobs WHERE rowid = ?";

const DUE_POLLS: &str = "SELECT document, internal, id, poll_interval_ms, deadline_at,
        poll_backoff, updated_at
    FROM jobs WHERE poll_at <= ? ORDER BY poll_at LIMIT ?";

const NEXT_SUBMISSION: &str = "SELECT min(submit_claimable_at) FROM jobs
    WHERE provider = ? AND submit_claimable_at IS NOT NULL";

const NEXT_POLL: &str = "SELECT min(poll_at) FROM jobs WHERE poll_at IS NOT NULL";

#[async_trait]
impl WorkQueues for SqliteStore {
    async fn claim(
        &self,
        queue: Queue<'_>,
        now: Time,
        limit: usize,
    ) -> Result<Vec<Arc<Job>>, Error> {
        let Queue::Submit {
            provider,
            max_concurrent,
        } = queue
        else {
            return self.write(move |db, _| claim_polls(db, now, limit)).await;
        };
        let (provider, turns) = (provider.to_owned(), Arc::clone(&self.turns));
        self.write(move |db, _| {
            let limit = limit.min(free_slots(db, &provider, max_concurrent, now)?);
            claim_submissions(db, &provider, &turns, now, limit)
        })
        .await
    }

    async fn next_due(&self, queue: Queue<'_>) -> Result<Option<Time>, Error> {
        let (sql, provider) = match queue {
            Queue::Submit { provider, .. } => (NEXT_SUBMISSION, Some(provider.to_owned())),
            Queue::Poll => (NEXT_POLL, None),
        };
        self.read(move |db| {
            let mut statement = db.prepare_cached(sql)?;
            let due = statement.query_row(params_from_iter(&provider), |row| row.get(0))?;
            Ok(Option::map(due, Time::from_millis))
        })
        .await
    }

    async fn schedule_poll(&self, id: &JobId, at: Time, cool_down: Duration) -> Result<(), Error> {
        let id = id.clone();
        self.write(move |db, _| {
            db.prepare_cached(include_str!("sql/schedule_poll.sql"))?
                .execute((id.as_str(), at.millis(), duration_millis(cool_down)))?;
            Ok(())
        })
        .await
    }
}

fn free_slots(
    db: &Connection,
    provider: &str,
    max_concurrent: usize,
    now: Time,
) -> rusqlite::Result<usize> {
    let count = |sql, values: &[&dyn ToSql]| {
        db.prepare_cached(sql)?
            .query_row(values, |row| row.get(0).map(isize::cast_unsigned))
    };
    let held = count(COUNT_HELD_SLOTS, &[&provider])?;
    let claimed = count(COUNT_CLAIMED, &[&provider, &now.millis()])?;
    Ok(max_concurrent.saturating_sub(held + claimed))
}

fn claim_submissions(
    db: &Connection,
    provider: &str,
    turns: &Turns,
    now: Time,
    limit: usize,
) -> Result<Vec<Arc<Job>>, Error> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let mut due = db.prepare_cached(DUE_SUBMISSIONS)?;
    let values = params![provider, now.millis(), sql_limit(MAX_DUE_JOBS)];
    let due = due.query_map(values, |row| Ok((row.get(0)?, row.get(1)?)))?;
    let due: Vec<(i64, String)> = due.collect::<rusqlite::Result<_>>()?;
    let mut lease = db.prepare_cached("UPDATE jobs SET submit_claimable_at = ? WHERE id = ?")?;
    let lease_end = |_: &Row<'_>| Ok(now + CLAIM_LEASE);
    let mut claimed = Vec::new();
    for row in turns.order(provider, due, limit) {
        let values = params![row];
        let jobs = claim_due(db, CLAIMED_SUBMISSION, values, lease_end, |id, next_at| {
            lease.execute(params![next_at.millis(), id])
        })?;
        for job in &jobs {
            turns.record(provider, &job.owner);
        }
        claimed.extend(jobs);
    }
    Ok(claimed)
}

fn claim_polls(db: &Connection, now: Time, limit: usize) -> Result<Vec<Arc<Job>>, Error> {
    let values = params![now.millis(), sql_limit(limit)];
    let next_at = |row: &Row<'_>| {
        let id: String = row.get(2)?;
        let interval = Duration::from_millis(row.get(3).map(i64::cast_unsigned)?);
        let deadline = Time::from_millis(row.get(4)?);
        let has_backoff: bool = row.get(5)?;
        let silence = now.saturating_duration_since(Time::from_millis(row.get(6)?));
        let interval = if has_backoff {
            interval.max(silence * 2)
        } else {
            interval
        };
        Ok(next_poll_at(
            now,
            deterministic_jitter(interval, &id),
            deadline,
        ))
    };
    let mut postpone = db.prepare_cached(
        "UPDATE jobs SET poll_at = ?, last_polled_at = ?, poll_requested_at = NULL WHERE id = ?",
    )?;
    claim_due(db, DUE_POLLS, values, next_at, |id, next_at| {
        postpone.execute(params![next_at.millis(), now.millis(), id])
    })
}

/// Returns the time of the poll after `now`. It is never later than a deadline in the future. A
/// job past its deadline is polled until it finishes.
fn next_poll_at(now: Time, interval: Duration, deadline: Time) -> Time {
    if now < deadline {
        deadline.min(now + interval)
    } else {
        now + interval
    }
}

/// Selects due jobs, and reschedules each to the time that `next_at` returns. Returns the jobs that can
/// be decoded. Corrupt jobs are rescheduled too, so that they do not block the queue.
fn claim_due(
    db: &Connection,
    select: &str,
    values: &[&dyn ToSql],
    next_at: impl Fn(&Row<'_>) -> rusqlite::Result<Time>,
    mut set_next_at: impl FnMut(&str, Time) -> rusqlite::Result<usize>,
) -> Result<Vec<Arc<Job>>, Error> {
    let mut statement = db.prepare_cached(select)?;
    let due = statement.query_map(values, |row| {
        Ok((row.get(2)?, jobs::decode_row(row), next_at(row)?))
    })?;
    let due: Vec<(String, _, Time)> = due.collect::<rusqlite::Result<_>>()?;
    let mut claimed = Vec::with_capacity(due.len());
    for (id, job, next_at) in due {
        set_next_at(&id, next_at)?;
        claimed.extend(skip_corrupt(job, &id)?);
    }
    Ok(claimed)
}

/// Releases the claims of the previous process and schedules polls of its in-flight submissions.
///
/// The caller holds the file lock, so the previous process has ended. A submission that it left in
/// flight holds a slot and has no task id. Its next poll is due only after the submission timeout.
/// Moving the poll to `now` resolves the job at once.
pub(super) fn recover_after_restart(db: &Connection, now: Time) -> rusqlite::Result<()> {
    db.execute(
        "UPDATE jobs SET submit_claimable_at = submit_at WHERE submit_claimable_at <> submit_at",
        [],
    )?;
    db.execute(
        "UPDATE jobs SET poll_at = ?1
         WHERE holds_slot AND status = 'accepted' AND task_id IS NULL AND poll_at > ?1",
        [now.millis()],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::file;

    #[test]
    fn queue_queries_use_their_indexes() {
        let db = Connection::open_in_memory().unwrap();
        file::migrate(&db, &file::MIGRATIONS).unwrap();
        for (sql, index) in [
            (
                COUNT_HELD_SLOTS,
                "USING INDEX jobs_holding_slot (provider=?)",
            ),
            (
                COUNT_CLAIMED,
                "USING INDEX jobs_claimed (provider=? AND submit_claimable_at>?)",
            ),
            (
                DUE_SUBMISSIONS,
                "USING COVERING INDEX jobs_to_submit (provider=? AND submit_claimable_at<?)",
            ),
            (DUE_POLLS, "USING INDEX jobs_to_poll (poll_at<?)"),
            (
                NEXT_SUBMISSION,
                "USING COVERING INDEX jobs_to_submit (provider=? AND submit_claimable_at>?)",
            ),
            (NEXT_POLL, "USING COVERING INDEX jobs_to_poll"),
        ] {
            let mut statement = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let values = vec![rusqlite::types::Null; statement.parameter_count()];
            let plan: Vec<String> = statement
                .query_map(rusqlite::params_from_iter(values), |row| row.get(3))
                .unwrap()
                .collect::<rusqlite::Result<_>>()
                .unwrap();
            assert_eq!(plan.len(), 1, "a single step without sorting: {plan:?}");
            assert!(plan[0].contains(index), "{sql}: {plan:?}");
        }
    }

    #[test]
    fn next_poll_never_skips_the_deadline() {
        let at = Time::from_millis;
        let interval = Duration::from_millis(10);
        assert_eq!(next_poll_at(at(0), interval, at(11)), at(10));
        assert_eq!(next_poll_at(at(0), interval, at(9)), at(9));
        assert_eq!(next_poll_at(at(9), interval, at(9)), at(19));
        assert_eq!(next_poll_at(at(12), interval, at(9)), at(22));
    }
}
