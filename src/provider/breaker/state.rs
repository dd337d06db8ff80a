//! State of a circuit breaker: one circuit for submissions and one for queries.
//!
//! Queries continue while only submissions are blocked, because running jobs must still reach their
//! final state. Nodes exchange the state as JSON.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::circuit::{Admission, Circuit, PermitToken, Trip, TripCause};
use crate::job::FailureKind;
use crate::telemetry::ProviderState;
use crate::time::Time;

/// Consecutive failures that open both circuits.
const FAILURE_THRESHOLD: u32 = 5;

/// Purpose of a request. Each has its own circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// Submits a job, which costs money and must not be repeated.
    Submit,
    /// Any request that may be repeated.
    Query,
}

/// Result of a request, as far as it concerns the health of the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestResult {
    /// The provider answered as it should.
    Success,
    /// The request failed. The duration is the delay that the provider requested.
    Failure(FailureKind, Option<Duration>),
    /// The request was not sent.
    NotSent,
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
}

/// Both circuits of a provider.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct BreakerState {
    submits: Circuit,
    queries: Circuit,
    /// Failures of either kind since the last success. Counted by each node for itself.
    #[serde(skip)]
    consecutive_failures: u32,
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
    pub(super) fn admit(&mut self, kind: RequestKind, in_flight: usize, now: Time) -> Admission {
        self.circuit_mut(kind).admit(in_flight, now)
    }

    /// Records the result of a request.
    pub(super) fn record(
        &mut self,
        kind: RequestKind,
        token: PermitToken,
        result: RequestResult,
        now: Time,
    ) {
        let (failure, hint) = match result {
            RequestResult::NotSent => return self.circuit_mut(kind).discard_probe(token),
            RequestResult::Success => return self.on_success(kind, token),
            RequestResult::Failure(failure, hint) => (failure, hint),
        };
        let Some(cause) = trip_cause(failure) else {
            // The request itself was at fault, so the provider works.
            return self.on_success(kind, token);
        };
        let at = now;
        let trip = Trip { cause, hint, at };
        match (cause, kind) {
            // A single task may be hidden from a valid key, so auth errors on queries count only
            // when they repeat.
            (TripCause::Technical, _) | (TripCause::Auth, RequestKind::Query) => {
                self.on_failure(kind, token, trip);
            }
            (TripCause::RateLimit | TripCause::Quota | TripCause::Auth, _) => {
                self.on_rejection(kind, token, trip);
            }
        }
    }

    /// Records a success. It also closes the other circuit if that was opened by technical
    /// failures. A successful submission closes a query circuit opened by an auth error as well,
    /// because submitting needs the stronger permission.
    fn on_success(&mut self, kind: RequestKind, token: PermitToken) {
        if !self.circuit_mut(kind).on_success(token) {
            return;
        }
        self.consecutive_failures = 0;
        let other = match kind {
            RequestKind::Submit => &mut self.queries,
            RequestKind::Query => &mut self.submits,
        };
        let is_resolved = match other.open_state().map(|open| open.cause) {
            Some(TripCause::Technical) => true,
            Some(TripCause::Auth) => kind == RequestKind::Submit,
            Some(TripCause::RateLimit | TripCause::Quota) | None => false,
        };
        if is_resolved {
            other.reset();
        }
    }

    /// Records a failure that opens the circuits only when it repeats.
    fn on_failure(&mut self, kind: RequestKind, token: PermitToken, trip: Trip) {
        self.consecutive_failures = self.consecutive_failures.saturating_add(1);
        if self.circuit(kind).open_state().is_some() {
            self.circuit_mut(kind).on_rejection(token, trip);
        } else if self.consecutive_failures >= FAILURE_THRESHOLD {
            for circuit in [&mut self.submits, &mut self.queries] {
                if circuit.open_state().is_none() {
                    circuit.trip(trip);
                }
            }
            self.consecutive_failures = 0;
        }
    }

    /// Records a failure that opens a circuit at once.
    fn on_rejection(&mut self, kind: RequestKind, token: PermitToken, trip: Trip) {
        self.consecutive_failures = 0;
        let other = match (kind, trip.cause) {
            // Missing credit blocks submissions only, whichever request reported it.
            (RequestKind::Query, TripCause::Quota) => {
                self.queries.on_success(token);
                if self.submits.open_state().is_none() {
                    self.submits.trip(trip);
                }
                return;
            }
            (
                RequestKind::Submit,
                TripCause::Quota | TripCause::RateLimit | TripCause::Technical,
            ) => None,
            (RequestKind::Submit, TripCause::Auth) => Some(&mut self.queries),
            (RequestKind::Query, TripCause::RateLimit | TripCause::Auth | TripCause::Technical) => {
                Some(&mut self.submits)
            }
        };
        if let Some(other) = other
            && other
                .open_state()
                .is_none_or(|open| open.cause < trip.cause)
        {
            other.trip(trip);
        }
        self.circuit_mut(kind).on_rejection(token, trip);
    }

    /// Closes both circuits and resets their backoff.
    pub(super) fn reset(&mut self) {
        self.consecutive_failures = 0;
        for circuit in [&mut self.submits, &mut self.queries] {
            circuit.reset();
            circuit.clear_streak();
        }
    }

    /// Allows a submission at once if submissions are blocked for lack of credit.
    pub(super) fn probe_after_top_up(&mut self, now: Time) {
        if self.out_of_credit_since().is_some() {
            self.submits.probe_now(now);
        }
    }

    /// Adopts the circuits of another node's snapshot that are newer.
    pub(super) fn merge(&mut self, other: &Self) {
        self.submits.merge(&other.submits);
        self.queries.merge(&other.queries);
    }

    /// Returns whether neither snapshot is newer than the other.
    pub(super) fn is_equivalent(&self, other: &Self) -> bool {
        self.submits.rank() == other.submits.rank() && self.queries.rank() == other.queries.rank()
    }

    /// Returns the time since which submissions are blocked for lack of credit.
    pub(super) fn out_of_credit_since(&self) -> Option<Time> {
        let open = self.submits.open_state()?;
        (open.cause == TripCause::Quota).then_some(open.since)
    }

    /// Returns the health by the more severe of the two circuits. An expired rate limit does not
    /// count.
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
        }
    }
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
mod tests {
    use super::*;
    use RequestKind::{Query, Submit};

