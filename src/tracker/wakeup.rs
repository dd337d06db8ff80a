//! Notifications that wake the submitter, the watchdog and the deliveries to destinations.
//!
//! Invariant: a worker is notified of every job or delivery that becomes due before its next regular
//! check.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::job::Job;
use crate::outbox::NewDelivery;
use crate::store::Schedule;
use crate::time::Time;

/// Maximum time that the submitter and the watchdog sleep between two checks of their queues.
pub const MAX_IDLE: Duration = Duration::from_secs(1);

/// Wakes the loops that work through the schedules of jobs and through the outbox.
#[derive(Clone, Debug, Default)]
pub struct WorkerWakeups {
    /// Notified when a submission may be due or a concurrency slot was released.
    pub submitter: Arc<Notify>,
    /// Notified when a poll may be due.
    pub watchdog: Arc<Notify>,
    /// Notified when deliveries were added to the outbox.
    pub deliveries: DeliveryWakeups,
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

/// Wakes the loops of the destinations, each of them only for its own deliveries.
#[derive(Clone, Debug, Default)]
pub struct DeliveryWakeups {
    by_destination: Arc<Mutex<HashMap<String, Arc<Notify>>>>,
    /// Notified when deliveries were added to a destination for which [`Self::of`] was never called.
    pub unknown: Arc<Notify>,
}

impl DeliveryWakeups {
    /// Returns the notification of new deliveries to a destination. A single loop may wait for it.
    #[must_use]
    pub fn of(&self, destination: &str) -> Arc<Notify> {
        Arc::clone(self.lock().entry(destination.to_owned()).or_default())
    }

    /// Notifies the loops after `deliveries` were added to the outbox.
    pub fn notify_for(&self, deliveries: &[NewDelivery]) {
        if deliveries.is_empty() {
            return;
        }
        let notifies = self.lock();
        for delivery in deliveries {
            let notify = notifies.get(&delivery.destination);
            notify.unwrap_or(&self.unknown).notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Notify>>> {
        self.by_destination
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
