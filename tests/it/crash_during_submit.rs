//! No double submission: the hub is killed repeatedly while it submits to providers that lose, delay
//! and reject requests. The simulator's records decide how often a job was submitted.

use std::collections::BTreeMap;
use std::time::Duration;

use progress_hub_simulator::{Inspector, Scenario, Settings, Simulator, playable};
use rand::RngExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::app::{TestApp, TestAppBuilder, WEBHOOK_SECRET, reserve_port, send};

/// Dialects with a supported model. Only the first one deduplicates submissions.
const DIALECTS: [(&str, &str); 4] = [
    ("kling", "kling-v3.0-pro"),
    ("fal", "fal-ai/kling-video/v2/text-to-video"),
    ("replicate", "kwaivgi/kling-v2"),
    ("runway", "gen4_turbo"),
];

const SCENARIOS: [Scenario; 8] = [
    Scenario::Normal,
    Scenario::LostAnswer,
    Scenario::LostAnswerSilent,
    Scenario::RateLimited,
    Scenario::ConcurrencyLimited,
    Scenario::ServerErrors,
    Scenario::WebhookBeforeAnswer,
    Scenario::LateWebhooks,
];

const KILLS: usize = 5;
const BUDGET: f64 = 1000.0;
const PRICE: f64 = 1.25;

/// Submits a job. A missing response is ignored, because the hub may have been killed.
async fn submit_job(app: &TestApp, n: usize) {
    let (provider, model) = DIALECTS[n % DIALECTS.len()];
    let scenario = SCENARIOS[(n / DIALECTS.len()) % SCENARIOS.len()];
    let is_playable = playable(provider).contains(&scenario);
    let scenario = if is_playable {
        scenario
    } else {
        Scenario::Normal
    };
    let body = json!({
        "provider": provider,
        "model": model,
        "prompt": format!("lighthouse {n}"),
        "input": { "scenario": scenario },
    });
    let submit = app.request(Method::POST, "/v1/videos", "alice");
    if let Ok(response) = submit.json(&body).send().await {
        assert!(response.status().is_success(), "{}", response.status());
    }
}

async fn jobs(app: &TestApp) -> Vec<Value> {
    let list = app.request(Method::GET, "/v1/jobs?limit=200", "alice");
    let response = send(list).await;
    response.body["jobs"].as_array().unwrap().clone()
}

/// Returns the number of tasks for each job, according to the simulator.
fn task_counts(inspector: &Inspector) -> BTreeMap<(&'static str, String), usize> {
    let mut tasks = BTreeMap::new();
    for task in inspector.tasks() {
        *tasks.entry((task.dialect, task.handle)).or_default() += 1;
    }
    tasks
}

fn was_never_submitted(job: &Value) -> bool {
    let message = job["error"]["message"].as_str().unwrap_or_default();
    message == "deadline passed before the job could be submitted"
}

