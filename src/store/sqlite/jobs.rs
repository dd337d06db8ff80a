//! Jobs and buffered updates.
//!
//! The indexed columns of a job are written from the same value and in the same statement as its
//! document, so queries agree with what they return.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Params, Row, named_params, params};

use super::command_queue::Changes;
use super::{budgets, duration_millis, sql_limit};
use crate::job::{Job, JobId, Status, Update};
use crate::store::codec::{
    EncodedJob, decode_job, finished_at, from_json, schedule_of, skip_corrupt, task_of,
};
use crate::store::{
    BudgetEntry, BufferOutcome, CommitJob, CommitOutcome, CreateJob, CreateOutcome, Error,
    IdempotencyKey, ListQuery, MAX_BUFFERED_UPDATES, Schedule,
};
use crate::time::Time;

/// A job to write. It is encoded on the caller's thread to keep the writer thread free.
pub(super) struct JobRecord {
    job: Arc<Job>,
    encoded: EncodedJob,
    schedule: Schedule,
    finished_at: Option<i64>,
    applied_buffered: Vec<Update>,
    budget_entries: Vec<BudgetEntry>,
}

impl JobRecord {
    fn new(
        job: Arc<Job>,
        schedule: Schedule,
        applied_buffered: Vec<Update>,
        budget_entries: Vec<BudgetEntry>,
    ) -> Result<Self, Error> {
        Ok(Self {
            encoded: EncodedJob::new(&job)?,
            schedule: schedule_of(&job, schedule),
            finished_at: finished_at(&job).map(Time::millis),
            applied_buffered,
            budget_entries,
            job,
        })
    }

    pub(super) fn from_create(create: CreateJob) -> Result<Self, Error> {
        Self::new(
            create.job,
            create.schedule,
            create.applied_buffered,
            create.budget_entries,
        )
    }

    pub(super) fn from_commit(commit: CommitJob) -> Result<Self, Error> {
        Self::new(
            commit.job,
            commit.schedule,
            commit.applied_buffered,
            commit.budget_entries,
        )
    }
}

pub(super) fn create(
    db: &Connection,
    record: &JobRecord,
    idempotency: Option<&IdempotencyKey>,
    changes: &mut Changes,
) -> Result<CreateOutcome, Error> {
    let job = &record.job;
    if let Some(key) = idempotency
        && let Some(outcome) = replay(db, key)?
    {
        return Ok(outcome);
    }
    if let Some(existing) = get(db, job.id.as_str())? {
        return Ok(CreateOutcome::Replayed(existing));
    }
    let task = task_of(job);
    if let Some((provider, task_id)) = task {
        let by_task = "SELECT document, internal FROM jobs WHERE provider = ? AND task_id = ?";
        if let Some(holder) = query_job(db, by_task, [provider, task_id])? {
            return Ok(CreateOutcome::TaskConflict(holder));
        }
    }
    if let Some(window) = budgets::exceeded_window(db, &record.budget_entries, job.updated_at)? {
        let window = window.to_owned();
        return Ok(CreateOutcome::LimitExceeded { window });
    }
    if let Some((provider, task_id)) = task
        && !delete_buffered(db, provider, task_id, &record.applied_buffered)?
    {
        return Ok(CreateOutcome::Conflict);
    }
    budgets::charge(db, &record.budget_entries, job.updated_at)?;
    insert(db, record)?;
    if let Some(key) = idempotency {
        db.prepare_cached("INSERT OR REPLACE INTO idempotency_keys VALUES (?, ?, ?, ?)")?
            .execute([&key.caller, &key.key, &key.fingerprint, job.id.as_str()])?;
    }
    changes.push(Arc::clone(job));
    Ok(CreateOutcome::Created)
}

/// Returns the outcome of a request whose key was used before, unless that job was deleted.
fn replay(db: &Connection, key: &IdempotencyKey) -> Result<Option<CreateOutcome>, Error> {
    let used = db
        .prepare_cached(
            "SELECT fingerprint, job_id FROM idempotency_keys WHERE caller = ? AND key = ?",
        )?
        .query_row([&key.caller, &key.key], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })
        .optional()?;
    match used {
        Some((fingerprint, _)) if fingerprint != key.fingerprint => {
            Ok(Some(CreateOutcome::IdempotencyKeyConflict))
        }
        Some((_, id)) => Ok(get(db, &id)?.map(CreateOutcome::Replayed)),
        None => Ok(None),
    }
}

