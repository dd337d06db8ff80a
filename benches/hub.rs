//! Cost of the hub: delivery of a change to all subscribers, draining of pending frames, and short-lived
//! subscriptions.
//!
//! The time of a delivery starts with [`Hub::deliver`] and ends when every sink has received the version.
//! Creating the version and subscribing are not measured.

#![expect(
    clippy::unwrap_used,
    reason = "a failed setup must abort the benchmark"
)]

use std::cell::Cell;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use progress_hub::hub::{Connection, FeedHealth, Hub, Sink};
use progress_hub::job::{Job, NewJob};
use progress_hub::protocol::Frame;
use progress_hub::time::Time;
use tokio::task::LocalSet;

/// A sink that accepts no frame, so every frame becomes pending.
#[derive(Default)]
struct BlockedSink {
    is_notified: Cell<bool>,
}

impl Sink for BlockedSink {
    fn try_send(&self, _: &Frame) -> bool {
        false
    }

    fn notify_pending(&self) {
        self.is_notified.set(true);
    }

    fn health_changed(&self, _: FeedHealth) {}
}

/// A sink that accepts and counts every frame.
struct CountingSink(Rc<Cell<usize>>);

impl Sink for CountingSink {
    fn try_send(&self, frame: &Frame) -> bool {
        black_box(frame.websocket());
        self.0.set(self.0.get() + 1);
        true
    }

    fn notify_pending(&self) {}

    fn health_changed(&self, _: FeedHealth) {}
}

fn job() -> Job {
    let new = NewJob {
        owner: "alice".into(),
        provider: Some("kling".into()),
        provider_task_id: Some("817235034244244789".into()),
        model: Some("kling-v3.0-pro".into()),
        metadata: serde_json::Map::new(),
        request: None,
        deadline: Duration::from_secs(1800),
    };
    Job::new(new, Time::now())
}

/// Opens connections that subscribe to one job, on the shard of this thread.
async fn subscribers(
    hub: &Arc<Hub>,
    job: &Job,
    count: usize,
) -> (Vec<Connection>, Rc<Cell<usize>>) {
    let delivered = Rc::new(Cell::new(0));
    let shard = hub.shard();
    let newest = Arc::new(job.clone());
    let connections = (0..count).map(|_| {
        let connection = Connection::open(&shard, Rc::new(CountingSink(Rc::clone(&delivered))));
        connection.subscribe_paused(&job.id);
        connection.activate(Arc::clone(&newest), 0);
        connection
    });
    (connections.collect(), delivered)
}

/// Measures the delivery of a change to `count` connections.
async fn measure_delivery(count: usize, iterations: u64) -> Duration {
    let hub = Hub::new();
    let mut job = job();
    let (connections, delivered) = subscribers(&hub, &job, count).await;
    assert_eq!(
        delivered.get(),
        count,
        "every connection receives the first version"
    );
    let mut elapsed = Duration::ZERO;
    for _ in 0..iterations {
        delivered.set(0);
        job.version += 1;
        let next = Arc::new(job.clone());
        let start = Instant::now();
        hub.deliver(Arc::new(Frame::new(next)));
        while delivered.get() < count {
            tokio::task::yield_now().await;
        }
        elapsed += start.elapsed();
    }
    drop(connections);
    elapsed
}

/// Measures one connection that requests a pending frame for each of its jobs.
async fn measure_drain(jobs: usize, iterations: u64) -> Duration {
    let hub = Hub::new();
    let shard = hub.shard();
    let sink = Rc::new(BlockedSink::default());
    let connection = Connection::open(&shard, Rc::clone(&sink) as Rc<dyn Sink>);
    let mut jobs: Vec<Job> = (0..jobs).map(|_| job()).collect();
    for job in &jobs {
        connection.subscribe_paused(&job.id);
        connection.activate(Arc::new(job.clone()), job.version);
    }
    let mut elapsed = Duration::ZERO;
    for _ in 0..iterations {
        for job in &mut jobs {
            job.version += 1;
            hub.deliver(Arc::new(Frame::new(Arc::new(job.clone()))));
        }
        while !sink.is_notified.take() {
            tokio::task::yield_now().await;
        }
        let start = Instant::now();
        let mut taken = 0;
        while let Some(frame) = connection.next_frame() {
            black_box(frame.job());
            taken += 1;
        }
        elapsed += start.elapsed();
        assert_eq!(taken, jobs.len(), "every job is delivered once");
    }
    elapsed
}

/// Measures a connection that subscribes to a job with other subscribers and is then dropped.
async fn measure_subscribe_and_drop(others: usize, iterations: u64) -> Duration {
    let hub = Hub::new();
    let job = job();
    let (connections, delivered) = subscribers(&hub, &job, others).await;
    let shard = hub.shard();
    let newest = Arc::new(job.clone());
    let sink = Rc::new(CountingSink(Rc::clone(&delivered)));
    let start = Instant::now();
    for _ in 0..iterations {
        let connection = Connection::open(&shard, Rc::clone(&sink) as Rc<dyn Sink>);
        connection.subscribe_paused(&job.id);
        connection.activate(Arc::clone(&newest), 0);
        drop(black_box(connection));
    }
    let elapsed = start.elapsed();
    drop(connections);
    elapsed
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("deliver");
    for count in [1, 100, 10_000] {
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter_custom(|iterations| {
                LocalSet::new().block_on(&runtime, measure_delivery(count, iterations))
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("drain");
    for jobs in [1, 256] {
        group.throughput(Throughput::Elements(jobs as u64));
        group.bench_function(BenchmarkId::from_parameter(jobs), |bencher| {
            bencher.iter_custom(|iterations| {
                LocalSet::new().block_on(&runtime, measure_drain(jobs, iterations))
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("subscribe_and_drop");
    for others in [0, 10_000] {
        group.bench_function(BenchmarkId::from_parameter(others), |bencher| {
            bencher.iter_custom(|iterations| {
                LocalSet::new().block_on(&runtime, measure_subscribe_and_drop(others, iterations))
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
