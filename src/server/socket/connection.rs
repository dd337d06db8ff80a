//! One connection, one task, one `select!`.
//!
//! Invariant: a connection ends in one way, whatever the reason: it says why, closes, gives the
//! client a moment to read that, and drops; and everything it held goes with it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use uuid::Uuid;

use super::inbound::{InboundDecoder, InboundEvent};
use super::transport::{Transport, TransportEvent};
use super::{SocketContext, Upgraded};
use crate::hub::{Connection, Sink};
use crate::protocol::{self, CloseReason, ServerMessage};
use crate::telemetry::{ConnectionKind, OpenConnection};
use crate::time::Time;
use progress_hub_auth::jwt::Principal;

/// How long a client may take to read why it was closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long one that did not read at all may take.
const CLOSE_TIMEOUT_STALLED: Duration = Duration::from_secs(5);

/// Who is at the other end.
pub(super) enum PeerState {
    /// Somebody who has until then to say who.
    Unauthenticated { until: Instant },
    /// A proven caller.
    Authenticated {
        principal: Principal,
        notice_at: Option<Instant>,
        ends_at: Instant,
    },
}

/// A connection and all that belongs to it.
pub(super) struct ConnectionTask<T> {
    pub(super) sockets: Arc<SocketContext>,
    pub(super) id: Uuid,
    pub(super) wire: Rc<Transport<T>>,
    inbound: InboundDecoder,
    pub(super) connection: Connection,
    pub(super) peer: PeerState,
    next_heartbeat: Instant,
    last_received: Instant,
    drain_close_at: Option<Instant>,
    pub(super) bad_messages: u32,
    pub(super) in_flight_cancels: Rc<()>,
    _open: OpenConnection,
}

