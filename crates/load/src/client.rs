//! HTTP to the hub: one connection that is kept, and the handshake of a WebSocket.
//!
//! Invariant: a token travels in `Authorization` and nowhere else, and no error repeats it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::target::Target;

/// An answer of the hub is short; of what is longer nothing is believed.
const MAX_ANSWER: usize = 256 * 1024;

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There was no connection.
    #[error("can't connect: {0}")]
    Connect(#[from] std::io::Error),
    /// The connection broke, or what came was no HTTP.
    #[error("no answer: {0}")]
    Http(#[from] hyper::Error),
    /// It could not be asked.
    #[error("not an HTTP request: {0}")]
    Request(#[from] hyper::http::Error),
    /// The answer is not what the protocol says.
    #[error("an answer that can't be read")]
    Body,
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
    /// Another status, and the code of the problem.
    #[error("the hub answered {0} {1}")]
    Refused(StatusCode, String),
    /// The upgrade was not answered as RFC 6455 says.
    #[error("the hub took the upgrade and did not prove it")]
    BadUpgradeResponse,
}

/// A request's headers beside the usual ones.
pub(super) type Headers = Vec<(&'static str, String)>;

/// One kept connection, made anew when it is lost.
pub(super) struct HttpClient {
    target: Target,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl HttpClient {
    pub fn new(target: Target) -> Self {
        Self {
            target,
            sender: None,
        }
    }

    /// Sends one request and reads its answer to the end.
    pub async fn call(
        &mut self,
        method: Method,
        path: &str,
        headers: &Headers,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), RequestError> {
        let mut request = Request::builder()
            .method(method)
            .uri(self.target.path(path))
            .header(HOST, self.target.authority());
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(body))?;
        let answered = self.exchange(request).await;
        if answered.is_err() {
            self.sender = None;
        }
        answered
    }

    async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), RequestError> {
        let response = self.sender().await?.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER);
        let body = body.collect().await.map_err(|_| RequestError::Body)?;
        Ok((status, body.to_bytes()))
    }

    async fn sender(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, RequestError> {
        let kept = match self.sender.take() {
            Some(mut kept) => kept.ready().await.is_ok().then_some(kept),
            None => None,
        };
        let sender = match kept {
            Some(kept) => kept,
            None => {
                let stream = self.target.connect(0, false).await?;
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                // It ends with the sender; what breaks it shows in the next answer.
                tokio::spawn(connection);
                sender
            }
        };
        Ok(self.sender.insert(sender))
    }
}

/// The header that proves who asks.
pub(super) fn bearer(token: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {token}"))
}

/// Makes a WebSocket of a connection: RFC 6455, 4.1. What the hub said right behind its answer comes
/// along.
pub(super) async fn upgrade(
    target: &Target,
    stream: TcpStream,
    bearer: &HeaderValue,
) -> Result<(TcpStream, Bytes), RequestError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let serving = tokio::spawn(connection.with_upgrades());
    let key = STANDARD.encode(rand::random::<[u8; 16]>());
    let request = Request::builder()
        .uri(target.path("/v1/ws"))
        .header(HOST, target.authority())
        .header(AUTHORIZATION, bearer)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", &key)
        .header("sec-websocket-protocol", "progress-hub.v1")
        .body(Full::new(Bytes::new()))?;
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        serving.abort();
        return Err(RequestError::Refused(response.status(), String::new()));
    }
    let proof = actix_http::ws::hash_key(key.as_bytes());
    let told = response.headers().get("sec-websocket-accept");
    if told.is_none_or(|told| told.as_bytes() != proof) {
        serving.abort();
        return Err(RequestError::BadUpgradeResponse);
    }
    let upgraded = hyper::upgrade::on(response).await?;
    let parts = upgraded
        .downcast::<TokioIo<TcpStream>>()
        .map_err(|_| RequestError::Body)?;
    Ok((parts.io.into_inner(), parts.read_buf))
}
