//! Tables of state × verdict → state.

use serde_json::{Value, json};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn now() -> Time {
    Time::from_millis(1_795_428_000_000)
}

fn policy() -> DeliveryPolicy {
    DeliveryPolicy::new(&crate::config::Config::defaults().deliveries)
}

fn delivered() -> Verdict {
    Verdict::Delivered {
        result: Value::Null,
    }
}

fn failed() -> Verdict {
    Verdict::Failed {
        error: "status 500".to_owned(),
        retry_after: None,
    }
}

fn retry_after(delay: Duration) -> Verdict {
    Verdict::Failed {
        error: "status 429".to_owned(),
        retry_after: Some(delay),
    }
}

fn rejected() -> Verdict {
    Verdict::Rejected {
        error: "no such recipient".to_owned(),
    }
}

fn misconfigured() -> Verdict {
    Verdict::Misconfigured {
        error: "wrong password".to_owned(),
    }
}

fn attempt() -> Attempt {
    Attempt {
        at: now(),
        duration_ms: 7,
        status: Some(500),
        error: Some("status 500".to_owned()),
    }
}

fn waiting(attempt_count: u32, is_manual: bool) -> Progress {
    Progress {
        state: DeliveryState::Waiting {
            due_at: now(),
            is_manual,
        },
        attempt_count,
        ..Progress::new(now())
    }
}

fn progress_after(progress: &Progress, verdict: &Verdict) -> Progress {
    policy().progress_after(progress, verdict, attempt(), now(), 1.0)
}

#[test]
fn failed_attempts_follow_the_schedule_and_then_end() {
    let mut progress = waiting(0, false);
    let mut delays = Vec::new();
    while let DeliveryState::Waiting { .. } = progress.state {
        progress = progress_after(&progress, &failed());
        let due_at = progress.due_at();
        delays.extend(due_at.map(|at| at.saturating_duration_since(now())));
    }
    let hours = [2, 5, 10, 14, 20, 24].map(|hours| hours * HOUR);
    let expected = [&[5 * SECOND, 5 * MINUTE, 30 * MINUTE][..], &hours].concat();
    assert_eq!(delays, expected);
    assert_eq!(progress.state, DeliveryState::Failed { at: now() });
    assert_eq!((progress.attempt_count, progress.attempts.len()), (10, 10));
    assert_eq!(progress.revision, 10);
}

#[test]
fn jitter_multiplies_the_delay() {
    let policy = policy();
    for (jitter, millis) in [(0.8, 4000), (1.2, 6000)] {
        let progress =
            policy.progress_after(&waiting(0, false), &failed(), attempt(), now(), jitter);
        let due_at = now() + Duration::from_millis(millis);
        assert_eq!(progress.due_at(), Some(due_at));
    }
}

/// The state after one attempt, and whether the attempt counts.
#[test]
fn verdict_decides_what_happens_to_the_delivery() {
    let wait = |delay: Duration| DeliveryState::Waiting {
        due_at: now() + delay,
        is_manual: false,
    };
    let end = DeliveryState::Failed { at: now() };
    let success = DeliveryState::Delivered { at: now() };
    let postponed = Verdict::Postponed { delay: HOUR };
    let automatic = [
        (delivered(), success, true),
        (failed(), wait(5 * SECOND), true),
        (retry_after(30 * SECOND), wait(30 * SECOND), false),
        (retry_after(Duration::ZERO), wait(SECOND), false),
        (retry_after(365 * DAY), wait(DAY), false),
        (rejected(), end, true),
        (misconfigured(), wait(MINUTE), false),
        (Verdict::Gone, wait(Duration::ZERO), false),
        (postponed, wait(HOUR), false),
    ];
    for (verdict, state, is_counted) in automatic {
        let progress = progress_after(&waiting(0, false), &verdict);
        assert_eq!(progress.state, state, "{verdict:?}");
        assert_eq!(progress.attempt_count, u32::from(is_counted), "{verdict:?}");
        let is_attempt = !matches!(verdict, Verdict::Postponed { .. });
        assert_eq!(
            progress.attempts.len(),
            usize::from(is_attempt),
            "{verdict:?}"
        );
    }
    for verdict in [
        failed(),
        retry_after(SECOND),
        rejected(),
        misconfigured(),
        Verdict::Gone,
    ] {
        let progress = progress_after(&waiting(10, true), &verdict);
        assert_eq!(progress.state, end, "manual: {verdict:?}");
    }
    let progress = progress_after(&waiting(10, true), &delivered());
    assert_eq!(progress.state, success, "manual");
}

#[test]
fn result_of_a_success_is_kept() {
    let verdict = Verdict::Delivered {
        result: json!({ "key": "a" }),
    };
    let progress = progress_after(&waiting(0, false), &verdict);
    assert_eq!(progress.result, json!({ "key": "a" }));
}

/// Applies verdicts one minute apart and returns the last state.
fn state_after(verdicts: &[Verdict]) -> DestinationState {
    let policy = policy();
    let mut state = DestinationState::default();
    for (minute, verdict) in (0..).zip(verdicts) {
        state = policy.state_after(&state, verdict, now() + MINUTE * minute);
    }
    state
}

