//! State of a circuit breaker: one circuit for submissions, one for queries, and the holds of
//! single owners and models.
//!
//! Queries continue while only submissions are blocked, because running jobs must still reach their
//! final state. An auth or quota error holds only the submissions of the owner and model of its job,
//! until an account check or the errors of several owners and models confirm that the provider
//! rejects the account. Nodes exchange the state as JSON.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::circuit::{Admission, Circuit, OpenCircuit, PermitToken, Trip, TripCause};
use super::holds::{HoldTokens, Holds};
use super::origin::{Failures, FaultScope, Origin};
use crate::job::FailureKind;
use crate::telemetry::ProviderState;
use crate::time::Time;

/// Minimum delay before a request is retried while an account check is due.
const ACCOUNT_CHECK_WAIT: Duration = Duration::from_secs(1);

/// Purpose of a request. Each has its own circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// Submits a job, which costs money and must not be repeated.
    Submit,
    /// Any request that may be repeated.
    Query,
}

/// Result of a request for the circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestResult {
    /// The provider responded without an error.
    Success,
    /// The request failed. The duration is the delay that the provider requested.
    Failure(FailureKind, Option<Duration>),
    /// No connection could be established. The failure does not depend on the request.
    Unreachable,
    /// The request was not sent.
    NotSent,
}

/// Account check of a provider definition, by the information that it returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AccountCheck {
    /// The provider definition has no account check.
    #[default]
    None,
    /// Shows whether the key is valid.
    Key,
    /// Shows whether the key is valid and whether the account has credit.
    KeyAndCredit,
}

impl AccountCheck {
    /// Returns whether the check confirms or refutes errors of this cause.
    fn covers(self, cause: TripCause) -> bool {
        match self {
            Self::None => false,
            Self::Key => cause == TripCause::Auth,
            Self::KeyAndCredit => is_account_cause(cause),
        }
    }
}

/// Result of an account check, a request that does not depend on any job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccountVerdict {
    /// The key is valid. The credit is unknown.
    KeyValid,
    /// The key is valid, and the balance is positive.
    Good,
    /// The provider rejects the key.
    KeyRejected,
    /// The account has no credit.
    NoCredit,
}

/// A request that was admitted.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) kind: RequestKind,
    pub(super) token: PermitToken,
    /// Owner and model of the job. `None` if the request belongs to no job.
    pub(super) origin: Option<Origin>,
    /// Whether the request also concerns jobs of other owners or models.
    pub(super) is_shared: bool,
    pub(super) holds: HoldTokens,
}

/// Health of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProviderHealth {
    /// State shown in documents and metrics.
    pub state: ProviderState,
    /// Kind of the failure that opened the circuit. `None` while the provider is available.
    pub reason: Option<FailureKind>,
    /// Time at which the circuit opened. `None` while the provider is available.
    pub since: Option<Time>,
    /// Time of the next probe. `None` while the provider is available.
    pub until: Option<Time>,
    /// Number of owners and models, and of models of all owners, whose submissions are held.
    pub holds: usize,
}

/// The circuits and holds of a provider.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct BreakerState {
    submits: Circuit,
    queries: Circuit,
    holds: Holds,
    /// Technical failures of either kind of request since the last success. Each node counts its
    /// own.
    #[serde(skip)]
    failures: Failures,
    /// Auth errors of submissions, and quota errors of either kind of request, since the last
    /// accepted submission. Used only for causes that no account check covers.
    #[serde(skip)]
    rejections: Failures,
    /// Auth errors of queries since the last success of either kind of request. Used like
    /// `rejections`.
    #[serde(skip)]
    query_rejections: Failures,
    /// The account check of the provider definition.
    #[serde(skip)]
    pub(super) account_check: AccountCheck,
    /// Whether an auth or quota error waits for confirmation by an account check of this node.
    #[serde(skip)]
    is_account_suspect: bool,
}

impl BreakerState {
    pub(super) fn circuit(&self, kind: RequestKind) -> &Circuit {
        match kind {
            RequestKind::Submit => &self.submits,
            RequestKind::Query => &self.queries,
        }
    }

    fn circuit_mut(&mut self, kind: RequestKind) -> &mut Circuit {
        match kind {
            RequestKind::Submit => &mut self.submits,
            RequestKind::Query => &mut self.queries,
        }
    }

