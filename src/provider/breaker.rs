//! The gate that every request to a provider passes: so that a provider that is busy, fails or wants
//! no more is left alone, and everybody can see it.
//!
//! Invariant: a request is made with a [`Leave`] only, and what comes of it is told to the gate or is
//! nothing. The lock is never held across an await; what waits in line is bounded.

mod circuit;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use self::circuit::{Admission, PermitToken};
use self::state::{BreakerState, RequestKind};
use crate::telemetry::ProviderState;
use crate::time::Time;

pub use self::state::ProviderHealth;
pub(super) use self::state::RequestResult;

/// Questions that wait in line at most; a further one is not asked now.
const MAX_WAITERS: usize = 1024;

/// How long news by webhook is expected to go on, once some came.
const WEBHOOK_LIVENESS_WINDOW: Duration = Duration::from_secs(3600);

/// Whether and how fast a provider may be sent requests.
#[derive(Debug)]
pub struct CircuitBreaker {
    provider: String,
    inner: Mutex<Inner>,
    changed: Notify,
    snapshots: watch::Sender<Option<String>>,
}

#[derive(Debug, Default)]
struct Inner {
    condition: BreakerState,
    in_flight_submits: usize,
    in_flight_queries: usize,
    waiters: usize,
    /// How often it came to each state.
    turns: [u64; ProviderState::ALL.len()],
    /// The last webhook that was about a job.
    heard_at: Option<Time>,
}

/// Leave to make one request. Dropped without a word, it told nothing.
#[derive(Debug)]
#[must_use = "a place is taken as long as this lives"]
pub struct Permit {
    gate: Arc<CircuitBreaker>,
    kind: RequestKind,
    pass: PermitToken,
    health: RequestResult,
}

/// The provider is not asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its provider is left alone for now")]
pub struct CircuitOpen;

impl CircuitBreaker {
    pub(super) fn new(provider: &str) -> Arc<Self> {
        Arc::new(Self {
            provider: provider.to_owned(),
            inner: Mutex::default(),
            changed: Notify::new(),
            snapshots: watch::Sender::new(None),
        })
    }

    /// Leaves for as many submissions as may be made now, `most` at most. Whoever has one need not
    /// use it.
    #[must_use]
    pub fn try_acquire_submits(self: &Arc<Self>, most: usize, now: Time) -> Vec<Permit> {
        let one = || match self.admit(RequestKind::Submit, now) {
            Admission::Allowed(pass) => Some(self.permit(RequestKind::Submit, pass)),
            Admission::AtCapacity | Admission::Open(_) => None,
        };
        std::iter::from_fn(one).take(most).collect()
    }

    /// When submissions may go on, where there is a moment to wait for.
    #[must_use]
    pub fn retry_at(&self, now: Time) -> Option<Time> {
        let inner = self.lock();
        let closed = inner.condition.circuit(RequestKind::Submit).closed();
        closed
            .map(|closed| closed.until)
            .filter(|until| now < *until)
    }

