//! How a provider is, as far as its own answers tell: what each of them does to its two lanes.
//!
//! Invariant: pure and whole in itself, so that nodes can share it. Questions go on where only
//! submitting is at fault, because jobs that run need their end.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::lane::{Admission, Cause, Lane, Pass};
use crate::job::FailureKind;
use crate::telemetry::ProviderState;
use crate::time::Time;

/// Failures in a row after which a provider is left alone.
const FAILURES: u32 = 5;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    /// A job to be taken, for money.
    Submit,
    /// Anything that may be repeated.
    Ask,
}

/// What an answer says of its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::provider) enum Health {
    /// It is there and works, whatever it thinks of this request.
    Well,
    /// It refuses for a cause that others will meet too, and how long it asks to wait.
    Unwell(FailureKind, Option<Duration>),
    /// Nothing: it was not asked.
    Unknown,
}

/// How a provider is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
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
pub(super) struct Condition {
    submits: Lane,
    asks: Lane,
    /// Failures in a row, of either kind.
    failures: u32,
}

impl Condition {
    pub(super) fn lane(&self, errand: Errand) -> &Lane {
        match errand {
            Errand::Submit => &self.submits,
            Errand::Ask => &self.asks,
        }
    }

    pub(super) fn lane_mut(&mut self, errand: Errand) -> &mut Lane {
        match errand {
            Errand::Submit => &mut self.submits,
            Errand::Ask => &mut self.asks,
        }
    }

    /// Whether a request may be made while so many of its kind are under way.
    pub(super) fn admit(&mut self, errand: Errand, under_way: usize, now: Time) -> Admission {
        self.lane_mut(errand).admit(under_way, now)
    }

    /// Takes in what an answer says.
    pub(super) fn hear(&mut self, errand: Errand, pass: Pass, health: Health, now: Time) {
        match health {
            Health::Unknown => self.lane_mut(errand).forget(pass),
            Health::Well => self.succeed(errand, pass),
            Health::Unwell(kind, hint) => match cause(kind) {
                None => self.succeed(errand, pass),
                Some(Cause::Technical) => self.fail(errand, pass, Cause::Technical, hint, now),
                // One task that may not be seen is no proof against the key.
                Some(Cause::Auth) if errand == Errand::Ask => {
                    self.fail(errand, pass, Cause::Auth, hint, now);
                }
                Some(cause) => self.refuse(errand, pass, cause, hint, now),
            },
        }
    }

    /// What one lane proves is true of the other: that the provider answers; and by a submit, which
    /// needs more than a question does, that it may be asked.
    fn succeed(&mut self, errand: Errand, pass: Pass) {
        if !self.lane_mut(errand).succeed(pass) {
            return;
        }
        self.failures = 0;
        let other = match errand {
            Errand::Submit => &mut self.asks,
            Errand::Ask => &mut self.submits,
        };
        let is_proof = |cause| match cause {
            Cause::Technical => true,
            Cause::Auth => errand == Errand::Submit,
            Cause::RateLimit | Cause::Quota => false,
        };
        if other.closed().is_some_and(|closed| is_proof(closed.cause)) {
            other.open();
        }
    }

    /// What counts only when it happens again and again.
    fn fail(
        &mut self,
        errand: Errand,
        pass: Pass,
        cause: Cause,
        hint: Option<Duration>,
        now: Time,
    ) {
        self.failures = self.failures.saturating_add(1);
        if self.lane(errand).closed().is_some() {
            self.lane_mut(errand).refuse(pass, cause, hint, now);
        } else if self.failures >= FAILURES {
            for lane in [&mut self.submits, &mut self.asks] {
                if lane.closed().is_none() {
                    lane.close(cause, hint, now);
                }
            }
            self.failures = 0;
        }
    }

    fn refuse(
        &mut self,
        errand: Errand,
        pass: Pass,
        cause: Cause,
        hint: Option<Duration>,
        now: Time,
    ) {
        self.failures = 0;
        let also = match (errand, cause) {
            // Of the account, whoever is told.
            (Errand::Ask, Cause::Quota) => {
                self.asks.succeed(pass);
                if self.submits.closed().is_none() {
                    self.submits.close(cause, hint, now);
                }
                return;
            }
            (Errand::Submit, Cause::Quota | Cause::RateLimit | Cause::Technical) => None,
            (Errand::Submit, Cause::Auth) => Some(&mut self.asks),
            (Errand::Ask, Cause::RateLimit | Cause::Auth | Cause::Technical) => {
                Some(&mut self.submits)
            }
        };
        if let Some(other) = also
            && other.closed().is_none_or(|closed| closed.cause < cause)
        {
            other.close(cause, hint, now);
        }
        self.lane_mut(errand).refuse(pass, cause, hint, now);
    }

