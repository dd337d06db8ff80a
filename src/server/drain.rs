//! Graceful shutdown of this node.
//!
//! Draining starts once and never stops. Each WebSocket closes at a random time within a window, so
//! that clients do not reconnect all at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::time::random_jitter;

/// Average time between two clients that reconnect, if the drain time allows it.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(1);

/// Minimum time before a client reconnects; the next process needs it to start.
const MIN_RETRY_AFTER: Duration = Duration::from_millis(300);

/// The drain state of this node, and its open connections: WebSockets, event streams and long polls.
///
/// The clients of all of them reconnect, so all of them determine the time in which WebSockets close.
pub struct Drain {
    started: CancellationToken,
    connections: Arc<Semaphore>,
    max_connections: usize,
    tasks: TaskTracker,
    max_close_window: Duration,
}

impl Drain {
    /// Creates the state for at most `max_connections`. WebSockets close within half of `time`.
    pub fn new(time: Duration, max_connections: usize) -> Self {
        let max_connections = max_connections.min(Semaphore::MAX_PERMITS);
        Self {
            started: CancellationToken::new(),
            connections: Arc::new(Semaphore::new(max_connections)),
            max_connections,
            tasks: TaskTracker::new(),
            max_close_window: time / 2,
        }
    }

    /// Starts draining.
    pub fn start(&self) {
        self.started.cancel();
    }

    /// Returns whether draining has started.
    pub fn is_draining(&self) -> bool {
        self.started.is_cancelled()
    }

    /// Waits until draining has started.
    pub async fn started(&self) {
        self.started.cancelled().await;
    }

    /// Spawns the task of a WebSocket on this thread. [`Drain::wait_closed`] waits for it.
    pub fn track(&self, socket: impl Future<Output = ()> + 'static) {
        self.tasks.spawn_local(socket);
    }

    /// Waits until all WebSockets are closed. To be called when no new ones are accepted.
    pub async fn wait_closed(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Returns a permit for an open connection, or `None` if the maximum is open.
    pub fn try_acquire(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.connections).try_acquire_owned().ok()
    }

    /// Returns the time in which all WebSockets close.
    fn close_window(&self) -> Duration {
        let open = self.max_connections - self.connections.available_permits();
        let open = u32::try_from(open).unwrap_or(u32::MAX);
        (RECONNECT_INTERVAL.saturating_mul(open)).min(self.max_close_window)
    }

    /// Returns the random time after which a WebSocket closes.
    pub fn close_delay(&self) -> Duration {
        random_jitter(self.close_window(), 0.0..1.0)
    }

    /// Returns the random time after which a client should reconnect: about one second, or longer with
    /// many open connections.
    pub fn retry_after(&self) -> Duration {
        let range = self.close_window().max(Duration::from_secs(1));
        MIN_RETRY_AFTER + random_jitter(range, 0.0..1.0)
    }
}
