//! Updates: the input of the state machine.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Cost, Failure, Output, OutputSource, Source, Status};
use crate::time::Time;

/// An event together with its origin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Origin of the event.
    pub source: Source,
    /// The event to apply.
    pub event: JobEvent,
}

/// An event that may change a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobEvent {
    /// A submission attempt starts.
    SubmissionStarted,
    /// The next attempt is postponed, because submissions of the job's owner and model are held.
    Postponed {
        /// Time of the next attempt.
        at: Time,
    },
    /// The attempt failed before the provider accepted the job, and another is scheduled.
    RetryScheduled {
        /// Error of the attempt.
        error: Failure,
        /// Time of the next attempt.
        at: Time,
    },
    /// The request was sent, but its response was lost.
    SubmissionOutcomeUnknown {
        /// A failure of kind [`SubmissionUnknown`](super::FailureKind::SubmissionUnknown).
        error: Failure,
    },
    /// A client cancels a job that was not submitted.
    CancelledBeforeSubmission,
    /// The provider, a worker or the deadline reports a status.
    Reported(Box<StatusReport>),
}

impl JobEvent {
    /// Returns the status report, if this is one.
    #[must_use]
    pub fn report(&self) -> Option<&StatusReport> {
        match self {
            Self::Reported(report) => Some(report),
            Self::SubmissionStarted
            | Self::Postponed { .. }
            | Self::RetryScheduled { .. }
            | Self::SubmissionOutcomeUnknown { .. }
            | Self::CancelledBeforeSubmission => None,
        }
    }
}

/// A report of a job's status. Absent fields leave the job's fields unchanged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusReport {
    /// Reported status. A report with progress but without a status means `running`.
    pub status: Option<Status>,
    /// Percentage, clamped to 0–100.
    pub progress: Option<f64>,
    /// Number of jobs ahead in the provider's queue.
    pub queue_position: Option<u32>,
    /// Free-form description of the current step.
    pub stage: Option<String>,
    /// Estimated seconds until completion.
    pub eta_seconds: Option<f64>,
    /// Outputs. Ignored unless the status is `succeeded`.
    pub outputs: Vec<Output>,
    /// For each output, its source if clients read it through the hub. The tracker sets the `url` of
    /// such an output to a link of the hub. Empty if there is no such output.
    pub output_sources: Vec<Option<OutputSource>>,
    /// Cost charged by the provider.
    pub cost: Option<Cost>,
    /// Remarks of the provider's moderation.
    pub moderation: Vec<String>,
    /// Reason of a failure.
    pub error: Option<Failure>,
    /// The provider's task id.
    pub task_id: Option<String>,
    /// Opaque value from the submit response that later requests need, or null.
    pub handle: Value,
    /// Whether a success without outputs is final. True for authenticated polls, workers, and
    /// providers that cannot be polled.
    pub is_authoritative: bool,
}

impl StatusReport {
    /// Creates a report that contains only a status.
    #[must_use]
    pub fn with_status(status: Status) -> Self {
        Self {
            status: Some(status),
            ..Self::default()
        }
    }

    /// Creates a report of status `failed`.
    #[must_use]
    pub fn failed(error: Failure) -> Self {
        Self {
            status: Some(Status::Failed),
            error: Some(error),
            ..Self::default()
        }
    }

    /// Returns whether this is a success that a poll must confirm before it is applied.
    #[must_use]
    pub fn needs_confirmation(&self) -> bool {
        self.status == Some(Status::Succeeded) && self.outputs.is_empty() && !self.is_authoritative
    }

    /// Wraps the report in an update from `source`.
    #[must_use]
    pub fn into_update(self, source: Source) -> Update {
        Update {
            source,
            event: JobEvent::Reported(Box::new(self)),
        }
    }
}
