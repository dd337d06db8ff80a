//! A WebSocket client that sends any bytes and reads frames. Every wait has a timeout.

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

/// A frame (RFC 6455, section 5.2): its first byte and its payload.
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

    /// Connects with the smallest possible receive buffer.
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

    /// Connects as `sub` and reads the response to the upgrade.
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

    /// Writes the bytes. Returns false if the hub closes the connection before it has read them all.
    pub async fn write(&mut self, bytes: &[u8]) -> bool {
        let written = tokio::time::timeout(TEST_TIMEOUT, self.stream.write_all(bytes)).await;
        written.expect("the hub reads within the timeout").is_ok()
    }

    /// Reads the head of an HTTP response.
    pub async fn read_head(&mut self) -> String {
        self.try_read_head().await.expect("a complete head")
    }

    /// Reads the head of an HTTP response. Returns `None` if the connection ends before.
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

    /// Reads and discards `count` bytes.
    pub async fn discard(&mut self, count: usize) {
        while self.unread.len() < count {
            assert!(self.read().await, "the connection ended");
        }
        self.unread.drain(..count);
    }

    /// Reads the next frame. Returns `None` if the connection has ended.
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

    /// Reads to the end. Returns the close code, if there is a close frame, and the text messages before.
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

    /// Discards everything until the hub closes the connection.
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
            .expect("data within the timeout");
        matches!(read, Ok(1..))
    }
}

/// Returns an upgrade request.
pub fn handshake(path: &str, token: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Authorization: Bearer {token}\r\n\r\n"
    )
    .into_bytes()
}

/// Returns a masked frame, as clients must send it.
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

/// Returns a text frame with a JSON message.
pub fn text(message: &serde_json::Value) -> Vec<u8> {
    frame(TEXT, message.to_string().as_bytes())
}
