//! Cancelling: the one way from "stop it" to a job's end, for HTTP and sockets alike.
//!
//! Invariant: a job that was never sent ends at once; one that a provider has ends when the
//! provider says so; and where both an end and a cancel are on their way, the first to be
//! committed wins.

use std::sync::Arc;

use crate::job::{Job, JobId, News, Source, Status, Submission, Update};
use crate::provider::{AskError, Providers};
use crate::store::{self, Store};
use crate::telemetry::{Call, CallOutcome, Metrics};
use crate::tracker::{Error, Tracker};

/// Cancels jobs.
pub struct Canceller {
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
pub enum NotCancelled {
    /// There is no such job.
    #[error("there is no such job")]
    NotFound,
    /// It has ended, or its provider can't cancel, or nobody knows yet where it is.
    #[error("{0}")]
    NotCancellable(&'static str),
    /// The provider did not answer, or said no.
    #[error("the provider did not cancel")]
    Provider(#[source] AskError),
    /// The store could not do it.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl From<Error> for NotCancelled {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound => Self::NotFound,
            Error::Store(error) => Self::Store(error),
        }
    }
}

impl Canceller {
    /// Ends a job that was not sent, or asks its provider to; the job as it is afterwards.
    ///
    /// # Errors
    /// [`NotCancelled`], with nothing changed.
    pub async fn cancel(&self, id: &JobId) -> Result<Arc<Job>, NotCancelled> {
        let job = self.store.get(id).await?.ok_or(NotCancelled::NotFound)?;
        if job.is_final() {
            return Err(NotCancelled::NotCancellable("the job has ended"));
        }
        match (job.submission(), &job.provider) {
            (Submission::Waiting(_), _) | (Submission::Over, None) => self.end(id).await,
            (Submission::Sending | Submission::Unknown, _) => Err(NotCancelled::NotCancellable(
                "the job is being submitted, and its provider has not answered yet",
            )),
            (Submission::Over, Some(name)) => {
                let provider = self
                    .providers
                    .get(name)
                    .filter(|provider| provider.can_cancel());
                let provider = provider.ok_or(NotCancelled::NotCancellable(
                    "its provider can't cancel a job",
                ))?;
                let asked = provider.cancel(&job).await;
                let outcome = if asked.is_ok() {
                    CallOutcome::Ok
                } else {
                    CallOutcome::Refused
                };
                self.metrics.called(name, Call::Cancel, outcome);
                asked.map_err(NotCancelled::Provider)?;
                self.tracker.hasten(id).await?;
                Ok(job)
            }
        }
    }

    async fn end(&self, id: &JobId) -> Result<Arc<Job>, NotCancelled> {
        let withdrawn = Update {
            source: Source::Api,
            news: News::Withdrawn,
        };
        let recorded = self.tracker.record(id, withdrawn).await?;
        if recorded.applied || recorded.job.status == Status::Cancelled {
            return Ok(recorded.job);
        }
        Err(NotCancelled::NotCancellable(
            "the job is being submitted, or has ended, since you last saw it",
        ))
    }
}
