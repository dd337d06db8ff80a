//! Cancelling, by HTTP and by socket: at once where nobody has the job, by its provider where it can.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::{Barrier, Notify};

use crate::app::{TestApp, TestResponse, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};

async fn cancel(app: &TestApp, id: &str, who: &str) -> TestResponse {
    send(app.request(Method::POST, &format!("/v1/jobs/{id}/cancel"), who)).await
}

#[track_caller]
fn assert_refused(answer: &TestResponse, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.body);
    assert_eq!(answer.body["code"], code);
}

async fn submit(app: &TestApp, provider: &str) -> String {
    let body = json!({ "provider": provider, "model": "m-1", "prompt": "a lighthouse" });
    let request = app.request(Method::POST, "/v1/videos", "alice");
    let answer = send(request.json(&body)).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    answer.body["id"].as_str().unwrap().to_owned()
}

/// A Kling that takes every job, and a hub that gives it one at a time.
async fn one_at_a_time() -> (MockProvider, TestApp) {
    let provider = MockProvider::start(|asked: RecordedRequest| async move {
        let name = asked.body["options"]["external_task_id"].clone();
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
    let (provider, app) = one_at_a_time().await;
    let first = submit(&app, "kling").await;
    app.wait_for_job(&first, "alice", |job| job["status"] == "queued")
        .await;
    let (by_http, by_socket, stays) = (
        submit(&app, "kling").await,
        submit(&app, "kling").await,
        submit(&app, "kling").await,
    );
    let answer = cancel(&app, &by_http, "alice").await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let job = &answer.body;
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

    // Once there is a place, it is for the one that still wants it.
    let body = json!({ "id": first, "status": "failed", "message": "no" }).to_string();
    let now = crate::webhook_signatures::now();
    let mut news = app.request_without_token(Method::POST, "/v1/webhooks/kling");
    for (name, value) in
        crate::webhook_signatures::standard(crate::app::WEBHOOK_SECRET, "1", now, body.as_bytes())
    {
        news = news.header(name, value);
    }
    assert_eq!(send(news.body(body)).await.body["applied"], true);
    app.wait_for_job(&stays, "alice", |job| job["status"] == "queued")
        .await;
    let sent: Vec<Value> = provider
        .requests()
        .iter()
        .filter(|asked| asked.method == "POST")
        .map(|asked| asked.body["options"]["external_task_id"].clone())
        .collect();
    assert_eq!(sent, [json!(first), json!(stays)]);
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
    let answer = cancel(&app, &id, "alice").await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let job = &answer.body;
    assert_eq!(
        (&job["status"], &job["error"]),
        (&json!("cancelled"), &Value::Null)
    );
    assert_eq!(job["next_attempt_at"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn uncancellable_job_returns_409_unchanged() {
    let (_provider, app) = one_at_a_time().await;
    let id = submit(&app, "kling").await;
    let job = app
        .wait_for_job(&id, "alice", |job| job["status"] == "queued")
        .await;
    assert_refused(&cancel(&app, &id, "alice").await, 409, "not_cancellable");
    assert_refused(&cancel(&app, &id, "bob").await, 404, "not_found");
    assert_refused(
        &cancel(&app, "job_nothing", "alice").await,
        404,
        "not_found",
    );
    let path = format!("/v1/jobs/{id}/cancel");
    let reader = app.token("alice", "jobs:read");
    let answer = send(app.request_with_token(Method::POST, &path, &reader)).await;
    assert_refused(&answer, 403, "forbidden");
    assert_refused(
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
    assert_refused(&cancel(&app, &id, "alice").await, 409, "not_cancellable");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_a_worker_job_makes_its_next_push_return_409() {
    let app = TestApp::spawn().await;
    let id = app.register_worker_job("alice").await;
    assert_eq!(
        app.push_update(&id, json!({ "progress": 10 })).await.status,
        200
    );
    let answer = cancel(&app, &id, "alice").await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    assert_eq!(answer.body["status"], "cancelled");
    let push = app.push_update(&id, json!({ "progress": 20 })).await;
    assert_refused(&push, 409, "job_final");
    assert_eq!(push.body["job"]["status"], "cancelled");
    assert_refused(&cancel(&app, &id, "alice").await, 409, "not_cancellable");
}

const SPEC: &str = r#"
title = "A provider that can cancel"
requires = ["api_key", "base_url", "webhook_secrets"]
headers = { x-key = "{{ api_key }}" }
poll_after = "1h"

[signature]
scheme = "hmac"
header = "x-able-signature"
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

const ABLE_SECRET: &str = "the able one's secret";

fn task(state: &str) -> Value {
    json!({ "id": "t1", "state": state })
}

fn finished() -> Value {
    json!({ "id": "t1", "state": "done", "file": "https://cdn.example.com/a.mp4" })
}

/// A provider that takes one job, and answers whoever wants it cancelled, or asks about it, as told.
async fn able<F, R>(answer: F) -> (MockProvider, TestApp, String)
where
    F: Fn(RecordedRequest) -> R + Send + Sync + 'static,
    R: Future<Output = MockResponse> + 'static,
{
    let provider = MockProvider::start(move |asked: RecordedRequest| {
        let later = (asked.method != "POST").then(|| answer(asked));
        async move {
            match later {
                Some(later) => later.await,
                None => MockResponse::json(201, &task("waiting")),
            }
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let spec = folder.path().join("able.toml");
    std::fs::write(&spec, SPEC).unwrap();
    let app = TestApp::builder()
        .set("providers.able.spec", spec.display())
        .set("providers.able.base_url", &provider.url)
        .set("providers.able.api_key", "the key")
        .set("providers.able.webhook_secrets", ABLE_SECRET)
        .spawn()
        .await;
    let id = submit(&app, "able").await;
    app.wait_for_job(&id, "alice", |job| job["status"] == "queued")
        .await;
    (provider, app, id)
}

async fn webhook(app: &TestApp, news: &Value) -> TestResponse {
    let body = news.to_string();
    let signature = crate::webhook_signatures::hex(ABLE_SECRET, body.as_bytes());
    let request = app.request_without_token(Method::POST, "/v1/webhooks/able");
    send(request.header("x-able-signature", signature).body(body)).await
}

fn verbs(provider: &MockProvider) -> Vec<String> {
    let asked = provider.requests();
    let after_submit = asked.iter().skip(1);
    after_submit.map(|asked| asked.method.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_cancel_ends_the_job_once_the_provider_confirms() {
    let (provider, app, id) = able(|asked| async move {
        match asked.method.as_str() {
            "DELETE" => MockResponse::json(202, &json!({ "note": "as you wish" })),
            _ => MockResponse::json(200, &task("stopped")),
        }
    })
    .await;
    let answer = cancel(&app, &id, "alice").await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    assert_eq!(answer.body["id"], id);
    let job = app.wait_until_final(&id, "alice").await;
    assert_eq!(
        (&job["status"], &job["source"]),
        (&json!("cancelled"), &json!("poll"))
    );
    let asked = provider.requests();
    assert_eq!(asked[1].path, "/tasks/t1");
    assert_eq!(asked[1].header("x-key"), Some("the key"));
    assert_eq!(verbs(&provider), ["DELETE", "GET"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_response_with_final_status_ends_the_job() {
    for reply in [
        MockResponse::text(204, ""),
        MockResponse::json(200, &json!({ "task": task("stopped") })),
    ] {
        for by_socket in [false, true] {
            let reply = reply.clone();
            let (provider, app, id) = able(move |_| {
                let reply = reply.clone();
                async move { reply }
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
                let answer = cancel(&app, &id, "alice").await;
                assert_eq!(answer.status, 202, "{}", answer.body);
                answer.body
            };
            assert_eq!(
                (&job["status"], &job["source"]),
                (&json!("cancelled"), &json!("api"))
            );
            assert_eq!(verbs(&provider), ["DELETE"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_response_without_final_status_triggers_a_poll() {
    for said in [
        json!({ "task": { "id": "t2", "state": "stopped" } }),
        json!({ "task": task("waiting") }),
        json!({ "task": task("stopping") }),
        json!("fine"),
    ] {
        let (provider, app, id) = able(move |asked| {
            let said = said.clone();
            async move {
                match asked.method.as_str() {
                    "DELETE" => MockResponse::json(200, &said),
                    _ => MockResponse::json(200, &task("waiting")),
                }
            }
        })
        .await;
        let answer = cancel(&app, &id, "alice").await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        assert_eq!(answer.body["status"], "queued");
        provider.wait_for_requests(|asked| asked.len() == 3).await;
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
        let (provider, app, id) = able(move |asked| {
            let state = state.clone();
            async move {
                match asked.method.as_str() {
                    "DELETE" => MockResponse::json(status, &json!({ "reason": "a secret matter" })),
                    _ => MockResponse::json(200, &state),
                }
            }
        })
        .await;
        let answer = cancel(&app, &id, "alice").await;
        let job = app.get_job(&id, "alice").await;
        assert_eq!(job["status"], ends, "{status}");
        // Whoever wanted it cancelled has what they wanted, whoever did it.
        if ends == "cancelled" {
            assert_eq!((answer.status.as_u16(), &answer.body), (202, &job));
        } else {
            assert_refused(&answer, 409, "not_cancellable");
            assert!(!answer.body.to_string().contains("secret matter"));
        }
        assert_eq!(verbs(&provider), ["DELETE", "GET"]);
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
    for reply in [
        MockResponse::json(500, &json!({ "reason": "a secret matter" })),
        MockResponse::text(503, ""),
        MockResponse::text(429, ""),
        MockResponse::text(401, ""),
        MockResponse::disconnect(),
    ] {
        let (_provider, app, id) = able(move |asked| {
            let reply = reply.clone();
            async move {
                match asked.method.as_str() {
                    "DELETE" => reply,
                    _ => MockResponse::json(200, &task("waiting")),
                }
            }
        })
        .await;
        let answer = cancel(&app, &id, "alice").await;
        assert_refused(&answer, 502, "provider_error");
        assert_eq!(answer.body["retryable"], true);
        assert!(!answer.body.to_string().contains("secret matter"));
        assert_eq!(app.get_job(&id, "alice").await["status"], "queued");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn success_committed_before_cancel_wins() {
    let told = Arc::new(Notify::new());
    let waits = Arc::clone(&told);
    let (provider, app, id) = able(move |_| {
        let told = Arc::clone(&waits);
        async move {
            told.notified().await;
            MockResponse::text(204, "")
        }
    })
    .await;
    let mut socket = app.connect("alice").await;
    socket
        .send_json(json!({ "type": "cancel", "id": 7, "job": id }))
        .await;
    let (answer, ()) = tokio::join!(cancel(&app, &id, "alice"), async {
        provider.wait_for_requests(|asked| asked.len() == 3).await;
        let answer = webhook(&app, &finished()).await;
        assert_eq!(answer.body, json!({ "matched": true, "applied": true }));
        // The answers come only now.
        told.notify_one();
        told.notify_waiters();
    });
    assert_refused(&answer, 409, "not_cancellable");
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
    let (_provider, app, id) = able(|_| async { MockResponse::text(204, "") }).await;
    let answer = cancel(&app, &id, "alice").await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let late = webhook(&app, &finished()).await;
    assert_eq!(late.status, 200);
    assert_eq!(late.body, json!({ "matched": true, "applied": false }));
    let job = app.get_job(&id, "alice").await;
    assert_eq!(job, answer.body);
    assert_eq!(
        (&job["status"], &job["outputs"]),
        (&json!("cancelled"), &json!([]))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_cancels_produce_one_cancellation() {
    let (begun, done) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
    let (provider, app, id) = able(move |asked| {
        let (begun, done) = (Arc::clone(&begun), Arc::clone(&done));
        async move {
            if asked.method == "GET" {
                return MockResponse::json(200, &task("stopped"));
            }
            begun.wait().await;
            match done.swap(true, Ordering::Relaxed) {
                false => MockResponse::text(204, ""),
                true => MockResponse::json(404, &json!({ "reason": "no such task" })),
            }
        }
    })
    .await;
    let before = app.get_job(&id, "alice").await["version"].as_u64().unwrap();
    let (one, other) = tokio::join!(cancel(&app, &id, "alice"), cancel(&app, &id, "alice"));
    let job = app.get_job(&id, "alice").await;
    assert_eq!(job["status"], "cancelled");
    assert_eq!(job["version"], before + 1);
    for answer in [one, other] {
        assert_eq!((answer.status.as_u16(), &answer.body), (202, &job));
    }
    let is_cancel = |asked: &&RecordedRequest| asked.method == "DELETE";
    assert_eq!(provider.requests().iter().filter(is_cancel).count(), 2);
}
