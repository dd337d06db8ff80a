//! The submitter: sends accepted jobs to their providers.
//!
//! Invariant: a try is on record before it is sent, so that whatever happens to this process, no
//! job is sent twice unless its provider has said for sure that it does not have it. No more jobs
//! are claimed than the provider's gate gives leave for.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::job::{
    Failure, FailureKind, Job, JobEvent, JobId, MAX_ATTEMPTS, Source, StatusReport, Update,
};
use crate::links::Links;
use crate::provider::{Permit, Provider, Providers, Rejection, SubmitOutcome};
use crate::store::{Queue, WorkQueues};
use crate::telemetry::{CallOutcome, Metrics, ProviderOperation};
use crate::time::Time;
use crate::tracker::{Error, Tracker, WorkerWakeups};

/// Jobs claimed at once, of one provider.
const CLAIM_BATCH: usize = 64;

/// How long after its claim a job may wait for a gate that has closed in between: well within the
/// lease, so that nobody else begins a try meanwhile.
const MAX_PERMIT_WAIT: Duration = Duration::from_secs(20);

/// How long to sleep at most: places can come free on another node, which does not wake this one.
const MAX_IDLE: Duration = Duration::from_secs(1);

/// The wait after the first failed try; doubled after each further one.
const INITIAL_BACKOFF: Duration = Duration::from_secs(1);

/// The longest wait of our own making.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Sends accepted jobs; cheap to clone.
#[derive(Clone)]
pub struct Submitter {
    /// Where jobs wait.
    pub store: Arc<dyn WorkQueues>,
    /// Who takes them.
    pub providers: Arc<Providers>,
    /// Where the outcome is written.
    pub tracker: Arc<Tracker>,
    /// Where providers send their news.
    pub links: Links,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What wakes it.
    pub wakeups: WorkerWakeups,
}

impl Submitter {
    /// Claims and sends until `stop`, then waits for the tries under way.
    pub async fn run(self, stop: CancellationToken) {
        let tries = TaskTracker::new();
        loop {
            let stirred = self.wakeups.submitter.notified();
            let next = self.claim(&tries, &stop).await;
            tokio::select! {
                () = stop.cancelled() => break,
                () = stirred => {}
                () = tokio::time::sleep(next) => {}
            }
        }
        tries.close();
        tries.wait().await;
    }

    /// Starts a try for every job that is due and has a place; says how long to sleep after it.
    async fn claim(&self, tries: &TaskTracker, stop: &CancellationToken) -> Duration {
        let mut nap = MAX_IDLE;
        for provider in self
            .providers
            .iter()
            .filter(|provider| provider.can_submit())
        {
            self.refresh_balance(provider, tries);
            let leaves = provider
                .gate()
                .try_acquire_submits(CLAIM_BATCH, Time::now());
            if leaves.is_empty() {
                // Full: the next one that ends stirs.
                let reopens = provider.gate().retry_at(Time::now());
                nap = reopens.map_or(nap, |at| nap.min(at.saturating_duration_since(Time::now())));
                continue;
            }
            let queue = Queue::Submit {
                provider: provider.name(),
                max_concurrent: provider.max_concurrent(),
            };
            let claimed = match self.store.claim(queue, Time::now(), leaves.len()).await {
                Ok(claimed) => claimed,
                Err(error) => {
                    tracing::warn!(provider.name = provider.name(), %error, "can't claim jobs");
                    continue;
                }
            };
            for (job, leave) in claimed.into_iter().zip(leaves) {
                let (submitter, provider, stop) =
                    (self.clone(), Arc::clone(provider), stop.clone());
                tries.spawn(
                    async move { submitter.attempt(leave, &provider, &job.id, &stop).await },
                );
            }
            if let Ok(Some(due)) = self.store.next_due(queue).await {
                let wait = due.saturating_duration_since(Time::now());
                nap = if wait.is_zero() { nap } else { nap.min(wait) };
            }
        }
        nap
    }

