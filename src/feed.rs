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

use crate::hub::{FeedHealth, Hub, DeliveredVersion};
use crate::job::{Job, JobId};
use crate::store::{self, StoreEvent, ListQuery, ChangeListener, Store, Topic};
use crate::time::Time;
use crate::tracker::Tracker;

/// Jobs that are read again at once.
const BATCH: usize = 256;

/// Jobs of a followed owner that are read: all unfinished ones first, then the newest.
pub const FEED_DEPTH: usize = 256;

/// How long to wait before reading again after the store failed.
const PAUSE: Duration = Duration::from_secs(1);

/// In how many pauses everything that is watched and unfinished is read once more.
const ROUND: u64 = 30;

/// Jobs of a followed owner that are read once more with it.
const GLANCE: usize = 32;

/// Between a store and a hub.
pub struct Feed {
    hub: Arc<Hub>,
    is_away: AtomicBool,
    reminded: Notify,
}

/// Reads jobs that the caller has attached to: listened for first, so that nothing is missed
/// between what is read and what is announced.
///
/// # Errors
/// The store's.
pub async fn newest(store: &dyn Store, jobs: &[JobId]) -> Result<Vec<Arc<Job>>, store::Error> {
    let topics: Vec<Topic> = jobs.iter().cloned().map(Topic::Job).collect();
    store.subscribe(&topics).await?;
    store.get_many(jobs).await
}

/// Reads the jobs that a follower of `owner`, who has attached already, is shown.
///
/// # Errors
/// The store's.
pub async fn newest_of(store: &dyn Store, owner: &str) -> Result<Vec<Arc<Job>>, store::Error> {
    store.subscribe(&[Topic::Owner(owner.to_owned())]).await?;
    store.list(of_owner(owner, FEED_DEPTH)).await
}

fn of_owner(owner: &str, limit: usize) -> ListQuery {
    ListQuery {
        owner: Some(owner.to_owned()),
        active_first: true,
        limit,
        ..ListQuery::default()
    }
}

impl Feed {
    /// A feed for this hub.
    #[must_use]
    pub fn new(hub: &Arc<Hub>) -> Arc<Self> {
        Arc::new(Self {
            hub: Arc::clone(hub),
            is_away: AtomicBool::new(false),
            reminded: Notify::new(),
        })
    }

    /// What the store is given to speak to.
    #[must_use]
    pub fn node(self: &Arc<Self>) -> ChangeListener {
        let (feed, hub) = (Arc::clone(self), Arc::clone(&self.hub));
        ChangeListener {
            on_event: Arc::new(move |event| feed.take(event)),
            is_subscribed: Arc::new(move |topic| match topic {
                Topic::Job(job) => hub.has_job_subscribers(job),
                Topic::Owner(owner) => hub.has_owner_subscribers(owner),
            }),
        }
    }

    fn take(&self, event: StoreEvent) {
        match event {
            StoreEvent::JobChanged(job) => self.hub.deliver(job),
            StoreEvent::Unavailable => {
                self.is_away.store(true, Ordering::Release);
                self.hub.set_health(FeedHealth::Degraded(Time::now()));
            }
            StoreEvent::Recovered => {
                self.is_away.store(false, Ordering::Release);
                self.hub.resync();
                self.reminded.notify_one();
            }
            StoreEvent::SharedStateChanged => self.reminded.notify_one(),
        }
    }

    /// Waits until there may be something new among what the nodes remember together.
    pub async fn reminded(&self) {
        self.reminded.notified().await;
    }

    /// Reads again what may have been missed, until `stop`.
    pub async fn run(
        self: Arc<Self>,
        store: Arc<dyn Store>,
        tracker: Arc<Tracker>,
        stop: CancellationToken,
    ) {
        let reader = Reader {
            feed: self,
            store,
            tracker,
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = reader.follow_gaps() => {}
            () = reader.glance_over() => {}
        }
    }
}

/// Reads what the hub shows.
struct Reader {
    feed: Arc<Feed>,
    store: Arc<dyn Store>,
    tracker: Arc<Tracker>,
}

impl Reader {
    /// Reads everything again that a shard may have missed.
    async fn follow_gaps(&self) {
        let hub = &self.feed.hub;
        loop {
            for shard in hub.lagging().await {
                while let Err(error) = self.reread(shard).await {
                    tracing::warn!(shard, %error, "can't read the watched jobs again yet");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            if !self.feed.is_away.load(Ordering::Acquire) {
                hub.set_health(FeedHealth::Healthy);
            }
        }
    }

    async fn reread(&self, shard: usize) -> Result<(), store::Error> {
        let hub = &self.feed.hub;
        let (jobs, owners) = hub.topics_of_shard(shard);
        for batch in jobs.chunks(BATCH) {
            let jobs = self.overtaking(self.store.get_many(batch).await?).await;
            hub.redeliver(shard, jobs).await;
        }
        for owner in owners {
            let jobs = self.store.list(of_owner(&owner, FEED_DEPTH)).await?;
            hub.redeliver(shard, jobs).await;
        }
        Ok(())
    }

    /// Reads what is watched and unfinished again and again, slowly: should a message be lost and
    /// nobody notice, that is mended before anybody else does.
    async fn glance_over(&self) {
        for turn in (0..ROUND).cycle() {
            tokio::time::sleep(PAUSE).await;
            if self.feed.is_away.load(Ordering::Acquire) || !self.store.is_lossy() {
                continue;
            }
            if let Err(error) = self.glance(turn).await {
                tracing::debug!(%error, "can't look over what is watched");
            }
        }
    }

    async fn glance(&self, turn: u64) -> Result<(), store::Error> {
        let hub = &self.feed.hub;
        let (mut jobs, mut owners) = hub.unfinished();
        jobs.retain(|job| is_its_turn(job.as_str(), turn));
        owners.retain(|owner| is_its_turn(owner, turn));
        for batch in jobs.chunks(BATCH) {
            for job in self.overtaking(self.store.get_many(batch).await?).await {
                self.show(job);
            }
        }
        for owner in owners {
            for job in self.store.list(of_owner(&owner, GLANCE)).await? {
                self.show(job);
            }
        }
        Ok(())
    }

    fn show(&self, job: Arc<Job>) {
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
    async fn overtaking(&self, jobs: Vec<Arc<Job>>) -> Vec<Arc<Job>> {
        let mut shown = Vec::with_capacity(jobs.len());
        for job in jobs {
            let before = self.feed.hub.shown(&job.id);
            let is_lost = before.is_some_and(|before| {
                before.version > job.version
                    || before.version == job.version && before.updated_at != job.updated_at
            });
            shown.push(match before {
                Some(before) if is_lost => self.overtake(job, before).await,
                Some(_) | None => job,
            });
        }
        shown
    }

    async fn overtake(&self, job: Arc<Job>, shown: DeliveredVersion) -> Arc<Job> {
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
fn is_its_turn(name: &str, turn: u64) -> bool {
    let hash = name.bytes().fold(0u64, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    hash % ROUND == turn
}
