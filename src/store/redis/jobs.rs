//! Jobs as Redis hashes.
//!
//! One script changes the hash of a job and its queues, and publishes the change. Data in other
//! partitions only refers to the job: claims of unique keys, budget windows, slots and the indexes of
//! owners. It is written before the job where needed, so it may refer to a job that was never created,
//! and every reader checks the job.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fred::interfaces::HashesInterface;
use futures_util::future::try_join_all;
use serde::Serialize;

use super::RedisStore;
use super::scripts::{ENSURE_DURABLE, READ_JOBS};
use super::unique_keys::UniqueKey;
use crate::job::{Job, JobId, Update};
use crate::store::codec::{decode_job, finished_at, schedule_of, skip_corrupt};
use crate::store::{
    BufferOutcome, CommitJob, CommitOutcome, CreateJob, CreateOutcome, Error, JobStore, ListQuery,
    Schedule,
};
use crate::time::{Time, deterministic_jitter};

/// Jobs that one script reads. A longer script would delay other commands.
const READ_BATCH: usize = 64;

/// Time for which Redis keeps a key beyond its retention, so that the sweep deletes it first.
pub(super) const TTL_MARGIN: Duration = Duration::from_secs(24 * 3600);

#[async_trait]
impl JobStore for RedisStore {
    async fn create(&self, create: CreateJob) -> Result<CreateOutcome, Error> {
        let _operation = self.connections.begin_operation()?;
        self.create_job(&create).await
    }

    async fn get(&self, id: &JobId) -> Result<Option<Arc<Job>>, Error> {
        let _operation = self.connections.begin_operation()?;
        self.read(id).await
    }

    async fn get_many(&self, ids: &[JobId]) -> Result<Vec<Arc<Job>>, Error> {
        let _operation = self.connections.begin_operation()?;
        self.read_many(ids).await
    }

    async fn list(&self, query: ListQuery) -> Result<Vec<Arc<Job>>, Error> {
        let _operation = self.connections.begin_operation()?;
        self.list_jobs(&query).await
    }

    async fn find_task(&self, provider: &str, task_id: &str) -> Result<Option<JobId>, Error> {
        let _operation = self.connections.begin_operation()?;
        self.find_holder(&UniqueKey::task(provider, task_id)).await
    }

    async fn commit(&self, commit: CommitJob) -> Result<CommitOutcome, Error> {
        let _operation = self.connections.begin_operation()?;
        self.commit_job(&commit).await
    }

    async fn ensure_durable(&self, job: &Job) -> Result<CommitOutcome, Error> {
        let _operation = self.connections.begin_operation()?;
        self.ensure_replicated(job).await
    }

    async fn buffer_update(
        &self,
        provider: &str,
        task_id: &str,
        update: &Update,
        now: Time,
    ) -> Result<BufferOutcome, Error> {
        let _operation = self.connections.begin_operation()?;
        self.append_buffered(&UniqueKey::task(provider, task_id), update, now)
            .await
    }

    async fn buffered_updates(&self, provider: &str, task_id: &str) -> Result<Vec<Update>, Error> {
        let _operation = self.connections.begin_operation()?;
        self.read_buffered(&UniqueKey::task(provider, task_id))
            .await
    }
}

/// What a create or commit changes besides the document, in the form that the scripts read.
#[derive(Serialize)]
pub(super) struct CommitFields {
    /// Fields of the hash: alternating names and values.
    fields: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    poll_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    submit_at: Option<String>,
    expires_at: String,
    /// TTL of the job in milliseconds.
    ttl: String,
    /// TTL of the queues and indexes in milliseconds.
    shared_ttl: String,
    r#final: bool,
}

impl RedisStore {
    /// Returns the keys that the scripts for creating and committing a job access.
    pub(super) fn job_keys(&self, job: &Job) -> Vec<String> {
        let partition = self.partition_for(job.id.as_str());
        vec![
            partition.job(&job.id),
            partition.poll_queue(),
            partition.submit_queue(job.provider.as_deref().unwrap_or_default()),
            partition.expiry_queue(),
            partition.jobs(None),
            partition.active_jobs(None),
            partition.budget_outbox(),
            partition.channel(&job.id),
            partition.owner_channel(&job.owner),
        ]
    }

