//! Deliveries that follow from a change of a job: outbound webhooks, e-mails and archive copies.
//!
//! A delivery is written to the store in the same step as the version that causes it. A destination
//! has at most one waiting webhook or e-mail per job, which is always the newest.

mod event;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::job::{Job, JobId};
use crate::time::Time;

pub use event::Event;

/// Maximum number of attempts that [`Progress::attempts`] describes. Older ones are dropped.
pub const MAX_LOGGED_ATTEMPTS: usize = 16;

/// Maximum length of [`Attempt::error`], in characters.
pub const MAX_ATTEMPT_ERROR_CHARS: usize = 200;

/// Identifies a delivery. It is also the `webhook-id`, which receivers use to detect repetitions.
///
/// As text it is `{job}.{version}.{event}.{destination}` with `-` instead of `.` in the event, for
/// example `job_01k9.7.job-succeeded.app`. A destination may contain further dots.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeliveryId {
    /// The job.
    pub job: JobId,
    /// Version of the document that is delivered.
    pub version: u64,
    /// The event, as in [`NewDelivery::event`].
    pub event: String,
    /// The destination, as in [`NewDelivery::destination`].
    pub destination: String,
}

/// The text is not a delivery id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("delivery id must be '<job>.<version>.<event>.<destination>'")]
pub struct InvalidDeliveryId;

impl DeliveryId {
    /// Parses the text that [`Display`](fmt::Display) writes.
    ///
    /// # Errors
    /// [`InvalidDeliveryId`] if the text has another form.
    pub fn parse(text: &str) -> Result<Self, InvalidDeliveryId> {
        let parse = || {
            let (job, rest) = text.split_once('.')?;
            let (version, rest) = rest.split_once('.')?;
            let (event, destination) = rest.split_once('.')?;
            let is_complete = !event.is_empty() && !destination.is_empty();
            is_complete.then_some(Self {
                job: JobId::parse(job).ok()?,
                version: version.parse().ok()?,
                event: event.replacen('-', ".", 1),
                destination: destination.to_owned(),
            })
        };
        parse().ok_or(InvalidDeliveryId)
    }
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.event.replacen('.', "-", 1);
        write!(
            f,
            "{}.{}.{event}.{}",
            self.job, self.version, self.destination
        )
    }
}

/// A delivery that the store adds to the outbox together with a version of a job.
///
/// The store records the job, its owner, the version and the document. It replaces a waiting
/// delivery of the same job to the same destination, unless [`NewDelivery::is_independent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDelivery {
    /// Name of the destination. Deliveries to one destination share its state and its limits.
    pub destination: String,
    /// `job.created`, `job.updated`, `job.succeeded`, `job.failed`, `job.cancelled`, or `output.N`
    /// for an archive copy. A job has at most one delivery of an event to a destination. A newer one
    /// replaces it.
    pub event: String,
    /// URL or e-mail address, if the job determines it instead of the configuration.
    pub target: Option<String>,
    /// Whether the delivery leaves waiting deliveries of other events in place, as the outputs of a
    /// job do.
    pub is_independent: bool,
}

/// A delivery in the outbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// Identifies the delivery.
    pub id: DeliveryId,
    /// Owner of the job.
    pub owner: String,
    /// As in [`NewDelivery::target`].
    pub target: Option<String>,
    /// The document of the version, as JSON.
    pub document: String,
    /// Time of the version.
    pub created_at: Time,
    /// What has happened so far.
    pub progress: Progress,
}

/// The changing part of a delivery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Increases by one with each change. Two nodes can't both record the result of an attempt.
    pub revision: u64,
    /// The state.
    pub state: DeliveryState,
    /// Number of attempts that count towards the limit of attempts.
    pub attempt_count: u32,
    /// The last attempts, oldest first, at most [`MAX_LOGGED_ATTEMPTS`].
    pub attempts: Vec<Attempt>,
    /// Result of a completed delivery that others read, such as the location of an archived output.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub result: Value,
}

/// State of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum DeliveryState {
    /// Waits for its next attempt. If its destination is disabled, it waits until the destination
    /// is enabled.
    Waiting {
        /// Time of the next attempt.
        due_at: Time,
        /// Whether a person requested this attempt. If it fails, no further attempt follows.
        is_manual: bool,
    },
    /// Delivered.
    Delivered {
        /// End of the last attempt.
        at: Time,
    },
    /// All attempts failed, or the failure was permanent.
    Failed {
        /// End of the last attempt.
        at: Time,
    },
}

