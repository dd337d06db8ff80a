//! Jobs and buffered updates.
//!
//! The indexed columns of a job are written from the same value and in the same statement as its
//! document, so queries agree with what they return.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Params, Row, named_params, params};

use super::command::{Change, Changes};
use super::{SqliteStore, budgets, duration_millis, outbox, sql_limit};
use crate::job::{Job, JobId, Status, Update};
use crate::protocol::Frame;
use crate::store::codec::{
    EncodedJob, ListGroup, decode_job, from_json, skip_corrupt, task_of, to_json,
};
use crate::store::{
    BufferOutcome, CommitJob, CommitOutcome, CreateJob, CreateOutcome, Error, IdempotencyKey,
    JobStore, ListQuery, MAX_BUFFERED_BYTES, MAX_BUFFERED_TASKS, MAX_BUFFERED_UPDATES,
};
use crate::time::Time;

// Jobs and updates are encoded on the caller's thread, to keep the writer thread free.
#[async_trait]
impl JobStore for SqliteStore {
    async fn create(&self, create: CreateJob) -> Result<CreateOutcome, Error> {
        let encoded = EncodedJob::new(&create.job, create.schedule)?;
        self.write(move |db, changes| create_job(db, &create, &encoded, changes))
            .await
    }

    async fn get(&self, id: &JobId) -> Result<Option<Arc<Job>>, Error> {
        if let Some(job) = self.cache.get(id) {
            return Ok(Some(job));
        }
        let id = id.clone();
        self.read(move |db| get(db, id.as_str())).await
    }

    async fn get_many(&self, ids: &[JobId]) -> Result<Vec<Arc<Job>>, Error> {
        let mut jobs = Vec::with_capacity(ids.len());
        let mut missing = Vec::new();
        for id in ids {
            match self.cache.get(id) {
                Some(job) => jobs.push(job),
                None => missing.push(id.clone()),
            }
        }
        if missing.is_empty() {
            return Ok(jobs);
        }
        let read = self.read(move |db| {
            let read = |id: &JobId| skip_corrupt(get(db, id.as_str()), id.as_str());
            missing.iter().map(read).collect::<Result<Vec<_>, _>>()
        });
        jobs.extend(read.await?.into_iter().flatten().flatten());
        Ok(jobs)
    }

    async fn list(&self, query: ListQuery) -> Result<Vec<Arc<Job>>, Error> {
        self.read(move |db| list(db, &query)).await
    }

    async fn find_task(&self, provider: &str, task_id: &str) -> Result<Option<JobId>, Error> {
        if let Some(id) = self.cache.find_task(provider, task_id) {
            return Ok(Some(id));
        }
        let task = (provider.to_owned(), task_id.to_owned());
        self.read(move |db| find_task(db, (&task.0, &task.1))).await
    }

    async fn commit(&self, commit: CommitJob) -> Result<CommitOutcome, Error> {
        let encoded = EncodedJob::new(&commit.job, commit.schedule)?;
        let keeps_schedule = encoded.finished_at.is_none()
            && self.cache.schedule_of(&commit.job.id) == Some(encoded.schedule);
        self.write(move |db, changes| {
            if keeps_schedule && update_document(db, &commit, &encoded)? {
                complete(db, &commit, &encoded, changes)?;
                return Ok(CommitOutcome::Committed);
            }
            commit_job(db, &commit, &encoded, changes)
        })
        .await
    }

    /// Returns at once: a version that can be read is on disk.
    async fn ensure_durable(&self, _: &Job) -> Result<CommitOutcome, Error> {
        Ok(CommitOutcome::Committed)
    }

    async fn buffer_update(
        &self,
        provider: &str,
        task_id: &str,
        update: &Update,
        now: Time,
    ) -> Result<BufferOutcome, Error> {
        let task = (provider.to_owned(), task_id.to_owned());
        let update = to_json(update)?;
        self.write(move |db, _| buffer_update(db, (&task.0, &task.1), &update, now))
            .await
    }

