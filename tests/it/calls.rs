//! What it costs to know: requests to a provider that calls back, against those to one that does not.
//!
//! Invariant: both stories are of the same jobs, the same hub and the same cadence, which is the built-in one
//! (ask after 60 s of silence and then every 15 s) with a second for every 15.

use std::time::Duration;

use progress_hub::simulator::{Counts, Scenario, Settings, Simulator};
use reqwest::Method;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::app::{TestApp, WEBHOOK_SECRET, send};

const JOBS: usize = 1_000;
/// Every so many jobs lose their webhooks even where there are some.
const LOST: usize = 50;

/// Runs the jobs, each ten seconds long, and tells what was asked of the provider.
async fn run(scenario: Scenario) -> Counts {
    let simulator = Simulator::bind(
        "127.0.0.1:0",
        Settings {
            api_key: "a key".to_owned(),
            webhook_secret: Some(WEBHOOK_SECRET.to_owned()),
            pace: Duration::from_secs(2),
            default_scenario: scenario,
        },
    )
    .unwrap();
    let witness = simulator.witness();
    let app = TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", simulator.url())
        .set("providers.kling.api_key", "a key")
        .set("providers.kling.webhook_secrets", WEBHOOK_SECRET)
        .set("providers.kling.poll_after", "4s")
        .set("providers.kling.poll_every", "1s")
        .set("providers.kling.cool_down", "1s")
        .set("providers.kling.max_concurrent", JOBS)
        .spawn()
        .await;
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    tokio::spawn(simulator.run(stop));
    let mut jobs = Vec::new();
    for n in 0..JOBS {
        let scenario = if n % LOST == 0 {
            Scenario::LostWebhooks
        } else {
            scenario
        };
        let order = json!({
            "provider": "kling",
            "model": "kling-v3.0-pro",
            "prompt": "a lighthouse in the rain",
            "input": { "scenario": scenario, "steps": 3 },
        });
        let submit = app.request(Method::POST, "/v1/videos", "alice");
        let answer = send(submit.json(&order)).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        jobs.push(answer.body["id"].as_str().unwrap().to_owned());
    }
    for job in &jobs {
        assert_eq!(app.ended(job, "alice").await["status"], "succeeded");
    }
    let counts = witness.calls_in("kling");
    assert_eq!(counts.submits_accepted, JOBS as u64);
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn with_webhooks_a_provider_is_read_less_than_a_tenth_as_often() {
    let told = run(Scenario::Normal).await;
    let asked = run(Scenario::LostWebhooks).await;
    let ratio = told.queries_received as f64 / asked.queries_received as f64;
    println!(
        "{JOBS} jobs: {} reads ({} tasks) with webhooks, {} reads ({} tasks) by polling alone: {ratio:.3}",
        told.queries_received, told.tasks_queried, asked.queries_received, asked.tasks_queried,
    );
    assert_eq!(asked.callbacks_sent, 0);
    assert!(told.callbacks_acknowledged > 0 && asked.queries_received > 0);
    assert!(ratio < 0.1, "{ratio}");
}