    /// Has the balance read where it is time to.
    fn refresh_balance(&self, provider: &Arc<Provider>, tries: &TaskTracker) {
        if !provider.is_balance_due(Time::now()) {
            return;
        }
        let (submitter, provider) = (self.clone(), Arc::clone(provider));
        tries.spawn(async move {
            let outcome = match provider.read_balance().await {
                Ok(()) => CallOutcome::Ok,
                Err(error) => {
                    tracing::info!(provider.name = provider.name(), %error, "can't read the balance");
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
        leave: Permit,
        provider: &Provider,
        id: &JobId,
        stop: &CancellationToken,
    ) {
        let leave = tokio::select! {
            () = stop.cancelled() => return,
            leave = leave.revalidate(Time::now() + MAX_PERMIT_WAIT) => leave,
        };
        let Some(leave) = leave else { return };
        let begins = Update {
            source: Source::Submit,
            event: JobEvent::SubmissionStarted,
        };
        let job = match self.tracker.apply_update(id, begins).await {
            Ok(recorded) if recorded.applied => recorded.job,
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(job.id = %id, %error, "can't begin a try");
                return;
            }
        };
        let callback = self.links.callback(provider.name(), id);
        let sent = provider.submit(leave, &job, callback.as_ref()).await;
        self.wakeups.submitter.notify_one();
        let outcome = match &sent {
            SubmitOutcome::Accepted(_) => CallOutcome::Ok,
            SubmitOutcome::Rejected(refused) if refused.failure.kind == FailureKind::RateLimit => {
                CallOutcome::RateLimited
            }
            SubmitOutcome::Rejected(_) => CallOutcome::Refused,
            SubmitOutcome::Unknown(_) => CallOutcome::NoResponse,
        };
        self.metrics
            .provider_request(provider.name(), ProviderOperation::Submit, outcome);
        self.record_until_stored(&job, update_for_outcome(&job, sent), stop)
            .await;
    }

    /// Records the outcome of a paid request, however long the store is away: there is nobody who
    /// would tell it again.
    async fn record_until_stored(&self, job: &Job, update: Update, stop: &CancellationToken) {
        loop {
            match self.tracker.apply_update(&job.id, update.clone()).await {
                Ok(_) | Err(Error::NotFound) => return,
                Err(Error::Store(error)) => {
                    tracing::error!(job.id = %job.id, %error, "can't record what became of a try; trying again");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(MAX_IDLE) => {}
            }
        }
    }
}

/// What a try's end means for its job.
fn update_for_outcome(job: &Job, sent: SubmitOutcome) -> Update {
    let news = match sent {
        SubmitOutcome::Accepted(report) => JobEvent::Reported(report),
        SubmitOutcome::Unknown(lost) => {
            let message = format!(
                "the answer to the submission was lost ({}); waiting for the provider's word",
                lost.0
            );
            JobEvent::SubmissionOutcomeUnknown {
                error: Failure::new(FailureKind::SubmissionUnknown, message),
            }
        }
        SubmitOutcome::Rejected(refused) => {
            let at = Time::now() + retry_delay(job.attempt, &refused);
            let is_tried_again =
                refused.is_retryable() && job.attempt < MAX_ATTEMPTS && at < job.deadline_at;
            let error = refused.failure;
            match is_tried_again {
                true => JobEvent::RetryScheduled { error, at },
                false => JobEvent::Reported(Box::new(StatusReport::failed(error))),
            }
        }
    };
    Update {
        source: Source::Submit,
        event: news,
    }
}

/// As long as the provider asks for, and up to a tenth more, so that waiting jobs do not come back
/// together; else twice as long after each try, by half more or less.
fn retry_delay(attempt: u32, refused: &Rejection) -> Duration {
    let mut rng = rand::rng();
    match refused.retry_after {
        Some(wait) => wait.mul_f64(rng.random_range(1.0..1.1)),
        None => {
            let doubled =
                INITIAL_BACKOFF * 2u32.saturating_pow(attempt.saturating_sub(1)).min(1 << 10);
            doubled.min(MAX_BACKOFF).mul_f64(rng.random_range(0.5..1.5))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_and_never_undercuts_retry_after() {
        let refused = |wait| Rejection {
            retry_after: wait,
            ..Rejection::technical("busy")
        };
        for attempt in 1..=12 {
            let base = f64::from(2u32.pow(attempt - 1)).min(60.0);
            let wait = retry_delay(attempt, &refused(None)).as_secs_f64();
            assert!(
                (base * 0.5..base * 1.5).contains(&wait),
                "{attempt}: {wait}"
            );
        }
        let hint = Duration::from_secs(7);
        let told = retry_delay(3, &refused(Some(hint)));
        assert!(told >= hint && told < hint.mul_f64(1.1));
    }
}
