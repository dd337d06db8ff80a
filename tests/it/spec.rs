//! A custom provider, defined by a spec file alone.

use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::app::{TestApp, TestResponse, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};
use crate::webhook_signatures;

const SECRET: &str = "webhook secret of the studio";

/// A spec with numbers and phrases as statuses, nested ids, a base64 signature over a timestamp and
/// the body, errors in responses with status 200, and error rules by message.
const STUDIO: &str = r#"
title = "Studio"
requires = ["api_key", "secret_key", "webhook_secrets", "base_url"]
headers = { Authorization = "Token {{ api_key }}:{{ secret_key }}" }
poll_after = "1h"
poll_every = "100ms"
deadline = "1m"
max_concurrent = 3

[signature]
scheme = "hmac"
header = "x-studio-signature"
encoding = "base64"
signed = "{header:x-studio-time}.{body}"
timestamp_header = "x-studio-time"

[answer]
ok = "payload.result == 'ok'"
code = "payload.reason.number"
message = "payload.reason.text"

[submit]
method = "PUT"
url = "{{ base_url }}/v2/{{ model|urlencode }}/render"
headers = { x-request = "{{ reference }}" }
body = """{
  "scene": {"text": prompt, "avoid": negative_prompt, "frame": [width, height] if width},
  "seconds": duration|default(5),
  "tell": callback_url,
}|merge(input)"""
item = "payload.render"
handle = "payload.render.desk"

[poll]
url = "{{ base_url }}/desks/{{ handle.number }}/{{ task_id }}"
items = "payload.render"

[cancel]
method = "POST"
url = "{{ base_url }}/desks/{{ handle.number }}/{{ task_id }}/stop"
body = "{'reason': 'requested'}"

[webhook]
item = "payload.event.render"

[read]
task_id = "payload.ids.render"
status = "payload.state"
progress = "payload.share * 100"
queue_position = "payload.ahead"
stage = "payload.note"
eta_seconds = "payload.left"
outputs = "payload.files"
error_code = "payload.fault.number"
error_message = "payload.fault.text"

[read.statuses]
0 = "queued"
1 = "running"
"Nearly There" = "running"
2 = "succeeded"
"Content Moderated" = "failed"
9 = "failed"
"Called Off" = "cancelled"

[[errors]]
when = "status == 'Content Moderated' or code == '77'"
kind = "safety"

[[errors]]
when = "http and message is containing(['come back'])"
kind = "rate_limit"

[[errors]]
when = "code == '12'"
kind = "technical"
retryable = false
"#;

fn render(state: Value) -> Value {
    json!({ "ids": { "render": 4711, "desk": 3 }, "state": state })
}

fn with_field(mut render: Value, field: &str, value: Value) -> Value {
    render[field] = value;
    render
}

async fn hub(provider: &MockProvider) -> (TestApp, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let spec = directory.path().join("studio.toml");
    std::fs::write(&spec, STUDIO).unwrap();
    let app = TestApp::builder()
        .set("providers.studio.spec", spec.display())
        .set(
            "providers.studio.base_url",
            format!("{}/api/", provider.url),
        )
        .set("providers.studio.api_key", "the key")
        .set("providers.studio.secret_key", "the other key")
        .set("providers.studio.webhook_secrets", SECRET)
        .spawn()
        .await;
    (app, directory)
}

async fn submit(app: &TestApp) -> String {
    let body = json!({
        "provider": "studio",
        "model": "big/one",
        "prompt": "a lighthouse",
        "platform": "instagram",
        "input": { "scene": { "mood": "calm" } },
    });
    let request = app.request(Method::POST, "/v1/videos", "alice");
    let response = send(request.json(&body)).await;
    assert_eq!(response.status, 202, "{}", response.body);
    response.body["id"].as_str().unwrap().to_owned()
}

async fn post_webhook(app: &TestApp, render: &Value) -> TestResponse {
    let body = json!({ "event": { "kind": "moved", "render": render } }).to_string();
    let time = webhook_signatures::now();
    let signature = webhook_signatures::base64(SECRET, format!("{time}.{body}").as_bytes());
    let request = app.request_without_token(Method::POST, "/v1/webhooks/studio");
    let request = request.header("x-studio-time", time);
    send(request.header("x-studio-signature", signature).body(body)).await
}

/// Posts a webhook that must change the job, and returns the new document.
async fn apply_webhook(app: &TestApp, id: &str, render: &Value) -> Value {
    let response = post_webhook(app, render).await;
    assert_eq!(response.status, 200, "{}", response.body);
    assert_eq!(response.body["applied"], true, "{render}");
    app.get_job(id, "alice").await
}

