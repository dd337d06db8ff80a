//! Requests that make no sense: each is refused with a stable code and the name of what is wrong.

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, TestAppBuilder, TestResponse, send};

fn hub() -> TestAppBuilder {
    TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", "http://127.0.0.1:9")
        .set("providers.kling.api_key", "a key")
}

/// The body with these fields put in; a null takes one out.
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
fn assert_names(answer: &TestResponse, field: &str, what: &Value) {
    assert_eq!(answer.status, 400, "{what}: {}", answer.body);
    assert_eq!(answer.body["code"], "invalid_request", "{what}");
    assert_eq!(answer.body["retryable"], false);
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    let detail = answer.body["detail"].as_str().unwrap();
    assert!(detail.contains(field), "{what}: {detail}");
}

async fn refuses(app: &TestApp, path: &str, good: &Value, wrong: &[(Value, &str)]) {
    let token = app.token("root", "admin");
    let post = |body: &Value| {
        send(
            app.request_with_token(Method::POST, path, &token)
                .json(body),
        )
    };
    for (changes, field) in wrong {
        assert_names(&post(&with(good.clone(), changes)).await, field, changes);
    }
    for body in [json!([]), json!(null), json!("text"), json!([good])] {
        assert_names(&post(&body).await, "", &body);
    }
    for text in ["", "{", "{\"a\":1}{", "\u{0}", "{\"owner\":\"a\",}"] {
        let request = app.request_with_token(Method::POST, path, &token);
        assert_names(&send(request.body(text)).await, "", &json!(text));
    }
    let request = app.request_with_token(Method::POST, path, &token);
    assert_names(
        &send(request.body(&b"\xff\xff"[..])).await,
        "",
        &json!("bytes"),
    );
    let ok = post(good).await;
    assert!(ok.status.is_success(), "{}", ok.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_field_of_a_submission_is_checked() {
    let app = hub().spawn().await;
    let good = json!({ "provider": "kling", "model": "kling-v3", "prompt": "a lighthouse" });
    let wrong = [
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
        (json!({ "owner": "somebody else" }), "owner"),
    ];
    refuses(&app, "/v1/videos", &good, &wrong).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_field_of_a_registration_is_checked() {
    let app = hub().spawn().await;
    let good = json!({ "owner": "alice" });
    let wrong = [
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
    refuses(&app, "/v1/jobs", &good, &wrong).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_field_of_a_push_is_checked() {
    let app = hub().spawn().await;
    let id = app.register_worker_job("alice").await;
    let good = json!({ "status": "running", "progress": 5 });
    let wrong = [
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
    refuses(&app, &format!("/v1/jobs/{id}/updates"), &good, &wrong).await;
    assert_eq!(app.get_job(&id, "alice").await["version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_request_fields_are_validated() {
    let app = hub().spawn().await;
    let good = json!({ "sub": "alice" });
    let wrong = [
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
    refuses(&app, "/v1/tokens", &good, &wrong).await;
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
        let answer = send(
            app.request_with_token(Method::POST, path, &token)
                .json(&body),
        )
        .await;
        assert_eq!(answer.status, 400);
        assert_eq!(answer.body["code"], "unknown_provider");
        let detail = answer.body["detail"].as_str().unwrap();
        for name in ["klign", "generic", "kling"] {
            assert!(detail.contains(name), "{detail}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_must_be_named_where_there_is_a_choice() {
    let body = json!({ "model": "m", "prompt": "p" });
    let app = hub().spawn().await;
    let answer = send(app.request(Method::POST, "/v1/videos", "alice").json(&body)).await;
    assert_eq!(answer.body["provider"], "kling", "there is no other");

    let app = hub()
        .set("providers.other.spec", "kling")
        .set("providers.other.api_key", "k")
        .spawn()
        .await;
    let answer = send(app.request(Method::POST, "/v1/videos", "alice").json(&body)).await;
    assert_names(&answer, "provider", &body);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_provider_is_taken_where_none_is_named() {
    let app = hub().set("defaults.provider", "kling").spawn().await;
    let body = json!({ "model": "m", "prompt": "p" });
    let answer = send(app.request(Method::POST, "/v1/videos", "alice").json(&body)).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["provider"]),
        (202, &json!("kling"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_has_a_length() {
    let app = hub().spawn().await;
    let body = json!({ "provider": "kling", "model": "m", "prompt": "p" });
    for (key, status) in [
        (String::new(), 400),
        ("k".repeat(256), 400),
        ("k".repeat(255), 202),
    ] {
        let request = app.request(Method::POST, "/v1/videos", "alice");
        let answer = send(request.header("idempotency-key", &key).json(&body)).await;
        assert_eq!(answer.status, status, "{}", answer.body);
        if status == 400 {
            assert_names(&answer, "Idempotency-Key", &json!(key));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_admin_mints_tokens_and_they_do_what_they_say() {
    let app = hub().spawn().await;
    let wish = json!({ "sub": "alice", "ttl_seconds": 60 });
    for scope in ["jobs:read", "jobs:write", "jobs:publish"] {
        let token = app.token("alice", scope);
        let request = app.request_with_token(Method::POST, "/v1/tokens", &token);
        let answer = send(request.json(&wish)).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["code"]),
            (403, &json!("forbidden"))
        );
    }
    let admin = app.token("root", "admin");
    let request = app.request_with_token(Method::POST, "/v1/tokens", &admin);
    let answer = send(request.json(&wish)).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    let expires: jiff::Timestamp = answer.body["expires_at"].as_str().unwrap().parse().unwrap();
    let left = expires.as_second() - jiff::Timestamp::now().as_second();
    assert!((50..=61).contains(&left), "{left}");
    let minted = answer.body["token"].as_str().unwrap();
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
    assert_eq!(submit.status, 403, "a token reads unless it is told more");
}
