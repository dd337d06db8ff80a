//! The floors, which are the baselines of the benchmark: one thread, one epoll, and one `write` per delivery.
//!
//! A floor keeps a list of sockets per channel and has neither tokens nor versions. The durable floor collects the
//! messages of one iteration of its event loop, appends them to a file and calls `fdatasync` once. Only then does it
//! deliver the messages and respond to the publishers. Data that the kernel does not accept is buffered in memory
//! without a limit.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use bytes::Bytes;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

const LISTENER: Token = Token(usize::MAX);

/// Response to a publisher.
static ACCEPTED: Bytes = Bytes::from_static(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n");

struct Client {
    stream: TcpStream,
    received: Vec<u8>,
    /// Channel of a WebSocket, or `None` for a publisher.
    channel: Option<String>,
    waiting: VecDeque<Bytes>,
}

/// Request of a client.
enum Request {
    Subscribe { channel: String, key: Vec<u8> },
    Publish { channel: String, message: Bytes },
}

/// A published message and the key of its publisher. The message is delivered at the end of the event loop iteration.
struct Publication {
    publisher: usize,
    channel: String,
    message: Bytes,
}

/// Serves until the process is killed. With a log, messages are on disk before they are delivered.
pub fn serve(address: SocketAddr, log: Option<&Path>) -> anyhow::Result<()> {
    let log = log.map(|path| File::options().create(true).append(true).open(path));
    let mut log = log.transpose()?;
    let mut poll = Poll::new()?;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    let mut listener = TcpListener::from_std(socket.into());
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut clients: Slab<Client> = Slab::new();
    let mut channels: HashMap<String, Vec<usize>> = HashMap::new();
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    let mut turn = Vec::new();
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut clients)?;
                continue;
            }
            let id = event.token().0;
            let result = serve_client(id, &mut clients, &mut channels, &mut buffer, &mut turn);
            if result.is_err() {
                let client = clients.try_remove(id);
                if let Some(members) = client.and_then(|client| channels.get_mut(&client.channel?))
                {
                    members.retain(|member| *member != id);
                }
            }
        }
        if let Some(log) = &mut log {
            append(log, &turn)?;
        }
        for publication in turn.drain(..) {
            deliver(&publication, &mut clients, &channels);
        }
    }
}

/// Appends the messages to the log and syncs it to disk.
fn append(log: &mut File, turn: &[Publication]) -> io::Result<()> {
    if turn.is_empty() {
        return Ok(());
    }
    let messages: Vec<&[u8]> = turn
        .iter()
        .map(|publication| &*publication.message)
        .collect();
    log.write_all(&messages.concat())?;
    log.sync_data()
}

/// Sends a message to the sockets of its channel, and then the response to the publisher.
fn deliver(
    publication: &Publication,
    clients: &mut Slab<Client>,
    channels: &HashMap<String, Vec<usize>>,
) {
    let members = channels.get(&publication.channel).into_iter().flatten();
    let messages = members.map(|&member| (member, &publication.message));
    for (id, bytes) in messages.chain([(publication.publisher, &ACCEPTED)]) {
        // The event loop removes the socket when epoll reports that it is closed.
        if let Some(client) = clients.get_mut(id)
            && client.send(bytes).is_err()
        {
            client.waiting.clear();
        }
    }
}

fn accept(listener: &TcpListener, poll: &Poll, clients: &mut Slab<Client>) -> io::Result<()> {
    loop {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let entry = clients.vacant_entry();
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry()
            .register(&mut stream, Token(entry.key()), interest)?;
        entry.insert(Client {
            stream,
            received: Vec::new(),
            channel: None,
            waiting: VecDeque::new(),
        });
    }
}

fn serve_client(
    id: usize,
    clients: &mut Slab<Client>,
    channels: &mut HashMap<String, Vec<usize>>,
    buffer: &mut [u8],
    turn: &mut Vec<Publication>,
) -> anyhow::Result<()> {
    let client = clients.get_mut(id).context("client was removed")?;
    client.flush()?;
    client.read(buffer)?;
    if client.channel.is_some() {
        client.received = Vec::new();
        return Ok(());
    }
    while let Some(request) = parse(&mut clients[id].received)? {
        match request {
            Request::Subscribe { channel, key } => {
                let accept = actix_http::ws::hash_key(&key);
                let mut response = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                    Upgrade: websocket\r\nSec-WebSocket-Accept: "
                    .to_vec();
                response.extend(accept);
                response.extend(b"\r\n\r\n");
                clients[id].send(&response.into())?;
                channels.entry(channel.clone()).or_default().push(id);
                clients[id].channel = Some(channel);
                clients[id].received = Vec::new();
                return Ok(());
            }
            Request::Publish { channel, message } => turn.push(Publication {
                publisher: id,
                channel,
                message,
            }),
        }
    }
    Ok(())
}

impl Client {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.received.extend_from_slice(&buffer[..read]);
                    if read < buffer.len() {
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

/// Removes the next complete request from `received`.
fn parse(received: &mut Vec<u8>) -> anyhow::Result<Option<Request>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(received)? else {
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
        received.drain(..head);
        return Ok(Some(Request::Subscribe { channel, key }));
    }
    let length = header("content-length").context("no length")?;
    let length: usize = std::str::from_utf8(length)?.parse()?;
    let Some(body) = received.get(head..head + length) else {
        return Ok(None);
    };
    let message = frame(body)?;
    received.drain(..head + length);
    Ok(Some(Request::Publish { channel, message }))
}

/// Returns a text frame. It is encoded once for all sockets of the channel.
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
