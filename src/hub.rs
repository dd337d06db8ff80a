//! The hub: from one change to every connection of this node that watches the job.
//!
//! Invariant: nothing here awaits, locks across threads for longer than a map look-up, or does I/O
//! of its own; what a connection has not been shown yet is at most one pending version per job.
//!
//! Each worker thread owns a [`Shard`]: its connections and topics. A change goes to the shards
//! that watch its job, through one bounded mailbox each. A full mailbox loses nothing: the shard
//! is marked as lagging, and [`crate::feed`] reads its jobs again.

mod connection;
mod shard;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::{Notify, mpsc};

use crate::job::{Job, JobId, Topic};
use crate::protocol::Frame;
use crate::time::Time;
pub use connection::Connection;
pub use shard::{Shard, Sink};
pub use subscriptions::DeliveredVersion;
use subscriptions::SubscriptionIndex;

/// Changes that wait for a shard at most; beyond it, the shard lags and its jobs are read again.
const SHARD_QUEUE_CAPACITY: usize = 8192;

/// The most workers that a node may have: the interest mask has a bit for each.
pub const MAX_SHARDS: usize = 64;

/// Whether what is shown can be trusted to be current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedHealth {
    /// It is.
    Healthy,
    /// The store has been away since then.
    Degraded(Time),
}

/// What a shard is told.
#[derive(Clone, Debug)]
enum ShardMessage {
    /// A job has a newer version.
    JobChanged(Arc<Frame>),
    /// The store went away or is back.
    HealthChanged(FeedHealth),
}

struct ShardQueue {
    sender: mpsc::Sender<ShardMessage>,
    is_lagging: bool,
}

/// The local fan-out; one per node, shared by all its threads.
pub struct Hub {
    mailboxes: RwLock<Vec<Mutex<ShardQueue>>>,
    interest: SubscriptionIndex,
    health: Mutex<FeedHealth>,
    lag: Notify,
}

thread_local! {
    /// A worker serves one hub, so its shard is found by the thread alone.
    static SHARD: RefCell<Option<(usize, Rc<Shard>)>> = const { RefCell::new(None) };
}

