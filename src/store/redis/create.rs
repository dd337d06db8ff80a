//! Creation of jobs.
//!
//! Everything that refers to a job is written before the job itself, and released if the job is not
//! created. A repeated request therefore finds the existing job, and is charged once.

use std::time::Duration;

use super::RedisStore;
use super::jobs::{document_key, millis};
use super::outbox::encode_deliveries;
use super::scripts::CREATE_JOB;
use super::unique_keys::{ClaimOutcome, UniqueKey};
use crate::job::Job;
use crate::store::codec::EncodedJob;
use crate::store::{CommitOutcome, CreateJob, CreateOutcome, Error};
use crate::time::deterministic_jitter;

impl RedisStore {
    pub(super) async fn create_job(&self, create: &CreateJob) -> Result<CreateOutcome, Error> {
        let mut claimed = Vec::new();
        // After an error the outcome is unknown, so the claims are kept. They expire unless the job
        // exists.
        let outcome = self.create_claiming(create, &mut claimed).await?;
        for key in &claimed {
            match &outcome {
                CreateOutcome::Created => self.delete_buffered(key).await,
                CreateOutcome::TaskConflict(_)
                | CreateOutcome::LimitExceeded { .. }
                | CreateOutcome::Conflict => self.release_key(key, create.job.id.as_str()).await,
                CreateOutcome::Replayed(_) | CreateOutcome::IdempotencyKeyConflict => {}
            }
        }
        if let CreateOutcome::Replayed(existing) | CreateOutcome::TaskConflict(existing) = &outcome
            && self.ensure_replicated(existing).await? != CommitOutcome::Committed
        {
            return Err(Error::Overloaded);
        }
        Ok(outcome)
    }

    /// Claims the unique keys of a job, and then creates it. Adds the keys to `claimed`.
    async fn create_claiming(
        &self,
        create: &CreateJob,
        claimed: &mut Vec<UniqueKey>,
    ) -> Result<CreateOutcome, Error> {
        let job = &create.job;
        if let Some(idempotency) = &create.idempotency {
            let key = UniqueKey::idempotency(idempotency);
            let fingerprint = &idempotency.fingerprint;
            match self.claim(&key, job, fingerprint, &[]).await? {
                ClaimOutcome::Acquired => claimed.push(key),
                ClaimOutcome::HeldBy(holder) if holder.fingerprint == *fingerprint => {
                    return Ok(CreateOutcome::Replayed(holder.job));
                }
                ClaimOutcome::HeldBy(_) => return Ok(CreateOutcome::IdempotencyKeyConflict),
                ClaimOutcome::UpdatesMissed => return Err(Error::Overloaded),
            }
        }
        let idempotency = claimed.first().map(|key| key.name().to_owned());
        if let Some(existing) = self.read(&job.id).await? {
            return Ok(CreateOutcome::Replayed(existing));
        }
        if let Some(task) = UniqueKey::task_of(job) {
            match self.claim(&task, job, "", &create.applied_buffered).await? {
                ClaimOutcome::Acquired => claimed.push(task),
                ClaimOutcome::HeldBy(holder) => {
                    return Ok(CreateOutcome::TaskConflict(holder.job));
                }
                ClaimOutcome::UpdatesMissed => return Ok(CreateOutcome::Conflict),
            }
        }
        if let Some(window) = self.reserve_budget(job, &create.budget_entries).await? {
            return Ok(CreateOutcome::LimitExceeded { window });
        }
        let encoded = EncodedJob::new(job, create.schedule)?;
        self.index_job(job).await?;
        if encoded.schedule.holds_slot {
            self.record_slot(job).await?;
        }
        let immutable = immutable_fields(job, idempotency.unwrap_or_default());
        let has_reservation = !create.budget_entries.is_empty();
        let reservation = has_reservation.then(|| document_key(job));
        let reservation = reservation.unwrap_or_default().into();
        let revision = self.recent.begin(job, &encoded);
        let arguments = [
            encode_deliveries(job, &create.deliveries)?.into(),
            self.outbox_ttl().into(),
            reservation,
        ];
        let (mut keys, args) = self.job_script(job, &encoded, revision, arguments, immutable);
        keys.push(self.partition_for(job.id.as_str()).all_jobs());
        keys.extend(self.outbox_keys(job, &create.deliveries));
        let outcome: String = self.connections.run(&CREATE_JOB, keys, args).await?;
        if outcome == "created" {
            self.recent.confirm(job, revision);
            return Ok(CreateOutcome::Created);
        }
        // A concurrent request, or an earlier attempt whose reply was lost, has created it. Otherwise
        // the reservation was released.
        let existing = self.read(&job.id).await?.filter(|_| outcome == "exists");
        existing
            .map(CreateOutcome::Replayed)
            .ok_or(Error::Overloaded)
    }
}

/// Returns the fields of the hash that a commit does not change, except for the task.
fn immutable_fields(job: &Job, idempotency: String) -> Vec<(&'static str, String)> {
    // The script that claims polls scales the jitter to the interval, in steps of 1/1024.
    let whole = Duration::from_millis(10 * 1024);
    let jitter = deterministic_jitter(whole, job.id.as_str()) - whole;
    vec![
        ("owner", job.owner.clone()),
        ("provider", job.provider.clone().unwrap_or_default()),
        ("task", job.provider_task_id.clone().unwrap_or_default()),
        ("idempotency", idempotency),
        ("jitter", millis(jitter)),
    ]
}
