//! Another Redis takes over: a replica by a vote of Sentinels, or another node of a cluster for a slot.
//!
//! A primary of a cluster that is lost without a replica takes its share of the jobs along; no hub
//! can make that good, so no story here asks for it.

use reqwest::Method;
use serde_json::json;

use super::Fleet;
use super::workload::Traffic;
use crate::app::send;
use crate::redis::RedisServer;
use crate::redis::cluster::Cluster;
use crate::redis::replicated::Replicated;

/// Two hubs that count a change only once a replica has it.
async fn pair(redis: &Replicated) -> Fleet {
    let urls = [redis.url(), redis.url()];
    Fleet::start(&urls, |hub| hub.set("store.replicas", 1)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn primary_failure_loses_no_acknowledged_write() {
    let mut redis = Replicated::start(2).await;
    let fleet = pair(&redis).await;
    let traffic = Traffic::begin("primary killed", &fleet).await;
    let old = redis.primary().await;
    redis.servers[old].kill();
    redis.until_another_leads(old).await;
    traffic.flows(3).await;
    traffic.settle_after_a_failover(&fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hung_primary_fails_over_and_may_return() {
    let redis = Replicated::start(2).await;
    let fleet = pair(&redis).await;
    let traffic = Traffic::begin("primary frozen", &fleet).await;
    let old = redis.primary().await;
    redis.servers[old].freeze();
    redis.until_another_leads(old).await;
    traffic.flows(2).await;
    redis.servers[old].thaw();
    redis.until_it_follows(old).await;
    traffic.flows(2).await;
    traffic.settle_after_a_failover(&fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planned_failover_loses_nothing() {
    let redis = Replicated::start(1).await;
    let fleet = pair(&redis).await;
    let traffic = Traffic::begin("primary relieved", &fleet).await;
    let old = redis.primary().await;
    redis.hand_over().await;
    redis.until_another_leads(old).await;
    redis.until_it_follows(old).await;
    traffic.flows(3).await;
    traffic.settle_after_a_failover(&fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn write_without_replica_ack_is_never_acknowledged() {
    let redis = Replicated::start(1).await;
    let url = redis.servers[0].url();
    let fleet = Fleet::start(&[url], |hub| hub.set("store.replicas", 1)).await;
    let app = fleet.node(0);
    let job = app.register_worker_job("alice").await;
    redis.servers[1].freeze();
    for _ in 0..3 {
        // The second time it is no news to the primary, and still no replica has it.
        let answer = app.push_update(&job, json!({ "progress": 10 })).await;
        assert_eq!(answer.status, 503, "{}", answer.body);
    }
    redis.servers[1].thaw();
    let acknowledged = async {
        loop {
            let answer = app.push_update(&job, json!({ "progress": 10 })).await;
            if answer.status == 200 {
                return answer.body;
            }
            assert_eq!(answer.status, 503, "{}", answer.body);
        }
    };
    let waiting = tokio::time::timeout(crate::app::TEST_TIMEOUT, acknowledged);
    assert_eq!(waiting.await.expect("it comes back")["version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn hung_replica_does_not_block_reads() {
    let redis = Replicated::start(1).await;
    let url = redis.servers[0].url();
    let fleet = Fleet::start(&[url], |hub| hub.set("store.replicas", 1)).await;
    let app = fleet.node(0);
    let job = app.register_worker_job("alice").await;
    redis.servers[1].freeze();
    let pushes = (0..20).map(|n| app.push_update(&job, json!({ "progress": n })));
    let reads = (0..20).map(|_| {
        let read = app.request(Method::GET, &format!("/v1/jobs/{job}"), "alice");
        send(read)
    });
    let (pushed, read) = tokio::join!(
        futures_util::future::join_all(pushes),
        futures_util::future::join_all(reads)
    );
    assert!(pushed.iter().all(|answer| answer.status == 503));
    let refused = read.iter().filter(|answer| answer.status != 200).count();
    assert_eq!(refused, 0, "of {} readings", read.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_serves_two_hubs() {
    let cluster = Cluster::start().await;
    let fleet = Fleet::start(&[cluster.url(), cluster.url()], |hub| hub).await;
    let traffic = Traffic::begin("cluster", &fleet).await;
    traffic.flows(3).await;
    let listed = send(
        fleet
            .node(1)
            .request(Method::GET, "/v1/jobs?limit=100", "alice"),
    )
    .await;
    assert_eq!(
        listed.body["jobs"].as_array().unwrap().len(),
        traffic.jobs.len()
    );
    // One channel for each watched job, of every shard.
    let mut channels = 0;
    for node in &cluster.nodes {
        channels += node.ask("PUBSUB SHARDCHANNELS").await.list().len();
    }
    assert!(channels >= traffic.jobs.len(), "{channels}");
    traffic.settle(&fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slot_migration_keeps_subscriptions() {
    let cluster = Cluster::start().await;
    let fleet = Fleet::start(&[cluster.url(), cluster.url()], |hub| hub).await;
    let traffic = Traffic::begin("slots moved", &fleet).await;
    let mut moved = 0;
    for id in traffic.jobs.iter().take(3) {
        let keys = cluster.keys_with(id).await;
        let slot = cluster.slot_of(&keys[0]).await;
        let to = (cluster.owner_of(slot).await + 1) % cluster.nodes.len();
        let keys = cluster.reshard(slot, to).await;
        assert!(keys > 0, "the job's own key at least");
        moved += keys;
        traffic.flows(2).await;
    }
    println!("{moved} keys moved");
    traffic.settle(&fleet).await;
}

/// A story of one server, which must not need more than one.
#[tokio::test(flavor = "multi_thread")]
async fn redis_password_is_used() {
    let redis = RedisServer::start().await;
    let mut speaker = redis.speaker().await;
    speaker
        .ask("ACL SETUSER hub on >hunter2-and-more ~ph* &ph* +@all")
        .await;
    speaker.ask("ACL SETUSER default off").await;
    let url = format!("redis://hub:hunter2-and-more@{}/3", redis.address());
    let fleet = Fleet::start(&[url.clone(), url], |hub| hub).await;
    let job = fleet.node(0).register_worker_job("alice").await;
    let mut watcher = fleet.node(1).connect("alice").await;
    watcher.subscribe(&[(&job, 1)]).await;
    fleet
        .node(0)
        .push_update(&job, json!({ "progress": 50 }))
        .await;
    assert_eq!(watcher.next_job().await["version"], 2);
}
