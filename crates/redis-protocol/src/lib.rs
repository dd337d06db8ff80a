//! The published crate `redis-protocol`, with a limit on the nesting depth of decoded replies.
//!
//! The decoders of the published crate recurse into nested aggregates without a limit. A server can
//! therefore overflow the stack of the client, which aborts the process. `fred` has no option that
//! limits the depth. This crate re-exports the published crate and replaces the two functions that
//! `fred` calls. The replacements first check the depth of the reply with [`check_depth`], which
//! does not recurse.

mod depth;
#[cfg(test)]
mod tests;

pub use published::*;

pub use self::depth::{MAX_DEPTH, check_depth};

/// RESP2.
pub mod resp2 {
    pub use published::resp2::*;

    /// Decoding functions.
    pub mod decode {
        use published::bytes::{Bytes, BytesMut};
        use published::error::RedisProtocolError;
        use published::resp2::decode;
        use published::resp2::types::BytesFrame;

        pub use published::resp2::decode::*;

        /// Decodes the first frame and splits it off the buffer. Returns `None` if it is incomplete.
        ///
        /// # Errors
        /// The frame is invalid or nested deeper than [`MAX_DEPTH`](crate::MAX_DEPTH).
        pub fn decode_bytes_mut(
            buffer: &mut BytesMut,
        ) -> Result<Option<(BytesFrame, usize, Bytes)>, RedisProtocolError> {
            crate::check_depth(buffer)?;
            decode::decode_bytes_mut(buffer)
        }
    }
}

/// RESP3.
pub mod resp3 {
    pub use published::resp3::*;

    /// Decoding functions.
    pub mod decode {
        pub use published::resp3::decode::*;

        /// Decoding functions that support streamed frames.
        pub mod streaming {
            use published::bytes::{Bytes, BytesMut};
            use published::error::RedisProtocolError;
            use published::resp3::decode::streaming;
            use published::resp3::types::{BytesFrame, DecodedFrame};

            pub use published::resp3::decode::streaming::*;

            /// Decodes the first frame and splits it off the buffer. Returns `None` if it is incomplete.
            ///
            /// # Errors
            /// The frame is invalid or nested deeper than [`MAX_DEPTH`](crate::MAX_DEPTH).
            pub fn decode_bytes_mut(
                buffer: &mut BytesMut,
            ) -> Result<Option<(DecodedFrame<BytesFrame>, usize, Bytes)>, RedisProtocolError>
            {
                crate::check_depth(buffer)?;
                streaming::decode_bytes_mut(buffer)
            }
        }
    }
}
