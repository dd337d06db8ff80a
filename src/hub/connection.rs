//! The handle through which a connection subscribes and receives frames.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use slab::Slab;

use super::connection_state::{ConnectionState, Subscription, SubscriptionKind};
use super::shard::{Shard, State, SubscriberRef};
use super::sink::{FeedHealth, Sink};
use crate::job::{Job, JobId, Topic};
use crate::protocol::Frame;

/// A connection of the current thread's shard. Dropping it ends all its subscriptions.
pub struct Connection {
    shard: Rc<Shard>,
    key: usize,
}

impl Connection {
    /// Opens a connection without subscriptions. Frames are sent to `sink`.
    #[must_use]
    pub fn open(shard: &Rc<Shard>, sink: Rc<dyn Sink>) -> Self {
        let connection = ConnectionState {
            sink,
            // Most connections subscribe to one job.
            subscriptions: Slab::with_capacity(1),
            pending: VecDeque::new(),
            followed_owner: None,
            explicit_count: 0,
        };
        let key = shard.state.borrow_mut().connections.insert(connection);
        Self {
            shard: Rc::clone(shard),
            key,
        }
    }

    /// Returns the health that was last sent to the connections of this shard. Later changes are sent
    /// to this connection as well.
    #[must_use]
    pub fn health(&self) -> FeedHealth {
        self.shard.state.borrow().health
    }

    /// Subscribes to `job` without delivering frames.
    ///
    /// The caller must read the current version and then call [`Connection::activate`] or
    /// [`Connection::reject`].
    pub fn subscribe_paused(&self, job: &JobId) {
        let mut state = self.shard.state.borrow_mut();
        let topic = state.topic(&self.shard, job);
        match state.subscription_slot(self.key, topic) {
            Some(slot) => {
                let connection = &mut state.connections[self.key];
                let subscription = &mut connection.subscriptions[slot];
                connection.explicit_count += usize::from(!subscription.is_explicit);
                subscription.is_explicit = true;
            }
            None => {
                state.attach(self.key, topic, SubscriptionKind::Explicit);
            }
        }
    }

    /// Starts delivery of versions newer than `known`, beginning with `newest`, the version just read.
    pub fn activate(&self, newest: Arc<Job>, known: u64) {
        let mut state = self.shard.state.borrow_mut();
        let Some(slot) = state.slot_of(self.key, &newest.id) else {
            return;
        };
        // Paused until `known` is recorded. Otherwise delivery to the topic could send a version that
        // the client already has.
        state.connections[self.key].subscriptions[slot].is_paused = true;
        state.start_delivery(&self.shard, &Arc::new(Frame::new(newest)));
        let subscription = &mut state.connections[self.key].subscriptions[slot];
        subscription.is_paused = false;
        subscription.delivered_version = known;
        let topic = subscription.topic;
        if let Some(frame) = state.topics[topic].newest.clone() {
            state.connections[self.key].deliver(slot, &frame);
        }
        // Ends the delivery here if this connection is the only subscriber.
        if state.continue_deliveries(1) {
            self.shard.delivery_started.notify_one();
        }
    }

    /// Ends a paused subscription, because the job does not exist or the caller may not see it.
    pub fn reject(&self, job: &JobId) {
        self.end(job, |subscription| subscription.is_paused);
    }

    /// Ends an explicit subscription. The job is still delivered if an owner subscription covers it.
    pub fn unsubscribe(&self, job: &JobId) {
        self.end(job, |subscription| subscription.is_explicit);
    }

    fn end(&self, job: &JobId, is_ended: impl Fn(&Subscription) -> bool) {
        let mut state = self.shard.state.borrow_mut();
        let Some(slot) = state.slot_of(self.key, job) else {
            return;
        };
        if !is_ended(&state.connections[self.key].subscriptions[slot]) {
            return;
        }
        if state.is_covered_by_owner_subscription(self.key, slot) {
            state.connections[self.key].make_implicit(slot);
        } else {
            state.detach(&self.shard, self.subscriber(slot));
            // If the owner subscription does cover the job, its next version attaches it again.
            if let Some(&topic) = state.topic_of.get(job) {
                state.topics[topic].includes_followers = false;
            }
        }
    }

