//! The listener, and the HTTP service of each thread.
//!
//! A request for an upgrade leaves HTTP with its raw stream. All other requests go to the routes.

use std::future::ready;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_codec::{AsyncRead, AsyncWrite, Framed};
use actix_http::body::{BoxBody, EitherBody};
use actix_http::{HttpService, Request, h1};
use actix_server::{GracefulShutdownSignal, Server, ServerBuilder};
use actix_service::{Service, ServiceFactory, fn_factory, fn_service, map_config};
use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::dev::{AppConfig, ServiceResponse};
use actix_web::rt::net::TcpStream;
use actix_web::{App, middleware};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::components::Components;
use super::socket::{self, SocketContext};
use super::{routes, security_log};
use crate::config::TlsFiles;

/// Maximum number of connections that the kernel queues before they are accepted.
const BACKLOG: i32 = 4096;

/// Size of the kernel's send buffer; limits the memory for a client that does not read.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Time after which the kernel closes a connection whose peer acknowledges nothing.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum time for a client to send the head of a request.
const REQUEST_HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Time during which the rest of a body is read and discarded after an early response. Closing the
/// connection at once would reset it, and the client could lose the response.
const UNREAD_BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Time after which an idle connection is closed.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// Binds the address. Accepted connections inherit the socket options.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        None,
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Reads the certificate and its key.
pub fn tls_config(files: &TlsFiles) -> Result<rustls::ServerConfig, String> {
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect)
        .map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| error.to_string())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| error.to_string())
}

/// Serves HTTP and WebSocket connections of the listener on `workers` threads.
pub fn serve(
    components: &Components,
    listener: TcpListener,
    tls: Option<rustls::ServerConfig>,
    workers: usize,
    drain_time: Duration,
) -> io::Result<Server> {
    let connections = components.config.server.max_connections / workers + 1024;
    let builder = ServerBuilder::new()
        .workers(workers)
        .max_concurrent_connections(connections)
        .shutdown_timeout(drain_time.as_secs().max(1))
        .disable_signals();
    let context = ServiceContext {
        components: components.clone(),
        sockets: components.socket_context(),
        started_at: Instant::now(),
        closing: builder.graceful_shutdown_signal(),
    };
    let builder = match tls {
        None => builder.listen("hub", listener, move || {
            http_service::<TcpStream>(context.clone()).tcp()
        })?,
        Some(tls) => builder.listen("hub", listener, move || {
            http_service::<TlsStream<TcpStream>>(context.clone()).rustls_0_23(tls.clone())
        })?,
    };
    Ok(builder.run())
}

/// What each thread creates its service from.
#[derive(Clone)]
struct ServiceContext {
    components: Components,
    sockets: Arc<SocketContext>,
    started_at: Instant,
    /// Notified when the listener closes. Idle connections close then and not earlier, so that probes
    /// still learn that the node drains.
    closing: GracefulShutdownSignal,
}

/// Creates the service for streams of the type `T`.
#[expect(
    clippy::type_complexity,
    reason = "a generic return type cannot be a type alias"
)]
fn http_service<T>(
    context: ServiceContext,
) -> HttpService<
    T,
    impl ServiceFactory<
        Request,
        Config = (),
        Response = ServiceResponse<EitherBody<BoxBody>>,
        Error = actix_web::Error,
        InitError = (),
        Service: Service<Request, Future: 'static>,
        Future: 'static,
    >,
    EitherBody<BoxBody>,
    h1::ExpectHandler,
    impl ServiceFactory<
        (Request, Framed<T, h1::Codec>),
        Config = (),
        Response = (),
        Error = actix_web::Error,
        InitError = (),
        Future: 'static,
    >,
>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let ServiceContext {
        components,
        sockets,
        started_at,
        closing,
    } = context;
    let app = App::new()
        .wrap(middleware::from_fn(security_log::record_problems))
        .wrap(routes::cors(&components.config.server))
        .wrap(routes::security_headers(&components.config.server))
        .configure(routes::configure(&components, started_at));
    let upgrade = move |(request, framed): (Request, Framed<T, h1::Codec>)| {
        // Boxed, because every HTTP connection reserves space for this future.
        let upgrade = Box::pin(socket::serve(Arc::clone(&sockets), request, framed));
        async move {
            upgrade.await;
            Ok(())
        }
    };
    HttpService::build()
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(REQUEST_HEAD_TIMEOUT)
        .client_disconnect_timeout(UNREAD_BODY_TIMEOUT)
        // A stream or long poll ends when its client disconnects, not with its next write.
        .h1_allow_half_closed(false)
        .graceful_shutdown_signal(move || {
            let closing = closing.clone();
            async move { closing.notified().await }
        })
        .upgrade(fn_factory(move || ready(Ok(fn_service(upgrade.clone())))))
        .finish(map_config(app, |()| AppConfig::default()))
}
