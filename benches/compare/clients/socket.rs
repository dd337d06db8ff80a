//! One socket of the load generator.
//!
//! A custom implementation with one read buffer per thread and a masking key of zero. The load generator has only one
//! core, so a client library that costs more per frame than the floor would limit the measured rates.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Poll, ready};

use anyhow::{bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

use super::{Protocol, Subscription};
use crate::message::Stamp;

const READ_BUFFER_BYTES: usize = 64 * 1024;

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BUFFER_BYTES]);
}

/// An open socket.
pub struct Socket {
    stream: TcpStream,
    protocol: Protocol,
    /// Bytes of a frame or an event that has not been received completely.
    rest: Vec<u8>,
}

impl Socket {
    /// Connects to `address`, performs the handshake and sends the subscription.
    pub async fn open(address: SocketAddr, subscription: &Subscription) -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_nodelay(true)?;
        let mut stream = socket.connect(address).await?;
        let (protocol_headers, expected) = match subscription.protocol {
            Protocol::WebSocket => (
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
                "HTTP/1.1 101",
            ),
            Protocol::EventStream => ("Accept: text/event-stream\r\n", "HTTP/1.1 200"),
        };
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: localhost\r\n{protocol_headers}{}\r\n",
            subscription.path, subscription.headers
        );
        stream.write_all(request.as_bytes()).await?;
        let mut response = Vec::with_capacity(512);
        let head = loop {
            let read = stream.read_buf(&mut response).await?;
            ensure!(read > 0, "connection closed during the handshake");
            if let Some(at) = response.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
        };
        ensure!(
            response.starts_with(expected.as_bytes()),
            "handshake rejected: {}",
            String::from_utf8_lossy(&response)
        );
        // Centrifugo rejects clients that send a frame before the handshake is complete.
        if let Some(text) = &subscription.message {
            stream.write_all(&masked(0x81, text.as_bytes())).await?;
        }
        Ok(Self {
            stream,
            protocol: subscription.protocol,
            rest: response.split_off(head),
        })
    }

    /// Calls `record` for the stamp of every message until the connection is closed. Waits for `pause` before each read.
    pub async fn read<Pause: Future<Output = ()>>(
        mut self,
        pause: impl Fn() -> Pause,
        mut record: impl FnMut(Stamp),
    ) -> anyhow::Result<()> {
        let received = std::mem::take(&mut self.rest);
        self.process(&received, &mut record)?;
        loop {
            pause().await;
            let read = poll_fn(|cx| {
                READ_BUFFER.with_borrow_mut(|buffer| {
                    let mut buffer = ReadBuf::new(buffer);
                    ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
                    let bytes = buffer.filled();
                    if bytes.is_empty() {
                        return Poll::Ready(Err(anyhow::anyhow!("closed")));
                    }
                    Poll::Ready(self.process(bytes, &mut record))
                })
            });
            read.await?;
        }
    }

    /// Records the stamps of all complete messages. Keeps the bytes of an incomplete message in `rest`.
    fn process(&mut self, bytes: &[u8], mut record: impl FnMut(Stamp)) -> anyhow::Result<()> {
        let joined;
        let received = if self.rest.is_empty() {
            bytes
        } else {
            self.rest.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.rest);
            &joined
        };
        let message = |message: &[u8]| Stamp::all(message).for_each(&mut record);
        let left = match self.protocol {
            Protocol::WebSocket => frames(received, &self.stream, message)?,
            Protocol::EventStream => events(received, message),
        };
        if !left.is_empty() {
            self.rest = left.to_vec();
        }
        Ok(())
    }
}

/// Calls `message` for every complete text frame and answers pings. Returns the incomplete frame at the end.
fn frames<'a>(
    mut left: &'a [u8],
    stream: &TcpStream,
    mut message: impl FnMut(&[u8]),
) -> anyhow::Result<&'a [u8]> {
    while let Some((opcode, payload, end)) = frame(left) {
        match opcode {
            // Centrifugo sends an empty object as a ping and expects an empty object in response.
            0x1 if payload == b"{}" => answer(stream, &masked(0x81, payload))?,
            0x1 => message(payload),
            0x8 => bail!("closed with {payload:?}"),
            0x9 => answer(stream, &masked(0x8A, payload))?,
            _ => {}
        }
        left = &left[end..];
    }
    Ok(left)
}

/// Sends the response to a ping. Skips it if the send buffer is full.
fn answer(stream: &TcpStream, frame: &[u8]) -> anyhow::Result<()> {
    if let Err(error) = stream.try_write(frame) {
        ensure!(error.kind() == std::io::ErrorKind::WouldBlock, "{error}");
    }
    Ok(())
}

/// Calls `message` for every complete event of an event stream. The bytes can include lines of the chunked encoding.
/// Returns the incomplete event at the end.
fn events(mut left: &[u8], mut message: impl FnMut(&[u8])) -> &[u8] {
    while let Some(end) = left.windows(2).position(|window| window == b"\n\n") {
        message(&left[..end]);
        left = &left[end + 2..];
    }
    left
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