/// One attempt to deliver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Start of the attempt.
    pub at: Time,
    /// Duration in milliseconds.
    pub duration_ms: u64,
    /// HTTP or SMTP status, if the destination responded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why the attempt failed, at most [`MAX_ATTEMPT_ERROR_CHARS`]. `None` if it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Delivery {
    /// Creates a delivery of `job` that is due at once. `document` is the job as JSON.
    #[must_use]
    pub fn new(new: &NewDelivery, job: &Job, document: &str) -> Self {
        Self {
            id: DeliveryId {
                job: job.id.clone(),
                version: job.version,
                event: new.event.clone(),
                destination: new.destination.clone(),
            },
            owner: job.owner.clone(),
            target: new.target.clone(),
            document: document.to_owned(),
            created_at: job.updated_at,
            progress: Progress::new(job.updated_at),
        }
    }

    /// Returns when the next attempt is due, or `None` if the delivery has ended.
    #[must_use]
    pub fn due_at(&self) -> Option<Time> {
        self.progress.due_at()
    }

    /// Returns the key by which lists are sorted.
    #[must_use]
    pub fn order(&self) -> (Time, &str, &str, &str) {
        let id = &self.id;
        (self.created_at, id.job.as_str(), &id.event, &id.destination)
    }
}

impl Progress {
    /// The progress of a delivery that is due at `now`.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self {
            revision: 0,
            state: DeliveryState::Waiting {
                due_at: now,
                is_manual: false,
            },
            attempt_count: 0,
            attempts: Vec::new(),
            result: Value::Null,
        }
    }

    /// Returns when the next attempt is due, or `None` if the delivery has ended.
    #[must_use]
    pub fn due_at(&self) -> Option<Time> {
        match self.state {
            DeliveryState::Waiting { due_at, .. } => Some(due_at),
            DeliveryState::Delivered { .. } | DeliveryState::Failed { .. } => None,
        }
    }

    /// Returns the progress after a further attempt, or after a change without an attempt.
    #[must_use]
    pub fn next(&self, state: DeliveryState, attempt: Option<Attempt>) -> Self {
        let mut next = self.clone();
        next.revision += 1;
        next.state = state;
        next.attempts.extend(attempt);
        let excess = next.attempts.len().saturating_sub(MAX_LOGGED_ATTEMPTS);
        next.attempts.drain(..excess);
        next
    }
}

/// State of a destination, shared by all nodes and kept across restarts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DestinationState {
    /// Increases by one with each change.
    pub revision: u64,
    /// Number of failed attempts since the last success.
    pub consecutive_failures: u32,
    /// Time of the first failed attempt since the last success.
    pub failing_since: Option<Time>,
    /// Until this time no attempt starts. Then a single attempt tests the destination.
    pub paused_until: Option<Time>,
    /// Why and since when the destination is disabled.
    pub disabled: Option<Disabled>,
    /// Time of the last success.
    pub last_success_at: Option<Time>,
    /// Error of the last failed attempt since the last success.
    pub last_error: Option<String>,
}

/// Why a destination is disabled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Disabled {
    /// Since when.
    pub at: Time,
    /// The reason.
    pub reason: DisabledReason,
    /// Time of one further attempt, after which the destination stays disabled until it is enabled.
    pub recheck_at: Option<Time>,
}

/// Reason for disabling a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisabledReason {
    /// The endpoint responded with 410.
    Gone,
    /// No attempt succeeded for `deliveries.disable_after`.
    Failing,
    /// An administrator disabled it.
    Manual,
}

impl DisabledReason {
    /// Returns the name used in the API and in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Failing => "failing",
            Self::Manual => "manual",
        }
    }
}

/// Default of `deliveries.retries`: the schedule that Standard Webhooks recommends.
pub const RETRY_DELAYS: [Duration; 9] = [
    Duration::from_secs(5),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 60 * 60),
    Duration::from_secs(5 * 60 * 60),
    Duration::from_secs(10 * 60 * 60),
    Duration::from_secs(14 * 60 * 60),
    Duration::from_secs(20 * 60 * 60),
    Duration::from_secs(24 * 60 * 60),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delivery_ids_survive_a_round_trip() {
        for (event, destination) in [("job.succeeded", "app"), ("output.0", "host:a.example.com")] {
            let id = DeliveryId {
                job: JobId::new(),
                version: 7,
                event: event.to_owned(),
                destination: destination.to_owned(),
            };
            assert_eq!(DeliveryId::parse(&id.to_string()), Ok(id));
        }
        for text in ["", "job_1", "job_1.x.job-failed.app", "job_1.7.job-failed."] {
            assert_eq!(DeliveryId::parse(text), Err(InvalidDeliveryId), "{text}");
        }
    }
}
