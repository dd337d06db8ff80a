//! Outputs that only the provider's API key can read: authorization, ranges, headers and errors.

use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::app::{TestApp, TestResponse, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};
use crate::webhook_signatures;

const SECRET: &str = "webhook secret of the vault";

const SPEC: &str = r#"
title = "A provider with private files"
requires = ["api_key", "base_url", "webhook_secrets"]
headers = { x-key = "{{ api_key }}", accept = "application/json" }
poll_after = "100ms"
poll_every = "100ms"

[signature]
scheme = "hmac"
header = "x-vault-signature"
encoding = "hex"
signed = "{body}"

[poll]
url = "{{ base_url }}/tasks/{{ task_id }}"

[read]
task_id = "payload.id"
status = "payload.state"
outputs = "payload.files"
statuses = { working = "running", done = "succeeded" }
"#;

const CLIP: &str = "0123456789";

/// Starts a provider whose only task has these outputs. `/api/files/clip` supports ranges.
async fn vault(files: Value) -> MockProvider {
    let task = json!({ "id": "t1", "state": "done", "files": files });
    MockProvider::start(move |request: RecordedRequest| {
        let response = match request.path.as_str() {
            path if path.starts_with("/api/tasks/") => MockResponse::json(200, &task),
            _ if request.header("x-key") != Some("the key") => MockResponse::text(401, "no key"),
            "/api/files/clip" => clip(&request),
            "/api/files/page" => MockResponse::text(200, "<script>")
                .with_header("content-type", "text/html; charset=utf-8"),
            "/api/files/long" => MockResponse::text(200, CLIP.repeat(1 << 19)),
            path => match path.strip_prefix("/api/status/") {
                Some(status) => MockResponse::text(status.parse().unwrap(), "internal detail"),
                None => MockResponse::text(404, ""),
            },
        };
        async move { response }
    })
    .await
}

fn clip(request: &RecordedRequest) -> MockResponse {
    let part = match request.header("range") {
        Some("bytes=2-4") => {
            MockResponse::text(206, &CLIP[2..5]).with_header("content-range", "bytes 2-4/10")
        }
        Some(_) => {
            MockResponse::text(416, "no such range").with_header("content-range", "bytes */10")
        }
        None => MockResponse::text(200, CLIP),
    };
    part.with_header("content-type", "video/mp4")
        .with_header("accept-ranges", "bytes")
        .with_header("etag", "\"clip-1\"")
        .with_header("set-cookie", "session=of-the-key")
}

async fn hub(provider: &MockProvider, settings: &[(&str, usize)]) -> (TestApp, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let spec = directory.path().join("vault.toml");
    std::fs::write(&spec, SPEC).unwrap();
    let base_url = format!("{}/api", provider.url);
    let hub = settings
        .iter()
        .fold(TestApp::builder(), |hub, (key, value)| hub.set(key, value));
    let app = hub
        .set("providers.vault.spec", spec.display())
        .set("providers.vault.base_url", base_url)
        .set("providers.vault.api_key", "the key")
        .set("providers.vault.webhook_secrets", SECRET)
        .set("server.allowed_origins", "https://app.example.com")
        .spawn()
        .await;
    (app, directory)
}

async fn register(app: &TestApp, task: &str) -> Value {
    let body = json!({ "provider": "vault", "provider_task_id": task, "owner": "alice" });
    let worker = app.token("worker", "jobs:publish");
    let response = send(
        app.request_with_token(Method::POST, "/v1/jobs", &worker)
            .json(&body),
    )
    .await;
    assert_eq!(response.status, 201, "{}", response.body);
    response.body
}

/// Runs a job with these outputs and returns its final document.
async fn succeeded_job(files: Value) -> (MockProvider, TestApp, TempDir, Value) {
    succeeded_job_with(&[], files).await
}

async fn succeeded_job_with(
    settings: &[(&str, usize)],
    files: Value,
) -> (MockProvider, TestApp, TempDir, Value) {
    let provider = vault(files).await;
    let (app, directory) = hub(&provider, settings).await;
    let job = register(&app, "t1").await;
    let job = app
        .wait_until_final(job["id"].as_str().unwrap(), "alice")
        .await;
    assert_eq!(job["status"], "succeeded", "{job}");
    (provider, app, directory, job)
}

