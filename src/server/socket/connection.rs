//! The task of a connection: one `select!` over the stream, the timers and the drain.
//!
//! Every connection ends in [`ConnectionTask::close`]: it sends the reason, closes, and gives the client
//! a limited time to read it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::inbound::{InboundDecoder, InboundEvent};
use super::session::Session;
use super::transport::{Transport, TransportEvent};
use super::{SocketContext, Upgraded};
use crate::protocol::{self, CloseReason, ServerMessage};
use crate::telemetry::{ConnectionKind, OpenConnection};
use crate::time::Time;

/// Maximum time for a client to read the close reason.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The same for a client that did not read before.
const CLOSE_TIMEOUT_STALLED: Duration = Duration::from_secs(5);

/// A connection and everything that it owns.
struct ConnectionTask<T> {
    context: Arc<SocketContext>,
    session: Session<T>,
    transport: Rc<Transport<T>>,
    inbound: InboundDecoder,
    next_heartbeat: Instant,
    last_received: Instant,
    drain_close_at: Option<Instant>,
    _open: OpenConnection,
}

/// Returns the future that runs a connection until it is closed.
pub(super) fn open<T>(
    context: Arc<SocketContext>,
    upgraded: Upgraded<T>,
) -> impl Future<Output = ()> + 'static
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let transport = Transport::new(upgraded.io);
    let settings = &context.settings;
    let now = Instant::now();
    let permit = context.drain.try_acquire();
    let mut task = ConnectionTask {
        session: Session::new(&context, &transport, upgraded.address),
        inbound: InboundDecoder::new(settings.max_message_bytes, upgraded.initial_bytes),
        next_heartbeat: now + settings.heartbeat,
        last_received: now,
        drain_close_at: None,
        transport,
        _open: context.metrics.connection_opened(ConnectionKind::Websocket),
        context,
    };
    if permit.is_some()
        && let Some(principal) = upgraded.principal
    {
        task.session.set_principal(principal);
    }
    async move {
        let reason = match permit {
            Some(_) => task.run().await,
            None => CloseReason::OverCapacity,
        };
        task.close(reason).await;
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> ConnectionTask<T> {
    /// Serves the client until there is a reason to close.
    async fn run(&mut self) -> CloseReason {
        let timer = tokio::time::sleep_until(self.next_heartbeat);
        tokio::pin!(timer);
        let drain = Arc::clone(&self.context.drain);
        let transport = Rc::clone(&self.transport);
        loop {
            while transport.can_queue_reply() {
                match self.inbound.next() {
                    Ok(Some(event)) => {
                        if let Err(reason) = self.handle(event).await {
                            return reason;
                        }
                    }
                    Ok(None) => break,
                    Err(reason) => return reason,
                }
            }
            let due = self.next_timer();
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            tokio::select! {
                event = transport.poll_io(self.session.connection(), self.inbound.buffer()) => {
                    match event {
                        TransportEvent::Read => self.last_received = Instant::now(),
                        TransportEvent::Idle => {}
                        TransportEvent::Closed => return CloseReason::Normal,
                    }
                }
                () = &mut timer => if let Err(reason) = self.on_timer() {
                    return reason;
                },
                () = drain.started(), if self.drain_close_at.is_none() => {
                    self.drain_close_at = Some(Instant::now() + drain.close_delay());
                }
            }
            self.context
                .metrics
                .delivered(ConnectionKind::Websocket, transport.take_written());
        }
    }

    /// Sends the reason, closes, and waits for the client to close its side.
    async fn close(&self, reason: CloseReason) {
        let (code, name) = reason.code_and_reason();
        let id = self.session.id();
        tracing::debug!(connection.id = %id, close.code = code, "websocket closed");
        self.context.metrics.socket_closed(code);
        self.session.log_close(reason);
        self.transport.stop_job_frames();
        if reason != CloseReason::Normal {
            let should_return = matches!(reason, CloseReason::Restart | CloseReason::OverCapacity);
            let retry_after = should_return.then(|| self.context.drain.retry_after());
            self.transport.queue_reply(
                ServerMessage::Bye {
                    code,
                    reason: name,
                    retry_after_ms: retry_after.map(as_millis),
                }
                .frame(),
            );
        }
        self.transport.queue_reply(reason.frame());
        let timeout = if reason == CloseReason::NotReading {
            CLOSE_TIMEOUT_STALLED
        } else {
            CLOSE_TIMEOUT
        };
        let flush = self.transport.flush_and_drain(self.session.connection());
        if tokio::time::timeout(timeout, flush).await.is_err() {
            tracing::debug!(connection.id = %id, "client did not complete the close handshake");
        }
    }

    /// Returns the time of the next call of [`ConnectionTask::on_timer`].
    fn next_timer(&self) -> Instant {
        let timers = [
            Some(self.session.next_timer()),
            self.write_deadline(),
            self.drain_close_at,
        ];
        timers
            .into_iter()
            .flatten()
            .fold(self.next_heartbeat, Instant::min)
    }

    /// Returns the time at which a client that does not read is closed.
    fn write_deadline(&self) -> Option<Instant> {
        let since = self.transport.blocked_since()?;
        Some(since + self.context.settings.write_timeout)
    }

    fn on_timer(&mut self) -> Result<(), CloseReason> {
        let now = Instant::now();
        if self.drain_close_at.is_some_and(|at| at <= now) {
            return Err(CloseReason::Restart);
        }
        if self.write_deadline().is_some_and(|at| at <= now) {
            return Err(CloseReason::NotReading);
        }
        self.session.on_timer(now)?;
        if self.next_heartbeat <= now {
            let heartbeat = self.context.settings.heartbeat;
            self.next_heartbeat = now + heartbeat;
            if now.duration_since(self.last_received) > heartbeat * 2 {
                return Err(CloseReason::GoingAway);
            }
            if self.transport.can_queue_reply() {
                let message = ServerMessage::Heartbeat { now: Time::now() };
                self.transport.queue_reply(message.frame());
                self.transport.queue_reply(protocol::ping());
            }
        }
        Ok(())
    }

    async fn handle(&mut self, event: InboundEvent) -> Result<(), CloseReason> {
        match event {
            // Boxed, so that an idle connection does not reserve space for this future.
            InboundEvent::Text(text) => Box::pin(self.session.dispatch(&text)).await,
            InboundEvent::Ping(payload) => {
                self.transport.queue_reply(protocol::pong(&payload));
                Ok(())
            }
            InboundEvent::Activity => Ok(()),
            InboundEvent::Close => Err(CloseReason::Normal),
        }
    }
}

/// Returns the duration in whole milliseconds.
pub(super) fn as_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
