//! The cache agrees with the database after any sequence of concurrent operations.

use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::*;

use super::*;
use crate::job::{Job, NewJob, Status};
use crate::store::{
    CommitJob, CommitOutcome, CreateJob, CreateOutcome, JobStore, Schedule, WorkQueues,
};

const START: i64 = 1_795_428_000_000;

const RETENTION: Retention = Retention {
    terminal: Duration::from_secs(50),
    active: Duration::from_secs(100),
};

/// Number of jobs that the cache holds, fewer than the jobs of a sequence.
const CACHED_JOBS: usize = 3;

#[derive(Clone, Debug)]
enum Operation {
    Create {
        has_task: bool,
    },
    Commit {
        job: usize,
        edit: Edit,
        is_stale: bool,
    },
    SchedulePoll {
        job: usize,
    },
    ClaimPolls,
    /// Fails the transaction of all operations of the same turn.
    Fail,
    Sweep,
}

#[derive(Clone, Copy, Debug)]
enum Edit {
    Progress,
    Schedule,
    Task,
    Finish,
}

#[derive(Clone, Debug)]
enum Step {
    /// Operations whose transactions may be shared.
    Turn(Vec<Operation>),
    Wait(u64),
    Reopen,
}

fn operation() -> impl Strategy<Value = Operation> {
    let edit = prop_oneof![
        4 => Just(Edit::Progress),
        1 => Just(Edit::Schedule),
        1 => Just(Edit::Task),
        1 => Just(Edit::Finish),
    ];
    prop_oneof![
        2 => any::<bool>().prop_map(|has_task| Operation::Create { has_task }),
        8 => (0..8usize, edit, prop::bool::weighted(0.2))
            .prop_map(|(job, edit, is_stale)| Operation::Commit { job, edit, is_stale }),
        1 => (0..8usize).prop_map(|job| Operation::SchedulePoll { job }),
        1 => Just(Operation::ClaimPolls),
        1 => Just(Operation::Fail),
        2 => Just(Operation::Sweep),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => prop::collection::vec(operation(), 1..6).prop_map(Step::Turn),
        3 => (1..300u64).prop_map(Step::Wait),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..25)
}

/// A store with the newest acknowledged version of each job.
struct Model {
    url: String,
    store: SqliteStore,
    now: Time,
    jobs: Vec<Arc<Job>>,
}

impl Model {
    fn open(url: &str) -> SqliteStore {
        let cache = DocumentCache::bounded(CACHED_JOBS, usize::MAX);
        SqliteStore::open_with_cache(url, RETENTION, Arc::new(|_| {}), cache).unwrap()
    }

    fn new_job(&self, task_id: Option<String>) -> Arc<Job> {
        let new = NewJob {
            owner: "ada".into(),
            provider: Some("kling".into()),
            provider_task_id: task_id,
            model: None,
            metadata: serde_json::Map::new(),
            request: None,
            deadline: Duration::from_secs(3600),
        };
        Arc::new(Job::new(new, self.now))
    }

    fn schedule(&self, job: &Job, offset: u64) -> Schedule {
        Schedule {
            poll_at: (!job.is_final())
                .then(|| Time::from_millis(START) + Duration::from_secs(offset)),
            poll_interval: Duration::from_secs(10),
            ..Schedule::default()
        }
    }

    fn next(&self, job: &Job, edit: Edit) -> Arc<Job> {
        let mut next = job.clone();
        next.version += 1;
        next.updated_at = self.now;
        match edit {
            Edit::Progress | Edit::Schedule => next.progress = Some(f64::from(next.attempt) + 1.0),
            Edit::Task => next.provider_task_id = Some(format!("{}-{}", job.id, next.version)),
            Edit::Finish => {
                next.status = Status::Succeeded;
                next.finished_at = Some(self.now);
            }
        }
        Arc::new(next)
    }

