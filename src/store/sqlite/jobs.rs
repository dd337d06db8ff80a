//! Jobs in their table: creating, committing, reading, listing.
//!
//! Invariant: the columns beside `doc` are drawn from the same job in the same statement, so that
//! what is searched is what is shown.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};
use serde::de::DeserializeOwned;

use super::command_queue::{Changes, is_unreadable};
use super::{budgets, update_buffer};
use crate::job::{Job, JobId, Update};
use crate::store::codec::to_json;
use crate::store::{
    BudgetEntry, CommitOutcome, CreateOutcome, Error, IdempotencyKey, ListQuery, Schedule,
};

/// A job, written out where its caller runs, so that the writer's time is spent on writing.
pub(super) struct Record {
    job: Arc<Job>,
    agenda: Schedule,
    folded: Vec<Update>,
    entries: Vec<BudgetEntry>,
    doc: String,
    ticket: String,
}

impl Record {
    pub(super) fn of(
        job: Arc<Job>,
        agenda: Schedule,
        folded: Vec<Update>,
        entries: Vec<BudgetEntry>,
    ) -> Result<Self, Error> {
        Ok(Self {
            doc: to_json(&*job)?,
            ticket: to_json(&*job.internal)?,
            // An ended job wants nobody's attention.
            agenda: if job.is_final() {
                Schedule::default()
            } else {
                agenda
            },
            folded,
            entries,
            job,
        })
    }

    /// The provider's task, where it is known.
    fn task(&self) -> Option<(&str, &str)> {
        let provider = self.job.provider.as_deref();
        provider.zip(self.job.provider_task_id.as_deref())
    }

    fn finished_at(&self) -> Option<i64> {
        let end = self.job.finished_at.unwrap_or(self.job.updated_at);
        self.job.is_final().then_some(end.millis())
    }
}

pub(super) fn create(
    db: &Connection,
    record: &Record,
    idempotency: Option<&IdempotencyKey>,
    changes: &mut Changes,
) -> rusqlite::Result<CreateOutcome> {
    let job = &record.job;
    if let Some(IdempotencyKey {
        caller,
        key,
        fingerprint,
    }) = idempotency
    {
        let used = db
            .prepare_cached(
                "SELECT fingerprint, job_id FROM idempotency WHERE caller = ? AND key = ?",
            )?
            .query_row([caller, key], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
            })
            .optional()?;
        match used {
            Some((before, _)) if before != *fingerprint => {
                return Ok(CreateOutcome::IdempotencyKeyConflict);
            }
            Some((_, id)) => {
                if let Some(made) = get(db, &id)? {
                    return Ok(CreateOutcome::Replayed(made));
                }
            }
            None => {}
        }
    }
    if let Some(kept) = get(db, job.id.as_str())? {
        return Ok(CreateOutcome::Replayed(kept));
    }
    if let Some((provider, task_id)) = record.task() {
        let holder = db
            .prepare_cached("SELECT doc, ticket FROM jobs WHERE provider = ? AND task_id = ?")?
            .query_row([provider, task_id], from_row)
            .optional()?;
        if let Some(holder) = holder {
            return Ok(CreateOutcome::TaskConflict(holder));
        }
    }
    if let Some(account) = budgets::over_limit(db, &record.entries, job.updated_at)? {
        let window = account.to_owned();
        return Ok(CreateOutcome::LimitExceeded { window });
    }
    if let Some((provider, task_id)) = record.task()
        && !update_buffer::forget(db, provider, task_id, &record.folded)?
    {
        return Ok(CreateOutcome::Conflict);
    }
    budgets::book(db, &record.entries, job.updated_at)?;
    db.prepare_cached(
        "INSERT INTO jobs (id, owner, status, version, provider, task_id, submit_at, submit_due,
             watch_at, watch_every, watch_patient, holds_place, deadline_at, updated_at,
             finished_at, doc, ticket)
         VALUES (:id, :owner, :status, :version, :provider, :task_id, :submit, :submit,
             :watch, :every, :patient, :holds_place, :deadline_at, :updated_at,
             :finished_at, :doc, :ticket)",
    )?
    .execute(named_params! {
        ":id": job.id.as_str(),
        ":owner": job.owner,
        ":status": job.status.as_str(),
        ":version": job.version.cast_signed(),
        ":provider": job.provider,
        ":task_id": job.provider_task_id,
        ":submit": record.agenda.submit_at.map(|at| at.millis()),
        ":watch": record.agenda.poll_at.map(|at| at.millis()),
        ":every": millis(record.agenda.poll_interval),
        ":patient": record.agenda.poll_backoff,
        ":holds_place": record.agenda.holds_slot,
        ":deadline_at": job.deadline_at.millis(),
        ":updated_at": job.updated_at.millis(),
        ":finished_at": record.finished_at(),
        ":doc": record.doc,
        ":ticket": record.ticket,
    })?;
    if let Some(IdempotencyKey {
        caller,
        key,
        fingerprint,
    }) = idempotency
    {
        db.prepare_cached("INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?)")?
            .execute([caller, key, fingerprint, job.id.as_str()])?;
    }
    changes.push(Arc::clone(job));
    Ok(CreateOutcome::Created)
}

