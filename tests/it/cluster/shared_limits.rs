//! Limits of a provider, shared by several hubs, and takeover of a failed hub's work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use progress_hub_simulator::{Inspector, Scenario, Settings, Simulator};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::HubCluster;
use crate::app::{
    TEST_TIMEOUT, TestApp, TestAppBuilder, TestResponse, WEBHOOK_SECRET, send, simulator_settings,
};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};
use crate::proxy::Proxy;
use crate::redis::RedisServer;

/// A simulated provider that is independent of any hub.
struct Provider {
    url: String,
    inspector: Inspector,
    _stop: DropGuard,
}

impl Provider {
    fn start() -> Self {
        Self::start_with_pace(Duration::from_millis(20))
    }

    fn start_with_pace(pace: Duration) -> Self {
        let simulator = Simulator::bind(
            "127.0.0.1:0",
            Settings {
                api_key: "a key".to_owned(),
                webhook_secret: Some(WEBHOOK_SECRET.to_owned()),
                pace,
                default_scenario: Scenario::Normal,
            },
        )
        .unwrap();
        let stop = CancellationToken::new();
        let (url, inspector) = (simulator.url(), simulator.inspector());
        tokio::spawn(simulator.run(stop.clone()));
        Self {
            url,
            inspector,
            _stop: stop.drop_guard(),
        }
    }
}

/// Configures a hub for the provider at `url`.
fn with_provider(url: &str) -> impl Fn(TestAppBuilder) -> TestAppBuilder + Send + Sync + use<> {
    let settings = simulator_settings(url);
    move |hub| {
        let set = |hub: TestAppBuilder, (key, value): &(String, String)| hub.set(key, value);
        settings.iter().fold(hub, set)
    }
}

async fn submit(app: &TestApp, idempotency_key: &str) -> TestResponse {
    let video = json!({ "provider": "simulated", "model": "kling-v3", "prompt": "a lighthouse" });
    let request = app.request(Method::POST, "/v1/videos", "alice");
    let request = request.header("idempotency-key", idempotency_key);
    send(request.json(&video)).await
}

/// Submits jobs concurrently, spread over all hubs.
async fn submit_many(cluster: &HubCluster, count: usize) -> Vec<TestResponse> {
    let submissions = (0..count).map(async |number| {
        submit(cluster.node(number % cluster.size()), &number.to_string()).await
    });
    join_all(submissions).await
}

