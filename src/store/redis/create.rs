//! Creation of jobs.
//!
//! Everything that refers to a job is written before the job itself, and released if the job is not
//! created. A repeated request therefore finds the existing job, and is charged once.

use super::RedisStore;
use super::budgets::Reservation;
use super::jobs::immutable_fields;
use super::scripts::CREATE_JOB;
use super::unique_keys::{ClaimOutcome, UniqueKey};
use crate::job::Job;
use crate::store::codec::{EncodedJob, schedule_of, to_json};
use crate::store::{CommitOutcome, CreateJob, CreateOutcome, Error};

impl RedisStore {
    pub(super) async fn create_job(&self, create: &CreateJob) -> Result<CreateOutcome, Error> {
        let outcome = self.create_with_idempotency(create).await?;
        if let CreateOutcome::Replayed(existing) | CreateOutcome::TaskConflict(existing) = &outcome
        {
            match self.ensure_replicated(existing).await? {
                CommitOutcome::Committed => {}
                CommitOutcome::Conflict | CommitOutcome::NotFound => return Err(Error::Overloaded),
            }
        }
        Ok(outcome)
    }

    async fn create_with_idempotency(&self, create: &CreateJob) -> Result<CreateOutcome, Error> {
        let Some(idempotency) = &create.idempotency else {
            return self.create_with_task(create, None).await;
        };
        let (job, fingerprint) = (&create.job, &idempotency.fingerprint);
        let key = UniqueKey::idempotency(idempotency);
        match self.claim(&key, job, fingerprint, &[]).await? {
            ClaimOutcome::Acquired => {
                let outcome = self.create_with_task(create, Some(&key)).await;
                self.release_unless_created(&outcome, &key, job).await;
                outcome
            }
            ClaimOutcome::HeldBy {
                job: existing,
                fingerprint: existing_fingerprint,
            } if existing_fingerprint == *fingerprint => Ok(CreateOutcome::Replayed(existing)),
            ClaimOutcome::HeldBy { .. } => Ok(CreateOutcome::IdempotencyKeyConflict),
            ClaimOutcome::UpdatesMissed => Err(Error::Overloaded),
        }
    }

    async fn create_with_task(
        &self,
        create: &CreateJob,
        idempotency: Option<&UniqueKey>,
    ) -> Result<CreateOutcome, Error> {
        let job = &create.job;
        if let Some(existing) = self.read(&job.id).await? {
            return Ok(CreateOutcome::Replayed(existing));
        }
        let Some(task) = UniqueKey::task_of(job) else {
            return self.create_charged(create, idempotency).await;
        };
        match self.claim(&task, job, "", &create.applied_buffered).await? {
            ClaimOutcome::Acquired => {}
            ClaimOutcome::HeldBy { job: existing, .. } => {
                return Ok(CreateOutcome::TaskConflict(existing));
            }
            ClaimOutcome::UpdatesMissed => return Ok(CreateOutcome::Conflict),
        }
        let outcome = self.create_charged(create, idempotency).await;
        if let Ok(CreateOutcome::Created) = outcome {
            self.delete_buffered(&task).await;
        }
        self.release_unless_created(&outcome, &task, job).await;
        outcome
    }

    /// Releases the claim for a job that was not created. After an error the outcome is unknown, so
    /// the claim is kept. It expires unless the job exists.
    async fn release_unless_created(
        &self,
        outcome: &Result<CreateOutcome, Error>,
        key: &UniqueKey,
        job: &Job,
    ) {
        let is_rejected = matches!(
            outcome,
            Ok(CreateOutcome::TaskConflict(_)
                | CreateOutcome::LimitExceeded { .. }
                | CreateOutcome::Conflict)
        );
        if is_rejected {
            self.release_key(key, &job.id).await;
        }
    }

    async fn create_charged(
        &self,
        create: &CreateJob,
        idempotency: Option<&UniqueKey>,
    ) -> Result<CreateOutcome, Error> {
        let job = &create.job;
        let reservation = match self.reserve_budget(job, &create.budget_entries).await? {
            Reservation::NotNeeded => String::new(),
            Reservation::Reserved { document_key } => document_key,
            Reservation::LimitExceeded { window } => {
                return Ok(CreateOutcome::LimitExceeded { window });
            }
        };
        self.index_job(job).await?;
        if schedule_of(job, create.schedule).holds_slot {
            self.record_slot(job).await?;
        }
        let EncodedJob { document, internal } = EncodedJob::new(job)?;
        let args = vec![
            self.connections.publish_command().into(),
            job.id.as_str().into(),
            document.into(),
            internal.into(),
            to_json(&self.commit_fields(job, create.schedule))?.into(),
            to_json(&immutable_fields(job, idempotency))?.into(),
            reservation.into(),
        ];
        let outcome: String = self
            .connections
            .run_script_replicated(&CREATE_JOB, self.job_keys(job), args)
            .await?;
        match outcome.as_str() {
            "created" => Ok(CreateOutcome::Created),
            // A concurrent request, or an earlier attempt whose reply was lost, has created it.
            "exists" => match self.read(&job.id).await? {
                Some(existing) => Ok(CreateOutcome::Replayed(existing)),
                None => Err(Error::Overloaded),
            },
            _ => Err(Error::Overloaded),
        }
    }
}
