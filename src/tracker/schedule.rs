//! The schedule of a job: its next submission attempt and its next poll.
//!
//! Invariants: every unfinished job is checked at its deadline at the latest. The schedule depends
//! only on the job and its provider, so every writer computes the same one.

use std::time::Duration;

use crate::job::{Job, Source, SubmissionState};
use crate::provider::Provider;
use crate::store::Schedule;
use crate::time::{Time, deterministic_jitter};

/// Time after which the response to a submission counts as lost. It exceeds the request timeout.
const SUBMISSION_TIMEOUT: Duration = Duration::from_secs(40);

/// Returns the schedule of `job` after a change at `now`.
pub(super) fn schedule_for(provider: Option<&Provider>, job: &Job, now: Time) -> Schedule {
    if job.is_final() {
        return Schedule::default();
    }
    let poll_interval = provider.map_or(SUBMISSION_TIMEOUT, |provider| {
        provider.poll_policy().poll_every
    });
    let next_poll = provider.and_then(|provider| next_poll_at(provider, job, now));
    let poll_backoff = provider.is_some_and(Provider::receives_webhooks);
    let by_deadline =
        |at: Option<Time>| Some(at.map_or(job.deadline_at, |at| at.min(job.deadline_at)));
    match job.submission_state() {
        SubmissionState::Pending(at) => Schedule {
            submit_at: Some(at),
            poll_at: by_deadline(None),
            poll_interval,
            poll_backoff,
            holds_slot: false,
        },
        SubmissionState::InFlight => Schedule {
            submit_at: None,
            poll_at: Some(now + SUBMISSION_TIMEOUT),
            poll_interval,
            poll_backoff,
            holds_slot: true,
        },
        // Holds no slot: the provider may not have the job, and the deadline can be far away.
        SubmissionState::Unknown => Schedule {
            submit_at: None,
            poll_at: by_deadline(next_poll),
            poll_interval,
            poll_backoff: false,
            holds_slot: false,
        },
        SubmissionState::Done => Schedule {
            submit_at: None,
            poll_at: by_deadline(next_poll),
            poll_interval,
            poll_backoff,
            holds_slot: job.internal.request.is_some(),
        },
    }
}

/// Returns the time of the next poll, which depends on the source of the last update.
fn next_poll_at(provider: &Provider, job: &Job, now: Time) -> Option<Time> {
    let cadence = provider.poll_policy();
    let after = cadence.poll_after.filter(|_| provider.can_query(job))?;
    let is_unknown = job.submission_state() == SubmissionState::Unknown;
    let is_polled = is_unknown || job.source == Source::Poll && !provider.receives_webhooks();
    let delay = if is_polled { cadence.poll_every } else { after };
    Some(now + deterministic_jitter(delay, job.id.as_str()))
}
