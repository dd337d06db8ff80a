//! What providers say of their tasks: proven, applied once, never lost, and never believed from a
//! stranger.

use std::sync::Arc;

use progress_hub_simulator::Scenario;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::app::{TEST_TIMEOUT, TestApp, TestAppBuilder, TestResponse, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};
use crate::webhook_signatures::{self, Headers};

const OLD_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW_SECRET: &str = "whsec_dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI=";
const GENERIC_SECRET: &str = "hub_test_secret";

/// Discards what is sent to it.
const NOBODY: &str = "http://127.0.0.1:9";

fn with_kling(provider_url: &str) -> TestAppBuilder {
    TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", provider_url)
        .set("providers.kling.api_key", "a key")
        .set(
            "providers.kling.webhook_secrets",
            format!("{OLD_SECRET},{NEW_SECRET}"),
        )
}

async fn hub() -> TestApp {
    with_kling(NOBODY).spawn().await
}

/// A job of alice's that was submitted elsewhere.
async fn job_of_task(app: &TestApp, provider: &str, task: &str) -> Value {
    let worker = app.token("worker", "jobs:publish");
    let body = json!({ "provider": provider, "provider_task_id": task, "owner": "alice" });
    let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
    let answer = send(request.json(&body)).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    answer.body
}

async fn hook(app: &TestApp, path: &str, headers: &Headers, body: &[u8]) -> TestResponse {
    let mut request = app.request_without_token(Method::POST, &format!("/v1/webhooks/{path}"));
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    send(request.body(body.to_vec())).await
}

async fn kling_says(app: &TestApp, path: &str, body: &Value) -> TestResponse {
    let body = body.to_string();
    let headers =
        webhook_signatures::standard(NEW_SECRET, "1", webhook_signatures::now(), body.as_bytes());
    hook(app, path, &headers, body.as_bytes()).await
}

async fn generic_says(app: &TestApp, body: &Value) -> TestResponse {
    let body = body.to_string();
    let signature = webhook_signatures::hex(GENERIC_SECRET, body.as_bytes());
    let headers = vec![("x-ai-signature", signature)];
    hook(app, "generic", &headers, body.as_bytes()).await
}

#[track_caller]
fn assert_taken(answer: &TestResponse, matched: bool, applied: bool) {
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(
        answer.body,
        json!({ "matched": matched, "applied": applied })
    );
}

