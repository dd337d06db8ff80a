//! One worker thread's share of the hub: its topics, connections and subscriptions.
//!
//! Invariants: a topic exists exactly as long as it has a subscriber. A connection receives the
//! versions of a job in increasing order. A paused subscription receives nothing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connection_state::{ConnectionState, Subscription, SubscriptionKind};
use super::sink::FeedHealth;
use super::subscriptions::SubscriptionIndex;
use crate::job::{JobId, Topic};
use crate::protocol::Frame;

/// Capacity of a shard's queue, in messages. A shard whose queue is full is resynchronized.
pub(super) const SHARD_QUEUE_CAPACITY: usize = 8192;

/// Time after which an owner subscription drops a finished job. No older version can arrive later.
const FINISHED_TOPIC_TTL: Duration = Duration::from_secs(60);

/// Maximum duration of a delivery after which the shard only yields instead of sleeping.
const MAX_BUSY_WITHOUT_SLEEP: Duration = Duration::from_millis(2);

/// Maximum pause after a delivery.
const MAX_DELIVERY_PAUSE: Duration = Duration::from_millis(20);

/// Number of connections whose state is read before the first of them is written to.
const PREFETCH_BATCH: usize = 16;

/// A message to a shard.
#[derive(Clone, Debug)]
pub(super) enum ShardMessage {
    /// A job has a new version.
    JobChanged(Arc<Frame>),
    /// The store became unavailable or recovered.
    HealthChanged(FeedHealth),
}

/// The topics and connections of one thread.
pub struct Shard {
    /// The index of the hub, shared by all its shards.
    pub(super) subscriptions: Arc<SubscriptionIndex>,
    pub(super) index: usize,
    pub(super) state: RefCell<State>,
}

pub(super) struct State {
    pub(super) topics: Slab<TopicState>,
    pub(super) topic_of: HashMap<JobId, usize>,
    pub(super) followers: HashMap<String, Vec<usize>>,
    pub(super) connections: Slab<ConnectionState>,
    /// The health that was last sent to the connections.
    pub(super) health: FeedHealth,
}

/// A job with at least one subscriber.
pub(super) struct TopicState {
    pub(super) job: JobId,
    pub(super) newest: Option<Arc<Frame>>,
    pub(super) subscribers: Vec<SubscriberRef>,
    /// Whether `subscribers` includes every connection that follows the job's owner.
    pub(super) includes_followers: bool,
    pub(super) ended_at: Option<Instant>,
}

#[derive(Clone, Copy)]
pub(super) struct SubscriberRef {
    pub(super) connection: usize,
    pub(super) slot: usize,
}

impl Shard {
    /// Creates a shard and spawns its delivery task, which ends when the shard or the hub is dropped.
    pub(super) fn open(
        subscriptions: Arc<SubscriptionIndex>,
        index: usize,
        mut queue: mpsc::Receiver<ShardMessage>,
        health: FeedHealth,
    ) -> Rc<Self> {
        let state = RefCell::new(State {
            topics: Slab::new(),
            topic_of: HashMap::new(),
            followers: HashMap::new(),
            connections: Slab::new(),
            health,
        });
        let shard = Rc::new(Self {
            subscriptions,
            index,
            state,
        });
        let weak = Rc::downgrade(&shard);
        tokio::task::spawn_local(async move {
            let mut messages = Vec::new();
            let mut cleanup = tokio::time::interval(FINISHED_TOPIC_TTL / 2);
            loop {
                tokio::select! {
                    received = queue.recv_many(&mut messages, SHARD_QUEUE_CAPACITY) => {
                        let Some(shard) = weak.upgrade().filter(|_| received > 0) else { return };
                        let started = Instant::now();
                        // A delivery can need more socket writes than Tokio's cooperative budget
                        // allows. Writes beyond the budget would look like blocked sockets.
                        tokio::task::unconstrained(async { shard.process_messages(&mut messages) }).await;
                        drop(shard);
                        yield_after(started.elapsed()).await;
                    }
                    _ = cleanup.tick() => {
                        let Some(shard) = weak.upgrade() else { return };
                        shard.drop_finished_topics();
                    }
                }
            }
        });
        shard
    }

