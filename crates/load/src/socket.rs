//! One socket of a run: connects, subscribes, checks every frame, and reconnects.
//!
//! Invariant: subscription state outlives connections. Like a browser, a socket reconnects with the versions it has.

use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{FutureExt, SinkExt, StreamExt};
use reqwest::header::HeaderValue;
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::{Error, Message, error::ProtocolError};

use super::arguments::Arguments;
use super::client::{WebSocket, open_websocket};
use super::error::RequestError;
use super::jobs::JobIndex;
use super::messages::{self, Document, ServerMessage};
use super::schedule::Schedule;
use super::stats::{SocketCounts, SocketStats};
use super::subscription_state::{FinalState, FrameCheck, SubscriptionState};
use super::target::Target;

/// Maximum jobs in one `subscribe` message. The hub accepts messages of up to 16 KiB.
const MAX_JOBS_PER_SUBSCRIBE: usize = 128;

/// Backoff after a failed connection: doubles from the first to the second value, with jitter.
const INITIAL_RECONNECT_DELAY: Duration = Duration::from_millis(100);
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(3);

/// Maximum time from the first packet to the last subscribe message.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// Close code of a connection that ends without a close frame (RFC 6455, 7.1.5).
const ABNORMAL_CLOSURE: u16 = 1006;

/// Desired state of all sockets.
#[derive(Clone, Debug)]
pub(super) enum Command {
    /// Connected. Sockets churn, and slow clients pause.
    Connect,
    /// Disconnected until the next command.
    Disconnect,
    /// Connected again after a reconnect storm that started at this time.
    Reconnect(Instant),
    /// Connected without churn and pauses.
    Quiesce,
    /// Ended. Every socket compares its versions with these.
    Verify(Arc<[FinalState]>),
}

/// State shared by the sockets of one thread.
pub(super) struct SocketGroup {
    pub arguments: Arguments,
    pub target: Target,
    pub bearer: HeaderValue,
    pub jobs: Arc<JobIndex>,
    pub schedule: Arc<OnceLock<Schedule>>,
    pub counts: Arc<SocketCounts>,
    pub stats: Arc<Mutex<SocketStats>>,
    pub handshakes: Arc<Semaphore>,
    pub commands: watch::Receiver<Command>,
}

impl SocketGroup {
    fn stats(&self) -> MutexGuard<'_, SocketStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a new connection is due to be closed by churn.
    async fn churn_delay(&self) {
        if self.arguments.churn > 0.0 {
            let seconds = rand::random_range(0.0..2.0) / self.arguments.churn;
            sleep(Duration::from_secs_f64(seconds)).await;
        } else {
            std::future::pending::<()>().await;
        }
    }
}

/// One socket.
pub(super) struct Socket {
    nth: u64,
    is_slow: bool,
    state: SubscriptionState,
    group: Rc<SocketGroup>,
    reason: ConnectReason,
    connect_started: Instant,
    is_current: bool,
    is_done: bool,
}

/// Reason of a connection, which determines the histogram that it is recorded in.
#[derive(Clone, Copy)]
enum ConnectReason {
    First,
    Resume,
    Storm(Instant),
}

/// End of a connection.
enum ConnectionEnd {
    Command,
    Churn,
    /// Closed by the hub, with its close code.
    Closed(u16),
}

impl Socket {
    pub fn new(nth: u64, is_slow: bool, state: SubscriptionState, group: Rc<SocketGroup>) -> Self {
        Self {
            nth,
            is_slow,
            state,
            group,
            reason: ConnectReason::First,
            connect_started: Instant::now(),
            is_current: false,
            is_done: false,
        }
    }

