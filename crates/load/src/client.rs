//! Responses of the hub under test, and WebSocket handshakes with it.
//!
//! Invariant: tokens are sent in `Authorization` only, and no error contains them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::header::{AUTHORIZATION, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use reqwest::{RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::target::Target;

/// Time between two attempts of a request that the run depends on.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Read buffer of a socket, one page instead of the library's 128 KiB, because a run has thousands of sockets.
const READ_BUFFER_BYTES: usize = 4096;

/// Largest message that a socket accepts.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// An open WebSocket.
pub(super) type WebSocket = WebSocketStream<TcpStream>;

/// Response with an error status, and the `code` of its body, an RFC 9457 problem.
#[derive(Debug, thiserror::Error)]
#[error("HTTP {} {code}", status.as_u16())]
pub(super) struct ErrorResponse {
    pub status: StatusCode,
    code: String,
}

impl ErrorResponse {
    fn new(status: StatusCode, body: &[u8]) -> Self {
        let problem: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let code = problem["code"].as_str().unwrap_or("without an error code");
        let code = code.to_owned();
        Self { status, code }
    }
}

/// Sends `request` and parses the JSON body of a successful response.
pub(super) async fn send<T: DeserializeOwned>(request: RequestBuilder) -> anyhow::Result<T> {
    let response = request.send().await.map_err(http_error)?;
    let status = response.status();
    let body = response.bytes().await.map_err(http_error)?;
    if !status.is_success() {
        return Err(ErrorResponse::new(status, &body).into());
    }
    serde_json::from_slice(&body).context("invalid response body")
}

fn http_error(error: reqwest::Error) -> anyhow::Error {
    let failure = if error.is_connect() {
        "connection failed"
    } else {
        "HTTP request failed"
    };
    // The outer errors only repeat the URL. The innermost one names the cause.
    anyhow!("{failure}: {}", anyhow::Error::from(error).root_cause())
}

/// Calls `send` for every job, with at most `concurrency` calls at a time. Repeats a failed call until `deadline`.
/// Returns the results in job order, or the first error.
pub(super) async fn for_each_job<T>(
    jobs: u32,
    concurrency: u64,
    deadline: Instant,
    send: impl AsyncFn(u32) -> anyhow::Result<T>,
) -> anyhow::Result<Vec<T>> {
    let send = async |job| loop {
        match send(job).await {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(RETRY_INTERVAL).await,
            result => return result,
        }
    };
    let requests = stream::iter(0..jobs).map(send);
    requests.buffered(concurrency as usize).try_collect().await
}

/// Opens a WebSocket over a new connection. See [`Target::connect`] for `nth` and `is_slow`.
pub(super) async fn open_websocket(
    target: &Target,
    nth: u64,
    is_slow: bool,
    bearer: &HeaderValue,
) -> anyhow::Result<WebSocket> {
    let stream = target.connect(nth, is_slow).await;
    let stream = stream.context("connection failed")?;
    let mut request = target.endpoint("ws", "/v1/ws").into_client_request()?;
    request.headers_mut().insert(AUTHORIZATION, bearer.clone());
    request.headers_mut().insert(
        SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static("progress-hub.v1"),
    );
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES));
    match client_async_with_config(request, stream, Some(config)).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            Err(ErrorResponse::new(response.status(), body).into())
        }
        Err(error) => Err(error).context("WebSocket handshake failed"),
    }
}
