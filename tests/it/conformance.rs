//! Maps every recorded provider body to the expected job state, end to end: as a signed webhook, or as
//! the response to a poll, a submission, a cancellation, a result fetch or a balance query.

use std::sync::Arc;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::{StreamExt, stream};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::{TEST_TIMEOUT, TestApp, TestAppBuilder, TestResponse, WEBHOOK_SECRET, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};
use crate::wait::wait_for;
use crate::webhook_signatures::{self, Headers};

/// An entry of the manifest.
#[derive(Clone, Deserialize)]
struct Fixture {
    /// File of the body, or a name for an inline `body`.
    file: String,
    body: Option<Value>,
    /// Response to a poll, for a webhook that requires one.
    answer: Option<Value>,
    provider: String,
    channel: String,
    #[serde(default)]
    headers: serde_json::Map<String, Value>,
    http_status: Option<u16>,
    expect: Value,
}

impl Fixture {
    fn all() -> Vec<Self> {
        let manifests = ["manifest.json", "more.json"].map(read_fixture);
        let read = |text: &String| serde_json::from_str::<Vec<Self>>(text).unwrap();
        manifests.iter().flat_map(read).collect()
    }

    /// Returns the built-in spec for the provider.
    fn spec(&self) -> &'static str {
        match self.provider.as_str() {
            "kling" if self.file.contains("legacy") => "kling-legacy",
            "kling" => "kling",
            "openai" | "openrouter" => "videos",
            "gemini" => "veo",
            "atlas" => "atlas",
            "fal" => "fal",
            "replicate" => "replicate",
            "runway" => "runway",
            "veo" => "veo",
            "minimax" => "minimax",
            "luma" => "luma",
            "wavespeed" => "wavespeed",
            "seedance" => "seedance",
            "generic" => "generic",
            other => panic!("unknown provider in the manifest: {other}"),
        }
    }

    /// Returns a model whose requests use the API version of the body.
    fn model(&self) -> &'static str {
        match (self.spec(), self.file.contains("v2")) {
            ("minimax", true) => "MiniMax-H3",
            ("minimax", false) => "MiniMax-Hailuo-02",
            ("replicate" | "fal", _) => "owner/name",
            _ => "model-1",
        }
    }

    fn body(&self) -> String {
        let inline = self.body.as_ref().map(Value::to_string);
        inline.unwrap_or_else(|| read_fixture(&self.file))
    }

    /// Returns the provider's task id from the expectation or the body.
    fn task(&self) -> String {
        if let Some(task) = self.expected("task_id").and_then(Value::as_str) {
            return task.to_owned();
        }
        let body: Value = serde_json::from_str(&self.body()).unwrap();
        let pointers = [
            "/session_id",
            "/request_id",
            "/task_id",
            "/data/task_id",
            "/data/id",
            "/data/0/id",
            "/task/id",
            "/id",
            "/name",
        ];
        let pointers: &[&str] = match self.spec() {
            // Kling's envelope contains a request_id that is not a task id.
            "kling" | "kling-legacy" => &pointers[2..],
            _ => &pointers,
        };
        let found = pointers
            .iter()
            .find_map(|pointer| body.pointer(pointer)?.as_str());
        found.unwrap_or("task-1").to_owned()
    }

    fn expected(&self, key: &str) -> Option<&Value> {
        self.expect.get(key)
    }

    fn action(&self) -> &str {
        self.expect["action"].as_str().unwrap()
    }
}

