//! The generator's sockets: thousands of WebSocket clients on one thread.
//!
//! Invariant: what a socket was sent is read whole and in order; the board knows of each which update
//! it has, whether one ever went back, and whether it is still there.

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

/// How long one handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

const READ: usize = 64 * 1024;

thread_local! {
    static SPACE: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// Where and how sockets are opened.
#[derive(Clone)]
pub struct Door {
    /// Where the server listens; sockets are spread over several addresses alike.
    pub addresses: Vec<SocketAddr>,
    /// How a socket of each channel is greeted.
    pub greetings: Vec<Greeting>,
    /// Handshakes under way at once.
    pub at_once: usize,
}

/// What a socket says to be let in.
#[derive(Clone)]
pub struct Greeting {
    /// The path of the upgrade.
    pub path: String,
    /// Further headers, each line ended.
    pub headers: String,
    /// What it says first, where that is how it subscribes.
    pub subscribe: Option<String>,
}

/// What all sockets write down.
pub struct Board {
    clock: Cell<Option<Clock>>,
    channels: RefCell<Vec<Channel>>,
    /// Stamped messages read so far.
    pub received: Cell<u64>,
    /// Messages whose number was not above the one before.
    pub backwards: Cell<u64>,
    /// Sockets that ended though nobody had asked.
    pub lost: Cell<u64>,
    latencies: RefCell<Histogram<u64>>,
    reached: Notify,
    is_paused: Cell<bool>,
    resumed: Notify,
}

/// One channel's sockets, as the board sees them.
#[derive(Clone, Copy, Default)]
struct Channel {
    sockets: usize,
    wanted: u64,
    current: usize,
}

impl Channel {
    fn behind(self) -> usize {
        if self.wanted == 0 {
            return 0;
        }
        self.sockets - self.current
    }
}

impl Board {
    fn heard(&self, channel: usize, newest: &mut u64, stamp: Stamp) {
        self.received.set(self.received.get() + 1);
        if stamp.number <= *newest {
            self.backwards.set(self.backwards.get() + 1);
            return;
        }
        let mut channels = self.channels.borrow_mut();
        let it = &mut channels[channel];
        if *newest < it.wanted && stamp.number >= it.wanted {
            it.current += 1;
            if it.behind() == 0 {
                self.reached.notify_waiters();
            }
        }
        *newest = stamp.number;
        if let Some(clock) = self.clock.get() {
            let took = clock.now().saturating_sub(stamp.due);
            self.latencies.borrow_mut().saturating_record(took / 1000);
        }
    }

    /// From now on, every socket of the channel is behind until it has this update. To be said
    /// before the update is sent.
    pub fn want(&self, channel: usize, number: u64) {
        let mut channels = self.channels.borrow_mut();
        channels[channel].wanted = number;
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
    pub async fn reached(&self, patience: Duration) -> anyhow::Result<()> {
        let all = async {
            loop {
                let reached = self.reached.notified();
                if self.behind() == 0 {
                    return;
                }
                reached.await;
            }
        };
        if tokio::time::timeout(patience, all).await.is_err() {
            bail!(
                "{} sockets are behind, {} were lost",
                self.behind(),
                self.lost.get()
            );
        }
        Ok(())
    }

    /// From now on, how late each message is.
    pub fn begin_latencies(&self, clock: Clock) {
        self.latencies.borrow_mut().reset();
        self.clock.set(Some(clock));
    }

    /// How late they were, in microseconds.
    pub fn end_latencies(&self) -> Histogram<u64> {
        self.clock.set(None);
        self.latencies.borrow().clone()
    }

    /// Nobody reads until [`Board::resume`].
    pub fn pause(&self) {
        self.is_paused.set(true);
    }

    /// Everybody reads again.
    pub fn resume(&self) {
        self.is_paused.set(false);
        self.resumed.notify_waiters();
    }
}

/// So many sockets of one server; dropped, all are closed.
pub struct Crowd {
    /// What they have heard.
    pub board: Rc<Board>,
    sockets: JoinSet<()>,
}

impl Crowd {
    /// Opens `sockets` of them, spread over the door's channels evenly, one channel each. They are
    /// behind until they have the update `wanted`; with 0, they are not.
    pub async fn open(door: &Door, sockets: usize, wanted: u64) -> anyhow::Result<Self> {
        let channel = Channel {
            wanted,
            ..Channel::default()
        };
        let board = Rc::new(Board {
            clock: Cell::new(None),
            channels: RefCell::new(vec![channel; door.greetings.len()]),
            received: Cell::new(0),
            backwards: Cell::new(0),
            lost: Cell::new(0),
            latencies: RefCell::new(Histogram::new_with_bounds(1, 600_000_000, 3)?),
            reached: Notify::new(),
            is_paused: Cell::new(false),
            resumed: Notify::new(),
        });
        let mut crowd = Self {
            board,
            sockets: JoinSet::new(),
        };
        let turns = Rc::new(Semaphore::new(door.at_once));
        let mut opening = JoinSet::new();
        for at in 0..sockets {
            let channel = at % door.greetings.len();
            let turn = at / door.greetings.len();
            let address = door.addresses[turn % door.addresses.len()];
            let greeting = door.greetings[channel].clone();
            let turns = Rc::clone(&turns);
            opening.spawn_local(async move {
                let _turn = turns.acquire().await?;
                let opened =
                    tokio::time::timeout(CONNECT_TIMEOUT, Socket::open(address, &greeting));
                let mut socket = opened.await.context("no handshake in time")??;
                socket.channel = channel;
                anyhow::Ok(socket)
            });
        }
        while let Some(opened) = opening.join_next().await {
            crowd.admit(opened??);
        }
        Ok(crowd)
    }

    fn admit(&mut self, socket: Socket) {
        self.board.channels.borrow_mut()[socket.channel].sockets += 1;
        let board = Rc::clone(&self.board);
        self.sockets.spawn_local(async move {
            if socket.read(&board).await.is_err() {
                board.lost.set(board.lost.get() + 1);
            }
        });
    }

    /// Nobody was lost, and no socket was ever shown an older update after a newer one.
    pub fn is_sound(&self) -> anyhow::Result<()> {
        ensure!(
            self.board.lost.get() == 0,
            "{} sockets were lost",
            self.board.lost.get()
        );
        ensure!(
            self.board.backwards.get() == 0,
            "{} messages went back in time",
            self.board.backwards.get()
        );
        Ok(())
    }
}

struct Socket {
    stream: TcpStream,
    channel: usize,
    rest: Vec<u8>,
}

impl Socket {
    async fn open(address: SocketAddr, greeting: &Greeting) -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_nodelay(true)?;
        let mut stream = socket.connect(address).await?;
        let mut request = format!(
            "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{}\r\n",
            greeting.path, greeting.headers
        )
        .into_bytes();
        if let Some(text) = &greeting.subscribe {
            request.extend(masked(0x81, text.as_bytes()));
        }
        stream.write_all(&request).await?;
        let mut heard = Vec::with_capacity(512);
        let head = loop {
            let read = stream.read_buf(&mut heard).await?;
            ensure!(read > 0, "closed instead of upgraded");
            if let Some(at) = heard.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
        };
        ensure!(
            heard.starts_with(b"HTTP/1.1 101"),
            "not upgraded: {}",
            String::from_utf8_lossy(&heard)
        );
        Ok(Self {
            stream,
            channel: 0,
            rest: heard.split_off(head),
        })
    }

    /// Reads until it is closed.
    async fn read(mut self, board: &Board) -> anyhow::Result<()> {
        let mut newest = 0;
        let begun = std::mem::take(&mut self.rest);
        self.hear(board, &mut newest, &begun)?;
        loop {
            while board.is_paused.get() {
                board.resumed.notified().await;
            }
            let read = poll_fn(|cx| {
                SPACE.with_borrow_mut(|space| {
                    let mut space = ReadBuf::new(space);
                    std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space))?;
                    let bytes = space.filled();
                    if bytes.is_empty() {
                        return std::task::Poll::Ready(Err(anyhow::anyhow!("closed")));
                    }
                    std::task::Poll::Ready(hear(&mut self.rest, bytes, &self.stream, |message| {
                        if let Some(stamp) = Stamp::find(message) {
                            board.heard(self.channel, &mut newest, stamp);
                        }
                    }))
                })
            });
            read.await?;
        }
    }

    fn hear(&mut self, board: &Board, newest: &mut u64, bytes: &[u8]) -> anyhow::Result<()> {
        let channel = self.channel;
        hear(&mut self.rest, bytes, &self.stream, |message| {
            if let Some(stamp) = Stamp::find(message) {
                board.heard(channel, newest, stamp);
            }
        })
    }
}

/// Takes the whole frames out of what came in; what is left of one waits in `rest`.
fn hear(
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
                // Where there is no room for it the next ping is answered.
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

/// The first frame of a server: opcode, payload and where it ends.
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

/// A client's frame. Its mask is zero, which leaves the bytes as they are.
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
