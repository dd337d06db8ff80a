//! Going away in good order.
//!
//! Invariant: draining begins once and never ends; whoever holds a connection open asks here when
//! to let go, and gets a moment of its own, so that clients do not come back all at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::time::random_jitter;

/// Between two farewells on average, while the drain time allows.
const CLOSE_INTERVAL_PER_SOCKET: Duration = Duration::from_millis(1);

/// What a client is told to wait at least: the hub that follows has to start.
const MIN_RETRY_AFTER: Duration = Duration::from_millis(300);

/// Whether this node is going away.
pub struct Drain {
    started: CancellationToken,
    sockets: AtomicUsize,
    tasks: TaskTracker,
    longest: Duration,
}

impl Drain {
    /// A node that stays, until [`Drain::begin`]; then sockets let go within half of `time`.
    pub fn new(time: Duration) -> Self {
        Self {
            started: CancellationToken::new(),
            sockets: AtomicUsize::new(0),
            tasks: TaskTracker::new(),
            longest: time / 2,
        }
    }

    /// From now on this node is going away.
    pub fn start(&self) {
        self.started.cancel();
    }

    /// Whether it is.
    pub fn is_draining(&self) -> bool {
        self.started.is_cancelled()
    }

    /// Waits until it is.
    pub async fn begun(&self) {
        self.started.cancelled().await;
    }

    /// Has a socket's task run on this thread, to be waited for by [`Drain::is_over`].
    pub fn track(&self, socket: impl Future<Output = ()> + 'static) {
        self.tasks.spawn_local(socket);
    }

    /// Waits until the last socket has gone; to be said once no more are let in.
    pub async fn wait_closed(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Counts a socket in, unless there are `most` already.
    pub fn try_acquire(&self, most: usize) -> bool {
        let more = |count: usize| (count < most).then_some(count + 1);
        self.sockets
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok()
    }

    /// Counts a socket out.
    pub fn release(&self) {
        self.sockets.fetch_sub(1, Ordering::Relaxed);
    }

    /// How long the farewells take in all.
    fn close_window(&self) -> Duration {
        let sockets = u32::try_from(self.sockets.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        (CLOSE_INTERVAL_PER_SOCKET.saturating_mul(sockets)).min(self.longest)
    }

    /// When this socket is to let go, from now.
    pub fn close_delay(&self) -> Duration {
        random_jitter(self.close_window(), 0.0..1.0)
    }

    /// When its client is to come back, from then: a second, and longer the more there are.
    pub fn retry_after(&self) -> Duration {
        let range = self.close_window().max(Duration::from_secs(1));
        MIN_RETRY_AFTER + random_jitter(range, 0.0..1.0)
    }
}
