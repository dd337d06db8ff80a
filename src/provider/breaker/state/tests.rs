//! Failures that open circuits, and the owners and models that they affect.

use super::*;
use RequestKind::{Query, Submit};

fn at(seconds: i64) -> Time {
    Time::from_millis(seconds * 1000)
}

fn with_account_check() -> BreakerState {
    BreakerState {
        account_check: AccountCheck::KeyAndCredit,
        ..BreakerState::default()
    }
}

fn is_allowed(state: &BreakerState, kind: RequestKind, now: Time) -> bool {
    let admission = state.clone().admit(kind, 0, now);
    matches!(admission, Admission::Allowed(_))
}

/// Returns whether a submission of `owner` for `model` is sent.
fn is_sent(state: &BreakerState, owner: &str, model: &str, seconds: i64) -> bool {
    let mut state = state.clone();
    match state.admit(Submit, 0, at(seconds)) {
        Admission::Allowed(token) => {
            let origin = origin(owner, model);
            state.admit_origin(token, &origin, at(seconds)).is_ok()
        }
        Admission::AtCapacity | Admission::Open(_) => false,
    }
}

fn origin(owner: &str, model: &str) -> Origin {
    Origin {
        owner: owner.to_owned(),
        model: model.to_owned(),
    }
}

/// Records the result of a request. `of` is `owner/model`, or `-` for a request without an origin.
fn record(
    state: &mut BreakerState,
    kind: RequestKind,
    of: &str,
    result: RequestResult,
    seconds: i64,
) {
    let now = at(seconds);
    let Admission::Allowed(token) = state.admit(kind, 0, now) else {
        panic!("not admitted at {now}");
    };
    let origin = of
        .split_once('/')
        .map(|(owner, model)| origin(owner, model));
    let holds = match (&origin, kind) {
        (Some(origin), Submit) => state.admit_origin(token, origin, now).unwrap(),
        (Some(_) | None, Submit | Query) => HoldTokens::default(),
    };
    let request = Admitted {
        kind,
        token,
        origin,
        is_shared: false,
        holds,
    };
    state.record(&request, result, now);
}

fn fail(state: &mut BreakerState, kind: RequestKind, of: &str, failure: FailureKind, seconds: i64) {
    record(
        state,
        kind,
        of,
        RequestResult::Failure(failure, None),
        seconds,
    );
}

fn succeed(state: &mut BreakerState, kind: RequestKind, of: &str, seconds: i64) {
    record(state, kind, of, RequestResult::Success, seconds);
}

/// Suspends the provider: records a rejection, which the account check confirms.
fn suspend(state: &mut BreakerState, verdict: AccountVerdict, seconds: i64) {
    state.account_check = AccountCheck::KeyAndCredit;
    if !state.is_account_check_due(at(seconds)) {
        fail(state, Query, "-", FailureKind::Quota, seconds);
    }
    state.on_account_checked(verdict, at(seconds));
}

fn state_at(state: &BreakerState, seconds: i64) -> ProviderState {
    state.health(at(seconds)).state
}

#[test]
fn one_failure_blocks_others_only_if_no_request_can_be_the_cause() {
    use ProviderState::{Available, RateLimited};
    for (kind, failure, submits, queries, expected) in [
        (Submit, FailureKind::RateLimit, false, true, RateLimited),
        (Query, FailureKind::RateLimit, true, false, RateLimited),
        (Submit, FailureKind::Quota, true, true, Available),
        (Query, FailureKind::Quota, true, true, Available),
        (Submit, FailureKind::Auth, true, true, Available),
        (Query, FailureKind::Auth, true, true, Available),
        (Submit, FailureKind::Safety, true, true, Available),
        (Submit, FailureKind::InvalidInput, true, true, Available),
        (Query, FailureKind::InvalidInput, true, true, Available),
        (Submit, FailureKind::Technical, true, true, Available),
    ] {
        let mut state = with_account_check();
        fail(&mut state, kind, "alice/x", failure, 0);
        let allowed = [
            is_sent(&state, "bob", "x", 0),
            is_allowed(&state, Query, at(0)),
        ];
        assert_eq!(allowed, [submits, queries], "{kind:?} {failure:?}");
        assert_eq!(state_at(&state, 0), expected, "{kind:?} {failure:?}");
    }
}

