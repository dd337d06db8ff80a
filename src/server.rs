//! The HTTP and WebSocket server.
//!
//! [`Server::bind`] does everything that can fail. [`Server::run`] serves until it is stopped, and then
//! drains within `server.drain`. The arguments of a handler list exactly what it uses.

mod api;
mod caller;
mod components;
mod compression;
mod connection;
mod content;
mod drain;
mod error;
mod limits;
mod listener;
mod middleware;
mod open_files;
mod origin;
mod parse_error;
mod request;
mod router;
mod routes;
mod security_log;
pub(crate) mod socket;
mod static_files;
mod subscribe;
mod tls;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_server::ServerHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::AdmissionControl;
use crate::background::change_feed::ChangeFeed;
use crate::cancellation::{CancelService, CancelsInProgress};
use crate::config::{Config, ConfigError, TlsFiles};
use crate::destinations::archive::{Archive, ArchiveChannel};
use crate::destinations::{Destinations, WebhookHosts};
use crate::egress::{AddressPolicy, ClientBuildError};
use crate::hub::{self, Hub};
use crate::links::Links;
use crate::provider::{Downloader, Fetcher, HttpClient, Providers};
use crate::store::{self, Retention};
use crate::telemetry::Metrics;
use crate::tracker::{Tracker, WorkerWakeups};
use progress_hub_auth::jwt::{Minter, Verifier};
use progress_hub_auth::signature::CallbackKey;

pub use api::demo::{Demo, DemoScenario};
use components::Components;
use drain::Drain;
pub use error::ErrorCode;
use limits::ConnectionLimits;
use listener::Listeners;
use origin::OriginPolicy;
use security_log::SecurityLog;
pub use tls::Certificate;

/// Time between the latest deadline of an unfinished job and its removal from the store.
const RETENTION_MARGIN: Duration = Duration::from_secs(600);

