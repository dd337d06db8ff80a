//! What every store promises: one list of stories, told against each engine.
//!
//! Invariant: a story knows only the trait and passes time in, so an engine is added by a function
//! in `engines` and one line below the list.
#![allow(
    clippy::unwrap_used,
    clippy::cloned_ref_to_slice_refs,
    reason = "a test fails by panicking, and compares with lists of one as with others"
)]

mod budgets;
mod buffered_updates;
mod close;
mod commit;
mod create;
mod queues;
mod read;
mod redis;
mod retention;
mod slots;
mod sqlite;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use progress_hub::job::{
    Job, JobId, NewJob, Source, Status, StatusReport, Topic, Update, VideoRequest,
};
use progress_hub::store::sqlite::SqliteStore;
use progress_hub::store::{
    ChangeListener, CommitJob, CommitOutcome, CreateJob, CreateOutcome, EventHandler,
    IdempotencyKey, Retention, Schedule, Store, StoreEvent, SubscriptionFilter,
};
use progress_hub::time::Time;
use serde_json::Map;
use tokio::sync::watch;

use crate::app::TEST_TIMEOUT;

/// Names of files and stories, to be told against one engine.
macro_rules! tell {
    ($engine:ident: $($file:ident::{$($story:ident),* $(,)?})*) => {
        mod $engine {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $story() {
                    super::$file::$story(super::engines::$engine().await).await;
                }
            )*)*
        }
    };
}

macro_rules! tell_every_story {
    ($engine:ident) => {
        tell! { $engine:
            create::{
                create_stores_and_publishes_the_job,
                a_repeated_request_finds_the_job_it_made,
                a_key_is_not_reused_for_another_request,
                equal_keys_of_two_callers_are_two_keys,
                one_of_many_equal_requests_makes_the_job,
                a_job_is_created_once,
                a_task_is_one_jobs,
                equal_task_ids_of_two_providers_are_two_tasks,
            }
            commit::{
                a_commit_replaces_the_document_and_is_announced,
                commit_with_old_version_conflicts,
                a_commit_from_a_version_that_never_was_is_stale,
                commit_to_missing_job_returns_not_found,
                a_commit_that_takes_anothers_task_is_stale,
                a_task_that_became_known_finds_its_job,
                the_ticket_is_kept_beside_the_document,
                writers_of_one_job_are_announced_once_and_in_order,
                writers_of_many_jobs_do_not_disturb_each_other,
            }
            budgets::{
                a_new_job_is_charged_up_to_the_limit,
                a_refused_job_charges_none_of_its_accounts,
                of_many_jobs_as_many_are_kept_as_the_limit_allows,
                a_repeated_request_is_charged_once,
                an_end_gives_back_what_another_job_then_takes,
                a_commit_that_is_not_done_books_nothing,
                concurrent_final_commits_are_charged_once,
                an_account_that_has_ended_is_zero_again,
                accounts_that_have_ended_are_forgotten,
            }
            buffered_updates::{
                news_of_an_unknown_task_is_parked_in_order,
                news_of_a_known_task_is_not_parked,
                the_same_news_is_parked_once,
                of_too_much_news_the_latest_is_kept,
                commit_deletes_applied_buffered_updates,
                commit_missing_a_buffered_update_conflicts,
                a_commit_that_missed_news_in_a_full_park_is_stale,
                a_create_that_missed_news_is_stale,
                update_racing_task_binding_is_never_lost,
            }
            queues::{
                what_is_due_is_claimed_earliest_first,
                a_queue_holds_its_own_jobs_only,
                a_lease_keeps_others_away_until_it_ends,
                polls_repeat_until_the_job_ends,
                claims_never_postpone_a_poll_past_the_deadline,
                a_commit_ends_the_lease_and_sets_the_agenda,
                an_ended_job_leaves_the_queues,
                claims_never_overlap,
                requested_poll_is_claimed_at_the_requested_time,
                a_hastened_job_is_claimed_despite_an_earlier_claim,
                schedule_poll_never_postpones_and_ignores_final_jobs,
                repeated_poll_requests_are_rate_limited_by_cool_down,
                poll_request_survives_a_concurrent_commit,
                poll_backoff_doubles_the_interval,
                rescheduled_polls_are_jittered,
                the_next_due_time_counts_leases_in,
            }
            slots::{
                claims_never_exceed_free_slots,
                places_of_two_providers_are_apart,
                an_end_frees_a_place,
                a_retry_frees_a_place,
                an_expired_lease_frees_a_place,
                fewer_places_than_are_taken_are_none,
                the_next_due_time_ignores_places,
                concurrent_claims_never_exceed_the_limit,
            }
            read::{
                what_does_not_exist_is_not_found,
                many_are_read_at_once,
                a_listing_is_newest_first_and_goes_on_at_its_cursor,
                a_listing_keeps_owners_and_statuses_apart,
                a_listing_can_begin_with_the_unfinished,
                what_was_acknowledged_is_read,
            }
            retention::{
                an_ended_job_is_forgotten_after_its_retention,
                a_silent_job_is_forgotten_after_its_retention,
                a_forgotten_job_takes_its_key_and_task_along,
                parked_news_is_forgotten_after_an_hour,
                a_sweep_goes_on_until_nothing_is_left,
            }
            close::{
                it_answers_until_it_is_closed,
                operations_queued_before_close_complete,
                it_can_be_closed_twice,
            }
        }
    };
}