#[test]
fn rejected_account_holds_one_owner_and_model_until_an_account_check_confirms_it() {
    for (failure, verdict, blocks_queries) in [
        (FailureKind::Auth, AccountVerdict::KeyRejected, true),
        (FailureKind::Quota, AccountVerdict::NoCredit, false),
    ] {
        let mut state = with_account_check();
        assert!(!state.is_account_check_due(at(0)));
        fail(&mut state, Submit, "alice/private", failure, 0);
        assert!(state.is_account_check_due(at(0)));
        assert!(!is_sent(&state, "alice", "private", 0));
        assert!(is_sent(&state, "alice", "x", 0) && is_sent(&state, "bob", "private", 0));

        let mut refuted = state.clone();
        refuted.on_account_checked(AccountVerdict::Good, at(0));
        assert!(!refuted.is_account_check_due(at(0)));
        assert!(is_sent(&refuted, "bob", "private", 0));
        // A hold for lack of credit allows a probe at once.
        let may_retry = failure == FailureKind::Quota;
        assert_eq!(is_sent(&refuted, "alice", "private", 0), may_retry);

        state.on_account_checked(verdict, at(1));
        assert_eq!(state_at(&state, 1), ProviderState::Suspended);
        assert_eq!(state.health(at(1)).reason, Some(failure));
        assert!(!is_sent(&state, "bob", "x", 1));
        assert_eq!(is_allowed(&state, Query, at(1)), !blocks_queries);
        // The account check is the probe, so no job is one.
        assert!(!state.is_account_check_due(at(60)) && state.is_account_check_due(at(61)));
        assert!(!is_sent(&state, "bob", "x", 61));
        state.on_account_checked(verdict, at(61));
        assert_eq!(state.health(at(61)).until, Some(at(181)));
        state.on_account_checked(AccountVerdict::Good, at(181));
        assert_eq!(state_at(&state, 181), ProviderState::Available);
        assert!(is_sent(&state, "bob", "x", 181) && is_allowed(&state, Query, at(181)));
    }
}

#[test]
fn zero_balance_without_rejection_does_not_suspend() {
    let mut state = with_account_check();
    state.on_account_checked(AccountVerdict::NoCredit, at(0));
    assert_eq!(state_at(&state, 0), ProviderState::Available);
}

#[test]
fn job_is_a_probe_after_the_longest_wait_for_credit() {
    let mut state = with_account_check();
    let mut now = 0;
    for seconds in [60, 120, 240, 480, 900] {
        suspend(&mut state, AccountVerdict::NoCredit, now);
        now += seconds;
        assert_eq!(state.health(at(now)).until, Some(at(now)));
    }
    state.on_account_checked(AccountVerdict::NoCredit, at(now));
    assert!(!is_sent(&state, "bob", "x", now - 1));
    fail(&mut state, Submit, "bob/x", FailureKind::Quota, now);
    assert!(!is_sent(&state, "carol", "x", now + 899));
    succeed(&mut state, Submit, "carol/x", now + 900);
    assert_eq!(state_at(&state, now + 900), ProviderState::Available);
}

#[test]
fn one_owner_can_hold_back_only_itself() {
    for account_check in [AccountCheck::KeyAndCredit, AccountCheck::None] {
        for failure in [
            FailureKind::Auth,
            FailureKind::Quota,
            FailureKind::Technical,
        ] {
            let mut state = BreakerState {
                account_check,
                ..BreakerState::default()
            };
            for n in 0..200 {
                for kind in [Submit, Query] {
                    fail(&mut state, kind, &format!("alice/model-{n}"), failure, n);
                    assert!(is_sent(&state, "bob", "x", n), "{kind:?} {failure:?}");
                }
            }
        }
    }
}

#[test]
fn several_owners_confirm_a_rejected_account_without_an_account_check() {
    let mut state = BreakerState::default();
    for (second, of) in ["a/x", "b/y", "a/z", "b/x", "c/x"].into_iter().enumerate() {
        assert_eq!(state_at(&state, 0), ProviderState::Available);
        fail(&mut state, Submit, of, FailureKind::Quota, second as i64);
    }
    assert_eq!(state_at(&state, 4), ProviderState::Suspended);
    assert!(!is_sent(&state, "d", "d", 63) && is_sent(&state, "d", "d", 64));
    fail(&mut state, Submit, "d/d", FailureKind::Quota, 64);
    assert!(!is_sent(&state, "e", "e", 183) && is_sent(&state, "e", "e", 184));
    succeed(&mut state, Submit, "e/e", 184);
    assert_eq!(state_at(&state, 184), ProviderState::Available);
}

#[test]
fn failures_of_several_owners_and_models_open_both_circuits_and_one_success_closes_them() {
    let mut state = BreakerState::default();
    for (second, of) in (0..).zip(["a/x", "a/x", "b/y", "b/y"]) {
        fail(&mut state, Query, of, FailureKind::Technical, second);
    }
    fail(&mut state, Submit, "a/x", FailureKind::Safety, 4);
    for (second, of) in (5..).zip(["a/x", "a/x", "b/y", "b/y"]) {
        fail(&mut state, Submit, of, FailureKind::Technical, second);
    }
    assert_eq!(state_at(&state, 9), ProviderState::Available);
    fail(&mut state, Query, "c/y", FailureKind::SubmissionUnknown, 10);
    let health = state.health(at(10));
    assert_eq!(health.state, ProviderState::Unavailable);
    assert_eq!((health.since, health.until), (Some(at(10)), Some(at(15))));
    assert!(!is_allowed(&state, Submit, at(14)));
    assert!(
        !is_sent(&state, "a", "x", 15),
        "its requests opened the circuit"
    );
    assert!(is_sent(&state, "d", "z", 15));
    fail(&mut state, Query, "d/z", FailureKind::Technical, 15);
    assert!(!is_allowed(&state, Query, at(24)));
    succeed(&mut state, Query, "d/z", 25);
    assert_eq!(state_at(&state, 25), ProviderState::Available);
    assert!(is_allowed(&state, Submit, at(25)));
}

