//! HTTP and WebSocket clients for the hub under test.
//!
//! Invariant: tokens are sent in `Authorization` only, and no error contains them.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::header::{AUTHORIZATION, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use reqwest::{RequestBuilder, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::error::RequestError;
use super::target::{CONNECT_TIMEOUT, Target};

/// Time between two attempts of a request that the run depends on.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Read buffer of a socket, one page instead of the library's 128 KiB, because a run has thousands of sockets.
const READ_BUFFER_BYTES: usize = 4096;

/// Largest message that a socket accepts.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// An open WebSocket.
pub(super) type WebSocket = WebSocketStream<TcpStream>;

/// HTTP client with a limit on concurrent requests.
#[derive(Clone)]
pub(super) struct HttpClient {
    client: reqwest::Client,
    target: Target,
    concurrency: usize,
}

impl HttpClient {
    pub fn new(target: &Target, concurrency: u64) -> Result<Self, RequestError> {
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::none())
            .no_gzip()
            .no_proxy()
            // The address that was checked to be loopback is the one that is used.
            .resolve(target.host(), target.address())
            .build()?;
        let concurrency = concurrency as usize;
        Ok(Self {
            client,
            target: target.clone(),
            concurrency,
        })
    }

    /// Creates a GET request for a path below the URL of the hub.
    pub fn get(&self, path: &str, token: &SecretString) -> RequestBuilder {
        let request = self.client.get(self.target.endpoint("http", path));
        request.bearer_auth(token.expose_secret())
    }

    /// Creates a POST request for a path below the URL of the hub.
    pub fn post(&self, path: &str, token: Option<&SecretString>) -> RequestBuilder {
        let request = self.client.post(self.target.endpoint("http", path));
        match token {
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        }
    }

    /// Calls `send` for every job, with at most `concurrency` calls at a time. Returns the results in job order, or
    /// the first error.
    pub async fn for_each_job<T>(
        &self,
        jobs: u32,
        send: impl AsyncFn(u32) -> Result<T, RequestError>,
    ) -> Result<Vec<T>, RequestError> {
        let requests = stream::iter(0..jobs).map(|job| send(job));
        requests.buffered(self.concurrency).try_collect().await
    }
}

/// Sends `request` and parses the JSON body of a successful response.
pub(super) async fn send<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, RequestError> {
    let response = request.send().await?;
    let status = response.status();
    let body = response.bytes().await?;
    if !status.is_success() {
        return Err(RequestError::from_response(status, &body));
    }
    serde_json::from_slice(&body).map_err(|_| RequestError::Body)
}

/// Repeats `send` until it succeeds or `deadline` has passed.
pub(super) async fn retry_until<T>(
    deadline: Instant,
    send: impl AsyncFn() -> Result<T, RequestError>,
) -> Result<T, RequestError> {
    loop {
        match send().await {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(RETRY_INTERVAL).await,
            result => return result,
        }
    }
}

/// Opens a WebSocket over a new connection. See [`Target::connect`] for `nth` and `is_slow`.
pub(super) async fn open_websocket(
    target: &Target,
    nth: u64,
    is_slow: bool,
    bearer: &HeaderValue,
) -> Result<WebSocket, RequestError> {
    let stream = target.connect(nth, is_slow).await?;
    let mut request = target.endpoint("ws", "/v1/ws").into_client_request()?;
    request.headers_mut().insert(AUTHORIZATION, bearer.clone());
    request.headers_mut().insert(
        SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static("progress-hub.v1"),
    );
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES));
    let (socket, _) = client_async_with_config(request, stream, Some(config)).await?;
    Ok(socket)
}
