//! Fan-out from one change to every connection of this node that subscribes to the job.
//!
//! Each worker thread owns a [`Shard`] with its connections and topics. A change is sent to the shards
//! that have subscribers, through one bounded queue per shard. If a queue is full, the shard is marked
//! as lagging and the [change feed](crate::background::change_feed) reads its jobs again.
//!
//! Invariants: the hub performs no I/O and does not block. A connection holds at most one pending
//! version per job.

mod connection;
mod connection_state;
mod shard;
mod sink;
mod subscriptions;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, RwLock};

use tokio::sync::{Notify, mpsc};

use crate::job::{Job, JobId, Topic};
use crate::protocol::Frame;
pub use connection::Connection;
pub use shard::Shard;
use shard::{SHARD_QUEUE_CAPACITY, ShardMessage};
pub use sink::{FeedHealth, Sink};
pub use subscriptions::DeliveredVersion;
use subscriptions::{SubscriptionIndex, lock_ignoring_poison};

/// Maximum number of worker threads. A shard mask has one bit for each.
pub const MAX_SHARDS: usize = 64;

struct ShardQueue {
    sender: mpsc::Sender<ShardMessage>,
    is_lagging: bool,
}

/// The fan-out of one node, shared by all its threads.
pub struct Hub {
    queues: RwLock<Vec<Mutex<ShardQueue>>>,
    subscriptions: Arc<SubscriptionIndex>,
    health: Mutex<FeedHealth>,
    lag: Notify,
}

thread_local! {
    /// The shard of this thread, for the hub that was used last.
    static SHARD: RefCell<Option<Rc<Shard>>> = const { RefCell::new(None) };
}

