//! Operations that do not apply a report: task binding, poll requests, and republishing of a version
//! after the store lost it.

use std::sync::Arc;
use std::time::Duration;

use super::schedule::schedule_for;
use super::{Error, MAX_CAS_ATTEMPTS, Tracker, UpdateOutcome};
use crate::job::{Job, JobId, Source, StatusReport, SubmissionState, Update};
use crate::store::{self, CommitJob, CommitOutcome};
use crate::time::Time;

impl Tracker {
    /// Returns the job that a provider task belongs to.
    ///
    /// # Errors
    /// Returns the error of the store.
    pub async fn find_job_by_task(
        &self,
        provider: &str,
        task_id: &str,
    ) -> Result<Option<JobId>, Error> {
        Ok(self.store.find_task(provider, task_id).await?)
    }

    /// Binds `task_id` to a job of `provider` whose submission outcome is unknown, so that the task can
    /// be polled. Does nothing for any other job.
    ///
    /// # Errors
    /// Returns the error of the store.
    pub async fn bind_task(
        &self,
        provider: &str,
        id: &JobId,
        task_id: String,
    ) -> Result<(), Error> {
        let report = StatusReport {
            task_id: Some(task_id),
            ..StatusReport::default()
        };
        let is_unknown = |job: &Job| {
            job.submission_state() == SubmissionState::Unknown
                && job.provider.as_deref() == Some(provider)
        };
        let update = report.into_update(Source::Webhook);
        match self.apply_update_if(id, update, is_unknown).await {
            Ok(_) | Err(Error::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Applies an update to a job of `provider` that waits for its task: its submission is in flight,
    /// or the outcome is unknown. Returns `None` for any other job.
    ///
    /// # Errors
    /// Returns the error of the store.
    pub async fn apply_to_waiting_job(
        &self,
        provider: &str,
        id: &JobId,
        update: Update,
    ) -> Result<Option<UpdateOutcome>, Error> {
        let is_waiting = |job: &Job| {
            let waits = match job.submission_state() {
                SubmissionState::InFlight | SubmissionState::Unknown => true,
                SubmissionState::Pending(_) | SubmissionState::Done => false,
            };
            waits && job.provider.as_deref() == Some(provider)
        };
        match self.apply_update_if(id, update, is_waiting).await {
            Ok(outcome) => Ok(Some(outcome)),
            Err(Error::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Requests an immediate poll of a job of `provider`. Returns whether there is such a job.
    ///
    /// # Errors
    /// Returns the error of the store.
    pub async fn request_poll_of(&self, provider: &str, id: &JobId) -> Result<bool, Error> {
        let job = self.store.get(id).await?;
        match job.filter(|job| job.provider.as_deref() == Some(provider)) {
            Some(job) => self.schedule_poll(&job).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// Republishes a job's document with a version above one that was already delivered.
    ///
    /// `delivered` is the highest delivered version, written at `updated_at`. Does nothing if the
    /// stored version is higher or is that very version. Returns the stored job.
    ///
    /// # Errors
    /// As [`Tracker::apply_update`].
    pub async fn republish_above(
        &self,
        id: &JobId,
        delivered: u64,
        updated_at: Time,
    ) -> Result<Arc<Job>, Error> {
        for _ in 0..MAX_CAS_ATTEMPTS {
            let job = self.store.get(id).await?.ok_or(Error::NotFound)?;
            // The version may have been delivered after the caller read the job.
            let is_delivered = job.version == delivered && job.updated_at == updated_at;
            if job.version > delivered || is_delivered {
                return Ok(job);
            }
            let republished = Arc::new(Job {
                version: delivered + 1,
                ..Job::clone(&job)
            });
            let commit = self.plain_commit(Arc::clone(&republished), job.version);
            match self.store.commit(commit).await? {
                CommitOutcome::Committed => return Ok(republished),
                CommitOutcome::Conflict => {}
                CommitOutcome::NotFound => return Err(Error::NotFound),
            }
        }
        Err(store::Error::Overloaded.into())
    }

    /// Requests an immediate poll of a job. Does nothing if the job does not exist or is not submitted
    /// yet.
    ///
    /// # Errors
    /// Returns the error of the store.
    pub async fn request_poll(&self, id: &JobId) -> Result<(), Error> {
        match self.store.get(id).await? {
            Some(job) => self.schedule_poll(&job).await,
            None => Ok(()),
        }
    }

    /// Stores that the provider reported a success, in case it no longer knows the task when polled.
    /// Best effort: a conflict with another writer is ignored.
    pub(super) async fn record_unconfirmed_success(
        &self,
        job: &Job,
        update: &Update,
    ) -> Result<(), Error> {
        let next = match job.submission_state() {
            SubmissionState::Unknown | SubmissionState::Done => update
                .event
                .report()
                .and_then(|report| job.record_unconfirmed_success(report, Time::now())),
            SubmissionState::Pending(_) | SubmissionState::InFlight => None,
        };
        let Some(next) = next else { return Ok(()) };
        let commit = self.plain_commit(Arc::new(next), job.version);
        self.store.commit(commit).await?;
        Ok(())
    }

    /// Returns a commit without buffered updates and budget entries.
    fn plain_commit(&self, job: Arc<Job>, expected_version: u64) -> CommitJob {
        CommitJob {
            schedule: schedule_for(self.provider_of(&job), &job, Time::now()),
            job,
            expected_version,
            expected_revision: None,
            applied_buffered: Vec::new(),
            budget_entries: Vec::new(),
            deliveries: Vec::new(),
        }
    }

    pub(super) async fn schedule_poll(&self, job: &Job) -> Result<(), Error> {
        match job.submission_state() {
            SubmissionState::Pending(_) | SubmissionState::InFlight => {}
            SubmissionState::Unknown | SubmissionState::Done => {
                let cool_down = self
                    .provider_of(job)
                    .map_or(Duration::ZERO, |provider| provider.poll_policy().cool_down);
                self.store
                    .schedule_poll(&job.id, Time::now(), cool_down)
                    .await?;
                self.wakeups.watchdog.notify_one();
            }
        }
        Ok(())
    }
}

/// Returns whether the update is a success that a poll must confirm before it is applied.
pub(super) fn needs_confirmation(job: &Job, update: &Update) -> bool {
    let report = update.event.report();
    !job.is_final() && report.is_some_and(StatusReport::needs_confirmation)
}