/// An error that prevents the server from starting.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Settings are invalid in a way that shows only when they are used.
    #[error("invalid configuration")]
    Config(Vec<ConfigError>),
    /// The store cannot be opened.
    #[error("failed to open the store")]
    Store(#[from] store::Error),
    /// The address cannot be bound.
    #[error("failed to bind {0}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The certificate or its key is invalid.
    #[error("invalid TLS certificate or key: {0}")]
    Tls(String),
    /// The HTTP client cannot be created.
    #[error(transparent)]
    Client(#[from] ClientBuildError),
}

/// A server that has bound its address and does not accept connections yet.
pub struct Server {
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    listeners: Listeners,
    certificate: Option<Arc<Certificate>>,
    drain_time: Duration,
    workers: usize,
    components: Components,
}

/// What a configuration creates without opening the store or a connection.
pub struct Validated {
    /// The providers.
    pub providers: Providers,
    /// The destinations outside the hub.
    pub destinations: Destinations,
    /// The archive, if there is one. It becomes a destination when the store is open.
    pub archive: Option<Archive>,
    /// The token verifier.
    pub verifier: Verifier,
}

/// Creates the providers, the destinations and the token verifier of a configuration. Opens neither
/// the store nor a connection.
///
/// # Errors
/// All errors that show only when the settings are used, each with its key.
pub fn validate(config: &Config, http: &HttpClient) -> Result<Validated, Vec<ConfigError>> {
    let fetcher = Arc::new(Fetcher::new(http.clone()));
    let verifier = Verifier::new(&config.auth, fetcher).map_err(|errors| {
        let errors = errors.into_iter();
        errors
            .map(|(key, message)| ConfigError { key, message })
            .collect()
    });
    let store_url = store::check_url(&config.store.url).map_err(|message| {
        let key = "store.url".to_owned();
        vec![ConfigError { key, message }]
    });
    let (providers, destinations) = (Providers::load(config, http), Destinations::load(config));
    let archive = Archive::open(&config.archive);
    match (providers, destinations, archive, verifier, store_url) {
        (Ok(providers), Ok(destinations), Ok(archive), Ok(verifier), Ok(_)) => Ok(Validated {
            providers,
            destinations,
            archive,
            verifier,
        }),
        (providers, destinations, archive, verifier, store_url) => {
            let errors = [
                providers.err(),
                destinations.err(),
                archive.err(),
                verifier.err(),
                store_url.err(),
            ];
            Err(errors.into_iter().flatten().flatten().collect())
        }
    }
}

impl Server {
    /// Validates the configuration, opens the store and binds the address.
    ///
    /// # Errors
    /// [`BindError`]. Everything that was opened is closed again.
    pub fn bind(config: Config, demo: Option<Demo>) -> Result<Self, BindError> {
        let http = HttpClient::new()?;
        let Validated {
            providers,
            mut destinations,
            archive,
            verifier,
        } = validate(&config, &http).map_err(BindError::Config)?;
        for warning in config.warnings().into_iter().chain(providers.warnings()) {
            tracing::warn!(
                config.key = warning.key,
                reason = warning.message,
                "insecure setting"
            );
        }
        let tls = config.server.tls().map(load_certificate);
        let (certificate, tls) = tls.transpose().map_err(BindError::Tls)?.unzip();
        let (public, address) = bind_listener(config.server.bind)?;
        let admin = config.server.admin_bind.map(bind_listener).transpose()?;
        let (admin, admin_address) = admin.unzip();
        let listeners = Listeners {
            public,
            admin,
            tls,
            open_files: open_files::raise_limit(),
        };
        let max_connections = config.server.max_connections;
        if open_files::max_clients(listeners.open_files) < max_connections {
            tracing::warn!(
                open_files = listeners.open_files,
                max_connections,
                "limit of open files is below server.max_connections"
            );
        }

        let metrics = Arc::new(Metrics::new());
        let hub = Hub::new();
        let retention = Retention {
            terminal: config.store.retain_final,
            // The deadline ends a job before it is removed.
            active: config.store.retain_active + RETENTION_MARGIN,
        };
        let feed = ChangeFeed::new(&hub);
        let store = store::open(&config.store, retention, feed.listener())?;
        let wakeups = WorkerWakeups::default();
        let providers = Arc::new(providers);
        let archive = archive.map(Arc::new);
        let policy = AddressPolicy::new(config.archive.allow.clone());
        let downloader = Downloader::new(&http, policy)?;
        if let Some(archive) = &archive {
            let channel = ArchiveChannel::new(
                Arc::clone(archive),
                Arc::clone(&store) as _,
                Arc::clone(&providers),
                &downloader,
                Arc::clone(&metrics),
            );
            destinations.add(archive.destination(channel));
        }
        let destinations = Arc::new(destinations);
        let secret = config.callback.secret.as_ref();
        let callback_key = secret.and_then(|secret| {
            let key = CallbackKey::new(secret).ok()?;
            key.with_previous(&config.callback.previous_secrets).ok()
        });
        let public_url = config.server.public_url.clone().or_else(|| {
            demo.as_ref()
                .and(url::Url::parse(&config.server.local_url(address)).ok())
        });
        let links = Links::new(public_url, callback_key, config.store.retain_final);
        let links = match archive {
            Some(_) => links.with_archive(),
            None => links,
        };
        let tracker = Arc::new(Tracker::new(
            Arc::clone(&store),
            Arc::clone(&providers),
            Arc::clone(&destinations),
            links.clone(),
            Arc::clone(&metrics),
            wakeups.clone(),
        ));
        let canceller = Arc::new(CancelService {
            store: Arc::clone(&store),
            providers: Arc::clone(&providers),
            tracker: Arc::clone(&tracker),
            metrics: Arc::clone(&metrics),
            in_progress: CancelsInProgress::default(),
        });
        let drain_time = config.server.drain;
        let drain = Arc::new(Drain::new(drain_time, max_connections));
        let limits = ConnectionLimits::new(&config, Arc::clone(&drain), Arc::clone(&metrics));
        let components = Components {
            origins: Arc::new(OriginPolicy::new(&config.server)),
            admission: Arc::new(AdmissionControl::new(
                &config,
                links.clone(),
                Arc::clone(&metrics),
            )),
            webhook_hosts: WebhookHosts::new(&config.webhook_defaults),
            links,
            downloader,
            archive,
            minter: Arc::new(Minter::new(&config.auth)),
            verifier: Arc::new(verifier),
            drain,
            limits: Arc::new(limits),
            security: Arc::new(SecurityLog::new(Arc::clone(&metrics))),
            config: Arc::new(config),
            store,
            hub,
            feed,
            providers,
            destinations,
            tracker,
            canceller,
            metrics,
            wakeups,
            demo,
        };
        let workers = std::thread::available_parallelism().map_or(2, usize::from);
        Ok(Self {
            address,
            admin_address,
            listeners,
            certificate,
            drain_time,
            workers: workers.min(hub::MAX_SHARDS),
            components,
        })
    }

    /// Returns the address that the server is bound to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address of the admin listener, if there is one.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// Returns the URL at which this machine reaches the server.
    #[must_use]
    pub fn url(&self) -> String {
        self.components.config.server.local_url(self.address)
    }

    /// Returns the TLS certificate, or `None` for plain HTTP.
    #[must_use]
    pub fn certificate(&self) -> Option<Arc<Certificate>> {
        self.certificate.clone()
    }

    /// Waits for the connection to the store, serves until `stop` is cancelled, then drains.
    ///
    /// # Errors
    /// The system's error if the server cannot continue.
    pub async fn run(self, stop: CancellationToken) -> io::Result<()> {
        let (address, url) = (self.address, self.url());
        let Self {
            listeners,
            certificate,
            drain_time,
            workers,
            components,
            ..
        } = self;
        let background = TaskTracker::new();
        let stop_background = CancellationToken::new();
        // The listener is bound already, so clients that connect before wait and are not rejected.
        tokio::select! {
            () = components.store.wait_until_connected() => {}
            () = stop.cancelled() => {}
        }
        components.spawn_background_tasks(&background, &stop_background);
        if let Some(certificate) = certificate {
            background.spawn(certificate.watch(stop_background.clone()));
        }

        let server = listener::serve(&components, listeners, workers, drain_time)?;
        let store = components.store.name();
        let version = env!("CARGO_PKG_VERSION");
        tracing::info!(url, %address, store, version, "listening");
        let handle = server.handle();
        let result = tokio::select! {
            result = server => result,
            () = drain_and_stop(stop, handle, &components.drain, drain_time) => Ok(()),
        };
        stop_background.cancel();
        background.close();
        let stopped = tokio::time::timeout(drain_time / 10, background.wait()).await;
        if stopped.is_err() {
            tracing::warn!(
                "background tasks still running at shutdown; unfinished work resumes on next start"
            );
        }
        components.store.close().await;
        result
    }
}

/// Loads the certificate, and creates the TLS configuration that presents it.
fn load_certificate(files: TlsFiles) -> Result<(Arc<Certificate>, rustls::ServerConfig), String> {
    let certificate = Arc::new(Certificate::load(files)?);
    let config = tls::server_config(Arc::clone(&certificate))?;
    Ok((certificate, config))
}

fn bind_listener(address: SocketAddr) -> Result<(TcpListener, SocketAddr), BindError> {
    let failed = |error| BindError::Listen(address, error);
    let listener = listener::listen(address).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Waits for `stop`, then drains: readiness fails and WebSockets close while the listener still accepts
/// requests. The listener closes after the last WebSocket. After nine tenths of `time`, connections
/// that are still open are dropped.
async fn drain_and_stop(
    stop: CancellationToken,
    handle: ServerHandle,
    drain: &Drain,
    time: Duration,
) {
    stop.cancelled().await;
    tracing::info!("draining");
    drain.start();
    // Load balancers notice the failing readiness probe.
    tokio::time::sleep(time / 10).await;
    let end = Instant::now() + time * 8 / 10;
    let is_stopped = if timeout_at(end, drain.wait_closed()).await.is_ok() {
        timeout_at(end, handle.stop(true)).await.is_ok()
    } else {
        handle.stop(false).await;
        false
    };
    if !is_stopped {
        tracing::warn!("connections still open at end of drain");
    }
}
