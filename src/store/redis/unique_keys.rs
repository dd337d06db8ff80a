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
use super::scripts::{CLAIM_KEY, RELEASE_KEY, Script};
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
    /// Returns the key of a provider task. Its name is unambiguous, because names of providers contain
    /// no slash.
    pub(super) fn task(provider: &str, task_id: &str) -> Self {
        Self::Task(format!("{provider}/{task_id}"))
    }

    /// Returns the provider task of a job, if it is known.
    pub(super) fn task_of(job: &Job) -> Option<Self> {
        task_of(job).map(|(provider, task_id)| Self::task(provider, task_id))
    }

    /// Returns the key of an idempotency key. The length prefix makes its name unambiguous.
    pub(super) fn idempotency(IdempotencyKey { caller, key, .. }: &IdempotencyKey) -> Self {
        Self::Idempotency(format!("{}:{caller}:{key}", caller.len()))
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Task(name) | Self::Idempotency(name) => name,
        }
    }

    /// Returns whether `job` holds this key. `job` is the job that a claim of the key names.
    fn is_backed_by(&self, job: &Job) -> bool {
        match self {
            Self::Idempotency(_) => true,
            Self::Task(name) => Self::task_of(job).is_some_and(|task| task.name() == name),
        }
    }
}

/// Result of a claim.
pub(super) enum ClaimOutcome {
    Acquired,
    HeldBy(Holder),
    /// The buffer contains updates that the job does not contain.
    UpdatesMissed,
}

/// The job that holds a key.
pub(super) struct Holder {
    pub(super) job: Arc<Job>,
    pub(super) fingerprint: String,
}

/// A claim as stored in Redis.
#[derive(Deserialize)]
struct ClaimRecord {
    job: JobId,
    fingerprint: String,
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
    /// As [`RedisStore::run_unless_held`].
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
        let mut args: Vec<Value> = vec![
            job.id.as_str().into(),
            fingerprint.into(),
            self.shared_key_ttl().into(),
        ];
        args.extend(buffered.into_iter().map(Value::from));
        let keys = vec![self.claim_key_of(key), self.buffer_of(key)];
        let outcome = self.run_unless_held(&CLAIM_KEY, key, keys, args).await?;
        Ok(match outcome {
            Err(holder) => ClaimOutcome::HeldBy(holder),
            Ok(outcome) if outcome == "acquired" => ClaimOutcome::Acquired,
            Ok(_) => ClaimOutcome::UpdatesMissed,
        })
    }

    /// Runs a script that has no effect while another job holds the key. Returns the outcome, or the
    /// job that holds the key.
    ///
    /// The first argument of the script is an expired claim that it may replace, or an empty text.
    ///
    /// # Errors
    /// [`Error::Overloaded`] if the job of another claim is not created within
    /// [`Timeouts::claim`](super::Timeouts::claim).
    pub(super) async fn run_unless_held(
        &self,
        script: &Script,
        key: &UniqueKey,
        keys: Vec<String>,
        mut args: Vec<Value>,
    ) -> Result<Result<String, Holder>, Error> {
        let started_at = Instant::now();
        args.insert(0, "".into());
        loop {
            let reply: Vec<String> = self
                .connections
                .run(script, keys.clone(), args.clone())
                .await?;
            let [_, record, age] = reply.as_slice() else {
                return Ok(Ok(reply.concat()));
            };
            let ClaimRecord { job, fingerprint } = from_json(record)?;
            let job = self.read(&job).await?;
            if let Some(job) = job.filter(|job| key.is_backed_by(job)) {
                return Ok(Err(Holder { job, fingerprint }));
            }
            let age = age.parse().map_or(Duration::MAX, Duration::from_millis);
            if age >= KEY_CLAIM_LEASE {
                args[0] = record.as_str().into();
            } else if started_at.elapsed() > self.connections.timeouts.claim {
                return Err(Error::Overloaded);
            } else {
                // The job may still be created.
                sleep(CLAIM_CHECK_INTERVAL).await;
            }
        }
    }

    /// Releases a key that was claimed for a job.
    pub(super) async fn release_key(&self, key: &UniqueKey, job: &str) {
        let (keys, args) = (vec![self.claim_key_of(key)], vec![job.into()]);
        let released: Result<i64, Error> = self.connections.run(&RELEASE_KEY, keys, args).await;
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
        let job = job.filter(|job| task.is_backed_by(job));
        Ok(job.map(|job| job.id.clone()))
    }
}

/// Decodes a buffered update. The time it was received comes first, separated by a space.
pub(super) fn decode_buffered(entry: &str) -> Result<Option<Update>, Error> {
    let Some((_, update)) = entry.split_once(' ') else {
        return Ok(None);
    };
    skip_corrupt(from_json(update), "buffered update")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_idempotency_keys_have_distinct_names() {
        let name = |caller: &str, key: &str| {
            let key = IdempotencyKey {
                caller: caller.to_owned(),
                key: key.to_owned(),
                fingerprint: String::new(),
            };
            UniqueKey::idempotency(&key).name().to_owned()
        };
        assert_ne!(name("a:1", "b"), name("a", "1:b"));
        assert_ne!(name("1:a", "b"), name("1", "a:b"));
    }
}
