//! The two queues: what is due, who has claimed it, when the next is due.
//!
//! Invariant: one column says when a claim yields a job: `submit_due`, which is `submit_at` or the
//! end of the lease that is on it, and `watch_at`, which a claim puts off. So a claim ends by
//! itself, and places are counted and given away by the one writer in one step.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, Row, ToSql, params};

use super::jobs;
use crate::job::{Job, JobId};
use crate::store::{CLAIM_LEASE, Queue};
use crate::time::{Time, deterministic_jitter};

/// Uses the index `jobs_with_place`.
const HOLDERS: &str = "SELECT count(*) FROM jobs WHERE provider = ? AND holds_place";

/// Uses the index `jobs_leased`.
const LEASED: &str = "SELECT count(*) FROM jobs
    WHERE provider = ? AND submit_due <> submit_at AND submit_due > ?";

const TO_SUBMIT: &str = "SELECT doc, ticket, id FROM jobs WHERE provider = ? AND submit_due <= ?
    ORDER BY submit_due LIMIT ?";

const TO_WATCH: &str = "SELECT doc, ticket, id, watch_every, deadline_at, watch_patient, updated_at
    FROM jobs WHERE watch_at <= ? ORDER BY watch_at LIMIT ?";

const NEXT_TO_SUBMIT: &str =
    "SELECT min(submit_due) FROM jobs WHERE provider = ? AND submit_due IS NOT NULL";

const NEXT_TO_WATCH: &str = "SELECT min(watch_at) FROM jobs WHERE watch_at IS NOT NULL";

/// A [`Queue`] that can travel to another thread.
#[derive(Clone, Debug)]
pub(super) enum OwnedQueue {
    Submit { provider: String, places: usize },
    Watch,
}

impl From<Queue<'_>> for OwnedQueue {
    fn from(queue: Queue<'_>) -> Self {
        match queue {
            Queue::Submit {
                provider,
                max_concurrent: places,
            } => Self::Submit {
                provider: provider.to_owned(),
                places,
            },
            Queue::Poll => Self::Watch,
        }
    }
}

/// An unreadable job is claimed like the others and left out, so that it does not stop its queue.
pub(super) fn claim(
    db: &Connection,
    queue: &OwnedQueue,
    now: Time,
    limit: usize,
) -> rusqlite::Result<Vec<Arc<Job>>> {
    match queue {
        OwnedQueue::Submit { provider, places } => {
            let limit = limit.min(free_slots(db, provider, *places, now)?);
            claim_to_submit(db, provider, now, limit)
        }
        OwnedQueue::Watch => claim_to_watch(db, now, limit),
    }
}

/// How many of a provider's places nobody holds and no live lease is on.
fn free_slots(
    db: &Connection,
    provider: &str,
    places: usize,
    now: Time,
) -> rusqlite::Result<usize> {
    let count = |sql, values: &[&dyn ToSql]| {
        db.prepare_cached(sql)?
            .query_row(values, |row| row.get(0).map(isize::cast_unsigned))
    };
    let taken = count(HOLDERS, &[&provider])? + count(LEASED, &[&provider, &now.millis()])?;
    Ok(places.saturating_sub(taken))
}

fn claim_to_submit(
    db: &Connection,
    provider: &str,
    now: Time,
    limit: usize,
) -> rusqlite::Result<Vec<Arc<Job>>> {
    let values = params![provider, now.millis(), as_sql_limit(limit)];
    let due = due(db, TO_SUBMIT, values, |_| Ok(now + CLAIM_LEASE))?;
    let mut lease = db.prepare_cached("UPDATE jobs SET submit_due = ? WHERE id = ?")?;
    reschedule(due, |id, again| lease.execute(params![again.millis(), id]))
}

fn claim_to_watch(db: &Connection, now: Time, limit: usize) -> rusqlite::Result<Vec<Arc<Job>>> {
    let due = due(
        db,
        TO_WATCH,
        params![now.millis(), as_sql_limit(limit)],
        |row| {
            let every = Duration::from_millis(row.get(3).map(i64::cast_unsigned)?);
            let deadline = Time::from_millis(row.get(4)?);
            let silence = now.saturating_duration_since(Time::from_millis(row.get(6)?));
            let is_patient: bool = row.get(5)?;
            let span = if is_patient {
                every.max(silence * 2)
            } else {
                every
            };
            let id: String = row.get(2)?;
            Ok(next_look(now, deterministic_jitter(span, &id), deadline))
        },
    )?;
    let mut look = db.prepare_cached(
        "UPDATE jobs SET watch_at = ?, looked_at = ?, hastened_at = NULL WHERE id = ?",
    )?;
    reschedule(due, |id, again| {
        look.execute(params![again.millis(), now.millis(), id])
    })
}

/// The deadline itself is never passed over; once it is behind, a job is looked at until it ends.
fn next_look(now: Time, span: Duration, deadline: Time) -> Time {
    if now < deadline {
        deadline.min(now + span)
    } else {
        now + span
    }
}

