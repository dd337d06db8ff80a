//! Results of a run. The JSON output is this structure; the table and the HTML page only format it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::arguments::{Arguments, UpdateMethod};
use super::measure::Measurement;
use super::process::Usage;
use super::stats::{Latencies, SocketStats, UpdateStats, Violations};

/// Quantiles of the delivery latency in the JSON output and in the percentile chart.
const QUANTILES: [f64; 23] = [
    0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 0.995,
    0.9975, 0.999, 0.9995, 0.9999, 0.99999, 1.0,
];

/// Results of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether all checks passed.
    pub ok: bool,
    pub(super) version: &'static str,
    pub(super) started_at: jiff::Timestamp,
    pub(super) plan: Plan,
    pub(super) updates: Updates,
    pub(super) deliveries: Deliveries,
    /// From the due time of an update to its arrival at a socket that is not a slow client.
    pub(super) latency: LatencySummary,
    pub(super) slow_latency: LatencySummary,
    pub(super) sockets: Sockets,
    pub(super) storm: Option<Storm>,
    /// Absent if the process of the hub is unknown.
    pub(super) server: Option<Server>,
    pub(super) client: Client,
    pub(super) checks: Checks,
    /// Quantiles of `latency`, each with its value in milliseconds.
    pub(super) percentiles: Vec<(f64, f64)>,
    pub(super) timeline: Vec<Sample>,
}

/// Parameters of the run.
#[derive(Debug, Serialize)]
pub(super) struct Plan {
    pub url: String,
    /// Whether the hub was started for the run.
    pub own_hub: bool,
    pub by: UpdateMethod,
    pub sockets: u64,
    pub subscriptions: u64,
    pub jobs: u64,
    pub rate: f64,
    pub duration_seconds: f64,
    pub ramp_seconds: f64,
    pub churn: f64,
    pub slow: f64,
    pub padding: u64,
    pub connections: u64,
    pub threads: u64,
    pub sources: u64,
}

/// Distribution of a latency, in milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct LatencySummary {
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

/// Results of the scheduled updates.
#[derive(Debug, Serialize)]
pub(super) struct Updates {
    pub due: u64,
    pub applied: u64,
    /// Accepted, but superseded by a later update of the same job.
    pub unchanged: u64,
    pub failed: u64,
    /// Reason of the first failure.
    pub reason: Option<String>,
    /// Due, but not sent because all connections were waiting for responses.
    pub unsent: u64,
    /// Responses per second.
    pub per_second: f64,
    /// From the due time to the time the request is sent.
    #[serde(rename = "delay")]
    pub scheduling_delay: LatencySummary,
    /// From the due time to the response.
    #[serde(rename = "answer")]
    pub response: LatencySummary,
}

/// Job frames received by current sockets while updates were sent.
#[derive(Debug, Serialize)]
pub(super) struct Deliveries {
    pub count: u64,
    pub per_second: f64,
    pub bytes_per_second: f64,
    /// Versions that the hub conflated into newer ones.
    pub skipped: u64,
}

/// Results of connecting.
#[derive(Debug, Serialize)]
pub(super) struct Sockets {
    pub handshake: LatencySummary,
    /// From the first packet of the first connection until the socket is current.
    #[serde(rename = "first")]
    pub initial_sync: LatencySummary,
    /// The same for a reconnect with known versions, except in a reconnect storm.
    pub resume: LatencySummary,
    pub failed: u64,
    /// Reason of the first failure, or the message of the first `error`.
    pub reason: Option<String>,
    /// Connections closed by the hub, by close code.
    pub closed: BTreeMap<u16, u64>,
}

/// Results of the reconnect storm.
#[derive(Debug, Serialize)]
pub(super) struct Storm {
    /// Sockets that became current again.
    pub sockets: u64,
    /// Time until the last of them was current.
    pub seconds: f64,
    #[serde(rename = "current")]
    pub recovery: LatencySummary,
}

