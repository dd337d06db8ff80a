//! Outputs that only the provider's key can read: who gets them, and what nobody gets.

use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::app::{TestApp, TestResponse, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};
use crate::webhook_signatures;

const SECRET: &str = "a secret of the vault's";

const SPEC: &str = r#"
title = "A provider with its files behind its key"
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

/// A provider whose only task has these files, and whose `/api/files/clip` is a clip in ranges.
async fn vault(files: Value) -> MockProvider {
    let task = json!({ "id": "t1", "state": "done", "files": files });
    MockProvider::start(move |asked: RecordedRequest| {
        let reply = match asked.path.as_str() {
            path if path.starts_with("/api/tasks/") => MockResponse::json(200, &task),
            _ if asked.header("x-key") != Some("the key") => MockResponse::text(401, "a stranger"),
            "/api/files/clip" => clip(&asked),
            "/api/files/page" => MockResponse::text(200, "<script>")
                .with_header("content-type", "text/html; charset=utf-8"),
            "/api/files/long" => MockResponse::text(200, CLIP.repeat(1 << 19)),
            path => match path.strip_prefix("/api/status/") {
                Some(status) => MockResponse::text(status.parse().unwrap(), "a secret matter"),
                None => MockResponse::text(404, ""),
            },
        };
        async move { reply }
    })
    .await
}

