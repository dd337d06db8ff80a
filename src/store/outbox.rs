//! The outbox: deliveries written together with the change that causes them.
//!
//! [`CreateJob::deliveries`](super::CreateJob::deliveries) and
//! [`CommitJob::deliveries`](super::CommitJob::deliveries) add to it. One node at a time works on a
//! destination, because it holds the destination's lease. If a lease expires during an attempt, the
//! revision of the delivery prevents a second result from being recorded.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::Error;
use crate::job::JobId;
use crate::outbox::{Delivery, DeliveryId, DestinationState, Progress};
use crate::time::Time;

/// How long a delivery that still waits is kept after it was written. It exceeds the schedule of
/// attempts, so that only deliveries to a disabled destination reach it.
pub const WAITING_RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

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

/// Position of a delivery in a list, which is sorted by time and id, newest first.
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

/// Storage of deliveries and of the state of destinations.
///
/// Deliveries that have ended are deleted with their job. Waiting ones outlive the job, and are
/// deleted after [`WAITING_RETENTION`].
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
    /// ended. On success the change is durable.
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
