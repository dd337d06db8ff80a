//! Spec files for providers without a built-in spec: statuses as numbers and phrases, nested
//! results, and signatures that do not cover the body.

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};
use crate::signatures::{Headers, assert_accepted, assert_rejected, owned_headers, post_webhook};
use crate::webhook_signatures;

const PIXVERSE: &str = r#"
title = "PixVerse"
requires = ["api_key"]
headers = { API-KEY = "{{ api_key }}", Ai-trace-id = "{{ reference }}" }
signature = { scheme = "none" }
poll_after = "100ms"
poll_every = "100ms"
answer = { ok = "payload.ErrCode == 0", code = "payload.ErrCode", message = "payload.ErrMsg" }

[submit]
url = "{{ base_url }}/openapi/v2/video/text/generate"
body = "{'model': model, 'prompt': prompt}|merge(input)"
item = "payload.Resp"

[poll]
url = "{{ base_url }}/openapi/v2/video/result/{{ tasks[0]|urlencode }}"
item = "payload.Resp"

[read]
task_id = "payload.id|default(payload.video_id)"
status = "payload.status"
outputs = "payload.url"
statuses = { 1 = "succeeded", 5 = "running", 6 = "failed", 7 = "failed", 8 = "failed" }

[[errors]]
when = "status == '7'"
kind = "safety"

[[errors]]
when = "status == '6'"
kind = "result_expired"
"#;

const BFL: &str = r#"
title = "BFL"
requires = ["api_key"]
headers = { x-key = "{{ api_key }}" }
signature = { scheme = "none" }
poll_after = "100ms"
poll_every = "100ms"

[submit]
url = "{{ base_url }}/v1/{{ model }}"
body = "{'prompt': prompt, 'webhook_url': callback_url}|merge(input)"
handle = "payload.polling_url"

[poll]
url = "{{ handle or base_url ~ '/v1/get_result?id=' ~ tasks[0]|urlencode }}"

[read]
task_id = "payload.id"
status = "payload.status|default('Pending')"
progress = "payload.progress * 100"
outputs = "payload.result.sample"

[read.statuses]
Pending = "running"
Ready = "succeeded"
Error = "failed"
"Content Moderated" = "failed"
"Request Moderated" = "failed"
"Task not found" = "failed"

[[errors]]
when = "status is endingwith('Moderated')"
kind = "safety"

[[errors]]
when = "status == 'Task not found'"
kind = "result_expired"
"#;

const PIAPI: &str = r#"
title = "PiAPI"
requires = ["api_key", "webhook_secrets"]
headers = { x-api-key = "{{ api_key }}" }
signature = { scheme = "static_token", header = "x-webhook-secret" }
poll_after = "10m"
poll_every = "100ms"

[submit]
url = "{{ base_url }}/api/v1/task"
body = """{"model": model, "input": {"prompt": prompt}|merge(input),
  "config": {"webhook_config": {"endpoint": callback_url, "secret": webhook_secret} if callback_url}}"""
item = "payload.data"

[poll]
url = "{{ base_url }}/api/v1/task/{{ tasks[0]|urlencode }}"
item = "payload.data"

[webhook]
item = "payload.data"

[read]
task_id = "payload.task_id"
status = "payload.status|lower"
outputs = "payload.output|media"
error_code = "payload.error.code"
error_message = "payload.error.message"
statuses = { pending = "queued", staged = "queued", processing = "running", completed = "succeeded", failed = "failed" }
"#;

const KIE: &str = r#"
title = "Kie.ai"
requires = ["api_key", "webhook_secrets"]
headers = { Authorization = "Bearer {{ api_key }}" }
answer = { http = "payload.code", message = "payload.msg" }
poll_after = "10m"
poll_every = "100ms"

# Covers `taskId.timestamp` but not the body.
[signature]
scheme = "hmac"
header = "x-webhook-signature"
encoding = "base64"
signed = "{json:/data/task_id|/data/taskId|/taskId}.{header:x-webhook-timestamp}"
timestamp_header = "x-webhook-timestamp"

[submit]
url = "{{ base_url }}/api/v1/jobs/createTask"
body = "{'model': model, 'callBackUrl': callback_url, 'input': {'prompt': prompt}|merge(input)}"
item = "payload.data"

