//! The built-in specs against the simulated provider APIs. Each test uses one hub and one simulator
//! with a provider per API.

use std::time::Duration;

use progress_hub_simulator::{Inspector, Scenario, Settings, Simulator, Task, playable};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::app::{TestApp, TestAppBuilder, WEBHOOK_SECRET, send};

/// Simulated APIs: name, a model, and the path prefix of the base URL.
const DIALECTS: [(&str, &str, &str); 7] = [
    ("kling", "kling-v3.0-pro", ""),
    ("fal", "fal-ai/kling-video/v2/text-to-video", ""),
    ("atlas", "kwaivgi/kling-v2.6-pro/text-to-video", ""),
    ("videos", "sora-2", "/v1"),
    ("minimax", "MiniMax-Hailuo-02", ""),
    ("runway", "gen4_turbo", ""),
    ("replicate", "kwaivgi/kling-v2", ""),
];

/// A hub, and a simulator that plays its providers.
struct TestSetup {
    app: TestApp,
    inspector: Inspector,
    _stop_on_drop: DropGuard,
}

/// Configures a provider that the simulator plays.
fn with_provider(
    hub: TestAppBuilder,
    url: &str,
    name: &str,
    dialect: &str,
    path_prefix: &str,
    poll_after: &str,
) -> TestAppBuilder {
    let base_url = format!("{url}/{dialect}{path_prefix}");
    let mut settings = vec![
        ("spec", dialect.to_owned()),
        ("base_url", base_url),
        ("api_key", "a key".to_owned()),
        ("poll_after", poll_after.to_owned()),
        ("poll_every", "200ms".to_owned()),
        ("cool_down", "50ms".to_owned()),
        ("deadline", "60s".to_owned()),
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

impl TestSetup {
    async fn start(poll_after: &str) -> Self {
        Self::start_with(poll_after, |hub, _| hub).await
    }

    /// Starts a hub with further settings. `configure` gets the URL of the simulator.
    async fn start_with(
        poll_after: &str,
        configure: impl FnOnce(TestAppBuilder, &str) -> TestAppBuilder,
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
        let (url, inspector) = (simulator.url(), simulator.inspector());
        let mut hub = TestApp::builder();
        for (name, _, path_prefix) in DIALECTS {
            hub = with_provider(hub, &url, name, name, path_prefix, poll_after);
        }
        hub = hub.set("providers.runway.poll_after", "100ms");
        let app = configure(hub, &url).spawn().await;
        let project = format!("{}/v1/webhooks/videos", app.url);
        let simulator = simulator.with_project_webhook(&project).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(simulator.run(stop.clone()));
        Self {
            app,
            inspector,
            _stop_on_drop: stop.drop_guard(),
        }
    }

    /// Submits a job and returns its id.
    async fn submit(&self, provider: &str, model: &str, scenario: Scenario) -> String {
        self.submit_with_input(provider, model, json!({ "scenario": scenario }))
            .await
    }

    /// Submits a job whose task takes `steps` steps of 20 ms.
    async fn submit_with_steps(
        &self,
        provider: &str,
        model: &str,
        scenario: Scenario,
        steps: u16,
    ) -> String {
        let input = json!({ "scenario": scenario, "steps": steps });
        self.submit_with_input(provider, model, input).await
    }

    async fn submit_with_input(&self, provider: &str, model: &str, input: Value) -> String {
        let body = json!({
            "provider": provider,
            "model": model,
            "prompt": "a lighthouse in the rain",
            "input": input,
        });
        let request = self.app.request(Method::POST, "/v1/videos", "alice");
        let response = send(request.json(&body)).await;
        assert_eq!(response.status, 202, "{}", response.body);
        response.body["id"].as_str().unwrap().to_owned()
    }

    /// Submits a job and returns its final document.
    async fn run(&self, provider: &str, model: &str, scenario: Scenario) -> Value {
        let id = self.submit(provider, model, scenario).await;
        self.app.wait_until_final(&id, "alice").await
    }

    /// Runs a scenario with every provider that supports it.
    async fn run_with_all(&self, scenario: Scenario) -> Vec<(&'static str, Value)> {
        let mut jobs = Vec::new();
        for (name, model, _) in DIALECTS {
            if playable(name).contains(&scenario) {
                jobs.push((name, self.run(name, model, scenario).await));
            }
        }
        jobs
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn job_succeeds_with_every_provider() {
    let setup = TestSetup::start("20s").await;
    for scenario in [
        Scenario::Normal,
        Scenario::DuplicateWebhooks,
        Scenario::ReorderedWebhooks,
        Scenario::WebhookBeforeAnswer,
        Scenario::ThinSuccess,
    ] {
        for (name, job) in setup.run_with_all(scenario).await {
            assert_eq!(job["status"], "succeeded", "{name} {scenario}: {job}");
            assert!(!job["outputs"][0].is_null(), "{name} {scenario}: {job}");
        }
    }
    // Signed webhooks make polls unnecessary.
    for name in ["kling", "fal", "atlas", "replicate"] {
        let counts = setup.inspector.calls_in(name);
        assert!(counts.callbacks_acknowledged > 0, "{name}");
    }
    let counts = setup.inspector.calls_in("minimax");
    assert_eq!(counts.challenges_sent, counts.challenges_passed);
    assert!(counts.challenges_sent > 0 && counts.results_fetched > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_for_another_account_are_rejected() {
    for (account, state) in [("user_simulated", "applied"), ("another", "unauthorized")] {
        let setup = TestSetup::start_with("20s", |hub, _| {
            hub.set("providers.fal.account", account)
                .set("providers.fal.poll_after", "1s")
        })
        .await;
        let job = setup.run("fal", "fal-ai/a-model", Scenario::Normal).await;
        assert_eq!(job["status"], "succeeded", "{job}");
        let webhooks = format!("webhooks_total{{provider=\"fal\",outcome=\"{state}\"}}");
        setup
            .app
            .wait_for_metric(&webhooks, |count| count > 0.0)
            .await;
        let other = if state == "applied" {
            "unauthorized"
        } else {
            "applied"
        };
        let webhooks = format!("webhooks_total{{provider=\"fal\",outcome=\"{other}\"}}");
        assert_eq!(setup.app.metric(&webhooks).await, 0.0, "{account}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_completes_jobs_with_lost_or_forged_webhooks() {
    let setup = TestSetup::start("100ms").await;
    for scenario in [
        Scenario::LostWebhooks,
        Scenario::Unsigned,
        Scenario::Forged,
        Scenario::ConcurrencyLimited,
    ] {
        for (name, job) in setup.run_with_all(scenario).await {
            assert_eq!(job["status"], "succeeded", "{name} {scenario}: {job}");
        }
    }
    // After a lost response, a webhook to the job's callback URL identifies the task, signed or
    // not.
    for (name, model, _) in DIALECTS {
        if ["kling", "fal", "atlas", "replicate", "minimax"].contains(&name) {
            let job = setup.run(name, model, Scenario::LostAnswer).await;
            assert_eq!(job["status"], "succeeded", "{name}: {job}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_map_to_the_same_kind_with_every_provider() {
    let setup = TestSetup::start("100ms").await;
    for (scenario, kind) in [
        (Scenario::FailsAtEnd, "technical"),
        (Scenario::SafetyAtEnd, "safety"),
        (Scenario::Safety, "safety"),
        (Scenario::Quota, "quota"),
    ] {
        let setup = if scenario == Scenario::Quota {
            &TestSetup::start("100ms").await
        } else {
            &setup
        };
        for (name, job) in setup.run_with_all(scenario).await {
            let result = (&job["status"], &job["error"]["kind"]);
            assert_eq!(
                result,
                (&json!("failed"), &json!(kind)),
                "{name} {scenario}: {job}"
            );
        }
    }
}

/// Scenarios that open the circuit breaker or last until the deadline. Each has its own provider,
/// so that it does not delay other jobs.
const ISOLATED: [Scenario; 8] = [
    Scenario::RateLimited,
    Scenario::ConcurrencyLimited,
    Scenario::ServerErrors,
    Scenario::LostAnswer,
    Scenario::LostAnswerSilent,
    Scenario::Quota,
    Scenario::BadKey,
    Scenario::Silence,
];

/// Result of a job: status, kind of the error, and whether it has outputs.
type JobResult = (&'static str, Option<&'static str>, bool);

const SUCCEEDED: JobResult = ("succeeded", None, true);

/// Returns the expected result of a job, and the number of tasks at the provider.
fn expected_result(dialect: &str, scenario: Scenario) -> (JobResult, usize) {
    let failed = |kind| ("failed", Some(kind), false);
    let has_callback_per_job = ["kling", "fal", "atlas", "replicate", "minimax"].contains(&dialect);
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
        | Scenario::CancelledLate => (SUCCEEDED, 1),
        Scenario::LostAnswer if has_callback_per_job => (SUCCEEDED, 1),
        Scenario::LostAnswerSilent if dialect == "kling" => (SUCCEEDED, 1),
        Scenario::LostAnswer | Scenario::LostAnswerSilent | Scenario::Silence => {
            (failed("timeout"), 1)
        }
        // The bare 500 of these providers may mean acceptance.
        Scenario::ServerErrors if ["atlas", "runway", "replicate"].contains(&dialect) => {
            (failed("timeout"), 0)
        }
        Scenario::ServerErrors => (SUCCEEDED, 1),
        // Private outputs are found to be missing only when they are downloaded.
        Scenario::ExpiredResult if dialect == "videos" => (SUCCEEDED, 1),
        Scenario::ExpiredResult => (("succeeded", Some("result_expired"), false), 1),
        Scenario::FailsAtEnd => (failed("technical"), 1),
        Scenario::SafetyAtEnd => (failed("safety"), 1),
        Scenario::Safety => (failed("safety"), 0),
        Scenario::Quota => (failed("quota"), 0),
        Scenario::BadKey => (failed("auth"), 0),
    }
}

/// Returns the name of the provider that runs a scenario.
fn provider_name(dialect: &str, scenario: Scenario) -> String {
    if ISOLATED.contains(&scenario) {
        format!("{dialect}-{}", scenario.name())
    } else {
        dialect.to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scenario_reaches_its_expected_state_and_is_paid_once() {
    let setup = TestSetup::start_with("300ms", |hub, url| {
        let mut hub = hub;
        for (dialect, _, path_prefix) in DIALECTS {
            for scenario in ISOLATED {
                let name = provider_name(dialect, scenario);
                hub = with_provider(hub, url, &name, dialect, path_prefix, "300ms");
                let ((_, error_kind, _), _) = expected_result(dialect, scenario);
                if error_kind == Some("timeout") {
                    hub = hub.set(&format!("providers.{name}.deadline"), "10s");
                }
            }
        }
        hub
    })
    .await;
    let runs = DIALECTS.iter().flat_map(|(dialect, model, _)| {
        let setup = &setup;
        playable(dialect)
            .into_iter()
            .map(move |scenario| async move {
                let has_progress = std::cell::Cell::new(false);
                let provider = provider_name(dialect, scenario);
                let mut input = json!({ "scenario": scenario });
                if scenario == Scenario::Slow {
                    // Long enough to see progress on a busy machine.
                    input["steps"] = json!(150);
                }
                let id = setup.submit_with_input(&provider, model, input).await;
                let is_done = |job: &Value| {
                    let is_in_progress =
                        job["final"] == false && job["progress"].as_f64() > Some(0.0);
                    has_progress.set(has_progress.get() || is_in_progress);
                    job["final"] == true
                };
                let job = setup.app.wait_for_job(&id, "alice", is_done).await;
                (*dialect, scenario, job, has_progress.get())
            })
    });
    let runs = futures_util::future::join_all(runs).await;
    let tasks = setup.inspector.tasks();
    let mut failures = Vec::new();
    for (dialect, scenario, job, has_progress) in &runs {
        let expected = expected_result(dialect, *scenario);
        let result = (
            job["status"].as_str().unwrap(),
            job["error"]["kind"].as_str(),
            !job["outputs"][0].is_null(),
        );
        let is_own = |task: &&Task| task.dialect == *dialect && task.scenario == *scenario;
        let actual = (result, tasks.iter().filter(is_own).count());
        if actual != expected {
            failures.push(format!(
                "{dialect} {scenario}: {actual:?} instead of {expected:?}: {job}"
            ));
        }
        // The hub itself must not submit again, even if the provider would reject a duplicate.
        let submits = setup.inspector.submits_of(job["id"].as_str().unwrap());
        let max = if ISOLATED[..3].contains(scenario) {
            3
        } else {
            1
        };
        if submits.received > max {
            failures.push(format!("{dialect} {scenario}: {submits:?}"));
        }
        let reports_progress = !["atlas", "minimax"].contains(dialect);
        if *scenario == Scenario::Slow && reports_progress && !has_progress {
            failures.push(format!("{dialect}: no progress: {job}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_is_forwarded_and_final_state_comes_from_the_provider() {
    let setup = TestSetup::start("300ms").await;
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
            // Long enough that the cancel request arrives before the end.
            let id = setup.submit_with_steps(name, model, scenario, 150).await;
            let is_accepted = |job: &Value| !job["provider_task_id"].is_null();
            setup.app.wait_for_job(&id, "alice", is_accepted).await;
            let path = format!("/v1/jobs/{id}/cancel");
            let response = send(setup.app.request(Method::POST, &path, "alice")).await;
            assert!(response.status.is_success(), "{name}: {}", response.body);
            let job = setup.app.wait_until_final(&id, "alice").await;
            assert_eq!(job["status"], end, "{name} {scenario}: {job}");
            let has_outputs = !job["outputs"][0].is_null();
            assert_eq!(has_outputs, end == "succeeded", "{name}: {job}");
        }
        let counts = setup.inspector.calls_in(name);
        assert_eq!(counts.submits_accepted, counts.cancels_received, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn private_output_of_the_videos_api_is_served_whole_and_by_range() {
    let clip = include_bytes!("../../crates/simulator/src/clip.mp4").as_slice();
    let setup = TestSetup::start("100ms").await;
    let job = setup.run("videos", "sora-2", Scenario::Normal).await;
    let url = job["outputs"][0]["url"].as_str().unwrap();
    assert!(url.starts_with(&setup.app.url), "{url}");
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
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status, "{range:?}");
        assert_eq!(response.headers()["content-type"], "video/mp4");
        let body = response.bytes().await.unwrap();
        assert!(body == clip[bytes], "{range:?}: {} bytes", body.len());
    }
    assert!(setup.inspector.calls_in("videos").downloads >= 5);
}
