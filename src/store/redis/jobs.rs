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
use fred::types::Value;
use futures_util::future::try_join_all;

use super::RedisStore;
use super::pubsub::message_head;
use super::scripts::{BUFFER_UPDATE, ENSURE_DURABLE, READ_JOBS};
use super::unique_keys::{UniqueKey, decode_buffered};
use crate::job::{Job, JobId, Update};
use crate::store::codec::{EncodedJob, decode_job, skip_corrupt, to_json};
use crate::store::{
    BUFFERED_UPDATE_TTL, BufferOutcome, CommitJob, CommitOutcome, CreateJob, CreateOutcome, Error,
    JobStore, ListQuery, MAX_BUFFERED_BYTES, MAX_BUFFERED_TASKS, MAX_BUFFERED_UPDATES, RecentJob,
    Revision,
};
use crate::time::Time;

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

    fn recent(&self, id: &JobId) -> Option<RecentJob> {
        self.recent.get(id)
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
        if let Some(id) = self.recent.find_task(provider, task_id) {
            return Ok(Some(id));
        }
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
        let task = UniqueKey::task(provider, task_id);
        let partitions = self.connections.keys.partitions().count();
        let max_tasks = MAX_BUFFERED_TASKS.div_ceil(partitions);
        let index = self.partition_for(task.name()).buffered_tasks();
        let keys = vec![self.claim_key_of(&task), self.buffer_of(&task), index];
        let args = vec![
            to_json(update)?.into(),
            now.millis().into(),
            MAX_BUFFERED_UPDATES.to_string().into(),
            millis(BUFFERED_UPDATE_TTL + TTL_MARGIN).into(),
            task.name().into(),
            MAX_BUFFERED_BYTES.to_string().into(),
            max_tasks.to_string().into(),
            format!("{provider}/").into(),
        ];
        let outcome = self
            .run_unless_held(&BUFFER_UPDATE, &task, keys, args)
            .await?;
        Ok(match outcome {
            Ok(_) => BufferOutcome::Buffered,
            Err(holder) => BufferOutcome::TaskKnown(holder.job.id.clone()),
        })
    }

    async fn buffered_updates(&self, provider: &str, task_id: &str) -> Result<Vec<Update>, Error> {
        let _operation = self.connections.begin_operation()?;
        let task = UniqueKey::task(provider, task_id);
        let buffered = self.read_raw_buffered(&task).await?;
        let updates = buffered.iter().map(|entry| decode_buffered(entry));
        updates.filter_map(Result::transpose).collect()
    }
}

impl RedisStore {
    /// Returns the keys and arguments of the scripts that create and commit a job.
    ///
    /// `arguments` are the arguments that only the called script has. `extra` are additional fields
    /// of the hash.
    pub(super) fn job_script(
        &self,
        job: &Job,
        encoded: &EncodedJob,
        revision: Revision,
        arguments: impl IntoIterator<Item = Value>,
        extra: impl IntoIterator<Item = (&'static str, String)>,
    ) -> (Vec<String>, Vec<Value>) {
        let partition = self.partition_for(job.id.as_str());
        let keys = vec![
            partition.job(&job.id),
            partition.poll_queue(),
            partition.submit_queue(job.provider.as_deref().unwrap_or_default()),
            partition.expiry_queue(),
            partition.all_active_jobs(),
            partition.budget_outbox(),
            partition.channel(&job.id),
            partition.owner_channel(&job.owner),
        ];
        let schedule = &encoded.schedule;
        let (retained_from, retention) = match encoded.finished_at {
            Some(finished_at) => (finished_at, self.retention.terminal),
            None => (job.updated_at, self.retention.active),
        };
        let due = |time: Option<Time>| time.map(millis_of).unwrap_or_default();
        let flag = |is_set: bool| Value::from_static_str(if is_set { "1" } else { "0" });
        let mut args = vec![
            Value::from_static_str(self.connections.publish_command),
            job.id.as_str().into(),
            message_head(revision, &job.id).into(),
            due(schedule.poll_at).into(),
            due(schedule.submit_at).into(),
            millis_of(retained_from + retention).into(),
            millis(retention + TTL_MARGIN).into(),
            self.shared_key_ttl().into(),
            flag(job.is_final()),
        ];
        args.extend(arguments);
        let fields = [
            ("document", encoded.document.as_str().into()),
            ("internal", encoded.internal.as_str().into()),
            ("revision", revision.to_string().into()),
            ("version", job.version.to_string().into()),
            ("final", flag(job.is_final())),
            ("slot", flag(schedule.holds_slot)),
            ("submit_at", due(schedule.submit_at).into()),
            ("poll_interval", millis(schedule.poll_interval).into()),
            ("poll_backoff", flag(schedule.poll_backoff)),
            ("deadline_at", millis_of(job.deadline_at).into()),
            ("updated_at", millis_of(job.updated_at).into()),
        ];
        let extra = extra.into_iter().map(|(name, value)| (name, value.into()));
        for (name, value) in fields.into_iter().chain(extra) {
            args.extend([Value::from_static_str(name), value]);
        }
        (keys, args)
    }

    /// Returns [`Self::shared_key_lifetime`] in milliseconds.
    pub(super) fn shared_key_ttl(&self) -> String {
        millis(self.shared_key_lifetime())
    }

    /// Returns the TTL of keys that contain entries of several jobs.
    pub(super) fn shared_key_lifetime(&self) -> Duration {
        self.retention.terminal.max(self.retention.active) + TTL_MARGIN
    }

    /// Waits until the required number of replicas has this version of the job.
    ///
    /// During a failover, a version that was read may exist on the old primary only.
    pub(super) async fn ensure_replicated(&self, job: &Job) -> Result<CommitOutcome, Error> {
        if self.connections.required_replicas == 0 {
            return Ok(CommitOutcome::Committed);
        }
        let keys = vec![self.partition_for(job.id.as_str()).job(&job.id)];
        let args = vec![
            job.version.to_string().into(),
            job.updated_at.millis().to_string().into(),
        ];
        let outcome: String = self.connections.run(&ENSURE_DURABLE, keys, args).await?;
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
            let keys = ids.iter().map(|id| partition.job(id)).collect();
            let fields: Vec<Option<String>> =
                self.connections.run(&READ_JOBS, keys, Vec::new()).await?;
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

/// Returns the key under which the charges of one document are applied at most once.
pub(super) fn document_key(job: &Job) -> String {
    format!("{}:{}", job.id, job.version)
}

pub(super) fn millis_of(time: Time) -> String {
    time.millis().to_string()
}

pub(super) fn millis(span: Duration) -> String {
    span.as_millis().to_string()
}
