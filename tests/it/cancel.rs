//! Cancellation over HTTP and WebSocket, before and after submission.

use std::sync::Arc;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::{Barrier, Notify};

use crate::app::{TestApp, TestResponse, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};

async fn cancel(app: &TestApp, id: &str, sub: &str) -> TestResponse {
    send(app.request(Method::POST, &format!("/v1/jobs/{id}/cancel"), sub)).await
}

/// Returns whether `sub` can cancel a job, and the reason if not.
async fn cancellable(app: &TestApp, id: &str, sub: &str) -> Value {
    let response = send(app.request(Method::GET, &format!("/v1/jobs/{id}/cancel"), sub)).await;
    assert_eq!(response.status, 200, "{}", response.body);
    response.body
}

#[track_caller]
fn assert_problem(response: &TestResponse, status: u16, code: &str) {
    assert_eq!(response.status, status, "{}", response.body);
    assert_eq!(response.body["code"], code);
}

async fn submit(app: &TestApp, provider: &str) -> String {
    let body = json!({ "provider": provider, "model": "m-1", "prompt": "a lighthouse" });
    let request = app.request(Method::POST, "/v1/videos", "alice");
    let response = send(request.json(&body)).await;
    assert_eq!(response.status, 202, "{}", response.body);
    response.body["id"].as_str().unwrap().to_owned()
}

