//! The Redis is away, half away, or slow, for one hub or for all.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use super::workload::Traffic;
use super::{Fleet, wait_until_ready};
use crate::app::{TestApp, TestResponse, send};
use crate::proxy::Proxy;
use crate::redis::RedisServer;
use crate::webhook_signatures;

/// Two hubs, each with its own way to one Redis.
struct Weathered {
    fleet: Fleet,
    ways: [Proxy; 2],
    redis: RedisServer,
}

impl Weathered {
    async fn start() -> Self {
        let redis = RedisServer::start().await;
        let ways = [
            Proxy::start(redis.port).await,
            Proxy::start(redis.port).await,
        ];
        let fleet = Fleet::start(&[ways[0].url(), ways[1].url()], |hub| hub).await;
        Self { fleet, ways, redis }
    }
}

fn is_refusal(answer: &TestResponse) {
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert_eq!(answer.body["code"], "store_unavailable");
    assert_eq!(answer.body["retryable"], true);
    let wait = answer.headers["retry-after"].to_str().unwrap();
    assert!((1..=60).contains(&wait.parse::<u64>().unwrap()), "{wait}");
}

async fn webhook(app: &TestApp, task: &str, percent: u32) -> TestResponse {
    let body = json!({ "task_id": task, "status": "running", "progress": percent }).to_string();
    let signature = webhook_signatures::hex("hub_test_secret", body.as_bytes());
    let request = app.request_without_token(Method::POST, "/v1/webhooks/generic");
    send(request.header("x-ai-signature", signature).body(body)).await
}