fn read_fixture(file: &str) -> String {
    let path = format!("{}/tests/fixtures/{file}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).expect(&path)
}

/// A hub and the mock of a fixture's provider.
struct TestSetup {
    app: TestApp,
    key: Arc<Ed25519KeyPair>,
    provider: MockProvider,
}

/// When the hub polls a job without webhooks.
#[derive(Clone, Copy)]
enum Polling {
    /// At once.
    Enabled,
    /// Later than the test takes.
    Delayed,
}

impl TestSetup {
    /// Starts a hub and a provider that answers with `respond`, or 404 if it returns `None`.
    async fn start(
        fixture: &Fixture,
        polling: Polling,
        respond: impl Fn(&RecordedRequest) -> Option<MockResponse> + Send + Sync + 'static,
    ) -> Self {
        let key = Arc::new(Ed25519KeyPair::generate().unwrap());
        let x = URL_SAFE_NO_PAD.encode(key.public_key().as_ref());
        let keys = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "key-1", "x": x }] });
        let provider = MockProvider::start(move |request| {
            let response = if request.path == "/jwks.json" {
                Some(MockResponse::json(200, &keys))
            } else {
                respond(&request)
            };
            let not_found = || MockResponse::text(404, r#"{"detail": "not here"}"#);
            let response = response.unwrap_or_else(not_found);
            async move { response }
        })
        .await;
        let app = configure_hub(fixture, &provider, polling).spawn().await;
        Self { app, key, provider }
    }

    /// Registers a job of `alice` for the task of the fixture. Returns the job id.
    async fn register(&self, fixture: &Fixture) -> String {
        let worker = self.app.token("worker", "jobs:publish");
        let body = json!({ "provider": "it", "provider_task_id": fixture.task(), "owner": "alice", "model": fixture.model() });
        let request = self
            .app
            .request_with_token(Method::POST, "/v1/jobs", &worker);
        let response = send(request.json(&body)).await;
        assert_eq!(response.status, 201, "{}", response.body);
        response.body["id"].as_str().unwrap().to_owned()
    }

    /// Submits a job of `alice` to the provider. Returns the job id.
    async fn submit(&self, fixture: &Fixture) -> String {
        let body = json!({ "provider": "it", "model": fixture.model(), "prompt": "a lighthouse", "image_url": null });
        let request = self.app.request(Method::POST, "/v1/videos", "alice");
        let response = send(request.json(&body)).await;
        assert_eq!(response.status, 202, "{}", response.body);
        response.body["id"].as_str().unwrap().to_owned()
    }

    /// Sends the body as a webhook with a valid signature.
    async fn deliver(&self, fixture: &Fixture) -> TestResponse {
        let body = fixture.body();
        let mut request = self
            .app
            .request_without_token(Method::POST, "/v1/webhooks/it");
        for (name, value) in self.headers(fixture, body.as_bytes()) {
            request = request.header(name, value);
        }
        send(request.body(body)).await
    }

    /// Returns the headers with which the provider signs a webhook.
    fn headers(&self, fixture: &Fixture, body: &[u8]) -> Headers {
        let now = webhook_signatures::now();
        let recorded_header = |name: &str| {
            let value = fixture.headers.get(name).and_then(Value::as_str);
            value.unwrap_or("session-123").to_owned()
        };
        match fixture.provider.as_str() {
            "kling" | "replicate" | "openai" | "gemini" => {
                webhook_signatures::standard(WEBHOOK_SECRET, "msg_1", now, body)
            }
            "wavespeed" => {
                let content = [format!("msg_1.{now}.").as_bytes(), body].concat();
                let secret = WEBHOOK_SECRET.strip_prefix("whsec_").unwrap();
                vec![
                    ("webhook-id", "msg_1".to_owned()),
                    ("webhook-timestamp", now.to_string()),
                    (
                        "webhook-signature",
                        format!("v3,{}", webhook_signatures::hex(secret, &content)),
                    ),
                ]
            }
            "openrouter" => {
                let content = [format!("{now},").as_bytes(), body].concat();
                let signature = webhook_signatures::hex(WEBHOOK_SECRET, &content);
                vec![("x-openrouter-signature", format!("t={now},v1={signature}"))]
            }
            "generic" => vec![(
                "x-ai-signature",
                webhook_signatures::hex(WEBHOOK_SECRET, body),
            )],
            "fal" => {
                let digest =
                    webhook_signatures::to_hex(digest::digest(&digest::SHA256, body).as_ref());
                let content = format!("{}\nuser_1\n{now}\n{digest}", fixture.task());
                vec![
                    ("x-fal-webhook-request-id", fixture.task()),
                    ("x-fal-webhook-user-id", "user_1".to_owned()),
                    ("x-fal-webhook-timestamp", now.to_string()),
                    (
                        "x-fal-webhook-signature",
                        webhook_signatures::to_hex(self.key.sign(content.as_bytes()).as_ref()),
                    ),
                ]
            }
            "atlas" => {
                let content = [format!("{now}.").as_bytes(), body].concat();
                let signature = URL_SAFE_NO_PAD.encode(self.key.sign(&content).as_ref());
                let id = if fixture.headers.is_empty() {
                    fixture.task()
                } else {
                    recorded_header("X-AtlasCloud-Webhook-Id")
                };
                vec![
                    ("x-atlascloud-webhook-id", id),
                    ("x-atlascloud-webhook-timestamp", now.to_string()),
                    ("x-atlascloud-webhook-key-id", "key-1".to_owned()),
                    ("x-atlascloud-webhook-signature-ed25519", signature),
                ]
            }
            _ => Vec::new(),
        }
    }
}

