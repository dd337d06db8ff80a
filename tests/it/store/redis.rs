//! What only the shared engine promises: nodes hear of each other, and what a dead one left is found.

use std::collections::BTreeSet;
use std::sync::Arc;

use progress_hub::config::{Config, StoreConfig};
use progress_hub::job::{Job, Status, Topic};
use progress_hub::store::redis::RedisStore;
use progress_hub::store::{
    BudgetStore, ChangeListener, ChangeSource, CreateJob, CreateOutcome, JobStore, Queue, Schedule,
    SharedState, Store, StoreEvent, WorkQueues,
};
use serde_json::json;
use tokio::sync::mpsc;

use super::budgets::entry;
use super::{DAY, MINUTE, RETENTION, SECOND, creation, ended, job_of, next, now, task, video};
use crate::app::TEST_TIMEOUT;
use crate::redis::RedisServer;
use crate::redis::resp_client::Reply;

/// One of several nodes on a server.
struct Peer {
    store: RedisStore,
    events: mpsc::UnboundedReceiver<StoreEvent>,
}

impl Peer {
    async fn on(server: &RedisServer) -> Self {
        let (ear, events) = mpsc::unbounded_channel();
        let node = ChangeListener {
            on_event: Arc::new(move |event| drop(ear.send(event))),
            is_subscribed: Arc::new(|_| true),
        };
        let config = StoreConfig {
            url: server.url(),
            ..Config::defaults().store
        };
        let store = RedisStore::open(&config, RETENTION, node).unwrap();
        let there = async {
            while store.ping().await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(TEST_TIMEOUT, there).await.unwrap();
        Self { store, events }
    }

    /// What it hears next.
    async fn hears(&mut self) -> StoreEvent {
        let heard = tokio::time::timeout(TEST_TIMEOUT, self.events.recv()).await;
        heard.expect("it hears something").unwrap()
    }

    async fn hears_version(&mut self) -> (String, u64) {
        match self.hears().await {
            StoreEvent::JobChanged(job) => (job.id.to_string(), job.version),
            other @ (StoreEvent::Unavailable
            | StoreEvent::Recovered
            | StoreEvent::SharedStateChanged) => panic!("{other:?}"),
        }
    }
}

fn owned(owner: &str) -> Job {
    job_of(owner)
}

async fn create(store: &RedisStore, job: &Job, agenda: Schedule) {
    let created = store.create(creation(job.clone(), agenda, None)).await;
    assert_eq!(created.unwrap(), CreateOutcome::Created);
}

async fn commit(store: &RedisStore, next: &Job, agenda: Schedule) {
    let commit = super::commitment(next, agenda, Vec::new());
    store.commit(commit).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_receives_only_subscribed_topics() {
    let server = RedisServer::start().await;
    let (writer, mut reader) = (Peer::on(&server).await, Peer::on(&server).await);
    let (mine, other) = (owned("ada"), owned("bob"));
    reader
        .store
        .subscribe(&[Topic::Job(mine.id.clone())])
        .await
        .unwrap();
    create(&writer.store, &other, Schedule::default()).await;
    create(&writer.store, &mine, Schedule::default()).await;
    commit(&writer.store, &next(&mine), Schedule::default()).await;
    let id = mine.id.to_string();
    assert_eq!(reader.hears_version().await, (id.clone(), 1));
    assert_eq!(reader.hears_version().await, (id, 2));

    // All of an owner's, those that are yet to come too.
    reader
        .store
        .subscribe(&[Topic::Owner("bob".into())])
        .await
        .unwrap();
    commit(&writer.store, &next(&other), Schedule::default()).await;
    let newer = owned("bob");
    create(&writer.store, &newer, Schedule::default()).await;
    assert_eq!(reader.hears_version().await, (other.id.to_string(), 2));
    assert_eq!(reader.hears_version().await, (newer.id.to_string(), 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_state_changes_are_published() {
    let server = RedisServer::start().await;
    let (one, mut other) = (Peer::on(&server).await, Peer::on(&server).await);
    assert!(other.store.shared_states().await.unwrap().is_empty());
    one.store.put_shared_state("kling", "paused").await.unwrap();
    assert!(matches!(
        other.hears().await,
        StoreEvent::SharedStateChanged
    ));
    let remembered = other.store.shared_states().await.unwrap();
    assert_eq!(remembered, [("kling".to_owned(), "paused".to_owned())]);
    one.store.put_shared_state("kling", "open").await.unwrap();
    let remembered = other.store.shared_states().await.unwrap();
    assert_eq!(remembered[0].1, "open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_has_the_prefix_and_an_end() {
    let server = RedisServer::start().await;
    let peer = Peer::on(&server).await;
    let due = Schedule {
        submit_at: Some(now()),
        poll_at: Some(now()),
        poll_interval: MINUTE,
        poll_backoff: false,
        holds_slot: true,
    };
    let mut paid = creation(video("kling"), due, None);
    paid.budget_entries = vec![entry("ada", 1)];
    paid.idempotency = Some(progress_hub::store::IdempotencyKey {
        caller: "ada".into(),
        key: "k".into(),
        fingerprint: "f".into(),
    });
    peer.store.create(paid).await.unwrap();
    create(&peer.store, &task("kling", "1"), due).await;
    let over = owned("ada");
    create(&peer.store, &over, due).await;
    commit(&peer.store, &ended(&over, Status::Succeeded, now()), due).await;
    let news = super::news("early");
    peer.store
        .buffer_update("kling", "2", &news, now())
        .await
        .unwrap();
    peer.store.put_shared_state("kling", "open").await.unwrap();
    peer.store.claim(Queue::Poll, now(), 9).await.unwrap();

    let keys = server.ask("KEYS *").await;
    let names: BTreeSet<&str> = keys.list().iter().map(Reply::text).collect();
    assert!(names.len() > 12, "{names:?}");
    for name in names {
        assert!(name.starts_with("ph:{"), "{name}");
        let left = server.ask(&format!("PTTL {name}")).await.number();
        assert!(left > 0, "{name} is kept for ever: {left}");
    }
}

/// As a node leaves it that dies after it has reserved, and before it has created.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphaned_reservation_is_released() {
    let server = RedisServer::start().await;
    let peer = Peer::on(&server).await;
    let job = owned("ada");
    let mut paid = creation(job.clone(), Schedule::default(), None);
    paid.budget_entries = vec![entry("ada", 7)];
    assert_eq!(
        peer.store.create(paid.clone()).await.unwrap(),
        CreateOutcome::Created
    );
    server.ask(&format!("DEL ph:{{0}}:job:{}", job.id)).await;
    let balance = async || {
        peer.store
            .balances(&["ada".to_owned()], now())
            .await
            .unwrap()[0]
    };
    let debt = |age: i64| {
        json!({
            "job": job.id, "is_reserved": true, "now": now().millis(),
            "written_at": progress_hub::time::Time::now().millis() - age,
            "sums": [{ "account": "ada", "ends_at": (now() + DAY).millis(), "amounts": [[7, 10]] }],
        })
    };
    let owe = async |age| {
        let (tag, debt) = (format!("{}:1", job.id), debt(age).to_string());
        let mut speaker = server.speaker().await;
        let owed = ["HSET", "ph:{0}:all:owed", tag.as_str(), debt.as_str()];
        speaker.try_ask_words(&owed).await.unwrap();
    };
    owe(1_000).await;
    peer.store.sweep(now()).await.unwrap();
    assert_eq!(balance().await, 7, "whoever reserved may still be at it");
    owe(60_000).await;
    peer.store.sweep(now()).await.unwrap();
    assert_eq!(balance().await, 0);
    peer.store.sweep(now()).await.unwrap();
    assert_eq!(balance().await, 0, "once");
}

/// As a node leaves it that dies after it has ended a job, and before it has settled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budget_outbox_of_a_dead_node_is_applied_once() {
    let server = RedisServer::start().await;
    let peer = Peer::on(&server).await;
    let job = owned("ada");
    let mut paid = creation(job.clone(), Schedule::default(), None);
    paid.budget_entries = vec![entry("ada", 7)];
    peer.store.create(paid).await.unwrap();
    let debt = json!({
        "job": job.id, "is_reserved": false, "now": now().millis(), "written_at": 0,
        "sums": [{ "account": "ada", "ends_at": (now() + DAY).millis(), "amounts": [[-4, null]] }],
    });
    let (tag, debt) = (format!("{}:2", job.id), debt.to_string());
    let mut speaker = server.speaker().await;
    let owed = ["HSET", "ph:{0}:all:owed", tag.as_str(), debt.as_str()];
    for _ in 0..2 {
        speaker.try_ask_words(&owed).await.unwrap();
        peer.store.sweep(now()).await.unwrap();
        let left = peer.store.balances(&["ada".to_owned()], now()).await;
        assert_eq!(left.unwrap(), [3]);
    }
}

/// As a node leaves it that dies after it has claimed a name, and before it has created.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphaned_key_claim_expires() {
    let server = RedisServer::start().await;
    let peer = Peer::on(&server).await;
    let mut speaker = server.speaker().await;
    let claim = json!({ "job": owned("ada").id, "print": "g", "at": 0 }).to_string();
    for name in ["ph:{0}:task:kling/1", "ph:{0}:key:3:ada:k"] {
        let claimed = ["SET", name, claim.as_str()];
        speaker.try_ask_words(&claimed).await.unwrap();
    }
    assert_eq!(peer.store.find_task("kling", "1").await.unwrap(), None);
    let job = task("kling", "1");
    let key = progress_hub::store::IdempotencyKey {
        caller: "ada".into(),
        key: "k".into(),
        fingerprint: "f".into(),
    };
    let create = creation(job.clone(), Schedule::default(), Some(key));
    assert_eq!(
        peer.store.create(create).await.unwrap(),
        CreateOutcome::Created
    );
    let found = peer.store.find_task("kling", "1").await.unwrap();
    assert_eq!(found, Some(job.id));
}

/// As a node leaves it that dies after a job's end, and before its place was given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaked_slot_is_reclaimed() {
    let server = RedisServer::start().await;
    let peer = Peer::on(&server).await;
    let over = video("kling");
    create(&peer.store, &over, Schedule::default()).await;
    let end = ended(&over, Status::Failed, now());
    commit(&peer.store, &end, Schedule::default()).await;
    let until = (now() + SECOND).millis();
    server
        .ask(&format!("ZADD ph:{{0}}:places:kling {until} {}", over.id))
        .await;
    let due = Schedule {
        submit_at: Some(now()),
        ..Schedule::default()
    };
    let waiting = video("kling");
    create(&peer.store, &waiting, due).await;
    let claim = async |at| {
        let queue = Queue::Submit {
            provider: "kling",
            max_concurrent: 1,
        };
        peer.store.claim(queue, at, 9).await.unwrap()
    };
    assert!(claim(now()).await.is_empty(), "it is believed for a while");
    assert_eq!(claim(now() + 2 * SECOND).await, [Arc::new(waiting)]);
}

/// What is reserved twice for one document is reserved once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_create_is_charged_once() {
    let server = RedisServer::start().await;
    let peer = Peer::on(&server).await;
    let create = CreateJob {
        budget_entries: vec![entry("ada", 4)],
        ..creation(owned("ada"), Schedule::default(), None)
    };
    assert_eq!(
        peer.store.create(create.clone()).await.unwrap(),
        CreateOutcome::Created
    );
    let again = peer.store.create(create).await.unwrap();
    assert!(matches!(again, CreateOutcome::Replayed(_)), "{again:?}");
    let booked = peer.store.balances(&["ada".to_owned()], now()).await;
    assert_eq!(booked.unwrap(), [4]);
}
