//! Failovers: Sentinels promote a replica, or a cluster moves a hash slot.
//!
//! A cluster primary that is lost without a replica loses its share of the jobs. No hub can prevent
//! that, so no test covers it.

use fred::types::Value;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use super::HubCluster;
use super::workload::Workload;
use crate::app::send;
use crate::redis::cluster::RedisCluster;
use crate::redis::replicated::ReplicatedRedis;
use crate::redis::{RedisServer, send_command};
use crate::wait::wait_for;

/// Starts two hubs that acknowledge a write only after a replica has.
async fn start_two_nodes(redis: &ReplicatedRedis) -> HubCluster {
    let urls = [redis.url(), redis.url()];
    HubCluster::start(&urls, |hub| hub.set("store.replicas", 1)).await
}

/// Starts a hub on the primary itself, without Sentinels.
async fn start_on_primary(redis: &ReplicatedRedis) -> HubCluster {
    let url = redis.servers[0].url();
    HubCluster::start(&[url], |hub| hub.set("store.replicas", 1)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn primary_failure_loses_no_acknowledged_write() {
    let mut redis = ReplicatedRedis::start(2).await;
    let cluster = start_two_nodes(&redis).await;
    let workload = Workload::start(&cluster).await;
    let old = redis.primary().await;
    redis.servers[old].kill();
    redis.fail_over(old).await;
    workload.wait_for_updates(3).await;
    workload.verify_after_failover(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hung_primary_fails_over_and_may_return() {
    let redis = ReplicatedRedis::start(2).await;
    let cluster = start_two_nodes(&redis).await;
    let workload = Workload::start(&cluster).await;
    let old = redis.primary().await;
    redis.servers[old].suspend();
    redis.fail_over(old).await;
    workload.wait_for_updates(2).await;
    redis.servers[old].resume();
    redis.wait_until_replica(old).await;
    workload.wait_for_updates(2).await;
    workload.verify_after_failover(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planned_failover_loses_nothing() {
    let redis = ReplicatedRedis::start(1).await;
    let cluster = start_two_nodes(&redis).await;
    let workload = Workload::start(&cluster).await;
    let old = redis.primary().await;
    redis.start_failover().await;
    redis.wait_for_new_primary(old).await;
    redis.wait_until_replica(old).await;
    workload.wait_for_updates(3).await;
    workload.verify_after_failover(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn write_without_replica_ack_is_never_acknowledged() {
    let redis = ReplicatedRedis::start(1).await;
    let cluster = start_on_primary(&redis).await;
    let app = cluster.node(0);
    let job = app.register_worker_job("alice").await;
    redis.servers[1].suspend();
    for _ in 0..3 {
        // From the second attempt on, the primary already has this update, but no replica does.
        let response = app.push_update(&job, json!({ "progress": 10 })).await;
        assert_eq!(response.status, 503, "{}", response.body);
    }
    redis.servers[1].resume();
    let acknowledged = wait_for("the update is acknowledged", async || {
        let response = app.push_update(&job, json!({ "progress": 10 })).await;
        if response.status == 200 {
            return Some(response.body);
        }
        assert_eq!(response.status, 503, "{}", response.body);
        None
    });
    assert_eq!(acknowledged.await["version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn hung_replica_does_not_block_reads() {
    let redis = ReplicatedRedis::start(1).await;
    let cluster = start_on_primary(&redis).await;
    let app = cluster.node(0);
    let job = app.register_worker_job("alice").await;
    redis.servers[1].suspend();
    let pushes = (0..20).map(|n| app.push_update(&job, json!({ "progress": n })));
    let path = format!("/v1/jobs/{job}");
    let reads = (0..20).map(|_| send(app.request(Method::GET, &path, "alice")));
    let (pushes, reads) = tokio::join!(join_all(pushes), join_all(reads));
    assert!(pushes.iter().all(|response| response.status == 503));
    assert!(reads.iter().all(|response| response.status == 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_cluster_serves_two_hubs() {
    let redis = RedisCluster::start().await;
    let cluster = HubCluster::start(&[redis.url(), redis.url()], |hub| hub).await;
    let workload = Workload::start(&cluster).await;
    workload.wait_for_updates(3).await;
    let list = cluster
        .node(1)
        .request(Method::GET, "/v1/jobs?limit=100", "alice");
    let listed = send(list).await;
    assert_eq!(
        listed.body["jobs"].as_array().unwrap().len(),
        workload.jobs.len()
    );
    // Each subscribed job has a channel of its own, in its partition.
    let mut channels = 0;
    for node in &redis.nodes {
        let active: Vec<String> = node.query("PUBSUB SHARDCHANNELS").await;
        channels += active.len();
    }
    assert!(channels >= workload.jobs.len(), "{channels} channels");
    workload.verify(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slot_migration_keeps_subscriptions() {
    let redis = RedisCluster::start().await;
    let cluster = HubCluster::start(&[redis.url(), redis.url()], |hub| hub).await;
    let workload = Workload::start(&cluster).await;
    for id in workload.jobs.iter().take(3) {
        let keys = redis.keys_with(id).await;
        let slot = fred::util::redis_keyslot(keys[0].as_bytes());
        let to = (redis.owner_of(slot).await + 1) % redis.nodes.len();
        assert!(redis.reshard(slot, to).await > 0, "the job is moved");
        workload.wait_for_updates(2).await;
    }
    workload.verify(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_password_is_used() {
    let redis = RedisServer::start().await;
    let client = redis.connect().await;
    for command in [
        &[
            "ACL",
            "SETUSER",
            "hub",
            "on",
            ">hunter2-and-more",
            "~ph*",
            "&ph*",
            "+@all",
        ][..],
        &["ACL", "SETUSER", "default", "off"],
    ] {
        let _: Value = send_command(&client, command).await.unwrap();
    }
    let url = format!("redis://hub:hunter2-and-more@{}/3", redis.address());
    let cluster = HubCluster::start(&[url.clone(), url], |hub| hub).await;
    let (writer, reader) = (cluster.node(0), cluster.node(1));
    let job = writer.register_worker_job("alice").await;
    let mut watcher = reader.connect("alice").await;
    watcher.subscribe(&[(&job, 1)]).await;
    writer.push_update(&job, json!({ "progress": 50 })).await;
    assert_eq!(watcher.next_job().await["version"], 2);
}
