//! Deliveries and the state of destinations.
//!
//! The indexed columns of a delivery are written in the same statement as its progress. Deliveries of
//! one version share its document.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};

use super::jobs::text;
use super::{SqliteStore, sql_limit};
use crate::job::{Job, JobId};
use crate::outbox::{Delivery, DeliveryId, DestinationState, NewDelivery, Progress};
use crate::store::codec::{from_json, skip_corrupt, to_json};
use crate::store::outbox::CORRUPT_RETRY_DELAY;
use crate::store::{
    DeliveryCursor, DeliveryQuery, DeliveryStateFilter, Error, Outbox, StoredDestination,
};
use crate::time::Time;

/// A query for the columns that [`decode_row`] reads. `CROSS JOIN` keeps the order of the tables.
macro_rules! select_deliveries {
    ($rest:literal) => {
        concat!(
            "SELECT job_id, event, destination, version, owner, target, created_at, progress, document
             FROM deliveries CROSS JOIN delivery_documents USING (job_id, version) WHERE ",
            $rest
        )
    };
}

const DELIVERY: &str =
    select_deliveries!("job_id = ? AND event = ? AND destination = ? AND version = ?");

const DUE: &str = select_deliveries!("destination = ? AND due_at <= ? ORDER BY due_at LIMIT ?");

const NEXT: &str =
    "SELECT min(due_at) FROM deliveries WHERE destination = ? AND due_at IS NOT NULL";

const WAITING_COUNTS: &str = "SELECT destination, count(*) FROM deliveries
    WHERE due_at IS NOT NULL GROUP BY destination";

// `+` excludes the index of due deliveries. A job has few deliveries, but a destination may have many.
const DELETE_SUPERSEDED: &str =
    "DELETE FROM deliveries WHERE job_id = ? AND +destination = ? AND +due_at IS NOT NULL";

const DELETE_UNUSED_DOCUMENTS: &str = "DELETE FROM delivery_documents
    WHERE job_id = ?1 AND version NOT IN (SELECT version FROM deliveries WHERE job_id = ?1)";

// A delivery is never due before it is created. The index of creation times therefore limits the
// search.
const WAITING_SINCE: &str = "SELECT job_id, event, destination FROM deliveries
    WHERE due_at IS NOT NULL AND created_at < ?1 AND due_at < ?1 ORDER BY created_at LIMIT ?2";

const DELETE_DELIVERY: &str =
    "DELETE FROM deliveries WHERE job_id = ? AND event = ? AND destination = ?";

#[async_trait]
impl Outbox for SqliteStore {
    async fn due_deliveries(
        &self,
        destination: &str,
        now: Time,
        limit: usize,
    ) -> Result<Vec<Arc<Delivery>>, Error> {
        let destination = destination.to_owned();
        let (due, corrupt) = self
            .read(move |db| due(db, &destination, now, limit))
            .await?;
        if !corrupt.is_empty() {
            let retry_at = now + CORRUPT_RETRY_DELAY;
            self.write(move |db, _| postpone(db, &corrupt, retry_at))
                .await?;
        }
        Ok(due)
    }

    async fn next_delivery_at(&self, destination: &str) -> Result<Option<Time>, Error> {
        let destination = destination.to_owned();
        self.read(move |db| {
            let mut statement = db.prepare_cached(NEXT)?;
            let due = statement.query_row([destination], |row| row.get(0))?;
            Ok(Option::map(due, Time::from_millis))
        })
        .await
    }

    async fn record_progress(&self, id: &DeliveryId, progress: Progress) -> Result<bool, Error> {
        let (id, json) = (id.clone(), to_json(&progress)?);
        self.write(move |db, _| Ok(record_progress(db, &id, &progress, &json)?))
            .await
    }

    async fn delivery(&self, id: &DeliveryId) -> Result<Option<Arc<Delivery>>, Error> {
        let id = id.clone();
        self.read(move |db| {
            let mut statement = db.prepare_cached(DELIVERY)?;
            let version = id.version.cast_signed();
            let values = params![id.job.as_str(), id.event, id.destination, version];
            let mut rows = statement.query(values)?;
            rows.next()?.map(decode_row).transpose()
        })
        .await
    }

    async fn deliveries(&self, query: DeliveryQuery) -> Result<Vec<Arc<Delivery>>, Error> {
        self.read(move |db| list(db, &query)).await
    }

    async fn destinations(&self) -> Result<Vec<StoredDestination>, Error> {
        self.read(destinations).await
    }

    async fn destination_state(&self, destination: &str) -> Result<DestinationState, Error> {
        let destination = destination.to_owned();
        self.read(move |db| {
            let state: Option<String> = db
                .prepare_cached("SELECT state FROM destinations WHERE name = ?")?
                .query_row([destination], |row| row.get(0))
                .optional()?;
            state.map_or_else(|| Ok(DestinationState::default()), |it| from_json(&it))
        })
        .await
    }

