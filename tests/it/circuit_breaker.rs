//! The circuit breaker: a provider that limits the rate, fails or rejects the account gets no
//! requests, its state is visible, and waiting jobs lose nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use progress_hub::config::Config;
use progress_hub::provider::HttpClient;
use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{JWT_SECRET, TestApp, TestAppBuilder, TestResponse, reserve_port, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};

/// A provider with Kling's API that answers submissions with the current response and has no tasks.
struct ScriptedProvider {
    provider: MockProvider,
    response: Arc<Mutex<MockResponse>>,
    /// Response to the account check.
    account: Arc<Mutex<MockResponse>>,
    /// Time of each submission.
    submissions: Arc<Mutex<Vec<Instant>>>,
}

impl ScriptedProvider {
    async fn start(response: MockResponse) -> Self {
        let response = Arc::new(Mutex::new(response));
        let submissions: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let account = Arc::new(Mutex::new(balance(0)));
        let (current, times) = (Arc::clone(&response), Arc::clone(&submissions));
        let account_check = Arc::clone(&account);
        let provider = MockProvider::start(move |request| {
            let response = if request.method == "POST" {
                let mut times = times.lock().unwrap();
                times.push(Instant::now());
                let response: MockResponse = current.lock().unwrap().clone();
                response.numbered(times.len())
            } else if request.path.starts_with("/account/") {
                account_check.lock().unwrap().clone()
            } else {
                MockResponse::json(200, &json!({ "code": 0, "data": [] }))
            };
            async move { response }
        })
        .await;
        Self {
            provider,
            response,
            account,
            submissions,
        }
    }

    fn respond_with(&self, response: MockResponse) {
        *self.response.lock().unwrap() = response;
    }

    fn set_account(&self, response: MockResponse) {
        *self.account.lock().unwrap() = response;
    }

    fn submission_count(&self) -> usize {
        self.submissions.lock().unwrap().len()
    }
}

/// Returns Kling's response to an accepted submission.
fn accepted() -> MockResponse {
    let task = json!({ "id": "task-{n}", "status": "submitted" });
    MockResponse::json(200, &json!({ "code": 0, "data": task }))
}

fn rejected(status: u16, code: u16) -> MockResponse {
    MockResponse::json(status, &json!({ "code": code, "message": "no" }))
}

/// Returns Kling's response to the read of the balance.
fn balance(left: i64) -> MockResponse {
    let pack = json!({ "status": "online", "remaining_quantity": left });
    let data = json!({ "resource_pack_subscribe_infos": [pack] });
    MockResponse::json(200, &json!({ "code": 0, "data": data }))
}

/// Configures a hub with two providers: `kling` at `url`, and `other`, which accepts every
/// submission.
async fn hub_with(url: &str) -> (TestAppBuilder, ScriptedProvider) {
    let other = ScriptedProvider::start(accepted()).await;
    let mut builder = TestApp::builder();
    for (name, url) in [("kling", url), ("other", &other.provider.url)] {
        builder = builder
            .set(&format!("providers.{name}.spec"), "kling")
            .set(&format!("providers.{name}.base_url"), url)
            .set(&format!("providers.{name}.api_key"), "the key")
            .set(&format!("providers.{name}.max_concurrent"), 50);
    }
    (builder, other)
}

async fn submit(app: &TestApp, provider: &str) -> String {
    submit_as(app, "alice", provider, "kling-v3").await
}

async fn submit_as(app: &TestApp, owner: &str, provider: &str, model: &str) -> String {
    let body = json!({ "provider": provider, "model": model, "prompt": "a lighthouse" });
    let request = app.request(Method::POST, "/v1/videos", owner);
    let response = send(request.json(&body)).await;
    assert_eq!(response.status, 202, "{}", response.body);
    response.body["id"].as_str().unwrap().to_owned()
}

/// Submits jobs to `kling` and asserts that the submitter does not send them. It has passed over
/// them once a later job for `other` is sent.
async fn submit_while_blocked(app: &TestApp, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(submit(app, "kling").await);
    }
    let later = submit(app, "other").await;
    wait_until_queued(app, &later).await;
    for id in &ids {
        let job = app.get_job(id, "alice").await;
        let fields = (&job["status"], &job["attempt"], &job["error"]);
        assert_eq!(fields, (&json!("accepted"), &json!(0), &Value::Null));
    }
    ids
}

