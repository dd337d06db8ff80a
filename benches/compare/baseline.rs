//! The floor: one thread, one epoll, and for each delivery one `write`.
//!
//! Invariant: it does what every server must and nothing else: no store, no tokens, no bookkeeping but
//! which socket is in which channel. What the kernel does not take waits in memory, without a bound.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::SocketAddr;

use anyhow::Context;
use bytes::Bytes;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

const DOOR: Token = Token(usize::MAX);

struct Client {
    stream: TcpStream,
    heard: Vec<u8>,
    /// Of a socket; none for whoever posts.
    channel: Option<String>,
    waiting: VecDeque<Bytes>,
}

/// What a client wants.
enum Wish {
    Watch { channel: String, key: Vec<u8> },
    Publish { channel: String, message: Bytes },
}

/// Serves until it is killed.
pub fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let mut poll = Poll::new()?;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    let mut door = TcpListener::from_std(socket.into());
    poll.registry()
        .register(&mut door, DOOR, Interest::READABLE)?;
    let mut clients: Slab<Client> = Slab::new();
    let mut channels: HashMap<String, Vec<usize>> = HashMap::new();
    let mut events = Events::with_capacity(1024);
    let mut space = vec![0; 64 * 1024];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == DOOR {
                welcome(&door, &poll, &mut clients)?;
                continue;
            }
            let at = event.token().0;
            let is_well = serve_one(at, &mut clients, &mut channels, &mut space);
            if is_well.is_err() {
                let gone = clients.try_remove(at);
                if let Some(members) = gone.and_then(|gone| channels.get_mut(&gone.channel?)) {
                    members.retain(|member| *member != at);
                }
            }
        }
    }
}

fn welcome(door: &TcpListener, poll: &Poll, clients: &mut Slab<Client>) -> io::Result<()> {
    loop {
        let mut stream = match door.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let place = clients.vacant_entry();
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry()
            .register(&mut stream, Token(place.key()), interest)?;
        place.insert(Client {
            stream,
            heard: Vec::new(),
            channel: None,
            waiting: VecDeque::new(),
        });
    }
}

fn serve_one(
    at: usize,
    clients: &mut Slab<Client>,
    channels: &mut HashMap<String, Vec<usize>>,
    space: &mut [u8],
) -> anyhow::Result<()> {
    let client = clients.get_mut(at).context("gone already")?;
    client.flush()?;
    client.read(space)?;
    if client.channel.is_some() {
        client.heard = Vec::new();
        return Ok(());
    }
    while let Some(wish) = wish(&mut clients[at].heard)? {
        match wish {
            Wish::Watch { channel, key } => {
                let accept = actix_http::ws::hash_key(&key);
                let mut answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                    Upgrade: websocket\r\nSec-WebSocket-Accept: "
                    .to_vec();
                answer.extend(accept);
                answer.extend(b"\r\n\r\n");
                clients[at].send(&answer.into())?;
                channels.entry(channel.clone()).or_default().push(at);
                clients[at].channel = Some(channel);
                clients[at].heard = Vec::new();
                return Ok(());
            }
            Wish::Publish { channel, message } => {
                for &member in channels.get(&channel).into_iter().flatten() {
                    // Who is gone says so by itself.
                    if clients[member].send(&message).is_err() {
                        clients[member].waiting.clear();
                    }
                }
                clients[at].send(&Bytes::from_static(
                    b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n",
                ))?;
            }
        }
    }
    Ok(())
}

impl Client {
    fn read(&mut self, space: &mut [u8]) -> io::Result<()> {
        loop {
            match self.stream.read(space) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.heard.extend_from_slice(&space[..read]);
                    if read < space.len() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, bytes: &Bytes) -> io::Result<()> {
        if !self.waiting.is_empty() {
            self.waiting.push_back(bytes.clone());
            return Ok(());
        }
        match self.stream.write(bytes) {
            Ok(written) if written == bytes.len() => {}
            Ok(written) => self.waiting.push_back(bytes.slice(written..)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.waiting.push_back(bytes.clone());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Some(bytes) = self.waiting.front_mut() {
            match self.stream.write(bytes) {
                Ok(written) if written == bytes.len() => {
                    self.waiting.pop_front();
                }
                Ok(written) => *bytes = bytes.slice(written..),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The next whole request, taken out of what was heard.
fn wish(heard: &mut Vec<u8>) -> anyhow::Result<Option<Wish>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(heard)? else {
        return Ok(None);
    };
    let header = |name: &str| {
        let found = request
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| header.value)
    };
    let channel = request.path.and_then(|path| path.rsplit('/').next());
    let channel = channel.context("no channel")?.to_owned();
    if let Some(key) = header("sec-websocket-key") {
        let key = key.to_vec();
        heard.drain(..head);
        return Ok(Some(Wish::Watch { channel, key }));
    }
    let length = header("content-length").context("no length")?;
    let length: usize = std::str::from_utf8(length)?.parse()?;
    let Some(body) = heard.get(head..head + length) else {
        return Ok(None);
    };
    let message = frame(body)?;
    heard.drain(..head + length);
    Ok(Some(Wish::Publish { channel, message }))
}

/// A text frame, made once for all sockets of the channel.
fn frame(body: &[u8]) -> anyhow::Result<Bytes> {
    let mut frame = vec![0x81];
    if let Ok(short @ 0..126) = u8::try_from(body.len()) {
        frame.push(short);
    } else {
        frame.push(126);
        frame.extend(u16::try_from(body.len())?.to_be_bytes());
    }
    frame.extend_from_slice(body);
    Ok(frame.into())
}
