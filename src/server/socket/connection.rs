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

use super::inbound::{Heard, Inbound};
use super::wire::{Turn, Wire};
use super::{Sockets, Upgraded};
use crate::auth::Principal;
use crate::hub::{Connection, Sink};
use crate::protocol::{self, CloseReason, ServerMessage};
use crate::telemetry::{ConnectionKind, OpenConnection};
use crate::time::Time;

/// How long a client may take to read why it was closed.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long one that did not read at all may take.
const LATE_FAREWELL: Duration = Duration::from_secs(5);

/// Who is at the other end.
pub(super) enum Peer {
    /// Somebody who has until then to say who.
    Stranger { until: Instant },
    /// A proven caller.
    Known {
        principal: Principal,
        notice_at: Option<Instant>,
        ends_at: Instant,
    },
}

/// A connection and all that belongs to it.
pub(super) struct Task<T> {
    pub(super) sockets: Arc<Sockets>,
    pub(super) name: Uuid,
    pub(super) wire: Rc<Wire<T>>,
    inbound: Inbound,
    pub(super) connection: Connection,
    pub(super) peer: Peer,
    next_heartbeat: Instant,
    last_heard: Instant,
    leaves_at: Option<Instant>,
    pub(super) bad_messages: u32,
    pub(super) cancels: Rc<()>,
    _open: OpenConnection,
}

/// A connection, to be awaited to its end.
pub(super) fn open<T>(
    sockets: Arc<Sockets>,
    upgraded: Upgraded<T>,
) -> impl Future<Output = ()> + 'static
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let wire = Wire::new(upgraded.io);
    let now = Instant::now();
    let mut task = Task {
        name: Uuid::now_v7(),
        inbound: Inbound::new(sockets.settings.max_message_bytes, upgraded.begun),
        connection: Connection::open(&sockets.hub.shard(), Rc::clone(&wire) as Rc<dyn Sink>),
        peer: Peer::Stranger {
            until: now + sockets.settings.auth_timeout,
        },
        next_heartbeat: now + sockets.settings.heartbeat,
        last_heard: now,
        leaves_at: None,
        bad_messages: 0,
        cancels: Rc::new(()),
        wire,
        _open: sockets.metrics.connection_opened(ConnectionKind::Websocket),
        sockets,
    };
    let is_admitted = task
        .sockets
        .drain
        .admit(task.sockets.server.max_connections);
    if let (true, Some(principal)) = (is_admitted, upgraded.principal) {
        task.welcome(principal);
    }
    async move {
        if is_admitted {
            let close = task.talk().await;
            task.end(close).await;
            task.sockets.drain.release();
        } else {
            task.end(CloseReason::OverCapacity).await;
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> Task<T> {
    /// Talks until there is a reason to stop.
    async fn talk(&mut self) -> CloseReason {
        let clock = tokio::time::sleep_until(self.next_heartbeat);
        tokio::pin!(clock);
        let drain = Arc::clone(&self.sockets.drain);
        loop {
            while self.wire.may_answer() {
                match self.inbound.next() {
                    Ok(Some(heard)) => {
                        if let Err(close) = self.hear(heard).await {
                            return close;
                        }
                    }
                    Ok(None) => break,
                    Err(close) => return close,
                }
            }
            let due = self.due();
            if clock.deadline() != due {
                clock.as_mut().reset(due);
            }
            let wire = Rc::clone(&self.wire);
            tokio::select! {
                turn = wire.turn(&self.connection, self.inbound.buffer()) => match turn {
                    Turn::Read => self.last_heard = Instant::now(),
                    Turn::Idle => {}
                    Turn::Over => return CloseReason::Normal,
                },
                () = &mut clock => if let Err(close) = self.tick() {
                    return close;
                },
                () = drain.begun(), if self.leaves_at.is_none() => {
                    self.leaves_at = Some(Instant::now() + drain.moment());
                }
            }
            self.sockets
                .metrics
                .delivered(ConnectionKind::Websocket, self.wire.take_written());
        }
    }

    /// Says why, closes, and waits a moment for the client to have read it.
    async fn end(&self, close: CloseReason) {
        let (code, reason) = close.code_and_reason();
        let name = self.name.simple();
        tracing::debug!(connection.id = %name, close.code = code, "closes");
        self.sockets.metrics.socket_closed(code);
        self.wire.shut();
        let retry_after = match close {
            CloseReason::Restart | CloseReason::OverCapacity => Some(self.sockets.drain.retry_after()),
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
            self.wire.say(
                ServerMessage::Bye {
                    code,
                    reason,
                    retry_after_ms,
                }
                .frame(),
            );
        }
        self.wire.say(close.frame());
        let patience = if close == CloseReason::NotReading {
            LATE_FAREWELL
        } else {
            FAREWELL
        };
        if tokio::time::timeout(patience, self.wire.linger(&self.connection))
            .await
            .is_err()
        {
            tracing::debug!(connection.id = %name, "the client did not close its side");
        }
    }

    /// When the clock has to be looked at next.
    fn due(&self) -> Instant {
        let by_peer = match &self.peer {
            Peer::Stranger { until } => *until,
            Peer::Known {
                notice_at, ends_at, ..
            } => notice_at.unwrap_or(*ends_at),
        };
        let write_timeout = self.sockets.settings.write_timeout;
        let by_wire = self.wire.blocked_since().map(|since| since + write_timeout);
        let others = [Some(by_peer), by_wire, self.leaves_at];
        others
            .into_iter()
            .flatten()
            .fold(self.next_heartbeat, Instant::min)
    }

    fn tick(&mut self) -> Result<(), CloseReason> {
        let now = Instant::now();
        let settings = &self.sockets.settings;
        if self.leaves_at.is_some_and(|at| at <= now) {
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
            Peer::Stranger { until } if *until <= now => return Err(CloseReason::AuthTimeout),
            Peer::Known { ends_at, .. } if *ends_at <= now => return Err(CloseReason::TokenExpired),
            Peer::Known {
                notice_at, ends_at, ..
            } if notice_at.is_some_and(|at| at <= now) => {
                *notice_at = None;
                let left = ends_at.saturating_duration_since(now).as_millis();
                let in_ms = u64::try_from(left).unwrap_or(u64::MAX);
                self.wire.say(ServerMessage::TokenExpiring { in_ms }.frame());
            }
            Peer::Stranger { .. } | Peer::Known { .. } => {}
        }
        if self.next_heartbeat <= now {
            self.next_heartbeat = now + settings.heartbeat;
            if now.duration_since(self.last_heard) > settings.heartbeat * 2 {
                return Err(CloseReason::GoingAway);
            }
            if self.wire.may_answer() {
                self.wire
                    .say(ServerMessage::Heartbeat { now: Time::now() }.frame());
                self.wire.say(protocol::ping());
            }
        }
        Ok(())
    }

    async fn hear(&mut self, heard: Heard) -> Result<(), CloseReason> {
        match heard {
            // Boxed, so that an idle connection does not hold room for its largest answer.
            Heard::Text(text) => Box::pin(self.understand(&text)).await,
            Heard::Ping(payload) => {
                self.wire.say(protocol::pong(&payload));
                Ok(())
            }
            Heard::Life => Ok(()),
            Heard::Close => Err(CloseReason::Normal),
        }
    }
}
