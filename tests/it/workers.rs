//! Workers: a progress hub for any long job, not only for providers'.

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
fn assert_refused(answer: &TestResponse, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.body);
    assert_eq!(answer.body["code"], code);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_job_goes_from_its_registration_to_its_outputs() {
    let app = TestApp::spawn().await;
    let worker = app.token("renderer", "jobs:publish");
    let body = json!({ "owner": "alice", "model": "blender", "metadata": { "scene": "a b" } });
    let answer = register_as(&app, &worker, &body).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    let job = &answer.body;
    let id = job["id"].as_str().unwrap();
    assert_eq!(answer.headers["location"], format!("/v1/jobs/{id}"));
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
        let answer = push_as(&app, &worker, id, &update).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.body, json!({ "applied": true, "version": version }));
        let seen = socket.next_job().await;
        assert_eq!((&seen["version"], &seen[field]), (&json!(version), &value));
        assert_eq!(seen["source"], "push");
    }
    for no_news in [
        json!({ "progress": 40 }),
        json!({ "status": "queued" }),
        json!({}),
    ] {
        let answer = push_as(&app, &worker, id, &no_news).await;
        assert_eq!(answer.body, json!({ "applied": false, "version": 5 }));
    }
    let output = json!({ "type": "image", "url": "https://cdn.example.com/a.png" });
    let end = json!({ "status": "succeeded", "outputs": [output] });
    let answer = push_as(&app, &worker, id, &end).await;
    assert_eq!(answer.body, json!({ "applied": true, "version": 6 }));
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

    let late = push_as(&app, &worker, id, &json!({ "progress": 3 })).await;
    assert_refused(&late, 409, "job_final");
    assert_eq!(late.body["job"], ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_tells_why_it_failed() {
    let app = TestApp::spawn().await;
    let id = app.register_worker_job("alice").await;
    let error = json!({ "kind": "safety", "message": "no such picture", "provider_code": "E7" });
    let answer = app
        .push_update(&id, json!({ "status": "failed", "error": error }))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let job = app.get_job(&id, "alice").await;
    let told = json!({ "kind": "safety", "message": "no such picture", "provider_code": "E7", "retryable": false });
    assert_eq!((&job["status"], &job["error"]), (&json!("failed"), &told));

    // A success without outputs and a failure without words are ends as well.
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
async fn only_those_who_may_publish_can_register_and_push() {
    let app = TestApp::spawn().await;
    let id = app.register_worker_job("alice").await;
    let body = json!({ "owner": "alice" });
    for scope in ["", "jobs:read", "jobs:read jobs:write"] {
        let token = app.token("alice", scope);
        assert_refused(&register_as(&app, &token, &body).await, 403, "forbidden");
        let push = push_as(&app, &token, &id, &json!({ "progress": 1 })).await;
        assert_refused(&push, 403, "forbidden");
    }
    let nobody = send(
        app.request_without_token(Method::POST, "/v1/jobs")
            .json(&body),
    )
    .await;
    assert_refused(&nobody, 401, "unauthorized");

    // A worker can be limited to the job that it works on.
    let other = app.register_worker_job("alice").await;
    let ttl = Duration::from_secs(60);
    let limited = app.token_for("worker", "jobs:publish", Some(&[&id]), ttl);
    assert_refused(&register_as(&app, &limited, &body).await, 403, "forbidden");
    let push = push_as(&app, &limited, &other, &json!({ "progress": 1 })).await;
    assert_refused(&push, 403, "forbidden");
    let push = push_as(&app, &limited, &id, &json!({ "progress": 1 })).await;
    assert_eq!(push.status, 200, "{}", push.body);

    let admin = app.token("root", "admin");
    assert_eq!(register_as(&app, &admin, &body).await.status, 201);
    let push = push_as(&app, &admin, &other, &json!({ "progress": 1 })).await;
    assert_eq!(push.status, 200, "{}", push.body);

    let missing = "job_01a3c80000007000800000000000000a";
    for missing in [missing, "nothing"] {
        let push = push_as(&app, &admin, missing, &json!({ "progress": 1 })).await;
        assert_refused(&push, 404, "not_found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_known_already_is_answered_with_its_job() {
    let app = TestApp::spawn().await;
    let worker = app.token("worker", "jobs:publish");
    let body = json!({ "provider": "generic", "provider_task_id": "t", "owner": "alice" });
    let first = register_as(&app, &worker, &body).await;
    assert_eq!(first.status, 201, "{}", first.body);
    assert_eq!(first.body["status"], "queued");
    assert_eq!(first.body["provider_task_id"], "t");
    let again = register_as(&app, &worker, &body).await;
    assert_refused(&again, 409, "task_known");
    assert_eq!(again.body["job"], first.body);

    let all = (0..8).map(|_| {
        let (app, worker) = (&app, &worker);
        let body = json!({ "provider": "generic", "provider_task_id": "race", "owner": "alice" });
        async move { register_as(app, worker, &body).await }
    });
    let all = futures_util::future::join_all(all).await;
    let made: Vec<_> = all.iter().filter(|answer| answer.status == 201).collect();
    assert_eq!(made.len(), 1);
    for answer in all.iter().filter(|answer| answer.status != 201) {
        assert_refused(answer, 409, "task_known");
        assert_eq!(answer.body["job"]["id"], made[0].body["id"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_can_be_repeated_by_its_key() {
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
    assert_refused(&register("b").await, 409, "idempotency_conflict");
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_that_race_each_other_are_all_counted() {
    let app = TestApp::spawn().await;
    let id = app.register_worker_job("alice").await;
    let all = (1..=60).map(|percent| app.push_update(&id, json!({ "progress": percent })));
    let all = futures_util::future::join_all(all).await;
    assert!(all.iter().all(|answer| answer.status == 200));
    let applied = all.iter().filter(|answer| answer.body["applied"] == true);
    let job = app.get_job(&id, "alice").await;
    assert_eq!(job["progress"], 60.0);
    assert_eq!(job["version"], 1 + applied.count());
}
