//! One worker thread's share of the hub: its topics, connections and subscriptions.
//!
//! Invariants: a topic exists exactly as long as it has a subscriber. A connection receives the
//! versions of a job in increasing order. A paused subscription receives nothing.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;
use tokio::sync::{Notify, mpsc};
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

/// Maximum number of deliveries after which the other tasks of the thread run. It bounds how long the
/// delivery to a topic with many subscribers delays everything else on the thread.
///
/// Tests use a small number, so that their deliveries take several turns.
pub(super) const MAX_DELIVERIES_PER_TURN: usize = if cfg!(test) { 2 } else { 64 };

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
    /// Wakes the delivery task after a connection started a delivery.
    pub(super) delivery_started: Rc<Notify>,
}

pub(super) struct State {
    pub(super) topics: Slab<TopicState>,
    pub(super) topic_of: HashMap<JobId, usize>,
    pub(super) followers: HashMap<String, Vec<usize>>,
    pub(super) connections: Slab<ConnectionState>,
    /// Topics with a delivery in progress, which take turns. A topic that was removed meanwhile can
    /// still be in the queue.
    deliveries: VecDeque<usize>,
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
    delivery: Option<Delivery>,
}

/// A delivery of a topic's newest version to its subscribers, in decreasing order of their positions.
///
/// If a subscriber is removed meanwhile, another one takes its position. That one is then offered the
/// version twice, or has a position that is still to come, but it is never left out.
struct Delivery {
    /// Number of subscribers that are still to come: those at smaller positions.
    remaining: usize,
    /// Whether a newer version arrived, so that all subscribers must be visited again.
    is_outdated: bool,
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
            deliveries: VecDeque::new(),
            health,
        });
        let delivery_started = Rc::new(Notify::new());
        let shard = Rc::new(Self {
            subscriptions,
            index,
            state,
            delivery_started: Rc::clone(&delivery_started),
        });
        let weak = Rc::downgrade(&shard);
        tokio::task::spawn_local(async move {
            let mut messages = Vec::new();
            let mut cleanup = tokio::time::interval(FINISHED_TOPIC_TTL / 2);
            let mut is_delivering = false;
            loop {
                tokio::select! {
                    biased;
                    _ = cleanup.tick() => {
                        let Some(shard) = weak.upgrade() else { return };
                        shard.drop_finished_topics();
                    }
                    received = queue.recv_many(&mut messages, SHARD_QUEUE_CAPACITY) => {
                        if received == 0 {
                            return;
                        }
                    }
                    () = std::future::ready(()), if is_delivering => {}
                    () = delivery_started.notified() => {}
                }
                let Some(shard) = weak.upgrade() else { return };
                // A turn can need more socket writes than Tokio's cooperative budget allows. Writes
                // beyond the budget would look like blocked sockets.
                let turn = async { shard.run_turn(&mut messages) };
                is_delivering = tokio::task::unconstrained(turn).await;
                drop(shard);
                tokio::task::yield_now().await;
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

    /// Drains `messages` and continues the deliveries. Returns whether deliveries are in progress.
    fn run_turn(&self, messages: &mut Vec<ShardMessage>) -> bool {
        let mut state = self.state.borrow_mut();
        let mut health = None;
        for message in messages.drain(..) {
            match message {
                ShardMessage::JobChanged(frame) => state.start_delivery(self, &frame),
                ShardMessage::HealthChanged(latest) => health = Some(latest),
            }
        }
        if let Some(health) = health.filter(|latest| !latest.is_same_state(state.health)) {
            // The connections receive every version that preceded the change of health first.
            while state.continue_deliveries(MAX_DELIVERIES_PER_TURN) {}
            state.health = health;
            for (_, connection) in &state.connections {
                connection.sink.health_changed(health);
            }
        }
        state.continue_deliveries(MAX_DELIVERIES_PER_TURN)
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

impl State {
    /// Starts the delivery of a version to all subscribers of the job and its owner, if it is newer
    /// than the last.
    pub(super) fn start_delivery(&mut self, shard: &Shard, frame: &Arc<Frame>) {
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
                match &mut entry.delivery {
                    Some(delivery) => delivery.is_outdated = true,
                    None => {
                        entry.delivery = Some(Delivery::to(&entry.subscribers));
                        self.deliveries.push_back(topic);
                    }
                }
            }
        }
    }

    /// Performs up to `limit` of the deliveries in progress. Returns whether some remain.
    pub(super) fn continue_deliveries(&mut self, limit: usize) -> bool {
        let mut left = limit;
        while left > 0 {
            let Some(topic) = self.deliveries.pop_front() else {
                return false;
            };
            left = left.saturating_sub(self.continue_delivery(topic, left).max(1));
        }
        !self.deliveries.is_empty()
    }

    /// Delivers a topic's newest version to up to `limit` subscribers. Returns their number.
    fn continue_delivery(&mut self, topic: usize, limit: usize) -> usize {
        let Some(entry) = self.topics.get_mut(topic) else {
            return 0;
        };
        let (Some(delivery), Some(frame)) = (&mut entry.delivery, &entry.newest) else {
            return 0;
        };
        let end = delivery.remaining.min(entry.subscribers.len());
        let start = end.saturating_sub(limit);
        deliver_to(&mut self.connections, &entry.subscribers[start..end], frame);
        delivery.remaining = start;
        if start == 0 {
            let is_outdated = delivery.is_outdated;
            entry.delivery = is_outdated.then(|| Delivery::to(&entry.subscribers));
        }
        if entry.delivery.is_some() {
            self.deliveries.push_back(topic);
        }
        end - start
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
            delivery: None,
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

impl Delivery {
    fn to(subscribers: &[SubscriberRef]) -> Self {
        Self {
            remaining: subscribers.len(),
            is_outdated: false,
        }
    }
}

/// Sends `frame` to each subscriber, or marks it as pending.
///
/// A socket write evicts the state of the next connection from the CPU cache. Reading the state of a
/// batch first lets the cache misses overlap.
fn deliver_to(
    connections: &mut Slab<ConnectionState>,
    subscribers: &[SubscriberRef],
    frame: &Arc<Frame>,
) {
    for batch in subscribers.chunks(PREFETCH_BATCH) {
        let mut can_write = [false; PREFETCH_BATCH];
        for (subscriber, can_write) in batch.iter().zip(&mut can_write) {
            *can_write = connections[subscriber.connection].can_write_now(subscriber.slot);
        }
        for (subscriber, can_write) in batch.iter().zip(can_write) {
            let connection = &mut connections[subscriber.connection];
            if can_write {
                connection.deliver(subscriber.slot, frame);
            } else {
                connection.enqueue(subscriber.slot, frame);
            }
        }
    }
}
