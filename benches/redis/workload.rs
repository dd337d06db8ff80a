//! Jobs at a provider, and their updates.
//!
//! An update is that of a webhook to a running job: a document of about 600 bytes, a scheduled poll, and
//! a concurrency slot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use progress_hub::config::{Config, StoreConfig};
use progress_hub::job::{Job, NewJob, Source, Status};
use progress_hub::store::{
    self, ChangeListener, CommitJob, CommitOutcome, CreateJob, CreateOutcome, Retention, Schedule,
    Store, StoreEvent,
};
use progress_hub::time::Time;

use crate::environment::{READINESS_INTERVAL, RedisProcess};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Opens a store and waits until it is ready.
pub async fn open(
    redis: &RedisProcess,
    on_event: impl Fn(StoreEvent) + Send + Sync + 'static,
) -> Arc<dyn Store> {
    let config = StoreConfig {
        url: redis.url(),
        ..Config::defaults().store
    };
    let retention = Retention {
        terminal: DAY,
        active: DAY,
    };
    let listener = ChangeListener {
        on_event: Arc::new(on_event),
        is_subscribed: Arc::new(|_| true),
    };
    let store = store::open(&config, retention, listener).unwrap();
    while store.ping().await.is_err() {
        tokio::time::sleep(READINESS_INTERVAL).await;
    }
    store
}

fn schedule() -> Schedule {
    Schedule {
        poll_at: Some(Time::now() + Duration::from_secs(60)),
        poll_interval: Duration::from_secs(30),
        poll_backoff: true,
        holds_slot: true,
        ..Schedule::default()
    }
}

/// Creates a job of an owner.
pub async fn create(store: &dyn Store, owner: &str) -> Job {
    let mut new = NewJob {
        owner: owner.to_owned(),
        provider: Some("kling".to_owned()),
        provider_task_id: None,
        model: Some("kling-v3.0-pro".to_owned()),
        metadata: serde_json::Map::new(),
        request: None,
        deadline: Duration::from_secs(3600),
    };
    new.metadata
        .insert("title".to_owned(), "A paper boat at dawn".into());
    let mut job = Job::new(new, Time::now());
    job.provider_task_id = Some(job.id.to_string());
    let create = CreateJob {
        job: Arc::new(job.clone()),
        schedule: schedule(),
        idempotency: None,
        applied_buffered: Vec::new(),
        budget_entries: Vec::new(),
        deliveries: Vec::new(),
    };
    assert_eq!(store.create(create).await.unwrap(), CreateOutcome::Created);
    job
}

/// Commits the next version of a job.
pub async fn commit_next(store: &dyn Store, job: &mut Job) {
    let now = Time::now();
    let expected_version = job.version;
    job.version += 1;
    job.status = Status::Running;
    job.source = Source::Webhook;
    job.progress = Some(42.5);
    job.updated_at = now;
    job.started_at = job.started_at.or(Some(now));
    let commit = CommitJob {
        job: Arc::new(job.clone()),
        expected_version,
        expected_revision: None,
        schedule: schedule(),
        applied_buffered: Vec::new(),
        budget_entries: Vec::new(),
        deliveries: Vec::new(),
    };
    assert_eq!(
        store.commit(commit).await.unwrap(),
        CommitOutcome::Committed
    );
}

/// The result of a measurement.
pub struct Rate {
    pub count: usize,
    pub seconds: f64,
    /// CPU time of Redis.
    pub cpu_seconds: f64,
}

impl Rate {
    #[expect(clippy::cast_precision_loss, reason = "the count is below 2^53")]
    pub fn per_second(&self) -> f64 {
        self.count as f64 / self.seconds
    }

    /// Returns the CPU time of Redis for each operation, in microseconds.
    #[expect(clippy::cast_precision_loss, reason = "the count is below 2^53")]
    pub fn cost(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.count as f64
    }
}

/// Runs workers until the end of `span`. Each returns the number of its operations.
pub async fn measure_rate<W: Future<Output = usize> + Send + 'static>(
    redis: &RedisProcess,
    span: Duration,
    start: impl Fn(Instant) -> Vec<W>,
) -> Rate {
    let cpu_seconds = redis.cpu_seconds().await;
    let started_at = Instant::now();
    let workers = start(started_at + span).into_iter().map(tokio::spawn);
    let counts = join_all(workers).await.into_iter().map(Result::unwrap);
    let count = counts.sum();
    let seconds = started_at.elapsed().as_secs_f64();
    Rate {
        count,
        seconds,
        cpu_seconds: redis.cpu_seconds().await - cpu_seconds,
    }
}

/// Commits new versions of each job until the end of `span`.
pub async fn commit_repeatedly(
    redis: &RedisProcess,
    store: &Arc<dyn Store>,
    jobs: &[Job],
    span: Duration,
) -> Rate {
    measure_rate(redis, span, |until| {
        let workers = jobs.iter().map(|job| {
            let (store, mut job) = (Arc::clone(store), job.clone());
            async move {
                let first = job.version;
                while Instant::now() < until {
                    commit_next(&*store, &mut job).await;
                }
                usize::try_from(job.version - first).unwrap()
            }
        });
        workers.collect()
    })
    .await
}