    async fn put_destination_state(
        &self,
        destination: &str,
        state: DestinationState,
    ) -> Result<bool, Error> {
        let (name, json) = (destination.to_owned(), to_json(&state)?);
        let revision = state.revision.cast_signed();
        self.write(move |db, _| {
            let changed = db
                .prepare_cached(
                    "INSERT INTO destinations SELECT ?1, ?2, ?3
                     WHERE ?2 = 1 OR EXISTS (SELECT 1 FROM destinations WHERE name = ?1)
                     ON CONFLICT (name) DO UPDATE SET revision = ?2, state = ?3
                     WHERE revision = ?2 - 1",
                )?
                .execute(params![name, revision, json])?;
            Ok(changed == 1)
        })
        .await
    }
}

/// Adds the deliveries that follow from a version of a job, and deletes those that they supersede.
pub(super) fn add(
    db: &Connection,
    job: &Job,
    document: &str,
    deliveries: &[NewDelivery],
) -> rusqlite::Result<()> {
    if deliveries.is_empty() {
        return Ok(());
    }
    let (id, version) = (job.id.as_str(), job.version.cast_signed());
    let progress = Progress::new(job.updated_at);
    let json = serde_json::to_string(&progress)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    db.prepare_cached("INSERT OR REPLACE INTO delivery_documents VALUES (?, ?, ?)")?
        .execute(params![id, version, document])?;
    let mut delete_superseded = db.prepare_cached(DELETE_SUPERSEDED)?;
    let mut insert = db.prepare_cached(
        "INSERT OR REPLACE INTO deliveries (job_id, event, destination, version, owner, target,
             state, due_at, created_at, revision, progress)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    for delivery in deliveries {
        if !delivery.is_independent {
            delete_superseded.execute([id, &delivery.destination])?;
        }
        insert.execute(params![
            id,
            delivery.event,
            delivery.destination,
            version,
            job.owner,
            delivery.target,
            DeliveryStateFilter::of(&progress.state).as_str(),
            progress.due_at().map(Time::millis),
            job.updated_at.millis(),
            progress.revision.cast_signed(),
            json,
        ])?;
    }
    delete_unused_documents(db, id)
}

fn due(
    db: &Connection,
    destination: &str,
    now: Time,
    limit: usize,
) -> Result<(Vec<Arc<Delivery>>, Vec<Key>), Error> {
    let mut statement = db.prepare_cached(DUE)?;
    let mut rows = statement.query(params![destination, now.millis(), sql_limit(limit)])?;
    let (mut due, mut corrupt) = (Vec::new(), Vec::new());
    while let Some(row) = rows.next()? {
        match skip_corrupt(decode_row(row), text(row, 0)?)? {
            Some(delivery) => due.push(delivery),
            None => corrupt.push(key(row)?),
        }
    }
    Ok((due, corrupt))
}

fn postpone(db: &Connection, deliveries: &[Key], due_at: Time) -> Result<(), Error> {
    let mut statement = db.prepare_cached(
        "UPDATE deliveries SET due_at = ?
         WHERE job_id = ? AND event = ? AND destination = ? AND due_at IS NOT NULL",
    )?;
    for (job, event, destination) in deliveries {
        statement.execute(params![due_at.millis(), job, event, destination])?;
    }
    Ok(())
}

/// Replaces the progress of a delivery, of which `json` is the encoding.
fn record_progress(
    db: &Connection,
    id: &DeliveryId,
    progress: &Progress,
    json: &str,
) -> rusqlite::Result<bool> {
    let (job, due_at) = (id.job.as_str(), progress.due_at());
    let changed = db
        .prepare_cached(
            "UPDATE deliveries SET state = ?5, due_at = ?6, revision = ?7, progress = ?8
             WHERE job_id = ?1 AND event = ?2 AND destination = ?3 AND version = ?4
                 AND revision = ?7 - 1",
        )?
        .execute(params![
            job,
            id.event,
            id.destination,
            id.version.cast_signed(),
            DeliveryStateFilter::of(&progress.state).as_str(),
            due_at.map(Time::millis),
            progress.revision.cast_signed(),
            json,
        ])?;
    if changed == 0 {
        return Ok(false);
    }
    let has_job = || -> rusqlite::Result<bool> {
        db.prepare_cached("SELECT EXISTS (SELECT 1 FROM jobs WHERE id = ?)")?
            .query_row([job], |row| row.get(0))
    };
    if due_at.is_none() && !has_job()? {
        db.prepare_cached(DELETE_DELIVERY)?
            .execute([job, &id.event, &id.destination])?;
        delete_unused_documents(db, job)?;
    }
    Ok(true)
}

