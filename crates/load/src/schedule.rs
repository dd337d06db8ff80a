//! When each update is due: an open loop, which waits for no answer.
//!
//! Update `n` of the run is due at `start + n / rate`, whatever became of those before it, and
//! everything that is measured of it counts from then: a hub that stalls can't hide it by making its
//! load wait (coordinated omission).
//!
//! A document names the update that it comes from, so that whoever receives it knows when that was due:
//! by its `stage`, or where the hub's spec reads none by its `progress`. With the stage each update is
//! a change, also when two of a job cross on their way.
//!
//! Invariant: two updates of a run never have the same name, and a later one has the higher progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// The progress that scheduled updates stay below; what changes a job outside of the schedule is above.
const SPAN: f64 = 90.0;

/// The progress of the one change that every job has while a storm keeps its sockets away.
pub(super) const STORM: f64 = 95.0;

/// What begins the stage that names an update; its number follows.
const STEP_NAME: &str = "step ";

/// How finely the clock is looked at: due updates of one step leave together.
const STEP: Duration = Duration::from_micros(250);

/// When the updates of a run are due.
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

    /// The progress that names an update.
    pub fn progress(&self, update: u64) -> f64 {
        (update + 1) as f64 / (self.updates + 1) as f64 * SPAN
    }

    /// The stage that names an update.
    pub fn stage(update: u64) -> String {
        format!("{STEP_NAME}{update}")
    }

    /// The update that a document names, if it is one of the schedule's.
    pub fn update(&self, stage: Option<&str>, progress: Option<f64>) -> Option<u64> {
        let Some(stage) = stage else {
            return self.by_progress(progress?);
        };
        let number = stage.strip_prefix(STEP_NAME)?.split(' ').next()?;
        number.parse().ok().filter(|update| *update < self.updates)
    }

    fn by_progress(&self, progress: f64) -> Option<u64> {
        let number = (progress / SPAN * (self.updates + 1) as f64).round();
        (number >= 1.0 && number <= self.updates as f64).then(|| number as u64 - 1)
    }

    /// How many updates are due by now.
    fn due_by(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.start).as_secs_f64();
        let due = (passed * self.rate) as u64 + u64::from(now >= self.start);
        due.min(self.updates)
    }
}

/// Hands out the updates of a schedule, each to one taker, none before it is due.
pub(super) struct DueUpdates {
    due: Semaphore,
    next: AtomicU64,
}

impl DueUpdates {
    /// Starts the clock, on a thread of its own: a runtime's timer is too coarse by a millisecond.
    /// After the schedule's end nothing is handed out, even if it was never taken.
    pub fn start(schedule: Schedule) -> std::io::Result<Arc<Self>> {
        let tickets = Arc::new(Self {
            due: Semaphore::new(0),
            next: AtomicU64::new(0),
        });
        let clock = tickets.clone();
        std::thread::Builder::new()
            .name("load-clock".to_owned())
            .spawn(move || {
                let mut released = 0;
                while Arc::strong_count(&clock) > 1 {
                    let now = Instant::now();
                    let due = schedule.due_by(now);
                    clock.due.add_permits((due - released) as usize);
                    released = due;
                    if now >= schedule.end() {
                        break;
                    }
                    let next = schedule.due(released).min(schedule.end());
                    let wait = next.saturating_duration_since(now);
                    std::thread::sleep(wait.clamp(STEP, Duration::from_millis(100)));
                }
                clock.due.close();
            })?;
        Ok(tickets)
    }

    /// The next update once it is due; `None` when the schedule is over.
    pub async fn next(&self) -> Option<u64> {
        self.due.acquire().await.ok()?.forget();
        Some(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// How many were taken.
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
        fn a_document_names_its_update(updates in 1..2_000_000_000u64, at in 0.0..1.0f64) {
            let schedule = Schedule::new(Instant::now(), 1.0, updates);
            let update = ((updates as f64 * at) as u64).min(updates - 1);
            // As it travels: JSON with the shortest digits that give the same number.
            let text = serde_json::to_string(&schedule.progress(update)).unwrap();
            let progress: f64 = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(schedule.update(None, Some(progress)), Some(update));
            let padded = format!("{} xxx", Schedule::stage(update));
            prop_assert_eq!(schedule.update(Some(&padded), Some(STORM)), Some(update));
            prop_assert!(progress < STORM);
        }
    }

    #[test]
    fn documents_outside_the_schedule_match_no_update() {
        let schedule = Schedule::new(Instant::now(), 10.0, 100);
        for progress in [0.0, STORM, 100.0] {
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
        let at = |millis| schedule.due_by(start + Duration::from_millis(millis));
        assert_eq!(
            [at(0), at(249), at(250), at(1000), at(9000)],
            [1, 1, 2, 5, 8]
        );
        assert_eq!(schedule.end(), start + Duration::from_secs(2));
    }

    #[tokio::test]
    async fn each_update_is_issued_once() {
        let tickets = DueUpdates::start(Schedule::new(Instant::now(), 1e6, 5)).unwrap();
        let mut taken = Vec::new();
        while let Some(update) = tickets.next().await {
            taken.push(update);
        }
        assert!(
            taken
                .iter()
                .enumerate()
                .all(|(n, update)| n as u64 == *update)
        );
        assert_eq!(tickets.issued(), taken.len() as u64);
        assert!(tickets.next().await.is_none());
    }
}
