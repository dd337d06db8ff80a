//! Guardrails: what a caller is refused, and that nothing of it reaches the provider.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::app::{TestApp, TestAppBuilder, TestResponse, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};

const ATELIER: &str = r#"
title = "Atelier"
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
when = "model == 'picky' and not resolution"
problem = "resolution: is needed"
"#;

/// A provider, what its tasks have come to, and the hub in front of it.
struct Atelier {
    app: TestApp,
    provider: MockProvider,
    states: Arc<Mutex<HashMap<String, Value>>>,
    _folder: TempDir,
}

async fn atelier(settings: &[(&str, &str)]) -> Atelier {
    Atelier::of(TestApp::builder(), settings, TestAppBuilder::spawn).await
}

impl Atelier {
    async fn of(
        builder: TestAppBuilder,
        settings: &[(&str, &str)],
        spawn: impl AsyncFnOnce(TestAppBuilder) -> TestApp,
    ) -> Self {
        let states: Arc<Mutex<HashMap<String, Value>>> = Arc::default();
        let known = Arc::clone(&states);
        let provider = MockProvider::start(move |asked: RecordedRequest| {
            let name = asked.body["name"].as_str().or(asked.path.split('/').nth(2));
            let name = name.unwrap_or_default().to_owned();
            let state = known.lock().unwrap().get(&name).cloned();
            let mut task = state.unwrap_or_else(|| json!({ "state": "working" }));
            task["id"] = name.into();
            async move { MockResponse::json(200, &task) }
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let spec = folder.path().join("atelier.toml");
        std::fs::write(&spec, ATELIER).unwrap();
        let mut builder = builder
            .set("providers.atelier.spec", spec.display())
            .set("providers.atelier.base_url", &provider.url);
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

    /// Submits what is taken, and what its provider then received.
    async fn sent(&self, body: &Value) -> Value {
        let answer = self.post("alice", body).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        let id = answer.body["id"].as_str().unwrap();
        let is_it = |asked: &&RecordedRequest| asked.method == "POST" && asked.body["name"] == id;
        let asked = self
            .provider
            .wait_for_requests(|all| all.iter().any(|it| is_it(&it)));
        asked.await.iter().find(is_it).unwrap().body.clone()
    }

    async fn refused(&self, body: &Value, status: u16, code: &str, detail: &str) {
        let answer = self.post("alice", body).await;
        assert_eq!(answer.status, status, "{body:.200}: {}", answer.body);
        assert_eq!(answer.body["code"], code);
        let told = answer.body["detail"].as_str().unwrap();
        assert!(told.contains(detail), "{told}");
    }

    /// No request has reached the provider, nor any job the store.
    async fn assert_nothing_was_done(&self) {
        let list = self.app.request(Method::GET, "/v1/jobs", "alice");
        assert_eq!(send(list).await.body["jobs"], json!([]));
        assert_eq!(self.provider.requests().len(), 0);
    }

    /// Lets a task come to this.
    fn say(&self, id: &str, state: Value) {
        self.states.lock().unwrap().insert(id.to_owned(), state);
    }

    async fn taken(&self, owner: &str, body: &Value) -> String {
        let answer = self.post(owner, body).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        answer.body["id"].as_str().unwrap().to_owned()
    }
}

async fn post(app: &TestApp, owner: &str, body: &Value) -> TestResponse {
    send(app.request(Method::POST, "/v1/videos", owner).json(body)).await
}

/// An order of this model with more in it.
fn order(model: &str, more: Value) -> Value {
    let mut order = json!({ "provider": "atelier", "model": model, "prompt": "a lighthouse" });
    let all = order.as_object_mut().unwrap();
    all.extend(more.as_object().unwrap().clone());
    order
}

const PRICES: (&str, &str) = (
    "providers.atelier.prices",
    r#"{ "m-*" = 0.25, "long-*" = "0.07 * duration", "free" = 0, "odd" = "1 / (duration - 5)" }"#,
);

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_fills_in_the_frame_and_is_not_contradicted() {
    let atelier = atelier(&[]).await;
    for body in [
        json!({ "platform": "tiktok", "aspect_ratio": "16:9" }),
        json!({ "platform": "tiktok", "width": 1280, "height": 720 }),
    ] {
        let names_both = "contradicts the platform 'tiktok', which is 9:16";
        let body = order("m-1", body);
        atelier
            .refused(&body, 400, "invalid_request", names_both)
            .await;
    }
    let unknown = order("m-1", json!({ "platform": "vimeo" }));
    let list =
        "platform: unknown variant `vimeo`, expected one of `tiktok`, `youtube`, `instagram`";
    atelier
        .refused(&unknown, 400, "invalid_request", list)
        .await;
    let lone = order("m-1", json!({ "width": 640 }));
    atelier
        .refused(&lone, 400, "invalid_request", "width, height: ")
        .await;
    atelier.assert_nothing_was_done().await;

    for (platform, ratio, width, height) in [
        ("tiktok", "9:16", 720, 1280),
        ("youtube", "16:9", 1280, 720),
        ("instagram", "1:1", 1024, 1024),
    ] {
        let sent = atelier
            .sent(&order("m-1", json!({ "platform": platform })))
            .await;
        assert_eq!(sent["ratio"], ratio);
        assert_eq!(
            (&sent["width"], &sent["height"]),
            (&json!(width), &json!(height))
        );
        assert_eq!(sent["resolution"], Value::Null, "as asked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn below_production_at_most_720p_is_sent() {
    for tier in ["development", "staging"] {
        let atelier = atelier(&[("defaults.tier", tier)]).await;
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
            let body = order("m-1", body);
            atelier.refused(&body, 400, "invalid_request", path).await;
            atelier.refused(&body, 400, "invalid_request", tier).await;
        }
        atelier.assert_nothing_was_done().await;
        for (body, resolution) in [
            (json!({}), "720p"),
            (json!({ "resolution": "4k" }), "720p"),
            (json!({ "resolution": "1080x1920" }), "720p"),
            (json!({ "resolution": "480p" }), "480p"),
            (json!({ "input": { "size": "1280x720" } }), "720p"),
        ] {
            let sent = atelier.sent(&order("m-1", body)).await;
            assert_eq!(sent["resolution"], resolution);
        }
        let square = atelier
            .sent(&order("m-1", json!({ "platform": "instagram" })))
            .await;
        assert_eq!(
            (&square["width"], &square["height"]),
            (&json!(720), &json!(720))
        );
    }
    let atelier = atelier(&[]).await;
    let input = json!({ "size": "4k" });
    let body = json!({ "resolution": "best", "input": input.clone() });
    let sent = atelier.sent(&order("m-1", body)).await;
    assert_eq!(
        (&sent["resolution"], &sent["input"]),
        (&json!("best"), &input)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_large_travels_by_its_url() {
    let atelier = atelier(&[]).await;
    let picture = "data:image/png;base64,iVBORw0KGgo=";
    let blob = "QUJD".repeat(3000);
    for (body, path) in [
        (json!({ "image_url": picture }), "image_url: "),
        (json!({ "prompt": picture }), "prompt: "),
        (
            json!({ "input": { "images": [{ "url": picture }] } }),
            "input.images[0].url: ",
        ),
        (
            json!({ "input": { "first_frame": blob } }),
            "input.first_frame: ",
        ),
    ] {
        let body = order("m-1", body);
        atelier.refused(&body, 400, "invalid_request", path).await;
        atelier
            .refused(&body, 400, "invalid_request", "give an http(s) URL")
            .await;
    }
    let story = "once upon a time ".repeat(4000);
    let body = order("m-1", json!({ "input": { "story": story } }));
    atelier
        .refused(&body, 413, "payload_too_large", "65536")
        .await;
    atelier.assert_nothing_was_done().await;
    let refused = "submissions_rejected_total{reason=\"payload\"}";
    assert_eq!(atelier.app.metric(refused).await, 9.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_provider_is_known_to_refuse_is_not_sent() {
    let atelier = atelier(&[]).await;
    let long = order("short-1", json!({ "duration": 6 }));
    let problem = "duration: must be at most 5 for this model";
    atelier
        .refused(&long, 400, "invalid_request", problem)
        .await;
    let picky = order("picky", json!({}));
    atelier
        .refused(&picky, 400, "invalid_request", "resolution: is needed")
        .await;
    atelier.assert_nothing_was_done().await;
    for (model, more) in [
        ("short-1", json!({ "duration": 5 })),
        ("short-1", json!({})),
        ("m-1", json!({ "duration": 6 })),
        ("picky", json!({ "resolution": "480p" })),
    ] {
        atelier.sent(&order(model, more)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_budget_a_price_is_needed() {
    for budget in [
        "budgets.per_job",
        "budgets.per_owner_day",
        "providers.atelier.budget_per_day",
    ] {
        let atelier = atelier(&[(budget, "1"), PRICES]).await;
        let unknown = order("unknown", json!({}));
        let problem = format!(
            "providers.atelier.prices: has no price for the model 'unknown', and {budget} needs one"
        );
        atelier
            .refused(&unknown, 400, "invalid_request", &problem)
            .await;
        let dear = order("long-1", json!({ "duration": 15 }));
        let cost = "this job would cost 1.05 usd";
        atelier.refused(&dear, 402, "budget_exceeded", cost).await;
        atelier
            .refused(
                &dear,
                402,
                "budget_exceeded",
                &format!("{budget}: 1 usd are "),
            )
            .await;
        for more in [
            json!({}),
            json!({ "duration": 5 }),
            json!({ "duration": 4 }),
        ] {
            let model = if more == json!({}) { "long-1" } else { "odd" };
            let body = order(model, more);
            let key = format!("providers.atelier.prices: '{}", &model[..3]);
            atelier.refused(&body, 400, "invalid_request", &key).await;
        }
        atelier.assert_nothing_was_done().await;
        atelier
            .sent(&order("long-1", json!({ "duration": 14 })))
            .await;
        atelier.sent(&order("free", json!({}))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_submits_never_exceed_the_budget() {
    for budget in ["budgets.per_owner_day", "providers.atelier.budget_per_day"] {
        let atelier = Arc::new(atelier(&[(budget, "1"), PRICES]).await);
        let mut callers = JoinSet::new();
        for _ in 0..20 {
            let atelier = Arc::clone(&atelier);
            callers.spawn(async move { atelier.post("alice", &order("m-1", json!({}))).await });
        }
        let mut taken = 0;
        for answer in callers.join_all().await {
            if answer.status == 202 {
                taken += 1;
                continue;
            }
            assert_eq!(answer.status, 402, "{}", answer.body);
            assert_eq!(answer.body["retryable"], false);
            let detail = answer.body["detail"].as_str().unwrap();
            assert!(
                detail.starts_with(&format!("{budget}: 0 usd are left until ")),
                "{detail}"
            );
        }
        assert_eq!(taken, 4);
        let submits = |all: &[RecordedRequest]| all.iter().filter(|it| it.method == "POST").count();
        atelier
            .provider
            .wait_for_requests(|all| submits(all) == 4)
            .await;
        let reserved = "budget_reserved_total{provider=\"atelier\"}";
        assert_eq!(atelier.app.metric(reserved).await, 1.0);
        let refused = "submissions_rejected_total{reason=\"budget\"}";
        assert_eq!(atelier.app.metric(refused).await, 16.0);
        let another = atelier.post("bob", &order("m-1", json!({}))).await.status;
        let is_owners = budget == "budgets.per_owner_day";
        assert_eq!(another, if is_owners { 202 } else { 402 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settlement_releases_unused_budget() {
    let settings = [("budgets.per_owner_day", "0.25"), PRICES];
    let atelier = atelier(&settings).await;
    let body = order("m-1", json!({}));
    let cancel = async |id: &str| {
        let path = format!("/v1/jobs/{id}/cancel");
        let answer = send(atelier.app.request(Method::POST, &path, "alice")).await;
        assert!(answer.status.is_success(), "{}", answer.body);
    };
    for end in [
        json!({ "state": "broken" }),
        json!({ "state": "stopped" }),
        json!({ "state": "broken", "cost": { "amount": 0, "unit": "usd" } }),
    ] {
        let id = atelier.taken("alice", &body).await;
        atelier
            .refused(&body, 402, "budget_exceeded", ": 0 usd are left")
            .await;
        if end["state"] == "stopped" {
            atelier
                .app
                .wait_for_job(&id, "alice", |job| job["status"] == "running")
                .await;
            cancel(&id).await;
        }
        atelier.say(&id, end);
        atelier.app.wait_until_final(&id, "alice").await;
    }
    let cost = |amount: f64, unit: &str| {
        json!({ "state": "done", "files": ["https://a.example/1.mp4"],
                "cost": { "amount": amount, "unit": unit } })
    };
    let cheap = atelier.taken("alice", &body).await;
    atelier.say(&cheap, cost(0.05, "USD"));
    atelier.app.wait_until_final(&cheap, "alice").await;
    atelier
        .refused(&body, 402, "budget_exceeded", ": 0.2 usd are left")
        .await;
    let spent = "budget_spent_total{provider=\"atelier\"}";
    atelier
        .app
        .wait_for_metric(spent, |sum| (sum - 0.05).abs() < 1e-9)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_of_unknown_cost_has_cost_its_price() {
    let settings = [("budgets.per_owner_day", "0.4"), PRICES];
    let atelier = atelier(&settings).await;
    let body = order("m-1", json!({}));
    let id = atelier.taken("alice", &body).await;
    let files = json!(["https://a.example/1.mp4"]);
    let cost = json!({ "amount": 12, "unit": "credits" });
    atelier.say(
        &id,
        json!({ "state": "done", "files": files, "cost": cost }),
    );
    atelier.app.wait_until_final(&id, "alice").await;
    atelier
        .refused(&body, 402, "budget_exceeded", ": 0.15 usd are left")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_charged_once() {
    let settings = [
        ("budgets.per_owner_day", "0.25"),
        ("limits.submits_per_minute", "1"),
        PRICES,
    ];
    let atelier = atelier(&settings).await;
    let body = order("m-1", json!({}));
    let mut ids = Vec::new();
    for _ in 0..3 {
        let request = atelier.app.request(Method::POST, "/v1/videos", "alice");
        let answer = send(request.header("idempotency-key", "k").json(&body)).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        ids.push(answer.body["id"].clone());
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let reserved = "budget_reserved_total{provider=\"atelier\"}";
    assert_eq!(atelier.app.metric(reserved).await, 0.25);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_submits_so_often_and_no_more() {
    let atelier = atelier(&[("limits.submits_per_minute", "2")]).await;
    let body = order("m-1", json!({}));
    let mut taken = 0;
    let refused = loop {
        let answer = atelier.post("alice", &body).await;
        if answer.status != 202 {
            break answer;
        }
        taken += 1;
        // Four where the minute ended in between.
        assert!(taken <= 4);
    };
    assert!(taken >= 2);
    assert_eq!(
        (refused.status.as_u16(), &refused.body["code"]),
        (429, &json!("rate_limited"))
    );
    assert_eq!(refused.body["retryable"], true);
    let wait: u64 = refused.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    atelier.taken("bob", &body).await;
    assert_eq!(
        atelier
            .app
            .metric("submissions_rejected_total{reason=\"rate\"}")
            .await,
        1.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reservation_survives_a_crash_and_is_released_once() {
    let settings = [("providers.atelier.budget_per_day", "0.5"), PRICES];
    let spawn = async |builder: TestAppBuilder| builder.spawn_process(&[]).await;
    let atelier = Atelier::of(TestApp::builder(), &settings, spawn).await;
    let body = order("m-1", json!({}));
    let first = atelier.taken("alice", &body).await;
    atelier.taken("alice", &body).await;
    let is_there = |job: &Value| job["status"] == "running";
    atelier.app.wait_for_job(&first, "alice", is_there).await;
    let Atelier {
        app,
        provider,
        states,
        _folder,
    } = atelier;
    let spec = _folder.path().join("atelier.toml");
    let mut builder = TestApp::builder()
        .data_dir(app.kill())
        .set("providers.atelier.spec", spec.display())
        .set("providers.atelier.base_url", &provider.url);
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