tell_every_story!(sqlite_file);
tell_every_story!(sqlite_memory);
tell_every_story!(redis_server);
tell_every_story!(redis_cluster);

/// The engines, each fresh and empty.
mod engines {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Weak};

    use super::{ChangeListener, Engine, SqliteStore};
    use crate::redis::cluster::RedisCluster;
    use crate::redis::{RedisServer, open_store, wait_until_store_ready};

    pub(super) async fn sqlite_file() -> Engine {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("hub.db").display());
        let mut engine = sqlite(&url);
        engine.keep(dir);
        engine
    }

    pub(super) async fn sqlite_memory() -> Engine {
        sqlite("sqlite::memory:")
    }

    fn sqlite(url: &str) -> Engine {
        let open =
            |node: ChangeListener| SqliteStore::open(url, super::RETENTION, node.on_event).unwrap();
        let engine = Engine::new(open);
        engine.is_own.store(true, Ordering::SeqCst);
        engine
    }

    pub(super) async fn redis_server() -> Engine {
        static SERVER: Ground<RedisServer> = Ground::const_new(Weak::new());
        let server = shared(&SERVER, RedisServer::start()).await;
        let mut engine = connected(&server.url()).await;
        engine.keep(server);
        engine
    }

    pub(super) async fn redis_cluster() -> Engine {
        static CLUSTER: Ground<RedisCluster> = Ground::const_new(Weak::new());
        let cluster = shared(&CLUSTER, RedisCluster::start()).await;
        let mut engine = connected(&cluster.url()).await;
        engine.keep(cluster);
        engine
    }

    /// Servers that the stories of the moment stand on, each with a prefix of its own. The last
    /// story stops them.
    type Ground<T> = tokio::sync::Mutex<Weak<T>>;

    async fn shared<T>(ground: &Ground<T>, start: impl Future<Output = T>) -> Arc<T> {
        let mut known = ground.lock().await;
        match known.upgrade() {
            Some(running) => running,
            None => {
                let started = Arc::new(start.await);
                *known = Arc::downgrade(&started);
                started
            }
        }
    }

    async fn connected(url: &str) -> Engine {
        static STORIES: AtomicUsize = AtomicUsize::new(0);
        let prefix = format!("story{}", STORIES.fetch_add(1, Ordering::Relaxed));
        let open = |listener| open_store(url, Some(&prefix), super::RETENTION, listener);
        let engine = Engine::new(open);
        wait_until_store_ready(&*engine.store).await;
        engine
    }
}

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// An ended job for a week, an unfinished one for thirty days.
pub(crate) const RETENTION: Retention = Retention {
    terminal: Duration::from_secs(7 * 24 * 3600),
    active: Duration::from_secs(30 * 24 * 3600),
};

/// A store and what it has announced.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) store: Arc<dyn Store>,
    heard: watch::Sender<Vec<Arc<Job>>>,
    /// Whether it is in this process, and so never away. Another may be called so for a moment by a
    /// busy machine; its answers still have to be right.
    is_own: Arc<AtomicBool>,
    /// What it stands on, as long as it is there.
    ground: Option<Arc<dyn Any + Send + Sync>>,
}

impl Engine {
    fn new<S: Store>(open: impl FnOnce(ChangeListener) -> S) -> Self {
        let heard = watch::Sender::new(Vec::new());
        let is_own = Arc::new(AtomicBool::new(false));
        let (ear, own) = (heard.clone(), Arc::clone(&is_own));
        let announce: EventHandler = Arc::new(move |event| match event {
            StoreEvent::JobChanged(job) => ear.send_modify(|heard| heard.push(job)),
            StoreEvent::SharedStateChanged => {}
            StoreEvent::Unavailable | StoreEvent::Recovered => {
                assert!(!own.load(Ordering::SeqCst), "nothing went away");
            }
        });
        let wanted: SubscriptionFilter = Arc::new(|_| true);
        Self {
            store: Arc::new(open(ChangeListener {
                on_event: announce,
                is_subscribed: wanted,
            })),
            heard,
            is_own,
            ground: None,
        }
    }

    fn keep(&mut self, ground: impl Any + Send + Sync) {
        self.ground = Some(Arc::new(ground));
    }

