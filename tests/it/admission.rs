//! Admission control: rejected requests never reach the provider.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::app::{TestApp, TestAppBuilder, TestResponse, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};

const SPEC: &str = r#"
title = "Acme"
requires = ["base_url"]
signature = { scheme = "none" }
poll_after = "50ms"
poll_every = "50ms"
cool_down = "10ms"
deadline = "1m"
max_concurrent = 100

[submit]
url = "{{ base_url }}/jobs"
body = """{
  "name": reference, "seconds": duration, "ratio": aspect_ratio, "resolution": resolution,
  "width": width, "height": height, "input": input,
}"""
input = { allowed = ["a", "size"] }

[poll]
url = "{{ base_url }}/jobs/{{ task_id }}"

[cancel]
url = "{{ base_url }}/jobs/{{ task_id }}/cancel"

[read]
task_id = "payload.id"
status = "payload.state"
outputs = "payload.files"
cost = "payload.cost"

[read.statuses]
working = "running"
done = "succeeded"
broken = "failed"
stopped = "cancelled"

[[checks]]
when = "model is startingwith('short') and duration is defined and duration > 5"
problem = "duration: must be at most 5 for this model"

[[checks]]
when = "model == 'strict' and not resolution"
problem = "resolution: is required"
"#;

/// A hub with a mock provider and the states of its tasks.
struct Fixture {
    app: TestApp,
    provider: MockProvider,
    states: Arc<Mutex<HashMap<String, Value>>>,
    _folder: TempDir,
}

async fn start(settings: &[(&str, &str)]) -> Fixture {
    Fixture::of(TestApp::builder(), settings, TestAppBuilder::spawn).await
}

