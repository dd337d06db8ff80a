//! The gate: a provider that is busy, fails or wants no more is left alone, in full view, and nobody
//! who waits for it loses anything.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use progress_hub::config::Config;
use progress_hub::provider::HttpClient;
use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{JWT_SECRET, TestApp, TestAppBuilder, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};

/// A Kling that answers submissions as it was last told to, and knows of no task.
struct Moody {
    provider: MockProvider,
    mood: Arc<Mutex<MockResponse>>,
    /// When it was submitted to.
    sent: Arc<Mutex<Vec<Instant>>>,
}

impl Moody {
    async fn start(mood: MockResponse) -> Self {
        let mood = Arc::new(Mutex::new(mood));
        let sent: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let (its, note) = (Arc::clone(&mood), Arc::clone(&sent));
        let provider = MockProvider::start(move |asked: RecordedRequest| {
            let reply = match asked.method.as_str() {
                "POST" => {
                    let mut sent = note.lock().unwrap();
                    sent.push(Instant::now());
                    let reply: MockResponse = its.lock().unwrap().clone();
                    reply.numbered(sent.len())
                }
                _ => MockResponse::json(200, &json!({ "code": 0, "data": [] })),
            };
            async move { reply }
        })
        .await;
        Self {
            provider,
            mood,
            sent,
        }
    }

    fn becomes(&self, mood: MockResponse) {
        *self.mood.lock().unwrap() = mood;
    }

    fn submits(&self) -> usize {
        self.sent.lock().unwrap().len()
    }
}

/// The answer of a Kling that took the job.
fn well() -> MockResponse {
    let task = json!({ "id": "task-{n}", "status": "submitted" });
    MockResponse::json(200, &json!({ "code": 0, "data": task }))
}

fn refused(status: u16, code: u16) -> MockResponse {
    MockResponse::json(status, &json!({ "code": code, "message": "no" }))
}

/// A hub with this provider, and one beside it that is always well.
async fn hub(moody: &Moody) -> (TestAppBuilder, Moody) {
    let beside = Moody::start(well()).await;
    let mut builder = TestApp::builder();
    for (name, url) in [
        ("kling", &moody.provider.url),
        ("other", &beside.provider.url),
    ] {
        builder = builder
            .set(&format!("providers.{name}.spec"), "kling")
            .set(&format!("providers.{name}.base_url"), url)
            .set(&format!("providers.{name}.api_key"), "the key")
            .set(&format!("providers.{name}.max_concurrent"), 50);
    }
    (builder, beside)
}

async fn submit(app: &TestApp, provider: &str) -> String {
    let order = json!({ "provider": provider, "model": "kling-v3", "prompt": "a lighthouse" });
    let answer = send(
        app.request(Method::POST, "/v1/videos", "alice")
            .json(&order),
    )
    .await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    answer.body["id"].as_str().unwrap().to_owned()
}

/// Submits some, and waits until the submitter has passed them by.
async fn submit_in_vain(app: &TestApp, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(submit(app, "kling").await);
    }
    let passed = submit(app, "other").await;
    app.wait_for_job(&passed, "alice", |job| job["status"] == "queued")
        .await;
    for id in &ids {
        let job = app.get_job(id, "alice").await;
        let told = (&job["status"], &job["attempt"], &job["error"]);
        assert_eq!(told, (&json!("accepted"), &json!(0), &Value::Null));
    }
    ids
}

async fn all_are_taken_at_the_first_try(app: &TestApp, ids: &[String]) {
    for id in ids {
        let job = app
            .wait_for_job(id, "alice", |job| job["status"] == "queued")
            .await;
        assert_eq!(job["attempt"], 1, "{job}");
    }
}

async fn resume(app: &TestApp, token: &str) -> crate::app::TestResponse {
    let path = "/v1/providers/kling/resume";
    send(app.request_with_token(Method::POST, path, token)).await
}

