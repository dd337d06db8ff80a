//! One provider behind many hubs: what it allows, it allows all of them together, and what one of
//! them leaves undone another does.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use progress_hub_simulator::{Inspector, Scenario, Settings, Simulator};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Fleet;
use crate::app::{
    TEST_TIMEOUT, TestApp, TestAppBuilder, TestResponse, WEBHOOK_SECRET, send, simulator_settings,
};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};
use crate::proxy::Proxy;
use crate::redis::RedisServer;

/// A provider that outlives any hub.
struct Provider {
    url: String,
    witness: Inspector,
    _end: DropGuard,
}

impl Provider {
    fn start(pace: Duration) -> Self {
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
        let (url, witness) = (simulator.url(), simulator.inspector());
        tokio::spawn(simulator.run(stop.clone()));
        Self {
            url,
            witness,
            _end: stop.drop_guard(),
        }
    }
}

/// What makes a hub know the provider at this URL.
fn knowing(url: &str) -> impl Fn(TestAppBuilder) -> TestAppBuilder + Send + Sync + use<> {
    let settings = simulator_settings(url);
    move |hub| {
        let set = |hub: TestAppBuilder, (key, value): &(String, String)| hub.set(key, value);
        settings.iter().fold(hub, set)
    }
}

async fn order(app: &TestApp, key: &str) -> TestResponse {
    let order = json!({ "provider": "simulated", "model": "kling-v3", "prompt": "a lighthouse" });
    let request = app.request(Method::POST, "/v1/videos", "alice");
    send(request.header("idempotency-key", key).json(&order)).await
}

