//! Accepts TCP connections: counts them, and performs the TLS handshake.
//!
//! A listener that has reached its limit accepts a few more connections. They serve one health check
//! each. Every other request on them is answered with 503.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_web::rt::net::TcpStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::byte_stream::Stream;
use crate::server::error::Problem;
use crate::server::limits::{ClientAddress, ConnectionLimits, LimitReached};
use crate::telemetry::{Limit, Metrics, OpenConnection};

/// Maximum number of connections beyond the limit of a listener.
const OVER_CAPACITY_CONNECTIONS: usize = 64;

/// Maximum time for the TLS handshake, and for the head of a request, on a connection beyond the limit
/// of a listener. A health check sends its request at once, and silent clients must not keep these
/// connections.
const OVER_CAPACITY_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum number of concurrent rejections with a response. Further connections are closed without
/// one.
const MAX_REJECTIONS: usize = 64;

/// Maximum time for the client of a rejected connection to read the response.
const REJECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection after the TLS handshake, with its permits.
pub struct AcceptedConnection {
    pub(super) io: Stream,
    pub(super) address: ClientAddress,
    pub(super) slot: ConnectionSlot,
}

/// Accepts the connections of one listener.
pub struct Acceptor {
    limits: Arc<ConnectionLimits>,
    metrics: Arc<Metrics>,
    /// Whether clients are counted by their address.
    counts_addresses: bool,
    tls: Option<TlsAcceptor>,
    request_timeout: Duration,
    max_open: usize,
    open: Arc<AtomicUsize>,
    rejections: Semaphore,
}

/// Counts an open connection of a listener until it is dropped.
pub struct ConnectionSlot {
    open: Arc<AtomicUsize>,
    is_over_capacity: bool,
    _metric: OpenConnection,
}