async fn wait_until_queued(app: &TestApp, id: &str) -> Value {
    app.wait_for_job(id, "alice", |job| job["status"] == "queued")
        .await
}

async fn assert_all_accepted_at_first_attempt(app: &TestApp, ids: &[String]) {
    for id in ids {
        let job = wait_until_queued(app, id).await;
        assert_eq!(job["attempt"], 1, "{job}");
    }
}

async fn resume(app: &TestApp, token: &str) -> TestResponse {
    let path = "/v1/providers/kling/resume";
    send(app.request_with_token(Method::POST, path, token)).await
}

/// Returns the entry of `kling` in a provider list.
fn kling_entry(response: &TestResponse) -> Value {
    assert_eq!(response.status, 200, "{}", response.body);
    let providers = response.body["providers"].as_array().unwrap();
    let entry = providers.iter().find(|entry| entry["name"] == "kling");
    entry.unwrap().clone()
}

/// Returns what users see of `kling`.
async fn public_state(app: &TestApp) -> Value {
    kling_entry(&send(app.request(Method::GET, "/v1/providers", "bob")).await)
}

/// Asserts that the provider list, the health endpoint and the metrics agree on the state of
/// `kling`.
async fn assert_state(app: &TestApp, state: &str, reason: Value) {
    let shown = public_state(app).await;
    assert_eq!(
        (&shown["state"], &shown["reason"]),
        (&json!(state), &reason)
    );
    assert_eq!(shown["until"].is_null(), state == "available", "{shown}");
    assert_eq!(shown["since"].is_null(), state == "available", "{shown}");
    assert!(shown.get("balance").is_none(), "{shown}");
    let health = send(app.request_without_token(Method::GET, "/v1/health")).await;
    let providers = json!({ "generic": "available", "kling": state, "other": "available" });
    assert_eq!(
        (health.status.as_u16(), &health.body["providers"]),
        (200, &providers)
    );
    let labels = format!("{{provider=\"kling\",state=\"{state}\"}}");
    assert_eq!(app.metric(&format!("provider_state{labels}")).await, 1.0);
    if state != "available" {
        let transitions = format!("provider_state_transitions_total{labels}");
        assert_eq!(app.metric(&transitions).await, 1.0);
    }
}

