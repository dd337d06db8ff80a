//! Replication of circuit breaker state between the nodes of a cluster.
//!
//! Each node publishes a snapshot of its circuit breakers to the store and merges the snapshots of the
//! others. For each circuit, the newer state wins. A pause therefore applies to all nodes, and so does
//! the single probe request that ends it.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::background::change_feed::ChangeFeed;
use crate::provider::{Provider, Providers};
use crate::store::{self, SharedState};
use crate::tracker::WorkerWakeups;

/// Interval of unconditional reads, in case a notification was lost.
const SHARED_STATE_POLL_INTERVAL: Duration = Duration::from_secs(10);

/// Delay before the next attempt to publish after the store failed.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Publishes and merges circuit breaker state. Cheap to clone.
#[derive(Clone)]
pub struct BreakerSync {
    /// The store that holds the shared state.
    pub store: Arc<dyn SharedState>,
    /// The providers with their circuit breakers.
    pub providers: Arc<Providers>,
    /// Signals changes of the shared state.
    pub feed: Arc<ChangeFeed>,
    /// Wakes the submitter when a circuit may have closed.
    pub wakeups: WorkerWakeups,
}

impl BreakerSync {
    /// Publishes and merges until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut publishers = JoinSet::new();
        for provider in self.providers.iter() {
            publishers.spawn(publish_loop(Arc::clone(&self.store), Arc::clone(provider)));
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.merge_loop() => {}
        }
    }

    async fn merge_loop(&self) {
        loop {
            if let Err(error) = self.merge_remote_states().await {
                tracing::debug!(%error, "failed to read shared breaker state");
            }
            tokio::select! {
                () = self.feed.shared_state_changed() => {}
                () = tokio::time::sleep(SHARED_STATE_POLL_INTERVAL) => {}
            }
        }
    }

    async fn merge_remote_states(&self) -> Result<(), store::Error> {
        for (name, snapshot) in self.store.shared_states().await? {
            let Some(provider) = self.providers.get(&name) else {
                continue;
            };
            if let Err(error) = provider.breaker().merge_snapshot(&snapshot) {
                tracing::warn!(provider.name = name, %error, "invalid breaker snapshot from another node");
            }
        }
        self.wakeups.submitter.notify_one();
        Ok(())
    }
}

/// Publishes each new snapshot of a provider's circuit breaker.
async fn publish_loop(store: Arc<dyn SharedState>, provider: Arc<Provider>) {
    let mut snapshots = provider.breaker().snapshots();
    while snapshots.changed().await.is_ok() {
        loop {
            let Some(snapshot) = snapshots.borrow_and_update().clone() else {
                break;
            };
            match store.put_shared_state(provider.name(), &snapshot).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::debug!(provider.name = provider.name(), %error, "failed to publish breaker state; retrying");
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        }
    }
}
