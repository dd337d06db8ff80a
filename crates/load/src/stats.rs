//! What is counted while a run goes on.
//!
//! Each thread has a tally of its own; the conductor takes them at every beat and adds them up.
//!
//! Invariant: a taken tally starts again at nothing, so that nothing is counted twice.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

/// The longest time that is told from a longer one, in microseconds.
const MAX_RECORDED_MICROS: u64 = 3_600_000_000;

/// Times in microseconds, to three digits.
#[derive(Clone)]
pub(super) struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        match Histogram::new_with_bounds(1, MAX_RECORDED_MICROS, 3) {
            Ok(histogram) => Self(histogram),
            Err(error) => unreachable!("these bounds are good: {error:?}"),
        }
    }
}

impl Times {
    pub fn record(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(MAX_RECORDED_MICROS);
        self.0.saturating_record(micros.max(1));
    }

    pub fn since(&mut self, start: Instant, now: Instant) {
        self.record(now.saturating_duration_since(start));
    }

    pub fn add(&mut self, other: &Self) {
        // Of the same bounds, so there is always room.
        let _ = self.0.add(&other.0);
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Milliseconds that this share of all times is within.
    pub fn quantile(&self, share: f64) -> f64 {
        self.0.value_at_quantile(share) as f64 / 1000.0
    }

    pub fn max(&self) -> f64 {
        self.0.max() as f64 / 1000.0
    }

    pub fn mean(&self) -> f64 {
        self.0.mean() / 1000.0
    }
}

/// What must not happen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Violations {
    /// Frames whose version was not above the one the socket had.
    pub backwards: u64,
    /// Frames of jobs that the socket does not watch.
    pub strangers: u64,
    /// Frames that are no message of the protocol.
    pub malformed: u64,
    /// Subscriptions that the hub refused, and errors that it told.
    pub refused: u64,
    /// Subscriptions that in the end have an older version than the hub.
    pub behind: u64,
    /// Sockets with such a subscription.
    pub sockets_behind: u64,
    /// Subscriptions that in the end have a version that the hub never had.
    pub ahead: u64,
    /// Subscriptions and jobs whose end is not one, or is told otherwise by the hub.
    pub unended: u64,
}

impl Violations {
    /// How many there are.
    pub fn sum(&self) -> u64 {
        // Named one by one, so that a new one can't be left out.
        let Self {
            backwards,
            strangers,
            malformed,
            refused,
            behind,
            sockets_behind: _,
            ahead,
            unended,
        } = self;
        backwards + strangers + malformed + refused + behind + ahead + unended
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.backwards += other.backwards;
        self.strangers += other.strangers;
        self.malformed += other.malformed;
        self.refused += other.refused;
        self.behind += other.behind;
        self.sockets_behind += other.sockets_behind;
        self.ahead += other.ahead;
        self.unended += other.unended;
    }
}

/// What the sockets of a thread have seen.
#[derive(Clone, Default)]
pub(super) struct SocketStats {
    /// Frames of jobs, whenever they came.
    pub frames: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Frames that a socket got while it was current: deliveries.
    pub deliveries: u64,
    /// Versions that were overtaken by newer ones on their way to a socket.
    pub skipped: u64,
    /// From the time that an update was due to its arrival at a socket.
    pub latency: Times,
    /// The same at slow readers, who are late by their own fault.
    pub slow_latency: Times,
    /// From the first packet to the upgrade.
    pub handshake: Times,
    /// From the first packet to all jobs being shown, at the first time.
    pub first: Times,
    /// The same when a socket comes back with versions.
    pub resume: Times,
    /// From a storm's end to being current again.
    pub storm: Times,
    /// Connections that were not made, and why the first was not.
    pub failed: u64,
    pub reason: Option<String>,
    /// Connections that the hub ended, by its close code; 1006 where there was none.
    pub closed: BTreeMap<u16, u64>,
    pub faults: Violations,
}

impl SocketStats {
    /// A connection was not made.
    pub fn not_connected(&mut self, why: &impl ToString) {
        self.failed += 1;
        self.reason.get_or_insert_with(|| why.to_string());
    }

    pub fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.deliveries += other.deliveries;
        self.skipped += other.skipped;
        self.latency.add(&other.latency);
        self.slow_latency.add(&other.slow_latency);
        self.handshake.add(&other.handshake);
        self.first.add(&other.first);
        self.resume.add(&other.resume);
        self.storm.add(&other.storm);
        self.failed += other.failed;
        if self.reason.is_none() {
            self.reason.clone_from(&other.reason);
        }
        for (code, times) in &other.closed {
            *self.closed.entry(*code).or_default() += times;
        }
        self.faults.add(&other.faults);
    }
}

/// What became of the updates that were sent.
#[derive(Clone, Default)]
pub(super) struct UpdateStats {
    /// Taken by the hub and a change.
    pub applied: u64,
    /// Taken, and overtaken by a later one.
    pub unchanged: u64,
    /// Refused, or without an answer; the first of these is told.
    pub failed: u64,
    pub reason: Option<String>,
    /// From the time it was due to its being sent.
    pub delay: Times,
    /// From the time it was due to the hub's answer.
    pub answer: Times,
}

impl UpdateStats {
    pub fn add(&mut self, other: Self) {
        self.applied += other.applied;
        self.unchanged += other.unchanged;
        self.failed += other.failed;
        self.reason = self.reason.take().or(other.reason);
        self.delay.add(&other.delay);
        self.answer.add(&other.answer);
    }
}

/// How the sockets are, right now.
#[derive(Default)]
pub(super) struct SocketCounts {
    pub connected: AtomicU64,
    /// Ordered to be away, and so.
    pub away: AtomicU64,
    pub current: AtomicU64,
    pub done: AtomicU64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_histograms_keep_min_and_max() {
        let (mut one, mut other) = (Times::default(), Times::default());
        one.record(Duration::from_millis(1));
        other.record(Duration::from_millis(100));
        one.add(&other);
        assert_eq!(one.count(), 2);
        assert!((one.quantile(0.5) - 1.0).abs() < 0.01);
        assert!((one.max() - 100.0).abs() < 0.1);
    }

    #[test]
    fn every_fault_counts() {
        let one = Violations {
            backwards: 1,
            strangers: 1,
            malformed: 1,
            refused: 1,
            behind: 1,
            sockets_behind: 1,
            ahead: 1,
            unended: 1,
        };
        let mut two = one.clone();
        two.add(&one);
        assert_eq!((one.sum(), two.sum()), (7, 14));
    }
}