fn clip(asked: &RecordedRequest) -> MockResponse {
    let part = match asked.header("range") {
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

async fn hub(provider: &MockProvider) -> (TestApp, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let spec = folder.path().join("vault.toml");
    std::fs::write(&spec, SPEC).unwrap();
    let base_url = format!("{}/api", provider.url);
    let app = TestApp::builder()
        .set("providers.vault.spec", spec.display())
        .set("providers.vault.base_url", base_url)
        .set("providers.vault.api_key", "the key")
        .set("providers.vault.webhook_secrets", SECRET)
        .set("server.allowed_origins", "https://app.example.com")
        .spawn()
        .await;
    (app, folder)
}

async fn register(app: &TestApp, task: &str) -> Value {
    let body = json!({ "provider": "vault", "provider_task_id": task, "owner": "alice" });
    let worker = app.token("worker", "jobs:publish");
    let answer = send(
        app.request_with_token(Method::POST, "/v1/jobs", &worker)
            .json(&body),
    )
    .await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    answer.body
}

/// A hub, its provider, and the end of a job with these files.
async fn done(files: Value) -> (MockProvider, TestApp, TempDir, Value) {
    let provider = vault(files).await;
    let (app, folder) = hub(&provider).await;
    let job = register(&app, "t1").await;
    let job = app
        .wait_until_final(job["id"].as_str().unwrap(), "alice")
        .await;
    assert_eq!(job["status"], "succeeded", "{job}");
    (provider, app, folder, job)
}

fn private(url: &str) -> Value {
    json!({ "url": url, "type": "video", "private": true })
}

/// The path and query of an output's URL, which must be the hub's.
fn link(app: &TestApp, job: &Value, n: usize) -> String {
    let url = job["outputs"][n]["url"].as_str().unwrap();
    let path = url.strip_prefix(&app.url);
    let path = path.unwrap_or_else(|| panic!("not the hub's: {url}"));
    let id = job["id"].as_str().unwrap();
    assert!(path.starts_with(&format!("/v1/jobs/{id}/outputs/{n}?grant=")));
    path.to_owned()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    let value = response.headers().get(name);
    value.map_or("", |value| value.to_str().unwrap())
}

#[track_caller]
fn assert_refused(answer: &TestResponse, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.body);
    assert_eq!(answer.body["code"], code);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_behind_a_key_is_served_whole_and_in_parts_by_its_link() {
    let (provider, app, _folder, job) = done(json!([private("files/clip")])).await;
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

    let asked = provider.requests();
    let fetches: Vec<&RecordedRequest> = asked
        .iter()
        .filter(|asked| asked.path == "/api/files/clip")
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
async fn a_long_output_comes_whole() {
    let (_provider, app, _folder, job) = done(json!([private("files/long")])).await;
    let request = app.request_without_token(Method::GET, &link(&app, &job, 0));
    let text = request.send().await.unwrap().text().await.unwrap();
    assert!(text == CLIP.repeat(1 << 19), "{} bytes", text.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_takes_a_token_that_may_see_the_job_or_the_link_to_this_very_output() {
    let files = json!([
        private("files/clip"),
        private("/api/files/clip"),
        { "url": "files/clip", "private": true, "expires_at": 1_000_000_000 },
    ]);
    let (_provider, app, _folder, job) = done(files).await;
    let other = app.register_worker_job("alice").await;
    let path = |n: &str| format!("/v1/jobs/{}/outputs/{n}", job["id"].as_str().unwrap());
    let first = link(&app, &job, 0);
    let (_, grant) = first.split_once('?').unwrap();
    let with = |path: String| app.request_without_token(Method::GET, &format!("{path}?{grant}"));
    let get = |path: String, who: &str| app.request(Method::GET, &path, who);
    let fine = |request: RequestBuilder| async {
        let answer = send(request).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.body, CLIP);
    };

    fine(get(path("0"), "alice")).await;
    fine(get(path("1"), "alice")).await;
    fine(with(path("0"))).await;
    // Either is enough, whatever the other is worth.
    fine(get(first.clone(), "bob")).await;
    fine(get(format!("{}?grant=old", path("0")), "alice")).await;

    for refused in [
        with(path("1")),
        with(path("7")),
        with(format!("/v1/jobs/{other}/outputs/0")),
        app.request_without_token(Method::GET, &format!("{first}x")),
        app.request_without_token(Method::GET, &format!("{}?grant=", path("0"))),
        app.request_without_token(Method::GET, &link(&app, &job, 2)),
    ] {
        assert_refused(&send(refused).await, 403, "invalid_grant");
    }
    let stranger = app.request_without_token(Method::GET, &path("0"));
    assert_refused(&send(stranger).await, 401, "unauthorized");
    for (n, who) in [
        ("0", "bob"),
        ("3", "alice"),
        ("x", "alice"),
        ("-1", "alice"),
    ] {
        assert_refused(&send(get(path(n), who)).await, 404, "not_found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_output_is_where_its_document_says() {
    let public = json!({ "url": "https://cdn.example.com/b.mp4", "type": "video" });
    let (_provider, app, _folder, job) = done(json!([private("files/clip"), public])).await;
    assert_eq!(job["outputs"][1]["url"], "https://cdn.example.com/b.mp4");
    let path = format!("/v1/jobs/{}/outputs/1", job["id"].as_str().unwrap());
    let browser = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .unwrap();
    let token = app.token("alice", "jobs:read");
    let request = browser.get(format!("{}{path}", app.url)).bearer_auth(token);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 307);
    assert_eq!(header(&answer, "location"), "https://cdn.example.com/b.mp4");
    assert_eq!(header(&answer, "cache-control"), "no-store");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_provider_does_not_give_is_told_without_its_words() {
    let statuses = [
        ("404", 410, "output_gone"),
        ("410", 410, "output_gone"),
        ("401", 502, "provider_error"),
        ("403", 502, "provider_error"),
        ("500", 502, "provider_error"),
    ];
    let files = statuses.map(|(status, _, _)| private(&format!("status/{status}")));
    let (_provider, app, _folder, job) = done(json!(files)).await;
    for (n, (_, status, code)) in statuses.into_iter().enumerate() {
        let answer = send(app.request_without_token(Method::GET, &link(&app, &job, n))).await;
        assert_refused(&answer, status, code);
        assert_eq!(answer.body["retryable"], status == 502);
        assert!(!answer.body.to_string().contains("secret matter"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_is_sent_nowhere_but_to_its_provider_and_the_public_internet() {
    let inner = MockProvider::start(|_| async { MockResponse::text(200, "the metadata") }).await;
    let https = inner.url.replace("http:", "https:");
    let addresses = [inner.url.clone(), https, "file:///etc/hostname".to_owned()];
    let files = addresses.map(|url| private(&url));
    let (_provider, app, _folder, job) = done(json!(files)).await;
    for n in 0..3 {
        let answer = send(app.request_without_token(Method::GET, &link(&app, &job, n))).await;
        assert_refused(&answer, 502, "provider_error");
    }
    assert_eq!(inner.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_runs_nothing_of_it_and_pages_of_allowed_origins_may_read_it() {
    let (_provider, app, _folder, job) = done(json!([private("files/page")])).await;
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
async fn parked_news_brings_links_too() {
    let provider = vault(json!([])).await;
    let (app, _folder) = hub(&provider).await;
    let news = json!({ "id": "t9", "state": "done", "files": [private("files/clip")] }).to_string();
    let request = app.request_without_token(Method::POST, "/v1/webhooks/vault");
    let signature = webhook_signatures::hex(SECRET, news.as_bytes());
    let answer = send(request.header("x-vault-signature", signature).body(news)).await;
    assert_eq!(answer.body, json!({ "matched": false, "applied": false }));
    let job = register(&app, "t9").await;
    assert_eq!(job["status"], "succeeded");
    let answer = send(app.request_without_token(Method::GET, &link(&app, &job, 0))).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_push_of_a_worker_has_the_hub_fetch_anything() {
    let provider = MockProvider::start(|_| async { MockResponse::text(500, "") }).await;
    let (app, _folder) = hub(&provider).await;
    let job = register(&app, "t1").await;
    let id = job["id"].as_str().unwrap();
    let outputs = json!([private("/api/files/clip"), private(&provider.url)]);
    let push = json!({ "status": "succeeded", "outputs": outputs, "sources": ["/api/files/clip"] });
    assert_refused(&app.push_update(id, push).await, 400, "invalid_request");
    let push = json!({ "status": "succeeded", "outputs": outputs });
    assert_eq!(app.push_update(id, push).await.status, 200);
    let job = app.get_job(id, "alice").await;
    assert_eq!(job["outputs"][0]["url"], "/api/files/clip");
    let path = format!("/v1/jobs/{id}/outputs/0");
    let answer = send(app.request(Method::GET, &path, "alice")).await;
    assert_refused(&answer, 404, "not_found");
    let asked = provider.requests();
    let is_fetch = |asked: &RecordedRequest| !asked.path.starts_with("/api/tasks/");
    assert!(!asked.iter().any(is_fetch), "{asked:?}");
}
