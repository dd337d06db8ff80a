//! Encoding of stored values, shared by all engines.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Error, ListQuery, Schedule};
use crate::job::Job;
use crate::time::Time;

/// A job as stored: the public document and the internal state, both as JSON, and what is derived
/// from them.
#[derive(Debug)]
pub(super) struct EncodedJob {
    pub(super) document: String,
    pub(super) internal: String,
    /// Schedule to store. It is empty for a finished job, which is never due and holds no slot.
    pub(super) schedule: Schedule,
    /// When the job finished, or `None` if it has not.
    pub(super) finished_at: Option<Time>,
}

impl EncodedJob {
    pub(super) fn new(job: &Job, schedule: Schedule) -> Result<Self, Error> {
        let finished_at = job.finished_at.unwrap_or(job.updated_at);
        let finished_at = job.is_final().then_some(finished_at);
        Ok(Self {
            document: to_json(job)?,
            internal: to_json(&*job.internal)?,
            schedule: finished_at.map_or(schedule, |_| Schedule::default()),
            finished_at,
        })
    }

    /// Returns the total size of the document and the internal state, in bytes.
    pub(super) fn size(&self) -> usize {
        self.document.len() + self.internal.len()
    }
}

pub(super) fn decode_job(document: &str, internal: &str) -> Result<Arc<Job>, Error> {
    let mut job: Job = from_json(document)?;
    job.internal = Arc::new(from_json(internal)?);
    Ok(Arc::new(job))
}

pub(super) fn to_json<T: Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Corrupt(error.to_string()))
}

pub(super) fn from_json<T: DeserializeOwned>(json: &str) -> Result<T, Error> {
    serde_json::from_str(json).map_err(|error| Error::Corrupt(error.to_string()))
}

/// Logs corrupt data and returns `None` for it, so that one value does not hide the others.
///
/// `key` identifies the value in the log.
pub(super) fn skip_corrupt<T>(decoded: Result<T, Error>, key: &str) -> Result<Option<T>, Error> {
    match decoded {
        Ok(value) => Ok(Some(value)),
        Err(Error::Corrupt(error)) => {
            tracing::error!(store.key = key, error, "corrupt data skipped");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Returns the provider and task id of a job, if both are known.
pub(super) fn task_of(job: &Job) -> Option<(&str, &str)> {
    job.provider.as_deref().zip(job.provider_task_id.as_deref())
}

/// The jobs of a list that are read together, from newest to oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListGroup {
    Active,
    Finished,
    All,
}

impl ListQuery {
    /// Returns the groups that the list consists of, in their order.
    pub(super) fn groups(&self) -> &'static [ListGroup] {
        match self.status {
            Some(status) if status.is_final() => &[ListGroup::Finished],
            Some(_) => &[ListGroup::Active],
            None if self.active_first => &[ListGroup::Active, ListGroup::Finished],
            None => &[ListGroup::All],
        }
    }
}
