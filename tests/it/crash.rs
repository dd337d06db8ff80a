//! Durability: acknowledged requests survive a crash.

use std::sync::Arc;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::app::{TEST_TIMEOUT, TestApp, send};
use crate::webhook_signatures;

const TASKS: usize = 8;

/// Sends a webhook with the progress of a task. Returns the response body, or `None` if the hub is down.
async fn send_progress(
    hub: &str,
    http: &reqwest::Client,
    task: &str,
    percent: f64,
) -> Option<Value> {
    let body = json!({ "task_id": task, "status": "running", "progress": percent }).to_string();
    let signature = webhook_signatures::hex("hub_test_secret", body.as_bytes());
    let request = http
        .post(format!("{hub}/v1/webhooks/generic"))
        .timeout(TEST_TIMEOUT)
        .header("x-ai-signature", signature)
        .body(body);
    let response = request.send().await.ok()?;
    assert_eq!(response.status(), 200);
    response.json().await.ok()
}

async fn register(app: &TestApp, task: &str) -> Value {
    let worker = app.token("worker", "jobs:publish");
    let body = json!({ "provider": "generic", "provider_task_id": task, "owner": "alice" });
    let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
    let response = send(request.json(&body)).await;
    assert_eq!(response.status, 201, "{}", response.body);
    response.body
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_webhooks_survive_kill() {
    let app = TestApp::builder().spawn_process(&[]).await;
    let mut jobs = Vec::new();
    for n in 0..TASKS {
        let job = register(&app, &format!("t{n}")).await;
        jobs.push(job["id"].as_str().unwrap().to_owned());
    }
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let (count, mut counted) = watch::channel(0);
    let count = Arc::new(count);
    let sent = (0..TASKS).map(|n| {
        let (hub, http, count) = (app.url.clone(), http.clone(), Arc::clone(&count));
        tokio::spawn(async move {
            // Acknowledged updates of a known task, and of a task that is registered later.
            let (mut applied, mut progress, mut buffered) = (0, 0.0, 0.0);
            for step in 1..1000 {
                let percent = f64::from(step) / 10.0;
                let Some(response) = send_progress(&hub, &http, &format!("t{n}"), percent).await
                else {
                    break;
                };
                assert_eq!(response, json!({ "matched": true, "applied": true }));
                (applied, progress) = (applied + 1, percent);
                let Some(response) =
                    send_progress(&hub, &http, &format!("early{n}"), percent).await
                else {
                    break;
                };
                assert_eq!(response, json!({ "matched": false, "applied": false }));
                buffered = percent;
                count.send_modify(|count| *count += 1);
            }
            (applied, progress, buffered)
        })
    });
    let sent: Vec<_> = sent.collect();
    let enough = counted.wait_for(|count| *count >= 150);
    tokio::time::timeout(TEST_TIMEOUT, enough)
        .await
        .unwrap()
        .unwrap();
    let folder = app.kill();
    let sent = futures_util::future::join_all(sent).await;

    let app = TestApp::builder().data_dir(folder).spawn_process(&[]).await;
    for (n, (sent, id)) in sent.into_iter().zip(&jobs).enumerate() {
        let (applied, progress, buffered) = sent.unwrap();
        assert!(
            (1..999).contains(&applied),
            "the hub was killed during the updates"
        );
        let job = app.get_job(id, "alice").await;
        assert!(
            job["version"].as_u64().unwrap() > applied,
            "{applied}: {job}"
        );
        assert!(
            job["progress"].as_f64().unwrap() >= progress,
            "{progress}: {job}"
        );
        let early = register(&app, &format!("early{n}")).await;
        assert!(
            early["progress"].as_f64().unwrap() >= buffered,
            "{buffered}: {early}"
        );
    }
    let folder = app.kill();
    drop(folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_jobs_survive_kill_and_are_submitted_once() {
    use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};
    let provider = MockProvider::start(|request: RecordedRequest| async move {
        let name = request.body["options"]["external_task_id"].clone();
        MockResponse::json(
            200,
            &json!({ "code": 0, "data": { "id": name, "status": "submitted" } }),
        )
    })
    .await;
    let hub = |max_concurrent: usize| {
        TestApp::builder()
            .set("providers.kling.spec", "kling")
            .set("providers.kling.base_url", &provider.url)
            .set("providers.kling.api_key", "a key")
            .set("providers.kling.max_concurrent", max_concurrent)
    };
    let app = hub(1).spawn_process(&[]).await;
    let mut jobs = Vec::new();
    for n in 0..20 {
        let body = json!({ "provider": "kling", "model": "kling-v3", "prompt": "a lighthouse" });
        let request = app.request(Method::POST, "/v1/videos", "alice");
        let request = request.header("idempotency-key", n.to_string()).json(&body);
        let response = send(request).await;
        assert_eq!(response.status, 202, "{}", response.body);
        jobs.push(response.body["id"].as_str().unwrap().to_owned());
    }
    app.wait_for_job(&jobs[0], "alice", |job| job["status"] == "queued")
        .await;
    let folder = app.kill();
    let app = hub(100).data_dir(folder).spawn_process(&[]).await;
    for id in &jobs {
        let job = app
            .wait_for_job(id, "alice", |job| job["status"] == "queued")
            .await;
        assert_eq!(
            (&job["attempt"], &job["provider_task_id"]),
            (&json!(1), &json!(id))
        );
    }
    assert_eq!(provider.requests().len(), 20, "each job was submitted once");
    // The idempotency key still refers to its job.
    let body = json!({ "provider": "kling", "model": "kling-v3", "prompt": "a lighthouse" });
    let request = app.request(Method::POST, "/v1/videos", "alice");
    let response = send(request.header("idempotency-key", "7").json(&body)).await;
    assert_eq!(response.body["id"], jobs[7]);
}
