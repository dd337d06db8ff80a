//! The steady part of a run: updates by schedule, over all connections, with a beat now and then.
//!
//! Invariant: what is measured here is measured between the first update's time and the last delivery,
//! and nothing from before or after is in it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::arguments::Arguments;
use super::client::{HttpClient, RequestError};
use super::http_pool::HttpPool;
use super::jobs::JobIndex;
use super::process::{Cost, Process};
use super::progress::ProgressView;
use super::report::{Sample, rounded};
use super::schedule::{DueUpdates, Schedule};
use super::socket_pool::SocketPool;
use super::stats::{SocketStats, UpdateStats};
use super::updates::{UpdateKind, UpdateResult, UpdateSender};

/// Between two beats, unless a run is so long that there would be too many.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
const MAX_SAMPLES: u32 = 240;

/// Until the first update is due: so that everybody is ready.
const START_DELAY: Duration = Duration::from_millis(50);

/// Without a delivery for so long, nothing is on its way any more.
const QUIESCE_TIMEOUT: Duration = Duration::from_millis(100);

/// Where updates are sent, and who looks on.
pub(super) struct MeasureContext<'a> {
    pub arguments: &'a Arguments,
    pub fleet: &'a SocketPool,
    pub jobs: &'a Arc<JobIndex>,
    pub way: &'a Arc<UpdateSender>,
    pub hub: Option<Process>,
    pub view: &'a ProgressView,
}

/// What was measured.
pub(super) struct Measurement {
    pub tally: SocketStats,
    pub sent: UpdateStats,
    pub passed: Duration,
    pub beats: Vec<Sample>,
    /// What the hub's process had cost before and after.
    pub hub: Option<(Cost, Cost)>,
    /// The same of this one.
    pub client: Option<(Cost, Cost)>,
}

/// What was counted since the last beat, and when that was.
struct Sampler {
    start: Instant,
    last: Instant,
    cost: Option<Cost>,
}

/// Sends all updates of the schedule, or as many as are answered in its time.
pub(super) async fn steady(
    scene: &MeasureContext<'_>,
    callers: &mut HttpPool,
) -> std::io::Result<Measurement> {
    let MeasureContext {
        arguments, fleet, ..
    } = *scene;
    let start = Instant::now() + START_DELAY;
    let schedule = Schedule::new(start, arguments.rate, arguments.updates());
    fleet.schedule.get_or_init(|| schedule);
    let tickets = DueUpdates::start(schedule)?;
    let sent = Arc::new(Mutex::new(UpdateStats::default()));
    let mut senders = JoinSet::new();
    for caller in callers.0.drain(..) {
        let (way, jobs) = (scene.way.clone(), scene.jobs.clone());
        let (tickets, sent) = (tickets.clone(), sent.clone());
        senders.spawn(async move { send(caller, schedule, &tickets, &way, &jobs, &sent).await });
    }
    let stage = scene.view.begin("updates", arguments.updates());
    tokio::time::sleep_until(start.into()).await;
    let costs = (scene.hub.and_then(Process::cost), Process::own().cost());
    let mut steady = Measurement {
        tally: SocketStats::default(),
        sent: UpdateStats::default(),
        passed: Duration::ZERO,
        beats: Vec::new(),
        hub: None,
        client: None,
    };
    let mut pulse = Sampler {
        start,
        last: start,
        cost: costs.0,
    };
    let every = SAMPLE_INTERVAL.max(arguments.duration / MAX_SAMPLES);
    let mut clock = tokio::time::interval_at((start + every).into(), every);
    while !senders.is_empty() {
        tokio::select! {
            biased;
            Some(done) = senders.join_next() => {
                // One that broke has answered nothing more, and its updates are counted as unsent.
                callers.0.extend(done.ok());
                if !senders.is_empty() {
                    continue;
                }
            }
            _ = clock.tick() => {}
        }
        let taken = std::mem::take(&mut *sent.lock().unwrap_or_else(PoisonError::into_inner));
        let tally = fleet.take();
        let passed = pulse.last.elapsed();
        let beat = pulse.beat(scene, &tally, &taken);
        steady.tally.add(&tally);
        steady.sent.add(taken);
        stage.at(tickets.issued(), || told(&beat));
        // What is left at the end is too short to tell a rate.
        if passed > every / 2 || steady.beats.is_empty() {
            steady.beats.push(beat);
        }
    }
    steady.passed = start.elapsed();
    steady.drain(scene, start).await;
    steady.hub = costs.0.zip(scene.hub.and_then(Process::cost));
    steady.client = costs.1.zip(Process::own().cost());
    stage.end(format!(
        "{} applied, {} deliveries, p50 {:.2} ms, p99 {:.2} ms",
        steady.sent.applied,
        steady.tally.deliveries,
        steady.tally.latency.quantile(0.5),
        steady.tally.latency.quantile(0.99)
    ));
    Ok(steady)
}

