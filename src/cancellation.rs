//! Cancelling: the one way from "stop it" to a job's end, for HTTP and sockets alike.
//!
//! Invariant: a job that was never sent ends at once; one that a provider has ends when the
//! provider says so, in its answer or when it is asked; and where both an end and a cancel are on
//! their way, the first to be committed wins, and the other changes nothing.

use std::sync::Arc;

use progress_hub_auth::jwt::Principal;

use crate::job::{
    FailureKind, Job, JobEvent, JobId, Source, Status, StatusReport, SubmissionState, Update,
};
use crate::provider::{Provider, Providers, Rejection, RequestError};
use crate::store::{self, Store};
use crate::telemetry::{CallOutcome, Metrics, ProviderOperation};
use crate::tracker::{self, Tracker};

/// Cancels jobs.
pub struct CancelService {
    /// Where jobs are.
    pub store: Arc<dyn Store>,
    /// Who has them.
    pub providers: Arc<Providers>,
    /// Where an end is written.
    pub tracker: Arc<Tracker>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Why a job was not cancelled.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// There is no such job.
    #[error("there is no such job")]
    NotFound,
    /// The principal may see the job but not cancel it.
    #[error("the token lacks the scope jobs:write")]
    Forbidden,
    /// It has ended, or its provider can't or won't cancel it, or nobody knows yet where it is.
    #[error("{0}")]
    NotCancellable(&'static str),
    /// The provider did not answer, or said no.
    #[error("the provider did not cancel")]
    Provider(#[source] RequestError),
    /// The store could not do it.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl From<tracker::Error> for CancelError {
    fn from(error: tracker::Error) -> Self {
        match error {
            tracker::Error::NotFound => Self::NotFound,
            tracker::Error::Store(error) => Self::Store(error),
        }
    }
}

impl CancelService {
    /// Ends a job that was not sent, or asks its provider to; the job as it is afterwards: cancelled,
    /// or on its way to an end that the watchdog reads.
    ///
    /// # Errors
    /// [`NotCancelled`]; then this cancel has changed nothing.
    pub async fn cancel(&self, principal: &Principal, id: &str) -> Result<Arc<Job>, CancelError> {
        let id = JobId::parse(id).map_err(|_| CancelError::NotFound)?;
        let job = self
            .store
            .get(&id)
            .await?
            .filter(|job| principal.may_see(id.as_str(), &job.owner))
            .ok_or(CancelError::NotFound)?;
        if !principal.may_cancel(id.as_str(), &job.owner) {
            return Err(CancelError::Forbidden);
        }
        if job.is_final() {
            return Err(CancelError::NotCancellable("the job has ended"));
        }
        match (job.submission_state(), &job.provider) {
            (SubmissionState::Pending(_), _) | (SubmissionState::Done, None) => {
                self.cancel_unsubmitted(&id).await
            }
            (SubmissionState::InFlight, _) => Err(CancelError::NotCancellable(
                "the job is being submitted; try again once its provider has answered",
            )),
            (SubmissionState::Unknown, _) => Err(CancelError::NotCancellable(
                "the answer to the job's submission was lost; nobody knows what to cancel yet",
            )),
            (SubmissionState::Done, Some(name)) => {
                let provider = self
                    .providers
                    .get(name)
                    .filter(|provider| provider.can_cancel(&job));
                let provider =
                    provider.ok_or(CancelError::NotCancellable("its provider can't cancel it"))?;
                self.cancel_at_provider(provider, job).await
            }
        }
    }

    async fn cancel_unsubmitted(&self, id: &JobId) -> Result<Arc<Job>, CancelError> {
        let withdrawn = Update {
            source: Source::Api,
            event: JobEvent::CancelledBeforeSubmission,
        };
        let recorded = self.tracker.apply_update(id, withdrawn).await?;
        if recorded.applied || recorded.job.status == Status::Cancelled {
            return Ok(recorded.job);
        }
        Err(CancelError::NotCancellable(
            "the job is being submitted, or has ended, since you last saw it",
        ))
    }

    /// Has the provider cancel. Its answer may tell the end itself; otherwise the end is read.
    async fn cancel_at_provider(
        &self,
        provider: &Provider,
        job: Arc<Job>,
    ) -> Result<Arc<Job>, CancelError> {
        let asked = provider.cancel(&job).await;
        self.count_request(provider, ProviderOperation::Cancel, asked.as_ref().err());
        match asked {
            Ok(Some(report)) => {
                let source = if report.status == Some(Status::Cancelled) {
                    Source::Api
                } else {
                    Source::Poll
                };
                let recorded = self
                    .tracker
                    .apply_update(&job.id, report.into_update(source))
                    .await?;
                check_outcome(recorded.job)
            }
            Ok(None) => {
                match self.poll_now(provider, &job).await {
                    Ok(()) => {}
                    // It no longer knows what it agreed to cancel: nothing more will come of it.
                    Err(RequestError::Rejected(refused)) if refused.is_task_not_found() => {
                        let gone = StatusReport {
                            is_authoritative: true,
                            ..StatusReport::with_status(Status::Cancelled)
                        };
                        let gone = gone.into_update(Source::Api);
                        self.tracker.apply_update(&job.id, gone).await?;
                    }
                    Err(_) => self.tracker.request_poll(&job.id).await?,
                }
                let job = self.store.get(&job.id).await?;
                check_outcome(job.ok_or(CancelError::NotFound)?)
            }
            Err(RequestError::Rejected(refused)) if is_task_rejection(&refused) => {
                // Whoever may not cancel it is told why by the job itself.
                let _unread = self.poll_now(provider, &job).await;
                let job = self.store.get(&job.id).await?;
                let job = job.ok_or(CancelError::NotFound)?;
                match check_outcome(job)? {
                    cancelled if cancelled.is_final() => Ok(cancelled),
                    _ => Err(CancelError::NotCancellable(
                        "its provider does not cancel this job as it is",
                    )),
                }
            }
            Err(failed) => {
                // It may have been heard all the same.
                self.tracker.request_poll(&job.id).await?;
                Err(CancelError::Provider(failed))
            }
        }
    }

    /// Reads where the job is.
    async fn poll_now(&self, provider: &Provider, job: &Arc<Job>) -> Result<(), RequestError> {
        if !provider.can_query(job) {
            return Ok(());
        }
        let answer = provider.query(std::slice::from_ref(job)).await;
        self.count_request(provider, ProviderOperation::Query, answer.as_ref().err());
        for (id, report) in answer? {
            let update = report.into_update(Source::Poll);
            if let Err(error) = self.tracker.apply_update(&id, update).await {
                tracing::warn!(job.id = %id, %error, "can't record what was read");
            }
        }
        Ok(())
    }

    fn count_request(
        &self,
        provider: &Provider,
        call: ProviderOperation,
        failed: Option<&RequestError>,
    ) {
        if let Some(outcome) = failed.map_or(Some(CallOutcome::Ok), RequestError::outcome) {
            self.metrics
                .provider_request(provider.name(), call, outcome);
        }
    }
}

/// A job after a cancel: whichever end was committed first is its end.
fn check_outcome(job: Arc<Job>) -> Result<Arc<Job>, CancelError> {
    match job.status {
        Status::Cancelled | Status::Accepted | Status::Queued | Status::Running => Ok(job),
        Status::Succeeded | Status::Failed => Err(CancelError::NotCancellable(
            "the job ended before it could be cancelled",
        )),
    }
}

/// Whether a refusal is the provider's last word on cancelling this task: not one about who asks or
/// how often, and not a fault of its own.
fn is_task_rejection(refused: &Rejection) -> bool {
    let is_about_us = matches!(
        refused.failure.kind,
        FailureKind::Auth | FailureKind::Quota | FailureKind::RateLimit
    );
    refused.is_definitive && !is_about_us && refused.http_status.is_some_and(|http| http < 500)
}