impl Hub {
    /// Creates a hub without shards. Each worker thread adds its own with [`Hub::shard`].
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            queues: RwLock::new(Vec::new()),
            subscriptions: Arc::default(),
            health: Mutex::new(FeedHealth::Healthy),
            lag: Notify::new(),
        })
    }

    /// Returns the shard of the current thread and creates it on the first call.
    ///
    /// # Panics
    /// Panics on the first call if the thread does not run a Tokio `LocalSet` or local runtime, because
    /// the shard spawns its delivery task there.
    #[must_use]
    pub fn shard(&self) -> Rc<Shard> {
        SHARD.with_borrow_mut(|current| {
            if let Some(shard) = current
                && Arc::ptr_eq(&shard.subscriptions, &self.subscriptions)
            {
                return Rc::clone(shard);
            }
            let shard = self.open_shard();
            *current = Some(Rc::clone(&shard));
            shard
        })
    }

    fn open_shard(&self) -> Rc<Shard> {
        let (sender, receiver) = mpsc::channel(SHARD_QUEUE_CAPACITY);
        let queue = Mutex::new(ShardQueue {
            sender,
            is_lagging: false,
        });
        let mut queues = lock_ignoring_poison(self.queues.write());
        let vacant = queues
            .iter()
            .position(|queue| lock_ignoring_poison(queue.lock()).sender.is_closed());
        let index = vacant.unwrap_or(queues.len() % MAX_SHARDS);
        if index < queues.len() {
            queues[index] = queue;
        } else {
            queues.push(queue);
        }
        drop(queues);
        // Read after the queue is registered, so that a later change arrives as a message.
        let health = self.health();
        Shard::open(Arc::clone(&self.subscriptions), index, receiver, health)
    }

    /// Sends a change to every shard with a subscriber of the job or its owner. Never blocks.
    pub fn deliver(&self, frame: Arc<Frame>) {
        // A shard that subscribes after the version is recorded still receives it.
        self.subscriptions.record_delivered(frame.job());
        let mask = self.subscriptions.shards_for(frame.job());
        if mask != 0 {
            self.send_to_shards(mask, &ShardMessage::JobChanged(frame));
        }
    }

    /// Sends versions that were read again to one shard and waits for space in its queue.
    ///
    /// The current health follows, in case the shard missed a change of it.
    pub async fn redeliver(&self, shard: usize, jobs: Vec<Arc<Job>>) {
        let sender = {
            let queues = lock_ignoring_poison(self.queues.read());
            queues
                .get(shard)
                .map(|queue| lock_ignoring_poison(queue.lock()).sender.clone())
        };
        let Some(sender) = sender else { return };
        for job in jobs {
            self.subscriptions.record_delivered(&job);
            let message = ShardMessage::JobChanged(Arc::new(Frame::new(job)));
            if sender.send(message).await.is_err() {
                return;
            }
        }
        let health = ShardMessage::HealthChanged(self.health());
        if sender.send(health).await.is_err() {
            tracing::debug!(shard, "shard closed");
        }
    }

    fn send_to_shards(&self, mask: u64, message: &ShardMessage) {
        let queues = lock_ignoring_poison(self.queues.read());
        for (index, queue) in queues.iter().enumerate() {
            if mask & (1 << index) == 0 {
                continue;
            }
            let mut queue = lock_ignoring_poison(queue.lock());
            if let Err(mpsc::error::TrySendError::Full(_)) = queue.sender.try_send(message.clone())
            {
                queue.is_lagging = true;
                self.lag.notify_one();
            }
        }
    }

    /// Marks every shard as lagging, because changes may have been missed.
    pub fn resync(&self) {
        for queue in lock_ignoring_poison(self.queues.read()).iter() {
            lock_ignoring_poison(queue.lock()).is_lagging = true;
        }
        self.lag.notify_one();
    }

    /// Waits until at least one shard lags. Returns the lagging shards and clears their marks.
    pub async fn lagging(&self) -> Vec<usize> {
        loop {
            let notified = self.lag.notified();
            let lagging: Vec<usize> = {
                let queues = lock_ignoring_poison(self.queues.read());
                let take = |queue: &Mutex<ShardQueue>| {
                    std::mem::take(&mut lock_ignoring_poison(queue.lock()).is_lagging)
                };
                queues
                    .iter()
                    .enumerate()
                    .filter(|(_, queue)| take(queue))
                    .map(|(index, _)| index)
                    .collect()
            };
            if !lagging.is_empty() {
                return lagging;
            }
            notified.await;
        }
    }

    /// Returns the jobs and owners that have subscribers on `shard`.
    #[must_use]
    pub fn topics_of_shard(&self, shard: usize) -> (Vec<JobId>, Vec<String>) {
        self.subscriptions.topics_of_shard(shard)
    }

    /// Returns the unfinished jobs and the owners that have subscribers on this node.
    #[must_use]
    pub fn active_topics(&self) -> (Vec<JobId>, Vec<String>) {
        self.subscriptions.active()
    }

    /// Returns whether any connection of this node receives the job.
    #[must_use]
    pub fn has_job_subscribers(&self, job: &JobId) -> bool {
        self.subscriptions.contains(&Topic::Job(job.clone()))
    }

    /// Returns whether any connection of this node subscribes to the owner.
    #[must_use]
    pub fn has_owner_subscribers(&self, owner: &str) -> bool {
        self.subscriptions.contains(&Topic::Owner(owner.to_owned()))
    }

    /// Returns the newest version of a subscribed job that was delivered on this node.
    #[must_use]
    pub fn last_delivered(&self, job: &JobId) -> Option<DeliveredVersion> {
        self.subscriptions.last_delivered(job)
    }

    /// Returns the number of jobs that have subscribers on this node.
    #[must_use]
    pub fn subscribed_jobs(&self) -> usize {
        self.subscriptions.job_count()
    }

    /// Notifies every connection that the store became unavailable or recovered.
    ///
    /// Repeated calls with the same state have no effect. The start of an outage does not change.
    pub fn set_health(&self, health: FeedHealth) {
        let mut current = lock_ignoring_poison(self.health.lock());
        if current.is_same_state(health) {
            return;
        }
        *current = health;
        // Sent under the lock, so that all shards receive changes in the same order.
        self.send_to_shards(u64::MAX, &ShardMessage::HealthChanged(health));
    }

    /// Returns whether delivered documents are known to be current.
    #[must_use]
    pub fn health(&self) -> FeedHealth {
        *lock_ignoring_poison(self.health.lock())
    }
}

#[cfg(test)]
mod tests;