    /// Connects at `start` and follows commands until the final versions have been verified.
    pub async fn run(mut self, start: Instant) {
        sleep_until(start.into()).await;
        let group = self.group.clone();
        let mut commands = group.commands.clone();
        let mut failures = 0;
        // The sender is dropped when the run is aborted.
        while commands.has_changed().is_ok() {
            let command = commands.borrow_and_update().clone();
            match command {
                Command::Verify(final_states) => {
                    group
                        .stats()
                        .violations
                        .add(&self.state.verify(&final_states));
                    return;
                }
                Command::Disconnect => {
                    group.counts.disconnected.fetch_add(1, Relaxed);
                    if commands.changed().await.is_err() {
                        return;
                    }
                    group.counts.disconnected.fetch_sub(1, Relaxed);
                    if let Command::Reconnect(since) = *commands.borrow() {
                        self.reason = ConnectReason::Storm(since);
                    }
                    continue;
                }
                Command::Connect | Command::Reconnect(_) | Command::Quiesce => {}
            }
            // Boxed, so that idle sockets do not reserve memory for the state of a handshake.
            match Box::pin(self.connect()).await {
                Ok(socket) => {
                    group.counts.connected.fetch_add(1, Relaxed);
                    let end = self.receive_until_end(socket, &mut commands).await;
                    group.counts.connected.fetch_sub(1, Relaxed);
                    self.reason = ConnectReason::Resume;
                    // A handshake alone is not a success: a hub over its capacity closes the connection after it.
                    if std::mem::take(&mut self.is_current) {
                        group.counts.current.fetch_sub(1, Relaxed);
                        failures = 0;
                    }
                    let ConnectionEnd::Closed(code) = end else {
                        continue;
                    };
                    *group.stats().closed.entry(code).or_default() += 1;
                }
                Err(error) => group.stats().record_failure(&error),
            }
            let delay = (INITIAL_RECONNECT_DELAY * (1 << failures.min(6))).min(MAX_RECONNECT_DELAY);
            failures += 1;
            tokio::select! {
                () = sleep(delay.mul_f64(rand::random_range(0.5..1.0))) => {}
                _ = commands.changed() => {}
            }
        }
    }

    /// Connects and subscribes with the known versions.
    async fn connect(&mut self) -> Result<WebSocket, RequestError> {
        let group = self.group.clone();
        let _permit = group.handshakes.acquire().await;
        self.connect_started = Instant::now();
        let connect = async {
            let mut socket =
                open_websocket(&group.target, self.nth, self.is_slow, &group.bearer).await?;
            group
                .stats()
                .handshake
                .record(self.connect_started, Instant::now());
            self.state.reconnect();
            let known: Vec<(u32, u32)> = self.state.known_versions().collect();
            for (id, jobs) in known.chunks(MAX_JOBS_PER_SUBSCRIBE).enumerate() {
                let job = |(job, version): &(u32, u32)| json!({ "job": group.jobs.id(*job), "version": version });
                let jobs: Vec<_> = jobs.iter().map(job).collect();
                let message = json!({ "type": "subscribe", "id": id, "jobs": jobs });
                socket.feed(Message::text(message.to_string())).await?;
            }
            socket.flush().await?;
            Ok(socket)
        };
        timeout(HANDSHAKE_TIMEOUT, connect)
            .await
            .unwrap_or(Err(RequestError::Timeout))
    }

    async fn receive_until_end(
        &mut self,
        mut socket: WebSocket,
        commands: &mut watch::Receiver<Command>,
    ) -> ConnectionEnd {
        let group = self.group.clone();
        let mut is_quiesced = matches!(*commands.borrow(), Command::Quiesce);
        let may_churn = matches!(*commands.borrow(), Command::Connect);
        let mut paused_until = None;
        let churn = group.churn_delay();
        tokio::pin!(churn);
        loop {
            tokio::select! {
                biased;
                message = socket.next(), if paused_until.is_none() => {
                    let mut message = Some(message);
                    while let Some(received) = message {
                        if let Err(code) = self.process(received) {
                            return ConnectionEnd::Closed(code);
                        }
                        if !self.is_slow || is_quiesced || !self.is_current {
                            break;
                        }
                        // A slow client reads everything that is available, and then pauses.
                        message = socket.next().now_or_never();
                        paused_until = Some(Instant::now() + group.arguments.slow_read_pause);
                    }
                }
                changed = commands.changed() => match (changed, &*commands.borrow()) {
                    (Err(_), _) | (_, Command::Disconnect | Command::Verify(_)) => return ConnectionEnd::Command,
                    (_, Command::Quiesce) => (is_quiesced, paused_until) = (true, None),
                    (_, Command::Connect | Command::Reconnect(_)) => {}
                },
                () = sleep_until(paused_until.unwrap_or_else(Instant::now).into()), if paused_until.is_some() => {
                    paused_until = None;
                }
                () = &mut churn, if may_churn && !is_quiesced => return ConnectionEnd::Churn,
            }
        }
    }

