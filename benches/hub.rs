//! What one change costs the hub: from [`Hub::deliver`] to the last connection that watches the job;
//! and what a connection costs that lags, or that comes and goes.
//!
//! Invariant: of a delivery, the clock runs from the hand-over until every sink has been offered the
//! new version; making the job's next version, connecting and subscribing stand outside of it.

#![expect(
    clippy::unwrap_used,
    reason = "a bench that can't be set up has nothing to measure"
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

/// A socket that takes nothing: what it is offered waits until it asks.
#[derive(Default)]
struct Slow {
    is_notified: Cell<bool>,
}

impl Sink for Slow {
    fn try_send(&self, _: &Frame) -> bool {
        false
    }

    fn notify_pending(&self) {
        self.is_notified.set(true);
    }

    fn health_changed(&self, _: FeedHealth) {}
}

/// A socket that takes everything at once and counts it, as a quiet one does.
struct Counting(Rc<Cell<usize>>);

impl Sink for Counting {
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

/// Connections that watch one job, on this thread's shard.
async fn watchers(
    hub: &Arc<Hub>,
    job: &Job,
    how_many: usize,
) -> (Vec<Connection>, Rc<Cell<usize>>) {
    let offered = Rc::new(Cell::new(0));
    let shard = hub.shard();
    let newest = Arc::new(job.clone());
    let connections = (0..how_many).map(|_| {
        let connection = Connection::open(&shard, Rc::new(Counting(Rc::clone(&offered))));
        connection.subscribe_paused(&job.id);
        connection.activate(Arc::clone(&newest), 0);
        connection
    });
    (connections.collect(), offered)
}

async fn deliveries(how_many: usize, times: u64) -> Duration {
    let hub = Hub::new();
    let mut job = job();
    let (connections, offered) = watchers(&hub, &job, how_many).await;
    assert_eq!(offered.get(), how_many, "each is shown the first version");
    let mut spent = Duration::ZERO;
    for _ in 0..times {
        offered.set(0);
        job.version += 1;
        let next = Arc::new(job.clone());
        let begun = Instant::now();
        hub.deliver(next);
        while offered.get() < how_many {
            tokio::task::yield_now().await;
        }
        spent += begun.elapsed();
    }
    drop(connections);
    spent
}

/// One slow connection with so many jobs: each has a newer version, and it asks for all of them.
async fn drains(jobs: usize, times: u64) -> Duration {
    let hub = Hub::new();
    let shard = hub.shard();
    let sink = Rc::new(Slow::default());
    let connection = Connection::open(&shard, Rc::clone(&sink) as Rc<dyn Sink>);
    let mut jobs: Vec<Job> = (0..jobs).map(|_| job()).collect();
    for job in &jobs {
        connection.subscribe_paused(&job.id);
        connection.activate(Arc::new(job.clone()), job.version);
    }
    let mut spent = Duration::ZERO;
    for _ in 0..times {
        for job in &mut jobs {
            job.version += 1;
            hub.deliver(Arc::new(job.clone()));
        }
        while !sink.is_notified.take() {
            tokio::task::yield_now().await;
        }
        let begun = Instant::now();
        let mut taken = 0;
        while let Some(frame) = connection.next_frame() {
            black_box(frame.job());
            taken += 1;
        }
        spent += begun.elapsed();
        assert_eq!(taken, jobs.len(), "each has its newest version once");
    }
    spent
}

/// A connection that comes, subscribes to one job that others watch too, and goes.
async fn visits(others: usize, times: u64) -> Duration {
    let hub = Hub::new();
    let job = job();
    let (connections, offered) = watchers(&hub, &job, others).await;
    let shard = hub.shard();
    let newest = Arc::new(job.clone());
    let sink = Rc::new(Counting(Rc::clone(&offered)));
    let begun = Instant::now();
    for _ in 0..times {
        let connection = Connection::open(&shard, Rc::clone(&sink) as Rc<dyn Sink>);
        connection.subscribe_paused(&job.id);
        connection.activate(Arc::clone(&newest), 0);
        drop(black_box(connection));
    }
    let spent = begun.elapsed();
    drop(connections);
    spent
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("deliver");
    for how_many in [1, 100, 10_000] {
        group.throughput(Throughput::Elements(how_many as u64));
        group.bench_function(BenchmarkId::from_parameter(how_many), |bencher| {
            bencher.iter_custom(|times| {
                LocalSet::new().block_on(&runtime, deliveries(how_many, times))
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("drain");
    for jobs in [1, 256] {
        group.throughput(Throughput::Elements(jobs as u64));
        group.bench_function(BenchmarkId::from_parameter(jobs), |bencher| {
            bencher.iter_custom(|times| LocalSet::new().block_on(&runtime, drains(jobs, times)));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("subscribe and drop");
    for others in [0, 10_000] {
        group.bench_function(BenchmarkId::from_parameter(others), |bencher| {
            bencher.iter_custom(|times| LocalSet::new().block_on(&runtime, visits(others, times)));
        });
    }
    group.finish();
    criterion.final_summary();
}