    /// Runs an operation and returns the version that it stored, if any.
    async fn run(&self, operation: &Operation) -> Option<Arc<Job>> {
        match *operation {
            Operation::Create { has_task } => {
                let task = has_task.then(|| format!("task-{}", crate::job::JobId::new()));
                let job = self.new_job(task);
                let create = CreateJob {
                    schedule: self.schedule(&job, 1000),
                    job: Arc::clone(&job),
                    idempotency: None,
                    applied_buffered: Vec::new(),
                    budget_entries: Vec::new(),
                    deliveries: Vec::new(),
                };
                let created = self.store.create(create).await;
                (created.ok()? == CreateOutcome::Created).then_some(job)
            }
            Operation::Commit {
                job,
                edit,
                is_stale,
            } => {
                let current = self.jobs.get(job).filter(|job| !job.is_final())?;
                let next = self.next(current, edit);
                let offset = match edit {
                    Edit::Schedule => 2000 + next.version,
                    Edit::Progress | Edit::Task | Edit::Finish => 1000,
                };
                let commit = CommitJob {
                    schedule: self.schedule(&next, offset),
                    job: Arc::clone(&next),
                    expected_version: current.version - u64::from(is_stale),
                    expected_revision: None,
                    applied_buffered: Vec::new(),
                    budget_entries: Vec::new(),
                    deliveries: Vec::new(),
                };
                let committed = self.store.commit(commit).await;
                assert!(!(is_stale && matches!(committed, Ok(CommitOutcome::Committed))));
                (committed.ok()? == CommitOutcome::Committed).then_some(next)
            }
            Operation::SchedulePoll { job } => {
                let id = &self.jobs.get(job)?.id;
                self.store
                    .schedule_poll(id, self.now, Duration::ZERO)
                    .await
                    .ok();
                None
            }
            Operation::ClaimPolls => {
                self.store
                    .claim(crate::store::Queue::Poll, self.now, 10)
                    .await
                    .ok();
                None
            }
            Operation::Fail => {
                let fail = |_: &Connection, _: &mut Changes| {
                    Err::<(), _>(Error::Unavailable("test".to_owned()))
                };
                self.store.write(fail).await.unwrap_err();
                None
            }
            Operation::Sweep => {
                self.store.sweep(self.now).await.ok();
                None
            }
        }
    }

    async fn run_turn(&mut self, operations: &[Operation]) {
        let stored = join_all(operations.iter().map(|it| self.run(it))).await;
        for job in stored.into_iter().flatten() {
            match self.jobs.iter_mut().find(|known| known.id == job.id) {
                Some(known) => *known = job,
                None => self.jobs.push(job),
            }
        }
    }

    /// Checks that reads agree with the database, and the database with what was acknowledged.
    async fn check(&mut self) {
        for known in &mut self.jobs {
            let (id, task) = (known.id.clone(), known.provider_task_id.clone());
            let by_task = task.clone().unwrap_or_default();
            let (in_database, holder) = self
                .store
                .read(move |db| {
                    let job = jobs::get(db, id.as_str())?;
                    Ok((job, jobs::find_task(db, ("kling", &by_task))?))
                })
                .await
                .unwrap();
            assert_eq!(self.store.get(&known.id).await.unwrap(), in_database);
            let many = self.store.get_many(std::slice::from_ref(&known.id)).await;
            assert_eq!(many.unwrap().first(), in_database.as_ref());
            if let Some(task) = &task {
                assert_eq!(self.store.find_task("kling", task).await.unwrap(), holder);
            }
            match in_database {
                // An acknowledged version is stored, until the job is deleted.
                Some(stored) => assert_eq!(stored.version, known.version),
                None => assert!(self.now > known.updated_at + RETENTION.terminal),
            }
        }
        self.store.ping().await.unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn cache_agrees_with_the_database(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let url = format!("sqlite://{}", directory.path().join("hub.db").display());
            let mut model = Model {
                store: Model::open(&url),
                url,
                now: Time::from_millis(START),
                jobs: Vec::new(),
            };
            for step in &steps {
                match step {
                    Step::Turn(operations) => model.run_turn(operations).await,
                    Step::Wait(seconds) => model.now = model.now + Duration::from_secs(*seconds),
                    Step::Reopen => {
                        model.store.close().await;
                        model.store = Model::open(&model.url);
                    }
                }
                model.check().await;
            }
            model.store.close().await;
        });
    }
}
