//! Submits accepted jobs to their providers.
//!
//! Invariants: an attempt is recorded before its request is sent. After a crash, a job is therefore
//! submitted again only if the provider definitely does not have it. No more jobs are claimed than the
//! circuit breaker issues permits for.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::job::{
    Failure, FailureKind, Job, JobEvent, JobId, MAX_ATTEMPTS, Source, StatusReport, Update,
};
use crate::links::Links;
use crate::provider::{Permit, Provider, Providers, Rejection, SubmitOutcome};
use crate::store::{Queue, WorkQueues};
use crate::telemetry::{CallOutcome, Metrics, ProviderOperation};
use crate::time::{Time, exponential_backoff, random_jitter};
use crate::tracker::{self, MAX_IDLE, Tracker, WorkerWakeups};

/// Maximum number of jobs per claim and provider.
const CLAIM_BATCH: usize = 64;

/// Maximum time that a claimed job waits for its permit to become valid again. It is shorter than the
/// claim lease, so no other node starts an attempt in the meantime.
const MAX_PERMIT_WAIT: Duration = Duration::from_secs(20);

/// Delay after the first failed attempt. It doubles with each further attempt.
const INITIAL_BACKOFF: Duration = Duration::from_secs(1);

/// Maximum delay between attempts, unless the provider requests a longer one.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Delay before the outcome of an attempt is recorded again after the store failed.
const RECORD_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Submits accepted jobs. Cheap to clone.
#[derive(Clone)]
pub struct Submitter {
    /// The store that holds the submission queue.
    pub store: Arc<dyn WorkQueues>,
    /// The configured providers.
    pub providers: Arc<Providers>,
    /// Records the outcomes.
    pub tracker: Arc<Tracker>,
    /// Creates the callback URLs.
    pub links: Links,
    /// Counts the requests.
    pub metrics: Arc<Metrics>,
    /// Wakes the submitter when a job may be due.
    pub wakeups: WorkerWakeups,
}

impl Submitter {
    /// Claims and submits jobs until `stop` is cancelled, then waits for the attempts in flight.
    pub async fn run(self, stop: CancellationToken) {
        let attempts = TaskTracker::new();
        loop {
            let notified = self.wakeups.submitter.notified();
            let delay = self.claim(&attempts, &stop).await;
            tokio::select! {
                () = stop.cancelled() => break,
                () = notified => {}
                () = tokio::time::sleep(delay) => {}
            }
        }
        attempts.close();
        attempts.wait().await;
    }

    /// Starts an attempt for every due job that gets a permit and a concurrency slot. Returns the time
    /// to sleep before the next claim.
    async fn claim(&self, attempts: &TaskTracker, stop: &CancellationToken) -> Duration {
        // Another node can release a slot without notifying this one.
        let mut delay = MAX_IDLE;
        for provider in self
            .providers
            .iter()
            .filter(|provider| provider.can_submit())
        {
            self.check_account(provider, attempts);
            let permits = provider
                .breaker()
                .try_acquire_submits(CLAIM_BATCH, Time::now());
            if permits.is_empty() {
                // If all permits are in use, the next attempt that ends sends a notification.
                if let Some(at) = provider.breaker().retry_at(Time::now()) {
                    delay = delay.min(at.saturating_duration_since(Time::now()));
                }
                continue;
            }
            let queue = Queue::Submit {
                provider: provider.name(),
                max_concurrent: provider.max_concurrent(),
            };
            let claimed = match self.store.claim(queue, Time::now(), permits.len()).await {
                Ok(claimed) => claimed,
                Err(error) => {
                    tracing::warn!(provider.name = provider.name(), %error, "failed to claim submissions");
                    continue;
                }
            };
            for (job, permit) in claimed.into_iter().zip(permits) {
                let (submitter, provider, stop) =
                    (self.clone(), Arc::clone(provider), stop.clone());
                attempts.spawn(async move {
                    submitter.attempt(permit, &provider, &job, &stop).await;
                });
            }
            if let Ok(Some(due)) = self.store.next_due(queue).await {
                let until_due = due.saturating_duration_since(Time::now());
                // A job that is overdue waits for a slot.
                if !until_due.is_zero() {
                    delay = delay.min(until_due);
                }
            }
        }
        delay
    }

    /// Checks the account in the background if it is due.
    fn check_account(&self, provider: &Arc<Provider>, tasks: &TaskTracker) {
        if !provider.claim_account_check(Time::now()) {
            return;
        }
        let (submitter, provider) = (self.clone(), Arc::clone(provider));
        tasks.spawn(async move {
            let outcome = match provider.check_account().await {
                Ok(()) => CallOutcome::Ok,
                Err(error) => {
                    tracing::info!(provider.name = provider.name(), %error, "failed to check provider account");
                    CallOutcome::NoResponse
                }
            };
            let metrics = &submitter.metrics;
            metrics.provider_request(provider.name(), ProviderOperation::Balance, outcome);
            submitter.wakeups.submitter.notify_one();
        });
    }