    fn at(seconds: i64) -> Time {
        Time::from_millis(seconds * 1000)
    }

    fn is_allowed(state: &BreakerState, kind: RequestKind, now: Time) -> bool {
        let admission = state.clone().admit(kind, 0, now);
        matches!(admission, Admission::Allowed(_))
    }

    fn record(state: &mut BreakerState, kind: RequestKind, result: RequestResult, now: Time) {
        let Admission::Allowed(token) = state.admit(kind, 0, now) else {
            panic!("not admitted at {now}");
        };
        state.record(kind, token, result, now);
    }

    fn fail(state: &mut BreakerState, kind: RequestKind, failure: FailureKind, seconds: i64) {
        record(
            state,
            kind,
            RequestResult::Failure(failure, None),
            at(seconds),
        );
    }

    fn succeed(state: &mut BreakerState, kind: RequestKind, seconds: i64) {
        record(state, kind, RequestResult::Success, at(seconds));
    }

    fn state_at(state: &BreakerState, seconds: i64) -> ProviderState {
        state.health(at(seconds)).state
    }

    #[test]
    fn trip_cause_and_request_kind_decide_which_circuits_open() {
        use ProviderState::{Available, RateLimited, Suspended};
        for (kind, failure, submits, queries, expected) in [
            (Submit, FailureKind::RateLimit, false, true, RateLimited),
            (Query, FailureKind::RateLimit, false, false, RateLimited),
            (Submit, FailureKind::Quota, false, true, Suspended),
            (Query, FailureKind::Quota, false, true, Suspended),
            (Submit, FailureKind::Auth, false, false, Suspended),
            (Query, FailureKind::Auth, true, true, Available),
            (Submit, FailureKind::Safety, true, true, Available),
            (Submit, FailureKind::InvalidInput, true, true, Available),
            (Query, FailureKind::InvalidInput, true, true, Available),
            (Submit, FailureKind::Technical, true, true, Available),
        ] {
            let mut state = BreakerState::default();
            fail(&mut state, kind, failure, 0);
            let allowed = [Submit, Query].map(|kind| is_allowed(&state, kind, at(0)));
            assert_eq!(allowed, [submits, queries], "{kind:?} {failure:?}");
            assert_eq!(state_at(&state, 0), expected, "{kind:?} {failure:?}");
        }
    }