#[test]
fn failures_of_one_model_hold_this_model() {
    let mut state = BreakerState::default();
    for (second, of) in (0..).zip(["a/x", "b/x", "c/x", "d/x", "e/x"]) {
        fail(&mut state, Submit, of, FailureKind::Technical, second);
    }
    assert_eq!(state_at(&state, 4), ProviderState::Available);
    assert!(!is_sent(&state, "f", "x", 8) && is_sent(&state, "f", "y", 8));
    assert!(is_sent(&state, "f", "x", 9));
    succeed(&mut state, Submit, "f/x", 9);
    assert!(is_sent(&state, "a", "x", 9));
}

#[test]
fn failures_that_no_request_can_cause_open_both_circuits() {
    let mut state = BreakerState::default();
    for second in 0..5 {
        assert_eq!(state_at(&state, second), ProviderState::Available);
        record(
            &mut state,
            Submit,
            "a/x",
            RequestResult::Unreachable,
            second,
        );
    }
    assert_eq!(state_at(&state, 4), ProviderState::Unavailable);
    assert!(!is_allowed(&state, Query, at(4)));
    assert!(
        is_sent(&state, "a", "x", 9),
        "a job of any owner is a probe"
    );
}

#[test]
fn missing_credit_proves_that_the_key_is_valid() {
    let mut state = BreakerState::default();
    suspend(&mut state, AccountVerdict::KeyRejected, 0);
    assert!(!is_allowed(&state, Query, at(1)));
    state.is_account_suspect = true;
    state.on_account_checked(AccountVerdict::NoCredit, at(2));
    assert!(is_allowed(&state, Query, at(2)));
    assert!(!is_allowed(&state, Submit, at(2)));
}

#[test]
fn valid_key_refutes_auth_errors_only() {
    let mut state = BreakerState {
        account_check: AccountCheck::Key,
        ..BreakerState::default()
    };
    for of in ["a/x", "b/y", "a/z", "b/x", "c/x"] {
        fail(&mut state, Submit, of, FailureKind::Quota, 0);
    }
    assert_eq!(state_at(&state, 0), ProviderState::Suspended);
    assert!(
        !state.is_account_check_due(at(60)),
        "the check shows no credit"
    );
    state.on_account_checked(AccountVerdict::KeyValid, at(1));
    assert_eq!(state_at(&state, 1), ProviderState::Suspended);

    state.reset();
    fail(&mut state, Submit, "alice/x", FailureKind::Auth, 2);
    assert!(state.is_account_check_due(at(2)));
    state.on_account_checked(AccountVerdict::KeyValid, at(2));
    assert_eq!(state_at(&state, 2), ProviderState::Available);
}

#[test]
fn rejected_query_holds_the_submissions_of_its_owner_and_model() {
    for (account_check, failure) in [
        (AccountCheck::None, FailureKind::Auth),
        (AccountCheck::None, FailureKind::Quota),
        (AccountCheck::Key, FailureKind::Auth),
        (AccountCheck::Key, FailureKind::Quota),
        (AccountCheck::KeyAndCredit, FailureKind::Auth),
        (AccountCheck::KeyAndCredit, FailureKind::Quota),
    ] {
        let mut state = BreakerState {
            account_check,
            ..BreakerState::default()
        };
        for second in 0..50 {
            fail(&mut state, Query, "alice/x", failure, second);
            assert!(!is_sent(&state, "alice", "x", second));
            assert!(is_sent(&state, "alice", "y", second) && is_sent(&state, "bob", "x", second));
            assert!(is_allowed(&state, Query, at(second)));
        }
        assert_eq!(state_at(&state, 49), ProviderState::Available);
        assert_eq!(state.health(at(49)).holds, 1);
        assert!(is_sent(&state, "alice", "x", 60), "one probe");
    }
}

