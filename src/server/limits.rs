//! Limits per client address, per subject, per output and per node.
//!
//! A connection counts for its address when it is accepted, and for its subject when the token is
//! verified. WebSockets, event streams and long polls share the limits of their subject. Each limit
//! that a client reaches is counted in the metrics. The response is 408, 429 or 503, or a close
//! code from 4100 to 4199.

mod address;
mod body;
mod download;
mod subject;
mod table;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header::HeaderMap;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use self::address::{AddressLimit, AddressUsage, ClientAddresses, client_network};
pub use self::address::{AddressPermit, ClientAddress};
use self::body::BodyMemory;
pub use self::body::BodyPermit;
pub use self::download::DownloadPermit;
use self::download::OutputUsage;
pub use self::subject::SubjectPermit;
use self::subject::SubjectUsage;
use self::table::UsageTable;
use super::drain::Drain;
use super::error::{ErrorCode, Problem};
use crate::config::{Config, Limits};
use crate::job::JobId;
use crate::protocol::CloseReason;
use crate::rate_limit::{Rate, RateLimit};
use crate::telemetry::{Limit, Metrics};
use progress_hub_auth::jwt::Principal;

/// Number of ids that a feed counts as. The store reads up to 256 jobs of a feed in one query.
pub const FEED_IDS: usize = 64;

/// Maximum total size of the bodies of callers with a token that a node holds in memory.
const AUTHENTICATED_BODY_BYTES: usize = 64 << 20;

/// Time after which a client that reached a limit of connections should try again.
const CONNECTION_RETRY_AFTER: Duration = Duration::from_secs(10);

/// Time after which a client should try a download again.
const DOWNLOAD_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Adds `count` to `used` unless the sum exceeds `max`. Returns whether it was added.
fn try_acquire(used: &AtomicUsize, count: usize, max: usize) -> bool {
    let add = |used: usize| used.checked_add(count).filter(|sum| *sum <= max);
    let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
    used.fetch_update(set, fetch, add).is_ok()
}

fn release(used: &AtomicUsize, count: usize) {
    used.fetch_sub(count, Ordering::Relaxed);
}

/// A limit that a client has reached, and the time after which it should try again.
#[derive(Clone, Copy, Debug)]
pub struct LimitReached {
    limit: Limit,
    retry_after: Duration,
}

impl LimitReached {
    /// Returns the reason to close a WebSocket.
    pub fn close_reason(self) -> CloseReason {
        match self.limit {
            Limit::NodeConnections => CloseReason::OverCapacity,
            Limit::AddressConnections
            | Limit::UnauthenticatedConnections
            | Limit::SubjectConnections => CloseReason::TooManyConnections,
            Limit::Handshakes
            | Limit::Requests
            | Limit::Messages
            | Limit::Ids
            | Limit::Subscriptions
            | Limit::RequestTime
            | Limit::AuthenticatedBodies
            | Limit::UnverifiedBodies
            | Limit::NodeDownloads
            | Limit::OwnerDownloads
            | Limit::LinkDownloads
            | Limit::DownloadRate => CloseReason::RateLimited,
        }
    }
}

