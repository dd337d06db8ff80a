//! Contract tests that every storage engine passes.
//!
//! A contract test uses only the traits of [`progress_hub::store`] and passes time in. To add an
//! engine, add a function to `engines` and a line below the list of tests.
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
mod outbox;
mod outbox_model;
mod queues;
mod read;
mod redis;
mod retention;
mod slots;
mod sqlite;

use std::any::Any;
use std::sync::Arc;
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

/// Defines a module with one test function per engine and contract test.
macro_rules! contract_tests {
    ($engine:ident: $($file:ident::{$($test:ident),* $(,)?})*) => {
        mod $engine {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$file::$test(super::engines::$engine().await).await;
                }
            )*)*
        }
    };
}

macro_rules! store_test_suite {
    ($engine:ident) => {
        contract_tests! { $engine:
            create::{
                create_stores_and_publishes_the_job,
                repeated_request_returns_the_existing_job,
                idempotency_key_of_another_request_conflicts,
                idempotency_keys_are_scoped_by_caller,
                concurrent_equal_requests_create_one_job,
                creating_an_existing_job_returns_it,
                create_with_task_of_another_job_conflicts,
                task_ids_are_scoped_by_provider,
            }
            commit::{
                commit_replaces_and_publishes_the_document,
                commit_with_old_version_conflicts,
                commit_that_skips_a_version_conflicts,
                commit_to_missing_job_returns_not_found,
                commit_with_task_of_another_job_conflicts,
                task_set_by_commit_finds_the_job,
                internal_state_is_stored_with_the_document,
                concurrent_commits_to_one_job_publish_each_version_once_in_order,
                commits_to_different_jobs_never_conflict,
            }
            budgets::{
                create_charges_budgets_up_to_the_limit,
                rejected_create_charges_no_window,
                concurrent_creates_never_exceed_the_limit,
                repeated_request_is_charged_once,
                refund_on_commit_can_be_spent_by_another_job,
                unsuccessful_commit_charges_nothing,
                concurrent_final_commits_are_charged_once,
                balance_of_an_ended_window_is_zero,
                sweep_deletes_ended_windows,
                queued_jobs_count_across_midnight,
                earlier_windows_count_toward_the_limit,
                key_is_charged_once_up_to_the_limit,
                concurrent_charges_never_exceed_the_limit,
            }
            buffered_updates::{
                updates_of_an_unknown_task_are_buffered_in_order,
                update_of_a_known_task_returns_its_job,
                identical_updates_are_buffered_once,
                full_buffer_keeps_the_newest_updates,
                buffer_is_bounded_in_bytes_and_tasks,
                commit_deletes_applied_buffered_updates,
                commit_missing_a_buffered_update_conflicts,
                commit_missing_an_update_in_a_full_buffer_conflicts,
                create_missing_a_buffered_update_conflicts,
                update_racing_task_binding_is_never_lost,
            }
            outbox::{
                deliveries_are_added_with_the_version,
                unsuccessful_writes_add_no_deliveries,
                repeated_create_adds_deliveries_once,
                newer_delivery_supersedes_those_that_wait,
                ended_deliveries_are_kept_when_others_follow,
                independent_deliveries_supersede_no_others,
                superseded_delivery_records_nothing,
                updates_of_an_unchanged_schedule_add_deliveries,
                progress_is_recorded_once_per_revision,
                deliveries_are_due_in_order,
                ended_delivery_leaves_the_queue_until_it_waits_again,
                lists_are_filtered_and_paged,
                long_lists_are_complete,
                destination_state_is_replaced_once_per_revision,
                own_lease_is_extended_and_released,
                ended_deliveries_are_deleted_with_their_job,
                waiting_deliveries_are_deleted_after_their_retention,
                final_delivery_survives_concurrent_updates_and_attempts,
            }
            outbox_model::{
                random_operations_match_a_model,
            }
            queues::{
                due_jobs_are_claimed_in_order_of_due_time,
                owners_take_turns_for_submissions,
                queues_are_independent,
                submission_claim_is_exclusive_until_its_lease_expires,
                polls_repeat_until_the_job_ends,
                claims_never_postpone_a_poll_past_the_deadline,
                commit_ends_the_claim_and_sets_the_schedule,
                finished_job_leaves_the_queues,
                claims_never_overlap,
                requested_poll_is_claimed_at_the_requested_time,
                requested_poll_overrides_an_earlier_claim,
                schedule_poll_never_postpones_and_ignores_final_jobs,
                repeated_poll_requests_are_rate_limited_by_cool_down,
                poll_request_survives_a_concurrent_commit,
                poll_backoff_doubles_the_interval,
                rescheduled_polls_are_jittered,
                next_due_includes_leases,
            }
            slots::{
                claims_never_exceed_free_slots,
                slots_are_counted_per_provider,
                finished_job_releases_its_slot,
                retry_releases_the_slot,
                expired_lease_releases_the_slot,
                no_claims_when_the_limit_is_below_held_slots,
                next_due_ignores_slots,
                concurrent_claims_never_exceed_the_limit,
            }
            read::{
                reads_of_missing_jobs_return_nothing,
                get_many_returns_existing_jobs,
                list_pages_from_newest_to_oldest,
                list_filters_by_owner_and_status,
                list_returns_active_jobs_first_on_request,
                acknowledged_commit_is_visible_to_reads,
            }
            retention::{
                finished_job_is_deleted_after_its_retention,
                inactive_job_is_deleted_after_its_retention,
                deleting_a_job_frees_its_key_and_task,
                buffered_update_is_deleted_after_its_ttl,
                repeated_sweeps_delete_all_expired_jobs,
            }
            close::{
                operations_after_close_fail_with_unavailable,
                operations_queued_before_close_complete,
                close_is_idempotent,
            }
        }
    };
}

