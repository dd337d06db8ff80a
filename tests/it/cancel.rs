//! Cancelling, by HTTP and by socket: at once where nobody has the job, by its provider where it can.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{Answer, TestApp, send};
use crate::standin::{Asked, Reply, StandIn};

async fn cancel(app: &TestApp, id: &str, who: &str) -> Answer {
    send(app.request(Method::POST, &format!("/v1/jobs/{id}/cancel"), who)).await
}

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, code: &str) {
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
async fn one_at_a_time() -> (StandIn, TestApp) {
    let provider = StandIn::start(|asked: Asked| async move {
        let name = asked.body["options"]["external_task_id"].clone();
        Reply::json(
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
async fn a_job_that_waits_for_a_place_ends_at_once_and_is_never_sent() {
    let (provider, app) = one_at_a_time().await;
    let first = submit(&app, "kling").await;
    app.until(&first, "alice", |job| job["status"] == "queued")
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
    assert_eq!(app.job(&by_http, "alice").await, *job);

    let mut socket = app.socket("alice").await;
    socket.subscribe(&[(by_socket.as_str(), 1)]).await;
    socket
        .say(json!({ "type": "cancel", "id": 4, "job": by_socket }))
        .await;
    let job = socket.to_the_end(&by_socket).await;
    assert_eq!(job["status"], "cancelled");

    // Once there is a place, it is for the one that still wants it.
    let body = json!({ "id": first, "status": "failed", "message": "no" }).to_string();
    let now = crate::signing::now();
    let mut news = app.anonymous(Method::POST, "/v1/webhooks/kling");
    for (name, value) in
        crate::signing::standard(crate::app::WEBHOOK_SECRET, "1", now, body.as_bytes())
    {
        news = news.header(name, value);
    }
    assert_eq!(send(news.body(body)).await.body["applied"], true);
    app.until(&stays, "alice", |job| job["status"] == "queued")
        .await;
    let sent: Vec<Value> = provider
        .asked()
        .iter()
        .map(|asked| asked.body["options"]["external_task_id"].clone())
        .collect();
    assert_eq!(sent, [json!(first), json!(stays)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_for_its_next_try_ends_at_once() {
    let provider = StandIn::start(|_| async {
        Reply::json(429, &json!({ "code": 1302, "message": "busy" })).with("retry-after", 60)
    })
    .await;
    let app = TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", &provider.url)
        .set("providers.kling.api_key", "a key")
        .spawn()
        .await;
    let id = submit(&app, "kling").await;
    app.until(&id, "alice", |job| !job["next_attempt_at"].is_null())
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
async fn what_cannot_be_cancelled_says_so_and_stays_as_it_is() {
    let (_provider, app) = one_at_a_time().await;
    let id = submit(&app, "kling").await;
    let job = app
        .until(&id, "alice", |job| job["status"] == "queued")
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
    let answer = send(app.request_with(Method::POST, &path, &reader)).await;
    assert_refused(&answer, 403, "forbidden");
    assert_refused(
        &send(app.anonymous(Method::POST, &path)).await,
        401,
        "unauthorized",
    );

    let mut socket = app.socket("alice").await;
    for (what, code) in [
        (id.as_str(), "not_cancellable"),
        ("job_nothing", "not_found"),
    ] {
        socket
            .say(json!({ "type": "cancel", "id": what, "job": what }))
            .await;
        let error = socket.hear("error").await;
        assert_eq!((&error["id"], &error["code"]), (&json!(what), &json!(code)));
    }
    assert_eq!(app.job(&id, "alice").await, job);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_being_submitted_cannot_be_cancelled() {
    let provider = StandIn::start(|_| std::future::pending()).await;
    let app = TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", &provider.url)
        .set("providers.kling.api_key", "a key")
        .spawn()
        .await;
    let id = submit(&app, "kling").await;
    provider.until(|all| all.len() == 1).await;
    assert_refused(&cancel(&app, &id, "alice").await, 409, "not_cancellable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_own_job_ends_and_its_worker_is_told_with_the_next_push() {
    let app = TestApp::spawn().await;
    let id = app.worker_job("alice").await;
    assert_eq!(app.push(&id, json!({ "progress": 10 })).await.status, 200);
    let answer = cancel(&app, &id, "alice").await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    assert_eq!(answer.body["status"], "cancelled");
    let push = app.push(&id, json!({ "progress": 20 })).await;
    assert_refused(&push, 409, "job_final");
    assert_eq!(push.body["job"]["status"], "cancelled");
    assert_refused(&cancel(&app, &id, "alice").await, 409, "not_cancellable");
}

const SPEC: &str = r#"
title = "A provider that can cancel"
requires = ["api_key", "base_url"]
headers = { x-key = "{{ api_key }}" }
signature = { scheme = "none" }
poll_after = "1h"

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

[read]
task_id = "payload.id"
status = "payload.state"
statuses = { waiting = "queued", stopped = "cancelled" }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_can_is_asked_to_and_the_job_ends_when_it_says_so() {
    let agrees = Arc::new(AtomicBool::new(false));
    let agreed = Arc::clone(&agrees);
    let provider = StandIn::start(move |asked: Asked| {
        let agrees = agreed.load(Ordering::Relaxed);
        let reply = match asked.method.as_str() {
            "POST" => Reply::json(201, &json!({ "id": "t1", "state": "waiting" })),
            "DELETE" if agrees => Reply::text(204, ""),
            "DELETE" => Reply::json(409, &json!({ "reason": "a secret matter" })),
            _ => Reply::json(200, &json!({ "id": "t1", "state": "stopped" })),
        };
        async move { reply }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let spec = folder.path().join("able.toml");
    std::fs::write(&spec, SPEC).unwrap();
    let app = TestApp::builder()
        .set("providers.able.spec", spec.display())
        .set("providers.able.base_url", &provider.url)
        .set("providers.able.api_key", "the key")
        .spawn()
        .await;
    let id = submit(&app, "able").await;
    app.until(&id, "alice", |job| job["status"] == "queued")
        .await;

    let answer = cancel(&app, &id, "alice").await;
    assert_refused(&answer, 502, "provider_error");
    assert!(!answer.body.to_string().contains("secret matter"));
    assert_eq!(app.job(&id, "alice").await["status"], "queued");

    agrees.store(true, Ordering::Relaxed);
    let answer = cancel(&app, &id, "alice").await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    assert_eq!(answer.body["id"], id);
    let job = app.ended(&id, "alice").await;
    assert_eq!(
        (&job["status"], &job["source"]),
        (&json!("cancelled"), &json!("poll"))
    );
    let asked = provider.asked();
    let asked: Vec<_> = asked.iter().filter(|it| it.method == "DELETE").collect();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].path, "/tasks/t1");
    assert_eq!(asked[1].header("x-key"), Some("the key"));
}