impl From<LimitReached> for Problem {
    fn from(LimitReached { limit, retry_after }: LimitReached) -> Self {
        let (code, detail) = match limit {
            Limit::NodeConnections => (
                ErrorCode::OverCapacity,
                "the node has reached its maximum number of connections; try again",
            ),
            Limit::AddressConnections => (
                ErrorCode::TooManyConnections,
                "the address has reached limits.connections_per_address",
            ),
            Limit::UnauthenticatedConnections => (
                ErrorCode::TooManyConnections,
                "the address has reached limits.unauthenticated_per_address",
            ),
            Limit::SubjectConnections => (
                ErrorCode::TooManyConnections,
                "the subject has reached limits.connections_per_subject",
            ),
            Limit::Handshakes => (
                ErrorCode::RateLimited,
                "the address has reached limits.handshakes_per_second",
            ),
            Limit::Requests => (
                ErrorCode::RateLimited,
                "the subject has reached limits.requests_per_second",
            ),
            Limit::Messages => (
                ErrorCode::RateLimited,
                "the subject has reached limits.messages_per_second",
            ),
            Limit::Ids => (
                ErrorCode::RateLimited,
                "the subject has reached limits.ids_per_second",
            ),
            Limit::Subscriptions => (
                ErrorCode::TooManySubscriptions,
                "the subject has reached limits.subscriptions_per_subject",
            ),
            Limit::RequestTime => (
                ErrorCode::RequestTimeout,
                "the request did not arrive within server.request_timeout",
            ),
            Limit::AuthenticatedBodies => (
                ErrorCode::OverCapacity,
                "the address or the node receives too many request bodies; try again",
            ),
            Limit::UnverifiedBodies => (
                ErrorCode::OverCapacity,
                "the address or the node has reached limits.unverified_body_bytes; try again",
            ),
            Limit::NodeDownloads
            | Limit::OwnerDownloads
            | Limit::LinkDownloads
            | Limit::DownloadRate => (
                ErrorCode::TooManyDownloads,
                "too many outputs are streamed at the same time; try again",
            ),
        };
        Self::new(code, detail).with_retry_after(retry_after)
    }
}

/// The permits of an event stream or long poll. Dropping them releases the stream.
#[derive(Debug)]
pub struct StreamPermit {
    _node: OwnedSemaphorePermit,
    _address: Option<AddressPermit>,
    subject: SubjectPermit,
}

impl StreamPermit {
    /// Reduces the reserved subscriptions by id to the number of jobs that exist.
    pub fn settle_subscriptions(&mut self, actual: usize) {
        self.subject.settle_subscriptions(actual);
    }
}

/// The limits of a node, and the usage of each client.
pub struct ConnectionLimits {
    settings: Limits,
    requests: RateLimit,
    messages: RateLimit,
    ids: RateLimit,
    handshakes: RateLimit,
    client_addresses: ClientAddresses,
    by_address: UsageTable<IpAddr, AddressUsage>,
    by_subject: UsageTable<String, SubjectUsage>,
    by_output: UsageTable<String, OutputUsage>,
    authenticated_bodies: BodyMemory,
    unverified_bodies: BodyMemory,
    drain: Arc<Drain>,
    metrics: Arc<Metrics>,
}

impl ConnectionLimits {
    /// Creates the limits of a configuration.
    pub fn new(config: &Config, drain: Arc<Drain>, metrics: Arc<Metrics>) -> Self {
        let settings = config.limits;
        let max_body_bytes = config.server.max_body_bytes;
        Self {
            requests: RateLimit::per_second(settings.requests_per_second),
            messages: RateLimit::per_second(settings.messages_per_second),
            ids: RateLimit::per_second(settings.ids_per_second),
            handshakes: RateLimit::per_second(settings.handshakes_per_second),
            settings,
            client_addresses: ClientAddresses::new(&config.server),
            by_address: UsageTable::default(),
            by_subject: UsageTable::default(),
            by_output: UsageTable::default(),
            authenticated_bodies: BodyMemory::new(
                AUTHENTICATED_BODY_BYTES.max(max_body_bytes),
                max_body_bytes,
            ),
            unverified_bodies: BodyMemory::new(settings.unverified_body_bytes, max_body_bytes),
            drain,
            metrics,
        }
    }

    /// Counts a limit that was reached.
    pub fn reached(&self, limit: Limit, retry_after: Duration) -> LimitReached {
        self.metrics.limit_reached(limit);
        LimitReached { limit, retry_after }
    }

    /// Counts an accepted TCP connection. Returns `None` for a trusted proxy. The hub counts the
    /// clients of a trusted proxy instead, with [`Self::accept_forwarded`].
    ///
    /// # Errors
    /// The limit that the address has reached.
    pub fn accept(
        &self,
        peer: IpAddr,
        is_tls: bool,
    ) -> Result<Option<AddressPermit>, LimitReached> {
        if self.client_addresses.is_trusted(peer) {
            return Ok(None);
        }
        let now = Instant::now();
        let usage = self.by_address.get(&client_network(peer), now);
        if is_tls {
            let charged = usage.handshakes.try_charge(self.handshakes, 1, now);
            charged.map_err(|wait| self.reached(Limit::Handshakes, wait))?;
        }
        self.acquire_address(usage).map(Some)
    }

