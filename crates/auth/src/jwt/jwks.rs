//! Cache of a JWKS that is fetched from a URL.
//!
//! Unauthenticated clients cannot cause a flood of fetches: there is one fetch at a time, and unknown keys cause at
//! most one per `MIN_REFRESH_INTERVAL`. A fetched set stays in use until a newer one arrives, so an outage of the
//! issuer does not lock callers out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, timeout};
use url::Url;

/// Age at which a set is refreshed in the background.
pub(super) const MAX_AGE: Duration = Duration::from_secs(600);

/// Minimum time between two fetches for unknown keys, and between two attempts to refresh an old set.
pub(super) const MIN_REFRESH_INTERVAL: Duration = Duration::from_secs(30);

/// Minimum time between two attempts while no set has been fetched.
pub(super) const RETRY_EMPTY: Duration = Duration::from_secs(3);

/// Timeout of a fetch.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);

/// Maximum size of a key set in bytes.
pub(super) const MAX_BYTES: usize = 256 * 1024;

/// Fetches a document over HTTP.
#[async_trait]
pub trait Fetch: Send + Sync {
    /// Sends a `GET` and returns the body of a 200 response. Does not follow redirects. The caller sets the timeout.
    ///
    /// # Errors
    /// Returns a [`FetchError`] for another status, a body larger than `max_bytes`, or a failed request.
    async fn fetch(&self, url: &Url, max_bytes: usize) -> Result<Vec<u8>, FetchError>;
}

/// Reason for a failed fetch, as a fragment for the log. Contains no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FetchError(pub String);

/// No key set is cached, and none can be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("keys are unavailable")]
pub struct JwksUnavailable {
    /// Time to wait before the next attempt.
    pub retry_after: Duration,
}

/// A published key set whose keys are parsed as `K`.
pub struct Jwks<K> {
    url: Url,
    fetch: Arc<dyn Fetch>,
    read: fn(&[u8]) -> Option<Vec<K>>,
    state: Mutex<State<K>>,
    refresh_lock: Arc<AsyncMutex<()>>,
}

struct State<K> {
    cached: Option<(Arc<[K]>, Instant)>,
    tried_at: Option<Instant>,
    last_miss: Option<Instant>,
}

impl<K: Send + Sync + 'static> Jwks<K> {
    /// Creates a set that is fetched on first use. `read` returns `None` for a document that is not a key set.
    pub fn new(url: Url, fetch: Arc<dyn Fetch>, read: fn(&[u8]) -> Option<Vec<K>>) -> Self {
        Self {
            url,
            fetch,
            read,
            state: Mutex::new(State {
                cached: None,
                tried_at: None,
                last_miss: None,
            }),
            refresh_lock: Arc::default(),
        }
    }

    /// Returns the cached keys. Refreshes an old set in the background, and waits for a fetch only if none is cached.
    ///
    /// # Errors
    /// Returns [`JwksUnavailable`] until a set has been fetched.
    pub async fn current(self: &Arc<Self>) -> Result<Arc<[K]>, JwksUnavailable> {
        if let Some(keys) = self.cached() {
            self.refresh_if_old();
            return Ok(keys);
        }
        let _lock = self.refresh_lock.lock().await;
        if let Some(keys) = self.cached() {
            return Ok(keys);
        }
        let tried_at = self.state().tried_at;
        if let Some(wait) = time_remaining(tried_at, RETRY_EMPTY) {
            return Err(JwksUnavailable { retry_after: wait });
        }
        self.fetch_once().await;
        self.cached().ok_or(JwksUnavailable {
            retry_after: RETRY_EMPTY,
        })
    }

    /// Returns a set other than `seen`, in which a key was missing. Fetches it unless the last fetch for a missing
    /// key is less than `MIN_REFRESH_INTERVAL` ago. Returns `None` if there is no other set.
    pub async fn newer_than(&self, seen: &Arc<[K]>) -> Option<Arc<[K]>> {
        let other = || self.cached().filter(|keys| !Arc::ptr_eq(keys, seen));
        let _lock = self.refresh_lock.lock().await;
        if let Some(keys) = other() {
            return Some(keys);
        }
        {
            let mut state = self.state();
            if time_remaining(state.last_miss, MIN_REFRESH_INTERVAL).is_some() {
                return None;
            }
            state.last_miss = Some(Instant::now());
        }
        self.fetch_once().await;
        other()
    }

    fn cached(&self) -> Option<Arc<[K]>> {
        let state = self.state();
        state.cached.as_ref().map(|(keys, _)| Arc::clone(keys))
    }

    fn refresh_if_old(self: &Arc<Self>) {
        let due = {
            let state = self.state();
            let fetched_at = state.cached.as_ref().map(|(_, at)| *at);
            time_remaining(fetched_at, MAX_AGE).is_none()
                && time_remaining(state.tried_at, MIN_REFRESH_INTERVAL).is_none()
        };
        // A locked mutex means that a fetch is in progress.
        if due && let Ok(lock) = Arc::clone(&self.refresh_lock).try_lock_owned() {
            let jwks = Arc::clone(self);
            tokio::spawn(async move {
                jwks.fetch_once().await;
                drop(lock);
            });
        }
    }

    /// Fetches and parses the set. The caller holds `refresh_lock`.
    async fn fetch_once(&self) {
        // Also set before the fetch, because a caller that is dropped cancels it.
        self.state().tried_at = Some(Instant::now());
        let fetched = timeout(TIMEOUT, self.fetch.fetch(&self.url, MAX_BYTES)).await;
        let keys = match fetched {
            Err(_) => Err("timed out".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(document)) if document.len() > MAX_BYTES => Err("response too large".to_owned()),
            Ok(Ok(document)) => (self.read)(&document).ok_or_else(|| "not a key set".to_owned()),
        };
        let now = Instant::now();
        let mut state = self.state();
        state.tried_at = Some(now);
        match keys {
            Ok(keys) => state.cached = Some((keys.into(), now)),
            Err(error) => {
                tracing::warn!(
                    jwks.host = self.url.host_str(),
                    jwks.error = error,
                    "failed to fetch JWKS"
                );
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the time remaining of `span` since `start`, or `None` if it has elapsed or not started.
fn time_remaining(start: Option<Instant>, span: Duration) -> Option<Duration> {
    let left = span.checked_sub(start?.elapsed())?;
    (!left.is_zero()).then_some(left)
}