impl Fixture {
    async fn of(
        builder: TestAppBuilder,
        settings: &[(&str, &str)],
        spawn: impl AsyncFnOnce(TestAppBuilder) -> TestApp,
    ) -> Self {
        let states: Arc<Mutex<HashMap<String, Value>>> = Arc::default();
        let known = Arc::clone(&states);
        let provider = MockProvider::start(move |request: RecordedRequest| {
            let name = request.body["name"]
                .as_str()
                .or(request.path.split('/').nth(2));
            let name = name.unwrap_or_default().to_owned();
            let state = known.lock().unwrap().get(&name).cloned();
            let mut task = state.unwrap_or_else(|| json!({ "state": "working" }));
            task["id"] = name.into();
            async move { MockResponse::json(200, &task) }
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let spec = folder.path().join("acme.toml");
        std::fs::write(&spec, SPEC).unwrap();
        let mut builder = builder
            .set("providers.acme.spec", spec.display())
            .set("providers.acme.base_url", &provider.url);
        for (key, value) in settings {
            builder = builder.set(key, value);
        }
        Self {
            app: spawn(builder).await,
            provider,
            states,
            _folder: folder,
        }
    }

    async fn post(&self, owner: &str, body: &Value) -> TestResponse {
        post(&self.app, owner, body).await
    }

    /// Submits an accepted request and returns the body that the provider received.
    async fn submit_and_capture(&self, body: &Value) -> Value {
        let response = self.post("alice", body).await;
        assert_eq!(response.status, 202, "{}", response.body);
        let id = response.body["id"].as_str().unwrap();
        let is_submission =
            |request: &&RecordedRequest| request.method == "POST" && request.body["name"] == id;
        let request = self
            .provider
            .wait_for_requests(|all| all.iter().any(|it| is_submission(&it)));
        request
            .await
            .iter()
            .find(is_submission)
            .unwrap()
            .body
            .clone()
    }

    async fn assert_rejected(&self, body: &Value, status: u16, code: &str, detail: &str) {
        let response = self.post("alice", body).await;
        assert_eq!(response.status, status, "{body:.200}: {}", response.body);
        assert_eq!(response.body["code"], code);
        let actual = response.body["detail"].as_str().unwrap();
        assert!(actual.contains(detail), "{actual}");
    }

    /// Asserts that the provider received no request and that the store contains no job.
    async fn assert_no_effects(&self) {
        let list = self.app.request(Method::GET, "/v1/jobs", "alice");
        assert_eq!(send(list).await.body["jobs"], json!([]));
        assert_eq!(self.provider.requests().len(), 0);
    }

    /// Sets the provider's response for a task.
    fn set_task(&self, id: &str, state: Value) {
        self.states.lock().unwrap().insert(id.to_owned(), state);
    }

    async fn submit_accepted(&self, owner: &str, body: &Value) -> String {
        let response = self.post(owner, body).await;
        assert_eq!(response.status, 202, "{}", response.body);
        response.body["id"].as_str().unwrap().to_owned()
    }
}

async fn post(app: &TestApp, owner: &str, body: &Value) -> TestResponse {
    send(app.request(Method::POST, "/v1/videos", owner).json(body)).await
}

/// Returns a request for `model` with additional fields.
fn request_body(model: &str, more: Value) -> Value {
    let mut body = json!({ "provider": "acme", "model": model, "prompt": "a lighthouse" });
    let all = body.as_object_mut().unwrap();
    all.extend(more.as_object().unwrap().clone());
    body
}

const PRICES: (&str, &str) = (
    "providers.acme.prices",
    r#"{ "m-*" = 0.25, "long-*" = "0.07 * duration", "free" = 0, "odd" = "1 / (duration - 5)" }"#,
);

#[tokio::test(flavor = "multi_thread")]
async fn platform_sets_dimensions_and_conflicts_are_rejected() {
    let hub = start(&[]).await;
    for body in [
        json!({ "platform": "tiktok", "aspect_ratio": "16:9" }),
        json!({ "platform": "tiktok", "width": 1280, "height": 720 }),
    ] {
        let names_both = "contradicts the platform 'tiktok', which is 9:16";
        let body = request_body("m-1", body);
        hub.assert_rejected(&body, 400, "invalid_request", names_both)
            .await;
    }
    let unknown = request_body("m-1", json!({ "platform": "vimeo" }));
    let list = "platform must be one of `tiktok`, `youtube`, `instagram`";
    hub.assert_rejected(&unknown, 400, "invalid_request", list)
        .await;
    let lone = request_body("m-1", json!({ "width": 640 }));
    hub.assert_rejected(&lone, 400, "invalid_request", "width, height: ")
        .await;
    hub.assert_no_effects().await;

    for (platform, ratio, width, height) in [
        ("tiktok", "9:16", 720, 1280),
        ("youtube", "16:9", 1280, 720),
        ("instagram", "1:1", 1024, 1024),
    ] {
        let sent = hub
            .submit_and_capture(&request_body("m-1", json!({ "platform": platform })))
            .await;
        assert_eq!(sent["ratio"], ratio);
        assert_eq!(
            (&sent["width"], &sent["height"]),
            (&json!(width), &json!(height))
        );
        assert_eq!(sent["resolution"], Value::Null, "as request");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tiers_below_production_send_at_most_720p() {
    for tier in ["development", "staging"] {
        let hub = start(&[("defaults.tier", tier)]).await;
        for (body, path) in [
            (json!({ "resolution": "best" }), "resolution: "),
            (
                json!({ "input": { "resolution": "1080p" } }),
                "input.resolution: ",
            ),
            (
                json!({ "input": { "a": [{ "size": "1920x1080" }] } }),
                "input.a[0].size: ",
            ),
            (
                json!({ "input": { "width": 1920, "height": 1080 } }),
                "input.height: ",
            ),
        ] {
            let body = request_body("m-1", body);
            hub.assert_rejected(&body, 400, "invalid_request", path)
                .await;
            hub.assert_rejected(&body, 400, "invalid_request", tier)
                .await;
        }
        hub.assert_no_effects().await;
        for (body, resolution) in [
            (json!({}), "720p"),
            (json!({ "resolution": "4k" }), "720p"),
            (json!({ "resolution": "1080x1920" }), "720p"),
            (json!({ "resolution": "480p" }), "480p"),
            (json!({ "input": { "size": "1280x720" } }), "720p"),
        ] {
            let sent = hub.submit_and_capture(&request_body("m-1", body)).await;
            assert_eq!(sent["resolution"], resolution);
        }
        let square = hub
            .submit_and_capture(&request_body("m-1", json!({ "platform": "instagram" })))
            .await;
        assert_eq!(
            (&square["width"], &square["height"]),
            (&json!(720), &json!(720))
        );
    }
    let hub = start(&[]).await;
    let input = json!({ "size": "4k" });
    let body = json!({ "resolution": "best", "input": input.clone() });
    let sent = hub.submit_and_capture(&request_body("m-1", body)).await;
    assert_eq!(
        (&sent["resolution"], &sent["input"]),
        (&json!("best"), &input)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn inline_data_and_oversized_requests_are_rejected() {
    let hub = start(&[]).await;
    let picture = "data:image/png;base64,iVBORw0KGgo=";
    let base64 = "QUJD".repeat(3000);
    for (body, path) in [
        (json!({ "image_url": picture }), "image_url: "),
        (json!({ "prompt": picture }), "prompt: "),
        (
            json!({ "input": { "images": [{ "url": picture }] } }),
            "input.images[0].url: ",
        ),
        (
            json!({ "input": { "first_frame": base64 } }),
            "input.first_frame: ",
        ),
    ] {
        let body = request_body("m-1", body);
        hub.assert_rejected(&body, 400, "invalid_request", path)
            .await;
        hub.assert_rejected(&body, 400, "invalid_request", "pass an http(s) URL")
            .await;
    }
    let story = "once upon a time ".repeat(4000);
    let body = request_body("m-1", json!({ "input": { "story": story } }));
    hub.assert_rejected(&body, 413, "payload_too_large", "65536")
        .await;
    hub.assert_no_effects().await;
    let rejected_metric = "submissions_rejected_total{reason=\"payload\"}";
    assert_eq!(hub.app.metric(rejected_metric).await, 9.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_fail_spec_checks_are_not_sent() {
    let hub = start(&[]).await;
    let long = request_body("short-1", json!({ "duration": 6 }));
    let problem = "duration: must be at most 5 for this model";
    hub.assert_rejected(&long, 400, "invalid_request", problem)
        .await;
    let strict = request_body("strict", json!({}));
    hub.assert_rejected(&strict, 400, "invalid_request", "resolution: is required")
        .await;
    hub.assert_no_effects().await;
    for (model, more) in [
        ("short-1", json!({ "duration": 5 })),
        ("short-1", json!({})),
        ("m-1", json!({ "duration": 6 })),
        ("strict", json!({ "resolution": "480p" })),
    ] {
        hub.submit_and_capture(&request_body(model, more)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn budget_requires_a_known_price() {
    for budget in [
        "budgets.per_job",
        "budgets.per_owner_day",
        "providers.acme.budget_per_day",
    ] {
        let hub = start(&[(budget, "1"), PRICES]).await;
        let unknown = request_body("unknown", json!({}));
        let problem =
            format!("providers.acme.prices: no price for model 'unknown', which {budget} requires");
        hub.assert_rejected(&unknown, 400, "invalid_request", &problem)
            .await;
        let expensive = request_body("long-1", json!({ "duration": 15 }));
        let cost = "this job would cost 1.05 usd";
        let available = if budget == "budgets.per_job" {
            "allowed per job"
        } else {
            "left until "
        };
        hub.assert_rejected(&expensive, 402, "budget_exceeded", cost)
            .await;
        hub.assert_rejected(
            &expensive,
            402,
            "budget_exceeded",
            &format!("{budget}: 1 usd {available}"),
        )
        .await;
        for more in [
            json!({}),
            json!({ "duration": 5 }),
            json!({ "duration": 4 }),
        ] {
            let model = if more == json!({}) { "long-1" } else { "odd" };
            let body = request_body(model, more);
            let key = format!("providers.acme.prices: '{}", &model[..3]);
            hub.assert_rejected(&body, 400, "invalid_request", &key)
                .await;
        }
        hub.assert_no_effects().await;
        hub.submit_and_capture(&request_body("long-1", json!({ "duration": 14 })))
            .await;
        hub.submit_and_capture(&request_body("free", json!({})))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_submits_never_exceed_the_budget() {
    for budget in ["budgets.per_owner_day", "providers.acme.budget_per_day"] {
        let hub = Arc::new(start(&[(budget, "1"), PRICES]).await);
        let mut callers = JoinSet::new();
        for _ in 0..20 {
            let hub = Arc::clone(&hub);
            callers.spawn(async move { hub.post("alice", &request_body("m-1", json!({}))).await });
        }
        let mut accepted = 0;
        for response in callers.join_all().await {
            if response.status == 202 {
                accepted += 1;
                continue;
            }
            assert_eq!(response.status, 402, "{}", response.body);
            assert_eq!(response.body["retryable"], false);
            let detail = response.body["detail"].as_str().unwrap();
            assert!(
                detail.starts_with(&format!("{budget}: 0 usd left until ")),
                "{detail}"
            );
        }
        assert_eq!(accepted, 4);
        let submits = |all: &[RecordedRequest]| all.iter().filter(|it| it.method == "POST").count();
        hub.provider
            .wait_for_requests(|all| submits(all) == 4)
            .await;
        let reserved = "budget_reserved_total{provider=\"acme\"}";
        assert_eq!(hub.app.metric(reserved).await, 1.0);
        let rejected_metric = "submissions_rejected_total{reason=\"budget\"}";
        assert_eq!(hub.app.metric(rejected_metric).await, 16.0);
        let another = hub
            .post("bob", &request_body("m-1", json!({})))
            .await
            .status;
        let is_owners = budget == "budgets.per_owner_day";
        assert_eq!(another, if is_owners { 202 } else { 402 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settlement_releases_unused_budget() {
    let settings = [("budgets.per_owner_day", "0.25"), PRICES];
    let hub = start(&settings).await;
    let body = request_body("m-1", json!({}));
    let cancel = async |id: &str| {
        let path = format!("/v1/jobs/{id}/cancel");
        let response = send(hub.app.request(Method::POST, &path, "alice")).await;
        assert!(response.status.is_success(), "{}", response.body);
    };
    for end in [
        json!({ "state": "broken" }),
        json!({ "state": "stopped" }),
        json!({ "state": "broken", "cost": { "amount": 0, "unit": "usd" } }),
    ] {
        let id = hub.submit_accepted("alice", &body).await;
        hub.assert_rejected(&body, 402, "budget_exceeded", ": 0 usd left")
            .await;
        if end["state"] == "stopped" {
            hub.app
                .wait_for_job(&id, "alice", |job| job["status"] == "running")
                .await;
            cancel(&id).await;
        }
        hub.set_task(&id, end);
        hub.app.wait_until_final(&id, "alice").await;
    }
    let cost = |amount: f64, unit: &str| {
        json!({ "state": "done", "files": ["https://a.example/1.mp4"],
                "cost": { "amount": amount, "unit": unit } })
    };
    let cheap = hub.submit_accepted("alice", &body).await;
    hub.set_task(&cheap, cost(0.05, "USD"));
    hub.app.wait_until_final(&cheap, "alice").await;
    hub.assert_rejected(&body, 402, "budget_exceeded", ": 0.2 usd left")
        .await;
    let spent = "budget_spent_total{provider=\"acme\"}";
    hub.app
        .wait_for_metric(spent, |sum| (sum - 0.05).abs() < 1e-9)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn success_with_incomparable_cost_is_charged_its_price() {
    let settings = [("budgets.per_owner_day", "0.4"), PRICES];
    let hub = start(&settings).await;
    let body = request_body("m-1", json!({}));
    let id = hub.submit_accepted("alice", &body).await;
    let files = json!(["https://a.example/1.mp4"]);
    let cost = json!({ "amount": 12, "unit": "credits" });
    hub.set_task(
        &id,
        json!({ "state": "done", "files": files, "cost": cost }),
    );
    hub.app.wait_until_final(&id, "alice").await;
    hub.assert_rejected(&body, 402, "budget_exceeded", ": 0.15 usd left")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_request_with_same_key_is_charged_once() {
    let settings = [
        ("budgets.per_owner_day", "0.25"),
        ("limits.submits_per_minute", "1"),
        PRICES,
    ];
    let hub = start(&settings).await;
    let body = request_body("m-1", json!({}));
    let mut ids = Vec::new();
    for _ in 0..3 {
        let request = hub.app.request(Method::POST, "/v1/videos", "alice");
        let response = send(request.header("idempotency-key", "k").json(&body)).await;
        assert_eq!(response.status, 202, "{}", response.body);
        ids.push(response.body["id"].clone());
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let reserved = "budget_reserved_total{provider=\"acme\"}";
    assert_eq!(hub.app.metric(reserved).await, 0.25);
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_over_submit_rate_gets_429_with_retry_after() {
    let hub = start(&[("limits.submits_per_minute", "2")]).await;
    let body = request_body("m-1", json!({}));
    let mut accepted = 0;
    let rejected = loop {
        let response = hub.post("alice", &body).await;
        if response.status != 202 {
            break response;
        }
        accepted += 1;
        // Four if a new minute starts in between.
        assert!(accepted <= 4);
    };
    assert!(accepted >= 2);
    assert_eq!(
        (rejected.status.as_u16(), &rejected.body["code"]),
        (429, &json!("rate_limited"))
    );
    assert_eq!(rejected.body["retryable"], true);
    let wait: u64 = rejected.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    hub.submit_accepted("bob", &body).await;
    assert_eq!(
        hub.app
            .metric("submissions_rejected_total{reason=\"rate\"}")
            .await,
        1.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reservation_survives_a_crash_and_is_released_once() {
    let settings = [("providers.acme.budget_per_day", "0.5"), PRICES];
    let spawn = async |builder: TestAppBuilder| builder.spawn_process(&[]).await;
    let hub = Fixture::of(TestApp::builder(), &settings, spawn).await;
    let body = request_body("m-1", json!({}));
    let first = hub.submit_accepted("alice", &body).await;
    hub.submit_accepted("alice", &body).await;
    let is_there = |job: &Value| job["status"] == "running";
    hub.app.wait_for_job(&first, "alice", is_there).await;
    let Fixture {
        app,
        provider,
        states,
        _folder,
    } = hub;
    let spec = _folder.path().join("acme.toml");
    let mut builder = TestApp::builder()
        .data_dir(app.kill())
        .set("providers.acme.spec", spec.display())
        .set("providers.acme.base_url", &provider.url);
    for (key, value) in settings {
        builder = builder.set(key, value);
    }
    let app = builder.spawn().await;
    assert_eq!(post(&app, "alice", &body).await.status, 402);
    states
        .lock()
        .unwrap()
        .insert(first.clone(), json!({ "state": "broken" }));
    app.wait_until_final(&first, "alice").await;
    assert_eq!(post(&app, "alice", &body).await.status, 202);
    assert_eq!(post(&app, "alice", &body).await.status, 402);
}

/// Budgets are read from the configuration, so a hub that restarts with a larger budget admits
/// further jobs.
#[tokio::test(flavor = "multi_thread")]
async fn raised_budget_admits_further_jobs_and_keeps_what_was_spent() {
    for budget in ["budgets.per_owner_day", "providers.acme.budget_per_day"] {
        let hub = start(&[(budget, "0.5"), PRICES]).await;
        let body = request_body("m-1", json!({}));
        for _ in 0..2 {
            hub.submit_accepted("alice", &body).await;
        }
        let cost = ": 0 usd left";
        hub.assert_rejected(&body, 402, "budget_exceeded", cost)
            .await;
        let Fixture {
            app,
            provider,
            _folder,
            ..
        } = hub;
        let spec = _folder.path().join("acme.toml");
        let app = TestApp::builder()
            .data_dir(app.shut_down().await.unwrap())
            .set("providers.acme.spec", spec.display())
            .set("providers.acme.base_url", &provider.url)
            .set(PRICES.0, PRICES.1)
            .set(budget, "0.75")
            .spawn()
            .await;
        assert_eq!(post(&app, "alice", &body).await.status, 202);
        let response = post(&app, "alice", &body).await;
        assert_eq!(
            response.body["code"], "budget_exceeded",
            "{}",
            response.body
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_of_an_owner_is_bounded_in_jobs_and_bytes() {
    for (setting, limit, story) in [
        ("limits.queued_jobs", "3", 1),
        ("limits.queued_bytes", "100000", 4_300),
    ] {
        let hub = start(&[(setting, limit), ("providers.acme.max_concurrent", "1")]).await;
        let body = request_body("m-1", json!({ "negative_prompt": "a word ".repeat(story) }));
        // The first job takes the only slot, so it is no longer queued.
        let first = hub.submit_accepted("alice", &body).await;
        let is_submitted = |job: &Value| job["attempt"] == 1;
        hub.app.wait_for_job(&first, "alice", is_submitted).await;
        let mut queued = Vec::new();
        for _ in 0..3 {
            queued.push(hub.submit_accepted("alice", &body).await);
        }
        hub.assert_rejected(&body, 429, "queue_full", setting).await;
        let response = hub.post("alice", &body).await;
        assert!(response.headers.contains_key("retry-after"));
        let rejected = "submissions_rejected_total{reason=\"queue\"}";
        assert_eq!(hub.app.metric(rejected).await, 2.0);
        hub.submit_accepted("bob", &body).await;
        // A job that is cancelled before its submission leaves the queue.
        let path = format!("/v1/jobs/{}/cancel", queued[2]);
        let response = send(hub.app.request(Method::POST, &path, "alice")).await;
        assert_eq!(response.status, 202, "{}", response.body);
        hub.submit_accepted("alice", &body).await;
        hub.assert_rejected(&body, 429, "queue_full", setting).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_take_turns_for_the_slots_of_a_provider() {
    let hub = start(&[("providers.acme.max_concurrent", "1")]).await;
    let body = request_body("m-1", json!({}));
    let first = hub.submit_accepted("alice", &body).await;
    let is_submitted = |job: &Value| job["attempt"] == 1;
    hub.app.wait_for_job(&first, "alice", is_submitted).await;
    for _ in 0..50 {
        hub.submit_accepted("alice", &body).await;
    }
    let single = hub.submit_accepted("bob", &body).await;
    hub.set_task(&first, json!({ "state": "broken" }));
    // Bob's job gets the next slot, or the one after it.
    let requests = hub.provider.wait_for_requests(|all| {
        let sent = all
            .iter()
            .filter(|it| it.method == "POST" && it.path == "/jobs");
        let names: Vec<_> = sent.map(|it| it.body["name"].as_str().unwrap()).collect();
        if let Some(last) = names.last().filter(|name| **name != single) {
            hub.set_task(last, json!({ "state": "broken" }));
        }
        names.contains(&single.as_str()) || names.len() > 5
    });
    let requests = requests.await;
    let sent = requests.iter().filter(|it| it.method == "POST");
    let names: Vec<_> = sent.map(|it| it.body["name"].as_str().unwrap()).collect();
    let position = names.iter().position(|name| *name == single);
    assert!(position.is_some_and(|at| at <= 2), "{position:?}");
}
