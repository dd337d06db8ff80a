//! From bytes to what a client says.
//!
//! Invariant: no more is kept of a message than it may have, whatever its header declares and in
//! however many pieces it comes; whatever breaks the rules ends this socket with the code that says
//! which rule.

use actix_codec::Decoder;
use actix_http::ws::{Codec, Frame, Item};
use actix_web::web::{Bytes, BytesMut};
use actix_ws::ProtocolError;

use crate::protocol::CloseReason;

/// The most pieces of one message: no honest client cuts a message that may have a few KiB finer.
const MAX_FRAGMENTS: usize = 64;

/// What came in.
pub(super) enum InboundEvent {
    /// A whole text message.
    Text(Bytes),
    /// A ping to be answered.
    Ping(Bytes),
    /// An answer to a ping, or a piece of a message: a sign of life.
    Activity,
    /// The client closes.
    Close,
}

/// Reads one connection's frames.
pub(super) struct InboundDecoder {
    buffer: BytesMut,
    codec: Codec,
    max_message_bytes: usize,
    fragments: usize,
    message: BytesMut,
}

impl InboundDecoder {
    /// Reads messages of at most `longest` bytes, beginning with what came along already.
    pub(super) fn new(longest: usize, buffer: BytesMut) -> Self {
        Self {
            buffer,
            codec: Codec::new().max_size(longest),
            max_message_bytes: longest,
            fragments: 0,
            message: BytesMut::new(),
        }
    }

    /// Where to put what is read.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next thing that is whole; `None` when more bytes are needed.
    ///
    /// # Errors
    /// How the socket must be closed.
    pub(super) fn next(&mut self) -> Result<Option<InboundEvent>, CloseReason> {
        check_frame_header(&self.buffer, self.max_message_bytes)?;
        let frame = self.codec.decode(&mut self.buffer);
        let frame = frame.map_err(|error| close_reason_for(&error))?;
        if self.buffer.is_empty() {
            // Gives the memory back: an idle socket keeps none.
            self.buffer = BytesMut::new();
        }
        let Some(frame) = frame else { return Ok(None) };
        let heard = match frame {
            Frame::Text(text) => InboundEvent::Text(validate_utf8(text)?),
            Frame::Binary(_) | Frame::Continuation(Item::FirstBinary(_)) => {
                return Err(CloseReason::Unsupported);
            }
            Frame::Continuation(Item::FirstText(piece) | Item::Continue(piece)) => {
                self.append_fragment(&piece)?;
                InboundEvent::Activity
            }
            Frame::Continuation(Item::Last(piece)) => {
                self.append_fragment(&piece)?;
                self.fragments = 0;
                InboundEvent::Text(validate_utf8(std::mem::take(&mut self.message).freeze())?)
            }
            Frame::Ping(payload) => InboundEvent::Ping(payload),
            Frame::Pong(_) => InboundEvent::Activity,
            Frame::Close(_) => InboundEvent::Close,
        };
        Ok(Some(heard))
    }

    fn append_fragment(&mut self, piece: &[u8]) -> Result<(), CloseReason> {
        self.fragments += 1;
        if self.fragments > MAX_FRAGMENTS
            || self.message.len() + piece.len() > self.max_message_bytes
        {
            return Err(CloseReason::MessageTooLarge);
        }
        self.message.extend_from_slice(piece);
        Ok(())
    }
}

fn close_reason_for(error: &ProtocolError) -> CloseReason {
    if matches!(error, ProtocolError::Overflow) {
        return CloseReason::MessageTooLarge;
    }
    CloseReason::Protocol
}

fn validate_utf8(bytes: Bytes) -> Result<Bytes, CloseReason> {
    match std::str::from_utf8(&bytes) {
        Ok(_) => Ok(bytes),
        Err(_) => Err(CloseReason::NotUtf8),
    }
}