/// Returns the response to an accepted submission.
fn accepted() -> MockResponse {
    let desk = json!({ "number": 3 });
    let queued = with_field(render(json!(0)), "desk", desk);
    MockResponse::json(200, &json!({ "result": "ok", "render": queued }))
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_spec_file_runs_a_job_end_to_end() {
    let provider = MockProvider::start(|_| async { accepted() }).await;
    let (app, _directory) = hub(&provider).await;
    let id = submit(&app).await;
    let job = app
        .wait_for_job(&id, "alice", |job| job["status"] == "queued")
        .await;
    assert_eq!(job["provider_task_id"], "4711");
    let request = provider.requests().remove(0);
    assert_eq!(
        (request.method.as_str(), request.path.as_str()),
        ("PUT", "/api/v2/big/one/render")
    );
    assert_eq!(
        request.header("authorization"),
        Some("Token the key:the other key")
    );
    assert_eq!(request.header("x-request"), Some(id.as_str()));
    let callback = &request.body["tell"];
    assert!(callback.as_str().unwrap().contains("/v1/webhooks/studio/"));
    assert_eq!(
        request.body,
        json!({
            "scene": { "text": "a lighthouse", "frame": [1024, 1024], "mood": "calm" },
            "seconds": 5,
            "tell": callback,
        })
    );

    let job = apply_webhook(&app, &id, &with_field(render(json!(0)), "ahead", json!(4))).await;
    assert_eq!(
        (&job["status"], &job["queue_position"]),
        (&json!("queued"), &json!(4))
    );
    let mut running = render(json!(1));
    running["share"] = json!(0.125);
    running["note"] = json!("lights");
    running["left"] = json!("12.5");
    let job = apply_webhook(&app, &id, &running).await;
    assert_eq!(
        (&job["status"], &job["progress"]),
        (&json!("running"), &json!(12.5))
    );
    assert_eq!(
        (&job["stage"], &job["eta_seconds"]),
        (&json!("lights"), &json!(12.5))
    );
    let nearly_done = with_field(render(json!("Nearly There")), "share", json!(0.99));
    let job = apply_webhook(&app, &id, &nearly_done).await;
    assert_eq!(job["progress"], 99.0);
    for unknown in [json!(3), json!("nearly there")] {
        let response = post_webhook(&app, &render(unknown)).await;
        assert_eq!(response.body, json!({ "matched": true, "applied": false }));
    }
    let files = json!([
        "https://cdn.example.com/still.PNG?x=1",
        { "url": "https://cdn.example.com/a", "type": "video", "duration": "8", "expires_at": 1_800_000_000 },
    ]);
    let job = apply_webhook(&app, &id, &with_field(render(json!(2)), "files", files)).await;
    assert_eq!(job["status"], "succeeded");
    assert_eq!(
        job["outputs"],
        json!([
            { "type": "image", "url": "https://cdn.example.com/still.PNG?x=1", "duration": null, "expires_at": null },
            { "type": "video", "url": "https://cdn.example.com/a", "duration": 8.0, "expires_at": "2027-01-15T08:00:00.000Z" },
        ])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn signature_covers_the_parts_named_in_the_spec() {
    let provider = MockProvider::start(|_| async { accepted() }).await;
    let (app, _directory) = hub(&provider).await;
    let body = json!({ "event": { "render": render(json!(1)) } }).to_string();
    let now = webhook_signatures::now();
    let over = |content: String| webhook_signatures::base64(SECRET, content.as_bytes());
    for (time, signature, status) in [
        (now, over(format!("{now}.{body}")), 200),
        (now, over(body.clone()), 401),
        (now - 1, over(format!("{now}.{body}")), 401),
        (now - 400, over(format!("{}.{body}", now - 400)), 401),
        (
            now,
            webhook_signatures::hex(SECRET, format!("{now}.{body}").as_bytes()),
            401,
        ),
    ] {
        let request = app.request_without_token(Method::POST, "/v1/webhooks/studio");
        let request = request.header("x-studio-time", time);
        let request = request.header("x-studio-signature", signature);
        let response = send(request.body(body.clone())).await;
        assert_eq!(response.status, status, "{}", response.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn error_rules_map_provider_errors_to_kinds() {
    let provider = MockProvider::start(|_| async { accepted() }).await;
    for (state, fault, kind, retryable) in [
        (json!("Content Moderated"), json!(null), "safety", false),
        (
            json!(9),
            json!({ "number": 77, "text": "no" }),
            "safety",
            false,
        ),
        (
            json!(9),
            json!({ "number": "12", "text": "broken" }),
            "technical",
            false,
        ),
        (
            json!(9),
            json!({ "number": 13, "text": "come back" }),
            "technical",
            true,
        ),
    ] {
        let (app, _directory) = hub(&provider).await;
        let id = submit(&app).await;
        app.wait_for_job(&id, "alice", |job| job["status"] == "queued")
            .await;
        let job = apply_webhook(
            &app,
            &id,
            &with_field(render(state), "fault", fault.clone()),
        )
        .await;
        assert_eq!(
            (&job["status"], &job["error"]["kind"]),
            (&json!("failed"), &json!(kind))
        );
        assert_eq!(job["error"]["retryable"], retryable, "{job}");
        if let Some(text) = fault["text"].as_str() {
            assert_eq!(job["error"]["message"], text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn error_in_a_200_response_is_classified_by_its_message() {
    let submissions = AtomicUsize::new(0);
    let provider = MockProvider::start(move |_| {
        let reason = match submissions.fetch_add(1, Ordering::Relaxed) {
            0 => json!({ "number": 5, "text": "Busy, please COME BACK; resets in ~0s" }),
            _ => json!({ "number": 77, "text": "not that" }),
        };
        async move { MockResponse::json(200, &json!({ "result": "no", "reason": reason })) }
    })
    .await;
    let (app, _directory) = hub(&provider).await;
    let id = submit(&app).await;
    let job = app.wait_until_final(&id, "alice").await;
    assert_eq!(
        (&job["error"]["kind"], &job["attempt"]),
        (&json!("safety"), &json!(2))
    );
    assert_eq!(job["error"]["provider_code"], "77");
    assert_eq!(job["error"]["message"], "not that");
}

#[tokio::test(flavor = "multi_thread")]
async fn handle_from_the_response_is_used_to_poll_and_cancel() {
    let provider = MockProvider::start(|request: RecordedRequest| async move {
        match request.method.as_str() {
            "PUT" => accepted(),
            "POST" => MockResponse::json(200, &json!({ "result": "ok" })),
            _ => MockResponse::json(
                200,
                &json!({ "result": "ok", "render": render(json!("Called Off")) }),
            ),
        }
    })
    .await;
    let (app, _directory) = hub(&provider).await;
    let id = submit(&app).await;
    app.wait_for_job(&id, "alice", |job| job["status"] == "queued")
        .await;
    let path = format!("/v1/jobs/{id}/cancel");
    let response = send(app.request(Method::POST, &path, "alice")).await;
    assert_eq!(response.status, 202, "{}", response.body);
    let job = app.wait_until_final(&id, "alice").await;
    assert_eq!(
        (&job["status"], &job["source"]),
        (&json!("cancelled"), &json!("poll"))
    );
    let requests = provider.requests();
    let paths = requests.iter().map(|request| request.path.as_str());
    let paths: Vec<&str> = paths.collect();
    assert_eq!(
        paths[..3],
        [
            "/api/v2/big/one/render",
            "/api/desks/3/4711/stop",
            "/api/desks/3/4711"
        ]
    );
    assert_eq!(requests[1].body, json!({ "reason": "requested" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn body_that_fails_to_render_is_not_sent() {
    let provider = MockProvider::start(|_| async { accepted() }).await;
    let directory = tempfile::tempdir().unwrap();
    let spec = directory.path().join("studio.toml");
    let text = STUDIO.replace(
        "\"seconds\": duration|default(5)",
        "\"seconds\": prompt - 2",
    );
    std::fs::write(&spec, text).unwrap();
    let app = TestApp::builder()
        .set("providers.studio.spec", spec.display())
        .set("providers.studio.base_url", &provider.url)
        .set("providers.studio.api_key", "the key")
        .set("providers.studio.secret_key", "the other key")
        .set("providers.studio.webhook_secrets", SECRET)
        .spawn()
        .await;
    let body = json!({ "provider": "studio", "model": "big/one", "prompt": "a lighthouse" });
    let response = send(app.request(Method::POST, "/v1/videos", "alice").json(&body)).await;
    assert_eq!(response.status, 400, "{}", response.body);
    assert_eq!(response.body["code"], "invalid_request");
    let detail = response.body["detail"].as_str().unwrap();
    assert!(detail.starts_with("body: "), "{detail}");
    assert_eq!(provider.requests().len(), 0);
}