    async fn buffered_updates(&self, provider: &str, task_id: &str) -> Result<Vec<Update>, Error> {
        let task = (provider.to_owned(), task_id.to_owned());
        self.read(move |db| buffered_updates(db, (&task.0, &task.1)))
            .await
    }
}

fn create_job(
    db: &Connection,
    create: &CreateJob,
    encoded: &EncodedJob,
    changes: &mut Changes,
) -> Result<CreateOutcome, Error> {
    let job = &create.job;
    if let Some(key) = &create.idempotency
        && let Some(outcome) = replay(db, key)?
    {
        return Ok(outcome);
    }
    if let Some(existing) = get(db, job.id.as_str())? {
        return Ok(CreateOutcome::Replayed(existing));
    }
    let task = task_of(job);
    if let Some(task) = task {
        let by_task = "SELECT document, internal FROM jobs WHERE provider = ? AND task_id = ?";
        if let Some(holder) = query_job(db, by_task, task)? {
            return Ok(CreateOutcome::TaskConflict(holder));
        }
    }
    if let Some(window) = budgets::exceeded_window(db, &create.budget_entries, job.updated_at)? {
        let window = window.to_owned();
        return Ok(CreateOutcome::LimitExceeded { window });
    }
    if let Some(task) = task
        && !delete_buffered(db, task, &create.applied_buffered)?
    {
        return Ok(CreateOutcome::Conflict);
    }
    budgets::charge(db, &create.budget_entries, job.updated_at)?;
    store_version(db, job, encoded)?;
    if let Some(key) = &create.idempotency {
        db.prepare_cached("INSERT OR REPLACE INTO idempotency_keys VALUES (?, ?, ?, ?)")?
            .execute([&key.caller, &key.key, &key.fingerprint, job.id.as_str()])?;
    }
    outbox::add(db, job, &encoded.document, &create.deliveries)?;
    changes.stored.push(change(job, encoded));
    Ok(CreateOutcome::Created)
}

/// Returns the outcome of a request whose key was used before, unless that job was deleted.
fn replay(db: &Connection, key: &IdempotencyKey) -> Result<Option<CreateOutcome>, Error> {
    let mut statement = db.prepare_cached(
        "SELECT document, internal, fingerprint FROM idempotency_keys JOIN jobs ON id = job_id
         WHERE caller = ? AND key = ?",
    )?;
    let mut rows = statement.query([&key.caller, &key.key])?;
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    if text(row, 2)? != key.fingerprint {
        return Ok(Some(CreateOutcome::IdempotencyKeyConflict));
    }
    Ok(Some(CreateOutcome::Replayed(decode_row(row)?)))
}

/// Inserts a job, or replaces its version.
fn store_version(db: &Connection, job: &Job, encoded: &EncodedJob) -> rusqlite::Result<()> {
    let schedule = &encoded.schedule;
    db.prepare_cached(include_str!("sql/store_version.sql"))?
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
            ":created_at": job.created_at.millis(),
            ":updated_at": job.updated_at.millis(),
            ":finished_at": encoded.finished_at.map(Time::millis),
            ":document": encoded.document,
            ":internal": encoded.internal,
        })?;
    Ok(())
}

