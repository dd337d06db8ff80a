//! Webhooks: signatures, matching to jobs, buffering, duplicates and limits.

use std::sync::Arc;

use progress_hub_simulator::Scenario;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::app::{TEST_TIMEOUT, TestApp, TestAppBuilder, TestResponse, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};
use crate::signatures::assert_accepted;
use crate::webhook_signatures::{self, Headers};

const OLD_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW_SECRET: &str = "whsec_dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI=";
const GENERIC_SECRET: &str = "hub_test_secret";

/// Provider URL where nothing listens.
const UNUSED_URL: &str = "http://127.0.0.1:9";

/// Configures a hub with the provider `kling` at this URL.
fn hub_with_kling(provider_url: &str) -> TestAppBuilder {
    TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", provider_url)
        .set("providers.kling.api_key", "a key")
        .set(
            "providers.kling.webhook_secrets",
            format!("{OLD_SECRET},{NEW_SECRET}"),
        )
}

/// Starts a hub with the providers `kling` and `generic`.
async fn start_hub() -> TestApp {
    hub_with_kling(UNUSED_URL).spawn().await
}

/// Registers a job of `alice` for a task that another system submitted. Returns the document.
async fn register_task(app: &TestApp, provider: &str, task: &str) -> Value {
    let worker = app.token("worker", "jobs:publish");
    let body = json!({ "provider": provider, "provider_task_id": task, "owner": "alice" });
    let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
    let response = send(request.json(&body)).await;
    assert_eq!(response.status, 201, "{}", response.body);
    response.body
}

/// Sends a webhook to `/v1/webhooks/{path}`.
async fn post_webhook(app: &TestApp, path: &str, headers: &Headers, body: &[u8]) -> TestResponse {
    let mut request = app.request_without_token(Method::POST, &format!("/v1/webhooks/{path}"));
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    send(request.body(body.to_vec())).await
}

/// Sends a webhook signed as Kling does.
async fn post_kling(app: &TestApp, path: &str, body: &Value) -> TestResponse {
    let body = body.to_string();
    let headers =
        webhook_signatures::standard(NEW_SECRET, "1", webhook_signatures::now(), body.as_bytes());
    post_webhook(app, path, &headers, body.as_bytes()).await
}

/// Sends a webhook to the provider `generic`.
async fn post_generic(app: &TestApp, body: &Value) -> TestResponse {
    let body = body.to_string();
    let signature = webhook_signatures::hex(GENERIC_SECRET, body.as_bytes());
    let headers = vec![("x-ai-signature", signature)];
    post_webhook(app, "generic", &headers, body.as_bytes()).await
}

#[track_caller]
fn assert_problem(response: &TestResponse, status: u16, code: &str) {
    assert_eq!(response.status, status, "{}", response.body);
    assert_eq!(response.body["code"], code, "{}", response.body);
    assert_eq!(response.body["status"], status);
    assert_eq!(response.headers["content-type"], "application/problem+json");
}

fn running(task: &str) -> Value {
    json!({ "id": task, "status": "processing", "message": "" })
}

