//! Cancellation of jobs, for the HTTP API and for WebSockets.
//!
//! A job that was not submitted is cancelled at once. Any other job is cancelled by its provider,
//! and the provider's response or a poll reports the result. If a cancellation and another terminal
//! status race, the first one that is committed wins and the other has no effect. At most one
//! request per job and node is in progress at a provider.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use progress_hub_auth::jwt::Principal;
use tokio::sync::OnceCell;

use crate::job::{
    FailureKind, Job, JobEvent, JobId, Source, Status, StatusReport, SubmissionState, Update,
};
use crate::provider::{Provider, Providers, Rejection, RequestError};
use crate::store::{self, Store};
use crate::telemetry::{CallOutcome, Metrics, ProviderOperation};
use crate::tracker::{self, Tracker};

/// Cancels jobs on behalf of clients.
pub struct CancelService {
    /// The store that holds the jobs.
    pub store: Arc<dyn Store>,
    /// The configured providers.
    pub providers: Arc<Providers>,
    /// Applies the resulting updates.
    pub tracker: Arc<Tracker>,
    /// Counts the requests to providers.
    pub metrics: Arc<Metrics>,
    /// The cancel requests in progress at providers.
    pub in_progress: CancelsInProgress,
}

/// The cancel requests in progress at providers, by job. A further request for the same job waits
/// for the one in progress and gets its result.
#[derive(Default)]
pub struct CancelsInProgress(Mutex<HashMap<JobId, Weak<CancelCell>>>);

type CancelCell = OnceCell<Result<Arc<Job>, CancelError>>;

impl CancelsInProgress {
    /// Returns the cell of the request in progress for a job, or a new one.
    fn of(&self, id: &JobId) -> Arc<CancelCell> {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = cells.get(id).and_then(Weak::upgrade) {
            return cell;
        }
        cells.retain(|_, cell| cell.strong_count() > 0);
        let cell = Arc::new(OnceCell::new());
        cells.insert(id.clone(), Arc::downgrade(&cell));
        cell
    }
}