impl Measurement {
    /// What is still on its way is the slowest of all, so it is waited for.
    async fn drain(&mut self, scene: &MeasureContext<'_>, start: Instant) {
        let deadline = Instant::now() + scene.arguments.timeout;
        while Instant::now() < deadline {
            tokio::time::sleep(QUIESCE_TIMEOUT).await;
            let tally = scene.fleet.take();
            self.tally.add(&tally);
            if tally.deliveries == 0 {
                return;
            }
            self.passed = start.elapsed();
        }
    }
}

/// Sends whatever is due next, over one connection; gives the connection back.
async fn send(
    mut caller: HttpClient,
    schedule: Schedule,
    tickets: &DueUpdates,
    way: &UpdateSender,
    jobs: &JobIndex,
    sent: &Mutex<UpdateStats>,
) -> HttpClient {
    while let Some(update) = tickets.next().await {
        let job = (update % u64::from(jobs.count())) as u32;
        let progress = schedule.progress(update);
        let news = UpdateKind::Step { update, progress };
        let (due, begun) = (schedule.due(update), Instant::now());
        let told = way.tell(&mut caller, jobs, job, news).await;
        let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.delay.since(due, begun);
        sent.count(told, due);
    }
    caller
}

impl UpdateStats {
    fn count(&mut self, told: Result<UpdateResult, RequestError>, due: Instant) {
        match told {
            Ok(UpdateResult::Applied) => self.applied += 1,
            Ok(UpdateResult::Unchanged) => self.unchanged += 1,
            Err(error) => {
                self.failed += 1;
                self.reason.get_or_insert_with(|| error.to_string());
                return;
            }
        }
        self.answer.since(due, Instant::now());
    }
}

impl Sampler {
    fn beat(
        &mut self,
        scene: &MeasureContext<'_>,
        tally: &SocketStats,
        sent: &UpdateStats,
    ) -> Sample {
        let (now, cost) = (Instant::now(), scene.hub.and_then(Process::cost));
        let passed = now.saturating_duration_since(self.last).as_secs_f64();
        let passed = passed.max(1e-9);
        let share = cost.zip(self.cost).map(|(now, last)| now.since(&last).1);
        (self.last, self.cost) = (now, cost);
        Sample {
            at: rounded(now.saturating_duration_since(self.start).as_secs_f64()),
            updates_per_second: rounded((sent.applied + sent.unchanged) as f64 / passed),
            deliveries_per_second: rounded(tally.deliveries as f64 / passed),
            p50_ms: tally.latency.quantile(0.5),
            p99_ms: tally.latency.quantile(0.99),
            max_ms: tally.latency.max(),
            connected: scene.fleet.count(|standing| &standing.connected),
            cpu_percent: share.map(|share| rounded(share * 100.0)),
            memory_bytes: cost.map(|cost| cost.memory),
        }
    }
}

fn told(beat: &Sample) -> String {
    let hub = match (beat.cpu_percent, beat.memory_bytes) {
        (Some(cpu), Some(memory)) => {
            format!("  hub {cpu:.0} % {:.0} MiB", memory as f64 / 1_048_576.0)
        }
        (None, _) | (_, None) => String::new(),
    };
    format!(
        "{:.0} updates/s  {:.0} deliveries/s  p50 {:.2} ms  p99 {:.2} ms{hub}",
        beat.updates_per_second, beat.deliveries_per_second, beat.p50_ms, beat.p99_ms
    )
}
