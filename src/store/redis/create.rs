//! Creating a job.
//!
//! Invariant: what points at the job is there before it is, and is given up where it is not to be; so
//! a repeated request finds the job that the first one made, and pays once.

use std::time::Duration;

use super::RedisStore;
use super::jobs::{task_field, task_of, to_json};
use super::keys::{key_name, task_name};
use super::scripts::CREATE_JOB;
use super::unique_keys::{ClaimOutcome, UniqueKey};
use crate::job::Job;
use crate::store::{
    CommitOutcome, CreateJob, CreateOutcome, Error, IdempotencyKey, deterministic_jitter,
};

impl RedisStore {
    pub(super) async fn create_job(&self, create: CreateJob) -> Result<CreateOutcome, Error> {
        let created = self.try_create(create).await?;
        if let CreateOutcome::Replayed(kept) | CreateOutcome::TaskConflict(kept) = &created {
            match self.ensure_replicated(kept).await? {
                CommitOutcome::Committed => {}
                CommitOutcome::Conflict | CommitOutcome::NotFound => return Err(Error::Overloaded),
            }
        }
        Ok(created)
    }

    async fn try_create(&self, create: CreateJob) -> Result<CreateOutcome, Error> {
        let job = &create.job;
        let key = match self.claim_key(create.idempotency.as_ref(), job).await? {
            ClaimOutcome::Acquired(name) => name,
            ClaimOutcome::HeldBy { job, print }
                if create
                    .idempotency
                    .as_ref()
                    .is_some_and(|key| key.fingerprint == print) =>
            {
                return Ok(CreateOutcome::Replayed(job));
            }
            ClaimOutcome::HeldBy { .. } => return Ok(CreateOutcome::IdempotencyKeyConflict),
            ClaimOutcome::UpdatesMissed => return Err(Error::Overloaded),
        };
        let created = self.create_with_task(&create, key.as_ref()).await;
        self.release_unless_created(&created, key, job).await;
        created
    }

    /// Gives up a name that was claimed for a job that is not to be. Where that is not known, the
    /// claim stays: it is void before long if the job does not come.
    async fn release_unless_created(
        &self,
        created: &Result<CreateOutcome, Error>,
        name: Option<UniqueKey>,
        job: &Job,
    ) {
        match created {
            Ok(
                CreateOutcome::TaskConflict(_)
                | CreateOutcome::LimitExceeded { .. }
                | CreateOutcome::Conflict,
            ) => {
                self.release_key(name, &job.id).await;
            }
            Ok(
                CreateOutcome::Created
                | CreateOutcome::Replayed(_)
                | CreateOutcome::IdempotencyKeyConflict,
            )
            | Err(_) => {}
        }
    }

    async fn claim_key(
        &self,
        idempotency: Option<&IdempotencyKey>,
        job: &Job,
    ) -> Result<ClaimOutcome, Error> {
        let Some(IdempotencyKey {
            caller,
            key,
            fingerprint,
        }) = idempotency
        else {
            return Ok(ClaimOutcome::Acquired(None));
        };
        let name = UniqueKey::key(&key_name(caller, key));
        self.claim(name, job, fingerprint, &[]).await
    }

    async fn create_with_task(
        &self,
        create: &CreateJob,
        key: Option<&UniqueKey>,
    ) -> Result<CreateOutcome, Error> {
        let job = &create.job;
        // The same request once more, without a key.
        if let Some(kept) = self.read(&job.id).await? {
            return Ok(CreateOutcome::Replayed(kept));
        }
        let task = match task_of(job) {
            Some((provider, task_id)) => {
                let name = UniqueKey::task(&task_name(provider, task_id));
                match self.claim(name, job, "", &create.applied_buffered).await? {
                    ClaimOutcome::Acquired(name) => name,
                    ClaimOutcome::HeldBy { job, .. } => {
                        return Ok(CreateOutcome::TaskConflict(job));
                    }
                    ClaimOutcome::UpdatesMissed => return Ok(CreateOutcome::Conflict),
                }
            }
            None => None,
        };
        let created = self.create_charged(create, key).await;
        if let Ok(CreateOutcome::Created) = &created {
            self.delete_buffered_updates(task.as_ref()).await;
        }
        self.release_unless_created(&created, task, job).await;
        created
    }

    async fn create_charged(
        &self,
        create: &CreateJob,
        key: Option<&UniqueKey>,
    ) -> Result<CreateOutcome, Error> {
        let job = &create.job;
        let owed = self.reserve_budget(job, &create.budget_entries).await?;
        let owed = match owed {
            Ok(owed) => owed,
            Err(account) => return Ok(CreateOutcome::LimitExceeded { account }),
        };
        self.index_job(job).await?;
        if create.agenda.holds_slot && !job.is_final() {
            self.record_slot(job).await?;
        }
        let part = self.link.keys.partition_for(job.id.as_str());
        let keys = self.keys_of(part, job);
        let [
            hash,
            watch,
            submit,
            ends,
            jobs,
            open,
            owed_key,
            channel,
            owner,
        ] = keys;
        let created: String = self
            .link
            .run_script_replicated(
                &CREATE_JOB,
                vec![
                    hash, watch, submit, ends, jobs, open, owed_key, channel, owner,
                ],
                vec![
                    self.link.publish().into(),
                    job.id.as_str().into(),
                    to_json(&**job)?.into(),
                    to_json(&*job.internal)?.into(),
                    to_json(&self.changes(job, create.agenda))?.into(),
                    to_json(&immutable_fields(job, key))?.into(),
                    owed.unwrap_or_default().into(),
                ],
            )
            .await?;
        match created.as_str() {
            "done" => Ok(CreateOutcome::Created),
            // The answer to an earlier try of ours was lost, or another one's was not.
            "exists" => match self.read(&job.id).await? {
                Some(kept) => Ok(CreateOutcome::Replayed(kept)),
                None => Err(Error::Overloaded),
            },
            _ => Err(Error::Overloaded),
        }
    }
}

/// What is set once in a job's life: names and values in turn.
fn immutable_fields(job: &Job, key: Option<&UniqueKey>) -> Vec<String> {
    let whole = Duration::from_millis(10 * 1024);
    let spread = (deterministic_jitter(whole, job.id.as_str()) - whole).as_millis();
    let fields = [
        ("owner", job.owner.clone()),
        ("provider", job.provider.clone().unwrap_or_default()),
        ("task", task_field(job)),
        (
            "key",
            key.map(|name| name.text().to_owned()).unwrap_or_default(),
        ),
        ("spread", spread.to_string()),
    ];
    let pairs = fields.into_iter();
    pairs
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
}
