//! Keys that belong to at most one job: provider tasks and idempotency keys.
//!
//! A key is claimed before its job is written. The script that claims a task checks the update buffer
//! of the task in the same step. An update therefore is either buffered before the claim and part of
//! the job, or finds the claim. A claim without a job expires after [`KEY_CLAIM_LEASE`].

use std::sync::Arc;
use std::time::Duration;

use fred::interfaces::KeysInterface;
use fred::types::Value;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::RedisStore;
use super::keys::{idempotency_name, task_name};
use super::scripts::{CLAIM_KEY, RELEASE_KEY};
use crate::job::{Job, JobId, Update};
use crate::store::codec::{from_json, skip_corrupt, task_of};
use crate::store::{Error, IdempotencyKey};

/// How long a claim is valid without its job. Longer than any operation takes.
const KEY_CLAIM_LEASE: Duration = Duration::from_secs(10);

const CLAIM_CHECK_INTERVAL: Duration = Duration::from_millis(5);

#[derive(Clone, Debug)]
pub(super) enum UniqueKey {
    Task(String),
    Idempotency(String),
}

impl UniqueKey {
    pub(super) fn task(provider: &str, task_id: &str) -> Self {
        Self::Task(task_name(provider, task_id))
    }

    /// Returns the provider task of a job, if it is known.
    pub(super) fn task_of(job: &Job) -> Option<Self> {
        task_of(job).map(|(provider, task_id)| Self::task(provider, task_id))
    }

    pub(super) fn idempotency(key: &IdempotencyKey) -> Self {
        Self::Idempotency(idempotency_name(&key.caller, &key.key))
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Task(name) | Self::Idempotency(name) => name,
        }
    }
}

/// Result of a claim.
pub(super) enum ClaimOutcome {
    Acquired,
    HeldBy {
        job: Arc<Job>,
        fingerprint: String,
    },
    /// The buffer contains updates that the job does not contain.
    UpdatesMissed,
}

/// A claim as stored in Redis.
#[derive(Deserialize)]
struct ClaimRecord {
    job: JobId,
    fingerprint: String,
}

/// Whether a claim that another job holds is valid.
enum ClaimStatus {
    Valid {
        job: Arc<Job>,
        fingerprint: String,
    },
    /// The job was not created in time, so the claim may be replaced.
    Expired,
    /// The job may still be created.
    Pending,
}

/// Claims that another job holds, as one operation meets them.
pub(super) struct HeldClaim {
    started_at: Instant,
    /// The expired claim that the next attempt may replace, or an empty string.
    pub(super) expired: String,
}

impl HeldClaim {
    pub(super) fn new() -> Self {
        Self {
            started_at: Instant::now(),
            expired: String::new(),
        }
    }
}

impl RedisStore {
    pub(super) fn claim_key_of(&self, key: &UniqueKey) -> String {
        let partition = self.partition_for(key.name());
        match key {
            UniqueKey::Task(name) => partition.task(name),
            UniqueKey::Idempotency(name) => partition.idempotency(name),
        }
    }

    /// Claims a key for a job. `applied` are the buffered updates that the job contains.
    ///
    /// # Errors
    /// [`Error::Overloaded`] if the job of another claim is not created within
    /// [`Timeouts::claim`](super::Timeouts::claim).
    pub(super) async fn claim(
        &self,
        key: &UniqueKey,
        job: &Job,
        fingerprint: &str,
        applied: &[Update],
    ) -> Result<ClaimOutcome, Error> {
        let buffered = match key {
            UniqueKey::Task(_) => self.read_raw_buffered(key).await?,
            UniqueKey::Idempotency(_) => Vec::new(),
        };
        for entry in &buffered {
            if decode_buffered(entry)?.is_some_and(|update| !applied.contains(&update)) {
                return Ok(ClaimOutcome::UpdatesMissed);
            }
        }
        let mut held = HeldClaim::new();
        loop {
            let mut args: Vec<Value> = vec![
                job.id.as_str().into(),
                fingerprint.into(),
                self.shared_key_ttl().into(),
                held.expired.as_str().into(),
            ];
            args.extend(buffered.iter().map(|entry| Value::from(entry.as_str())));
            let keys = vec![self.claim_key_of(key), self.buffer_of(key)];
            let reply: Vec<String> = self
                .connections
                .run_script_replicated(&CLAIM_KEY, keys, args)
                .await?;
            match reply.as_slice() {
                [outcome] if outcome == "acquired" => return Ok(ClaimOutcome::Acquired),
                [_, record, age] => {
                    if let Some((job, fingerprint)) =
                        self.resolve_held(key, record, age, &mut held).await?
                    {
                        return Ok(ClaimOutcome::HeldBy { job, fingerprint });
                    }
                }
                _ => return Ok(ClaimOutcome::UpdatesMissed),
            }
        }
    }

