//! Jobs as a provider has them, and one who changes them.
//!
//! Invariant: an update is what a webhook makes of a running job: a document of some 600 bytes, with
//! its moment for the watchdog and its place at the provider.

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

use crate::environment::Redis;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A store on this Redis, once it is there; what it announces goes to `announce`.
pub async fn open(
    redis: &Redis,
    announce: impl Fn(StoreEvent) + Send + Sync + 'static,
) -> Arc<dyn Store> {
    let config = StoreConfig {
        url: redis.url(),
        ..Config::defaults().store
    };
    let retention = Retention {
        terminal: DAY,
        active: DAY,
    };
    let node = ChangeListener {
        on_event: Arc::new(announce),
        is_subscribed: Arc::new(|_| true),
    };
    let store = store::open(&config, retention, node).unwrap();
    while store.ping().await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    store
}

fn agenda() -> Schedule {
    Schedule {
        poll_at: Some(Time::now() + Duration::from_secs(60)),
        poll_interval: Duration::from_secs(30),
        poll_backoff: true,
        holds_slot: true,
        ..Schedule::default()
    }
}

/// A new job of an owner, in the store.
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
        schedule: agenda(),
        idempotency: None,
        applied_buffered: Vec::new(),
        budget_entries: Vec::new(),
    };
    assert_eq!(store.create(create).await.unwrap(), CreateOutcome::Created);
    job
}

/// Commits the job's next version.
pub async fn change(store: &dyn Store, job: &mut Job) {
    let now = Time::now();
    let expected = job.version;
    job.version += 1;
    job.status = Status::Running;
    job.source = Source::Webhook;
    job.progress = Some(42.5);
    job.updated_at = now;
    job.started_at = job.started_at.or(Some(now));
    let commit = CommitJob {
        job: Arc::new(job.clone()),
        expected_version: expected,
        schedule: agenda(),
        applied_buffered: Vec::new(),
        budget_entries: Vec::new(),
    };
    assert_eq!(
        store.commit(commit).await.unwrap(),
        CommitOutcome::Committed
    );
}

/// How often something was done, in how long, and how long Redis worked for it.
pub struct Rate {
    pub count: usize,
    pub seconds: f64,
    pub worked: f64,
}

impl Rate {
    #[expect(clippy::cast_precision_loss, reason = "a count of seconds' work")]
    pub fn per_second(&self) -> f64 {
        self.count as f64 / self.seconds
    }

    /// Microseconds of Redis's one thread for each.
    #[expect(clippy::cast_precision_loss, reason = "a count of seconds' work")]
    pub fn cost(&self) -> f64 {
        self.worked * 1e6 / self.count as f64
    }
}

/// Lets all of these go on for a while; each answers how often it got done.
pub async fn rate<W: Future<Output = usize> + Send + 'static>(
    redis: &Redis,
    span: Duration,
    start: impl Fn(Instant) -> Vec<W>,
) -> Rate {
    let worked = redis.worked().await;
    let begun = Instant::now();
    let workers = start(begun + span).into_iter().map(tokio::spawn);
    let counts = join_all(workers).await.into_iter().map(Result::unwrap);
    let count = counts.sum();
    let seconds = begun.elapsed().as_secs_f64();
    Rate {
        count,
        seconds,
        worked: redis.worked().await - worked,
    }
}

/// Changes each of these jobs again and again.
pub async fn changes(redis: &Redis, store: &Arc<dyn Store>, jobs: &[Job], span: Duration) -> Rate {
    rate(redis, span, |until| {
        let workers = jobs.iter().map(|job| {
            let (store, mut job) = (Arc::clone(store), job.clone());
            async move {
                let first = job.version;
                while Instant::now() < until {
                    change(&*store, &mut job).await;
                }
                usize::try_from(job.version - first).unwrap()
            }
        });
        workers.collect()
    })
    .await
}