/// Asserts how a hub without its store answers, and prints the slowest.
async fn answers_without_its_store(app: &TestApp, job: &str) {
    let mut slowest = Duration::ZERO;
    for path in [format!("/v1/jobs/{job}"), "/v1/jobs".to_owned()] {
        let begun = Instant::now();
        is_refusal(&send(app.request(Method::GET, &path, "alice")).await);
        slowest = slowest.max(begun.elapsed());
    }
    let begun = Instant::now();
    is_refusal(&webhook(app, "task-0", 99).await);
    slowest = slowest.max(begun.elapsed());
    let begun = Instant::now();
    is_refusal(&app.push_update(job, json!({ "progress": 99 })).await);
    slowest = slowest.max(begun.elapsed());
    let live = send(app.request_without_token(Method::GET, "/v1/health/live")).await;
    assert_eq!(live.status, 200);
    let ready = send(app.request_without_token(Method::GET, "/v1/health/ready")).await;
    assert_eq!(
        (ready.status.as_u16(), &ready.body["status"]),
        (503, &json!("store_unavailable"))
    );
    let health = send(app.request_without_token(Method::GET, "/v1/health")).await;
    assert_eq!(
        (health.status.as_u16(), &health.body["status"]),
        (200, &json!("degraded"))
    );
    println!("without its store the slowest refusal took {slowest:?}");
    // The promise is a second; the rest is for a busy machine.
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_partition_and_recovery_loses_nothing() {
    let Weathered { fleet, ways, redis } = Weathered::start().await;
    let traffic = Traffic::begin("cut", &fleet).await;

    // One hub alone is cut off, and the other goes on.
    ways[0].cut();
    traffic.audience.until_degraded_at(0).await;
    answers_without_its_store(fleet.node(0), &traffic.jobs[0]).await;
    let live = send(
        fleet
            .node(1)
            .request_without_token(Method::GET, "/v1/health/ready"),
    )
    .await;
    assert_eq!(live.status, 200);
    traffic.flows(2).await;
    ways[0].heal();
    traffic.audience.until_restored_at(0).await;

    // Nobody has a store.
    is_noticed_and_over(&fleet, &traffic, &ways, Proxy::cut).await;
    traffic.flows(2).await;
    assert_eq!(traffic.audience.reconnects(), 0, "the sockets stayed");
    traffic.settle(&fleet).await;
    drop(redis);
}

/// Harms the way of each of these nodes, sees what they make of it, and heals it.
async fn is_noticed_and_over(
    fleet: &Fleet,
    traffic: &Traffic,
    ways: &[Proxy],
    harm: impl Fn(&Proxy),
) {
    ways.iter().for_each(harm);
    for node in 0..ways.len() {
        traffic.audience.until_degraded_at(node).await;
        answers_without_its_store(fleet.node(node), &traffic.jobs[0]).await;
    }
    for way in ways {
        way.heal();
    }
    let healed = Instant::now();
    for node in 0..ways.len() {
        traffic.audience.until_restored_at(node).await;
        wait_until_ready(fleet.node(node)).await;
    }
    println!(
        "all was well again {:?} after the network was",
        healed.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_half_open_are_noticed() {
    let Weathered { fleet, ways, redis } = Weathered::start().await;
    let traffic = Traffic::begin("stalled", &fleet).await;
    for round in [&ways[..1], &ways[..]] {
        is_noticed_and_over(&fleet, &traffic, round, Proxy::stall).await;
        traffic.flows(2).await;
    }
    assert_eq!(traffic.audience.reconnects(), 0, "the sockets stayed");
    traffic.settle(&fleet).await;
    drop(redis);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_redis_only_adds_latency() {
    let Weathered { fleet, ways, redis } = Weathered::start().await;
    let traffic = Traffic::begin("slow", &fleet).await;
    for way in &ways {
        way.slow(Duration::from_millis(40));
    }
    traffic.flows(3).await;
    for way in &ways {
        way.heal();
    }
    traffic.flows(1).await;
    traffic.settle(&fleet).await;
    drop(redis);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_pubsub_disconnects_lose_nothing() {
    let redis = RedisServer::start().await;
    let fleet = Fleet::start(&[redis.url(), redis.url()], |hub| hub).await;
    let traffic = Traffic::begin("pub/sub killed", &fleet).await;
    let mut killed = 0;
    for _ in 0..5 {
        traffic.flows(1).await;
        killed += redis.ask("CLIENT KILL TYPE pubsub").await.number();
    }
    println!("{killed} connections that listened were killed");
    assert!(killed >= 5, "there was something to kill: {killed}");
    traffic.flows(1).await;
    traffic.settle(&fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_request_has_no_later_effect() {
    let redis = RedisServer::start().await;
    let way = Proxy::start(redis.port).await;
    let fleet = Fleet::start(&[way.url()], |hub| hub).await;
    let app = fleet.node(0);
    let job = app.register_worker_job("alice").await;
    let mut watcher = app.connect("alice").await;
    watcher.subscribe(&[(&job, 1)]).await;
    way.cut();
    watcher.expect_message("degraded").await;
    for percent in 1..=50 {
        is_refusal(&app.push_update(&job, json!({ "progress": percent })).await);
    }
    let crowd = (51..=90).map(|percent| app.push_update(&job, json!({ "progress": percent })));
    for answer in futures_util::future::join_all(crowd).await {
        is_refusal(&answer);
    }
    way.heal();
    watcher.expect_message("restored").await;
    wait_until_ready(app).await;
    assert_eq!(app.get_job(&job, "alice").await["version"], 1);
    let answer = app.push_update(&job, json!({ "progress": 91 })).await;
    assert_eq!(answer.body, json!({ "applied": true, "version": 2 }));
    assert_eq!(watcher.next_job().await["progress"], 91.0);
    watcher.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_starts_before_its_redis_waits_for_it() {
    let mut redis = RedisServer::start().await;
    redis.kill();
    let app = &TestApp::builder()
        .set("store.url", redis.url())
        .spawn()
        .await;
    answers_without_its_store(app, "job_00000000000000000000000000").await;
    redis.start_again(&[]).await;
    wait_until_ready(app).await;
    let job = app.register_worker_job("alice").await;
    assert_eq!(app.get_job(&job, "alice").await["version"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn socket_opened_during_outage_receives_degraded() {
    let redis = RedisServer::start().await;
    let way = Proxy::start(redis.port).await;
    let fleet = Fleet::start(&[way.url()], |hub| hub).await;
    let app = fleet.node(0);
    let job = app.register_worker_job("alice").await;
    let mut first = app.connect("alice").await;
    first.subscribe(&[(&job, 1)]).await;
    way.cut();
    first.expect_message("degraded").await;
    let mut late = app.connect("alice").await;
    late.expect_message("degraded").await;
    late.send_json(json!({ "type": "subscribe", "id": 7, "jobs": [{ "job": job }] }))
        .await;
    let refused = late.expect_message("error").await;
    assert_eq!(
        (&refused["id"], &refused["code"]),
        (&json!(7), &json!("store_unavailable"))
    );
    way.heal();
    late.expect_message("restored").await;
    assert_eq!(
        late.subscribe(&[(&job, 0)]).await,
        json!({ job.as_str(): "sent" })
    );
    assert_eq!(late.next_job().await["version"], 1);
    first.expect_message("restored").await;
    first.assert_no_messages().await;
}
