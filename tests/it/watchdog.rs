//! Polling and deadlines: every job reaches a terminal state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use crate::app::{TestApp, TestAppBuilder, WEBHOOK_SECRET, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};

fn kling(provider: &MockProvider) -> TestAppBuilder {
    TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", &provider.url)
        .set("providers.kling.api_key", "a key")
        .set("providers.kling.poll_every", "100ms")
        .set("providers.kling.deadline", "1m")
}

/// Registers a task that another system submitted.
async fn register(app: &TestApp, task: &str) -> String {
    let worker = app.token("worker", "jobs:publish");
    let body = json!({ "provider": "kling", "provider_task_id": task, "owner": "alice" });
    let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
    let response = send(request.json(&body)).await;
    assert_eq!(response.status, 201, "{}", response.body);
    response.body["id"].as_str().unwrap().to_owned()
}

async fn submit(app: &TestApp) -> String {
    let body = json!({ "provider": "kling", "model": "kling-v3", "prompt": "a lighthouse" });
    let request = app.request(Method::POST, "/v1/videos", "alice");
    let response = send(request.json(&body)).await;
    assert_eq!(response.status, 202, "{}", response.body);
    response.body["id"].as_str().unwrap().to_owned()
}

fn poll_response(tasks: &[Value]) -> MockResponse {
    MockResponse::json(200, &json!({ "code": 0, "data": tasks }))
}

fn succeeded(task: &str, reference: Option<&str>) -> Value {
    let output = json!({ "type": "video", "url": "https://cdn.example.com/a.mp4" });
    json!({ "id": task, "external_id": reference, "status": "succeeded", "outputs": [output] })
}

