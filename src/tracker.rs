//! The single writer of jobs.
//!
//! Invariant: every change reads the job, applies the update with [`Job::apply`] and commits with a
//! compare-and-swap on the version. A conflict repeats the sequence from the read. A version in
//! memory (`JobStore::recent`) may replace the read, because the commit fails if it is not the
//! stored version. If it leads to no commit, the sequence is repeated with a read.

mod confirmation;
mod schedule;
mod settlement;
mod wakeup;

use std::sync::Arc;

use crate::destinations::Destinations;
use crate::job::{Job, JobId, Source, StatusReport, Update};
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

/// Maximum number of compare-and-swap attempts. Every conflict means that another writer succeeded,
/// so only a job with many concurrent writers reaches this limit.
const MAX_CAS_ATTEMPTS: usize = 64;

/// Creates jobs and applies updates to them.
pub struct Tracker {
    store: Arc<dyn Store>,
    providers: Arc<Providers>,
    destinations: Arc<Destinations>,
    links: Links,
    metrics: Arc<Metrics>,
    wakeups: WorkerWakeups,
}

/// Result of applying an update.
#[derive(Clone, Debug)]
pub struct UpdateOutcome {
    /// The newest version of the job.
    pub job: Arc<Job>,
    /// Whether the update changed the job.
    pub applied: bool,
}

/// Result of an update that names a provider task.
#[derive(Clone, Debug)]
pub enum TaskMatch {
    /// The task belongs to a job, and the update was applied to it.
    Job(UpdateOutcome),
    /// The task belongs to no job yet. The update is buffered.
    Buffered,
}

