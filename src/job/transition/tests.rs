//! What the law promises, as properties over any news in any order.

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

fn submitted_here() -> Job {
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

fn told(job: &Job, report: StatusReport) -> Option<Job> {
    job.apply(
        report.into_update(Source::Webhook),
        Time::from_millis(NOW + 1),
    )
}

fn failure(kind: FailureKind) -> Failure {
    Failure::new(kind, "so it is")
}

fn submit(job: &Job, news: JobEvent) -> Option<Job> {
    job.apply(
        Update {
            source: Source::Submit,
            event: news,
        },
        Time::from_millis(NOW + 1),
    )
}

#[test]
fn report_without_changes_returns_none() {
    let running = told(&job(None), StatusReport::with_status(Status::Running)).unwrap();
    assert_eq!(running.version, 2);
    assert_eq!(
        told(&running, StatusReport::with_status(Status::Running)),
        None
    );
    assert_eq!(
        told(&running, StatusReport::with_status(Status::Queued)),
        None
    );
    assert_eq!(told(&running, StatusReport::default()), None);
}

#[test]
fn progress_without_a_status_means_running() {
    let report = StatusReport {
        progress: Some(3.0),
        ..StatusReport::default()
    };
    let running = told(&job(None), report).unwrap();
    assert_eq!(
        (running.status, running.progress),
        (Status::Running, Some(3.0))
    );
    assert!(running.started_at.is_some());
}

#[test]
fn success_without_outputs_requires_confirmation() {
    let bare = StatusReport::with_status(Status::Succeeded);
    assert_eq!(told(&job(None), bare.clone()), None);

    let read = StatusReport {
        is_authoritative: true,
        ..bare
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
    let bare = StatusReport::with_status(Status::Succeeded);
    let before = job(None);
    let expecting = before.record_unconfirmed_success(&bare, now).unwrap();
    assert_eq!(expecting.internal.success_reported_at, Some(now));
    let shown = |job: &Job| serde_json::to_value(job).unwrap();
    assert_eq!(shown(&expecting), shown(&before));
    assert_eq!(expecting.record_unconfirmed_success(&bare, now), None);
    let running = StatusReport::with_status(Status::Running);
    assert_eq!(job(None).record_unconfirmed_success(&running, now), None);
    let others = StatusReport {
        task_id: Some("another".to_owned()),
        ..bare
    };
    let known = told(
        &job(None),
        StatusReport {
            task_id: Some("one".to_owned()),
            ..running
        },
    );
    assert_eq!(
        known.unwrap().record_unconfirmed_success(&others, now),
        None
    );
}

#[test]
fn report_for_another_task_is_ignored() {
    let ours = StatusReport {
        task_id: Some("1".into()),
        ..StatusReport::with_status(Status::Queued)
    };
    let bound = told(&job(None), ours).unwrap();
    let theirs = StatusReport {
        task_id: Some("2".into()),
        ..StatusReport::with_status(Status::Running)
    };
    assert_eq!(told(&bound, theirs), None);
}

#[test]
fn unknown_submission_is_never_retried() {
    let first = submit(&submitted_here(), JobEvent::SubmissionStarted).unwrap();
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

    let found = told(&unknown, StatusReport::with_status(Status::Queued)).unwrap();
    assert_eq!(
        (found.error.clone(), found.submission_state()),
        (None, SubmissionState::Done)
    );
    assert_eq!(submit(&found, JobEvent::SubmissionStarted), None);
}

#[test]
fn only_unsubmitted_jobs_can_be_cancelled_directly() {
    let withdraw = |job: &Job| {
        job.apply(
            Update {
                source: Source::Api,
                event: JobEvent::CancelledBeforeSubmission,
            },
            Time::from_millis(NOW),
        )
    };
    assert_eq!(
        withdraw(&submitted_here()).unwrap().status,
        Status::Cancelled
    );
    let sending = submit(&submitted_here(), JobEvent::SubmissionStarted).unwrap();
    assert_eq!(withdraw(&sending), None);
    assert_eq!(
        withdraw(&told(&sending, StatusReport::with_status(Status::Queued)).unwrap()),
        None
    );
    let at_a_provider = job(None);
    assert_eq!(withdraw(&at_a_provider), None);
    let a_workers_own = Job {
        provider: None,
        ..at_a_provider
    };
    assert_eq!(withdraw(&a_workers_own).unwrap().status, Status::Cancelled);
}

#[test]
fn webhook_before_submit_response_makes_the_response_a_no_op() {
    let sending = submit(&submitted_here(), JobEvent::SubmissionStarted).unwrap();
    let early = StatusReport {
        task_id: Some("1".into()),
        ..StatusReport::with_status(Status::Running)
    };
    let running = told(&sending, early).unwrap();
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

fn on_the_way() -> impl Strategy<Value = StatusReport> {
    any_report(vec![
        None,
        Some(Status::Accepted),
        Some(Status::Queued),
        Some(Status::Running),
    ])
}

fn an_end() -> impl Strategy<Value = StatusReport> {
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

fn any_news() -> impl Strategy<Value = Update> {
    let at = Time::from_millis(NOW);
    let error = failure(FailureKind::Technical);
    let lost = failure(FailureKind::SubmissionUnknown);
    prop_oneof![
        1 => Just(Update { source: Source::Submit, event: JobEvent::SubmissionStarted }),
        1 => Just(Update { source: Source::Submit, event: JobEvent::RetryScheduled { error, at } }),
        1 => Just(Update { source: Source::Submit, event: JobEvent::SubmissionOutcomeUnknown { error: lost } }),
        1 => Just(Update { source: Source::Api, event: JobEvent::CancelledBeforeSubmission }),
        5 => on_the_way().prop_map(|report| report.into_update(Source::Webhook)),
        1 => an_end().prop_map(|report| report.into_update(Source::Poll)),
    ]
}

fn after_all(start: &Job, reports: &[StatusReport]) -> Job {
    reports.iter().fold(start.clone(), |job, report| {
        told(&job, report.clone()).unwrap_or(job)
    })
}

proptest! {
    /// Reports with at most one end: any order and any repetition end alike.
    #[test]
    fn any_order_and_repetition_of_reports_reaches_the_same_state(
        reports in proptest::collection::vec(on_the_way(), 0..8),
        end in proptest::option::of(an_end()),
        again in proptest::collection::vec(any::<proptest::sample::Index>(), 0..8),
        seed in any::<u64>(),
    ) {
        let mut straight = reports;
        straight.extend(end);
        let mut shuffled = straight.clone();
        if !straight.is_empty() {
            shuffled.extend(again.iter().map(|index| index.get(&straight).clone()));
        }
        let mut state = seed | 1;
        for at in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            shuffled.swap(at, usize::try_from(state >> 33).unwrap() % (at + 1));
        }
        let (one, other) = (after_all(&job(None), &straight), after_all(&job(None), &shuffled));
        prop_assert_eq!(one.status, other.status);
        prop_assert_eq!(one.progress, other.progress);
        prop_assert_eq!(one.outputs, other.outputs);
    }

    /// Whatever comes, in whatever order: nothing goes backwards, and an end is the end.
    #[test]
    fn version_status_and_progress_never_decrease(news in proptest::collection::vec(any_news(), 0..30)) {
        let mut job = submitted_here();
        for update in news {
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

    /// A final job absorbs everything.
    #[test]
    fn final_job_ignores_all_events(end in an_end(), news in any_news()) {
        let ended = told(&job(None), end).unwrap();
        prop_assert_eq!(ended.apply(news, Time::from_millis(NOW + 9)), None);
    }

    /// A document read back is the document that was written.
    #[test]
    fn job_document_round_trips_through_json(reports in proptest::collection::vec(on_the_way(), 0..4)) {
        let job = after_all(&job(None), &reports);
        let text = serde_json::to_string(&job).unwrap();
        prop_assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), job);
    }
}
