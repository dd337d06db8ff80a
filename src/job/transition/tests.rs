//! Properties of the transition rules over arbitrary sequences of updates.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::job::{NewJob, Output, VideoRequest};

const NOW: i64 = 1_795_428_000_000;

fn job(request: Option<VideoRequest>) -> Job {
    let new = NewJob {
        owner: "alice".into(),
        provider: Some("kling".into()),
        provider_task_id: None,
        model: None,
        metadata: serde_json::Map::new(),
        request,
        deadline: Duration::from_secs(60),
    };
    Job::new(new, Time::from_millis(NOW))
}

fn submitted_by_hub() -> Job {
    job(Some(VideoRequest::default()))
}

fn output(name: &str) -> Output {
    let url = format!("https://cdn.example.com/{name}.mp4");
    Output {
        kind: "video".into(),
        url,
        duration: None,
        expires_at: None,
        watermark_url: None,
        nsfw: None,
    }
}

fn apply(job: &Job, report: StatusReport) -> Option<Job> {
    job.apply(
        report.into_update(Source::Webhook),
        Time::from_millis(NOW + 1),
    )
}

fn failure(kind: FailureKind) -> Failure {
    Failure::new(kind, "test failure")
}

fn submit(job: &Job, event: JobEvent) -> Option<Job> {
    job.apply(
        Update {
            source: Source::Submit,
            event,
        },
        Time::from_millis(NOW + 1),
    )
}

#[test]
fn report_without_changes_returns_none() {
    let running = apply(&job(None), StatusReport::with_status(Status::Running)).unwrap();
    assert_eq!(running.version, 2);
    assert_eq!(
        apply(&running, StatusReport::with_status(Status::Running)),
        None
    );
    assert_eq!(
        apply(&running, StatusReport::with_status(Status::Queued)),
        None
    );
    assert_eq!(apply(&running, StatusReport::default()), None);
}

#[test]
fn progress_without_a_status_means_running() {
    let report = StatusReport {
        progress: Some(3.0),
        ..StatusReport::default()
    };
    let running = apply(&job(None), report).unwrap();
    assert_eq!(
        (running.status, running.progress),
        (Status::Running, Some(3.0))
    );
    assert!(running.started_at.is_some());
}

#[test]
fn success_without_outputs_requires_confirmation() {
    let without_outputs = StatusReport::with_status(Status::Succeeded);
    assert_eq!(apply(&job(None), without_outputs.clone()), None);

    let read = StatusReport {
        is_authoritative: true,
        ..without_outputs
    };
    let expired = job(None).apply(
        read.clone().into_update(Source::Poll),
        Time::from_millis(NOW),
    );
    let expired = expired.unwrap();
    assert_eq!(expired.status, Status::Succeeded);
    assert_eq!(expired.error.unwrap().kind, FailureKind::ResultExpired);

    let pushed = job(None)
        .apply(read.into_update(Source::Push), Time::from_millis(NOW))
        .unwrap();
    assert_eq!((pushed.status, pushed.error), (Status::Succeeded, None));
}

#[test]
fn unconfirmed_success_is_recorded_internally() {
    let now = Time::from_millis(NOW);
    let without_outputs = StatusReport::with_status(Status::Succeeded);
    let before = job(None);
    let recorded = before
        .record_unconfirmed_success(&without_outputs, now)
        .unwrap();
    assert_eq!(recorded.internal.success_reported_at, Some(now));
    let document = |job: &Job| serde_json::to_value(job).unwrap();
    assert_eq!(document(&recorded), document(&before));
    assert_eq!(
        recorded.record_unconfirmed_success(&without_outputs, now),
        None
    );
    let running = StatusReport::with_status(Status::Running);
    assert_eq!(job(None).record_unconfirmed_success(&running, now), None);
    let other_task = StatusReport {
        task_id: Some("another".to_owned()),
        ..without_outputs
    };
    let known = apply(
        &job(None),
        StatusReport {
            task_id: Some("one".to_owned()),
            ..running
        },
    );
    assert_eq!(
        known.unwrap().record_unconfirmed_success(&other_task, now),
        None
    );
}

