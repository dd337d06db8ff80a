//! Redis is unreachable, unresponsive or slow, for one hub or for all.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::workload::Workload;
use super::{HubCluster, wait_until_ready};
use crate::app::{TestApp, TestResponse, send};
use crate::proxy::{NetworkFault, Proxy};
use crate::redis::{RedisServer, send_command};
use crate::webhook_signatures;

/// Hubs that each reach the same Redis through a proxy of their own.
struct ChaosCluster {
    cluster: HubCluster,
    proxies: Vec<Proxy>,
    _redis: RedisServer,
}

impl ChaosCluster {
    async fn start(nodes: usize) -> Self {
        let redis = RedisServer::start().await;
        let mut proxies = Vec::new();
        for _ in 0..nodes {
            proxies.push(Proxy::start(redis.port).await);
        }
        let urls: Vec<String> = proxies.iter().map(Proxy::url).collect();
        Self {
            cluster: HubCluster::start(&urls, |hub| hub).await,
            proxies,
            _redis: redis,
        }
    }

    /// Injects a fault into the connections of the first `nodes` hubs, checks how they behave, and
    /// waits until they have recovered.
    async fn check_outage(&self, workload: &Workload, nodes: usize, fault: NetworkFault) {
        for proxy in &self.proxies[..nodes] {
            proxy.inject(fault);
        }
        for node in 0..nodes {
            workload.watchers.wait_until_degraded(node).await;
            assert_unavailable(self.cluster.node(node), &workload.jobs[0]).await;
        }
        for proxy in &self.proxies[..nodes] {
            proxy.heal();
        }
        for node in 0..nodes {
            workload.watchers.wait_until_restored(node).await;
            wait_until_ready(self.cluster.node(node)).await;
        }
    }
}

fn assert_store_unavailable(response: &TestResponse) {
    assert_eq!(response.status, 503, "{}", response.body);
    assert_eq!(response.body["code"], "store_unavailable");
    assert_eq!(response.body["retryable"], true);
    let retry_after = response.headers["retry-after"].to_str().unwrap();
    let retry_after: u64 = retry_after.parse().unwrap();
    assert!((1..=60).contains(&retry_after), "{retry_after}");
}

async fn send_webhook(app: &TestApp, task: &str, progress: u32) -> TestResponse {
    let body = json!({ "task_id": task, "status": "running", "progress": progress }).to_string();
    let signature = webhook_signatures::hex("hub_test_secret", body.as_bytes());
    let request = app.request_without_token(Method::POST, "/v1/webhooks/generic");
    send(request.header("x-ai-signature", signature).body(body)).await
}

