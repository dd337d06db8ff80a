//! The byte stream of a client connection, with a deadline for each request head.
//!
//! The HTTP library limits the time for the first head only. This stream sets a deadline at the
//! first byte of every head, and removes it when the request is passed to its handler. A connection
//! that is idle between two requests is closed after [`KEEP_ALIVE`].

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::accept::{AcceptedConnection, Acceptor, ConnectionSlot};
use super::byte_stream::Stream;
use crate::server::error::Problem;
use crate::server::limits::ClientAddress;

/// Time after which a connection without a request is closed.
pub const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// Time during which the rest of a body is read and discarded after an early response. Closing the
/// connection at once would reset it, and the client could lose the response.
pub const UNREAD_BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum number of bytes that the stream returns before it yields, so that the HTTP library
/// processes them. Without this limit, the library buffers 128 KiB for each connection whose client
/// sends fast.
const MAX_UNPROCESSED_BYTES: usize = 16 << 10;

/// State of a connection.
#[derive(Clone, Copy)]
enum Phase {
    /// No byte of the next request has arrived.
    Idle { until: Instant },
    /// The head of a request is being received.
    Head { until: Instant },
    /// A handler processes the request and enforces its own time limits.
    Handling,
    /// The last response is complete, and the client may still send the body of its request.
    Closing { until: Instant },
}

/// The permits of an open connection. Dropping them releases the connection.
pub struct ConnectionPermits {
    /// The address of the client.
    pub address: ClientAddress,
    _slot: ConnectionSlot,
}

/// State of a client connection, which its requests share.
pub struct ClientConnection {
    acceptor: Arc<Acceptor>,
    /// `None` after an upgrade to another protocol.
    permits: RefCell<Option<ConnectionPermits>>,
    is_over_capacity: bool,
    phase: Cell<Phase>,
    /// Wakes the task of the connection while a handler processes the request.
    waker: Cell<Option<Waker>>,
}

impl ClientConnection {
    /// Creates a connection that waits for its first head.
    fn new(acceptor: Arc<Acceptor>, address: ClientAddress, slot: ConnectionSlot) -> Rc<Self> {
        let is_over_capacity = slot.is_over_capacity();
        let until = Instant::now() + acceptor.request_timeout(is_over_capacity);
        Rc::new(Self {
            is_over_capacity,
            acceptor,
            permits: RefCell::new(Some(ConnectionPermits {
                address,
                _slot: slot,
            })),
            phase: Cell::new(Phase::Head { until }),
            waker: Cell::new(None),
        })
    }

    /// Returns whether the connection exceeds the limit of its listener. It then serves one health
    /// check only.
    pub fn is_over_capacity(&self) -> bool {
        self.is_over_capacity
    }

    /// Counts a request that is rejected because the node is full, and returns the problem.
    pub(super) fn over_capacity(&self) -> Problem {
        self.acceptor.over_capacity()
    }

    /// Returns the address of the client, or `None` after an upgrade to another protocol.
    pub fn address(&self) -> Option<ClientAddress> {
        let permits = self.permits.borrow();
        permits.as_ref().map(|permits| permits.address.clone())
    }

    /// Records that a request is in progress until the returned guard is dropped.
    pub(super) fn begin_request(self: Rc<Self>) -> RequestInProgress {
        self.phase.set(Phase::Handling);
        RequestInProgress {
            client: self,
            is_last: false,
        }
    }

    fn bytes_received(&self) {
        if matches!(self.phase.get(), Phase::Idle { .. }) {
            let until = Instant::now() + self.acceptor.request_timeout(self.is_over_capacity);
            self.phase.set(Phase::Head { until });
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self.phase.get() {
            Phase::Idle { until } | Phase::Head { until } | Phase::Closing { until } => Some(until),
            Phase::Handling => None,
        }
    }
}

/// A request whose response is not complete.
pub(super) struct RequestInProgress {
    client: Rc<ClientConnection>,
    is_last: bool,
}

impl RequestInProgress {
    /// Records that the connection closes after the response.
    pub(super) fn set_last(&mut self) {
        self.is_last = true;
    }
}

impl Drop for RequestInProgress {
    fn drop(&mut self) {
        let now = Instant::now();
        self.client.phase.set(if self.is_last {
            let until = now + UNREAD_BODY_TIMEOUT;
            Phase::Closing { until }
        } else {
            let until = now + KEEP_ALIVE;
            Phase::Idle { until }
        });
        if self.is_last
            && let Some(waker) = self.client.waker.take()
        {
            // Polls the stream to start the timer, because the client may send nothing more.
            waker.wake();
        }
    }
}

/// The stream of a connection that carries HTTP requests.
pub struct RequestStream {
    io: Stream,
    client: Rc<ClientConnection>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Number of bytes read since the stream last returned [`Poll::Pending`].
    unprocessed: usize,
}

impl RequestStream {
    /// Creates the stream of a connection that `acceptor` has accepted.
    pub fn new(acceptor: Arc<Acceptor>, connection: AcceptedConnection) -> Self {
        let AcceptedConnection { io, address, slot } = connection;
        Self {
            io,
            client: ClientConnection::new(acceptor, address, slot),
            timer: None,
            unprocessed: 0,
        }
    }

    /// Returns the connection.
    pub fn client(&self) -> &Rc<ClientConnection> {
        &self.client
    }

    /// Returns the stream without deadlines, and the permits of the connection, for an upgrade.
    pub fn into_parts(self) -> (Stream, Option<ConnectionPermits>) {
        (self.io, self.client.permits.take())
    }

    /// Returns whether the deadline has passed. If not, registers the task to be woken at the
    /// deadline.
    ///
    /// Without a deadline, the task is woken every [`KEEP_ALIVE`]. The HTTP library may not read
    /// again after a handler has finished, although it has already read a part of the next head.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> bool {
        let deadline = self.client.deadline();
        if deadline.is_none() {
            self.client.waker.set(Some(cx.waker().clone()));
        }
        let wake_at = || deadline.unwrap_or_else(|| Instant::now() + KEEP_ALIVE);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(wake_at())));
        // A later deadline is set only when the timer fires, so that a busy connection does not
        // reset its timer with every request.
        if deadline.is_some_and(|deadline| deadline < timer.deadline()) {
            timer.as_mut().reset(wake_at());
        }
        while timer.as_mut().poll(cx).is_ready() {
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return true;
            }
            timer.as_mut().reset(wake_at());
        }
        false
    }

    /// Sends the response to a head that did not arrive in time. No handler writes to the stream in
    /// this phase.
    fn reject_late_head(&mut self, cx: &mut Context<'_>) {
        if let Phase::Head { .. } = self.client.phase.get() {
            let response = self.client.acceptor.head_timed_out();
            // A failed or partial write is ignored, because the connection is closed in any case.
            let _ = Pin::new(&mut self.io).poll_write(cx, &response);
            let _ = Pin::new(&mut self.io).poll_flush(cx);
        }
        self.client.phase.set(Phase::Handling);
    }
}

impl AsyncRead for RequestStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.unprocessed >= MAX_UNPROCESSED_BYTES {
            this.unprocessed = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buffer);
        let received = buffer.filled().len() - before;
        this.unprocessed += received;
        if received > 0 {
            this.client.bytes_received();
        }
        if read.is_pending() {
            this.unprocessed = 0;
        }
        if read.is_pending() && this.poll_deadline(cx) {
            this.reject_late_head(cx);
            // Reports the end of the stream, so that the HTTP library closes the connection.
            return Poll::Ready(Ok(()));
        }
        read
    }
}

impl AsyncWrite for RequestStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
