//! The stream of a connection. Two sides write to it: the connection's task, and the shard that
//! delivers job frames.
//!
//! Frames are written whole and in order. The transport holds at most the unwritten rest of one frame;
//! the connection's task continues it when the kernel accepts more bytes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use actix_web::web::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::hub::{Connection, FeedHealth, Sink};
use crate::protocol::{Frame, ServerMessage};

/// Size of the read buffer, which the connections of a thread share.
const READ_BUFFER_BYTES: usize = 16 * 1024;

/// Number of pending replies at which the transport stops reading messages.
const MAX_PENDING_REPLIES: usize = 16;

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BUFFER_BYTES].into_boxed_slice());
}

/// The stream of a connection.
pub(super) struct Transport<T> {
    io: RefCell<T>,
    /// The unwritten rest of a frame.
    partial_frame: RefCell<Bytes>,
    replies: RefCell<VecDeque<Bytes>>,
    /// A change of the feed's health that the client does not know yet.
    health: Cell<Option<FeedHealth>>,
    blocked_since: Cell<Option<Instant>>,
    needs_flush: Cell<bool>,
    accepts_job_frames: Cell<bool>,
    is_broken: Cell<bool>,
    written_job_frames: Cell<u64>,
    waker: Cell<Option<Waker>>,
}

/// The reason why [`Transport::poll_io`] returned.
pub(super) enum TransportEvent {
    /// Bytes were read into the buffer.
    Read,
    /// There is room for replies again, or the client has stopped reading.
    Idle,
    /// The client has closed its side, or the stream has failed.
    Closed,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Transport<T> {
    pub(super) fn new(io: T) -> Rc<Self> {
        Rc::new(Self {
            io: RefCell::new(io),
            partial_frame: RefCell::default(),
            replies: RefCell::default(),
            health: Cell::new(None),
            blocked_since: Cell::new(None),
            needs_flush: Cell::new(false),
            accepts_job_frames: Cell::new(true),
            is_broken: Cell::new(false),
            written_job_frames: Cell::new(0),
            waker: Cell::new(None),
        })
    }

    /// Queues a reply, which the connection's task sends.
    pub(super) fn queue_reply(&self, frame: Bytes) {
        self.replies.borrow_mut().push_back(frame);
        self.wake_task();
    }

    /// Returns whether there is room for another reply.
    pub(super) fn can_queue_reply(&self) -> bool {
        self.replies.borrow().len() < MAX_PENDING_REPLIES
    }

    /// Returns the time since which the client has not read.
    pub(super) fn blocked_since(&self) -> Option<Instant> {
        self.blocked_since.get()
    }

    /// Returns the number of job frames that were written since the last call.
    pub(super) fn take_written(&self) -> u64 {
        self.written_job_frames.take()
    }

    /// Stops accepting job frames. Only replies are sent from now on.
    pub(super) fn stop_job_frames(&self) {
        self.accepts_job_frames.set(false);
    }

    fn count_job_frame(&self) {
        self.written_job_frames
            .set(self.written_job_frames.get() + 1);
    }

    fn wake_task(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Writes and flushes the bytes. On `Pending`, the rest is kept in `partial_frame`.
    fn poll_write_all(&self, bytes: &Bytes, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut io = self.io.borrow_mut();
        let mut written = 0;
        while written < bytes.len() {
            match Pin::new(&mut *io).poll_write(cx, &bytes[written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(more)) => {
                    written += more;
                    self.blocked_since.set(None);
                    self.needs_flush.set(true);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    *self.partial_frame.borrow_mut() = bytes.slice(written..);
                    return self.mark_blocked();
                }
            }
        }
        if self.needs_flush.get() {
            match Pin::new(&mut *io).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.needs_flush.set(false),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return self.mark_blocked(),
            }
        }
        self.blocked_since.set(None);
        Poll::Ready(Ok(()))
    }

    /// Records the time at which the client stopped reading.
    fn mark_blocked<R>(&self) -> Poll<R> {
        let since = self.blocked_since.get().unwrap_or_else(Instant::now);
        self.blocked_since.set(Some(since));
        Poll::Pending
    }

    /// Sends everything that is pending: the rest of a frame, replies, job frames, then the health.
    fn poll_send(&self, connection: &Connection, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let frame = std::mem::take(&mut *self.partial_frame.borrow_mut());
            std::task::ready!(self.poll_write_all(&frame, cx))?;
            let reply = self.replies.borrow_mut().pop_front();
            let next = match reply {
                Some(reply) => reply,
                None if !self.accepts_job_frames.get() => return Poll::Ready(Ok(())),
                None => match (connection.next_frame(), self.health.take()) {
                    (Some(frame), health) => {
                        self.health.set(health);
                        self.count_job_frame();
                        frame.websocket().clone()
                    }
                    (None, Some(FeedHealth::Degraded(since))) => {
                        ServerMessage::Degraded { since }.frame()
                    }
                    (None, Some(FeedHealth::Healthy)) => ServerMessage::Restored.frame(),
                    (None, None) => return Poll::Ready(Ok(())),
                },
            };
            *self.partial_frame.borrow_mut() = next;
        }
    }

