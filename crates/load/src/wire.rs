//! One WebSocket on the wire: a stream, and the few bytes of a frame that has not wholly come.
//!
//! Thousands of sockets share one thread, so what is read goes to a desk that the thread has once, and
//! a socket owns a buffer only while a frame is cut in two.
//!
//! Invariant: frames come out as they went in, however they were cut.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_codec::{Decoder, Encoder};
use actix_http::ws::{Codec, Frame, Message};
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

/// How much is read at once, by whichever socket has its turn.
pub(super) const READ_BUFFER_BYTES: usize = 64 * 1024;

/// The longest frame that a hub is believed to send.
const MAX_FRAME: usize = 1024 * 1024;

/// How long the hub may take to read what a socket says.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// A WebSocket that was upgraded.
pub(super) struct Wire {
    stream: TcpStream,
    codec: Codec,
    /// What came right behind the upgrade, until it is read.
    ahead: Bytes,
    /// The beginning of a frame.
    rest: Vec<u8>,
    out: BytesMut,
}

impl Wire {
    /// `ahead` came right behind the upgrade.
    pub fn new(stream: TcpStream, ahead: Bytes) -> Self {
        Self {
            stream,
            codec: Codec::new().client_mode().max_size(MAX_FRAME),
            ahead,
            rest: Vec::new(),
            out: BytesMut::new(),
        }
    }

    /// Reads once what there is onto the desk: how many bytes came. Nothing at all means the end.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        desk: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        desk.clear();
        desk.reserve(READ_BUFFER_BYTES);
        let ahead = std::mem::take(&mut self.ahead);
        if !ahead.is_empty() {
            desk.extend_from_slice(&ahead);
            return Poll::Ready(Ok(ahead.len()));
        }
        desk.extend_from_slice(&self.rest);
        let read = ready!(poll_read_buf(Pin::new(&mut self.stream), cx, desk))?;
        self.rest.clear();
        Poll::Ready(Ok(read))
    }

    /// The next frame that lies whole on the desk.
    ///
    /// # Errors
    /// When the bytes are no frames.
    pub fn frame(&mut self, desk: &mut BytesMut) -> Result<Option<Frame>, ()> {
        match self.codec.decode(desk) {
            Ok(Some(frame)) => Ok(Some(frame)),
            Ok(None) => {
                self.rest.extend_from_slice(desk);
                Ok(None)
            }
            Err(_) => Err(()),
        }
    }

    /// Puts a text where [`Wire::flush`] sends it from.
    pub fn say(&mut self, text: String) {
        // A message that was made here is always encoded.
        let _ = self.codec.encode(Message::Text(text.into()), &mut self.out);
    }

    /// Answers a ping, by the next [`Wire::flush`].
    pub fn pong(&mut self, payload: Bytes) {
        let _ = self.codec.encode(Message::Pong(payload), &mut self.out);
    }

    /// Sends what was said.
    pub async fn flush(&mut self) -> io::Result<()> {
        let writing = self.stream.write_all(&self.out);
        tokio::time::timeout(WRITE_TIMEOUT, writing).await??;
        self.out = BytesMut::new();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn pair(ahead: &'static [u8]) -> (Wire, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap());
        let (stream, accepted) = tokio::join!(stream, listener.accept());
        let wire = Wire::new(stream.unwrap(), Bytes::from_static(ahead));
        (wire, accepted.unwrap().0)
    }

    /// The texts of all frames that come until the end.
    async fn texts(wire: &mut Wire) -> Vec<Bytes> {
        let (mut desk, mut texts) = (BytesMut::new(), Vec::new());
        while std::future::poll_fn(|cx| wire.poll_read(cx, &mut desk))
            .await
            .unwrap()
            > 0
        {
            while let Some(frame) = wire.frame(&mut desk).unwrap() {
                let Frame::Text(text) = frame else {
                    panic!("{frame:?}")
                };
                texts.push(text);
            }
        }
        texts
    }

    #[tokio::test]
    async fn frames_are_decoded_across_any_read_boundary() {
        let long = "x".repeat(300);
        let mut bytes = b"\x81\x05first".to_vec();
        bytes.extend([0x81, 126, 1, 44]);
        bytes.extend(long.as_bytes());
        bytes.extend(b"\x81\x04last");
        for size in [1, 2, 7, 100, 1000] {
            let (mut wire, mut hub) = pair(b"").await;
            let bytes = bytes.clone();
            let sending = async move {
                for piece in bytes.chunks(size) {
                    hub.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            let (texts, ()) = tokio::join!(texts(&mut wire), sending);
            assert_eq!(
                texts,
                ["first".as_bytes(), long.as_bytes(), b"last"],
                "{size}"
            );
        }
    }

    #[tokio::test]
    async fn bytes_after_the_upgrade_response_are_read_first() {
        let (mut wire, mut hub) = pair(b"\x81\x05fi").await;
        hub.write_all(b"rst").await.unwrap();
        drop(hub);
        assert_eq!(texts(&mut wire).await, ["first"]);
    }

    #[tokio::test]
    async fn client_frames_are_masked() {
        let (mut wire, hub) = pair(b"").await;
        wire.say("hello".to_owned());
        wire.flush().await.unwrap();
        let mut said = BytesMut::new();
        let mut codec = Codec::new();
        loop {
            hub.readable().await.unwrap();
            let _ = hub.try_read_buf(&mut said);
            if let Some(frame) = codec.decode(&mut said).unwrap() {
                assert!(matches!(frame, Frame::Text(text) if text == "hello"));
                return;
            }
        }
    }
}
