//! The subscriptions of one connection and its pending frames.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use slab::Slab;

use super::sink::Sink;
use crate::protocol::Frame;

/// The subscriptions of a connection and the queue of those with a pending frame.
pub(super) struct ConnectionState {
    pub(super) sink: Rc<dyn Sink>,
    pub(super) subscriptions: Slab<Subscription>,
    pub(super) pending: VecDeque<usize>,
    pub(super) followed_owner: Option<String>,
    pub(super) explicit_count: usize,
}

/// A connection's subscription to a topic.
pub(super) struct Subscription {
    pub(super) topic: usize,
    /// Index in the topic's `subscribers`.
    pub(super) position: usize,
    /// Highest version delivered to the connection.
    pub(super) delivered_version: u64,
    pub(super) is_pending: bool,
    /// Whether delivery waits until the caller's permission has been checked.
    pub(super) is_paused: bool,
    /// Whether the job was requested by id, not through an owner subscription.
    pub(super) is_explicit: bool,
}

/// The origin of a subscription.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SubscriptionKind {
    /// Requested by job id. Starts paused.
    Explicit,
    /// Part of an owner subscription. Starts active.
    Implicit,
}

impl ConnectionState {
    /// Returns the slots of all subscriptions that match `predicate`.
    pub(super) fn slots(&self, predicate: impl Fn(&Subscription) -> bool) -> Vec<usize> {
        self.subscriptions
            .iter()
            .filter(|(_, subscription)| predicate(subscription))
            .map(|(slot, _)| slot)
            .collect()
    }

    pub(super) fn make_implicit(&mut self, slot: usize) {
        let subscription = &mut self.subscriptions[slot];
        self.explicit_count -= usize::from(subscription.is_explicit);
        subscription.is_explicit = false;
    }

    pub(super) fn can_write_now(&self, slot: usize) -> bool {
        let subscription = &self.subscriptions[slot];
        !subscription.is_paused
            && !subscription.is_pending
            && self.pending.is_empty()
            && self.sink.is_ready()
    }

    /// Sends the frame if it is newer and the sink accepts it now. Otherwise marks it as pending.
    pub(super) fn deliver(&mut self, slot: usize, frame: &Arc<Frame>) {
        let subscription = &mut self.subscriptions[slot];
        let is_first = self.pending.is_empty() && !subscription.is_paused;
        let is_newer = subscription.delivered_version < frame.job().version;
        if is_first && is_newer && self.sink.try_send(frame) {
            subscription.delivered_version = frame.job().version;
        } else {
            self.enqueue(slot, frame);
        }
    }

    /// Marks the frame as pending if it is newer than the delivered version.
    pub(super) fn enqueue(&mut self, slot: usize, frame: &Arc<Frame>) {
        let subscription = &mut self.subscriptions[slot];
        if subscription.is_paused
            || subscription.is_pending
            || subscription.delivered_version >= frame.job().version
        {
            return;
        }
        subscription.is_pending = true;
        self.pending.push_back(slot);
        self.sink.notify_pending();
    }
}