store_test_suite!(sqlite_file);
store_test_suite!(sqlite_memory);
store_test_suite!(redis_server);
store_test_suite!(redis_cluster);

/// Fixtures with an empty store of each engine.
mod engines {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Weak};

    use super::{Location, RETENTION, SqliteStore, StoreFixture};
    use crate::redis::cluster::RedisCluster;
    use crate::redis::{RedisServer, open_store, wait_until_store_ready};

    pub(super) async fn sqlite_file() -> StoreFixture {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("hub.db").display());
        sqlite(&url).keep(dir)
    }

    pub(super) async fn sqlite_memory() -> StoreFixture {
        sqlite("sqlite::memory:")
    }

    fn sqlite(url: &str) -> StoreFixture {
        StoreFixture::new(Location::InProcess, |listener| {
            SqliteStore::open(url, RETENTION, listener.on_event).unwrap()
        })
    }

    pub(super) async fn redis_server() -> StoreFixture {
        static SERVER: SharedServer<RedisServer> = SharedServer::const_new(Weak::new());
        let server = shared(&SERVER, RedisServer::start()).await;
        redis(&server.url()).await.keep(server)
    }

    pub(super) async fn redis_cluster() -> StoreFixture {
        static CLUSTER: SharedServer<RedisCluster> = SharedServer::const_new(Weak::new());
        let cluster = shared(&CLUSTER, RedisCluster::start()).await;
        redis(&cluster.url()).await.keep(cluster)
    }

    /// A server that concurrent tests share. It stops when the last of them ends.
    type SharedServer<T> = tokio::sync::Mutex<Weak<T>>;

    async fn shared<T>(server: &SharedServer<T>, start: impl Future<Output = T>) -> Arc<T> {
        let mut server = server.lock().await;
        if let Some(running) = server.upgrade() {
            return running;
        }
        let started = Arc::new(start.await);
        *server = Arc::downgrade(&started);
        started
    }

    /// Connects with a key prefix that no other test uses.
    async fn redis(url: &str) -> StoreFixture {
        static NEXT_PREFIX: AtomicUsize = AtomicUsize::new(0);
        let prefix = format!("test{}", NEXT_PREFIX.fetch_add(1, Ordering::Relaxed));
        let fixture = StoreFixture::new(Location::Remote, |listener| {
            open_store(url, Some(&prefix), RETENTION, listener)
        });
        wait_until_store_ready(&*fixture.store).await;
        fixture
    }
}

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// Seven days for finished jobs, thirty days for unfinished ones.
pub(crate) const RETENTION: Retention = Retention {
    terminal: Duration::from_secs(7 * 24 * 3600),
    active: Duration::from_secs(30 * 24 * 3600),
};

/// Where an engine stores its data.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Location {
    /// In this process: the change feed is never interrupted.
    InProcess,
    /// On a server: a busy machine may interrupt the change feed, but results stay correct.
    Remote,
}

/// A store that records the changes it publishes.
#[derive(Clone)]
pub(crate) struct StoreFixture {
    pub(crate) store: Arc<dyn Store>,
    published: watch::Sender<Vec<Arc<Job>>>,
    /// Directory or server that must outlive the store.
    resource: Option<Arc<dyn Any + Send + Sync>>,
}

impl StoreFixture {
    fn new<S: Store>(location: Location, open: impl FnOnce(ChangeListener) -> S) -> Self {
        let published = watch::Sender::new(Vec::new());
        let sender = published.clone();
        let on_event: EventHandler = Arc::new(move |event| match event {
            StoreEvent::JobChanged(frame) => {
                sender.send_modify(|published| published.push(Arc::clone(frame.job())));
            }
            StoreEvent::SharedStateChanged => {}
            StoreEvent::Unavailable | StoreEvent::Recovered => {
                assert!(location == Location::Remote, "no interruption in process");
            }
        });
        let is_subscribed: SubscriptionFilter = Arc::new(|_| true);
        Self {
            store: Arc::new(open(ChangeListener {
                on_event,
                is_subscribed,
            })),
            published,
            resource: None,
        }
    }

