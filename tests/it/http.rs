//! HTTP semantics that all resources share: methods, types, encodings, origins and paths.

use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::app::{TestApp, TestResponse, send};

/// Paths and their supported methods, as in the `Allow` header.
const RESOURCES: [(&str, &str); 17] = [
    ("/v1/videos", "POST"),
    ("/v1/jobs", "GET, HEAD, POST"),
    ("/v1/jobs/JOB", "GET, HEAD"),
    ("/v1/jobs/JOB/updates", "POST"),
    ("/v1/jobs/JOB/cancel", "GET, HEAD, POST"),
    ("/v1/jobs/JOB/outputs/0", "GET, HEAD"),
    ("/v1/tokens", "POST"),
    ("/v1/webhooks/generic", "POST"),
    ("/v1/webhooks/generic/token", "POST"),
    ("/v1/providers", "GET, HEAD"),
    ("/v1/providers/generic/resume", "POST"),
    ("/v1/events", "GET, HEAD"),
    ("/v1/ws", "GET, HEAD"),
    ("/v1/health/live", "GET, HEAD"),
    ("/metrics", "GET, HEAD"),
    ("/", "GET, HEAD"),
    ("/progress-hub.js", "GET, HEAD"),
];

#[tokio::test(flavor = "multi_thread")]
async fn unsupported_method_is_answered_with_the_supported_ones() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    for (path, methods) in RESOURCES {
        let path = path.replace("JOB", &job);
        let other = if methods.contains("POST") {
            "PUT"
        } else {
            "POST"
        };
        let other = Method::from_bytes(other.as_bytes()).unwrap();
        let response = send(app.request(other, &path, "alice")).await;
        assert_eq!(response.status, 405, "{path}");
        assert_eq!(response.body["code"], "method_not_allowed");
        assert_eq!(response.headers["allow"], methods, "{path}");
    }
    let unknown = send(app.request(Method::POST, "/v1/unknown", "alice")).await;
    assert_eq!(unknown.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn head_is_answered_as_get_without_a_body() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    for path in [
        "/v1/jobs".to_owned(),
        format!("/v1/jobs/{job}"),
        "/v1/providers".to_owned(),
        format!("/v1/events?job={job}"),
        "/v1/health".to_owned(),
        "/v1/health/ready".to_owned(),
        "/metrics".to_owned(),
        "/".to_owned(),
        "/progress-hub.js".to_owned(),
    ] {
        let head = send(app.request(Method::HEAD, &path, "alice")).await;
        assert_eq!(
            (head.status.as_u16(), &head.body),
            (200, &json!("")),
            "{path}"
        );
        let get = app
            .request(Method::GET, &path, "alice")
            .send()
            .await
            .unwrap();
        assert_eq!(
            head.headers["content-type"],
            get.headers()["content-type"],
            "{path}"
        );
    }
    app.wait_until_no_connections().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_path_without_an_upgrade_names_the_upgrade() {
    let app = TestApp::spawn().await;
    let response = send(app.request(Method::GET, "/v1/ws", "alice")).await;
    assert_eq!(response.status, 426);
    assert_eq!(response.headers["upgrade"], "websocket");
}

fn assert_unsupported(response: &TestResponse, detail: &str) {
    assert_eq!(response.status, 415, "{}", response.body);
    assert_eq!(response.body["code"], "unsupported_media_type");
    assert_eq!(response.body["detail"], detail);
}

#[tokio::test(flavor = "multi_thread")]
async fn body_that_is_not_json_is_rejected_by_its_type() {
    let app = TestApp::spawn().await;
    let body = json!({ "owner": "alice" }).to_string();
    let worker = app.token("worker", "jobs:publish");
    let register = |content_type: Option<&str>| {
        let request = app
            .request_with_token(Method::POST, "/v1/jobs", &worker)
            .body(body.clone());
        send(match content_type {
            Some(content_type) => request.header("content-type", content_type),
            None => request,
        })
    };
    for content_type in [
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "text/plain",
    ] {
        let response = register(Some(content_type)).await;
        let media_type = content_type.split(';').next().unwrap();
        assert_unsupported(
            &response,
            &format!("Content-Type must be application/json, is '{media_type}'"),
        );
        assert_eq!(response.headers["accept"], "application/json");
    }
    for content_type in [
        None,
        Some("application/json"),
        Some("Application/JSON; charset=utf-8"),
        Some("application/vnd.api+json"),
    ] {
        assert_eq!(register(content_type).await.status, 201, "{content_type:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn encoded_body_is_rejected_by_its_encoding() {
    let app = TestApp::spawn().await;
    let worker = app.token("worker", "jobs:publish");
    for (path, encoding) in [
        ("/v1/jobs", "gzip"),
        ("/v1/jobs", "foo"),
        ("/v1/webhooks/generic", "br"),
    ] {
        let request = app
            .request_with_token(Method::POST, path, &worker)
            .header("content-encoding", encoding)
            .json(&json!({ "owner": "alice" }));
        let response = send(request).await;
        assert_unsupported(
            &response,
            &format!("Content-Encoding '{encoding}' is not supported; send the body without it"),
        );
        assert_eq!(response.headers["accept-encoding"], "identity");
    }
    let identity = app
        .request_with_token(Method::POST, "/v1/jobs", &worker)
        .header("content-encoding", "identity")
        .json(&json!({ "owner": "alice" }));
    assert_eq!(send(identity).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_parameter_is_named() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    for (path, detail) in [
        (
            "/v1/jobs?limit=abc".to_owned(),
            "limit must be a non-negative integer",
        ),
        (
            "/v1/jobs?limit=1&limit=2".to_owned(),
            "limit must not occur more than once",
        ),
        (
            format!("/v1/jobs/{job}?since=x"),
            "since must be a non-negative integer",
        ),
        (format!("/v1/jobs/{job}?wait=long"), "wait must be a number"),
    ] {
        let response = send(app.request(Method::GET, &path, "alice")).await;
        assert_eq!(
            (response.status.as_u16(), &response.body["detail"]),
            (400, &json!(detail)),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn if_none_match_with_a_star_matches_every_version() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    for (tag, status) in [("*", 304), ("\"1\"", 304), ("W/\"1\"", 304), ("\"0\"", 200)] {
        let request = app.request(Method::GET, &format!("/v1/jobs/{job}"), "alice");
        assert_eq!(
            send(request.header("if-none-match", tag)).await.status,
            status,
            "{tag}"
        );
    }
}

/// Sends a request with a client that does not decompress.
async fn get_encoded(app: &TestApp, path: &str, accept_encoding: &str) -> Response {
    let client = reqwest::Client::builder()
        .no_proxy()
        .no_gzip()
        .build()
        .unwrap();
    let request = client
        .get(format!("{}{path}", app.url))
        .bearer_auth(app.token("alice", "jobs:read"))
        .header("accept-encoding", accept_encoding);
    request.send().await.unwrap()
}

fn header(response: &Response, name: &str) -> Option<String> {
    let value = response.headers().get(name)?;
    Some(value.to_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn large_json_and_files_are_compressed() {
    let app = TestApp::spawn().await;
    for _ in 0..10 {
        app.register_worker_job("alice").await;
    }
    let worker = app.token("worker", "jobs:publish");
    let large = json!({ "owner": "alice", "metadata": { "text": "a".repeat(1900) } });
    let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
    let large = send(request.json(&large)).await.body["id"].clone();
    let large = format!("/v1/jobs/{}", large.as_str().unwrap());
    for path in [
        "/v1/jobs",
        &large,
        "/metrics",
        "/progress-hub.js",
        "/page.css",
        "/",
    ] {
        let plain = get_encoded(&app, path, "identity").await;
        assert_eq!(header(&plain, "content-encoding"), None, "{path}");
        let vary = plain.headers().get_all("vary").iter();
        let vary: Vec<String> = vary
            .map(|value| value.to_str().unwrap().to_ascii_lowercase())
            .collect();
        let vary = vary.join(", ");
        assert_eq!(vary.matches("accept-encoding").count(), 1, "{path}: {vary}");
        let etag = header(&plain, "etag");
        let length = plain.bytes().await.unwrap().len();
        for (accepted, encoding) in [("gzip, deflate, br, zstd", "br"), ("gzip", "gzip")] {
            let compressed = get_encoded(&app, path, accepted).await;
            assert_eq!(
                header(&compressed, "content-encoding").as_deref(),
                Some(encoding),
                "{path}"
            );
            if etag.is_some() {
                assert_ne!(header(&compressed, "etag"), etag, "{path}");
            }
            let bytes = compressed.bytes().await.unwrap();
            assert!(
                bytes.len() * 2 < length,
                "{path}: {} of {length} bytes",
                bytes.len()
            );
        }
    }
    let job = app.register_worker_job("alice").await;
    let small = get_encoded(&app, &format!("/v1/jobs/{job}"), "gzip").await;
    assert_eq!(header(&small, "content-encoding"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_compressed_file_is_answered_304() {
    let app = TestApp::spawn().await;
    let first = get_encoded(&app, "/progress-hub.js", "br").await;
    let etag = header(&first, "etag").unwrap();
    let again = app
        .request_without_token(Method::GET, "/progress-hub.js")
        .header("accept-encoding", "br")
        .header("if-none-match", etag);
    assert_eq!(send(again).await.status, 304);
}

#[tokio::test(flavor = "multi_thread")]
async fn created_job_is_located_below_the_public_path() {
    for (public_url, prefix) in [
        ("https://example.com/hub", "/hub"),
        ("https://example.com/a/b/", "/a/b"),
        ("https://example.com", ""),
    ] {
        let app = TestApp::builder()
            .set("server.public_url", public_url)
            .spawn()
            .await;
        let request = app
            .request_with_token(
                Method::POST,
                "/v1/jobs",
                &app.token("worker", "jobs:publish"),
            )
            .json(&json!({ "owner": "alice" }));
        let response = send(request).await;
        let id = response.body["id"].as_str().unwrap();
        assert_eq!(
            response.headers["location"],
            format!("{prefix}/v1/jobs/{id}")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn page_refers_to_its_files_by_relative_paths() {
    let app = TestApp::spawn().await;
    let page = send(app.request_without_token(Method::GET, "/")).await;
    let page = page.body.as_str().unwrap();
    for absolute in ["href=\"/", "src=\"/"] {
        assert!(!page.contains(absolute), "{absolute}");
    }
}

fn preflight(app: &TestApp, origin: &str) -> reqwest::RequestBuilder {
    app.request_without_token(Method::OPTIONS, "/v1/jobs")
        .header("origin", origin)
        .header("access-control-request-method", "GET")
        .header("access-control-request-headers", "authorization")
}

#[tokio::test(flavor = "multi_thread")]
async fn preflight_of_a_foreign_origin_is_a_problem() {
    let app = TestApp::builder()
        .set("server.allowed_origins", "http://localhost:*")
        .spawn()
        .await;
    let allowed = send(preflight(&app, "http://localhost:5173")).await;
    assert_eq!(allowed.status, 200);
    assert_eq!(
        allowed.headers["access-control-allow-origin"],
        "http://localhost:5173"
    );
    let rejected = send(preflight(&app, "https://other.example")).await;
    assert_eq!(
        (rejected.status.as_u16(), &rejected.body["code"]),
        (403, &json!("origin_refused"))
    );
    assert_eq!(rejected.headers["content-type"], "application/problem+json");
    let detail: &Value = &rejected.body["detail"];
    assert!(
        detail.as_str().unwrap().contains("server.allowed_origins"),
        "{detail}"
    );
}