    /// Processes the next item of the socket. Returns the close code if the connection has ended.
    fn process(&mut self, received: Option<Result<Message, Error>>) -> Result<(), u16> {
        let now = Instant::now();
        let group = self.group.clone();
        let mut stats = group.stats();
        let is_valid = match received {
            Some(Ok(Message::Text(text))) => {
                stats.bytes += text.len() as u64;
                self.process_text(&text, now, &mut stats);
                true
            }
            // The library answers pings.
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => true,
            Some(Ok(Message::Close(frame))) => {
                return Err(frame.map_or(ABNORMAL_CLOSURE, |frame| frame.code.into()));
            }
            Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => {
                return Err(ABNORMAL_CLOSURE);
            }
            Some(
                Ok(Message::Binary(_))
                | Err(Error::Protocol(_) | Error::Capacity(_) | Error::Utf8(_)),
            ) => false,
            None | Some(Err(_)) => return Err(ABNORMAL_CLOSURE),
        };
        if is_valid {
            return Ok(());
        }
        stats.violations.malformed += 1;
        Err(ABNORMAL_CLOSURE)
    }

    fn process_text(&mut self, text: &str, now: Instant, stats: &mut SocketStats) {
        match messages::parse(text) {
            None => stats.violations.malformed += 1,
            Some(ServerMessage::Other) => {}
            Some(ServerMessage::Error(message)) => {
                stats.violations.rejected += 1;
                stats.reason.get_or_insert_with(|| message.into_owned());
            }
            Some(ServerMessage::Subscribed(jobs)) => {
                for (id, outcome) in jobs {
                    match (outcome.as_str(), self.group.jobs.number(&id)) {
                        ("current", Some(job)) => self.state.confirm_current(job),
                        ("sent", _) => {}
                        _ => stats.violations.rejected += 1,
                    }
                }
                self.record_current(now, stats);
            }
            Some(ServerMessage::Job(document)) => self.process_job(&document, now, stats),
        }
    }

    fn process_job(&mut self, document: &Document<'_>, now: Instant, stats: &mut SocketStats) {
        stats.frames += 1;
        let job = self.group.jobs.number(&document.id);
        let check = job.map(|job| self.state.receive(job, document.version, document.is_final));
        match check {
            Some(FrameCheck::Live { skipped }) => {
                stats.deliveries += 1;
                stats.skipped += skipped;
                let due = self.group.schedule.get().and_then(|schedule| {
                    let update = schedule.update(document.stage.as_deref(), document.progress)?;
                    Some(schedule.due(update))
                });
                let latencies = if self.is_slow {
                    &mut stats.slow_delivery
                } else {
                    &mut stats.delivery
                };
                if let Some(due) = due {
                    latencies.record(due, now);
                }
            }
            Some(FrameCheck::CaughtUp) => self.record_current(now, stats),
            Some(FrameCheck::Regression) => stats.violations.regressions += 1,
            Some(FrameCheck::Unexpected) | None => stats.violations.unexpected += 1,
        }
        if !self.is_done && self.state.is_done() {
            self.is_done = true;
            self.group.counts.done.fetch_add(1, Relaxed);
        }
    }

    /// Records the moment at which the socket becomes current.
    fn record_current(&mut self, now: Instant, stats: &mut SocketStats) {
        if self.is_current || !self.state.is_current() {
            return;
        }
        self.is_current = true;
        self.group.counts.current.fetch_add(1, Relaxed);
        match self.reason {
            ConnectReason::First => stats.initial_sync.record(self.connect_started, now),
            ConnectReason::Resume => stats.resume.record(self.connect_started, now),
            ConnectReason::Storm(since) => stats.storm_recovery.record(since, now),
        }
    }
}
