//! One socket of a run: connects, subscribes, checks every frame, and reconnects.
//!
//! Invariant: subscription state outlives connections. Like a browser, a socket reconnects with the versions it has.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::{FutureExt, SinkExt, StreamExt};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::{Error, Message, error::ProtocolError};

use super::context::Context;
use super::messages::{self, Document, ServerMessage};
use super::schedule::Schedule;
use super::stats::SocketStats;
use super::subscription_state::{FinalState, FrameCheck, SubscriptionState};
use super::target::WebSocket;

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
    pub context: Arc<Context>,
    pub stats: Arc<Mutex<SocketStats>>,
    pub commands: watch::Receiver<Command>,
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

impl Socket {
    /// Creates socket number `nth`.
    pub fn new(nth: u64, group: Rc<SocketGroup>) -> Self {
        let arguments = &group.context.arguments;
        let (subscriptions, jobs) = (arguments.subscriptions, arguments.jobs);
        let first = (nth * subscriptions) % jobs;
        // Slow clients are evenly distributed, so that every thread has its share.
        let slow_before = |nth: u64| (nth as f64 * arguments.slow).floor();
        Self {
            nth,
            is_slow: slow_before(nth + 1) > slow_before(nth),
            state: SubscriptionState::new(first as u32, subscriptions as u32, jobs as u32),
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
                    group.stats.lock().violations += self.state.verify(&final_states);
                    return;
                }
                Command::Disconnect => {
                    group.stats.lock().disconnected += 1;
                    if commands.changed().await.is_err() {
                        return;
                    }
                    group.stats.lock().disconnected -= 1;
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
                    group.stats.lock().connected += 1;
                    let close_code = self.receive_until_end(socket, &mut commands).await;
                    group.stats.lock().connected -= 1;
                    self.reason = ConnectReason::Resume;
                    // A handshake alone is not a success: a hub over its capacity closes the connection after it.
                    if std::mem::take(&mut self.is_current) {
                        group.stats.lock().current -= 1;
                        failures = 0;
                    }
                    let Some(code) = close_code else {
                        continue;
                    };
                    group.stats.lock().connections.closed.record(code);
                }
                Err(error) => group.stats.lock().connections.failures.record(&error),
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
    async fn connect(&mut self) -> anyhow::Result<WebSocket> {
        let group = self.group.clone();
        let context = &group.context;
        let _permit = context.handshakes.acquire().await;
        self.connect_started = Instant::now();
        let connect = async {
            let (nth, is_slow) = (self.nth, self.is_slow);
            let socket = context.target.open_websocket(nth, is_slow, &context.bearer);
            let mut socket = socket.await?;
            let (start, end) = (self.connect_started, Instant::now());
            group.stats.lock().connections.handshake.record(start, end);
            self.state.reconnect();
            let known: Vec<(u32, u32)> = self.state.known_versions().collect();
            for (id, jobs) in known.chunks(MAX_JOBS_PER_SUBSCRIBE).enumerate() {
                let job = |(job, version): &(u32, u32)| json!({ "job": context.job_id(*job), "version": version });
                let jobs: Vec<_> = jobs.iter().map(job).collect();
                let message = json!({ "type": "subscribe", "id": id, "jobs": jobs });
                socket.feed(Message::text(message.to_string())).await?;
            }
            socket.flush().await?;
            Ok(socket)
        };
        let connected = timeout(HANDSHAKE_TIMEOUT, connect).await;
        connected.context("WebSocket handshake timed out")?
    }

    /// Returns the close code if the hub closed the connection, and `None` if a command or churn ended it.
    async fn receive_until_end(
        &mut self,
        mut socket: WebSocket,
        commands: &mut watch::Receiver<Command>,
    ) -> Option<u16> {
        let arguments = &self.group.clone().context.arguments;
        let mut is_quiesced = matches!(*commands.borrow(), Command::Quiesce);
        let may_churn = arguments.churn > 0.0 && matches!(*commands.borrow(), Command::Connect);
        // Not finite without churn.
        let churn_seconds = rand::random_range(0.0..2.0) / arguments.churn;
        let churn = sleep(Duration::try_from_secs_f64(churn_seconds).unwrap_or_default());
        tokio::pin!(churn);
        let mut paused_until = None;
        loop {
            tokio::select! {
                biased;
                message = socket.next(), if paused_until.is_none() => {
                    let mut message = Some(message);
                    while let Some(received) = message {
                        if let Err(code) = self.process(received) {
                            return Some(code);
                        }
                        if !self.is_slow || is_quiesced || !self.is_current {
                            break;
                        }
                        // A slow client reads everything that is available, and then pauses.
                        message = socket.next().now_or_never();
                        paused_until = Some(Instant::now() + arguments.slow_read_pause);
                    }
                }
                changed = commands.changed() => match (changed, &*commands.borrow()) {
                    (Err(_), _) | (_, Command::Disconnect | Command::Verify(_)) => return None,
                    (_, Command::Quiesce) => (is_quiesced, paused_until) = (true, None),
                    (_, Command::Connect | Command::Reconnect(_)) => {}
                },
                () = sleep_until(paused_until.unwrap_or_else(Instant::now).into()), if paused_until.is_some() => {
                    paused_until = None;
                }
                () = &mut churn, if may_churn && !is_quiesced => return None,
            }
        }
    }

    /// Processes the next item of the socket. Returns the close code if the connection has ended.
    fn process(&mut self, received: Option<Result<Message, Error>>) -> Result<(), u16> {
        let now = Instant::now();
        let group = self.group.clone();
        let mut stats = group.stats.lock();
        match received {
            Some(Ok(Message::Text(text))) => {
                stats.bytes += text.len() as u64;
                self.process_text(&text, now, &mut stats);
                return Ok(());
            }
            // The library answers pings.
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => return Ok(()),
            Some(Ok(Message::Close(Some(frame)))) => return Err(frame.code.into()),
            Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => {}
            Some(
                Ok(Message::Binary(_))
                | Err(Error::Protocol(_) | Error::Capacity(_) | Error::Utf8(_)),
            ) => stats.violations.malformed += 1,
            None | Some(Ok(Message::Close(None)) | Err(_)) => {}
        }
        Err(ABNORMAL_CLOSURE)
    }

    fn process_text(&mut self, text: &str, now: Instant, stats: &mut SocketStats) {
        match messages::parse(text) {
            None => stats.violations.malformed += 1,
            Some(ServerMessage::Other) => {}
            Some(ServerMessage::Error(message)) => {
                stats.violations.rejected += 1;
                stats.connections.failures.explain(&message);
            }
            Some(ServerMessage::Subscribed(jobs)) => {
                for (id, outcome) in jobs {
                    match (outcome.as_str(), self.group.context.job_number(&id)) {
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
        let context = &self.group.context;
        stats.frames += 1;
        let job = context.job_number(&document.id);
        let check = job.map(|job| self.state.receive(job, document.version, document.is_final));
        match check {
            Some(FrameCheck::Live { skipped }) => {
                stats.deliveries += 1;
                stats.skipped += skipped;
                let latencies = if self.is_slow {
                    &mut stats.slow_delivery
                } else {
                    &mut stats.delivery
                };
                let (stage, progress) = (document.stage.as_deref(), document.progress);
                let schedule = context.schedule.get();
                let due =
                    |schedule: &Schedule| Some(schedule.due(schedule.update(stage, progress)?));
                if let Some(due) = schedule.and_then(due) {
                    latencies.record(due, now);
                }
            }
            Some(FrameCheck::CaughtUp) => self.record_current(now, stats),
            Some(FrameCheck::Regression) => stats.violations.regressions += 1,
            Some(FrameCheck::Unexpected) | None => stats.violations.unexpected += 1,
        }
        if !self.is_done && self.state.is_done() {
            self.is_done = true;
            stats.done += 1;
        }
    }

    /// Records the moment at which the socket becomes current.
    fn record_current(&mut self, now: Instant, stats: &mut SocketStats) {
        if self.is_current || !self.state.is_current() {
            return;
        }
        self.is_current = true;
        stats.current += 1;
        let (latencies, since) = match self.reason {
            ConnectReason::First => (&mut stats.connections.initial_sync, self.connect_started),
            ConnectReason::Resume => (&mut stats.connections.resume, self.connect_started),
            ConnectReason::Storm(since) => (&mut stats.storm_recovery, since),
        };
        latencies.record(since, now);
    }
}