/// The reason why a job was not cancelled.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CancelError {
    /// The job does not exist or the principal may not see it.
    #[error("job not found")]
    NotFound,
    /// The principal may see the job but not cancel it.
    #[error("token lacks the scope jobs:write")]
    Forbidden,
    /// The state of the job or the capabilities of its provider do not allow it.
    #[error("{0}")]
    NotCancellable(&'static str),
    /// The cancel request to the provider failed.
    #[error("provider rejected or did not answer the cancel request")]
    Provider(#[source] RequestError),
    /// The store failed.
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

/// How a job is cancelled.
enum CancelTarget<'p> {
    /// By the hub itself, because no provider has the job.
    Unsubmitted,
    /// By a request to the provider.
    AtProvider(&'p Provider),
}

impl CancelService {
    /// Cancels the job `id` on behalf of `principal`.
    ///
    /// Returns the newest version of the job. It is unfinished if the provider accepted the request
    /// but has not confirmed the cancellation. The watchdog then polls the result.
    ///
    /// # Errors
    /// Returns a [`CancelError`] if the job was not cancelled.
    pub async fn cancel(&self, principal: &Principal, id: &str) -> Result<Arc<Job>, CancelError> {
        let job = self.load_authorized(principal, id).await?;
        match self.target(&job)? {
            CancelTarget::Unsubmitted => self.cancel_unsubmitted(&job.id).await,
            CancelTarget::AtProvider(provider) => {
                let cancel = self.in_progress.of(&job.id);
                let request = || self.cancel_at_provider(provider, job);
                cancel.get_or_init(request).await.clone()
            }
        }
    }

    /// Checks whether `principal` can cancel the job `id` now. Sends no request, so the provider
    /// can still reject the cancellation.
    ///
    /// # Errors
    /// Returns the error that [`CancelService::cancel`] would return before it sends a request.
    pub async fn check(&self, principal: &Principal, id: &str) -> Result<(), CancelError> {
        let job = self.load_authorized(principal, id).await?;
        self.target(&job).map(drop)
    }

    async fn load_authorized(
        &self,
        principal: &Principal,
        id: &str,
    ) -> Result<Arc<Job>, CancelError> {
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
        Ok(job)
    }

    /// Returns how the job can be cancelled.
    ///
    /// # Errors
    /// Returns [`CancelError::NotCancellable`] if it cannot be cancelled in its current state.
    fn target(&self, job: &Job) -> Result<CancelTarget<'_>, CancelError> {
        if job.is_final() {
            return Err(CancelError::NotCancellable("the job is already final"));
        }
        match (job.submission_state(), &job.provider) {
            (SubmissionState::Pending(_), _) | (SubmissionState::Done, None) => {
                Ok(CancelTarget::Unsubmitted)
            }
            (SubmissionState::InFlight, _) => Err(CancelError::NotCancellable(
                "the job is being submitted; retry after its provider has responded",
            )),
            (SubmissionState::Unknown, _) => Err(CancelError::NotCancellable(
                "the submission outcome is unknown; retry when the provider task is known",
            )),
            (SubmissionState::Done, Some(name)) => self
                .providers
                .get(name)
                .filter(|provider| provider.can_cancel(job))
                .map(|provider| CancelTarget::AtProvider(provider))
                .ok_or(CancelError::NotCancellable(
                    "the provider does not support cancelling this job",
                )),
        }
    }

    async fn cancel_unsubmitted(&self, id: &JobId) -> Result<Arc<Job>, CancelError> {
        let update = Update {
            source: Source::Api,
            event: JobEvent::CancelledBeforeSubmission,
        };
        let outcome = self.tracker.apply_update(id, update).await?;
        if outcome.applied || outcome.job.status == Status::Cancelled {
            return Ok(outcome.job);
        }
        Err(CancelError::NotCancellable(
            "the job was submitted or finished in the meantime",
        ))
    }

    /// Sends the cancel request. If the response does not contain the final status, polls for it.
    async fn cancel_at_provider(
        &self,
        provider: &Provider,
        job: Arc<Job>,
    ) -> Result<Arc<Job>, CancelError> {
        let response = provider.cancel(&job).await;
        self.count_request(provider, ProviderOperation::Cancel, response.as_ref().err());
        match response {
            Ok(Some(report)) => {
                let source = if report.status == Some(Status::Cancelled) {
                    Source::Api
                } else {
                    Source::Poll
                };
                let update = report.into_update(source);
                let outcome = self.tracker.apply_update(&job.id, update).await?;
                check_outcome(outcome.job)
            }
            Ok(None) => {
                match self.poll_now(provider, &job).await {
                    Ok(()) => {}
                    // The provider deleted the task that it agreed to cancel.
                    Err(RequestError::Rejected(error)) if error.is_task_not_found() => {
                        let report = StatusReport {
                            is_authoritative: true,
                            ..StatusReport::with_status(Status::Cancelled)
                        };
                        let update = report.into_update(Source::Api);
                        self.tracker.apply_update(&job.id, update).await?;
                    }
                    Err(_) => self.tracker.request_poll(&job.id).await?,
                }
                check_outcome(self.load(&job.id).await?)
            }
            Err(RequestError::Rejected(error)) if is_task_rejection(&error) => {
                // A poll usually shows the reason, for instance that the task has finished.
                let _ignored = self.poll_now(provider, &job).await;
                let job = check_outcome(self.load(&job.id).await?)?;
                if job.is_final() {
                    Ok(job)
                } else {
                    Err(CancelError::NotCancellable(
                        "the provider rejected the cancel request for this job",
                    ))
                }
            }
            Err(error) => {
                // The provider may have received the request.
                self.tracker.request_poll(&job.id).await?;
                Err(CancelError::Provider(error))
            }
        }
    }

    async fn load(&self, id: &JobId) -> Result<Arc<Job>, CancelError> {
        self.store.get(id).await?.ok_or(CancelError::NotFound)
    }

    /// Polls the provider and applies the result.
    async fn poll_now(&self, provider: &Provider, job: &Arc<Job>) -> Result<(), RequestError> {
        if !provider.can_query(job) {
            return Ok(());
        }
        let response = provider.query(std::slice::from_ref(job)).await;
        self.count_request(provider, ProviderOperation::Query, response.as_ref().err());
        self.tracker.apply_poll_results(response?).await;
        Ok(())
    }

    fn count_request(
        &self,
        provider: &Provider,
        operation: ProviderOperation,
        error: Option<&RequestError>,
    ) {
        if let Some(outcome) = error.map_or(Some(CallOutcome::Ok), RequestError::outcome) {
            self.metrics
                .provider_request(provider.name(), operation, outcome);
        }
    }
}

/// Rejects a job that succeeded or failed before the cancellation was committed.
fn check_outcome(job: Arc<Job>) -> Result<Arc<Job>, CancelError> {
    match job.status {
        Status::Cancelled | Status::Accepted | Status::Queued | Status::Running => Ok(job),
        Status::Succeeded | Status::Failed => Err(CancelError::NotCancellable(
            "the job finished before it could be cancelled",
        )),
    }
}

/// Returns whether the provider rejected the cancellation of this task for good. Errors that
/// concern the API key, the request rate or the provider itself do not count.
fn is_task_rejection(error: &Rejection) -> bool {
    let concerns_account = matches!(
        error.failure.kind,
        FailureKind::Auth | FailureKind::Quota | FailureKind::RateLimit
    );
    error.is_definitive && !concerns_account && error.http_status.is_some_and(|status| status < 500)
}
