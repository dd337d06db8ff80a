//! What a proven webhook may be: news of several tasks, a question to be answered, or a body under a
//! condition of its provider's.

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, TestResponse, WEBHOOK_SECRET, send};
use crate::mock_provider::{MockProvider, MockResponse};
use crate::signatures::{
    Acme, POLL, assert_accepted, assert_rejected, owned_headers, post_webhook, register_task,
    standard_headers,
};

const SIGNED: &str = "scheme = 'standard_webhooks'";

async fn says(app: &TestApp, path: &str, body: &Value) -> TestResponse {
    let body = body.to_string();
    post_webhook(app, path, &standard_headers(WEBHOOK_SECRET, &body), &body).await
}

fn task(id: &str, status: &str) -> Value {
    json!({ "id": id, "status": status })
}

async fn acme(webhook: &str) -> TestApp {
    let acme = Acme::new(SIGNED, &format!("[webhook]\n{webhook}"));
    acme.set("webhook_secrets", WEBHOOK_SECRET).spawn().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_body_may_tell_of_several_tasks() {
    let app = acme("items = 'payload.tasks'").await;
    let (one, two) = (
        register_task(&app, "1").await,
        register_task(&app, "2").await,
    );
    let of = |tasks: Value| json!({ "tasks": tasks });
    let odd = json!([7, {}, "text", null, { "id": "3" }, { "status": "running" }]);

    let tasks = json!([odd, task("1", "running"), { "x": 1 }, task("2", "queued")]);
    assert_accepted(&says(&app, "acme", &of(tasks)).await, true, true);
    assert_eq!(app.get_job(&one, "alice").await["status"], "running");
    assert_eq!(app.get_job(&two, "alice").await["status"], "queued");

    let tasks = json!([task("1", "running"), task("2", "running")]);
    assert_accepted(&says(&app, "acme", &of(tasks.clone())).await, true, true);
    assert_accepted(&says(&app, "acme", &of(tasks)).await, true, false);
    assert_eq!(app.get_job(&two, "alice").await["status"], "running");

    let tasks = json!([task("unknown", "running"), task("1", "running")]);
    assert_accepted(&says(&app, "acme", &of(tasks)).await, true, false);
    let tasks = json!([task("unknown", "running"), task("unheard of", "done")]);
    assert_accepted(&says(&app, "acme", &of(tasks)).await, false, false);
    assert_accepted(
        &says(&app, "acme", &of(task("1", "running"))).await,
        true,
        false,
    );

    for nothing in [odd, json!([]), json!(null), json!(7)] {
        let answer = says(&app, "acme", &of(nothing)).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert_eq!(answer.body["code"], "invalid_payload");
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
        let answer = post_webhook(&app, "acme", &Vec::new(), &body).await;
        assert_accepted(&answer, matched, false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_token_names_its_job_only_where_the_body_is_about_one_task() {
    let provider = MockProvider::start(|_| async { MockResponse::disconnect() }).await;
    let submit = "[submit]\nurl = '{{ base_url }}/tasks'\nbody = \"{'callback': callback_url}\"\n\
                  [webhook]\nitems = 'payload.tasks'\n";
    let acme = Acme::new(SIGNED, submit).set("base_url", &provider.url);
    let app = acme.set("webhook_secrets", WEBHOOK_SECRET).spawn().await;
    let other = register_task(&app, "1").await;
    let job = json!({ "provider": "acme", "model": "m", "prompt": "p" });
    let request = app.request(Method::POST, "/v1/videos", "alice").json(&job);
    let id = send(request).await.body["id"].as_str().unwrap().to_owned();
    let asked = provider.wait_for_requests(|all| !all.is_empty()).await;
    let url = asked[0].body["callback"].as_str().unwrap();
    let path = url.split_once("/v1/webhooks/").unwrap().1;

    let several = json!({ "tasks": [task("1", "running"), task("unknown", "running")] });
    assert_accepted(&says(&app, path, &several).await, true, true);
    assert_eq!(app.get_job(&other, "alice").await["status"], "running");
    assert_eq!(
        app.get_job(&id, "alice").await["provider_task_id"],
        Value::Null
    );

    let named = json!({ "id": "2", "reference": id, "status": "running" });
    let several = json!({ "tasks": [task("1", "running"), named] });
    assert_accepted(&says(&app, path, &several).await, true, true);
    assert_eq!(app.get_job(&id, "alice").await["provider_task_id"], "2");

    let one = json!({ "tasks": [task("2", "done")] });
    assert_accepted(&says(&app, path, &one).await, true, true);
    assert_eq!(app.get_job(&id, "alice").await["status"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_is_answered_as_the_spec_says_and_tells_nothing() {
    let reply = "reply = \"{'challenge': payload.challenge} if payload.challenge\"";
    let app = acme(reply).await;
    let id = register_task(&app, "1").await;
    let challenge = json!({ "challenge": "a b\u{e9}\"\\", "id": "1", "status": "running" });
    let answer = says(&app, "acme", &challenge).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.body, json!({ "challenge": "a b\u{e9}\"\\" }));
    assert_eq!(app.get_job(&id, "alice").await["version"], 1);

    // Only a proven sender is answered, and only briefly.
    let body = challenge.to_string();
    assert_rejected(&post_webhook(&app, "acme", &Vec::new(), &body).await);
    let long = json!({ "challenge": "x".repeat(1024) });
    assert_eq!(says(&app, "acme", &long).await.status, 400);
    let fits = json!({ "challenge": "x".repeat(1024 - r#"{"challenge":""}"#.len()) });
    assert_eq!(says(&app, "acme", &fits).await.body, fits);

    assert_accepted(&says(&app, "acme", &task("1", "running")).await, true, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_of_a_provider_that_signs_nothing_is_answered_too() {
    let webhook = "[webhook]\nreply = \"{'challenge': payload.challenge} if payload.challenge\"";
    let app = Acme::new("scheme = 'none'", &format!("{POLL}{webhook}"));
    let app = app.spawn().await;
    let challenge = json!({ "challenge": 12_345_678_901_234_567_u64 });
    let answer = post_webhook(&app, "acme", &Vec::new(), &challenge.to_string()).await;
    assert_eq!((answer.status.as_u16(), answer.body), (200, challenge));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_of_the_provider_may_read_headers() {
    let app = acme("accept = \"payload.id == headers['x-acme-task']\"").await;
    let id = register_task(&app, "1").await;
    let body = task("1", "running").to_string();
    let with = |more: &[(&str, &str)]| {
        let mut headers = standard_headers(WEBHOOK_SECRET, &body);
        headers.extend(owned_headers(more));
        headers
    };
    for more in [&[][..], &[("X-Acme-Task", "2")]] {
        assert_rejected(&post_webhook(&app, "acme", &with(more), &body).await);
    }
    // The signature is needed all the same.
    let unsigned = owned_headers(&[("X-Acme-Task", "1")]);
    assert_rejected(&post_webhook(&app, "acme", &unsigned, &body).await);
    assert_eq!(app.get_job(&id, "alice").await["version"], 1);
    let good = with(&[("X-Acme-Task", "1")]);
    assert_accepted(&post_webhook(&app, "acme", &good, &body).await, true, true);
    let no_json = standard_headers(WEBHOOK_SECRET, "no json");
    assert_eq!(
        post_webhook(&app, "acme", &no_json, "no json").await.status,
        400
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_may_name_the_task() {
    let app = acme("item = \"{'id': headers['x-task'], 'status': payload}\"").await;
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
