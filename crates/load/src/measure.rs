//! Measurement phase of a run: sends the scheduled updates and samples the results.
//!
//! Results cover the time from the first due update to the last delivery.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::arguments::Arguments;
use super::error::RequestError;
use super::jobs::JobIndex;
use super::process::{Process, Usage};
use super::progress::ProgressView;
use super::report::{Sample, rounded};
use super::schedule::{DueUpdates, Schedule};
use super::socket_pool::SocketPool;
use super::stats::{SocketStats, UpdateStats};
use super::updates::{UpdateKind, UpdateResult, UpdateSender};

/// Interval between samples. Long runs use a longer one, so that there are at most `MAX_SAMPLES`.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
const MAX_SAMPLES: u32 = 240;

/// Time before the first update is due, for the sender tasks to start.
const START_DELAY: Duration = Duration::from_millis(50);

/// Time without a delivery after which no more deliveries are expected.
const QUIESCE_TIMEOUT: Duration = Duration::from_millis(100);

/// Context of the measurement.
pub(super) struct MeasureContext<'a> {
    pub arguments: &'a Arguments,
    pub pool: &'a SocketPool,
    pub jobs: &'a Arc<JobIndex>,
    pub updates: &'a Arc<UpdateSender>,
    pub hub: Option<Process>,
    pub view: &'a ProgressView,
}

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

/// Creates samples, each of the time since the previous one.
struct Sampler {
    start: Instant,
    last: Instant,
    usage: Option<Usage>,
}

/// Sends the updates of the schedule. Updates that no connection is free to send in time are omitted.
pub(super) async fn measure(context: &MeasureContext<'_>) -> std::io::Result<Measurement> {
    let MeasureContext {
        arguments, pool, ..
    } = *context;
    let start = Instant::now() + START_DELAY;
    let schedule = Schedule::new(start, arguments.rate, arguments.update_count());
    pool.set_schedule(schedule);
    let due = DueUpdates::start(schedule)?;
    let stats = Arc::new(Mutex::new(UpdateStats::default()));
    let mut senders = JoinSet::new();
    for _ in 0..arguments.connections {
        let (updates, jobs) = (context.updates.clone(), context.jobs.clone());
        let (due, stats) = (due.clone(), stats.clone());
        senders.spawn(async move { send_updates(schedule, &due, &updates, &jobs, &stats).await });
    }
    let phase = context.view.start("updates", arguments.update_count());
    tokio::time::sleep_until(start.into()).await;
    let hub_before = context.hub.and_then(Process::usage);
    let client_before = Process::current().usage();
    let mut measurement = Measurement::default();
    let mut sampler = Sampler {
        start,
        last: start,
        usage: hub_before,
    };
    let interval = SAMPLE_INTERVAL.max(arguments.duration / MAX_SAMPLES);
    let mut clock = tokio::time::interval_at((start + interval).into(), interval);
    while !senders.is_empty() {
        tokio::select! {
            biased;
            // The updates of a sender that panicked are reported as unsent.
            Some(_) = senders.join_next() => if !senders.is_empty() { continue },
            _ = clock.tick() => {}
        }
        let updates = std::mem::take(&mut *stats.lock().unwrap_or_else(PoisonError::into_inner));
        let sockets = pool.take_stats();
        let elapsed = sampler.last.elapsed();
        let sample = sampler.sample(context, &sockets, &updates);
        measurement.sockets.add(&sockets);
        measurement.updates.add(updates);
        phase.update(due.issued(), || sample.to_string());
        // The last interval may be too short to compute a rate.
        if elapsed > interval / 2 || measurement.timeline.is_empty() {
            measurement.timeline.push(sample);
        }
    }
    measurement.elapsed = start.elapsed();
    measurement.wait_for_deliveries(context, start).await;
    measurement.hub = hub_before.zip(context.hub.and_then(Process::usage));
    measurement.client = client_before.zip(Process::current().usage());
    phase.finish(format!(
        "{} applied, {} deliveries, p50 {:.2} ms, p99 {:.2} ms",
        measurement.updates.applied,
        measurement.sockets.deliveries,
        measurement.sockets.delivery.quantile(0.5),
        measurement.sockets.delivery.quantile(0.99)
    ));
    Ok(measurement)
}

impl Measurement {
    /// Waits for the deliveries that are still in flight. They are the slowest, so they must not be omitted.
    async fn wait_for_deliveries(&mut self, context: &MeasureContext<'_>, start: Instant) {
        let deadline = Instant::now() + context.arguments.timeout;
        while Instant::now() < deadline {
            tokio::time::sleep(QUIESCE_TIMEOUT).await;
            let sockets = context.pool.take_stats();
            self.sockets.add(&sockets);
            if sockets.deliveries == 0 {
                return;
            }
            self.elapsed = start.elapsed();
        }
    }
}

/// Sends one due update after another until the schedule ends.
async fn send_updates(
    schedule: Schedule,
    due_updates: &DueUpdates,
    updates: &UpdateSender,
    jobs: &JobIndex,
    stats: &Mutex<UpdateStats>,
) {
    while let Some(number) = due_updates.next().await {
        let job = (number % u64::from(jobs.count())) as u32;
        let kind = UpdateKind::Scheduled {
            number,
            progress: schedule.progress(number),
        };
        let (due, sent) = (schedule.due(number), Instant::now());
        let result = updates.send(jobs, job, kind).await;
        let mut stats = stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.scheduling_delay.record(due, sent);
        stats.record(result, due);
    }
}

impl UpdateStats {
    fn record(&mut self, result: Result<UpdateResult, RequestError>, due: Instant) {
        match result {
            Ok(UpdateResult::Applied) => self.applied += 1,
            Ok(UpdateResult::Unchanged) => self.unchanged += 1,
            Err(error) => {
                self.failed += 1;
                self.reason.get_or_insert_with(|| error.to_string());
                return;
            }
        }
        self.response.record(due, Instant::now());
    }
}

impl Sampler {
    fn sample(
        &mut self,
        context: &MeasureContext<'_>,
        sockets: &SocketStats,
        updates: &UpdateStats,
    ) -> Sample {
        let (now, usage) = (Instant::now(), context.hub.and_then(Process::usage));
        let seconds = now
            .saturating_duration_since(self.last)
            .as_secs_f64()
            .max(1e-9);
        let cpu = usage.zip(self.usage).map(|(now, last)| now.since(&last).1);
        (self.last, self.usage) = (now, usage);
        Sample {
            at: rounded(now.saturating_duration_since(self.start).as_secs_f64()),
            updates_per_second: rounded(updates.answered() as f64 / seconds),
            deliveries_per_second: rounded(sockets.deliveries as f64 / seconds),
            p50_ms: sockets.delivery.quantile(0.5),
            p99_ms: sockets.delivery.quantile(0.99),
            max_ms: sockets.delivery.max(),
            connected: context.pool.count(|counts| &counts.connected),
            cpu_percent: cpu.map(|cpu| rounded(cpu * 100.0)),
            memory_bytes: usage.map(|usage| usage.memory_bytes),
        }
    }
}
