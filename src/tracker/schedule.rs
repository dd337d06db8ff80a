//! When a job wants attention next, and whose.
//!
//! Invariant: every job without an end is looked at by its deadline at the latest; and it goes by
//! the job and its provider alone, so whoever writes a job plans it alike.

use std::time::Duration;

use crate::job::{Job, Source, SubmissionState};
use crate::provider::Provider;
use crate::store::Schedule;
use crate::time::{Time, deterministic_jitter};

/// How long a try at submitting may be silent before it is taken for lost: the time a provider has
/// to answer, and some.
const SUBMISSION_TIMEOUT: Duration = Duration::from_secs(40);

/// When a job wants attention next.
pub(super) fn schedule_for(provider: Option<&Provider>, job: &Job, now: Time) -> Schedule {
    if job.is_final() {
        return Schedule::default();
    }
    let every = provider.map_or(SUBMISSION_TIMEOUT, |provider| provider.cadence().poll_every);
    let next_look = provider.and_then(|provider| next_poll_at(provider, job, now));
    let patient = provider.is_some_and(Provider::is_heard);
    let by_deadline =
        |at: Option<Time>| Some(at.map_or(job.deadline_at, |at| at.min(job.deadline_at)));
    match job.submission_state() {
        SubmissionState::Pending(at) => Schedule {
            submit_at: Some(at),
            poll_at: by_deadline(None),
            poll_interval: every,
            poll_backoff: patient,
            holds_slot: false,
        },
        SubmissionState::InFlight => Schedule {
            submit_at: None,
            poll_at: Some(now + SUBMISSION_TIMEOUT),
            poll_interval: every,
            poll_backoff: patient,
            holds_slot: true,
        },
        // Holds no place: the provider may well not have it, and its deadline can be far.
        SubmissionState::Unknown => Schedule {
            submit_at: None,
            poll_at: by_deadline(next_look),
            poll_interval: every,
            poll_backoff: false,
            holds_slot: false,
        },
        SubmissionState::Done => Schedule {
            submit_at: None,
            poll_at: by_deadline(next_look),
            poll_interval: every,
            poll_backoff: patient,
            holds_slot: job.internal.request.is_some(),
        },
    }
}

/// When to ask the provider next, going by who spoke last.
fn next_poll_at(provider: &Provider, job: &Job, now: Time) -> Option<Time> {
    let cadence = provider.cadence();
    let after = cadence.poll_after.filter(|_| provider.can_query(job))?;
    let is_unknown = job.submission_state() == SubmissionState::Unknown;
    let is_being_asked = is_unknown || job.source == Source::Poll && !provider.is_heard();
    let span = if is_being_asked {
        cadence.poll_every
    } else {
        after
    };
    Some(now + deterministic_jitter(span, job.id.as_str()))
}
