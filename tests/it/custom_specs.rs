//! Providers that come with no spec, each told by a file alone: integers, phrases, nests and shared tokens.

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

# Base64 over `taskId.timestamp`, and not over the body.
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
# A text that is JSON.
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

async fn hub(
    spec: &str,
    answer: impl Fn(&RecordedRequest) -> Value + Send + Sync + 'static,
) -> (TestApp, MockProvider) {
    let provider = MockProvider::start(move |asked| {
        let reply = MockResponse::json(200, &answer(&asked));
        async move { reply }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stranger.toml");
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
    let answer = send(app.request(Method::POST, "/v1/videos", "alice").json(&body)).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    answer.body["id"].as_str().unwrap().to_owned()
}

/// What a job comes to whose provider answers a question so, and a submission so.
async fn comes_to(spec: &str, taken: Value, told: Value) -> Value {
    let (app, _provider) = hub(spec, move |asked| match asked.method.as_str() {
        "POST" => taken.clone(),
        _ => told.clone(),
    })
    .await;
    let id = submit(&app).await;
    app.wait_for_job(&id, "alice", |job| job["source"] == "poll")
        .await
}

fn gist(job: &Value) -> (&str, Option<&str>, usize) {
    (
        job["status"].as_str().unwrap(),
        job["error"]["kind"].as_str(),
        job["outputs"].as_array().unwrap().len(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_may_be_integers() {
    for (status, wished) in [
        (1, ("succeeded", None, 1)),
        (5, ("running", None, 0)),
        (6, ("failed", Some("result_expired"), 0)),
        (7, ("failed", Some("safety"), 0)),
        (8, ("failed", Some("technical"), 0)),
    ] {
        let url = if status == 1 { json!(CLIP) } else { json!("") };
        let taken = json!({ "ErrCode": 0, "ErrMsg": "", "Resp": { "video_id": 9_007_199_254_740_993_u64 } });
        let told = json!({ "ErrCode": 0, "ErrMsg": "", "Resp":
            { "id": 9_007_199_254_740_993_u64, "status": status, "url": url, "seed": 1 } });
        let job = comes_to(PIXVERSE, taken, told).await;
        assert_eq!(gist(&job), wished, "{status}: {job}");
        assert_eq!(job["provider_task_id"], "9007199254740993");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_may_be_phrases_and_progress_a_fraction() {
    for (status, wished) in [
        ("Ready", ("succeeded", None, 1)),
        ("Pending", ("running", None, 0)),
        ("Error", ("failed", Some("technical"), 0)),
        ("Content Moderated", ("failed", Some("safety"), 0)),
        ("Request Moderated", ("failed", Some("safety"), 0)),
        ("Task not found", ("failed", Some("result_expired"), 0)),
    ] {
        let sample = (status == "Ready").then(|| json!({ "sample": CLIP }));
        let told = json!({ "id": "b", "status": status, "progress": 0.5, "result": sample });
        let job = comes_to(BFL, json!({ "id": "b" }), told).await;
        assert_eq!(gist(&job), wished, "{status}: {job}");
        if status == "Pending" {
            assert_eq!(job["progress"], 50.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_integer_is_a_percentage() {
    let told = json!({ "id": "k", "status": "started", "progress": 42, "url": null });
    let job = comes_to(PIKA, json!({ "video_id": "k" }), told).await;
    assert_eq!(
        (&job["status"], &job["progress"]),
        (&json!("running"), &json!(42.0))
    );
}

fn told(spec: &str, status: &str) -> Value {
    match spec {
        PIAPI => json!({ "timestamp": 1, "data": { "task_id": "t", "status": status, "error": null,
            "output": { "works": [{ "video": { "resource": CLIP } }] } } }),
        _ => json!({ "code": 200, "data": { "taskId": "t", "state": status,
            "resultJson": json!({ "resultUrls": [CLIP] }).to_string(), "failCode": null } }),
    }
}

/// A webhook that does not prove its body makes the hub ask, and what is told then counts.
async fn is_a_reason_to_ask(spec: &'static str, word: &str, good: Headers, bad: Headers) {
    let answer = told(spec, word);
    let (app, provider) = hub(spec, move |_| answer.clone()).await;
    let id = submit(&app).await;
    let job = app
        .wait_for_job(&id, "alice", |job| job["provider_task_id"] == "t")
        .await;
    assert_ne!(job["final"], true, "a submission's answer ends nothing");
    let body = told(spec, "Fail").to_string();
    assert_rejected(&post_webhook(&app, "it", &bad, &body).await);
    assert_eq!(provider.requests().len(), 1, "a forgery asks nothing");
    assert_accepted(&post_webhook(&app, "it", &good, &body).await, true, false);
    let job = app.wait_until_final(&id, "alice").await;
    assert_eq!(gist(&job), ("succeeded", None, 1), "{job}");
    if spec == PIAPI {
        let sent = &provider.requests()[0].body["config"]["webhook_config"];
        assert!(sent.is_null() || sent["secret"] == "shared", "{sent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_sent_back_proves_no_body() {
    let (good, bad) = (
        owned_headers(&[("x-webhook-secret", "shared")]),
        owned_headers(&[("x-webhook-secret", "other")]),
    );
    is_a_reason_to_ask(PIAPI, "Completed", good, bad).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_over_the_tasks_name_proves_no_body() {
    let headers = |task: &str| {
        let now = webhook_signatures::now();
        let tag = webhook_signatures::base64("shared", format!("{task}.{now}").as_bytes());
        owned_headers(&[
            ("x-webhook-timestamp", &now.to_string()),
            ("x-webhook-signature", &tag),
        ])
    };
    is_a_reason_to_ask(KIE, "success", headers("t"), headers("u")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_may_hide_behind_a_200() {
    for (code, kind) in [
        (401, "auth"),
        (402, "quota"),
        (422, "invalid_input"),
        (429, "rate_limit"),
        (455, "technical"),
        (500, "submission_unknown"),
    ] {
        let told = json!({ "code": code, "msg": "no", "data": null });
        let (app, _provider) = hub(KIE, move |_| told.clone()).await;
        let id = submit(&app).await;
        let is_told = |job: &Value| !job["error"].is_null();
        let job = app.wait_for_job(&id, "alice", is_told).await;
        assert_eq!(job["error"]["kind"], kind, "{code}: {job}");
    }
}
