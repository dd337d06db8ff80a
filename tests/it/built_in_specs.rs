//! Each dialect of the simulator, met by the hub through the spec that is built in for it.
//!
//! Invariant: one simulator and one hub for all, as many providers as there are dialects.

use std::time::Duration;

use progress_hub_simulator::{Inspector, Scenario, Settings, Simulator, TaskSnapshot, playable};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::app::{TestApp, TestAppBuilder, WEBHOOK_SECRET, send};

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
    witness: Inspector,
    _end: DropGuard,
}

/// Sets a provider that the simulator stands in for.
fn provider(
    hub: TestAppBuilder,
    url: &str,
    name: &str,
    dialect: &str,
    below: &str,
    poll_after: &str,
) -> TestAppBuilder {
    let base_url = format!("{url}/{dialect}{below}");
    let mut settings = vec![
        ("spec", dialect.to_owned()),
        ("base_url", base_url),
        ("api_key", "a key".to_owned()),
        ("poll_after", poll_after.to_owned()),
        ("poll_every", "200ms".to_owned()),
        ("cool_down", "50ms".to_owned()),
        ("deadline", "30s".to_owned()),
    ];
    match dialect {
        "kling" | "videos" | "replicate" => {
            settings.push(("webhook_secrets", WEBHOOK_SECRET.to_owned()));
        }
        "fal" => settings.push(("jwks_url", format!("{url}/fal/.well-known/jwks.json"))),
        "atlas" => {
            let keys = format!("{url}/atlas/api/v1/webhooks/jwks.json");
            settings.push(("jwks_url", keys));
        }
        _ => {}
    }
    let settings = settings.into_iter();
    settings.fold(hub, |hub, (key, value)| {
        hub.set(&format!("providers.{name}.{key}"), value)
    })
}

impl Stage {
    async fn set(poll_after: &str) -> Self {
        Self::set_with(poll_after, |hub, _| hub).await
    }