/// Starts a mock Kling that accepts every job, and a hub with one concurrency slot for it.
async fn start_with_one_slot() -> (MockProvider, TestApp) {
    let provider = MockProvider::start(|request: RecordedRequest| async move {
        let name = request.body["options"]["external_task_id"].clone();
        MockResponse::json(
            200,
            &json!({ "code": 0, "data": { "id": name, "status": "submitted" } }),
        )
    })
    .await;
    let app = TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", &provider.url)
        .set("providers.kling.api_key", "a key")
        .set(
            "providers.kling.webhook_secrets",
            crate::app::WEBHOOK_SECRET,
        )
        .set("providers.kling.max_concurrent", 1)
        .spawn()
        .await;
    (provider, app)
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_a_job_waiting_for_a_slot_never_submits_it() {
    let (provider, app) = start_with_one_slot().await;
    let first = submit(&app, "kling").await;
    app.wait_for_job(&first, "alice", |job| job["status"] == "queued")
        .await;
    let (by_http, by_socket, remaining) = (
        submit(&app, "kling").await,
        submit(&app, "kling").await,
        submit(&app, "kling").await,
    );
    let response = cancel(&app, &by_http, "alice").await;
    assert_eq!(response.status, 202, "{}", response.body);
    let job = &response.body;
    assert_eq!(
        (&job["status"], &job["final"]),
        (&json!("cancelled"), &json!(true))
    );
    assert_eq!(
        (&job["source"], &job["attempt"]),
        (&json!("api"), &json!(0))
    );
    assert_eq!(app.get_job(&by_http, "alice").await, *job);

    let mut socket = app.connect("alice").await;
    socket.subscribe(&[(by_socket.as_str(), 1)]).await;
    socket
        .send_json(json!({ "type": "cancel", "id": 4, "job": by_socket }))
        .await;
    let job = socket.follow_to_final(&by_socket).await;
    assert_eq!(job["status"], "cancelled");

    // The released slot goes to the job that was not cancelled.
    let body = json!({ "id": first, "status": "failed", "message": "no" }).to_string();
    let now = crate::webhook_signatures::now();
    let mut webhook = app.request_without_token(Method::POST, "/v1/webhooks/kling");
    for (name, value) in
        crate::webhook_signatures::standard(crate::app::WEBHOOK_SECRET, "1", now, body.as_bytes())
    {
        webhook = webhook.header(name, value);
    }
    assert_eq!(send(webhook.body(body)).await.body["applied"], true);
    app.wait_for_job(&remaining, "alice", |job| job["status"] == "queued")
        .await;
    let sent: Vec<Value> = provider
        .requests()
        .iter()
        .filter(|request| request.method == "POST")
        .map(|request| request.body["options"]["external_task_id"].clone())
        .collect();
    assert_eq!(sent, [json!(first), json!(remaining)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_a_job_waiting_for_retry_is_immediate() {
    let provider = MockProvider::start(|_| async {
        MockResponse::json(429, &json!({ "code": 1302, "message": "busy" }))
            .with_header("retry-after", 60)
    })
    .await;
    let app = TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", &provider.url)
        .set("providers.kling.api_key", "a key")
        .spawn()
        .await;
    let id = submit(&app, "kling").await;
    app.wait_for_job(&id, "alice", |job| !job["next_attempt_at"].is_null())
        .await;
    let response = cancel(&app, &id, "alice").await;
    assert_eq!(response.status, 202, "{}", response.body);
    let job = &response.body;
    assert_eq!(
        (&job["status"], &job["error"]),
        (&json!("cancelled"), &Value::Null)
    );
    assert_eq!(job["next_attempt_at"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn uncancellable_job_returns_409_unchanged() {
    let (_provider, app) = start_with_one_slot().await;
    let id = submit(&app, "kling").await;
    let job = app
        .wait_for_job(&id, "alice", |job| job["status"] == "queued")
        .await;
    assert_problem(&cancel(&app, &id, "alice").await, 409, "not_cancellable");
    assert_problem(&cancel(&app, &id, "bob").await, 404, "not_found");
    assert_problem(
        &cancel(&app, "job_nothing", "alice").await,
        404,
        "not_found",
    );
    let path = format!("/v1/jobs/{id}/cancel");
    let reader = app.token("alice", "jobs:read");
    let response = send(app.request_with_token(Method::POST, &path, &reader)).await;
    assert_problem(&response, 403, "forbidden");
    assert_problem(
        &send(app.request_without_token(Method::POST, &path)).await,
        401,
        "unauthorized",
    );

    let mut socket = app.connect("alice").await;
    for (what, code) in [
        (id.as_str(), "not_cancellable"),
        ("job_nothing", "not_found"),
    ] {
        socket
            .send_json(json!({ "type": "cancel", "id": what, "job": what }))
            .await;
        let error = socket.expect_message("error").await;
        assert_eq!((&error["id"], &error["code"]), (&json!(what), &json!(code)));
    }
    assert_eq!(app.get_job(&id, "alice").await, job);
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_whether_a_job_can_be_cancelled_agrees_with_the_cancellation() {
    let (_provider, app) = start_with_one_slot().await;
    let not = |reason: &str| json!({ "cancellable": false, "reason": reason });
    let possible = json!({ "cancellable": true, "reason": null });
    let submitted = submit(&app, "kling").await;
    app.wait_for_job(&submitted, "alice", |job| job["status"] == "queued")
        .await;
    let unsupported = "the provider does not support cancelling this job";
    assert_eq!(
        cancellable(&app, &submitted, "alice").await,
        not(unsupported)
    );

    let waiting = submit(&app, "kling").await;
    assert_eq!(cancellable(&app, &waiting, "alice").await, possible);
    let path = format!("/v1/jobs/{waiting}/cancel");
    let reader = app.token("alice", "jobs:read");
    let response = send(app.request_with_token(Method::GET, &path, &reader)).await;
    let scope = "this request requires a token with the scope jobs:write";
    assert_eq!(response.body, not(scope));
    let response = send(app.request(Method::GET, &path, "bob")).await;
    assert_problem(&response, 404, "not_found");
    assert_eq!(cancel(&app, &waiting, "alice").await.status, 202);
    assert_eq!(
        cancellable(&app, &waiting, "alice").await,
        not("the job is already final")
    );

    let of_worker = app.register_worker_job("alice").await;
    assert_eq!(cancellable(&app, &of_worker, "alice").await, possible);
}

#[tokio::test(flavor = "multi_thread")]
async fn job_being_submitted_cannot_be_cancelled() {
    let provider = MockProvider::start(|_| std::future::pending()).await;
    let app = TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", &provider.url)
        .set("providers.kling.api_key", "a key")
        .spawn()
        .await;
    let id = submit(&app, "kling").await;
    provider.wait_for_requests(|all| all.len() == 1).await;
    assert_problem(&cancel(&app, &id, "alice").await, 409, "not_cancellable");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_a_worker_job_makes_its_next_push_return_409() {
    let app = TestApp::spawn().await;
    let id = app.register_worker_job("alice").await;
    assert_eq!(
        app.push_update(&id, json!({ "progress": 10 })).await.status,
        200
    );
    let response = cancel(&app, &id, "alice").await;
    assert_eq!(response.status, 202, "{}", response.body);
    assert_eq!(response.body["status"], "cancelled");
    let push = app.push_update(&id, json!({ "progress": 20 })).await;
    assert_problem(&push, 409, "job_final");
    assert_eq!(app.get_job(&id, "alice").await["status"], "cancelled");
    assert_problem(&cancel(&app, &id, "alice").await, 409, "not_cancellable");
}

const SPEC: &str = r#"
title = "A provider that can cancel"
requires = ["api_key", "base_url", "webhook_secrets"]
headers = { x-key = "{{ api_key }}" }
poll_after = "1h"

[signature]
scheme = "hmac"
header = "x-test-signature"
encoding = "hex"
signed = "{body}"

[submit]
url = "{{ base_url }}/tasks"
body = "{'prompt': prompt}"
item = "payload"

[poll]
url = "{{ base_url }}/tasks/{{ task_id }}"
items = "payload"

[cancel]
method = "DELETE"
url = "{{ base_url }}/tasks/{{ task_id }}"
item = "{'id': task_id, 'state': 'stopped'} if http == 204 else payload.task"

[read]
task_id = "payload.id"
status = "payload.state"
outputs = "payload.file"
statuses = { waiting = "queued", done = "succeeded", stopped = "cancelled" }
"#;

const SECRET: &str = "the webhook secret";

fn task(state: &str) -> Value {
    json!({ "id": "t1", "state": state })
}

fn finished() -> Value {
    json!({ "id": "t1", "state": "done", "file": "https://cdn.example.com/a.mp4" })
}

/// Starts a mock provider that accepts one job and calls `respond` for cancel requests and polls, and
/// a hub with that job.
async fn start_cancellable<F, R>(respond: F) -> (MockProvider, TestApp, String)
where
    F: Fn(RecordedRequest) -> R + Send + Sync + 'static,
    R: Future<Output = MockResponse> + 'static,
{
    let provider = MockProvider::start(move |request: RecordedRequest| {
        let later = (request.method != "POST").then(|| respond(request));
        async move {
            match later {
                Some(later) => later.await,
                None => MockResponse::json(201, &task("waiting")),
            }
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let spec = folder.path().join("cancellable.toml");
    std::fs::write(&spec, SPEC).unwrap();
    let app = TestApp::builder()
        .set("providers.cancellable.spec", spec.display())
        .set("providers.cancellable.base_url", &provider.url)
        .set("providers.cancellable.api_key", "the key")
        .set("providers.cancellable.webhook_secrets", SECRET)
        .spawn()
        .await;
    let id = submit(&app, "cancellable").await;
    app.wait_for_job(&id, "alice", |job| job["status"] == "queued")
        .await;
    (provider, app, id)
}

async fn send_webhook(app: &TestApp, webhook: &Value) -> TestResponse {
    let body = webhook.to_string();
    let signature = crate::webhook_signatures::hex(SECRET, body.as_bytes());
    let request = app.request_without_token(Method::POST, "/v1/webhooks/cancellable");
    send(request.header("x-test-signature", signature).body(body)).await
}

fn methods_after_submit(provider: &MockProvider) -> Vec<String> {
    let requests = provider.requests();
    let after_submit = requests.iter().skip(1);
    after_submit.map(|request| request.method.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_cancel_ends_the_job_once_the_provider_confirms() {
    let (provider, app, id) = start_cancellable(|request| async move {
        match request.method.as_str() {
            "DELETE" => MockResponse::json(202, &json!({ "note": "accepted" })),
            _ => MockResponse::json(200, &task("stopped")),
        }
    })
    .await;
    let response = cancel(&app, &id, "alice").await;
    assert_eq!(response.status, 202, "{}", response.body);
    assert_eq!(response.body["id"], id);
    let job = app.wait_until_final(&id, "alice").await;
    assert_eq!(
        (&job["status"], &job["source"]),
        (&json!("cancelled"), &json!("poll"))
    );
    let requests = provider.requests();
    assert_eq!(requests[1].path, "/tasks/t1");
    assert_eq!(requests[1].header("x-key"), Some("the key"));
    assert_eq!(methods_after_submit(&provider), ["DELETE", "GET"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_response_with_final_status_ends_the_job() {
    for provider_response in [
        MockResponse::text(204, ""),
        MockResponse::json(200, &json!({ "task": task("stopped") })),
    ] {
        for by_socket in [false, true] {
            let provider_response = provider_response.clone();
            let (provider, app, id) = start_cancellable(move |_| {
                let provider_response = provider_response.clone();
                async move { provider_response }
            })
            .await;
            let job = if by_socket {
                let mut socket = app.connect("alice").await;
                socket.subscribe(&[(id.as_str(), 1)]).await;
                socket
                    .send_json(json!({ "type": "cancel", "id": 4, "job": id }))
                    .await;
                socket.follow_to_final(&id).await
            } else {
                let response = cancel(&app, &id, "alice").await;
                assert_eq!(response.status, 202, "{}", response.body);
                response.body
            };
            assert_eq!(
                (&job["status"], &job["source"]),
                (&json!("cancelled"), &json!("api"))
            );
            assert_eq!(methods_after_submit(&provider), ["DELETE"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_response_without_final_status_triggers_a_poll() {
    for cancel_body in [
        json!({ "task": { "id": "t2", "state": "stopped" } }),
        json!({ "task": task("waiting") }),
        json!({ "task": task("stopping") }),
        json!("fine"),
    ] {
        let (provider, app, id) = start_cancellable(move |request| {
            let cancel_body = cancel_body.clone();
            async move {
                match request.method.as_str() {
                    "DELETE" => MockResponse::json(200, &cancel_body),
                    _ => MockResponse::json(200, &task("waiting")),
                }
            }
        })
        .await;
        let response = cancel(&app, &id, "alice").await;
        assert_eq!(response.status, 202, "{}", response.body);
        assert_eq!(response.body["status"], "queued");
        provider
            .wait_for_requests(|requests| requests.len() == 3)
            .await;
        assert_eq!(app.get_job(&id, "alice").await["status"], "queued");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_cancel_polls_the_task_for_the_reason() {
    for (status, state, ends) in [
        (400, finished(), "succeeded"),
        (404, task("stopped"), "cancelled"),
        (409, task("waiting"), "queued"),
    ] {
        let (provider, app, id) = start_cancellable(move |request| {
            let state = state.clone();
            async move {
                match request.method.as_str() {
                    "DELETE" => MockResponse::json(status, &json!({ "reason": "internal detail" })),
                    _ => MockResponse::json(200, &state),
                }
            }
        })
        .await;
        let response = cancel(&app, &id, "alice").await;
        let job = app.get_job(&id, "alice").await;
        assert_eq!(job["status"], ends, "{status}");
        // A task that is cancelled already counts as a success.
        if ends == "cancelled" {
            assert_eq!((response.status.as_u16(), &response.body), (202, &job));
        } else {
            assert_problem(&response, 409, "not_cancellable");
            assert!(!response.body.to_string().contains("internal detail"));
        }
        assert_eq!(methods_after_submit(&provider), ["DELETE", "GET"]);
        let mut socket = app.connect("alice").await;
        socket
            .send_json(json!({ "type": "cancel", "id": 1, "job": id }))
            .await;
        let error = socket.expect_message("error").await;
        assert_eq!(error["code"], "not_cancellable");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_cancel_request_can_be_repeated() {
    for provider_response in [
        MockResponse::json(500, &json!({ "reason": "internal detail" })),
        MockResponse::text(503, ""),
        MockResponse::text(429, ""),
        MockResponse::text(401, ""),
        MockResponse::disconnect(),
    ] {
        let (_provider, app, id) = start_cancellable(move |request| {
            let provider_response = provider_response.clone();
            async move {
                match request.method.as_str() {
                    "DELETE" => provider_response,
                    _ => MockResponse::json(200, &task("waiting")),
                }
            }
        })
        .await;
        let response = cancel(&app, &id, "alice").await;
        assert_problem(&response, 502, "provider_error");
        assert_eq!(response.body["retryable"], true);
        assert!(!response.body.to_string().contains("internal detail"));
        assert_eq!(app.get_job(&id, "alice").await["status"], "queued");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn success_committed_before_cancel_wins() {
    let release = Arc::new(Notify::new());
    let release_provider = Arc::clone(&release);
    let (provider, app, id) = start_cancellable(move |_| {
        let release = Arc::clone(&release_provider);
        async move {
            release.notified().await;
            MockResponse::text(204, "")
        }
    })
    .await;
    let mut socket = app.connect("alice").await;
    socket
        .send_json(json!({ "type": "cancel", "id": 7, "job": id }))
        .await;
    let (response, ()) = tokio::join!(cancel(&app, &id, "alice"), async {
        provider
            .wait_for_requests(|requests| requests.len() == 2)
            .await;
        let response = send_webhook(&app, &finished()).await;
        assert_eq!(response.body, json!({ "matched": true, "applied": true }));
        // Only now does the provider respond to the cancel request.
        release.notify_one();
    });
    assert_problem(&response, 409, "not_cancellable");
    let error = socket.expect_message("error").await;
    assert_eq!(
        (&error["id"], &error["code"]),
        (&json!(7), &json!("not_cancellable"))
    );
    let job = app.get_job(&id, "alice").await;
    assert_eq!(
        (&job["status"], &job["source"]),
        (&json!("succeeded"), &json!("webhook"))
    );
    assert_eq!(job["outputs"][0]["url"], "https://cdn.example.com/a.mp4");
    assert_eq!(job["error"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_confirmed_before_success_wins() {
    let (_provider, app, id) = start_cancellable(|_| async { MockResponse::text(204, "") }).await;
    let response = cancel(&app, &id, "alice").await;
    assert_eq!(response.status, 202, "{}", response.body);
    let late = send_webhook(&app, &finished()).await;
    assert_eq!(late.status, 200);
    assert_eq!(late.body, json!({ "matched": true, "applied": false }));
    let job = app.get_job(&id, "alice").await;
    assert_eq!(job, response.body);
    assert_eq!(
        (&job["status"], &job["outputs"]),
        (&json!("cancelled"), &json!([]))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_cancels_produce_one_cancellation() {
    let (arrived, release) = (Arc::new(Barrier::new(2)), Arc::new(Notify::new()));
    let (entered, released) = (Arc::clone(&arrived), Arc::clone(&release));
    let (provider, app, id) = start_cancellable(move |request| {
        let (entered, released) = (Arc::clone(&entered), Arc::clone(&released));
        async move {
            if request.method == "GET" {
                return MockResponse::json(200, &task("stopped"));
            }
            entered.wait().await;
            released.notified().await;
            MockResponse::text(204, "")
        }
    })
    .await;
    let before = app.get_job(&id, "alice").await["version"].as_u64().unwrap();
    let requests = futures_util::future::join_all((0..8).map(|_| cancel(&app, &id, "alice")));
    let release_when_arrived = async {
        arrived.wait().await;
        release.notify_one();
    };
    let (responses, ()) = tokio::join!(requests, release_when_arrived);
    let job = app.get_job(&id, "alice").await;
    assert_eq!(job["status"], "cancelled");
    assert_eq!(job["version"], before + 1);
    assert!(responses.iter().any(|response| response.status == 202));
    for response in responses {
        // A request that arrives after the cancellation finds a final job.
        match response.status.as_u16() {
            202 => assert_eq!(response.body, job),
            _ => assert_problem(&response, 409, "not_cancellable"),
        }
    }
    let is_cancel = |request: &&RecordedRequest| request.method == "DELETE";
    assert_eq!(provider.requests().iter().filter(is_cancel).count(), 1);
}
