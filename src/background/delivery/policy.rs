//! Decides what follows from an attempt, for the delivery and for its destination. No I/O.

use std::time::Duration;

use crate::config::DeliveryConfig;
use crate::destinations::Verdict;
use crate::outbox::{Attempt, DeliveryState, DestinationState, Disabled, DisabledReason, Progress};
use crate::time::{Time, exponential_backoff};

/// Number of failed attempts in a row after which a destination is paused.
const PAUSE_AFTER: u32 = 4;

/// Maximum duration of a pause, unless the destination requests a longer one.
const MAX_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Bounds of a delay that a destination requests.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Minimum time between two changes of the state that record only a further success.
const SUCCESS_INTERVAL: Duration = Duration::from_secs(60);

/// How failed attempts are repeated.
#[derive(Clone, Debug)]
pub(super) struct DeliveryPolicy {
    /// Delays before the second and each further attempt.
    retries: Vec<Duration>,
    /// The first pause of a destination.
    pause: Duration,
    disable_after: Duration,
    recheck_after: Duration,
}

/// How many attempts a destination may receive now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// As many as its channel allows.
    Open,
    /// One at a time, which tests the destination.
    Probe,
    /// None until this time.
    PausedUntil(Time),
    /// None until the destination is enabled or rechecked.
    Disabled {
        /// Time of the recheck, if there will be one.
        recheck_at: Option<Time>,
    },
}

/// Returns how many attempts a destination may receive at `now`.
#[must_use]
pub fn admission(state: &DestinationState, now: Time) -> Admission {
    match (&state.disabled, state.paused_until) {
        (Some(disabled), _) if is_recheck_due(disabled, now) => Admission::Probe,
        (Some(disabled), _) => Admission::Disabled {
            recheck_at: disabled.recheck_at,
        },
        (None, Some(until)) if until > now => Admission::PausedUntil(until),
        (None, Some(_)) => Admission::Probe,
        (None, None) => Admission::Open,
    }
}

fn is_recheck_due(disabled: &Disabled, now: Time) -> bool {
    disabled.recheck_at.is_some_and(|at| at <= now)
}

impl DeliveryPolicy {
    pub(super) fn new(settings: &DeliveryConfig) -> Self {
        Self {
            retries: settings.retries.clone(),
            pause: settings.pause,
            disable_after: settings.disable_after,
            recheck_after: settings.recheck_after,
        }
    }

    /// Returns the progress of a delivery after an attempt that ended at `now`. `jitter` is the factor
    /// of the delay.
    pub(super) fn progress_after(
        &self,
        progress: &Progress,
        verdict: &Verdict,
        attempt: Attempt,
        now: Time,
        jitter: f64,
    ) -> Progress {
        let is_manual = matches!(
            progress.state,
            DeliveryState::Waiting {
                is_manual: true,
                ..
            }
        );
        let waiting = |delay: Duration| DeliveryState::Waiting {
            due_at: now + delay,
            is_manual,
        };
        let failed = DeliveryState::Failed { at: now };
        let (state, is_counted) = match verdict {
            Verdict::Delivered { .. } => (DeliveryState::Delivered { at: now }, true),
            Verdict::Rejected { .. } => (failed, true),
            Verdict::Postponed { delay } => return progress.next(waiting(*delay), None),
            Verdict::Failed { .. }
            | Verdict::SourceFailed { .. }
            | Verdict::Misconfigured { .. }
            | Verdict::Gone
                if is_manual =>
            {
                (failed, true)
            }
            Verdict::Failed {
                retry_after: Some(delay),
                ..
            } => (waiting(bounded(*delay)), false),
            Verdict::Failed {
                retry_after: None, ..
            }
            | Verdict::SourceFailed { .. } => {
                match self.retries.get(progress.attempt_count as usize) {
                    Some(delay) => (waiting(delay.mul_f64(jitter)), true),
                    None => (failed, true),
                }
            }
            Verdict::Misconfigured { .. } => (waiting(self.pause.mul_f64(jitter)), false),
            // The destination is disabled, so the delivery is held.
            Verdict::Gone => (waiting(Duration::ZERO), false),
        };
        let mut next = progress.next(state, Some(attempt));
        next.attempt_count += u32::from(is_counted);
        if let Verdict::Delivered { result } = verdict {
            next.result = result.clone();
        }
        next
    }

    /// Returns the state of a destination after an attempt that ended at `now`. The revision stays.
    pub(super) fn state_after(
        &self,
        state: &DestinationState,
        verdict: &Verdict,
        now: Time,
    ) -> DestinationState {
        let disabled = state.disabled.as_ref();
        let is_recheck = disabled.is_some_and(|disabled| is_recheck_due(disabled, now));
        let (failures, error, delay) = match verdict {
            Verdict::Postponed { .. } | Verdict::SourceFailed { .. } => return state.clone(),
            Verdict::Delivered { .. } | Verdict::Rejected { .. } => {
                let is_success = matches!(verdict, Verdict::Delivered { .. });
                let is_recent = |at: Time| now.saturating_duration_since(at) < SUCCESS_INTERVAL;
                let last = state.last_success_at;
                return DestinationState {
                    revision: state.revision,
                    disabled: state.disabled.clone().filter(|_| !is_recheck),
                    last_success_at: if is_success && !last.is_some_and(is_recent) {
                        Some(now)
                    } else {
                        last
                    },
                    ..DestinationState::default()
                };
            }
            Verdict::Failed { error, retry_after } => {
                let failures = state.consecutive_failures.saturating_add(1);
                (failures, error.as_str(), retry_after.map(bounded))
            }
            // Further attempts would fail for the same reason.
            Verdict::Misconfigured { error } => {
                let failures = state.consecutive_failures.saturating_add(1);
                (failures.max(PAUSE_AFTER), error.as_str(), None)
            }
            Verdict::Gone => {
                let failures = state.consecutive_failures.saturating_add(1);
                (failures, "status 410", None)
            }
        };
        let failing_since = state.failing_since.unwrap_or(now);
        let pause = failures.checked_sub(PAUSE_AFTER).map(|beyond| {
            let pause = exponential_backoff(self.pause, MAX_PAUSE, beyond + 1);
            pause.max(delay.unwrap_or_default())
        });
        let disable = |reason, recheck_at| {
            Some(Disabled {
                at: now,
                reason,
                recheck_at,
            })
        };
        let disabled = match (&state.disabled, verdict) {
            (Some(disabled), _) => Some(Disabled {
                recheck_at: disabled.recheck_at.filter(|_| !is_recheck),
                ..disabled.clone()
            }),
            (None, Verdict::Gone) => disable(DisabledReason::Gone, Some(now + self.recheck_after)),
            (None, _) if now.saturating_duration_since(failing_since) >= self.disable_after => {
                disable(DisabledReason::Failing, None)
            }
            (None, _) => None,
        };
        DestinationState {
            revision: state.revision,
            consecutive_failures: failures,
            failing_since: Some(failing_since),
            paused_until: pause.map(|pause| now + pause),
            disabled,
            last_success_at: state.last_success_at,
            last_error: Some(error.to_owned()),
        }
    }
}

fn bounded(delay: Duration) -> Duration {
    delay.clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER)
}

#[cfg(test)]
mod tests;