fn lock_ignoring_poison<T>(result: Result<T, PoisonError<T>>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// A hub without shards; each worker thread brings its own with [`Hub::shard`].
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            mailboxes: RwLock::new(Vec::new()),
            interest: SubscriptionIndex::default(),
            health: Mutex::new(FeedHealth::Healthy),
            lag: Notify::new(),
        })
    }

    /// This thread's shard. Must be called within a tokio `LocalSet` or local runtime, on which
    /// the shard's delivery runs from the first call on.
    #[must_use]
    pub fn shard(self: &Arc<Self>) -> Rc<Shard> {
        let me = Arc::as_ptr(self).addr();
        SHARD.with_borrow_mut(|mine| match mine {
            Some((hub, shard)) if *hub == me => Rc::clone(shard),
            _ => {
                let shard = self.open_shard();
                *mine = Some((me, Rc::clone(&shard)));
                shard
            }
        })
    }

    fn open_shard(self: &Arc<Self>) -> Rc<Shard> {
        let (sender, receiver) = mpsc::channel(SHARD_QUEUE_CAPACITY);
        let mailbox = Mutex::new(ShardQueue {
            sender,
            is_lagging: false,
        });
        let mut mailboxes = lock_ignoring_poison(self.mailboxes.write());
        let vacant = mailboxes
            .iter()
            .position(|at| lock_ignoring_poison(at.lock()).sender.is_closed());
        let index = vacant.unwrap_or(mailboxes.len() % MAX_SHARDS);
        if index < mailboxes.len() {
            mailboxes[index] = mailbox;
        } else {
            mailboxes.push(mailbox);
        }
        Shard::open(Arc::clone(self), index, receiver)
    }

    /// Hands a change to every shard that watches the job or its owner. Never blocks.
    pub fn deliver(&self, job: Arc<Job>) {
        let mask = self.interest.shards_for(&job);
        if mask != 0 {
            self.send_to_shards(mask, &ShardMessage::JobChanged(Arc::new(Frame::new(job))));
        }
    }

    /// Hands versions that were read again to one shard, waiting for room in its mailbox; the
    /// store's condition comes last, in case it was missed too.
    pub async fn redeliver(&self, shard: usize, jobs: Vec<Arc<Job>>) {
        let sender = {
            let mailboxes = lock_ignoring_poison(self.mailboxes.read());
            mailboxes
                .get(shard)
                .map(|mailbox| lock_ignoring_poison(mailbox.lock()).sender.clone())
        };
        let Some(sender) = sender else { return };
        for job in jobs {
            self.interest.shards_for(&job);
            if sender
                .send(ShardMessage::JobChanged(Arc::new(Frame::new(job))))
                .await
                .is_err()
            {
                return;
            }
        }
        let condition = ShardMessage::HealthChanged(self.condition());
        if sender.send(condition).await.is_err() {
            tracing::debug!(shard, "the worker is gone");
        }
    }

    fn send_to_shards(&self, mask: u64, letter: &ShardMessage) {
        let mailboxes = lock_ignoring_poison(self.mailboxes.read());
        for (index, mailbox) in mailboxes.iter().enumerate() {
            if mask & (1 << index) == 0 {
                continue;
            }
            let mut mailbox = lock_ignoring_poison(mailbox.lock());
            if let Err(mpsc::error::TrySendError::Full(_)) = mailbox.sender.try_send(letter.clone())
            {
                mailbox.is_lagging = true;
                self.lag.notify_one();
            }
        }
    }

    /// Has every shard's jobs read again: changes may have been missed.
    pub fn resync(&self) {
        for mailbox in lock_ignoring_poison(self.mailboxes.read()).iter() {
            lock_ignoring_poison(mailbox.lock()).is_lagging = true;
        }
        self.lag.notify_one();
    }

    /// Waits until at least one shard lags; then says which, and counts them as caught up from here.
    pub async fn lagging(&self) -> Vec<usize> {
        loop {
            let notified = self.lag.notified();
            let lagging: Vec<usize> = {
                let mailboxes = lock_ignoring_poison(self.mailboxes.read());
                let take = |mailbox: &Mutex<ShardQueue>| {
                    std::mem::take(&mut lock_ignoring_poison(mailbox.lock()).is_lagging)
                };
                mailboxes
                    .iter()
                    .enumerate()
                    .filter(|(_, mailbox)| take(mailbox))
                    .map(|(index, _)| index)
                    .collect()
            };
            if !lagging.is_empty() {
                return lagging;
            }
            notified.await;
        }
    }

    /// The jobs and the owners that a shard watches.
    #[must_use]
    pub fn topics_of_shard(&self, shard: usize) -> (Vec<JobId>, Vec<String>) {
        self.interest.topics_of_shard(shard)
    }

    /// The unfinished jobs and the owners that are watched on this node.
    #[must_use]
    pub fn unfinished(&self) -> (Vec<JobId>, Vec<String>) {
        self.interest.active()
    }

    /// Whether the job is watched by id, or by following its owner once it was shown.
    #[must_use]
    pub fn has_job_subscribers(&self, job: &JobId) -> bool {
        self.interest.contains(&Topic::Job(job.clone()))
    }

    /// Whether somebody follows the owner.
    #[must_use]
    pub fn has_owner_subscribers(&self, owner: &str) -> bool {
        self.interest.contains(&Topic::Owner(owner.to_owned()))
    }

    /// The newest version of a watched job that was handed out here.
    #[must_use]
    pub fn shown(&self, job: &JobId) -> Option<DeliveredVersion> {
        self.interest.last_delivered(job)
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> usize {
        lock_ignoring_poison(self.mailboxes.read()).len()
    }

    /// How many jobs are watched on this node.
    #[must_use]
    pub fn subscribed_jobs(&self) -> usize {
        self.interest.jobs()
    }

    /// Tells every connection that the store went away or is back; said once per change.
    pub fn set_health(&self, condition: FeedHealth) {
        {
            let mut known = lock_ignoring_poison(self.health.lock());
            match (*known, condition) {
                (FeedHealth::Healthy, FeedHealth::Healthy)
                | (FeedHealth::Degraded(_), FeedHealth::Degraded(_)) => return,
                (FeedHealth::Healthy, FeedHealth::Degraded(_))
                | (FeedHealth::Degraded(_), FeedHealth::Healthy) => {
                    *known = condition;
                }
            }
        }
        self.send_to_shards(u64::MAX, &ShardMessage::HealthChanged(condition));
    }

    /// Whether what is shown can be trusted to be current.
    #[must_use]
    pub fn condition(&self) -> FeedHealth {
        *lock_ignoring_poison(self.health.lock())
    }
}
