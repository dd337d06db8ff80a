//! The watchdog: asks about silent jobs, and ends those whose time is up.
//!
//! Invariant: every unfinished job is due here at some moment not after its deadline, in the store
//! and not in this process, so that no job hangs without an end, whatever restarts. How many
//! questions are under way is the gate's to say, provider by provider.

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

/// Jobs claimed at once.
const CLAIM_BATCH: usize = 256;

/// How often the store forgets what its retention says.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Asks about silent jobs; cheap to clone.
#[derive(Clone)]
pub struct Watchdog {
    /// Where jobs are due.
    pub store: Arc<dyn Store>,
    /// Who is asked.
    pub providers: Arc<Providers>,
    /// Where answers are written.
    pub tracker: Arc<Tracker>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What wakes it.
    pub wakeups: WorkerWakeups,
}

impl Watchdog {
    /// Looks after due jobs until `stop`, then waits for the questions under way.
    pub async fn run(self, stop: CancellationToken) {
        let questions = TaskTracker::new();
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        loop {
            let stirred = self.wakeups.watchdog.notified();
            let next = self.claim(&questions).await;
            tokio::select! {
                () = stop.cancelled() => break,
                () = stirred => {}
                () = tokio::time::sleep(next) => {}
                _ = sweep.tick() => self.sweep().await,
            }
        }
        questions.close();
        questions.wait().await;
    }

    /// Starts looking after every job that is due; says how long to sleep after it.
    async fn claim(&self, questions: &TaskTracker) -> Duration {
        let now = Time::now();
        let due = match self.store.claim(Queue::Poll, now, CLAIM_BATCH).await {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(%error, "can't claim jobs to look after");
                return MAX_IDLE;
            }
        };
        let there_may_be_more = due.len() == CLAIM_BATCH;
        for visit in group_into_batches(due, &self.providers, now) {
            let watchdog = self.clone();
            questions.spawn(async move { watchdog.process_batch(visit).await });
        }
        if there_may_be_more {
            return Duration::ZERO;
        }
        match self.store.next_due(Queue::Poll).await {
            Ok(Some(due)) => MAX_IDLE.min(due.saturating_duration_since(Time::now())),
            Ok(None) | Err(_) => MAX_IDLE,
        }
    }

    async fn process_batch(&self, visit: PollBatch) {
        if let Some(provider) = &visit.provider {
            self.poll(provider, &visit.jobs).await;
        }
        let now = Time::now();
        for job in visit.jobs {
            let last_word = if job.submission_state() == SubmissionState::InFlight {
                let message = "the hub was interrupted while it submitted the job; waiting for the provider's word";
                let error = Failure::new(FailureKind::SubmissionUnknown, message);
                Update {
                    source: Source::Submit,
                    event: JobEvent::SubmissionOutcomeUnknown { error },
                }
            } else if job.deadline_at <= now {
                let message = match job.submission_state() {
                    SubmissionState::Pending(_) => "the job could not be sent before its deadline",
                    SubmissionState::InFlight | SubmissionState::Unknown => {
                        "whether the provider took the job was not known before its deadline"
                    }
                    SubmissionState::Done => "the job did not end before its deadline",
                };
                let error = Failure::new(FailureKind::Timeout, message);
                StatusReport::failed(error).into_update(Source::Deadline)
            } else {
                continue;
            };
            if let Err(error) = self.tracker.apply_update(&job.id, last_word).await {
                tracing::warn!(job.id = %job.id, %error, "can't record what the clock says");
            }
        }
    }

    /// Asks about jobs; where a question is refused because of one of them, about fewer at a time.
    async fn poll(&self, provider: &Provider, jobs: &[Arc<Job>]) {
        let mut questions = vec![jobs];
        while let Some(jobs) = questions.pop() {
            match self.poll_once(provider, jobs).await {
                Ok(reports) => self.record(reports).await,
                Err(error) if jobs.len() > 1 && may_be_caused_by_one_job(&error) => {
                    let (these, those) = jobs.split_at(jobs.len() / 2);
                    questions.extend([those, these]);
                }
                Err(error) => {
                    tracing::warn!(provider.name = provider.name(), jobs = jobs.len(), %error, "asked in vain");
                    let lost = jobs.iter().filter(|job| {
                        is_task_not_found(&error)
                            && success_was_reported(provider, job, Time::now())
                    });
                    self.record(lost.map(|job| (job.id.clone(), expired_result())).collect())
                        .await;
                }
            }
        }
    }

    async fn poll_once(
        &self,
        provider: &Provider,
        jobs: &[Arc<Job>],
    ) -> Result<Vec<(JobId, StatusReport)>, RequestError> {
        let answer = provider.query(jobs).await;
        let failed = answer.as_ref().err();
        if let Some(outcome) = failed.map_or(Some(CallOutcome::Ok), RequestError::outcome) {
            self.metrics
                .provider_request(provider.name(), ProviderOperation::Query, outcome);
        }
        answer
    }

    async fn record(&self, reports: Vec<(JobId, StatusReport)>) {
        for (id, report) in reports {
            let update = report.into_update(Source::Poll);
            if let Err(error) = self.tracker.apply_update(&id, update).await {
                tracing::warn!(job.id = %id, %error, "can't record what was read");
            }
        }
    }

    async fn sweep(&self) {
        loop {
            match self.store.sweep(Time::now()).await {
                Ok(0) => return,
                Ok(jobs) => tracing::info!(jobs, "forgot old jobs"),
                Err(error) => {
                    tracing::warn!(%error, "can't forget old jobs");
                    return;
                }
            }
        }
    }
}

