//! Polls silent jobs and fails jobs that reach their deadline.
//!
//! Invariant: every unfinished job is scheduled in the store for a check at its deadline or
//! earlier, so every job reaches a terminal state regardless of restarts. The circuit breaker of
//! each provider limits the number of concurrent polls.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::job::{
    Failure, FailureKind, Job, JobEvent, JobId, Source, Status, StatusReport, SubmissionState,
    Update,
};
use crate::provider::{Provider, Providers, RequestError};
use crate::store::{Queue, Store};
use crate::telemetry::{CallOutcome, Metrics, ProviderOperation};
use crate::time::Time;
use crate::tracker::{MAX_IDLE, Tracker, WorkerWakeups};

/// Maximum number of jobs per claim.
const CLAIM_BATCH: usize = 256;

/// Interval of the retention sweep.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Polls silent jobs. Cheap to clone.
#[derive(Clone)]
pub struct Watchdog {
    /// The store that holds the poll queue.
    pub store: Arc<dyn Store>,
    /// The configured providers.
    pub providers: Arc<Providers>,
    /// Applies the results.
    pub tracker: Arc<Tracker>,
    /// Counts the requests.
    pub metrics: Arc<Metrics>,
    /// Wakes the watchdog when a job may be due.
    pub wakeups: WorkerWakeups,
}

impl Watchdog {
    /// Processes due jobs until `stop` is cancelled, then waits for the polls in flight.
    pub async fn run(self, stop: CancellationToken) {
        let polls = TaskTracker::new();
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            let notified = self.wakeups.watchdog.notified();
            let delay = self.claim(&polls).await;
            tokio::select! {
                () = stop.cancelled() => break,
                () = notified => {}
                () = tokio::time::sleep(delay) => {}
                _ = sweep.tick() => self.sweep().await,
            }
        }
        polls.close();
        polls.wait().await;
    }

    /// Starts processing all due jobs. Returns the time to sleep before the next claim.
    async fn claim(&self, polls: &TaskTracker) -> Duration {
        let now = Time::now();
        let due = match self.store.claim(Queue::Poll, now, CLAIM_BATCH).await {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(%error, "failed to claim polls");
                return MAX_IDLE;
            }
        };
        let is_full = due.len() == CLAIM_BATCH;
        for batch in group_into_batches(due, &self.providers, now) {
            let watchdog = self.clone();
            polls.spawn(async move { watchdog.process_batch(batch).await });
        }
        if is_full {
            return Duration::ZERO;
        }
        match self.store.next_due(Queue::Poll).await {
            Ok(Some(due)) => MAX_IDLE.min(due.saturating_duration_since(Time::now())),
            Ok(None) | Err(_) => MAX_IDLE,
        }
    }

    /// Polls the jobs, then records interrupted submissions and passed deadlines.
    async fn process_batch(&self, batch: PollBatch) {
        if let Some(provider) = &batch.provider {
            self.poll(provider, &batch.jobs).await;
        }
        let now = Time::now();
        for job in batch.jobs {
            let update = if job.submission_state() == SubmissionState::InFlight {
                let message = "submission interrupted; waiting for a webhook or a successful poll";
                let error = Failure::new(FailureKind::SubmissionUnknown, message);
                Update {
                    source: Source::Submit,
                    event: JobEvent::SubmissionOutcomeUnknown { error },
                }
            } else if job.deadline_at <= now {
                let message = match job.submission_state() {
                    SubmissionState::Pending(_) => {
                        "deadline passed before the job could be submitted"
                    }
                    SubmissionState::InFlight | SubmissionState::Unknown => {
                        "deadline passed while the submission outcome was unknown"
                    }
                    SubmissionState::Done => "deadline passed before the job finished",
                };
                let error = Failure::new(FailureKind::Timeout, message);
                StatusReport::failed(error).into_update(Source::Deadline)
            } else {
                continue;
            };
            if let Err(error) = self.tracker.apply_update(&job.id, update).await {
                tracing::warn!(job.id = %job.id, %error, "failed to record deadline");
            }
        }
    }

    /// Polls jobs. If one of them may have caused a rejection, polls each half separately.
    async fn poll(&self, provider: &Provider, jobs: &[Arc<Job>]) {
        let mut batches = vec![jobs];
        while let Some(jobs) = batches.pop() {
            match self.poll_once(provider, jobs).await {
                Ok(reports) => self.tracker.apply_poll_results(reports).await,
                Err(error) if jobs.len() > 1 && may_be_caused_by_one_job(&error) => {
                    let (first, second) = jobs.split_at(jobs.len() / 2);
                    batches.extend([second, first]);
                }
                Err(error) => {
                    tracing::warn!(provider.name = provider.name(), jobs = jobs.len(), %error, "provider poll failed");
                    if is_task_not_found(&error) {
                        let expired = jobs
                            .iter()
                            .filter(|job| success_was_reported(provider, job, Time::now()))
                            .map(|job| (job.id.clone(), expired_result()));
                        self.tracker.apply_poll_results(expired.collect()).await;
                    }
                }
            }
        }
    }

    async fn poll_once(
        &self,
        provider: &Provider,
        jobs: &[Arc<Job>],
    ) -> Result<Vec<(JobId, StatusReport)>, RequestError> {
        let response = provider.query(jobs).await;
        let error = response.as_ref().err();
        if let Some(outcome) = error.map_or(Some(CallOutcome::Ok), RequestError::outcome) {
            self.metrics
                .provider_request(provider.name(), ProviderOperation::Query, outcome);
        }
        response
    }

    /// Deletes everything whose retention has expired.
    async fn sweep(&self) {
        loop {
            match self.store.sweep(Time::now()).await {
                Ok(0) => return,
                Ok(count) => tracing::info!(count, "expired jobs deleted"),
                Err(error) => {
                    tracing::warn!(%error, "failed to delete expired jobs");
                    return;
                }
            }
        }
    }
}

