//! The outbox: deliveries written together with the change that causes them.
//!
//! [`CreateJob::deliveries`](super::CreateJob::deliveries) and
//! [`CommitJob::deliveries`](super::CommitJob::deliveries) add to it. One node at a time works on a
//! destination, because it holds the destination's lease. If a lease expires during an attempt, the
//! revision of the delivery prevents a second result from being recorded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::Error;
use crate::job::JobId;
use crate::outbox::{Delivery, DeliveryId, DeliveryState, DestinationState, Progress};
use crate::time::Time;

/// How long a delivery that still waits is kept after it was due. Only deliveries to a disabled or
/// removed destination reach it.
pub const WAITING_RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Delay before a delivery that can't be decoded is read again, because a newer node may have
/// written it.
pub(super) const CORRUPT_RETRY_DELAY: Duration = Duration::from_secs(60 * 60);

/// A selection of deliveries.
#[derive(Clone, Debug, Default)]
pub struct DeliveryQuery {
    /// Job to select.
    pub job: Option<JobId>,
    /// Owner of the job to select.
    pub owner: Option<String>,
    /// Destination to select.
    pub destination: Option<String>,
    /// State to select.
    pub state: Option<DeliveryStateFilter>,
    /// Cursor: selects deliveries that come after this one in the list.
    pub after: Option<DeliveryCursor>,
    /// Maximum number of deliveries to return.
    pub limit: usize,
}

/// States that a list can be restricted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryStateFilter {
    /// Waits for an attempt.
    Waiting,
    /// Delivered.
    Delivered,
    /// Failed.
    Failed,
}

impl DeliveryStateFilter {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Waiting, Self::Delivered, Self::Failed];

    /// Returns the filter that selects this state.
    #[must_use]
    pub fn of(state: &DeliveryState) -> Self {
        match state {
            DeliveryState::Waiting { .. } => Self::Waiting,
            DeliveryState::Delivered { .. } => Self::Delivered,
            DeliveryState::Failed { .. } => Self::Failed,
        }
    }

    /// Returns the name of the state.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }
}

/// Position of a delivery in a list, which is sorted by time, job, event and destination, newest
/// first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryCursor {
    /// [`Delivery::created_at`].
    pub created_at: Time,
    /// [`Delivery::id`].
    pub id: DeliveryId,
}

/// A destination that has deliveries or a recorded state.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredDestination {
    /// Name of the destination.
    pub name: String,
    /// Its state.
    pub state: DestinationState,
    /// Number of deliveries that wait.
    pub waiting: u64,
}

impl StoredDestination {
    /// Combines recorded states with numbers of waiting deliveries, which are added per name. Returns
    /// the destinations by name.
    pub(super) fn merge(
        states: impl IntoIterator<Item = (String, DestinationState)>,
        waiting: impl IntoIterator<Item = (String, u64)>,
    ) -> Vec<Self> {
        let mut destinations: BTreeMap<String, (DestinationState, u64)> = BTreeMap::new();
        for (name, state) in states {
            destinations.entry(name).or_default().0 = state;
        }
        for (name, count) in waiting {
            destinations.entry(name).or_default().1 += count;
        }
        let destinations = destinations.into_iter();
        destinations
            .map(|(name, (state, waiting))| Self {
                name,
                state,
                waiting,
            })
            .collect()
    }
}

/// Storage of deliveries and of the state of destinations.
///
/// Deliveries that have ended are deleted with their job. Waiting ones outlive the job, and are
/// deleted when they end or after [`WAITING_RETENTION`].
#[async_trait]
pub trait Outbox: Send + Sync + 'static {
    /// Acquires or extends the lease of a destination. Returns whether `node` holds it for `ttl` from
    /// now on.
    ///
    /// The default implementation is for single-node engines.
    async fn lease_destination(
        &self,
        _destination: &str,
        _node: &str,
        _ttl: Duration,
    ) -> Result<bool, Error> {
        Ok(true)
    }

    /// Releases the lease of a destination if `node` holds it, so that another node can continue.
    async fn release_destination(&self, _destination: &str, _node: &str) -> Result<(), Error> {
        Ok(())
    }

    /// Returns the waiting deliveries of a destination that are due at `now`, earliest first.
    ///
    /// Corrupt deliveries are logged and due again an hour later.
    async fn due_deliveries(
        &self,
        destination: &str,
        now: Time,
        limit: usize,
    ) -> Result<Vec<Arc<Delivery>>, Error>;

    /// Returns when the next delivery of a destination is due, or `None` if none waits.
    async fn next_delivery_at(&self, destination: &str) -> Result<Option<Time>, Error>;

    /// Replaces the progress of a delivery. Returns false, and changes nothing, if the stored
    /// delivery does not have the version of `id` and the revision before `progress.revision`.
    ///
    /// A waiting progress puts the delivery back into the queue of its destination, also if it had
    /// ended. A delivery that ends after its job was deleted is deleted. On success the change is
    /// durable.
    async fn record_progress(&self, id: &DeliveryId, progress: Progress) -> Result<bool, Error>;

    /// Returns a delivery.
    async fn delivery(&self, id: &DeliveryId) -> Result<Option<Arc<Delivery>>, Error>;

    /// Returns the deliveries that match `query`, newest first.
    ///
    /// Corrupt deliveries are logged and skipped.
    async fn deliveries(&self, query: DeliveryQuery) -> Result<Vec<Arc<Delivery>>, Error>;

    /// Returns all destinations that have waiting deliveries or a recorded state, by name.
    async fn destinations(&self) -> Result<Vec<StoredDestination>, Error>;

    /// Returns the state of a destination, which is the default if none was recorded.
    async fn destination_state(&self, destination: &str) -> Result<DestinationState, Error>;

    /// Replaces the state of a destination. Returns false, and changes nothing, if the stored
    /// revision is not the one before `state.revision`. On success the change is durable.
    async fn put_destination_state(
        &self,
        destination: &str,
        state: DestinationState,
    ) -> Result<bool, Error>;
}
