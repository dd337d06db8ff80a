//! The usage of a subject across all its connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::Instant;

use super::release;
use super::table::Usage;
use crate::rate_limit::Rate;

/// Usage of one subject.
#[derive(Debug, Default)]
pub(super) struct SubjectUsage {
    pub(super) connections: AtomicUsize,
    pub(super) subscriptions: AtomicUsize,
    pub(super) downloads: AtomicUsize,
    pub(super) messages: Rate,
    pub(super) ids: Rate,
    pub(super) requests: Rate,
}

impl Usage for SubjectUsage {
    fn is_idle(&self, now: Instant) -> bool {
        self.messages.is_idle(now) && self.ids.is_idle(now) && self.requests.is_idle(now)
    }
}

/// A connection of a subject. Dropping it releases the connection and its subscriptions.
#[derive(Debug)]
pub struct SubjectPermit {
    /// `None` for a subject without limits.
    pub(super) usage: Option<Arc<SubjectUsage>>,
    /// Number of subscriptions by id that are reserved for this connection.
    pub(super) subscriptions: usize,
}

impl SubjectPermit {
    /// Returns whether the subject has no limits.
    pub fn is_unlimited(&self) -> bool {
        self.usage.is_none()
    }

    /// Reserves up to `wanted` further subscriptions by id. Returns the number of reserved ones.
    pub(super) fn reserve_up_to(&mut self, wanted: usize, max: usize) -> usize {
        let Some(usage) = &self.usage else {
            return wanted;
        };
        let mut granted = 0;
        let reserve = |used: usize| {
            granted = wanted.min(max.saturating_sub(used));
            Some(used + granted)
        };
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let updated = usage.subscriptions.fetch_update(set, fetch, reserve);
        debug_assert!(updated.is_ok());
        self.subscriptions += granted;
        granted
    }

    /// Sets the reserved subscriptions to `actual`, also beyond the limit: subscriptions of an
    /// administrator stay when the token is renewed without that scope.
    pub fn settle_subscriptions(&mut self, actual: usize) {
        if let Some(usage) = &self.usage {
            usage.subscriptions.fetch_add(actual, Ordering::Relaxed);
            release(&usage.subscriptions, self.subscriptions);
            self.subscriptions = actual;
        }
    }
}

impl Drop for SubjectPermit {
    fn drop(&mut self) {
        if let Some(usage) = &self.usage {
            release(&usage.subscriptions, self.subscriptions);
            release(&usage.connections, 1);
        }
    }
}
