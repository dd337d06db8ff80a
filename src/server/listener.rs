//! The door: the socket that is listened on, and what becomes of a connection.
//!
//! Invariant: a request that asks for an upgrade leaves HTTP with its raw stream; every other goes
//! to the resources.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_codec::Framed;
use actix_http::{HttpService, Request, h1};
use actix_server::{Server, ServerBuilder};
use actix_service::{fn_factory, fn_service, map_config};
use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::dev::AppConfig;
use actix_web::rt::net::TcpStream;
use actix_web::{App, middleware};

use super::components::Components;
use super::{routes, socket};
use crate::config::TlsFiles;

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;

/// Bytes the kernel may buffer towards one client, so that one that does not read costs no more.
const SEND_BUFFER: usize = 64 * 1024;

/// How long the kernel goes on with a connection whose peer acknowledges nothing.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client may take to send a request's head.
const REQUEST_HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client that is answered before it has sent all of its body may go on: what comes is read
/// away, as a connection that is closed on it would take the answer along.
const UNREAD_BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an idle connection is kept for another request.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// Listens, with what accepted connections are to inherit.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        None,
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // What is accepted inherits these.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What the certificate's files make, or what is wrong with them.
pub fn tls_config(files: &TlsFiles) -> Result<rustls::ServerConfig, String> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let tls = |error: &dyn std::fmt::Display| error.to_string();
    let chain = CertificateDer::pem_file_iter(&files.cert).map_err(|error| tls(&error))?;
    let chain: Vec<_> = chain
        .collect::<Result<_, _>>()
        .map_err(|error| tls(&error))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| tls(&error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| tls(&error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| tls(&error))
}

/// Serves what comes in at the listener, on so many threads.
pub fn serve(
    house: Components,
    listener: TcpListener,
    tls: Option<rustls::ServerConfig>,
    workers: usize,
    drain_time: Duration,
) -> io::Result<Server> {
    let begun = Instant::now();
    let sockets = house.socket_context();
    let connections = house.config.server.max_connections / workers + 1024;
    let builder = ServerBuilder::new()
        .workers(workers)
        .max_concurrent_connections(connections)
        .shutdown_timeout(drain_time.as_secs().max(1))
        .disable_signals();
    // From then on, connections that were kept for another request are closed; before it, whoever
    // asks how this node is must be told that it is going away.
    let closing = builder.graceful_shutdown_signal();

    macro_rules! service {
        ($stream:ty, $finish:expr) => {
            move || {
                let (house, sockets) = (house.clone(), Arc::clone(&sockets));
                let closing = closing.clone();
                let app = App::new()
                    .wrap(routes::cors(&house.config.server))
                    .wrap(middleware::NormalizePath::trim())
                    .configure(routes::configure(&house, begun));
                let upgrade = fn_factory(move || {
                    let sockets = Arc::clone(&sockets);
                    std::future::ready(Ok::<_, ()>(fn_service(
                        move |(request, framed): (Request, Framed<$stream, h1::Codec>)| {
                            // A box: whatever may be upgraded has room for this, several times over.
                            let upgrade = socket::serve(Arc::clone(&sockets), request, framed);
                            let upgrade = Box::pin(upgrade);
                            async move {
                                upgrade.await;
                                Ok::<(), actix_web::Error>(())
                            }
                        },
                    )))
                });
                let service = HttpService::build()
                    .keep_alive(KEEP_ALIVE)
                    .client_request_timeout(REQUEST_HEAD_TIMEOUT)
                    .client_disconnect_timeout(UNREAD_BODY_TIMEOUT)
                    // Who has gone is not held for: a stream or a long poll would only end at its next word.
                    .h1_allow_half_closed(false)
                    .graceful_shutdown_signal(move || {
                        let closing = closing.clone();
                        async move { closing.notified().await }
                    })
                    .upgrade(upgrade)
                    .finish(map_config(app, |()| AppConfig::default()));
                $finish(service)
            }
        };
    }
    let builder = match tls {
        None => builder.listen(
            "hub",
            listener,
            service!(TcpStream, |service: HttpService<_, _, _, _, _>| service
                .tcp()),
        )?,
        Some(tls) => builder.listen(
            "hub",
            listener,
            service!(TlsStream<TcpStream>, |service: HttpService<
                _,
                _,
                _,
                _,
                _,
            >| {
                service.rustls_0_23(tls.clone())
            }),
        )?,
    };
    Ok(builder.run())
}
