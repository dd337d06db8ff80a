//! `GET /v1/ws`: the WebSocket upgrade.
//!
//! The path, the origin and a token in the request are checked before the upgrade, while the server can
//! still answer with a problem.

mod connection;
pub(crate) mod inbound;
mod read_pause;
mod session;
mod transport;

use std::net::IpAddr;
use std::sync::Arc;

use actix_codec::{AsyncRead, AsyncWrite, Framed};
use actix_http::body::BodySize;
use actix_http::{HttpMessage, Request, Response, h1, ws};
use actix_web::http::Method;
use actix_web::http::header::{self, HeaderValue};
use actix_web::web::BytesMut;
use futures_util::SinkExt;

use super::caller::bearer_token;
use super::components::Components;
use super::connection::{ConnectionPermits, RequestStream, Stream};
use super::drain::Drain;
use super::error::{ErrorCode, PROBLEM_JSON, Problem};
use super::limits::{AddressPermit, ConnectionLimits};
use super::origin::OriginPolicy;
use super::security_log::{RequestInfo, SecurityLog};
use crate::cancellation::CancelService;
use crate::config::SocketConfig;
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
    /// Decides which pages may connect.
    pub origins: Arc<OriginPolicy>,
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
    /// Closes WebSockets when the node drains.
    pub drain: Arc<Drain>,
    /// Limits per address, per subject and per node.
    pub limits: Arc<ConnectionLimits>,
    /// Counts connections and deliveries.
    pub metrics: Arc<Metrics>,
    /// Logs rejected tokens.
    pub security: Arc<SecurityLog>,
}

impl SocketContext {
    /// Creates the context of all WebSockets of the node.
    pub fn new(components: &Components) -> Arc<Self> {
        Arc::new(Self {
            origins: Arc::clone(&components.origins),
            settings: components.config.socket.clone(),
            verifier: Arc::clone(&components.verifier),
            hub: Arc::clone(&components.hub),
            store: components.store.clone(),
            canceller: Arc::clone(&components.canceller),
            drain: Arc::clone(&components.drain),
            limits: Arc::clone(&components.limits),
            metrics: Arc::clone(&components.metrics),
            security: Arc::clone(&components.security),
        })
    }
}

/// Handles a request for an upgrade. The connection runs in a task of its own, so that an idle
/// connection does not keep the memory of its HTTP request.
pub async fn serve(
    context: Arc<SocketContext>,
    request: Request,
    framed: Framed<RequestStream, h1::Codec>,
) {
    if let Some(upgraded) = upgrade(&context, request, framed).await {
        let drain = Arc::clone(&context.drain);
        drain.track(connection::open(context, upgraded));
    }
}

/// A stream after the upgrade.
struct Upgraded {
    io: Stream,
    client: SocketClient,
    /// Whether the connection exceeds the limit of its listener. It is then closed after the
    /// upgrade.
    is_over_capacity: bool,
    /// The client address that a trusted proxy forwards.
    forwarded: Option<IpAddr>,
    /// Bytes that the client sent directly after the request.
    initial_bytes: BytesMut,
    principal: Option<Principal>,
}

/// The client of a WebSocket, with the permits of its connection.
struct SocketClient {
    /// The address in the log.
    address: Option<IpAddr>,
    connection: Option<ConnectionPermits>,
    /// Counts the client of a trusted proxy.
    forwarded: Option<AddressPermit>,
}

impl SocketClient {
    /// Records that the client has authenticated.
    fn set_authenticated(&self) {
        if let Some(permits) = &self.connection {
            permits.address.set_authenticated();
        }
        if let Some(permit) = &self.forwarded {
            permit.set_authenticated();
        }
    }
}

/// Sends the response. Returns `None` if the upgrade was rejected or the client disconnected.
async fn upgrade(
    context: &SocketContext,
    request: Request,
    mut framed: Framed<RequestStream, h1::Codec>,
) -> Option<Upgraded> {
    let address = context
        .limits
        .client_address(request.peer_addr(), request.headers());
    let decision = match authorize_upgrade(context, &request).await {
        Ok(decision) => decision,
        Err(problem) => {
            let rejected = RequestInfo {
                method: request.method(),
                route: PATH,
                address,
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
    let is_over_capacity = parts.io.client().is_over_capacity();
    let (io, connection) = parts.io.into_parts();
    let peer = request.peer_addr().map(|address| address.ip());
    Some(Upgraded {
        io,
        client: SocketClient {
            address,
            connection,
            forwarded: None,
        },
        is_over_capacity,
        forwarded: context.limits.forwarded_client(peer, request.headers()),
        // A copy, because the original buffer has the capacity for a whole request.
        initial_bytes: BytesMut::from(&parts.read_buf[..]),
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
        return Err(Problem::method_not_allowed("GET"));
    }
    ws::verify_handshake(request.head()).map_err(|error| Problem::invalid(error.to_string()))?;
    let headers = request.headers();
    context.origins.check(headers)?;
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
    let protocol = offered.contains(&SUBPROTOCOL).then_some(SUBPROTOCOL);
    let mut bearer = offered.iter();
    let bearer = bearer.find_map(|protocol| protocol.strip_prefix(BEARER_PROTOCOL));
    if bearer.is_some() && protocol.is_none() {
        // Browsers close a connection whose server selects none of the offered protocols.
        let detail = format!(
            "Sec-WebSocket-Protocol must offer {SUBPROTOCOL} beside {BEARER_PROTOCOL}<token>"
        );
        return Err(Problem::invalid(detail));
    }
    let token = bearer_token(headers)?.or(bearer);
    let principal = match token {
        Some(token) => Some(context.verifier.verify(token).await?),
        None => None,
    };
    Ok(UpgradeDecision {
        principal,
        protocol,
    })
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
