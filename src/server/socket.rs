//! `GET /v1/ws`: from a raw upgrade to a connection's task.
//!
//! Invariant: nobody is upgraded who is not welcome: the path, the origin and a token that comes
//! with the request are judged while there is still an HTTP answer to give.

mod connection;
mod inbound;
mod session;
mod transport;

use std::sync::Arc;

use actix_codec::Framed;
use actix_http::body::BodySize;
use actix_http::{HttpMessage, Request, Response, h1, ws};
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::web::BytesMut;
use futures_util::SinkExt;
use tokio::io::{AsyncRead, AsyncWrite};
use url::Url;

use super::caller::bearer;
use super::drain::Drain;
use super::error::{PROBLEM_JSON, Problem};
use crate::cancellation::CancelService;
use crate::config::{ServerConfig, SocketConfig};
use crate::hub::Hub;
use crate::protocol::SUBPROTOCOL;
use crate::store::Store;
use crate::telemetry::Metrics;
use progress_hub_auth::jwt::{Principal, Verifier};

/// A subprotocol that carries a token: a browser can set no headers.
const BEARER_PROTOCOL: &str = "bearer.";

/// What sockets touch; one for all of them.
pub struct SocketContext {
    /// Where they listen and how many there may be.
    pub server: ServerConfig,
    /// How they behave.
    pub settings: SocketConfig,
    /// Who they are.
    pub verifier: Arc<Verifier>,
    /// What they hear of.
    pub hub: Arc<Hub>,
    /// Where they read from.
    pub store: Arc<dyn Store>,
    /// How they cancel.
    pub canceller: Arc<CancelService>,
    /// When they have to go.
    pub drain: Arc<Drain>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// How a request wants to be upgraded.
struct UpgradeDecision {
    principal: Option<Principal>,
    protocol: Option<&'static str>,
}

/// Takes over a request that asks for an upgrade. What it becomes is a task of its own, so that an
/// idle connection keeps nothing of how it came to be; the drain waits for it.
pub async fn serve<T>(sockets: Arc<SocketContext>, request: Request, framed: Framed<T, h1::Codec>)
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    if let Some(upgraded) = upgrade(&sockets, request, framed).await {
        let drain = Arc::clone(&sockets.drain);
        drain.track(connection::open(sockets, upgraded));
    }
}

/// A stream that speaks WebSocket from here on.
struct Upgraded<T> {
    io: T,
    /// What came in the same segment as the request.
    initial_bytes: BytesMut,
    principal: Option<Principal>,
}

/// Answers the request; `None` where that was all.
async fn upgrade<T>(
    sockets: &SocketContext,
    request: Request,
    mut framed: Framed<T, h1::Codec>,
) -> Option<Upgraded<T>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let admission = match authorize_upgrade(sockets, &request).await {
        Ok(admission) => admission,
        Err(problem) => {
            reject_upgrade(&mut framed, &problem).await;
            return None;
        }
    };
    let mut response = ws::handshake_response(request.head());
    if let Some(protocol) = admission.protocol {
        response.insert_header((header::SEC_WEBSOCKET_PROTOCOL, protocol));
    }
    let response = response.finish().drop_body();
    let head = h1::Message::Item((response, BodySize::None));
    framed.send(head).await.ok()?;
    let parts = framed.into_parts();
    // A copy of what is there, for the buffer itself is as large as a request may be.
    let begun = BytesMut::from(&parts.read_buf[..]);
    let principal = admission.principal;
    Some(Upgraded {
        io: parts.io,
        initial_bytes: begun,
        principal,
    })
}

async fn authorize_upgrade(
    sockets: &SocketContext,
    request: &Request,
) -> Result<UpgradeDecision, Problem> {
    if request.path() != "/v1/ws" {
        return Err(Problem::not_found("resource"));
    }
    if request.method() != Method::GET {
        return Err(Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "upgrade with GET",
        ));
    }
    ws::verify_handshake(request.head()).map_err(|error| Problem::invalid(error.to_string()))?;
    let headers = request.headers();
    if !is_origin_allowed(headers, &sockets.server) {
        let detail = "this origin may not open sockets here; see server.allowed_origins";
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "origin_refused",
            detail,
        ));
    }
    if sockets.drain.is_draining() {
        return Err(Problem::unavailable(
            "draining",
            "this node is going away",
            sockets.drain.retry_after(),
        ));
    }
    let offered: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let by_protocol = offered
        .iter()
        .find_map(|offer| offer.strip_prefix(BEARER_PROTOCOL));
    let token = match headers.get(header::AUTHORIZATION) {
        Some(value) => Some(bearer(Some(value)).unwrap_or_default()),
        None => by_protocol,
    };
    let principal = match token {
        Some(token) => Some(sockets.verifier.verify(token).await?),
        None => None,
    };
    let protocol = offered.contains(&SUBPROTOCOL).then_some(SUBPROTOCOL);
    Ok(UpgradeDecision {
        principal,
        protocol,
    })
}

/// A browser says where its page is from: one of the allowed origins, or this host where none are
/// named. Anybody else says nothing, and brings a token.
fn is_origin_allowed(headers: &HeaderMap, server: &ServerConfig) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    if server
        .allowed_origins
        .iter()
        .any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
    {
        return true;
    }
    if !server.allowed_origins.is_empty() {
        return false;
    }
    let Ok(origin) = Url::parse(origin) else {
        return false;
    };
    let authority = |url: &Url| {
        let port = url
            .port()
            .map(|port| format!(":{port}"))
            .unwrap_or_default();
        url.host_str().map(|host| format!("{host}{port}"))
    };
    let Some(its) = authority(&origin) else {
        return false;
    };
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let is_same_host = host.is_some_and(|host| host.eq_ignore_ascii_case(&its));
    is_same_host
        || server
            .public_url
            .as_ref()
            .and_then(authority)
            .is_some_and(|ours| ours.eq_ignore_ascii_case(&its))
}

/// Answers with a problem instead of an upgrade. Should the client be gone, nobody misses it.
async fn reject_upgrade<T>(framed: &mut Framed<T, h1::Codec>, problem: &Problem)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut response = Response::build(problem.status());
    for (name, value) in problem.headers() {
        response.insert_header((name, value));
    }
    response.insert_header((header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON)));
    response.force_close();
    let body = problem.body();
    let head = h1::Message::Item((
        response.finish().drop_body(),
        BodySize::Sized(body.len() as u64),
    ));
    for message in [
        head,
        h1::Message::Chunk(Some(body.into())),
        h1::Message::Chunk(None),
    ] {
        if framed.send(message).await.is_err() {
            return;
        }
    }
    if let Err(error) = framed.close().await {
        tracing::debug!(%error, "the client went before it was refused");
    }
}
