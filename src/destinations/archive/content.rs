//! The content of an output, read from its source.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use crate::job::InlineContent;
use crate::provider::{Body, Download};

/// Number of bytes that determine the type of a content.
const HEAD_BYTES: usize = 512;

/// Minimum average rate of a source, after [`SOURCE_GRACE`].
const MIN_BYTES_PER_SECOND: u32 = 32 << 10;

/// Time during which a source may send more slowly than [`MIN_BYTES_PER_SECOND`].
const SOURCE_GRACE: Duration = Duration::from_secs(60);

/// A content that is read once.
pub(super) struct Content {
    /// Content type that the source declares.
    pub(super) declared_type: Option<String>,
    /// Length that the source declares.
    pub(super) length: Option<u64>,
    /// Path of the URL of the content.
    pub(super) path: String,
    /// What was read but not returned yet.
    pending: Option<Bytes>,
    body: Option<Body>,
    pace: SourcePace,
}

/// The source cannot be read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReadError {
    #[error("the source ended before its content was complete")]
    Incomplete,
    #[error("the source sends less than {MIN_BYTES_PER_SECOND} bytes per second")]
    TooSlow,
    #[error("the source sent status {0}")]
    Status(u16),
    #[error("the source compressed the content")]
    Compressed,
}

impl Content {
    pub(super) fn inline(inline: InlineContent) -> Self {
        Self {
            declared_type: Some(inline.content_type),
            length: Some(inline.bytes.len() as u64),
            path: String::new(),
            pending: Some(inline.bytes),
            body: None,
            pace: SourcePace::default(),
        }
    }

    /// # Errors
    /// The response is not the whole content.
    pub(super) fn download(download: Download) -> Result<Self, ReadError> {
        let head = download.head;
        if head.status != 200 {
            return Err(ReadError::Status(head.status));
        }
        let is_encoding = |(name, value): &(&str, Vec<u8>)| {
            *name == "content-encoding" && !value.eq_ignore_ascii_case(b"identity")
        };
        if head.headers.iter().any(is_encoding) {
            return Err(ReadError::Compressed);
        }
        Ok(Self {
            declared_type: head.content_type,
            length: head.length,
            path: head.path,
            pending: None,
            body: Some(download.body),
            pace: SourcePace::default(),
        })
    }

    /// Returns the first [`HEAD_BYTES`] or more, or the whole content if it is shorter. They remain
    /// to be read.
    pub(super) async fn head(&mut self) -> Result<Bytes, ReadError> {
        let mut head = BytesMut::new();
        while head.len() < HEAD_BYTES
            && let Some(chunk) = self.next().await?
        {
            head.extend_from_slice(&chunk);
        }
        let head = head.freeze();
        self.pending = Some(head.clone());
        Ok(head)
    }

    /// Returns the next chunk, or `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        if let Some(pending) = self.pending.take() {
            return Ok(Some(pending));
        }
        let Some(body) = &mut self.body else {
            return Ok(None);
        };
        let started_at = Instant::now();
        match body.next().await {
            Some(Ok(chunk)) => {
                self.pace.received(chunk.len(), started_at.elapsed());
                if self.pace.is_too_slow() {
                    return Err(ReadError::TooSlow);
                }
                Ok(Some(chunk))
            }
            Some(Err(_)) => Err(ReadError::Incomplete),
            None => {
                self.body = None;
                Ok(None)
            }
        }
    }
}

/// Rate of a source. It includes only the time in which the archive waits for the source.
#[derive(Default)]
struct SourcePace {
    bytes: u64,
    waited: Duration,
}

impl SourcePace {
    fn received(&mut self, bytes: usize, waited: Duration) {
        self.bytes += bytes as u64;
        self.waited += waited;
    }

    fn is_too_slow(&self) -> bool {
        let earned = Duration::from_secs(self.bytes) / MIN_BYTES_PER_SECOND;
        self.waited > SOURCE_GRACE + earned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_that_trickles_is_given_up_after_the_grace() {
        let mut pace = SourcePace::default();
        pace.received(1, Duration::from_secs(60));
        assert!(!pace.is_too_slow());
        pace.received(1, Duration::from_secs(1));
        assert!(pace.is_too_slow());
        // A chunk of 320 KiB allows another 10 seconds.
        pace.received(320 << 10, Duration::ZERO);
        assert!(!pace.is_too_slow());
    }

    #[tokio::test]
    async fn head_remains_to_be_read() {
        let bytes = Bytes::from(vec![7; 1000]);
        let mut content = Content::inline(InlineContent {
            content_type: String::new(),
            bytes: bytes.clone(),
        });
        assert_eq!(content.head().await, Ok(bytes.clone()));
        assert_eq!(content.next().await, Ok(Some(bytes)));
        assert_eq!(content.next().await, Ok(None));
    }
}
