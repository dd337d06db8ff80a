//! A connection's place in its shard: what it asks to see, and what it is given.
//!
//! Invariant: dropping it is unsubscribing; nothing of it is left.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::FeedHealth;
use slab::Slab;

use super::shard::{ConnectionState, Shard, Sink, SubscriberRef, Subscription};
use crate::job::{Job, JobId, Topic};
use crate::protocol::Frame;

/// A connection's place in its shard; dropping it ends all its watches.
pub struct Connection {
    shard: Rc<Shard>,
    key: usize,
}

impl Connection {
    /// A new connection of this thread that watches nothing yet.
    #[must_use]
    pub fn open(shard: &Rc<Shard>, sink: Rc<dyn Sink>) -> Self {
        let entry = ConnectionState {
            sink,
            // Most watch one job.
            watches: Slab::with_capacity(1),
            pending: VecDeque::new(),
            followed_owner: None,
            explicit_count: 0,
        };
        let key = shard.state.borrow_mut().connections.insert(entry);
        Self {
            shard: Rc::clone(shard),
            key,
        }
    }

    /// What those who were here before have been told of the store last; its next change is told to
    /// this one, too.
    #[must_use]
    pub fn condition(&self) -> FeedHealth {
        let state = self.shard.state.borrow();
        state.condition.unwrap_or(FeedHealth::Healthy)
    }

    /// Watches a job without being shown anything of it yet: the caller reads the newest version
    /// next, and then says [`Connection::release`] or [`Connection::refuse`].
    pub fn subscribe_paused(&self, job: &JobId) {
        let mut state = self.shard.state.borrow_mut();
        let topic = match state.topic_of.get(job) {
            Some(&topic) => topic,
            None => state.open_topic(&self.shard, job),
        };
        match state.subscription_slot(self.key, topic) {
            Some(slot) => {
                let entry = &mut state.connections[self.key];
                let watch = &mut entry.watches[slot];
                entry.explicit_count += usize::from(!watch.is_explicit);
                watch.is_explicit = true;
            }
            None => {
                state.attach(self.key, topic, true, true);
            }
        }
    }

    /// Lets a watch be shown what is newer than `known`, from the version just read on.
    pub fn activate(&self, newest: Arc<Job>, known: u64) {
        let mut state = self.shard.state.borrow_mut();
        let Some(slot) = state.slot_of(self.key, &newest.id) else {
            return;
        };
        // Held until it is known what it has: or else the others' way would show it the same twice.
        state.connections[self.key].watches[slot].is_paused = true;
        state.deliver(&self.shard, &Arc::new(Frame::new(newest)));
        let entry = &mut state.connections[self.key];
        let watch = &mut entry.watches[slot];
        watch.is_paused = false;
        watch.delivered_version = known;
        let topic = watch.topic;
        if let Some(frame) = state.topics[topic].newest.clone() {
            state.connections[self.key].deliver(slot, &frame);
        }
    }

    /// Ends a held watch: there is no such job for this caller.
    pub fn reject(&self, job: &JobId) {
        self.end(job, |watch| watch.is_paused);
    }

    /// Ends a watch that was asked for by id; one by the feed goes on.
    pub fn unsubscribe(&self, job: &JobId) {
        self.end(job, |watch| watch.is_explicit);
    }

    fn end(&self, job: &JobId, which: impl Fn(&Subscription) -> bool) {
        let mut state = self.shard.state.borrow_mut();
        let Some(slot) = state.slot_of(self.key, job) else {
            return;
        };
        if !which(&state.connections[self.key].watches[slot]) {
            return;
        }
        if state.is_covered_by_owner_subscription(self.key, slot) {
            state.connections[self.key].make_implicit(slot);
        } else {
            let connection = self.key;
            state.detach(&self.shard, SubscriberRef { connection, slot });
            // Should it be one of the feed's after all, its next version brings it back.
            if let Some(&topic) = state.topic_of.get(job) {
                state.topics[topic].includes_followers = false;
            }
        }
    }