/// Whether a refusal can be the fault of one of the jobs that were asked about.
fn may_be_caused_by_one_job(error: &RequestError) -> bool {
    match error {
        RequestError::Rejected(refused) => match refused.failure.kind {
            FailureKind::InvalidInput | FailureKind::Safety | FailureKind::ResultExpired => true,
            FailureKind::Quota
            | FailureKind::RateLimit
            | FailureKind::Auth
            | FailureKind::Technical
            | FailureKind::Timeout
            | FailureKind::SubmissionUnknown => false,
        },
        RequestError::NoResponse(_)
        | RequestError::InvalidSpec(_)
        | RequestError::CircuitOpen(_) => false,
    }
}

/// Whether the provider says that it does not know, or no longer knows, what it was asked about.
fn is_task_not_found(error: &RequestError) -> bool {
    match error {
        RequestError::Rejected(refused) => refused.is_task_not_found(),
        RequestError::NoResponse(_)
        | RequestError::InvalidSpec(_)
        | RequestError::CircuitOpen(_) => false,
    }
}

/// Whether the provider told of the job's success, and not only just now: a task can be done before
/// it can be read.
fn success_was_reported(provider: &Provider, job: &Job, now: Time) -> bool {
    let told_at = job.internal.success_reported_at;
    told_at.is_some_and(|told_at| {
        now.saturating_duration_since(told_at) >= provider.cadence().poll_every
    })
}

/// A success of which nothing is left.
fn expired_result() -> StatusReport {
    StatusReport {
        is_authoritative: true,
        ..StatusReport::with_status(Status::Succeeded)
    }
}

/// Jobs that are looked after together, and whom to ask about them, if anybody.
struct PollBatch {
    provider: Option<Arc<Provider>>,
    jobs: Vec<Arc<Job>>,
}

/// Groups due jobs by whom to ask, in batches as large as each provider takes; jobs known by the
/// provider's id and jobs known by ours only are asked about apart.
fn group_into_batches(due: Vec<Arc<Job>>, providers: &Providers, now: Time) -> Vec<PollBatch> {
    let mut grouped: BTreeMap<(String, bool), Vec<Arc<Job>>> = BTreeMap::new();
    for job in due {
        let name = job.provider.clone().unwrap_or_default();
        grouped
            .entry((name, job.provider_task_id.is_some()))
            .or_default()
            .push(job);
    }
    let mut visits = Vec::new();
    for ((name, _), jobs) in grouped {
        let provider = providers.get(&name);
        let worth_asking = |job: &Arc<Job>| {
            let is_there = match job.submission_state() {
                SubmissionState::Pending(_) => false,
                SubmissionState::InFlight => job.deadline_at <= now,
                SubmissionState::Unknown | SubmissionState::Done => true,
            };
            is_there && provider.is_some_and(|provider| provider.can_query(job))
        };
        let (asked, unasked): (Vec<_>, Vec<_>) = jobs.into_iter().partition(worth_asking);
        let batch = provider.map_or(1, |provider| provider.max_query_batch());
        for jobs in asked.chunks(batch) {
            visits.push(PollBatch {
                provider: provider.cloned(),
                jobs: jobs.to_vec(),
            });
        }
        if !unasked.is_empty() {
            visits.push(PollBatch {
                provider: None,
                jobs: unasked,
            });
        }
    }
    visits
}