/// Asserts that the provider list and the metrics agree on the number of holds.
async fn assert_holds(app: &TestApp, holds: u32) {
    assert_eq!(public_state(app).await["holds"], holds);
    let metric = app.metric("provider_holds{provider=\"kling\"}").await;
    assert_eq!(metric, f64::from(holds));
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limit_pauses_all_jobs_without_using_attempts() {
    let rate_limited = rejected(429, 1302).with_header("retry-after", 2);
    let kling = ScriptedProvider::start(rate_limited).await;
    let (hub, _other) = hub_with(&kling.provider.url).await;
    let app = hub.spawn().await;
    let first = submit(&app, "kling").await;
    let has_retry = |job: &Value| !job["next_attempt_at"].is_null();
    app.wait_for_job(&first, "alice", has_retry).await;
    let rejected_at = kling.submissions.lock().unwrap()[0];
    let waiting = submit_while_blocked(&app, 20).await;
    assert_state(&app, "rate_limited", json!("rate_limit")).await;
    kling.respond_with(accepted());
    assert_all_accepted_at_first_attempt(&app, &waiting).await;
    let job = wait_until_queued(&app, &first).await;
    assert_eq!(job["attempt"], 2);
    let submissions = kling.submissions.lock().unwrap().clone();
    assert_eq!(submissions.len(), 22);
    // Times are kept in whole milliseconds.
    let pause = Duration::from_millis(1990);
    let early = submissions[1..]
        .iter()
        .filter(|at| **at - rejected_at < pause);
    assert_eq!(early.count(), 0);
    assert_state(&app, "available", Value::Null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_or_auth_error_fails_one_job_and_suspends_the_provider() {
    for (response, kind) in [
        (rejected(429, 1102), "quota"),
        (rejected(401, 1002), "auth"),
    ] {
        let kling = ScriptedProvider::start(response.clone()).await;
        // The balance shows that the account has no credit, or that the key is rejected.
        if kind == "auth" {
            kling.set_account(response);
        }
        let (hub, _other) = hub_with(&kling.provider.url).await;
        let app = hub.spawn().await;
        let first = submit(&app, "kling").await;
        let job = app.wait_until_final(&first, "alice").await;
        assert_eq!(
            (&job["error"]["kind"], &job["attempt"]),
            (&json!(kind), &json!(1))
        );
        let suspended = "provider_state{provider=\"kling\",state=\"suspended\"}";
        app.wait_for_metric(suspended, |value| value == 1.0).await;
        let waiting = submit_while_blocked(&app, 10).await;
        assert_state(&app, "suspended", json!(kind)).await;
        assert_eq!(kling.submission_count(), 1);

        let user = app.token("bob", "jobs:read jobs:write jobs:publish");
        let response = resume(&app, &user).await;
        assert_eq!(response.body["code"], "forbidden");
        kling.respond_with(accepted());
        let response = resume(&app, &app.token("root", "admin")).await;
        assert_eq!(
            (response.status.as_u16(), &response.body["state"]),
            (200, &json!("available"))
        );
        assert_all_accepted_at_first_attempt(&app, &waiting).await;
        assert_eq!(kling.submission_count(), 11);
        assert_state(&app, "available", Value::Null).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_continues_without_credit() {
    let kling = ScriptedProvider::start(rejected(402, 1102)).await;
    let (hub, _other) = hub_with(&kling.provider.url).await;
    let app = hub
        .set("providers.kling.poll_after", "100ms")
        .set("providers.kling.poll_every", "100ms")
        .spawn()
        .await;
    let first = submit(&app, "kling").await;
    app.wait_until_final(&first, "alice").await;
    let worker = app.token("worker", "jobs:publish");
    let body = json!({ "provider": "kling", "provider_task_id": "7", "owner": "alice" });
    let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
    send(request.json(&body)).await;
    let suspended = "provider_state{provider=\"kling\",state=\"suspended\"}";
    app.wait_for_metric(suspended, |value| value == 1.0).await;
    let is_poll =
        |request: &&RecordedRequest| request.method == "GET" && request.path.starts_with("/tasks");
    kling
        .provider
        .wait_for_requests(|requests| requests.iter().filter(is_poll).count() > 2)
        .await;
    assert_eq!(public_state(&app).await["state"], "suspended");
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_submission_that_no_account_check_confirms_affects_one_owner_and_model() {
    for response in [
        rejected(403, 1103),
        rejected(401, 1002),
        rejected(402, 1101),
        rejected(429, 1102),
    ] {
        let kling = ScriptedProvider::start(response.clone()).await;
        kling.set_account(balance(100));
        let (hub, _other) = hub_with(&kling.provider.url).await;
        let app = hub.spawn().await;
        // Examples: a private model of another account, or a model that costs more than the
        // balance.
        for n in 0..10 {
            kling.respond_with(response.clone());
            let id = submit_as(&app, "alice", "kling", &format!("private-{n}")).await;
            app.wait_until_final(&id, "alice").await;
            kling.respond_with(accepted());
            let id = submit_as(&app, "bob", "kling", "private-0").await;
            let is_queued = |job: &Value| job["status"] == "queued";
            let job = app.wait_for_job(&id, "bob", is_queued).await;
            assert_eq!(job["attempt"], 1, "{job}");
            assert_state(&app, "available", Value::Null).await;
        }
        let other_model = submit_as(&app, "alice", "kling", "kling-v3").await;
        assert_all_accepted_at_first_attempt(&app, &[other_model]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_key_holds_the_owner_and_model_and_the_job_waits() {
    let kling = ScriptedProvider::start(rejected(403, 1103)).await;
    kling.set_account(balance(100));
    let (hub, _other) = hub_with(&kling.provider.url).await;
    let app = hub.spawn().await;
    let id = submit(&app, "kling").await;
    app.wait_until_final(&id, "alice").await;
    let held = submit(&app, "kling").await;
    let is_postponed = |job: &Value| !job["next_attempt_at"].is_null();
    let job = app.wait_for_job(&held, "alice", is_postponed).await;
    let fields = (&job["status"], &job["attempt"], &job["error"]);
    assert_eq!(fields, (&json!("accepted"), &json!(0), &Value::Null));
    assert_eq!(kling.submission_count(), 1);
    assert_holds(&app, 1).await;
    resume(&app, &app.token("root", "admin")).await;
    assert_holds(&app, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_poll_affects_one_owner_and_model() {
    let provider = MockProvider::start(|request: RecordedRequest| {
        let tasks = request.path.split_once("task_ids=").map(|(_, ids)| ids);
        let response = match (request.method.as_str(), tasks) {
            ("POST", _) => {
                let id = request.body["options"]["external_task_id"].as_str();
                let id = format!(
                    "{}-{}",
                    request.body["prompt"].as_str().unwrap(),
                    id.unwrap()
                );
                let task = json!({ "id": id, "status": "submitted" });
                MockResponse::json(200, &json!({ "code": 0, "data": task }))
            }
            (_, Some(tasks)) if tasks.contains("hidden") => rejected(403, 1103),
            (_, Some(id)) => {
                let task = json!({ "id": id, "status": "processing" });
                MockResponse::json(200, &json!({ "code": 0, "data": [task] }))
            }
            (_, None) => balance(100),
        };
        async move { response }
    })
    .await;
    let (hub, _other) = hub_with(&provider.url).await;
    let app = hub
        .set("providers.kling.poll_after", "100ms")
        .set("providers.kling.poll_every", "100ms")
        .spawn()
        .await;
    let submit = async |owner: &str, prompt: &str| {
        let body = json!({ "provider": "kling", "model": "private", "prompt": prompt });
        let request = app.request(Method::POST, "/v1/videos", owner);
        let response = send(request.json(&body)).await;
        assert_eq!(response.status, 202, "{}", response.body);
        response.body["id"].as_str().unwrap().to_owned()
    };
    submit("alice", "hidden").await;
    app.wait_for_metric("provider_holds{provider=\"kling\"}", |holds| holds == 1.0)
        .await;
    let held = submit("alice", "plain").await;
    let is_postponed = |job: &Value| !job["next_attempt_at"].is_null();
    let job = app.wait_for_job(&held, "alice", is_postponed).await;
    assert_eq!(job["attempt"], 0);
    let id = submit("bob", "plain").await;
    let is_polled = |job: &Value| job["status"] == "running";
    let job = app.wait_for_job(&id, "bob", is_polled).await;
    assert_eq!(job["attempt"], 1);
    // A poll of both tasks is rejected, and is repeated for each.
    let names = |request: &RecordedRequest, task: &str| request.path.contains(task);
    let is_repeated = |requests: &[RecordedRequest]| {
        let mut requests = requests.iter();
        requests.any(|it| names(it, "hidden-") && names(it, "plain-"))
            && requests.any(|it| !names(it, "hidden-") && names(it, "plain-"))
    };
    provider.wait_for_requests(|all| is_repeated(all)).await;
    assert_state(&app, "available", Value::Null).await;
    assert_holds(&app, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_one_owner_do_not_open_the_circuit() {
    let kling = ScriptedProvider::start(rejected(500, 5000)).await;
    let (hub, _other) = hub_with(&kling.provider.url).await;
    let app = hub.spawn().await;
    for n in 0..8 {
        let crash = rejected(500, 5000).with_header("x-should-retry", "false");
        kling.respond_with(crash);
        let id = submit_as(&app, "alice", "kling", &format!("model-{n}")).await;
        app.wait_until_final(&id, "alice").await;
        assert_state(&app, "available", Value::Null).await;
    }
    kling.respond_with(accepted());
    let id = submit_as(&app, "bob", "kling", "model-0").await;
    let is_queued = |job: &Value| job["status"] == "queued";
    let job = app.wait_for_job(&id, "bob", is_queued).await;
    assert_eq!(job["attempt"], 1, "{job}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limited_polls_do_not_pause_submissions() {
    let provider = MockProvider::start(|request: RecordedRequest| async move {
        if request.path.starts_with("/tasks") {
            rejected(429, 1302).with_header("retry-after", 600)
        } else {
            accepted()
        }
    })
    .await;
    let (hub, _other) = hub_with(&provider.url).await;
    let app = hub.set("providers.kling.poll_after", "50ms").spawn().await;
    let worker = app.token("worker", "jobs:publish");
    let body = json!({ "provider": "kling", "provider_task_id": "7", "owner": "alice" });
    let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
    send(request.json(&body)).await;
    let limited = "provider_state{provider=\"kling\",state=\"rate_limited\"}";
    app.wait_for_metric(limited, |value| value == 1.0).await;
    let id = submit_as(&app, "bob", "kling", "kling-v3").await;
    let is_queued = |job: &Value| job["status"] == "queued";
    let job = app.wait_for_job(&id, "bob", is_queued).await;
    assert_eq!(job["attempt"], 1, "{job}");
}

#[tokio::test(flavor = "multi_thread")]
async fn error_text_echoing_the_request_does_not_open_the_circuit() {
    let body = json!({ "result": "no", "reason": "prompt 'please come back' is invalid" });
    let definition = r#"
title = "Echo"
signature = { scheme = "none" }
[answer]
ok = "payload.result == 'ok'"
message = "payload.reason"
[submit]
url = "{{ base_url }}/jobs"
body = "{'prompt': prompt}"
[poll]
url = "{{ base_url }}/jobs/{{ tasks[0]|segment }}"
[read]
task_id = "payload.id"
status = "payload.status"
[read.statuses]
queued = "queued"
[[errors]]
when = "message is containing(['come back'])"
kind = "rate_limit"
"#;
    let directory = tempfile::tempdir().unwrap();
    let spec = directory.path().join("echo.toml");
    std::fs::write(&spec, definition).unwrap();
    let echo = MockProvider::start(move |_| {
        let response = MockResponse::json(400, &body).with_header("retry-after", 600);
        async move { response }
    })
    .await;
    let (hub, _other) = hub_with(&echo.url).await;
    let app = hub
        .set("providers.kling.spec", spec.display())
        .spawn()
        .await;
    let id = submit(&app, "kling").await;
    let has_retry = |job: &Value| !job["next_attempt_at"].is_null();
    let job = app.wait_for_job(&id, "alice", has_retry).await;
    assert_eq!(job["error"]["kind"], "rate_limit");
    assert_state(&app, "available", Value::Null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_failures_open_the_circuit() {
    let failure = rejected(503, 5001).with_header("retry-after-ms", 1);
    let kling = ScriptedProvider::start(failure).await;
    let (hub, _other) = hub_with(&kling.provider.url).await;
    let app = hub.spawn().await;
    // At most three failures of one owner or model count. Without retries, each job fails once.
    kling.respond_with(rejected(503, 5001).with_header("x-should-retry", "false"));
    for (owner, model) in [
        ("alice", "kling-v3"),
        ("alice", "kling-v2"),
        ("bob", "kling-v2"),
    ] {
        let id = submit_as(&app, owner, "kling", model).await;
        app.wait_until_final(&id, owner).await;
        assert_state(&app, "available", Value::Null).await;
    }
    kling.respond_with(rejected(503, 5001).with_header("retry-after-ms", 1));
    let first = submit_as(&app, "carol", "kling", "kling-v3").await;
    let unavailable = "provider_state{provider=\"kling\",state=\"unavailable\"}";
    app.wait_for_metric(unavailable, |value| value == 1.0).await;
    let waiting = submit_while_blocked(&app, 3).await;
    assert_state(&app, "unavailable", json!("technical")).await;
    assert_eq!(kling.submission_count(), 5);
    kling.respond_with(accepted());
    assert_all_accepted_at_first_attempt(&app, &waiting).await;
    let is_queued = |job: &Value| job["status"] == "queued";
    app.wait_for_job(&first, "carol", is_queued).await;
    assert_eq!(kling.submission_count(), 9);
    assert_state(&app, "available", Value::Null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_connections_open_the_circuit_until_the_provider_answers() {
    let (_port, address) = reserve_port();
    let (hub, _other) = hub_with(&format!("http://{address}")).await;
    let app = hub.spawn().await;
    let mut first = Vec::new();
    for _ in 0..5 {
        first.push(submit(&app, "kling").await);
    }
    let unavailable = "provider_state{provider=\"kling\",state=\"unavailable\"}";
    app.wait_for_metric(unavailable, |value| value == 1.0).await;
    // The connection was refused, so nothing was sent and no outcome is unknown.
    for id in &first {
        assert_eq!(app.get_job(id, "alice").await["status"], "accepted");
    }
    let waiting = submit_while_blocked(&app, 3).await;
    assert_state(&app, "unavailable", json!("technical")).await;
    let kling = MockProvider::start_at(address, |request: RecordedRequest| async move {
        let id = request.body["options"]["external_task_id"].clone();
        let task = json!({ "id": id, "status": "submitted" });
        MockResponse::json(200, &json!({ "code": 0, "data": task }))
    })
    .await;
    resume(&app, &app.token("root", "admin")).await;
    assert_all_accepted_at_first_attempt(&app, &waiting).await;
    for id in &first {
        let job = wait_until_queued(&app, id).await;
        assert_eq!(job["provider_task_id"], json!(id));
    }
    assert_state(&app, "available", Value::Null).await;
    let requests = kling.requests();
    let submissions = requests.iter().filter(|request| request.method == "POST");
    assert_eq!(submissions.count(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn submission_that_the_provider_marks_as_not_retryable_is_not_retried() {
    for response in [
        rejected(500, 5000).with_header("x-fal-retryable", "false"),
        rejected(503, 5001).with_header("x-should-retry", "false"),
        rejected(429, 1302).with_header("x-should-retry", "false"),
    ] {
        let kling = ScriptedProvider::start(response).await;
        let (hub, _other) = hub_with(&kling.provider.url).await;
        let app = hub.spawn().await;
        let id = submit(&app, "kling").await;
        let job = app.wait_until_final(&id, "alice").await;
        assert_eq!(
            (&job["status"], &job["attempt"]),
            (&json!("failed"), &json!(1))
        );
        assert_eq!(job["error"]["retryable"], false);
        assert_eq!(kling.submission_count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retryable_header_does_not_make_an_ambiguous_response_definitive() {
    let response = MockResponse::text(500, "oops").with_header("x-should-retry", "true");
    let kling = ScriptedProvider::start(response).await;
    let (hub, _other) = hub_with(&kling.provider.url).await;
    let app = hub.spawn().await;
    let id = submit(&app, "kling").await;
    let is_unknown = |job: &Value| job["error"]["kind"] == "submission_unknown";
    app.wait_for_job(&id, "alice", is_unknown).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delay_in_the_error_message_pauses_the_provider() {
    let body = json!({ "code": 1302, "message": "Your limit resets in ~40s." });
    let kling = ScriptedProvider::start(MockResponse::json(429, &body)).await;
    let (hub, _other) = hub_with(&kling.provider.url).await;
    let app = hub.spawn().await;
    let id = submit(&app, "kling").await;
    let has_retry = |job: &Value| !job["next_attempt_at"].is_null();
    app.wait_for_job(&id, "alice", has_retry).await;
    let shown = public_state(&app).await;
    let time = |key: &str| {
        let text = shown[key].as_str().unwrap();
        text.parse::<jiff::Timestamp>().unwrap()
    };
    assert_eq!(time("until").duration_since(time("since")).as_secs(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_response_is_aborted() {
    let bomb = include_bytes!("circuit_breaker/bomb.json.gz").as_slice();
    let response = MockResponse::bytes(200, bomb).with_header("content-encoding", "gzip");
    let kling = ScriptedProvider::start(response).await;
    let (hub, _other) = hub_with(&kling.provider.url).await;
    let app = hub.spawn().await;
    let id = submit(&app, "kling").await;
    let is_unknown = |job: &Value| job["error"]["kind"] == "submission_unknown";
    let job = app.wait_for_job(&id, "alice", is_unknown).await;
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.contains("too large"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn positive_balance_keeps_submissions_allowed_after_a_quota_rejection() {
    let directory = tempfile::tempdir().unwrap();
    let spec = directory.path().join("kling.toml");
    let kling = include_str!("../../src/provider/specs/kling.toml");
    let (before, after) = kling.split_once("[balance]").unwrap();
    let (_, after) = after.split_once("\n[").unwrap();
    let balance = "url = '{{ base_url }}/balance'\namount = 'payload.data.left'\nunit = 'Credits'";
    std::fs::write(&spec, format!("{before}[balance]\n{balance}\n\n[{after}")).unwrap();
    let is_first = AtomicBool::new(true);
    let provider = MockProvider::start(move |request: RecordedRequest| {
        let response = match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/balance") => {
                MockResponse::json(200, &json!({ "code": 0, "data": { "left": 7.5 } }))
            }
            ("POST", _) if is_first.swap(false, Ordering::SeqCst) => rejected(429, 1102),
            _ => accepted(),
        };
        async move { response }
    })
    .await;
    let app = TestApp::builder()
        .set("providers.kling.spec", spec.display())
        .set("providers.kling.base_url", &provider.url)
        .set("providers.kling.api_key", "the key")
        .spawn()
        .await;
    let first = submit(&app, "kling").await;
    let job = app.wait_until_final(&first, "alice").await;
    assert_eq!(job["error"]["kind"], "quota");
    let second = submit(&app, "kling").await;
    assert_all_accepted_at_first_attempt(&app, &[second]).await;
    assert!(public_state(&app).await.get("balance").is_none());
    let admin = app.token("root", "admin");
    let response = send(app.request_with_token(Method::GET, "/v1/providers", &admin)).await;
    let shown = kling_entry(&response);
    assert_eq!(shown["balance"]["amount"], 7.5);
    assert_eq!(shown["balance"]["unit"], "credits");
    let metric = app.metric("provider_balance{provider=\"kling\"}").await;
    assert_eq!(metric, 7.5);
    let requests = provider.requests();
    let reads = requests.iter().filter(|request| request.path == "/balance");
    assert!(reads.count() <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_list_requires_a_token_and_resume_requires_a_known_provider() {
    let app = TestApp::spawn().await;
    let response = send(app.request_without_token(Method::GET, "/v1/providers")).await;
    assert_eq!(response.body["code"], "unauthorized");
    let admin = app.token("root", "admin");
    let path = "/v1/providers/nobody/resume";
    let response = send(app.request_with_token(Method::POST, path, &admin)).await;
    assert_eq!(response.body["code"], "not_found");
}

#[test]
fn deadlines_and_polls_stay_within_provider_retention() {
    let set = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let settings = vec![
        set("auth.hs256_secrets", JWT_SECRET),
        set("providers.one.spec", "replicate"),
        set("providers.one.api_key", "a key"),
        set("providers.one.deadline", "1h"),
        set("providers.one.poll_after", "61m"),
        set("providers.one.poll_every", "2h"),
    ];
    let config = Config::load(None, std::iter::empty(), settings).unwrap();
    let result = progress_hub::server::validate(&config, &HttpClient::new().unwrap());
    let errors = result.err().unwrap();
    let keys: Vec<&str> = errors.iter().map(|error| error.key.as_str()).collect();
    assert_eq!(
        keys,
        ["deadline", "poll_after", "poll_every"].map(|key| format!("providers.one.{key}"))
    );
    assert!(errors[0].message.contains("3600s"), "{errors:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn deadline_of_a_registered_job_must_be_within_provider_retention() {
    let app = TestApp::builder()
        .set("providers.replicate.spec", "replicate")
        .set("providers.replicate.api_key", "a key")
        .spawn()
        .await;
    let worker = app.token("worker", "jobs:publish");
    for (seconds, status) in [(7200, 400), (3600, 400), (3000, 201)] {
        let body = json!({
            "provider": "replicate",
            "provider_task_id": "1",
            "owner": "alice",
            "deadline_seconds": seconds,
        });
        let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
        let response = send(request.json(&body)).await;
        assert_eq!(response.status, status, "{}", response.body);
    }
}