#[test]
fn four_failures_in_a_row_pause_the_destination() {
    let failures = |count: usize| state_after(&vec![failed(); count]);
    assert_eq!(admission(&failures(3), now()), Admission::Open);
    for (count, pause) in [
        (4, MINUTE),
        (5, 2 * MINUTE),
        (6, 4 * MINUTE),
        (9, 32 * MINUTE),
        (10, HOUR),
        (50, HOUR),
    ] {
        let state = failures(count);
        let until = now() + MINUTE * u32::try_from(count - 1).unwrap() + pause;
        assert_eq!(
            admission(&state, now()),
            Admission::PausedUntil(until),
            "{count}"
        );
        assert_eq!(admission(&state, until), Admission::Probe, "{count}");
    }
    let mixed = [failed(), failed(), failed(), delivered(), failed()];
    assert_eq!(state_after(&mixed).consecutive_failures, 1);
    // A rejected delivery shows that the destination works.
    let mixed = [failed(), failed(), failed(), rejected(), failed()];
    assert_eq!(state_after(&mixed).consecutive_failures, 1);
}

#[test]
fn success_ends_a_pause() {
    let paused = state_after(&vec![failed(); 6]);
    let state = policy().state_after(&paused, &delivered(), now());
    let recovered = DestinationState {
        last_success_at: Some(now()),
        ..DestinationState::default()
    };
    assert_eq!(state, recovered);
}

#[test]
fn pause_lasts_at_least_as_long_as_the_destination_requests() {
    let three = vec![failed(); 3];
    let last = |verdict| state_after(&[three.clone(), vec![verdict]].concat());
    let until = |delay| Some(now() + 3 * MINUTE + delay);
    assert_eq!(last(retry_after(2 * HOUR)).paused_until, until(2 * HOUR));
    assert_eq!(last(retry_after(SECOND)).paused_until, until(MINUTE));
    // A single request to wait concerns its delivery only.
    assert_eq!(state_after(&[retry_after(HOUR)]).paused_until, None);
}

#[test]
fn misconfigured_destination_is_paused_at_once() {
    let state = state_after(&[misconfigured()]);
    assert_eq!(state.paused_until, Some(now() + MINUTE));
    let state = state_after(&[misconfigured(), misconfigured()]);
    assert_eq!(state.paused_until, Some(now() + 3 * MINUTE));
}

#[test]
fn days_without_a_success_disable_the_destination() {
    let policy = policy();
    let failing = DestinationState {
        consecutive_failures: 90,
        failing_since: Some(now() - 5 * DAY + SECOND),
        ..DestinationState::default()
    };
    let state = policy.state_after(&failing, &failed(), now());
    assert_eq!(state.disabled, None);
    let state = policy.state_after(&state, &failed(), now() + SECOND);
    let disabled = Disabled {
        at: now() + SECOND,
        reason: DisabledReason::Failing,
        recheck_at: None,
    };
    assert_eq!(state.disabled, Some(disabled));
    let held = Admission::Disabled { recheck_at: None };
    assert_eq!(admission(&state, now() + 30 * DAY), held);
}

#[test]
fn gone_disables_and_is_checked_once_more() {
    let policy = policy();
    let gone = policy.state_after(&DestinationState::default(), &Verdict::Gone, now());
    let recheck_at = Some(now() + HOUR);
    let disabled = gone.disabled.as_ref().unwrap();
    assert_eq!(disabled.reason, DisabledReason::Gone);
    assert_eq!(admission(&gone, now()), Admission::Disabled { recheck_at });
    assert_eq!(admission(&gone, now() + HOUR), Admission::Probe);
    // An attempt that was in progress does not count as the check.
    for verdict in [delivered(), failed(), Verdict::Gone] {
        let state = policy.state_after(&gone, &verdict, now() + MINUTE);
        assert_eq!(state.disabled, gone.disabled, "{verdict:?}");
    }
    for verdict in [failed(), Verdict::Gone] {
        let state = policy.state_after(&gone, &verdict, now() + HOUR);
        let held = Admission::Disabled { recheck_at: None };
        assert_eq!(admission(&state, now() + DAY), held, "{verdict:?}");
    }
    let state = policy.state_after(&gone, &delivered(), now() + HOUR);
    assert_eq!(admission(&state, now() + HOUR), Admission::Open);
}

#[test]
fn result_of_an_attempt_does_not_enable_what_an_administrator_disabled() {
    let state = DestinationState {
        disabled: Some(Disabled {
            at: now(),
            reason: DisabledReason::Manual,
            recheck_at: None,
        }),
        ..DestinationState::default()
    };
    for verdict in [delivered(), failed(), Verdict::Gone] {
        let after = policy().state_after(&state, &verdict, now() + HOUR);
        assert_eq!(after.disabled, state.disabled, "{verdict:?}");
    }
}

#[test]
fn further_success_changes_nothing_within_a_minute() {
    let state = state_after(&[delivered()]);
    let soon = policy().state_after(&state, &delivered(), now() + 59 * SECOND);
    assert_eq!(soon, state);
    let later = policy().state_after(&state, &delivered(), now() + MINUTE);
    assert_eq!(later.last_success_at, Some(now() + MINUTE));
}

#[test]
fn postponed_attempt_changes_nothing() {
    let state = state_after(&[failed(), failed()]);
    let postponed = Verdict::Postponed { delay: HOUR };
    assert_eq!(policy().state_after(&state, &postponed, now()), state);
}

#[test]
fn failure_of_a_source_concerns_the_delivery_only() {
    let verdict = Verdict::SourceFailed {
        error: "status 503".to_owned(),
    };
    let progress = progress_after(&waiting(0, false), &verdict);
    assert_eq!(progress.due_at(), Some(now() + 5 * SECOND));
    assert_eq!(progress.attempt_count, 1);
    let manual = progress_after(&waiting(0, true), &verdict);
    assert_eq!(manual.state, DeliveryState::Failed { at: now() });

    let failing = DestinationState {
        consecutive_failures: 3,
        failing_since: Some(now()),
        ..DestinationState::default()
    };
    let state = policy().state_after(&failing, &verdict, now());
    assert_eq!(state, failing);
}
