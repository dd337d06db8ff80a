//! The transition rules of a job.
//!
//! Invariants: within an attempt, status rank and progress never decrease. A final job never
//! changes. If at most one terminal status is reported, then status, progress and outputs do not
//! depend on the order of the reports or on their repetition.

use std::sync::Arc;

use super::{
    Failure, FailureKind, InternalState, Job, JobEvent, MAX_TASK_ID_BYTES, Source, Status,
    StatusReport, SubmissionState, Update,
};
use crate::time::Time;

impl Job {
    /// Applies `update` and returns the next version, or `None` if nothing changes.
    #[must_use]
    pub fn apply(&self, update: Update, now: Time) -> Option<Self> {
        if self.is_final() {
            return None;
        }
        let update = update.bounded();
        let mut next = self.clone();
        match update.event {
            JobEvent::SubmissionStarted => next.start_attempt()?,
            JobEvent::Postponed { at } => next.postpone(at)?,
            JobEvent::RetryScheduled { error, at } => next.schedule_retry(error, at)?,
            JobEvent::SubmissionOutcomeUnknown { error } => next.mark_submission_unknown(error)?,
            JobEvent::CancelledBeforeSubmission => next.cancel_unsubmitted()?,
            JobEvent::Reported(report) => next.apply_report(*report, update.source, now)?,
        }
        if next == *self {
            return None;
        }
        next.version += 1;
        next.source = update.source;
        next.updated_at = now;
        if next.is_final() {
            next.finished_at = Some(now);
        }
        Some(next)
    }

    /// Records in the internal state that a success was reported and awaits confirmation by a poll.
    ///
    /// The document and its version do not change. Returns `None` if this is already recorded or
    /// does not apply.
    #[must_use]
    pub fn record_unconfirmed_success(&self, report: &StatusReport, now: Time) -> Option<Self> {
        if self.is_final()
            || self.internal.success_reported_at.is_some()
            || !report.needs_confirmation()
            || self.is_about_other_task(report)
        {
            return None;
        }
        let mut next = self.clone();
        next.internal = Arc::new(InternalState {
            success_reported_at: Some(now),
            ..InternalState::clone(&self.internal)
        });
        Some(next)
    }

    fn is_about_other_task(&self, report: &StatusReport) -> bool {
        match (&self.provider_task_id, &report.task_id) {
            (Some(known), Some(reported)) => known != reported,
            (None, _) | (_, None) => false,
        }
    }

    fn start_attempt(&mut self) -> Option<()> {
        let SubmissionState::Pending(_) = self.submission_state() else {
            return None;
        };
        self.attempt += 1;
        self.next_attempt_at = None;
        self.error = None;
        Some(())
    }

    fn postpone(&mut self, at: Time) -> Option<()> {
        let SubmissionState::Pending(due) = self.submission_state() else {
            return None;
        };
        self.next_attempt_at = Some(at.max(due));
        Some(())
    }

    fn schedule_retry(&mut self, error: Failure, at: Time) -> Option<()> {
        let SubmissionState::InFlight = self.submission_state() else {
            return None;
        };
        self.error = Some(error);
        self.next_attempt_at = Some(at);
        Some(())
    }

    fn mark_submission_unknown(&mut self, error: Failure) -> Option<()> {
        let SubmissionState::InFlight = self.submission_state() else {
            return None;
        };
        self.error = Some(error);
        Some(())
    }

    fn cancel_unsubmitted(&mut self) -> Option<()> {
        match (self.submission_state(), &self.provider) {
            (SubmissionState::Pending(_), _) | (SubmissionState::Done, None) => {}
            (SubmissionState::InFlight | SubmissionState::Unknown | SubmissionState::Done, _) => {
                return None;
            }
        }
        self.status = Status::Cancelled;
        self.progress = None;
        self.error = None;
        self.next_attempt_at = None;
        Some(())
    }

    fn apply_report(&mut self, report: StatusReport, source: Source, now: Time) -> Option<()> {
        let task_id = report.task_id.as_ref();
        if task_id.is_some_and(|id| id.len() > MAX_TASK_ID_BYTES)
            || self.is_about_other_task(&report)
            || report.needs_confirmation()
        {
            return None;
        }
        let implied = report.progress.map_or(self.status, |_| Status::Running);
        let status = report.status.unwrap_or(implied);
        if report.task_id.is_some() && self.provider_task_id.is_none() {
            self.provider_task_id = report.task_id;
        }
        if !report.handle.is_null() && report.handle != self.internal.handle {
            self.internal = Arc::new(InternalState {
                handle: report.handle,
                ..InternalState::clone(&self.internal)
            });
        }
        if let Some(percent) = report.progress.filter(|percent| percent.is_finite()) {
            let percent = percent.clamp(0.0, 100.0);
            self.progress = Some(self.progress.map_or(percent, |known| known.max(percent)));
        }
        if status.rank() < self.status.rank() {
            return Some(());
        }
        if status.rank() > self.status.rank() {
            self.queue_position = None;
            self.stage = None;
            self.eta_seconds = None;
        }
        self.status = status;
        self.cost = report.cost.or(self.cost.take());
        if !report.moderation.is_empty() {
            self.moderation = report.moderation;
        }
        self.queue_position = report.queue_position.or(self.queue_position);
        self.stage = report.stage.or(self.stage.take());
        self.eta_seconds = report.eta_seconds.or(self.eta_seconds);
        if status != Status::Accepted {
            self.error = None;
            self.next_attempt_at = None;
        }
        match status {
            Status::Accepted | Status::Queued => {}
            Status::Running => self.started_at = self.started_at.or(Some(now)),
            Status::Succeeded => {
                self.progress = Some(100.0);
                let expired = report.outputs.is_empty() && source == Source::Poll;
                self.error = expired.then(|| {
                    let message = "the provider no longer has the outputs";
                    Failure::new(FailureKind::ResultExpired, message)
                });
                self.outputs = report.outputs;
                if !report.output_sources.is_empty() {
                    self.internal = Arc::new(InternalState {
                        output_sources: report.output_sources,
                        ..InternalState::clone(&self.internal)
                    });
                }
            }
            Status::Failed => {
                self.progress = None;
                let unexplained =
                    || Failure::new(FailureKind::Technical, "the provider reported no reason");
                self.error = Some(report.error.unwrap_or_else(unexplained));
            }
            Status::Cancelled => {
                self.progress = None;
                self.error = report.error;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests;
