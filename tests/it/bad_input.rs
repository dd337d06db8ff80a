//! Invalid requests: the error has a stable code and names the invalid field.

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, TestAppBuilder, TestResponse, send};

fn hub() -> TestAppBuilder {
    TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", "http://127.0.0.1:9")
        .set("providers.kling.api_key", "a key")
}

/// Returns the body with changed fields. A null removes the field.
fn with(mut body: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        let fields = body.as_object_mut().unwrap();
        if value.is_null() {
            fields.remove(name);
        } else {
            fields.insert(name.clone(), value.clone());
        }
    }
    body
}

#[track_caller]
fn assert_invalid(response: &TestResponse, field: &str, body: &Value) {
    assert_eq!(response.status, 400, "{body}: {}", response.body);
    assert_eq!(response.body["code"], "invalid_request", "{body}");
    assert_eq!(response.body["retryable"], false);
    assert_eq!(response.headers["content-type"], "application/problem+json");
    let detail = response.body["detail"].as_str().unwrap();
    assert!(detail.contains(field), "{body}: {detail}");
}

/// Asserts that `valid` is accepted, and that each change of it is rejected with the field in the detail.
async fn assert_fields_are_checked(
    app: &TestApp,
    path: &str,
    valid: &Value,
    invalid: &[(Value, &str)],
) {
    let token = app.token("root", "admin");
    let post = |body: &Value| {
        send(
            app.request_with_token(Method::POST, path, &token)
                .json(body),
        )
    };
    for (changes, field) in invalid {
        assert_invalid(&post(&with(valid.clone(), changes)).await, field, changes);
    }
    for body in [json!([]), json!(null), json!("text"), json!([valid])] {
        assert_invalid(&post(&body).await, "", &body);
    }
    for text in ["", "{", "{\"a\":1}{", "\u{0}", "{\"owner\":\"a\",}"] {
        let request = app.request_with_token(Method::POST, path, &token);
        assert_invalid(&send(request.body(text)).await, "", &json!(text));
    }
    let request = app.request_with_token(Method::POST, path, &token);
    assert_invalid(
        &send(request.body(&b"\xff\xff"[..])).await,
        "",
        &json!("bytes"),
    );
    let ok = post(valid).await;
    assert!(ok.status.is_success(), "{}", ok.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn submission_fields_are_validated() {
    let app = hub().spawn().await;
    let valid = json!({ "provider": "kling", "model": "kling-v3", "prompt": "a lighthouse" });
    let invalid = [
        (json!({ "model": null }), "model"),
        (json!({ "model": "" }), "model"),
        (json!({ "model": 5 }), "model"),
        (json!({ "model": "../tasks" }), "model"),
        (json!({ "model": "a?b=c" }), "model"),
        (json!({ "model": "/etc" }), "model"),
        (json!({ "model": "m".repeat(129) }), "model"),
        (json!({ "prompt": null }), "prompt"),
        (json!({ "prompt": 5 }), "prompt"),
        (json!({ "prompt": "p".repeat(20_001) }), "prompt"),
        (json!({ "provider": 5 }), "provider"),
        (json!({ "provider": "generic" }), "provider"),
        (json!({ "negative_prompt": {} }), "negative_prompt"),
        (
            json!({ "image_url": "data:image/png;base64,AAAA" }),
            "image_url",
        ),
        (json!({ "image_url": "not a url" }), "image_url"),
        (
            json!({ "image_url": format!("https://a/{}", "a".repeat(4096)) }),
            "image_url",
        ),
        (json!({ "duration": "5" }), "duration"),
        (json!({ "duration": 0 }), "duration"),
        (json!({ "duration": -1 }), "duration"),
        (json!({ "duration": 1e9 }), "duration"),
        (json!({ "aspect_ratio": 1.5 }), "aspect_ratio"),
        (json!({ "resolution": 720 }), "resolution"),
        (json!({ "platform": "myspace" }), "platform"),
        (json!({ "input": [] }), "input"),
        (json!({ "metadata": "text" }), "metadata"),
        (json!({ "metadata": { "a": "x".repeat(2049) } }), "metadata"),
        (json!({ "promt": "a typo" }), "promt"),
        (json!({ "owner": "bob" }), "owner"),
    ];
    assert_fields_are_checked(&app, "/v1/videos", &valid, &invalid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registration_fields_are_validated() {
    let app = hub().spawn().await;
    let valid = json!({ "owner": "alice" });
    let invalid = [
        (json!({ "owner": null }), "owner"),
        (json!({ "owner": "" }), "owner"),
        (json!({ "owner": 5 }), "owner"),
        (json!({ "owner": "o".repeat(256) }), "owner"),
        (json!({ "provider": "kling" }), "provider_task_id"),
        (json!({ "provider_task_id": "1" }), "provider"),
        (
            json!({ "provider": "kling", "provider_task_id": "" }),
            "provider_task_id",
        ),
        (
            json!({ "provider": "kling", "provider_task_id": 5 }),
            "provider_task_id",
        ),
        (
            json!({ "provider": "kling", "provider_task_id": "t".repeat(513) }),
            "provider_task_id",
        ),
        (json!({ "model": 5 }), "model"),
        (json!({ "model": "m".repeat(129) }), "model"),
        (json!({ "metadata": [] }), "metadata"),
        (json!({ "metadata": { "a": "x".repeat(2049) } }), "metadata"),
        (json!({ "deadline_seconds": 0 }), "deadline_seconds"),
        (json!({ "deadline_seconds": -5 }), "deadline_seconds"),
        (json!({ "deadline_seconds": 1e12 }), "deadline_seconds"),
        (json!({ "deadline_seconds": "60" }), "deadline_seconds"),
        (json!({ "status": "running" }), "status"),
    ];
    assert_fields_are_checked(&app, "/v1/jobs", &valid, &invalid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn update_fields_are_validated() {
    let app = hub().spawn().await;
    let id = app.register_worker_job("alice").await;
    let valid = json!({ "status": "running", "progress": 5 });
    let invalid = [
        (json!({ "status": "resting" }), "status"),
        (json!({ "status": 5 }), "status"),
        (json!({ "progress": -1 }), "progress"),
        (json!({ "progress": 100.1 }), "progress"),
        (json!({ "progress": "50%" }), "progress"),
        (json!({ "stage": 5 }), "stage"),
        (json!({ "stage": "s".repeat(201) }), "stage"),
        (json!({ "queue_position": -1 }), "queue_position"),
        (json!({ "queue_position": 1.5 }), "queue_position"),
        (json!({ "eta_seconds": -1 }), "eta_seconds"),
        (json!({ "eta_seconds": "soon" }), "eta_seconds"),
        (json!({ "outputs": [{ "url": "https://a/b" }] }), "outputs"),
        (
            json!({ "status": "succeeded", "outputs": "https://a/b" }),
            "outputs",
        ),
        (json!({ "status": "succeeded", "outputs": [{}] }), "url"),
        (
            json!({ "status": "succeeded", "outputs": [{ "url": 5 }] }),
            "outputs",
        ),
        (json!({ "error": { "message": "no" } }), "error"),
        (json!({ "status": "failed", "error": "no" }), "error"),
        (
            json!({ "status": "failed", "error": { "kind": "bad luck" } }),
            "error",
        ),
        (
            json!({ "status": "failed", "error": { "message": "x".repeat(5000) } }),
            "error",
        ),
        (json!({ "owner": "bob" }), "owner"),
    ];
    assert_fields_are_checked(&app, &format!("/v1/jobs/{id}/updates"), &valid, &invalid).await;
    assert_eq!(app.get_job(&id, "alice").await["version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_request_fields_are_validated() {
    let app = hub().spawn().await;
    let valid = json!({ "sub": "alice" });
    let invalid = [
        (json!({ "sub": null }), "sub"),
        (json!({ "sub": "" }), "sub"),
        (json!({ "sub": 5 }), "sub"),
        (json!({ "sub": "s".repeat(256) }), "sub"),
        (json!({ "jobs": "job_1" }), "jobs"),
        (json!({ "jobs": ["nothing"] }), "jobs"),
        (
            json!({ "jobs": vec!["job_01a3c80000007000800000000000000a"; 65] }),
            "jobs",
        ),
        (json!({ "scope": 5 }), "scope"),
        (json!({ "scope": "jobs:fly" }), "scope"),
        (json!({ "ttl_seconds": 0 }), "ttl_seconds"),
        (json!({ "ttl_seconds": -1 }), "ttl_seconds"),
        (json!({ "ttl_seconds": 1.5 }), "ttl_seconds"),
        (json!({ "ttl_seconds": 1e9 }), "ttl_seconds"),
        (json!({ "ttl": 60 }), "ttl"),
    ];
    assert_fields_are_checked(&app, "/v1/tokens", &valid, &invalid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_provider_error_lists_configured_providers() {
    let app = hub().spawn().await;
    let token = app.token("root", "admin");
    for (path, body) in [
        (
            "/v1/videos",
            json!({ "provider": "klign", "model": "m", "prompt": "p" }),
        ),
        (
            "/v1/jobs",
            json!({ "provider": "klign", "provider_task_id": "1", "owner": "a" }),
        ),
    ] {
        let response = send(
            app.request_with_token(Method::POST, path, &token)
                .json(&body),
        )
        .await;
        assert_eq!(response.status, 400);
        assert_eq!(response.body["code"], "unknown_provider");
        let detail = response.body["detail"].as_str().unwrap();
        for name in ["klign", "generic", "kling"] {
            assert!(detail.contains(name), "{detail}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_is_required_if_several_are_configured() {
    let body = json!({ "model": "m", "prompt": "p" });
    let app = hub().spawn().await;
    let response = send(app.request(Method::POST, "/v1/videos", "alice").json(&body)).await;
    assert_eq!(
        response.body["provider"], "kling",
        "it is the only provider"
    );

    let app = hub()
        .set("providers.other.spec", "kling")
        .set("providers.other.api_key", "k")
        .spawn()
        .await;
    let response = send(app.request(Method::POST, "/v1/videos", "alice").json(&body)).await;
    assert_invalid(&response, "provider", &body);
}

#[tokio::test(flavor = "multi_thread")]
async fn default_provider_is_used_if_none_is_given() {
    let app = hub().set("defaults.provider", "kling").spawn().await;
    let body = json!({ "model": "m", "prompt": "p" });
    let response = send(app.request(Method::POST, "/v1/videos", "alice").json(&body)).await;
    assert_eq!(
        (response.status.as_u16(), &response.body["provider"]),
        (202, &json!("kling"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_key_must_have_1_to_255_characters() {
    let app = hub().spawn().await;
    let body = json!({ "provider": "kling", "model": "m", "prompt": "p" });
    for (key, status) in [
        (String::new(), 400),
        ("k".repeat(256), 400),
        ("k".repeat(255), 202),
    ] {
        let request = app.request(Method::POST, "/v1/videos", "alice");
        let response = send(request.header("idempotency-key", &key).json(&body)).await;
        assert_eq!(response.status, status, "{}", response.body);
        if status == 400 {
            assert_invalid(&response, "Idempotency-Key", &json!(key));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_mints_tokens_with_the_requested_rights() {
    let app = hub().spawn().await;
    let body = json!({ "sub": "alice", "ttl_seconds": 60 });
    for scope in ["jobs:read", "jobs:write", "jobs:publish"] {
        let token = app.token("alice", scope);
        let request = app.request_with_token(Method::POST, "/v1/tokens", &token);
        let response = send(request.json(&body)).await;
        assert_eq!(
            (response.status.as_u16(), &response.body["code"]),
            (403, &json!("forbidden"))
        );
    }
    let admin = app.token("root", "admin");
    let request = app.request_with_token(Method::POST, "/v1/tokens", &admin);
    let response = send(request.json(&body)).await;
    assert_eq!(response.status, 201, "{}", response.body);
    let expires: jiff::Timestamp = response.body["expires_at"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let left = expires.as_second() - jiff::Timestamp::now().as_second();
    assert!((50..=61).contains(&left), "{left}");
    let minted = response.body["token"].as_str().unwrap();
    let id = app.register_worker_job("alice").await;
    let path = format!("/v1/jobs/{id}");
    let seen = send(app.request_with_token(Method::GET, &path, minted)).await;
    assert_eq!(seen.status, 200, "{}", seen.body);
    let body = json!({ "provider": "kling", "model": "m", "prompt": "p" });
    let submit = send(
        app.request_with_token(Method::POST, "/v1/videos", minted)
            .json(&body),
    )
    .await;
    assert_eq!(submit.status, 403, "the default scope is jobs:read");
}
