//! Settling: what a job's end makes of the sum that was set aside for it.
//!
//! Invariant: an end settles in the commit that makes it, so once; and what may have been spent is
//! never given back.

use crate::job::{Cost, Job, Reservation, Source, Status, SubmissionState};
use crate::store::BudgetEntry;

/// What a charge comes to, in millionths of its unit.
pub(super) struct Settlement {
    /// What was spent.
    pub spent: i64,
    /// What is to be booked beside what was set aside.
    pub entries: Vec<BudgetEntry>,
}

/// What the end `next` makes of what was set aside; none where nothing was, or it is no end.
pub(super) fn settle(before: &Job, next: &Job) -> Option<Settlement> {
    let charge = next
        .internal
        .reservation
        .as_ref()
        .filter(|_| next.is_final())?;
    let spent = spent(before, next, charge);
    let entries = charge.windows.iter().map(|account| BudgetEntry {
        window: account.name.clone(),
        amount_micros: spent.saturating_sub(charge.amount_micros),
        limit_micros: None,
        window_ends_at: account.expires_at,
    });
    Some(Settlement {
        spent,
        entries: entries.filter(|entry| entry.amount_micros != 0).collect(),
    })
}

/// A cost that was told counts, or what was set aside where it can't be compared. Else a success
/// costs what was set aside, and so does a job that the clock ended while its provider may have had
/// it; a provider that says a job has failed or is cancelled charges nothing unless it says so.
fn spent(before: &Job, next: &Job, charge: &Reservation) -> i64 {
    if let Some(cost) = &next.cost {
        return settled_amount(cost, charge);
    }
    let may_be_there = match before.submission_state() {
        SubmissionState::Pending(_) => false,
        SubmissionState::InFlight | SubmissionState::Unknown | SubmissionState::Done => true,
    };
    match next.status {
        Status::Succeeded => charge.amount_micros,
        Status::Failed if next.source == Source::Deadline && may_be_there => charge.amount_micros,
        Status::Failed
        | Status::Cancelled
        | Status::Accepted
        | Status::Queued
        | Status::Running => 0,
    }
}

fn settled_amount(cost: &Cost, charge: &Reservation) -> i64 {
    if cost.amount == 0.0 {
        return 0;
    }
    if !cost.unit.eq_ignore_ascii_case(&charge.unit) || !cost.amount.is_finite() {
        return charge.amount_micros;
    }
    Reservation::to_micros(cost.amount)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Map;

    use super::*;
    use crate::job::{
        BudgetWindow, Failure, FailureKind, InternalState, JobEvent, NewJob, StatusReport, Update,
        VideoRequest,
    };
    use crate::time::Time;

    const NOW: i64 = 1_795_428_000_000;

    fn charged() -> Job {
        let new = NewJob {
            owner: "ada".into(),
            provider: Some("kling".into()),
            provider_task_id: None,
            model: None,
            metadata: Map::new(),
            request: Some(VideoRequest::default()),
            deadline: std::time::Duration::from_secs(60),
        };
        let mut job = Job::new(new, Time::from_millis(NOW));
        job.internal = Arc::new(InternalState {
            reservation: Some(Reservation {
                amount_micros: 700_000,
                unit: "usd".into(),
                windows: vec![BudgetWindow {
                    name: "day".into(),
                    expires_at: Time::from_millis(NOW + 1),
                }],
            }),
            ..InternalState::clone(&job.internal)
        });
        job
    }

    fn then(job: &Job, news: JobEvent, source: Source) -> Job {
        let update = Update {
            source,
            event: news,
        };
        job.apply(update, Time::from_millis(NOW)).unwrap()
    }

    fn report(job: &Job, report: StatusReport, source: Source) -> Job {
        then(job, JobEvent::Reported(Box::new(report)), source)
    }

    fn cost(status: Status, amount: f64, unit: &str) -> StatusReport {
        StatusReport {
            is_authoritative: true,
            cost: Some(Cost {
                amount,
                unit: unit.into(),
            }),
            ..StatusReport::with_status(status)
        }
    }

    fn spent_by(before: &Job, next: &Job) -> i64 {
        let settled = settle(before, next).unwrap();
        let booked: i64 = settled
            .entries
            .iter()
            .map(|entry| entry.amount_micros)
            .sum();
        assert_eq!(booked, settled.spent - 700_000);
        settled.spent
    }

    #[test]
    fn reported_cost_is_used_when_units_match() {
        let sending = then(&charged(), JobEvent::SubmissionStarted, Source::Submit);
        for (status, amount, unit, expected) in [
            (Status::Succeeded, 0.35, "USD", 350_000),
            (Status::Succeeded, 1.4, "usd", 1_400_000),
            (Status::Succeeded, 35.0, "credits", 700_000),
            (Status::Failed, 0.1, "usd", 100_000),
            (Status::Cancelled, 12.0, "credits", 700_000),
            (Status::Cancelled, 0.0, "credits", 0),
        ] {
            let end = report(&sending, cost(status, amount, unit), Source::Poll);
            assert_eq!(
                spent_by(&sending, &end),
                expected,
                "{status:?} {amount} {unit}"
            );
        }
    }

    #[test]
    fn reservation_is_kept_only_if_it_may_have_been_spent() {
        let waiting = charged();
        let sending = then(&waiting, JobEvent::SubmissionStarted, Source::Submit);
        let lost = |kind| Failure::new(kind, "no answer");
        let error = lost(FailureKind::SubmissionUnknown);
        let unknown = then(
            &sending,
            JobEvent::SubmissionOutcomeUnknown { error },
            Source::Submit,
        );
        let running = report(
            &sending,
            StatusReport::with_status(Status::Running),
            Source::Webhook,
        );
        let success = StatusReport {
            is_authoritative: true,
            ..StatusReport::with_status(Status::Succeeded)
        };
        let timeout = StatusReport::failed(lost(FailureKind::Timeout));
        for (before, end, source, expected) in [
            (&running, &success, Source::Webhook, 700_000),
            (
                &running,
                &StatusReport::with_status(Status::Failed),
                Source::Poll,
                0,
            ),
            (
                &running,
                &StatusReport::with_status(Status::Cancelled),
                Source::Poll,
                0,
            ),
            (&sending, &timeout, Source::Submit, 0),
            (&waiting, &timeout, Source::Deadline, 0),
            (&unknown, &timeout, Source::Deadline, 700_000),
            (
                &unknown,
                &StatusReport::with_status(Status::Failed),
                Source::Poll,
                0,
            ),
            (&running, &timeout, Source::Deadline, 700_000),
        ] {
            let next = report(before, end.clone(), source);
            assert_eq!(spent_by(before, &next), expected, "{source:?} {end:?}");
        }
        let withdrawn = then(&waiting, JobEvent::CancelledBeforeSubmission, Source::Api);
        assert_eq!(spent_by(&waiting, &withdrawn), 0);
        assert!(settle(&sending, &running).is_none());
    }
}