    /// Returns the client address that a trusted proxy forwards, or `None` if the peer is not a
    /// trusted proxy or forwards no valid address.
    pub fn forwarded_client(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        self.client_addresses.forwarded(peer?, headers)
    }

    /// Returns the address of a client for the log: the address that a trusted proxy forwards, or
    /// the address of the peer.
    pub fn client_address(&self, peer: Option<SocketAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        let peer = peer.map(|peer| peer.ip().to_canonical());
        self.forwarded_client(peer, headers).or(peer)
    }

    /// Counts a WebSocket, event stream or long poll of a client behind a trusted proxy.
    ///
    /// # Errors
    /// The limit that the address has reached.
    pub fn accept_forwarded(&self, client: IpAddr) -> Result<AddressPermit, LimitReached> {
        let network = client_network(client);
        let usage = self.by_address.get(&network, Instant::now());
        self.acquire_address(usage)
    }

    fn acquire_address(&self, usage: Arc<AddressUsage>) -> Result<AddressPermit, LimitReached> {
        let Limits {
            connections_per_address,
            unauthenticated_per_address,
            ..
        } = self.settings;
        let permit =
            AddressPermit::acquire(usage, connections_per_address, unauthenticated_per_address);
        permit.map_err(|limit| {
            let limit = match limit {
                AddressLimit::Connections => Limit::AddressConnections,
                AddressLimit::Unauthenticated => Limit::UnauthenticatedConnections,
            };
            self.reached(limit, CONNECTION_RETRY_AFTER)
        })
    }

    /// Counts a WebSocket, event stream or long poll of the node.
    ///
    /// # Errors
    /// `server.max_connections` is reached.
    pub fn acquire_node(&self) -> Result<OwnedSemaphorePermit, LimitReached> {
        let permit = self.drain.try_acquire();
        permit.ok_or_else(|| self.node_is_full())
    }

    /// Counts a connection that is rejected because the node is full.
    pub fn node_is_full(&self) -> LimitReached {
        self.reached(Limit::NodeConnections, self.drain.retry_after())
    }

    /// Counts a connection of a subject. Administrators have no limits.
    ///
    /// # Errors
    /// The subject has reached `limits.connections_per_subject`.
    pub fn acquire_subject(&self, principal: &Principal) -> Result<SubjectPermit, LimitReached> {
        let mut permit = SubjectPermit {
            usage: None,
            subscriptions: 0,
        };
        if principal.is_admin() {
            return Ok(permit);
        }
        let usage = self.by_subject.get(principal.subject(), Instant::now());
        if !try_acquire(&usage.connections, 1, self.settings.connections_per_subject) {
            return Err(self.reached(Limit::SubjectConnections, CONNECTION_RETRY_AFTER));
        }
        permit.usage = Some(usage);
        Ok(permit)
    }

    /// Counts an HTTP request of a subject. Administrators have no limits, and workers report updates
    /// at the rate of their jobs.
    ///
    /// # Errors
    /// The subject has reached `limits.requests_per_second`.
    pub fn charge_request(&self, principal: &Principal) -> Result<(), LimitReached> {
        if principal.is_admin() || principal.may_publish() {
            return Ok(());
        }
        let now = Instant::now();
        let usage = self.by_subject.get(principal.subject(), now);
        let charged = usage.requests.try_charge(self.requests, 1, now);
        charged.map_err(|wait| self.reached(Limit::Requests, wait))
    }

