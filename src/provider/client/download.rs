//! Downloads of outputs.
//!
//! A provider's API key is sent to the provider's own origin only. Any other host must use https and
//! have a public address, or be in a network that the operator allows, at each redirect and when the
//! connection is made. A download buffers one chunk.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{self, HeaderMap, HeaderValue};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use url::Url;

use super::http::HttpClient;
use crate::egress::{AddressPolicy, ClientBuildError, build, client_builder, describe};

/// Maximum number of downloads at the same time on one node.
const MAX_CONCURRENT_DOWNLOADS: usize = 64;

/// Time after which a download without progress on either side is aborted. There is no total
/// timeout.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for which the archive may pause between two chunks while it uploads a part.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Maximum number of redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// Response headers that are forwarded unchanged.
const FORWARDED_HEADERS: [&str; 5] = [
    "accept-ranges",
    "content-encoding",
    "content-range",
    "etag",
    "last-modified",
];

/// The requested part of an output, as in the request of the client.
#[derive(Clone, Debug, Default)]
pub struct RangeRequest {
    /// `Range`. Forwarded if it has a single range, otherwise the whole output is fetched.
    pub range: Option<String>,
    /// `If-Range`.
    pub if_range: Option<String>,
}

/// An output, or the requested part of it.
pub struct Download {
    /// Everything but the body.
    pub head: DownloadHead,
    /// The body. Dropping it ends the download.
    pub body: Body,
}

/// The status and headers of an output.
pub struct DownloadHead {
    /// 200, 206 or 416.
    pub status: u16,
    /// Path of the URL after all redirects.
    pub path: String,
    /// `Content-Type` of the provider.
    pub content_type: Option<String>,
    /// Length of the body in bytes, if known.
    pub length: Option<u64>,
    /// Forwarded headers, such as `ETag` and `Content-Range`.
    pub headers: Vec<(&'static str, Vec<u8>)>,
}

/// Streamed body of a download.
pub struct Body(mpsc::Receiver<Option<Bytes>>);

/// The download ended before the body was complete.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("output download interrupted")]
pub struct IncompleteBody;

/// An output could not be downloaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DownloadError {
    /// The provider no longer has the output.
    #[error("output no longer exists")]
    Gone,
    /// The server rejects the URL or the key with this status. Signed URLs end this way when they
    /// expire.
    #[error("provider responded with status {0}")]
    Refused(u16),
    /// The hub does not connect to the URL.
    #[error("URL not allowed: {0}")]
    UrlNotAllowed(&'static str),
    /// No response, or an unexpected status.
    #[error("{0}")]
    Failed(String),
    /// The maximum number of downloads is reached.
    #[error("too many concurrent downloads")]
    Busy,
}

/// Downloads outputs. Clones share the limit of concurrent downloads.
#[derive(Clone)]
pub struct Downloader {
    /// For the provider's own origin, which may be a private address.
    provider_client: reqwest::Client,
    /// Which other hosts are allowed.
    policy: AddressPolicy,
    /// For https URLs of other hosts.
    https: reqwest::Client,
    /// For http URLs of other hosts.
    http: reqwest::Client,
    stall_timeout: Duration,
    reader_timeout: Duration,
    permits: Arc<Semaphore>,
}

impl Downloader {
    /// Creates a downloader for clients of the hub.
    ///
    /// # Errors
    /// [`ClientBuildError`] if the TLS roots of the system are unusable.
    pub fn new(http: &HttpClient, policy: AddressPolicy) -> Result<Self, ClientBuildError> {
        let client = |is_encrypted| {
            let resolver = policy.resolver(is_encrypted);
            build(client_builder().no_gzip().dns_resolver(resolver))
        };
        Ok(Self {
            provider_client: http.downloads.clone(),
            https: client(true)?,
            http: client(false)?,
            policy,
            stall_timeout: STALL_TIMEOUT,
            reader_timeout: STALL_TIMEOUT,
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT_DOWNLOADS)),
        })
    }

    /// Returns a downloader for the archive, which reads as fast as it uploads and limits the number
    /// of its downloads itself.
    #[must_use]
    pub fn for_archive(&self) -> Self {
        Self {
            reader_timeout: UPLOAD_TIMEOUT,
            permits: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            ..self.clone()
        }
    }

    /// Fetches an output that needs no key, from a host that is not a provider.
    ///
    /// # Errors
    /// [`DownloadError`] if the download cannot start.
    pub async fn fetch_public(
        &self,
        source: &str,
        range: &RangeRequest,
    ) -> Result<Download, DownloadError> {
        let url = Url::parse(source).map_err(|_| DownloadError::UrlNotAllowed("invalid URL"))?;
        self.fetch(None, url, &HeaderMap::new(), range).await
    }

    /// Fetches `source` and follows redirects. `auth_headers` are sent to the origin of `base_url`
    /// only, and no longer after the first redirect to another origin, because that could redirect
    /// back.
    pub(super) async fn fetch(
        &self,
        base_url: Option<&Url>,
        source: Url,
        auth_headers: &HeaderMap,
        range: &RangeRequest,
    ) -> Result<Download, DownloadError> {
        let permit = Arc::clone(&self.permits).try_acquire_owned();
        let permit = permit.map_err(|_| DownloadError::Busy)?;
        let (mut url, mut is_own_origin) = (source, true);
        for _ in 0..=MAX_REDIRECTS {
            is_own_origin &= base_url.is_some_and(|base| base.origin() == url.origin());
            let request = if is_own_origin {
                let request = self.provider_client.get(url.clone());
                request.headers(auth_headers.clone())
            } else {
                self.client_for(&url)?.get(url.clone())
            };
            let request = request.headers(range_headers(range));
            let response = match timeout(self.stall_timeout, request.send()).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(DownloadError::Failed(describe(error))),
                Err(_) => return Err(DownloadError::Failed("request timed out".to_owned())),
            };
            match redirect_target(&url, &response) {
                Some(next) => url = next,
                None => return self.start(&url, response, permit),
            }
        }
        Err(DownloadError::UrlNotAllowed("too many redirects"))
    }

    /// Returns the client for another host than the provider. It checks the addresses of a name.
    fn client_for(&self, url: &Url) -> Result<&reqwest::Client, DownloadError> {
        let is_allowed = self.policy.check(url);
        is_allowed.map_err(|_| DownloadError::UrlNotAllowed("must be https and public"))?;
        Ok(match url.scheme() {
            "https" => &self.https,
            _ => &self.http,
        })
    }

    fn start(
        &self,
        url: &Url,
        response: reqwest::Response,
        permit: OwnedSemaphorePermit,
    ) -> Result<Download, DownloadError> {
        let status = response.status().as_u16();
        match status {
            200 | 206 | 416 => {}
            404 | 410 => return Err(DownloadError::Gone),
            401 | 403 => return Err(DownloadError::Refused(status)),
            _ => {
                let message = format!("provider responded with status {status}");
                return Err(DownloadError::Failed(message));
            }
        }
        let headers = response.headers();
        let forwarded = FORWARDED_HEADERS.iter().filter_map(|name| {
            let value = headers.get(*name)?;
            Some((*name, value.as_bytes().to_vec()))
        });
        let content_type = headers.get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok());
        let head = DownloadHead {
            status,
            path: url.path().to_owned(),
            content_type: content_type.map(str::to_owned),
            length: response.content_length(),
            headers: forwarded.collect(),
        };
        Ok(Download {
            head,
            body: forward_body(response, (self.stall_timeout, self.reader_timeout), permit),
        })
    }
}

