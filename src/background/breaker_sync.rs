//! What the nodes of a fleet know of providers, known to all of them.
//!
//! Invariant: each gate is its node's own, and a memo of it is remembered in the store; a node that
//! hears that there is something new reads the memos, and the later account of each gate holds. So a
//! pause is everybody's, and so is the one request that is let through at its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::background::change_feed::ChangeFeed;
use crate::provider::{Provider, Providers};
use crate::store::{self, SharedState};
use crate::tracker::WorkerWakeups;

/// How often memos are read unasked, should a word of a new one be lost.
const SHARED_STATE_POLL_INTERVAL: Duration = Duration::from_secs(10);

/// How long to wait before telling again after the store failed.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Tells the other nodes how providers are, and hears it from them; cheap to clone.
#[derive(Clone)]
pub struct BreakerSync {
    /// Where it is remembered.
    pub store: Arc<dyn SharedState>,
    /// Whose gates it is about.
    pub providers: Arc<Providers>,
    /// Who hears of something new.
    pub feed: Arc<ChangeFeed>,
    /// Woken when a gate may have opened.
    pub stir: WorkerWakeups,
}

impl BreakerSync {
    /// Tells and hears until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut telling = JoinSet::new();
        for provider in self.providers.iter() {
            telling.spawn(publish_loop(Arc::clone(&self.store), Arc::clone(provider)));
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.merge_loop() => {}
        }
    }

    async fn merge_loop(&self) {
        loop {
            if let Err(error) = self.merge_remote_states().await {
                tracing::debug!(%error, "can't read how others find the providers");
            }
            tokio::select! {
                () = self.feed.reminded() => {}
                () = tokio::time::sleep(SHARED_STATE_POLL_INTERVAL) => {}
            }
        }
    }

    async fn merge_remote_states(&self) -> Result<(), store::Error> {
        for (name, memo) in self.store.shared_states().await? {
            let Some(provider) = self.providers.get(&name) else {
                continue;
            };
            if let Err(error) = provider.gate().merge_snapshot(&memo) {
                tracing::warn!(provider.name = name, %error, "another node's memo can't be read");
            }
        }
        self.stir.submitter.notify_one();
        Ok(())
    }
}

/// Has the latest memo of a gate remembered, again and again.
async fn publish_loop(store: Arc<dyn SharedState>, provider: Arc<Provider>) {
    let mut memos = provider.gate().memo();
    while memos.changed().await.is_ok() {
        loop {
            let Some(memo) = memos.borrow_and_update().clone() else {
                break;
            };
            match store.put_shared_state(provider.name(), &memo).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::debug!(provider.name = provider.name(), %error, "can't tell how it is");
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        }
    }
}