    /// Subscribes to all jobs of an owner and replaces a subscription to another owner.
    ///
    /// The caller must read the existing jobs next and pass them to [`Connection::backfill`].
    pub fn subscribe_owner(&self, owner: &str) {
        let mut state = self.shard.state.borrow_mut();
        if state.connections[self.key].followed_owner.as_deref() == Some(owner) {
            return;
        }
        state.unfollow(&self.shard, self.key);
        self.shard
            .subscriptions
            .add(Topic::Owner(owner.to_owned()), self.shard.index);
        state.connections[self.key].followed_owner = Some(owner.to_owned());
        state
            .followers
            .entry(owner.to_owned())
            .or_default()
            .push(self.key);
        for (_, topic) in &mut state.topics {
            topic.includes_followers = false;
        }
    }

    /// Delivers a job of the followed owner that was just read, if it is newer than `known` and newer
    /// than the version already delivered.
    pub fn backfill(&self, newest: Arc<Job>, known: u64) {
        let delivered = {
            let mut state = self.shard.state.borrow_mut();
            let topic = state.topic(&self.shard, &newest.id);
            match state.subscription_slot(self.key, topic) {
                Some(slot) => state.connections[self.key].subscriptions[slot].delivered_version,
                None => {
                    state.attach(self.key, topic, SubscriptionKind::Implicit);
                    0
                }
            }
        };
        self.activate(newest, known.max(delivered));
    }

    /// Ends the owner subscription. Explicit subscriptions continue.
    pub fn unsubscribe_owner(&self) {
        let mut state = self.shard.state.borrow_mut();
        state.unfollow(&self.shard, self.key);
        let implicit = state.connections[self.key].slots(|subscription| !subscription.is_explicit);
        self.detach_all(&mut state, &implicit);
    }

    /// Returns the next pending frame: the newest version of the job that has been pending longest.
    #[must_use]
    pub fn next_frame(&self) -> Option<Arc<Frame>> {
        let mut state = self.shard.state.borrow_mut();
        let state = &mut *state;
        let connection = state.connections.get_mut(self.key)?;
        loop {
            let slot = connection.pending.pop_front()?;
            let subscription = &mut connection.subscriptions[slot];
            subscription.is_pending = false;
            let Some(frame) = &state.topics[subscription.topic].newest else {
                continue;
            };
            if frame.job().version > subscription.delivered_version {
                subscription.delivered_version = frame.job().version;
                return Some(Arc::clone(frame));
            }
        }
    }

    /// Returns the number of explicit subscriptions.
    #[must_use]
    pub fn explicit_subscriptions(&self) -> usize {
        self.shard.state.borrow().connections[self.key].explicit_count
    }

    /// Returns whether the connection has an explicit subscription to `job`.
    #[must_use]
    pub fn is_subscribed(&self, job: &JobId) -> bool {
        let state = self.shard.state.borrow();
        let slot = state.slot_of(self.key, job);
        slot.is_some_and(|slot| state.connections[self.key].subscriptions[slot].is_explicit)
    }

    /// Ends the subscriptions to all jobs for which `may_see` returns false, given job id and owner.
    pub fn retain_visible(&self, may_see: impl Fn(&JobId, &str) -> bool) {
        let mut state = self.shard.state.borrow_mut();
        let denied: Vec<usize> = {
            let topics = &state.topics;
            let is_denied = |subscription: &Subscription| {
                let newest = topics[subscription.topic].newest.as_ref();
                newest.is_some_and(|frame| !may_see(&frame.job().id, &frame.job().owner))
            };
            state.connections[self.key].slots(is_denied)
        };
        self.detach_all(&mut state, &denied);
    }

    fn detach_all(&self, state: &mut State, slots: &[usize]) {
        for &slot in slots {
            state.detach(&self.shard, self.subscriber(slot));
        }
    }

    fn subscriber(&self, slot: usize) -> SubscriberRef {
        SubscriberRef {
            connection: self.key,
            slot,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.shard.state.borrow_mut();
        state.unfollow(&self.shard, self.key);
        let all = state.connections[self.key].slots(|_| true);
        self.detach_all(&mut state, &all);
        state.connections.remove(self.key);
    }
}
