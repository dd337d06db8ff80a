//! The feed: keeps the hub as current as the store.
//!
//! Invariant: what the store announces goes to the hub at once; whatever may have been missed (a
//! shard that lagged, a store that was away, a message that nobody noticed was lost) is read again,
//! and the newest version decides.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::hub::{DeliveredVersion, FeedHealth, Hub};
use crate::job::{Job, JobId, Topic};
use crate::store::{self, ChangeListener, ListQuery, Store, StoreEvent};
use crate::time::Time;
use crate::tracker::Tracker;

/// Jobs that are read again at once.
const RESYNC_BATCH: usize = 256;

/// Jobs of a followed owner that are read: all unfinished ones first, then the newest.
pub const MAX_OWNER_SNAPSHOT: usize = 256;

/// How long to wait before reading again after the store failed.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// In how many pauses everything that is watched and unfinished is read once more.
const RECONCILE_TICKS: u64 = 30;

/// Jobs of a followed owner that are read once more with it.
const RECONCILE_OWNER_JOBS: usize = 32;

/// Between a store and a hub.
pub struct ChangeFeed {
    hub: Arc<Hub>,
    is_store_unavailable: AtomicBool,
    shared_state_changed: Notify,
}

/// Reads jobs that the caller has attached to: listened for first, so that nothing is missed
/// between what is read and what is announced.
///
/// # Errors
/// The store's.
pub async fn subscribe_and_read(
    store: &dyn Store,
    jobs: &[JobId],
) -> Result<Vec<Arc<Job>>, store::Error> {
    let topics: Vec<Topic> = jobs.iter().cloned().map(Topic::Job).collect();
    store.subscribe(&topics).await?;
    store.get_many(jobs).await
}

/// Reads the jobs that a follower of `owner`, who has attached already, is shown.
///
/// # Errors
/// The store's.
pub async fn subscribe_and_list(
    store: &dyn Store,
    owner: &str,
) -> Result<Vec<Arc<Job>>, store::Error> {
    store.subscribe(&[Topic::Owner(owner.to_owned())]).await?;
    store.list(owner_query(owner, MAX_OWNER_SNAPSHOT)).await
}

fn owner_query(owner: &str, limit: usize) -> ListQuery {
    ListQuery {
        owner: Some(owner.to_owned()),
        active_first: true,
        limit,
        ..ListQuery::default()
    }
}

impl ChangeFeed {
    /// A feed for this hub.
    #[must_use]
    pub fn new(hub: &Arc<Hub>) -> Arc<Self> {
        Arc::new(Self {
            hub: Arc::clone(hub),
            is_store_unavailable: AtomicBool::new(false),
            shared_state_changed: Notify::new(),
        })
    }

    /// What the store is given to speak to.
    #[must_use]
    pub fn listener(self: &Arc<Self>) -> ChangeListener {
        let (feed, hub) = (Arc::clone(self), Arc::clone(&self.hub));
        ChangeListener {
            on_event: Arc::new(move |event| feed.handle_event(event)),
            is_subscribed: Arc::new(move |topic| match topic {
                Topic::Job(job) => hub.has_job_subscribers(job),
                Topic::Owner(owner) => hub.has_owner_subscribers(owner),
            }),
        }
    }

    fn handle_event(&self, event: StoreEvent) {
        match event {
            StoreEvent::JobChanged(job) => self.hub.deliver(job),
            StoreEvent::Unavailable => {
                self.is_store_unavailable.store(true, Ordering::Release);
                self.hub.set_health(FeedHealth::Degraded(Time::now()));
            }
            StoreEvent::Recovered => {
                self.is_store_unavailable.store(false, Ordering::Release);
                self.hub.resync();
                self.shared_state_changed.notify_one();
            }
            StoreEvent::SharedStateChanged => self.shared_state_changed.notify_one(),
        }
    }

    /// Waits until there may be something new among what the nodes remember together.
    pub async fn reminded(&self) {
        self.shared_state_changed.notified().await;
    }

    /// Reads again what may have been missed, until `stop`.
    pub async fn run(
        self: Arc<Self>,
        store: Arc<dyn Store>,
        tracker: Arc<Tracker>,
        stop: CancellationToken,
    ) {
        let reader = Resynchronizer {
            feed: self,
            store,
            tracker,
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = reader.resync_lagging_shards() => {}
            () = reader.reconcile_loop() => {}
        }
    }
}

