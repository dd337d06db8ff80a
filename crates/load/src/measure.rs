//! Measurement phase of a run: sends the scheduled updates and samples the results.
//!
//! Results cover the time from the first due update to the last delivery.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::task::JoinSet;

use super::context::Context;
use super::process::Usage;
use super::progress::Phase;
use super::schedule::{DueUpdates, Schedule};
use super::socket_pool::SocketPool;
use super::stats::{SocketStats, UpdateStats, rounded};
use super::updates::UpdateKind;

/// Interval between samples. Long runs use a longer one, so that there are at most `MAX_SAMPLES`.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
const MAX_SAMPLES: u32 = 240;

/// Time before the first update is due, for the sender tasks to start.
const START_DELAY: Duration = Duration::from_millis(50);

/// Time without a delivery after which no more deliveries are expected.
const QUIESCE_TIMEOUT: Duration = Duration::from_millis(100);

/// Results of the measurement.
#[derive(Default)]
pub(super) struct Measurement {
    pub sockets: SocketStats,
    pub updates: UpdateStats,
    pub elapsed: Duration,
    pub timeline: Vec<Sample>,
    /// Resource usage of the hub at the start and at the end.
    pub hub: Option<(Usage, Usage)>,
    /// Resource usage of this process at the start and at the end.
    pub client: Option<(Usage, Usage)>,
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

impl Sample {
    /// Returns the sample as one line of progress.
    pub fn summary(&self) -> String {
        let usage = self.cpu_percent.zip(self.memory_bytes);
        let usage = usage
            .map(|(cpu, memory)| format!("  hub {cpu:.0}% {:.0} MiB", memory as f64 / 1_048_576.0));
        format!(
            "{:.0} updates/s  {:.0} deliveries/s  p50 {:.2} ms  p99 {:.2} ms{}",
            self.updates_per_second,
            self.deliveries_per_second,
            self.p50_ms,
            self.p99_ms,
            usage.unwrap_or_default()
        )
    }
}

/// Sends the updates of the schedule. Updates that no connection is free to send in time are omitted.
pub(super) async fn measure(
    context: &Arc<Context>,
    pool: &mut SocketPool,
) -> std::io::Result<Measurement> {
    let arguments = &context.arguments;
    let start = Instant::now() + START_DELAY;
    let schedule = Schedule::new(start, arguments.rate, arguments.update_count());
    let schedule = *context.schedule.get_or_init(|| schedule);
    let due = DueUpdates::start(schedule)?;
    let stats = Arc::new(Mutex::new(UpdateStats::default()));
    let mut senders = JoinSet::new();
    for _ in 0..arguments.connections {
        let (context, due, stats) = (context.clone(), due.clone(), stats.clone());
        senders.spawn(async move { send_updates(schedule, &due, &context, &stats).await });
    }
    let phase = Phase::start("updates", arguments.update_count());
    tokio::time::sleep_until(start.into()).await;
    let usage = || (context.hub_usage(), Usage::of(std::process::id()));
    let before = usage();
    let mut measurement = Measurement::default();
    let (mut last, mut last_usage) = (start, before.0);
    let interval = SAMPLE_INTERVAL.max(arguments.duration / MAX_SAMPLES);
    let mut clock = tokio::time::interval_at((start + interval).into(), interval);
    while !senders.is_empty() {
        tokio::select! {
            biased;
            // The updates of a sender that panicked are reported as unsent.
            Some(_) = senders.join_next() => if !senders.is_empty() { continue },
            _ = clock.tick() => {}
        }
        let (now, usage) = (Instant::now(), context.hub_usage());
        let elapsed = now.saturating_duration_since(last);
        let (updates, sockets) = (std::mem::take(&mut *stats.lock()), pool.take_stats());
        let per_second = |count| rounded(count as f64 / elapsed.as_secs_f64().max(1e-9));
        let cpu = usage.zip(last_usage).map(|(now, last)| now.since(&last).1);
        let sample = Sample {
            at: rounded(now.saturating_duration_since(start).as_secs_f64()),
            updates_per_second: per_second(updates.answered()),
            deliveries_per_second: per_second(sockets.deliveries),
            p50_ms: sockets.delivery.quantile(0.5),
            p99_ms: sockets.delivery.quantile(0.99),
            max_ms: sockets.delivery.max(),
            connected: pool.total.connected.unsigned_abs(),
            cpu_percent: cpu.map(|cpu| rounded(cpu * 100.0)),
            memory_bytes: usage.map(|usage| usage.memory_bytes),
        };
        (last, last_usage) = (now, usage);
        measurement.sockets += sockets;
        measurement.updates += updates;
        phase.update(due.issued(), || sample.summary());
        // The last interval may be too short to compute a rate.
        if elapsed > interval / 2 || measurement.timeline.is_empty() {
            measurement.timeline.push(sample);
        }
    }
    measurement.elapsed = start.elapsed();
    // Deliveries that are still in flight are the slowest, so they must not be omitted.
    let deadline = Instant::now() + arguments.timeout;
    while Instant::now() < deadline {
        tokio::time::sleep(QUIESCE_TIMEOUT).await;
        let sockets = pool.take_stats();
        let deliveries = sockets.deliveries;
        measurement.sockets += sockets;
        if deliveries == 0 {
            break;
        }
        measurement.elapsed = start.elapsed();
    }
    let after = usage();
    measurement.hub = before.0.zip(after.0);
    measurement.client = before.1.zip(after.1);
    phase.finish(format!(
        "{} applied, {} deliveries, p50 {:.2} ms, p99 {:.2} ms",
        measurement.updates.applied,
        measurement.sockets.deliveries,
        measurement.sockets.delivery.quantile(0.5),
        measurement.sockets.delivery.quantile(0.99)
    ));
    Ok(measurement)
}

/// Sends one due update after another until the schedule ends.
async fn send_updates(
    schedule: Schedule,
    due_updates: &DueUpdates,
    context: &Context,
    stats: &Mutex<UpdateStats>,
) {
    while let Some(number) = due_updates.next().await {
        let job = (number % context.arguments.jobs) as u32;
        let progress = schedule.progress(number);
        let (due, sent) = (schedule.due(number), Instant::now());
        let result = context
            .update(job, UpdateKind::Scheduled { number, progress })
            .await;
        let mut stats = stats.lock();
        stats.scheduling_delay.record(due, sent);
        match result {
            Ok(is_applied) => {
                stats.applied += u64::from(is_applied);
                stats.unchanged += u64::from(!is_applied);
                stats.response.record(due, Instant::now());
            }
            Err(error) => stats.failures.record(&error),
        }
    }
}
