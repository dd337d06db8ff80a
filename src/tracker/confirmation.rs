//! What is not news yet: which job it is about, that it is to be asked about, and that what was shown
//! of it is to be shown again.
//!
//! Invariant: nothing here decides what a job is; it sees to it that somebody reads it.

use std::sync::Arc;
use std::time::Duration;

use super::schedule::schedule_for;
use super::{Error, MAX_CAS_ATTEMPTS, Tracker};
use crate::job::{Job, JobEvent, JobId, Source, StatusReport, SubmissionState, Update};
use crate::store::{self, CommitJob, CommitOutcome};
use crate::time::Time;

impl Tracker {
    /// The job that a provider's task belongs to.
    ///
    /// # Errors
    /// The store's.
    pub async fn find_job_by_task(
        &self,
        provider: &str,
        task_id: &str,
    ) -> Result<Option<JobId>, Error> {
        Ok(self.store.find_task(provider, task_id).await?)
    }

    /// Takes it that this is the provider's task of a job whose submission's answer was lost, so that
    /// it can be asked about. For any other job it says nothing.
    ///
    /// # Errors
    /// The store's.
    pub async fn bind_task(
        &self,
        provider: &str,
        id: &JobId,
        task_id: String,
    ) -> Result<(), Error> {
        let job = self.store.get(id).await?;
        if job.is_none_or(|job| job.submission_state() != SubmissionState::Unknown) {
            return Ok(());
        }
        let report = StatusReport {
            task_id: Some(task_id),
            ..StatusReport::default()
        };
        let update = report.into_update(Source::Webhook);
        match self.apply_provider_update(provider, id, update).await {
            Ok(_) | Err(Error::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives a job's document, as it is, a number above `shown`, which was made at `made_at`, if it
    /// has none yet and is not that very version; answers the job as it is then.
    ///
    /// # Errors
    /// As [`Tracker::record`].
    pub async fn republish_above(
        &self,
        id: &JobId,
        shown: u64,
        made_at: Time,
    ) -> Result<Arc<Job>, Error> {
        for _ in 0..MAX_CAS_ATTEMPTS {
            let job = self.store.get(id).await?.ok_or(Error::NotFound)?;
            // It may have been shown only after the reading that gave cause for doubt.
            let is_shown = job.version == shown && job.updated_at == made_at;
            if job.version > shown || is_shown {
                return Ok(job);
            }
            let raised = Arc::new(Job {
                version: shown + 1,
                ..Job::clone(&job)
            });
            let commit = CommitJob {
                schedule: schedule_for(self.provider_of(&raised), &raised, Time::now()),
                job: Arc::clone(&raised),
                expected_version: job.version,
                applied_buffered: Vec::new(),
                budget_entries: Vec::new(),
            };
            match self.store.commit(commit).await? {
                CommitOutcome::Committed => return Ok(raised),
                CommitOutcome::Conflict => {}
                CommitOutcome::NotFound => return Err(Error::NotFound),
            }
        }
        Err(store::Error::Overloaded.into())
    }

    /// Has the watchdog ask about a job now, unless it is yet to be sent or being sent: then there
    /// is nothing to ask, and the answer to the try comes by itself.
    ///
    /// # Errors
    /// The store's.
    pub async fn request_poll(&self, id: &JobId) -> Result<(), Error> {
        match self.store.get(id).await? {
            Some(job) => self.schedule_poll(&job).await,
            None => Ok(()),
        }
    }

    /// Keeps that a success was told, for when the provider no longer knows of the task. Another
    /// writer who is faster takes nothing away but this.
    pub(super) async fn expect_success(&self, job: &Job, update: &Update) -> Result<(), Error> {
        let next = match (&update.event, job.submission_state()) {
            (JobEvent::Reported(report), SubmissionState::Unknown | SubmissionState::Done) => {
                job.record_unconfirmed_success(report, Time::now())
            }
            (_, SubmissionState::Pending(_) | SubmissionState::InFlight) => None,
            (
                JobEvent::SubmissionStarted
                | JobEvent::RetryScheduled { .. }
                | JobEvent::SubmissionOutcomeUnknown { .. }
                | JobEvent::CancelledBeforeSubmission,
                _,
            ) => None,
        };
        let Some(next) = next else { return Ok(()) };
        let commit = CommitJob {
            schedule: schedule_for(self.provider_of(&next), &next, Time::now()),
            job: Arc::new(next),
            expected_version: job.version,
            applied_buffered: Vec::new(),
            budget_entries: Vec::new(),
        };
        self.store.commit(commit).await?;
        Ok(())
    }

    pub(super) async fn schedule_poll(&self, job: &Job) -> Result<(), Error> {
        match job.submission_state() {
            SubmissionState::Pending(_) | SubmissionState::InFlight => {}
            SubmissionState::Unknown | SubmissionState::Done => {
                let cool_down = self
                    .provider_of(job)
                    .map_or(Duration::ZERO, |provider| provider.cadence().cool_down);
                self.store
                    .schedule_poll(&job.id, Time::now(), cool_down)
                    .await?;
                self.stir.watchdog.notify_one();
            }
        }
        Ok(())
    }
}

/// Whether the news is a success that counts only once it has been read from the provider.
pub(super) fn needs_confirmation(job: &Job, update: &Update) -> bool {
    match &update.event {
        JobEvent::Reported(report) => !job.is_final() && report.needs_confirmation(),
        JobEvent::SubmissionStarted
        | JobEvent::RetryScheduled { .. }
        | JobEvent::SubmissionOutcomeUnknown { .. }
        | JobEvent::CancelledBeforeSubmission => false,
    }
}
