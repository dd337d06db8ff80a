//! News about a job: what anybody (provider, worker, submitter, clock) can tell the law.
//!
//! Invariant: an update says what was *heard*; whether it changes anything is the law's to decide.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Cost, Failure, Output, Source, Status};
use crate::time::Time;

/// One piece of news and who brought it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Who brought it.
    pub source: Source,
    /// What it says.
    pub event: JobEvent,
}

/// What can be heard of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobEvent {
    /// A try at submitting begins.
    SubmissionStarted,
    /// The try failed before the provider accepted the job; the next one follows at `at`.
    RetryScheduled {
        /// What the try ran into.
        error: Failure,
        /// When the next one is due.
        at: Time,
    },
    /// The try went out and its answer was lost.
    SubmissionOutcomeUnknown {
        /// Of kind `submission_unknown`.
        error: Failure,
    },
    /// Whoever asked for it wants it no more: the end of a job that nobody has been given.
    CancelledBeforeSubmission,
    /// Where the job is, by its provider, its worker or the clock.
    Reported(Box<StatusReport>),
}

/// Where a job is, as far as the teller says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusReport {
    /// Its status; progress without one means running.
    pub status: Option<Status>,
    /// Percent; held to 0–100.
    pub progress: Option<f64>,
    /// Jobs ahead of it.
    pub queue_position: Option<u32>,
    /// The teller's own word for what is going on.
    pub stage: Option<String>,
    /// Seconds it may still take.
    pub eta_seconds: Option<f64>,
    /// Results; they count with a success only.
    pub outputs: Vec<Output>,
    /// For each output, where it really lies when only the provider's key can read it there; such an
    /// output has no `url` until the tracker gives it one of the hub's. Empty where there is none.
    pub private_urls: Vec<Option<String>>,
    /// What the provider charged.
    pub cost: Option<Cost>,
    /// What its moderation held back or remarked on.
    pub moderation: Vec<String>,
    /// Why it failed.
    pub error: Option<Failure>,
    /// The provider's own id.
    pub task_id: Option<String>,
    /// What the provider's answer said about asking again; null where nothing.
    pub handle: Value,
    /// Whether a success may be believed although it brings no outputs: true for an authenticated
    /// read, a worker, and a provider that can't be asked.
    pub is_authoritative: bool,
}

impl StatusReport {
    /// A report of nothing but a status.
    #[must_use]
    pub fn with_status(status: Status) -> Self {
        Self {
            status: Some(status),
            ..Self::default()
        }
    }

    /// The end of a job by failure.
    #[must_use]
    pub fn failed(error: Failure) -> Self {
        Self {
            status: Some(Status::Failed),
            error: Some(error),
            ..Self::default()
        }
    }

    /// Whether this is a success that must be read from the provider before it counts.
    #[must_use]
    pub fn needs_confirmation(&self) -> bool {
        self.status == Some(Status::Succeeded) && self.outputs.is_empty() && !self.is_authoritative
    }

    /// The report as news from `source`.
    #[must_use]
    pub fn into_update(self, source: Source) -> Update {
        Update {
            source,
            event: JobEvent::Reported(Box::new(self)),
        }
    }
}