    /// Leave for a question, or for whatever else may be repeated, after waiting in line for it.
    ///
    /// # Errors
    /// [`Held`] when there is none within `patience`, or the line is full.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        patience: Duration,
    ) -> Result<Permit, CircuitOpen> {
        let line = WaiterGuard::join(self).ok_or(CircuitOpen)?;
        let leave = self
            .wait_for_permit(RequestKind::Query, Time::now() + patience)
            .await;
        drop(line);
        leave
    }

    async fn wait_for_permit(
        self: &Arc<Self>,
        errand: RequestKind,
        end: Time,
    ) -> Result<Permit, CircuitOpen> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = Time::now();
            let again = match self.admit(errand, now) {
                Admission::Allowed(pass) => return Ok(self.permit(errand, pass)),
                Admission::AtCapacity => end,
                Admission::Open(until) => until,
            };
            if now >= end || again > end {
                return Err(CircuitOpen);
            }
            // Some moments are over a little before the clock says so.
            let wait = again
                .saturating_duration_since(now)
                .max(Duration::from_millis(1));
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// How the provider is.
    #[must_use]
    pub fn health(&self, now: Time) -> ProviderHealth {
        self.lock().condition.standing(now)
    }

    /// How often it came to this state.
    #[must_use]
    pub fn transitions(&self, state: ProviderState) -> u64 {
        self.lock().turns[state as usize]
    }

    /// Opens it: whatever it was closed for is mended, as somebody says.
    pub fn reset(&self) {
        self.update(BreakerState::resume);
    }

    /// Lets one submission through where they are held back for want of credit: there seems to be
    /// some.
    pub(super) fn probe_after_top_up(&self, now: Time) {
        self.update(|condition| condition.try_credit(now));
    }

    /// Since when submissions are held back for want of credit.
    pub(super) fn out_of_credit_since(&self) -> Option<Time> {
        self.lock().condition.is_without_credit()
    }

    /// What other nodes should know of it, for [`Gate::heed`]; none as long as there is nothing.
    #[must_use]
    pub fn memo(&self) -> watch::Receiver<Option<String>> {
        self.snapshots.subscribe()
    }

    /// Takes over what another node knows better, and tells again what it knows worse.
    ///
    /// # Errors
    /// When it is no memo of a gate.
    pub fn merge_snapshot(&self, memo: &str) -> serde_json::Result<()> {
        let theirs: BreakerState = serde_json::from_str(memo)?;
        self.update(|condition| condition.merge(&theirs));
        let inner = self.lock();
        if !inner.condition.is_equivalent(&theirs) {
            self.publish_snapshot(&inner);
        }
        Ok(())
    }

    fn publish_snapshot(&self, inner: &Inner) {
        match serde_json::to_string(&inner.condition) {
            Ok(memo) => drop(self.snapshots.send_replace(Some(memo))),
            Err(error) => tracing::error!(%error, "can't write down how a provider is"),
        }
    }

    /// A webhook of the provider's was about one of its jobs.
    pub(super) fn record_webhook(&self, now: Time) {
        self.lock().heard_at = Some(now);
    }

    /// Whether webhooks of the provider's have come of late.
    pub(super) fn receives_webhooks(&self, now: Time) -> bool {
        let heard_at = self.lock().heard_at;
        heard_at.is_some_and(|heard_at| {
            now.saturating_duration_since(heard_at) < WEBHOOK_LIVENESS_WINDOW
        })
    }

    fn admit(&self, errand: RequestKind, now: Time) -> Admission {
        let mut inner = self.lock();
        let under_way = *inner.in_flight(errand);
        let before = inner.condition.circuit(errand).revision();
        let admission = inner.condition.admit(errand, under_way, now);
        if inner.condition.circuit(errand).revision() != before {
            self.publish_snapshot(&inner);
        }
        if let Admission::Allowed(_) = admission {
            *inner.in_flight(errand) += 1;
        }
        admission
    }

    fn permit(self: &Arc<Self>, errand: RequestKind, pass: PermitToken) -> Permit {
        Permit {
            gate: Arc::clone(self),
            kind: errand,
            pass,
            health: RequestResult::NotSent,
        }
    }

    /// Changes the condition, and tells of a new state once.
    fn update(&self, change: impl FnOnce(&mut BreakerState)) {
        let mut inner = self.lock();
        // As of the beginning of time, a pause is one until it is ended.
        let standing = |inner: &Inner| inner.condition.standing(Time::from_millis(0));
        let (before, known) = (standing(&inner), inner.condition.clone());
        change(&mut inner.condition);
        if !inner.condition.is_equivalent(&known) {
            self.publish_snapshot(&inner);
        }
        let after = standing(&inner);
        let has_turned = (before.state, before.reason) != (after.state, after.reason);
        if has_turned {
            inner.turns[after.state as usize] += 1;
        }
        drop(inner);
        if has_turned {
            self.log_transition(after);
        }
        self.changed.notify_waiters();
    }

    fn log_transition(&self, standing: ProviderHealth) {
        let (name, state) = (&self.provider, standing.state.as_str());
        let until = standing.until.map(tracing::field::display);
        match standing.state {
            ProviderState::Available => {
                tracing::info!(provider.name = name, state, "sending again")
            }
            ProviderState::RateLimited => {
                tracing::info!(provider.name = name, state, until, "left alone for a while");
            }
            ProviderState::Unavailable => {
                tracing::warn!(
                    provider.name = name,
                    state,
                    until,
                    "left alone until it answers"
                );
            }
            ProviderState::Suspended => {
                tracing::error!(provider.name = name, state, reason = ?standing.reason, until, "nothing is submitted until somebody mends it");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn in_flight(&mut self, errand: RequestKind) -> &mut usize {
        match errand {
            RequestKind::Submit => &mut self.in_flight_submits,
            RequestKind::Query => &mut self.in_flight_queries,
        }
    }
}

impl Permit {
    /// The request was answered, and this is what the answer says of the provider.
    pub(super) fn complete(mut self, health: RequestResult) {
        self.health = health;
    }

    /// This leave, or one for later if the gate has closed since it was given: none when that is
    /// after `end`.
    pub async fn revalidate(self, end: Time) -> Option<Self> {
        let is_good = |leave: &Self| {
            let inner = leave.gate.lock();
            inner.condition.circuit(leave.kind).is_current(leave.pass)
        };
        if is_good(&self) {
            return Some(self);
        }
        let (gate, errand) = (Arc::clone(&self.gate), self.kind);
        drop(self);
        gate.wait_for_permit(errand, end).await.ok()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let (errand, pass, health) = (self.kind, self.pass, self.health);
        {
            let mut inner = self.gate.lock();
            let under_way = inner.in_flight(errand);
            *under_way = under_way.saturating_sub(1);
        }
        self.gate
            .update(|condition| condition.record(errand, pass, health, Time::now()));
    }
}

/// A place in the line.
struct WaiterGuard<'a>(&'a CircuitBreaker);

impl<'a> WaiterGuard<'a> {
    fn join(gate: &'a CircuitBreaker) -> Option<Self> {
        let mut inner = gate.lock();
        if inner.waiters >= MAX_WAITERS {
            return None;
        }
        inner.waiters += 1;
        Some(Self(gate))
    }
}

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        self.0.lock().waiters -= 1;
    }
}