fn private(url: &str) -> Value {
    json!({ "url": url, "type": "video", "private": true })
}

/// Returns the path and query of an output's URL, which must be a link of the hub.
fn link(app: &TestApp, job: &Value, n: usize) -> String {
    let url = job["outputs"][n]["url"].as_str().unwrap();
    let path = url.strip_prefix(&app.url);
    let path = path.unwrap_or_else(|| panic!("not a link of the hub: {url}"));
    let id = job["id"].as_str().unwrap();
    assert!(path.starts_with(&format!("/v1/jobs/{id}/outputs/{n}?grant=")));
    path.to_owned()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    let value = response.headers().get(name);
    value.map_or("", |value| value.to_str().unwrap())
}

#[track_caller]
fn assert_error(response: &TestResponse, status: u16, code: &str) {
    assert_eq!(response.status, status, "{}", response.body);
    assert_eq!(response.body["code"], code);
}

#[tokio::test(flavor = "multi_thread")]
async fn private_output_is_served_whole_and_by_range() {
    let (provider, app, _directory, job) = succeeded_job(json!([private("files/clip")])).await;
    let link = link(&app, &job, 0);
    for hidden in ["files/clip", "the key", &provider.url] {
        assert!(!job.to_string().contains(hidden), "{job}");
    }

    let whole = app
        .request_without_token(Method::GET, &link)
        .send()
        .await
        .unwrap();
    assert_eq!(whole.status(), 200);
    let id = job["id"].as_str().unwrap();
    for (name, value) in [
        ("content-type", "video/mp4"),
        ("content-length", "10"),
        ("accept-ranges", "bytes"),
        ("etag", "\"clip-1\""),
        ("cache-control", "private"),
        ("x-content-type-options", "nosniff"),
        (
            "content-disposition",
            &format!("inline; filename=\"{id}-0.mp4\""),
        ),
        ("set-cookie", ""),
    ] {
        assert_eq!(header(&whole, name), value, "{name}");
    }
    assert!(header(&whole, "content-security-policy").starts_with("sandbox;"));
    assert_eq!(whole.text().await.unwrap(), CLIP);

    let ranged = |range: &str| {
        let request = app
            .request_without_token(Method::GET, &link)
            .header("range", range);
        request.header("if-range", "\"clip-1\"").send()
    };
    let part = ranged("bytes=2-4").await.unwrap();
    assert_eq!(part.status(), 206);
    assert_eq!(header(&part, "content-range"), "bytes 2-4/10");
    assert_eq!(part.text().await.unwrap(), "234");
    let beyond = ranged("bytes=10-").await.unwrap();
    assert_eq!(beyond.status(), 416);
    assert_eq!(header(&beyond, "content-range"), "bytes */10");
    assert_eq!(beyond.text().await.unwrap(), "");

    let head = app
        .request_without_token(Method::HEAD, &link)
        .send()
        .await
        .unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(header(&head, "content-length"), "10");
    assert_eq!(header(&head, "content-type"), "video/mp4");
    assert_eq!(head.text().await.unwrap(), "");

    let requests = provider.requests();
    let fetches: Vec<&RecordedRequest> = requests
        .iter()
        .filter(|request| request.path == "/api/files/clip")
        .collect();
    assert_eq!(fetches.len(), 4);
    assert_eq!(fetches[1].header("if-range"), Some("\"clip-1\""));
    for fetch in fetches {
        assert_eq!(fetch.method, "GET");
        assert_eq!(fetch.header("accept"), Some("*/*"));
        assert_eq!(fetch.header("authorization"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_output_is_complete() {
    let (_provider, app, _directory, job) = succeeded_job(json!([private("files/long")])).await;
    let request = app.request_without_token(Method::GET, &link(&app, &job, 0));
    let text = request.send().await.unwrap().text().await.unwrap();
    assert!(text == CLIP.repeat(1 << 19), "{} bytes", text.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn output_requires_a_token_for_the_job_or_a_grant_for_the_output() {
    let files = json!([
        private("files/clip"),
        private("/api/files/clip"),
        { "url": "files/clip", "private": true, "expires_at": 1_000_000_000 },
    ]);
    let (_provider, app, _directory, job) = succeeded_job(files).await;
    let other = app.register_worker_job("alice").await;
    let path = |n: &str| format!("/v1/jobs/{}/outputs/{n}", job["id"].as_str().unwrap());
    let first = link(&app, &job, 0);
    let (_, grant) = first.split_once('?').unwrap();
    let with_grant =
        |path: String| app.request_without_token(Method::GET, &format!("{path}?{grant}"));
    let get = |path: String, who: &str| app.request(Method::GET, &path, who);
    let assert_ok = |request: RequestBuilder| async {
        let response = send(request).await;
        assert_eq!(response.status, 200, "{}", response.body);
        assert_eq!(response.body, CLIP);
    };

    assert_ok(get(path("0"), "alice")).await;
    assert_ok(get(path("1"), "alice")).await;
    assert_ok(with_grant(path("0"))).await;
    // One valid credential suffices, even if the other is invalid.
    assert_ok(get(first.clone(), "bob")).await;
    assert_ok(get(format!("{}?grant=old", path("0")), "alice")).await;

    for request in [
        with_grant(path("1")),
        with_grant(path("7")),
        with_grant(format!("/v1/jobs/{other}/outputs/0")),
        app.request_without_token(Method::GET, &format!("{first}x")),
        app.request_without_token(Method::GET, &format!("{}?grant=", path("0"))),
        app.request_without_token(Method::GET, &link(&app, &job, 2)),
    ] {
        assert_error(&send(request).await, 403, "invalid_grant");
    }
    let anonymous = app.request_without_token(Method::GET, &path("0"));
    assert_error(&send(anonymous).await, 401, "unauthorized");
    for (n, who) in [
        ("0", "bob"),
        ("3", "alice"),
        ("x", "alice"),
        ("-1", "alice"),
    ] {
        assert_error(&send(get(path(n), who)).await, 404, "not_found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn public_output_is_redirected_to_its_url() {
    let public = json!({ "url": "https://cdn.example.com/b.mp4", "type": "video" });
    let (_provider, app, _directory, job) =
        succeeded_job(json!([private("files/clip"), public])).await;
    assert_eq!(job["outputs"][1]["url"], "https://cdn.example.com/b.mp4");
    let path = format!("/v1/jobs/{}/outputs/1", job["id"].as_str().unwrap());
    let http = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .unwrap();
    let token = app.token("alice", "jobs:read");
    let request = http.get(format!("{}{path}", app.url)).bearer_auth(token);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 307);
    assert_eq!(
        header(&response, "location"),
        "https://cdn.example.com/b.mp4"
    );
    assert_eq!(header(&response, "cache-control"), "private, no-store");
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_errors_are_mapped_without_their_details() {
    let statuses = [
        ("404", 410, "output_gone"),
        ("410", 410, "output_gone"),
        ("401", 502, "provider_error"),
        ("403", 502, "provider_error"),
        ("500", 502, "provider_error"),
    ];
    let files = statuses.map(|(status, _, _)| private(&format!("status/{status}")));
    let (_provider, app, _directory, job) = succeeded_job(json!(files)).await;
    for (n, (_, status, code)) in statuses.into_iter().enumerate() {
        let response = send(app.request_without_token(Method::GET, &link(&app, &job, n))).await;
        assert_error(&response, status, code);
        assert_eq!(response.body["retryable"], status == 502);
        assert!(!response.body.to_string().contains("internal detail"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_on_private_addresses_are_not_fetched() {
    let internal = MockProvider::start(|_| async { MockResponse::text(200, "metadata") }).await;
    let https = internal.url.replace("http:", "https:");
    let addresses = [
        internal.url.clone(),
        https,
        "file:///etc/hostname".to_owned(),
    ];
    let files = addresses.map(|url| private(&url));
    let (_provider, app, _directory, job) = succeeded_job(json!(files)).await;
    for n in 0..3 {
        let response = send(app.request_without_token(Method::GET, &link(&app, &job, n))).await;
        assert_error(&response, 502, "provider_error");
    }
    assert_eq!(internal.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn html_output_is_inert_and_readable_from_allowed_origins() {
    let (_provider, app, _directory, job) = succeeded_job(json!([private("files/page")])).await;
    let request = app.request_without_token(Method::GET, &link(&app, &job, 0));
    let request = request.header("origin", "https://app.example.com");
    let page = request.send().await.unwrap();
    let (origin, exposed) = (
        "access-control-allow-origin",
        "access-control-expose-headers",
    );
    assert_eq!(header(&page, "content-type"), "application/octet-stream");
    assert_eq!(header(&page, "x-content-type-options"), "nosniff");
    assert_eq!(header(&page, origin), "https://app.example.com");
    assert!(header(&page, exposed).contains("content-range"));
}

#[tokio::test(flavor = "multi_thread")]
async fn buffered_webhook_produces_output_links() {
    let provider = vault(json!([])).await;
    let (app, _directory) = hub(&provider, &[]).await;
    let body = json!({ "id": "t9", "state": "done", "files": [private("files/clip")] }).to_string();
    let request = app.request_without_token(Method::POST, "/v1/webhooks/vault");
    let signature = webhook_signatures::hex(SECRET, body.as_bytes());
    let response = send(request.header("x-vault-signature", signature).body(body)).await;
    assert_eq!(response.body, json!({ "matched": false, "applied": false }));
    let job = register(&app, "t9").await;
    assert_eq!(job["status"], "succeeded");
    let response = send(app.request_without_token(Method::GET, &link(&app, &job, 0))).await;
    assert_eq!(response.status, 200, "{}", response.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_update_cannot_make_the_hub_fetch_outputs() {
    let provider = MockProvider::start(|_| async { MockResponse::text(500, "") }).await;
    let (app, _directory) = hub(&provider, &[]).await;
    let job = register(&app, "t1").await;
    let id = job["id"].as_str().unwrap();
    let outputs = json!([private("/api/files/clip"), private(&provider.url)]);
    let push = json!({ "status": "succeeded", "outputs": outputs, "sources": ["/api/files/clip"] });
    assert_error(&app.push_update(id, push).await, 400, "invalid_request");
    let push = json!({ "status": "succeeded", "outputs": outputs });
    assert_error(&app.push_update(id, push).await, 400, "invalid_request");
    let push = json!({ "status": "succeeded", "outputs": [private(&provider.url)] });
    assert_eq!(app.push_update(id, push).await.status, 200);
    let job = app.get_job(id, "alice").await;
    assert_eq!(job["outputs"][0]["url"], provider.url);
    let path = format!("/v1/jobs/{id}/outputs/0");
    let request = app.request(Method::GET, &path, "alice").build().unwrap();
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let response = client.execute(request).await.unwrap();
    assert_eq!(
        response.status(),
        307,
        "the client fetches it, without the provider's key"
    );
    let requests = provider.requests();
    let is_fetch = |request: &RecordedRequest| !request.path.starts_with("/api/tasks/");
    assert!(!requests.iter().any(is_fetch), "{requests:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_link_and_one_owner_cannot_use_all_downloads() {
    for (setting, other_output) in [
        ("limits.downloads_per_link", 200),
        ("limits.downloads_per_owner", 503),
    ] {
        let files = json!([private("files/long"), private("files/clip")]);
        let (_provider, app, _spec, job) = succeeded_job_with(&[(setting, 1)], files).await;
        let id = job["id"].as_str().unwrap();
        let output =
            |n: usize| app.request(Method::GET, &format!("/v1/jobs/{id}/outputs/{n}"), "alice");
        // The client does not read the rest of the body, so the download stays in progress.
        let slow: Response = output(0).send().await.unwrap();
        assert_eq!(slow.status(), 200);
        let rejected = send(output(0)).await;
        assert_eq!(rejected.status, 503, "{}", rejected.body);
        assert_eq!(rejected.body["code"], "too_many_downloads");
        assert!(rejected.headers.contains_key("retry-after"));
        assert_eq!(send(output(1)).await.status, other_output, "{setting}");
        drop(slow);
        crate::wait::wait_until("the download has ended", async || {
            send(output(0)).await.status == 200
        })
        .await;
    }
}
