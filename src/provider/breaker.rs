//! Circuit breaker and concurrency limit for the requests to one provider.
//!
//! Every request needs a [`Permit`] and reports its result through it. Submissions and queries have
//! separate circuits. The lock is never held across an `await`, and the number of waiters is
//! bounded.

mod circuit;
mod holds;
mod origin;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use self::circuit::{Admission, PermitToken};
use self::holds::HoldTokens;
use self::state::{Admitted, BreakerState, RequestKind};
use crate::job::FailureKind;
use crate::telemetry::ProviderState;
use crate::time::Time;

pub(super) use self::origin::Origin;
pub use self::state::ProviderHealth;
pub(super) use self::state::{AccountCheck, AccountVerdict, RequestResult};

/// Maximum number of queries that wait for a permit. Further ones fail at once.
const MAX_WAITERS: usize = 1024;

/// Maximum time that a submission with a permit waits for the result of a pending account check.
const ACCOUNT_CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Minimum delay before a held job is retried, unless its hold ends earlier.
const MIN_HOLD: Duration = Duration::from_secs(10);

/// Time for which webhooks are expected to keep arriving after one has arrived.
const WEBHOOK_LIVENESS_WINDOW: Duration = Duration::from_secs(3600);

/// Decides when requests to a provider may be sent.
#[derive(Debug)]
pub struct CircuitBreaker {
    provider: String,
    inner: Mutex<Inner>,
    changed: Notify,
    snapshots: watch::Sender<Option<String>>,
}

#[derive(Debug, Default)]
struct Inner {
    state: BreakerState,
    in_flight_submits: usize,
    in_flight_queries: usize,
    waiters: usize,
    /// Number of transitions to each [`ProviderState`].
    transitions: [u64; ProviderState::ALL.len()],
    last_webhook_at: Option<Time>,
}

/// Permission to send one request. Occupies a slot until it is dropped.
///
/// A permit that is dropped before completion counts as a request that was not sent.
#[derive(Debug)]
#[must_use = "the slot is released when the permit is dropped"]
pub struct Permit {
    breaker: Arc<CircuitBreaker>,
    request: Admitted,
    result: RequestResult,
}

/// The circuit is open, or no permit became available in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("circuit open for this provider")]
pub struct CircuitOpen;

impl CircuitBreaker {
    /// Creates a closed circuit breaker. `account_check` is the account check of the provider
    /// definition.
    pub(super) fn new(provider: &str, account_check: AccountCheck) -> Arc<Self> {
        let mut inner = Inner::default();
        inner.state.account_check = account_check;
        Arc::new(Self {
            provider: provider.to_owned(),
            inner: Mutex::new(inner),
            changed: Notify::new(),
            snapshots: watch::Sender::new(None),
        })
    }

    /// Returns permits for up to `max` submissions without waiting. Unused permits may be dropped.
    #[must_use]
    pub fn try_acquire_submits(self: &Arc<Self>, max: usize, now: Time) -> Vec<Permit> {
        let next = || match self.admit(RequestKind::Submit, now) {
            Admission::Allowed(token) => Some(self.permit(RequestKind::Submit, token)),
            Admission::AtCapacity | Admission::Open(_) => None,
        };
        std::iter::from_fn(next).take(max).collect()
    }

    /// Returns when the next submission is allowed, or `None` if the circuit is closed or
    /// half-open.
    pub fn retry_at(&self, now: Time) -> Option<Time> {
        let inner = self.lock();
        let open = inner.state.circuit(RequestKind::Submit).open_state()?;
        (now < open.until).then_some(open.until)
    }