fn commit_job(
    db: &Connection,
    commit: &CommitJob,
    encoded: &EncodedJob,
    changes: &mut Changes,
) -> Result<CommitOutcome, Error> {
    let (job, id) = (&commit.job, commit.job.id.as_str());
    let stored: Option<(i64, Option<String>, bool)> = db
        .prepare_cached("SELECT version, task_id, holds_slot FROM jobs WHERE id = ?")?
        .query_row([id], |row| row.try_into())
        .optional()?;
    let Some((version, task_id, held_slot)) = stored else {
        return Ok(CommitOutcome::NotFound);
    };
    if version.cast_unsigned() != commit.expected_version {
        return Ok(CommitOutcome::Conflict);
    }
    let is_new_task = task_id != job.provider_task_id;
    if is_new_task && let Some(task) = task_of(job) {
        let is_taken = find_task(db, task)?.is_some();
        if is_taken || !delete_buffered(db, task, &commit.applied_buffered)? {
            return Ok(CommitOutcome::Conflict);
        }
    }
    store_version(db, job, encoded)?;
    if is_new_task {
        db.prepare_cached("UPDATE jobs SET task_id = ? WHERE id = ?")?
            .execute((&job.provider_task_id, id))?;
    }
    if encoded.schedule.holds_slot != held_slot {
        db.prepare_cached("UPDATE jobs SET holds_slot = ? WHERE id = ?")?
            .execute((encoded.schedule.holds_slot, id))?;
    }
    if let Some(finished_at) = encoded.finished_at {
        db.prepare_cached("UPDATE jobs SET finished_at = ? WHERE id = ?")?
            .execute((finished_at.millis(), id))?;
    }
    complete(db, commit, encoded, changes)?;
    Ok(CommitOutcome::Committed)
}

/// Replaces the version of a job if its schedule and task do not change. Returns whether it was
/// replaced.
///
/// This is the most frequent write. It reads the row once and changes no index.
fn update_document(
    db: &Connection,
    commit: &CommitJob,
    encoded: &EncodedJob,
) -> rusqlite::Result<bool> {
    let (job, schedule) = (&commit.job, &encoded.schedule);
    let changed = db
        .prepare_cached(include_str!("sql/update_document.sql"))?
        .execute(params![
            job.id.as_str(),
            commit.expected_version.cast_signed(),
            job.status.as_str(),
            job.version.cast_signed(),
            job.updated_at.millis(),
            encoded.document,
            encoded.internal,
            job.provider_task_id,
            schedule.submit_at.map(Time::millis),
            schedule.poll_at.map(Time::millis),
            duration_millis(schedule.poll_interval),
            schedule.poll_backoff,
            schedule.holds_slot,
            job.deadline_at.millis(),
        ])?;
    Ok(changed == 1)
}

/// Charges the budget windows of a commit, adds its deliveries to the outbox and its version to
/// `changes`.
fn complete(
    db: &Connection,
    commit: &CommitJob,
    encoded: &EncodedJob,
    changes: &mut Changes,
) -> rusqlite::Result<()> {
    budgets::charge(db, &commit.budget_entries, commit.job.updated_at)?;
    outbox::add(db, &commit.job, &encoded.document, &commit.deliveries)?;
    changes.stored.push(change(&commit.job, encoded));
    Ok(())
}

fn change(job: &Arc<Job>, encoded: &EncodedJob) -> Change {
    Change {
        frame: Arc::new(Frame::with_document(Arc::clone(job), &encoded.document)),
        schedule: encoded.schedule,
        bytes: encoded.size(),
    }
}

pub(super) fn get(db: &Connection, id: &str) -> Result<Option<Arc<Job>>, Error> {
    query_job(db, "SELECT document, internal FROM jobs WHERE id = ?", [id])
}

pub(super) fn find_task(db: &Connection, task: (&str, &str)) -> Result<Option<JobId>, Error> {
    let id: Option<String> = db
        .prepare_cached("SELECT id FROM jobs WHERE provider = ? AND task_id = ?")?
        .query_row(task, |row| row.get(0))
        .optional()?;
    id.map(|id| JobId::parse(&id).map_err(|error| Error::Corrupt(error.to_string())))
        .transpose()
}

