//! The response with the content of an output.

use std::time::Duration;

use actix_web::body::SizedStream;
use actix_web::http::{StatusCode, header};
use actix_web::web::Bytes;
use actix_web::{HttpResponse, web};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::time::Instant;

use super::content::OutputContent;
use crate::destinations::archive::{file_name, media};
use crate::job::Job;
use crate::provider::{DownloadHead, IncompleteBody};
use crate::server::limits::{ConnectionLimits, DownloadPermit};

/// Policy that blocks scripts and requests, but lets the browser's own player show the output.
const CONTENT_POLICY: &str =
    "sandbox; default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'";

/// Minimum average rate at which a client must read an output, after [`READER_GRACE`].
const MIN_BYTES_PER_SECOND: u32 = 16 << 10;

/// Time during which a client may read more slowly than [`MIN_BYTES_PER_SECOND`].
const READER_GRACE: Duration = Duration::from_secs(30);

/// Returns the response with a content. `permit` is released at its end.
pub(super) fn stream_response(
    job: &Job,
    n: usize,
    content: OutputContent,
    is_head: bool,
    limits: web::Data<ConnectionLimits>,
    permit: DownloadPermit,
) -> HttpResponse {
    let OutputContent { head, body } = content;
    // Providers sign URLs for GET only, so HEAD is a GET whose body is not sent.
    let reader = (!is_head).then(|| OutputReader {
        body,
        pace: ReaderPace::new(Instant::now()),
        limits,
        _permit: permit,
    });
    let DownloadHead {
        status,
        content_type,
        length,
        headers,
        ..
    } = head;
    let content_type = media::safe_content_type(content_type.as_deref());
    let name = file_name(&job.id, n, media::extension(&content_type));
    let disposition = format!("inline; filename=\"{name}\"");
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let mut response = HttpResponse::build(status);
    for (name, value) in headers {
        response.insert_header((name, value));
    }
    response
        .insert_header((header::CONTENT_TYPE, content_type))
        .insert_header((header::CONTENT_DISPOSITION, disposition))
        .insert_header((header::CACHE_CONTROL, "private"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_POLICY))
        .insert_header((header::REFERRER_POLICY, "no-referrer"));
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        return response.finish();
    }
    let chunks = stream::unfold(reader, |reader: Option<OutputReader>| async {
        let mut reader = reader?;
        match reader.next().await? {
            Ok(chunk) => Some((Ok(chunk), Some(reader))),
            Err(error) => Some((Err(error), None)),
        }
    });
    match length {
        Some(length) => response.body(SizedStream::new(length, Box::pin(chunks))),
        None => response.streaming(Box::pin(chunks)),
    }
}

/// The body of an output, with the permit of its download.
struct OutputReader {
    body: BoxStream<'static, Result<Bytes, IncompleteBody>>,
    pace: ReaderPace,
    limits: web::Data<ConnectionLimits>,
    _permit: DownloadPermit,
}

impl OutputReader {
    /// Returns the next chunk, or `None` at the end.
    async fn next(&mut self) -> Option<Result<Bytes, IncompleteBody>> {
        if self.pace.is_too_slow(Instant::now()) {
            self.limits.reader_is_too_slow();
            return Some(Err(IncompleteBody));
        }
        let chunk = self.body.next().await?;
        if let Ok(chunk) = &chunk {
            self.pace.chunk_taken(chunk.len(), Instant::now());
        }
        Some(chunk)
    }
}

/// Read rate of a client. It includes only the time from the delivery of a chunk to the request for
/// the next one, not the time in which the provider sends a chunk.
struct ReaderPace {
    bytes: u64,
    reading: Duration,
    last_taken: Instant,
}

impl ReaderPace {
    fn new(now: Instant) -> Self {
        Self {
            bytes: 0,
            reading: Duration::ZERO,
            last_taken: now,
        }
    }

    /// Adds the time since the last chunk. Returns whether the client reads below the minimum rate.
    fn is_too_slow(&mut self, now: Instant) -> bool {
        self.reading += now.saturating_duration_since(self.last_taken);
        let earned = Duration::from_secs(self.bytes) / MIN_BYTES_PER_SECOND;
        self.reading > READER_GRACE + earned
    }

    /// Adds a chunk that is delivered to the client.
    fn chunk_taken(&mut self, bytes: usize, now: Instant) {
        self.bytes += bytes as u64;
        self.last_taken = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_that_reads_slowly_is_cut_off_after_the_grace() {
        let start = Instant::now();
        let second = |n: u64| start + Duration::from_secs(n);
        let mut pace = ReaderPace::new(start);
        assert!(!pace.is_too_slow(second(30)));
        // A chunk of 160 KiB allows another 10 seconds. The provider takes 1,000 seconds for the next.
        pace.chunk_taken(160 << 10, second(1000));
        assert!(!pace.is_too_slow(second(1010)));
        pace.chunk_taken(0, second(1010));
        assert!(pace.is_too_slow(second(1011)));
    }
}