    /// Somebody says that it is mended.
    pub(super) fn resume(&mut self) {
        self.failures = 0;
        for lane in [&mut self.submits, &mut self.asks] {
            lane.open();
            lane.pardon();
        }
    }

    /// Lets a submission through now where one is held back for want of credit.
    pub(super) fn try_credit(&mut self, now: Time) {
        if self.is_without_credit().is_some() {
            self.submits.hurry(now);
        }
    }

    /// Takes over what another node knows better. Failures in a row are each node's own.
    pub(super) fn adopt(&mut self, other: &Self) {
        self.submits.adopt(&other.submits);
        self.asks.adopt(&other.asks);
    }

    /// Whether nodes that know both would act alike.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        [(&self.submits, &other.submits), (&self.asks, &other.asks)]
            .into_iter()
            .all(|(ours, theirs)| ours.age() == theirs.age())
    }

    /// Since when there is no credit left.
    pub(super) fn is_without_credit(&self) -> Option<Time> {
        let closed = self.submits.closed()?;
        (closed.cause == Cause::Quota).then_some(closed.since)
    }

    /// How it is. A pause that is over is none.
    pub(super) fn standing(&self, now: Time) -> Standing {
        let worst = [&self.submits, &self.asks]
            .into_iter()
            .filter_map(Lane::closed)
            .filter(|closed| closed.cause != Cause::RateLimit || now < closed.until)
            .max_by_key(|closed| rank(closed.cause));
        match worst {
            None => Standing {
                state: ProviderState::Open,
                reason: None,
                since: None,
                until: None,
            },
            Some(closed) => Standing {
                state: state(closed.cause),
                reason: Some(kind(closed.cause)),
                since: Some(closed.since),
                until: Some(closed.until),
            },
        }
    }
}

fn state(cause: Cause) -> ProviderState {
    match cause {
        Cause::RateLimit => ProviderState::Paused,
        Cause::Technical => ProviderState::Failing,
        Cause::Quota | Cause::Auth => ProviderState::Stopped,
    }
}

fn rank(cause: Cause) -> (ProviderState, Cause) {
    (state(cause), cause)
}

fn kind(cause: Cause) -> FailureKind {
    match cause {
        Cause::Technical => FailureKind::Technical,
        Cause::RateLimit => FailureKind::RateLimit,
        Cause::Quota => FailureKind::Quota,
        Cause::Auth => FailureKind::Auth,
    }
}

