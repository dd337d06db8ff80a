//! Results of a run. The JSON output is this structure; the table and the HTML page only format it.

use std::time::Duration;

use serde::Serialize;

use super::arguments::Arguments;
use super::context::Context;
use super::measure::{Measurement, Sample};
use super::process::Usage;
use super::stats::{ConnectionStats, Latencies, SocketStats, UpdateStats, Violations, rounded};

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
    version: &'static str,
    pub(super) started_at: jiff::Timestamp,
    plan: Arguments,
    updates: Updates,
    deliveries: Deliveries,
    /// From the due time of an update to its arrival at a socket that is not a slow client.
    pub(super) latency: Latencies,
    slow_latency: Latencies,
    sockets: ConnectionStats,
    storm: Option<Storm>,
    /// Absent if the process of the hub is unknown.
    server: Option<Server>,
    /// CPU time of the load generator. At close to 100% per thread, the load generator limits the results.
    client: CpuUsage,
    checks: Checks,
    /// Quantiles of `latency`, each with its value in milliseconds.
    pub(super) percentiles: Vec<(f64, f64)>,
    pub(super) timeline: Vec<Sample>,
}

/// Results of the scheduled updates.
#[derive(Debug, Serialize)]
struct Updates {
    due: u64,
    /// Due, but not sent because all connections were waiting for responses.
    unsent: u64,
    /// Responses per second.
    per_second: f64,
    #[serde(flatten)]
    stats: UpdateStats,
}

/// Job frames received by current sockets while updates were sent.
#[derive(Debug, Serialize)]
struct Deliveries {
    count: u64,
    per_second: f64,
    bytes_per_second: f64,
    /// Versions that the hub conflated into newer ones.
    skipped: u64,
}

/// Results of the reconnect storm.
#[derive(Debug, Serialize)]
struct Storm {
    /// Sockets that became current again.
    sockets: u64,
    /// Time until the last of them was current.
    seconds: f64,
    #[serde(rename = "current")]
    recovery: Latencies,
}

/// CPU time of a process while updates were sent.
#[derive(Debug, Default, Serialize)]
struct CpuUsage {
    /// Share of one core.
    cpu_percent: f64,
    /// CPU time divided by deliveries. For the hub, it includes the cost of receiving the updates.
    cpu_us_per_delivery: f64,
}

/// Resource usage of the hub while updates were sent.
#[derive(Debug, Serialize)]
pub(super) struct Server {
    pid: u32,
    #[serde(flatten)]
    cpu: CpuUsage,
    cpu_us_per_update: f64,
    /// Resident memory before the sockets connect.
    memory_before_bytes: u64,
    /// Resident memory with all sockets idle.
    memory_idle_bytes: u64,
    /// Memory that a socket adds, without buffers of the kernel.
    memory_per_connection_bytes: f64,
    /// Maximum of all samples.
    memory_peak_bytes: u64,
}

/// Results of the verification.
#[derive(Debug, Serialize)]
struct Checks {
    /// Subscriptions that were compared with the API.
    subscriptions: u64,
    /// Job frames that were checked.
    frames: u64,
    violations: u64,
    #[serde(flatten)]
    by_kind: Violations,
}

impl Report {
    /// Creates the report from the measurement and from what the sockets observed in all phases.
    pub(super) fn new(
        started_at: jiff::Timestamp,
        arguments: Arguments,
        measurement: Measurement,
        all: SocketStats,
        server: Option<Server>,
    ) -> Self {
        let Measurement {
            sockets, updates, ..
        } = measurement;
        let per_second = |count: u64| rounded(count as f64 / measurement.elapsed.as_secs_f64());
        let violations = all.violations.sum();
        let due = arguments.update_count();
        let client = measurement.client;
        Self {
            ok: violations == 0,
            version: env!("CARGO_PKG_VERSION"),
            started_at,
            updates: Updates {
                due,
                unsent: due.saturating_sub(updates.answered() + updates.failures.count),
                per_second: per_second(updates.answered()),
                stats: updates,
            },
            deliveries: Deliveries {
                count: sockets.deliveries,
                per_second: per_second(sockets.deliveries),
                bytes_per_second: per_second(sockets.bytes),
                skipped: sockets.skipped,
            },
            percentiles: QUANTILES
                .map(|quantile| (quantile, sockets.delivery.quantile(quantile)))
                .to_vec(),
            latency: sockets.delivery,
            slow_latency: sockets.slow_delivery,
            sockets: all.connections,
            storm: arguments.reconnect_storm.then(|| Storm {
                sockets: all.storm_recovery.count(),
                seconds: rounded(all.storm_recovery.max() / 1000.0),
                recovery: all.storm_recovery,
            }),
            server,
            client: client.map_or_else(CpuUsage::default, |(start, end)| {
                CpuUsage::new(start, end, sockets.deliveries)
            }),
            checks: Checks {
                subscriptions: arguments.sockets * arguments.subscriptions,
                frames: all.frames,
                violations,
                by_kind: all.violations,
            },
            timeline: measurement.timeline,
            plan: arguments,
        }
    }

    /// Returns the number of violations that the checks found.
    pub fn violations(&self) -> u64 {
        self.checks.violations
    }
}

impl CpuUsage {
    fn new(start: Usage, end: Usage, deliveries: u64) -> Self {
        let (cpu, share) = end.since(&start);
        Self {
            cpu_percent: rounded(share * 100.0),
            cpu_us_per_delivery: micros_per(cpu, deliveries),
        }
    }
}

impl Server {
    /// Creates the summary from the usage before and after the sockets connected, and during the measurement. Returns
    /// `None` if the process of the hub is unknown or has exited.
    pub(super) fn new(
        context: &Context,
        measurement: &Measurement,
        before: Option<Usage>,
        idle: Option<Usage>,
    ) -> Option<Self> {
        let (start, end) = measurement.hub?;
        let (before, idle) = (before?.memory_bytes, idle?.memory_bytes);
        let per_connection = idle.saturating_sub(before) as f64 / context.arguments.sockets as f64;
        let samples = measurement.timeline.iter();
        let samples = samples.filter_map(|sample| sample.memory_bytes);
        Some(Self {
            pid: context.pid?,
            cpu: CpuUsage::new(start, end, measurement.sockets.deliveries),
            cpu_us_per_update: micros_per(end.since(&start).0, measurement.updates.answered()),
            memory_before_bytes: before,
            memory_idle_bytes: idle,
            memory_per_connection_bytes: per_connection.round(),
            memory_peak_bytes: samples.fold(idle.max(end.memory_bytes), u64::max),
        })
    }
}

fn micros_per(cpu: Duration, count: u64) -> f64 {
    rounded(cpu.as_secs_f64() * 1e6 / count.max(1) as f64)
}
