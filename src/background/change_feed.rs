//! Delivers changes from the store to the hub.
//!
//! Announced changes go to the hub immediately. Changes that may have been missed are read again:
//! after a shard lagged, after the store was unavailable, and periodically in case a message was
//! lost. The version of a document decides whether it is delivered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::hub::{DeliveredVersion, FeedHealth, Hub};
use crate::job::{Job, JobId, Topic};
use crate::protocol::Frame;
use crate::store::{self, ChangeListener, ListQuery, Store, StoreEvent};
use crate::time::{Time, stable_hash};
use crate::tracker::Tracker;

/// Maximum number of jobs per read of a resync.
const RESYNC_BATCH: usize = 256;

/// Maximum number of jobs that are read for an owner subscription: unfinished jobs first, then the
/// newest.
pub const MAX_OWNER_SNAPSHOT: usize = 256;

/// Interval of the reconciliation ticks, and delay before the next resync attempt after the store
/// failed.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Number of ticks in which all subscribed unfinished jobs are read once.
const RECONCILE_TICKS: u32 = 30;

/// Maximum number of jobs that are read for an owner in one reconciliation.
const RECONCILE_OWNER_JOBS: usize = 32;

/// Connects a store to a hub.
pub struct ChangeFeed {
    hub: Arc<Hub>,
    is_store_unavailable: AtomicBool,
    shared_state_changed: Notify,
}

/// Subscribes to changes of the existing jobs among `jobs` that `is_visible` accepts, and returns
/// their newest versions.
///
/// The jobs are read before the store subscribes, so that no channel is used for an id that does
/// not exist. They are read again afterwards, because a change between the two steps was not
/// received. The caller must attach its connection to the jobs first. Then no change is lost
/// between the last read and the first announcement.
///
/// # Errors
/// Returns the error of the store.
pub async fn subscribe_and_read(
    store: &dyn Store,
    jobs: &[JobId],
    is_visible: impl Fn(&Job) -> bool,
) -> Result<Vec<Arc<Job>>, store::Error> {
    let mut visible = store.get_many(jobs).await?;
    visible.retain(|job| is_visible(job));
    if visible.is_empty() || store.channels().is_none() {
        return Ok(visible);
    }
    let ids: Vec<JobId> = visible.iter().map(|job| job.id.clone()).collect();
    let topics: Vec<Topic> = ids.iter().cloned().map(Topic::Job).collect();
    store.subscribe(&topics).await?;
    let mut newest = store.get_many(&ids).await?;
    newest.retain(|job| is_visible(job));
    Ok(newest)
}

/// Subscribes to changes of all jobs of `owner` and then lists its newest jobs, at most
/// [`MAX_OWNER_SNAPSHOT`].
///
/// The caller must attach its connection to the owner first.
///
/// # Errors
/// Returns the error of the store.
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
    /// Creates a feed for `hub`.
    #[must_use]
    pub fn new(hub: &Arc<Hub>) -> Arc<Self> {
        Arc::new(Self {
            hub: Arc::clone(hub),
            is_store_unavailable: AtomicBool::new(false),
            shared_state_changed: Notify::new(),
        })
    }

    /// Returns the listener to open the store with.
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
            StoreEvent::JobChanged(frame) => self.hub.deliver(frame),
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

    /// Waits until the shared state may have changed.
    pub async fn shared_state_changed(&self) {
        self.shared_state_changed.notified().await;
    }

    /// Resynchronizes and reconciles until `stop` is cancelled.
    pub async fn run(
        self: Arc<Self>,
        store: Arc<dyn Store>,
        tracker: Arc<Tracker>,
        stop: CancellationToken,
    ) {
        let resynchronizer = Resynchronizer {
            feed: self,
            store,
            tracker,
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = resynchronizer.resync_lagging_shards() => {}
            () = resynchronizer.reconcile_loop() => {}
        }
    }
}

/// Reads subscribed jobs again.
struct Resynchronizer {
    feed: Arc<ChangeFeed>,
    store: Arc<dyn Store>,
    tracker: Arc<Tracker>,
}

impl Resynchronizer {
    /// Reads all jobs of a lagging shard again and reports recovery when no shard lags any longer.
    async fn resync_lagging_shards(&self) {
        let hub = &self.feed.hub;
        loop {
            for shard in hub.lagging().await {
                while let Err(error) = self.resync_shard(shard).await {
                    tracing::warn!(shard, %error, "resync failed; retrying");
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

    /// Periodically reads the subscribed unfinished jobs, in case a message was lost unnoticed.
    async fn reconcile_loop(&self) {
        for tick in (0..RECONCILE_TICKS).cycle() {
            tokio::time::sleep(RETRY_DELAY).await;
            if self.feed.is_store_unavailable.load(Ordering::Acquire) || !self.store.is_lossy() {
                continue;
            }
            if let Err(error) = self.reconcile(tick).await {
                tracing::debug!(%error, "reconciliation failed");
            }
        }
    }

    async fn reconcile(&self, tick: u32) -> Result<(), store::Error> {
        let hub = &self.feed.hub;
        let (mut jobs, mut owners) = hub.active_topics();
        jobs.retain(|job| is_due_in_tick(job.as_str(), tick));
        owners.retain(|owner| is_due_in_tick(owner, tick));
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
            .last_delivered(&job.id)
            .is_none_or(|delivered| delivered.version < job.version)
        {
            hub.deliver(Arc::new(Frame::new(job)));
        }
    }

    /// Republishes the jobs that regressed behind a delivered version.
    ///
    /// After a failover to a replica that lacks the last writes, the store can hold a different
    /// document under a version that was already delivered, or a lower version. Clients would
    /// ignore it, so it is stored again with a higher version.
    async fn republish_regressed(&self, jobs: Vec<Arc<Job>>) -> Vec<Arc<Job>> {
        let mut current = Vec::with_capacity(jobs.len());
        for job in jobs {
            current.push(match self.feed.hub.last_delivered(&job.id) {
                Some(delivered) if is_regressed(&job, &delivered) => {
                    self.republish(job, &delivered).await
                }
                Some(_) | None => job,
            });
        }
        current
    }

    async fn republish(&self, job: Arc<Job>, delivered: &DeliveredVersion) -> Arc<Job> {
        let republished = self
            .tracker
            .republish_above(&job.id, delivered.version, delivered.updated_at)
            .await;
        republished.unwrap_or_else(|error| {
            tracing::warn!(job.id = %job.id, %error, "failed to republish job after store regression");
            job
        })
    }
}

/// Returns whether the store lost the delivered version: it holds a lower one, or another document
/// with the same version.
fn is_regressed(job: &Job, delivered: &DeliveredVersion) -> bool {
    delivered.version > job.version
        || delivered.version == job.version && delivered.updated_at != job.updated_at
}

/// Returns whether a topic is read in this tick. Each topic is assigned to one tick by its hash.
fn is_due_in_tick(name: &str, tick: u32) -> bool {
    stable_hash(name) % RECONCILE_TICKS == tick
}
