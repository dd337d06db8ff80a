//! The tracker: the only writer of jobs.
//!
//! Invariant: every change goes read → [`Job::apply`] → commit, and is repeated from the start when
//! another writer was faster; there is no other way to change a job.

mod looking;
mod planning;
mod settling;
mod stir;

use std::sync::Arc;

use crate::job::{Job, JobId, JobEvent, Update};
use crate::links::Links;
use crate::provider::{Provider, Providers};
use crate::store::{
    self, Agenda, Commit, Committed, Create, Created, Entry, Idempotency, Parked, Store,
};
use crate::telemetry::Metrics;
use crate::time::Time;

use looking::asks_for_a_look;
use planning::agenda;
pub use stir::{NAP, Stir};

/// How often a writer that lost the race reads again. Each loss means that another one won, so this
/// is only reached by a job with very many writers at once.
const ROUNDS: usize = 64;

/// Writes what is heard of jobs.
pub struct Tracker {
    store: Arc<dyn Store>,
    providers: Arc<Providers>,
    links: Links,
    metrics: Arc<Metrics>,
    stir: Stir,
}

/// What became of news.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The job as it is now.
    pub job: Arc<Job>,
    /// Whether the news changed it.
    pub applied: bool,
}

/// What became of news about a provider's task.
#[derive(Clone, Debug)]
pub enum Matched {
    /// It is this job's.
    Job(Recorded),
    /// It is no job's yet; the news waits for it.
    Parked,
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
        stir: Stir,
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
        idempotency: Option<Idempotency>,
        entries: Vec<Entry>,
    ) -> Result<(Created, Arc<Job>), Error> {
        for _ in 0..ROUNDS {
            let (job, agenda, folded) = self.fold(job.clone()).await?;
            let create = Create {
                job: Arc::clone(&job),
                agenda,
                idempotency: idempotency.clone(),
                folded,
                entries: entries.clone(),
            };
            let created = self.store.create(create).await?;
            if created == Created::New
                && let Some(charge) = &job.internal.reservation
            {
                self.metrics.reserved(provider_name(&job), charge.amount_micros);
            }
            if created != Created::Stale {
                self.stir.by(&agenda, &job);
                return Ok((created, job));
            }
        }
        Err(store::Error::Busy.into())
    }

    /// Applies news to a job and commits it.
    ///
    /// # Errors
    /// [`Error::NotFound`] or the store's; then the news was not taken and must be told again.
    pub async fn record(&self, id: &JobId, update: Update) -> Result<Recorded, Error> {
        self.record_if(id, update, |_| true).await
    }

    /// Applies a provider's news to a job, which must be that provider's.
    ///
    /// # Errors
    /// As [`Tracker::record`]; a job of anybody else is not found.
    pub async fn record_from(
        &self,
        provider: &str,
        id: &JobId,
        update: Update,
    ) -> Result<Recorded, Error> {
        self.record_if(id, update, |job| job.provider.as_deref() == Some(provider))
            .await
    }

    async fn record_if(
        &self,
        id: &JobId,
        update: Update,
        fits: impl Fn(&Job) -> bool,
    ) -> Result<Recorded, Error> {
        for _ in 0..ROUNDS {
            let job = self
                .store
                .get(id)
                .await?
                .filter(|job| fits(job))
                .ok_or(Error::NotFound)?;
            let Some(next) = self.applied(&job, &update, Time::now()) else {
                if asks_for_a_look(&job, &update) {
                    self.expect_success(&job, &update).await?;
                    self.look_at(&job).await?;
                }
                // It may be here by a try that was not acknowledged.
                match self.store.secure(&job).await? {
                    Committed::Done => {
                        return Ok(Recorded {
                            job,
                            applied: false,
                        });
                    }
                    Committed::Stale => continue,
                    Committed::Gone => return Err(Error::NotFound),
                }
            };
            let is_new_task = job.provider_task_id.is_none() && next.provider_task_id.is_some();
            let (next, agenda, folded) = if is_new_task {
                self.fold(next).await?
            } else {
                let agenda = agenda(self.provider_of(&next), &next, Time::now());
                (Arc::new(next), agenda, Vec::new())
            };
            let settled = settling::settle(&job, &next);
            let (spent, entries) = settled.map_or((None, Vec::new()), |settled| {
                (Some(settled.spent), settled.entries)
            });
            let commit = Commit {
                job: Arc::clone(&next),
                expected: job.version,
                agenda,
                folded,
                entries,
            };
            match self.store.commit(commit).await? {
                Committed::Done => {
                    self.metrics.updated(next.source);
                    if let Some(spent) = spent {
                        self.metrics.spent(provider_name(&next), spent);
                    }
                    tell(&next);
                    self.stir.by(&agenda, &next);
                    return Ok(Recorded {
                        job: next,
                        applied: true,
                    });
                }
                Committed::Stale if is_new_task && self.is_taken(&next).await? => {
                    return Ok(Recorded {
                        job,
                        applied: false,
                    });
                }
                Committed::Stale => {}
                Committed::Gone => return Err(Error::NotFound),
            }
        }
        Err(store::Error::Busy.into())
    }

    /// Records trusted news about a provider's task, or parks it until the task is known.
    ///
    /// # Errors
    /// As [`Tracker::record`].
    pub async fn record_task(
        &self,
        provider: &str,
        task_id: &str,
        update: Update,
    ) -> Result<Matched, Error> {
        let known = match self.store.find_task(provider, task_id).await? {
            Some(id) => id,
            None => match self
                .store
                .park(provider, task_id, &update, Time::now())
                .await?
            {
                Parked::Kept => return Ok(Matched::Parked),
                Parked::Known(id) => id,
            },
        };
        self.record(&known, update).await.map(Matched::Job)
    }

    /// Whether the job's task is another job's: then the news is not about this one.
    async fn is_taken(&self, job: &Job) -> Result<bool, Error> {
        let (Some(provider), Some(task_id)) = (&job.provider, &job.provider_task_id) else {
            return Ok(false);
        };
        let holder = self.store.find_task(provider, task_id).await?;
        Ok(holder.is_some_and(|holder| holder != job.id))
    }

    /// The job with all that is parked for its task, what that makes of its agenda, and the news
    /// that went into it.
    async fn fold(&self, mut job: Job) -> Result<(Arc<Job>, Agenda, Vec<Update>), Error> {
        let parked = match (&job.provider, &job.provider_task_id) {
            (Some(provider), Some(task_id)) => self.store.parked(provider, task_id).await?,
            (None, _) | (_, None) => Vec::new(),
        };
        let now = Time::now();
        let mut asks = false;
        for update in &parked {
            asks |= asks_for_a_look(&job, update);
            let expecting = match &update.event {
                JobEvent::Reported(report) => job.record_unconfirmed_success(report, now),
                JobEvent::SubmissionStarted | JobEvent::RetryScheduled { .. } | JobEvent::SubmissionOutcomeUnknown { .. } | JobEvent::CancelledBeforeSubmission => None,
            };
            job = expecting
                .or_else(|| self.applied(&job, update, now))
                .unwrap_or(job);
        }
        let mut agenda = agenda(self.provider_of(&job), &job, now);
        if asks && !job.is_final() {
            agenda.watch = Some(now);
        }
        Ok((Arc::new(job), agenda, parked))
    }

    /// What the news makes of the job, if anything; outputs behind a key as links of the hub's.
    fn applied(&self, job: &Job, update: &Update, now: Time) -> Option<Job> {
        let update = self.links.addressed(&job.id, update.clone(), now);
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
fn tell(job: &Job) {
    let (status, source) = (job.status.as_str(), job.source);
    let kind = job.error.as_ref().map(|error| error.kind);
    if job.is_final() {
        tracing::info!(job.id = %job.id, job.status = status, job.source = ?source, error.kind = ?kind, "ended");
    } else {
        tracing::debug!(job.id = %job.id, job.version = job.version, job.status = status, job.source = ?source, error.kind = ?kind, "changed");
    }
}
