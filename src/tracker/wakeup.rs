//! Notifications that wake the submitter and the watchdog.
//!
//! Invariant: a worker is notified of every job that becomes due before its next regular check.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::job::Job;
use crate::store::Schedule;
use crate::time::Time;

/// Maximum time that the submitter and the watchdog sleep between two checks of their queues.
pub const MAX_IDLE: Duration = Duration::from_secs(1);

/// Wakes the loops that work through the schedules of jobs.
#[derive(Clone, Debug, Default)]
pub struct WorkerWakeups {
    /// Notified when a submission may be due or a concurrency slot was released.
    pub submitter: Arc<Notify>,
    /// Notified when a poll may be due.
    pub watchdog: Arc<Notify>,
}

impl WorkerWakeups {
    /// Notifies the workers after `job` was committed with `schedule`.
    pub(super) fn notify_for(&self, schedule: &Schedule, job: &Job) {
        if schedule.submit_at.is_some() || job.is_final() {
            self.submitter.notify_one();
        }
        // A later poll is found by the watchdog's regular check.
        let next_check = Time::now() + MAX_IDLE;
        if schedule.poll_at.is_some_and(|at| at <= next_check) {
            self.watchdog.notify_one();
        }
    }
}
