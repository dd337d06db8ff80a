//! Results that the hub fetches with a second request after a task has succeeded.

use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, TestAppBuilder, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};

fn hub(base_url: &str) -> TestAppBuilder {
    TestApp::builder()
        .set("providers.fal.spec", "fal")
        .set("providers.fal.base_url", base_url)
        .set("providers.fal.api_key", "a key")
        .set("providers.fal.poll_after", "50ms")
        .set("providers.fal.poll_every", "50ms")
}

/// Submits a job and returns its final document.
async fn run_job(app: &TestApp, model: &str) -> Value {
    let body = json!({ "provider": "fal", "model": model, "prompt": "a lighthouse" });
    let request = app.request(Method::POST, "/v1/videos", "alice");
    let response = send(request.json(&body)).await;
    assert_eq!(response.status, 202, "{}", response.body);
    let id = response.body["id"].as_str().unwrap();
    app.wait_until_final(id, "alice").await
}

/// Returns the response to a submission, which names the URLs of the task.
fn queued(task_url: &str) -> MockResponse {
    let body = json!({
        "request_id": "r1",
        "status": "IN_QUEUE",
        "queue_position": 2,
        "status_url": format!("{task_url}/status"),
        "response_url": task_url,
        "cancel_url": format!("{task_url}/cancel"),
    });
    MockResponse::json(200, &body)
}

/// Runs a job whose task succeeds. `result` returns the response to the n-th request for the
/// result.
async fn run_with_result(result: impl Fn(usize) -> MockResponse + Send + Sync + 'static) -> Value {
    let fetches = AtomicUsize::new(0);
    let provider = MockProvider::start(move |request: RecordedRequest| {
        let is_status = request.path.contains("/status");
        let response = match (request.method.as_str(), is_status) {
            ("POST", _) => {
                let host = request.header("host").unwrap();
                queued(&format!("http://{host}/owner/requests/r1"))
            }
            (_, true) => {
                MockResponse::json(200, &json!({ "request_id": "r1", "status": "COMPLETED" }))
            }
            (_, false) => result(fetches.fetch_add(1, Ordering::Relaxed)),
        };
        async move { response }
    })
    .await;
    let app = hub(&provider.url).spawn().await;
    let job = run_job(&app, "owner/name/fast").await;
    for request in provider.requests() {
        assert_eq!(request.header("authorization"), Some("Key a key"));
        let is_task_url = request.path.starts_with("/owner/requests/r1");
        assert!(
            is_task_url || request.method == "POST",
            "not a URL from the response: {}",
            request.path
        );
    }
    job
}

#[tokio::test]
async fn outputs_are_found_in_any_shape_of_result() {
    let file = |name: &str| {
        let url = format!("https://cdn.example/{name}");
        json!({ "url": url, "content_type": "image/png" })
    };
    let result = json!({ "images": [file("a"), file("b")], "seed": 196_619_188_014_358_660_u64 });
    let job = run_with_result(move |_| MockResponse::json(200, &result)).await;
    assert_eq!(job["status"], "succeeded", "{job}");
    let outputs = job["outputs"].as_array().unwrap();
    let kinds: Vec<_> = outputs.iter().map(|output| &output["type"]).collect();
    assert_eq!(kinds, ["image", "image"], "{job}");
}

#[tokio::test]
async fn result_error_about_the_task_fails_the_job() {
    let policy =
        json!({ "detail": [{ "loc": ["body"], "msg": "no", "type": "content_policy_violation" }] });
    let job = run_with_result(move |_| MockResponse::json(422, &policy)).await;
    assert_eq!(
        (&job["status"], &job["error"]["kind"]),
        (&json!("failed"), &json!("safety")),
        "{job}"
    );
    let timeout = json!({ "detail": "Request timed out", "error_type": "request_timeout" });
    let job = run_with_result(move |_| MockResponse::json(504, &timeout)).await;
    assert_eq!(
        (&job["error"]["kind"], &job["error"]["retryable"]),
        (&json!("timeout"), &json!(true)),
        "{job}"
    );
}

#[tokio::test]
async fn missing_result_leaves_a_succeeded_job_without_outputs() {
    let missing = json!({ "detail": "not found" });
    let job = run_with_result(move |_| MockResponse::json(404, &missing)).await;
    assert_eq!(
        (&job["status"], &job["error"]["kind"]),
        (&json!("succeeded"), &json!("result_expired")),
        "{job}"
    );
}

#[tokio::test]
async fn other_result_errors_are_retried() {
    let job = run_with_result(|fetch| match fetch {
        0 => MockResponse::text(502, "<html>"),
        1 => MockResponse::disconnect(),
        2 => MockResponse::json(429, &json!({ "detail": "slow down" })),
        _ => {
            let result = json!({ "video": { "url": "https://cdn.example/a.mp4" } });
            MockResponse::json(200, &result)
        }
    })
    .await;
    assert_eq!(
        (&job["status"], job["outputs"].as_array().unwrap().len()),
        (&json!("succeeded"), 1),
        "{job}"
    );
}

/// Returns the first poll after a submission whose response names the URL `task_url`, if there is
/// one.
async fn first_poll(task_url: &'static str) -> Option<RecordedRequest> {
    let provider = MockProvider::start(move |request: RecordedRequest| async move {
        match request.method.as_str() {
            "POST" => queued(task_url),
            _ => {
                let body = json!({ "request_id": "r1", "status": "COMPLETED", "error": "no" });
                MockResponse::json(200, &body)
            }
        }
    })
    .await;
    let app = hub(&format!("{}/gateway", provider.url))
        .set("providers.fal.deadline", "1s")
        .spawn()
        .await;
    run_job(&app, "owner/name").await;
    let requests = provider.requests();
    requests.into_iter().find(|request| request.method == "GET")
}

#[tokio::test(flavor = "multi_thread")]
async fn urls_in_responses_are_used_for_the_providers_own_origin_only() {
    let poll = first_poll("https://queue.fal.run/owner/requests/r1").await;
    let poll = poll.expect("the base URL of the spec is the provider's own");
    assert_eq!(poll.path, "/gateway/owner/requests/r1/status?logs=1");
    assert_eq!(poll.header("authorization"), Some("Key a key"));
    let poll = first_poll("https://elsewhere.example/requests/r1").await;
    assert!(poll.is_none());
}