/// What anybody sees of the provider.
async fn shown(app: &TestApp) -> Value {
    let answer = send(app.request(Method::GET, "/v1/providers", "bob")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let all = answer.body["providers"].as_array().unwrap().clone();
    let mut all = all.into_iter();
    all.find(|provider| provider["name"] == "kling").unwrap()
}

async fn assert_state(app: &TestApp, state: &str, reason: Value) {
    let shown = shown(app).await;
    assert_eq!(
        (&shown["state"], &shown["reason"]),
        (&json!(state), &reason)
    );
    assert_eq!(shown["until"].is_null(), state == "available", "{shown}");
    assert_eq!(shown["since"].is_null(), state == "available", "{shown}");
    assert!(shown.get("balance").is_none(), "{shown}");
    let health = send(app.request_without_token(Method::GET, "/v1/health")).await;
    let providers = json!({ "generic": "available", "kling": state, "other": "available" });
    assert_eq!(
        (health.status.as_u16(), &health.body["providers"]),
        (200, &providers)
    );
    let labels = format!("{{provider=\"kling\",state=\"{state}\"}}");
    assert_eq!(app.metric(&format!("provider_state{labels}")).await, 1.0);
    if state != "available" {
        assert_eq!(
            app.metric(&format!("provider_state_transitions_total{labels}"))
                .await,
            1.0
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limit_pauses_all_jobs_without_using_attempts() {
    let moody = Moody::start(refused(429, 1302).with_header("retry-after", 2)).await;
    let (hub, _beside) = hub(&moody).await;
    let app = hub.spawn().await;
    let first = submit(&app, "kling").await;
    let is_waiting = |job: &Value| !job["next_attempt_at"].is_null();
    app.wait_for_job(&first, "alice", is_waiting).await;
    let refused_at = moody.sent.lock().unwrap()[0];
    let waiting = submit_in_vain(&app, 20).await;
    assert_state(&app, "rate_limited", json!("rate_limit")).await;
    moody.becomes(well());
    all_are_taken_at_the_first_try(&app, &waiting).await;
    let job = app
        .wait_for_job(&first, "alice", |job| job["status"] == "queued")
        .await;
    assert_eq!(job["attempt"], 2);
    let sent = moody.sent.lock().unwrap().clone();
    assert_eq!(sent.len(), 22);
    let pause = Duration::from_millis(1990);
    let early = sent[1..].iter().filter(|at| **at - refused_at < pause);
    assert_eq!(early.count(), 0);
    assert_state(&app, "available", Value::Null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_account_or_a_refused_key_fails_one_job_and_keeps_the_others() {
    for (reply, kind) in [(refused(429, 1102), "quota"), (refused(401, 1002), "auth")] {
        let moody = Moody::start(reply).await;
        let (hub, _beside) = hub(&moody).await;
        let app = hub.spawn().await;
        let first = submit(&app, "kling").await;
        let job = app.wait_until_final(&first, "alice").await;
        assert_eq!(
            (&job["error"]["kind"], &job["attempt"]),
            (&json!(kind), &json!(1))
        );
        let waiting = submit_in_vain(&app, 10).await;
        assert_state(&app, "suspended", json!(kind)).await;
        assert_eq!(moody.submits(), 1);

        let answer = resume(&app, &app.token("bob", "jobs:read jobs:write jobs:publish")).await;
        assert_eq!(answer.body["code"], "forbidden");
        moody.becomes(well());
        let answer = resume(&app, &app.token("root", "admin")).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["state"]),
            (200, &json!("available"))
        );
        all_are_taken_at_the_first_try(&app, &waiting).await;
        assert_eq!(moody.submits(), 11);
        assert_state(&app, "available", Value::Null).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_continues_without_credit() {
    let moody = Moody::start(refused(402, 1102)).await;
    let (hub, _beside) = hub(&moody).await;
    let app = hub
        .set("providers.kling.poll_after", "100ms")
        .set("providers.kling.poll_every", "100ms")
        .spawn()
        .await;
    let first = submit(&app, "kling").await;
    app.wait_until_final(&first, "alice").await;
    let worker = app.token("worker", "jobs:publish");
    let body = json!({ "provider": "kling", "provider_task_id": "7", "owner": "alice" });
    send(
        app.request_with_token(Method::POST, "/v1/jobs", &worker)
            .json(&body),
    )
    .await;
    let is_question = |asked: &&RecordedRequest| asked.method == "GET";
    moody
        .provider
        .wait_for_requests(|all| all.iter().filter(is_question).count() > 2)
        .await;
    assert_eq!(shown(&app).await["state"], "suspended");
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_failures_open_the_circuit() {
    let moody = Moody::start(refused(503, 5001).with_header("retry-after-ms", 1)).await;
    let (hub, _beside) = hub(&moody).await;
    let app = hub.spawn().await;
    let first = submit(&app, "kling").await;
    let job = app.wait_until_final(&first, "alice").await;
    assert_eq!(
        (&job["error"]["kind"], &job["attempt"]),
        (&json!("technical"), &json!(5))
    );
    let waiting = submit_in_vain(&app, 3).await;
    assert_state(&app, "unavailable", json!("technical")).await;
    assert_eq!(moody.submits(), 5);
    moody.becomes(well());
    all_are_taken_at_the_first_try(&app, &waiting).await;
    assert_eq!(moody.submits(), 8);
    assert_state(&app, "available", Value::Null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_refuses_connections_is_left_alone_until_it_answers() {
    let (_port, address) = crate::app::reserve_port();
    let beside = Moody::start(well()).await;
    let mut hub = TestApp::builder();
    let nobody = format!("http://{address}");
    for (name, url) in [("kling", &nobody), ("other", &beside.provider.url)] {
        for (key, value) in [
            ("spec", "kling"),
            ("base_url", url),
            ("api_key", "the key"),
            ("max_concurrent", "50"),
        ] {
            hub = hub.set(&format!("providers.{name}.{key}"), value);
        }
    }
    let app = hub.spawn().await;
    let mut first = Vec::new();
    for _ in 0..5 {
        first.push(submit(&app, "kling").await);
    }
    let failing = "provider_state{provider=\"kling\",state=\"unavailable\"}";
    app.wait_for_metric(failing, |is_it| is_it == 1.0).await;
    // Nothing was sent, and that is known: none of them waits for a provider's word.
    for id in &first {
        assert_eq!(app.get_job(id, "alice").await["status"], "accepted");
    }
    let waiting = submit_in_vain(&app, 3).await;
    assert_state(&app, "unavailable", json!("technical")).await;
    let healed = MockProvider::start_at(address, |asked: RecordedRequest| async move {
        let name = asked.body["options"]["external_task_id"].clone();
        let task = json!({ "id": name, "status": "submitted" });
        MockResponse::json(200, &json!({ "code": 0, "data": task }))
    })
    .await;
    resume(&app, &app.token("root", "admin")).await;
    all_are_taken_at_the_first_try(&app, &waiting).await;
    for id in &first {
        let job = app
            .wait_for_job(id, "alice", |job| job["status"] == "queued")
            .await;
        assert_eq!(job["provider_task_id"], json!(id));
    }
    assert_state(&app, "available", Value::Null).await;
    let submits = healed.requests();
    let submits = submits.iter().filter(|asked| asked.method == "POST");
    assert_eq!(submits.count(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_provider_says_will_not_pass_is_not_tried_again() {
    for (reply, tries) in [
        (
            refused(500, 5000).with_header("x-fal-retryable", "false"),
            1,
        ),
        (refused(503, 5001).with_header("x-should-retry", "false"), 1),
        (refused(429, 1302).with_header("x-should-retry", "false"), 1),
    ] {
        let moody = Moody::start(reply).await;
        let (hub, _beside) = hub(&moody).await;
        let app = hub.spawn().await;
        let id = submit(&app, "kling").await;
        let job = app.wait_until_final(&id, "alice").await;
        assert_eq!(
            (&job["status"], &job["attempt"]),
            (&json!("failed"), &json!(tries))
        );
        assert_eq!(job["error"]["retryable"], false);
        assert_eq!(moody.submits(), tries);
    }
    // It may say so of what it did not understand, but not make certain what is not.
    let moody =
        Moody::start(MockResponse::text(500, "oops").with_header("x-should-retry", "true")).await;
    let (hub, _beside) = hub(&moody).await;
    let app = hub.spawn().await;
    let id = submit(&app, "kling").await;
    let is_lost = |job: &Value| job["error"]["kind"] == "submission_unknown";
    app.wait_for_job(&id, "alice", is_lost).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_in_words_is_a_pause_too() {
    let limit = json!({ "code": 1302, "message": "Your limit resets in ~40s." });
    let moody = Moody::start(MockResponse::json(429, &limit)).await;
    let (hub, _beside) = hub(&moody).await;
    let app = hub.spawn().await;
    let id = submit(&app, "kling").await;
    let is_waiting = |job: &Value| !job["next_attempt_at"].is_null();
    app.wait_for_job(&id, "alice", is_waiting).await;
    let shown = shown(&app).await;
    let time = |key: &str| {
        shown[key]
            .as_str()
            .unwrap()
            .parse::<jiff::Timestamp>()
            .unwrap()
    };
    assert_eq!(time("until").duration_since(time("since")).as_secs(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_response_is_aborted() {
    let bomb = include_bytes!("circuit_breaker/bomb.json.gz").as_slice();
    let moody =
        Moody::start(MockResponse::bytes(200, bomb).with_header("content-encoding", "gzip")).await;
    let (hub, _beside) = hub(&moody).await;
    let app = hub.spawn().await;
    let id = submit(&app, "kling").await;
    let is_lost = |job: &Value| job["error"]["kind"] == "submission_unknown";
    let job = app.wait_for_job(&id, "alice", is_lost).await;
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.contains("too long"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credit_that_comes_in_is_noticed_where_the_provider_tells_its_balance() {
    let folder = tempfile::tempdir().unwrap();
    let spec = folder.path().join("kling.toml");
    let kling = include_str!("../../src/provider/specs/kling.toml");
    let (before, after) = kling.split_once("[balance]").unwrap();
    let (_, after) = after.split_once("\n[").unwrap();
    let balance = "url = '{{ base_url }}/balance'\namount = 'payload.data.left'\nunit = 'Credits'";
    std::fs::write(&spec, format!("{before}[balance]\n{balance}\n\n[{after}")).unwrap();
    let is_first = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let provider = MockProvider::start(move |asked: RecordedRequest| {
        let reply = match (asked.method.as_str(), asked.path.as_str()) {
            ("GET", "/balance") => {
                MockResponse::json(200, &json!({ "code": 0, "data": { "left": 7.5 } }))
            }
            ("POST", _) if is_first.swap(false, std::sync::atomic::Ordering::SeqCst) => {
                refused(429, 1102)
            }
            _ => well(),
        };
        async move { reply }
    })
    .await;
    let app = TestApp::builder()
        .set("providers.kling.spec", spec.display())
        .set("providers.kling.base_url", &provider.url)
        .set("providers.kling.api_key", "the key")
        .spawn()
        .await;
    let first = submit(&app, "kling").await;
    assert_eq!(
        app.wait_until_final(&first, "alice").await["error"]["kind"],
        "quota"
    );
    let second = submit(&app, "kling").await;
    all_are_taken_at_the_first_try(&app, &[second]).await;
    assert!(shown(&app).await.get("balance").is_none());
    let admin = app.token("root", "admin");
    let answer = send(app.request_with_token(Method::GET, "/v1/providers", &admin)).await;
    let shown = answer.body["providers"].as_array().unwrap().iter();
    let shown = shown
        .clone()
        .find(|shown| shown["name"] == "kling")
        .unwrap();
    assert_eq!(shown["balance"]["amount"], 7.5);
    assert_eq!(shown["balance"]["unit"], "credits");
    assert_eq!(
        app.metric("provider_balance{provider=\"kling\"}").await,
        7.5
    );
    let readings = provider.requests();
    let readings = readings.iter().filter(|asked| asked.path == "/balance");
    assert!(readings.count() <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_those_with_a_token_see_how_providers_are() {
    let app = TestApp::spawn().await;
    let answer = send(app.request_without_token(Method::GET, "/v1/providers")).await;
    assert_eq!(answer.body["code"], "unauthorized");
    let admin = app.token("root", "admin");
    let path = "/v1/providers/nobody/resume";
    let answer = send(app.request_with_token(Method::POST, path, &admin)).await;
    assert_eq!(answer.body["code"], "not_found");
}

#[test]
fn deadlines_and_polls_stay_within_provider_retention() {
    let set = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let settings = vec![
        set("auth.hs256_secrets", JWT_SECRET),
        set("providers.one.spec", "replicate"),
        set("providers.one.api_key", "a key"),
        set("providers.one.deadline", "1h"),
        set("providers.one.poll_after", "61m"),
        set("providers.one.poll_every", "2h"),
    ];
    let config = Config::load(None, std::iter::empty(), settings).unwrap();
    let checked = progress_hub::server::validate(&config, &HttpClient::new().unwrap());
    let mistakes = checked.err().unwrap();
    let keys: Vec<&str> = mistakes.iter().map(|it| it.key.as_str()).collect();
    assert_eq!(
        keys,
        ["deadline", "poll_after", "poll_every"].map(|key| format!("providers.one.{key}"))
    );
    assert!(mistakes[0].message.contains("3600s"), "{mistakes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_cannot_put_a_deadline_past_the_providers_retention() {
    let app = TestApp::builder()
        .set("providers.replicate.spec", "replicate")
        .set("providers.replicate.api_key", "a key")
        .spawn()
        .await;
    let worker = app.token("worker", "jobs:publish");
    for (seconds, status) in [(7200, 400), (3600, 400), (3000, 201)] {
        let body = json!({
            "provider": "replicate",
            "provider_task_id": "1",
            "owner": "alice",
            "deadline_seconds": seconds,
        });
        let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
        let answer = send(request.json(&body)).await;
        assert_eq!(answer.status, status, "{}", answer.body);
    }
}
