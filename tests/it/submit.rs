//! Submission: the job document and the provider's requests for every kind of provider response.

use std::time::Duration;

use progress_hub_simulator::{Scenario, Settings, Simulator};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::app::{TEST_TIMEOUT, TestApp, TestAppBuilder, TestResponse, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};

/// Returns a hub that polls the simulated provider soon.
fn with_fast_polls(scenario: Scenario) -> TestAppBuilder {
    TestApp::builder()
        .with_simulator(scenario)
        .set("providers.simulated.poll_after", "200ms")
        .set("providers.simulated.poll_every", "100ms")
}

/// Returns a hub that receives updates by webhook only, because polls start after the test's timeout.
fn with_slow_polls(scenario: Scenario) -> TestAppBuilder {
    TestApp::builder()
        .with_simulator(scenario)
        .set("providers.simulated.poll_after", "5m")
}

fn id_of(job: &Value) -> String {
    job["id"].as_str().expect("an id").to_owned()
}

/// Runs a scenario until the job is final and the provider sends nothing more. Returns the job.
async fn run_scenario(app: &TestApp, scenario: Scenario) -> Value {
    let id = id_of(&app.submit("alice", scenario).await);
    let ended = app.wait_until_final(&id, "alice").await;
    if app.simulator().task_of(&id).is_some() {
        let settled = tokio::time::timeout(TEST_TIMEOUT, app.simulator().settled(&id));
        settled.await.expect("the simulator settles");
    }
    assert_eq!(
        app.get_job(&id, "alice").await,
        ended,
        "a final job does not change"
    );
    ended
}

fn assert_success(job: &Value) {
    assert_eq!(job["status"], "succeeded", "{job}");
    assert_eq!(job["progress"], 100.0);
    assert_eq!(job["error"], Value::Null);
    assert_eq!(job["next_attempt_at"], Value::Null);
    assert_eq!(job["outputs"].as_array().unwrap().len(), 1);
}

/// Asserts that the provider received and accepted exactly one submission.
fn assert_paid_once(app: &TestApp, job: &Value) {
    let submits = app.simulator().submits_of(job["id"].as_str().unwrap());
    assert_eq!((submits.received, submits.accepted), (1, 1), "{job}");
    assert_eq!(submits.task.as_deref(), job["provider_task_id"].as_str());
}