fn insert(db: &Connection, record: &JobRecord) -> rusqlite::Result<()> {
    let JobRecord { job, schedule, .. } = record;
    db.prepare_cached(
        "INSERT INTO jobs (id, owner, status, version, provider, task_id, submit_at,
             submit_claimable_at, poll_at, poll_interval_ms, poll_backoff, holds_slot,
             deadline_at, updated_at, finished_at, document, internal)
         VALUES (:id, :owner, :status, :version, :provider, :task_id, :submit_at,
             :submit_at, :poll_at, :poll_interval_ms, :poll_backoff, :holds_slot,
             :deadline_at, :updated_at, :finished_at, :document, :internal)",
    )?
    .execute(named_params! {
        ":id": job.id.as_str(),
        ":owner": job.owner,
        ":status": job.status.as_str(),
        ":version": job.version.cast_signed(),
        ":provider": job.provider,
        ":task_id": job.provider_task_id,
        ":submit_at": schedule.submit_at.map(Time::millis),
        ":poll_at": schedule.poll_at.map(Time::millis),
        ":poll_interval_ms": duration_millis(schedule.poll_interval),
        ":poll_backoff": schedule.poll_backoff,
        ":holds_slot": schedule.holds_slot,
        ":deadline_at": job.deadline_at.millis(),
        ":updated_at": job.updated_at.millis(),
        ":finished_at": record.finished_at,
        ":document": record.encoded.document,
        ":internal": record.encoded.internal,
    })?;
    Ok(())
}

pub(super) fn commit(
    db: &Connection,
    record: &JobRecord,
    expected_version: u64,
    changes: &mut Changes,
) -> Result<CommitOutcome, Error> {
    let JobRecord { job, schedule, .. } = record;
    let stored = db
        .prepare_cached("SELECT rowid, version, task_id, holds_slot FROM jobs WHERE id = ?")?
        .query_row([job.id.as_str()], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, i64>(1)?,
                row.get::<_, Option<String>>(2)?,
                row.get::<_, bool>(3)?,
            ))
        })
        .optional()?;
    let Some((row, version, task_id, held_slot)) = stored else {
        return Ok(CommitOutcome::NotFound);
    };
    if version.cast_unsigned() != expected_version {
        return Ok(CommitOutcome::Conflict);
    }
    let is_new_task = task_id != job.provider_task_id;
    if is_new_task && let Some((provider, task_id)) = task_of(job) {
        let is_taken = find_task(db, provider, task_id)?.is_some();
        if is_taken || !delete_buffered(db, provider, task_id, &record.applied_buffered)? {
            return Ok(CommitOutcome::Conflict);
        }
    }
    db.prepare_cached(
        "UPDATE jobs SET status = :status, version = :version, submit_at = :submit_at,
             submit_claimable_at = :submit_at,
             poll_at = min(:poll_at, ifnull(poll_requested_at, :poll_at)),
             poll_interval_ms = :poll_interval_ms, poll_backoff = :poll_backoff,
             deadline_at = :deadline_at, updated_at = :updated_at,
             document = :document, internal = :internal
         WHERE rowid = :row",
    )?
    .execute(named_params! {
        ":row": row,
        ":status": job.status.as_str(),
        ":version": job.version.cast_signed(),
        ":submit_at": schedule.submit_at.map(Time::millis),
        ":poll_at": schedule.poll_at.map(Time::millis),
        ":poll_interval_ms": duration_millis(schedule.poll_interval),
        ":poll_backoff": schedule.poll_backoff,
        ":deadline_at": job.deadline_at.millis(),
        ":updated_at": job.updated_at.millis(),
        ":document": record.encoded.document,
        ":internal": record.encoded.internal,
    })?;
    // These columns change once or twice in the life of a job. Separate statements avoid updating
    // their indexes on every commit.
    if is_new_task {
        db.prepare_cached("UPDATE jobs SET task_id = ? WHERE rowid = ?")?
            .execute(params![job.provider_task_id, row])?;
    }
    if schedule.holds_slot != held_slot {
        db.prepare_cached("UPDATE jobs SET holds_slot = ? WHERE rowid = ?")?
            .execute(params![schedule.holds_slot, row])?;
    }
    if let Some(finished_at) = record.finished_at {
        db.prepare_cached("UPDATE jobs SET finished_at = ? WHERE rowid = ?")?
            .execute([finished_at, row])?;
    }
    budgets::charge(db, &record.budget_entries, job.updated_at)?;
    changes.push(Arc::clone(job));
    Ok(CommitOutcome::Committed)
}

pub(super) fn get(db: &Connection, id: &str) -> Result<Option<Arc<Job>>, Error> {
    query_job(db, "SELECT document, internal FROM jobs WHERE id = ?", [id])
}

pub(super) fn get_many(db: &Connection, ids: &[JobId]) -> Result<Vec<Arc<Job>>, Error> {
    let mut jobs = Vec::with_capacity(ids.len());
    for id in ids {
        jobs.extend(skip_corrupt(get(db, id.as_str()), id.as_str())?.flatten());
    }
    Ok(jobs)
}

