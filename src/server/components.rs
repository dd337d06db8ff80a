//! The components of a running hub.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api::demo::Demo;
use super::drain::Drain;
use super::limits::ConnectionLimits;
use super::origin::OriginPolicy;
use super::security_log::SecurityLog;
use crate::admission::AdmissionControl;
use crate::background::breaker_sync::BreakerSync;
use crate::background::change_feed::ChangeFeed;
use crate::background::delivery::DeliveryService;
use crate::background::submitter::Submitter;
use crate::background::watchdog::Watchdog;
use crate::cancellation::CancelService;
use crate::config::Config;
use crate::destinations::archive::Archive;
use crate::destinations::{Destinations, WebhookHosts};
use crate::hub::Hub;
use crate::links::Links;
use crate::provider::{Downloader, Providers};
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::tracker::{Tracker, WorkerWakeups};
use progress_hub_auth::jwt::{Minter, Verifier};

/// The components that handlers and background tasks share.
#[derive(Clone)]
pub struct Components {
    pub config: Arc<Config>,
    pub store: Arc<dyn Store>,
    pub hub: Arc<Hub>,
    pub feed: Arc<ChangeFeed>,
    pub providers: Arc<Providers>,
    pub destinations: Arc<Destinations>,
    pub webhook_hosts: WebhookHosts,
    pub tracker: Arc<Tracker>,
    pub admission: Arc<AdmissionControl>,
    pub canceller: Arc<CancelService>,
    pub verifier: Arc<Verifier>,
    pub minter: Arc<Option<Minter>>,
    pub links: Links,
    pub downloader: Downloader,
    pub archive: Option<Arc<Archive>>,
    pub origins: Arc<OriginPolicy>,
    pub metrics: Arc<Metrics>,
    pub security: Arc<SecurityLog>,
    pub drain: Arc<Drain>,
    pub limits: Arc<ConnectionLimits>,
    pub wakeups: WorkerWakeups,
    pub demo: Option<Demo>,
}

impl Components {
    /// Spawns the background tasks, which run until `stop`.
    pub fn spawn_background_tasks(&self, background: &TaskTracker, stop: &CancellationToken) {
        let submitter = Submitter {
            store: self.store.clone(),
            providers: Arc::clone(&self.providers),
            tracker: Arc::clone(&self.tracker),
            links: self.links.clone(),
            metrics: Arc::clone(&self.metrics),
            wakeups: self.wakeups.clone(),
        };
        let watchdog = Watchdog {
            store: self.store.clone(),
            providers: Arc::clone(&self.providers),
            tracker: Arc::clone(&self.tracker),
            metrics: Arc::clone(&self.metrics),
            wakeups: self.wakeups.clone(),
        };
        let breaker_sync = BreakerSync {
            store: self.store.clone(),
            providers: Arc::clone(&self.providers),
            feed: Arc::clone(&self.feed),
            wakeups: self.wakeups.clone(),
        };
        let deliveries = DeliveryService {
            store: self.store.clone(),
            destinations: Arc::clone(&self.destinations),
            settings: self.config.deliveries.clone(),
            metrics: Arc::clone(&self.metrics),
        };
        let feed =
            Arc::clone(&self.feed).run(self.store.clone(), Arc::clone(&self.tracker), stop.clone());
        if let Some(archive) = self.archive.clone() {
            background.spawn(check_archive(archive, stop.clone()));
        }
        background.spawn(submitter.run(stop.clone()));
        background.spawn(watchdog.run(stop.clone()));
        background.spawn(breaker_sync.run(stop.clone()));
        background.spawn(deliveries.run(stop.clone()));
        background.spawn(feed);
    }
}

/// Warns at startup if the archive cannot be used. Copies wait until it can.
async fn check_archive(archive: Arc<Archive>, stop: CancellationToken) {
    let checked = tokio::select! {
        checked = archive.check() => checked,
        () = stop.cancelled() => return,
    };
    if let Err(error) = checked {
        tracing::warn!(
            config.key = error.key,
            reason = error.message,
            "archive not usable"
        );
    }
}