/// Configures a hub with the fixture's provider under the name `it`.
fn configure_hub(fixture: &Fixture, provider: &MockProvider, polling: Polling) -> TestAppBuilder {
    let spec = fixture.spec();
    let mut app = TestApp::builder()
        // The recorded webhooks have no callback token.
        .set("server.public_url", "")
        .set("providers.it.spec", spec)
        .set("providers.it.base_url", &provider.url)
        .set("providers.it.api_key", "a key")
        .set("providers.it.poll_every", "100ms")
        .set(
            "providers.it.poll_after",
            match polling {
                Polling::Enabled => "50ms",
                Polling::Delayed => "20m",
            },
        );
    if spec == "kling-legacy" {
        app = app.set("providers.it.secret_key", "the other key");
    }
    if matches!(spec, "atlas" | "fal" | "veo") {
        let jwks_url = format!("{}/jwks.json", provider.url);
        app = app.set("providers.it.jwks_url", jwks_url);
    }
    if !matches!(
        spec,
        "atlas" | "fal" | "runway" | "luma" | "minimax" | "seedance"
    ) {
        app = app.set("providers.it.webhook_secrets", WEBHOOK_SECRET);
    }
    app
}

/// Returns the response to a poll, for webhooks that do not contain the whole task.
fn poll_response(fixture: &Fixture, request: &RecordedRequest) -> Option<MockResponse> {
    if let Some(response) = &fixture.answer {
        return Some(MockResponse::json(200, response));
    }
    let task = fixture.task();
    let response = match fixture.spec() {
        "kling" => json!({ "code": 0, "data": [{ "id": task, "status": "succeeded",
            "outputs": [{ "type": "video", "url": "https://cdn.example/a.mp4" }] }] }),
        "luma" => serde_json::from_str(&fixture.body()).unwrap(),
        "minimax"
            if request.path.starts_with("/v1/files/retrieve?file_id=2")
                || request.path.starts_with("/v1/files/retrieve?file_id=1") =>
        {
            json!({ "file": { "file_id": 205_258_526_306_433_u64, "download_url": "https://cdn.example/a.mp4" },
                "base_resp": { "status_code": 0, "status_msg": "success" } })
        }
        "minimax" => json!({ "task_id": task, "status": "Success", "file_id": "205258526306433",
            "base_resp": { "status_code": 0, "status_msg": "success" } }),
        "videos" => {
            json!({ "id": task, "object": "video", "status": "completed", "progress": 100 })
        }
        "veo" => serde_json::from_str(&read_fixture("veo-operation-done.json")).unwrap(),
        "fal" if request.path.contains("/status") => {
            json!({ "request_id": task, "status": "COMPLETED" })
        }
        _ => return None,
    };
    Some(MockResponse::json(200, &response))
}