/// Returns the ids in a query parameter of a poll.
fn task_ids(request: &RecordedRequest, parameter: &str) -> Vec<String> {
    let query = request.path.split_once('?').unwrap().1;
    let list = query
        .strip_prefix(parameter)
        .and_then(|rest| rest.strip_prefix('='));
    let list = list.unwrap_or_default().replace("%2C", ",");
    let names = list.split(',').filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

fn submits(request: &[RecordedRequest]) -> usize {
    request.iter().filter(|it| it.method == "POST").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn externally_submitted_task_is_polled_until_terminal() {
    let polls = Arc::new(AtomicUsize::new(0));
    let provider = MockProvider::start(move |_| {
        // Failed polls are repeated.
        let response = match polls.fetch_add(1, Ordering::Relaxed) {
            0 => MockResponse::text(500, "oops"),
            1 => MockResponse::disconnect(),
            2 => poll_response(&[]),
            3 => poll_response(&[json!({ "id": "1", "status": "processing" })]),
            _ => poll_response(&[succeeded("1", None)]),
        };
        async move { response }
    })
    .await;
    let app = kling(&provider)
        .set("providers.kling.poll_after", "100ms")
        .spawn()
        .await;
    let id = register(&app, "1").await;
    let job = app.wait_until_final(&id, "alice").await;
    assert_eq!(
        (&job["status"], &job["source"]),
        (&json!("succeeded"), &json!("poll"))
    );
    assert_eq!(job["version"], 3, "a failed poll changes nothing");
    assert!(
        provider
            .requests()
            .iter()
            .all(|request| request.path == "/tasks?task_ids=1")
    );
    assert!(
        provider
            .requests()
            .iter()
            .all(|request| request.method == "GET")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn task_id_is_escaped_in_the_poll_url() {
    let provider = MockProvider::start(|_| async { poll_response(&[]) }).await;
    let app = kling(&provider)
        .set("providers.kling.poll_after", "100ms")
        .spawn()
        .await;
    register(&app, "1&external_task_ids=2#3,4").await;
    let request = provider
        .wait_for_requests(|all| !all.is_empty())
        .await
        .remove(0);
    assert_eq!(
        request.path,
        "/tasks?task_ids=1%26external_task_ids%3D2%233%2C4"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn due_polls_survive_restart_and_are_batched() {
    let provider = MockProvider::start(|request: RecordedRequest| async move {
        let tasks = task_ids(&request, "task_ids");
        let tasks: Vec<Value> = tasks.iter().map(|task| succeeded(task, None)).collect();
        poll_response(&tasks)
    })
    .await;
    let hub = || {
        kling(&provider)
            .set("providers.kling.poll_after", "1h")
            .set("providers.kling.poll_every", "1m")
    };
    let app = hub().spawn().await;
    let jobs = (0..120).map(|n| {
        let app = &app;
        async move { register(app, &n.to_string()).await }
    });
    let jobs = futures_util::future::join_all(jobs).await;
    let database = app.database_path();
    let folder = app.shut_down().await.unwrap();
    assert_eq!(provider.requests().len(), 0);
    // Simulates one hour passing.
    let db = rusqlite::Connection::open(database).unwrap();
    let bring_forward = "UPDATE jobs SET poll_at = poll_at - 3600 * 1000";
    assert_eq!(db.execute(bring_forward, []).unwrap(), 120);
    drop(db);

    let app = hub().data_dir(folder).spawn().await;
    for id in &jobs {
        assert_eq!(
            app.wait_until_final(id, "alice").await["status"],
            "succeeded"
        );
    }
    let sizes = provider.requests();
    let mut sizes: Vec<usize> = sizes
        .iter()
        .map(|it| task_ids(it, "task_ids").len())
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [20, 50, 50]);
}

#[tokio::test(flavor = "multi_thread")]
async fn job_waiting_for_retry_is_submitted_after_restart() {
    let is_busy = Arc::new(AtomicBool::new(true));
    let busy = Arc::clone(&is_busy);
    let provider = MockProvider::start(move |_| {
        let response = if busy.load(Ordering::Relaxed) {
            MockResponse::json(429, &json!({ "code": 1302, "message": "busy" }))
        } else {
            MockResponse::json(
                200,
                &json!({ "code": 0, "data": { "id": "1", "status": "submitted" } }),
            )
        };
        async move { response.with_header("retry-after", 1) }
    })
    .await;
    let app = kling(&provider).spawn().await;
    let id = submit(&app).await;
    app.wait_for_job(&id, "alice", |job| !job["next_attempt_at"].is_null())
        .await;
    let folder = app.shut_down().await.unwrap();
    is_busy.store(false, Ordering::Relaxed);
    let before = submits(&provider.requests());
    let app = kling(&provider).data_dir(folder).spawn().await;
    let job = app
        .wait_for_job(&id, "alice", |job| job["status"] == "queued")
        .await;
    assert_eq!(submits(&provider.requests()), before + 1);
    assert_eq!(job["attempt"], before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn deadline_fails_worker_jobs() {
    let app = TestApp::spawn().await;
    let worker = app.token("worker", "jobs:publish");
    let body = json!({ "owner": "alice", "deadline_seconds": 0.5 });
    let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
    let job = send(request.json(&body)).await.body;
    let id = job["id"].as_str().unwrap();
    let response = app.push_update(id, json!({ "progress": 20 })).await;
    assert_eq!(response.status, 200, "{}", response.body);
    let ended = app.wait_until_final(id, "alice").await;
    assert_eq!(
        (&ended["status"], &ended["source"]),
        (&json!("failed"), &json!("deadline"))
    );
    assert_eq!(ended["error"]["kind"], "timeout");
    let late = app.push_update(id, json!({ "progress": 30 })).await;
    assert_eq!(
        (late.status.as_u16(), &late.body["code"]),
        (409, &json!("job_final"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_the_deadline_fails_the_job_with_the_original_error() {
    let provider = MockProvider::start(|_| async {
        MockResponse::json(429, &json!({ "code": 1302, "message": "busy" }))
            .with_header("retry-after", 60)
    })
    .await;
    let app = kling(&provider)
        .set("providers.kling.deadline", "1s")
        .spawn()
        .await;
    let id = submit(&app).await;
    let job = app.wait_until_final(&id, "alice").await;
    assert_eq!(
        (&job["error"]["kind"], &job["source"]),
        (&json!("rate_limit"), &json!("submit"))
    );
    assert_eq!(job["error"]["retryable"], true);
    assert_eq!(job["next_attempt_at"], Value::Null);
    assert_eq!(provider.requests().len(), 1);

    // The next job waits for the circuit breaker until its own deadline.
    let id = submit(&app).await;
    let job = app.wait_until_final(&id, "alice").await;
    assert_eq!(
        (&job["error"]["kind"], &job["source"]),
        (&json!("timeout"), &json!("deadline"))
    );
    assert_eq!(job["attempt"], 0);
    assert_eq!(provider.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_task_does_not_block_polls_of_others() {
    let provider = MockProvider::start(|request: RecordedRequest| async move {
        let tasks = task_ids(&request, "task_ids");
        if tasks.contains(&"bad".to_owned()) {
            return MockResponse::json(400, &json!({ "code": 1201, "message": "no such id" }));
        }
        let tasks: Vec<Value> = tasks.iter().map(|task| succeeded(task, None)).collect();
        poll_response(&tasks)
    })
    .await;
    let app = kling(&provider)
        .set("providers.kling.poll_after", "500ms")
        .spawn()
        .await;
    let mut ids = Vec::new();
    for task in ["1", "2", "bad", "3", "4"] {
        ids.push(register(&app, task).await);
    }
    let bad = ids.remove(2);
    for id in &ids {
        assert_eq!(
            app.wait_until_final(id, "alice").await["status"],
            "succeeded"
        );
    }
    assert_eq!(app.get_job(&bad, "alice").await["final"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn reported_success_without_readable_result_ends_as_result_expired() {
    let provider = MockProvider::start(|_| async {
        MockResponse::json(404, &json!({ "code": 1203, "message": "no such task" }))
    })
    .await;
    let app = kling(&provider)
        .set("providers.kling.poll_after", "100ms")
        .set("providers.kling.webhook_secrets", WEBHOOK_SECRET)
        .spawn()
        .await;
    let [reported, unreported] = [register(&app, "1").await, register(&app, "2").await];
    let without_outputs = json!({ "id": "1", "status": "succeeded" }).to_string();
    let mut request = app.request_without_token(Method::POST, "/v1/webhooks/kling");
    let now = crate::webhook_signatures::now();
    for (name, value) in
        crate::webhook_signatures::standard(WEBHOOK_SECRET, "1", now, without_outputs.as_bytes())
    {
        request = request.header(name, value);
    }
    let response = send(request.body(without_outputs)).await;
    assert_eq!(response.body, json!({ "matched": true, "applied": false }));
    let job = app.wait_until_final(&reported, "alice").await;
    assert_eq!(
        (&job["status"], &job["source"]),
        (&json!("succeeded"), &json!("poll"))
    );
    assert_eq!(job["error"]["kind"], "result_expired");
    let polls = provider.requests().len();
    provider
        .wait_for_requests(|all| all.len() > polls + 2)
        .await;
    assert_eq!(app.get_job(&unreported, "alice").await["final"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_polls_are_bounded() {
    const JOBS: usize = 60;
    const MAX_POLLS: usize = 8;
    let (now, max_seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (under_way, seen) = (Arc::clone(&now), Arc::clone(&max_seen));
    let started = watch::Sender::new(0);
    let provider = MockProvider::start(move |request: RecordedRequest| {
        let (now, max_seen) = (Arc::clone(&now), Arc::clone(&max_seen));
        let started = started.clone();
        async move {
            max_seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let mut number = 0;
            started.send_modify(|started| {
                *started += 1;
                number = *started;
            });
            // The response waits for the next polls, so that as many as possible overlap.
            let next = JOBS.min(number + MAX_POLLS - 1);
            let mut polls = started.subscribe();
            drop(polls.wait_for(|started| *started >= next).await);
            now.fetch_sub(1, Ordering::SeqCst);
            let id = request.path.rsplit('/').next().unwrap().to_owned();
            let output = json!(["https://cdn.example.com/a.mp4"]);
            MockResponse::json(
                200,
                &json!({ "id": id, "status": "SUCCEEDED", "output": output }),
            )
        }
    })
    .await;
    let app = TestApp::builder()
        .set("providers.kling.spec", "runway")
        .set("providers.kling.base_url", &provider.url)
        .set("providers.kling.api_key", "a key")
        .set("providers.kling.poll_after", "1s")
        .spawn()
        .await;
    let jobs = (0..JOBS).map(|n| {
        let app = &app;
        async move { register(app, &n.to_string()).await }
    });
    for id in futures_util::future::join_all(jobs).await {
        assert_eq!(
            app.wait_until_final(&id, "alice").await["status"],
            "succeeded"
        );
    }
    let max_seen = seen.load(Ordering::SeqCst);
    assert_eq!(max_seen, MAX_POLLS);
    assert_eq!(under_way.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn final_poll_at_deadline_can_still_succeed() {
    let provider = MockProvider::start(|_| async { poll_response(&[succeeded("1", None)]) }).await;
    let app = kling(&provider)
        .set("providers.kling.poll_after", "1h")
        .set("providers.kling.deadline", "1s")
        .spawn()
        .await;
    let id = register(&app, "1").await;
    let job = app.wait_until_final(&id, "alice").await;
    assert_eq!(
        (&job["status"], &job["source"]),
        (&json!("succeeded"), &json!("poll"))
    );
}

/// Starts a mock Kling without signatures that sends the next response to a submission when notified.
async fn start_delayed(responses: [MockResponse; 2]) -> (MockProvider, Arc<Notify>) {
    let release = Arc::new(Notify::new());
    let notified = Arc::clone(&release);
    let responses = Arc::new(std::sync::Mutex::new(responses.to_vec()));
    let provider = MockProvider::start(move |request: RecordedRequest| {
        let (notified, responses) = (Arc::clone(&notified), Arc::clone(&responses));
        async move {
            if request.method == "GET" {
                return poll_response(&[]);
            }
            notified.notified().await;
            responses.lock().unwrap().remove(0)
        }
    })
    .await;
    (provider, release)
}

#[tokio::test(flavor = "multi_thread")]
async fn untrusted_webhook_before_response_does_not_affect_the_submission() {
    let taken = MockResponse::json(
        200,
        &json!({ "code": 0, "data": { "id": "1", "status": "submitted" } }),
    );
    let busy = MockResponse::json(429, &json!({ "code": 1302, "message": "busy" }))
        .with_header("retry-after-ms", 1);
    let (provider, release) = start_delayed([busy, taken]).await;
    let app = kling(&provider).spawn().await;
    let id = submit(&app).await;
    let requests = provider.wait_for_requests(|all| all.len() == 1).await;
    let callback = requests[0].body["options"]["callback_url"]
        .as_str()
        .unwrap();
    let path = callback.strip_prefix(&app.url).unwrap();
    let webhook = json!({ "id": "1", "status": "processing" });
    let response = send(app.request_without_token(Method::POST, path).json(&webhook)).await;
    assert_eq!(response.body, json!({ "matched": true, "applied": false }));
    release.notify_one();
    // A definitive rejection is retried.
    provider.wait_for_requests(|all| submits(all) == 2).await;
    assert_eq!(app.get_job(&id, "alice").await["attempt"], 2);
    release.notify_one();
    let job = app
        .wait_for_job(&id, "alice", |job| job["status"] == "queued")
        .await;
    assert_eq!(job["version"], 5, "{job}");
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_during_submit_polls_by_reference_and_never_resubmits() {
    let (release, is_found) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let known = Arc::clone(&is_found);
    let provider = MockProvider::start(move |request: RecordedRequest| {
        let (release, known) = (Arc::clone(&release), Arc::clone(&known));
        async move {
            if request.method == "POST" {
                // The provider has the job, but its response is lost.
                release.notified().await;
            }
            let ours = task_ids(&request, "external_task_ids");
            match ours.first().filter(|_| known.load(Ordering::Relaxed)) {
                Some(name) => poll_response(&[succeeded("1", Some(name))]),
                None => poll_response(&[]),
            }
        }
    })
    .await;
    let app = kling(&provider).spawn_process(&[]).await;
    let id = submit(&app).await;
    provider.wait_for_requests(|all| submits(all) == 1).await;
    let folder = app.kill();

    let app = kling(&provider).data_dir(folder).spawn_process(&[]).await;
    let is_unknown = |job: &Value| job["error"]["kind"] == "submission_unknown";
    let unknown = app.wait_for_job(&id, "alice", is_unknown).await;
    assert_eq!(
        (&unknown["status"], &unknown["attempt"]),
        (&json!("accepted"), &json!(1))
    );
    is_found.store(true, Ordering::Relaxed);
    let job = app.wait_until_final(&id, "alice").await;
    assert_eq!(
        (&job["status"], &job["provider_task_id"]),
        (&json!("succeeded"), &json!("1"))
    );
    assert_eq!(submits(&provider.requests()), 1);
}