pub(super) fn find_task(
    db: &Connection,
    provider: &str,
    task_id: &str,
) -> Result<Option<JobId>, Error> {
    let id: Option<String> = db
        .prepare_cached("SELECT id FROM jobs WHERE provider = ? AND task_id = ?")?
        .query_row([provider, task_id], |row| row.get(0))
        .optional()?;
    id.map(|id| JobId::parse(&id).map_err(|error| Error::Corrupt(error.to_string())))
        .transpose()
}

pub(super) fn list(db: &Connection, query: &ListQuery) -> Result<Vec<Arc<Job>>, Error> {
    let active = " AND finished_at IS NULL";
    let finished = " AND finished_at IS NOT NULL";
    let groups: &[&str] = match query.status {
        Some(status) if status.is_final() => &[""],
        Some(_) => &[active],
        None if query.active_first => &[active, finished],
        None => &[""],
    };
    let filters = [
        (" AND owner = ?", query.owner.as_deref()),
        (" AND status = ?", query.status.map(Status::as_str)),
        (" AND id < ?", query.before.as_ref().map(JobId::as_str)),
    ];
    let mut jobs = Vec::new();
    for group in groups {
        let mut sql = format!("SELECT document, internal, id FROM jobs WHERE TRUE{group}");
        let mut values: Vec<&str> = Vec::new();
        for (condition, value) in filters {
            if let Some(value) = value {
                sql.push_str(condition);
                values.push(value);
            }
        }
        sql.push_str(" ORDER BY id DESC");
        let mut statement = db.prepare_cached(&sql)?;
        let mut rows = statement.query(rusqlite::params_from_iter(values))?;
        while jobs.len() < query.limit
            && let Some(row) = rows.next()?
        {
            jobs.extend(skip_corrupt(decode_row(row), text(row, 2)?)?);
        }
    }
    Ok(jobs)
}

/// Buffers `update`, which is JSON.
pub(super) fn buffer_update(
    db: &Connection,
    provider: &str,
    task_id: &str,
    update: &str,
    now: Time,
) -> Result<BufferOutcome, Error> {
    if let Some(id) = find_task(db, provider, task_id)? {
        return Ok(BufferOutcome::TaskKnown(id));
    }
    let is_duplicate = db
        .prepare_cached(
            "SELECT 1 FROM buffered_updates WHERE provider = ? AND task_id = ? AND payload = ?",
        )?
        .exists([provider, task_id, update])?;
    if is_duplicate {
        return Ok(BufferOutcome::Buffered);
    }
    db.prepare_cached(
        "INSERT INTO buffered_updates (provider, task_id, payload, received_at)
         VALUES (?, ?, ?, ?)",
    )?
    .execute(params![provider, task_id, update, now.millis()])?;
    db.prepare_cached(
        "DELETE FROM buffered_updates WHERE seq IN (SELECT seq FROM buffered_updates
             WHERE provider = ? AND task_id = ? ORDER BY seq DESC LIMIT -1 OFFSET ?)",
    )?
    .execute(params![provider, task_id, sql_limit(MAX_BUFFERED_UPDATES)])?;
    Ok(BufferOutcome::Buffered)
}

pub(super) fn buffered_updates(
    db: &Connection,
    provider: &str,
    task_id: &str,
) -> Result<Vec<Update>, Error> {
    let mut statement = db.prepare_cached(
        "SELECT payload FROM buffered_updates WHERE provider = ? AND task_id = ? ORDER BY seq",
    )?;
    let mut rows = statement.query([provider, task_id])?;
    let mut updates = Vec::new();
    while let Some(row) = rows.next()? {
        let update = text(row, 0).and_then(from_json);
        updates.extend(skip_corrupt(update, task_id)?);
    }
    Ok(updates)
}

/// Deletes the updates buffered for a task. Returns false, and deletes nothing, if one of them is
/// not in `applied`.
fn delete_buffered(
    db: &Connection,
    provider: &str,
    task_id: &str,
    applied: &[Update],
) -> Result<bool, Error> {
    let updates = buffered_updates(db, provider, task_id)?;
    if !updates.iter().all(|update| applied.contains(update)) {
        return Ok(false);
    }
    db.prepare_cached("DELETE FROM buffered_updates WHERE provider = ? AND task_id = ?")?
        .execute([provider, task_id])?;
    Ok(true)
}

/// Decodes a row that begins with `document` and `internal`.
pub(super) fn decode_row(row: &Row<'_>) -> Result<Arc<Job>, Error> {
    decode_job(text(row, 0)?, text(row, 1)?)
}

/// Returns the first job of a query for `document` and `internal`.
fn query_job(db: &Connection, sql: &str, values: impl Params) -> Result<Option<Arc<Job>>, Error> {
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query(values)?;
    rows.next()?.map(decode_row).transpose()
}

fn text<'a>(row: &'a Row<'_>, column: usize) -> Result<&'a str, Error> {
    let value = row.get_ref(column)?.as_str();
    value.map_err(|error| rusqlite::Error::from(error).into())
}