    /// Waits until as many versions of a job were announced as are expected, which must be these.
    pub(crate) async fn expect_heard(&self, id: &JobId, expected: &[u64]) {
        let versions = |heard: &Vec<Arc<Job>>| -> Vec<u64> {
            let heard = heard.iter().filter(|job| job.id == *id);
            heard.map(|job| job.version).collect()
        };
        let mut heard = self.heard.subscribe();
        let enough = heard.wait_for(|heard| versions(heard).len() >= expected.len());
        let waited = tokio::time::timeout(TEST_TIMEOUT, enough).await.is_ok();
        let versions = versions(&self.heard.borrow());
        assert_eq!(versions, expected, "waited long enough: {waited}");
    }

    pub(crate) async fn create(&self, job: Job) -> Arc<Job> {
        self.create_due(job, Schedule::default()).await
    }

    pub(crate) async fn create_due(&self, job: Job, agenda: Schedule) -> Arc<Job> {
        let create = creation(job, agenda, None);
        let job = Arc::clone(&create.job);
        self.listen(&job.id).await;
        assert_eq!(
            self.store.create(create).await.unwrap(),
            CreateOutcome::Created
        );
        job
    }

    /// Hears of a job from now on.
    pub(crate) async fn listen(&self, id: &JobId) {
        self.store
            .subscribe(&[Topic::Job(id.clone())])
            .await
            .unwrap();
    }

    /// Creates under a key of the job's owner, as the caller.
    pub(crate) async fn create_once(
        &self,
        job: &Job,
        key: &str,
        fingerprint: &str,
    ) -> CreateOutcome {
        let idempotency = IdempotencyKey {
            caller: job.owner.clone(),
            key: key.into(),
            fingerprint: fingerprint.into(),
        };
        self.listen(&job.id).await;
        let create = creation(job.clone(), Schedule::default(), Some(idempotency));
        self.store.create(create).await.unwrap()
    }

    /// Commits `next` as made from the version before it.
    pub(crate) async fn commit(&self, next: &Job) -> CommitOutcome {
        self.commit_due(next, Schedule::default()).await
    }

    pub(crate) async fn commit_due(&self, next: &Job, agenda: Schedule) -> CommitOutcome {
        self.store
            .commit(commitment(next, agenda, Vec::new()))
            .await
            .unwrap()
    }

    pub(crate) async fn get(&self, id: &JobId) -> Option<Arc<Job>> {
        self.store.get(id).await.unwrap()
    }
}

pub(crate) fn creation(
    job: Job,
    agenda: Schedule,
    idempotency: Option<IdempotencyKey>,
) -> CreateJob {
    CreateJob {
        job: Arc::new(job),
        schedule: agenda,
        idempotency,
        applied_buffered: Vec::new(),
        budget_entries: Vec::new(),
    }
}

pub(crate) fn commitment(next: &Job, agenda: Schedule, folded: Vec<Update>) -> CommitJob {
    CommitJob {
        job: Arc::new(next.clone()),
        expected_version: next.version - 1,
        schedule: agenda,
        applied_buffered: folded,
        budget_entries: Vec::new(),
    }
}

/// Now, as far as a story is concerned.
pub(crate) fn now() -> Time {
    Time::from_millis(1_795_428_000_000)
}

/// A worker's own job.
pub(crate) fn job_of(owner: &str) -> Job {
    Job::new(new_job(owner), now())
}

/// A job that the hub submits to this provider.
pub(crate) fn video(provider: &str) -> Job {
    let request = VideoRequest {
        model: "m".into(),
        prompt: "a lighthouse in the fog".into(),
        ..VideoRequest::default()
    };
    let new = NewJob {
        provider: Some(provider.into()),
        request: Some(request),
        ..new_job("ada")
    };
    Job::new(new, now())
}

/// A job that this provider has already.
pub(crate) fn task(provider: &str, task_id: &str) -> Job {
    let new = NewJob {
        provider: Some(provider.into()),
        provider_task_id: Some(task_id.into()),
        ..new_job("ada")
    };
    Job::new(new, now())
}

fn new_job(owner: &str) -> NewJob {
    NewJob {
        owner: owner.into(),
        provider: None,
        provider_task_id: None,
        model: None,
        metadata: Map::new(),
        request: None,
        deadline: DAY,
    }
}

/// The job one version on, running.
pub(crate) fn next(job: &Job) -> Job {
    Job {
        version: job.version + 1,
        status: Status::Running,
        source: Source::Push,
        ..job.clone()
    }
}

/// The job one version on, ended at `at`.
pub(crate) fn ended(job: &Job, status: Status, at: Time) -> Job {
    Job {
        status,
        updated_at: at,
        finished_at: Some(at),
        ..next(job)
    }
}

/// The job one version on, with its task known.
pub(crate) fn bound(job: &Job, task_id: &str) -> Job {
    Job {
        provider_task_id: Some(task_id.into()),
        ..next(job)
    }
}

/// News that differs from others by its stage.
pub(crate) fn news(stage: &str) -> Update {
    StatusReport {
        progress: Some(0.1 + 0.2),
        stage: Some(stage.into()),
        ..StatusReport::with_status(Status::Running)
    }
    .into_update(Source::Webhook)
}
