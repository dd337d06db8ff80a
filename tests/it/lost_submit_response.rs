//! An answer that is lost, at providers that take no name of ours: their own list of tasks says which came of it.

use std::sync::{Arc, Mutex};

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};

/// What a provider has, in its own words: a task of somebody else's, then ours as it was ordered.
type Books = fn(&RecordedRequest) -> [Value; 2];

/// A provider that takes each order, breaks off before it answers, and tells of its tasks when it is asked.
async fn forgetful(list: &'static str, books: Books) -> MockProvider {
    let taken = Arc::<Mutex<Vec<Value>>>::default();
    MockProvider::start(move |asked| {
        let mut taken = taken.lock().unwrap();
        let reply = if asked.method == "POST" {
            taken.extend(books(&asked));
            MockResponse::disconnect()
        } else {
            let id = asked.path.rsplit('/').next().unwrap_or_default();
            match taken.iter().find(|task| task["id"] == id) {
                Some(task) => MockResponse::json(200, task),
                None => MockResponse::json(200, &json!({ list: *taken })),
            }
        };
        async move { reply }
    })
    .await
}

async fn assert_is_found_and_paid_once(spec: &str, list: &'static str, path: &str, books: Books) {
    let provider = forgetful(list, books).await;
    let app = TestApp::builder()
        .set("providers.it.spec", spec)
        .set("providers.it.base_url", &provider.url)
        .set("providers.it.api_key", "a key")
        .set("providers.it.poll_after", "200ms")
        .set("providers.it.poll_every", "200ms")
        .spawn()
        .await;
    let order = json!({ "provider": "it", "model": "own/name", "prompt": "a lighthouse" });
    let submit = app.request(Method::POST, "/v1/videos", "alice");
    let answer = send(submit.json(&order)).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let id = answer.body["id"].as_str().unwrap();
    let job = app.wait_until_final(id, "alice").await;
    assert_eq!(job["provider_task_id"], "ours", "{spec}: {job}");
    assert_eq!(
        (&job["status"], &job["attempt"], &job["source"]),
        (&json!("succeeded"), &json!(1), &json!("poll")),
        "{spec}: {job}"
    );
    assert_eq!(job["outputs"][0]["url"], "https://cdn.example/ours.mp4");
    let asked = provider.requests();
    let orders = asked.iter().filter(|asked| asked.method == "POST").count();
    assert_eq!(orders, 1, "{spec}");
    assert!(asked.iter().any(|asked| asked.path == path), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicates_list_names_the_webhook_of_each_prediction() {
    assert_is_found_and_paid_once("replicate", "results", "/v1/predictions", |order| {
        let webhook = order.body["webhook"].as_str().unwrap();
        let theirs = webhook.replace("job_", "job_0");
        let told = |id: &str, webhook: &str| {
            let output = format!("https://cdn.example/{id}.mp4");
            json!({ "id": id, "status": "succeeded", "output": output, "webhook": webhook })
        };
        [told("theirs", &theirs), told("ours", webhook)]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lumas_list_names_the_callback_of_each_generation() {
    assert_is_found_and_paid_once("luma", "generations", "/generations?limit=100", |order| {
        let told = |id: &str, request: &Value| {
            let video = format!("https://cdn.example/{id}.mp4");
            json!({ "id": id, "state": "completed", "assets": { "video": video }, "request": request })
        };
        [told("theirs", &json!({ "callback_url": null })), told("ours", &order.body)]
    })
    .await;
}
