//! Every recorded body of every provider, through the hub as it comes in life: by a signed webhook, by an
//! answer to a question, to a submission or to a cancel.

use std::sync::Arc;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::{StreamExt, stream};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::{TestApp, TestAppBuilder, TestResponse, WEBHOOK_SECRET, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};
use crate::webhook_signatures::{self, Headers};

/// A line of the manifest: a body, how it travels, and what it must mean.
#[derive(Clone, Deserialize)]
struct Fixture {
    /// The body's file; where the body stands here itself, a name for it.
    file: String,
    body: Option<Value>,
    /// What an authenticated read tells of the task, where its webhook does not tell it all.
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
        let manifests = ["manifest.json", "more.json"].map(recorded);
        let read = |text: &String| serde_json::from_str::<Vec<Self>>(text).unwrap();
        manifests.iter().flat_map(read).collect()
    }

    /// The spec that speaks this provider's language.
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
            other => panic!("a fixture of an unknown provider: {other}"),
        }
    }

    /// A model that makes the spec use the interface that the body belongs to.
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
        inline.unwrap_or_else(|| recorded(&self.file))
    }

    /// The provider's id of the task that the body is about.
    fn task(&self) -> String {
        if let Some(task) = self.expects("task_id").and_then(Value::as_str) {
            return task.to_owned();
        }
        let body: Value = serde_json::from_str(&self.body()).unwrap();
        let places = [
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
        let places: &[&str] = match self.spec() {
            // Kling's envelope has a request_id that is no task's.
            "kling" | "kling-legacy" => &places[2..],
            _ => &places,
        };
        let found = places
            .iter()
            .find_map(|place| body.pointer(place)?.as_str());
        found.unwrap_or("a task of its own").to_owned()
    }

    fn expects(&self, key: &str) -> Option<&Value> {
        self.expect.get(key)
    }

    fn action(&self) -> &str {
        self.expect["action"].as_str().unwrap()
    }
}

