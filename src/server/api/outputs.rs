//! `/v1/jobs/{id}/outputs/{n}`: streams outputs that only the provider's API key can read.
//!
//! The client sees neither the key nor the provider's URL. No content type makes a browser execute an
//! output in the hub's origin.

use std::time::Duration;

use actix_web::body::SizedStream;
use actix_web::http::{Method, StatusCode, header};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::stream;
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use crate::job::{Job, JobId};
use crate::links::Links;
use crate::provider::{Body, DownloadError, DownloadHead, IncompleteBody, Providers, RangeRequest};
use crate::server::caller::Caller;
use crate::server::error::{ErrorCode, Problem};
use crate::server::limits::{ConnectionLimits, DownloadPermit};
use crate::server::request::{Query, is_web_url};
use crate::server::router::Segment;
use crate::server::subscribe::visible;
use crate::store::Store;
use crate::time::Time;

/// Policy that blocks scripts and requests, but lets the browser's own player show the output.
const CONTENT_POLICY: &str =
    "sandbox; default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'";

/// Minimum average rate at which a client must read an output, after [`READER_GRACE`].
const MIN_BYTES_PER_SECOND: u32 = 16 << 10;

/// Time during which a client may read more slowly than [`MIN_BYTES_PER_SECOND`].
const READER_GRACE: Duration = Duration::from_secs(30);

/// File extension for each content type.
const EXTENSIONS: [(&str, &str); 14] = [
    ("video/mp4", ".mp4"),
    ("video/webm", ".webm"),
    ("video/quicktime", ".mov"),
    ("image/png", ".png"),
    ("image/jpeg", ".jpg"),
    ("image/webp", ".webp"),
    ("image/gif", ".gif"),
    ("image/avif", ".avif"),
    ("audio/mpeg", ".mp3"),
    ("audio/mp4", ".m4a"),
    ("audio/wav", ".wav"),
    ("audio/x-wav", ".wav"),
    ("audio/ogg", ".ogg"),
    ("audio/flac", ".flac"),
];

#[derive(Deserialize)]
pub struct GrantParam {
    grant: Option<String>,
}

/// `GET /v1/jobs/{id}/outputs/{n}`: streams the output, or redirects to it if its URL is public. The
/// caller needs a token or the grant of a signed link.
#[expect(
    clippy::too_many_arguments,
    reason = "the arguments list exactly what the handler uses"
)]
pub async fn fetch(
    caller: Result<Caller, Problem>,
    store: web::Data<dyn Store>,
    providers: web::Data<Providers>,
    links: web::Data<Links>,
    limits: web::Data<ConnectionLimits>,
    request: HttpRequest,
    Segment(id): Segment<2>,
    Segment(n): Segment<4>,
    Query(query): Query<GrantParam>,
) -> Result<HttpResponse, Problem> {
    let not_found = || Problem::not_found("output");
    let id = JobId::parse(&id).map_err(|_| not_found())?;
    let n: usize = n.parse().map_err(|_| not_found())?;
    let is_valid = |grant: &str| links.verify_output_link(&id, n, grant, Time::now());
    let job = match (caller, query.grant.as_deref()) {
        (_, Some(grant)) if is_valid(grant) => store.get(&id).await?.ok_or_else(not_found)?,
        (Ok(caller), _) => visible(&**store, &caller, id.as_str()).await?,
        (Err(problem), Some(_)) if problem.code() == ErrorCode::Unauthorized => {
            return Err(link_invalid());
        }
        (Err(problem), _) => return Err(problem),
    };
    let output = job.outputs.get(n).ok_or_else(not_found)?;
    let Some(Some(source)) = job.internal.private_urls.get(n) else {
        return redirect_response(&output.url);
    };
    let provider = job.provider.as_ref().and_then(|name| providers.get(name));
    // A provider that was removed from the configuration has no key to read the output with.
    let provider = provider.ok_or(DownloadError::Gone)?;
    let header = |name: header::HeaderName| {
        let value = request.headers().get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    let range = RangeRequest {
        range: header(header::RANGE),
        if_range: header(header::IF_RANGE),
    };
    let permit = limits.open_download(&job.owner, &job.id, n)?;
    let download = provider.download(&job, source, &range).await;
    if matches!(download, Err(DownloadError::Busy)) {
        limits.node_is_downloading();
    }
    let download = download?;
    let reader = OutputReader {
        body: download.body,
        pace: ReaderPace::new(Instant::now()),
        limits,
        _permit: permit,
    };
    // Providers sign URLs for GET only, so HEAD is a GET whose body is not sent.
    let reader = (request.method() != Method::HEAD).then_some(reader);
    Ok(proxy_response(&job, n, download.head, reader))
}

fn link_invalid() -> Problem {
    let detail =
        "the link is for another output or has expired; read the job document for a new link";
    Problem::new(ErrorCode::InvalidGrant, detail)
}

/// Redirects to a public output.
fn redirect_response(url: &str) -> Result<HttpResponse, Problem> {
    let url = Url::parse(url).ok().filter(|_| is_web_url(url));
    let url = url.ok_or_else(|| Problem::not_found("output"))?;
    Ok(HttpResponse::TemporaryRedirect()
        .insert_header((header::LOCATION, url.as_str()))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .finish())
}

/// The body of an output, with the permit of its download.
struct OutputReader {
    body: Body,
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

fn proxy_response(
    job: &Job,
    n: usize,
    head: DownloadHead,
    reader: Option<OutputReader>,
) -> HttpResponse {
    let DownloadHead {
        status,
        content_type,
        length,
        headers,
    } = head;
    let content_type = safe_content_type(content_type.as_deref());
    let extension = EXTENSIONS.iter().find(|(known, _)| *known == content_type);
    let extension = extension.map_or("", |(_, extension)| extension);
    let disposition = format!("inline; filename=\"{}-{n}{extension}\"", job.id);
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

/// Returns the content type of media, and `application/octet-stream` for all types that a browser
/// could execute.
fn safe_content_type(content_type: Option<&str>) -> String {
    let name = content_type.unwrap_or_default().split(';').next();
    let name = name.unwrap_or_default().trim().to_ascii_lowercase();
    let is_media = ["video/", "image/", "audio/"]
        .iter()
        .any(|kind| name.starts_with(kind));
    if is_media && name != "image/svg+xml" {
        name
    } else {
        "application/octet-stream".to_owned()
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

    #[test]
    fn non_media_content_types_become_octet_stream() {
        for (content_type, expected) in [
            (Some("video/mp4"), "video/mp4"),
            (Some("Image/PNG; charset=x"), "image/png"),
            (Some("audio/mpeg"), "audio/mpeg"),
            (Some("image/svg+xml"), "application/octet-stream"),
            (Some("text/html"), "application/octet-stream"),
            (Some("application/javascript"), "application/octet-stream"),
            (None, "application/octet-stream"),
        ] {
            assert_eq!(
                safe_content_type(content_type),
                expected,
                "{content_type:?}"
            );
        }
    }
}
