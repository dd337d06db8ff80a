//! The feed: keeps the hub as current as the store.
//!
//! Invariant: what the store announces goes to the hub at once; whatever may have been missed (a
//! shard that lagged, a store that was away) is read again, and the newest version decides.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::hub::{Condition, Hub};
use crate::job::Job;
use crate::store::{Announce, Event, Listing, Store};
use crate::time::Time;

/// Jobs that are read again at once.
const BATCH: usize = 256;

/// Jobs of a followed owner that are read: all unfinished ones first, then the newest.
pub const FEED_DEPTH: usize = 256;

/// How long to wait before reading again after the store failed.
const PAUSE: Duration = Duration::from_secs(1);

/// What the store is given to announce to.
#[must_use]
pub fn announce(hub: &Arc<Hub>) -> Announce {
    let hub = Arc::clone(hub);
    Arc::new(move |event| match event {
        Event::Changed(job) => hub.deliver(job),
        Event::Away => hub.set_condition(Condition::Degraded(Time::now())),
        Event::Back => hub.resync(),
    })
}

/// The jobs that a follower of `owner` is shown.
#[must_use]
pub fn of_owner(owner: &str) -> Listing {
    Listing {
        owner: Some(owner.to_owned()),
        unfinished_first: true,
        limit: FEED_DEPTH,
        ..Listing::default()
    }
}

/// Reads again what a shard may have missed, until `stop`.
pub async fn run(hub: Arc<Hub>, store: Arc<dyn Store>, stop: CancellationToken) {
    loop {
        let lagging = tokio::select! {
            () = stop.cancelled() => return,
            lagging = hub.lagging() => lagging,
        };
        for shard in lagging {
            while let Err(error) = reread(&hub, &*store, shard).await {
                tracing::warn!(shard, %error, "can't read the watched jobs again yet");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
        }
        hub.set_condition(Condition::Healthy);
    }
}

async fn reread(hub: &Hub, store: &dyn Store, shard: usize) -> Result<(), crate::store::Error> {
    let (jobs, owners) = hub.watched_by(shard);
    for batch in jobs.chunks(BATCH) {
        hub.redeliver(shard, store.get_many(batch).await?).await;
    }
    for owner in owners {
        let jobs: Vec<Arc<Job>> = store.list(of_owner(&owner)).await?;
        hub.redeliver(shard, jobs).await;
    }
    Ok(())
}
