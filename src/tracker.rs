//! The tracker: the only writer of jobs.
//!
//! Invariant: every change goes read → [`Job::apply`] → commit, and is repeated from the start when
//! another writer was faster; there is no other way to change a job.

mod confirmation;
mod schedule;
mod settlement;
mod wakeup;

use std::sync::Arc;

use crate::job::{Job, JobEvent, JobId, Update};
use crate::links::Links;
use crate::provider::{Provider, Providers};
use crate::store::{
    self, BudgetEntry, BufferOutcome, CommitJob, CommitOutcome, CreateJob, CreateOutcome,
    IdempotencyKey, Schedule, Store,
};
use crate::telemetry::Metrics;
use crate::time::Time;

use confirmation::needs_confirmation;
use schedule::schedule_for;
pub use wakeup::{MAX_IDLE, WorkerWakeups};

/// How often a writer that lost the race reads again. Each loss means that another one won, so this
/// is only reached by a job with very many writers at once.
const MAX_CAS_ATTEMPTS: usize = 64;

/// Writes what is heard of jobs.
pub struct Tracker {
    store: Arc<dyn Store>,
    providers: Arc<Providers>,
    links: Links,
    metrics: Arc<Metrics>,
    stir: WorkerWakeups,
}

/// What became of news.
#[derive(Clone, Debug)]
pub struct UpdateOutcome {
    /// The job as it is now.
    pub job: Arc<Job>,
    /// Whether the news changed it.
    pub applied: bool,
}

/// What became of news about a provider's task.
#[derive(Clone, Debug)]
pub enum TaskMatch {
    /// It is this job's.
    Job(UpdateOutcome),
    /// It is no job's yet; the news waits for it.
    Buffered,
}