    /// Returns whether the shard holds neither topics nor connections.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let state = self.state.borrow();
        state.topics.is_empty()
            && state.topic_of.is_empty()
            && state.followers.is_empty()
            && state.connections.is_empty()
    }

    /// Drains `messages`, keeps the newest version of each job, and delivers it.
    fn process_messages(&self, messages: &mut Vec<ShardMessage>) {
        let mut index_of: HashMap<JobId, usize> = HashMap::with_capacity(messages.len());
        let mut frames: Vec<Arc<Frame>> = Vec::with_capacity(messages.len());
        let mut health = None;
        for message in messages.drain(..) {
            match message {
                ShardMessage::JobChanged(frame) => match index_of.get(&frame.job().id) {
                    Some(&at) if frames[at].job().version >= frame.job().version => {}
                    Some(&at) => frames[at] = frame,
                    None => {
                        index_of.insert(frame.job().id.clone(), frames.len());
                        frames.push(frame);
                    }
                },
                ShardMessage::HealthChanged(latest) => health = Some(latest),
            }
        }
        let mut state = self.state.borrow_mut();
        for frame in frames {
            state.deliver(self, &frame);
        }
        if let Some(health) = health.filter(|latest| !latest.is_same_state(state.health)) {
            state.health = health;
            for (_, connection) in &state.connections {
                connection.sink.health_changed(health);
            }
        }
    }

    fn drop_finished_topics(&self) {
        let mut state = self.state.borrow_mut();
        let expired: Vec<SubscriberRef> = state
            .topics
            .iter()
            .filter(|(_, topic)| {
                topic
                    .ended_at
                    .is_some_and(|at| at.elapsed() >= FINISHED_TOPIC_TTL)
            })
            .flat_map(|(_, topic)| topic.subscribers.iter().copied())
            .collect();
        for subscriber in expired {
            let connection = &state.connections[subscriber.connection];
            let subscription = &connection.subscriptions[subscriber.slot];
            if !subscription.is_explicit && !subscription.is_pending {
                state.detach(self, subscriber);
            }
        }
    }
}

/// Yields for as long as the last delivery took, at most [`MAX_DELIVERY_PAUSE`], so that socket reads
/// and timers of this thread run. Changes that arrive in the meantime are conflated.
async fn yield_after(took: Duration) {
    if took < MAX_BUSY_WITHOUT_SLEEP {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(took.min(MAX_DELIVERY_PAUSE)).await;
    }
}

impl State {
    /// Delivers a version to all subscribers of the job and its owner, if it is newer than the last.
    pub(super) fn deliver(&mut self, shard: &Shard, frame: &Arc<Frame>) {
        let job = frame.job();
        let followers = self.followers.get(&job.owner).cloned();
        if followers.is_none() && !self.topic_of.contains_key(&job.id) {
            return;
        }
        let topic = self.topic(shard, &job.id);
        let mut attached = Vec::new();
        if !self.topics[topic].includes_followers {
            self.topics[topic].includes_followers = true;
            for connection in followers.unwrap_or_default() {
                if self.subscription_slot(connection, topic).is_none() {
                    let slot = self.attach(connection, topic, SubscriptionKind::Implicit);
                    attached.push(SubscriberRef { connection, slot });
                }
            }
        }
        let entry = &mut self.topics[topic];
        match &entry.newest {
            Some(newest) if newest.job().version >= job.version => {
                let newest = Arc::clone(newest);
                for subscriber in attached {
                    self.connections[subscriber.connection].deliver(subscriber.slot, &newest);
                }
            }
            Some(_) | None => {
                entry.newest = Some(Arc::clone(frame));
                if job.is_final() {
                    entry.ended_at = Some(Instant::now());
                }
                self.deliver_to_subscribers(topic, frame);
            }
        }
    }

