//! Contents of a verified webhook: updates of several tasks, a challenge to response, or a body that an
//! `accept` condition of the spec must allow.

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, TestResponse, WEBHOOK_SECRET, send};
use crate::mock_provider::{MockProvider, MockResponse};
use crate::signatures::{
    Acme, POLL, assert_accepted, assert_rejected, owned_headers, post_webhook, register_task,
    standard_headers,
};

/// The `[[signature]]` section of a provider that signs its webhooks.
const SIGNED: &str = "scheme = 'standard_webhooks'";

/// Sends a signed webhook.
async fn post_signed(app: &TestApp, path: &str, body: &Value) -> TestResponse {
    let body = body.to_string();
    post_webhook(app, path, &standard_headers(WEBHOOK_SECRET, &body), &body).await
}

fn task(id: &str, status: &str) -> Value {
    json!({ "id": id, "status": status })
}

/// Starts a hub whose provider signs its webhooks and has this `[webhook]` section.
async fn start_hub(webhook: &str) -> TestApp {
    let acme = Acme::new(SIGNED, &format!("[webhook]\n{webhook}"));
    acme.set("webhook_secrets", WEBHOOK_SECRET).spawn().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_webhook_can_report_several_tasks() {
    let app = start_hub("items = 'payload.tasks'").await;
    let (first, second) = (
        register_task(&app, "1").await,
        register_task(&app, "2").await,
    );
    let body = |tasks: Value| json!({ "tasks": tasks });
    let unusable = json!([7, {}, "text", null, { "id": "3" }, { "status": "running" }]);

    let tasks = json!([unusable, task("1", "running"), { "x": 1 }, task("2", "queued")]);
    assert_accepted(&post_signed(&app, "acme", &body(tasks)).await, true, true);
    assert_eq!(app.get_job(&first, "alice").await["status"], "running");
    assert_eq!(app.get_job(&second, "alice").await["status"], "queued");

    let tasks = json!([task("1", "running"), task("2", "running")]);
    assert_accepted(
        &post_signed(&app, "acme", &body(tasks.clone())).await,
        true,
        true,
    );
    assert_accepted(&post_signed(&app, "acme", &body(tasks)).await, true, false);
    assert_eq!(app.get_job(&second, "alice").await["status"], "running");

    let tasks = json!([task("unknown", "running"), task("1", "running")]);
    assert_accepted(&post_signed(&app, "acme", &body(tasks)).await, true, false);
    let tasks = json!([task("unknown", "running"), task("also unknown", "done")]);
    assert_accepted(&post_signed(&app, "acme", &body(tasks)).await, false, false);
    assert_accepted(
        &post_signed(&app, "acme", &body(task("1", "running"))).await,
        true,
        false,
    );

    for tasks in [unusable, json!([]), json!(null), json!(7)] {
        let response = post_signed(&app, "acme", &body(tasks)).await;
        assert_eq!(response.status, 400, "{}", response.body);
        assert_eq!(response.body["code"], "invalid_payload");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn untrusted_body_triggers_at_most_max_polls() {
    let more = format!("{POLL}[webhook]\nitems = 'payload.tasks'");
    let app = Acme::new("scheme = 'none'", &more).spawn().await;
    register_task(&app, "1").await;
    for (before, matched) in [(99, true), (100, false)] {
        let mut tasks = vec![task("unknown", "running"); before];
        tasks.push(task("1", "running"));
        let body = json!({ "tasks": tasks }).to_string();
        let response = post_webhook(&app, "acme", &Vec::new(), &body).await;
        assert_accepted(&response, matched, false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callback_token_selects_the_job_only_for_single_task_bodies() {
    let provider = MockProvider::start(|_| async { MockResponse::disconnect() }).await;
    let submit = "[submit]\nurl = '{{ base_url }}/tasks'\nbody = \"{'callback': callback_url}\"\n\
                  [webhook]\nitems = 'payload.tasks'\n";
    let acme = Acme::new(SIGNED, submit).set("base_url", &provider.url);
    let app = acme.set("webhook_secrets", WEBHOOK_SECRET).spawn().await;
    let other = register_task(&app, "1").await;
    let job = json!({ "provider": "acme", "model": "m", "prompt": "p" });
    let request = app.request(Method::POST, "/v1/videos", "alice").json(&job);
    let id = send(request).await.body["id"].as_str().unwrap().to_owned();
    let requests = provider.wait_for_requests(|all| !all.is_empty()).await;
    let url = requests[0].body["callback"].as_str().unwrap();
    let path = url.split_once("/v1/webhooks/").unwrap().1;

    let several = json!({ "tasks": [task("1", "running"), task("unknown", "running")] });
    assert_accepted(&post_signed(&app, path, &several).await, true, true);
    assert_eq!(app.get_job(&other, "alice").await["status"], "running");
    assert_eq!(
        app.get_job(&id, "alice").await["provider_task_id"],
        Value::Null
    );

    let named = json!({ "id": "2", "reference": id, "status": "running" });
    let several = json!({ "tasks": [task("1", "running"), named] });
    assert_accepted(&post_signed(&app, path, &several).await, true, true);
    assert_eq!(app.get_job(&id, "alice").await["provider_task_id"], "2");

    let one = json!({ "tasks": [task("2", "done")] });
    assert_accepted(&post_signed(&app, path, &one).await, true, true);
    assert_eq!(app.get_job(&id, "alice").await["status"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn challenge_is_answered_per_spec_and_changes_no_job() {
    let reply = "reply = \"{'challenge': payload.challenge} if payload.challenge\"";
    let app = start_hub(reply).await;
    let id = register_task(&app, "1").await;
    let challenge = json!({ "challenge": "a b\u{e9}\"\\", "id": "1", "status": "running" });
    let response = post_signed(&app, "acme", &challenge).await;
    assert_eq!(response.status, 200);
    assert_eq!(response.headers["content-type"], "application/json");
    assert_eq!(response.body, json!({ "challenge": "a b\u{e9}\"\\" }));
    assert_eq!(app.get_job(&id, "alice").await["version"], 1);

    // Only a verified sender receives an answer, and the answer has a maximum length.
    let body = challenge.to_string();
    assert_rejected(&post_webhook(&app, "acme", &Vec::new(), &body).await);
    let long = json!({ "challenge": "x".repeat(1024) });
    assert_eq!(post_signed(&app, "acme", &long).await.status, 400);
    let fits = json!({ "challenge": "x".repeat(1024 - r#"{"challenge":""}"#.len()) });
    assert_eq!(post_signed(&app, "acme", &fits).await.body, fits);

    assert_accepted(
        &post_signed(&app, "acme", &task("1", "running")).await,
        true,
        true,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn challenge_of_a_provider_without_signatures_is_answered() {
    let webhook = "[webhook]\nreply = \"{'challenge': payload.challenge} if payload.challenge\"";
    let app = Acme::new("scheme = 'none'", &format!("{POLL}{webhook}"));
    let app = app.spawn().await;
    let challenge = json!({ "challenge": 12_345_678_901_234_567_u64 });
    let response = post_webhook(&app, "acme", &Vec::new(), &challenge.to_string()).await;
    assert_eq!((response.status.as_u16(), response.body), (200, challenge));
}

#[tokio::test(flavor = "multi_thread")]
async fn accept_condition_can_read_headers() {
    let app = start_hub("accept = \"payload.id == headers['x-acme-task']\"").await;
    let id = register_task(&app, "1").await;
    let body = task("1", "running").to_string();
    let with_headers = |more: &[(&str, &str)]| {
        let mut headers = standard_headers(WEBHOOK_SECRET, &body);
        headers.extend(owned_headers(more));
        headers
    };
    for more in [&[][..], &[("X-Acme-Task", "2")]] {
        assert_rejected(&post_webhook(&app, "acme", &with_headers(more), &body).await);
    }
    // The condition does not replace the signature.
    let unsigned = owned_headers(&[("X-Acme-Task", "1")]);
    assert_rejected(&post_webhook(&app, "acme", &unsigned, &body).await);
    assert_eq!(app.get_job(&id, "alice").await["version"], 1);
    let accepted = with_headers(&[("X-Acme-Task", "1")]);
    assert_accepted(
        &post_webhook(&app, "acme", &accepted, &body).await,
        true,
        true,
    );
    let not_json = standard_headers(WEBHOOK_SECRET, "not json");
    assert_eq!(
        post_webhook(&app, "acme", &not_json, "not json")
            .await
            .status,
        400
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn task_id_can_come_from_a_header() {
    let app = start_hub("item = \"{'id': headers['x-task'], 'status': payload}\"").await;
    register_task(&app, "1").await;
    let body = json!("running").to_string();
    let mut headers = standard_headers(WEBHOOK_SECRET, &body);
    headers.extend(owned_headers(&[("X-Task", "1")]));
    assert_accepted(
        &post_webhook(&app, "acme", &headers, &body).await,
        true,
        true,
    );
}