/// Why nothing was recorded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is no such job.
    #[error("there is no such job")]
    NotFound,
    /// The store could not do it; the news must be told again.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Tracker {
    /// A tracker that writes to this store, plans by these providers, and links what lies behind
    /// their keys.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        providers: Arc<Providers>,
        links: Links,
        metrics: Arc<Metrics>,
        stir: WorkerWakeups,
    ) -> Self {
        Self {
            store,
            providers,
            links,
            metrics,
            stir,
        }
    }

    /// Registers a job and charges what it may cost; news that was parked for its task is applied
    /// before anybody sees it.
    ///
    /// # Errors
    /// The store's, when it could not be kept.
    pub async fn create(
        &self,
        job: Job,
        idempotency: Option<IdempotencyKey>,
        entries: Vec<BudgetEntry>,
    ) -> Result<(CreateOutcome, Arc<Job>), Error> {
        for _ in 0..MAX_CAS_ATTEMPTS {
            let (job, agenda, folded) = self.apply_buffered_updates(job.clone()).await?;
            let create = CreateJob {
                job: Arc::clone(&job),
                schedule: agenda,
                idempotency: idempotency.clone(),
                applied_buffered: folded,
                budget_entries: entries.clone(),
            };
            let created = self.store.create(create).await?;
            if created == CreateOutcome::Created
                && let Some(charge) = &job.internal.reservation
            {
                self.metrics
                    .reserved(provider_name(&job), charge.amount_micros);
            }
            if created != CreateOutcome::Conflict {
                self.stir.notify_for(&agenda, &job);
                return Ok((created, job));
            }
        }
        Err(store::Error::Overloaded.into())
    }

    /// Applies news to a job and commits it.
    ///
    /// # Errors
    /// [`Error::NotFound`] or the store's; then the news was not taken and must be told again.
    pub async fn apply_update(&self, id: &JobId, update: Update) -> Result<UpdateOutcome, Error> {
        self.apply_update_if(id, update, |_| true).await
    }

    /// Applies a provider's news to a job, which must be that provider's.
    ///
    /// # Errors
    /// As [`Tracker::record`]; a job of anybody else is not found.
    pub async fn apply_provider_update(
        &self,
        provider: &str,
        id: &JobId,
        update: Update,
    ) -> Result<UpdateOutcome, Error> {
        self.apply_update_if(id, update, |job| job.provider.as_deref() == Some(provider))
            .await
    }

    async fn apply_update_if(
        &self,
        id: &JobId,
        update: Update,
        fits: impl Fn(&Job) -> bool,
    ) -> Result<UpdateOutcome, Error> {
        for _ in 0..MAX_CAS_ATTEMPTS {
            let job = self
                .store
                .get(id)
                .await?
                .filter(|job| fits(job))
                .ok_or(Error::NotFound)?;
            let Some(next) = self.next_version(&job, &update, Time::now()) else {
                if needs_confirmation(&job, &update) {
                    self.expect_success(&job, &update).await?;
                    self.schedule_poll(&job).await?;
                }
                // It may be here by a try that was not acknowledged.
                match self.store.ensure_durable(&job).await? {
                    CommitOutcome::Committed => {
                        return Ok(UpdateOutcome {
                            job,
                            applied: false,
                        });
                    }
                    CommitOutcome::Conflict => continue,
                    CommitOutcome::NotFound => return Err(Error::NotFound),
                }
            };
            let is_new_task = job.provider_task_id.is_none() && next.provider_task_id.is_some();
            let (next, agenda, folded) = if is_new_task {
                self.apply_buffered_updates(next).await?
            } else {
                let agenda = schedule_for(self.provider_of(&next), &next, Time::now());
                (Arc::new(next), agenda, Vec::new())
            };
            let settled = settlement::settle(&job, &next);
            let (spent, entries) = settled.map_or((None, Vec::new()), |settled| {
                (Some(settled.spent), settled.entries)
            });
            let commit = CommitJob {
                job: Arc::clone(&next),
                expected_version: job.version,
                schedule: agenda,
                applied_buffered: folded,
                budget_entries: entries,
            };
            match self.store.commit(commit).await? {
                CommitOutcome::Committed => {
                    self.metrics.job_updated(next.source);
                    if let Some(spent) = spent {
                        self.metrics.spent(provider_name(&next), spent);
                    }
                    log_update(&next);
                    self.stir.notify_for(&agenda, &next);
                    return Ok(UpdateOutcome {
                        job: next,
                        applied: true,
                    });
                }
                CommitOutcome::Conflict
                    if is_new_task && self.task_belongs_to_other_job(&next).await? =>
                {
                    return Ok(UpdateOutcome {
                        job,
                        applied: false,
                    });
                }
                CommitOutcome::Conflict => {}
                CommitOutcome::NotFound => return Err(Error::NotFound),
            }
        }
        Err(store::Error::Overloaded.into())
    }

    /// Records trusted news about a provider's task, or parks it until the task is known.
    ///
    /// # Errors
    /// As [`Tracker::record`].
    pub async fn apply_task_update(
        &self,
        provider: &str,
        task_id: &str,
        update: Update,
    ) -> Result<TaskMatch, Error> {
        let known = match self.store.find_task(provider, task_id).await? {
            Some(id) => id,
            None => match self
                .store
                .buffer_update(provider, task_id, &update, Time::now())
                .await?
            {
                BufferOutcome::Buffered => return Ok(TaskMatch::Buffered),
                BufferOutcome::TaskKnown(id) => id,
            },
        };
        self.apply_update(&known, update).await.map(TaskMatch::Job)
    }

    /// Whether the job's task is another job's: then the news is not about this one.
    async fn task_belongs_to_other_job(&self, job: &Job) -> Result<bool, Error> {
        let (Some(provider), Some(task_id)) = (&job.provider, &job.provider_task_id) else {
            return Ok(false);
        };
        let holder = self.store.find_task(provider, task_id).await?;
        Ok(holder.is_some_and(|holder| holder != job.id))
    }

    /// The job with all that is parked for its task, what that makes of its agenda, and the news
    /// that went into it.
    async fn apply_buffered_updates(
        &self,
        mut job: Job,
    ) -> Result<(Arc<Job>, Schedule, Vec<Update>), Error> {
        let parked = match (&job.provider, &job.provider_task_id) {
            (Some(provider), Some(task_id)) => {
                self.store.buffered_updates(provider, task_id).await?
            }
            (None, _) | (_, None) => Vec::new(),
        };
        let now = Time::now();
        let mut asks = false;
        for update in &parked {
            asks |= needs_confirmation(&job, update);
            let expecting = match &update.event {
                JobEvent::Reported(report) => job.record_unconfirmed_success(report, now),
                JobEvent::SubmissionStarted
                | JobEvent::RetryScheduled { .. }
                | JobEvent::SubmissionOutcomeUnknown { .. }
                | JobEvent::CancelledBeforeSubmission => None,
            };
            job = expecting
                .or_else(|| self.next_version(&job, update, now))
                .unwrap_or(job);
        }
        let mut agenda = schedule_for(self.provider_of(&job), &job, now);
        if asks && !job.is_final() {
            agenda.poll_at = Some(now);
        }
        Ok((Arc::new(job), agenda, parked))
    }

    /// What the news makes of the job, if anything; outputs behind a key as links of the hub's.
    fn next_version(&self, job: &Job, update: &Update, now: Time) -> Option<Job> {
        let update = self.links.with_output_links(&job.id, update.clone(), now);
        job.apply(update, now)
    }

    fn provider_of(&self, job: &Job) -> Option<&Provider> {
        let name = job.provider.as_deref()?;
        self.providers.get(name).map(AsRef::as_ref)
    }
}

fn provider_name(job: &Job) -> &str {
    job.provider.as_deref().unwrap_or_default()
}

/// One line when a job has ended, and for those who look closer one for each change.
fn log_update(job: &Job) {
    let (status, source) = (job.status.as_str(), job.source);
    let kind = job.error.as_ref().map(|error| error.kind);
    if job.is_final() {
        tracing::info!(job.id = %job.id, job.status = status, job.source = ?source, error.kind = ?kind, "ended");
    } else {
        tracing::debug!(job.id = %job.id, job.version = job.version, job.status = status, job.source = ?source, error.kind = ?kind, "changed");
    }
}
