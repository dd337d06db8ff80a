//! Errors that end a run.

use reqwest::StatusCode;
use tokio_tungstenite::tungstenite;

use super::arguments::ArgumentErrors;

/// Reason why a run has no results.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Invalid flags.
    #[error("{0}")]
    Arguments(#[from] ArgumentErrors),
    /// The process of `--pid` does not exist or is not on this machine.
    #[error("--pid {0}: no such process")]
    NoProcess(u32),
    /// The token cannot be sent as an HTTP header.
    #[error("the token contains characters that are not allowed in an HTTP header")]
    InvalidToken,
    /// A request that the run depends on failed.
    #[error("{0}: {1}")]
    Request(&'static str, #[source] RequestError),
    /// Operating system error.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The run was interrupted.
    #[error("run stopped before completion; no results")]
    Stopped,
}

/// Failure of a request or of a WebSocket handshake.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The TCP connection failed.
    #[error("connection failed: {0}")]
    Connect(String),
    /// The HTTP exchange failed after the connection was established.
    #[error("HTTP request failed: {0}")]
    Http(String),
    /// The hub did not complete the WebSocket handshake.
    #[error("WebSocket handshake failed: {0}")]
    Handshake(Box<tungstenite::Error>),
    /// The WebSocket handshake took too long.
    #[error("WebSocket handshake timed out")]
    Timeout,
    /// Response with an error status, and the `code` of its problem body.
    #[error("HTTP {0} {1}")]
    Status(u16, String),
    /// The response body does not have the expected fields.
    #[error("invalid response body")]
    Body,
}

impl From<std::io::Error> for RequestError {
    fn from(error: std::io::Error) -> Self {
        Self::Connect(error.to_string())
    }
}

impl From<reqwest::Error> for RequestError {
    fn from(error: reqwest::Error) -> Self {
        let is_connect = error.is_connect();
        // The outer errors only repeat the URL. The innermost one names the cause.
        let mut cause: &dyn std::error::Error = &error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let cause = cause.to_string();
        if is_connect {
            Self::Connect(cause)
        } else {
            Self::Http(cause)
        }
    }
}

impl From<tungstenite::Error> for RequestError {
    fn from(error: tungstenite::Error) -> Self {
        if let tungstenite::Error::Http(response) = error {
            Self::from_response(
                response.status(),
                response.body().as_deref().unwrap_or_default(),
            )
        } else {
            Self::Handshake(Box::new(error))
        }
    }
}

impl RequestError {
    /// Creates an error from a response with an error status and its body, an RFC 9457 problem.
    pub(super) fn from_response(status: StatusCode, body: &[u8]) -> Self {
        let problem: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let code = problem["code"].as_str().unwrap_or("without an error code");
        Self::Status(status.as_u16(), code.to_owned())
    }
}