    #[test]
    fn five_consecutive_failures_open_both_circuits_and_one_success_closes_them() {
        let mut state = BreakerState::default();
        for second in 0..4 {
            fail(&mut state, Query, FailureKind::Technical, second);
        }
        fail(&mut state, Submit, FailureKind::Safety, 4);
        for second in 5..9 {
            fail(&mut state, Submit, FailureKind::Technical, second);
        }
        assert_eq!(state_at(&state, 9), ProviderState::Available);
        fail(&mut state, Query, FailureKind::SubmissionUnknown, 10);
        let health = state.health(at(10));
        assert_eq!(health.state, ProviderState::Unavailable);
        assert_eq!((health.since, health.until), (Some(at(10)), Some(at(15))));
        assert!(!is_allowed(&state, Submit, at(14)));
        fail(&mut state, Query, FailureKind::Technical, 15);
        assert!(!is_allowed(&state, Query, at(24)));
        succeed(&mut state, Query, 25);
        assert_eq!(state_at(&state, 25), ProviderState::Available);
        assert!(is_allowed(&state, Submit, at(25)));
    }

    #[test]
    fn repeated_auth_errors_on_queries_suspend_the_provider() {
        let mut state = BreakerState::default();
        for second in 0..8 {
            fail(&mut state, Query, FailureKind::Auth, second);
            assert_eq!(state_at(&state, second), ProviderState::Available);
            succeed(&mut state, Query, second);
        }
        for second in 8..13 {
            fail(&mut state, Query, FailureKind::Auth, second);
        }
        let health = state.health(at(12));
        assert_eq!(health.state, ProviderState::Suspended);
        assert_eq!(health.reason, Some(FailureKind::Auth));
        assert!(!is_allowed(&state, Submit, at(12)));
    }

    #[test]
    fn successful_query_does_not_close_a_quota_or_auth_circuit() {
        for failure in [FailureKind::Quota, FailureKind::Auth] {
            let mut state = BreakerState::default();
            fail(&mut state, Submit, failure, 0);
            succeed(&mut state, Query, 60);
            assert_eq!(state_at(&state, 60), ProviderState::Suspended);
            assert_eq!(state.health(at(60)).reason, Some(failure));
            succeed(&mut state, Submit, 60);
            assert_eq!(state_at(&state, 60), ProviderState::Available);
            assert!(is_allowed(&state, Query, at(60)));
        }
    }

    #[test]
    fn rate_limit_expires_but_suspension_lasts_until_a_successful_submit() {
        let mut state = BreakerState::default();
        fail(&mut state, Submit, FailureKind::RateLimit, 0);
        assert_eq!(state_at(&state, 0), ProviderState::RateLimited);
        assert_eq!(state_at(&state, 1), ProviderState::Available);
        fail(&mut state, Submit, FailureKind::Quota, 1);
        assert_eq!(state_at(&state, 9999), ProviderState::Suspended);
    }

    #[test]
    fn manual_reset_clears_the_backoff_streak() {
        let mut state = BreakerState::default();
        fail(&mut state, Submit, FailureKind::Auth, 0);
        fail(&mut state, Submit, FailureKind::Auth, 60);
        state.reset();
        assert_eq!(state_at(&state, 61), ProviderState::Available);
        fail(&mut state, Submit, FailureKind::Auth, 61);
        assert_eq!(state.health(at(61)).until, Some(at(121)));
    }

    #[test]
    fn top_up_allows_an_immediate_probe() {
        let mut state = BreakerState::default();
        fail(&mut state, Submit, FailureKind::Auth, 0);
        state.probe_after_top_up(at(1));
        assert!(!is_allowed(&state, Submit, at(1)));
        state.reset();
        fail(&mut state, Submit, FailureKind::Quota, 2);
        assert_eq!(state.out_of_credit_since(), Some(at(2)));
        state.probe_after_top_up(at(3));
        assert!(is_allowed(&state, Submit, at(3)));
    }
}