    /// Counts an event stream or long poll for all limits that apply. It is called before the store
    /// is read.
    ///
    /// # Errors
    /// The first limit that is reached.
    pub fn open_stream(
        &self,
        request: &HttpRequest,
        principal: &Principal,
        jobs: usize,
        has_feed: bool,
    ) -> Result<StreamPermit, LimitReached> {
        let node = self.acquire_node()?;
        let peer = request.peer_addr().map(|address| address.ip());
        let client = self.forwarded_client(peer, request.headers());
        let address = client.map(|client| self.accept_forwarded(client));
        let address = address.transpose()?;
        if let Some(address) = &address {
            address.set_authenticated();
        }
        let mut subject = self.acquire_subject(principal)?;
        if let Some(usage) = &subject.usage {
            let now = Instant::now();
            let messages = usage.messages.try_charge(self.messages, 1, now);
            messages.map_err(|wait| self.reached(Limit::Messages, wait))?;
            let ids = if has_feed { jobs + FEED_IDS } else { jobs };
            let ids = usage.ids.try_charge(self.ids, ids, now);
            ids.map_err(|wait| self.reached(Limit::Ids, wait))?;
        }
        if self.reserve_subscriptions(&mut subject, jobs) < jobs {
            return Err(self.reached(Limit::Subscriptions, CONNECTION_RETRY_AFTER));
        }
        Ok(StreamPermit {
            _node: node,
            _address: address,
            subject,
        })
    }

    /// Counts a message of a WebSocket and the ids in it. Returns the time until the subject may
    /// send the next message, and the limit that determines this time.
    pub fn charge_message(&self, subject: &SubjectPermit, ids: usize) -> (Limit, Duration) {
        let Some(usage) = &subject.usage else {
            return (Limit::Messages, Duration::ZERO);
        };
        let now = Instant::now();
        let by_messages = usage.messages.charge(self.messages, 1, now);
        let by_ids = usage.ids.charge(self.ids, ids, now);
        if by_ids > by_messages {
            (Limit::Ids, by_ids)
        } else {
            (Limit::Messages, by_messages)
        }
    }

    /// Counts a frame of a WebSocket. Returns the time until the client may send the next one.
    pub fn charge_frame(&self, frames: &Rate) -> Duration {
        frames.charge(self.messages, 1, Instant::now())
    }

    /// Reserves up to `wanted` further subscriptions by id for a connection. Returns the number of
    /// reserved subscriptions.
    pub fn reserve_subscriptions(&self, subject: &mut SubjectPermit, wanted: usize) -> usize {
        subject.reserve_up_to(wanted, self.settings.subscriptions_per_subject)
    }

    /// Counts a download of an output, for its owner and for its link.
    ///
    /// # Errors
    /// The limit that the owner or the link has reached.
    pub fn open_download(
        &self,
        owner: &str,
        job: &JobId,
        output: usize,
    ) -> Result<DownloadPermit, LimitReached> {
        let now = Instant::now();
        let owner = self.by_subject.get(owner, now);
        let link = self.by_output.get(&format!("{job}/{output}"), now);
        let max = (
            self.settings.downloads_per_owner,
            self.settings.downloads_per_link,
        );
        let permit = DownloadPermit::acquire(owner, link, max);
        permit.map_err(|limit| self.reached(limit, DOWNLOAD_RETRY_AFTER))
    }

    /// Counts a download that the node rejects because it has reached its maximum number of
    /// downloads.
    pub fn node_is_downloading(&self) {
        self.metrics.limit_reached(Limit::NodeDownloads);
    }

    /// Counts a download that ends because its client reads too slowly.
    pub fn reader_is_too_slow(&self) {
        self.metrics.limit_reached(Limit::DownloadRate);
    }

    /// Reserves memory for `bytes` of a body.
    ///
    /// # Errors
    /// The node or the address has reached its limit.
    pub fn reserve_body(&self, permit: &mut BodyPermit, bytes: usize) -> Result<(), LimitReached> {
        let (memory, limit) = if permit.is_authenticated {
            (&self.authenticated_bodies, Limit::AuthenticatedBodies)
        } else {
            (&self.unverified_bodies, Limit::UnverifiedBodies)
        };
        if memory.try_reserve(permit, bytes) {
            return Ok(());
        }
        Err(self.reached(limit, Duration::from_secs(1)))
    }
}