#[track_caller]
fn assert_problem(answer: &TestResponse, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.body);
    assert_eq!(answer.body["code"], code, "{}", answer.body);
    assert_eq!(answer.body["status"], status);
    assert_eq!(answer.headers["content-type"], "application/problem+json");
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
    let app = hub().await;
    let id = job_of_task(&app, "kling", "71").await["id"].clone();
    let id = id.as_str().unwrap();
    assert_taken(&kling_says(&app, "kling", &running("71")).await, true, true);
    assert_taken(
        &kling_says(&app, "kling", &running("71")).await,
        true,
        false,
    );
    let job = app.get_job(id, "alice").await;
    assert_eq!(
        (&job["status"], &job["version"]),
        (&json!("running"), &json!(2))
    );
    assert_eq!(job["source"], "webhook");

    assert_taken(
        &kling_says(&app, "kling", &succeeded("71")).await,
        true,
        true,
    );
    let ended = app.get_job(id, "alice").await;
    assert_eq!(ended["status"], "succeeded");
    assert_eq!(ended["progress"], 100.0);
    let output = &ended["outputs"][0];
    assert_eq!(output["url"], "https://cdn.example.com/a.mp4");
    assert_eq!(output["duration"], 5.041);

    for late in [running("71"), succeeded("71")] {
        assert_taken(&kling_says(&app, "kling", &late).await, true, false);
    }
    assert_eq!(app.get_job(id, "alice").await, ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hex_signature_counts_in_either_case_and_with_its_prefix() {
    let app = hub().await;
    for (task, dress) in [
        ("lower", (|hex: String| hex) as fn(String) -> String),
        ("upper", |hex| hex.to_uppercase()),
        ("prefixed", |hex| format!("sha256={hex}")),
        ("prefixed-upper", |hex| {
            format!("sha256={}", hex.to_uppercase())
        }),
    ] {
        job_of_task(&app, "generic", task).await;
        let body = json!({ "task_id": task, "status": "processing", "progress": 12 }).to_string();
        let signature = dress(webhook_signatures::hex(GENERIC_SECRET, body.as_bytes()));
        let headers = vec![("x-ai-signature", signature)];
        let answer = hook(&app, "generic", &headers, body.as_bytes()).await;
        assert_taken(&answer, true, true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_keys_rotate_either_secret_and_any_signature_of_a_list_counts() {
    let app = hub().await;
    job_of_task(&app, "kling", "72").await;
    let news = |n: u32| json!({ "id": "72", "status": "processing", "progress": n }).to_string();
    for (n, secret) in [(1, OLD_SECRET), (2, NEW_SECRET)] {
        let body = news(n);
        let headers =
            webhook_signatures::standard(secret, "a", webhook_signatures::now(), body.as_bytes());
        let answer = hook(&app, "kling", &headers, body.as_bytes()).await;
        assert_taken(&answer, true, true);
    }
    let (body, now) = (news(3), webhook_signatures::now());
    let stranger = "whsec_c3RyYW5nZXJzdHJhbmdlcnN0cmFuZ2Vyc3RyYW5nZXI=";
    let sign = |secret| webhook_signatures::standard_signature(secret, "a", now, body.as_bytes());
    let listed = format!("v9,anything v1,!!! {} {}", sign(stranger), sign(OLD_SECRET));
    let mut headers = webhook_signatures::standard(NEW_SECRET, "a", now, body.as_bytes());
    headers[2].1 = listed;
    let answer = hook(&app, "kling", &headers, body.as_bytes()).await;
    assert_taken(&answer, true, true);

    headers[2].1 = sign(stranger);
    let answer = hook(&app, "kling", &headers, body.as_bytes()).await;
    assert_problem(&answer, 401, "invalid_signature");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timestamp_counts_within_five_minutes_either_way() {
    let app = hub().await;
    job_of_task(&app, "kling", "73").await;
    let body = running("73").to_string();
    for (offset, status) in [(-310, 401), (310, 401), (-280, 200), (280, 200)] {
        let when = webhook_signatures::now() + offset;
        let headers = webhook_signatures::standard(NEW_SECRET, "a", when, body.as_bytes());
        let answer = hook(&app, "kling", &headers, body.as_bytes()).await;
        assert_eq!(answer.status, status, "{offset}: {}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tampered_webhook_returns_401_and_changes_nothing() {
    let app = hub().await;
    let before = job_of_task(&app, "kling", "74").await;
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
        let answer = hook(&app, "kling", &headers, &tampered).await;
        assert_problem(&answer, 401, "invalid_signature");
    }
    for header in 0..headers.len() {
        for at in 0..headers[header].1.len() {
            let mut tampered = headers.clone();
            tampered[header].1 = flip(&tampered[header].1, at);
            let answer = hook(&app, "kling", &tampered, &body).await;
            assert_eq!(answer.status, 401, "{tampered:?}: {}", answer.body);
        }
    }
    for header in 0..headers.len() {
        let mut fewer = headers.clone();
        fewer.remove(header);
        let answer = hook(&app, "kling", &fewer, &body).await;
        assert_problem(&answer, 401, "invalid_signature");
    }
    let id = before["id"].as_str().unwrap();
    assert_eq!(app.get_job(id, "alice").await, before);
    assert_taken(&hook(&app, "kling", &headers, &body).await, true, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generic_webhook_without_its_signature_or_with_another_is_refused() {
    let app = hub().await;
    job_of_task(&app, "generic", "t").await;
    let body = json!({ "task_id": "t", "status": "running" }).to_string();
    let good = webhook_signatures::hex(GENERIC_SECRET, body.as_bytes());
    let wrong = [
        None,
        Some(String::new()),
        Some("sha256=".to_owned()),
        Some(good[..62].to_owned()),
        Some(format!("{good}00")),
        Some(format!("md5={good}")),
        Some(webhook_signatures::hex("another secret", body.as_bytes())),
    ];
    for signature in wrong {
        let headers = signature.map(|it| ("x-ai-signature", it));
        let headers: Headers = headers.into_iter().collect();
        let answer = hook(&app, "generic", &headers, body.as_bytes()).await;
        assert_problem(&answer, 401, "invalid_signature");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_never_told_in_a_refusal() {
    let app = hub().await;
    let body = running("75").to_string();
    let headers = webhook_signatures::standard(OLD_SECRET, "a", 1, body.as_bytes());
    let answer = hook(&app, "kling", &headers, body.as_bytes()).await;
    let said = answer.body.to_string();
    for secret in [OLD_SECRET, NEW_SECRET, &headers[2].1] {
        assert!(!said.contains(secret), "{said}");
    }
}

/// A stand-in for Kling that answers submissions only when it is told to, with this task.
async fn hesitant(task: &'static str) -> (MockProvider, Arc<Notify>) {
    let go = Arc::new(Notify::new());
    let told = Arc::clone(&go);
    let provider = MockProvider::start(move |asked: RecordedRequest| {
        let told = Arc::clone(&told);
        async move {
            if asked.method == "GET" {
                return MockResponse::json(200, &json!({ "code": 0, "data": [] }));
            }
            told.notified().await;
            let task = json!({ "id": task, "status": "submitted" });
            MockResponse::json(
                200,
                &json!({ "code": 0, "message": "SUCCEED", "data": task }),
            )
        }
    });
    (provider.await, go)
}

/// Submits a job of alice's to `kling`.
async fn submitted(app: &TestApp) -> String {
    let body = json!({ "provider": "kling", "model": "kling-v3", "prompt": "a lighthouse" });
    let request = app.request(Method::POST, "/v1/videos", "alice");
    let answer = send(request.json(&body)).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    answer.body["id"].as_str().unwrap().to_owned()
}

fn submissions(asked: &[RecordedRequest]) -> Vec<&RecordedRequest> {
    let is_submission = |asked: &&RecordedRequest| asked.method == "POST";
    asked.iter().filter(is_submission).collect()
}

/// The path, below `/v1/webhooks/`, of the callback that the provider was given.
async fn callback(provider: &MockProvider) -> String {
    let is_there = |all: &[RecordedRequest]| !submissions(all).is_empty();
    let asked = provider.wait_for_requests(is_there).await;
    let url = &submissions(&asked)[0].body["options"]["callback_url"];
    let url = url.as_str().unwrap();
    url.split_once("/v1/webhooks/").unwrap().1.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn early_webhook_matches_by_callback_token() {
    let (provider, go) = hesitant("76").await;
    let app = with_kling(&provider.url).spawn().await;
    let id = submitted(&app).await;
    let path = callback(&provider).await;
    assert_taken(&kling_says(&app, &path, &running("76")).await, true, true);
    let job = app.get_job(&id, "alice").await;
    assert_eq!(job["status"], "running");
    assert_eq!(job["provider_task_id"], "76");
    go.notify_one();
    // The answer comes too late to tell anything; the end does not.
    assert_taken(&kling_says(&app, &path, &succeeded("76")).await, true, true);
    assert_eq!(app.wait_until_final(&id, "alice").await["version"], 4);
    assert_eq!(submissions(&provider.requests()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_for_unknown_task_is_buffered_until_the_submit_response() {
    let (provider, go) = hesitant("77").await;
    let app = with_kling(&provider.url).spawn().await;
    let id = submitted(&app).await;
    callback(&provider).await;
    let answer = kling_says(&app, "kling", &succeeded("77")).await;
    assert_taken(&answer, false, false);
    assert_eq!(app.get_job(&id, "alice").await["status"], "accepted");
    go.notify_one();
    let job = app.wait_until_final(&id, "alice").await;
    assert_eq!(job["status"], "succeeded");
    assert_eq!(job["provider_task_id"], "77");
}

#[tokio::test(flavor = "multi_thread")]
async fn news_of_an_unknown_task_waits_for_its_registration() {
    let app = hub().await;
    for news in [running("78"), succeeded("78"), running("78")] {
        assert_taken(&kling_says(&app, "kling", &news).await, false, false);
    }
    // Another provider's task of the same name is another task.
    let other = job_of_task(&app, "generic", "78").await;
    assert_eq!(other["status"], "queued");
    let job = job_of_task(&app, "kling", "78").await;
    assert_eq!(job["status"], "succeeded", "{job}");
    assert_eq!(job["outputs"][0]["type"], "video");
    assert_taken(
        &kling_says(&app, "kling", &succeeded("78")).await,
        true,
        false,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hubs_own_name_for_a_task_finds_its_job_too() {
    let (provider, _go) = hesitant("79").await;
    let app = with_kling(&provider.url).spawn().await;
    let id = submitted(&app).await;
    callback(&provider).await;
    let news = json!({ "id": "79", "status": "processing", "external_id": id });
    assert_taken(&kling_says(&app, "kling", &news).await, true, true);
    assert_eq!(app.get_job(&id, "alice").await["status"], "running");

    // News of another task under the same name is not this job's.
    let news = json!({ "id": "80", "status": "failed", "external_id": id });
    assert_taken(&kling_says(&app, "kling", &news).await, true, false);
    assert_eq!(app.get_job(&id, "alice").await["status"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_providers_and_unproven_tokens_are_not_found() {
    let (provider, _go) = hesitant("81").await;
    let app = with_kling(&provider.url).spawn().await;
    let id = submitted(&app).await;
    let path = callback(&provider).await;
    let token = path.strip_prefix("kling/").unwrap();
    let news = running("81");
    assert_problem(&kling_says(&app, "klign", &news).await, 404, "not_found");

    let (job, mac) = token.rsplit_once('.').unwrap();
    for at in [0, mac.len() / 2, mac.len() - 1] {
        let mut flipped = mac.as_bytes().to_vec();
        flipped[at] ^= 1;
        let forged = format!("kling/{job}.{}", String::from_utf8(flipped).unwrap());
        assert_problem(&kling_says(&app, &forged, &news).await, 404, "not_found");
    }
    let other_job = format!("kling/job_01a3c80000007000800000000000000a.{mac}");
    for forged in [other_job.as_str(), "kling/nothing", &format!("kling/{job}")] {
        assert_problem(&kling_says(&app, forged, &news).await, 404, "not_found");
    }

    // The token is good, and good for its own provider only.
    let body = json!({ "task_id": "81", "status": "running" }).to_string();
    let signature = webhook_signatures::hex(GENERIC_SECRET, body.as_bytes());
    let headers = vec![("x-ai-signature", signature)];
    let answer = hook(&app, &format!("generic/{token}"), &headers, body.as_bytes()).await;
    assert_problem(&answer, 404, "not_found");
    assert_eq!(app.get_job(&id, "alice").await["status"], "accepted");

    // A token does not stand in for a signature.
    let answer = hook(&app, &path, &Vec::new(), news.to_string().as_bytes()).await;
    assert_problem(&answer, 401, "invalid_signature");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_providers_shape_is_a_bad_request() {
    let app = hub().await;
    let task = job_of_task(&app, "kling", "82").await;
    let wrong: [&[u8]; 8] = [
        b"",
        b"not json",
        b"{\"id\":\"82\",\"status\":\"processing\"",
        b"\xff\xfe",
        b"[]",
        b"\"82\"",
        b"{\"status\":\"processing\"}",
        b"{\"id\":\"82\"}",
    ];
    for body in wrong {
        let headers =
            webhook_signatures::standard(NEW_SECRET, "a", webhook_signatures::now(), body);
        let answer = hook(&app, "kling", &headers, body).await;
        assert_problem(&answer, 400, "invalid_payload");
    }
    let deep = [b"{\"id\":".repeat(5000), b"1".to_vec(), b"}".repeat(5000)].concat();
    let headers = webhook_signatures::standard(NEW_SECRET, "a", webhook_signatures::now(), &deep);
    let answer = hook(&app, "kling", &headers, &deep).await;
    assert_problem(&answer, 400, "invalid_payload");
    let id = task["id"].as_str().unwrap();
    assert_eq!(app.get_job(id, "alice").await, task);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_status_changes_nothing() {
    let app = hub().await;
    let before = job_of_task(&app, "kling", "83").await;
    for status in [
        json!("resting"),
        json!(7),
        json!("SUCCEEDED"),
        json!("succeeding"),
    ] {
        let news = json!({ "id": "83", "status": status, "outputs": succeeded("83")["outputs"] });
        assert_taken(&kling_says(&app, "kling", &news).await, true, false);
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
    let app = with_kling(&provider.url).spawn().await;
    let id = job_of_task(&app, "kling", "84").await["id"].clone();
    let news = json!({ "id": "84", "status": "resting" });
    assert_taken(&kling_says(&app, "kling", &news).await, true, false);
    let is_running = |job: &Value| job["status"] == "running";
    let job = app
        .wait_for_job(id.as_str().unwrap(), "alice", is_running)
        .await;
    assert_eq!(job["source"], "poll");
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_ids_too_with_every_digit() {
    let app = hub().await;
    job_of_task(&app, "generic", "893605946402811985").await;
    let news = json!({ "id": 893_605_946_402_811_985_u64, "status": "COMPLETED", "outputs": ["https://cdn.example.com/a.png"] });
    assert_taken(&generic_says(&app, &news).await, true, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let app = with_kling(NOBODY)
        .set("server.max_body_bytes", 2048)
        .spawn()
        .await;
    job_of_task(&app, "kling", "84").await;
    let padded = |length: usize| {
        let bare = running("84").to_string();
        format!("{bare}{}", " ".repeat(length - bare.len())).into_bytes()
    };
    let (fits, is_over) = (padded(2048), padded(2049));
    let headers = |body: &[u8]| {
        webhook_signatures::standard(NEW_SECRET, "a", webhook_signatures::now(), body)
    };
    let answer = hook(&app, "kling", &headers(&is_over), &is_over).await;
    assert_problem(&answer, 413, "payload_too_large");

    let chunks = is_over
        .chunks(700)
        .map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec()));
    let chunks: Vec<_> = chunks.collect();
    let streamed = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    let mut request = app
        .request_without_token(Method::POST, "/v1/webhooks/kling")
        .body(streamed);
    for (name, value) in headers(&is_over) {
        request = request.header(name, value);
    }
    assert_problem(&send(request).await, 413, "payload_too_large");

    // Whoever declares a terabyte is refused for the word alone.
    let mut stream = tokio::net::TcpStream::connect(app.url.trim_start_matches("http://"))
        .await
        .unwrap();
    let head =
        "POST /v1/webhooks/kling HTTP/1.1\r\nhost: hub\r\ncontent-length: 1099511627776\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    let read = tokio::time::timeout(TEST_TIMEOUT, stream.read_exact(&mut answer)).await;
    read.expect("an answer in time").unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");

    assert_taken(
        &hook(&app, "kling", &headers(&fits), &fits).await,
        true,
        true,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_a_body_over_the_limit_to_its_end_hears_why_it_is_refused() {
    let app = with_kling(NOBODY)
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
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = tokio::time::timeout(TEST_TIMEOUT, exchange).await;
        let answer = answer.expect("an answer in time");
        assert_eq!(&answer.expect("an answer"), b"HTTP/1.1 413");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_returns_503_with_retry_after_while_store_is_down() {
    let app = hub().await;
    let id = job_of_task(&app, "kling", "85").await["id"].clone();
    let id = id.as_str().unwrap();
    let held = rusqlite::Connection::open(app.database_path()).unwrap();
    held.execute_batch("BEGIN IMMEDIATE").unwrap();
    for task in ["85", "of nobody yet"] {
        let answer = kling_says(&app, "kling", &running(task)).await;
        assert_problem(&answer, 503, "store_unavailable");
        assert_eq!(answer.body["retryable"], true);
        let wait: u64 = answer.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((1..=60).contains(&wait));
    }
    assert_eq!(app.get_job(id, "alice").await["status"], "queued");
    held.execute_batch("ROLLBACK").unwrap();
    assert_taken(&kling_says(&app, "kling", &running("85")).await, true, true);
    let answer = kling_says(&app, "kling", &running("of nobody yet")).await;
    assert_taken(&answer, false, false);
}

#[tokio::test(flavor = "multi_thread")]
async fn unsigned_webhook_only_triggers_a_poll() {
    let provider = MockProvider::start(|asked: RecordedRequest| async move {
        let known = asked.path.contains("task_ids=86");
        let tasks = if known {
            json!([running("86")])
        } else {
            json!([])
        };
        MockResponse::json(200, &json!({ "code": 0, "data": tasks }))
    });
    let provider = provider.await;
    let app = TestApp::builder()
        .set("providers.bare.spec", "kling")
        .set("providers.bare.base_url", &provider.url)
        .set("providers.bare.api_key", "a key")
        .spawn()
        .await;
    let id = job_of_task(&app, "bare", "86").await["id"].clone();
    let lie = succeeded("86").to_string();
    let answer = hook(&app, "bare", &Vec::new(), lie.as_bytes()).await;
    assert_taken(&answer, true, false);
    let job = app
        .wait_for_job(id.as_str().unwrap(), "alice", |job| job["version"] == 2)
        .await;
    assert_eq!(job["status"], "running");
    assert_eq!(job["source"], "poll");

    let unknown = running("of nobody").to_string();
    let answer = hook(&app, "bare", &Vec::new(), unknown.as_bytes()).await;
    assert_taken(&answer, false, false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_without_outputs_is_read_before_it_counts() {
    let provider = MockProvider::start(|_| async {
        MockResponse::json(200, &json!({ "code": 0, "data": [succeeded("87")] }))
    });
    let provider = provider.await;
    let app = with_kling(&provider.url).spawn().await;
    let id = job_of_task(&app, "kling", "87").await["id"].clone();
    let thin = json!({ "id": "87", "status": "succeeded", "message": "" });
    assert_taken(&kling_says(&app, "kling", &thin).await, true, false);
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
    let app = hub().await;
    let id = job_of_task(&app, "generic", "88").await["id"].clone();
    let news = json!({ "task_id": "88", "status": "succeeded" });
    assert_taken(&generic_says(&app, &news).await, true, true);
    let job = app.get_job(id.as_str().unwrap(), "alice").await;
    assert_eq!(
        (&job["status"], &job["error"]),
        (&json!("succeeded"), &Value::Null)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_that_race_each_other_are_counted_one_by_one() {
    let app = TestApp::builder()
        .with_simulator(Scenario::Normal)
        .spawn()
        .await;
    let id = job_of_task(&app, "generic", "89").await["id"].clone();
    let told = (1..=40).map(|percent| {
        let app = &app;
        async move {
            let news = json!({ "task_id": "89", "status": "running", "progress": percent });
            let answer = generic_says(app, &news).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            u64::from(answer.body["applied"] == true)
        }
    });
    let applied: u64 = futures_util::future::join_all(told).await.iter().sum();
    let job = app.get_job(id.as_str().unwrap(), "alice").await;
    assert_eq!(job["progress"], 40.0);
    assert_eq!(job["version"], 1 + applied);
}
