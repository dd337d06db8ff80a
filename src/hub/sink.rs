//! The interface between the hub and a transport.

use crate::protocol::Frame;
use crate::time::Time;

/// Whether delivered documents are known to be current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedHealth {
    /// Documents are current.
    Healthy,
    /// The store has been unavailable since this time.
    Degraded(Time),
}

impl FeedHealth {
    /// Returns whether both are healthy or both are degraded. Ignores the start time of an outage.
    pub(super) fn is_same_state(self, other: Self) -> bool {
        matches!(self, Self::Healthy) == matches!(other, Self::Healthy)
    }
}

/// Destination for a connection's frames.
///
/// The shard calls it while holding its own state, so an implementation must not call back into the
/// shard.
pub trait Sink {
    /// Sends the frame if that is possible without waiting, and returns whether it was sent.
    ///
    /// If not, the sink must request the pending frame later with
    /// [`Connection::next_frame`](super::Connection::next_frame). By then a newer version may have
    /// replaced it.
    fn try_send(&self, frame: &Frame) -> bool;

    /// Returns whether [`Sink::try_send`] would probably succeed now.
    ///
    /// The shard calls this for a batch of connections first, so that their memory is loaded together.
    fn is_ready(&self) -> bool {
        true
    }

    /// Signals that frames are pending. The sink must request them with
    /// [`Connection::next_frame`](super::Connection::next_frame).
    fn notify_pending(&self);

    /// Signals that the store became unavailable or recovered.
    fn health_changed(&self, health: FeedHealth);
}