    /// Admits a request while `in_flight` requests of its kind are running.
    ///
    /// A circuit that is open because of the account is closed by an account check, so that no job
    /// fails as a probe. A balance can be hours out of date, so when the backoff of a quota error
    /// has reached its maximum, a job is admitted as a probe.
    pub(super) fn admit(&mut self, kind: RequestKind, in_flight: usize, now: Time) -> Admission {
        if let Some(open) = self.circuit(kind).open_state()
            && self.account_check.covers(open.cause)
            && !needs_probe(self.circuit(kind))
        {
            return Admission::Open(open.until.max(now + ACCOUNT_CHECK_WAIT));
        }
        self.circuit_mut(kind).admit(in_flight, now)
    }

    /// Admits the submission of a job that has a permit.
    ///
    /// # Errors
    /// Returns the time of the next attempt if the submission is held or must not be the probe.
    pub(super) fn admit_origin(
        &mut self,
        token: PermitToken,
        origin: &Origin,
        now: Time,
    ) -> Result<HoldTokens, Time> {
        match self.submits.defers_probe(token, origin, now) {
            Some(until) => Err(until),
            None => self.holds.admit(origin, now),
        }
    }

    /// Records the result of a request.
    pub(super) fn record(&mut self, request: &Admitted, result: RequestResult, now: Time) {
        let (kind, token) = (request.kind, request.token);
        let trip = |cause, hint| Trip {
            cause,
            hint,
            at: now,
            origins: request.origin.iter().cloned().collect(),
        };
        let (failure, hint) = match result {
            RequestResult::NotSent => {
                self.holds.discard(&request.holds);
                return self.circuit_mut(kind).discard_probe(token);
            }
            RequestResult::Success => return self.on_success(request),
            RequestResult::Unreachable => {
                self.holds.discard(&request.holds);
                let trip = Trip {
                    origins: Vec::new(),
                    ..trip(TripCause::Technical, None)
                };
                return self.on_failure(kind, token, None, trip);
            }
            RequestResult::Failure(failure, hint) => (failure, hint),
        };
        let Some(cause) = trip_cause(failure) else {
            // The request is invalid, so the response shows that the provider works.
            return self.on_success(request);
        };
        let trip = trip(cause, hint);
        match cause {
            TripCause::Technical => {
                if let (Some(origin), RequestKind::Submit) = (&request.origin, kind) {
                    let trip = Trip {
                        origins: Vec::new(),
                        ..trip
                    };
                    self.holds.on_failure(origin, &request.holds, &trip);
                }
                self.on_failure(kind, token, request.origin.as_ref(), trip);
            }
            TripCause::RateLimit => {
                self.holds.discard(&request.holds);
                self.failures.clear();
                let trip = Trip {
                    origins: Vec::new(),
                    ..trip
                };
                self.circuit_mut(kind).on_rejection(token, trip);
            }
            TripCause::Quota | TripCause::Auth => self.on_account_rejection(request, trip),
        }
    }

    /// Records a success. It also closes the other circuit if technical failures opened it. A
    /// successful submission also closes a query circuit that an auth error opened, because a
    /// submission requires the stronger permission.
    fn on_success(&mut self, request: &Admitted) {
        if let Some(origin) = &request.origin
            && request.kind == RequestKind::Submit
        {
            self.holds.on_success(origin, &request.holds);
        }
        if !self.circuit_mut(request.kind).on_success(request.token) {
            return;
        }
        self.failures.clear();
        self.query_rejections.clear();
        let other = match request.kind {
            RequestKind::Submit => {
                self.rejections.clear();
                &mut self.queries
            }
            RequestKind::Query => &mut self.submits,
        };
        let is_resolved = match other.open_state().map(|open| open.cause) {
            Some(TripCause::Technical) => true,
            Some(TripCause::Auth) => request.kind == RequestKind::Submit,
            Some(TripCause::RateLimit | TripCause::Quota) | None => false,
        };
        if is_resolved {
            other.reset();
        }
    }

