//! Redis channels that subscriptions of clients use, and readiness while Redis rejects writes.

use reqwest::Method;
use serde_json::json;

use crate::app::{TestApp, send};
use crate::cluster::wait_until_ready;
use crate::redis::RedisServer;
use crate::sse_client::SseClient;
use crate::wait::wait_until;

async fn start_hub(redis: &RedisServer) -> TestApp {
    let app = TestApp::builder()
        .set("store.url", redis.url())
        .spawn()
        .await;
    wait_until_ready(&app).await;
    app
}

/// Returns the ids of the jobs with a subscribed channel on any node.
async fn subscribed_jobs(redis: &RedisServer) -> Vec<String> {
    let channels: Vec<String> = redis.query("PUBSUB CHANNELS *:changed:*").await;
    let ids = channels.iter().filter_map(|name| name.rsplit(':').next());
    let mut ids: Vec<String> = ids.map(str::to_owned).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn only_visible_jobs_cost_a_channel() {
    let redis = RedisServer::start().await;
    let app = start_hub(&redis).await;
    let own = app.register_worker_job("alice").await;
    let foreign = app.register_worker_job("bob").await;
    let invented: Vec<String> = (0..100).map(|n| format!("job_invented{n}")).collect();

    let mut socket = app.connect("alice").await;
    let mut requested: Vec<(&str, u64)> = invented.iter().map(|id| (id.as_str(), 0)).collect();
    requested.extend([(own.as_str(), 1), (foreign.as_str(), 0)]);
    let outcome = socket.subscribe(&requested).await;
    assert_eq!(outcome[&own], "current");
    assert_eq!(outcome[&foreign], "not_found");
    let query = format!("job={foreign}&job={own}&job={}", invented[0]);
    let _stream = SseClient::open(&app, &query, "alice").await;
    let path = format!("/v1/jobs/{foreign}?wait=1&since=1");
    let long_poll = send(app.request(Method::GET, &path, "alice")).await;
    assert_eq!(long_poll.status, 404);
    assert_eq!(subscribed_jobs(&redis).await, [own.as_str()]);
    // The channels of the job, the probe and the shared state.
    app.wait_for_metric("subscribed_channels", |channels| channels == 3.0)
        .await;

    app.push_update(&own, json!({ "progress": 10 })).await;
    assert_eq!(socket.next_job().await["version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn hub_is_not_ready_while_redis_rejects_writes() {
    let redis = RedisServer::start().await;
    let app = start_hub(&redis).await;
    for (fault, repair) in [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
        (
            "CONFIG SET min-replicas-to-write 1",
            "CONFIG SET min-replicas-to-write 0",
        ),
    ] {
        redis.run(fault).await;
        wait_until("the hub is not ready", async || {
            let ready = send(app.request_without_token(Method::GET, "/v1/health/ready")).await;
            ready.status == 503 && ready.body["status"] == "store_unavailable"
        })
        .await;
        let live = send(app.request_without_token(Method::GET, "/v1/health/live")).await;
        assert_eq!(live.status, 200);
        redis.run(repair).await;
        wait_until_ready(&app).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hub_is_not_ready_when_redis_has_no_memory_for_a_job() {
    let redis = RedisServer::start_with(&["--maxmemory", "3mb"]).await;
    let app = start_hub(&redis).await;
    let worker = app.token("worker", "jobs:publish");
    let create = async || {
        let job = json!({ "owner": "alice", "metadata": { "text": "x".repeat(1900) } });
        let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
        send(request.json(&job)).await.status
    };
    wait_until("Redis rejects a job", async || create().await == 503).await;
    wait_until("the hub is not ready", async || {
        let ready = send(app.request_without_token(Method::GET, "/v1/health/ready")).await;
        ready.status == 503
    })
    .await;
}
