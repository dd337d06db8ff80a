//! Lost responses to submissions at providers that accept no reference: the task is found in the
//! provider's list by its callback URL.

use std::sync::{Arc, Mutex};

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};

/// Returns the tasks that the provider has after a submission: one of another client, then ours.
type TasksAfter = fn(&RecordedRequest) -> [Value; 2];

/// Starts a provider that accepts each submission, disconnects before it responds, and lists its
/// tasks.
async fn disconnecting_provider(list: &'static str, tasks_after: TasksAfter) -> MockProvider {
    let tasks = Arc::<Mutex<Vec<Value>>>::default();
    MockProvider::start(move |request| {
        let mut tasks = tasks.lock().unwrap();
        let response = if request.method == "POST" {
            tasks.extend(tasks_after(&request));
            MockResponse::disconnect()
        } else {
            let id = request.path.rsplit('/').next().unwrap_or_default();
            match tasks.iter().find(|task| task["id"] == id) {
                Some(task) => MockResponse::json(200, task),
                None => MockResponse::json(200, &json!({ list: *tasks })),
            }
        };
        async move { response }
    })
    .await
}

async fn assert_task_is_found(
    spec: &str,
    list: &'static str,
    list_path: &str,
    tasks_after: TasksAfter,
) {
    let provider = disconnecting_provider(list, tasks_after).await;
    let app = TestApp::builder()
        .set("providers.it.spec", spec)
        .set("providers.it.base_url", &provider.url)
        .set("providers.it.api_key", "a key")
        .set("providers.it.poll_after", "200ms")
        .set("providers.it.poll_every", "200ms")
        .spawn()
        .await;
    let body = json!({ "provider": "it", "model": "own/name", "prompt": "a lighthouse" });
    let request = app.request(Method::POST, "/v1/videos", "alice");
    let response = send(request.json(&body)).await;
    assert_eq!(response.status, 202, "{}", response.body);
    let id = response.body["id"].as_str().unwrap();
    let job = app.wait_until_final(id, "alice").await;
    assert_eq!(job["provider_task_id"], "ours", "{spec}: {job}");
    assert_eq!(
        (&job["status"], &job["attempt"], &job["source"]),
        (&json!("succeeded"), &json!(1), &json!("poll")),
        "{spec}: {job}"
    );
    assert_eq!(job["outputs"][0]["url"], "https://cdn.example/ours.mp4");
    let requests = provider.requests();
    let submissions = requests.iter().filter(|request| request.method == "POST");
    assert_eq!(submissions.count(), 1, "{spec}");
    let has_listed = requests.iter().any(|request| request.path == list_path);
    assert!(has_listed, "{requests:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicate_task_is_found_by_its_webhook_url() {
    assert_task_is_found("replicate", "results", "/v1/predictions", |submission| {
        let webhook = submission.body["webhook"].as_str().unwrap();
        let other_webhook = webhook.replace("job_", "job_0");
        let task = |id: &str, webhook: &str| {
            let output = format!("https://cdn.example/{id}.mp4");
            json!({ "id": id, "status": "succeeded", "output": output, "webhook": webhook })
        };
        [task("theirs", &other_webhook), task("ours", webhook)]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn luma_task_is_found_by_its_callback_url() {
    let list_path = "/generations?limit=100";
    assert_task_is_found("luma", "generations", list_path, |submission| {
        let task = |id: &str, request: &Value| {
            let video = format!("https://cdn.example/{id}.mp4");
            json!({ "id": id, "state": "completed", "assets": { "video": video }, "request": request })
        };
        let other = json!({ "callback_url": null });
        [task("theirs", &other), task("ours", &submission.body)]
    })
    .await;
}
