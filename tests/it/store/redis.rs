//! What the Redis engine alone guarantees: nodes receive each other's changes, and what a crashed node
//! leaves behind is cleaned up.

mod outbox;

use std::sync::Arc;
use std::time::Duration;

use progress_hub::job::{Job, JobId, Status, Topic};
use progress_hub::outbox::DestinationState;
use progress_hub::store::redis::RedisStore;
use progress_hub::store::{
    BudgetStore, ChangeListener, ChangeSource, CommitJob, CommitOutcome, CreateJob, CreateOutcome,
    IdempotencyKey, JobStore, Outbox, Queue, Schedule, SharedState, Store, StoreEvent, WorkQueues,
};
use progress_hub::time::Time;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::budgets::entry;
use super::outbox::{creation_with, delivered, due, failed, to};
use super::{MINUTE, RETENTION, SECOND, creation, ended, job_of, next, now, task, video};
use crate::app::TEST_TIMEOUT;
use crate::redis::{RedisServer, open_store, send_command, wait_until_store_ready};
use crate::wait::wait_until;

/// One of several nodes on a server.
struct Node {
    store: RedisStore,
    events: mpsc::UnboundedReceiver<StoreEvent>,
}

impl Node {
    async fn start(server: &RedisServer) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let listener = ChangeListener {
            on_event: Arc::new(move |event| drop(sender.send(event))),
            is_subscribed: Arc::new(|_| true),
        };
        let store = open_store(&server.url(), None, RETENTION, listener);
        wait_until_store_ready(&store).await;
        Self { store, events }
    }

    async fn next_event(&mut self) -> StoreEvent {
        let event = timeout(TEST_TIMEOUT, self.events.recv()).await;
        event.expect("an event").unwrap()
    }

    /// Returns the id and version of the next change.
    async fn next_change(&mut self) -> (String, u64) {
        match self.next_event().await {
            StoreEvent::JobChanged(frame) => (frame.job().id.to_string(), frame.job().version),
            other @ (StoreEvent::Unavailable
            | StoreEvent::Recovered
            | StoreEvent::SharedStateChanged) => panic!("{other:?}"),
        }
    }

    async fn create(&self, job: &Job, schedule: Schedule) {
        let create = creation(job.clone(), schedule, None);
        self.expect_created(create).await;
    }

    async fn expect_created(&self, create: CreateJob) {
        let outcome = self.store.create(create).await.unwrap();
        assert_eq!(outcome, CreateOutcome::Created);
    }

    async fn commit(&self, next: &Job, schedule: Schedule) {
        let commit = super::commit_job(next, schedule, Vec::new());
        self.store.commit(commit).await.unwrap();
    }

    /// Returns the version that the node has in memory.
    fn recent(&self, id: &JobId) -> Option<u64> {
        self.store.recent(id).map(|recent| recent.job.version)
    }

    /// Commits the version after the one that the node has in memory.
    async fn update(&self, id: &JobId, updated_at: Time) -> CommitOutcome {
        let recent = self.store.recent(id).unwrap();
        let job = Job {
            updated_at,
            ..next(&recent.job)
        };
        let commit = CommitJob {
            expected_revision: Some(recent.revision),
            ..super::commit_job(&job, polled(), Vec::new())
        };
        self.store.commit(commit).await.unwrap()
    }

    /// Returns the balance of the window `ada`.
    async fn balance(&self) -> i64 {
        let windows = ["ada".to_owned()];
        self.store.balances(&windows, now()).await.unwrap()[0]
    }
}

/// Returns the schedule of a job that is polled in ten minutes.
fn polled() -> Schedule {
    Schedule {
        poll_at: Some(now() + 10 * MINUTE),
        poll_interval: MINUTE,
        ..Schedule::default()
    }
}

/// Writes to Redis as a node would have before it crashed.
async fn write(server: &RedisServer, words: &[&str]) {
    let client = server.connect().await;
    send_command::<()>(&client, words).await.unwrap();
}

/// Returns a job of `ada` that charges an amount to the window `ada`.
fn charged(amount: i64) -> CreateJob {
    CreateJob {
        budget_entries: vec![entry("ada", amount)],
        deliveries: Vec::new(),
        ..creation(job_of("ada"), Schedule::default(), None)
    }
}