/// Returns the first difference between a job's document and the fixture's expectation.
fn compare(fixture: &Fixture, job: &Value) -> Result<(), String> {
    let check = |field: &str, found: &Value, expected: &Value| {
        let is_equal = match (found.as_f64(), expected.as_f64()) {
            (Some(found), Some(expected)) => (found - expected).abs() < 1e-9,
            _ => found == expected,
        };
        if is_equal {
            Ok(())
        } else {
            Err(format!("{field}: {found} instead of {expected}"))
        }
    };
    if let Some(state) = fixture.expected("state") {
        check("status", &job["status"], state)?;
    }
    if let Some(count) = fixture.expected("outputs").and_then(Value::as_u64) {
        check(
            "outputs",
            &json!(job["outputs"].as_array().unwrap().len()),
            &json!(count),
        )?;
        let urls = job["outputs"].as_array().unwrap().iter();
        if urls
            .clone()
            .any(|output| output["url"].as_str().is_none_or(str::is_empty))
        {
            return Err("output without a URL".to_owned());
        }
    }
    if let Some(progress) = fixture.expected("progress").and_then(Value::as_f64) {
        check("progress", &job["progress"], &json!(progress * 100.0))?;
    }
    if let Some(position) = fixture.expected("queue_position") {
        check("queue_position", &job["queue_position"], position)?;
    }
    if let Some(kind) = fixture.expected("failure_kind") {
        check("error.kind", &job["error"]["kind"], kind)?;
    }
    if let (Some(retryable), Some(_)) = (
        fixture.expected("retryable"),
        fixture.expected("failure_kind"),
    ) {
        check("error.retryable", &job["error"]["retryable"], retryable)?;
    }
    if let Some(cost) = fixture.expected("cost") {
        let amount = &cost["amount"];
        let amount = amount
            .as_str()
            .map_or(amount.clone(), |text| json!(text.parse::<f64>().unwrap()));
        check("cost.amount", &job["cost"]["amount"], &amount)?;
        check("cost.unit", &job["cost"]["unit"], &cost["unit"])?;
    }
    if let Some(seconds) = fixture.expected("duration_s") {
        check("duration", &job["outputs"][0]["duration"], seconds)?;
    }
    if let Some(lifetime) = fixture.expected("url_ttl_s").and_then(Value::as_i64) {
        let expires_at: jiff::Timestamp = job["outputs"][0]["expires_at"]
            .as_str()
            .unwrap_or_default()
            .parse()
            .map_err(|_| "no expires_at")?;
        let ttl = expires_at.as_second() - webhook_signatures::now();
        if !(lifetime - 60..=lifetime).contains(&ttl) {
            return Err(format!("output expires in {ttl} s"));
        }
    }
    Ok(())
}

/// Waits until the job's document meets the fixture's expectation.
async fn wait_for_expectation(setup: &TestSetup, fixture: &Fixture, id: &str) {
    let wait = async {
        let mut job = setup.app.get_job(id, "alice").await;
        while let Err(difference) = compare(fixture, &job) {
            assert_ne!(job["final"], true, "{}: {difference}: {job}", fixture.file);
            let path = format!("/v1/jobs/{id}?wait=5&since={}", job["version"]);
            let response = send(setup.app.request(Method::GET, &path, "alice")).await;
            if response.status == 200 {
                job = response.body;
            }
        }
    };
    let is_met = tokio::time::timeout(TEST_TIMEOUT, wait).await.is_ok();
    let job = setup.app.get_job(id, "alice").await;
    let requests: Vec<String> = setup
        .provider
        .requests()
        .iter()
        .map(|request| format!("{} {}", request.method, request.path))
        .collect();
    assert!(
        is_met,
        "{}: timed out: {:?}: {job}; requests: {requests:?}",
        fixture.file,
        compare(fixture, &job)
    );
}

