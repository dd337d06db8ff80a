//! One socket of a run, from its first connection to its judgement, through whatever it is ordered.
//!
//! Invariant: its memory outlives its connections, as a browser's does: it comes back with the
//! versions that it has.

use std::cell::RefCell;
use std::fmt::Write;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use actix_http::ws::Frame;
use bytes::BytesMut;
use hyper::header::HeaderValue;
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;

use super::client::{RequestError, upgrade};
use super::jobs::JobIndex;
use super::messages::{self, Document, ServerMessage};
use super::schedule::Schedule;
use super::stats::{SocketCounts, SocketStats};
use super::subscription_state::{FinalState, FrameCheck, SubscriptionState};
use super::target::Target;
use super::wire::Wire;

/// How many jobs one `subscribe` names: within the 16 KiB that a hub reads.
const SUBSCRIBED_AT_ONCE: usize = 128;

/// The first wait before a connection that failed is tried again, and the longest.
const INITIAL_RECONNECT_DELAY: Duration = Duration::from_millis(100);
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(3);

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection that ended without a close frame, by RFC 6455, 7.1.5.
const ABNORMAL: u16 = 1006;

/// What all sockets are told to do.
#[derive(Clone, Debug)]
pub(super) enum Command {
    /// Be connected.
    Connect,
    /// Leave, and do not come back yet.
    Disconnect,
    /// Come back, all at once, since then.
    Reconnect(Instant),
    /// Everybody reads at full speed, and nobody leaves any more.
    Quiesce,
    /// It is over, and this is how the jobs ended.
    Verify(Arc<[FinalState]>),
}

/// What the sockets of one thread share.
pub(super) struct SocketGroup {
    pub target: Target,
    pub bearer: HeaderValue,
    pub jobs: Arc<JobIndex>,
    pub schedule: Arc<OnceLock<Schedule>>,
    pub standing: Arc<SocketCounts>,
    pub tally: Arc<Mutex<SocketStats>>,
    pub handshakes: Arc<Semaphore>,
    pub order: watch::Receiver<Command>,
    /// Share of the sockets that leave each second.
    pub churn: f64,
    pub slow_pause: Duration,
    pub desk: RefCell<BytesMut>,
}

impl SocketGroup {
    fn tally(&self) -> MutexGuard<'_, SocketStats> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long one connection lasts, so that all together come and go as they should.
    async fn churn_delay(&self) {
        if self.churn > 0.0 {
            let seconds = rand::random_range(0.0..2.0) / self.churn;
            sleep(Duration::from_secs_f64(seconds)).await;
        } else {
            std::future::pending::<()>().await;
        }
    }
}

/// A socket.
pub(super) struct Socket {
    nth: u64,
    is_slow: bool,
    memory: SubscriptionState,
    crew: Rc<SocketGroup>,
    arrival: ConnectReason,
    begun: Instant,
    was_current: bool,
    was_done: bool,
}

/// What a connection is made for, and so which times its arrival counts to.
#[derive(Clone, Copy)]
enum ConnectReason {
    First,
    Resume,
    Storm(Instant),
}

/// What became of a connection.
enum ConnectionEnd {
    Ordered,
    Churned,
    Closed(u16),
}

/// What has to be done besides reading.
enum Event {
    Answer,
    Rest,
    Closed(u16),
}

impl Socket {
    pub fn new(nth: u64, is_slow: bool, memory: SubscriptionState, crew: Rc<SocketGroup>) -> Self {
        Self {
            nth,
            is_slow,
            memory,
            crew,
            arrival: ConnectReason::First,
            begun: Instant::now(),
            was_current: false,
            was_done: false,
        }
    }

    /// Lives until it is judged.
    pub async fn live(mut self, start: Instant) {
        tokio::time::sleep_until(start.into()).await;
        let mut order = self.crew.order.clone();
        let mut failures = 0;
        loop {
            if order.has_changed().is_err() {
                // Nobody gives orders any more.
                return;
            }
            let ordered = order.borrow_and_update().clone();
            match ordered {
                Command::Verify(truths) => {
                    let faults = self.memory.judge(&truths);
                    self.crew.tally().faults.add(&faults);
                    return;
                }
                Command::Disconnect => {
                    self.crew.standing.away.fetch_add(1, Relaxed);
                    if order.changed().await.is_err() {
                        return;
                    }
                    self.crew.standing.away.fetch_sub(1, Relaxed);
                    if let Command::Reconnect(since) = *order.borrow() {
                        self.arrival = ConnectReason::Storm(since);
                    }
                    continue;
                }
                Command::Connect | Command::Reconnect(_) | Command::Quiesce => {}
            }
            match self.connect().await {
                Ok(wire) => {
                    self.crew.standing.connected.fetch_add(1, Relaxed);
                    let end = self.stay(wire, &mut order).await;
                    // An upgrade alone is no success: a hub that is full closes after it.
                    if self.was_current {
                        failures = 0;
                    }
                    if let ConnectionEnd::Closed(code) = self.leave(end) {
                        *self.crew.tally().closed.entry(code).or_default() += 1;
                        again(&mut failures, &mut order).await;
                    }
                }
                Err(error) => {
                    self.crew.tally().not_connected(&error);
                    again(&mut failures, &mut order).await;
                }
            }
        }
    }