    /// Waits up to `max_wait` for a permit for a request that may be repeated.
    ///
    /// # Errors
    /// Returns [`CircuitOpen`] if no permit becomes available in time, or if too many callers wait.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        max_wait: Duration,
    ) -> Result<Permit, CircuitOpen> {
        let _waiter = WaiterGuard::new(self).ok_or(CircuitOpen)?;
        self.wait_for_permit(RequestKind::Query, Time::now() + max_wait)
            .await
    }

    async fn wait_for_permit(
        self: &Arc<Self>,
        kind: RequestKind,
        deadline: Time,
    ) -> Result<Permit, CircuitOpen> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = Time::now();
            let retry_at = match self.admit(kind, now) {
                Admission::Allowed(token) => return Ok(self.permit(kind, token)),
                Admission::AtCapacity => deadline,
                Admission::Open(until) => until,
            };
            if now >= deadline || retry_at > deadline {
                return Err(CircuitOpen);
            }
            // Timers can fire slightly before the wall clock reaches the time.
            let wait = retry_at
                .saturating_duration_since(now)
                .max(Duration::from_millis(1));
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Returns the current health of the provider.
    pub fn health(&self, now: Time) -> ProviderHealth {
        self.lock().state.health(now)
    }

    /// Returns how often the provider has entered `state`.
    pub fn transitions(&self, state: ProviderState) -> u64 {
        self.lock().transitions[state as usize]
    }

    /// Closes both circuits and ends all holds. For operators who have fixed the cause.
    pub fn reset(&self) {
        self.update(BreakerState::reset);
    }

    /// Returns whether an account check is pending or due.
    pub(super) fn is_account_check_due(&self, now: Time) -> bool {
        self.lock().state.is_account_check_due(now)
    }

    /// Records the result of an account check.
    pub(super) fn record_account_check(&self, verdict: AccountVerdict, now: Time) {
        self.update(|state| state.on_account_checked(verdict, now));
    }

    /// Returns a receiver of snapshots to share with other nodes. Its value is `None` until the
    /// state first changes.
    pub fn snapshots(&self) -> watch::Receiver<Option<String>> {
        self.snapshots.subscribe()
    }

    /// Merges a snapshot of another node. Publishes the merged state if it is newer than the
    /// snapshot.
    ///
    /// # Errors
    /// Returns an error if the snapshot is invalid.
    pub fn merge_snapshot(&self, snapshot: &str) -> serde_json::Result<()> {
        let remote: BreakerState = serde_json::from_str(snapshot)?;
        self.update(|state| state.merge(&remote, Time::now()));
        let inner = self.lock();
        if inner.state.is_newer_than(&remote) {
            self.publish_snapshot(&inner);
        }
        Ok(())
    }

    fn publish_snapshot(&self, inner: &Inner) {
        match serde_json::to_string(&inner.state) {
            Ok(snapshot) => drop(self.snapshots.send_replace(Some(snapshot))),
            Err(error) => tracing::error!(
                provider.name = self.provider,
                %error,
                "failed to serialize breaker state"
            ),
        }
    }

    /// Records that a webhook for one of the provider's jobs has arrived.
    pub(super) fn record_webhook(&self, now: Time) {
        self.lock().last_webhook_at = Some(now);
    }

    /// Returns whether webhooks have arrived within [`WEBHOOK_LIVENESS_WINDOW`].
    pub(super) fn receives_webhooks(&self, now: Time) -> bool {
        let last = self.lock().last_webhook_at;
        last.is_some_and(|last| now.saturating_duration_since(last) < WEBHOOK_LIVENESS_WINDOW)
    }

    fn admit(&self, kind: RequestKind, now: Time) -> Admission {
        let mut inner = self.lock();
        let in_flight = *inner.in_flight(kind);
        let admission = self.change(&mut inner, |state| state.admit(kind, in_flight, now));
        if let Admission::Allowed(_) = admission {
            *inner.in_flight(kind) += 1;
        }
        admission
    }

    fn permit(self: &Arc<Self>, kind: RequestKind, token: PermitToken) -> Permit {
        Permit {
            breaker: Arc::clone(self),
            request: Admitted {
                kind,
                token,
                origin: None,
                is_shared: false,
                holds: HoldTokens::default(),
            },
            result: RequestResult::NotSent,
        }
    }

    /// Applies a change and publishes the snapshot if it is newer.
    fn change<T>(&self, inner: &mut Inner, change: impl FnOnce(&mut BreakerState) -> T) -> T {
        let previous = inner.state.clone();
        let result = change(&mut inner.state);
        if inner.state.is_newer_than(&previous) {
            self.publish_snapshot(inner);
        }
        result
    }

    /// Applies a change, publishes the snapshot, logs a transition and wakes the waiters.
    fn update(&self, change: impl FnOnce(&mut BreakerState)) {
        let mut inner = self.lock();
        // Health at the epoch, when no rate limit has expired. A transition from `RateLimited` is
        // therefore recorded when the circuit closes.
        let health = |state: &BreakerState| state.health(Time::from_millis(0));
        let before = health(&inner.state);
        self.change(&mut inner, change);
        let after = health(&inner.state);
        let is_transition = (before.state, before.reason) != (after.state, after.reason);
        if is_transition {
            inner.transitions[after.state as usize] += 1;
        }
        drop(inner);
        if is_transition {
            self.log_transition(after);
        }
        self.changed.notify_waiters();
    }

    fn log_transition(&self, health: ProviderHealth) {
        let name = &self.provider;
        let retry_at = health.until.map(tracing::field::display);
        let kind = health.reason.map(FailureKind::as_str);
        match health.state {
            ProviderState::Available => {
                tracing::info!(provider.name = name, "circuit closed; requests resume");
            }
            ProviderState::RateLimited => {
                tracing::info!(provider.name = name, retry_at, "circuit open: rate limited");
            }
            ProviderState::Unavailable => {
                tracing::warn!(
                    provider.name = name,
                    retry_at,
                    "circuit open: provider failing"
                );
            }
            ProviderState::Suspended => tracing::error!(
                provider.name = name,
                error.kind = kind,
                retry_at,
                "submissions suspended: operator action required"
            ),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn in_flight(&mut self, kind: RequestKind) -> &mut usize {
        match kind {
            RequestKind::Submit => &mut self.in_flight_submits,
            RequestKind::Query => &mut self.in_flight_queries,
        }
    }
}

impl Permit {
    /// Reports the result of the request and releases the slot.
    pub(super) fn complete(mut self, result: RequestResult) {
        self.result = result;
    }

    /// Assigns the permit to a submission of `owner` for `model`. While an account check is
    /// pending, waits up to 2 seconds for its result.
    ///
    /// # Errors
    /// Returns the time of the next attempt if submissions of this owner and model are held, or if
    /// the permit is no longer valid.
    pub async fn assign_to(mut self, owner: &str, model: &str) -> Result<Self, Time> {
        let origin = Origin {
            owner: owner.to_owned(),
            model: model.to_owned(),
        };
        let deadline = Time::now() + ACCOUNT_CHECK_TIMEOUT;
        loop {
            let breaker = Arc::clone(&self.breaker);
            let changed = breaker.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = Time::now();
            let held_until = {
                let mut inner = breaker.lock();
                let (kind, token) = (self.request.kind, self.request.token);
                if !inner.state.circuit(kind).is_current(token) {
                    return Err(now + Duration::from_secs(1));
                }
                // If the job is the probe of a hold, `change` publishes it, so that other nodes
                // send no second probe.
                let admission =
                    breaker.change(&mut inner, |state| state.admit_origin(token, &origin, now));
                match admission {
                    Ok(holds) => {
                        self.request.origin = Some(origin);
                        self.request.holds = holds;
                        return Ok(self);
                    }
                    Err(until) if !inner.state.is_account_suspect() || now >= deadline => {
                        Some(until)
                    }
                    Err(_) => None,
                }
            };
            if let Some(until) = held_until {
                // A hold can end early, so the job is retried after half of the remaining time.
                let half = until.saturating_duration_since(now) / 2;
                return Err(until.min(now + half.max(MIN_HOLD)));
            }
            let rest = deadline.saturating_duration_since(now);
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(rest.max(Duration::from_millis(1))) => {}
            }
        }
    }

    /// Attributes a query to the owner and the model of its job. `is_shared` is true if the query
    /// also concerns jobs of other owners or models. An auth or quota error of a shared query is
    /// not attributed, so the caller must repeat the query for single jobs.
    pub(super) fn attribute_to(&mut self, origin: Origin, is_shared: bool) {
        self.request.origin = Some(origin);
        self.request.is_shared = is_shared;
    }

    /// Returns this permit if it is still valid. Otherwise waits for a new one until `deadline` and
    /// returns `None` if there is none by then.
    pub async fn revalidate(self, deadline: Time) -> Option<Self> {
        let is_current = {
            let inner = self.breaker.lock();
            let circuit = inner.state.circuit(self.request.kind);
            circuit.is_current(self.request.token)
        };
        if is_current {
            return Some(self);
        }
        let (breaker, kind) = (Arc::clone(&self.breaker), self.request.kind);
        drop(self);
        breaker.wait_for_permit(kind, deadline).await.ok()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        {
            let mut inner = self.breaker.lock();
            let in_flight = inner.in_flight(self.request.kind);
            *in_flight = in_flight.saturating_sub(1);
        }
        let (request, result) = (&self.request, self.result);
        self.breaker
            .update(|state| state.record(request, result, Time::now()));
    }
}

/// Counts a caller among the waiters until it is dropped.
struct WaiterGuard<'a>(&'a CircuitBreaker);

impl<'a> WaiterGuard<'a> {
    fn new(breaker: &'a CircuitBreaker) -> Option<Self> {
        let mut inner = breaker.lock();
        if inner.waiters >= MAX_WAITERS {
            return None;
        }
        inner.waiters += 1;
        Some(Self(breaker))
    }
}

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        self.0.lock().waiters -= 1;
    }
}

#[cfg(test)]
mod tests;
