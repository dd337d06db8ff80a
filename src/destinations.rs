//! Destinations outside the hub that receive events of jobs: webhook endpoints, e-mail and the archive.
//!
//! A [`Channel`] selects the deliveries to its destination and performs them. When they are performed
//! is decided by `background::delivery`.

pub mod archive;
pub mod email;
pub mod template;
mod webhook;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use serde_json::Value;
use tokio::sync::Notify;
use wildmatch::WildMatch;

use crate::config::{Config, ConfigError};
use crate::job::{BudgetWindow, Job};
use crate::outbox::{Delivery, NewDelivery};
use crate::telemetry::{AttemptOutcome, DestinationKind};

pub use crate::outbox::Event;
pub use webhook::{UrlNotAllowed, WebhookHosts};

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

    /// Checks from this machine whether deliveries can succeed, without delivering anything. The
    /// duration is bounded.
    ///
    /// # Errors
    /// What is wrong, with the key of the setting concerned.
    async fn check(&self) -> Result<(), ConfigError>;
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
    /// The attempt failed for a reason that says nothing about the destination. It counts, and is
    /// repeated like any other.
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

impl Verdict {
    /// Returns why the attempt failed, or `None` if it succeeded or nothing was attempted.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Failed { error, .. }
            | Self::SourceFailed { error }
            | Self::Rejected { error }
            | Self::Misconfigured { error } => Some(error),
            Self::Gone => Some("status 410"),
            Self::Delivered { .. } | Self::Postponed { .. } => None,
        }
    }
}

impl From<&Verdict> for AttemptOutcome {
    fn from(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Delivered { .. } => Self::Delivered,
            Verdict::Failed { .. } | Verdict::SourceFailed { .. } => Self::Failed,
            Verdict::Rejected { .. } => Self::Rejected,
            Verdict::Misconfigured { .. } => Self::Misconfigured,
            Verdict::Gone => Self::Gone,
            Verdict::Postponed { .. } => Self::Postponed,
        }
    }
}

/// A configured destination.
pub struct Destination {
    /// Unique name.
    pub name: String,
    /// What kind of destination it is.
    pub kind: DestinationKind,
    /// Where it is, for people. Contains no secret.
    pub address: String,
    /// Selects and performs the deliveries.
    pub channel: Box<dyn Channel>,
    /// Notified when a delivery may be due, or the state of the destination was changed.
    pub wakeup: Notify,
}

impl Destination {
    /// Creates a destination.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        kind: DestinationKind,
        address: impl Into<String>,
        channel: impl Channel,
    ) -> Self {
        Self {
            name: name.into(),
            kind,
            address: address.into(),
            channel: Box::new(channel),
            wakeup: Notify::new(),
        }
    }
}

/// The configured destinations, by name.
#[derive(Default)]
pub struct Destinations {
    by_name: BTreeMap<String, Arc<Destination>>,
}

impl Destinations {
    /// Creates the destinations of a configuration.
    ///
    /// # Errors
    /// All errors, each with its configuration key.
    pub fn load(config: &Config) -> Result<Self, Vec<ConfigError>> {
        let (mut destinations, mut errors) = webhook::load(config);
        match email::load(&config.email) {
            Ok(email) => destinations.extend(email),
            Err(found) => errors.extend(found),
        }
        if errors.is_empty() {
            Ok(Self::new(destinations))
        } else {
            Err(errors)
        }
    }

    /// Creates destinations with different names.
    #[must_use]
    pub fn new(destinations: impl IntoIterator<Item = Destination>) -> Self {
        let destinations = destinations.into_iter();
        let by_name = destinations.map(|it| (it.name.clone(), Arc::new(it)));
        Self {
            by_name: by_name.collect(),
        }
    }

    /// Adds a destination with another name.
    pub fn add(&mut self, destination: Destination) {
        let name = destination.name.clone();
        self.by_name.insert(name, Arc::new(destination));
    }

    /// Returns the destination with this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Destination>> {
        self.by_name.get(name)
    }

    /// Returns all destinations, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Destination>> {
        self.by_name.values()
    }

    /// Returns the deliveries that follow from a new version of a job. `is_new` tells whether it is
    /// the job's first version.
    #[must_use]
    pub fn deliveries(&self, job: &Job, is_new: bool) -> Vec<NewDelivery> {
        let event = Event::of(job, is_new);
        self.iter()
            .flat_map(|destination| destination.channel.deliveries(job, event))
            .collect()
    }

    /// Checks from this machine whether the destinations can work, without delivering anything. The
    /// duration is bounded.
    ///
    /// # Errors
    /// All errors, each with the key of the setting concerned.
    pub async fn check(&self) -> Result<(), Vec<ConfigError>> {
        let checks = self.iter().map(|destination| destination.channel.check());
        let errors = join_all(checks).await.into_iter().filter_map(Result::err);
        let errors: Vec<ConfigError> = errors.collect();
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }

    /// Wakes the destinations of deliveries that were added to the outbox.
    pub fn notify(&self, deliveries: &[NewDelivery]) {
        for delivery in deliveries {
            if let Some(destination) = self.get(&delivery.destination) {
                destination.wakeup.notify_one();
            }
        }
    }
}

/// Selects the jobs and events that a destination receives.
#[derive(Debug)]
pub struct Route {
    /// The events.
    pub events: Vec<Event>,
    /// Patterns of owners. Empty selects all.
    pub owners: Vec<WildMatch>,
}

impl Route {
    /// Creates a route from the settings of a destination.
    #[must_use]
    pub fn new(events: &[Event], owners: &[String]) -> Self {
        Self {
            events: events.to_vec(),
            owners: owners.iter().map(|owner| WildMatch::new(owner)).collect(),
        }
    }

    /// Returns whether the destination receives this event of the job.
    #[must_use]
    pub fn selects(&self, job: &Job, event: Event) -> bool {
        let has_owner = || self.owners.iter().any(|owner| owner.matches(&job.owner));
        self.events.contains(&event) && (self.owners.is_empty() || has_owner())
    }
}
