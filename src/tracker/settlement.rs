//! Settlement of the budget that was reserved for a job.
//!
//! Invariants: the commit that finishes a job settles its reservation, so it is settled exactly
//! once. An amount that the provider may have charged is never released.

use crate::job::{Cost, Job, Reservation, Source, Status, SubmissionState};
use crate::store::BudgetEntry;

/// The final cost of a job.
pub(super) struct Settlement {
    /// Amount spent, in millionths of the reservation's unit.
    pub spent_micros: i64,
    /// Entries that correct the reservation to the amount spent.
    pub entries: Vec<BudgetEntry>,
}

/// Returns the settlement for the transition from `before` to `next`, or `None` if `next` is not
/// final or has no reservation.
pub(super) fn settle(before: &Job, next: &Job) -> Option<Settlement> {
    let reservation = next
        .internal
        .reservation
        .as_ref()
        .filter(|_| next.is_final())?;
    let spent_micros = spent_micros(before, next, reservation);
    let correction = spent_micros.saturating_sub(reservation.amount_micros);
    let entries = reservation.windows.iter().map(|window| BudgetEntry {
        window: window.name.clone(),
        amount: correction,
        limit: None,
        earlier_windows: Vec::new(),
        window_ends_at: window.expires_at,
    });
    Some(Settlement {
        spent_micros,
        entries: entries.filter(|_| correction != 0).collect(),
    })
}

/// Returns the budget entries that refund the queue charges of a job. Returns none unless the
/// transition from `before` to `next` starts the first attempt, or ends the job before it.
pub(super) fn leave_queue(before: &Job, next: &Job) -> Vec<BudgetEntry> {
    let leaves = before.attempt == 0 && (next.attempt > 0 || next.is_final());
    let charges = before.internal.queue_charges.iter().filter(|_| leaves);
    charges
        .map(|charge| BudgetEntry {
            window: charge.window.name.clone(),
            amount: -charge.amount,
            limit: None,
            earlier_windows: Vec::new(),
            window_ends_at: charge.window.expires_at,
        })
        .collect()
}

/// Returns the amount spent on a finished job.
///
/// A reported cost takes precedence. Without one, a success costs the reserved amount, and so does
/// a timeout of a job that the provider may have. A failure or cancellation that the provider
/// reports costs nothing.
fn spent_micros(before: &Job, next: &Job, reservation: &Reservation) -> i64 {
    if let Some(cost) = &next.cost {
        return settled_amount(cost, reservation);
    }
    let provider_may_have_it = match before.submission_state() {
        SubmissionState::Pending(_) => false,
        SubmissionState::InFlight | SubmissionState::Unknown | SubmissionState::Done => true,
    };
    match next.status {
        Status::Succeeded => reservation.amount_micros,
        Status::Failed if next.source == Source::Deadline && provider_may_have_it => {
            reservation.amount_micros
        }
        Status::Failed
        | Status::Cancelled
        | Status::Accepted
        | Status::Queued
        | Status::Running => 0,
    }
}

/// Converts a reported cost. A cost in another unit cannot be compared and counts as the reserved
/// amount.
fn settled_amount(cost: &Cost, reservation: &Reservation) -> i64 {
    if cost.amount == 0.0 {
        return 0;
    }
    if !cost.unit.eq_ignore_ascii_case(&reservation.unit) || !cost.amount.is_finite() {
        return reservation.amount_micros;
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

    fn job_with_reservation() -> Job {
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

    fn apply(job: &Job, event: JobEvent, source: Source) -> Job {
        let update = Update { source, event };
        job.apply(update, Time::from_millis(NOW)).unwrap()
    }

    fn report(job: &Job, report: StatusReport, source: Source) -> Job {
        apply(job, JobEvent::Reported(Box::new(report)), source)
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

    fn settled_micros(before: &Job, next: &Job) -> i64 {
        let settlement = settle(before, next).unwrap();
        let corrected: i64 = settlement.entries.iter().map(|entry| entry.amount).sum();
        assert_eq!(corrected, settlement.spent_micros - 700_000);
        settlement.spent_micros
    }

    #[test]
    fn reported_cost_is_used_when_units_match() {
        let in_flight = apply(
            &job_with_reservation(),
            JobEvent::SubmissionStarted,
            Source::Submit,
        );
        for (status, amount, unit, expected) in [
            (Status::Succeeded, 0.35, "USD", 350_000),
            (Status::Succeeded, 1.4, "usd", 1_400_000),
            (Status::Succeeded, 35.0, "credits", 700_000),
            (Status::Failed, 0.1, "usd", 100_000),
            (Status::Cancelled, 12.0, "credits", 700_000),
            (Status::Cancelled, 0.0, "credits", 0),
        ] {
            let end = report(&in_flight, cost(status, amount, unit), Source::Poll);
            assert_eq!(
                settled_micros(&in_flight, &end),
                expected,
                "{status:?} {amount} {unit}"
            );
        }
    }

    #[test]
    fn reservation_is_kept_only_if_it_may_have_been_spent() {
        let pending = job_with_reservation();
        let in_flight = apply(&pending, JobEvent::SubmissionStarted, Source::Submit);
        let failure = |kind| Failure::new(kind, "no answer");
        let error = failure(FailureKind::SubmissionUnknown);
        let unknown = apply(
            &in_flight,
            JobEvent::SubmissionOutcomeUnknown { error },
            Source::Submit,
        );
        let running = report(
            &in_flight,
            StatusReport::with_status(Status::Running),
            Source::Webhook,
        );
        let success = StatusReport {
            is_authoritative: true,
            ..StatusReport::with_status(Status::Succeeded)
        };
        let timeout = StatusReport::failed(failure(FailureKind::Timeout));
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
            (&in_flight, &timeout, Source::Submit, 0),
            (&pending, &timeout, Source::Deadline, 0),
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
            assert_eq!(
                settled_micros(before, &next),
                expected,
                "{source:?} {end:?}"
            );
        }
        let cancelled = apply(&pending, JobEvent::CancelledBeforeSubmission, Source::Api);
        assert_eq!(settled_micros(&pending, &cancelled), 0);
        assert!(settle(&in_flight, &running).is_none());
    }
}
