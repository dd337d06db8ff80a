//! The law: whether news changes a job.
//!
//! Invariant: within an attempt the status's rank and the known progress never fall, a final job
//! never changes, and where at most one end is told, the order and the repetition of reports change
//! neither status nor progress nor outputs.

use std::sync::Arc;

use super::{Failure, FailureKind, Job, News, Report, Source, Status, Submission, Ticket, Update};
use crate::time::Time;

impl Job {
    /// The job as the update leaves it, one version on; `None` where the update is no news.
    #[must_use]
    pub fn apply(&self, update: Update, now: Time) -> Option<Self> {
        if self.is_final() {
            return None;
        }
        let mut next = self.clone();
        match update.news {
            News::Sending => next.begin_try()?,
            News::Retry { error, at } => next.wait_for_try(error, at)?,
            News::Lost { error } => next.lose_answer(error)?,
            News::Withdrawn => next.withdraw()?,
            News::Report(report) => next.hear(*report, update.source, now)?,
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

    /// The job as one whose success has been told and is yet to be read; `None` where that was known.
    /// Nothing that is shown changes by it, and so the version does not either.
    #[must_use]
    pub fn expect_success(&self, report: &Report, now: Time) -> Option<Self> {
        let is_known = self.ticket.success_told_at.is_some();
        if self.is_final() || is_known || !report.wants_a_look() || self.is_another(report) {
            return None;
        }
        let mut next = self.clone();
        next.ticket = Arc::new(Ticket {
            success_told_at: Some(now),
            ..Ticket::clone(&self.ticket)
        });
        Some(next)
    }

    fn is_another(&self, report: &Report) -> bool {
        match (&self.provider_task_id, &report.task_id) {
            (Some(ours), Some(theirs)) => ours != theirs,
            (None, _) | (_, None) => false,
        }
    }

    fn begin_try(&mut self) -> Option<()> {
        let Submission::Waiting(_) = self.submission() else {
            return None;
        };
        self.attempt += 1;
        self.next_attempt_at = None;
        self.error = None;
        Some(())
    }

    fn wait_for_try(&mut self, error: Failure, at: Time) -> Option<()> {
        let Submission::Sending = self.submission() else {
            return None;
        };
        self.error = Some(error);
        self.next_attempt_at = Some(at);
        Some(())
    }

    fn lose_answer(&mut self, error: Failure) -> Option<()> {
        let Submission::Sending = self.submission() else {
            return None;
        };
        self.error = Some(error);
        Some(())
    }

    fn withdraw(&mut self) -> Option<()> {
        match (self.submission(), &self.provider) {
            (Submission::Waiting(_), _) | (Submission::Over, None) => {}
            (Submission::Sending | Submission::Unknown | Submission::Over, _) => return None,
        }
        self.status = Status::Cancelled;
        self.progress = None;
        self.error = None;
        self.next_attempt_at = None;
        Some(())
    }

    fn hear(&mut self, report: Report, source: Source, now: Time) -> Option<()> {
        if self.is_another(&report) || report.wants_a_look() {
            return None;
        }
        let implied = report.progress.map_or(self.status, |_| Status::Running);
        let told = report.status.unwrap_or(implied);
        if report.task_id.is_some() && self.provider_task_id.is_none() {
            self.provider_task_id = report.task_id;
        }
        if !report.handle.is_null() && report.handle != self.ticket.handle {
            self.ticket = Arc::new(Ticket {
                handle: report.handle,
                ..Ticket::clone(&self.ticket)
            });
        }
        if let Some(percent) = report.progress.filter(|percent| percent.is_finite()) {
            let percent = percent.clamp(0.0, 100.0);
            self.progress = Some(self.progress.map_or(percent, |known| known.max(percent)));
        }
        if told.rank() < self.status.rank() {
            return Some(());
        }
        if told.rank() > self.status.rank() {
            self.queue_position = None;
            self.stage = None;
            self.eta_seconds = None;
        }
        self.status = told;
        self.cost = report.cost.or(self.cost.take());
        if !report.moderation.is_empty() {
            self.moderation = report.moderation;
        }
        self.queue_position = report.queue_position.or(self.queue_position);
        self.stage = report.stage.or(self.stage.take());
        self.eta_seconds = report.eta_seconds.or(self.eta_seconds);
        if told != Status::Accepted {
            self.error = None;
            self.next_attempt_at = None;
        }
        match told {
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
                if !report.sources.is_empty() {
                    self.ticket = Arc::new(Ticket {
                        sources: report.sources,
                        ..Ticket::clone(&self.ticket)
                    });
                }
            }
            Status::Failed => {
                self.progress = None;
                let unexplained = || Failure::new(FailureKind::Technical, "no reason was given");
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
