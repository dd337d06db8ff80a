//! Fetching results that only a provider's key can read, for whoever may have them.
//!
//! Invariant: the key goes to the provider's own origin and nowhere else; every other address must
//! be https and on the public internet, at each redirect and when the connection is made; and no
//! more of a result is in memory than the piece that is on its way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use minijinja::Value;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use url::{Host, Url};

use crate::job::Job;
use crate::provider::Provider;
use crate::provider::client::http::{CONNECT_TIMEOUT, explain};
use crate::provider::client::public_ip::is_public;

/// Downloads under way at once on one node.
const MAX_CONCURRENT_DOWNLOADS: usize = 64;

/// How long neither side of a download may stand still. There is no limit on the whole.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// What of an answer's head is passed on as it is.
const FORWARDED_HEADERS: [&str; 5] = [
    "accept-ranges",
    "content-encoding",
    "content-range",
    "etag",
    "last-modified",
];

/// Which part of a result is wanted, in the words of the request for it.
#[derive(Clone, Debug, Default)]
pub struct RangeRequest {
    /// `Range`: passed on where it asks for one range; without, or with several, all is fetched.
    pub range: Option<String>,
    /// `If-Range`.
    pub if_range: Option<String>,
}

/// A result, or the wanted part of it, about to come.
pub struct Download {
    /// 200, 206 or 416.
    pub status: u16,
    /// What its provider says that it is.
    pub content_type: Option<String>,
    /// Its bytes, where known beforehand.
    pub length: Option<u64>,
    /// `Accept-Ranges`, `Content-Range`, `ETag` and what else describes it.
    pub headers: Vec<(&'static str, Vec<u8>)>,
    /// The bytes. Letting go of it ends the fetch.
    pub body: Body,
}

/// The bytes of a result as they come.
pub struct Body(mpsc::Receiver<Option<Bytes>>);

/// The result stopped coming before its end.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the output stopped coming")]
pub struct IncompleteBody;

/// Why there is no result to pass on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DownloadError {
    /// The provider has it no more.
    #[error("it is gone")]
    Gone,
    /// Its address is not one that the hub may be sent to.
    #[error("refused to fetch it: {0}")]
    Refused(&'static str),
    /// No answer, or not the result.
    #[error("{0}")]
    Unanswered(String),
    /// As many downloads as there may be are under way.
    #[error("too many downloads are under way")]
    Busy,
}

impl Provider {
    /// Fetches a result of this job's from where [`Ticket::sources`](crate::job::Ticket) says that it
    /// lies; a relative address is one under the provider's base URL.
    ///
    /// # Errors
    /// [`NotFetched`].
    pub async fn download(
        &self,
        job: &Job,
        source: &str,
        wanted: &RangeRequest,
    ) -> Result<Download, DownloadError> {
        let source = self.base_url.resolve(source);
        let source = source.ok_or(DownloadError::Refused("its address is no URL"))?;
        let key = self.key(job).map_err(DownloadError::Unanswered)?;
        self.http
            .downloads
            .fetch(self.base_url.url(), source, &key, wanted)
            .await
    }

    /// The headers of every call to the provider; never logged.
    fn key(&self, job: &Job) -> Result<HeaderMap, String> {
        let context = Value::from_serialize(self.context(job));
        let mut key = HeaderMap::new();
        for (name, template) in &self.spec.headers {
            let value = template.render(&context);
            let value = value.map_err(|error| format!("headers.{name}: {error}"))?;
            let header = HeaderName::try_from(name)
                .ok()
                .zip(HeaderValue::try_from(value).ok());
            let (name, mut value) =
                header.ok_or_else(|| format!("the header '{name}' can't be sent"))?;
            value.set_sensitive(true);
            key.insert(name, value);
        }
        Ok(key)
    }
}

/// Who fetches results; cheap to clone.
#[derive(Clone)]
pub(in crate::provider) struct Downloader {
    /// For the provider's own origin, wherever the operator says that it is.
    provider_client: reqwest::Client,
    /// For everywhere else.
    public_client: reqwest::Client,
    /// Whether a URL may lead elsewhere; that a name stands for public addresses is for the client.
    is_allowed: fn(&Url) -> bool,
    idle: Duration,
    permits: Arc<Semaphore>,
}

impl Downloader {
    pub(in crate::provider) fn new() -> Result<Self, reqwest::Error> {
        Ok(Self {
            provider_client: client().build()?,
            public_client: client().dns_resolver(PublicDnsResolver).build()?,
            is_allowed: may_be_public,
            idle: STALL_TIMEOUT,
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT_DOWNLOADS)),
        })
    }

    /// Goes to `source` and on to where that redirects, with the key as long as the way has not left
    /// the origin of `home`: whoever redirects from outside must not send the key anywhere.
    async fn fetch(
        &self,
        home: Option<&Url>,
        source: Url,
        key: &HeaderMap,
        wanted: &RangeRequest,
    ) -> Result<Download, DownloadError> {
        let place = Arc::clone(&self.permits).try_acquire_owned();
        let place = place.map_err(|_| DownloadError::Busy)?;
        let (mut url, mut is_home) = (source, true);
        for _ in 0..=MAX_REDIRECTS {
            is_home &= home.is_some_and(|home| home.origin() == url.origin());
            let request = match is_home {
                true => self.provider_client.get(url.clone()).headers(key.clone()),
                false if (self.is_allowed)(&url) => self.public_client.get(url.clone()),
                false => return Err(DownloadError::Refused("its address is not a public one")),
            };
            let request = request.headers(range_headers(wanted));
            let response = match timeout(self.idle, request.send()).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(DownloadError::Unanswered(explain(error))),
                Err(_) => return Err(DownloadError::Unanswered("no answer in time".to_owned())),
            };
            match redirect_target(&url, &response) {
                Some(next) => url = next,
                None => return self.begin(response, place),
            }
        }
        Err(DownloadError::Refused("it was redirected too often"))
    }

    fn begin(
        &self,
        response: reqwest::Response,
        place: OwnedSemaphorePermit,
    ) -> Result<Download, DownloadError> {
        let status = response.status().as_u16();
        match status {
            200 | 206 | 416 => {}
            404 | 410 => return Err(DownloadError::Gone),
            _ => {
                let why = format!("the provider answered {status}");
                return Err(DownloadError::Unanswered(why));
            }
        }
        let headers = response.headers();
        let passed_on = FORWARDED_HEADERS.iter().filter_map(|name| {
            let value = headers.get(*name)?;
            Some((*name, value.as_bytes().to_vec()))
        });
        let content_type = headers.get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok());
        Ok(Download {
            status,
            content_type: content_type.map(str::to_owned),
            length: response.content_length(),
            headers: passed_on.collect(),
            body: forward_body(response, self.idle, place),
        })
    }
}

