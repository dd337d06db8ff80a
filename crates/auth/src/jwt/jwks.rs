//! Keys that an issuer publishes at a URL, kept fresh.
//!
//! Invariant: strangers cannot drive requests. Whatever the callers do there is one fetch at a time, and one for
//! each [`COOL_DOWN`] at most on account of keys that are not in the set. A set that was once fetched is kept until
//! a newer one arrives, so an outage of the issuer takes nobody's access away.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex as Turn;
use tokio::time::{Instant, timeout};
use url::Url;

/// An older set is fetched again, beside the answers that still use it.
pub(super) const MAX_AGE: Duration = Duration::from_secs(600);

/// The least time between two fetches for missing keys, and between two attempts to renew an old set.
pub(super) const MIN_REFRESH_INTERVAL: Duration = Duration::from_secs(30);

/// The least time between two attempts while there is no set at all.
pub(super) const RETRY_EMPTY: Duration = Duration::from_secs(3);

/// The longest wait for an answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);

/// The largest key set that is read, in bytes.
pub(super) const MAX_BYTES: usize = 256 * 1024;

/// Gets a document over HTTP.
#[async_trait]
pub trait Fetch: Send + Sync {
    /// The body of a `GET` that was answered 200. Follows no redirect and gives up beyond `max_bytes`; the caller
    /// bounds the time.
    ///
    /// # Errors
    /// A [`FetchError`] for any other outcome.
    async fn fetch(&self, url: &Url, max_bytes: usize) -> Result<Vec<u8>, FetchError>;
}

/// Why a document could not be fetched: a fragment for the log, without anything secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FetchError(pub String);

/// There are no keys, and they cannot be fetched now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("keys are unavailable")]
pub struct JwksUnavailable {
    /// When to try again.
    pub retry_after: Duration,
}

/// A published key set whose keys are read as `K`.
pub struct Jwks<K> {
    url: Url,
    fetch: Arc<dyn Fetch>,
    read: fn(&[u8]) -> Option<Vec<K>>,
    state: Mutex<State<K>>,
    refresh_lock: Arc<Turn<()>>,
}

struct State<K> {
    cached: Option<(Arc<[K]>, Instant)>,
    tried_at: Option<Instant>,
    last_miss: Option<Instant>,
}

impl<K: Send + Sync + 'static> Jwks<K> {
    /// A set that is fetched when it is first needed; `read` gives None for a document that is no key set.
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

    /// The newest keys at hand. An old set is renewed in the background; only the very first one is waited for.
    ///
    /// # Errors
    /// [`Unavailable`] while no set was ever fetched.
    pub async fn current(self: &Arc<Self>) -> Result<Arc<[K]>, JwksUnavailable> {
        if let Some(keys) = self.held() {
            self.renew_if_old();
            return Ok(keys);
        }
        let _turn = self.refresh_lock.lock().await;
        if let Some(keys) = self.held() {
            return Ok(keys);
        }
        let tried_at = self.state().tried_at;
        if let Some(wait) = time_remaining(tried_at, RETRY_EMPTY) {
            return Err(JwksUnavailable { retry_after: wait });
        }
        self.fetch_once().await;
        self.held().ok_or(JwksUnavailable {
            retry_after: RETRY_EMPTY,
        })
    }

    /// A set other than `seen`, in which a key was missing; fetched if the cool-down allows it. None if there is
    /// no other.
    pub async fn newer_than(&self, seen: &Arc<[K]>) -> Option<Arc<[K]>> {
        let other = || self.held().filter(|keys| !Arc::ptr_eq(keys, seen));
        let _turn = self.refresh_lock.lock().await;
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

    fn held(&self) -> Option<Arc<[K]>> {
        let state = self.state();
        state.cached.as_ref().map(|(keys, _)| Arc::clone(keys))
    }

    fn renew_if_old(self: &Arc<Self>) {
        let due = {
            let state = self.state();
            let fetched_at = state.cached.as_ref().map(|(_, at)| *at);
            time_remaining(fetched_at, MAX_AGE).is_none()
                && time_remaining(state.tried_at, MIN_REFRESH_INTERVAL).is_none()
        };
        if !due {
            return;
        }
        // Taken means that a fetch is under way.
        let Ok(turn) = Arc::clone(&self.refresh_lock).try_lock_owned() else {
            return;
        };
        let jwks = Arc::clone(self);
        tokio::spawn(async move {
            jwks.fetch_once().await;
            drop(turn);
        });
    }

    /// Fetches and reads the set; the caller has the turn.
    async fn fetch_once(&self) {
        // Set before the wait too, since a caller that goes away ends its fetch.
        self.state().tried_at = Some(Instant::now());
        let fetched = timeout(TIMEOUT, self.fetch.fetch(&self.url, MAX_BYTES)).await;
        let keys = match fetched {
            Err(_) => Err("no answer in time".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(document)) if document.len() > MAX_BYTES => Err("too large".to_owned()),
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
                    "key set not fetched"
                );
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is left of `span` since `start`; None when it is over or never began.
fn time_remaining(start: Option<Instant>, span: Duration) -> Option<Duration> {
    let left = span.checked_sub(start?.elapsed())?;
    (!left.is_zero()).then_some(left)
}
