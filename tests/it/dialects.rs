//! Each dialect of the simulator, met by the hub through the spec that is built in for it.
//!
//! Invariant: one simulator and one hub for all, as many providers as there are dialects.

use std::time::Duration;

use progress_hub::simulator::{Scenario, Settings, Simulator, Witness, playable};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::app::{TestApp, WEBHOOK_SECRET, send};

/// A dialect, a model that it knows, and below which path its interface begins.
const DIALECTS: [(&str, &str, &str); 7] = [
    ("kling", "kling-v3.0-pro", ""),
    ("fal", "fal-ai/kling-video/v2/text-to-video", ""),
    ("atlas", "kwaivgi/kling-v2.6-pro/text-to-video", ""),
    ("videos", "sora-2", "/v1"),
    ("minimax", "MiniMax-Hailuo-02", ""),
    ("runway", "gen4_turbo", ""),
    ("replicate", "kwaivgi/kling-v2", ""),
];

/// A hub, and a simulator that stands in for seven providers.
struct Stage {
    app: TestApp,
    witness: Witness,
    _end: DropGuard,
}

impl Stage {
    async fn set(poll_after: &str) -> Self {
        let simulator = Simulator::bind(
            "127.0.0.1:0",
            Settings {
                api_key: "a key".to_owned(),
                webhook_secret: Some(WEBHOOK_SECRET.to_owned()),
                pace: Duration::from_millis(20),
                default_scenario: Scenario::Normal,
            },
        )
        .unwrap();
        let (url, witness) = (simulator.url(), simulator.witness());
        let mut hub = TestApp::builder();
        for (name, _, below) in DIALECTS {
            let base_url = format!("{url}/{name}{below}");
            for (key, value) in [
                ("spec", name),
                ("base_url", &base_url),
                ("api_key", "a key"),
                ("poll_after", poll_after),
                ("poll_every", "200ms"),
                ("cool_down", "50ms"),
                ("deadline", "30s"),
            ] {
                hub = hub.set(&format!("providers.{name}.{key}"), value);
            }
        }
        for name in ["kling", "videos", "replicate"] {
            hub = hub.set(&format!("providers.{name}.webhook_secrets"), WEBHOOK_SECRET);
        }
        let keys = [
            ("fal", "/.well-known/jwks.json"),
            ("atlas", "/api/v1/webhooks/jwks.json"),
        ];
        for (name, path) in keys {
            let key = format!("providers.{name}.jwks_url");
            hub = hub.set(&key, format!("{url}/{name}{path}"));
        }
        let app = hub
            .set("providers.runway.poll_after", "100ms")
            .spawn()
            .await;
        let project = format!("{}/v1/webhooks/videos", app.url);
        let simulator = simulator.with_project_webhook(&project).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(simulator.run(stop.clone()));
        Self {
            app,
            witness,
            _end: stop.drop_guard(),
        }
    }

    /// Submits a job and waits for its end.
    async fn play(&self, provider: &str, model: &str, scenario: Scenario) -> Value {
        let order = json!({
            "provider": provider,
            "model": model,
            "prompt": "a lighthouse in the rain",
            "input": { "scenario": scenario },
        });
        let submit = self.app.request(Method::POST, "/v1/videos", "alice");
        let answer = send(submit.json(&order)).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        let id = answer.body["id"].as_str().unwrap();
        self.app.ended(id, "alice").await
    }

    /// Plays a scenario in every dialect that can play it.
    async fn tour(&self, scenario: Scenario) -> Vec<(&'static str, Value)> {
        let mut ended = Vec::new();
        for (name, model, _) in DIALECTS {
            if playable(name).contains(&scenario) {
                ended.push((name, self.play(name, model, scenario).await));
            }
        }
        ended
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_comes_to_a_clip_at_every_provider() {
    let stage = Stage::set("20s").await;
    for scenario in [
        Scenario::Normal,
        Scenario::DuplicateWebhooks,
        Scenario::ReorderedWebhooks,
        Scenario::WebhookBeforeAnswer,
        Scenario::ThinSuccess,
    ] {
        for (name, job) in stage.tour(scenario).await {
            assert_eq!(job["status"], "succeeded", "{name} {scenario}: {job}");
            assert!(!job["outputs"][0].is_null(), "{name} {scenario}: {job}");
        }
    }
    // What calls back and proves it needs no question.
    for name in ["kling", "fal", "atlas", "replicate"] {
        let counts = stage.witness.calls_in(name);
        assert!(counts.callbacks_acknowledged > 0, "{name}");
    }
    let counts = stage.witness.calls_in("minimax");
    assert_eq!(counts.challenges_sent, counts.challenges_met);
    assert!(counts.challenges_sent > 0 && counts.results_fetched > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_webhooks_are_lost_or_false_comes_to_a_clip_by_asking() {
    let stage = Stage::set("100ms").await;
    for scenario in [
        Scenario::LostWebhooks,
        Scenario::Unsigned,
        Scenario::Forged,
        Scenario::ConcurrencyLimited,
    ] {
        for (name, job) in stage.tour(scenario).await {
            assert_eq!(job["status"], "succeeded", "{name} {scenario}: {job}");
        }
    }
    // A webhook at the job's own address brings back one whose answer was lost, proven or not.
    for (name, model, _) in DIALECTS {
        if ["kling", "fal", "atlas", "replicate", "minimax"].contains(&name) {
            let job = stage.play(name, model, Scenario::LostAnswer).await;
            assert_eq!(job["status"], "succeeded", "{name}: {job}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_has_its_kind_at_every_provider() {
    let stage = Stage::set("100ms").await;
    for (scenario, kind) in [
        (Scenario::FailsAtEnd, "technical"),
        (Scenario::SafetyAtEnd, "safety"),
        (Scenario::Safety, "safety"),
        (Scenario::Quota, "quota"),
    ] {
        let stage = if scenario == Scenario::Quota {
            &Stage::set("100ms").await
        } else {
            &stage
        };
        for (name, job) in stage.tour(scenario).await {
            let told = (&job["status"], &job["error"]["kind"]);
            assert_eq!(
                told,
                (&json!("failed"), &json!(kind)),
                "{name} {scenario}: {job}"
            );
        }
    }
}
