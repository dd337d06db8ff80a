//! Counters and histograms of a run.
//!
//! Each socket thread fills its own [`SocketStats`]. The run takes them at every sample and adds them up. Taking them
//! resets them, so nothing is counted twice.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest duration that a histogram distinguishes from longer ones: one hour.
const MAX_RECORDED_MICROS: u64 = 3_600_000_000;

/// Durations in microseconds with three significant digits.
#[derive(Clone)]
pub(super) struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        match Histogram::new_with_bounds(1, MAX_RECORDED_MICROS, 3) {
            Ok(histogram) => Self(histogram),
            Err(error) => unreachable!("constant bounds: {error}"),
        }
    }
}

impl Latencies {
    /// Records the time from `start` to `end`.
    pub fn record(&mut self, start: Instant, end: Instant) {
        self.record_duration(end.saturating_duration_since(start));
    }

    fn record_duration(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(MAX_RECORDED_MICROS);
        self.0.saturating_record(micros.max(1));
    }

    pub fn add(&mut self, other: &Self) {
        // Fails only for different bounds.
        let _ = self.0.add(&other.0);
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Returns a quantile in milliseconds.
    pub fn quantile(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }

    /// Returns the maximum in milliseconds.
    pub fn max(&self) -> f64 {
        self.0.max() as f64 / 1000.0
    }

    /// Returns the mean in milliseconds.
    pub fn mean(&self) -> f64 {
        self.0.mean() / 1000.0
    }
}

/// Deliveries that break a guarantee of the protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Violations {
    /// Frames whose version was not higher than the one the socket had.
    #[serde(rename = "backwards")]
    pub regressions: u64,
    /// Frames of jobs that the socket is not subscribed to.
    #[serde(rename = "strangers")]
    pub unexpected: u64,
    /// Frames that are not valid messages of the protocol.
    pub malformed: u64,
    /// Rejected subscriptions and `error` messages.
    #[serde(rename = "refused")]
    pub rejected: u64,
    /// Subscriptions that ended with an older version than the hub's.
    pub behind: u64,
    /// Sockets with at least one such subscription. Not part of the sum.
    pub sockets_behind: u64,
    /// Subscriptions that ended with a version that the hub never had.
    pub ahead: u64,
    /// Jobs that are not final, and subscriptions that disagree with the hub about it.
    #[serde(rename = "unended")]
    pub not_final: u64,
}

impl Violations {
    /// Returns each count with its description.
    pub fn described(&self) -> [(u64, &'static str); 7] {
        // The pattern names every field, so that a new one cannot be omitted.
        let Self {
            regressions,
            unexpected,
            malformed,
            rejected,
            behind,
            sockets_behind: _,
            ahead,
            not_final,
        } = self;
        [
            (*regressions, "frames whose version did not increase"),
            (*unexpected, "frames of jobs that were not subscribed"),
            (*malformed, "malformed messages"),
            (*rejected, "rejected subscriptions or error messages"),
            (*behind, "subscriptions without the last version"),
            (
                *ahead,
                "subscriptions with a version that the hub never had",
            ),
            (*not_final, "missing or spurious final versions"),
        ]
    }

    pub fn sum(&self) -> u64 {
        self.described().iter().map(|(count, _)| count).sum()
    }

    pub fn add(&mut self, other: &Self) {
        self.regressions += other.regressions;
        self.unexpected += other.unexpected;
        self.malformed += other.malformed;
        self.rejected += other.rejected;
        self.behind += other.behind;
        self.sockets_behind += other.sockets_behind;
        self.ahead += other.ahead;
        self.not_final += other.not_final;
    }
}

/// Observations of the sockets of one thread.
#[derive(Clone, Default)]
pub(super) struct SocketStats {
    /// Job frames received.
    pub frames: u64,
    /// Bytes of all messages received, without frame headers.
    pub bytes: u64,
    /// Job frames received by sockets that were current.
    pub deliveries: u64,
    /// Versions that the hub conflated into newer ones.
    pub skipped: u64,
    /// From the due time of an update to its arrival at a socket.
    pub delivery: Latencies,
    /// The same for slow clients.
    pub slow_delivery: Latencies,
    /// From the first packet to the end of the WebSocket handshake.
    pub handshake: Latencies,
    /// From the first packet of the first connection until the socket is current.
    pub initial_sync: Latencies,
    /// The same for a reconnect with known versions.
    pub resume: Latencies,
    /// From the start of a reconnect storm until the socket is current.
    pub storm_recovery: Latencies,
    /// Failed connections, and the reason of the first failure or the message of the first `error`.
    pub failed: u64,
    pub reason: Option<String>,
    /// Connections closed by the hub, by close code. 1006 if there was no close frame.
    pub closed: BTreeMap<u16, u64>,
    pub violations: Violations,
}

impl SocketStats {
    pub fn record_failure(&mut self, reason: &impl ToString) {
        self.failed += 1;
        self.reason.get_or_insert_with(|| reason.to_string());
    }