    /// Records a technical failure. It opens circuits only when it repeats for several owners.
    fn on_failure(
        &mut self,
        kind: RequestKind,
        token: PermitToken,
        origin: Option<&Origin>,
        trip: Trip,
    ) {
        if self.circuit(kind).open_state().is_some() {
            return self.circuit_mut(kind).on_rejection(token, trip);
        }
        match self.failures.record(origin) {
            FaultScope::None => {}
            FaultScope::Model(model) => self.holds.hold_model(model, &trip),
            FaultScope::Provider(origins) => {
                let trip = Trip { origins, ..trip };
                for circuit in [&mut self.submits, &mut self.queries] {
                    if circuit.open_state().is_none() {
                        circuit.trip(trip.clone());
                    }
                }
            }
        }
    }

    /// Records an auth or quota error. The request itself can be the cause, for example a model or a
    /// task that the account is not allowed to use.
    fn on_account_rejection(&mut self, request: &Admitted, trip: Trip) {
        if request.is_shared {
            // Each of the jobs can be the cause. The caller repeats the request for each of them.
            self.circuit_mut(request.kind).discard_probe(request.token);
            self.is_account_suspect |= self.account_check.covers(trip.cause);
            return;
        }
        if let Some(origin) = &request.origin {
            let trip = Trip {
                origins: Vec::new(),
                ..trip
            };
            self.holds
                .on_account_rejection(origin, &request.holds, &trip);
        }
        // Missing credit blocks submissions only, whichever request reported it.
        let blocks_request = trip.cause == TripCause::Auth || request.kind == RequestKind::Submit;
        let circuit = self.circuit_mut(request.kind);
        let open_cause = circuit.open_state().map(|open| open.cause);
        if blocks_request && open_cause.is_some_and(is_account_cause) {
            return circuit.on_rejection(request.token, trip);
        }
        // The provider responds, so the error is no technical failure.
        circuit.on_success(request.token);
        if self.account_check.covers(trip.cause) {
            return self.suspect_account(&trip);
        }
        let rejections = match request.kind {
            RequestKind::Query if blocks_request => &mut self.query_rejections,
            RequestKind::Query | RequestKind::Submit => &mut self.rejections,
        };
        if let FaultScope::Provider(_) = rejections.record(request.origin.as_ref()) {
            self.suspect_account(&trip);
        }
    }

    /// Requests an account check. If the definition has none, the error counts as confirmed.
    fn suspect_account(&mut self, trip: &Trip) {
        if self.account_check.covers(trip.cause) {
            self.is_account_suspect = true;
            return;
        }
        self.open_for_account(trip);
    }

    /// Opens the submission circuit, and after an auth error the query circuit, without origins.
    fn open_for_account(&mut self, trip: &Trip) {
        let queries = (trip.cause == TripCause::Auth).then_some(&mut self.queries);
        for circuit in [Some(&mut self.submits), queries].into_iter().flatten() {
            let is_due = |open: &OpenCircuit| {
                open.cause < trip.cause || open.until <= trip.at && !needs_probe(circuit)
            };
            if circuit.open_state().is_none_or(is_due) {
                circuit.trip(Trip {
                    origins: Vec::new(),
                    ..*trip
                });
            }
        }
    }

    /// Returns whether an account check is pending or due.
    pub(super) fn is_account_check_due(&self, now: Time) -> bool {
        let is_due = |circuit: &Circuit| {
            let open = circuit.open_state();
            open.is_some_and(|open| self.account_check.covers(open.cause) && open.until <= now)
        };
        self.is_account_suspect || is_due(&self.submits) || is_due(&self.queries)
    }

    /// Returns whether an auth or quota error waits for confirmation by an account check.
    pub(super) fn is_account_suspect(&self) -> bool {
        self.is_account_suspect
    }

    /// Records the result of an account check.
    ///
    /// A balance of 0 can be out of date, so it opens a circuit only if a check was pending or due.
    pub(super) fn on_account_checked(&mut self, verdict: AccountVerdict, now: Time) {
        let was_wanted = self.is_account_check_due(now);
        self.is_account_suspect = false;
        let cause = match verdict {
            AccountVerdict::KeyValid => return self.reset_circuits(AccountCheck::Key),
            AccountVerdict::Good => {
                self.holds.probe_after_top_up(now);
                return self.reset_circuits(AccountCheck::KeyAndCredit);
            }
            AccountVerdict::KeyRejected | AccountVerdict::NoCredit if !was_wanted => return,
            AccountVerdict::KeyRejected => TripCause::Auth,
            AccountVerdict::NoCredit => {
                // The provider accepted the key, so queries are allowed again.
                self.reset_circuits(AccountCheck::Key);
                TripCause::Quota
            }
        };
        self.open_for_account(&Trip {
            cause,
            hint: None,
            at: now,
            origins: Vec::new(),
        });
    }