impl ConnectionSlot {
    pub(super) fn is_over_capacity(&self) -> bool {
        self.is_over_capacity
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Acceptor {
    /// Creates the acceptor of the public listener, for at most `max_open` connections.
    pub fn public(
        limits: &Arc<ConnectionLimits>,
        metrics: &Arc<Metrics>,
        request_timeout: Duration,
        max_open: usize,
        tls: Option<rustls::ServerConfig>,
    ) -> Arc<Self> {
        Arc::new(Self {
            limits: Arc::clone(limits),
            metrics: Arc::clone(metrics),
            counts_addresses: true,
            tls: tls.map(|tls| TlsAcceptor::from(Arc::new(tls))),
            request_timeout,
            max_open,
            open: Arc::default(),
            rejections: Semaphore::new(MAX_REJECTIONS),
        })
    }

    /// Creates the acceptor of the admin listener, which does not count addresses.
    pub fn admin(&self, max_open: usize) -> Arc<Self> {
        Arc::new(Self {
            limits: Arc::clone(&self.limits),
            metrics: Arc::clone(&self.metrics),
            counts_addresses: false,
            tls: None,
            request_timeout: self.request_timeout,
            max_open,
            open: Arc::default(),
            rejections: Semaphore::new(MAX_REJECTIONS),
        })
    }

    /// Returns the maximum time for the TLS handshake, and for the head of a request.
    pub(super) fn request_timeout(&self, is_over_capacity: bool) -> Duration {
        if is_over_capacity {
            self.request_timeout.min(OVER_CAPACITY_TIMEOUT)
        } else {
            self.request_timeout
        }
    }

    /// Counts a request head that did not arrive in time, and returns the encoded response.
    pub(super) fn head_timed_out(&self) -> Vec<u8> {
        let reached = self
            .limits
            .reached(Limit::RequestTime, Duration::from_secs(1));
        self.response(&reached.into())
    }

    /// Counts a connection and performs the TLS handshake.
    ///
    /// # Errors
    /// The connection was rejected or its handshake failed. It is closed.
    pub async fn accept(&self, io: TcpStream) -> Result<AcceptedConnection, ()> {
        let peer = io.peer_addr().map_err(drop)?;
        let Some(slot) = self.acquire_slot() else {
            let reached = self.limits.node_is_full();
            Box::pin(self.reject(io, reached)).await;
            return Err(());
        };
        let address = if self.counts_addresses {
            self.limits.accept(peer.ip(), self.tls.is_some())
        } else {
            Ok(None)
        };
        let address = match address {
            Ok(address) => address,
            Err(reached) => {
                drop(slot);
                Box::pin(self.reject(io, reached)).await;
                return Err(());
            }
        };
        let io = match &self.tls {
            None => Stream::Plain(io),
            Some(tls) => {
                let handshake = Box::pin(tls.accept(io));
                let limit = self.request_timeout(slot.is_over_capacity());
                let handshake = timeout(limit, handshake).await;
                Stream::Tls(Box::new(handshake.map_err(drop)?.map_err(drop)?))
            }
        };
        Ok(AcceptedConnection {
            io,
            address: ClientAddress::new(address),
            slot,
        })
    }

    /// Counts a request that is rejected because the node is full, and returns the problem.
    pub(super) fn over_capacity(&self) -> Problem {
        let problem = self.limits.node_is_full().into();
        self.count_problem(&problem);
        problem
    }

    /// Counts a problem that no handler responds with.
    fn count_problem(&self, problem: &Problem) {
        self.metrics.problem(problem.code().as_str());
    }

    /// Counts a problem, and returns the encoded response.
    fn response(&self, problem: &Problem) -> Vec<u8> {
        self.count_problem(problem);
        encode(problem)
    }

    /// Counts a connection. Returns `None` if [`OVER_CAPACITY_CONNECTIONS`] are open beyond the
    /// limit.
    fn acquire_slot(&self) -> Option<ConnectionSlot> {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let slot = ConnectionSlot {
            open: Arc::clone(&self.open),
            is_over_capacity: before >= self.max_open,
            _metric: self.metrics.tcp_connection_opened(),
        };
        (before < self.max_open + OVER_CAPACITY_CONNECTIONS).then_some(slot)
    }

    /// Sends a response on a rejected connection, and closes it. With TLS, the connection is closed
    /// without a handshake, and therefore without a response.
    async fn reject(&self, mut io: TcpStream, reached: LimitReached) {
        if self.tls.is_some() {
            return;
        }
        if let Ok(_permit) = self.rejections.try_acquire() {
            let respond = async {
                io.write_all(&self.response(&reached.into())).await?;
                io.shutdown().await?;
                // A close with unread bytes would reset the connection, and the client could lose the
                // response.
                let mut discarded = [0; 1024];
                while io.read(&mut discarded).await? > 0 {}
                std::io::Result::Ok(())
            };
            if !matches!(timeout(REJECTION_TIMEOUT, respond).await, Ok(Ok(()))) {
                tracing::debug!("failed to send rejection");
            }
        }
    }
}

/// Encodes a problem as an HTTP/1.1 response that closes the connection.
fn encode(problem: &Problem) -> Vec<u8> {
    let (status, body) = (problem.status(), problem.body());
    let mut head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n");
    for (name, value) in problem.headers() {
        let value = value.to_str().unwrap_or_default();
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let length = body.len();
    format!(
        "{head}content-type: {}\r\ncontent-length: {length}\r\n\r\n{body}",
        crate::server::error::PROBLEM_JSON
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Config;
    use crate::server::drain::Drain;

    #[tokio::test]
    async fn cancelled_rejection_does_not_count_any_more() {
        let metrics = Arc::new(Metrics::default());
        let drain = Arc::new(Drain::new(Duration::ZERO, 1));
        let limits = ConnectionLimits::new(&Config::defaults(), drain, Arc::clone(&metrics));
        let timeout = Duration::from_secs(10);
        let acceptor = Acceptor::public(&Arc::new(limits), &metrics, timeout, 1, None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (io, _) = listener.accept().await.unwrap();
        let mut rejection = Box::pin(acceptor.reject(io, acceptor.limits.node_is_full()));
        // The client does not close the connection.
        assert!(futures_util::poll!(&mut rejection).is_pending());
        assert_eq!(acceptor.rejections.available_permits(), MAX_REJECTIONS - 1);
        drop(rejection);
        assert_eq!(acceptor.rejections.available_permits(), MAX_REJECTIONS);
    }
}
