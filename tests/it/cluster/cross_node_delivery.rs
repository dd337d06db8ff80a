//! Two healthy hubs: an update on one reaches the clients of the other.

use reqwest::Method;
use serde_json::json;

use super::HubCluster;
use super::workload::Workload;
use crate::app::send;
use crate::redis::RedisServer;
use crate::sse_client::SseClient;

async fn start_two_nodes(redis: &RedisServer) -> HubCluster {
    HubCluster::start(&[redis.url(), redis.url()], |hub| hub).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_on_two_nodes_converge() {
    let redis = RedisServer::start().await;
    let cluster = start_two_nodes(&redis).await;
    let workload = Workload::start(&cluster).await;
    workload.wait_for_updates(5).await;
    workload.verify(&cluster).await;

    for key in redis.query::<Vec<String>>("KEYS *").await {
        assert!(key.starts_with("ph:"), "{key} has no prefix");
        let ttl: i64 = redis.query(&format!("PTTL {key}")).await;
        assert!(ttl > 0, "{key} has no TTL");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cross_node_updates_reach_every_transport() {
    let redis = RedisServer::start().await;
    let cluster = start_two_nodes(&redis).await;
    let (local, remote) = (cluster.node(0), cluster.node(1));
    let mut follower = remote.connect("alice").await;
    follower
        .send_json(json!({ "type": "subscribe", "id": 1, "feed": "mine" }))
        .await;
    follower.expect_message("subscribed").await;
    // No client subscribed to this job by its id, but the owner's feed contains it at once.
    let job = local.register_worker_job("alice").await;
    let foreign = local.register_worker_job("bob").await;
    assert_eq!(follower.next_job().await["id"], job);

    let mut watcher = remote.connect("alice").await;
    watcher.subscribe(&[(&job, 1)]).await;
    let mut stream = SseClient::open(remote, &format!("job={job}"), "alice").await;
    assert_eq!(stream.next_job().await["version"], 1);
    let path = format!("/v1/jobs/{job}?wait=60&since=1");
    let long_poll = tokio::spawn(send(remote.request(Method::GET, &path, "alice")));
    remote
        .wait_for_metric("connections{kind=\"poll\"}", |open| open == 1.0)
        .await;
    local.push_update(&foreign, json!({ "progress": 10 })).await;
    let pushed = local.push_update(&job, json!({ "progress": 10 })).await;
    assert_eq!(pushed.status, 200);
    let update = watcher.next_job().await;
    assert_eq!(update["version"], 2);
    assert_eq!(update["progress"], 10.0);
    assert_eq!(
        follower.next_job().await,
        update,
        "bob's job is not in the feed"
    );
    assert_eq!(stream.next_job().await, update);
    assert_eq!(long_poll.await.unwrap().body, update);

    // The other hub finishes the job.
    remote
        .push_update(&job, json!({ "status": "succeeded" }))
        .await;
    let finished = local.get_job(&job, "alice").await;
    assert_eq!(finished["final"], true);
    for client in [&mut watcher, &mut follower] {
        assert_eq!(client.next_job().await, finished);
        client.assert_no_messages().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn returning_subscriber_receives_every_update() {
    let redis = RedisServer::start().await;
    let cluster = start_two_nodes(&redis).await;
    let (local, remote) = (cluster.node(0), cluster.node(1));
    let job = local.register_worker_job("alice").await;
    for version in 1..=20_u64 {
        let mut watcher = remote.connect("alice").await;
        watcher.subscribe(&[(&job, version)]).await;
        local
            .push_update(&job, json!({ "progress": version }))
            .await;
        assert_eq!(watcher.next_job().await["version"], version + 1);
        watcher.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_subscribers_end_current() {
    let redis = RedisServer::start().await;
    let cluster = start_two_nodes(&redis).await;
    let (local, remote) = (cluster.node(0), cluster.node(1));
    for _ in 0..30 {
        let job = local.register_worker_job("alice").await;
        let mut watcher = remote.connect("alice").await;
        let unknown = [(job.as_str(), 0)];
        let (subscribed, pushed) = tokio::join!(
            watcher.subscribe(&unknown),
            local.push_update(&job, json!({ "progress": 1 }))
        );
        assert_eq!(subscribed[&job], "sent");
        assert_eq!(pushed.status, 200);
        let mut received = watcher.next_job().await;
        while received["version"] != 2 {
            assert_eq!(received["version"], 1);
            received = watcher.next_job().await;
        }
        watcher.assert_no_messages().await;
    }
}