    pub fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.deliveries += other.deliveries;
        self.skipped += other.skipped;
        self.delivery.add(&other.delivery);
        self.slow_delivery.add(&other.slow_delivery);
        self.handshake.add(&other.handshake);
        self.initial_sync.add(&other.initial_sync);
        self.resume.add(&other.resume);
        self.storm_recovery.add(&other.storm_recovery);
        self.failed += other.failed;
        if self.reason.is_none() {
            self.reason.clone_from(&other.reason);
        }
        for (code, count) in &other.closed {
            *self.closed.entry(*code).or_default() += count;
        }
        self.violations.add(&other.violations);
    }
}

/// Results of the scheduled updates.
#[derive(Clone, Default)]
pub(super) struct UpdateStats {
    /// Updates that changed a job.
    pub applied: u64,
    /// Accepted updates that were superseded by a later one.
    pub unchanged: u64,
    /// Updates that were rejected or received no response, and the reason of the first.
    pub failed: u64,
    pub reason: Option<String>,
    /// From the due time to the time the request is sent.
    pub scheduling_delay: Latencies,
    /// From the due time to the response.
    pub response: Latencies,
}

impl UpdateStats {
    /// Returns the updates that received a response.
    pub fn answered(&self) -> u64 {
        self.applied + self.unchanged
    }

    pub fn add(&mut self, other: Self) {
        self.applied += other.applied;
        self.unchanged += other.unchanged;
        self.failed += other.failed;
        self.reason = self.reason.take().or(other.reason);
        self.scheduling_delay.add(&other.scheduling_delay);
        self.response.add(&other.response);
    }
}

/// Number of sockets per state, at this moment.
#[derive(Default)]
pub(super) struct SocketCounts {
    pub connected: AtomicU64,
    /// Disconnected by [`Command::Disconnect`](super::socket::Command::Disconnect).
    pub disconnected: AtomicU64,
    /// Received the newest version of every subscribed job on this connection.
    pub current: AtomicU64,
    /// Received the final version of every subscribed job.
    pub done: AtomicU64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_histograms_keep_min_and_max() {
        let (mut one, mut other) = (Latencies::default(), Latencies::default());
        one.record_duration(Duration::from_millis(1));
        other.record_duration(Duration::from_millis(100));
        one.add(&other);
        assert_eq!(one.count(), 2);
        assert!((one.quantile(0.5) - 1.0).abs() < 0.01);
        assert!((one.max() - 100.0).abs() < 0.1);
    }

    #[test]
    fn every_violation_is_counted() {
        let one = Violations {
            regressions: 1,
            unexpected: 1,
            malformed: 1,
            rejected: 1,
            behind: 1,
            sockets_behind: 1,
            ahead: 1,
            not_final: 1,
        };
        let mut two = one.clone();
        two.add(&one);
        assert_eq!((one.sum(), two.sum()), (7, 14));
    }
}