/// A connection, to be awaited to its end.
pub(super) fn open<T>(
    sockets: Arc<SocketContext>,
    upgraded: Upgraded<T>,
) -> impl Future<Output = ()> + 'static
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let wire = Transport::new(upgraded.io);
    let now = Instant::now();
    let mut task = ConnectionTask {
        id: Uuid::now_v7(),
        inbound: InboundDecoder::new(sockets.settings.max_message_bytes, upgraded.initial_bytes),
        connection: Connection::open(&sockets.hub.shard(), Rc::clone(&wire) as Rc<dyn Sink>),
        peer: PeerState::Unauthenticated {
            until: now + sockets.settings.auth_timeout,
        },
        next_heartbeat: now + sockets.settings.heartbeat,
        last_received: now,
        drain_close_at: None,
        bad_messages: 0,
        in_flight_cancels: Rc::new(()),
        wire,
        _open: sockets.metrics.connection_opened(ConnectionKind::Websocket),
        sockets,
    };
    let is_admitted = task
        .sockets
        .drain
        .try_acquire(task.sockets.server.max_connections);
    if let (true, Some(principal)) = (is_admitted, upgraded.principal) {
        task.set_principal(principal);
    }
    async move {
        if is_admitted {
            let close = task.run().await;
            task.close(close).await;
            task.sockets.drain.release();
        } else {
            task.close(CloseReason::OverCapacity).await;
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> ConnectionTask<T> {
    /// Talks until there is a reason to stop.
    async fn run(&mut self) -> CloseReason {
        let clock = tokio::time::sleep_until(self.next_heartbeat);
        tokio::pin!(clock);
        let drain = Arc::clone(&self.sockets.drain);
        loop {
            while self.wire.can_queue_reply() {
                match self.inbound.next() {
                    Ok(Some(heard)) => {
                        if let Err(close) = self.handle(heard).await {
                            return close;
                        }
                    }
                    Ok(None) => break,
                    Err(close) => return close,
                }
            }
            let due = self.next_timer();
            if clock.deadline() != due {
                clock.as_mut().reset(due);
            }
            let wire = Rc::clone(&self.wire);
            tokio::select! {
                turn = wire.poll_io(&self.connection, self.inbound.buffer()) => match turn {
                    TransportEvent::Read => self.last_received = Instant::now(),
                    TransportEvent::Idle => {}
                    TransportEvent::Closed => return CloseReason::Normal,
                },
                () = &mut clock => if let Err(close) = self.on_timer() {
                    return close;
                },
                () = drain.begun(), if self.drain_close_at.is_none() => {
                    self.drain_close_at = Some(Instant::now() + drain.close_delay());
                }
            }
            self.sockets
                .metrics
                .delivered(ConnectionKind::Websocket, self.wire.take_written());
        }
    }

    /// Says why, closes, and waits a moment for the client to have read it.
    async fn close(&self, close: CloseReason) {
        let (code, reason) = close.code_and_reason();
        let name = self.id.simple();
        tracing::debug!(connection.id = %name, close.code = code, "closes");
        self.sockets.metrics.socket_closed(code);
        self.wire.stop_job_frames();
        let retry_after = match close {
            CloseReason::Restart | CloseReason::OverCapacity => {
                Some(self.sockets.drain.retry_after())
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
        let retry_after_ms =
            retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        if close != CloseReason::Normal {
            self.wire.queue_reply(
                ServerMessage::Bye {
                    code,
                    reason,
                    retry_after_ms,
                }
                .frame(),
            );
        }
        self.wire.queue_reply(close.frame());
        let patience = if close == CloseReason::NotReading {
            CLOSE_TIMEOUT_STALLED
        } else {
            CLOSE_TIMEOUT
        };
        if tokio::time::timeout(patience, self.wire.flush_and_drain(&self.connection))
            .await
            .is_err()
        {
            tracing::debug!(connection.id = %name, "the client did not close its side");
        }
    }

    /// When the clock has to be looked at next.
    fn next_timer(&self) -> Instant {
        let by_peer = match &self.peer {
            PeerState::Unauthenticated { until } => *until,
            PeerState::Authenticated {
                notice_at, ends_at, ..
            } => notice_at.unwrap_or(*ends_at),
        };
        let write_timeout = self.sockets.settings.write_timeout;
        let by_wire = self.wire.blocked_since().map(|since| since + write_timeout);
        let others = [Some(by_peer), by_wire, self.drain_close_at];
        others
            .into_iter()
            .flatten()
            .fold(self.next_heartbeat, Instant::min)
    }

    fn on_timer(&mut self) -> Result<(), CloseReason> {
        let now = Instant::now();
        let settings = &self.sockets.settings;
        if self.drain_close_at.is_some_and(|at| at <= now) {
            return Err(CloseReason::Restart);
        }
        if self
            .wire
            .blocked_since()
            .is_some_and(|since| now >= since + settings.write_timeout)
        {
            return Err(CloseReason::NotReading);
        }
        match &mut self.peer {
            PeerState::Unauthenticated { until } if *until <= now => {
                return Err(CloseReason::AuthTimeout);
            }
            PeerState::Authenticated { ends_at, .. } if *ends_at <= now => {
                return Err(CloseReason::TokenExpired);
            }
            PeerState::Authenticated {
                notice_at, ends_at, ..
            } if notice_at.is_some_and(|at| at <= now) => {
                *notice_at = None;
                let left = ends_at.saturating_duration_since(now).as_millis();
                let in_ms = u64::try_from(left).unwrap_or(u64::MAX);
                self.wire
                    .queue_reply(ServerMessage::TokenExpiring { in_ms }.frame());
            }
            PeerState::Unauthenticated { .. } | PeerState::Authenticated { .. } => {}
        }
        if self.next_heartbeat <= now {
            self.next_heartbeat = now + settings.heartbeat;
            if now.duration_since(self.last_received) > settings.heartbeat * 2 {
                return Err(CloseReason::GoingAway);
            }
            if self.wire.can_queue_reply() {
                self.wire
                    .queue_reply(ServerMessage::Heartbeat { now: Time::now() }.frame());
                self.wire.queue_reply(protocol::ping());
            }
        }
        Ok(())
    }

    async fn handle(&mut self, heard: InboundEvent) -> Result<(), CloseReason> {
        match heard {
            // Boxed, so that an idle connection does not hold room for its largest answer.
            InboundEvent::Text(text) => Box::pin(self.dispatch(&text)).await,
            InboundEvent::Ping(payload) => {
                self.wire.queue_reply(protocol::pong(&payload));
                Ok(())
            }
            InboundEvent::Activity => Ok(()),
            InboundEvent::Close => Err(CloseReason::Normal),
        }
    }
}
