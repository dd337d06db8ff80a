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

use crate::hub::{FeedHealth, Connection, Sink};
use crate::protocol::{Frame, ServerMessage};

/// What is read at once; a thread's connections share the space.
const READ: usize = 16 * 1024;

/// Answers that wait at most before no more questions are read.
const MOST_ANSWERS: usize = 16;

thread_local! {
    static SPACE: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
}

/// One connection's stream.
pub(super) struct Wire<T> {
    io: RefCell<T>,
    tail: RefCell<Bytes>,
    answers: RefCell<VecDeque<Bytes>>,
    condition: Cell<Option<FeedHealth>>,
    blocked_since: Cell<Option<Instant>>,
    needs_flush: Cell<bool>,
    is_open: Cell<bool>,
    is_broken: Cell<bool>,
    written: Cell<u64>,
    waker: Cell<Option<Waker>>,
}

/// What a turn of the wire brought.
pub(super) enum Turn {
    /// Bytes were read and are in the buffer.
    Read,
    /// Answers find room again, or the client stopped reading.
    Idle,
    /// The client closed its side, or the stream failed.
    Over,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Wire<T> {
    pub(super) fn new(io: T) -> Rc<Self> {
        Rc::new(Self {
            io: RefCell::new(io),
            tail: RefCell::default(),
            answers: RefCell::default(),
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
    pub(super) fn say(&self, frame: Bytes) {
        self.answers.borrow_mut().push_back(frame);
        self.wake_task();
    }

    /// Whether more questions may be answered now.
    pub(super) fn may_answer(&self) -> bool {
        self.answers.borrow().len() < MOST_ANSWERS
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
    pub(super) fn shut(&self) {
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
                    *self.tail.borrow_mut() = bytes.slice(written..);
                    return self.block();
                }
            }
        }
        if self.needs_flush.get() {
            match Pin::new(&mut *io).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.needs_flush.set(false),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return self.block(),
            }
        }
        self.blocked_since.set(None);
        Poll::Ready(Ok(()))
    }

    /// The client does not read: remembers since when.
    fn block<R>(&self) -> Poll<R> {
        let since = self.blocked_since.get().unwrap_or_else(Instant::now);
        self.blocked_since.set(Some(since));
        Poll::Pending
    }

    /// Sends what waits: first the begun frame, then answers, then jobs, then what to think of them.
    fn poll_send(&self, connection: &Connection, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let tail = std::mem::take(&mut *self.tail.borrow_mut());
            std::task::ready!(self.poll_write_all(&tail, cx))?;
            let answer = self.answers.borrow_mut().pop_front();
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
            *self.tail.borrow_mut() = next;
        }
    }

    /// Reads once; `Ready(0)` is the end.
    fn poll_read(&self, into: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        SPACE.with_borrow_mut(|space| {
            let mut space = ReadBuf::new(space);
            std::task::ready!(Pin::new(&mut *self.io.borrow_mut()).poll_read(cx, &mut space))?;
            into.extend_from_slice(space.filled());
            Poll::Ready(Ok(space.filled().len()))
        })
    }

    /// Sends what waits, and reads as long as answers find room; comes back when there is something
    /// to do, and when the client stops reading, so that it can be given a time for it.
    pub(super) async fn turn(&self, connection: &Connection, into: &mut BytesMut) -> Turn {
        let was_full = !self.may_answer();
        let was_blocked = self.blocked_since.get().is_some();
        poll_fn(|cx| {
            self.waker.set(Some(cx.waker().clone()));
            if self.is_broken.get() {
                return Poll::Ready(Turn::Over);
            }
            match self.poll_send(connection, cx) {
                Poll::Ready(Err(_)) => return Poll::Ready(Turn::Over),
                Poll::Pending if !was_blocked => return Poll::Ready(Turn::Idle),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
            match (was_full, self.may_answer()) {
                // A client that does not read what it asked for is not asked what else it wants.
                (_, false) => return Poll::Pending,
                (true, true) => return Poll::Ready(Turn::Idle),
                (false, true) => {}
            }
            match self.poll_read(into, cx) {
                Poll::Ready(Ok(1..)) => Poll::Ready(Turn::Read),
                Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Turn::Over),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Sends the last answers and reads, to no end, until the client has closed its side.
    pub(super) async fn linger(&self, connection: &Connection) {
        self.shut();
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

impl<T: AsyncRead + AsyncWrite + Unpin> Sink for Wire<T> {
    fn is_ready(&self) -> bool {
        self.is_open.get()
            && self.tail.borrow().is_empty()
            && self.answers.borrow().is_empty()
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
