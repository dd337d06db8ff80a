//! Due times of updates: an open schedule that does not wait for responses.
//!
//! Update `n` is due at `start + n / rate`, whether or not earlier updates have received a response. Latencies are
//! measured from the due time. A hub that stalls therefore cannot reduce the measured load (coordinated omission).
//!
//! A document identifies its update, so that a receiver can look up the due time. The number of the update is in
//! `stage`, or encoded in `progress` if the provider definition has no stage. With a stage, each update changes the
//! job even if two updates of a job arrive in reverse order.
//!
//! Invariant: all updates of a run are distinguishable, and a later update has a higher progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// Upper bound (exclusive) of the progress of scheduled updates.
const MAX_SCHEDULED_PROGRESS: f64 = 90.0;

/// Progress of the update that every job receives during a reconnect storm.
pub(super) const STORM_PROGRESS: f64 = 95.0;

/// Prefix of a stage that identifies an update by its number.
const STAGE_PREFIX: &str = "step ";

/// Resolution of the clock. Updates that are due within one interval are released together.
const CLOCK_RESOLUTION: Duration = Duration::from_micros(250);

/// Due times of the updates of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    start: Instant,
    rate: f64,
    updates: u64,
}

impl Schedule {
    pub fn new(start: Instant, rate: f64, updates: u64) -> Self {
        Self {
            start,
            rate,
            updates,
        }
    }

    pub fn due(&self, update: u64) -> Instant {
        self.start + Duration::from_secs_f64(update as f64 / self.rate)
    }

    pub fn end(&self) -> Instant {
        self.due(self.updates)
    }

    /// Returns the progress that identifies an update.
    pub fn progress(&self, update: u64) -> f64 {
        (update + 1) as f64 / (self.updates + 1) as f64 * MAX_SCHEDULED_PROGRESS
    }

    /// Returns the stage that identifies an update.
    pub fn stage(update: u64) -> String {
        format!("{STAGE_PREFIX}{update}")
    }

    /// Returns the update that a document with this stage and progress contains, if it is a scheduled one.
    pub fn update(&self, stage: Option<&str>, progress: Option<f64>) -> Option<u64> {
        let Some(stage) = stage else {
            return self.update_by_progress(progress?);
        };
        let number = stage.strip_prefix(STAGE_PREFIX)?.split(' ').next()?;
        number.parse().ok().filter(|update| *update < self.updates)
    }

    fn update_by_progress(&self, progress: f64) -> Option<u64> {
        let number = (progress / MAX_SCHEDULED_PROGRESS * (self.updates + 1) as f64).round();
        (number >= 1.0 && number <= self.updates as f64).then(|| number as u64 - 1)
    }

    /// Returns the number of updates that are due at `now`.
    fn due_count(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.start).as_secs_f64();
        let due = (elapsed * self.rate) as u64 + u64::from(now >= self.start);
        due.min(self.updates)
    }
}

/// Issues each update of a schedule once, not before it is due.
pub(super) struct DueUpdates {
    due: Semaphore,
    next: AtomicU64,
}

impl DueUpdates {
    /// Starts the clock on its own thread, because the timers of the runtime have a resolution of one millisecond.
    /// Updates that were not issued by the end of the schedule are never issued.
    pub fn start(schedule: Schedule) -> std::io::Result<Arc<Self>> {
        let updates = Arc::new(Self {
            due: Semaphore::new(0),
            next: AtomicU64::new(0),
        });
        let clock = updates.clone();
        std::thread::Builder::new()
            .name("load-clock".to_owned())
            .spawn(move || {
                let mut released = 0;
                loop {
                    let now = Instant::now();
                    let due = schedule.due_count(now);
                    clock.due.add_permits((due - released) as usize);
                    released = due;
                    if now >= schedule.end() {
                        break;
                    }
                    let next = schedule.due(released).min(schedule.end());
                    let wait = next.saturating_duration_since(now);
                    std::thread::sleep(wait.max(CLOCK_RESOLUTION));
                }
                clock.due.close();
            })?;
        Ok(updates)
    }

    /// Waits for the next update to be due. Returns `None` after the end of the schedule.
    pub async fn next(&self) -> Option<u64> {
        self.due.acquire().await.ok()?.forget();
        Some(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns the number of updates issued so far.
    pub fn issued(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn document_identifies_its_update(updates in 1..2_000_000_000u64, at in 0.0..1.0f64) {
            let schedule = Schedule::new(Instant::now(), 1.0, updates);
            let update = ((updates as f64 * at) as u64).min(updates - 1);
            // The wire format is JSON with the shortest decimal that parses to the same number.
            let text = serde_json::to_string(&schedule.progress(update)).unwrap();
            let progress: f64 = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(schedule.update(None, Some(progress)), Some(update));
            let padded = format!("{} xxx", Schedule::stage(update));
            prop_assert_eq!(schedule.update(Some(&padded), Some(STORM_PROGRESS)), Some(update));
            prop_assert!(progress < STORM_PROGRESS);
        }
    }

    #[test]
    fn documents_outside_the_schedule_match_no_update() {
        let schedule = Schedule::new(Instant::now(), 10.0, 100);
        for progress in [0.0, STORM_PROGRESS, 100.0] {
            assert_eq!(schedule.update(None, Some(progress)), None);
        }
        for stage in ["storm", "step", "step 100", "step one"] {
            assert_eq!(schedule.update(Some(stage), Some(45.0)), None);
        }
    }

    #[test]
    fn schedule_does_not_wait_for_late_senders() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 4.0, 8);
        let at = |millis| schedule.due_count(start + Duration::from_millis(millis));
        assert_eq!(
            [at(0), at(249), at(250), at(1000), at(9000)],
            [1, 1, 2, 5, 8]
        );
        assert_eq!(schedule.end(), start + Duration::from_secs(2));
    }

    #[tokio::test]
    async fn each_update_is_issued_once() {
        let updates = DueUpdates::start(Schedule::new(Instant::now(), 1e6, 5)).unwrap();
        let mut issued = Vec::new();
        while let Some(update) = updates.next().await {
            issued.push(update);
        }
        assert!(
            issued
                .iter()
                .enumerate()
                .all(|(n, update)| n as u64 == *update)
        );
        assert_eq!(updates.issued(), issued.len() as u64);
        assert!(updates.next().await.is_none());
    }
}