    /// Connects, upgrades, and asks for its jobs with the versions it has.
    async fn connect(&mut self) -> Result<Wire, RequestError> {
        let crew = self.crew.clone();
        let _turn = crew.handshakes.acquire().await;
        self.begun = Instant::now();
        let connecting = async {
            let stream = crew.target.connect(self.nth, self.is_slow).await?;
            upgrade(&crew.target, stream, &crew.bearer).await
        };
        let connected = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await;
        let (stream, ahead) = connected.map_err(|_| RequestError::Timeout)??;
        crew.tally().handshake.since(self.begun, Instant::now());
        self.memory.reconnect();
        let mut wire = Wire::new(stream, ahead);
        let known: Vec<(u32, u32)> = self.memory.known_versions().collect();
        for (nth, jobs) in known.chunks(SUBSCRIBED_AT_ONCE).enumerate() {
            wire.say(self.subscribe(nth, jobs));
        }
        wire.flush().await?;
        Ok(wire)
    }

    fn subscribe(&self, id: usize, jobs: &[(u32, u32)]) -> String {
        let mut text = format!(r#"{{"type":"subscribe","id":{id},"jobs":["#);
        for (nth, (job, version)) in jobs.iter().enumerate() {
            let comma = if nth == 0 { "" } else { "," };
            let id = self.crew.jobs.id(*job);
            // Into a text it can't fail.
            let _ = write!(text, r#"{comma}{{"job":"{id}","version":{version}}}"#);
        }
        text.push_str("]}");
        text
    }

    async fn stay(
        &mut self,
        mut wire: Wire,
        order: &mut watch::Receiver<Command>,
    ) -> ConnectionEnd {
        let crew = self.crew.clone();
        let mut is_settled = matches!(*order.borrow(), Command::Quiesce);
        let is_back = matches!(*order.borrow(), Command::Reconnect(_));
        let churning = crew.churn_delay();
        tokio::pin!(churning);
        loop {
            let is_slow = self.is_slow && !is_settled;
            let event = tokio::select! {
                biased;
                event = std::future::poll_fn(|cx| self.hear(cx, &mut wire, is_slow)) => event,
                changed = order.changed() => match (changed, &*order.borrow()) {
                    (Err(_), _) | (_, Command::Disconnect | Command::Verify(_)) => return ConnectionEnd::Ordered,
                    (_, Command::Quiesce) => { is_settled = true; continue }
                    (_, Command::Connect | Command::Reconnect(_)) => continue,
                },
                () = &mut churning, if !is_settled && !is_back => return ConnectionEnd::Churned,
            };
            match event {
                Event::Closed(code) => return ConnectionEnd::Closed(code),
                Event::Answer => {
                    if wire.flush().await.is_err() {
                        return ConnectionEnd::Closed(ABNORMAL);
                    }
                }
                Event::Rest => tokio::select! {
                    () = sleep(crew.slow_pause) => {}
                    _ = order.changed() => match *order.borrow() {
                        Command::Disconnect | Command::Verify(_) => return ConnectionEnd::Ordered,
                        Command::Quiesce => is_settled = true,
                        Command::Connect | Command::Reconnect(_) => {}
                    }
                },
            }
        }
    }

    fn leave(&mut self, end: ConnectionEnd) -> ConnectionEnd {
        let standing = &self.crew.standing;
        standing.connected.fetch_sub(1, Relaxed);
        if std::mem::take(&mut self.was_current) {
            standing.current.fetch_sub(1, Relaxed);
        }
        self.arrival = ConnectReason::Resume;
        end
    }

    /// Reads and judges all that there is, until something else has to be done.
    fn hear(&mut self, cx: &mut Context<'_>, wire: &mut Wire, is_slow: bool) -> Poll<Event> {
        let crew = self.crew.clone();
        let mut desk = crew.desk.borrow_mut();
        loop {
            let read = match ready!(wire.poll_read(cx, &mut desk)) {
                Ok(0) | Err(_) => return Poll::Ready(Event::Closed(ABNORMAL)),
                Ok(read) => read,
            };
            let now = Instant::now();
            let mut tally = crew.tally();
            tally.bytes += read as u64;
            let mut event = None;
            loop {
                match wire.frame(&mut desk) {
                    Ok(Some(Frame::Text(text))) => {
                        self.take(&text, now, &mut tally);
                    }
                    Ok(Some(Frame::Ping(payload))) => {
                        wire.pong(payload);
                        event = Some(Event::Answer);
                    }
                    Ok(Some(Frame::Pong(_))) => {}
                    Ok(Some(Frame::Close(reason))) => {
                        let code = reason.map_or(ABNORMAL, |reason| reason.code.into());
                        return Poll::Ready(Event::Closed(code));
                    }
                    Ok(Some(Frame::Binary(_) | Frame::Continuation(_))) | Err(()) => {
                        tally.faults.malformed += 1;
                        return Poll::Ready(Event::Closed(ABNORMAL));
                    }
                    Ok(None) => break,
                }
            }
            if let Some(event) = event {
                return Poll::Ready(event);
            }
            if is_slow && self.was_current {
                return Poll::Ready(Event::Rest);
            }
        }
    }

    /// Takes one message.
    fn take(&mut self, text: &[u8], now: Instant, tally: &mut SocketStats) {
        match messages::read(text) {
            None => tally.faults.malformed += 1,
            Some(ServerMessage::Other) => {}
            Some(ServerMessage::Error(message)) => {
                tally.faults.refused += 1;
                tally.reason.get_or_insert_with(|| message.into_owned());
            }
            Some(ServerMessage::Subscribed(jobs)) => {
                for (id, outcome) in jobs {
                    match (outcome.as_str(), self.crew.jobs.number(&id)) {
                        ("current", Some(job)) => self.memory.current(job),
                        ("sent", _) => {}
                        _ => tally.faults.refused += 1,
                    }
                }
                self.arrive(now, tally);
            }
            Some(ServerMessage::Job(document)) => self.take_job(&document, now, tally),
        }
    }

    fn take_job(&mut self, document: &Document<'_>, now: Instant, tally: &mut SocketStats) {
        tally.frames += 1;
        let verdict = self
            .crew
            .jobs
            .number(&document.id)
            .map(|job| self.memory.see(job, document.version, document.is_final));
        match verdict {
            Some(FrameCheck::Live { skipped }) => {
                tally.deliveries += 1;
                tally.skipped += skipped;
                let due = self.crew.schedule.get().and_then(|schedule| {
                    let update = schedule.update(document.stage.as_deref(), document.progress)?;
                    Some(schedule.due(update))
                });
                if let Some(due) = due {
                    match self.is_slow {
                        true => tally.slow_latency.since(due, now),
                        false => tally.latency.since(due, now),
                    }
                }
            }
            Some(FrameCheck::CaughtUp) => self.arrive(now, tally),
            Some(FrameCheck::Regression) => tally.faults.backwards += 1,
            Some(FrameCheck::Unexpected) | None => tally.faults.strangers += 1,
        }
        if document.is_final && self.memory.is_done() && !self.was_done {
            self.was_done = true;
            self.crew.standing.done.fetch_add(1, Relaxed);
        }
    }

    /// Counts the moment in which everything is shown.
    fn arrive(&mut self, now: Instant, tally: &mut SocketStats) {
        if self.was_current || !self.memory.is_current() {
            return;
        }
        self.was_current = true;
        self.crew.standing.current.fetch_add(1, Relaxed);
        match self.arrival {
            ConnectReason::First => tally.first.since(self.begun, now),
            ConnectReason::Resume => tally.resume.since(self.begun, now),
            ConnectReason::Storm(since) => tally.storm.since(since, now),
        }
    }
}

/// Waits longer each time, and not in step with others; an order ends the wait.
async fn again(failures: &mut u32, order: &mut watch::Receiver<Command>) {
    let wait = (INITIAL_RECONNECT_DELAY * (1 << (*failures).min(6))).min(MAX_RECONNECT_DELAY);
    *failures += 1;
    tokio::select! {
        () = sleep(wait.mul_f64(rand::random_range(0.5..1.0))) => {}
        _ = order.changed() => {}
    }
}