#[test]
fn report_for_another_task_is_ignored() {
    let first_task = StatusReport {
        task_id: Some("1".into()),
        ..StatusReport::with_status(Status::Queued)
    };
    let bound = apply(&job(None), first_task).unwrap();
    let other_task = StatusReport {
        task_id: Some("2".into()),
        ..StatusReport::with_status(Status::Running)
    };
    assert_eq!(apply(&bound, other_task), None);
}

#[test]
fn unknown_submission_is_never_retried() {
    let first = submit(&submitted_by_hub(), JobEvent::SubmissionStarted).unwrap();
    assert_eq!(
        (first.attempt, first.submission_state()),
        (1, SubmissionState::InFlight)
    );
    assert_eq!(submit(&first, JobEvent::SubmissionStarted), None);

    let at = Time::from_millis(NOW + 4_000);
    let retry = JobEvent::RetryScheduled {
        error: failure(FailureKind::RateLimit),
        at,
    };
    let waiting = submit(&first, retry.clone()).unwrap();
    assert_eq!(waiting.submission_state(), SubmissionState::Pending(at));
    assert_eq!(submit(&waiting, retry), None);

    let second = submit(&waiting, JobEvent::SubmissionStarted).unwrap();
    assert_eq!((second.attempt, second.error.clone()), (2, None));
    let lost = JobEvent::SubmissionOutcomeUnknown {
        error: failure(FailureKind::SubmissionUnknown),
    };
    let unknown = submit(&second, lost).unwrap();
    assert_eq!(unknown.submission_state(), SubmissionState::Unknown);
    assert_eq!(submit(&unknown, JobEvent::SubmissionStarted), None);

    let found = apply(&unknown, StatusReport::with_status(Status::Queued)).unwrap();
    assert_eq!(
        (found.error.clone(), found.submission_state()),
        (None, SubmissionState::Done)
    );
    assert_eq!(submit(&found, JobEvent::SubmissionStarted), None);
}

#[test]
fn only_unsubmitted_jobs_can_be_cancelled_directly() {
    let cancel = |job: &Job| {
        job.apply(
            Update {
                source: Source::Api,
                event: JobEvent::CancelledBeforeSubmission,
            },
            Time::from_millis(NOW),
        )
    };
    assert_eq!(
        cancel(&submitted_by_hub()).unwrap().status,
        Status::Cancelled
    );
    let sending = submit(&submitted_by_hub(), JobEvent::SubmissionStarted).unwrap();
    assert_eq!(cancel(&sending), None);
    assert_eq!(
        cancel(&apply(&sending, StatusReport::with_status(Status::Queued)).unwrap()),
        None
    );
    let at_provider = job(None);
    assert_eq!(cancel(&at_provider), None);
    let worker_job = Job {
        provider: None,
        ..at_provider
    };
    assert_eq!(cancel(&worker_job).unwrap().status, Status::Cancelled);
}

#[test]
fn webhook_before_submit_response_makes_the_response_a_no_op() {
    let sending = submit(&submitted_by_hub(), JobEvent::SubmissionStarted).unwrap();
    let early = StatusReport {
        task_id: Some("1".into()),
        ..StatusReport::with_status(Status::Running)
    };
    let running = apply(&sending, early).unwrap();
    let answer = StatusReport {
        task_id: Some("1".into()),
        ..StatusReport::with_status(Status::Queued)
    };
    assert_eq!(submit(&running, JobEvent::Reported(Box::new(answer))), None);
    let at = Time::from_millis(NOW);
    assert_eq!(
        submit(
            &running,
            JobEvent::RetryScheduled {
                error: failure(FailureKind::Technical),
                at
            }
        ),
        None
    );
}

fn any_progress() -> impl Strategy<Value = Option<f64>> {
    proptest::option::of(prop_oneof![
        -10.0..150.0,
        Just(f64::NAN),
        Just(f64::INFINITY)
    ])
}

fn any_report(statuses: Vec<Option<Status>>) -> impl Strategy<Value = StatusReport> {
    let status = proptest::sample::select(statuses);
    let stage = proptest::option::of("[a-c]");
    (status, any_progress(), proptest::option::of(0u32..9), stage).prop_map(
        |(status, progress, queue_position, stage)| StatusReport {
            status,
            progress,
            queue_position,
            stage,
            is_authoritative: true,
            ..StatusReport::default()
        },
    )
}

