//! Destinations outside the hub that are told about jobs: webhook endpoints, e-mail and the archive.

pub mod archive;

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use wildmatch::WildMatch;

use self::archive::Archive;
use crate::job::{Job, Status};
use crate::outbox::{Delivery, NewDelivery};

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

/// Performs the deliveries to one destination.
#[async_trait]
pub trait Channel: Send + Sync + 'static {
    /// Returns the maximum number of attempts at the same time.
    fn max_in_flight(&self) -> usize;

    /// Performs one attempt. Its duration is bounded.
    async fn deliver(&self, delivery: &Delivery) -> Outcome;
}

/// The result of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// HTTP or SMTP status, if the destination responded.
    pub status: Option<u16>,
    /// Whether the attempt succeeded, and otherwise what follows.
    pub verdict: Verdict,
}

/// Whether an attempt succeeded, and otherwise what follows.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Delivered.
    Delivered {
        /// As in [`Progress::result`](crate::outbox::Progress::result).
        result: Value,
    },
    /// The attempt failed, and the destination may be failing.
    Failed {
        /// The reason.
        error: String,
        /// Delay that the destination requested. The attempt then does not count.
        retry_after: Option<Duration>,
    },
    /// The attempt failed for a reason that does not concern the destination, which may work. It
    /// counts, and is repeated like any other.
    SourceFailed {
        /// The reason.
        error: String,
    },
    /// This delivery can't succeed. The destination works.
    Rejected {
        /// The reason.
        error: String,
    },
    /// The destination can't accept deliveries until the operator changes something, for example
    /// because its credentials are wrong. The attempt does not count.
    Misconfigured {
        /// The reason.
        error: String,
    },
    /// The destination no longer exists.
    Gone,
    /// Nothing was attempted. The delivery is due again after a delay.
    Postponed {
        /// The delay.
        delay: Duration,
    },
}

/// Selects the deliveries that follow from a change of a job.
#[derive(Debug, Default)]
pub struct Destinations {
    routes: Vec<Route>,
    has_archive: bool,
}

/// Selects the jobs and events that a destination receives.
#[derive(Debug)]
pub struct Route {
    /// Name of the destination.
    pub destination: String,
    /// The events.
    pub events: Vec<Event>,
    /// Patterns of owners. Empty selects all.
    pub owners: Vec<WildMatch>,
}

impl Destinations {
    /// Creates destinations with these routes.
    #[must_use]
    pub fn new(routes: Vec<Route>) -> Self {
        Self {
            routes,
            has_archive: false,
        }
    }

    /// Adds the archive, to which the outputs of every job are copied.
    #[must_use]
    pub fn with_archive(self) -> Self {
        Self {
            has_archive: true,
            ..self
        }
    }

    /// Returns the deliveries that follow from a new version of a job. `is_new` tells whether it is
    /// the job's first version.
    #[must_use]
    pub fn deliveries(&self, job: &Job, is_new: bool) -> Vec<NewDelivery> {
        let event = Event::of(job, is_new);
        let routes = self.routes.iter();
        let events = routes
            .filter(|route| route.selects(job, event))
            .map(|route| NewDelivery {
                destination: route.destination.clone(),
                event: event.as_str().to_owned(),
                target: None,
                is_independent: false,
            });
        let is_archived = self.has_archive && event == Event::Succeeded;
        let outputs = is_archived.then(|| Archive::deliveries(job));
        events.chain(outputs.into_iter().flatten()).collect()
    }
}

impl Route {
    fn selects(&self, job: &Job, event: Event) -> bool {
        let has_owner = || self.owners.iter().any(|owner| owner.matches(&job.owner));
        self.events.contains(&event) && (self.owners.is_empty() || has_owner())
    }
}
