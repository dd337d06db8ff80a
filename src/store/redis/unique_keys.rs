//! Names that belong to one job: a provider's task, a caller's key; and the news that comes for a
//! task before its job does.
//!
//! Invariant: a name is claimed before its job is written and parked news is looked through in the
//! same step, so news is either parked before the claim and folded in, or waits for the job. A claim
//! counts only with a job behind it; one whose job does not come within [`LEASE`] is void.

use std::sync::Arc;
use std::time::Duration;

use fred::interfaces::{KeysInterface, ListInterface};
use fred::types::Value;
use serde::Deserialize;

use super::RedisStore;
use super::connection::to_store_error;
use super::jobs::{from_json, task_of, to_json};
use super::scripts::{BUFFER_UPDATE, CLAIM_KEY, DELETE_BUFFERED, RELEASE_KEY};
use crate::job::{Job, JobId, Update};
use crate::store::{BUFFERED_UPDATE_TTL, BufferOutcome, Error, MAX_BUFFERED_UPDATES};
use crate::time::Time;

/// How long a claim may be without its job: longer than any call takes.
const KEY_CLAIM_LEASE: Duration = Duration::from_secs(10);

/// How long to wait for another's claim to become a job, and how long between two looks.
const CLAIM_WAIT: Duration = Duration::from_secs(2);
const CLAIM_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What is claimed.
#[derive(Clone, Debug)]
pub(super) enum UniqueKey {
    Task(String),
    Idempotency(String),
}

/// How a claim ended.
pub(super) enum ClaimOutcome {
    /// The name is the job's. None where there was nothing to claim.
    Acquired(Option<UniqueKey>),
    /// It is this job's, with this fingerprint.
    HeldBy { job: Arc<Job>, print: String },
    /// More was parked for it than the job has in it.
    UpdatesMissed,
}

/// A claim as it stands in Redis.
#[derive(Deserialize)]
struct ClaimRecord {
    job: JobId,
    fingerprint: String,
}

impl UniqueKey {
    pub(super) fn task(name: &str) -> Self {
        Self::Task(name.to_owned())
    }

    pub(super) fn key(name: &str) -> Self {
        Self::Idempotency(name.to_owned())
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Self::Task(text) | Self::Idempotency(text) => text,
        }
    }
}

impl RedisStore {
    /// The name's key, and its parked news.
    fn key_names(&self, name: &UniqueKey) -> Vec<String> {
        let part = self.link.keys.partition_for(name.text());
        let key = match name {
            UniqueKey::Task(text) => part.task(text),
            UniqueKey::Idempotency(text) => part.idempotency(text),
        };
        vec![key, part.buffered_updates(name.text())]
    }

    /// Claims a name for a job that has `folded` of what is parked for it in it.
    pub(super) async fn claim(
        &self,
        name: UniqueKey,
        job: &Job,
        print: &str,
        folded: &[Update],
    ) -> Result<ClaimOutcome, Error> {
        let news = match &name {
            UniqueKey::Task(_) => self.raw_buffered_updates(&name).await?,
            UniqueKey::Idempotency(_) => Vec::new(),
        };
        let is_folded = |one: &String| skip_unreadable(one).is_none_or(|one| folded.contains(&one));
        if !news.iter().all(is_folded) {
            return Ok(ClaimOutcome::UpdatesMissed);
        }
        let mut void = String::new();
        let begun = tokio::time::Instant::now();
        loop {
            let mut args: Vec<Value> = vec![
                job.id.as_str().into(),
                print.into(),
                self.shared_key_ttl().into(),
                void.as_str().into(),
            ];
            args.extend(news.iter().map(|one| Value::from(one.as_str())));
            let answer: Vec<String> = self
                .link
                .run_script_replicated(&CLAIM_KEY, self.key_names(&name), args)
                .await?;
            match answer.as_slice() {
                [word] if word == "claimed" => return Ok(ClaimOutcome::Acquired(Some(name))),
                [_, held, age] => {
                    let holder: ClaimRecord = from_json(held)?;
                    match self.claim_status(&name, &holder, age).await? {
                        ClaimStatus::Valid(job) => {
                            let print = holder.fingerprint;
                            return Ok(ClaimOutcome::HeldBy { job, print });
                        }
                        ClaimStatus::Expired => held.clone_into(&mut void),
                        ClaimStatus::Pending if begun.elapsed() > CLAIM_WAIT => {
                            return Err(Error::Overloaded);
                        }
                        ClaimStatus::Pending => tokio::time::sleep(CLAIM_POLL_INTERVAL).await,
                    }
                }
                _ => return Ok(ClaimOutcome::UpdatesMissed),
            }
        }
    }

    /// What a claim that another holds is worth.
    async fn claim_status(
        &self,
        name: &UniqueKey,
        held: &ClaimRecord,
        age: &str,
    ) -> Result<ClaimStatus, Error> {
        let job = self.read(&held.job).await?.filter(|job| match name {
            UniqueKey::Idempotency(_) => true,
            UniqueKey::Task(task) => has_task(job, task),
        });
        let age = age.parse().map_or(Duration::MAX, Duration::from_millis);
        Ok(match job {
            Some(job) => ClaimStatus::Valid(job),
            None if age >= KEY_CLAIM_LEASE => ClaimStatus::Expired,
            None => ClaimStatus::Pending,
        })
    }

