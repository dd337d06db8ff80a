//! Destinations outside the hub that are told about jobs: webhook endpoints, e-mail and the archive.

pub mod email;
pub mod template;

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use wildmatch::WildMatch;

use crate::job::{BudgetWindow, Job};
use crate::outbox::{Delivery, Event, NewDelivery};

/// Selects and performs the deliveries to one destination.
#[async_trait]
pub trait Channel: Send + Sync + 'static {
    /// Returns the deliveries that follow from a new version of a job. `event` is the event of the
    /// version.
    fn deliveries(&self, job: &Job, event: Event) -> Vec<NewDelivery>;

    /// Returns the quota that a delivery uses up before its first attempt, if there is one.
    fn quota(&self, _delivery: &Delivery) -> Option<Quota> {
        None
    }

    /// Returns the maximum number of attempts at the same time.
    fn max_in_flight(&self) -> usize;

    /// Performs one attempt. Its duration is bounded.
    async fn deliver(&self, delivery: &Delivery) -> Outcome;

    /// Checks whether the destination accepts deliveries, by sending it a test. Returns `None` if
    /// that is not possible without a job. The duration is bounded.
    async fn test(&self) -> Option<Outcome>;
}

/// A limit on the number of deliveries in a window of time. A delivery beyond it is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The setting that limits the number.
    pub setting: &'static str,
    /// The window in which deliveries are counted.
    pub window: BudgetWindow,
    /// Maximum number of deliveries in the window.
    pub limit: usize,
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
        Self { routes }
    }

    /// Returns the deliveries that follow from a new version of a job. `is_new` tells whether it is
    /// the job's first version.
    #[must_use]
    pub fn deliveries(&self, job: &Job, is_new: bool) -> Vec<NewDelivery> {
        let event = Event::of(job, is_new);
        let routes = self.routes.iter();
        routes
            .filter(|route| route.selects(job, event))
            .map(|route| NewDelivery {
                destination: route.destination.clone(),
                event: event.as_str().to_owned(),
                target: None,
                is_independent: false,
            })
            .collect()
    }
}

impl Route {
    fn selects(&self, job: &Job, event: Event) -> bool {
        let has_owner = || self.owners.iter().any(|owner| owner.matches(&job.owner));
        self.events.contains(&event) && (self.owners.is_empty() || has_owner())
    }
}
