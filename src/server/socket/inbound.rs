//! Decodes the bytes of a client into messages.
//!
//! The decoder buffers at most the maximum message size, whatever a frame header declares and however
//! a message is fragmented. A protocol violation closes the connection with the matching close code.

use actix_codec::Decoder;
use actix_http::ws::{Codec, Frame, Item};
use actix_web::web::{Bytes, BytesMut};
use actix_ws::ProtocolError;

use crate::protocol::CloseReason;

/// Maximum number of fragments of a message. It limits the work for a message that consists of many
/// empty fragments.
const MAX_FRAGMENTS: usize = 64;

/// Decoded input.
pub(crate) enum InboundEvent {
    /// A complete text message.
    Text(Bytes),
    /// A ping that requires a pong.
    Ping(Bytes),
    /// A pong or a fragment: the client is alive.
    Activity,
    /// The client closes the connection.
    Close,
}

/// Decodes the frames of a connection.
pub(crate) struct InboundDecoder {
    buffer: BytesMut,
    codec: Codec,
    max_message_bytes: usize,
    fragments: usize,
    message: BytesMut,
}

impl InboundDecoder {
    /// Creates a decoder for messages of at most `max_message_bytes`. `buffer` has the bytes that were
    /// received already.
    pub(crate) fn new(max_message_bytes: usize, buffer: BytesMut) -> Self {
        Self {
            buffer,
            codec: Codec::new().max_size(max_message_bytes),
            max_message_bytes,
            fragments: 0,
            message: BytesMut::new(),
        }
    }

    /// Returns the buffer that received bytes are appended to.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Decodes the next event. Returns `None` if more bytes are needed.
    ///
    /// # Errors
    /// The reason to close the connection.
    pub(crate) fn next(&mut self) -> Result<Option<InboundEvent>, CloseReason> {
        check_frame_header(&self.buffer, self.max_message_bytes)?;
        let frame = self.codec.decode(&mut self.buffer);
        let frame = frame.map_err(|error| close_reason_for(&error))?;
        if self.buffer.is_empty() {
            // Releases the memory, so that an idle connection holds none.
            self.buffer = BytesMut::new();
        }
        let Some(frame) = frame else { return Ok(None) };
        let event = match frame {
            Frame::Text(text) => InboundEvent::Text(validate_utf8(text)?),
            Frame::Binary(_) | Frame::Continuation(Item::FirstBinary(_)) => {
                return Err(CloseReason::Unsupported);
            }
            Frame::Continuation(Item::FirstText(fragment) | Item::Continue(fragment)) => {
                self.append_fragment(&fragment)?;
                InboundEvent::Activity
            }
            Frame::Continuation(Item::Last(fragment)) => {
                self.append_fragment(&fragment)?;
                self.fragments = 0;
                InboundEvent::Text(validate_utf8(std::mem::take(&mut self.message).freeze())?)
            }
            Frame::Ping(payload) => InboundEvent::Ping(payload),
            Frame::Pong(_) => InboundEvent::Activity,
            Frame::Close(_) => InboundEvent::Close,
        };
        Ok(Some(event))
    }

