//! A hunt for jobs that are paid for twice: a hub that is killed again and again while it submits to providers
//! that lose, delay and refuse.
//!
//! Invariant: what counts is what the provider has, by its own books.

use std::collections::BTreeMap;
use std::time::Duration;

use progress_hub_simulator::{Inspector, Scenario, Settings, Simulator, playable};
use rand::RngExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::app::{TestApp, TestAppBuilder, WEBHOOK_SECRET, reserve_port, send};

/// A dialect, and a model that it knows. But for the first, none minds the same job twice.
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

/// Orders that nobody has an answer to are orders all the same.
async fn order(app: &TestApp, n: usize) {
    let (provider, model) = DIALECTS[n % DIALECTS.len()];
    let scenario = SCENARIOS[(n / DIALECTS.len()) % SCENARIOS.len()];
    let is_playable = playable(provider).contains(&scenario);
    let scenario = if is_playable {
        scenario
    } else {
        Scenario::Normal
    };
    let order = json!({
        "provider": provider,
        "model": model,
        "prompt": format!("lighthouse {n}"),
        "input": { "scenario": scenario },
    });
    let submit = app.request(Method::POST, "/v1/videos", "alice");
    if let Ok(answer) = submit.json(&order).send().await {
        assert!(answer.status().is_success(), "{}", answer.status());
    }
}

async fn jobs(app: &TestApp) -> Vec<Value> {
    let list = app.request(Method::GET, "/v1/jobs?limit=200", "alice");
    let answer = send(list).await;
    answer.body["jobs"].as_array().unwrap().clone()
}

/// How many tasks there are for each job, by the simulator's books.
fn taken(witness: &Inspector) -> BTreeMap<(&'static str, String), usize> {
    let mut taken = BTreeMap::new();
    for task in witness.tasks() {
        *taken.entry((task.dialect, task.handle)).or_default() += 1;
    }
    taken
}

fn was_never_sent(job: &Value) -> bool {
    let message = job["error"]["message"].as_str().unwrap_or_default();
    message == "the job could not be sent before its deadline"
}

/// What a job has cost, as its document says.
fn cost(job: &Value) -> f64 {
    let is_told = job["cost"]["unit"] == "usd";
    match (job["status"].as_str().unwrap(), job["source"].as_str()) {
        _ if is_told => job["cost"]["amount"].as_f64().unwrap(),
        ("succeeded", _) => PRICE,
        // The clock ended it while its provider may have had it.
        (_, Some("deadline")) if !was_never_sent(job) => PRICE,
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
    let (url, witness) = (simulator.url(), simulator.inspector());
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    tokio::spawn(simulator.run(stop));

    // The same address after each kill, so that callbacks find the hub again.
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
        let orders = (round * each..(round + 1) * each).map(|n| order(&app, n));
        // The last of them may still be on their way when the lights go out.
        let moment = Duration::from_millis(rand::rng().random_range(30..900));
        let all = futures_util::future::join_all(orders);
        let _ = tokio::time::timeout(moment, all).await;
        folder = app.kill();
    }
    let app = hub().data_dir(folder).spawn_process(&[]).await;
    let mut ended = Vec::new();
    for job in jobs(&app).await {
        ended.push(
            app.wait_until_final(job["id"].as_str().unwrap(), "alice")
                .await,
        );
    }

    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for job in &ended {
        let end = format!(
            "{} {}: {}",
            job["status"], job["error"]["kind"], job["error"]["message"]
        );
        *ends.entry(end).or_default() += 1;
    }
    let taken = taken(&witness);
    let most = taken.values().max().copied().unwrap_or_default();
    println!(
        "{KILLS} kills: {} jobs, {} of them taken by a provider, {most} times at most; {} submits; ends: {ends:?}",
        ended.len(),
        taken.len(),
        witness.calls().submits_received,
    );
    assert!(ended.len() > 20, "the orders were placed");
    assert!(taken.values().all(|&tasks| tasks == 1), "{taken:?}");
    // Kling keeps the second of two by itself; so it must not have been asked to.
    for job in ended.iter().filter(|job| job["provider"] == "kling") {
        let submits = witness.submits_of(job["id"].as_str().unwrap());
        let refused = [
            Scenario::RateLimited,
            Scenario::ConcurrencyLimited,
            Scenario::ServerErrors,
        ];
        let task = submits.task.as_ref().and_then(|task| witness.task(task));
        if let Some(task) = task.filter(|task| !refused.contains(&task.scenario)) {
            assert_eq!(submits.received, 1, "{task:?}");
        }
    }
    // Nothing that a provider has was told as never sent.
    let is_never_sent = |job: &&Value| job["source"] == "submit" || was_never_sent(job);
    for job in ended.iter().filter(is_never_sent) {
        let id = job["id"].as_str().unwrap();
        let is_taken = taken.keys().any(|(_, handle)| handle.contains(id));
        assert!(!is_taken, "{job}");
    }

    let spent: f64 = ended.iter().map(cost).sum();
    let probe = json!({ "provider": "kling", "model": "kling-probe", "prompt": "too dear" });
    let submit = app.request(Method::POST, "/v1/videos", "alice");
    let answer = send(submit.json(&probe)).await;
    assert_eq!(answer.status, 402, "{}", answer.body);
    let left = answer.body["detail"].as_str().unwrap().to_owned();
    let told = format!(
        "budgets.per_owner_day: {} usd are left until ",
        BUDGET - spent
    );
    println!("{left}");
    assert!(left.starts_with(&told), "{left}, and the jobs say {told}");
    drop(app.kill());
}
