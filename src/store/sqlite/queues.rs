//! Work queues: due jobs, claims and leases.
//!
//! One column per queue holds the time at which a job can be claimed: `submit_claimable_at` and
//! `poll_at`. A claim moves that time into the future, so an abandoned claim expires without
//! cleanup. The single writer counts and assigns concurrency slots in one step.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, Row, ToSql, params};

use super::{duration_millis, jobs, sql_limit};
use crate::job::{Job, JobId};
use crate::store::codec::skip_corrupt;
use crate::store::{CLAIM_LEASE, Error, Queue};
use crate::time::{Time, deterministic_jitter};

const COUNT_HELD_SLOTS: &str = "SELECT count(*) FROM jobs WHERE provider = ? AND holds_slot";

const COUNT_CLAIMED: &str = "SELECT count(*) FROM jobs
    WHERE provider = ? AND submit_claimable_at <> submit_at AND submit_claimable_at > ?";

const DUE_SUBMISSIONS: &str = "SELECT document, internal, id FROM jobs
    WHERE provider = ? AND submit_claimable_at <= ? ORDER BY submit_claimable_at LIMIT ?";

const DUE_POLLS: &str = "SELECT document, internal, id, poll_interval_ms, deadline_at,
        poll_backoff, updated_at
    FROM jobs WHERE poll_at <= ? ORDER BY poll_at LIMIT ?";

const NEXT_SUBMISSION: &str = "SELECT min(submit_claimable_at) FROM jobs
    WHERE provider = ? AND submit_claimable_at IS NOT NULL";

const NEXT_POLL: &str = "SELECT min(poll_at) FROM jobs WHERE poll_at IS NOT NULL";

/// An owned [`Queue`], to send it to another thread.
#[derive(Clone, Debug)]
pub(super) enum OwnedQueue {
    Submit {
        provider: String,
        max_concurrent: usize,
    },
    Poll,
}

impl From<Queue<'_>> for OwnedQueue {
    fn from(queue: Queue<'_>) -> Self {
        match queue {
            Queue::Submit {
                provider,
                max_concurrent,
            } => Self::Submit {
                provider: provider.to_owned(),
                max_concurrent,
            },
            Queue::Poll => Self::Poll,
        }
    }
}

pub(super) fn claim(
    db: &Connection,
    queue: &OwnedQueue,
    now: Time,
    limit: usize,
) -> Result<Vec<Arc<Job>>, Error> {
    match queue {
        OwnedQueue::Submit {
            provider,
            max_concurrent,
        } => {
            let limit = limit.min(free_slots(db, provider, *max_concurrent, now)?);
            claim_submissions(db, provider, now, limit)
        }
        OwnedQueue::Poll => claim_polls(db, now, limit),
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
    now: Time,
    limit: usize,
) -> Result<Vec<Arc<Job>>, Error> {
    let values = params![provider, now.millis(), sql_limit(limit)];
    let due = select_due(db, DUE_SUBMISSIONS, values, |_| Ok(now + CLAIM_LEASE))?;
    let mut lease = db.prepare_cached("UPDATE jobs SET submit_claimable_at = ? WHERE id = ?")?;
    reschedule(due, |id, next_at| {
        lease.execute(params![next_at.millis(), id])
    })
}

fn claim_polls(db: &Connection, now: Time, limit: usize) -> Result<Vec<Arc<Job>>, Error> {
    let values = params![now.millis(), sql_limit(limit)];
    let due = select_due(db, DUE_POLLS, values, |row| {
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
    })?;
    let mut postpone = db.prepare_cached(
        "UPDATE jobs SET poll_at = ?, last_polled_at = ?, poll_requested_at = NULL WHERE id = ?",
    )?;
    reschedule(due, |id, next_at| {
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

/// A due job, and when it is due again once claimed.
struct Due {
    id: String,
    job: Result<Arc<Job>, Error>,
    next_at: Time,
}

fn select_due(
    db: &Connection,
    sql: &str,
    values: &[&dyn ToSql],
    next_at: impl Fn(&Row<'_>) -> rusqlite::Result<Time>,
) -> rusqlite::Result<Vec<Due>> {
    db.prepare_cached(sql)?
        .query_map(values, |row| {
            Ok(Due {
                id: row.get(2)?,
                job: jobs::decode_row(row),
                next_at: next_at(row)?,
            })
        })?
        .collect()
}

/// Reschedules all jobs and returns those that can be decoded. Corrupt jobs are rescheduled too,
/// so that they do not block the queue.
fn reschedule(
    due: Vec<Due>,
    mut set_next_at: impl FnMut(&str, Time) -> rusqlite::Result<usize>,
) -> Result<Vec<Arc<Job>>, Error> {
    let mut claimed = Vec::with_capacity(due.len());
    for Due { id, job, next_at } in due {
        set_next_at(&id, next_at)?;
        claimed.extend(skip_corrupt(job, &id)?);
    }
    Ok(claimed)
}

pub(super) fn next_due(db: &Connection, queue: &OwnedQueue) -> Result<Option<Time>, Error> {
    let (sql, values): (_, &[&dyn ToSql]) = match queue {
        OwnedQueue::Submit { provider, .. } => (NEXT_SUBMISSION, &[provider]),
        OwnedQueue::Poll => (NEXT_POLL, &[]),
    };
    let due: Option<i64> = db
        .prepare_cached(sql)?
        .query_row(values, |row| row.get(0))?;
    Ok(due.map(Time::from_millis))
}

pub(super) fn schedule_poll(
    db: &Connection,
    id: &JobId,
    at: Time,
    cool_down: Duration,
) -> Result<(), Error> {
    db.prepare_cached(
        "UPDATE jobs SET poll_at = min(ifnull(poll_at, requested.at), requested.at),
             poll_requested_at = min(ifnull(poll_requested_at, requested.at), requested.at)
         FROM (SELECT max(?2, ifnull(last_polled_at + ?3, ?2)) AS at FROM jobs WHERE id = ?1)
             AS requested
         WHERE id = ?1 AND finished_at IS NULL
             AND (poll_at IS NULL OR poll_at > requested.at
                 OR poll_requested_at IS NULL OR poll_requested_at > requested.at)",
    )?
    .execute(params![
        id.as_str(),
        at.millis(),
        duration_millis(cool_down)
    ])?;
    Ok(())
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
                "USING INDEX jobs_to_submit (provider=? AND submit_claimable_at<?)",
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
