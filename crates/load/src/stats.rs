//! Counters and histograms of a run, serialized as in the report.
//!
//! Each socket thread fills its own [`SocketStats`]. The run takes them at every sample and adds them up. Taking them
//! resets them, so nothing is counted twice.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use derive_more::AddAssign;
use hdrhistogram::Histogram;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// Longest duration that a histogram distinguishes from longer ones: one hour.
const MAX_RECORDED_MICROS: u64 = 3_600_000_000;

/// Durations in microseconds with three significant digits.
#[derive(Clone, Debug)]
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

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Returns a quantile in milliseconds.
    pub fn quantile(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }

    /// Returns the maximum in milliseconds.
    pub fn max(&self) -> f64 {
        self.quantile(1.0)
    }
}

impl AddAssign for Latencies {
    fn add_assign(&mut self, other: Self) {
        // Fails only for different bounds.
        let _ = self.0.add(&other.0);
    }
}

impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("count", &self.count())?;
        map.serialize_entry("mean_ms", &rounded(self.0.mean() / 1000.0))?;
        map.serialize_entry("p50_ms", &self.quantile(0.5))?;
        map.serialize_entry("p90_ms", &self.quantile(0.9))?;
        map.serialize_entry("p99_ms", &self.quantile(0.99))?;
        map.serialize_entry("p999_ms", &self.quantile(0.999))?;
        map.serialize_entry("max_ms", &self.max())?;
        map.end()
    }
}

/// Failures, and the reason of the first.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Failures {
    #[serde(rename = "failed")]
    pub count: u64,
    pub reason: Option<String>,
}

impl Failures {
    pub fn record(&mut self, error: &anyhow::Error) {
        self.count += 1;
        self.explain(&format!("{error:#}"));
    }

    /// Sets the reason, as a single line, if there is none yet.
    pub fn explain(&mut self, reason: &str) {
        self.reason.get_or_insert_with(|| reason.replace('\n', " "));
    }
}

impl AddAssign for Failures {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.reason = self.reason.take().or(other.reason);
    }
}

/// Connections closed by the hub, by close code. 1006 if there was no close frame.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct CloseCodes(BTreeMap<u16, u64>);

impl CloseCodes {
    pub fn record(&mut self, code: u16) {
        *self.0.entry(code).or_default() += 1;
    }
}

impl AddAssign for CloseCodes {
    fn add_assign(&mut self, other: Self) {
        for (code, count) in other.0 {
            *self.0.entry(code).or_default() += count;
        }
    }
}

/// Deliveries that break a guarantee of the protocol. `rows.txt` describes each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, AddAssign, Serialize)]
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
    pub fn sum(&self) -> u64 {
        let frames = self.regressions + self.unexpected + self.malformed + self.rejected;
        frames + self.behind + self.ahead + self.not_final
    }
}

/// Observations of the sockets of one thread.
#[derive(Clone, Default, AddAssign)]
pub(super) struct SocketStats {
    /// Change in the number of connected sockets. The sum since the start of the run is the current number. The same
    /// applies to the next three fields.
    pub connected: i64,
    /// Sockets that are disconnected by [`Command::Disconnect`](super::socket::Command::Disconnect).
    pub disconnected: i64,
    /// Sockets that received the newest version of every subscribed job on this connection.
    pub current: i64,
    /// Sockets that received the final version of every subscribed job.
    pub done: i64,
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
    pub connections: ConnectionStats,
    /// From the start of a reconnect storm until the socket is current.
    pub storm_recovery: Latencies,
    pub violations: Violations,
}

/// Results of connecting.
#[derive(Clone, Debug, Default, AddAssign, Serialize)]
pub(super) struct ConnectionStats {
    /// From the first packet to the end of the WebSocket handshake.
    pub handshake: Latencies,
    /// From the first packet of the first connection until the socket is current.
    #[serde(rename = "first")]
    pub initial_sync: Latencies,
    /// The same for a reconnect with known versions, except in a reconnect storm.
    pub resume: Latencies,
    /// Failed connections. The reason may also be the message of the first `error`.
    #[serde(flatten)]
    pub failures: Failures,
    pub closed: CloseCodes,
}

/// Results of the scheduled updates.
#[derive(Clone, Debug, Default, AddAssign, Serialize)]
pub(super) struct UpdateStats {
    /// Updates that changed a job.
    pub applied: u64,
    /// Accepted updates that were superseded by a later one.
    pub unchanged: u64,
    /// Updates that were rejected or received no response.
    #[serde(flatten)]
    pub failures: Failures,
    /// From the due time to the time the request is sent.
    #[serde(rename = "delay")]
    pub scheduling_delay: Latencies,
    /// From the due time to the response.
    #[serde(rename = "answer")]
    pub response: Latencies,
}

impl UpdateStats {
    /// Returns the updates that received a response.
    pub fn answered(&self) -> u64 {
        self.applied + self.unchanged
    }
}

/// Rounds to three decimals.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_histograms_keep_min_and_max() {
        let (mut one, mut other) = (Latencies::default(), Latencies::default());
        one.record_duration(Duration::from_millis(1));
        other.record_duration(Duration::from_millis(100));
        one += other;
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
        two += one.clone();
        assert_eq!((one.sum(), two.sum()), (7, 14));
    }
}