    /// With more in the hub, which is told where the simulator is.
    async fn set_with(
        poll_after: &str,
        more: impl FnOnce(TestAppBuilder, &str) -> TestAppBuilder,
    ) -> Self {
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
        let (url, witness) = (simulator.url(), simulator.inspector());
        let mut hub = TestApp::builder();
        for (name, _, below) in DIALECTS {
            hub = provider(hub, &url, name, name, below, poll_after);
        }
        hub = hub.set("providers.runway.poll_after", "100ms");
        let app = more(hub, &url).spawn().await;
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

    /// Submits a job.
    async fn begin(&self, provider: &str, model: &str, scenario: Scenario) -> String {
        self.order(provider, model, json!({ "scenario": scenario }))
            .await
    }

    /// Submits a job that is made in so many steps, of 20 ms each.
    async fn begin_in(
        &self,
        provider: &str,
        model: &str,
        scenario: Scenario,
        steps: u16,
    ) -> String {
        let input = json!({ "scenario": scenario, "steps": steps });
        self.order(provider, model, input).await
    }

    async fn order(&self, provider: &str, model: &str, input: Value) -> String {
        let order = json!({
            "provider": provider,
            "model": model,
            "prompt": "a lighthouse in the rain",
            "input": input,
        });
        let submit = self.app.request(Method::POST, "/v1/videos", "alice");
        let answer = send(submit.json(&order)).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        answer.body["id"].as_str().unwrap().to_owned()
    }

    /// Submits a job and waits for its end.
    async fn play(&self, provider: &str, model: &str, scenario: Scenario) -> Value {
        let id = self.begin(provider, model, scenario).await;
        self.app.wait_until_final(&id, "alice").await
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
async fn job_succeeds_with_every_provider() {
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
    assert_eq!(counts.challenges_sent, counts.challenges_passed);
    assert!(counts.challenges_sent > 0 && counts.results_fetched > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_completes_jobs_with_lost_or_forged_webhooks() {
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

/// Scenarios that close a provider's gate or last to a deadline: each has a provider of its own, so that
/// no other job waits for it.
const APART: [Scenario; 8] = [
    Scenario::RateLimited,
    Scenario::ConcurrencyLimited,
    Scenario::ServerErrors,
    Scenario::LostAnswer,
    Scenario::LostAnswerSilent,
    Scenario::Quota,
    Scenario::BadKey,
    Scenario::Silence,
];

/// How a job ends: its status, the kind of its error, and whether it has outputs.
type End = (&'static str, Option<&'static str>, bool);

const CLIP: End = ("succeeded", None, true);

/// How a scenario must end in a dialect, and how many tasks there must be at the provider.
fn end_of(dialect: &str, scenario: Scenario) -> (End, usize) {
    let failed = |kind| ("failed", Some(kind), false);
    let is_told_whose = ["kling", "fal", "atlas", "replicate", "minimax"].contains(&dialect);
    match scenario {
        Scenario::Normal
        | Scenario::Slow
        | Scenario::DuplicateWebhooks
        | Scenario::ReorderedWebhooks
        | Scenario::LateWebhooks
        | Scenario::LostWebhooks
        | Scenario::WebhookBeforeAnswer
        | Scenario::RateLimited
        | Scenario::ConcurrencyLimited
        | Scenario::ThinSuccess
        | Scenario::Unsigned
        | Scenario::Forged
        | Scenario::CancelledLate => (CLIP, 1),
        Scenario::LostAnswer if is_told_whose => (CLIP, 1),
        Scenario::LostAnswerSilent if dialect == "kling" => (CLIP, 1),
        Scenario::LostAnswer | Scenario::LostAnswerSilent | Scenario::Silence => {
            (failed("timeout"), 1)
        }
        // Nothing but a 500 may have been an acceptance.
        Scenario::ServerErrors if ["atlas", "runway", "replicate"].contains(&dialect) => {
            (failed("timeout"), 0)
        }
        Scenario::ServerErrors => (CLIP, 1),
        // What lies behind the key is known to be gone only by whoever fetches it.
        Scenario::ExpiredResult if dialect == "videos" => (CLIP, 1),
        Scenario::ExpiredResult => (("succeeded", Some("result_expired"), false), 1),
        Scenario::FailsAtEnd => (failed("technical"), 1),
        Scenario::SafetyAtEnd => (failed("safety"), 1),
        Scenario::Safety => (failed("safety"), 0),
        Scenario::Quota => (failed("quota"), 0),
        Scenario::BadKey => (failed("auth"), 0),
    }
}

/// The name of the provider that plays a scenario.
fn player(dialect: &str, scenario: Scenario) -> String {
    match APART.contains(&scenario) {
        true => format!("{dialect}-{}", scenario.name()),
        false => dialect.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scenario_reaches_its_expected_state_and_is_paid_once() {
    let stage = Stage::set_with("300ms", |hub, url| {
        let mut hub = hub;
        for (dialect, _, below) in DIALECTS {
            for scenario in APART {
                let name = player(dialect, scenario);
                let deadline = format!("providers.{name}.deadline");
                hub = provider(hub, url, &name, dialect, below, "300ms").set(&deadline, "10s");
            }
        }
        hub
    })
    .await;
    let plays = DIALECTS.iter().flat_map(|(dialect, model, _)| {
        let stage = &stage;
        playable(dialect)
            .into_iter()
            .map(move |scenario| async move {
                let progress = std::cell::Cell::new(false);
                let id = stage
                    .begin(&player(dialect, scenario), model, scenario)
                    .await;
                let wish = |job: &Value| {
                    let is_underway = job["final"] == false && job["progress"].as_f64() > Some(0.0);
                    progress.set(progress.get() || is_underway);
                    job["final"] == true
                };
                let job = stage.app.wait_for_job(&id, "alice", wish).await;
                (*dialect, scenario, job, progress.get())
            })
    });
    let ended = futures_util::future::join_all(plays).await;
    let tasks = stage.witness.tasks();
    let mut wrong = Vec::new();
    for (dialect, scenario, job, has_shown_progress) in &ended {
        let (end, paid) = end_of(dialect, *scenario);
        let told = (
            job["status"].as_str().unwrap(),
            job["error"]["kind"].as_str(),
            !job["outputs"][0].is_null(),
        );
        let its = |task: &&TaskSnapshot| task.dialect == *dialect && task.scenario == *scenario;
        let accepted = tasks.iter().filter(its).count();
        if (told, accepted) != (end, paid) {
            wrong.push(format!(
                "{dialect} {scenario}: {told:?} and {accepted} tasks, not {end:?} and {paid}: {job}"
            ));
        }
        // A provider that refuses a name it knows must not be all that keeps it from being paid twice.
        let submits = stage.witness.submits_of(job["id"].as_str().unwrap());
        let most = if APART[..3].contains(scenario) { 3 } else { 1 };
        if submits.received > most {
            wrong.push(format!("{dialect} {scenario}: {submits:?}"));
        }
        let tells = !["atlas", "minimax"].contains(dialect);
        if *scenario == Scenario::Slow && tells && !has_shown_progress {
            wrong.push(format!("{dialect}: no progress: {job}"));
        }
    }
    println!("{} jobs in {} dialects", ended.len(), DIALECTS.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_is_forwarded_and_final_state_comes_from_the_provider() {
    let stage = Stage::set("300ms").await;
    for (name, model, _) in DIALECTS {
        if !["fal", "runway", "replicate"].contains(&name) {
            continue;
        }
        for (scenario, end) in [
            (Scenario::Slow, "cancelled"),
            (Scenario::CancelledLate, "succeeded"),
        ] {
            if !playable(name).contains(&scenario) {
                continue;
            }
            // Long enough for the cancel to come before the end.
            let id = stage.begin_in(name, model, scenario, 150).await;
            let is_there = |job: &Value| !job["provider_task_id"].is_null();
            stage.app.wait_for_job(&id, "alice", is_there).await;
            let path = format!("/v1/jobs/{id}/cancel");
            let answer = send(stage.app.request(Method::POST, &path, "alice")).await;
            assert!(answer.status.is_success(), "{name}: {}", answer.body);
            let job = stage.app.wait_until_final(&id, "alice").await;
            assert_eq!(job["status"], end, "{name} {scenario}: {job}");
            let has_outputs = !job["outputs"][0].is_null();
            assert_eq!(has_outputs, end == "succeeded", "{name}: {job}");
        }
        let counts = stage.witness.calls_in(name);
        assert_eq!(counts.submits_accepted, counts.cancels_received, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clip_behind_the_key_is_served_byte_for_byte_whole_and_in_parts() {
    let clip = include_bytes!("../../crates/simulator/src/clip.mp4").as_slice();
    let stage = Stage::set("100ms").await;
    let job = stage.play("videos", "sora-2", Scenario::Normal).await;
    let url = job["outputs"][0]["url"].as_str().unwrap();
    assert!(url.starts_with(&stage.app.url), "{url}");
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let (all, end) = (clip.len(), clip.len() - 1);
    for (range, status, bytes) in [
        (None, 200, 0..all),
        (Some("bytes=0-0".to_owned()), 206, 0..1),
        (Some("bytes=100-4099".to_owned()), 206, 100..4100),
        (Some(format!("bytes={end}-")), 206, end..all),
        (Some("bytes=-17".to_owned()), 206, all - 17..all),
    ] {
        let mut request = http.get(url);
        if let Some(range) = &range {
            request = request.header("range", range);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), status, "{range:?}");
        assert_eq!(answer.headers()["content-type"], "video/mp4");
        let told = answer.bytes().await.unwrap();
        assert!(told == clip[bytes], "{range:?}: {} bytes", told.len());
    }
    assert!(stage.witness.calls_in("videos").downloads >= 5);
}