fn list(db: &Connection, query: &DeliveryQuery) -> Result<Vec<Arc<Delivery>>, Error> {
    let (sql, values) = list_query(query);
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut deliveries = Vec::new();
    while deliveries.len() < query.limit
        && let Some(row) = rows.next()?
    {
        deliveries.extend(skip_corrupt(decode_row(row), text(row, 0)?)?);
    }
    Ok(deliveries)
}

/// Returns the statement of a list and its values.
///
/// The first filter selects the index. In the others, `+` excludes the column from the choice.
fn list_query(query: &DeliveryQuery) -> (String, Vec<Value>) {
    let job = query.job.as_ref().map(|job| job.as_str().to_owned());
    let (rare_state, state) = match query.state {
        Some(DeliveryStateFilter::Waiting) => (Some("due_at IS NOT NULL"), None),
        Some(DeliveryStateFilter::Failed) => (Some("state = 'failed'"), None),
        Some(DeliveryStateFilter::Delivered) => (None, Some("state = 'delivered'")),
        None => (None, None),
    };
    let filters = [
        (job.is_some().then_some("job_id = ?"), job),
        (
            query.owner.is_some().then_some("owner = ?"),
            query.owner.clone(),
        ),
        (rare_state, None),
        (
            query.destination.is_some().then_some("destination = ?"),
            query.destination.clone(),
        ),
        (state, None),
    ];
    let mut sql = select_deliveries!("TRUE").to_owned();
    let (mut values, mut operator) = (Vec::new(), " AND ");
    for (condition, value) in filters {
        if let Some(condition) = condition {
            sql.extend([operator, condition]);
            values.extend(value.map(Value::Text));
            operator = " AND +";
        }
    }
    if let Some(DeliveryCursor { created_at, id }) = &query.after {
        sql.push_str(" AND (created_at, job_id, event, destination) < (?, ?, ?, ?)");
        values.push(Value::Integer(created_at.millis()));
        let key = [id.job.as_str(), &id.event, &id.destination];
        values.extend(key.map(|it| Value::Text(it.to_owned())));
    }
    sql.push_str(" ORDER BY created_at DESC, job_id DESC, event DESC, destination DESC");
    (sql, values)
}

fn destinations(db: &Connection) -> Result<Vec<StoredDestination>, Error> {
    let mut statement = db.prepare_cached("SELECT name, state FROM destinations")?;
    let mut rows = statement.query([])?;
    let mut states = Vec::new();
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        let state = skip_corrupt(from_json(text(row, 1)?), &name)?;
        states.extend(state.map(|state| (name, state)));
    }
    let waiting: Vec<(String, i64)> = db
        .prepare_cached(WAITING_COUNTS)?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let waiting = waiting
        .into_iter()
        .map(|(name, count)| (name, count.cast_unsigned()));
    Ok(StoredDestination::merge(states, waiting))
}

/// Deletes the ended deliveries of a job that was deleted.
pub(super) fn delete_ended(db: &Connection, job: &str) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM deliveries WHERE job_id = ? AND +due_at IS NULL")?
        .execute([job])?;
    delete_unused_documents(db, job)
}

/// Deletes up to `limit` deliveries that have waited since a time before `before`. Returns their
/// number.
pub(super) fn delete_waiting_since(
    db: &Connection,
    before: Time,
    limit: usize,
) -> rusqlite::Result<usize> {
    let expired: Vec<Key> = db
        .prepare_cached(WAITING_SINCE)?
        .query_map([before.millis(), sql_limit(limit)], key)?
        .collect::<rusqlite::Result<_>>()?;
    for (job, event, destination) in &expired {
        db.prepare_cached(DELETE_DELIVERY)?
            .execute([job, event, destination])?;
        delete_unused_documents(db, job)?;
    }
    Ok(expired.len())
}

/// Deletes the documents of a job that no delivery uses.
fn delete_unused_documents(db: &Connection, job: &str) -> rusqlite::Result<()> {
    db.prepare_cached(DELETE_UNUSED_DOCUMENTS)?.execute([job])?;
    Ok(())
}

/// The job, the event and the destination of a delivery.
type Key = (String, String, String);

/// Reads a row that begins with the columns of the primary key.
fn key(row: &Row<'_>) -> rusqlite::Result<Key> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

/// Decodes a row of [`select_deliveries`].
fn decode_row(row: &Row<'_>) -> Result<Arc<Delivery>, Error> {
    let job = JobId::parse(text(row, 0)?).map_err(|error| Error::Corrupt(error.to_string()))?;
    let (_, event, destination) = key(row)?;
    Ok(Arc::new(Delivery {
        id: DeliveryId {
            job,
            version: row.get(3).map(i64::cast_unsigned)?,
            event,
            destination,
        },
        owner: row.get(4)?,
        target: row.get(5)?,
        created_at: Time::from_millis(row.get(6)?),
        progress: from_json(text(row, 7)?)?,
        document: row.get(8)?,
    }))
}

#[cfg(test)]
mod tests;