async fn check_webhook(fixture: &Fixture) {
    let cloned = fixture.clone();
    let setup = TestSetup::start(fixture, Polling::Delayed, move |request| {
        poll_response(&cloned, request)
    })
    .await;
    if fixture.action() == "echo_challenge" {
        let response = setup.deliver(fixture).await;
        assert_eq!(
            (response.status.as_u16(), &response.body),
            (200, &fixture.expect["reply"])
        );
        return;
    }
    let before_registration = setup.deliver(fixture).await;
    assert_eq!(
        before_registration.status, 200,
        "{}: {}",
        fixture.file, before_registration.body
    );
    assert_eq!(
        before_registration.body["matched"], false,
        "{}",
        fixture.file
    );
    let id = setup.register(fixture).await;
    let response = setup.deliver(fixture).await;
    assert_eq!(response.status, 200, "{}: {}", fixture.file, response.body);
    assert_eq!(response.body["matched"], true, "{}", fixture.file);
    wait_for_expectation(&setup, fixture, &id).await;
    let is_polled = setup
        .provider
        .requests()
        .iter()
        .any(|request| request.path != "/jwks.json");
    let requires_poll = fixture.action() == "fetch" || fixture.expected("next").is_some();
    assert_eq!(is_polled, requires_poll, "{}: polled or not", fixture.file);
}

async fn check_poll_response(fixture: &Fixture) {
    let (cloned, body) = (fixture.clone(), fixture.body());
    let status = fixture.http_status.unwrap();
    let setup = TestSetup::start(fixture, Polling::Enabled, move |request| {
        if request.path.starts_with("/v1/files/retrieve") {
            return poll_response(&cloned, request);
        }
        Some(MockResponse::text(status, body.clone()))
    })
    .await;
    let id = setup.register(fixture).await;
    wait_for_expectation(&setup, fixture, &id).await;
    if fixture.action() == "fetch" {
        setup
            .provider
            .wait_for_requests(|requests| {
                requests
                    .iter()
                    .any(|request| request.path.contains("retrieve"))
            })
            .await;
    }
}

async fn check_submit_response(fixture: &Fixture) {
    let (status, body) = (fixture.http_status.unwrap_or(200), fixture.body());
    let headers = fixture.headers.clone();
    let setup = TestSetup::start(fixture, Polling::Delayed, move |_| {
        let mut response = MockResponse::text(status, body.clone());
        if let Some(reset) = headers.get("ratelimit-reset").and_then(Value::as_str) {
            response = response.with_header("ratelimit-reset", reset);
        }
        Some(response)
    })
    .await;
    let id = setup.submit(fixture).await;
    wait_for_expectation(&setup, fixture, &id).await;
    let job = setup.app.get_job(&id, "alice").await;
    if fixture.action() == "submit_accepted" {
        assert_eq!(
            job["provider_task_id"],
            json!(fixture.task()),
            "{}",
            fixture.file
        );
    }
    if let Some(seconds) = fixture.expected("retry_after_s").and_then(Value::as_i64) {
        let time = |field: &str| job[field].as_str().unwrap().parse::<jiff::Timestamp>();
        let (decided_at, next_attempt_at) = (time("updated_at"), time("next_attempt_at"));
        let delay = next_attempt_at.unwrap().as_second() - decided_at.unwrap().as_second();
        assert!(delay > seconds - 10, "{}: {job}", fixture.file);
    }
    let requests = setup.provider.requests();
    let submits = requests.iter().filter(|request| request.method == "POST");
    let submits = submits.count() as u64;
    // A retry may be due before this check. The hub stores each attempt before it sends it.
    let attempts = setup.app.get_job(&id, "alice").await["attempt"].as_u64();
    assert!(
        (1..=attempts.unwrap()).contains(&submits),
        "{}: {submits} submissions in {attempts:?} attempts",
        fixture.file
    );
}

/// The body answers the second request, which fetches the result of a finished task.
async fn check_result_response(fixture: &Fixture) {
    let (cloned, status, body) = (
        fixture.clone(),
        fixture.http_status.unwrap(),
        fixture.body(),
    );
    let setup = TestSetup::start(fixture, Polling::Enabled, move |request| {
        poll_response(&cloned, request).or_else(|| Some(MockResponse::text(status, body.clone())))
    })
    .await;
    let id = setup.register(fixture).await;
    wait_for_expectation(&setup, fixture, &id).await;
}

