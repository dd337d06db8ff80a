//! What a run found, as figures.
//!
//! Invariant: `--json`, the table and the page show these and compute nothing of their own.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::arguments::{Arguments, UpdateMethod};
use super::stats::{SocketStats, Times, UpdateStats, Violations};

/// The shares of all times that are told one by one.
const SHARES: [f64; 23] = [
    0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 0.995,
    0.9975, 0.999, 0.9995, 0.9999, 0.99999, 1.0,
];

/// A run's figures. Times are in milliseconds where they are not named otherwise.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether nothing was wrong.
    pub ok: bool,
    /// The program's version.
    pub version: &'static str,
    /// When it began.
    pub started_at: jiff::Timestamp,
    /// What was asked for.
    pub plan: Plan,
    /// What was told to the hub.
    pub updates: Updates,
    /// What arrived at the sockets.
    pub deliveries: Deliveries,
    /// From the time that an update was due to its arrival at a socket that reads.
    pub latency: LatencySummary,
    /// The same at slow readers.
    pub slow_latency: LatencySummary,
    /// How connections were.
    pub sockets: Sockets,
    /// The reconnect storm, if there was one.
    pub storm: Option<Storm>,
    /// What the hub cost, where its process is known.
    pub server: Option<Server>,
    /// What this program cost while updates were sent: near 100 % of its threads, it is the limit.
    pub client: Client,
    /// What was checked.
    pub checks: Checks,
    /// Shares of all deliveries, and the latency that they are within.
    pub percentiles: Vec<(f64, f64)>,
    /// How it went while updates were sent.
    pub timeline: Vec<Sample>,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The hub's address.
    pub url: String,
    /// Whether the hub was started for the run.
    pub own_hub: bool,
    /// The way of the updates.
    pub by: UpdateMethod,
    /// WebSockets.
    pub sockets: u64,
    /// Jobs that each watches.
    pub subscriptions: u64,
    /// Jobs.
    pub jobs: u64,
    /// Updates a second.
    pub rate: f64,
    /// How long they were sent.
    pub duration_seconds: f64,
    /// How long the sockets took to open.
    pub ramp_seconds: f64,
    /// Share of the sockets that left each second.
    pub churn: f64,
    /// Share of the sockets that read slowly.
    pub slow: f64,
    /// Bytes of padding.
    pub padding: u64,
    /// Connections that updates were sent over.
    pub connections: u64,
    /// Threads that held the sockets.
    pub threads: u64,
    /// Source addresses.
    pub sources: u64,
}

/// How a set of times spreads.
#[derive(Clone, Debug, Serialize)]
pub struct LatencySummary {
    /// How many times there are.
    pub count: u64,
    /// Their mean.
    pub mean_ms: f64,
    /// Half of them are within this.
    pub p50_ms: f64,
    /// 90 %.
    pub p90_ms: f64,
    /// 99 %.
    pub p99_ms: f64,
    /// 99.9 %.
    pub p999_ms: f64,
    /// All.
    pub max_ms: f64,
}

/// What was told to the hub.
#[derive(Clone, Debug, Serialize)]
pub struct Updates {
    /// How many were due.
    pub due: u64,
    /// Taken by the hub, and a change.
    pub applied: u64,
    /// Taken, and overtaken by a later one of the same job.
    pub unchanged: u64,
    /// Refused or without an answer.
    pub failed: u64,
    /// Why the first of these failed.
    pub reason: Option<String>,
    /// Due, and never sent since all connections were waiting for answers.
    pub unsent: u64,
    /// Answered each second.
    pub per_second: f64,
    /// From being due to being sent.
    pub delay: LatencySummary,
    /// From being due to the hub's answer.
    pub answer: LatencySummary,
}

/// What arrived at sockets that were current, while updates were sent.
#[derive(Clone, Debug, Serialize)]
pub struct Deliveries {
    /// How many.
    pub count: u64,
    /// A second.
    pub per_second: f64,
    /// Bytes a second, with their frames.
    pub bytes_per_second: f64,
    /// Versions that newer ones overtook on their way.
    pub skipped: u64,
}

/// How connections were.
#[derive(Clone, Debug, Serialize)]
pub struct Sockets {
    /// From the first packet to the upgrade.
    pub handshake: LatencySummary,
    /// From the first packet to all jobs being shown.
    pub first: LatencySummary,
    /// The same for those that came back with versions, a storm's apart.
    pub resume: LatencySummary,
    /// Connections that were not made.
    pub failed: u64,
    /// Why the first of these was not, or what the hub first refused.
    pub reason: Option<String>,
    /// Connections that the hub ended, by close code.
    pub closed: BTreeMap<u16, u64>,
}

