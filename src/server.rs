//! The server: HTTP goes to the handlers here, WebSockets are taken over raw.
//!
//! Invariant: [`Server::bind`] does all that can fail; [`Server::run`] ends within the drain time
//! after it was told to stop. A handler's arguments list exactly what it touches.

mod api;
mod caller;
mod components;
mod drain;
mod error;
mod listener;
mod request;
mod routes;
mod socket;
mod static_files;

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
use crate::cancellation::CancelService;
use crate::config::{Config, ConfigError};
use crate::hub::{self, Hub};
use crate::links::Links;
use crate::provider::{Fetcher, HttpClient, Providers};
use crate::store::{self, Retention};
use crate::telemetry::Metrics;
use crate::tracker::{Tracker, WorkerWakeups};
use progress_hub_auth::jwt::{Minter, Verifier};
use progress_hub_auth::signature::CallbackKey;

pub use api::demo::{Demo, DemoScenario};
use components::Components;
use drain::Drain;

/// Between the latest deadline of a job and its being forgotten unfinished.
const RETENTION_MARGIN: Duration = Duration::from_secs(600);

/// Why a server can't start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The configuration has mistakes that only show when it is used.
    #[error("the configuration has mistakes")]
    Config(Vec<ConfigError>),
    /// The store can't be opened.
    #[error("can't open the store")]
    Store(#[from] store::Error),
    /// The address can't be listened on.
    #[error("can't listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The certificate or its key can't be used.
    #[error("can't use the TLS certificate: {0}")]
    Tls(String),
    /// There is no HTTP client.
    #[error(transparent)]
    Client(#[from] crate::provider::ClientBuildError),
}

/// A hub that listens, and does not answer yet.
pub struct Server {
    address: SocketAddr,
    listener: TcpListener,
    tls: Option<rustls::ServerConfig>,
    drain_time: Duration,
    workers: usize,
    house: Components,
}

/// What a configuration makes, without opening anything: all mistakes at once.
///
/// # Errors
/// Every mistake that only shows when the configuration is used, each by its key.
pub fn validate(
    config: &Config,
    http: &HttpClient,
) -> Result<(Providers, Verifier), Vec<ConfigError>> {
    let fetcher = Arc::new(Fetcher::new(http.clone()));
    let verifier = Verifier::new(&config.auth, fetcher).map_err(|problems| {
        problems
            .into_iter()
            .map(|(key, problem)| ConfigError {
                key,
                message: problem,
            })
            .collect::<Vec<_>>()
    });
    let engine = store::Engine::from_url(&config.store.url).map_err(|message| {
        let key = "store.url".to_owned();
        vec![ConfigError { key, message }]
    });
    match (Providers::load(config, http), verifier, engine) {
        (Ok(providers), Ok(verifier), Ok(_)) => Ok((providers, verifier)),
        (providers, verifier, engine) => {
            let mistakes = [providers.err(), verifier.err(), engine.err()];
            Err(mistakes.into_iter().flatten().flatten().collect())
        }
    }
}

impl Server {
    /// Opens the store, compiles the specs and listens.
    ///
    /// # Errors
    /// [`BindError`]; then nothing is left open.
    pub fn bind(config: Config, demo: Option<Demo>) -> Result<Self, BindError> {
        let http = HttpClient::new()?;
        let (providers, verifier) = validate(&config, &http).map_err(BindError::Config)?;
        let tls = config.server.tls().as_ref().map(listener::tls_config);
        let tls = tls.transpose().map_err(BindError::Tls)?;
        let bind = config.server.bind;
        let listener = listener::listen(bind).map_err(|error| BindError::Listen(bind, error))?;
        let address = listener
            .local_addr()
            .map_err(|error| BindError::Listen(bind, error))?;

        let metrics = Arc::new(Metrics::new());
        let hub = Hub::new();
        let retention = Retention {
            terminal: config.store.retain_final,
            // A job's deadline ends it before it is forgotten.
            active: config.store.retain_active + RETENTION_MARGIN,
        };
        let feed = ChangeFeed::new(&hub);
        let store = store::open(&config.store, retention, feed.listener())?;
        let stir = WorkerWakeups::default();
        let providers = Arc::new(providers);
        let key = config
            .callback
            .secret
            .as_ref()
            .and_then(|secret| CallbackKey::new(secret).ok());
        let public_url = config.server.public_url.clone().or_else(|| {
            demo.as_ref()
                .and(url::Url::parse(&format!("http://{address}")).ok())
        });
        let links = Links::new(public_url, key, config.store.retain_final);
        let tracker = Tracker::new(
            Arc::clone(&store),
            Arc::clone(&providers),
            links.clone(),
            Arc::clone(&metrics),
            stir.clone(),
        );
        let tracker = Arc::new(tracker);
        let canceller = Arc::new(CancelService {
            store: Arc::clone(&store),
            providers: Arc::clone(&providers),
            tracker: Arc::clone(&tracker),
            metrics: Arc::clone(&metrics),
        });
        let drain_time = config.server.drain;
        let house = Components {
            links,
            guard: Arc::new(AdmissionControl::new(&config, Arc::clone(&metrics))),
            minter: Arc::new(Minter::new(&config.auth)),
            verifier: Arc::new(verifier),
            drain: Arc::new(Drain::new(drain_time)),
            config: Arc::new(config),
            store,
            hub,
            feed,
            providers,
            tracker,
            canceller,
            metrics,
            stir,
            demo,
        };
        let workers = std::thread::available_parallelism().map_or(2, usize::from);
        let workers = workers.min(hub::MAX_SHARDS);
        Ok(Self {
            address,
            listener,
            tls,
            drain_time,
            workers,
            house,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Serves until `stop`, then drains.
    ///
    /// # Errors
    /// The system's, when serving can't go on.
    pub async fn run(self, stop: CancellationToken) -> io::Result<()> {
        let Self {
            listener,
            tls,
            drain_time,
            workers,
            house,
            ..
        } = self;
        let background = TaskTracker::new();
        let working = CancellationToken::new();
        house.spawn_background_tasks(&background, &working);

        let server = listener::serve(house.clone(), listener, tls, workers, drain_time)?;
        let handle = server.handle();
        let served = tokio::select! {
            served = server => served,
            () = drain_and_stop(stop, handle, &house.drain, drain_time) => Ok(()),
        };
        working.cancel();
        background.close();
        if tokio::time::timeout(drain_time / 10, background.wait())
            .await
            .is_err()
        {
            tracing::warn!("some background work did not end in time; the next start takes it up");
        }
        house.store.close().await;
        served
    }
}

/// Waits for the word to stop, then lets everybody go: readiness is red and sockets take their
/// leave while the listener still answers; once the last has gone it closes. Ends with whatever is
/// left open at nine tenths of the time.
async fn drain_and_stop(
    stop: CancellationToken,
    handle: ServerHandle,
    drain: &Drain,
    time: Duration,
) {
    stop.cancelled().await;
    tracing::info!("draining");
    drain.start();
    tokio::time::sleep(time / 10).await;
    let until = Instant::now() + time * 8 / 10;
    let is_over = timeout_at(until, drain.wait_closed()).await.is_ok();
    let is_closed = match is_over {
        true => timeout_at(until, handle.stop(true)).await.is_ok(),
        false => {
            handle.stop(false).await;
            false
        }
    };
    if !is_closed {
        tracing::warn!("some connections did not end in time");
    }
}
