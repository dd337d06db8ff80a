//! How a provider is, as far as its own answers tell: what each of them does to its two lanes.
//!
//! Invariant: pure and whole in itself, so that nodes can share it. Questions go on where only
//! submitting is at fault, because jobs that run need their end.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::circuit::{Admission, Circuit, PermitToken, TripCause};
use crate::job::FailureKind;
use crate::telemetry::ProviderState;
use crate::time::Time;

/// Failures in a row after which a provider is left alone.
const FAILURE_THRESHOLD: u32 = 5;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// A job to be taken, for money.
    Submit,
    /// Anything that may be repeated.
    Query,
}

/// What an answer says of its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::provider) enum RequestResult {
    /// It is there and works, whatever it thinks of this request.
    Success,
    /// It refuses for a cause that others will meet too, and how long it asks to wait.
    Failure(FailureKind, Option<Duration>),
    /// Nothing: it was not asked.
    NotSent,
}

/// How a provider is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProviderHealth {
    /// In a word.
    pub state: ProviderState,
    /// What it refused with; none while it is open.
    pub reason: Option<FailureKind>,
    /// From when on; none while it is open.
    pub since: Option<Time>,
    /// When the next request is let through; none while it is open.
    pub until: Option<Time>,
}

/// Both lanes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct BreakerState {
    submits: Circuit,
    queries: Circuit,
    /// Failures in a row, of either kind.
    failures: u32,
}

impl BreakerState {
    pub(super) fn circuit(&self, errand: RequestKind) -> &Circuit {
        match errand {
            RequestKind::Submit => &self.submits,
            RequestKind::Query => &self.queries,
        }
    }

    pub(super) fn circuit_mut(&mut self, errand: RequestKind) -> &mut Circuit {
        match errand {
            RequestKind::Submit => &mut self.submits,
            RequestKind::Query => &mut self.queries,
        }
    }

    /// Whether a request may be made while so many of its kind are under way.
    pub(super) fn admit(&mut self, errand: RequestKind, under_way: usize, now: Time) -> Admission {
        self.circuit_mut(errand).admit(under_way, now)
    }

    /// Takes in what an answer says.
    pub(super) fn record(
        &mut self,
        errand: RequestKind,
        pass: PermitToken,
        health: RequestResult,
        now: Time,
    ) {
        match health {
            RequestResult::NotSent => self.circuit_mut(errand).discard_probe(pass),
            RequestResult::Success => self.on_success(errand, pass),
            RequestResult::Failure(kind, hint) => match cause(kind) {
                None => self.on_success(errand, pass),
                Some(TripCause::Technical) => {
                    self.on_failure(errand, pass, TripCause::Technical, hint, now)
                }
                // One task that may not be seen is no proof against the key.
                Some(TripCause::Auth) if errand == RequestKind::Query => {
                    self.on_failure(errand, pass, TripCause::Auth, hint, now);
                }
                Some(cause) => self.on_rejection(errand, pass, cause, hint, now),
            },
        }
    }

    /// What one lane proves is true of the other: that the provider answers; and by a submit, which
    /// needs more than a question does, that it may be asked.
    fn on_success(&mut self, errand: RequestKind, pass: PermitToken) {
        if !self.circuit_mut(errand).succeed(pass) {
            return;
        }
        self.failures = 0;
        let other = match errand {
            RequestKind::Submit => &mut self.queries,
            RequestKind::Query => &mut self.submits,
        };
        let is_proof = |cause| match cause {
            TripCause::Technical => true,
            TripCause::Auth => errand == RequestKind::Submit,
            TripCause::RateLimit | TripCause::Quota => false,
        };
        if other.closed().is_some_and(|closed| is_proof(closed.cause)) {
            other.reset();
        }
    }

    /// What counts only when it happens again and again.
    fn on_failure(
        &mut self,
        errand: RequestKind,
        pass: PermitToken,
        cause: TripCause,
        hint: Option<Duration>,
        now: Time,
    ) {
        self.failures = self.failures.saturating_add(1);
        if self.circuit(errand).closed().is_some() {
            self.circuit_mut(errand).refuse(pass, cause, hint, now);
        } else if self.failures >= FAILURE_THRESHOLD {
            for lane in [&mut self.submits, &mut self.queries] {
                if lane.closed().is_none() {
                    lane.trip(cause, hint, now);
                }
            }
            self.failures = 0;
        }
    }