fn recorded(file: &str) -> String {
    let path = format!("{}/tests/fixtures/{file}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).expect(&path)
}

/// What the provider's side of a fixture needs besides the body itself.
struct Stage {
    app: TestApp,
    key: Arc<Ed25519KeyPair>,
    provider: MockProvider,
}

impl Stage {
    /// A hub with the fixture's provider, whose answers are given here by what is asked.
    async fn set(
        fixture: &Fixture,
        polled: bool,
        answer: impl Fn(&RecordedRequest) -> Option<MockResponse> + Send + Sync + 'static,
    ) -> Self {
        let key = Arc::new(Ed25519KeyPair::generate().unwrap());
        let x = URL_SAFE_NO_PAD.encode(key.public_key().as_ref());
        let keys = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "key-1", "x": x }] });
        let provider = MockProvider::start(move |asked| {
            let reply = if asked.path == "/jwks.json" {
                Some(MockResponse::json(200, &keys))
            } else {
                answer(&asked)
            };
            let nothing = || MockResponse::text(404, r#"{"detail": "not here"}"#);
            let reply = reply.unwrap_or_else(nothing);
            async move { reply }
        })
        .await;
        let app = hub(fixture, &provider, polled).spawn().await;
        Self { app, key, provider }
    }

    async fn register(&self, fixture: &Fixture) -> String {
        let worker = self.app.token("worker", "jobs:publish");
        let body = json!({ "provider": "it", "provider_task_id": fixture.task(), "owner": "alice", "model": fixture.model() });
        let request = self
            .app
            .request_with_token(Method::POST, "/v1/jobs", &worker);
        let answer = send(request.json(&body)).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.body["id"].as_str().unwrap().to_owned()
    }

    async fn submit(&self, fixture: &Fixture) -> String {
        let body = json!({ "provider": "it", "model": fixture.model(), "prompt": "a lighthouse", "image_url": null });
        let request = self.app.request(Method::POST, "/v1/videos", "alice");
        let answer = send(request.json(&body)).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        answer.body["id"].as_str().unwrap().to_owned()
    }

    /// The fixture's body as its provider would send it now.
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

    fn headers(&self, fixture: &Fixture, body: &[u8]) -> Headers {
        let now = webhook_signatures::now();
        let own = |name: &str| {
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
                let digest = hex(digest::digest(&digest::SHA256, body).as_ref());
                let content = format!("{}\nuser_1\n{now}\n{digest}", fixture.task());
                vec![
                    ("x-fal-webhook-request-id", fixture.task()),
                    ("x-fal-webhook-user-id", "user_1".to_owned()),
                    ("x-fal-webhook-timestamp", now.to_string()),
                    (
                        "x-fal-webhook-signature",
                        hex(self.key.sign(content.as_bytes()).as_ref()),
                    ),
                ]
            }
            "atlas" => {
                let content = [format!("{now}.").as_bytes(), body].concat();
                let signature = URL_SAFE_NO_PAD.encode(self.key.sign(&content).as_ref());
                let id = if fixture.headers.is_empty() {
                    fixture.task()
                } else {
                    own("X-AtlasCloud-Webhook-Id")
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hub(fixture: &Fixture, provider: &MockProvider, polled: bool) -> TestAppBuilder {
    let spec = fixture.spec();
    let mut app = TestApp::builder()
        .set("providers.it.spec", spec)
        .set("providers.it.base_url", &provider.url)
        .set("providers.it.api_key", "a key")
        .set("providers.it.poll_every", "100ms")
        .set(
            "providers.it.poll_after",
            if polled { "50ms" } else { "20m" },
        );
    if spec == "kling-legacy" {
        app = app.set("providers.it.secret_key", "the other key");
    }
    match spec {
        "atlas" | "fal" | "veo" => {
            app = app.set(
                "providers.it.jwks_url",
                format!("{}/jwks.json", provider.url),
            );
        }
        _ => {}
    }
    match spec {
        "atlas" | "fal" | "runway" | "luma" | "minimax" | "seedance" => {}
        _ => app = app.set("providers.it.webhook_secrets", WEBHOOK_SECRET),
    }
    app
}

/// What an authenticated read tells of a task whose webhook does not tell it all.
fn whole(fixture: &Fixture, asked: &RecordedRequest) -> Option<MockResponse> {
    if let Some(answer) = &fixture.answer {
        return Some(MockResponse::json(200, answer));
    }
    let task = fixture.task();
    let answer = match fixture.spec() {
        "kling" => json!({ "code": 0, "data": [{ "id": task, "status": "succeeded",
            "outputs": [{ "type": "video", "url": "https://cdn.example/a.mp4" }] }] }),
        "luma" => serde_json::from_str(&fixture.body()).unwrap(),
        "minimax"
            if asked.path.starts_with("/v1/files/retrieve?file_id=2")
                || asked.path.starts_with("/v1/files/retrieve?file_id=1") =>
        {
            json!({ "file": { "file_id": 205_258_526_306_433_u64, "download_url": "https://cdn.example/a.mp4" },
                "base_resp": { "status_code": 0, "status_msg": "success" } })
        }
        "minimax" => json!({ "task_id": task, "status": "Success", "file_id": "205258526306433",
            "base_resp": { "status_code": 0, "status_msg": "success" } }),
        "videos" => {
            json!({ "id": task, "object": "video", "status": "completed", "progress": 100 })
        }
        "veo" => serde_json::from_str(&recorded("veo-operation-done.json")).unwrap(),
        "fal" if asked.path.contains("/status") => {
            json!({ "request_id": task, "status": "COMPLETED" })
        }
        _ => return None,
    };
    Some(MockResponse::json(200, &answer))
}

/// Whether a job's document says what the fixture means.
fn agrees(fixture: &Fixture, job: &Value) -> Result<(), String> {
    let is = |what: &str, found: &Value, wished: &Value| {
        let same = match (found.as_f64(), wished.as_f64()) {
            (Some(found), Some(wished)) => (found - wished).abs() < 1e-9,
            _ => found == wished,
        };
        if same {
            Ok(())
        } else {
            Err(format!("{what}: {found} instead of {wished}"))
        }
    };
    if let Some(state) = fixture.expects("state") {
        is("status", &job["status"], state)?;
    }
    if let Some(count) = fixture.expects("outputs").and_then(Value::as_u64) {
        is(
            "outputs",
            &json!(job["outputs"].as_array().unwrap().len()),
            &json!(count),
        )?;
        let urls = job["outputs"].as_array().unwrap().iter();
        if urls
            .clone()
            .any(|output| output["url"].as_str().is_none_or(str::is_empty))
        {
            return Err("an output without a URL".to_owned());
        }
    }
    if let Some(progress) = fixture.expects("progress").and_then(Value::as_f64) {
        is("progress", &job["progress"], &json!(progress * 100.0))?;
    }
    if let Some(position) = fixture.expects("queue_position") {
        is("queue_position", &job["queue_position"], position)?;
    }
    if let Some(kind) = fixture.expects("failure_kind") {
        is("error.kind", &job["error"]["kind"], kind)?;
    }
    if let (Some(retryable), Some(_)) = (
        fixture.expects("retryable"),
        fixture.expects("failure_kind"),
    ) {
        is("error.retryable", &job["error"]["retryable"], retryable)?;
    }
    if let Some(cost) = fixture.expects("cost") {
        let amount = &cost["amount"];
        let amount = amount
            .as_str()
            .map_or(amount.clone(), |text| json!(text.parse::<f64>().unwrap()));
        is("cost.amount", &job["cost"]["amount"], &amount)?;
        is("cost.unit", &job["cost"]["unit"], &cost["unit"])?;
    }
    if let Some(seconds) = fixture.expects("duration_s") {
        is("duration", &job["outputs"][0]["duration"], seconds)?;
    }
    if let Some(lifetime) = fixture.expects("url_ttl_s").and_then(Value::as_i64) {
        let end: jiff::Timestamp = job["outputs"][0]["expires_at"]
            .as_str()
            .unwrap_or_default()
            .parse()
            .map_err(|_| "no expires_at")?;
        let left = end.as_second() - webhook_signatures::now();
        if !(lifetime - 60..=lifetime).contains(&left) {
            return Err(format!("expires in {left} s"));
        }
    }
    Ok(())
}

/// Waits until the job is as the fixture means it.
async fn comes_to(stage: &Stage, fixture: &Fixture, id: &str) {
    let waiting = async {
        let mut job = stage.app.get_job(id, "alice").await;
        loop {
            match agrees(fixture, &job) {
                Ok(()) => return,
                Err(why) if job["final"] == true => panic!("{}: {why}: {job}", fixture.file),
                Err(_) => {}
            }
            let path = format!("/v1/jobs/{id}?wait=5&since={}", job["version"]);
            let answer = send(stage.app.request(Method::GET, &path, "alice")).await;
            if answer.status == 200 {
                job = answer.body;
            }
        }
    };
    let waited = tokio::time::timeout(crate::app::TEST_TIMEOUT, waiting).await;
    let job = stage.app.get_job(id, "alice").await;
    let asked: Vec<String> = stage
        .provider
        .requests()
        .iter()
        .map(|asked| format!("{} {}", asked.method, asked.path))
        .collect();
    assert!(
        waited.is_ok(),
        "{}: {:?}: {job} after {asked:?}",
        fixture.file,
        agrees(fixture, &job)
    );
}

async fn by_webhook(fixture: &Fixture) {
    let its = fixture.clone();
    let stage = Stage::set(fixture, false, move |asked| whole(&its, asked)).await;
    if fixture.action() == "echo_challenge" {
        let answer = stage.deliver(fixture).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body),
            (200, &fixture.expect["reply"])
        );
        return;
    }
    let early = stage.deliver(fixture).await;
    assert_eq!(early.status, 200, "{}: {}", fixture.file, early.body);
    assert_eq!(early.body["matched"], false, "{}", fixture.file);
    let id = stage.register(fixture).await;
    let answer = stage.deliver(fixture).await;
    assert_eq!(answer.status, 200, "{}: {}", fixture.file, answer.body);
    assert_eq!(answer.body["matched"], true, "{}", fixture.file);
    comes_to(&stage, fixture, &id).await;
    let asks = stage
        .provider
        .requests()
        .iter()
        .any(|asked| asked.path != "/jwks.json");
    let thin = fixture.action() == "fetch" || fixture.expects("next").is_some();
    assert_eq!(
        asks, thin,
        "{}: whether it is read from the provider",
        fixture.file
    );
}

async fn by_poll(fixture: &Fixture) {
    let (its, body) = (fixture.clone(), fixture.body());
    let status = fixture.http_status.unwrap();
    let stage = Stage::set(fixture, true, move |asked| {
        if asked.path.starts_with("/v1/files/retrieve") {
            return whole(&its, asked);
        }
        Some(MockResponse::text(status, body.clone()))
    })
    .await;
    let id = stage.register(fixture).await;
    comes_to(&stage, fixture, &id).await;
    if fixture.action() == "fetch" {
        stage
            .provider
            .wait_for_requests(|asked| asked.iter().any(|asked| asked.path.contains("retrieve")))
            .await;
    }
}

async fn by_submission(fixture: &Fixture) {
    let (status, body) = (fixture.http_status.unwrap_or(200), fixture.body());
    let headers = fixture.headers.clone();
    let stage = Stage::set(fixture, false, move |_| {
        let mut reply = MockResponse::text(status, body.clone());
        if let Some(reset) = headers.get("ratelimit-reset").and_then(Value::as_str) {
            reply = reply.with_header("ratelimit-reset", reset);
        }
        Some(reply)
    })
    .await;
    let id = stage.submit(fixture).await;
    comes_to(&stage, fixture, &id).await;
    let job = stage.app.get_job(&id, "alice").await;
    if fixture.action() == "submit_accepted" {
        assert_eq!(
            job["provider_task_id"],
            json!(fixture.task()),
            "{}",
            fixture.file
        );
    }
    if let Some(seconds) = fixture.expects("retry_after_s").and_then(Value::as_i64) {
        let at: jiff::Timestamp = job["next_attempt_at"].as_str().unwrap().parse().unwrap();
        assert!(
            at.as_second() - webhook_signatures::now() > seconds - 10,
            "{}: {job}",
            fixture.file
        );
    }
    let asked = stage.provider.requests();
    let submits = asked.iter().filter(|asked| asked.method == "POST");
    assert_eq!(submits.count(), 1, "{}: sent once", fixture.file);
}

/// An answer to the second call, for what a finished task has brought.
async fn by_result(fixture: &Fixture) {
    let (its, status, body) = (
        fixture.clone(),
        fixture.http_status.unwrap(),
        fixture.body(),
    );
    let stage = Stage::set(fixture, true, move |asked| {
        whole(&its, asked).or_else(|| Some(MockResponse::text(status, body.clone())))
    })
    .await;
    let id = stage.register(fixture).await;
    comes_to(&stage, fixture, &id).await;
}

async fn by_cancel(fixture: &Fixture) {
    let (its, status, body) = (
        fixture.clone(),
        fixture.http_status.unwrap(),
        fixture.body(),
    );
    let stage = Stage::set(fixture, false, move |asked| {
        if asked.path.ends_with("/cancel") {
            return Some(MockResponse::text(status, body.clone()));
        }
        whole(&its, asked).or_else(|| {
            Some(MockResponse::json(
                200,
                &json!({ "video": { "url": "https://cdn.example/a.mp4" } }),
            ))
        })
    })
    .await;
    let id = stage.register(fixture).await;
    let cancel = stage
        .app
        .request(Method::POST, &format!("/v1/jobs/{id}/cancel"), "alice");
    let answer = send(cancel).await;
    if fixture.action() == "noop" {
        assert_eq!(
            (answer.status.as_u16(), &answer.body["code"]),
            (409, &json!("not_cancellable"))
        );
        let job = stage.app.wait_until_final(&id, "alice").await;
        assert_eq!(
            (&job["status"], job["outputs"].as_array().unwrap().len()),
            (&json!("succeeded"), 1),
            "{job}"
        );
    } else {
        assert_eq!(answer.status, 202, "{}: {}", fixture.file, answer.body);
        comes_to(&stage, fixture, &id).await;
    }
}

async fn by_balance(fixture: &Fixture) {
    let (status, body) = (fixture.http_status.unwrap(), fixture.body());
    let stage = Stage::set(fixture, false, move |asked| {
        // Without credit the balance is looked at once.
        let refusal = || MockResponse::json(402, &json!({ "code": 1102, "message": "no credit" }));
        Some(match asked.method.as_str() {
            "POST" => refusal(),
            _ => MockResponse::text(status, body.clone()),
        })
    })
    .await;
    stage.submit(fixture).await;
    let wished = ["available", "usable"]
        .iter()
        .find_map(|key| fixture.expects(key))
        .unwrap();
    let wished = wished
        .as_str()
        .map_or(wished.clone(), |text| json!(text.parse::<f64>().unwrap()))
        .as_f64();
    let told = async {
        loop {
            let admin = stage.app.token("root", "admin");
            let answer = send(
                stage
                    .app
                    .request_with_token(Method::GET, "/v1/providers", &admin),
            )
            .await;
            let all = answer.body["providers"].as_array().unwrap().clone();
            let its = all
                .iter()
                .find(|provider| provider["name"] == "it")
                .unwrap()
                .clone();
            if its["balance"]["amount"].as_f64() == wished {
                return its;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let told = tokio::time::timeout(crate::app::TEST_TIMEOUT, told).await;
    let told = told.unwrap_or_else(|_| panic!("{}: no balance of {wished:?}", fixture.file));
    if let Some(unit) = fixture.expects("unit").or(fixture.expects("currency")) {
        assert_eq!(&told["balance"]["unit"], unit, "{}", fixture.file);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_provider_bodies_map_to_expected_states() {
    let fixtures = Fixture::all();
    assert!(fixtures.len() >= 250, "the manifest is whole");
    let stories = fixtures.into_iter().map(|fixture| async move {
        let name = fixture.file.clone();
        let told = tokio::spawn(async move { tell(&fixture).await });
        told.await.is_err().then_some(name)
    });
    let wrong: Vec<String> = stream::iter(stories)
        .buffer_unordered(4)
        .filter_map(async |wrong| wrong)
        .collect()
        .await;
    assert_eq!(wrong, [""; 0], "each has said above what it came to");
}

async fn tell(fixture: &Fixture) {
    match fixture.channel.as_str() {
        "webhook" => by_webhook(fixture).await,
        "poll" => by_poll(fixture).await,
        "submit-response" => by_submission(fixture).await,
        "error-response" if fixture.action() == "apply" => by_result(fixture).await,
        "error-response" => by_submission(fixture).await,
        "cancel-response" => by_cancel(fixture).await,
        "balance" => by_balance(fixture).await,
        other => panic!("an unknown channel: {other}"),
    }
}
