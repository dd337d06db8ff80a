//! Deliveries in Redis: leases, what expires, and failovers.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use progress_hub::config::{Config, StoreConfig};
use progress_hub::job::{Job, JobId, Status};
use progress_hub::outbox::DeliveryId;
use progress_hub::store::redis::{RedisStore, Timeouts};
use progress_hub::store::{
    ChangeListener, DeliveryQuery, JobStore, Outbox, Store, WAITING_RETENTION,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Node, write};
use crate::redis::replicated::ReplicatedRedis;
use crate::redis::{RedisServer, wait_until_store_ready};
use crate::store::outbox::{commit_with, creation_with, delivered, due, to};
use crate::store::{MINUTE, RETENTION, SECOND, ended, job_of, now};
use crate::wait::{wait_for, wait_until};

/// Returns the names of the keys that exist, without the prefix of the only partition.
async fn keys(server: &RedisServer) -> HashSet<String> {
    let keys: Vec<String> = server.query("KEYS *").await;
    let keys = keys.into_iter();
    keys.map(|key| key.trim_start_matches("ph:{0}:").to_owned())
        .collect()
}

async fn create(node: &Node, job: &Job, event: &str) {
    node.expect_created(creation_with(job, &[to("app", event)]))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_holds_the_lease_of_a_destination() {
    let server = RedisServer::start().await;
    let (a, b) = (Node::start(&server).await, Node::start(&server).await);
    let lease = async |node: &Node, name, ttl| {
        let lease = node.store.lease_destination("app", name, ttl);
        lease.await.unwrap()
    };
    assert!(lease(&a, "a", MINUTE).await);
    assert!(!lease(&b, "b", MINUTE).await);
    assert!(lease(&a, "a", MINUTE).await, "the holder extends it");
    let other = b.store.lease_destination("mail", "b", MINUTE).await;
    assert!(other.unwrap(), "leases are independent");
    b.store.release_destination("app", "b").await.unwrap();
    assert!(!lease(&b, "b", MINUTE).await, "only the holder releases it");
    a.store.release_destination("app", "a").await.unwrap();
    assert!(lease(&b, "b", Duration::from_millis(50)).await);

    // The lease of a node that has crashed expires.
    wait_until("another node gets the lease", async || {
        lease(&a, "a", MINUTE).await
    })
    .await;
    assert!(!lease(&b, "b", MINUTE).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn result_of_a_node_that_lost_its_lease_is_not_recorded() {
    let server = RedisServer::start().await;
    let (a, b) = (Node::start(&server).await, Node::start(&server).await);
    create(&a, &job_of("ada"), "job.created").await;
    let of_a = due(&a.store, "app", now()).await.remove(0);
    let of_b = due(&b.store, "app", now()).await.remove(0);
    assert_eq!(of_a, of_b);
    let progress = delivered(&of_b, now());
    let recorded = b.store.record_progress(&of_b.id, progress.clone()).await;
    assert!(recorded.unwrap());
    let late = delivered(&of_a, now() + MINUTE);
    let recorded = a.store.record_progress(&of_a.id, late).await;
    assert!(!recorded.unwrap());
    let stored = a.store.delivery(&of_a.id).await.unwrap().unwrap();
    assert_eq!(stored.progress, progress);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_leave_no_keys_behind() {
    let server = RedisServer::start().await;
    let node = Node::start(&server).await;
    let before = keys(&server).await;
    for is_delivered_first in [true, false] {
        let job = job_of("ada");
        create(&node, &job, "job.created").await;
        let last = ended(&job, Status::Succeeded, now());
        let commit = commit_with(&last, &[to("app", "job.succeeded")]);
        node.store.commit(commit).await.unwrap();
        let expired = now() + RETENTION.terminal + SECOND;
        let deliver = async || {
            let delivery = due(&node.store, "app", expired).await.remove(0);
            let progress = delivered(&delivery, expired);
            let recorded = node.store.record_progress(&delivery.id, progress).await;
            assert!(recorded.unwrap());
        };
        if is_delivered_first {
            deliver().await;
        }
        assert_eq!(node.store.sweep(expired).await.unwrap(), 1);
        if !is_delivered_first {
            deliver().await;
        }
        assert_eq!(keys(&server).await, before);
    }
    let job = ended(&job_of("ada"), Status::Succeeded, now());
    create(&node, &job, "job.succeeded").await;
    let expired = now() + WAITING_RETENTION + SECOND;
    assert_eq!(
        node.store.sweep(expired).await.unwrap(),
        2,
        "the job and its delivery"
    );
    assert_eq!(keys(&server).await, before);
}

/// The TTL of the deliveries of a job has expired, but not that of the queue and the indexes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_deliveries_are_removed_when_they_are_read() {
    let server = RedisServer::start().await;
    let node = Node::start(&server).await;
    let (expired, other) = (job_of("ada"), job_of("ada"));
    for job in [&expired, &other] {
        create(&node, job, "job.created").await;
    }
    server
        .run(&format!("DEL ph:{{0}}:deliveries:{}", expired.id))
        .await;
    for owner in [Some("ada".to_owned()), None] {
        let query = DeliveryQuery {
            owner,
            limit: 10,
            ..DeliveryQuery::default()
        };
        let listed = node.store.deliveries(query).await.unwrap();
        assert_eq!(listed.len(), 1);
    }
    let due = due(&node.store, "app", now()).await;
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].id.job, other.id);
    for key in ["outbox:app", "all:waiting", "deliveries_of:ada"] {
        let count: usize = server.query(&format!("ZCARD ph:{{0}}:{key}")).await;
        assert_eq!(count, 1, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corrupt_delivery_does_not_block_its_destination() {
    let server = RedisServer::start().await;
    let node = Node::start(&server).await;
    let (bad, good) = (job_of("ada"), job_of("ada"));
    for job in [&bad, &good] {
        create(&node, job, "job.created").await;
    }
    let key = format!("ph:{{0}}:deliveries:{}", bad.id);
    write(&server, &["HSET", &key, "progress job.created app", "0 {"]).await;
    let due = async || node.store.due_deliveries("app", now(), 1).await.unwrap();
    assert!(due().await.is_empty());
    let read = due().await;
    assert_eq!(read[0].id.job, good.id);
    let progress = delivered(&read[0], now());
    let recorded = node.store.record_progress(&read[0].id, progress).await;
    assert!(recorded.unwrap());
    let next_at = node.store.next_delivery_at("app").await.unwrap();
    assert_eq!(next_at, Some(now() + 60 * MINUTE), "it is read again later");
}

/// Finishes jobs while the primary is killed and a replica is promoted. Every acknowledged end of a
/// job has its delivery.
#[tokio::test(flavor = "multi_thread")]
async fn failover_loses_no_acknowledged_delivery() {
    let mut redis = ReplicatedRedis::start(1).await;
    let config = StoreConfig {
        url: redis.url(),
        replicas: 1,
        ..Config::defaults().store
    };
    let listener = ChangeListener {
        on_event: Arc::new(drop),
        is_subscribed: Arc::new(|_| true),
    };
    let store = RedisStore::open(&config, RETENTION, listener, Timeouts::default()).unwrap();
    wait_until_store_ready(&store).await;
    let store = Arc::new(store);

    let mut writers = JoinSet::new();
    let (finished, mut acknowledged) = mpsc::unbounded_channel::<JobId>();
    for _ in 0..4 {
        let (store, finished) = (Arc::clone(&store), finished.clone());
        writers.spawn(async move {
            loop {
                let job = job_of("ada");
                let create = creation_with(&job, &[to("app", "job.created")]);
                let last = ended(&job, Status::Succeeded, now());
                let commit = commit_with(&last, &[to("app", "job.succeeded")]);
                if store.create(create).await.is_err() || store.commit(commit).await.is_err() {
                    break;
                }
                finished.send(job.id).unwrap();
            }
        });
    }
    drop(finished);
    let mut jobs = Vec::new();
    acknowledged.recv_many(&mut jobs, 50).await;
    let old = redis.primary().await;
    redis.servers[old].kill();
    writers.join_all().await;
    redis.fail_over(old).await;
    acknowledged.recv_many(&mut jobs, usize::MAX).await;

    // The new primary has no replica, so writes would fail.
    for job in jobs {
        let id = DeliveryId {
            job,
            version: 2,
            event: "job.succeeded".to_owned(),
            destination: "app".to_owned(),
        };
        let delivery = wait_for("the store responds", async || {
            store.delivery(&id).await.ok()
        });
        let delivery = delivery.await.unwrap_or_else(|| panic!("{id} is lost"));
        assert!(delivery.due_at().is_some());
    }
    store.close().await;
}