    /// Closes the circuits that are open for a cause that the passed check covers.
    fn reset_circuits(&mut self, passed: AccountCheck) {
        for circuit in [&mut self.submits, &mut self.queries] {
            let cause = circuit.open_state().map(|open| open.cause);
            if cause.is_some_and(|cause| passed.covers(cause)) {
                circuit.reset();
            }
        }
    }

    /// Closes both circuits, ends all holds and resets their backoff.
    pub(super) fn reset(&mut self) {
        self.failures.clear();
        self.rejections.clear();
        self.query_rejections.clear();
        self.is_account_suspect = false;
        for circuit in [&mut self.submits, &mut self.queries] {
            circuit.reset();
            circuit.clear_streak();
        }
        self.holds.reset();
    }

    /// Adopts the circuits and holds of another node's snapshot that are newer.
    pub(super) fn merge(&mut self, other: &Self, now: Time) {
        self.submits.merge(&other.submits);
        self.queries.merge(&other.queries);
        self.holds.merge(&other.holds, now);
    }

    /// Returns whether a node with the snapshot `other` would change by merging this one.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        self.submits.rank() > other.submits.rank()
            || self.queries.rank() > other.queries.rank()
            || self.holds.is_newer_than(&other.holds)
    }

    /// Returns the health of the provider. The circuit with the more severe cause determines it. An
    /// expired rate limit is ignored.
    pub(super) fn health(&self, now: Time) -> ProviderHealth {
        let worst = [&self.submits, &self.queries]
            .into_iter()
            .filter_map(Circuit::open_state)
            .filter(|open| open.cause != TripCause::RateLimit || now < open.until)
            .max_by_key(|open| (provider_state(open.cause), open.cause));
        ProviderHealth {
            state: worst.map_or(ProviderState::Available, |open| provider_state(open.cause)),
            reason: worst.map(|open| failure_kind(open.cause)),
            since: worst.map(|open| open.since),
            until: worst.map(|open| open.until),
            holds: self.holds.held(now),
        }
    }
}

/// Returns whether the cause is the account, which only its operator can change.
fn is_account_cause(cause: TripCause) -> bool {
    match cause {
        TripCause::Quota | TripCause::Auth => true,
        TripCause::Technical | TripCause::RateLimit => false,
    }
}

/// Returns whether the circuit admits a job as a probe because a balance may be out of date.
fn needs_probe(circuit: &Circuit) -> bool {
    let cause = circuit.open_state().map(|open| open.cause);
    cause == Some(TripCause::Quota) && circuit.waits_longest()
}

fn provider_state(cause: TripCause) -> ProviderState {
    match cause {
        TripCause::RateLimit => ProviderState::RateLimited,
        TripCause::Technical => ProviderState::Unavailable,
        TripCause::Quota | TripCause::Auth => ProviderState::Suspended,
    }
}

fn failure_kind(cause: TripCause) -> FailureKind {
    match cause {
        TripCause::Technical => FailureKind::Technical,
        TripCause::RateLimit => FailureKind::RateLimit,
        TripCause::Quota => FailureKind::Quota,
        TripCause::Auth => FailureKind::Auth,
    }
}

/// Returns the cause for which a failure opens a circuit, or `None` if it concerns only its own
/// request.
fn trip_cause(kind: FailureKind) -> Option<TripCause> {
    match kind {
        FailureKind::Technical | FailureKind::SubmissionUnknown => Some(TripCause::Technical),
        FailureKind::RateLimit => Some(TripCause::RateLimit),
        FailureKind::Quota => Some(TripCause::Quota),
        FailureKind::Auth => Some(TripCause::Auth),
        FailureKind::Safety
        | FailureKind::InvalidInput
        | FailureKind::Timeout
        | FailureKind::ResultExpired => None,
    }
}

#[cfg(test)]
mod tests;