/// Reads what the hub shows.
struct Resynchronizer {
    feed: Arc<ChangeFeed>,
    store: Arc<dyn Store>,
    tracker: Arc<Tracker>,
}

impl Resynchronizer {
    /// Reads everything again that a shard may have missed.
    async fn resync_lagging_shards(&self) {
        let hub = &self.feed.hub;
        loop {
            for shard in hub.lagging().await {
                while let Err(error) = self.resync_shard(shard).await {
                    tracing::warn!(shard, %error, "can't read the watched jobs again yet");
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
            if !self.feed.is_store_unavailable.load(Ordering::Acquire) {
                hub.set_health(FeedHealth::Healthy);
            }
        }
    }

    async fn resync_shard(&self, shard: usize) -> Result<(), store::Error> {
        let hub = &self.feed.hub;
        let (jobs, owners) = hub.topics_of_shard(shard);
        for batch in jobs.chunks(RESYNC_BATCH) {
            let jobs = self
                .republish_regressed(self.store.get_many(batch).await?)
                .await;
            hub.redeliver(shard, jobs).await;
        }
        for owner in owners {
            let jobs = self
                .store
                .list(owner_query(&owner, MAX_OWNER_SNAPSHOT))
                .await?;
            hub.redeliver(shard, jobs).await;
        }
        Ok(())
    }

    /// Reads what is watched and unfinished again and again, slowly: should a message be lost and
    /// nobody notice, that is mended before anybody else does.
    async fn reconcile_loop(&self) {
        for turn in (0..RECONCILE_TICKS).cycle() {
            tokio::time::sleep(RETRY_DELAY).await;
            if self.feed.is_store_unavailable.load(Ordering::Acquire) || !self.store.is_lossy() {
                continue;
            }
            if let Err(error) = self.reconcile(turn).await {
                tracing::debug!(%error, "can't look over what is watched");
            }
        }
    }

    async fn reconcile(&self, turn: u64) -> Result<(), store::Error> {
        let hub = &self.feed.hub;
        let (mut jobs, mut owners) = hub.unfinished();
        jobs.retain(|job| is_due_in_tick(job.as_str(), turn));
        owners.retain(|owner| is_due_in_tick(owner, turn));
        for batch in jobs.chunks(RESYNC_BATCH) {
            for job in self
                .republish_regressed(self.store.get_many(batch).await?)
                .await
            {
                self.deliver_if_newer(job);
            }
        }
        for owner in owners {
            for job in self
                .store
                .list(owner_query(&owner, RECONCILE_OWNER_JOBS))
                .await?
            {
                self.deliver_if_newer(job);
            }
        }
        Ok(())
    }

    fn deliver_if_newer(&self, job: Arc<Job>) {
        let hub = &self.feed.hub;
        if hub
            .shown(&job.id)
            .is_none_or(|shown| shown.version < job.version)
        {
            hub.deliver(job);
        }
    }

    /// The jobs as they are to be shown. A store that lost what it had announced (a replica took over
    /// that did not have it yet) now holds another document under a number that was shown, or one
    /// below it; that document gets a number above, or it would never be seen.
    async fn republish_regressed(&self, jobs: Vec<Arc<Job>>) -> Vec<Arc<Job>> {
        let mut shown = Vec::with_capacity(jobs.len());
        for job in jobs {
            let before = self.feed.hub.shown(&job.id);
            let is_lost = before.is_some_and(|before| {
                before.version > job.version
                    || before.version == job.version && before.updated_at != job.updated_at
            });
            shown.push(match before {
                Some(before) if is_lost => self.republish(job, before).await,
                Some(_) | None => job,
            });
        }
        shown
    }

    async fn republish(&self, job: Arc<Job>, shown: DeliveredVersion) -> Arc<Job> {
        let overtaking = self
            .tracker
            .republish_above(&job.id, shown.version, shown.updated_at);
        match overtaking.await {
            Ok(raised) => raised,
            Err(error) => {
                tracing::warn!(job.id = %job.id, %error, "can't raise a version above what was shown");
                job
            }
        }
    }
}

/// Whether something is read in this turn of a round: always in the same one.
fn is_due_in_tick(name: &str, turn: u64) -> bool {
    let hash = name.bytes().fold(0u64, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    hash % RECONCILE_TICKS == turn
}