[poll]
url = "{{ base_url }}/api/v1/jobs/recordInfo?taskId={{ tasks[0]|urlencode }}"
item = "payload.data"

[webhook]
item = "payload.data or payload"

[read]
task_id = "payload.task_id or payload.taskId"
status = "payload.state|lower"
# JSON in a string.
outputs = "(payload.resultJson|fromjson).resultUrls"
error_code = "payload.failCode"
error_message = "payload.failMsg"
statuses = { waiting = "queued", generating = "running", success = "succeeded", fail = "failed" }
"#;

const PIKA: &str = r#"
title = "Pika"
signature = { scheme = "none" }
poll_after = "100ms"
poll_every = "100ms"

[submit]
url = "{{ base_url }}/generate"
body = "{'promptText': prompt}"
item = "payload|merge({'id': payload.video_id})"

[poll]
url = "{{ base_url }}/videos/{{ tasks[0]|urlencode }}"

[read]
task_id = "payload.id"
status = "payload.status"
progress = "payload.progress"
outputs = "payload.url"
statuses = { queued = "queued", started = "running", finished = "succeeded", failed = "failed" }
"#;

const CLIP: &str = "https://cdn.example/a.mp4";

/// Starts a hub and a provider that responds with status 200 and the JSON that `respond` returns.
async fn hub(
    spec: &str,
    respond: impl Fn(&RecordedRequest) -> Value + Send + Sync + 'static,
) -> (TestApp, MockProvider) {
    let provider = MockProvider::start(move |request| {
        let response = MockResponse::json(200, &respond(&request));
        async move { response }
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("custom.toml");
    std::fs::write(&path, spec).unwrap();
    let mut app = TestApp::builder()
        .set("providers.it.spec", path.display())
        .set("providers.it.base_url", &provider.url)
        .set("providers.it.api_key", "a key");
    if spec.contains("webhook_secrets") {
        app = app.set("providers.it.webhook_secrets", "shared");
    }
    (app.spawn().await, provider)
}

async fn submit(app: &TestApp) -> String {
    let body = json!({ "provider": "it", "model": "m", "prompt": "p" });
    let request = app.request(Method::POST, "/v1/videos", "alice");
    let response = send(request.json(&body)).await;
    assert_eq!(response.status, 202, "{}", response.body);
    response.body["id"].as_str().unwrap().to_owned()
}

/// Submits a job and returns its document after the first poll.
async fn poll_once(spec: &str, submit_response: Value, poll_response: Value) -> Value {
    let (app, _provider) = hub(spec, move |request| match request.method.as_str() {
        "POST" => submit_response.clone(),
        _ => poll_response.clone(),
    })
    .await;
    let id = submit(&app).await;
    app.wait_for_job(&id, "alice", |job| job["source"] == "poll")
        .await
}

/// Returns the status, the kind of the error and the number of outputs.
fn summary(job: &Value) -> (&str, Option<&str>, usize) {
    (
        job["status"].as_str().unwrap(),
        job["error"]["kind"].as_str(),
        job["outputs"].as_array().unwrap().len(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_may_be_integers() {
    for (status, expected) in [
        (1, ("succeeded", None, 1)),
        (5, ("running", None, 0)),
        (6, ("failed", Some("result_expired"), 0)),
        (7, ("failed", Some("safety"), 0)),
        (8, ("failed", Some("technical"), 0)),
    ] {
        let url = if status == 1 { CLIP } else { "" };
        // One more than a double can represent exactly.
        let id = 9_007_199_254_740_993_u64;
        let submitted = json!({ "ErrCode": 0, "ErrMsg": "", "Resp": { "video_id": id } });
        let polled = json!({ "ErrCode": 0, "ErrMsg": "",
            "Resp": { "id": id, "status": status, "url": url, "seed": 1 } });
        let job = poll_once(PIXVERSE, submitted, polled).await;
        assert_eq!(summary(&job), expected, "{status}: {job}");
        assert_eq!(job["provider_task_id"], "9007199254740993");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_may_be_phrases_and_progress_a_fraction() {
    for (status, expected) in [
        ("Ready", ("succeeded", None, 1)),
        ("Pending", ("running", None, 0)),
        ("Error", ("failed", Some("technical"), 0)),
        ("Content Moderated", ("failed", Some("safety"), 0)),
        ("Request Moderated", ("failed", Some("safety"), 0)),
        ("Task not found", ("failed", Some("result_expired"), 0)),
    ] {
        let sample = (status == "Ready").then(|| json!({ "sample": CLIP }));
        let polled = json!({ "id": "b", "status": status, "progress": 0.5, "result": sample });
        let job = poll_once(BFL, json!({ "id": "b" }), polled).await;
        assert_eq!(summary(&job), expected, "{status}: {job}");
        if status == "Pending" {
            assert_eq!(job["progress"], 50.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn integer_progress_is_a_percentage() {
    let polled = json!({ "id": "k", "status": "started", "progress": 42, "url": null });
    let job = poll_once(PIKA, json!({ "video_id": "k" }), polled).await;
    assert_eq!(
        (&job["status"], &job["progress"]),
        (&json!("running"), &json!(42.0))
    );
}

/// Returns a task in the format of a webhook and of a poll response.
fn task(spec: &str, status: &str) -> Value {
    match spec {
        PIAPI => json!({ "timestamp": 1, "data": { "task_id": "t", "status": status, "error": null,
            "output": { "works": [{ "video": { "resource": CLIP } }] } } }),
        _ => json!({ "code": 200, "data": { "taskId": "t", "state": status,
            "resultJson": json!({ "resultUrls": [CLIP] }).to_string(), "failCode": null } }),
    }
}

/// Asserts that a webhook whose signature does not cover the body triggers a poll and is not
/// applied itself, and that one with a wrong signature does neither.
async fn assert_webhook_triggers_poll(
    spec: &'static str,
    final_status: &str,
    valid: Headers,
    invalid: Headers,
) {
    let current = task(spec, final_status);
    let (app, provider) = hub(spec, move |_| current.clone()).await;
    let id = submit(&app).await;
    let job = app
        .wait_for_job(&id, "alice", |job| job["provider_task_id"] == "t")
        .await;
    assert_ne!(job["final"], true, "a submission cannot end a job");
    let body = task(spec, "Fail").to_string();
    assert_rejected(&post_webhook(&app, "it", &invalid, &body).await);
    assert_eq!(provider.requests().len(), 1, "no poll after a forgery");
    assert_accepted(&post_webhook(&app, "it", &valid, &body).await, true, false);
    let job = app.wait_until_final(&id, "alice").await;
    assert_eq!(summary(&job), ("succeeded", None, 1), "{job}");
    if spec == PIAPI {
        let config = &provider.requests()[0].body["config"]["webhook_config"];
        assert!(config.is_null() || config["secret"] == "shared", "{config}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_with_a_static_token_triggers_a_poll() {
    let valid = owned_headers(&[("x-webhook-secret", "shared")]);
    let invalid = owned_headers(&[("x-webhook-secret", "other")]);
    assert_webhook_triggers_poll(PIAPI, "Completed", valid, invalid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_with_a_signature_over_the_task_id_triggers_a_poll() {
    let headers = |task: &str| {
        let now = webhook_signatures::now();
        let signature = webhook_signatures::base64("shared", format!("{task}.{now}").as_bytes());
        owned_headers(&[
            ("x-webhook-timestamp", &now.to_string()),
            ("x-webhook-signature", &signature),
        ])
    };
    assert_webhook_triggers_poll(KIE, "success", headers("t"), headers("u")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_in_the_body_of_a_200_response_decides_the_error_kind() {
    for (code, kind) in [
        (401, "auth"),
        (402, "quota"),
        (422, "invalid_input"),
        (429, "rate_limit"),
        (455, "technical"),
        (500, "submission_unknown"),
    ] {
        let body = json!({ "code": code, "msg": "no", "data": null });
        let (app, _provider) = hub(KIE, move |_| body.clone()).await;
        let id = submit(&app).await;
        let has_error = |job: &Value| !job["error"].is_null();
        let job = app.wait_for_job(&id, "alice", has_error).await;
        assert_eq!(job["error"]["kind"], kind, "{code}: {job}");
    }
}