/// Returns the cost of a job according to its document.
fn cost(job: &Value) -> f64 {
    let is_reported = job["cost"]["unit"] == "usd";
    match (job["status"].as_str().unwrap(), job["source"].as_str()) {
        _ if is_reported => job["cost"]["amount"].as_f64().unwrap(),
        ("succeeded", _) => PRICE,
        // The deadline passed while the provider may have had the job.
        (_, Some("deadline")) if !was_never_submitted(job) => PRICE,
        _ => 0.0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_during_submit_never_pays_twice() {
    let simulator = Simulator::bind(
        "127.0.0.1:0",
        Settings {
            api_key: "a key".to_owned(),
            webhook_secret: Some(WEBHOOK_SECRET.to_owned()),
            pace: Duration::from_millis(40),
            default_scenario: Scenario::Normal,
        },
    )
    .unwrap();
    let (url, inspector) = (simulator.url(), simulator.inspector());
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    tokio::spawn(simulator.run(stop));

    // The address stays the same after each kill, so that callbacks reach the hub.
    let (_port, address) = reserve_port();
    let hub = |prices: &str| {
        let mut hub = TestApp::builder()
            .set("server.bind", address)
            .set("server.public_url", format!("http://{address}"))
            .set("budgets.per_owner_day", BUDGET);
        for (name, _) in DIALECTS {
            for (key, value) in [
                ("spec", name),
                ("base_url", &format!("{url}/{name}")),
                ("api_key", "a key"),
                ("poll_after", "500ms"),
                ("poll_every", "300ms"),
                ("cool_down", "100ms"),
                ("deadline", "14s"),
                ("prices", prices),
                ("allowed_input", "scenario"),
            ] {
                hub = hub.set(&format!("providers.{name}.{key}"), value);
            }
        }
        hub.set("providers.kling.webhook_secrets", WEBHOOK_SECRET)
            .set("providers.replicate.webhook_secrets", WEBHOOK_SECRET)
            .set(
                "providers.fal.jwks_url",
                format!("{url}/fal/.well-known/jwks.json"),
            )
    };
    let hub = || -> TestAppBuilder {
        hub(&format!(
            r#"{{ "*" = {PRICE}, "kling-probe" = {} }}"#,
            BUDGET * 2.0
        ))
    };

    let mut folder = tempfile::tempdir().unwrap();
    for round in 0..KILLS {
        let app = hub().data_dir(folder).spawn_process(&[]).await;
        let each = DIALECTS.len() * SCENARIOS.len() / 2;
        let requests = (round * each..(round + 1) * each).map(|n| submit_job(&app, n));
        // The last requests may still be in flight when the hub is killed.
        let delay = Duration::from_millis(rand::rng().random_range(30..900));
        let all = futures_util::future::join_all(requests);
        let _ = tokio::time::timeout(delay, all).await;
        folder = app.kill();
    }
    let app = hub().data_dir(folder).spawn_process(&[]).await;
    let mut finished = Vec::new();
    for job in jobs(&app).await {
        finished.push(
            app.wait_until_final(job["id"].as_str().unwrap(), "alice")
                .await,
        );
    }

    let mut results: BTreeMap<String, usize> = BTreeMap::new();
    for job in &finished {
        let result = format!(
            "{} {}: {}",
            job["status"], job["error"]["kind"], job["error"]["message"]
        );
        *results.entry(result).or_default() += 1;
    }
    let tasks = task_counts(&inspector);
    assert!(
        finished.len() > 20,
        "too few jobs were created: {results:?}"
    );
    assert!(tasks.values().all(|&tasks| tasks == 1), "{tasks:?}");
    // Kling deduplicates submissions, so the number of received requests is checked as well.
    for job in finished.iter().filter(|job| job["provider"] == "kling") {
        let submits = inspector.submits_of(job["id"].as_str().unwrap());
        let rejecting = [
            Scenario::RateLimited,
            Scenario::ConcurrencyLimited,
            Scenario::ServerErrors,
        ];
        let task = submits.task.as_ref().and_then(|task| inspector.task(task));
        if let Some(task) = task.filter(|task| !rejecting.contains(&task.scenario)) {
            assert_eq!(submits.received, 1, "{task:?}");
        }
    }
    // A job that is reported as never submitted has no task.
    let is_never_submitted = |job: &&Value| job["source"] == "submit" || was_never_submitted(job);
    for job in finished.iter().filter(is_never_submitted) {
        let id = job["id"].as_str().unwrap();
        let has_task = tasks.keys().any(|(_, handle)| handle.contains(id));
        assert!(!has_task, "{job}");
    }

    let spent: f64 = finished.iter().map(cost).sum();
    let probe = json!({ "provider": "kling", "model": "kling-probe", "prompt": "too expensive" });
    let submit = app.request(Method::POST, "/v1/videos", "alice");
    let response = send(submit.json(&probe)).await;
    assert_eq!(response.status, 402, "{}", response.body);
    let left = response.body["detail"].as_str().unwrap().to_owned();
    let expected = format!("budgets.per_owner_day: {} usd left until ", BUDGET - spent);
    assert!(
        left.starts_with(&expected),
        "{left}; the jobs add up to {expected}"
    );
    drop(app.kill());
}