    /// Watches all jobs of an owner from now on; what there is already, the caller reads next and
    /// hands to [`Connection::catch_up`].
    pub fn subscribe_owner(&self, owner: &str) {
        let mut state = self.shard.state.borrow_mut();
        if state.connections[self.key].followed_owner.as_deref() == Some(owner) {
            return;
        }
        state.unfollow(&self.shard, self.key);
        self.shard
            .hub
            .interest
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

    /// Shows a job of the followed owner, as just read, if it is newer than `known` and than what
    /// the feed has shown of it already.
    pub fn backfill(&self, newest: Arc<Job>, known: u64) {
        let shown = {
            let mut state = self.shard.state.borrow_mut();
            let topic = match state.topic_of.get(&newest.id) {
                Some(&topic) => topic,
                None => state.open_topic(&self.shard, &newest.id),
            };
            match state.subscription_slot(self.key, topic) {
                Some(slot) => state.connections[self.key].watches[slot].delivered_version,
                None => {
                    state.attach(self.key, topic, true, false);
                    0
                }
            }
        };
        self.activate(newest, known.max(shown));
    }

    /// Follows nobody any more; jobs that were asked for by id go on.
    pub fn unsubscribe_owner(&self) {
        let mut state = self.shard.state.borrow_mut();
        state.unfollow(&self.shard, self.key);
        let watches = &state.connections[self.key].watches;
        let fed: Vec<usize> = watches
            .iter()
            .filter(|(_, watch)| !watch.is_explicit)
            .map(|(slot, _)| slot)
            .collect();
        for slot in fed {
            state.detach(
                &self.shard,
                SubscriberRef {
                    connection: self.key,
                    slot,
                },
            );
        }
    }

    /// The next frame to be sent: the newest version of the job that has waited longest.
    #[must_use]
    pub fn next_frame(&self) -> Option<Arc<Frame>> {
        let mut state = self.shard.state.borrow_mut();
        let state = &mut *state;
        let entry = state.connections.get_mut(self.key)?;
        loop {
            let slot = entry.pending.pop_front()?;
            let watch = &mut entry.watches[slot];
            watch.is_pending = false;
            let Some(frame) = &state.topics[watch.topic].newest else {
                continue;
            };
            if frame.job().version > watch.delivered_version {
                watch.delivered_version = frame.job().version;
                return Some(Arc::clone(frame));
            }
        }
    }

    /// Whether frames wait to be sent.
    #[must_use]
    pub fn has_next(&self) -> bool {
        let state = self.shard.state.borrow();
        !state.connections[self.key].pending.is_empty()
    }

    /// How many jobs are watched by id.
    #[must_use]
    pub fn explicit_subscriptions(&self) -> usize {
        self.shard.state.borrow().connections[self.key].explicit_count
    }

    /// Whether the job is watched by id.
    #[must_use]
    pub fn is_subscribed(&self, job: &JobId) -> bool {
        let state = self.shard.state.borrow();
        let slot = state.slot_of(self.key, job);
        slot.is_some_and(|slot| state.connections[self.key].watches[slot].is_explicit)
    }

    /// Ends every watch over a job that `may_see` denies, given its id and owner.
    pub fn retain_visible(&self, may_see: impl Fn(&JobId, &str) -> bool) {
        let mut state = self.shard.state.borrow_mut();
        let denied: Vec<usize> = {
            let topics = &state.topics;
            let is_denied = |watch: &Subscription| match &topics[watch.topic].newest {
                Some(frame) => !may_see(&frame.job().id, &frame.job().owner),
                None => false,
            };
            let watches = &state.connections[self.key].watches;
            watches
                .iter()
                .filter(|(_, watch)| is_denied(watch))
                .map(|(slot, _)| slot)
                .collect()
        };
        for slot in denied {
            state.detach(
                &self.shard,
                SubscriberRef {
                    connection: self.key,
                    slot,
                },
            );
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.shard.state.borrow_mut();
        state.unfollow(&self.shard, self.key);
        let slots: Vec<usize> = state.connections[self.key]
            .watches
            .iter()
            .map(|(slot, _)| slot)
            .collect();
        for slot in slots {
            state.detach(
                &self.shard,
                SubscriberRef {
                    connection: self.key,
                    slot,
                },
            );
        }
        state.connections.remove(self.key);
    }
}