/// A due job, and when it is due again.
struct Due {
    id: String,
    job: rusqlite::Result<Arc<Job>>,
    next_at: Time,
}

fn due(
    db: &Connection,
    sql: &str,
    values: &[&dyn ToSql],
    again: impl Fn(&Row<'_>) -> rusqlite::Result<Time>,
) -> rusqlite::Result<Vec<Due>> {
    db.prepare_cached(sql)?
        .query_map(values, |row| {
            Ok(Due {
                id: row.get(2)?,
                job: jobs::from_row(row),
                next_at: again(row)?,
            })
        })?
        .collect()
}

fn reschedule(
    due: Vec<Due>,
    mut until: impl FnMut(&str, Time) -> rusqlite::Result<usize>,
) -> rusqlite::Result<Vec<Arc<Job>>> {
    let mut claimed = Vec::with_capacity(due.len());
    for Due {
        id,
        job,
        next_at: again,
    } in due
    {
        until(&id, again)?;
        claimed.extend(jobs::skip_unreadable(job, &id)?);
    }
    Ok(claimed)
}

pub(super) fn next_due(db: &Connection, queue: &OwnedQueue) -> rusqlite::Result<Option<Time>> {
    let (sql, values): (_, &[&dyn ToSql]) = match queue {
        OwnedQueue::Submit { provider, .. } => (NEXT_TO_SUBMIT, &[provider]),
        OwnedQueue::Watch => (NEXT_TO_WATCH, &[]),
    };
    let due: Option<i64> = db
        .prepare_cached(sql)?
        .query_row(values, |row| row.get(0))?;
    Ok(due.map(Time::from_millis))
}

pub(super) fn hasten(
    db: &Connection,
    id: &JobId,
    at: Time,
    cool_down: Duration,
) -> rusqlite::Result<()> {
    db.prepare_cached(
        "UPDATE jobs SET watch_at = min(ifnull(watch_at, next.look), next.look),
             hastened_at = min(ifnull(hastened_at, next.look), next.look)
         FROM (SELECT max(?2, ifnull(looked_at + ?3, ?2)) AS look FROM jobs WHERE id = ?1) AS next
         WHERE id = ?1 AND finished_at IS NULL",
    )?
    .execute(params![id.as_str(), at.millis(), jobs::millis(cool_down)])?;
    Ok(())
}

/// Takes the queues over from the process before, which is dead: a file has one at a time.
///
/// Its leases are void. What it was sending, nobody sends now: such a job holds a place and is not
/// known to be at the provider, and its next look would come only when a live try had certainly
/// ended; it comes now instead, so that a restart resolves the job at once.
pub(super) fn recover_after_restart(db: &Connection, now: Time) -> rusqlite::Result<()> {
    db.execute(
        "UPDATE jobs SET submit_due = submit_at WHERE submit_due <> submit_at",
        [],
    )?;
    db.execute(
        "UPDATE jobs SET watch_at = ?1
         WHERE holds_place AND status = 'accepted' AND task_id IS NULL AND watch_at > ?1",
        [now.millis()],
    )?;
    Ok(())
}

fn as_sql_limit(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::file;

    #[test]
    fn queue_queries_use_their_indexes() {
        let db = Connection::open_in_memory().unwrap();
        file::migrate(&db).unwrap();
        for (sql, index) in [
            (HOLDERS, "USING INDEX jobs_with_place (provider=?)"),
            (
                LEASED,
                "USING INDEX jobs_leased (provider=? AND submit_due>?)",
            ),
            (
                TO_SUBMIT,
                "USING INDEX jobs_to_submit (provider=? AND submit_due<?)",
            ),
            (TO_WATCH, "USING INDEX jobs_to_watch (watch_at<?)"),
            (
                NEXT_TO_SUBMIT,
                "USING COVERING INDEX jobs_to_submit (provider=? AND submit_due>?)",
            ),
            (NEXT_TO_WATCH, "USING COVERING INDEX jobs_to_watch"),
        ] {
            let mut statement = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let values = vec![rusqlite::types::Null; statement.parameter_count()];
            let plan: Vec<String> = statement
                .query_map(rusqlite::params_from_iter(values), |row| row.get(3))
                .unwrap()
                .collect::<rusqlite::Result<_>>()
                .unwrap();
            assert_eq!(plan.len(), 1, "no sorting beside it: {plan:?}");
            assert!(plan[0].contains(index), "{sql}: {plan:?}");
        }
    }

    #[test]
    fn next_poll_never_skips_the_deadline() {
        let at = Time::from_millis;
        let every = Duration::from_millis(10);
        assert_eq!(next_look(at(0), every, at(11)), at(10));
        assert_eq!(next_look(at(0), every, at(9)), at(9));
        assert_eq!(next_look(at(9), every, at(9)), at(19));
        assert_eq!(next_look(at(12), every, at(9)), at(22));
    }
}