/// Resource usage of the hub while updates were sent.
#[derive(Debug, Serialize)]
pub(super) struct Server {
    pub pid: u32,
    /// CPU time divided by deliveries. Includes the cost of receiving the updates.
    pub cpu_us_per_delivery: f64,
    pub cpu_us_per_update: f64,
    /// Share of one core.
    pub cpu_percent: f64,
    /// Resident memory before the sockets connect.
    pub memory_before_bytes: u64,
    /// Resident memory with all sockets idle.
    pub memory_idle_bytes: u64,
    /// Memory that a socket adds, without buffers of the kernel.
    pub memory_per_connection_bytes: f64,
    /// Maximum of all samples.
    pub memory_peak_bytes: u64,
}

/// Resource usage of the load generator while updates were sent. Close to 100% per thread, it limits the results.
#[derive(Debug, Serialize)]
pub(super) struct Client {
    pub cpu_percent: f64,
    pub cpu_us_per_delivery: f64,
}

/// Results of the verification.
#[derive(Debug, Serialize)]
pub(super) struct Checks {
    /// Subscriptions that were compared with the API.
    pub subscriptions: u64,
    /// Job frames that were checked.
    pub frames: u64,
    pub violations: u64,
    #[serde(flatten)]
    pub by_kind: Violations,
}

/// Results of one sampling interval.
#[derive(Debug, Serialize)]
pub(super) struct Sample {
    /// Seconds since the first update was due.
    pub at: f64,
    pub updates_per_second: f64,
    pub deliveries_per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    pub connected: u64,
    pub cpu_percent: Option<f64>,
    pub memory_bytes: Option<u64>,
}

impl Report {
    pub(super) fn new(
        started_at: jiff::Timestamp,
        arguments: &Arguments,
        url: String,
        measurement: Measurement,
        all: &SocketStats,
        storm: Option<Storm>,
        server: Option<Server>,
    ) -> Self {
        let sockets = &measurement.sockets;
        let seconds = measurement.elapsed.as_secs_f64();
        let violations = all.violations.sum();
        let quantile = |quantile: f64| (quantile, sockets.delivery.quantile(quantile));
        Self {
            ok: violations == 0,
            version: env!("CARGO_PKG_VERSION"),
            started_at,
            plan: Plan::new(arguments, url),
            updates: Updates::new(&measurement.updates, arguments.update_count(), seconds),
            deliveries: Deliveries {
                count: sockets.deliveries,
                per_second: rounded(sockets.deliveries as f64 / seconds),
                bytes_per_second: rounded(sockets.bytes as f64 / seconds),
                skipped: sockets.skipped,
            },
            latency: (&sockets.delivery).into(),
            slow_latency: (&sockets.slow_delivery).into(),
            sockets: Sockets {
                handshake: (&all.handshake).into(),
                initial_sync: (&all.initial_sync).into(),
                resume: (&all.resume).into(),
                failed: all.failed,
                reason: all.reason.clone(),
                closed: all.closed.clone(),
            },
            storm,
            server,
            client: Client::new(measurement.client, sockets.deliveries),
            checks: Checks {
                subscriptions: arguments.sockets * arguments.subscriptions,
                frames: all.frames,
                violations,
                by_kind: all.violations.clone(),
            },
            percentiles: QUANTILES.map(quantile).to_vec(),
            timeline: measurement.timeline,
        }
    }

    /// Returns the number of violations that the checks found.
    pub fn violations(&self) -> u64 {
        self.checks.violations
    }

    /// Returns all latencies that were recorded at least once, with label and description.
    pub(super) fn latencies(&self) -> Vec<(&'static str, &'static str, &LatencySummary)> {
        let (updates, sockets) = (&self.updates, &self.sockets);
        let mut latencies = vec![
            ("update to socket", "due time to arrival", &self.latency),
            ("slow clients", "due time to arrival", &self.slow_latency),
            (
                "update to response",
                "due time to HTTP response",
                &updates.response,
            ),
            (
                "scheduling delay",
                "due time to send time",
                &updates.scheduling_delay,
            ),
            ("handshake", "first packet to WebSocket", &sockets.handshake),
            (
                "initial sync",
                "first packet to current",
                &sockets.initial_sync,
            ),
            ("resume", "reconnect to current", &sockets.resume),
        ];
        if let Some(storm) = &self.storm {
            latencies.push((
                "reconnect-storm recovery",
                "start to current",
                &storm.recovery,
            ));
        }
        latencies.retain(|(_, _, latency)| latency.count > 0);
        latencies
    }
}

