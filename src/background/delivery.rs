//! Performs the deliveries in the outbox.
//!
//! Each destination has a worker of its own, so a slow destination delays neither another one nor a
//! job. Of all nodes, the one that holds the lease of a destination works on it. An attempt whose
//! result could not be recorded is repeated, so every delivery is made at least once.

mod policy;
mod worker;

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::DeliveryConfig;
use crate::destinations::Destinations;
use crate::store::Store;
use crate::telemetry::Metrics;
use policy::DeliveryPolicy;
use worker::Worker;

pub use policy::{Admission, admission};

/// Performs the deliveries to all destinations.
pub struct DeliveryService {
    /// The store that holds the outbox.
    pub store: Arc<dyn Store>,
    /// The destinations.
    pub destinations: Arc<Destinations>,
    /// When failed attempts are repeated.
    pub settings: DeliveryConfig,
    /// Counts the attempts.
    pub metrics: Arc<Metrics>,
}

impl DeliveryService {
    /// Performs deliveries until `stop` is cancelled. Attempts in progress then have a short time to
    /// end. Those that do not are repeated later.
    pub async fn run(self, stop: CancellationToken) {
        let policy = Arc::new(DeliveryPolicy::new(&self.settings));
        let node: Arc<str> = Uuid::now_v7().to_string().into();
        let mut workers = JoinSet::new();
        for destination in self.destinations.iter() {
            let worker = Worker::new(
                Arc::clone(&self.store),
                Arc::clone(destination),
                Arc::clone(&policy),
                Arc::clone(&self.metrics),
                Arc::clone(&node),
            );
            workers.spawn(worker.run(stop.clone()));
        }
        workers.join_all().await;
    }
}