/// Judges a frame by its header, before its payload is there: the codec waits for all of it first.
fn check_frame_header(buffer: &[u8], longest: usize) -> Result<(), CloseReason> {
    let &[first, second, ref rest @ ..] = buffer else {
        return Ok(());
    };
    let (is_last, is_control) = (first & 0x80 != 0, first & 0x08 != 0);
    let is_masked = second & 0x80 != 0;
    let short = usize::from(second & 0x7F);
    if !is_masked || (is_control && (!is_last || short > 125)) {
        return Err(CloseReason::Protocol);
    }
    let declared = match (short, rest) {
        (126, &[a, b, ..]) => u64::from(u16::from_be_bytes([a, b])),
        (127, &[a, b, c, d, e, f, g, h, ..]) => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        (126 | 127, _) => return Ok(()),
        (short, _) => short as u64,
    };
    if declared > longest as u64 {
        Err(CloseReason::MessageTooLarge)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            short @ 0..126 => frame.push(0x80 | u8::try_from(short).unwrap()),
            medium => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(medium).unwrap().to_be_bytes());
            }
        }
        let mask = [1, 2, 3, 4];
        frame.extend(mask);
        frame.extend(
            payload
                .iter()
                .zip(mask.iter().cycle())
                .map(|(byte, mask)| byte ^ mask),
        );
        frame
    }

    fn hear(bytes: &[u8]) -> Result<Vec<Bytes>, CloseReason> {
        let mut inbound = InboundDecoder::new(1000, BytesMut::from(bytes));
        let mut texts = Vec::new();
        while let Some(heard) = inbound.next()? {
            if let InboundEvent::Text(text) = heard {
                texts.push(text);
            }
        }
        Ok(texts)
    }

    #[test]
    fn oversized_frame_is_rejected_from_its_header() {
        let huge = [0x81, 0xFF, 0, 0, 1, 0, 0, 0, 0, 0];
        assert_eq!(hear(&huge), Err(CloseReason::MessageTooLarge));
        assert_eq!(
            hear(&[0x81, 0xFE, 0x03, 0xE9]),
            Err(CloseReason::MessageTooLarge)
        );
        assert_eq!(hear(&[0x81, 0xFE, 0x03, 0xE8]), Ok(vec![]));
    }

    #[test]
    fn protocol_violations_map_to_close_codes() {
        assert_eq!(
            hear(&[0x81, 0x01, b'x']),
            Err(CloseReason::Protocol),
            "unmasked"
        );
        assert_eq!(
            hear(&frame(0x82, b"x")),
            Err(CloseReason::Unsupported),
            "binary"
        );
        assert_eq!(
            hear(&frame(0x02, b"x")),
            Err(CloseReason::Unsupported),
            "first binary piece"
        );
        assert_eq!(hear(&frame(0x81, &[0xC3, 0x28])), Err(CloseReason::NotUtf8));
        assert_eq!(
            hear(&frame(0x80, b"x")),
            Err(CloseReason::Protocol),
            "a continuation of nothing"
        );
        assert_eq!(
            hear(&frame(0x09, b"x")),
            Err(CloseReason::Protocol),
            "a ping in pieces"
        );
        assert_eq!(
            hear(&frame(0x89, &[0; 126])),
            Err(CloseReason::Protocol),
            "a long ping"
        );
        assert_eq!(
            hear(&frame(0xC1, b"x")),
            Err(CloseReason::Protocol),
            "a reserved bit"
        );
        assert_eq!(
            hear(&frame(0x83, b"x")),
            Err(CloseReason::Protocol),
            "a reserved opcode"
        );
        assert_eq!(
            hear(&[frame(0x01, b"x"), frame(0x81, b"y")].concat()),
            Err(CloseReason::Protocol)
        );
    }

    #[test]
    fn endless_empty_fragments_are_rejected() {
        let flood: Vec<u8> = std::iter::once(frame(0x01, b""))
            .chain((0..1000).map(|_| frame(0x00, b"")))
            .flatten()
            .collect();
        assert_eq!(hear(&flood), Err(CloseReason::MessageTooLarge));
    }

    proptest! {
        /// However a message is cut into frames and bytes, it is heard once and whole.
        #[test]
        fn fragmented_messages_are_reassembled(text in "\\PC{0,200}", cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..10), step in 1usize..40) {
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            ends.push(text.len());
            ends.sort_unstable();
            let mut bytes = Vec::new();
            let mut start = 0;
            for (at, end) in ends.iter().enumerate() {
                let opcode = u8::from(at == 0) | if at + 1 == ends.len() { 0x80 } else { 0 };
                bytes.extend(frame(opcode, &text.as_bytes()[start..*end]));
                start = *end;
            }
            let mut inbound = InboundDecoder::new(1000, BytesMut::new());
            let mut heard = Vec::new();
            for chunk in bytes.chunks(step) {
                inbound.buffer().extend_from_slice(chunk);
                while let Some(next) = inbound.next().unwrap() {
                    if let InboundEvent::Text(text) = next {
                        heard.push(text);
                    }
                }
            }
            prop_assert_eq!(heard, vec![Bytes::from(text)]);
        }

        /// Nothing makes it panic or keep more than a message.
        #[test]
        fn random_bytes_never_panic_and_stay_bounded(noise in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let mut inbound = InboundDecoder::new(1000, BytesMut::from(&noise[..]));
            while let Ok(Some(_)) = inbound.next() {}
            prop_assert!(inbound.message.len() <= 1000);
        }
    }
}
