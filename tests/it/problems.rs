//! The problem responses of the API, as clients receive them.

use insta::assert_snapshot;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::app::{TestApp, send};

/// Formats the problem that a request is answered with. Redacts job documents.
async fn problem(name: &str, request: RequestBuilder) -> String {
    let response = send(request).await;
    let header = |name| {
        let value = response.headers.get(name);
        value.map(|value| value.to_str().unwrap())
    };
    assert_eq!(
        header("content-type"),
        Some("application/problem+json"),
        "{name}"
    );
    assert_eq!(header("cache-control"), Some("no-store"), "{name}");
    let mut problem = response.body.clone();
    assert_eq!(problem["status"], response.status.as_u16(), "{name}");
    if problem["job"].is_object() {
        problem["job"] = json!("[job]");
    }
    format!("{name}\n{problem}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn problem_bodies_match_the_snapshot() {
    let app = TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", "http://127.0.0.1:9")
        .set("providers.kling.api_key", "a key")
        .set("server.max_body_bytes", 100_000)
        .spawn()
        .await;
    let job = app.register_worker_job("alice").await;
    let ended = app.register_worker_job("alice").await;
    app.push_update(&ended, json!({ "status": "succeeded" }))
        .await;
    let job_path = format!("/v1/jobs/{job}");
    let video = |prompt: &str| json!({ "provider": "kling", "model": "m", "prompt": prompt });
    let as_alice = |method, path: &str| app.request(method, path, "alice");
    let as_admin =
        |path: &str| app.request_with_token(Method::POST, path, &app.token("root", "admin"));
    let submit = |body: Value| as_alice(Method::POST, "/v1/videos").json(&body);

    let keyed = |prompt| submit(video(prompt)).header("idempotency-key", "k");
    assert_eq!(send(keyed("a lighthouse")).await.status, 202);
    let task = json!({ "owner": "alice", "provider": "kling", "provider_task_id": "1" });
    assert_eq!(send(as_admin("/v1/jobs").json(&task)).await.status, 201);

    let requests = [
        (
            "token missing",
            app.request_without_token(Method::GET, &job_path),
        ),
        (
            "token without 'Bearer '",
            app.request_without_token(Method::GET, &job_path)
                .header("authorization", app.token("alice", "")),
        ),
        (
            "scope missing",
            as_alice(Method::POST, "/v1/tokens").json(&json!({ "sub": "alice" })),
        ),
        ("unknown job", as_alice(Method::GET, "/v1/jobs/job_none")),
        ("unknown path", as_alice(Method::GET, "/v2/jobs")),
        ("unknown method", as_alice(Method::DELETE, &job_path)),
        (
            "invalid query",
            as_alice(Method::GET, &format!("{job_path}?wait=-1")),
        ),
        (
            "duration as text",
            submit(json!({ "model": "m", "duration": "5" })),
        ),
        (
            "metadata as array",
            submit(json!({ "model": "m", "metadata": [] })),
        ),
        ("model missing", submit(json!({}))),
        ("body too large", submit(video(&"x".repeat(100_000)))),
        (
            "unknown provider",
            submit(json!({ "provider": "klign", "model": "m" })),
        ),
        ("idempotency key of another request", keyed("a harbor")),
        ("known task", as_admin("/v1/jobs").json(&task)),
        (
            "update of a final job",
            as_admin(&format!("/v1/jobs/{ended}/updates")).json(&json!({})),
        ),
        (
            "cancel of a final job",
            as_alice(Method::POST, &format!("/v1/jobs/{ended}/cancel")),
        ),
        (
            "grant of another output",
            app.request_without_token(Method::GET, &format!("{job_path}/outputs/0?grant=x")),
        ),
        (
            "webhook without a signature",
            app.request_without_token(Method::POST, "/v1/webhooks/generic")
                .body("{}"),
        ),
        (
            "upgrade from a foreign origin",
            app.request_without_token(Method::GET, "/v1/ws")
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-version", "13")
                .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
                .header("origin", "https://other.example.com"),
        ),
        (
            "plain request to the WebSocket",
            as_alice(Method::GET, "/v1/ws"),
        ),
    ];
    let mut problems = Vec::new();
    for (name, request) in requests {
        problems.push(problem(name, request).await);
    }
    assert_snapshot!(problems.join("\n"));
}