/// A reconnect storm.
#[derive(Clone, Debug, Serialize)]
pub struct Storm {
    /// Sockets that came to be current again.
    pub sockets: u64,
    /// Until the last of them was.
    pub seconds: f64,
    /// From the storm's end to each being current.
    pub current: LatencySummary,
}

/// What the hub cost.
#[derive(Clone, Debug, Serialize)]
pub struct Server {
    /// Its process.
    pub pid: u32,
    /// Processor time while updates were sent, over deliveries: the updates' own cost is in it.
    pub cpu_us_per_delivery: f64,
    /// The same over updates.
    pub cpu_us_per_update: f64,
    /// Share of one processor.
    pub cpu_percent: f64,
    /// Resident before the sockets.
    pub memory_before_bytes: u64,
    /// Resident with all sockets idle.
    pub memory_idle_bytes: u64,
    /// What a socket adds; the kernel's buffers are not in it.
    pub memory_per_connection_bytes: f64,
    /// The most that was resident at a beat.
    pub memory_peak_bytes: u64,
}

/// What this program cost.
#[derive(Clone, Debug, Serialize)]
pub struct Client {
    /// Share of one processor.
    pub cpu_percent: f64,
    /// Processor time over deliveries.
    pub cpu_us_per_delivery: f64,
}

/// What was checked.
#[derive(Clone, Debug, Serialize)]
pub struct Checks {
    /// Subscriptions that were compared with the hub's answer.
    pub subscriptions: u64,
    /// Frames of jobs that were judged.
    pub frames: u64,
    /// What was wrong in all.
    pub violations: u64,
    /// One by one.
    #[serde(flatten)]
    pub faults: Violations,
}

/// How it was for a moment.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Seconds since the first update was due.
    pub at: f64,
    /// Updates answered a second.
    pub updates_per_second: f64,
    /// Deliveries a second.
    pub deliveries_per_second: f64,
    /// Half of the latencies.
    pub p50_ms: f64,
    /// 99 %.
    pub p99_ms: f64,
    /// All.
    pub max_ms: f64,
    /// Sockets that are connected.
    pub connected: u64,
    /// The hub's share of one processor.
    pub cpu_percent: Option<f64>,
    /// Its resident memory.
    pub memory_bytes: Option<u64>,
}

impl Plan {
    pub(super) fn new(arguments: &Arguments, url: String, own_hub: bool) -> Self {
        Self {
            url,
            own_hub,
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

impl From<&Times> for LatencySummary {
    fn from(times: &Times) -> Self {
        Self {
            count: times.count(),
            mean_ms: rounded(times.mean()),
            p50_ms: times.quantile(0.5),
            p90_ms: times.quantile(0.9),
            p99_ms: times.quantile(0.99),
            p999_ms: times.quantile(0.999),
            max_ms: times.max(),
        }
    }
}

impl Updates {
    pub(super) fn new(sent: &UpdateStats, due: u64, passed: Duration) -> Self {
        let answered = sent.applied + sent.unchanged;
        Self {
            due,
            applied: sent.applied,
            unchanged: sent.unchanged,
            failed: sent.failed,
            reason: sent.reason.clone(),
            unsent: due.saturating_sub(answered + sent.failed),
            per_second: rounded(answered as f64 / passed.as_secs_f64()),
            delay: (&sent.delay).into(),
            answer: (&sent.answer).into(),
        }
    }
}

impl Deliveries {
    pub(super) fn new(steady: &SocketStats, passed: Duration) -> Self {
        let seconds = passed.as_secs_f64();
        Self {
            count: steady.deliveries,
            per_second: rounded(steady.deliveries as f64 / seconds),
            bytes_per_second: rounded(steady.bytes as f64 / seconds),
            skipped: steady.skipped,
        }
    }
}

impl Sockets {
    pub(super) fn new(all: &SocketStats) -> Self {
        Self {
            handshake: (&all.handshake).into(),
            first: (&all.first).into(),
            resume: (&all.resume).into(),
            failed: all.failed,
            reason: all.reason.clone(),
            closed: all.closed.clone(),
        }
    }
}

impl Checks {
    pub(super) fn new(all: &SocketStats, subscriptions: u64) -> Self {
        Self {
            subscriptions,
            frames: all.frames,
            violations: all.faults.sum(),
            faults: all.faults.clone(),
        }
    }
}

pub(super) fn percentiles(times: &Times) -> Vec<(f64, f64)> {
    let shares = SHARES.iter();
    shares
        .map(|share| (*share, times.quantile(*share)))
        .collect()
}

/// To three decimals: what is behind them is noise.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}