    pub(super) fn commit_fields(&self, job: &Job, schedule: Schedule) -> CommitFields {
        let schedule = schedule_of(job, schedule);
        let (retained_from, retention) = match finished_at(job) {
            Some(finished_at) => (finished_at, self.retention.terminal),
            None => (job.updated_at, self.retention.active),
        };
        let millis_of = |time: Time| time.millis().to_string();
        let flag = |is_set: bool| if is_set { "1" } else { "0" }.to_owned();
        let submit_at = schedule.submit_at.map(millis_of);
        CommitFields {
            fields: flatten([
                ("version", job.version.to_string()),
                ("final", flag(job.is_final())),
                ("slot", flag(schedule.holds_slot)),
                ("submit_at", submit_at.clone().unwrap_or_default()),
                ("poll_interval", millis(schedule.poll_interval)),
                ("poll_backoff", flag(schedule.poll_backoff)),
                ("deadline_at", millis_of(job.deadline_at)),
                ("updated_at", millis_of(job.updated_at)),
            ]),
            poll_at: schedule.poll_at.map(millis_of),
            submit_at,
            expires_at: millis_of(retained_from + retention),
            ttl: millis(retention + TTL_MARGIN),
            shared_ttl: self.shared_key_ttl(),
            r#final: job.is_final(),
        }
    }

    /// Returns the TTL in milliseconds of keys that belong to several jobs, counted from the last
    /// write.
    pub(super) fn shared_key_ttl(&self) -> String {
        millis(self.retention.terminal.max(self.retention.active) + TTL_MARGIN)
    }

    /// Waits until the required number of replicas has this version of the job.
    ///
    /// During a failover, a version that was read may exist on the old primary only.
    pub(super) async fn ensure_replicated(&self, job: &Job) -> Result<CommitOutcome, Error> {
        if !self.connections.requires_replicas() {
            return Ok(CommitOutcome::Committed);
        }
        let partition = self.partition_for(job.id.as_str());
        let args = vec![
            job.version.to_string().into(),
            job.updated_at.millis().to_string().into(),
        ];
        let outcome: String = self
            .connections
            .run_script_replicated(&ENSURE_DURABLE, vec![partition.job(&job.id)], args)
            .await?;
        Ok(match outcome.as_str() {
            "done" => CommitOutcome::Committed,
            "not_found" => CommitOutcome::NotFound,
            _ => CommitOutcome::Conflict,
        })
    }

    pub(super) async fn read(&self, id: &JobId) -> Result<Option<Arc<Job>>, Error> {
        let key = self.partition_for(id.as_str()).job(id);
        let (client, names) = (self.connections.client(), vec!["document", "internal"]);
        let fields: Vec<Option<String>> = client.hmget(key, names).await?;
        match fields.as_slice() {
            [Some(document), Some(internal)] => decode_job(document, internal).map(Some),
            _ => Ok(None),
        }
    }

    /// Reads jobs with one script for each batch. Skips missing and corrupt jobs.
    pub(super) async fn read_many(&self, ids: &[JobId]) -> Result<Vec<Arc<Job>>, Error> {
        let keys = &self.connections.keys;
        let groups = keys.group(ids.iter().map(JobId::as_str));
        let batches = groups.iter().flat_map(|(&number, ids)| {
            let partition = keys.partition(number);
            ids.chunks(READ_BATCH).map(move |batch| (partition, batch))
        });
        let reads = batches.map(async |(partition, ids)| {
            let job_keys = ids.iter().map(|id| partition.job(id)).collect();
            let fields: Vec<Option<String>> = self
                .connections
                .run_script(&READ_JOBS, job_keys, Vec::new())
                .await?;
            let jobs = ids.iter().zip(fields.as_chunks().0);
            let jobs = jobs.filter_map(|(id, job)| match job {
                [Some(document), Some(internal)] => {
                    skip_corrupt(decode_job(document, internal), id).transpose()
                }
                [None, _] | [_, None] => None,
            });
            jobs.collect::<Result<Vec<_>, Error>>()
        });
        Ok(try_join_all(reads).await?.concat())
    }
}

/// Returns the fields of the hash that never change: alternating names and values.
pub(super) fn immutable_fields(job: &Job, idempotency: Option<&UniqueKey>) -> Vec<String> {
    // The script that claims polls scales the jitter to the interval, in steps of 1/1024.
    let whole = Duration::from_millis(10 * 1024);
    let jitter = deterministic_jitter(whole, job.id.as_str()) - whole;
    let idempotency = idempotency.map(|key| key.name().to_owned());
    flatten([
        ("owner", job.owner.clone()),
        ("provider", job.provider.clone().unwrap_or_default()),
        ("task", task_field(job)),
        ("idempotency", idempotency.unwrap_or_default()),
        ("jitter", millis(jitter)),
    ])
}

fn flatten<const N: usize>(fields: [(&str, String); N]) -> Vec<String> {
    let fields = fields.into_iter();
    fields
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
}

pub(super) fn task_field(job: &Job) -> String {
    job.provider_task_id.clone().unwrap_or_default()
}

/// Returns the key under which the charges of one document are applied at most once.
pub(super) fn document_key(job: &Job) -> String {
    format!("{}:{}", job.id, job.version)
}

pub(super) fn millis(span: Duration) -> String {
    span.as_millis().to_string()
}