pub(super) fn commit(
    db: &Connection,
    record: &Record,
    expected: u64,
    changes: &mut Changes,
) -> rusqlite::Result<CommitOutcome> {
    let job = &record.job;
    let stored = db
        .prepare_cached("SELECT rowid, version, task_id, holds_place FROM jobs WHERE id = ?")?
        .query_row([job.id.as_str()], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, i64>(1)?,
                row.get::<_, Option<String>>(2)?,
                row.get::<_, bool>(3)?,
            ))
        })
        .optional()?;
    let Some((row, version, task_id, held_place)) = stored else {
        return Ok(CommitOutcome::NotFound);
    };
    if version.cast_unsigned() != expected {
        return Ok(CommitOutcome::Conflict);
    }
    let is_bound = task_id != job.provider_task_id;
    if is_bound && let Some((provider, task_id)) = record.task() {
        let is_taken = find_task(db, provider, task_id)?.is_some();
        if is_taken || !update_buffer::forget(db, provider, task_id, &record.folded)? {
            return Ok(CommitOutcome::Conflict);
        }
    }
    db.prepare_cached(
        "UPDATE jobs SET status = :status, version = :version, submit_at = :submit,
             submit_due = :submit, watch_at = min(:watch, ifnull(hastened_at, :watch)),
             watch_every = :every, watch_patient = :patient, deadline_at = :deadline_at, updated_at = :updated_at, doc = :doc, ticket = :ticket
         WHERE rowid = :row",
    )?
    .execute(named_params! {
        ":row": row,
        ":status": job.status.as_str(),
        ":version": job.version.cast_signed(),
        ":submit": record.agenda.submit_at.map(|at| at.millis()),
        ":watch": record.agenda.poll_at.map(|at| at.millis()),
        ":every": millis(record.agenda.poll_interval),
        ":patient": record.agenda.poll_backoff,
        ":deadline_at": job.deadline_at.millis(),
        ":updated_at": job.updated_at.millis(),
        ":doc": record.doc,
        ":ticket": record.ticket,
    })?;
    // These happen once or twice in a job's life; kept apart, they leave their indexes alone
    // otherwise.
    if is_bound {
        db.prepare_cached("UPDATE jobs SET task_id = ? WHERE rowid = ?")?
            .execute(params![job.provider_task_id, row])?;
    }
    if record.agenda.holds_slot != held_place {
        db.prepare_cached("UPDATE jobs SET holds_place = ? WHERE rowid = ?")?
            .execute(params![record.agenda.holds_slot, row])?;
    }
    if let Some(end) = record.finished_at() {
        db.prepare_cached("UPDATE jobs SET finished_at = ? WHERE rowid = ?")?
            .execute([end, row])?;
    }
    budgets::book(db, &record.entries, job.updated_at)?;
    changes.push(Arc::clone(job));
    Ok(CommitOutcome::Committed)
}

pub(super) fn get(db: &Connection, id: &str) -> rusqlite::Result<Option<Arc<Job>>> {
    db.prepare_cached("SELECT doc, ticket FROM jobs WHERE id = ?")?
        .query_row([id], from_row)
        .optional()
}

/// An unreadable job is told to the log and left out, so that it does not hide the others.
pub(super) fn get_many(db: &Connection, ids: &[JobId]) -> rusqlite::Result<Vec<Arc<Job>>> {
    let mut jobs = Vec::with_capacity(ids.len());
    for id in ids {
        match get(db, id.as_str()) {
            Ok(job) => jobs.extend(job),
            Err(error) => jobs.extend(skip_unreadable(Err(error), id.as_str())?),
        }
    }
    Ok(jobs)
}

pub(super) fn find_task(
    db: &Connection,
    provider: &str,
    task_id: &str,
) -> rusqlite::Result<Option<JobId>> {
    db.prepare_cached("SELECT id FROM jobs WHERE provider = ? AND task_id = ?")?
        .query_row([provider, task_id], |row| {
            let id: String = row.get(0)?;
            JobId::parse(&id).map_err(|error| unreadable(0, error))
        })
        .optional()
}

/// Like [`get_many`] with unreadable ones.
pub(super) fn list(db: &Connection, listing: &ListQuery) -> rusqlite::Result<Vec<Arc<Job>>> {
    let ListQuery {
        owner,
        status,
        before,
        active_first: unfinished_first,
        limit,
    } = listing;
    let unfinished = " AND finished_at IS NULL";
    let finished = " AND finished_at IS NOT NULL";
    let passes: &[&str] = match status {
        Some(status) if status.is_final() => &[""],
        Some(_) => &[unfinished],
        None if *unfinished_first => &[unfinished, finished],
        None => &[""],
    };
    let mut jobs = Vec::new();
    for pass in passes {
        let mut sql = format!("SELECT doc, ticket, id FROM jobs WHERE TRUE{pass}");
        let mut values: Vec<&str> = Vec::new();
        for (condition, value) in [
            (" AND owner = ?", owner.as_deref()),
            (" AND status = ?", status.map(crate::job::Status::as_str)),
            (" AND id < ?", before.as_ref().map(JobId::as_str)),
        ] {
            if let Some(value) = value {
                sql.push_str(condition);
                values.push(value);
            }
        }
        sql.push_str(" ORDER BY id DESC");
        let mut statement = db.prepare_cached(&sql)?;
        let mut rows = statement.query(rusqlite::params_from_iter(values))?;
        while jobs.len() < *limit
            && let Some(row) = rows.next()?
        {
            jobs.extend(skip_unreadable(from_row(row), &row.get::<_, String>(2)?)?);
        }
    }
    Ok(jobs)
}

/// The job in a row that begins with `doc` and `ticket`.
pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Arc<Job>> {
    let mut job: Job = from_json(row, 0)?;
    job.internal = Arc::new(from_json(row, 1)?);
    Ok(Arc::new(job))
}

/// Leaves an unreadable one out, with a word in the log.
pub(super) fn skip_unreadable<T>(
    found: rusqlite::Result<T>,
    what: &str,
) -> rusqlite::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_unreadable(&error) => {
            tracing::error!(what, %error, "the store holds something unreadable");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

pub(super) fn from_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    serde_json::from_str(text).map_err(|error| unreadable(column, error))
}

/// Whole milliseconds, as the tables keep a span of time.
pub(super) fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

fn unreadable(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}
