//! Jobs of workers: registration and updates.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, TestResponse, send};

async fn register_as(app: &TestApp, token: &str, body: &Value) -> TestResponse {
    let request = app.request_with_token(Method::POST, "/v1/jobs", token);
    send(request.json(body)).await
}

async fn push_as(app: &TestApp, token: &str, id: &str, update: &Value) -> TestResponse {
    let path = format!("/v1/jobs/{id}/updates");
    send(
        app.request_with_token(Method::POST, &path, token)
            .json(update),
    )
    .await
}

#[track_caller]
fn assert_error(response: &TestResponse, status: u16, code: &str) {
    assert_eq!(response.status, status, "{}", response.body);
    assert_eq!(response.body["code"], code);
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_job_is_delivered_from_registration_to_outputs() {
    let app = TestApp::spawn().await;
    let worker = app.token("renderer", "jobs:publish");
    let body = json!({ "owner": "alice", "model": "blender", "metadata": { "scene": "a b" } });
    let response = register_as(&app, &worker, &body).await;
    assert_eq!(response.status, 201, "{}", response.body);
    let job = &response.body;
    let id = job["id"].as_str().unwrap();
    assert_eq!(response.headers["location"], format!("/v1/jobs/{id}"));
    assert_eq!(
        (&job["status"], &job["version"]),
        (&json!("accepted"), &json!(1))
    );
    assert_eq!(
        (&job["provider"], &job["owner"]),
        (&Value::Null, &json!("alice"))
    );
    assert_eq!(job["metadata"], json!({ "scene": "a b" }));

    let mut socket = app.connect("alice").await;
    socket.subscribe(&[(id, 1)]).await;
    for (version, update, field, value) in [
        (
            2,
            json!({ "status": "queued", "queue_position": 3 }),
            "queue_position",
            json!(3),
        ),
        (
            3,
            json!({ "status": "running", "stage": "warming up" }),
            "stage",
            json!("warming up"),
        ),
        (
            4,
            json!({ "progress": 0.5, "eta_seconds": 90.5 }),
            "eta_seconds",
            json!(90.5),
        ),
        (
            5,
            json!({ "progress": 99.9, "stage": "encoding" }),
            "progress",
            json!(99.9),
        ),
    ] {
        let response = push_as(&app, &worker, id, &update).await;
        assert_eq!(response.status, 200, "{}", response.body);
        assert_eq!(
            response.body,
            json!({ "applied": true, "version": version })
        );
        let seen = socket.next_job().await;
        assert_eq!((&seen["version"], &seen[field]), (&json!(version), &value));
        assert_eq!(seen["source"], "push");
    }
    for unchanged in [
        json!({ "progress": 40 }),
        json!({ "status": "queued" }),
        json!({}),
    ] {
        let response = push_as(&app, &worker, id, &unchanged).await;
        assert_eq!(response.body, json!({ "applied": false, "version": 5 }));
    }
    let output = json!({ "type": "image", "url": "https://cdn.example.com/a.png" });
    let end = json!({ "status": "succeeded", "outputs": [output] });
    let response = push_as(&app, &worker, id, &end).await;
    assert_eq!(response.body, json!({ "applied": true, "version": 6 }));
    let ended = socket.next_job().await;
    assert_eq!(
        (&ended["status"], &ended["progress"]),
        (&json!("succeeded"), &json!(100.0))
    );
    assert_eq!(ended["outputs"][0]["type"], "image");
    assert_eq!(
        (&ended["stage"], &ended["eta_seconds"]),
        (&Value::Null, &Value::Null)
    );
    assert!(ended["started_at"].is_string() && ended["finished_at"].is_string());

    let admin = app.token("root", "admin");
    let late = push_as(&app, &admin, id, &json!({ "progress": 3 })).await;
    assert_error(&late, 409, "job_final");
    assert_eq!(late.body["job"], ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_reports_the_reason_of_a_failure() {
    let app = TestApp::spawn().await;
    let id = app.register_worker_job("alice").await;
    let error = json!({ "kind": "safety", "message": "no such picture", "provider_code": "E7" });
    let response = app
        .push_update(&id, json!({ "status": "failed", "error": error }))
        .await;
    assert_eq!(response.status, 200, "{}", response.body);
    let job = app.get_job(&id, "alice").await;
    let expected = json!({ "kind": "safety", "message": "no such picture", "provider_code": "E7", "retryable": false });
    assert_eq!(
        (&job["status"], &job["error"]),
        (&json!("failed"), &expected)
    );

    // Outputs and the error are optional.
    let id = app.register_worker_job("alice").await;
    app.push_update(&id, json!({ "status": "succeeded" })).await;
    assert_eq!(app.get_job(&id, "alice").await["error"], Value::Null);
    let id = app.register_worker_job("alice").await;
    app.push_update(&id, json!({ "status": "failed" })).await;
    assert_eq!(
        app.get_job(&id, "alice").await["error"]["kind"],
        "technical"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn registration_and_updates_require_jobs_publish() {
    let app = TestApp::spawn().await;
    let id = app.register_worker_job("alice").await;
    let body = json!({ "owner": "alice" });
    for scope in ["", "jobs:read", "jobs:read jobs:write"] {
        let token = app.token("alice", scope);
        assert_error(&register_as(&app, &token, &body).await, 403, "forbidden");
        let push = push_as(&app, &token, &id, &json!({ "progress": 1 })).await;
        assert_error(&push, 403, "forbidden");
    }
    let unauthenticated = send(
        app.request_without_token(Method::POST, "/v1/jobs")
            .json(&body),
    )
    .await;
    assert_error(&unauthenticated, 401, "unauthorized");

    // A token can be limited to one job.
    let other = app.register_worker_job("alice").await;
    let ttl = Duration::from_secs(60);
    let limited = app.token_for("worker", "jobs:publish", Some(&[&id]), ttl);
    assert_error(&register_as(&app, &limited, &body).await, 403, "forbidden");
    let push = push_as(&app, &limited, &other, &json!({ "progress": 1 })).await;
    assert_error(&push, 403, "forbidden");
    let push = push_as(&app, &limited, &id, &json!({ "progress": 1 })).await;
    assert_eq!(push.status, 200, "{}", push.body);

    let admin = app.token("root", "admin");
    assert_eq!(register_as(&app, &admin, &body).await.status, 201);
    let push = push_as(&app, &admin, &other, &json!({ "progress": 1 })).await;
    assert_eq!(push.status, 200, "{}", push.body);

    let missing = "job_01a3c80000007000800000000000000a";
    for missing in [missing, "nothing"] {
        let push = push_as(&app, &admin, missing, &json!({ "progress": 1 })).await;
        assert_error(&push, 404, "not_found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registered_task_returns_409_with_its_job() {
    let app = TestApp::spawn().await;
    let worker = app.token("worker", "admin");
    let body = json!({ "provider": "generic", "provider_task_id": "t", "owner": "alice" });
    let first = register_as(&app, &worker, &body).await;
    assert_eq!(first.status, 201, "{}", first.body);
    assert_eq!(first.body["status"], "queued");
    assert_eq!(first.body["provider_task_id"], "t");
    let again = register_as(&app, &worker, &body).await;
    assert_error(&again, 409, "task_known");
    assert_eq!(again.body["job"], first.body);

    let all = (0..8).map(|_| {
        let (app, worker) = (&app, &worker);
        let body = json!({ "provider": "generic", "provider_task_id": "race", "owner": "alice" });
        async move { register_as(app, worker, &body).await }
    });
    let all = futures_util::future::join_all(all).await;
    let created: Vec<_> = all
        .iter()
        .filter(|response| response.status == 201)
        .collect();
    assert_eq!(created.len(), 1);
    for response in all.iter().filter(|response| response.status != 201) {
        assert_error(response, 409, "task_known");
        assert_eq!(response.body["job"]["id"], created[0].body["id"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_registration_with_the_same_key_returns_the_same_job() {
    let app = TestApp::spawn().await;
    let worker = app.token("worker", "jobs:publish");
    let register = |model: &str| {
        let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
        let request = request.header("idempotency-key", "k");
        send(request.json(&json!({ "owner": "alice", "model": model })))
    };
    let (first, again) = (register("a").await, register("a").await);
    assert_eq!((first.status.as_u16(), again.status.as_u16()), (201, 201));
    assert_eq!(first.body, again.body);
    assert_error(&register("b").await, 409, "idempotency_conflict");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_updates_are_all_applied() {
    let app = TestApp::spawn().await;
    let id = app.register_worker_job("alice").await;
    let all = (1..=60).map(|percent| app.push_update(&id, json!({ "progress": percent })));
    let all = futures_util::future::join_all(all).await;
    assert!(all.iter().all(|response| response.status == 200));
    let applied = all
        .iter()
        .filter(|response| response.body["applied"] == true);
    let job = app.get_job(&id, "alice").await;
    assert_eq!(job["progress"], 60.0);
    assert_eq!(job["version"], 1 + applied.count());
}