/// Checks the responses of a hub whose store is unavailable.
async fn assert_unavailable(app: &TestApp, job: &str) {
    for path in [format!("/v1/jobs/{job}"), "/v1/jobs".to_owned()] {
        assert_store_unavailable(&send(app.request(Method::GET, &path, "alice")).await);
    }
    assert_store_unavailable(&send_webhook(app, "task-0", 99).await);
    assert_store_unavailable(&app.push_update(job, json!({ "progress": 99 })).await);
    for (path, status, body_status) in [
        ("/v1/health/live", 200, None),
        ("/v1/health/ready", 503, Some("store_unavailable")),
        ("/v1/health", 200, Some("degraded")),
    ] {
        let health = send(app.request_without_token(Method::GET, path)).await;
        assert_eq!(health.status, status, "{path}: {}", health.body);
        if let Some(expected) = body_status {
            assert_eq!(health.body["status"], expected, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_partition_and_recovery_loses_nothing() {
    let chaos = ChaosCluster::start(2).await;
    let (cluster, proxies) = (&chaos.cluster, &chaos.proxies);
    let workload = Workload::start(cluster).await;

    // One hub is cut off. The other continues.
    proxies[0].inject(NetworkFault::Cut);
    workload.watchers.wait_until_degraded(0).await;
    assert_unavailable(cluster.node(0), &workload.jobs[0]).await;
    let readiness = cluster
        .node(1)
        .request_without_token(Method::GET, "/v1/health/ready");
    assert_eq!(send(readiness).await.status, 200);
    workload.wait_for_updates(2).await;
    proxies[0].heal();
    workload.watchers.wait_until_restored(0).await;

    chaos.check_outage(&workload, 2, NetworkFault::Cut).await;
    workload.wait_for_updates(2).await;
    assert_eq!(workload.watchers.sum(|state| state.reconnects), 0);
    workload.verify(cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_redis_connections_are_detected() {
    let chaos = ChaosCluster::start(2).await;
    let workload = Workload::start(&chaos.cluster).await;
    for nodes in [1, 2] {
        chaos
            .check_outage(&workload, nodes, NetworkFault::Stalled)
            .await;
        workload.wait_for_updates(2).await;
    }
    assert_eq!(workload.watchers.sum(|state| state.reconnects), 0);
    workload.verify(&chaos.cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_redis_only_adds_latency() {
    let chaos = ChaosCluster::start(2).await;
    let workload = Workload::start(&chaos.cluster).await;
    for proxy in &chaos.proxies {
        proxy.inject(NetworkFault::Slow(std::time::Duration::from_millis(40)));
    }
    workload.wait_for_updates(3).await;
    for proxy in &chaos.proxies {
        proxy.heal();
    }
    workload.wait_for_updates(1).await;
    workload.verify(&chaos.cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_pubsub_disconnects_lose_nothing() {
    let redis = RedisServer::start().await;
    let cluster = HubCluster::start(&[redis.url(), redis.url()], |hub| hub).await;
    let workload = Workload::start(&cluster).await;
    let mut killed = 0;
    for _ in 0..5 {
        workload.wait_for_updates(1).await;
        killed += redis.query::<u64>("CLIENT KILL TYPE pubsub").await;
    }
    assert!(killed >= 5, "only {killed} connections were killed");
    workload.wait_for_updates(1).await;
    workload.verify(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_request_has_no_later_effect() {
    let chaos = ChaosCluster::start(1).await;
    let app = chaos.cluster.node(0);
    let job = app.register_worker_job("alice").await;
    let mut watcher = app.connect("alice").await;
    watcher.subscribe(&[(&job, 1)]).await;
    chaos.proxies[0].inject(NetworkFault::Cut);
    watcher.expect_message("degraded").await;
    for progress in 1..=50 {
        assert_store_unavailable(&app.push_update(&job, json!({ "progress": progress })).await);
    }
    let concurrent =
        (51..=90).map(|progress| app.push_update(&job, json!({ "progress": progress })));
    for response in join_all(concurrent).await {
        assert_store_unavailable(&response);
    }
    chaos.proxies[0].heal();
    watcher.expect_message("restored").await;
    wait_until_ready(app).await;
    assert_eq!(app.get_job(&job, "alice").await["version"], 1);
    let response = app.push_update(&job, json!({ "progress": 91 })).await;
    assert_eq!(response.body, json!({ "applied": true, "version": 2 }));
    assert_eq!(watcher.next_job().await["progress"], 91.0);
    watcher.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn first_request_finds_the_store_connected() {
    let redis = RedisServer::start().await;
    let app = TestApp::builder()
        .set("store.url", redis.url())
        .spawn()
        .await;
    let readiness = app.request_without_token(Method::GET, "/v1/health/ready");
    assert_eq!(send(readiness).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn password_of_its_own_setting_is_used_unencoded() {
    let redis = RedisServer::start().await;
    let password = "pa%40ss:@/#é+\\";
    let rule = format!(">{password}");
    let words = ["ACL", "SETUSER", "hub", "on", &rule, "~*", "&*", "+@all"];
    let client = redis.connect().await;
    send_command::<()>(&client, &words).await.unwrap();
    let app = TestApp::builder()
        .set("store.url", format!("redis://hub@{}", redis.address()))
        .set("store.password", password)
        .spawn()
        .await;
    wait_until_ready(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hub_started_before_redis_waits_for_it() {
    let mut redis = RedisServer::start().await;
    redis.kill();
    let app = &TestApp::builder()
        .set("store.url", redis.url())
        .spawn()
        .await;
    assert_unavailable(app, "job_00000000000000000000000000").await;
    redis.restart().await;
    wait_until_ready(app).await;
    let job = app.register_worker_job("alice").await;
    assert_eq!(app.get_job(&job, "alice").await["version"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn socket_opened_during_outage_receives_degraded() {
    let chaos = ChaosCluster::start(1).await;
    let app = chaos.cluster.node(0);
    let job = app.register_worker_job("alice").await;
    let mut early = app.connect("alice").await;
    early.subscribe(&[(&job, 1)]).await;
    chaos.proxies[0].inject(NetworkFault::Cut);
    early.expect_message("degraded").await;
    let mut late = app.connect("alice").await;
    late.expect_message("degraded").await;
    late.send_json(json!({ "type": "subscribe", "id": 7, "jobs": [{ "job": job }] }))
        .await;
    let error: Value = late.expect_message("error").await;
    assert_eq!(error["id"], 7);
    assert_eq!(error["code"], "store_unavailable");
    chaos.proxies[0].heal();
    late.expect_message("restored").await;
    assert_eq!(
        late.subscribe(&[(&job, 0)]).await,
        json!({ job.as_str(): "sent" })
    );
    assert_eq!(late.next_job().await["version"], 1);
    early.expect_message("restored").await;
    early.assert_no_messages().await;
}
