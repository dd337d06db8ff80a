//! The one door to providers over HTTP.
//!
//! Invariant: no redirects, no proxies from the environment, a timeout on everything, answers
//! capped; and a request that may cost money goes out on a fresh connection, so that a failure is
//! either certainly before it was sent or told as unknown.

use std::time::Duration;

use async_trait::async_trait;
use minijinja::Value;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use serde::Deserialize;
use serde_json::Value as Json;
use url::Url;

use crate::provider::client::download::Downloader;
use progress_hub_auth::jwt::{Fetch, FetchError};

/// How long a provider may take to answer in all.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// How long it may take to accept a connection.
pub(in crate::provider) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of an answer that are read at most; the rest of a longer one is not.
const MAX_ANSWER: usize = 1 << 20;

/// The HTTP clients; cheap to clone.
#[derive(Clone)]
pub struct HttpClient {
    pooled: reqwest::Client,
    unpooled: reqwest::Client,
    pub(in crate::provider) downloads: Downloader,
}

/// The HTTP client could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("no HTTP client: {0}")]
pub struct ClientBuildError(String);

/// The verbs that providers use.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(in crate::provider) enum Method {
    Get,
    Post,
    Put,
    Delete,
}

/// A request to a provider. Its headers hold keys: it is never logged.
pub(in crate::provider) struct Request {
    pub(in crate::provider) method: Method,
    pub(in crate::provider) url: Url,
    pub(in crate::provider) headers: Vec<(String, String)>,
    pub(in crate::provider) body: Option<Json>,
}

/// A provider's answer.
pub(in crate::provider) struct Response {
    pub(in crate::provider) status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(in crate::provider) enum SendError {
    /// For sure nothing was sent.
    #[error("{0}")]
    NotSent(String),
    /// Something may have been received.
    #[error("{0}")]
    OutcomeUnknown(String),
}

impl HttpClient {
    /// Sets the clients up.
    ///
    /// # Errors
    /// [`NoClient`] when the system's TLS roots can't be used.
    pub fn new() -> Result<Self, ClientBuildError> {
        let builder = || {
            reqwest::Client::builder()
                .redirect(Policy::none())
                .no_proxy()
                .referer(false)
                .retry(reqwest::retry::never())
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(TIMEOUT)
                .user_agent(concat!("progress-hub/", env!("CARGO_PKG_VERSION")))
        };
        let build = |builder: reqwest::ClientBuilder| {
            builder
                .build()
                .map_err(|error| ClientBuildError(explain(error)))
        };
        Ok(Self {
            pooled: build(builder())?,
            unpooled: build(builder().pool_max_idle_per_host(0))?,
            downloads: Downloader::new().map_err(|error| ClientBuildError(explain(error)))?,
        })
    }

    /// Sends a request that may be repeated.
    pub(in crate::provider) async fn send(&self, request: Request) -> Result<Response, SendError> {
        exchange(&self.pooled, request).await
    }

    /// Sends a request that must not be.
    pub(in crate::provider) async fn send_once(
        &self,
        request: Request,
    ) -> Result<Response, SendError> {
        exchange(&self.unpooled, request).await
    }
}

async fn exchange(client: &reqwest::Client, request: Request) -> Result<Response, SendError> {
    let method = match request.method {
        Method::Get => reqwest::Method::GET,
        Method::Post => reqwest::Method::POST,
        Method::Put => reqwest::Method::PUT,
        Method::Delete => reqwest::Method::DELETE,
    };
    let mut headers = HeaderMap::new();
    for (name, value) in request.headers {
        let header = HeaderName::try_from(&name)
            .ok()
            .zip(HeaderValue::try_from(value).ok());
        let Some((name, mut value)) = header else {
            return Err(SendError::NotSent(format!(
                "the header '{name}' can't be sent"
            )));
        };
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    let mut outgoing = client.request(method, request.url).headers(headers);
    if let Some(body) = &request.body {
        outgoing = outgoing.json(body);
    }
    let mut response =
        outgoing
            .send()
            .await
            .map_err(|error| match error.is_connect() || error.is_builder() {
                true => SendError::NotSent(explain(error)),
                false => SendError::OutcomeUnknown(explain(error)),
            })?;
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| SendError::OutcomeUnknown(explain(error)))?
    {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER {
            return Err(SendError::OutcomeUnknown(
                "the answer is too long".to_owned(),
            ));
        }
    }
    Ok(Response {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body,
    })
}

/// What went wrong, down to its cause, without the URL, which may hold a callback token.
pub(in crate::provider) fn explain(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

impl Response {
    /// The headers that are text, by their lower-case names.
    pub(in crate::provider) fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
    }

    #[cfg(test)]
    pub(in crate::provider) fn for_test(status: u16, body: &str) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            body: body.into(),
        }
    }

    #[cfg(test)]
    pub(in crate::provider) fn with(mut self, name: &'static str, value: &str) -> Self {
        let value = HeaderValue::from_str(value);
        self.headers.insert(name, value.expect("a header's value"));
        self
    }

    /// The body as a value; undefined where it is not JSON.
    pub(in crate::provider) fn json(&self) -> Value {
        let parsed: Result<Json, _> = serde_json::from_slice(&self.body);
        parsed.map_or(Value::UNDEFINED, Value::from_serialize)
    }

    /// A header's value, where it is text.
    pub(in crate::provider) fn header(&self, name: &str) -> Option<&str> {
        let value = self.headers.get(name)?;
        value.to_str().ok().map(str::trim)
    }

    /// The body as text, whatever it is.
    pub(in crate::provider) fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }
}

/// Fetches key sets for those who check signatures and know no HTTP client.
pub struct Fetcher(HttpClient);

impl Fetcher {
    /// A fetcher with these clients.
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
        let answer = self
            .0
            .send(request)
            .await
            .map_err(|failed| FetchError(failed.to_string()))?;
        match answer.status {
            200 if answer.body.len() <= max_bytes => Ok(answer.body),
            200 => Err(FetchError("the key set is too long".to_owned())),
            status => Err(FetchError(format!(
                "the key set was answered with {status}"
            ))),
        }
    }
}