    fn on_rejection(
        &mut self,
        errand: RequestKind,
        pass: PermitToken,
        cause: TripCause,
        hint: Option<Duration>,
        now: Time,
    ) {
        self.failures = 0;
        let also = match (errand, cause) {
            // Of the account, whoever is told.
            (RequestKind::Query, TripCause::Quota) => {
                self.queries.succeed(pass);
                if self.submits.closed().is_none() {
                    self.submits.trip(cause, hint, now);
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
        if let Some(other) = also
            && other.closed().is_none_or(|closed| closed.cause < cause)
        {
            other.trip(cause, hint, now);
        }
        self.circuit_mut(errand).refuse(pass, cause, hint, now);
    }

    /// Somebody says that it is mended.
    pub(super) fn resume(&mut self) {
        self.failures = 0;
        for lane in [&mut self.submits, &mut self.queries] {
            lane.reset();
            lane.clear_streak();
        }
    }

    /// Lets a submission through now where one is held back for want of credit.
    pub(super) fn try_credit(&mut self, now: Time) {
        if self.is_without_credit().is_some() {
            self.submits.probe_now(now);
        }
    }

    /// Takes over what another node knows better. Failures in a row are each node's own.
    pub(super) fn merge(&mut self, other: &Self) {
        self.submits.adopt(&other.submits);
        self.queries.adopt(&other.queries);
    }

    /// Whether nodes that know both would act alike.
    pub(super) fn is_equivalent(&self, other: &Self) -> bool {
        [
            (&self.submits, &other.submits),
            (&self.queries, &other.queries),
        ]
        .into_iter()
        .all(|(ours, theirs)| ours.revision() == theirs.revision())
    }

    /// Since when there is no credit left.
    pub(super) fn is_without_credit(&self) -> Option<Time> {
        let closed = self.submits.closed()?;
        (closed.cause == TripCause::Quota).then_some(closed.since)
    }

    /// How it is. A pause that is over is none.
    pub(super) fn standing(&self, now: Time) -> ProviderHealth {
        let worst = [&self.submits, &self.queries]
            .into_iter()
            .filter_map(Circuit::closed)
            .filter(|closed| closed.cause != TripCause::RateLimit || now < closed.until)
            .max_by_key(|closed| rank(closed.cause));
        match worst {
            None => ProviderHealth {
                state: ProviderState::Available,
                reason: None,
                since: None,
                until: None,
            },
            Some(closed) => ProviderHealth {
                state: state(closed.cause),
                reason: Some(kind(closed.cause)),
                since: Some(closed.since),
                until: Some(closed.until),
            },
        }
    }
}

fn state(cause: TripCause) -> ProviderState {
    match cause {
        TripCause::RateLimit => ProviderState::RateLimited,
        TripCause::Technical => ProviderState::Unavailable,
        TripCause::Quota | TripCause::Auth => ProviderState::Suspended,
    }
}

fn rank(cause: TripCause) -> (ProviderState, TripCause) {
    (state(cause), cause)
}

fn kind(cause: TripCause) -> FailureKind {
    match cause {
        TripCause::Technical => FailureKind::Technical,
        TripCause::RateLimit => FailureKind::RateLimit,
        TripCause::Quota => FailureKind::Quota,
        TripCause::Auth => FailureKind::Auth,
    }
}

/// What a refusal is to those who come after; none where it is this request's own.
fn cause(kind: FailureKind) -> Option<TripCause> {
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

    fn at(seconds: i64) -> Time {
        Time::from_millis(seconds * 1000)
    }

    fn may(condition: &BreakerState, errand: RequestKind, now: Time) -> bool {
        let admission = condition.clone().admit(errand, 0, now);
        matches!(admission, Admission::Allowed(_))
    }

    fn hear(condition: &mut BreakerState, errand: RequestKind, kind: FailureKind, now: Time) {
        let Admission::Allowed(pass) = condition.admit(errand, 0, now) else {
            panic!("not admitted at {now}");
        };
        condition.record(errand, pass, RequestResult::Failure(kind, None), now);
    }

    fn succeed(condition: &mut BreakerState, errand: RequestKind, now: Time) {
        let Admission::Allowed(pass) = condition.admit(errand, 0, now) else {
            panic!("not admitted at {now}");
        };
        condition.record(errand, pass, RequestResult::Success, now);
    }

    #[test]
    fn trip_cause_and_request_kind_decide_which_circuits_open() {
        use RequestKind::{Query, Submit};
        for (errand, kind, submits, asks, state) in [
            (
                Submit,
                FailureKind::RateLimit,
                false,
                true,
                ProviderState::RateLimited,
            ),
            (
                Query,
                FailureKind::RateLimit,
                false,
                false,
                ProviderState::RateLimited,
            ),
            (
                Submit,
                FailureKind::Quota,
                false,
                true,
                ProviderState::Suspended,
            ),
            (
                Query,
                FailureKind::Quota,
                false,
                true,
                ProviderState::Suspended,
            ),
            (
                Submit,
                FailureKind::Auth,
                false,
                false,
                ProviderState::Suspended,
            ),
            (
                Query,
                FailureKind::Auth,
                true,
                true,
                ProviderState::Available,
            ),
            (
                Submit,
                FailureKind::Safety,
                true,
                true,
                ProviderState::Available,
            ),
            (
                Submit,
                FailureKind::InvalidInput,
                true,
                true,
                ProviderState::Available,
            ),
            (
                Query,
                FailureKind::InvalidInput,
                true,
                true,
                ProviderState::Available,
            ),
            (
                Submit,
                FailureKind::Technical,
                true,
                true,
                ProviderState::Available,
            ),
        ] {
            let mut condition = BreakerState::default();
            hear(&mut condition, errand, kind, at(0));
            let may = [Submit, Query].map(|errand| may(&condition, errand, at(0)));
            assert_eq!(may, [submits, asks], "{errand:?} {kind:?}");
            assert_eq!(
                condition.standing(at(0)).state,
                state,
                "{errand:?} {kind:?}"
            );
        }
    }

    #[test]
    fn five_consecutive_failures_open_both_circuits_and_one_success_closes_them() {
        let mut condition = BreakerState::default();
        for n in 0..4 {
            hear(
                &mut condition,
                RequestKind::Query,
                FailureKind::Technical,
                at(n),
            );
        }
        hear(
            &mut condition,
            RequestKind::Submit,
            FailureKind::Safety,
            at(4),
        );
        for n in 5..9 {
            hear(
                &mut condition,
                RequestKind::Submit,
                FailureKind::Technical,
                at(n),
            );
        }
        assert_eq!(condition.standing(at(9)).state, ProviderState::Available);
        hear(
            &mut condition,
            RequestKind::Query,
            FailureKind::SubmissionUnknown,
            at(10),
        );
        let standing = condition.standing(at(10));
        assert_eq!(standing.state, ProviderState::Unavailable);
        assert_eq!(
            (standing.since, standing.until),
            (Some(at(10)), Some(at(15)))
        );
        assert!(!may(&condition, RequestKind::Submit, at(14)));
        hear(
            &mut condition,
            RequestKind::Query,
            FailureKind::Technical,
            at(15),
        );
        assert!(!may(&condition, RequestKind::Query, at(24)));
        succeed(&mut condition, RequestKind::Query, at(25));
        assert_eq!(condition.standing(at(25)).state, ProviderState::Available);
        assert!(may(&condition, RequestKind::Submit, at(25)));
    }

    #[test]
    fn repeated_auth_errors_on_queries_suspend_the_provider() {
        let mut condition = BreakerState::default();
        for n in 0..8 {
            hear(&mut condition, RequestKind::Query, FailureKind::Auth, at(n));
            assert_eq!(condition.standing(at(n)).state, ProviderState::Available);
            succeed(&mut condition, RequestKind::Query, at(n));
        }
        for n in 8..13 {
            hear(&mut condition, RequestKind::Query, FailureKind::Auth, at(n));
        }
        let standing = condition.standing(at(12));
        assert_eq!(standing.state, ProviderState::Suspended);
        assert_eq!(standing.reason, Some(FailureKind::Auth));
        assert!(!may(&condition, RequestKind::Submit, at(12)));
    }

    #[test]
    fn successful_query_does_not_close_a_quota_or_auth_circuit() {
        for kind in [FailureKind::Quota, FailureKind::Auth] {
            let mut condition = BreakerState::default();
            hear(&mut condition, RequestKind::Submit, kind, at(0));
            succeed(&mut condition, RequestKind::Query, at(60));
            assert_eq!(condition.standing(at(60)).state, ProviderState::Suspended);
            assert_eq!(condition.standing(at(60)).reason, Some(kind));
            succeed(&mut condition, RequestKind::Submit, at(60));
            assert_eq!(condition.standing(at(60)).state, ProviderState::Available);
            assert!(may(&condition, RequestKind::Query, at(60)));
        }
    }

    #[test]
    fn rate_limit_expires_but_suspension_lasts_until_a_successful_submit() {
        let mut condition = BreakerState::default();
        hear(
            &mut condition,
            RequestKind::Submit,
            FailureKind::RateLimit,
            at(0),
        );
        assert_eq!(condition.standing(at(0)).state, ProviderState::RateLimited);
        assert_eq!(condition.standing(at(1)).state, ProviderState::Available);
        hear(
            &mut condition,
            RequestKind::Submit,
            FailureKind::Quota,
            at(1),
        );
        assert_eq!(condition.standing(at(9999)).state, ProviderState::Suspended);
    }

    #[test]
    fn manual_reset_clears_the_backoff_streak() {
        let mut condition = BreakerState::default();
        hear(
            &mut condition,
            RequestKind::Submit,
            FailureKind::Auth,
            at(0),
        );
        hear(
            &mut condition,
            RequestKind::Submit,
            FailureKind::Auth,
            at(60),
        );
        condition.resume();
        assert_eq!(condition.standing(at(61)).state, ProviderState::Available);
        hear(
            &mut condition,
            RequestKind::Submit,
            FailureKind::Auth,
            at(61),
        );
        assert_eq!(condition.standing(at(61)).until, Some(at(121)));
    }

    #[test]
    fn top_up_allows_an_immediate_probe() {
        let mut condition = BreakerState::default();
        hear(
            &mut condition,
            RequestKind::Submit,
            FailureKind::Auth,
            at(0),
        );
        condition.try_credit(at(1));
        assert!(!may(&condition, RequestKind::Submit, at(1)));
        condition.resume();
        hear(
            &mut condition,
            RequestKind::Submit,
            FailureKind::Quota,
            at(2),
        );
        assert_eq!(condition.is_without_credit(), Some(at(2)));
        condition.try_credit(at(3));
        assert!(may(&condition, RequestKind::Submit, at(3)));
    }
}