    fn keep(mut self, resource: impl Any + Send + Sync) -> Self {
        self.resource = Some(Arc::new(resource));
        self
    }

    /// Waits until as many versions of a job are published as `expected` contains, and compares.
    pub(crate) async fn expect_published(&self, id: &JobId, expected: &[u64]) {
        let versions = |published: &Vec<Arc<Job>>| -> Vec<u64> {
            let published = published.iter().filter(|job| job.id == *id);
            published.map(|job| job.version).collect()
        };
        let mut published = self.published.subscribe();
        let enough = published.wait_for(|published| versions(published).len() >= expected.len());
        let in_time = tokio::time::timeout(TEST_TIMEOUT, enough).await.is_ok();
        let versions = versions(&self.published.borrow());
        assert_eq!(versions, expected, "published in time: {in_time}");
    }

    pub(crate) async fn create(&self, job: Job) -> Arc<Job> {
        self.create_due(job, Schedule::default()).await
    }

    pub(crate) async fn create_due(&self, job: Job, schedule: Schedule) -> Arc<Job> {
        let create = creation(job, schedule, None);
        let job = Arc::clone(&create.job);
        self.subscribe(&job.id).await;
        assert_eq!(
            self.store.create(create).await.unwrap(),
            CreateOutcome::Created
        );
        job
    }

    async fn subscribe(&self, id: &JobId) {
        let topic = Topic::Job(id.clone());
        self.store.subscribe(&[topic]).await.unwrap();
    }

    /// Creates a job with an idempotency key, with the owner as the caller.
    pub(crate) async fn create_with_key(
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
        self.subscribe(&job.id).await;
        let create = creation(job.clone(), Schedule::default(), Some(idempotency));
        self.store.create(create).await.unwrap()
    }

    /// Commits `next`, expecting the version before it.
    pub(crate) async fn commit(&self, next: &Job) -> CommitOutcome {
        self.commit_due(next, Schedule::default()).await
    }

    pub(crate) async fn commit_due(&self, next: &Job, schedule: Schedule) -> CommitOutcome {
        self.store
            .commit(commit_job(next, schedule, Vec::new()))
            .await
            .unwrap()
    }

    pub(crate) async fn get(&self, id: &JobId) -> Option<Arc<Job>> {
        self.store.get(id).await.unwrap()
    }
}

pub(crate) fn creation(
    job: Job,
    schedule: Schedule,
    idempotency: Option<IdempotencyKey>,
) -> CreateJob {
    CreateJob {
        job: Arc::new(job),
        schedule,
        idempotency,
        applied_buffered: Vec::new(),
        budget_entries: Vec::new(),
        deliveries: Vec::new(),
    }
}

pub(crate) fn commit_job(next: &Job, schedule: Schedule, applied: Vec<Update>) -> CommitJob {
    CommitJob {
        job: Arc::new(next.clone()),
        expected_version: next.version - 1,
        expected_revision: None,
        schedule,
        applied_buffered: applied,
        budget_entries: Vec::new(),
        deliveries: Vec::new(),
    }
}

/// The time at which every test begins.
pub(crate) fn now() -> Time {
    Time::from_millis(1_795_428_000_000)
}

/// A job that a worker registered, without a provider.
pub(crate) fn job_of(owner: &str) -> Job {
    Job::new(new_job(owner), now())
}

/// A job that the hub submits to `provider`.
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

/// A job that was submitted to `provider` earlier.
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

/// The next version of `job`, running.
pub(crate) fn next(job: &Job) -> Job {
    Job {
        version: job.version + 1,
        status: Status::Running,
        source: Source::Push,
        ..job.clone()
    }
}

/// The next version of `job`, finished at `at`.
pub(crate) fn ended(job: &Job, status: Status, at: Time) -> Job {
    Job {
        status,
        updated_at: at,
        finished_at: Some(at),
        ..next(job)
    }
}

/// The next version of `job`, with its task id.
pub(crate) fn bound(job: &Job, task_id: &str) -> Job {
    Job {
        provider_task_id: Some(task_id.into()),
        ..next(job)
    }
}

/// An update that is identified by its stage.
pub(crate) fn update(stage: &str) -> Update {
    StatusReport {
        progress: Some(0.1 + 0.2),
        stage: Some(stage.into()),
        ..StatusReport::with_status(Status::Running)
    }
    .into_update(Source::Webhook)
}