fn job_id(response: &TestResponse) -> &str {
    response.body["id"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrency_limit_holds_across_nodes() {
    let (redis, provider) = (RedisServer::start().await, Provider::start());
    let with_provider = with_provider(&provider.url);
    let configure = move |hub| with_provider(hub).set("providers.simulated.max_concurrent", 3);
    let urls = [redis.url(), redis.url(), redis.url()];
    let cluster = HubCluster::start(&urls, configure).await;
    let responses = submit_many(&cluster, 18).await;
    let mut max_active = 0;
    let all_finished = provider.inspector.until(|inspector| {
        let tasks = inspector.tasks();
        let active = tasks.iter().filter(|task| !task.status.is_final()).count();
        max_active = max_active.max(active);
        (tasks.len() == 18 && active == 0).then_some(())
    });
    timeout(TEST_TIMEOUT, all_finished)
        .await
        .expect("all tasks finish");
    assert!(
        (2..=3).contains(&max_active),
        "at most {max_active} tasks at a time"
    );
    for response in &responses {
        let id = job_id(response);
        let job = cluster.node(0).wait_until_final(id, "alice").await;
        assert_eq!(job["status"], "succeeded");
        let submits = provider.inspector.submits_of(id);
        assert_eq!((submits.received, submits.accepted), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_key_holds_across_nodes() {
    let (redis, provider) = (RedisServer::start().await, Provider::start());
    let urls = [redis.url(), redis.url()];
    let cluster = HubCluster::start(&urls, with_provider(&provider.url)).await;
    let submissions = (0..16).map(|number| submit(cluster.node(number % 2), "the same"));
    let responses = join_all(submissions).await;
    let id = job_id(&responses[0]);
    for response in &responses {
        assert_eq!(response.status, 202, "{}", response.body);
        assert_eq!(response.body["id"], id);
    }
    cluster.node(1).wait_until_final(id, "alice").await;
    assert_eq!(provider.inspector.calls().submits_received, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn budget_reservation_is_shared_across_nodes() {
    let (redis, provider) = (RedisServer::start().await, Provider::start());
    let with_provider = with_provider(&provider.url);
    let configure = move |hub| {
        with_provider(hub)
            .set("budgets.per_owner_day", 2)
            .set("providers.simulated.prices", r#"{ "*" = 0.25 }"#)
    };
    let cluster = HubCluster::start(&[redis.url(), redis.url()], configure).await;
    let responses = submit_many(&cluster, 24).await;
    let (accepted, rejected): (Vec<_>, Vec<_>) = responses
        .iter()
        .partition(|response| response.status == 202);
    // The budget pays for 8 jobs a day, and midnight may pass during the test.
    assert!([8, 16].contains(&accepted.len()), "{}", accepted.len());
    for response in rejected {
        assert_eq!(
            response.body["code"], "budget_exceeded",
            "{}",
            response.body
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_rate_limit_holds_across_nodes() {
    let (redis, provider) = (RedisServer::start().await, Provider::start());
    let with_provider = with_provider(&provider.url);
    let configure = move |hub| with_provider(hub).set("limits.submits_per_minute", 6);
    let cluster = HubCluster::start(&[redis.url(), redis.url()], configure).await;
    let responses = submit_many(&cluster, 24).await;
    let (accepted, rejected): (Vec<_>, Vec<_>) = responses
        .iter()
        .partition(|response| response.status == 202);
    // A minute may end during the test.
    assert!((6..=12).contains(&accepted.len()), "{}", accepted.len());
    for response in rejected {
        assert_eq!(response.status, 429, "{}", response.body);
        assert_eq!(response.body["code"], "rate_limited");
        assert!(response.headers.contains_key("retry-after"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limit_pause_is_shared_across_nodes() {
    const PAUSE: Duration = Duration::from_secs(3);
    let submits: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let recorded = Arc::clone(&submits);
    let provider = MockProvider::start(move |request: RecordedRequest| {
        let mut response = MockResponse::json(200, &json!({ "code": 0, "data": [] }));
        if request.method == "POST" {
            let mut recorded = recorded.lock().unwrap();
            recorded.push(Instant::now());
            let id = request.body["options"]["external_task_id"].clone();
            response = if recorded.len() == 1 {
                MockResponse::json(429, &json!({ "code": 1302, "message": "slower" }))
                    .with_header("retry-after", PAUSE.as_secs())
            } else {
                let task = json!({ "id": id, "status": "submitted" });
                MockResponse::json(200, &json!({ "code": 0, "data": task }))
            };
        }
        async move { response }
    })
    .await;
    let redis = RedisServer::start().await;
    let urls = [redis.url(), redis.url()];
    let cluster = HubCluster::start(&urls, with_provider(&provider.url)).await;
    let (local, remote) = (cluster.node(0), cluster.node(1));
    let first = submit(local, "first").await;
    remote
        .wait_for_job(job_id(&first), "alice", |job| {
            !job["next_attempt_at"].is_null()
        })
        .await;
    let others = submit_many(&cluster, 6).await;
    for response in &others {
        let is_submitted = |job: &Value| job["status"] == "queued";
        remote
            .wait_for_job(job_id(response), "alice", is_submitted)
            .await;
    }
    let submits = submits.lock().unwrap();
    let is_early = |at: &&Instant| at.duration_since(submits[0]) < PAUSE;
    let early = submits[1..].iter().filter(is_early).count();
    assert_eq!(early, 0, "submissions during the pause");
}

#[tokio::test(flavor = "multi_thread")]
async fn hold_of_an_owner_begins_and_ends_on_all_nodes() {
    let is_failing = Arc::new(AtomicBool::new(true));
    let failing = Arc::clone(&is_failing);
    let provider = MockProvider::start(move |request: RecordedRequest| {
        let failing = failing.load(Ordering::SeqCst);
        let of_alice = request.body["prompt"] == "alice";
        let response = if request.method == "POST" && of_alice && failing {
            MockResponse::json(500, &json!({ "code": 5000, "message": "failed" }))
                .with_header("x-should-retry", false)
        } else {
            let id = request.body["options"]["external_task_id"].clone();
            let task = json!({ "id": id, "status": "submitted" });
            MockResponse::json(200, &json!({ "code": 0, "data": task }))
        };
        async move { response }
    })
    .await;
    let redis = RedisServer::start().await;
    let urls = [redis.url(), redis.url()];
    let cluster = HubCluster::start(&urls, with_provider(&provider.url)).await;
    let submit = async |node: usize, owner: &str| {
        let app = cluster.node(node);
        let video = json!({ "provider": "simulated", "model": "kling-v3", "prompt": owner });
        let response = send(app.request(Method::POST, "/v1/videos", owner).json(&video)).await;
        assert_eq!(response.status, 202, "{}", response.body);
        job_id(&response).to_owned()
    };
    let holds = "provider_holds{provider=\"simulated\"}";
    let is_held = async || {
        let nodes = cluster.running().map(|app| app.metric(holds));
        join_all(nodes).await.contains(&1.0)
    };
    // Each node counts the failures of its own submissions.
    let mut failed = 0;
    while !is_held().await {
        failed += 1;
        assert!(failed < 100, "no hold begins");
        let id = submit(0, "alice").await;
        let is_failed_or_held =
            |job: &Value| job["final"] == true || !job["next_attempt_at"].is_null();
        let app = cluster.node(0);
        app.wait_for_job(&id, "alice", is_failed_or_held).await;
    }
    for app in cluster.running() {
        app.wait_for_metric(holds, |value| value == 1.0).await;
    }
    let submissions = || {
        let requests = provider.requests().into_iter();
        let of_alice = |it: &RecordedRequest| it.method == "POST" && it.body["prompt"] == "alice";
        requests.filter(of_alice).count()
    };
    let before = submissions();
    let mut held = Vec::new();
    for node in 0..2 {
        let id = submit(node, "alice").await;
        let is_postponed = |job: &Value| !job["next_attempt_at"].is_null();
        let app = cluster.node(node);
        let job = app.wait_for_job(&id, "alice", is_postponed).await;
        assert_eq!(
            (&job["status"], &job["attempt"]),
            (&json!("accepted"), &json!(0))
        );
        held.push(id);
    }
    let is_submitted = |job: &Value| job["status"] == "queued";
    let other = submit(1, "bob").await;
    cluster
        .node(1)
        .wait_for_job(&other, "bob", is_submitted)
        .await;
    assert_eq!(submissions(), before, "no node submits for the held owner");

    // The job that is sent as the probe ends the hold on both nodes.
    is_failing.store(false, Ordering::SeqCst);
    for app in cluster.running() {
        app.wait_for_metric(holds, |value| value == 0.0).await;
    }
    for node in 0..2 {
        held.push(submit(node, "alice").await);
    }
    for id in &held {
        let job = cluster
            .node(0)
            .wait_for_job(id, "alice", is_submitted)
            .await;
        assert_eq!(job["attempt"], 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn poll_is_taken_over_after_node_failure() {
    let redis = RedisServer::start().await;
    let provider = Provider::start_with_pace(Duration::from_millis(300));
    let proxy = Proxy::start(port_of(&provider.url)).await;
    let with_provider = with_provider(&format!("http://{}", proxy.address()));
    let configure = move |hub| with_provider(hub).set("providers.simulated.poll_after", "300ms");
    let urls = [redis.url(), redis.url()];
    let mut cluster = HubCluster::start_processes_with(&urls, configure).await;
    // The first hub is alone, so it sends the poll.
    cluster.kill_node(1);
    proxy.mute_after("GET /tasks?task_ids=");
    let job = cluster
        .node(0)
        .submit("alice", Scenario::LostWebhooks)
        .await;
    let id = job["id"].as_str().unwrap();
    proxy.wait_until_muted().await;
    cluster.kill_node(0);
    proxy.heal();
    cluster.start_node(1).await;
    let finished = cluster.node(1).wait_until_final(id, "alice").await;
    assert_eq!(finished["status"], "succeeded");
    assert_eq!(finished["source"], "poll");
    let submits = provider.inspector.submits_of(id);
    assert_eq!((submits.received, submits.accepted), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_flight_submission_is_recovered_without_resubmitting() {
    let (redis, provider) = (RedisServer::start().await, Provider::start());
    let proxy = Proxy::start(port_of(&provider.url)).await;
    let with_provider = with_provider(&format!("http://{}", proxy.address()));
    // The deadline is later than the time at which a submission without a response counts as lost.
    let configure = move |hub| with_provider(hub).set("providers.simulated.deadline", "5m");
    let urls = [redis.url(), redis.url()];
    let mut cluster = HubCluster::start_processes_with(&urls, configure).await;
    cluster.kill_node(1);
    proxy.mute_after("external_task_id");
    let job = cluster
        .node(0)
        .submit("alice", Scenario::LostWebhooks)
        .await;
    let id = job["id"].as_str().unwrap();
    proxy.wait_until_muted().await;
    // The provider accepts the task, and the hub crashes before it receives the response.
    let accepted = provider.inspector.until(|inspector| inspector.task_of(id));
    let task = timeout(TEST_TIMEOUT, accepted).await.expect("a task");
    cluster.kill_node(0);
    proxy.heal();
    cluster.start_node(1).await;
    let path = format!("/v1/jobs/{id}?wait=10");
    let recovery = async {
        loop {
            let response = send(cluster.node(1).request(Method::GET, &path, "alice")).await;
            if response.body["final"] == true {
                return response.body;
            }
        }
    };
    // The claim of the dead hub expires first.
    let finished = timeout(2 * TEST_TIMEOUT, recovery)
        .await
        .expect("the other hub finishes the job");
    assert_eq!(finished["status"], "succeeded");
    assert_eq!(finished["provider_task_id"], json!(task));
    assert_eq!(finished["attempt"], 1);
    let submits = provider.inspector.submits_of(id);
    assert_eq!((submits.received, submits.accepted), (1, 1));
}

fn port_of(url: &str) -> u16 {
    url.rsplit(':').next().unwrap().parse().unwrap()
}