    /// Reads once. 0 bytes are the end of the stream.
    fn poll_read(&self, into: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        READ_BUFFER.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            std::task::ready!(Pin::new(&mut *self.io.borrow_mut()).poll_read(cx, &mut buffer))?;
            into.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }

    /// Sends everything that is pending and reads while there is room for replies, unless `into` is `None`.
    /// Returns when the connection has something to do, or when the client stops reading, so that its
    /// write timeout starts.
    pub(super) async fn poll_io(
        &self,
        connection: &Connection,
        mut into: Option<&mut BytesMut>,
    ) -> TransportEvent {
        let was_full = !self.can_queue_reply();
        let was_blocked = self.blocked_since.get().is_some();
        poll_fn(|cx| {
            self.waker.set(Some(cx.waker().clone()));
            if self.is_broken.get() {
                return Poll::Ready(TransportEvent::Closed);
            }
            match self.poll_send(connection, cx) {
                Poll::Ready(Err(_)) => return Poll::Ready(TransportEvent::Closed),
                Poll::Pending if !was_blocked => return Poll::Ready(TransportEvent::Idle),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
            match (was_full, self.can_queue_reply()) {
                // Backpressure: no more messages are read from a client that does not read its replies.
                (_, false) => return Poll::Pending,
                (true, true) => return Poll::Ready(TransportEvent::Idle),
                (false, true) => {}
            }
            let Some(into) = &mut into else {
                return Poll::Pending;
            };
            match self.poll_read(into, cx) {
                Poll::Ready(Ok(1..)) => Poll::Ready(TransportEvent::Read),
                Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(TransportEvent::Closed),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Sends the last replies, shuts down the write side, and discards input until the client closes.
    pub(super) async fn flush_and_drain(&self, connection: &Connection) {
        self.stop_job_frames();
        let mut is_flushed = false;
        poll_fn(|cx| {
            if self.is_broken.get() {
                return Poll::Ready(());
            }
            if !is_flushed {
                match self.poll_send(connection, cx) {
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(())) => is_flushed = true,
                    Poll::Pending => {}
                }
            }
            if is_flushed
                && Pin::new(&mut *self.io.borrow_mut())
                    .poll_shutdown(cx)
                    .is_pending()
            {
                return Poll::Pending;
            }
            let mut discarded = BytesMut::new();
            loop {
                match self.poll_read(&mut discarded, cx) {
                    Poll::Ready(Ok(1..)) => discarded.clear(),
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Sink for Transport<T> {
    fn is_ready(&self) -> bool {
        self.accepts_job_frames.get()
            && self.partial_frame.borrow().is_empty()
            && self.replies.borrow().is_empty()
            && self.health.get().is_none()
            && !self.needs_flush.get()
    }

    fn try_send(&self, frame: &Frame) -> bool {
        if !self.is_ready() {
            return false;
        }
        // No waker is needed: if the kernel does not accept all bytes, the connection's task is woken and
        // polls with its own waker.
        let mut cx = Context::from_waker(Waker::noop());
        match self.poll_write_all(frame.websocket(), &mut cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => {
                self.is_broken.set(true);
                self.wake_task();
            }
            Poll::Pending => self.wake_task(),
        }
        self.count_job_frame();
        true
    }

    fn notify_pending(&self) {
        self.wake_task();
    }

    fn health_changed(&self, health: FeedHealth) {
        self.health.set(Some(health));
        self.wake_task();
    }
}