fn idempotency_key() -> IdempotencyKey {
    IdempotencyKey {
        caller: "ada".into(),
        key: "k".into(),
        fingerprint: "f".into(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_receives_only_subscribed_topics() {
    let server = RedisServer::start().await;
    let (writer, mut reader) = (Node::start(&server).await, Node::start(&server).await);
    let (subscribed, other) = (job_of("ada"), job_of("bob"));
    let topic = Topic::Job(subscribed.id.clone());
    reader.store.subscribe(&[topic]).await.unwrap();
    writer.create(&other, Schedule::default()).await;
    writer.create(&subscribed, Schedule::default()).await;
    writer.commit(&next(&subscribed), Schedule::default()).await;
    let id = subscribed.id.to_string();
    assert_eq!(reader.next_change().await, (id.clone(), 1));
    assert_eq!(reader.next_change().await, (id, 2));

    // The topic of an owner includes jobs that are created later.
    let topic = Topic::Owner("bob".into());
    reader.store.subscribe(&[topic]).await.unwrap();
    writer.commit(&next(&other), Schedule::default()).await;
    let newer = job_of("bob");
    writer.create(&newer, Schedule::default()).await;
    assert_eq!(reader.next_change().await, (other.id.to_string(), 2));
    assert_eq!(reader.next_change().await, (newer.id.to_string(), 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn released_topic_without_subscribers_costs_no_channel() {
    let server = RedisServer::start().await;
    let (used, unused) = (job_of("ada"), job_of("ada"));
    let used_topic = Topic::Job(used.id.clone());
    let is_used = used_topic.clone();
    let listener = ChangeListener {
        on_event: Arc::new(drop),
        is_subscribed: Arc::new(move |topic| *topic == is_used),
    };
    let store = open_store(&server.url(), None, RETENTION, listener);
    wait_until_store_ready(&store).await;
    let system_channels = store.channels().unwrap();
    let topics = vec![used_topic, Topic::Job(unused.id)];
    store.subscribe(&topics).await.unwrap();
    store.release(topics);
    wait_until("the unused channel is dropped", async || {
        store.channels() == Some(system_channels + 1)
    })
    .await;
    let channels: Vec<String> = server.query("PUBSUB CHANNELS *changed:job_*").await;
    assert_eq!(channels.len(), 1);
    assert!(channels[0].ends_with(&used.id.to_string()), "{channels:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_state_changes_are_published() {
    let server = RedisServer::start().await;
    let (writer, mut reader) = (Node::start(&server).await, Node::start(&server).await);
    assert!(reader.store.shared_states().await.unwrap().is_empty());
    writer
        .store
        .put_shared_state("kling", "open")
        .await
        .unwrap();
    assert!(matches!(
        reader.next_event().await,
        StoreEvent::SharedStateChanged
    ));
    let states = reader.store.shared_states().await.unwrap();
    assert_eq!(states, [("kling".to_owned(), "open".to_owned())]);
    writer
        .store
        .put_shared_state("kling", "closed")
        .await
        .unwrap();
    let states = reader.store.shared_states().await.unwrap();
    assert_eq!(states[0].1, "closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_has_the_prefix_and_a_ttl() {
    let server = RedisServer::start().await;
    let node = Node::start(&server).await;
    let schedule = Schedule {
        submit_at: Some(now()),
        poll_at: Some(now()),
        poll_interval: MINUTE,
        poll_backoff: false,
        holds_slot: true,
    };
    let mut create = creation(video("kling"), schedule, Some(idempotency_key()));
    create.budget_entries = vec![entry("ada", 1)];
    node.expect_created(create).await;
    node.create(&task("kling", "1"), schedule).await;
    let finished = job_of("ada");
    node.create(&finished, schedule).await;
    for (job, state) in [(job_of("ada"), 0), (job_of("ada"), 1), (job_of("ada"), 2)] {
        let create = creation_with(&job, &[to("app", "job.created")]);
        node.expect_created(create).await;
        let delivery = due(&node.store, "app", now()).await.remove(0);
        let progress = match state {
            0 => continue,
            1 => delivered(&delivery, now()),
            _ => failed(&delivery, now()),
        };
        let recorded = node.store.record_progress(&delivery.id, progress).await;
        assert!(recorded.unwrap());
    }
    let state = DestinationState {
        revision: 1,
        ..DestinationState::default()
    };
    let put = node.store.put_destination_state("app", state).await;
    assert!(put.unwrap());
    let lease = node.store.lease_destination("app", "a", MINUTE).await;
    assert!(lease.unwrap());
    node.commit(&ended(&finished, Status::Succeeded, now()), schedule)
        .await;
    let early = super::update("early");
    node.store
        .buffer_update("kling", "2", &early, now())
        .await
        .unwrap();
    node.store.put_shared_state("kling", "open").await.unwrap();
    node.store.claim(Queue::Poll, now(), 9).await.unwrap();

    let keys: Vec<String> = server.query("KEYS *").await;
    assert!(keys.len() > 12, "{keys:?}");
    for key in keys {
        assert!(key.starts_with("ph:{"), "{key}");
        let ttl: i64 = server.query(&format!("PTTL {key}")).await;
        assert!(ttl > 0, "{key} has no TTL: {ttl}");
    }
}

/// The node crashes after the reservation and before the job is created.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphaned_reservation_is_released() {
    let server = RedisServer::start().await;
    let node = Node::start(&server).await;
    let create = charged(7);
    let id = create.job.id.clone();
    node.expect_created(create).await;
    server.run(&format!("DEL ph:{{0}}:job:{id}")).await;
    let reserve = async |age: Duration| {
        let entry = json!({
            "job": id, "document_key": format!("{id}:1"), "is_reservation": true,
            "updated_at": now(), "created_at": Time::now() - age, "charges": [entry("ada", 7)],
        });
        let (field, entry) = (format!("{id}:1"), entry.to_string());
        write(
            &server,
            &["HSET", "ph:{0}:all:budget_outbox", &field, &entry],
        )
        .await;
    };
    reserve(SECOND).await;
    node.store.sweep(now()).await.unwrap();
    assert_eq!(node.balance().await, 7, "the job may still be created");
    reserve(MINUTE).await;
    node.store.sweep(now()).await.unwrap();
    assert_eq!(node.balance().await, 0);
    node.store.sweep(now()).await.unwrap();
    assert_eq!(node.balance().await, 0, "it is released once");
}

/// The node crashes after the commit and before the settlement is applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budget_outbox_of_a_dead_node_is_applied_once() {
    let server = RedisServer::start().await;
    let node = Node::start(&server).await;
    let create = charged(7);
    let id = create.job.id.clone();
    node.expect_created(create).await;
    let entry = json!({
        "job": id, "document_key": format!("{id}:2"), "is_reservation": false,
        "updated_at": now(), "created_at": Time::from_millis(0), "charges": [entry("ada", -4)],
    });
    let (field, entry) = (format!("{id}:2"), entry.to_string());
    for _ in 0..2 {
        write(
            &server,
            &["HSET", "ph:{0}:all:budget_outbox", &field, &entry],
        )
        .await;
        node.store.sweep(now()).await.unwrap();
        assert_eq!(node.balance().await, 3);
    }
}

/// The node crashes after the claims and before the job is created.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphaned_key_claim_expires() {
    let server = RedisServer::start().await;
    let node = Node::start(&server).await;
    let claim = json!({ "job": job_of("ada").id, "fingerprint": "g", "at": 0 }).to_string();
    for key in ["ph:{0}:task:kling/1", "ph:{0}:idempotency:3:ada:k"] {
        write(&server, &["SET", key, &claim]).await;
    }
    assert_eq!(node.store.find_task("kling", "1").await.unwrap(), None);
    let job = task("kling", "1");
    let create = creation(job.clone(), Schedule::default(), Some(idempotency_key()));
    node.expect_created(create).await;
    let found = node.store.find_task("kling", "1").await.unwrap();
    assert_eq!(found, Some(job.id));
}

/// The node crashes after the final commit and before the slot is released.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaked_slot_is_reclaimed() {
    let server = RedisServer::start().await;
    let node = Node::start(&server).await;
    let finished = video("kling");
    node.create(&finished, Schedule::default()).await;
    let end = ended(&finished, Status::Failed, now());
    node.commit(&end, Schedule::default()).await;
    let expires_at = (now() + SECOND).millis().to_string();
    let id = finished.id.to_string();
    write(&server, &["ZADD", "ph:{0}:slots:kling", &expires_at, &id]).await;
    let due = Schedule {
        submit_at: Some(now()),
        ..Schedule::default()
    };
    let waiting = video("kling");
    node.create(&waiting, due).await;
    let claim = async |at| {
        let queue = Queue::Submit {
            provider: "kling",
            max_concurrent: 1,
        };
        node.store.claim(queue, at, 9).await.unwrap()
    };
    assert!(claim(now()).await.is_empty(), "the entry is still valid");
    assert_eq!(claim(now() + 2 * SECOND).await, [Arc::new(waiting)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_create_is_charged_once() {
    let server = RedisServer::start().await;
    let node = Node::start(&server).await;
    let create = charged(4);
    node.expect_created(create.clone()).await;
    let repeated = node.store.create(create).await.unwrap();
    assert!(
        matches!(repeated, CreateOutcome::Replayed(_)),
        "{repeated:?}"
    );
    assert_eq!(node.balance().await, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn version_in_memory_is_replaced_when_another_node_updates_the_job() {
    let server = RedisServer::start().await;
    let (mut a, b) = (Node::start(&server).await, Node::start(&server).await);
    let job = job_of("ada");
    let topic = Topic::Job(job.id.clone());
    a.store.subscribe(&[topic]).await.unwrap();
    a.create(&job, polled()).await;
    assert_eq!(a.update(&job.id, now()).await, CommitOutcome::Committed);
    for version in [1, 2] {
        assert_eq!(a.next_change().await, (job.id.to_string(), version));
    }
    assert_eq!((a.recent(&job.id), b.recent(&job.id)), (Some(2), None));

    b.commit(&next(&next(&job)), polled()).await;
    assert_eq!(a.next_change().await, (job.id.to_string(), 3));
    assert_eq!((a.recent(&job.id), b.recent(&job.id)), (None, Some(3)));
    a.commit(&next(&next(&next(&job))), polled()).await;
    assert_eq!(b.update(&job.id, now()).await, CommitOutcome::Conflict);
    assert_eq!(b.recent(&job.id), Some(4));
    assert_eq!(b.update(&job.id, now()).await, CommitOutcome::Committed);
    for version in [4, 5] {
        assert_eq!(a.next_change().await, (job.id.to_string(), version));
    }

    let stored = a.store.get(&job.id).await.unwrap().unwrap();
    b.commit(&ended(&stored, Status::Succeeded, now()), polled())
        .await;
    assert_eq!(b.recent(&job.id), None);
}

/// After a failover, the server has an older version, and then another one with the same number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn version_in_memory_that_the_server_lost_is_not_restored() {
    let server = RedisServer::start().await;
    let (a, b) = (Node::start(&server).await, Node::start(&server).await);
    let job = job_of("ada");
    a.create(&job, polled()).await;
    let key = format!("ph:{{0}}:job:{}", job.id);
    write(&server, &["COPY", &key, "replica"]).await;
    assert_eq!(a.update(&job.id, now()).await, CommitOutcome::Committed);

    write(&server, &["COPY", "replica", &key, "REPLACE"]).await;
    assert_eq!(a.update(&job.id, now()).await, CommitOutcome::Conflict);
    assert_eq!(a.recent(&job.id), Some(1));
    assert_eq!(a.update(&job.id, now()).await, CommitOutcome::Committed);

    write(&server, &["COPY", "replica", &key, "REPLACE"]).await;
    let other = Job {
        stage: Some("other".into()),
        ..next(&job)
    };
    b.commit(&other, polled()).await;
    assert_eq!(a.update(&job.id, now()).await, CommitOutcome::Conflict);
    assert_eq!(a.update(&job.id, now()).await, CommitOutcome::Committed);
    let stored = a.store.get(&job.id).await.unwrap().unwrap();
    assert_eq!(
        (stored.version, stored.stage.as_deref()),
        (3, Some("other"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updated_job_is_kept_until_its_retention_ends() {
    let server = RedisServer::start().await;
    let node = Node::start(&server).await;
    let job = job_of("ada");
    node.create(&job, polled()).await;
    let updated = node.update(&job.id, now() + MINUTE).await;
    assert_eq!(updated, CommitOutcome::Committed);

    let expiry = now() + RETENTION.active;
    for (at, deleted) in [(expiry + SECOND, 0), (expiry + MINUTE, 0)] {
        assert_eq!(node.store.sweep(at).await.unwrap(), deleted);
        assert!(node.store.get(&job.id).await.unwrap().is_some());
    }
    let late = expiry + MINUTE + SECOND;
    assert_eq!(node.store.sweep(late).await.unwrap(), 1);
    assert_eq!(node.update(&job.id, now()).await, CommitOutcome::NotFound);
    assert_eq!(node.recent(&job.id), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn update_does_not_postpone_a_requested_poll() {
    let server = RedisServer::start().await;
    let node = Node::start(&server).await;
    let job = job_of("ada");
    node.create(&job, polled()).await;
    let requested_at = now() + SECOND;
    node.store
        .schedule_poll(&job.id, requested_at, Duration::ZERO)
        .await
        .unwrap();
    let recent = node.store.recent(&job.id).unwrap();
    let later = Schedule {
        poll_at: Some(now() + MINUTE),
        ..polled()
    };
    let commit = CommitJob {
        expected_revision: Some(recent.revision),
        ..super::commit_job(&next(&job), later, Vec::new())
    };
    node.store.commit(commit).await.unwrap();
    let due = node.store.next_due(Queue::Poll).await.unwrap();
    assert_eq!(due, Some(requested_at));
}