#[test]
fn rejected_queries_suspend_the_provider_once_they_are_confirmed() {
    for (failure, verdict, blocks_queries) in [
        (FailureKind::Auth, AccountVerdict::KeyRejected, true),
        (FailureKind::Quota, AccountVerdict::NoCredit, false),
    ] {
        let mut state = with_account_check();
        fail(&mut state, Query, "alice/x", failure, 0);
        assert!(state.is_account_check_due(at(0)));
        state.on_account_checked(verdict, at(0));
        assert_eq!(state.health(at(0)).reason, Some(failure));
        assert!(!is_sent(&state, "bob", "y", 0));
        assert_eq!(is_allowed(&state, Query, at(0)), !blocks_queries);

        let mut state = BreakerState::default();
        for (second, of) in (0..).zip(["a/x", "b/y", "a/z", "b/x", "c/x"]) {
            assert_eq!(state_at(&state, second), ProviderState::Available);
            fail(&mut state, Query, of, failure, second);
        }
        assert_eq!(state.health(at(4)).reason, Some(failure));
        assert!(!is_sent(&state, "d", "d", 4));
        assert_eq!(is_allowed(&state, Query, at(4)), !blocks_queries);
    }
}

#[test]
fn successful_query_refutes_auth_errors_of_queries() {
    let mut state = BreakerState::default();
    for (second, of) in (0..40).zip(["a/x", "b/y", "a/z", "b/x"].iter().cycle()) {
        fail(&mut state, Query, of, FailureKind::Auth, second);
        if second % 4 == 3 {
            succeed(&mut state, Query, "c/x", second);
        }
        assert_eq!(state_at(&state, second), ProviderState::Available);
    }
}

#[test]
fn rejected_query_for_several_owners_is_attributed_to_none() {
    for account_check in [AccountCheck::None, AccountCheck::Key] {
        let mut state = BreakerState {
            account_check,
            ..BreakerState::default()
        };
        for second in 0..50 {
            let Admission::Allowed(token) = state.admit(Query, 0, at(second)) else {
                panic!("not admitted at {second}");
            };
            let request = Admitted {
                kind: Query,
                token,
                origin: Some(origin("alice", "x")),
                is_shared: true,
                holds: HoldTokens::default(),
            };
            let rejected = RequestResult::Failure(FailureKind::Auth, None);
            state.record(&request, rejected, at(second));
            assert_eq!(state_at(&state, second), ProviderState::Available);
            assert!(is_sent(&state, "alice", "x", second));
        }
        let is_checked = account_check == AccountCheck::Key;
        assert_eq!(state.is_account_check_due(at(50)), is_checked);
    }
}

#[test]
fn rejected_query_of_one_owner_does_not_replace_the_cause_of_an_open_circuit() {
    let mut state = BreakerState::default();
    for second in 0..5 {
        record(&mut state, Query, "a/x", RequestResult::Unreachable, second);
    }
    assert_eq!(state_at(&state, 4), ProviderState::Unavailable);
    fail(&mut state, Query, "a/x", FailureKind::Auth, 9);
    assert_ne!(state_at(&state, 9), ProviderState::Suspended);
    assert!(is_allowed(&state, Query, at(9)), "the provider responds");
}

#[test]
fn successful_query_does_not_close_a_quota_or_auth_circuit() {
    for (failure, verdict) in [
        (FailureKind::Quota, AccountVerdict::NoCredit),
        (FailureKind::Auth, AccountVerdict::KeyRejected),
    ] {
        let mut state = BreakerState::default();
        suspend(&mut state, verdict, 0);
        state.account_check = AccountCheck::None;
        succeed(&mut state, Query, "a/x", 60);
        assert_eq!(state_at(&state, 60), ProviderState::Suspended);
        assert_eq!(state.health(at(60)).reason, Some(failure));
        succeed(&mut state, Submit, "a/x", 60);
        assert_eq!(state_at(&state, 60), ProviderState::Available);
        assert!(is_allowed(&state, Query, at(60)));
    }
}

#[test]
fn rate_limit_expires_but_suspension_lasts() {
    let mut state = with_account_check();
    fail(&mut state, Submit, "a/x", FailureKind::RateLimit, 0);
    assert_eq!(state_at(&state, 0), ProviderState::RateLimited);
    assert_eq!(state_at(&state, 1), ProviderState::Available);
    suspend(&mut state, AccountVerdict::NoCredit, 1);
    assert_eq!(state_at(&state, 9999), ProviderState::Suspended);
}

#[test]
fn manual_reset_ends_holds_and_clears_the_backoff_streak() {
    let mut state = with_account_check();
    for now in [0, 60] {
        suspend(&mut state, AccountVerdict::KeyRejected, now);
    }
    state.reset();
    fail(&mut state, Submit, "a/x", FailureKind::Auth, 61);
    state.on_account_checked(AccountVerdict::KeyRejected, at(61));
    assert_eq!(state.health(at(61)).until, Some(at(121)));
    state.reset();
    assert_eq!(state_at(&state, 61), ProviderState::Available);
    assert!(is_sent(&state, "a", "x", 61));
}