    /// Returns the job and fingerprint of a valid claim, or `None` if the caller should try again.
    pub(super) async fn resolve_held(
        &self,
        key: &UniqueKey,
        record: &str,
        age: &str,
        held: &mut HeldClaim,
    ) -> Result<Option<(Arc<Job>, String)>, Error> {
        match self.claim_status(key, record, age).await? {
            ClaimStatus::Valid { job, fingerprint } => return Ok(Some((job, fingerprint))),
            ClaimStatus::Expired => record.clone_into(&mut held.expired),
            ClaimStatus::Pending if held.started_at.elapsed() > self.connections.timeouts.claim => {
                return Err(Error::Overloaded);
            }
            ClaimStatus::Pending => sleep(CLAIM_CHECK_INTERVAL).await,
        }
        Ok(None)
    }

    async fn claim_status(
        &self,
        key: &UniqueKey,
        record: &str,
        age: &str,
    ) -> Result<ClaimStatus, Error> {
        let ClaimRecord { job, fingerprint } = from_json(record)?;
        let job = self.read(&job).await?.filter(|job| is_backed_by(key, job));
        let age = age.parse().map_or(Duration::MAX, Duration::from_millis);
        Ok(match job {
            Some(job) => ClaimStatus::Valid { job, fingerprint },
            None if age >= KEY_CLAIM_LEASE => ClaimStatus::Expired,
            None => ClaimStatus::Pending,
        })
    }

    /// Releases a key that was claimed for a job.
    pub(super) async fn release_key(&self, key: &UniqueKey, job: &JobId) {
        let keys = vec![self.claim_key_of(key)];
        let released: Result<i64, Error> = self
            .connections
            .run_script(&RELEASE_KEY, keys, vec![job.as_str().into()])
            .await;
        if let Err(error) = released {
            tracing::debug!(%error, "failed to release key claim; it will expire");
        }
    }

    /// Returns the job that a task belongs to.
    pub(super) async fn find_holder(&self, task: &UniqueKey) -> Result<Option<JobId>, Error> {
        let client = self.connections.client();
        let record: Option<String> = client.get(self.claim_key_of(task)).await?;
        let Some(record) = record else {
            return Ok(None);
        };
        let record: ClaimRecord = from_json(&record)?;
        let job = self.read(&record.job).await?;
        let job = job.filter(|job| is_backed_by(task, job));
        Ok(job.map(|job| job.id.clone()))
    }
}

/// Returns whether a job that a claim refers to confirms the claim.
fn is_backed_by(key: &UniqueKey, job: &Job) -> bool {
    match key {
        UniqueKey::Idempotency(_) => true,
        UniqueKey::Task(name) => UniqueKey::task_of(job).is_some_and(|task| task.name() == name),
    }
}

/// Decodes a buffered update. The time it was received comes first, separated by a space.
pub(super) fn decode_buffered(entry: &str) -> Result<Option<Update>, Error> {
    let Some((_, update)) = entry.split_once(' ') else {
        return Ok(None);
    };
    skip_corrupt(from_json(update), "buffered update")
}
