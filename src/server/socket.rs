//! `GET /v1/ws`: the WebSocket upgrade.
//!
//! The path, the origin and a token in the request are checked before the upgrade, while the server can
//! still answer with a problem.

mod connection;
pub(crate) mod inbound;
mod session;
mod transport;

use std::net::SocketAddr;
use std::sync::Arc;

use actix_codec::{AsyncRead, AsyncWrite, Framed};
use actix_http::body::BodySize;
use actix_http::{HttpMessage, Request, Response, h1, ws};
use actix_web::http::Method;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::web::BytesMut;
use futures_util::SinkExt;
use url::Url;

use super::caller::bearer_token;
use super::drain::Drain;
use super::error::{ErrorCode, PROBLEM_JSON, Problem};
use super::security_log::{RequestInfo, SecurityLog};
use crate::cancellation::CancelService;
use crate::config::{ServerConfig, SocketConfig};
use crate::hub::Hub;
use crate::protocol::SUBPROTOCOL;
use crate::store::Store;
use crate::telemetry::Metrics;
use progress_hub_auth::jwt::{Principal, Verifier};

/// Path of the WebSocket.
const PATH: &str = "/v1/ws";

/// Prefix of a subprotocol that carries a token, because a browser cannot set headers.
const BEARER_PROTOCOL: &str = "bearer.";

/// The components that all WebSockets share.
pub struct SocketContext {
    /// Allowed origins and the public URL.
    pub server: ServerConfig,
    /// Timeouts and limits of a connection.
    pub settings: SocketConfig,
    /// Verifies tokens.
    pub verifier: Arc<Verifier>,
    /// Delivers job documents.
    pub hub: Arc<Hub>,
    /// Reads job documents.
    pub store: Arc<dyn Store>,
    /// Cancels jobs.
    pub canceller: Arc<CancelService>,
    /// Limits the number of WebSockets, and closes them when the node drains.
    pub drain: Arc<Drain>,
    /// Counts connections and deliveries.
    pub metrics: Arc<Metrics>,
    /// Logs rejected tokens.
    pub security: Arc<SecurityLog>,
}

/// Handles a request for an upgrade. The connection runs in a task of its own, so that an idle
/// connection does not keep the memory of its HTTP request.
pub async fn serve<T>(context: Arc<SocketContext>, request: Request, framed: Framed<T, h1::Codec>)
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    if let Some(upgraded) = upgrade(&context, request, framed).await {
        let drain = Arc::clone(&context.drain);
        drain.track(connection::open(context, upgraded));
    }
}

/// A stream after the upgrade.
struct Upgraded<T> {
    io: T,
    /// Bytes that the client sent directly after the request.
    initial_bytes: BytesMut,
    address: Option<SocketAddr>,
    principal: Option<Principal>,
}

/// Sends the response. Returns `None` if the upgrade was rejected or the client disconnected.
async fn upgrade<T>(
    context: &SocketContext,
    request: Request,
    mut framed: Framed<T, h1::Codec>,
) -> Option<Upgraded<T>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let decision = match authorize_upgrade(context, &request).await {
        Ok(decision) => decision,
        Err(problem) => {
            let rejected = RequestInfo {
                method: request.method(),
                route: PATH,
                address: request.peer_addr(),
                caller: None,
            };
            context.security.problem(&problem, &rejected);
            reject_upgrade(&mut framed, &problem).await;
            return None;
        }
    };
    let mut response = ws::handshake_response(request.head());
    if let Some(protocol) = decision.protocol {
        response.insert_header((header::SEC_WEBSOCKET_PROTOCOL, protocol));
    }
    let response = response.finish().drop_body();
    let head = h1::Message::Item((response, BodySize::None));
    framed.send(head).await.ok()?;
    let parts = framed.into_parts();
    Some(Upgraded {
        io: parts.io,
        // A copy, because the original buffer has the capacity for a whole request.
        initial_bytes: BytesMut::from(&parts.read_buf[..]),
        address: request.peer_addr(),
        principal: decision.principal,
    })
}

/// The accepted form of an upgrade.
struct UpgradeDecision {
    principal: Option<Principal>,
    protocol: Option<&'static str>,
}

async fn authorize_upgrade(
    context: &SocketContext,
    request: &Request,
) -> Result<UpgradeDecision, Problem> {
    if request.path() != PATH {
        return Err(Problem::not_found("resource"));
    }
    if request.method() != Method::GET {
        let detail = "a WebSocket upgrade requires GET";
        return Err(Problem::new(ErrorCode::MethodNotAllowed, detail));
    }
    ws::verify_handshake(request.head()).map_err(|error| Problem::invalid(error.to_string()))?;
    let headers = request.headers();
    if !is_origin_allowed(headers, &context.server) {
        let detail = "pages of this origin may not connect; add it to server.allowed_origins";
        return Err(Problem::new(ErrorCode::OriginRefused, detail));
    }
    if context.drain.is_draining() {
        let problem = Problem::new(ErrorCode::Draining, "this node is shutting down");
        return Err(problem.with_retry_after(context.drain.retry_after()));
    }
    let offered: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let token = bearer_token(headers)?.or_else(|| {
        let mut offered = offered.iter();
        offered.find_map(|protocol| protocol.strip_prefix(BEARER_PROTOCOL))
    });
    let principal = match token {
        Some(token) => Some(context.verifier.verify(token).await?),
        None => None,
    };
    Ok(UpgradeDecision {
        principal,
        protocol: offered.contains(&SUBPROTOCOL).then_some(SUBPROTOCOL),
    })
}

/// Returns whether pages of the request's origin may connect: those of `server.allowed_origins` or, if
/// that is empty, those of this host. Clients other than browsers send no origin and may connect.
fn is_origin_allowed(headers: &HeaderMap, server: &ServerConfig) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    if !server.allowed_origins.is_empty() {
        let mut allowed = server.allowed_origins.iter();
        return allowed.any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin));
    }
    let Some(authority) = Url::parse(origin).ok().as_ref().and_then(authority_of) else {
        return false;
    };
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let public_authority = server.public_url.as_ref().and_then(authority_of);
    [host, public_authority.as_deref()]
        .into_iter()
        .flatten()
        .any(|own| own.eq_ignore_ascii_case(&authority))
}

/// Returns the host of a URL, with the port if it is not the default one.
fn authority_of(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    match url.port() {
        Some(port) => Some(format!("{host}:{port}")),
        None => Some(host.to_owned()),
    }
}

/// Sends a problem instead of the upgrade.
async fn reject_upgrade<T>(framed: &mut Framed<T, h1::Codec>, problem: &Problem)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut response = Response::build(problem.status());
    for header in problem.headers() {
        response.insert_header(header);
    }
    response.insert_header((header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON)));
    response.force_close();
    let body = problem.body();
    let head = (
        response.finish().drop_body(),
        BodySize::Sized(body.len() as u64),
    );
    for message in [
        h1::Message::Item(head),
        h1::Message::Chunk(Some(body.into())),
        h1::Message::Chunk(None),
    ] {
        if framed.send(message).await.is_err() {
            return;
        }
    }
    if let Err(error) = framed.close().await {
        tracing::debug!(%error, "client disconnected before rejection was sent");
    }
}