fn list(db: &Connection, query: &ListQuery) -> Result<Vec<Arc<Job>>, Error> {
    let filters = [
        (" AND owner = ?", query.owner.as_deref()),
        (" AND status = ?", query.status.map(Status::as_str)),
        (" AND id < ?", query.before.as_ref().map(JobId::as_str)),
    ];
    let mut jobs = Vec::new();
    for group in query.groups() {
        let mut sql = "SELECT document, internal, id FROM jobs WHERE TRUE".to_owned();
        sql.push_str(match group {
            ListGroup::Active => " AND finished_at IS NULL",
            // A filter by a final status already excludes active jobs.
            ListGroup::Finished if query.status.is_none() => " AND finished_at IS NOT NULL",
            ListGroup::Finished | ListGroup::All => "",
        });
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
fn buffer_update(
    db: &Connection,
    task: (&str, &str),
    update: &str,
    now: Time,
) -> Result<BufferOutcome, Error> {
    if let Some(id) = find_task(db, task)? {
        return Ok(BufferOutcome::TaskKnown(id));
    }
    db.prepare_cached(
        "INSERT INTO buffered_updates (provider, task_id, payload, received_at)
         SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (SELECT 1 FROM buffered_updates
             WHERE provider = ?1 AND task_id = ?2 AND payload = ?3)",
    )?
    .execute((task.0, task.1, update, now.millis()))?;
    db.prepare_cached(
        "DELETE FROM buffered_updates WHERE seq IN (SELECT seq FROM buffered_updates
             WHERE provider = ? AND task_id = ? ORDER BY seq DESC LIMIT -1 OFFSET ?)",
    )?
    .execute((task.0, task.1, sql_limit(MAX_BUFFERED_UPDATES)))?;
    db.prepare_cached(
        "DELETE FROM buffered_updates WHERE seq IN (SELECT seq FROM
             (SELECT seq, sum(octet_length(payload)) OVER (ORDER BY seq DESC) AS bytes
              FROM buffered_updates WHERE provider = ? AND task_id = ?) WHERE bytes > ?)",
    )?
    .execute((task.0, task.1, sql_limit(MAX_BUFFERED_BYTES)))?;
    let stored: i64 = db
        .prepare_cached("SELECT count(*) FROM buffered_updates WHERE provider = ? AND task_id = ?")?
        .query_row(task, |row| row.get(0))?;
    if stored != 1 {
        // Only the first update of a task adds a task.
        return Ok(BufferOutcome::Buffered);
    }
    db.prepare_cached(
        "DELETE FROM buffered_updates WHERE provider = ?1 AND task_id IN
             (SELECT task_id FROM buffered_updates WHERE provider = ?1
              GROUP BY task_id ORDER BY min(seq) DESC LIMIT -1 OFFSET ?2)",
    )?
    .execute((task.0, sql_limit(MAX_BUFFERED_TASKS)))?;
    Ok(BufferOutcome::Buffered)
}

fn buffered_updates(db: &Connection, task: (&str, &str)) -> Result<Vec<Update>, Error> {
    let mut statement = db.prepare_cached(
        "SELECT payload FROM buffered_updates WHERE provider = ? AND task_id = ? ORDER BY seq",
    )?;
    let mut rows = statement.query(task)?;
    let mut updates = Vec::new();
    while let Some(row) = rows.next()? {
        let update = text(row, 0).and_then(from_json);
        updates.extend(skip_corrupt(update, task.1)?);
    }
    Ok(updates)
}

/// Deletes the updates buffered for a task. Returns false, and deletes nothing, if one of them is
/// not in `applied`.
fn delete_buffered(db: &Connection, task: (&str, &str), applied: &[Update]) -> Result<bool, Error> {
    let updates = buffered_updates(db, task)?;
    if !updates.iter().all(|update| applied.contains(update)) {
        return Ok(false);
    }
    db.prepare_cached("DELETE FROM buffered_updates WHERE provider = ? AND task_id = ?")?
        .execute(task)?;
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

pub(super) fn text<'a>(row: &'a Row<'_>, column: usize) -> Result<&'a str, Error> {
    let value = row.get_ref(column)?.as_str();
    value.map_err(|error| rusqlite::Error::from(error).into())
}