    /// Gives up a name that was claimed for a job.
    pub(super) async fn release_key(&self, name: Option<UniqueKey>, job: &JobId) {
        let Some(name) = name else { return };
        let mut keys = self.key_names(&name);
        keys.truncate(1);
        let dropped: Result<i64, Error> = self
            .link
            .run_script(&RELEASE_KEY, keys, vec![job.as_str().into()])
            .await;
        if let Err(error) = dropped {
            tracing::debug!(%error, "a claim is left to end by itself");
        }
    }

    /// The job that a task is claimed for, if it has that task.
    pub(super) async fn find_task_job(&self, task: &str) -> Result<Option<JobId>, Error> {
        let key = self.link.keys.partition_for(task).task(task);
        let held: Option<String> = self
            .link
            .client()
            .get(key)
            .await
            .map_err(|error| to_store_error(&error))?;
        let Some(held) = held else { return Ok(None) };
        let held: ClaimRecord = from_json(&held)?;
        let job = self.read(&held.job).await?;
        Ok(job
            .filter(|job| has_task(job, task))
            .map(|job| job.id.clone()))
    }

    pub(super) async fn buffer_update(
        &self,
        task: &str,
        news: &Update,
        now: Time,
    ) -> Result<BufferOutcome, Error> {
        let name = UniqueKey::task(task);
        let news = to_json(news)?;
        let part = self.link.keys.partition_for(task);
        let mut void = String::new();
        let begun = tokio::time::Instant::now();
        loop {
            let mut keys = self.key_names(&name);
            keys.push(part.buffered_tasks());
            let args = vec![
                news.as_str().into(),
                now.millis().into(),
                i64::try_from(MAX_BUFFERED_UPDATES)
                    .unwrap_or(i64::MAX)
                    .into(),
                super::jobs::millis(BUFFERED_UPDATE_TTL + super::jobs::TTL_MARGIN).into(),
                task.into(),
                void.as_str().into(),
            ];
            let answer: Vec<String> = self
                .link
                .run_script_replicated(&BUFFER_UPDATE, keys, args)
                .await?;
            let [_, held, age] = answer.as_slice() else {
                return Ok(BufferOutcome::Buffered);
            };
            let holder: ClaimRecord = from_json(held)?;
            match self.claim_status(&name, &holder, age).await? {
                ClaimStatus::Valid(job) => return Ok(BufferOutcome::TaskKnown(job.id.clone())),
                ClaimStatus::Expired => held.clone_into(&mut void),
                ClaimStatus::Pending if begun.elapsed() > CLAIM_WAIT => {
                    return Err(Error::Overloaded);
                }
                ClaimStatus::Pending => tokio::time::sleep(CLAIM_POLL_INTERVAL).await,
            }
        }
    }

    /// What is parked for a task, oldest first. Unreadable news is told to the log and left out.
    pub(super) async fn buffered_updates(&self, task: &str) -> Result<Vec<Update>, Error> {
        let news = self.raw_buffered_updates(&UniqueKey::task(task)).await?;
        Ok(news.iter().filter_map(|one| skip_unreadable(one)).collect())
    }

    async fn raw_buffered_updates(&self, name: &UniqueKey) -> Result<Vec<String>, Error> {
        let key = self
            .link
            .keys
            .partition_for(name.text())
            .buffered_updates(name.text());
        let news = self.link.client().lrange(key, 0, -1).await;
        news.map_err(|error| to_store_error(&error))
    }

    /// Forgets what was parked for a task that has its job now.
    pub(super) async fn delete_buffered_updates(&self, name: Option<&UniqueKey>) {
        let Some(UniqueKey::Task(task)) = name else {
            return;
        };
        if let Err(error) = self.delete_buffered_before(task, None).await {
            tracing::debug!(%error, "what was parked is left to a sweep");
        }
    }

    /// Forgets what was parked for a task before a moment, or all; says how much.
    pub(super) async fn delete_buffered_before(
        &self,
        task: &str,
        before: Option<Time>,
    ) -> Result<usize, Error> {
        let part = self.link.keys.partition_for(task);
        let before = before.map(|before| before.millis().to_string());
        let args = vec![task.into(), before.unwrap_or_default().into()];
        self.link
            .run_script(
                &DELETE_BUFFERED,
                vec![part.buffered_updates(task), part.buffered_tasks()],
                args,
            )
            .await
    }
}

/// What a claim is worth.
enum ClaimStatus {
    /// There is a job behind it.
    Valid(Arc<Job>),
    /// There is none, and there will be none.
    Expired,
    /// It may be on its way.
    Pending,
}

fn has_task(job: &Job, task: &str) -> bool {
    task_of(job).is_some_and(|(provider, id)| super::keys::task_name(provider, id) == task)
}

/// The news behind the moment it came.
fn skip_unreadable(parked: &str) -> Option<Update> {
    let (_, news) = parked.split_once(' ')?;
    let read = serde_json::from_str(news);
    read.inspect_err(|error| tracing::error!(%error, "the store holds something unreadable"))
        .ok()
}
