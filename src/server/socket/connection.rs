//! The task of a connection: one `select!` over the stream, the timers and the drain.
//!
//! Every connection ends in [`ConnectionTask::close`]: it sends the reason, closes, and gives the client
//! a limited time to read it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::inbound::{InboundDecoder, InboundEvent};
use super::read_pause::ReadPause;
use super::session::{Session, as_millis};
use super::transport::{Transport, TransportEvent};
use super::{SocketContext, Upgraded};
use crate::protocol::{self, CloseReason, ServerMessage};
use crate::rate_limit::Rate;
use crate::server::connection::Stream;
use crate::telemetry::{ConnectionKind, Limit, OpenConnection};
use crate::time::Time;

/// Maximum time for a client to read the close reason.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The same for a client that did not read before.
const CLOSE_TIMEOUT_STALLED: Duration = Duration::from_secs(5);

/// Minimum time after which a client that reached a limit should reconnect.
const LIMIT_RETRY_AFTER: Duration = Duration::from_secs(10);

/// A connection and everything that it owns.
struct ConnectionTask {
    context: Arc<SocketContext>,
    session: Session<Stream>,
    transport: Rc<Transport<Stream>>,
    inbound: InboundDecoder,
    frames: Rate,
    read_pause: ReadPause,
    next_heartbeat: Instant,
    last_received: Instant,
    drain_close_at: Option<Instant>,
    _open: OpenConnection,
}

/// Returns the future that runs a connection until it is closed.
pub(super) fn open(
    context: Arc<SocketContext>,
    mut upgraded: Upgraded,
) -> impl Future<Output = ()> + 'static {
    let permit = admit(&context, &mut upgraded);
    let transport = Transport::new(upgraded.io);
    let settings = &context.settings;
    let now = Instant::now();
    let mut task = ConnectionTask {
        session: Session::new(&context, &transport, upgraded.client),
        inbound: InboundDecoder::new(settings.max_message_bytes, upgraded.initial_bytes),
        frames: Rate::default(),
        read_pause: ReadPause::default(),
        next_heartbeat: now + settings.heartbeat,
        last_received: now,
        drain_close_at: None,
        transport,
        _open: context.metrics.connection_opened(ConnectionKind::Websocket),
        context,
    };
    let admitted = permit.and_then(|permit| {
        let principal = upgraded.principal;
        let authenticated = principal.map(|principal| task.session.set_principal(principal));
        authenticated.transpose().map(|_| permit)
    });
    async move {
        let reason = match admitted {
            Ok(_permit) => task.run().await,
            Err(reason) => reason,
        };
        task.close(reason).await;
    }
}

/// Counts the connection for the limits of the node and of the forwarded address.
///
/// # Errors
/// The reason to close the connection if a limit is reached.
fn admit(
    context: &SocketContext,
    upgraded: &mut Upgraded,
) -> Result<OwnedSemaphorePermit, CloseReason> {
    let limits = &context.limits;
    if upgraded.is_over_capacity {
        return Err(limits.node_is_full().close_reason());
    }
    let admitted = limits.acquire_node().and_then(|permit| {
        let client = upgraded.forwarded;
        let forwarded = client.map(|client| limits.accept_forwarded(client));
        upgraded.client.forwarded = forwarded.transpose()?;
        Ok(permit)
    });
    admitted.map_err(|reached| reached.close_reason())
}

impl ConnectionTask {
    /// Serves the client until there is a reason to close.
    async fn run(&mut self) -> CloseReason {
        let timer = tokio::time::sleep_until(self.next_heartbeat);
        tokio::pin!(timer);
        let drain = Arc::clone(&self.context.drain);
        let transport = Rc::clone(&self.transport);
        loop {
            while transport.can_queue_reply() && self.read_pause.resume_at().is_none() {
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
            let is_paused = self.read_pause.resume_at().is_some();
            tokio::select! {
                event = transport.poll_io(
                    self.session.connection(),
                    (!is_paused).then(|| self.inbound.buffer()),
                ) => {
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
            let min_wait = match reason {
                CloseReason::Restart | CloseReason::OverCapacity => Some(Duration::ZERO),
                CloseReason::RateLimited | CloseReason::TooManyConnections => {
                    Some(LIMIT_RETRY_AFTER)
                }
                CloseReason::Normal
                | CloseReason::GoingAway
                | CloseReason::Protocol
                | CloseReason::Unsupported
                | CloseReason::NotUtf8
                | CloseReason::Unauthorized
                | CloseReason::TokenExpired
                | CloseReason::AuthTimeout
                | CloseReason::TooManyBadMessages
                | CloseReason::MessageTooLarge
                | CloseReason::NotReading => None,
            };
            let retry_after = min_wait.map(|wait| wait + self.context.drain.retry_after());
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
            self.read_pause.resume_at(),
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
        if self.read_pause.resume(now) {
            // Nothing was read during the pause.
            self.last_received = now;
        }
        if self.next_heartbeat <= now {
            let heartbeat = self.context.settings.heartbeat;
            self.next_heartbeat = now + heartbeat;
            let is_paused = self.read_pause.resume_at().is_some();
            if !is_paused && now.duration_since(self.last_received) > heartbeat * 2 {
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
        let by_frames = self.context.limits.charge_frame(&self.frames);
        let (limit, by_message) = match event {
            // Boxed, so that an idle connection does not reserve space for this future.
            InboundEvent::Text(text) => Box::pin(self.session.dispatch(&text)).await?,
            InboundEvent::Ping(payload) => {
                self.transport.queue_reply(protocol::pong(&payload));
                (Limit::Messages, Duration::ZERO)
            }
            InboundEvent::Activity => (Limit::Messages, Duration::ZERO),
            InboundEvent::Close => return Err(CloseReason::Normal),
        };
        let wait = by_frames.max(by_message);
        let paused = self.read_pause.pause(wait, Instant::now());
        if !matches!(paused, Ok(false)) {
            self.context.metrics.limit_reached(limit);
        }
        paused.map(drop)
    }
}