/// Returns whether one of several polled jobs may have caused the error.
fn may_be_caused_by_one_job(error: &RequestError) -> bool {
    match error {
        RequestError::Rejected(rejection) => match rejection.failure.kind {
            // The account may not be allowed to read one of the tasks.
            FailureKind::Auth | FailureKind::Quota => true,
            FailureKind::InvalidInput | FailureKind::Safety | FailureKind::ResultExpired => true,
            FailureKind::RateLimit
            | FailureKind::Technical
            | FailureKind::Timeout
            | FailureKind::SubmissionUnknown => false,
        },
        // The task id of one of the jobs can make the URL invalid.
        RequestError::InvalidSpec(_) => true,
        RequestError::Unreachable(_)
        | RequestError::NoResponse(_)
        | RequestError::CircuitOpen(_) => false,
    }
}

/// Returns whether the provider reported that it does not know the task.
fn is_task_not_found(error: &RequestError) -> bool {
    matches!(error, RequestError::Rejected(rejection) if rejection.is_task_not_found())
}

/// Returns whether the provider reported a success at least one poll interval ago. A more recent
/// success may not be readable yet.
fn success_was_reported(provider: &Provider, job: &Job, now: Time) -> bool {
    job.internal
        .success_reported_at
        .is_some_and(|at| now.saturating_duration_since(at) >= provider.poll_policy().poll_every)
}

/// Returns the report of a success whose outputs are no longer available.
fn expired_result() -> StatusReport {
    StatusReport {
        is_authoritative: true,
        ..StatusReport::with_status(Status::Succeeded)
    }
}

/// Jobs to process together. They are polled only if `provider` is set.
struct PollBatch {
    provider: Option<Arc<Provider>>,
    jobs: Vec<Arc<Job>>,
}

/// Groups due jobs by provider, in batches of at most the provider's batch size.
///
/// Jobs with a provider task id and jobs without one are polled separately, because they are
/// identified by different parameters.
fn group_into_batches(due: Vec<Arc<Job>>, providers: &Providers, now: Time) -> Vec<PollBatch> {
    let mut grouped: BTreeMap<(String, bool), Vec<Arc<Job>>> = BTreeMap::new();
    for job in due {
        let name = job.provider.clone().unwrap_or_default();
        grouped
            .entry((name, job.provider_task_id.is_some()))
            .or_default()
            .push(job);
    }
    let mut batches = Vec::new();
    for ((name, _), jobs) in grouped {
        let provider = providers.get(&name);
        let can_be_polled = |job: &Arc<Job>| {
            let is_submitted = match job.submission_state() {
                SubmissionState::Pending(_) => false,
                SubmissionState::InFlight => job.deadline_at <= now,
                SubmissionState::Unknown | SubmissionState::Done => true,
            };
            is_submitted && provider.is_some_and(|provider| provider.can_query(job))
        };
        let (polled, unpolled): (Vec<_>, Vec<_>) = jobs.into_iter().partition(can_be_polled);
        let batch_size = provider.map_or(1, |provider| provider.max_query_batch());
        for jobs in polled.chunks(batch_size) {
            batches.push(PollBatch {
                provider: provider.cloned(),
                jobs: jobs.to_vec(),
            });
        }
        if !unpolled.is_empty() {
            batches.push(PollBatch {
                provider: None,
                jobs: unpolled,
            });
        }
    }
    batches
}