impl Plan {
    fn new(arguments: &Arguments, url: String) -> Self {
        Self {
            url,
            own_hub: arguments.url.is_none(),
            by: arguments.by,
            sockets: arguments.sockets,
            subscriptions: arguments.subscriptions,
            jobs: arguments.jobs,
            rate: arguments.rate,
            duration_seconds: arguments.duration.as_secs_f64(),
            ramp_seconds: arguments.ramp.as_secs_f64(),
            churn: arguments.churn,
            slow: arguments.slow,
            padding: arguments.padding,
            connections: arguments.connections,
            threads: arguments.threads,
            sources: arguments.sources(),
        }
    }
}

impl From<&Latencies> for LatencySummary {
    fn from(latencies: &Latencies) -> Self {
        Self {
            count: latencies.count(),
            mean_ms: rounded(latencies.mean()),
            p50_ms: latencies.quantile(0.5),
            p90_ms: latencies.quantile(0.9),
            p99_ms: latencies.quantile(0.99),
            p999_ms: latencies.quantile(0.999),
            max_ms: latencies.max(),
        }
    }
}

impl LatencySummary {
    /// Returns p50, p90, p99, p99.9 and the maximum.
    pub fn columns(&self) -> [f64; 5] {
        [
            self.p50_ms,
            self.p90_ms,
            self.p99_ms,
            self.p999_ms,
            self.max_ms,
        ]
    }
}

impl Updates {
    fn new(stats: &UpdateStats, due: u64, seconds: f64) -> Self {
        Self {
            due,
            applied: stats.applied,
            unchanged: stats.unchanged,
            failed: stats.failed,
            reason: stats.reason.clone(),
            unsent: due.saturating_sub(stats.answered() + stats.failed),
            per_second: rounded(stats.answered() as f64 / seconds),
            scheduling_delay: (&stats.scheduling_delay).into(),
            response: (&stats.response).into(),
        }
    }
}

impl Storm {
    pub(super) fn new(recovery: &Latencies) -> Self {
        Self {
            sockets: recovery.count(),
            seconds: rounded(recovery.max() / 1000.0),
            recovery: recovery.into(),
        }
    }
}

impl Server {
    /// Creates the summary. `(before, idle)` is the usage before and after the sockets connected. Returns `None` if
    /// the hub exited during the measurement.
    pub(super) fn new(
        pid: u32,
        measurement: &Measurement,
        (before, idle): (Usage, Usage),
        sockets: u64,
    ) -> Option<Self> {
        let (start, end) = measurement.hub?;
        let (before, idle) = (before.memory_bytes, idle.memory_bytes);
        let (cpu, share) = end.since(&start);
        let samples = measurement
            .timeline
            .iter()
            .filter_map(|sample| sample.memory_bytes);
        Some(Self {
            pid,
            cpu_us_per_delivery: micros_per(cpu, measurement.sockets.deliveries),
            cpu_us_per_update: micros_per(cpu, measurement.updates.answered()),
            cpu_percent: rounded(share * 100.0),
            memory_before_bytes: before,
            memory_idle_bytes: idle,
            memory_per_connection_bytes: (idle.saturating_sub(before) as f64 / sockets as f64)
                .round(),
            memory_peak_bytes: samples.fold(idle.max(end.memory_bytes), u64::max),
        })
    }
}

impl Client {
    fn new(usage: Option<(Usage, Usage)>, deliveries: u64) -> Self {
        let (cpu, share) = usage.map_or((Duration::ZERO, 0.0), |(start, end)| end.since(&start));
        Self {
            cpu_percent: rounded(share * 100.0),
            cpu_us_per_delivery: micros_per(cpu, deliveries),
        }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} updates/s  {:.0} deliveries/s  p50 {:.2} ms  p99 {:.2} ms",
            self.updates_per_second, self.deliveries_per_second, self.p50_ms, self.p99_ms
        )?;
        if let (Some(cpu), Some(memory)) = (self.cpu_percent, self.memory_bytes) {
            write!(f, "  hub {cpu:.0}% {:.0} MiB", memory as f64 / 1_048_576.0)?;
        }
        Ok(())
    }
}

fn micros_per(cpu: Duration, count: u64) -> f64 {
    rounded(cpu.as_secs_f64() * 1e6 / count.max(1) as f64)
}

/// Rounds to three decimals.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}