/// What a refusal is to those who come after; none where it is this request's own.
fn cause(kind: FailureKind) -> Option<Cause> {
    match kind {
        FailureKind::Technical | FailureKind::SubmissionUnknown => Some(Cause::Technical),
        FailureKind::RateLimit => Some(Cause::RateLimit),
        FailureKind::Quota => Some(Cause::Quota),
        FailureKind::Auth => Some(Cause::Auth),
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

    fn may(condition: &Condition, errand: Errand, now: Time) -> bool {
        let admission = condition.clone().admit(errand, 0, now);
        matches!(admission, Admission::Go(_))
    }

    fn hear(condition: &mut Condition, errand: Errand, kind: FailureKind, now: Time) {
        let Admission::Go(pass) = condition.admit(errand, 0, now) else {
            panic!("not admitted at {now}");
        };
        condition.hear(errand, pass, Health::Unwell(kind, None), now);
    }

    fn succeed(condition: &mut Condition, errand: Errand, now: Time) {
        let Admission::Go(pass) = condition.admit(errand, 0, now) else {
            panic!("not admitted at {now}");
        };
        condition.hear(errand, pass, Health::Well, now);
    }

    #[test]
    fn what_stands_still_depends_on_the_cause_and_on_who_met_it() {
        use Errand::{Ask, Submit};
        for (errand, kind, submits, asks, state) in [
            (
                Submit,
                FailureKind::RateLimit,
                false,
                true,
                ProviderState::Paused,
            ),
            (
                Ask,
                FailureKind::RateLimit,
                false,
                false,
                ProviderState::Paused,
            ),
            (
                Submit,
                FailureKind::Quota,
                false,
                true,
                ProviderState::Stopped,
            ),
            (Ask, FailureKind::Quota, false, true, ProviderState::Stopped),
            (
                Submit,
                FailureKind::Auth,
                false,
                false,
                ProviderState::Stopped,
            ),
            (Ask, FailureKind::Auth, true, true, ProviderState::Open),
            (Submit, FailureKind::Safety, true, true, ProviderState::Open),
            (
                Submit,
                FailureKind::InvalidInput,
                true,
                true,
                ProviderState::Open,
            ),
            (
                Ask,
                FailureKind::InvalidInput,
                true,
                true,
                ProviderState::Open,
            ),
            (
                Submit,
                FailureKind::Technical,
                true,
                true,
                ProviderState::Open,
            ),
        ] {
            let mut condition = Condition::default();
            hear(&mut condition, errand, kind, at(0));
            let may = [Submit, Ask].map(|errand| may(&condition, errand, at(0)));
            assert_eq!(may, [submits, asks], "{errand:?} {kind:?}");
            assert_eq!(
                condition.standing(at(0)).state,
                state,
                "{errand:?} {kind:?}"
            );
        }
    }

    #[test]
    fn five_failures_in_a_row_close_both_lanes_and_one_success_opens_them() {
        let mut condition = Condition::default();
        for n in 0..4 {
            hear(&mut condition, Errand::Ask, FailureKind::Technical, at(n));
        }
        hear(&mut condition, Errand::Submit, FailureKind::Safety, at(4));
        for n in 5..9 {
            hear(
                &mut condition,
                Errand::Submit,
                FailureKind::Technical,
                at(n),
            );
        }
        assert_eq!(condition.standing(at(9)).state, ProviderState::Open);
        hear(
            &mut condition,
            Errand::Ask,
            FailureKind::SubmissionUnknown,
            at(10),
        );
        let standing = condition.standing(at(10));
        assert_eq!(standing.state, ProviderState::Failing);
        assert_eq!(
            (standing.since, standing.until),
            (Some(at(10)), Some(at(15)))
        );
        assert!(!may(&condition, Errand::Submit, at(14)));
        hear(&mut condition, Errand::Ask, FailureKind::Technical, at(15));
        assert!(!may(&condition, Errand::Ask, at(24)));
        succeed(&mut condition, Errand::Ask, at(25));
        assert_eq!(condition.standing(at(25)).state, ProviderState::Open);
        assert!(may(&condition, Errand::Submit, at(25)));
    }

    #[test]
    fn a_key_that_is_refused_for_every_task_is_refused() {
        let mut condition = Condition::default();
        for n in 0..8 {
            hear(&mut condition, Errand::Ask, FailureKind::Auth, at(n));
            assert_eq!(condition.standing(at(n)).state, ProviderState::Open);
            succeed(&mut condition, Errand::Ask, at(n));
        }
        for n in 8..13 {
            hear(&mut condition, Errand::Ask, FailureKind::Auth, at(n));
        }
        let standing = condition.standing(at(12));
        assert_eq!(standing.state, ProviderState::Stopped);
        assert_eq!(standing.reason, Some(FailureKind::Auth));
        assert!(!may(&condition, Errand::Submit, at(12)));
    }

    #[test]
    fn a_question_that_is_answered_does_not_prove_the_credit_or_the_key_for_submitting() {
        for kind in [FailureKind::Quota, FailureKind::Auth] {
            let mut condition = Condition::default();
            hear(&mut condition, Errand::Submit, kind, at(0));
            succeed(&mut condition, Errand::Ask, at(60));
            assert_eq!(condition.standing(at(60)).state, ProviderState::Stopped);
            assert_eq!(condition.standing(at(60)).reason, Some(kind));
            succeed(&mut condition, Errand::Submit, at(60));
            assert_eq!(condition.standing(at(60)).state, ProviderState::Open);
            assert!(may(&condition, Errand::Ask, at(60)));
        }
    }

    #[test]
    fn a_pause_that_is_over_is_none_and_a_stop_lasts_until_a_job_was_taken() {
        let mut condition = Condition::default();
        hear(
            &mut condition,
            Errand::Submit,
            FailureKind::RateLimit,
            at(0),
        );
        assert_eq!(condition.standing(at(0)).state, ProviderState::Paused);
        assert_eq!(condition.standing(at(1)).state, ProviderState::Open);
        hear(&mut condition, Errand::Submit, FailureKind::Quota, at(1));
        assert_eq!(condition.standing(at(9999)).state, ProviderState::Stopped);
    }

    #[test]
    fn whoever_resumes_begins_anew() {
        let mut condition = Condition::default();
        hear(&mut condition, Errand::Submit, FailureKind::Auth, at(0));
        hear(&mut condition, Errand::Submit, FailureKind::Auth, at(60));
        condition.resume();
        assert_eq!(condition.standing(at(61)).state, ProviderState::Open);
        hear(&mut condition, Errand::Submit, FailureKind::Auth, at(61));
        assert_eq!(condition.standing(at(61)).until, Some(at(121)));
    }

    #[test]
    fn credit_that_came_in_is_tried_at_once() {
        let mut condition = Condition::default();
        hear(&mut condition, Errand::Submit, FailureKind::Auth, at(0));
        condition.try_credit(at(1));
        assert!(!may(&condition, Errand::Submit, at(1)));
        condition.resume();
        hear(&mut condition, Errand::Submit, FailureKind::Quota, at(2));
        assert_eq!(condition.is_without_credit(), Some(at(2)));
        condition.try_credit(at(3));
        assert!(may(&condition, Errand::Submit, at(3)));
    }
}
