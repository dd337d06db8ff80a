//! WebSocket clients of the load generator: thousands on one thread.
//!
//! The clients are written by hand, with one read buffer per thread and without masking. The generator has one core, and
//! a library that costs more per frame than the floor would limit what the benchmark can measure.
//!
//! Invariant: every frame is read in order. For every socket the benchmark knows its newest update, whether updates
//! decreased, and whether the connection was lost.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use crate::message::{Clock, Stamp};

/// Maximum time of a handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

const READ_BUFFER_BYTES: usize = 64 * 1024;

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BUFFER_BYTES]);
}

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

/// Request that opens a socket and subscribes it to a channel.
#[derive(Clone)]
pub struct Subscription {
    /// Path of the WebSocket.
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
                let mut socket = opened.await.context("handshake timed out")??;
                socket.channel = channel;
                anyhow::Ok(socket)
            });
        }
        while let Some(opened) = opening.join_next().await {
            clients.add(opened??);
        }
        Ok(clients)
    }

    fn add(&mut self, socket: Socket) {
        self.observations.channels.borrow_mut()[socket.channel].sockets += 1;
        let observations = Rc::clone(&self.observations);
        self.sockets.spawn_local(async move {
            if socket.read(&observations).await.is_err() {
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

struct Socket {
    stream: TcpStream,
    channel: usize,
    /// Start of a frame that has not been received completely.
    rest: Vec<u8>,
}

impl Socket {
    async fn open(address: SocketAddr, subscription: &Subscription) -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_nodelay(true)?;
        let mut stream = socket.connect(address).await?;
        let mut request = format!(
            "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{}\r\n",
            subscription.path, subscription.headers
        )
        .into_bytes();
        if let Some(text) = &subscription.message {
            request.extend(masked(0x81, text.as_bytes()));
        }
        stream.write_all(&request).await?;
        let mut response = Vec::with_capacity(512);
        let head = loop {
            let read = stream.read_buf(&mut response).await?;
            ensure!(read > 0, "connection closed during the handshake");
            if let Some(at) = response.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
        };
        ensure!(
            response.starts_with(b"HTTP/1.1 101"),
            "handshake rejected: {}",
            String::from_utf8_lossy(&response)
        );
        Ok(Self {
            stream,
            channel: 0,
            rest: response.split_off(head),
        })
    }

    /// Reads until the connection is closed.
    async fn read(mut self, observations: &Observations) -> anyhow::Result<()> {
        let mut newest = 0;
        let received = std::mem::take(&mut self.rest);
        self.process(observations, &mut newest, &received)?;
        loop {
            while observations.is_paused.get() {
                observations.resumed.notified().await;
            }
            let read = poll_fn(|cx| {
                READ_BUFFER.with_borrow_mut(|buffer| {
                    let mut buffer = ReadBuf::new(buffer);
                    std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
                    let bytes = buffer.filled();
                    if bytes.is_empty() {
                        return std::task::Poll::Ready(Err(anyhow::anyhow!("closed")));
                    }
                    std::task::Poll::Ready(process(
                        &mut self.rest,
                        bytes,
                        &self.stream,
                        |message| {
                            if let Some(stamp) = Stamp::find(message) {
                                observations.record(self.channel, &mut newest, stamp);
                            }
                        },
                    ))
                })
            });
            read.await?;
        }
    }

    fn process(
        &mut self,
        observations: &Observations,
        newest: &mut u64,
        bytes: &[u8],
    ) -> anyhow::Result<()> {
        let channel = self.channel;
        process(&mut self.rest, bytes, &self.stream, |message| {
            if let Some(stamp) = Stamp::find(message) {
                observations.record(channel, newest, stamp);
            }
        })
    }
}

/// Calls `message` for every complete text frame and answers pings. Keeps an incomplete frame in `rest`.
fn process(
    rest: &mut Vec<u8>,
    bytes: &[u8],
    stream: &TcpStream,
    mut message: impl FnMut(&[u8]),
) -> anyhow::Result<()> {
    let joined;
    let mut left = if rest.is_empty() {
        bytes
    } else {
        rest.extend_from_slice(bytes);
        joined = std::mem::take(rest);
        &joined
    };
    while let Some((opcode, payload, end)) = frame(left) {
        match opcode {
            0x1 => message(payload),
            0x8 => bail!("closed with {payload:?}"),
            0x9 => {
                // If the send buffer is full, the next ping is answered.
                if let Err(error) = stream.try_write(&masked(0x8A, payload)) {
                    ensure!(error.kind() == std::io::ErrorKind::WouldBlock, "{error}");
                }
            }
            _ => {}
        }
        left = &left[end..];
    }
    if !left.is_empty() {
        *rest = left.to_vec();
    }
    Ok(())
}

/// Returns the opcode, payload and length of the first frame, or `None` if it is incomplete.
fn frame(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (start, length) = match second {
        126 => {
            let length = bytes.get(2..4)?;
            (4, usize::from(u16::from_be_bytes([length[0], length[1]])))
        }
        127 => {
            let length: [u8; 8] = bytes.get(2..10)?.try_into().ok()?;
            (10, usize::try_from(u64::from_be_bytes(length)).ok()?)
        }
        short => (2, usize::from(short)),
    };
    let payload = bytes.get(start..start + length)?;
    Some((first & 0x0F, payload, start + length))
}

/// Returns a client frame. Its mask is zero, which leaves the payload unchanged.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short), _) if short < 126 => frame.push(0x80 | short),
        (_, Ok(medium)) => {
            frame.push(0x80 | 126);
            frame.extend(medium.to_be_bytes());
        }
        (_, Err(_)) => {
            frame.push(0x80 | 127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend_from_slice(payload);
    frame
}