async fn check_cancel_response(fixture: &Fixture) {
    let (cloned, status, body) = (
        fixture.clone(),
        fixture.http_status.unwrap(),
        fixture.body(),
    );
    let setup = TestSetup::start(fixture, Polling::Delayed, move |request| {
        if request.path.ends_with("/cancel") {
            return Some(MockResponse::text(status, body.clone()));
        }
        poll_response(&cloned, request).or_else(|| {
            Some(MockResponse::json(
                200,
                &json!({ "video": { "url": "https://cdn.example/a.mp4" } }),
            ))
        })
    })
    .await;
    let id = setup.register(fixture).await;
    let cancel = setup
        .app
        .request(Method::POST, &format!("/v1/jobs/{id}/cancel"), "alice");
    let response = send(cancel).await;
    if fixture.action() == "noop" {
        assert_eq!(
            (response.status.as_u16(), &response.body["code"]),
            (409, &json!("not_cancellable"))
        );
        let job = setup.app.wait_until_final(&id, "alice").await;
        assert_eq!(
            (&job["status"], job["outputs"].as_array().unwrap().len()),
            (&json!("succeeded"), 1),
            "{job}"
        );
    } else {
        assert_eq!(response.status, 202, "{}: {}", fixture.file, response.body);
        wait_for_expectation(&setup, fixture, &id).await;
    }
}

async fn check_balance_response(fixture: &Fixture) {
    let (status, body) = (fixture.http_status.unwrap(), fixture.body());
    let setup = TestSetup::start(fixture, Polling::Delayed, move |request| {
        Some(if request.method == "POST" {
            // The hub queries the balance after an error about missing credit.
            MockResponse::json(402, &json!({ "code": 1102, "message": "no credit" }))
        } else {
            MockResponse::text(status, body.clone())
        })
    })
    .await;
    setup.submit(fixture).await;
    let expected = ["available", "usable"]
        .iter()
        .find_map(|key| fixture.expected(key))
        .unwrap();
    let expected = expected
        .as_str()
        .map_or_else(|| expected.as_f64(), |text| Some(text.parse().unwrap()));
    let admin = setup.app.token("root", "admin");
    let condition = format!("{}: the balance is {expected:?}", fixture.file);
    let provider = wait_for(&condition, async || {
        let request = setup
            .app
            .request_with_token(Method::GET, "/v1/providers", &admin);
        let providers = send(request).await.body["providers"].clone();
        let mut providers = providers.as_array().unwrap().iter();
        let provider = providers.find(|provider| provider["name"] == "it").unwrap();
        (provider["balance"]["amount"].as_f64() == expected).then(|| provider.clone())
    })
    .await;
    if let Some(unit) = fixture.expected("unit").or(fixture.expected("currency")) {
        assert_eq!(&provider["balance"]["unit"], unit, "{}", fixture.file);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_provider_bodies_map_to_expected_states() {
    let fixtures = Fixture::all();
    assert!(fixtures.len() >= 250, "the manifest is incomplete");
    let checks = fixtures.into_iter().map(|fixture| async move {
        let name = fixture.file.clone();
        let check = tokio::spawn(async move { check(&fixture).await });
        check.await.is_err().then_some(name)
    });
    let failed: Vec<String> = stream::iter(checks)
        .buffer_unordered(4)
        .filter_map(async |failed| failed)
        .collect()
        .await;
    assert_eq!(failed, [""; 0], "the panics above give the reasons");
}

async fn check(fixture: &Fixture) {
    match fixture.channel.as_str() {
        "webhook" => check_webhook(fixture).await,
        "poll" => check_poll_response(fixture).await,
        "submit-response" => check_submit_response(fixture).await,
        "error-response" if fixture.action() == "apply" => check_result_response(fixture).await,
        "error-response" => check_submit_response(fixture).await,
        "cancel-response" => check_cancel_response(fixture).await,
        "balance" => check_balance_response(fixture).await,
        other => panic!("unknown channel in the manifest: {other}"),
    }
}
