//! Who has to look at their agenda because of a change.
//!
//! Invariant: nobody sleeps through what is due; and nobody is woken for what he finds in time by himself.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::job::Job;
use crate::store::Schedule;
use crate::time::Time;

/// How long the watchdog goes without a look at what is due, at most.
pub const MAX_IDLE: Duration = Duration::from_secs(1);

/// Wakes those who work through the agendas.
#[derive(Clone, Debug, Default)]
pub struct WorkerWakeups {
    /// A job may be due for submitting, or a provider has a free place again.
    pub submitter: Arc<Notify>,
    /// A job may be due for a look.
    pub watchdog: Arc<Notify>,
}

impl WorkerWakeups {
    /// A job was committed with this agenda.
    pub(super) fn notify_for(&self, agenda: &Schedule, job: &Job) {
        if agenda.submit_at.is_some() || job.is_final() {
            self.submitter.notify_one();
        }
        // With every other update of every job the watchdog would read for nothing.
        let after_a_nap = Time::now() + MAX_IDLE;
        if agenda.poll_at.is_some_and(|at| at <= after_a_nap) {
            self.watchdog.notify_one();
        }
    }
}