fn assert_failure(job: &Value, kind: &str, code: Option<&str>) {
    assert_eq!(job["status"], "failed", "{job}");
    assert_eq!(job["error"]["kind"], kind, "{job}");
    assert_eq!(job["error"]["provider_code"].as_str(), code);
    assert_eq!(job["outputs"], json!([]));
    assert_eq!(job["progress"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_returns_202_before_calling_the_provider() {
    let provider = MockProvider::start(|_| std::future::pending()).await;
    let app = kling(&provider).spawn().await;
    let response = post(&app, "alice", &request_body()).await;
    assert_eq!(response.status, 202, "{}", response.body);
    let id = id_of(&response.body);
    assert_eq!(response.headers["location"], format!("/v1/jobs/{id}"));
    let job = &response.body;
    assert_eq!(
        (&job["status"], &job["version"]),
        (&json!("accepted"), &json!(1))
    );
    assert_eq!(
        (&job["attempt"], &job["source"]),
        (&json!(0), &json!("api"))
    );
    assert_eq!(
        (&job["owner"], &job["provider"]),
        (&json!("alice"), &json!("kling"))
    );
    let sending = app
        .wait_for_job(&id, "alice", |job| job["attempt"] == 1)
        .await;
    assert_eq!(sending["status"], "accepted");
}

#[tokio::test(flavor = "multi_thread")]
async fn job_completes_by_webhooks_alone() {
    let app = with_slow_polls(Scenario::Normal).spawn().await;
    for scenario in [
        Scenario::Normal,
        Scenario::DuplicateWebhooks,
        Scenario::ReorderedWebhooks,
        Scenario::WebhookBeforeAnswer,
        Scenario::LostAnswer,
        Scenario::Slow,
    ] {
        let job = run_scenario(&app, scenario).await;
        assert_success(&job);
        assert_paid_once(&app, &job);
        assert_eq!(job["source"], "webhook", "{scenario}");
    }
    assert_eq!(app.simulator().calls().queries_received, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn job_completes_by_polling_alone() {
    let app = with_fast_polls(Scenario::Normal).spawn().await;
    for scenario in [
        Scenario::LostWebhooks,
        Scenario::LateWebhooks,
        Scenario::ThinSuccess,
    ] {
        let job = run_scenario(&app, scenario).await;
        assert_success(&job);
        assert_paid_once(&app, &job);
        assert_eq!(job["source"], "poll", "{scenario}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_webhooks_are_rejected_and_polling_completes_the_job() {
    let app = with_fast_polls(Scenario::Normal).spawn().await;
    for scenario in [Scenario::Forged, Scenario::Unsigned] {
        let job = run_scenario(&app, scenario).await;
        assert_success(&job);
        assert_paid_once(&app, &job);
        assert_eq!(job["source"], "poll", "{scenario}");
        let task = app
            .simulator()
            .task(job["provider_task_id"].as_str().unwrap());
        let task = task.unwrap();
        assert!(task.callbacks_sent > 0);
        assert_eq!(task.callbacks_acknowledged, 0, "{scenario}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unsigned_callbacks_trigger_polls() {
    let simulator = Simulator::bind(
        "127.0.0.1:0",
        Settings {
            api_key: "a key".to_owned(),
            webhook_secret: None,
            pace: Duration::from_millis(20),
            default_scenario: Scenario::Normal,
        },
    )
    .unwrap();
    let inspector = simulator.inspector();
    let app = TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", simulator.url())
        .set("providers.kling.api_key", "a key")
        .set("providers.kling.poll_after", "5m")
        .spawn()
        .await;
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    tokio::spawn(simulator.run(stop));
    let id = id_of(&post(&app, "alice", &request_body()).await.body);
    let job = app.wait_until_final(&id, "alice").await;
    assert_success(&job);
    assert_eq!(job["source"], "poll");
    let task = tokio::time::timeout(TEST_TIMEOUT, inspector.settled(&id));
    let task = task.await.unwrap();
    assert_eq!(task.callbacks_acknowledged, task.callbacks_sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limited_submit_shows_next_attempt_at() {
    let app = with_slow_polls(Scenario::RateLimited).spawn().await;
    let id = id_of(&app.submit("alice", Scenario::RateLimited).await);
    let is_waiting = |attempt: u32| {
        move |job: &Value| job["attempt"] == attempt && !job["next_attempt_at"].is_null()
    };
    for attempt in [1, 2] {
        let waiting = app.wait_for_job(&id, "alice", is_waiting(attempt)).await;
        assert_eq!(waiting["status"], "accepted");
        assert_eq!(waiting["error"]["kind"], "rate_limit");
        assert_eq!(waiting["error"]["provider_code"], "1302");
        assert_eq!(waiting["error"]["retryable"], true);
        assert!(
            retry_delay_seconds(&waiting) >= 1.0,
            "Retry-After is one second"
        );
        let next = app
            .wait_for_job(&id, "alice", |job| job["attempt"] == attempt + 1)
            .await;
        assert!(seconds(&next["updated_at"]) >= seconds(&waiting["next_attempt_at"]));
    }
    let job = app.wait_until_final(&id, "alice").await;
    assert_success(&job);
    assert_eq!(job["attempt"], 3);
    let submits = app.simulator().submits_of(&id);
    assert_eq!((submits.received, submits.accepted), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn retryable_errors_are_retried() {
    let app = with_slow_polls(Scenario::Normal).spawn().await;
    for (scenario, kind, code, attempts) in [
        (Scenario::ConcurrencyLimited, "rate_limit", "1303", 2),
        (Scenario::ServerErrors, "technical", "5000", 3),
    ] {
        let id = id_of(&app.submit("alice", scenario).await);
        let is_waiting = |job: &Value| !job["next_attempt_at"].is_null();
        let waiting = app.wait_for_job(&id, "alice", is_waiting).await;
        assert_eq!(waiting["error"]["kind"], kind);
        assert_eq!(waiting["error"]["provider_code"], code);
        let job = app.wait_until_final(&id, "alice").await;
        assert_success(&job);
        assert_eq!(job["attempt"], attempts);
        let submits = app.simulator().submits_of(&id);
        assert_eq!((submits.received, submits.accepted), (attempts, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_submission_is_resolved_by_reference() {
    let app = TestApp::builder()
        .with_simulator(Scenario::LostAnswerSilent)
        .set("providers.simulated.poll_every", "1s")
        .spawn()
        .await;
    let id = id_of(&app.submit("alice", Scenario::LostAnswerSilent).await);
    let is_unknown = |job: &Value| job["error"]["kind"] == "submission_unknown";
    let unknown = app.wait_for_job(&id, "alice", is_unknown).await;
    assert_eq!(
        (&unknown["status"], &unknown["attempt"]),
        (&json!("accepted"), &json!(1))
    );
    assert_eq!(unknown["next_attempt_at"], Value::Null);
    assert_eq!(unknown["error"]["retryable"], false);
    assert_eq!(unknown["provider_task_id"], Value::Null);
    let job = app.wait_until_final(&id, "alice").await;
    assert_success(&job);
    assert_paid_once(&app, &job);
}

#[tokio::test(flavor = "multi_thread")]
async fn non_retryable_errors_are_not_retried() {
    for (scenario, kind, code) in [
        (Scenario::Safety, "safety", "1301"),
        (Scenario::Quota, "quota", "1102"),
        (Scenario::BadKey, "auth", "1002"),
    ] {
        let app = with_slow_polls(Scenario::Normal).spawn().await;
        let job = run_scenario(&app, scenario).await;
        assert_failure(&job, kind, Some(code));
        assert_eq!(job["error"]["retryable"], false);
        assert_eq!(
            (&job["attempt"], &job["source"]),
            (&json!(1), &json!("submit"))
        );
        let submits = app.simulator().submits_of(job["id"].as_str().unwrap());
        assert_eq!((submits.received, submits.accepted), (1, 0), "{scenario}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn late_failure_keeps_the_provider_message_and_is_not_retried() {
    let app = with_slow_polls(Scenario::Normal).spawn().await;
    for (scenario, kind, text) in [
        (
            Scenario::FailsAtEnd,
            "technical",
            "internal rendering error",
        ),
        (Scenario::SafetyAtEnd, "safety", "content safety policy"),
    ] {
        let job = run_scenario(&app, scenario).await;
        assert_failure(&job, kind, None);
        let message = job["error"]["message"].as_str().unwrap();
        assert!(message.contains(text), "{message}");
        assert_paid_once(&app, &job);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_result_succeeds_with_result_expired_error() {
    let app = with_slow_polls(Scenario::ExpiredResult).spawn().await;
    let job = run_scenario(&app, Scenario::ExpiredResult).await;
    assert_eq!(job["status"], "succeeded");
    assert_eq!(job["outputs"], json!([]));
    assert_eq!(job["error"]["kind"], "result_expired");
    assert_eq!(job["source"], "poll");
    assert_paid_once(&app, &job);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_job_fails_at_its_deadline() {
    let app = with_fast_polls(Scenario::Silence)
        .set("providers.simulated.deadline", "2s")
        .spawn()
        .await;
    let job = run_scenario(&app, Scenario::Silence).await;
    assert_failure(&job, "timeout", None);
    assert_eq!(job["source"], "deadline");
    assert!(seconds(&job["finished_at"]) >= seconds(&job["deadline_at"]));
    assert_paid_once(&app, &job);
    assert!(app.simulator().calls().queries_received >= 2);
}

fn seconds(time: &Value) -> f64 {
    let time: jiff::Timestamp = time.as_str().expect("a time").parse().unwrap();
    time.as_duration().as_secs_f64()
}

/// Returns the delay before the next attempt of a job, in seconds.
fn retry_delay_seconds(job: &Value) -> f64 {
    seconds(&job["next_attempt_at"]) - seconds(&job["updated_at"])
}

/// Returns a hub whose provider `kling` is this mock.
fn kling(provider: &MockProvider) -> TestAppBuilder {
    TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", &provider.url)
        .set("providers.kling.api_key", "the key")
}

fn request_body() -> Value {
    json!({ "provider": "kling", "model": "kling-v3", "prompt": "a lighthouse" })
}

async fn post(app: &TestApp, owner: &str, body: &Value) -> TestResponse {
    send(app.request(Method::POST, "/v1/videos", owner).json(body)).await
}

async fn post_with_key(app: &TestApp, owner: &str, key: &str, body: &Value) -> TestResponse {
    let request = app.request(Method::POST, "/v1/videos", owner);
    send(request.header("idempotency-key", key).json(body)).await
}

/// Returns Kling's response to an accepted submission.
fn accepted(task: &str) -> MockResponse {
    let task = json!({ "id": task, "status": "submitted" });
    MockResponse::json(
        200,
        &json!({ "code": 0, "message": "SUCCEED", "data": task }),
    )
}

fn rejection(status: u16, code: u16) -> MockResponse {
    MockResponse::json(
        status,
        &json!({ "code": code, "message": "no", "request_id": "1" }),
    )
}

fn is_submit(request: &RecordedRequest) -> bool {
    request.method == "POST"
}

/// Starts a mock Kling that responds to submissions with `reply` and knows no task when it is polled.
async fn start_mock(reply: MockResponse) -> MockProvider {
    MockProvider::start(move |request| {
        let reply = if is_submit(&request) {
            reply.clone()
        } else {
            MockResponse::json(200, &json!({ "code": 0, "data": [] }))
        };
        async move { reply }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn request_matches_the_provider_api() {
    let provider = start_mock(accepted("1")).await;
    let app = kling(&provider).spawn().await;
    let body = json!({
        "provider": "kling",
        "model": "kling-v3",
        "prompt": "a \"lighthouse\" in the rain\n{{ api_key }}",
        "negative_prompt": "people",
        "duration": 5,
        "platform": "tiktok",
        "input": { "settings": { "audio": true }, "seed": 7 },
        "metadata": { "shelf": 3 },
    });
    let response = post(&app, "alice", &body).await;
    assert_eq!(response.body["metadata"], json!({ "shelf": 3 }));
    let id = id_of(&response.body);
    let request = provider
        .wait_for_requests(|all| !all.is_empty())
        .await
        .remove(0);
    assert_eq!(request.path, "/text-to-video/kling-v3");
    assert_eq!(request.header("authorization"), Some("Bearer the key"));
    let callback = request.body["options"]["callback_url"].as_str().unwrap();
    let start = format!("{}/v1/webhooks/kling/{id}.", app.url);
    assert!(callback.starts_with(&start), "{callback}");
    assert_eq!(
        request.body,
        json!({
            "prompt": "a \"lighthouse\" in the rain\n{{ api_key }}",
            "negative_prompt": "people",
            "settings": { "aspect_ratio": "9:16", "duration": 5, "audio": true },
            "options": { "callback_url": callback, "external_task_id": id },
            "seed": 7,
        })
    );

    let image = json!({
        "provider": "kling",
        "model": "kling-v3",
        "prompt": "it moves",
        "image_url": "https://example.com/first.png",
        "aspect_ratio": "16:9",
        "resolution": "1080p",
    });
    post(&app, "alice", &image).await;
    let request = provider
        .wait_for_requests(|all| all.len() == 2)
        .await
        .remove(1);
    assert_eq!(request.path, "/image-to-video/kling-v3");
    let contents = json!([
        { "type": "prompt", "text": "it moves" },
        { "type": "first_frame", "url": "https://example.com/first.png" },
    ]);
    assert_eq!(request.body["contents"], contents);
    let settings = json!({ "aspect_ratio": "16:9", "resolution": "1080p" });
    assert_eq!(request.body["settings"], settings);
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_response_is_never_retried() {
    for reply in [
        MockResponse::disconnect(),
        MockResponse::text(200, "<html>welcome</html>"),
        MockResponse::text(200, ""),
        MockResponse::json(200, &json!({ "code": 0, "data": {} })),
        MockResponse::text(500, "oops"),
        MockResponse::text(502, "<html>bad gateway</html>"),
        MockResponse::text(504, ""),
        MockResponse::json(
            408,
            &json!({ "error": { "code": 408, "message": "timed out" } }),
        ),
    ] {
        let case = format!("{reply:?}");
        let provider = start_mock(reply).await;
        let app = kling(&provider)
            .set("providers.kling.poll_every", "50ms")
            .set("providers.kling.deadline", "1s")
            .spawn()
            .await;
        let id = id_of(&post(&app, "alice", &request_body()).await.body);
        let is_unknown = |job: &Value| job["error"]["kind"] == "submission_unknown";
        let unknown = app.wait_for_job(&id, "alice", is_unknown).await;
        assert_eq!(
            (&unknown["final"], &unknown["attempt"]),
            (&json!(false), &json!(1))
        );
        let ended = app.wait_until_final(&id, "alice").await;
        assert_failure(&ended, "timeout", None);
        let requests = provider.requests();
        assert_eq!(
            requests.iter().filter(|it| is_submit(it)).count(),
            1,
            "{case}"
        );
        let polls = requests.iter().filter(|it| it.path.contains(&id)).count();
        assert!(polls > 0, "{case}: polled by reference");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn definitive_rejection_is_retried_up_to_five_attempts() {
    for (reply, kind) in [
        (rejection(429, 1302), "rate_limit"),
        (rejection(429, 1303), "rate_limit"),
        (rejection(500, 5000), "technical"),
        (rejection(503, 5001), "technical"),
        (rejection(504, 5002), "technical"),
        (MockResponse::text(503, "busy"), "technical"),
        (MockResponse::text(429, ""), "rate_limit"),
    ] {
        let provider = start_mock(reply.with_header("retry-after-ms", 1)).await;
        let app = kling(&provider).spawn().await;
        let id = id_of(&post(&app, "alice", &request_body()).await.body);
        let job = app.wait_until_final(&id, "alice").await;
        assert_eq!(job["error"]["kind"], kind, "{job}");
        assert_eq!(job["error"]["retryable"], true);
        assert_eq!(
            (&job["status"], &job["attempt"]),
            (&json!("failed"), &json!(5))
        );
        assert_eq!(provider.requests().len(), 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rejections_map_to_error_kinds() {
    for (reply, kind) in [
        (rejection(401, 1000), "auth"),
        (rejection(401, 1004), "auth"),
        (rejection(403, 1103), "auth"),
        (rejection(429, 1304), "auth"),
        (rejection(429, 1100), "quota"),
        (rejection(429, 1101), "quota"),
        (rejection(200, 1102), "quota"),
        (rejection(400, 1200), "invalid_input"),
        (rejection(404, 1203), "invalid_input"),
        (rejection(400, 1300), "safety"),
        (rejection(400, 1301), "safety"),
        (MockResponse::text(401, "no"), "auth"),
        (MockResponse::text(402, "no"), "quota"),
        (MockResponse::text(422, "no"), "invalid_input"),
    ] {
        let case = format!("{reply:?}");
        let provider = start_mock(reply).await;
        let app = kling(&provider).spawn().await;
        let id = id_of(&post(&app, "alice", &request_body()).await.body);
        let job = app.wait_until_final(&id, "alice").await;
        assert_eq!(job["error"]["kind"], kind, "{case}: {job}");
        assert_eq!(job["error"]["retryable"], false);
        let requests = provider.requests();
        assert_eq!(
            requests.iter().filter(|it| is_submit(it)).count(),
            1,
            "{case}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_retry_after_headers_are_honored() {
    let date = std::time::SystemTime::now() + Duration::from_secs(60);
    for (header, value, min, max) in [
        ("retry-after", "60".to_owned(), 60.0, 66.1),
        ("retry-after", httpdate::fmt_http_date(date), 40.0, 66.1),
        ("ratelimit-reset", "45".to_owned(), 45.0, 49.6),
        ("retry-after-ms", "30500".to_owned(), 30.5, 33.6),
        ("x-nothing", "90".to_owned(), 0.5, 1.5),
    ] {
        let provider = start_mock(rejection(429, 1302).with_header(header, &value)).await;
        let app = kling(&provider).spawn().await;
        let id = id_of(&post(&app, "alice", &request_body()).await.body);
        let is_waiting = |job: &Value| !job["next_attempt_at"].is_null();
        let wait = retry_delay_seconds(&app.wait_for_job(&id, "alice", is_waiting).await);
        // The delay starts slightly before the document is written.
        assert!(
            (min - 0.4..=max).contains(&wait),
            "{header}: {value}: {wait}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_provider_is_retried() {
    let app = TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", "http://127.0.0.1:9")
        .set("providers.kling.api_key", "a key")
        .spawn()
        .await;
    let id = id_of(&post(&app, "alice", &request_body()).await.body);
    let job = app
        .wait_for_job(&id, "alice", |job| job["attempt"] == 2)
        .await;
    assert_eq!(job["status"], "accepted");
    let is_waiting = |job: &Value| !job["next_attempt_at"].is_null();
    let waiting = app.wait_for_job(&id, "alice", is_waiting).await;
    assert_eq!(waiting["error"]["kind"], "technical");
}

#[tokio::test(flavor = "multi_thread")]
async fn same_idempotency_key_returns_the_same_job() {
    let app = with_slow_polls(Scenario::Normal).spawn().await;
    let order = json!({ "provider": "simulated", "model": "kling-v3", "prompt": "a lighthouse" });
    let first = post_with_key(&app, "alice", "k1", &order).await;
    assert_eq!(first.status, 202);
    let id = id_of(&first.body);
    let again = post_with_key(&app, "alice", "k1", &order).await;
    assert_eq!(
        (again.status.as_u16(), id_of(&again.body)),
        (202, id.clone())
    );
    assert_eq!(again.headers["location"], format!("/v1/jobs/{id}"));

    let mut other = order.clone();
    other["prompt"] = "two lighthouses".into();
    let conflict = post_with_key(&app, "alice", "k1", &other).await;
    assert_eq!(conflict.status, 409);
    assert_eq!(conflict.body["code"], "idempotency_conflict");

    let other_owner = post_with_key(&app, "bob", "k1", &order).await;
    assert_ne!(id_of(&other_owner.body), id);
    let unkeyed = post(&app, "alice", &order).await;
    assert_ne!(id_of(&unkeyed.body), id);

    // A replay returns the current job, even if it is final.
    app.wait_until_final(&id, "alice").await;
    let later = post_with_key(&app, "alice", "k1", &order).await;
    assert_eq!(
        (&later.body["id"], &later.body["final"]),
        (&json!(id), &json!(true))
    );
    assert_eq!(app.simulator().submits_of(&id).received, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_keys_are_scoped_to_the_owner() {
    let app = with_slow_polls(Scenario::Normal).spawn().await;
    let order = json!({ "provider": "simulated", "model": "kling-v3", "prompt": "a lighthouse" });
    let one = post_with_key(&app, "a", "b:c", &order).await;
    let two = post_with_key(&app, "a:b", "c", &order).await;
    assert_eq!((one.status.as_u16(), two.status.as_u16()), (202, 202));
    assert_ne!(one.body["id"], two.body["id"]);
    assert_eq!(two.body["owner"], "a:b");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_submits_with_same_key_create_one_job() {
    let app = with_slow_polls(Scenario::Normal).spawn().await;
    let order = json!({ "provider": "simulated", "model": "kling-v3", "prompt": "a lighthouse" });
    let all = (0..12).map(|_| post_with_key(&app, "alice", "twelve", &order));
    let all = futures_util::future::join_all(all).await;
    let id = id_of(&all[0].body);
    for response in &all {
        assert_eq!(
            (response.status.as_u16(), id_of(&response.body)),
            (202, id.clone())
        );
    }
    assert_success(&app.wait_until_final(&id, "alice").await);
    assert_eq!(app.simulator().calls().submits_received, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_at_a_provider_never_exceed_max_concurrent() {
    let app = with_slow_polls(Scenario::Normal)
        .set("providers.simulated.max_concurrent", 2)
        .spawn()
        .await;
    let mut jobs = Vec::new();
    for _ in 0..7 {
        jobs.push(id_of(&app.submit("alice", Scenario::Normal).await));
    }
    let mut max_unfinished = 0;
    let all_finished = app.simulator().until(|simulator| {
        let tasks = simulator.tasks();
        let unfinished = tasks.iter().filter(|task| !task.status.is_final()).count();
        max_unfinished = max_unfinished.max(unfinished);
        (tasks.len() == 7 && unfinished == 0).then_some(())
    });
    tokio::time::timeout(TEST_TIMEOUT, all_finished)
        .await
        .expect("all jobs finish");
    assert_eq!(max_unfinished, 2);
    for id in jobs {
        assert_success(&app.wait_until_final(&id, "alice").await);
        assert_eq!(app.simulator().submits_of(&id).received, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slot_is_released_when_the_job_ends() {
    let provider = start_mock(accepted("1")).await;
    let app = kling(&provider)
        .set("providers.kling.max_concurrent", 1)
        .set(
            "providers.kling.webhook_secrets",
            crate::app::WEBHOOK_SECRET,
        )
        .spawn()
        .await;
    let first = id_of(&post(&app, "alice", &request_body()).await.body);
    let is_queued = |job: &Value| job["status"] == "queued";
    app.wait_for_job(&first, "alice", is_queued).await;
    let second = id_of(&post(&app, "alice", &request_body()).await.body);
    let webhook = json!({ "id": "1", "status": "processing" });
    assert_eq!(send_signed(&app, &webhook).await.body["applied"], true);
    assert_eq!(app.get_job(&second, "alice").await["attempt"], 0);
    assert_eq!(provider.requests().len(), 1);

    let webhook = json!({ "id": "1", "status": "failed", "message": "no" });
    assert_eq!(send_signed(&app, &webhook).await.body["applied"], true);
    let requests = provider.wait_for_requests(|all| all.len() == 2).await;
    assert_eq!(requests[1].body["options"]["external_task_id"], second);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_submission_holds_no_slot() {
    let provider = start_mock(MockResponse::disconnect()).await;
    let app = kling(&provider)
        .set("providers.kling.max_concurrent", 1)
        .spawn()
        .await;
    for _ in 0..3 {
        let id = id_of(&post(&app, "alice", &request_body()).await.body);
        let is_unknown = |job: &Value| job["error"]["kind"] == "submission_unknown";
        app.wait_for_job(&id, "alice", is_unknown).await;
    }
}

async fn send_signed(app: &TestApp, webhook: &Value) -> TestResponse {
    let body = webhook.to_string();
    let now = crate::webhook_signatures::now();
    let secret = crate::app::WEBHOOK_SECRET;
    let mut request = app.request_without_token(Method::POST, "/v1/webhooks/kling");
    for (name, value) in crate::webhook_signatures::standard(secret, "1", now, body.as_bytes()) {
        request = request.header(name, value);
    }
    send(request.body(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_requires_jobs_write_scope() {
    let app = with_slow_polls(Scenario::Normal).spawn().await;
    let anonymous = app
        .request_without_token(Method::POST, "/v1/videos")
        .json(&request_body());
    let response = send(anonymous).await;
    assert_eq!(
        (response.status.as_u16(), &response.body["code"]),
        (401, &json!("unauthorized"))
    );
    for scope in ["jobs:read", "jobs:publish", ""] {
        let token = app.token("alice", scope);
        let request = app.request_with_token(Method::POST, "/v1/videos", &token);
        let response = send(request.json(&request_body())).await;
        assert_eq!(
            (response.status.as_u16(), &response.body["code"]),
            (403, &json!("forbidden"))
        );
    }
}