    /// Sends `frame` to each subscriber of the topic, or marks it as pending.
    ///
    /// A socket write evicts the state of the next connection from the CPU cache. Reading the state of
    /// a batch first lets the cache misses overlap.
    fn deliver_to_subscribers(&mut self, topic: usize, frame: &Arc<Frame>) {
        for batch in self.topics[topic].subscribers.chunks(PREFETCH_BATCH) {
            let mut can_write = [false; PREFETCH_BATCH];
            for (subscriber, can_write) in batch.iter().zip(&mut can_write) {
                *can_write = self.connections[subscriber.connection].can_write_now(subscriber.slot);
            }
            for (subscriber, can_write) in batch.iter().zip(can_write) {
                let connection = &mut self.connections[subscriber.connection];
                if can_write {
                    connection.deliver(subscriber.slot, frame);
                } else {
                    connection.enqueue(subscriber.slot, frame);
                }
            }
        }
    }

    /// Returns the topic of `job` and opens it if it does not exist.
    pub(super) fn topic(&mut self, shard: &Shard, job: &JobId) -> usize {
        if let Some(&topic) = self.topic_of.get(job) {
            return topic;
        }
        shard
            .subscriptions
            .add(Topic::Job(job.clone()), shard.index);
        let topic = self.topics.insert(TopicState {
            job: job.clone(),
            newest: None,
            subscribers: Vec::new(),
            includes_followers: false,
            ended_at: None,
        });
        self.topic_of.insert(job.clone(), topic);
        topic
    }

    pub(super) fn subscription_slot(&self, connection: usize, topic: usize) -> Option<usize> {
        let subscriptions = &self.connections[connection].subscriptions;
        subscriptions
            .iter()
            .find(|(_, subscription)| subscription.topic == topic)
            .map(|(slot, _)| slot)
    }

    pub(super) fn slot_of(&self, connection: usize, job: &JobId) -> Option<usize> {
        self.subscription_slot(connection, *self.topic_of.get(job)?)
    }

    /// Returns whether the connection's owner subscription covers the job as well.
    pub(super) fn is_covered_by_owner_subscription(&self, connection: usize, slot: usize) -> bool {
        let connection = &self.connections[connection];
        let subscription = &connection.subscriptions[slot];
        let newest = self.topics[subscription.topic].newest.as_ref();
        let owner = newest.map(|frame| &frame.job().owner);
        !subscription.is_paused && owner.is_some() && owner == connection.followed_owner.as_ref()
    }

    pub(super) fn attach(
        &mut self,
        connection: usize,
        topic: usize,
        kind: SubscriptionKind,
    ) -> usize {
        let is_explicit = kind == SubscriptionKind::Explicit;
        let subscribers = &mut self.topics[topic].subscribers;
        let state = &mut self.connections[connection];
        let slot = state.subscriptions.insert(Subscription {
            topic,
            position: subscribers.len(),
            delivered_version: 0,
            is_pending: false,
            is_paused: is_explicit,
            is_explicit,
        });
        state.explicit_count += usize::from(is_explicit);
        subscribers.push(SubscriberRef { connection, slot });
        slot
    }

    /// Ends a subscription and closes its topic if that was the last subscriber.
    pub(super) fn detach(&mut self, shard: &Shard, subscriber: SubscriberRef) {
        let connection = &mut self.connections[subscriber.connection];
        let subscription = connection.subscriptions.remove(subscriber.slot);
        connection.explicit_count -= usize::from(subscription.is_explicit);
        if subscription.is_pending {
            connection.pending.retain(|slot| *slot != subscriber.slot);
        }
        let position = subscription.position;
        let topic = &mut self.topics[subscription.topic];
        topic.subscribers.swap_remove(position);
        if let Some(moved) = topic.subscribers.get(position) {
            self.connections[moved.connection].subscriptions[moved.slot].position = position;
        } else if topic.subscribers.is_empty() {
            let topic = self.topics.remove(subscription.topic);
            self.topic_of.remove(&topic.job);
            shard
                .subscriptions
                .remove(&Topic::Job(topic.job), shard.index);
        }
    }

    pub(super) fn unfollow(&mut self, shard: &Shard, connection: usize) {
        let Some(owner) = self.connections[connection].followed_owner.take() else {
            return;
        };
        if let Some(followers) = self.followers.get_mut(&owner) {
            followers.retain(|follower| *follower != connection);
            if followers.is_empty() {
                self.followers.remove(&owner);
                shard
                    .subscriptions
                    .remove(&Topic::Owner(owner), shard.index);
            }
        }
    }
}