fn succeeded(task: &str) -> Value {
    let output = json!({ "type": "video", "id": "2", "url": "https://cdn.example.com/a.mp4", "duration": "5.041" });
    json!({ "id": task, "status": "succeeded", "message": "", "outputs": [output] })
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_webhook_returns_200_and_changes_nothing() {
    let app = start_hub().await;
    let id = register_task(&app, "kling", "71").await["id"].clone();
    let id = id.as_str().unwrap();
    assert_accepted(&post_kling(&app, "kling", &running("71")).await, true, true);
    assert_accepted(
        &post_kling(&app, "kling", &running("71")).await,
        true,
        false,
    );
    let job = app.get_job(id, "alice").await;
    assert_eq!(
        (&job["status"], &job["version"]),
        (&json!("running"), &json!(2))
    );
    assert_eq!(job["source"], "webhook");

    assert_accepted(
        &post_kling(&app, "kling", &succeeded("71")).await,
        true,
        true,
    );
    let final_job = app.get_job(id, "alice").await;
    assert_eq!(final_job["status"], "succeeded");
    assert_eq!(final_job["progress"], 100.0);
    let output = &final_job["outputs"][0];
    assert_eq!(output["url"], "https://cdn.example.com/a.mp4");
    assert_eq!(output["duration"], 5.041);

    for late in [running("71"), succeeded("71")] {
        assert_accepted(&post_kling(&app, "kling", &late).await, true, false);
    }
    assert_eq!(app.get_job(id, "alice").await, final_job);
}

#[tokio::test(flavor = "multi_thread")]
async fn hex_signature_is_accepted_in_any_case_and_with_prefix() {
    let app = start_hub().await;
    for (task, format_hex) in [
        ("lower", (|hex: String| hex) as fn(String) -> String),
        ("upper", |hex| hex.to_uppercase()),
        ("prefixed", |hex| format!("sha256={hex}")),
        ("prefixed-upper", |hex| {
            format!("sha256={}", hex.to_uppercase())
        }),
    ] {
        register_task(&app, "generic", task).await;
        let body = json!({ "task_id": task, "status": "processing", "progress": 12 }).to_string();
        let signature = format_hex(webhook_signatures::hex(GENERIC_SECRET, body.as_bytes()));
        let headers = vec![("x-ai-signature", signature)];
        let response = post_webhook(&app, "generic", &headers, body.as_bytes()).await;
        assert_accepted(&response, true, true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_configured_secret_and_any_listed_signature_is_accepted() {
    let app = start_hub().await;
    register_task(&app, "kling", "72").await;
    let body_with_progress =
        |n: u32| json!({ "id": "72", "status": "processing", "progress": n }).to_string();
    for (n, secret) in [(1, OLD_SECRET), (2, NEW_SECRET)] {
        let body = body_with_progress(n);
        let headers =
            webhook_signatures::standard(secret, "a", webhook_signatures::now(), body.as_bytes());
        let response = post_webhook(&app, "kling", &headers, body.as_bytes()).await;
        assert_accepted(&response, true, true);
    }
    let (body, now) = (body_with_progress(3), webhook_signatures::now());
    let other_secret = "whsec_c3RyYW5nZXJzdHJhbmdlcnN0cmFuZ2Vyc3RyYW5nZXI=";
    let sign = |secret| webhook_signatures::standard_signature(secret, "a", now, body.as_bytes());
    let listed = format!(
        "v9,anything v1,!!! {} {}",
        sign(other_secret),
        sign(OLD_SECRET)
    );
    let mut headers = webhook_signatures::standard(NEW_SECRET, "a", now, body.as_bytes());
    headers[2].1 = listed;
    let response = post_webhook(&app, "kling", &headers, body.as_bytes()).await;
    assert_accepted(&response, true, true);

    headers[2].1 = sign(other_secret);
    let response = post_webhook(&app, "kling", &headers, body.as_bytes()).await;
    assert_problem(&response, 401, "invalid_signature");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_with_the_names_of_svix_are_accepted() {
    let app = start_hub().await;
    register_task(&app, "kling", "73").await;
    let body = running("73").to_string();
    let now = webhook_signatures::now();
    let names = ["svix-id", "svix-timestamp", "svix-signature"];
    let sign = |secret| {
        let headers = webhook_signatures::standard(secret, "a", now, body.as_bytes());
        let values = headers.into_iter().map(|(_, value)| value);
        names.into_iter().zip(values).collect::<Headers>()
    };
    let other_secret = "whsec_c3RyYW5nZXJzdHJhbmdlcnN0cmFuZ2Vyc3RyYW5nZXI=";
    let response = post_webhook(&app, "kling", &sign(other_secret), body.as_bytes()).await;
    assert_problem(&response, 401, "invalid_signature");
    let response = post_webhook(&app, "kling", &sign(NEW_SECRET), body.as_bytes()).await;
    assert_accepted(&response, true, true);

    // A signature of one message is not valid with the id of another.
    let mut headers = sign(NEW_SECRET);
    headers.push(("webhook-id", "b".to_owned()));
    let response = post_webhook(&app, "kling", &headers, body.as_bytes()).await;
    assert_problem(&response, 401, "invalid_signature");
}

#[tokio::test(flavor = "multi_thread")]
async fn timestamp_tolerance_is_five_minutes() {
    let app = start_hub().await;
    register_task(&app, "kling", "73").await;
    let body = running("73").to_string();
    // Time passes until the hub reads its clock, so the offsets keep a distance from the tolerance.
    for (offset, status) in [(-310, 401), (330, 401), (-270, 200), (290, 200)] {
        let when = webhook_signatures::now() + offset;
        let headers = webhook_signatures::standard(NEW_SECRET, "a", when, body.as_bytes());
        let response = post_webhook(&app, "kling", &headers, body.as_bytes()).await;
        assert_eq!(response.status, status, "{offset}: {}", response.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tampered_webhook_returns_401_and_changes_nothing() {
    let app = start_hub().await;
    let before = register_task(&app, "kling", "74").await;
    let body = running("74").to_string().into_bytes();
    let headers =
        webhook_signatures::standard(NEW_SECRET, "msg_1", webhook_signatures::now(), &body);
    let flip = |text: &str, at: usize| {
        let mut bytes = text.as_bytes().to_vec();
        bytes[at] ^= 1;
        String::from_utf8(bytes).unwrap()
    };
    for at in 0..body.len() {
        let mut tampered = body.clone();
        tampered[at] ^= 1;
        let response = post_webhook(&app, "kling", &headers, &tampered).await;
        assert_problem(&response, 401, "invalid_signature");
    }
    for header in 0..headers.len() {
        for at in 0..headers[header].1.len() {
            let mut tampered = headers.clone();
            tampered[header].1 = flip(&tampered[header].1, at);
            let response = post_webhook(&app, "kling", &tampered, &body).await;
            assert_eq!(response.status, 401, "{tampered:?}: {}", response.body);
        }
    }
    for header in 0..headers.len() {
        let mut incomplete = headers.clone();
        incomplete.remove(header);
        let response = post_webhook(&app, "kling", &incomplete, &body).await;
        assert_problem(&response, 401, "invalid_signature");
    }
    let id = before["id"].as_str().unwrap();
    assert_eq!(app.get_job(id, "alice").await, before);
    assert_accepted(
        &post_webhook(&app, "kling", &headers, &body).await,
        true,
        true,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_or_wrong_generic_signature_is_rejected() {
    let app = start_hub().await;
    register_task(&app, "generic", "t").await;
    let body = json!({ "task_id": "t", "status": "running" }).to_string();
    let valid = webhook_signatures::hex(GENERIC_SECRET, body.as_bytes());
    let invalid = [
        None,
        Some(String::new()),
        Some("sha256=".to_owned()),
        Some(valid[..62].to_owned()),
        Some(format!("{valid}00")),
        Some(format!("md5={valid}")),
        Some(webhook_signatures::hex("another secret", body.as_bytes())),
    ];
    for signature in invalid {
        let headers = signature.map(|it| ("x-ai-signature", it));
        let headers: Headers = headers.into_iter().collect();
        let response = post_webhook(&app, "generic", &headers, body.as_bytes()).await;
        assert_problem(&response, 401, "invalid_signature");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rejection_contains_no_secret() {
    let app = start_hub().await;
    let body = running("75").to_string();
    let headers = webhook_signatures::standard(OLD_SECRET, "a", 1, body.as_bytes());
    let response = post_webhook(&app, "kling", &headers, body.as_bytes()).await;
    let problem = response.body.to_string();
    for secret in [OLD_SECRET, NEW_SECRET, &headers[2].1] {
        assert!(!problem.contains(secret), "{problem}");
    }
}

/// Starts a Kling mock that answers submissions with this task, but only after a notification.
async fn delayed_kling(task: &'static str) -> (MockProvider, Arc<Notify>) {
    let answer = Arc::new(Notify::new());
    let notified = Arc::clone(&answer);
    let provider = MockProvider::start(move |request: RecordedRequest| {
        let notified = Arc::clone(&notified);
        async move {
            if request.method == "GET" {
                return MockResponse::json(200, &json!({ "code": 0, "data": [] }));
            }
            notified.notified().await;
            let task = json!({ "id": task, "status": "submitted" });
            MockResponse::json(
                200,
                &json!({ "code": 0, "message": "SUCCEED", "data": task }),
            )
        }
    });
    (provider.await, answer)
}

/// Submits a job of `alice` to `kling` and returns its id.
async fn submit(app: &TestApp) -> String {
    let body = json!({ "provider": "kling", "model": "kling-v3", "prompt": "a lighthouse" });
    let request = app.request(Method::POST, "/v1/videos", "alice");
    let response = send(request.json(&body)).await;
    assert_eq!(response.status, 202, "{}", response.body);
    response.body["id"].as_str().unwrap().to_owned()
}

fn submissions(requests: &[RecordedRequest]) -> Vec<&RecordedRequest> {
    let is_submission = |request: &&RecordedRequest| request.method == "POST";
    requests.iter().filter(is_submission).collect()
}

/// Waits for a submission and returns its callback path below `/v1/webhooks/`.
async fn callback_path(provider: &MockProvider) -> String {
    let requests = provider
        .wait_for_requests(|all| !submissions(all).is_empty())
        .await;
    let url = &submissions(&requests)[0].body["options"]["callback_url"];
    let url = url.as_str().unwrap();
    url.split_once("/v1/webhooks/").unwrap().1.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn early_webhook_matches_by_callback_token() {
    let (provider, answer) = delayed_kling("76").await;
    let app = hub_with_kling(&provider.url).spawn().await;
    let id = submit(&app).await;
    let path = callback_path(&provider).await;
    assert_accepted(&post_kling(&app, &path, &running("76")).await, true, true);
    let job = app.get_job(&id, "alice").await;
    assert_eq!(job["status"], "running");
    assert_eq!(job["provider_task_id"], "76");
    answer.notify_one();
    // The submit response contains nothing new, but the next webhook does.
    assert_accepted(&post_kling(&app, &path, &succeeded("76")).await, true, true);
    assert_eq!(app.wait_until_final(&id, "alice").await["version"], 4);
    assert_eq!(submissions(&provider.requests()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_for_unknown_task_is_buffered_until_the_submit_response() {
    let (provider, answer) = delayed_kling("77").await;
    let app = hub_with_kling(&provider.url).spawn().await;
    let id = submit(&app).await;
    callback_path(&provider).await;
    let response = post_kling(&app, "kling", &succeeded("77")).await;
    assert_accepted(&response, false, false);
    assert_eq!(app.get_job(&id, "alice").await["status"], "accepted");
    answer.notify_one();
    let job = app.wait_until_final(&id, "alice").await;
    assert_eq!(job["status"], "succeeded");
    assert_eq!(job["provider_task_id"], "77");
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_for_unknown_task_is_buffered_until_registration() {
    let app = start_hub().await;
    for body in [running("78"), succeeded("78"), running("78")] {
        assert_accepted(&post_kling(&app, "kling", &body).await, false, false);
    }
    // A task with the same id at another provider is a different task.
    let other = register_task(&app, "generic", "78").await;
    assert_eq!(other["status"], "queued");
    let job = register_task(&app, "kling", "78").await;
    assert_eq!(job["status"], "succeeded", "{job}");
    assert_eq!(job["outputs"][0]["type"], "video");
    assert_accepted(
        &post_kling(&app, "kling", &succeeded("78")).await,
        true,
        false,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_matches_by_external_id() {
    let (provider, _answer) = delayed_kling("79").await;
    // Without a public URL, the provider gets no callback URL.
    let hub = hub_with_kling(&provider.url).unset("server.public_url");
    let app = hub.spawn().await;
    let id = submit(&app).await;
    provider.wait_for_requests(|all| !all.is_empty()).await;
    let body = json!({ "id": "79", "status": "processing", "external_id": id });
    assert_accepted(&post_kling(&app, "kling", &body).await, true, true);
    assert_eq!(app.get_job(&id, "alice").await["status"], "running");

    // An update of another task does not apply to this job, although its external id matches.
    let body = json!({ "id": "80", "status": "failed", "external_id": id });
    assert_accepted(&post_kling(&app, "kling", &body).await, true, false);
    assert_eq!(app.get_job(&id, "alice").await["status"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn external_id_alone_does_not_bind_a_task_where_callback_urls_are_given() {
    let (provider, answer) = delayed_kling("79").await;
    let app = hub_with_kling(&provider.url).spawn().await;
    let id = submit(&app).await;
    callback_path(&provider).await;
    let mut body = succeeded("T1");
    body["external_id"] = json!(id);
    assert_accepted(&post_kling(&app, "kling", &body).await, true, false);
    let job = app.get_job(&id, "alice").await;
    assert_eq!(
        (&job["status"], &job["provider_task_id"]),
        (&json!("accepted"), &Value::Null)
    );
    answer.notify_one();
    let is_queued = |job: &Value| job["status"] == "queued";
    let job = app.wait_for_job(&id, "alice", is_queued).await;
    assert_eq!(job["provider_task_id"], "79");
}

#[tokio::test(flavor = "multi_thread")]
async fn external_id_binds_no_task_to_a_job_that_waits_for_its_next_attempt() {
    let busy = json!({ "code": 1302, "message": "busy" });
    let provider = MockProvider::start(move |_| {
        let response = MockResponse::json(429, &busy).with_header("retry-after", 3000);
        async move { response }
    })
    .await;
    for gives_callback_urls in [true, false] {
        let mut hub = hub_with_kling(&provider.url);
        if !gives_callback_urls {
            hub = hub.unset("server.public_url");
        }
        let app = hub.set("providers.kling.deadline", "2h").spawn().await;
        let id = submit(&app).await;
        let has_retry = |job: &Value| !job["next_attempt_at"].is_null();
        let waiting = app.wait_for_job(&id, "alice", has_retry).await;
        let mut body = succeeded("T1");
        body["external_id"] = json!(id);
        assert_accepted(&post_kling(&app, "kling", &body).await, true, false);
        assert_eq!(app.get_job(&id, "alice").await, waiting);
        // The update is buffered until a job with this task is registered.
        let other = register_task(&app, "kling", "T1").await;
        assert_eq!(other["status"], "succeeded");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_provider_or_invalid_callback_token_returns_404() {
    let (provider, _answer) = delayed_kling("81").await;
    let app = hub_with_kling(&provider.url).spawn().await;
    let id = submit(&app).await;
    let path = callback_path(&provider).await;
    let token = path.strip_prefix("kling/").unwrap();
    let body = running("81");
    assert_problem(&post_kling(&app, "klign", &body).await, 404, "not_found");

    let (job, mac) = token.rsplit_once('.').unwrap();
    for at in [0, mac.len() / 2, mac.len() - 1] {
        let mut flipped = mac.as_bytes().to_vec();
        flipped[at] ^= 1;
        let forged = format!("kling/{job}.{}", String::from_utf8(flipped).unwrap());
        assert_problem(&post_kling(&app, &forged, &body).await, 404, "not_found");
    }
    let other_job = format!("kling/job_01a3c80000007000800000000000000a.{mac}");
    for forged in [other_job.as_str(), "kling/nothing", &format!("kling/{job}")] {
        assert_problem(&post_kling(&app, forged, &body).await, 404, "not_found");
    }

    // A callback token is valid for its own provider only.
    let body = json!({ "task_id": "81", "status": "running" }).to_string();
    let signature = webhook_signatures::hex(GENERIC_SECRET, body.as_bytes());
    let headers = vec![("x-ai-signature", signature)];
    let response = post_webhook(&app, &format!("generic/{token}"), &headers, body.as_bytes()).await;
    assert_problem(&response, 404, "not_found");
    assert_eq!(app.get_job(&id, "alice").await["status"], "accepted");

    // A callback token does not replace the signature.
    let response = post_webhook(&app, &path, &Vec::new(), body.to_string().as_bytes()).await;
    assert_problem(&response, 401, "invalid_signature");
}

#[tokio::test(flavor = "multi_thread")]
async fn body_that_does_not_match_the_spec_returns_400() {
    let app = start_hub().await;
    let task = register_task(&app, "kling", "82").await;
    let invalid: [&[u8]; 8] = [
        b"",
        b"not json",
        b"{\"id\":\"82\",\"status\":\"processing\"",
        b"\xff\xfe",
        b"[]",
        b"\"82\"",
        b"{\"status\":\"processing\"}",
        b"{\"id\":\"82\"}",
    ];
    for body in invalid {
        let headers =
            webhook_signatures::standard(NEW_SECRET, "a", webhook_signatures::now(), body);
        let response = post_webhook(&app, "kling", &headers, body).await;
        assert_problem(&response, 400, "invalid_payload");
    }
    let deep = [b"{\"id\":".repeat(5000), b"1".to_vec(), b"}".repeat(5000)].concat();
    let headers = webhook_signatures::standard(NEW_SECRET, "a", webhook_signatures::now(), &deep);
    let response = post_webhook(&app, "kling", &headers, &deep).await;
    assert_problem(&response, 400, "invalid_payload");
    let id = task["id"].as_str().unwrap();
    assert_eq!(app.get_job(id, "alice").await, task);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_status_changes_nothing() {
    let app = start_hub().await;
    let before = register_task(&app, "kling", "83").await;
    for status in [
        json!("unknown"),
        json!(7),
        json!("SUCCEEDED"),
        json!("succeeding"),
    ] {
        let body = json!({ "id": "83", "status": status, "outputs": succeeded("83")["outputs"] });
        assert_accepted(&post_kling(&app, "kling", &body).await, true, false);
    }
    let id = before["id"].as_str().unwrap();
    assert_eq!(app.get_job(id, "alice").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_status_triggers_a_poll() {
    let provider = MockProvider::start(|_| async {
        MockResponse::json(200, &json!({ "code": 0, "data": [running("84")] }))
    });
    let provider = provider.await;
    let app = hub_with_kling(&provider.url).spawn().await;
    let id = register_task(&app, "kling", "84").await["id"].clone();
    let body = json!({ "id": "84", "status": "unknown" });
    assert_accepted(&post_kling(&app, "kling", &body).await, true, false);
    let is_running = |job: &Value| job["status"] == "running";
    let job = app
        .wait_for_job(id.as_str().unwrap(), "alice", is_running)
        .await;
    assert_eq!(job["source"], "poll");
}

#[tokio::test(flavor = "multi_thread")]
async fn numeric_task_ids_keep_every_digit() {
    let app = start_hub().await;
    register_task(&app, "generic", "893605946402811985").await;
    let body = json!({ "id": 893_605_946_402_811_985_u64, "status": "COMPLETED", "outputs": ["https://cdn.example.com/a.png"] });
    assert_accepted(&post_generic(&app, &body).await, true, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_body_is_rejected_before_it_is_read() {
    let app = hub_with_kling(UNUSED_URL)
        .set("server.max_body_bytes", 2048)
        .spawn()
        .await;
    register_task(&app, "kling", "84").await;
    let padded = |length: usize| {
        let bare = running("84").to_string();
        format!("{bare}{}", " ".repeat(length - bare.len())).into_bytes()
    };
    let (allowed, oversized) = (padded(2048), padded(2049));
    let headers = |body: &[u8]| {
        webhook_signatures::standard(NEW_SECRET, "a", webhook_signatures::now(), body)
    };
    let response = post_webhook(&app, "kling", &headers(&oversized), &oversized).await;
    assert_problem(&response, 413, "payload_too_large");

    let chunks = oversized
        .chunks(700)
        .map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec()));
    let chunks: Vec<_> = chunks.collect();
    let streamed = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    let mut request = app
        .request_without_token(Method::POST, "/v1/webhooks/kling")
        .body(streamed);
    for (name, value) in headers(&oversized) {
        request = request.header(name, value);
    }
    assert_problem(&send(request).await, 413, "payload_too_large");

    // A Content-Length above the limit is rejected before the client sends a body.
    let mut stream = tokio::net::TcpStream::connect(app.url.trim_start_matches("http://"))
        .await
        .unwrap();
    let head =
        "POST /v1/webhooks/kling HTTP/1.1\r\nhost: hub\r\ncontent-length: 1099511627776\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut response = vec![0; 12];
    let read = tokio::time::timeout(TEST_TIMEOUT, stream.read_exact(&mut response)).await;
    read.expect("timed out waiting for the response").unwrap();
    assert_eq!(response, b"HTTP/1.1 413");

    assert_accepted(
        &post_webhook(&app, "kling", &headers(&allowed), &allowed).await,
        true,
        true,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_sends_all_of_an_oversized_body_receives_413() {
    let app = hub_with_kling(UNUSED_URL)
        .set("server.max_body_bytes", 2048)
        .spawn()
        .await;
    for _ in 0..5 {
        let body = vec![b' '; 8 << 20];
        let mut stream = tokio::net::TcpStream::connect(app.address()).await.unwrap();
        let head = format!(
            "POST /v1/webhooks/kling HTTP/1.1\r\nhost: hub\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let exchange = async {
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&body).await?;
            let mut response = [0; 12];
            stream.read_exact(&mut response).await?;
            Ok::<_, std::io::Error>(response)
        };
        let response = tokio::time::timeout(TEST_TIMEOUT, exchange).await;
        let response = response.expect("timed out waiting for the response");
        assert_eq!(&response.expect("no response"), b"HTTP/1.1 413");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_returns_503_with_retry_after_while_store_is_down() {
    let app = start_hub().await;
    let id = register_task(&app, "kling", "85").await["id"].clone();
    let id = id.as_str().unwrap();
    let locked = rusqlite::Connection::open(app.database_path()).unwrap();
    locked.execute_batch("BEGIN IMMEDIATE").unwrap();
    for task in ["85", "unknown"] {
        let response = post_kling(&app, "kling", &running(task)).await;
        assert_problem(&response, 503, "store_unavailable");
        assert_eq!(response.body["retryable"], true);
        let wait: u64 = response.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((1..=60).contains(&wait));
    }
    assert_eq!(app.get_job(id, "alice").await["status"], "queued");
    locked.execute_batch("ROLLBACK").unwrap();
    assert_accepted(&post_kling(&app, "kling", &running("85")).await, true, true);
    let response = post_kling(&app, "kling", &running("unknown")).await;
    assert_accepted(&response, false, false);
}

#[tokio::test(flavor = "multi_thread")]
async fn unsigned_webhook_only_triggers_a_poll() {
    let provider = MockProvider::start(|request: RecordedRequest| async move {
        let is_known = request.path.contains("task_ids=86");
        let tasks = if is_known {
            json!([running("86")])
        } else {
            json!([])
        };
        MockResponse::json(200, &json!({ "code": 0, "data": tasks }))
    });
    let provider = provider.await;
    // If the hub gives the provider a callback URL, webhooks without its token trigger no poll.
    let app = TestApp::builder()
        .unset("server.public_url")
        .set("providers.bare.spec", "kling")
        .set("providers.bare.base_url", &provider.url)
        .set("providers.bare.api_key", "a key")
        .spawn()
        .await;
    let id = register_task(&app, "bare", "86").await["id"].clone();
    let forged_success = succeeded("86").to_string();
    let response = post_webhook(&app, "bare", &Vec::new(), forged_success.as_bytes()).await;
    assert_accepted(&response, true, false);
    let job = app
        .wait_for_job(id.as_str().unwrap(), "alice", |job| job["version"] == 2)
        .await;
    assert_eq!(job["status"], "running");
    assert_eq!(job["source"], "poll");

    let unknown = running("unknown").to_string();
    let response = post_webhook(&app, "bare", &Vec::new(), unknown.as_bytes()).await;
    assert_accepted(&response, false, false);
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_triggered_by_unverified_webhooks_are_limited() {
    for (gives_callback_urls, max_polls) in [(false, 3), (true, 0)] {
        let provider = MockProvider::start(|_| async {
            MockResponse::json(200, &json!({ "code": 0, "data": [] }))
        });
        let provider = provider.await;
        let mut hub = TestApp::builder()
            .set("providers.bare.spec", "kling")
            .set("providers.bare.base_url", &provider.url)
            .set("providers.bare.api_key", "a key")
            .set("providers.bare.poll_after", "1h")
            .set("providers.bare.poll_every", "1h")
            .set("providers.bare.deadline", "2h")
            .set("providers.bare.unverified_polls_per_minute", 3);
        if !gives_callback_urls {
            hub = hub.unset("server.public_url");
        }
        let app = hub.spawn().await;
        for n in 0..10 {
            let task = format!("task-{n}");
            register_task(&app, "bare", &task).await;
            let forged = succeeded(&task).to_string();
            let response = post_webhook(&app, "bare", &Vec::new(), forged.as_bytes()).await;
            assert_accepted(&response, !gives_callback_urls, false);
        }
        let suppressed = app
            .metric("webhook_polls_suppressed_total{provider=\"bare\"}")
            .await;
        assert_eq!(suppressed, f64::from(10 - max_polls));
        if max_polls > 0 {
            provider.wait_for_requests(|all| !all.is_empty()).await;
        }
        let polled = provider.requests();
        let polled = polled.iter().map(|it| it.path.matches("task-").count());
        assert!(polled.sum::<usize>() <= max_polls as usize);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_webhook_report_is_truncated() {
    let app = start_hub().await;
    let id = register_task(&app, "generic", "90").await["id"].clone();
    let long = "x".repeat(900_000);
    let body = json!({ "id": "90", "status": "running", "stage": long });
    assert_accepted(&post_generic(&app, &body).await, true, true);
    let job = app.get_job(id.as_str().unwrap(), "alice").await;
    assert_eq!(job["stage"].as_str().unwrap().len(), 200);
    let half = "x".repeat(400_000);
    let body = json!({ "id": "90", "status": "failed", "message": half, "error_code": half });
    assert_accepted(&post_generic(&app, &body).await, true, true);
    let job = app.get_job(id.as_str().unwrap(), "alice").await;
    assert!(
        job.to_string().len() < 4096,
        "{} bytes",
        job.to_string().len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn success_without_outputs_is_confirmed_by_a_poll() {
    let provider = MockProvider::start(|_| async {
        MockResponse::json(200, &json!({ "code": 0, "data": [succeeded("87")] }))
    });
    let provider = provider.await;
    let app = hub_with_kling(&provider.url).spawn().await;
    let id = register_task(&app, "kling", "87").await["id"].clone();
    let without_outputs = json!({ "id": "87", "status": "succeeded", "message": "" });
    assert_accepted(
        &post_kling(&app, "kling", &without_outputs).await,
        true,
        false,
    );
    let job = app.wait_until_final(id.as_str().unwrap(), "alice").await;
    assert_eq!(
        (&job["status"], &job["source"]),
        (&json!("succeeded"), &json!("poll"))
    );
    assert_eq!(job["outputs"].as_array().unwrap().len(), 1);
    assert_eq!(job["error"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn success_without_outputs_is_accepted_without_polling_support() {
    let app = start_hub().await;
    let id = register_task(&app, "generic", "88").await["id"].clone();
    let body = json!({ "task_id": "88", "status": "succeeded" });
    assert_accepted(&post_generic(&app, &body).await, true, true);
    let job = app.get_job(id.as_str().unwrap(), "alice").await;
    assert_eq!(
        (&job["status"], &job["error"]),
        (&json!("succeeded"), &Value::Null)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_webhooks_are_applied_one_by_one() {
    let app = TestApp::builder()
        .with_simulator(Scenario::Normal)
        .spawn()
        .await;
    let id = register_task(&app, "generic", "89").await["id"].clone();
    let requests = (1..=40).map(|percent| {
        let app = &app;
        async move {
            let body = json!({ "task_id": "89", "status": "running", "progress": percent });
            let response = post_generic(app, &body).await;
            assert_eq!(response.status, 200, "{}", response.body);
            u64::from(response.body["applied"] == true)
        }
    });
    let applied: u64 = futures_util::future::join_all(requests).await.iter().sum();
    let job = app.get_job(id.as_str().unwrap(), "alice").await;
    assert_eq!(job["progress"], 40.0);
    assert_eq!(job["version"], 1 + applied);
}
