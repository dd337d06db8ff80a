//! The listeners, and the HTTP services of each thread.
//!
//! A request for an upgrade leaves HTTP with its raw stream. All other requests go to the routes.

use std::future::ready;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_codec::Framed;
use actix_http::{HttpService, Protocol, Request, h1};
use actix_server::{GracefulShutdownSignal, Server, ServerBuilder};
use actix_service::{
    IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, fn_factory, fn_service,
    map_config,
};
use actix_web::App;
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, ServiceResponse};
use actix_web::middleware::from_fn;
use actix_web::rt::net::TcpStream;

use super::components::Components;
use super::connection::{Acceptor, KEEP_ALIVE, RequestStream, UNREAD_BODY_TIMEOUT, track};
use super::socket::{self, SocketContext};
use super::{middleware, open_files, routes};

/// Maximum number of connections that the kernel queues before they are accepted.
const BACKLOG: i32 = 4096;

/// Size of the kernel's send buffer; limits the memory for a client that does not read.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Time after which the kernel closes a connection whose peer acknowledges nothing.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum number of connections for other requests than WebSockets, event streams and long polls.
const REQUEST_CONNECTIONS: usize = 2048;

/// Maximum number of connections of the admin listener.
const ADMIN_CONNECTIONS: usize = 64;

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

/// The bound listeners, with their TLS configuration and the limit of open files.
pub struct Listeners {
    pub public: TcpListener,
    /// For health checks and metrics only.
    pub admin: Option<TcpListener>,
    pub tls: Option<rustls::ServerConfig>,
    /// Maximum number of open files of the process.
    pub open_files: usize,
}

/// Serves HTTP and WebSocket connections of the listeners on `workers` threads.
pub fn serve(
    components: &Components,
    listeners: Listeners,
    workers: usize,
    drain_time: Duration,
) -> io::Result<Server> {
    let server = &components.config.server;
    let max_open = server.max_connections + REQUEST_CONNECTIONS;
    let builder = ServerBuilder::new()
        .workers(workers)
        // The acceptor limits the connections. A limit here would stop a thread from accepting, and
        // health checks on it would time out.
        .max_concurrent_connections(usize::MAX >> 1)
        .shutdown_timeout(drain_time.as_secs().max(1))
        .disable_signals();
    let acceptor = Acceptor::public(
        &components.limits,
        &components.metrics,
        server.request_timeout,
        max_open.min(open_files::max_clients(listeners.open_files)),
        listeners.tls,
    );
    let admin_acceptor = acceptor.admin(ADMIN_CONNECTIONS);
    let context = ServiceContext {
        sockets: SocketContext::new(components),
        components: components.clone(),
        started_at: Instant::now(),
        closing: builder.graceful_shutdown_signal(),
        acceptor,
    };
    let admin_context = ServiceContext {
        acceptor: admin_acceptor,
        ..context.clone()
    };
    let mut builder = builder.listen("hub", listeners.public, move || public_service(&context))?;
    if let Some(admin) = listeners.admin {
        builder = builder.listen("admin", admin, move || admin_service(&admin_context))?;
    }
    Ok(builder.run())
}

/// The components from which each thread creates its services.
#[derive(Clone)]
struct ServiceContext {
    components: Components,
    sockets: Arc<SocketContext>,
    started_at: Instant,
    /// Notified when the listener closes. Idle connections close then and not earlier, so that probes
    /// still learn that the node drains.
    closing: GracefulShutdownSignal,
    acceptor: Arc<Acceptor>,
}

/// Creates the service of the public listener.
fn public_service(
    context: &ServiceContext,
) -> impl ServiceFactory<TcpStream, Config = (), Response = (), Error = (), InitError = ()> + use<>
{
    let components = &context.components;
    let app = App::new()
        .wrap(routes::cors(Arc::clone(&components.origins)))
        .wrap(from_fn(middleware::public))
        .wrap(routes::security_headers(&components.config.server))
        .configure(routes::configure(components, context.started_at));
    http_service(context, app)
}

/// Creates the service of the admin listener.
fn admin_service(
    context: &ServiceContext,
) -> impl ServiceFactory<TcpStream, Config = (), Response = (), Error = (), InitError = ()> + use<>
{
    let app = App::new()
        .wrap(from_fn(middleware::admin))
        .configure(routes::configure_admin(
            &context.components,
            context.started_at,
        ));
    http_service(context, app)
}

/// Creates the service that accepts connections and passes their requests to `app`.
fn http_service<A, F, B>(
    context: &ServiceContext,
    app: A,
) -> impl ServiceFactory<TcpStream, Config = (), Response = (), Error = (), InitError = ()> + use<A, F, B>
where
    A: IntoServiceFactory<F, Request>,
    F: ServiceFactory<
            Request,
            Config = AppConfig,
            Response = ServiceResponse<B>,
            Error = actix_web::Error,
            InitError = (),
            Future: 'static,
        > + 'static,
    F::Service: Service<Request, Future: 'static>,
    B: MessageBody + Unpin + 'static,
{
    let (sockets, closing) = (Arc::clone(&context.sockets), context.closing.clone());
    let upgrade = move |(request, framed): (Request, Framed<RequestStream, h1::Codec>)| {
        // Boxed, because every HTTP connection reserves space for this future.
        let upgrade = Box::pin(socket::serve(Arc::clone(&sockets), request, framed));
        async move {
            upgrade.await;
            Ok::<_, actix_web::Error>(())
        }
    };
    let http = HttpService::build()
        .keep_alive(KEEP_ALIVE)
        // The stream limits the time of every head, not only of the first one.
        .client_request_timeout(Duration::ZERO)
        .client_disconnect_timeout(UNREAD_BODY_TIMEOUT)
        // A stream or long poll ends when its client disconnects, not with its next write.
        .h1_allow_half_closed(false)
        .graceful_shutdown_signal(move || {
            let closing = closing.clone();
            async move { closing.notified().await }
        })
        .on_connect_ext(|stream: &RequestStream, extensions| {
            extensions.insert(Rc::clone(stream.client()));
            // The extractor of the caller records on the address that the client has authenticated.
            if let Some(address) = stream.client().address() {
                extensions.insert(address);
            }
        })
        .upgrade(fn_factory(move || {
            ready(Ok::<_, ()>(fn_service(upgrade.clone())))
        }))
        .finish(track(map_config(app, |()| AppConfig::default())));
    let acceptor = Arc::clone(&context.acceptor);
    let accept = move |io: TcpStream| {
        let acceptor = Arc::clone(&acceptor);
        async move {
            let peer = io.peer_addr().ok();
            let connection = acceptor.accept(io).await?;
            let stream = RequestStream::new(acceptor, connection);
            Ok::<_, ()>((stream, Protocol::Http1, peer))
        }
    };
    fn_service(accept).and_then(http.map_err(drop))
}
