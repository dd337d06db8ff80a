//! The hub under test: its address, requests and WebSockets to it, and their source addresses.
//!
//! Invariant: a hub that is not on loopback is only contacted with `--allow-remote`. Tokens are sent in `Authorization`
//! only, and no error contains them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use reqwest::header::{AUTHORIZATION, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use reqwest::{Method, RequestBuilder, StatusCode, redirect};
use serde::de::DeserializeOwned;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use url::Url;

use super::arguments::ArgumentErrors;

/// Maximum time to establish a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Kernel receive buffer of a slow client. Everything beyond it waits in the hub.
const SLOW_CLIENT_BUFFER_BYTES: u32 = 4096;

/// An open WebSocket.
pub(super) type WebSocket = WebSocketStream<TcpStream>;

/// Read buffer of a socket, one page instead of the library's 128 KiB, because a run has thousands of sockets.
const READ_BUFFER_BYTES: usize = 4096;

/// Largest message that a socket accepts.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// A hub with a resolved address.
#[derive(Debug)]
pub(super) struct Target {
    url: Url,
    address: SocketAddr,
    sources: u64,
    client: reqwest::Client,
}

impl Target {
    /// Resolves the hub at `url`.
    ///
    /// # Errors
    /// The URL is not a valid hub URL, the host is unknown, or it is not on loopback and `allow_remote` is false.
    pub fn resolve(url: Url, sources: u64, allow_remote: bool) -> anyhow::Result<Self> {
        let error = |text: &str| Err(ArgumentErrors::one(format!("--url {url}: {text}")).into());
        if !url.username().is_empty() || url.password().is_some() {
            // The message omits the URL because it contains a password.
            let message = "--url: must not contain a user name or password";
            return Err(ArgumentErrors::one(message).into());
        }
        if url.scheme() != "http" || url.query().is_some() || url.fragment().is_some() {
            return error("must be http://HOST:PORT, without TLS and without a query");
        }
        let addresses = url.socket_addrs(|| None).unwrap_or_default();
        let Some(&address) = addresses.first() else {
            return error("unknown host");
        };
        let is_loopback = address.ip().is_loopback();
        if !is_loopback && !allow_remote {
            return error("not a loopback address; to load a remote hub, pass --allow-remote");
        }
        let has_sources = is_loopback && address.is_ipv4();
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::none())
            .no_gzip()
            .no_proxy()
            // The address that was checked to be loopback is the one that is used.
            .resolve(url.host_str().unwrap_or_default(), address);
        Ok(Self {
            sources: if has_sources { sources } else { 1 },
            client: client.build().context("cannot create the HTTP client")?,
            url,
            address,
        })
    }

    /// Returns the URL of `path` on the hub, which may itself be mounted below a path.
    pub fn endpoint(&self, scheme: &str, path: &str) -> String {
        let base = self.url.path().trim_end_matches('/');
        format!("{scheme}://{}{base}{path}", self.url.authority())
    }

    /// Creates a request without credentials.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.endpoint("http", path))
    }

    /// Returns whether the hub runs on this machine.
    pub fn is_local(&self) -> bool {
        self.address.ip().is_loopback()
    }

    /// Connects from the source address that belongs to socket number `nth`. A slow client gets a small kernel
    /// receive buffer.
    async fn connect(&self, nth: u64, is_slow: bool) -> std::io::Result<TcpStream> {
        let socket = match self.address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if self.sources > 1 {
            let source = Ipv4Addr::new(127, 0, 0, (nth % self.sources) as u8 + 1);
            socket.set_reuseaddr(true)?;
            socket.bind((IpAddr::V4(source), 0).into())?;
        }
        if is_slow {
            socket.set_recv_buffer_size(SLOW_CLIENT_BUFFER_BYTES)?;
        }
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(self.address)).await??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Opens a WebSocket over a new connection. See `connect` for `nth` and `is_slow`.
    pub async fn open_websocket(
        &self,
        nth: u64,
        is_slow: bool,
        bearer: &HeaderValue,
    ) -> anyhow::Result<WebSocket> {
        let stream = self.connect(nth, is_slow).await;
        let stream = stream.context("connection failed")?;
        let mut request = self.endpoint("ws", "/v1/ws").into_client_request()?;
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, bearer.clone());
        let protocol = HeaderValue::from_static("progress-hub.v1");
        headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
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
}

/// Response with an error status, and the `code` of its body, an RFC 9457 problem.
#[derive(Debug, thiserror::Error)]
#[error("HTTP {} {code}", status.as_u16())]
pub(super) struct ErrorResponse {
    status: StatusCode,
    code: String,
}

impl ErrorResponse {
    fn new(status: StatusCode, body: &[u8]) -> Self {
        let problem: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let code = problem["code"].as_str().unwrap_or("without an error code");
        let code = code.to_owned();
        Self { status, code }
    }

    /// Returns whether `error` is a response with status 409.
    pub fn is_conflict(error: &anyhow::Error) -> bool {
        let response = error.downcast_ref::<Self>();
        response.is_some_and(|response| response.status == StatusCode::CONFLICT)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(url: &str, allow_remote: bool) -> Result<Target, String> {
        Target::resolve(url.parse().unwrap(), 3, allow_remote).map_err(|error| error.to_string())
    }

    #[test]
    fn remote_targets_require_allow_remote() {
        assert!(resolve("http://127.0.0.1:8080", false).is_ok());
        assert!(resolve("http://[::1]:8080/", false).is_ok());
        let error = resolve("http://192.0.2.1:8080", false).unwrap_err();
        assert!(error.contains("--allow-remote"), "{error}");
        assert!(resolve("http://192.0.2.1:8080", true).is_ok());
    }

    #[test]
    fn invalid_urls_are_rejected_without_repeating_a_password() {
        for url in [
            "https://127.0.0.1/",
            "ftp://127.0.0.1/",
            "http://127.0.0.1/?token=a",
        ] {
            assert!(resolve(url, true).is_err(), "{url}");
        }
        let error = resolve("http://user:hunter2@127.0.0.1/", true).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn base_path_is_preserved() {
        let target = resolve("http://127.0.0.1:8080/hub/", false).unwrap();
        assert_eq!(
            target.endpoint("ws", "/v1/ws"),
            "ws://127.0.0.1:8080/hub/v1/ws"
        );
        assert_eq!(target.url.host_str(), Some("127.0.0.1"));
    }
}
