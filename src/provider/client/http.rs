//! HTTP clients for all requests to providers.
//!
//! No redirects, no proxies from the environment, a timeout and a size limit on every response. A
//! request that may cost money uses a new connection, so an error before the request was sent can
//! be distinguished from an unknown outcome.

use std::time::Duration;

use async_trait::async_trait;
use minijinja::Value;
use progress_hub_auth::jwt::{Fetch, FetchError};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value as Json;
use url::Url;

use crate::egress::{ClientBuildError, build, client_builder, describe};
use crate::provider::spec::request_spec::Method;

/// Timeout of a request, from connecting to the end of the response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum size of a response, in bytes after decompression.
const MAX_RESPONSE_BYTES: usize = 1 << 20;

/// HTTP clients shared by all providers. Cheap to clone.
#[derive(Clone)]
pub struct HttpClient {
    /// For requests that may be repeated.
    pooled: reqwest::Client,
    /// For requests that must not be repeated.
    unpooled: reqwest::Client,
    /// For downloads from the provider's own origin.
    pub(super) downloads: reqwest::Client,
}

/// A request to a provider. Its headers contain keys, so it must not be logged.
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Option<Json>,
}

/// A response of a provider.
pub(super) struct Response {
    pub(super) status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

/// A request without a complete response.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// The request was not sent.
    #[error("{0}")]
    NotSent(String),
    /// The provider may have received the request.
    #[error("{0}")]
    OutcomeUnknown(String),
}

impl HttpClient {
    /// Creates the clients.
    ///
    /// # Errors
    /// Returns [`ClientBuildError`] if the TLS roots of the system are unusable.
    pub fn new() -> Result<Self, ClientBuildError> {
        let requests = || client_builder().timeout(REQUEST_TIMEOUT);
        Ok(Self {
            pooled: build(requests())?,
            unpooled: build(requests().pool_max_idle_per_host(0))?,
            downloads: build(client_builder().no_gzip())?,
        })
    }

    /// Sends a request that may be repeated.
    pub(super) async fn send(&self, request: Request) -> Result<Response, SendError> {
        send(&self.pooled, request).await
    }

    /// Sends a request that must not be repeated.
    pub(super) async fn send_once(&self, request: Request) -> Result<Response, SendError> {
        send(&self.unpooled, request).await
    }
}

async fn send(client: &reqwest::Client, request: Request) -> Result<Response, SendError> {
    let method = match request.method {
        Method::Get => reqwest::Method::GET,
        Method::Post => reqwest::Method::POST,
        Method::Put => reqwest::Method::PUT,
        Method::Delete => reqwest::Method::DELETE,
    };
    let headers = header_map(request.headers).map_err(SendError::NotSent)?;
    let mut builder = client.request(method, request.url).headers(headers);
    if let Some(body) = &request.body {
        builder = builder.json(body);
    }
    let unknown = |error| SendError::OutcomeUnknown(describe(error));
    let mut response = builder.send().await.map_err(|error| {
        if error.is_connect() || error.is_builder() {
            SendError::NotSent(describe(error))
        } else {
            unknown(error)
        }
    })?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unknown)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_RESPONSE_BYTES {
            return Err(SendError::OutcomeUnknown(
                "response is too large".to_owned(),
            ));
        }
    }
    Ok(Response {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body,
    })
}

/// Converts rendered headers. Their values are marked as sensitive. Of several headers with one
/// name, the last applies.
pub(super) fn header_map(headers: Vec<(String, String)>) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let header = HeaderName::try_from(&name)
            .ok()
            .zip(HeaderValue::try_from(value).ok());
        let Some((name, mut value)) = header else {
            return Err(format!("header '{name}' has an invalid name or value"));
        };
        value.set_sensitive(true);
        map.insert(name, value);
    }
    Ok(map)
}

impl Response {
    /// Returns the headers whose values are text, by lower-case name.
    pub(super) fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
    }

    /// Returns the trimmed value of a header, or `None` if it is missing or not text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let value = self.headers.get(name)?;
        value.to_str().ok().map(str::trim)
    }

    /// Returns the body as a value, or `undefined` if it is not JSON.
    pub(super) fn json(&self) -> Value {
        let parsed: Result<Json, _> = serde_json::from_slice(&self.body);
        parsed.map_or(Value::UNDEFINED, Value::from_serialize)
    }

    /// Returns the body as text. Invalid UTF-8 is replaced.
    pub(super) fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    #[cfg(test)]
    pub(super) fn for_test(status: u16, body: &str) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            body: body.into(),
        }
    }

    #[cfg(test)]
    pub(super) fn with_header(mut self, name: &'static str, value: &str) -> Self {
        let value = HeaderValue::from_str(value);
        self.headers
            .insert(name, value.expect("valid header value"));
        self
    }
}

/// Fetches public keys for the `auth` crate, which has no HTTP client.
pub struct Fetcher(HttpClient);

impl Fetcher {
    /// Creates a fetcher.
    #[must_use]
    pub fn new(http: HttpClient) -> Self {
        Self(http)
    }
}

#[async_trait]
impl Fetch for Fetcher {
    async fn fetch(&self, url: &Url, max_bytes: usize) -> Result<Vec<u8>, FetchError> {
        let request = Request {
            method: Method::Get,
            url: url.clone(),
            headers: Vec::new(),
            body: None,
        };
        let response = self.0.send(request).await;
        let response = response.map_err(|error| FetchError(error.to_string()))?;
        match response.status {
            200 if response.body.len() <= max_bytes => Ok(response.body),
            200 => Err(FetchError("key set is too large".to_owned())),
            status => Err(FetchError(format!("key set request got status {status}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio_rustls::LazyConfigAcceptor;
    use tokio_rustls::rustls::server::Acceptor;

    use super::*;

    #[tokio::test]
    async fn requests_offer_http_1_only() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let http = HttpClient::new().unwrap();
        for client in [&http.pooled, &http.unpooled, &http.downloads] {
            let client = client.clone();
            let request = client.get(format!("https://127.0.0.1:{port}/"));
            let request = tokio::spawn(request.send());
            let (stream, _) = listener.accept().await.unwrap();
            let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await;
            let hello = hello.unwrap();
            let offered = hello.client_hello().alpn().into_iter().flatten();
            let offered: Vec<Vec<u8>> = offered.map(<[u8]>::to_vec).collect();
            assert!(offered.iter().all(|it| it == b"http/1.1"), "{offered:?}");
            drop(hello);
            assert!(request.await.unwrap().is_err());
        }
    }
}
