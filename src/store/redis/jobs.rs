//! Jobs in their hashes: creating, committing, reading.
//!
//! Invariant: a job's hash is the truth and changes in one script, together with its queues and the
//! telling of it. Everything elsewhere (tasks, keys, accounts, places, owners' lists) only points at
//! it: it is written before where it may name too much, and whoever follows it looks at the job.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fred::interfaces::HashesInterface;
use futures_util::future::try_join_all;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::RedisStore;
use super::connection::to_store_error;
use super::keys::Partition;
use super::scripts::{ENSURE_DURABLE, READ_JOBS};
use crate::job::{Job, JobId};
use crate::store::{CommitOutcome, Error, Schedule};

/// Jobs that one script reads: few enough that others don't wait for it.
const READ_BATCH: usize = 64;

/// How much longer than its retention anything is kept by Redis itself: the sweep comes first.
pub(super) const TTL_MARGIN: Duration = Duration::from_secs(24 * 3600);

/// What a commit changes beside the document, as its script reads it.
#[derive(Serialize)]
pub(super) struct CommitFields {
    /// Names and values in turn.
    fields: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    watch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    submit: Option<String>,
    /// When it may be forgotten.
    forget: String,
    /// How long Redis keeps the job, and how long its queues, in milliseconds.
    ttl: String,
    shared_ttl: String,
    r#final: bool,
}

impl RedisStore {
    /// Waits until as many replicas as are asked for have this version. While one Redis takes over
    /// from another, what was read may be kept by the one that is left, and nowhere else.
    pub(super) async fn ensure_replicated(&self, job: &Job) -> Result<CommitOutcome, Error> {
        if !self.link.requires_replicas() {
            return Ok(CommitOutcome::Committed);
        }
        let keys = vec![self.link.keys.partition_for(job.id.as_str()).job(&job.id)];
        let args = vec![
            job.version.to_string().into(),
            job.updated_at.millis().to_string().into(),
        ];
        let answer: String = self
            .link
            .run_script_replicated(&ENSURE_DURABLE, keys, args)
            .await?;
        Ok(match answer.as_str() {
            "done" => CommitOutcome::Committed,
            "gone" => CommitOutcome::NotFound,
            _ => CommitOutcome::Conflict,
        })
    }

    /// The keys of all that a script does to a job.
    pub(super) fn keys_of(&self, part: Partition<'_>, job: &Job) -> [String; 9] {
        [
            part.job(&job.id),
            part.poll_queue(),
            part.submit(job.provider.as_deref().unwrap_or_default()),
            part.expiry_queue(),
            part.jobs(None),
            part.active_jobs(None),
            part.budget_outbox(),
            part.channel(&job.id),
            part.owner_channel(&job.owner),
        ]
    }

    pub(super) fn changes(&self, job: &Job, agenda: Schedule) -> CommitFields {
        // An ended job wants nobody's attention.
        let agenda = if job.is_final() {
            Schedule::default()
        } else {
            agenda
        };
        let kept = match job.is_final() {
            true => self.retention.terminal,
            false => self.retention.active,
        };
        let since = match job.is_final() {
            true => job.finished_at.unwrap_or(job.updated_at),
            false => job.updated_at,
        };
        let submit = agenda.submit_at.map(|at| at.millis().to_string());
        let flag = |is: bool| if is { "1" } else { "0" }.to_owned();
        let fields = [
            ("version", job.version.to_string()),
            ("final", flag(job.is_final())),
            ("place", flag(agenda.holds_slot)),
            ("submit", submit.clone().unwrap_or_default()),
            ("every", agenda.poll_interval.as_millis().to_string()),
            ("patient", flag(agenda.poll_backoff)),
            ("deadline", job.deadline_at.millis().to_string()),
            ("updated", job.updated_at.millis().to_string()),
        ];
        CommitFields {
            fields: fields
                .into_iter()
                .flat_map(|(name, value)| [name.to_owned(), value])
                .collect(),
            watch: agenda.poll_at.map(|at| at.millis().to_string()),
            submit,
            forget: (since + kept).millis().to_string(),
            ttl: millis(kept + TTL_MARGIN),
            shared_ttl: self.shared_key_ttl(),
            r#final: job.is_final(),
        }
    }

    /// How long what belongs to no one job is kept after its last use.
    pub(super) fn shared_key_ttl(&self) -> String {
        millis(self.retention.terminal.max(self.retention.active) + TTL_MARGIN)
    }

    pub(super) async fn read(&self, id: &JobId) -> Result<Option<Arc<Job>>, Error> {
        let key = self.link.keys.partition_for(id.as_str()).job(id);
        let found: Vec<Option<String>> = self
            .link
            .client()
            .hmget(key, vec!["doc", "ticket"])
            .await
            .map_err(|error| to_store_error(&error))?;
        match found.as_slice() {
            [Some(doc), Some(ticket)] => job_from(doc, ticket).map(Some),
            _ => Ok(None),
        }
    }

    /// Many in one go: a storm of subscribers must not become a command for each of their jobs. An
    /// unreadable job is told to the log and left out, so that it does not hide the others.
    pub(super) async fn read_many(&self, ids: &[JobId]) -> Result<Vec<Arc<Job>>, Error> {
        let mut places: BTreeMap<usize, Vec<&JobId>> = BTreeMap::new();
        for id in ids {
            let place = self.link.keys.partition_for(id.as_str()).number;
            places.entry(place).or_default().push(id);
        }
        let some = places.values().flat_map(|ids| ids.chunks(READ_BATCH));
        let reads = some.map(async |ids| {
            let keys = ids
                .iter()
                .map(|id| self.link.keys.partition_for(id.as_str()).job(id));
            let found: Vec<Option<String>> = self
                .link
                .run_script(&READ_JOBS, keys.collect(), Vec::new())
                .await?;
            Ok::<_, Error>(found)
        });
        let found = try_join_all(reads).await?.concat();
        let readable = |pair: &[Option<String>; 2]| match pair {
            [Some(doc), Some(ticket)] => job_from(doc, ticket)
                .inspect_err(|error| tracing::error!(%error, "can't read a job"))
                .ok(),
            [None, _] | [_, None] => None,
        };
        Ok(found.as_chunks().0.iter().filter_map(readable).collect())
    }
}

/// The provider's task, where it is known.
pub(super) fn task_of(job: &Job) -> Option<(&str, &str)> {
    job.provider.as_deref().zip(job.provider_task_id.as_deref())
}

pub(super) fn task_field(job: &Job) -> String {
    job.provider_task_id.clone().unwrap_or_default()
}

/// Under which name a document's bookings are made once.
pub(super) fn document_key(job: &Job) -> String {
    format!("{}:{}", job.id, job.version)
}

/// The job that a hash or a script's answer holds.
pub(super) fn job_from(doc: &str, ticket: &str) -> Result<Arc<Job>, Error> {
    let mut job: Job = from_json(doc)?;
    job.internal = Arc::new(from_json(ticket)?);
    Ok(Arc::new(job))
}

pub(super) fn millis(span: Duration) -> String {
    span.as_millis().to_string()
}

pub(super) fn to_json<T: Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Corrupt(error.to_string()))
}

pub(super) fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| Error::Corrupt(error.to_string()))
}
