//! The events that destinations receive.

use std::fmt;

use crate::job::{Job, Status};

/// What happened to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The job was created.
    Created,
    /// The job has a new version that is not final.
    Updated,
    /// The job succeeded.
    Succeeded,
    /// The job failed.
    Failed,
    /// The job was cancelled.
    Cancelled,
}

impl Event {
    /// Every event.
    pub const ALL: [Self; 5] = [
        Self::Created,
        Self::Updated,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The events that end a job.
    pub const FINAL: [Self; 3] = [Self::Succeeded, Self::Failed, Self::Cancelled];

    /// Returns the event of a new version. `is_new` tells whether it is the job's first.
    #[must_use]
    pub fn of(job: &Job, is_new: bool) -> Self {
        match job.status {
            Status::Succeeded => Self::Succeeded,
            Status::Failed => Self::Failed,
            Status::Cancelled => Self::Cancelled,
            Status::Accepted | Status::Queued | Status::Running if is_new => Self::Created,
            Status::Accepted | Status::Queued | Status::Running => Self::Updated,
        }
    }

    /// Returns the name in the configuration and in deliveries.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "job.created",
            Self::Updated => "job.updated",
            Self::Succeeded => "job.succeeded",
            Self::Failed => "job.failed",
            Self::Cancelled => "job.cancelled",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