/// Error of a tracker operation. Nothing was written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The job does not exist.
    #[error("job not found")]
    NotFound,
    /// The store failed. The sender must repeat the update.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Tracker {
    /// Creates a tracker. The poll policies of `providers` determine the schedules of jobs, and
    /// `destinations` the deliveries.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        providers: Arc<Providers>,
        destinations: Arc<Destinations>,
        links: Links,
        metrics: Arc<Metrics>,
        wakeups: WorkerWakeups,
    ) -> Self {
        Self {
            store,
            providers,
            destinations,
            links,
            metrics,
            wakeups,
        }
    }

    /// Creates a job and charges `entries` to their budget windows.
    ///
    /// Updates that were buffered for the job's task are part of the first stored version.
    ///
    /// # Errors
    /// Returns the error of the store.
    pub async fn create(
        &self,
        job: Job,
        idempotency: Option<IdempotencyKey>,
        entries: Vec<BudgetEntry>,
    ) -> Result<(CreateOutcome, Arc<Job>), Error> {
        for _ in 0..MAX_CAS_ATTEMPTS {
            let (job, schedule, buffered) = self.apply_buffered_updates(job.clone()).await?;
            let deliveries = self.destinations.deliveries(&job, true);
            let create = CreateJob {
                job: Arc::clone(&job),
                schedule,
                idempotency: idempotency.clone(),
                applied_buffered: buffered,
                budget_entries: entries.clone(),
                deliveries: deliveries.clone(),
            };
            let created = self.store.create(create).await?;
            if created == CreateOutcome::Created
                && let Some(reservation) = &job.internal.reservation
            {
                self.metrics
                    .reserved(provider_name(&job), reservation.amount_micros);
            }
            if created != CreateOutcome::Conflict {
                self.wakeups.notify_for(&schedule, &job);
                self.destinations.notify(&deliveries);
                return Ok((created, job));
            }
        }
        Err(store::Error::Overloaded.into())
    }

    /// Applies `update` to a job and commits the result.
    ///
    /// When this returns, the job's current version is durable, even if the update changed nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`], or the error of the store. The sender must then repeat the update.
    pub async fn apply_update(&self, id: &JobId, update: Update) -> Result<UpdateOutcome, Error> {
        self.apply_update_if(id, update, |_| true).await
    }

    /// Applies the reports of a poll. A report that the store rejects is logged, and the job is polled
    /// again at its next scheduled time.
    pub async fn apply_poll_results(&self, reports: Vec<(JobId, StatusReport)>) {
        for (id, report) in reports {
            let update = report.into_update(Source::Poll);
            if let Err(error) = self.apply_update(&id, update).await {
                tracing::warn!(job.id = %id, %error, "failed to record poll result");
            }
        }
    }

    /// Applies an update from `provider` to one of its own jobs.
    ///
    /// # Errors
    /// As [`Tracker::apply_update`]. A job of another provider is [`Error::NotFound`].
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
        is_eligible: impl Fn(&Job) -> bool,
    ) -> Result<UpdateOutcome, Error> {
        let mut may_guess = true;
        for _ in 0..MAX_CAS_ATTEMPTS {
            // A version in memory saves the read. The commit fails if it is not the stored version.
            let recent = may_guess.then(|| self.store.recent(id)).flatten();
            let recent = recent.filter(|recent| is_eligible(&recent.job));
            let expected_revision = recent.as_ref().map(|recent| recent.revision);
            let job = match recent {
                Some(recent) => recent.job,
                None => self
                    .store
                    .get(id)
                    .await?
                    .filter(|job| is_eligible(job))
                    .ok_or(Error::NotFound)?,
            };
            let Some(next) = self.next_version(&job, &update, Time::now()) else {
                if expected_revision.is_some() {
                    may_guess = false;
                    continue;
                }
                if needs_confirmation(&job, &update) {
                    self.record_unconfirmed_success(&job, &update).await?;
                    self.schedule_poll(&job).await?;
                }
                // An earlier attempt may have written this version without acknowledging it.
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
            let (next, schedule, buffered) = if is_new_task {
                self.apply_buffered_updates(next).await?
            } else {
                let schedule = schedule_for(self.provider_of(&next), &next, Time::now());
                (Arc::new(next), schedule, Vec::new())
            };
            let settlement = settlement::settle(&job, &next);
            let spent_micros = settlement.as_ref().map(|it| it.spent_micros);
            let deliveries = self.destinations.deliveries(&next, false);
            let commit = CommitJob {
                job: Arc::clone(&next),
                expected_version: job.version,
                expected_revision,
                schedule,
                applied_buffered: buffered,
                budget_entries: settlement
                    .map(|it| it.entries)
                    .into_iter()
                    .flatten()
                    .chain(settlement::leave_queue(&job, &next))
                    .collect(),
                deliveries: deliveries.clone(),
            };
            match self.store.commit(commit).await? {
                CommitOutcome::Committed => {
                    self.metrics.job_updated(next.source);
                    if let Some(spent_micros) = spent_micros {
                        self.metrics.spent(provider_name(&next), spent_micros);
                    }
                    log_update(&next);
                    self.wakeups.notify_for(&schedule, &next);
                    self.destinations.notify(&deliveries);
                    return Ok(UpdateOutcome {
                        job: next,
                        applied: true,
                    });
                }
                // The conflict may concern the task instead of the version, so the next attempt
                // reads.
                CommitOutcome::Conflict if is_new_task && expected_revision.is_some() => {
                    may_guess = false;
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

    /// Applies a verified update to the job of a provider task, or buffers it if no job has the task
    /// yet.
    ///
    /// # Errors
    /// As [`Tracker::apply_update`].
    pub async fn apply_task_update(
        &self,
        provider: &str,
        task_id: &str,
        update: Update,
    ) -> Result<TaskMatch, Error> {
        let update = update.bounded();
        let id = match self.store.find_task(provider, task_id).await? {
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
        self.apply_update(&id, update).await.map(TaskMatch::Job)
    }

    /// Returns whether the job's task belongs to another job, so the update is not about this one.
    async fn task_belongs_to_other_job(&self, job: &Job) -> Result<bool, Error> {
        let (Some(provider), Some(task_id)) = (&job.provider, &job.provider_task_id) else {
            return Ok(false);
        };
        let holder = self.store.find_task(provider, task_id).await?;
        Ok(holder.is_some_and(|holder| holder != job.id))
    }

    /// Applies the updates that are buffered for the job's task. Returns the resulting job, its
    /// schedule and the buffered updates.
    async fn apply_buffered_updates(
        &self,
        mut job: Job,
    ) -> Result<(Arc<Job>, Schedule, Vec<Update>), Error> {
        let buffered = match (&job.provider, &job.provider_task_id) {
            (Some(provider), Some(task_id)) => {
                self.store.buffered_updates(provider, task_id).await?
            }
            (None, _) | (_, None) => Vec::new(),
        };
        let now = Time::now();
        let mut poll_now = false;
        for update in &buffered {
            poll_now |= needs_confirmation(&job, update);
            let report = update.event.report();
            let unconfirmed = report.and_then(|report| job.record_unconfirmed_success(report, now));
            job = unconfirmed
                .or_else(|| self.next_version(&job, update, now))
                .unwrap_or(job);
        }
        let mut schedule = schedule_for(self.provider_of(&job), &job, now);
        if poll_now && !job.is_final() {
            schedule.poll_at = Some(now);
        }
        Ok((Arc::new(job), schedule, buffered))
    }

    /// Returns the next version of the job, with output URLs of the hub, or `None` if nothing
    /// changes.
    fn next_version(&self, job: &Job, update: &Update, now: Time) -> Option<Job> {
        let update = update.clone().bounded();
        let update = self.links.with_output_links(&job.id, update, now);
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

/// Logs a finished job at info level and any other change at debug level.
fn log_update(job: &Job) {
    let (status, source) = (job.status.as_str(), job.source.as_str());
    let kind = job.error.as_ref().map(|error| error.kind.as_str());
    if job.is_final() {
        tracing::info!(job.id = %job.id, job.status = status, job.source = source, error.kind = kind, "job finished");
    } else {
        tracing::debug!(job.id = %job.id, job.version = job.version, job.status = status, job.source = source, error.kind = kind, "job updated");
    }
}