    async fn attempt(
        &self,
        permit: Permit,
        provider: &Provider,
        job: &Job,
        stop: &CancellationToken,
    ) {
        let id = &job.id;
        let permit = tokio::select! {
            () = stop.cancelled() => return,
            permit = permit.revalidate(Time::now() + MAX_PERMIT_WAIT) => permit,
        };
        let Some(permit) = permit else { return };
        let model = job.model.as_deref().unwrap_or_default();
        let permit = match permit.assign_to(&job.owner, model).await {
            Ok(permit) => permit,
            Err(at) => return self.postpone(id, at).await,
        };
        let update = Update {
            source: Source::Submit,
            event: JobEvent::SubmissionStarted,
        };
        let job = match self.tracker.apply_update(id, update).await {
            Ok(outcome) if outcome.applied => outcome.job,
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(job.id = %id, %error, "failed to start submission attempt");
                return;
            }
        };
        let callback = self.links.callback_url(provider.name(), id);
        let submitted = provider.submit(permit, &job, callback.as_ref()).await;
        self.wakeups.submitter.notify_one();
        let outcome = match &submitted {
            SubmitOutcome::Accepted(_) => CallOutcome::Ok,
            SubmitOutcome::Rejected(rejection)
                if rejection.failure.kind == FailureKind::RateLimit =>
            {
                CallOutcome::RateLimited
            }
            SubmitOutcome::Rejected(_) => CallOutcome::Rejected,
            SubmitOutcome::Unknown(_) => CallOutcome::NoResponse,
        };
        self.metrics
            .provider_request(provider.name(), ProviderOperation::Submit, outcome);
        self.record_until_stored(&job, update_for_outcome(&job, submitted), stop)
            .await;
    }

    /// Postpones a job whose owner and model are held, so that it occupies no concurrency slot.
    async fn postpone(&self, id: &JobId, at: Time) {
        let update = Update {
            source: Source::Submit,
            event: JobEvent::Postponed { at },
        };
        if let Err(error) = self.tracker.apply_update(id, update).await {
            tracing::warn!(job.id = %id, %error, "failed to postpone submission");
        }
    }

    /// Records the outcome of a paid request and retries until the store accepts it, because the
    /// provider does not repeat its response.
    async fn record_until_stored(&self, job: &Job, update: Update, stop: &CancellationToken) {
        loop {
            match self.tracker.apply_update(&job.id, update.clone()).await {
                Ok(_) | Err(tracker::Error::NotFound) => return,
                Err(tracker::Error::Store(error)) => {
                    tracing::error!(job.id = %job.id, %error, "failed to record submission outcome; retrying");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RECORD_RETRY_DELAY) => {}
            }
        }
    }
}

/// Returns the update that records the outcome of an attempt.
fn update_for_outcome(job: &Job, outcome: SubmitOutcome) -> Update {
    let event = match outcome {
        SubmitOutcome::Accepted(report) => JobEvent::Reported(report),
        SubmitOutcome::Unknown(unknown) => {
            let message = format!(
                "submission outcome unknown ({}); waiting for a webhook or a successful poll",
                unknown.0
            );
            JobEvent::SubmissionOutcomeUnknown {
                error: Failure::new(FailureKind::SubmissionUnknown, message),
            }
        }
        SubmitOutcome::Rejected(rejection) => {
            let at = Time::now() + retry_delay(job.attempt, &rejection);
            let is_retried =
                rejection.is_retryable() && job.attempt < MAX_ATTEMPTS && at < job.deadline_at;
            let error = rejection.failure;
            if is_retried {
                JobEvent::RetryScheduled { error, at }
            } else {
                JobEvent::Reported(Box::new(StatusReport::failed(error)))
            }
        }
    };
    Update {
        source: Source::Submit,
        event,
    }
}

/// Returns the delay before the next attempt: the delay that the provider requests plus up to 10%, or
/// an exponential backoff with 50% jitter.
fn retry_delay(attempt: u32, rejection: &Rejection) -> Duration {
    if let Some(retry_after) = rejection.retry_after {
        return random_jitter(retry_after, 1.0..1.1);
    }
    let backoff = exponential_backoff(INITIAL_BACKOFF, MAX_BACKOFF, attempt);
    random_jitter(backoff, 0.5..1.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_and_never_undercuts_retry_after() {
        let rejection = |retry_after| Rejection {
            retry_after,
            ..Rejection::technical("busy")
        };
        for attempt in 1..=12 {
            let base = f64::from(2u32.pow(attempt - 1)).min(60.0);
            let delay = retry_delay(attempt, &rejection(None)).as_secs_f64();
            assert!(
                (base * 0.5..base * 1.5).contains(&delay),
                "{attempt}: {delay}"
            );
        }
        let hint = Duration::from_secs(7);
        let delay = retry_delay(3, &rejection(Some(hint)));
        assert!(delay >= hint && delay < hint.mul_f64(1.1));
    }
}