/// Orders that many jobs, all at once and all over the fleet; what was answered.
async fn order_many(fleet: &Fleet, count: usize) -> Vec<TestResponse> {
    let keys: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    let all = keys
        .iter()
        .enumerate()
        .map(|(n, key)| order(fleet.node(n % fleet.size()), key));
    futures_util::future::join_all(all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrency_limit_holds_across_nodes() {
    let (redis, provider) = (
        RedisServer::start().await,
        Provider::start(Duration::from_millis(20)),
    );
    let know = knowing(&provider.url);
    let dress = move |hub| know(hub).set("providers.simulated.max_concurrent", 3);
    let fleet = Fleet::start(&[redis.url(), redis.url(), redis.url()], dress).await;
    let answers = order_many(&fleet, 18).await;
    let mut most = 0;
    let all_ended = provider.witness.until(|witness| {
        let tasks = witness.tasks();
        let unfinished = tasks.iter().filter(|task| !task.status.is_final()).count();
        most = most.max(unfinished);
        (tasks.len() == 18 && unfinished == 0).then_some(())
    });
    tokio::time::timeout(TEST_TIMEOUT * 2, all_ended)
        .await
        .expect("all end");
    println!("3 places, 3 hubs, 18 jobs: at most {most} at once");
    assert!(most <= 3, "{most} at once");
    assert!(most > 1, "places were used side by side");
    for answer in answers {
        let id = answer.body["id"].as_str().unwrap();
        assert_eq!(
            fleet.node(0).wait_until_final(id, "alice").await["status"],
            "succeeded"
        );
        let submits = provider.witness.submits_of(id);
        assert_eq!((submits.received, submits.accepted), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_key_holds_across_nodes() {
    let (redis, provider) = (
        RedisServer::start().await,
        Provider::start(Duration::from_millis(20)),
    );
    let fleet = Fleet::start(&[redis.url(), redis.url()], knowing(&provider.url)).await;
    let all = (0..16).map(|n| order(fleet.node(n % 2), "the same"));
    let all = futures_util::future::join_all(all).await;
    let id = all[0].body["id"].as_str().unwrap();
    for answer in &all {
        assert_eq!(answer.status, 202, "{}", answer.body);
        assert_eq!(answer.body["id"], id);
    }
    fleet.node(1).wait_until_final(id, "alice").await;
    assert_eq!(provider.witness.calls().submits_received, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn budget_reservation_is_shared_across_nodes() {
    let (redis, provider) = (
        RedisServer::start().await,
        Provider::start(Duration::from_millis(20)),
    );
    let know = knowing(&provider.url);
    let dress = move |hub| {
        know(hub)
            .set("budgets.per_owner_day", 2)
            .set("providers.simulated.prices", r#"{ "*" = 0.25 }"#)
    };
    let fleet = Fleet::start(&[redis.url(), redis.url()], dress).await;
    let answers = order_many(&fleet, 24).await;
    let (taken, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|it| it.status == 202);
    println!(
        "a budget of 8 jobs, 2 hubs, 24 orders: {} taken",
        taken.len()
    );
    // Sixteen where the day ended in between.
    assert!([8, 16].contains(&taken.len()), "{}", taken.len());
    for answer in refused {
        assert_eq!(answer.body["code"], "budget_exceeded", "{}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_rate_limit_holds_across_nodes() {
    let (redis, provider) = (
        RedisServer::start().await,
        Provider::start(Duration::from_millis(20)),
    );
    let know = knowing(&provider.url);
    let dress = move |hub| know(hub).set("limits.submits_per_minute", 6);
    let fleet = Fleet::start(&[redis.url(), redis.url()], dress).await;
    let answers = order_many(&fleet, 24).await;
    let (taken, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|it| it.status == 202);
    println!("6 a minute, 2 hubs, 24 orders: {} taken", taken.len());
    // Up to twelve where the minute ended in between.
    assert!((6..=12).contains(&taken.len()), "{}", taken.len());
    for answer in refused {
        assert_eq!(answer.status, 429, "{}", answer.body);
        assert_eq!(answer.body["code"], "rate_limited");
        assert!(answer.headers.contains_key("retry-after"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limit_pause_is_shared_across_nodes() {
    const PAUSE: Duration = Duration::from_secs(3);
    let submits: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let noted = Arc::clone(&submits);
    let provider = MockProvider::start(move |asked: RecordedRequest| {
        let mut reply = MockResponse::json(200, &json!({ "code": 0, "data": [] }));
        if asked.method == "POST" {
            let mut noted = noted.lock().unwrap();
            noted.push(Instant::now());
            let id = asked.body["options"]["external_task_id"].clone();
            reply = match noted.len() {
                1 => MockResponse::json(429, &json!({ "code": 1302, "message": "slower" }))
                    .with_header("retry-after", PAUSE.as_secs()),
                _ => MockResponse::json(
                    200,
                    &json!({ "code": 0, "data": { "id": id, "status": "submitted" } }),
                ),
            };
        }
        async move { reply }
    })
    .await;
    let redis = RedisServer::start().await;
    let fleet = Fleet::start(&[redis.url(), redis.url()], knowing(&provider.url)).await;
    let (here, there) = (fleet.node(0), fleet.node(1));
    let first = order(here, "first").await.body["id"].clone();
    let first = first.as_str().unwrap();
    let is_waiting = |job: &Value| !job["next_attempt_at"].is_null();
    there.wait_for_job(first, "alice", is_waiting).await;
    let mut others = Vec::new();
    for n in 0..6 {
        let app = fleet.node(n % 2);
        others.push(order(app, &n.to_string()).await.body["id"].clone());
    }
    for id in &others {
        let is_queued = |job: &Value| job["status"] == "queued";
        there
            .wait_for_job(id.as_str().unwrap(), "alice", is_queued)
            .await;
    }
    let submits = submits.lock().unwrap();
    let early = submits[1..]
        .iter()
        .filter(|at| at.duration_since(submits[0]) < PAUSE)
        .count();
    assert_eq!(early, 0, "sent during the pause, by whichever hub");
}

#[tokio::test(flavor = "multi_thread")]
async fn poll_is_taken_over_after_node_failure() {
    let (redis, provider) = (
        RedisServer::start().await,
        Provider::start(Duration::from_millis(300)),
    );
    let way = Proxy::start(port_of(&provider.url)).await;
    let know = knowing(&format!("http://{}", way.address()));
    let dress = move |hub| know(hub).set("providers.simulated.poll_after", "300ms");
    let mut fleet = Fleet::start_processes(&[redis.url(), redis.url()], dress).await;
    // Alone at first, so that it is this one that asks.
    fleet.kill(1);
    way.mute_after("GET /tasks?task_ids=");
    let job = fleet.node(0).submit("alice", Scenario::LostWebhooks).await;
    let id = job["id"].as_str().unwrap();
    way.until_mute().await;
    fleet.kill(0);
    way.heal();
    fleet.bring_up(1).await;
    let ended = fleet.node(1).wait_until_final(id, "alice").await;
    assert_eq!(
        (&ended["status"], &ended["source"]),
        (&json!("succeeded"), &json!("poll"))
    );
    let submits = provider.witness.submits_of(id);
    assert_eq!((submits.received, submits.accepted), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_flight_submission_is_recovered_without_resubmitting() {
    let (redis, provider) = (
        RedisServer::start().await,
        Provider::start(Duration::from_millis(20)),
    );
    let way = Proxy::start(port_of(&provider.url)).await;
    let know = knowing(&format!("http://{}", way.address()));
    // Long enough for what a submission may take to be taken for lost.
    let dress = move |hub| know(hub).set("providers.simulated.deadline", "5m");
    let mut fleet = Fleet::start_processes(&[redis.url(), redis.url()], dress).await;
    fleet.kill(1);
    way.mute_after("external_task_id");
    let job = fleet.node(0).submit("alice", Scenario::LostWebhooks).await;
    let id = job["id"].as_str().unwrap();
    way.until_mute().await;
    // The provider has it, and the hub that sent it dies without an answer.
    let taken = provider.witness.until(|witness| witness.task_of(id));
    let task = tokio::time::timeout(TEST_TIMEOUT, taken)
        .await
        .expect("it is taken");
    fleet.kill(0);
    way.heal();
    fleet.bring_up(1).await;
    let found = async {
        loop {
            let path = format!("/v1/jobs/{id}?wait=10");
            let answer = send(fleet.node(1).request(Method::GET, &path, "alice")).await;
            if answer.body["final"] == true {
                return answer.body;
            }
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(75), found)
        .await
        .expect("another hub finds it");
    assert_eq!(
        (&ended["status"], &ended["provider_task_id"]),
        (&json!("succeeded"), &json!(task))
    );
    assert_eq!(ended["attempt"], 1);
    let submits = provider.witness.submits_of(id);
    assert_eq!((submits.received, submits.accepted), (1, 1));
}

fn port_of(url: &str) -> u16 {
    url.rsplit(':').next().unwrap().parse().unwrap()
}