fn non_terminal_report() -> impl Strategy<Value = StatusReport> {
    any_report(vec![
        None,
        Some(Status::Accepted),
        Some(Status::Queued),
        Some(Status::Running),
    ])
}

fn terminal_report() -> impl Strategy<Value = StatusReport> {
    let ends = vec![
        Some(Status::Succeeded),
        Some(Status::Failed),
        Some(Status::Cancelled),
    ];
    (any_report(ends), "[a-z]{1,4}").prop_map(|(mut report, name)| {
        if report.status == Some(Status::Succeeded) {
            report.outputs = vec![output(&name)];
        }
        report
    })
}

fn any_update() -> impl Strategy<Value = Update> {
    let at = Time::from_millis(NOW);
    let error = failure(FailureKind::Technical);
    let lost = failure(FailureKind::SubmissionUnknown);
    prop_oneof![
        1 => Just(Update { source: Source::Submit, event: JobEvent::SubmissionStarted }),
        1 => Just(Update { source: Source::Submit, event: JobEvent::RetryScheduled { error, at } }),
        1 => Just(Update { source: Source::Submit, event: JobEvent::SubmissionOutcomeUnknown { error: lost } }),
        1 => Just(Update { source: Source::Api, event: JobEvent::CancelledBeforeSubmission }),
        5 => non_terminal_report().prop_map(|report| report.into_update(Source::Webhook)),
        1 => terminal_report().prop_map(|report| report.into_update(Source::Poll)),
    ]
}

fn apply_all(start: &Job, reports: &[StatusReport]) -> Job {
    reports.iter().fold(start.clone(), |job, report| {
        apply(&job, report.clone()).unwrap_or(job)
    })
}

proptest! {
    /// Applies reports with at most one terminal status in two orders, with repetitions.
    #[test]
    fn any_order_and_repetition_of_reports_reaches_the_same_state(
        reports in proptest::collection::vec(non_terminal_report(), 0..8),
        end in proptest::option::of(terminal_report()),
        again in proptest::collection::vec(any::<proptest::sample::Index>(), 0..8),
        seed in any::<u64>(),
    ) {
        let mut in_order = reports;
        in_order.extend(end);
        let mut shuffled = in_order.clone();
        if !in_order.is_empty() {
            shuffled.extend(again.iter().map(|index| index.get(&in_order).clone()));
        }
        let mut state = seed | 1;
        for at in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            shuffled.swap(at, usize::try_from(state >> 33).unwrap() % (at + 1));
        }
        let (first, second) = (apply_all(&job(None), &in_order), apply_all(&job(None), &shuffled));
        prop_assert_eq!(first.status, second.status);
        prop_assert_eq!(first.progress, second.progress);
        prop_assert_eq!(first.outputs, second.outputs);
    }

    #[test]
    fn version_status_and_progress_never_decrease(updates in proptest::collection::vec(any_update(), 0..30)) {
        let mut job = submitted_by_hub();
        for update in updates {
            let Some(next) = job.apply(update, Time::from_millis(NOW + 1)) else { continue };
            prop_assert!(!job.is_final());
            prop_assert_eq!(next.version, job.version + 1);
            prop_assert!(next.attempt >= job.attempt);
            prop_assert!(next.status.rank() >= job.status.rank());
            if let (Some(before), Some(after)) = (job.progress, next.progress) {
                prop_assert!(after >= before);
                prop_assert!((0.0..=100.0).contains(&after));
            }
            prop_assert_eq!(next.is_final(), next.finished_at.is_some());
            job = next;
        }
    }

    #[test]
    fn final_job_ignores_all_events(end in terminal_report(), update in any_update()) {
        let ended = apply(&job(None), end).unwrap();
        prop_assert_eq!(ended.apply(update, Time::from_millis(NOW + 9)), None);
    }

    #[test]
    fn job_document_round_trips_through_json(reports in proptest::collection::vec(non_terminal_report(), 0..4)) {
        let job = apply_all(&job(None), &reports);
        let text = serde_json::to_string(&job).unwrap();
        prop_assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), job);
    }
}
