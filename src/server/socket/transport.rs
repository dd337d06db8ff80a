//! The stream under a connection, written from two sides: its own task, and the shard that has a
//! frame for it.
//!
//! Invariant: bytes go out in the order they were taken, whole frames only; what the kernel does
//! not take at once is at most the tail of one frame, and its task goes on with it.

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

/// What is read at once; a thread's connections share the space.
const READ: usize = 16 * 1024;

/// Answers that wait at most before no more questions are read.
const MAX_PENDING_REPLIES: usize = 16;

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
}

/// One connection's stream.
pub(super) struct Transport<T> {
    io: RefCell<T>,
    partial_frame: RefCell<Bytes>,
    replies: RefCell<VecDeque<Bytes>>,
    condition: Cell<Option<FeedHealth>>,
    blocked_since: Cell<Option<Instant>>,
    needs_flush: Cell<bool>,
    is_open: Cell<bool>,
    is_broken: Cell<bool>,
    written: Cell<u64>,
    waker: Cell<Option<Waker>>,
}

/// What a turn of the wire brought.
pub(super) enum TransportEvent {
    /// Bytes were read and are in the buffer.
    Read,
    /// Answers find room again, or the client stopped reading.
    Idle,
    /// The client closed its side, or the stream failed.
    Closed,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Transport<T> {
    pub(super) fn new(io: T) -> Rc<Self> {
        Rc::new(Self {
            io: RefCell::new(io),
            partial_frame: RefCell::default(),
            replies: RefCell::default(),
            condition: Cell::new(None),
            blocked_since: Cell::new(None),
            needs_flush: Cell::new(false),
            is_open: Cell::new(true),
            is_broken: Cell::new(false),
            written: Cell::new(0),
            waker: Cell::new(None),
        })
    }

    /// Queues an answer; the connection's task sends it.
    pub(super) fn queue_reply(&self, frame: Bytes) {
        self.replies.borrow_mut().push_back(frame);
        self.wake_task();
    }

    /// Whether more questions may be answered now.
    pub(super) fn can_queue_reply(&self) -> bool {
        self.replies.borrow().len() < MAX_PENDING_REPLIES
    }

    /// Since when the client has not read what waits for it.
    pub(super) fn blocked_since(&self) -> Option<Instant> {
        self.blocked_since.get()
    }

    /// Job frames handed to the stream since the last call.
    pub(super) fn take_written(&self) -> u64 {
        self.written.take()
    }

    /// From now on no job frames are taken: only answers go out.
    pub(super) fn stop_job_frames(&self) {
        self.is_open.set(false);
    }

    fn wake_task(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Writes what can be written; `Pending` has registered the task for the rest.
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

    /// The client does not read: remembers since when.
    fn mark_blocked<R>(&self) -> Poll<R> {
        let since = self.blocked_since.get().unwrap_or_else(Instant::now);
        self.blocked_since.set(Some(since));
        Poll::Pending
    }

    /// Sends what waits: first the begun frame, then answers, then jobs, then what to think of them.
    fn poll_send(&self, connection: &Connection, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let tail = std::mem::take(&mut *self.partial_frame.borrow_mut());
            std::task::ready!(self.poll_write_all(&tail, cx))?;
            let answer = self.replies.borrow_mut().pop_front();
            let next = match answer {
                Some(answer) => answer,
                None if !self.is_open.get() => return Poll::Ready(Ok(())),
                None => match (connection.next_frame(), self.condition.take()) {
                    (Some(frame), condition) => {
                        self.condition.set(condition);
                        self.written.set(self.written.get() + 1);
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

    /// Reads once; `Ready(0)` is the end.
    fn poll_read(&self, into: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        READ_BUFFER.with_borrow_mut(|space| {
            let mut space = ReadBuf::new(space);
            std::task::ready!(Pin::new(&mut *self.io.borrow_mut()).poll_read(cx, &mut space))?;
            into.extend_from_slice(space.filled());
            Poll::Ready(Ok(space.filled().len()))
        })
    }

    /// Sends what waits, and reads as long as answers find room; comes back when there is something
    /// to do, and when the client stops reading, so that it can be given a time for it.
    pub(super) async fn poll_io(
        &self,
        connection: &Connection,
        into: &mut BytesMut,
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
                // A client that does not read what it asked for is not asked what else it wants.
                (_, false) => return Poll::Pending,
                (true, true) => return Poll::Ready(TransportEvent::Idle),
                (false, true) => {}
            }
            match self.poll_read(into, cx) {
                Poll::Ready(Ok(1..)) => Poll::Ready(TransportEvent::Read),
                Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(TransportEvent::Closed),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Sends the last answers and reads, to no end, until the client has closed its side.
    pub(super) async fn flush_and_drain(&self, connection: &Connection) {
        self.stop_job_frames();
        let mut is_sent = false;
        poll_fn(|cx| {
            if self.is_broken.get() {
                return Poll::Ready(());
            }
            if !is_sent {
                match self.poll_send(connection, cx) {
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(())) => {
                        is_sent = true;
                    }
                    Poll::Pending => {}
                }
            }
            if is_sent
                && Pin::new(&mut *self.io.borrow_mut())
                    .poll_shutdown(cx)
                    .is_pending()
            {
                return Poll::Pending;
            }
            let mut unwanted = BytesMut::new();
            loop {
                match self.poll_read(&mut unwanted, cx) {
                    Poll::Ready(Ok(1..)) => unwanted.clear(),
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
        self.is_open.get()
            && self.partial_frame.borrow().is_empty()
            && self.replies.borrow().is_empty()
            && self.condition.get().is_none()
            && !self.needs_flush.get()
    }

    fn try_send(&self, frame: &Frame) -> bool {
        if !self.is_ready() {
            return false;
        }
        // Registers nobody: should the kernel not take it all, the task polls again with its own waker.
        let mut nobody = Context::from_waker(Waker::noop());
        match self.poll_write_all(frame.websocket(), &mut nobody) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => {
                self.is_broken.set(true);
                self.wake_task();
            }
            Poll::Pending => self.wake_task(),
        }
        self.written.set(self.written.get() + 1);
        true
    }

    fn notify_pending(&self) {
        self.wake_task();
    }

    fn health_changed(&self, condition: FeedHealth) {
        self.condition.set(Some(condition));
        self.wake_task();
    }
}
