//! A WebSocket client that keeps no rules: bytes out, frames in; every wait has an end.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::app::{TEST_TIMEOUT, TestApp};

pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8A;
pub const CLOSE: u8 = 0x88;

/// A TCP connection to a hub.
pub struct RawSocket {
    pub stream: TcpStream,
    unread: Vec<u8>,
}

/// A frame as RFC 6455, 5.2 has it: first byte, and payload.
#[derive(Debug)]
pub struct Frame {
    pub first: u8,
    pub payload: Vec<u8>,
}

impl RawSocket {
    pub async fn connect(app: &TestApp) -> Self {
        Self::try_connect(app).await.unwrap()
    }

    pub async fn try_connect(app: &TestApp) -> std::io::Result<Self> {
        Ok(Self {
            stream: TcpStream::connect(app.address()).await?,
            unread: Vec::new(),
        })
    }

    /// A connection whose kernel takes in as little as it can.
    pub async fn connect_with_small_buffer(app: &TestApp) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = socket
            .connect(app.address().parse().unwrap())
            .await
            .unwrap();
        Self {
            stream,
            unread: Vec::new(),
        }
    }

    /// An upgraded connection of `sub`; nothing of what the hub says after the upgrade is read yet.
    pub async fn connect_upgraded(app: &TestApp, sub: &str) -> Self {
        Self::connect(app).await.upgrade(app, sub).await
    }

    pub async fn upgrade(mut self, app: &TestApp, sub: &str) -> Self {
        let token = app.token(sub, "jobs:read jobs:write");
        self.write(&handshake("/v1/ws", &token)).await;
        let head = self.read_head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        self
    }

    /// Writes all of it, or as much as the hub lets in before it ends the connection.
    pub async fn write(&mut self, bytes: &[u8]) -> bool {
        let written = tokio::time::timeout(TEST_TIMEOUT, self.stream.write_all(bytes)).await;
        written.expect("it is taken in time").is_ok()
    }

    /// The head of an HTTP answer.
    pub async fn read_head(&mut self) -> String {
        self.try_read_head().await.expect("a whole head")
    }

    /// The head of an HTTP answer; `None` when the connection ended before.
    pub async fn try_read_head(&mut self) -> Option<String> {
        loop {
            let end = self.unread.windows(4).position(|at| at == b"\r\n\r\n");
            if let Some(end) = end {
                let head = self.unread.drain(..end + 4).collect();
                return Some(String::from_utf8(head).unwrap());
            }
            if !self.read().await {
                return None;
            }
        }
    }

    /// The next frame; `None` once the connection has ended.
    pub async fn read_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.whole() {
                return Some(frame);
            }
            if !self.read().await {
                return None;
            }
        }
    }

    /// The code and the payloads of the text frames before it; `None` when it ended without a close frame.
    pub async fn close_code(&mut self) -> (Option<u16>, Vec<String>) {
        let mut texts = Vec::new();
        while let Some(frame) = self.read_frame().await {
            match frame.first {
                CLOSE => {
                    let code = frame.payload.first_chunk().copied().map(u16::from_be_bytes);
                    return (code, texts);
                }
                TEXT => texts.push(String::from_utf8(frame.payload).unwrap()),
                _ => {}
            }
        }
        (None, texts)
    }

    /// Whether the hub ends the connection once everything is read.
    pub async fn wait_until_closed(&mut self) {
        while self.read().await {
            self.unread.clear();
        }
    }

    fn whole(&mut self) -> Option<Frame> {
        let (header, length) = match *self.unread.get(1)? {
            126 => {
                let length: [u8; 2] = self.unread.get(2..4)?.try_into().unwrap();
                (4, usize::from(u16::from_be_bytes(length)))
            }
            127 => {
                let length: [u8; 8] = self.unread.get(2..10)?.try_into().unwrap();
                (10, usize::try_from(u64::from_be_bytes(length)).unwrap())
            }
            short => (2, usize::from(short)),
        };
        if self.unread.len() < header + length {
            return None;
        }
        let first = self.unread[0];
        let mut whole = self.unread.drain(..header + length);
        let payload = whole.by_ref().skip(header).collect();
        Some(Frame { first, payload })
    }

    async fn read(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.unread);
        let read = tokio::time::timeout(TEST_TIMEOUT, read)
            .await
            .expect("something comes in time");
        matches!(read, Ok(1..))
    }
}

/// A request that asks for an upgrade of this path.
pub fn handshake(path: &str, token: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Authorization: Bearer {token}\r\n\r\n"
    )
    .into_bytes()
}

/// A masked frame, as a client must send it.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..126 => frame.push(0x80 | u8::try_from(short).unwrap()),
        medium @ 126..=0xFFFF => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(medium).unwrap().to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    let mask = [0x5A, 0x01, 0xC3, 0x7F];
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b));
    frame
}

pub fn text(message: &serde_json::Value) -> Vec<u8> {
    frame(TEXT, message.to_string().as_bytes())
}
