//! The change feed from a store to its node.

use std::sync::Arc;

use async_trait::async_trait;

use super::Error;
use crate::job::Topic;
use crate::protocol::Frame;

/// Callback for store events. It must not block.
///
/// The store calls it in commit order for each job.
pub type EventHandler = Arc<dyn Fn(StoreEvent) + Send + Sync>;

/// Callback that returns whether a topic still has subscribers on this node. It must not block.
pub type SubscriptionFilter = Arc<dyn Fn(&Topic) -> bool + Send + Sync>;

/// The node's callbacks.
#[derive(Clone)]
pub struct ChangeListener {
    /// Receives the changes of subscribed topics and the state of the feed.
    pub on_event: EventHandler,
    /// Decides whether the store may end the subscription to a topic.
    pub is_subscribed: SubscriptionFilter,
}

/// A notification from the store to its node.
#[derive(Clone, Debug)]
pub enum StoreEvent {
    /// A job has a new version.
    JobChanged(Arc<Frame>),
    /// The change feed is interrupted. Changes may be missed from now on.
    Unavailable,
    /// The change feed works again. Subscribed jobs must be read again.
    Recovered,
    /// A shared value changed. Read it with
    /// [`shared_states`](super::SharedState::shared_states).
    SharedStateChanged,
}

/// Delivery of committed changes to this node's [`ChangeListener`].
///
/// The default implementation is for engines that deliver every change without a subscription.
#[async_trait]
pub trait ChangeSource: Send + Sync + 'static {
    /// Subscribes this node to `topics`.
    ///
    /// Every change that any node commits after this call returns is passed to
    /// [`ChangeListener::on_event`], in commit order for each job. The subscription lasts while
    /// [`ChangeListener::is_subscribed`] returns true. To avoid gaps, attach the connection first,
    /// then subscribe, then read.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the subscription was not confirmed in time.
    async fn subscribe(&self, _topics: &[Topic]) -> Result<(), Error> {
        Ok(())
    }

    /// Ends the subscriptions to those of `topics` that have no subscribers, without waiting.
    ///
    /// Without this call, a topic stays subscribed for some seconds after its last subscriber has
    /// left, in case a client reconnects.
    fn release(&self, _topics: Vec<Topic>) {}

    /// Returns the number of channels that this node is subscribed to, or `None` if every change
    /// reaches the node without a subscription.
    fn channels(&self) -> Option<usize> {
        None
    }

    /// Returns whether changes can be lost without a [`StoreEvent::Unavailable`]. If so, reading
    /// subscribed jobs periodically finds what was missed.
    fn is_lossy(&self) -> bool {
        false
    }
}