fn client() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .redirect(Policy::none())
        .no_proxy()
        .no_gzip()
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("progress-hub/", env!("CARGO_PKG_VERSION")))
}

/// The headers that say what is wanted; after the key's, so that an `Accept` for JSON is not one here.
fn range_headers(wanted: &RangeRequest) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(
        header::ACCEPT_ENCODING,
        HeaderValue::from_static("identity"),
    );
    let is_one = |range: &&String| range.starts_with("bytes=") && !range.contains(',');
    let value = |text: &String| HeaderValue::try_from(text).ok();
    if let Some(range) = wanted.range.as_ref().filter(is_one).and_then(value) {
        headers.insert(header::RANGE, range);
        if let Some(condition) = wanted.if_range.as_ref().and_then(value) {
            headers.insert(header::IF_RANGE, condition);
        }
    }
    headers
}

/// Where an answer sends on to, if it does.
fn redirect_target(here: &Url, response: &reqwest::Response) -> Option<Url> {
    let location = response.headers().get(header::LOCATION)?.to_str().ok()?;
    matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
        .then(|| here.join(location).ok())
        .flatten()
}

/// Whether a URL is https and names no address that is not public.
fn may_be_public(url: &Url) -> bool {
    let is_public_host = match url.host() {
        Some(Host::Domain(_)) => true,
        Some(Host::Ipv4(address)) => is_public(address.into()),
        Some(Host::Ipv6(address)) => is_public(address.into()),
        None => false,
    };
    url.scheme() == "https" && is_public_host
}

/// Resolves names to their public addresses: as what is resolved is what is connected to, a name
/// that changes its mind in between gains nothing.
struct PublicDnsResolver;

/// The name has no address that the hub may be sent to.
#[derive(Debug, thiserror::Error)]
#[error("the host has no public address")]
struct NonPublicAddress;

impl Resolve for PublicDnsResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).collect();
            match public.is_empty() {
                true => Err(NonPublicAddress.into()),
                false => Ok(Box::new(public.into_iter()) as Addrs),
            }
        })
    }
}

/// Reads on as the other end takes, one piece ahead of it, until either is done or stands still.
fn forward_body(
    mut response: reqwest::Response,
    idle: Duration,
    place: OwnedSemaphorePermit,
) -> Body {
    let (give, take) = mpsc::channel(1);
    tokio::spawn(async move {
        let _place = place;
        loop {
            let piece = tokio::select! {
                piece = timeout(idle, response.chunk()) => piece,
                () = give.closed() => return,
            };
            let Ok(Ok(piece)) = piece else { return };
            let is_last = piece.is_none();
            let given = timeout(idle, give.send(piece)).await;
            if is_last || !matches!(given, Ok(Ok(()))) {
                return;
            }
        }
    });
    Body(take)
}

impl Body {
    /// The next piece; none after the last.
    ///
    /// # Errors
    /// [`Broken`] when there should have been more.
    pub async fn next(&mut self) -> Option<Result<Bytes, IncompleteBody>> {
        match self.0.recv().await {
            Some(piece) => piece.map(Ok),
            None => Some(Err(IncompleteBody)),
        }
    }
}

#[cfg(test)]
mod tests;