    fn append_fragment(&mut self, fragment: &[u8]) -> Result<(), CloseReason> {
        self.fragments += 1;
        if self.fragments > MAX_FRAGMENTS
            || self.message.len() + fragment.len() > self.max_message_bytes
        {
            return Err(CloseReason::MessageTooLarge);
        }
        self.message.extend_from_slice(fragment);
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
    std::str::from_utf8(&bytes).map_err(|_| CloseReason::NotUtf8)?;
    Ok(bytes)
}

/// Checks the header of a frame (RFC 6455, section 5.2) before its payload arrives; the codec waits for
/// the whole frame.
fn check_frame_header(buffer: &[u8], max_message_bytes: usize) -> Result<(), CloseReason> {
    let &[first, second, ref rest @ ..] = buffer else {
        return Ok(());
    };
    let (is_last, is_control) = (first & 0x80 != 0, first & 0x08 != 0);
    let is_reserved = first & 0x70 != 0 || !matches!(first & 0x0F, 0..=2 | 8..=10);
    let is_masked = second & 0x80 != 0;
    let short = usize::from(second & 0x7F);
    if is_reserved || !is_masked || (is_control && (!is_last || short > 125)) {
        return Err(CloseReason::Protocol);
    }
    let declared = match (short, rest) {
        (126, &[a, b, ..]) => u64::from(u16::from_be_bytes([a, b])),
        (127, &[a, b, c, d, e, f, g, h, ..]) => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        (126 | 127, _) => return Ok(()),
        (short, _) => short as u64,
    };
    if declared > max_message_bytes as u64 {
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

    fn decode(bytes: &[u8]) -> Result<Vec<Bytes>, CloseReason> {
        let mut inbound = InboundDecoder::new(1000, BytesMut::from(bytes));
        let mut texts = Vec::new();
        while let Some(event) = inbound.next()? {
            if let InboundEvent::Text(text) = event {
                texts.push(text);
            }
        }
        Ok(texts)
    }

    #[test]
    fn oversized_frame_is_rejected_from_its_header() {
        let huge = [0x81, 0xFF, 0, 0, 1, 0, 0, 0, 0, 0];
        assert_eq!(decode(&huge), Err(CloseReason::MessageTooLarge));
        assert_eq!(
            decode(&[0x81, 0xFE, 0x03, 0xE9]),
            Err(CloseReason::MessageTooLarge)
        );
        assert_eq!(decode(&[0x81, 0xFE, 0x03, 0xE8]), Ok(vec![]));
    }

    #[test]
    fn protocol_violations_map_to_close_codes() {
        assert_eq!(
            decode(&[0x81, 0x01, b'x']),
            Err(CloseReason::Protocol),
            "unmasked"
        );
        assert_eq!(
            decode(&frame(0x82, b"x")),
            Err(CloseReason::Unsupported),
            "binary"
        );
        assert_eq!(
            decode(&frame(0x02, b"x")),
            Err(CloseReason::Unsupported),
            "first binary fragment"
        );
        assert_eq!(
            decode(&frame(0x81, &[0xC3, 0x28])),
            Err(CloseReason::NotUtf8)
        );
        assert_eq!(
            decode(&frame(0x80, b"x")),
            Err(CloseReason::Protocol),
            "continuation without a first fragment"
        );
        assert_eq!(
            decode(&frame(0x09, b"x")),
            Err(CloseReason::Protocol),
            "fragmented ping"
        );
        assert_eq!(
            decode(&frame(0x89, &[0; 126])),
            Err(CloseReason::Protocol),
            "long ping"
        );
        assert_eq!(
            decode(&frame(0xC1, b"x")),
            Err(CloseReason::Protocol),
            "reserved bit"
        );
        assert_eq!(
            decode(&frame(0x83, b"x")),
            Err(CloseReason::Protocol),
            "reserved opcode"
        );
        assert_eq!(
            decode(&[0x83, 0xFF, 0, 0, 1, 0, 0, 0, 0, 0]),
            Err(CloseReason::Protocol),
            "reserved opcode and a size above the limit"
        );
        assert_eq!(
            decode(&[frame(0x01, b"x"), frame(0x81, b"y")].concat()),
            Err(CloseReason::Protocol)
        );
    }

    #[test]
    fn endless_empty_fragments_are_rejected() {
        let flood: Vec<u8> = std::iter::once(frame(0x01, b""))
            .chain((0..1000).map(|_| frame(0x00, b"")))
            .flatten()
            .collect();
        assert_eq!(decode(&flood), Err(CloseReason::MessageTooLarge));
    }

    proptest! {
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
            let mut texts = Vec::new();
            for chunk in bytes.chunks(step) {
                inbound.buffer().extend_from_slice(chunk);
                while let Some(event) = inbound.next().unwrap() {
                    if let InboundEvent::Text(text) = event {
                        texts.push(text);
                    }
                }
            }
            prop_assert_eq!(texts, vec![Bytes::from(text)]);
        }

        #[test]
        fn random_bytes_never_panic_and_stay_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let mut inbound = InboundDecoder::new(1000, BytesMut::from(&bytes[..]));
            while let Ok(Some(_)) = inbound.next() {}
            prop_assert!(inbound.message.len() <= 1000);
        }
    }
}