/// Returns the headers for the requested range. They are set after the provider's own headers, so
/// that an `Accept` for JSON does not apply to outputs.
fn range_headers(request: &RangeRequest) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(
        header::ACCEPT_ENCODING,
        HeaderValue::from_static("identity"),
    );
    let is_single = |range: &&String| range.starts_with("bytes=") && !range.contains(',');
    let value = |text: &String| HeaderValue::try_from(text).ok();
    if let Some(range) = request.range.as_ref().filter(is_single).and_then(value) {
        headers.insert(header::RANGE, range);
        if let Some(condition) = request.if_range.as_ref().and_then(value) {
            headers.insert(header::IF_RANGE, condition);
        }
    }
    headers
}

/// Returns the URL that a response redirects to.
fn redirect_target(url: &Url, response: &reqwest::Response) -> Option<Url> {
    let location = response.headers().get(header::LOCATION)?.to_str().ok()?;
    let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    is_redirect.then(|| url.join(location).ok()).flatten()
}

/// Reads the response one chunk ahead of the receiver, until either side ends or stalls.
fn forward_body(
    mut response: reqwest::Response,
    (stall_timeout, reader_timeout): (Duration, Duration),
    permit: OwnedSemaphorePermit,
) -> Body {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let _permit = permit;
        loop {
            let chunk = tokio::select! {
                chunk = timeout(stall_timeout, response.chunk()) => chunk,
                () = sender.closed() => return,
            };
            let Ok(Ok(chunk)) = chunk else { return };
            let is_last = chunk.is_none();
            let sent = timeout(reader_timeout, sender.send(chunk)).await;
            if is_last || !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    });
    Body(receiver)
}

impl Body {
    /// Returns the next chunk, or `None` at the end.
    ///
    /// # Errors
    /// Returns [`IncompleteBody`] if the body ends too early.
    pub async fn next(&mut self) -> Option<Result<Bytes, IncompleteBody>> {
        match self.0.recv().await {
            Some(chunk) => chunk.map(Ok),
            None => Some(Err(IncompleteBody)),
        }
    }
}

#[cfg(test)]
mod tests;
