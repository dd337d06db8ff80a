//! WebSocket and SSE clients of the load generator: thousands on one thread.
//!
//! Invariant: every frame is read in order. For every socket the benchmark knows its newest update, whether updates
//! decreased, and whether the connection was lost.

mod socket;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use crate::message::{Clock, Stamp};
use socket::Socket;

/// Maximum time of a handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Address of a server and parameters of its sockets.
#[derive(Clone)]
pub struct Endpoint {
    /// Addresses of the server's nodes. Sockets are distributed evenly.
    pub addresses: Vec<SocketAddr>,
    /// Subscription of each channel.
    pub subscriptions: Vec<Subscription>,
    /// Maximum concurrent handshakes.
    pub max_handshakes: usize,
}

/// Protocol of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    WebSocket,
    EventStream,
}

/// Request that opens a socket and subscribes it to a channel.
#[derive(Clone)]
pub struct Subscription {
    pub protocol: Protocol,
    /// Path of the socket.
    pub path: String,
    /// Additional header lines, each with its CRLF.
    pub headers: String,
    /// First message, if the server expects one.
    pub message: Option<String>,
}

/// Observations of all sockets.
pub struct Observations {
    clock: Cell<Option<Clock>>,
    channels: RefCell<Vec<Channel>>,
    /// Messages with a stamp received so far.
    pub received: Cell<u64>,
    /// Messages whose number was not higher than the previous one.
    pub regressions: Cell<u64>,
    /// Sockets that the server closed.
    pub lost: Cell<u64>,
    latencies: RefCell<Histogram<u64>>,
    became_current: Notify,
    is_paused: Cell<bool>,
    resumed: Notify,
}

/// State of the sockets of one channel.
#[derive(Clone, Copy, Default)]
struct Channel {
    sockets: usize,
    /// Number of the newest update, or 0 if none is expected.
    expected: u64,
    /// Sockets that have received it.
    current: usize,
}

impl Channel {
    fn behind(self) -> usize {
        if self.expected == 0 {
            0
        } else {
            self.sockets - self.current
        }
    }
}

impl Observations {
    fn record(&self, channel: usize, newest: &mut u64, stamp: Stamp) {
        self.received.set(self.received.get() + 1);
        if stamp.number <= *newest {
            self.regressions.set(self.regressions.get() + 1);
            return;
        }
        let mut channels = self.channels.borrow_mut();
        let channel = &mut channels[channel];
        if *newest < channel.expected && stamp.number >= channel.expected {
            channel.current += 1;
            if channel.behind() == 0 {
                self.became_current.notify_waiters();
            }
        }
        *newest = stamp.number;
        if let Some(clock) = self.clock.get() {
            let latency = clock.now().saturating_sub(stamp.due);
            self.latencies
                .borrow_mut()
                .saturating_record(latency / 1000);
        }
    }

    /// Marks every socket of the channel as behind until it receives update `number`. Call it before the update is
    /// sent.
    pub fn expect(&self, channel: usize, number: u64) {
        let mut channels = self.channels.borrow_mut();
        channels[channel].expected = number;
        channels[channel].current = 0;
    }

    fn behind(&self) -> usize {
        self.channels
            .borrow()
            .iter()
            .map(|channel| channel.behind())
            .sum()
    }

    /// Waits until no socket is behind.
    pub async fn wait_until_current(&self, timeout: Duration) -> anyhow::Result<()> {
        let all = async {
            loop {
                let became_current = self.became_current.notified();
                if self.behind() == 0 {
                    return;
                }
                became_current.await;
            }
        };
        if tokio::time::timeout(timeout, all).await.is_err() {
            bail!(
                "{} sockets are behind, {} were lost",
                self.behind(),
                self.lost.get()
            );
        }
        Ok(())
    }

    /// Starts to record the latency of each message.
    pub fn start_latencies(&self, clock: Clock) {
        self.latencies.borrow_mut().reset();
        self.clock.set(Some(clock));
    }

    /// Stops recording and returns the latencies in microseconds.
    pub fn finish_latencies(&self) -> Histogram<u64> {
        self.clock.set(None);
        self.latencies.borrow().clone()
    }

    /// Stops all reading until [`Observations::resume`].
    pub fn pause(&self) {
        self.is_paused.set(true);
    }

    async fn until_resumed(&self) {
        while self.is_paused.get() {
            self.resumed.notified().await;
        }
    }

    /// Resumes reading.
    pub fn resume(&self) {
        self.is_paused.set(false);
        self.resumed.notify_waiters();
    }
}

/// Open sockets of one server. Dropping them closes them.
pub struct Clients {
    pub observations: Rc<Observations>,
    sockets: JoinSet<()>,
}

impl Clients {
    /// Opens sockets, distributed evenly over the channels, one channel each. They are behind until they receive update
    /// `expected`. 0 means that they are current.
    pub async fn open(endpoint: &Endpoint, sockets: usize, expected: u64) -> anyhow::Result<Self> {
        let channel = Channel {
            expected,
            ..Channel::default()
        };
        let observations = Rc::new(Observations {
            clock: Cell::new(None),
            channels: RefCell::new(vec![channel; endpoint.subscriptions.len()]),
            received: Cell::new(0),
            regressions: Cell::new(0),
            lost: Cell::new(0),
            latencies: RefCell::new(Histogram::new_with_bounds(1, 600_000_000, 3)?),
            became_current: Notify::new(),
            is_paused: Cell::new(false),
            resumed: Notify::new(),
        });
        let mut clients = Self {
            observations,
            sockets: JoinSet::new(),
        };
        let permits = Rc::new(Semaphore::new(endpoint.max_handshakes));
        let mut opening = JoinSet::new();
        for nth in 0..sockets {
            let channel = nth % endpoint.subscriptions.len();
            let nth_of_channel = nth / endpoint.subscriptions.len();
            let address = endpoint.addresses[nth_of_channel % endpoint.addresses.len()];
            let subscription = endpoint.subscriptions[channel].clone();
            let permits = Rc::clone(&permits);
            opening.spawn_local(async move {
                let _permit = permits.acquire().await?;
                let opened =
                    tokio::time::timeout(CONNECT_TIMEOUT, Socket::open(address, &subscription));
                let socket = opened.await.context("handshake timed out")??;
                anyhow::Ok((channel, socket))
            });
        }
        while let Some(opened) = opening.join_next().await {
            let (channel, socket) = opened??;
            clients.add(channel, socket);
        }
        Ok(clients)
    }

    fn add(&mut self, channel: usize, socket: Socket) {
        self.observations.channels.borrow_mut()[channel].sockets += 1;
        let observations = Rc::clone(&self.observations);
        self.sockets.spawn_local(async move {
            let mut newest = 0;
            let record = |stamp| observations.record(channel, &mut newest, stamp);
            let pause = || observations.until_resumed();
            // Returns when the connection is closed.
            if socket.read(pause, record).await.is_err() {
                observations.lost.set(observations.lost.get() + 1);
            }
        });
    }

    /// Checks that no socket was lost and that updates increased on every socket.
    ///
    /// # Errors
    /// The number of sockets or messages that violate this.
    pub fn verify(&self) -> anyhow::Result<()> {
        ensure!(
            self.observations.lost.get() == 0,
            "{} sockets were lost",
            self.observations.lost.get()
        );
        ensure!(
            self.observations.regressions.get() == 0,
            "{} messages were not newer than the previous one",
            self.observations.regressions.get()
        );
        Ok(())
    }
}
