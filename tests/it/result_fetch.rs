//! What a finished task has brought, where a second call tells it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};

async fn hub(provider: &MockProvider) -> TestApp {
    TestApp::builder()
        .set("providers.fal.spec", "fal")
        .set("providers.fal.base_url", &provider.url)
        .set("providers.fal.api_key", "a key")
        .set("providers.fal.poll_after", "50ms")
        .set("providers.fal.poll_every", "50ms")
        .spawn()
        .await
}

/// A task that is completed, and whose result is answered so.
async fn completed(result: impl Fn(usize) -> MockResponse + Send + Sync + 'static) -> Value {
    let calls = Arc::new(AtomicUsize::new(0));
    let provider = MockProvider::start(move |asked: RecordedRequest| {
        let reply = match (asked.method.as_str(), asked.path.contains("/status")) {
            ("POST", _) => {
                let own = format!("http://{}/owner/requests/r1", asked.header("host").unwrap());
                MockResponse::json(
                    200,
                    &json!({ "request_id": "r1", "status": "IN_QUEUE", "queue_position": 2,
                        "status_url": format!("{own}/status"), "response_url": own, "cancel_url": format!("{own}/cancel") }),
                )
            }
            (_, true) => MockResponse::json(200, &json!({ "request_id": "r1", "status": "COMPLETED" })),
            (_, false) => result(calls.fetch_add(1, Ordering::Relaxed)),
        };
        async move { reply }
    })
    .await;
    let app = hub(&provider).await;
    let body = json!({ "provider": "fal", "model": "owner/name/fast", "prompt": "a lighthouse" });
    let request = app.request(Method::POST, "/v1/videos", "alice");
    let answer = send(request.json(&body)).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let job = app
        .wait_until_final(answer.body["id"].as_str().unwrap(), "alice")
        .await;
    for asked in provider.requests() {
        assert_eq!(asked.header("authorization"), Some("Key a key"));
        let is_own = asked.path.starts_with("/owner/requests/r1") || asked.method == "POST";
        assert!(is_own, "the URLs of the answer are used: {}", asked.path);
    }
    job
}

#[tokio::test]
async fn its_outputs_are_found_in_any_shape() {
    let file = |name: &str| json!({ "url": format!("https://cdn.example/{name}"), "content_type": "image/png" });
    let shape = json!({ "images": [file("a"), file("b")], "seed": 196_619_188_014_358_660_u64 });
    let job = completed(move |_| MockResponse::json(200, &shape)).await;
    assert_eq!(job["status"], "succeeded", "{job}");
    let kinds: Vec<_> = job["outputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|output| &output["type"])
        .collect();
    assert_eq!(kinds, ["image", "image"], "{job}");
}

#[tokio::test]
async fn result_error_about_the_task_fails_the_job() {
    let policy =
        json!({ "detail": [{ "loc": ["body"], "msg": "no", "type": "content_policy_violation" }] });
    let job = completed(move |_| MockResponse::json(422, &policy)).await;
    assert_eq!(
        (&job["status"], &job["error"]["kind"]),
        (&json!("failed"), &json!("safety")),
        "{job}"
    );
    let timeout = json!({ "detail": "Request timed out", "error_type": "request_timeout" });
    let job = completed(move |_| MockResponse::json(504, &timeout)).await;
    assert_eq!(
        (&job["error"]["kind"], &job["error"]["retryable"]),
        (&json!("timeout"), &json!(true)),
        "{job}"
    );
}

#[tokio::test]
async fn a_result_that_is_gone_leaves_a_success_without_outputs() {
    let job = completed(|_| MockResponse::json(404, &json!({ "detail": "not found" }))).await;
    assert_eq!(
        (&job["status"], &job["error"]["kind"]),
        (&json!("succeeded"), &json!("result_expired")),
        "{job}"
    );
}

#[tokio::test]
async fn any_other_trouble_is_waited_out() {
    let job = completed(|call| match call {
        0 => MockResponse::text(502, "<html>"),
        1 => MockResponse::disconnect(),
        2 => MockResponse::json(429, &json!({ "detail": "slow down" })),
        _ => MockResponse::json(
            200,
            &json!({ "video": { "url": "https://cdn.example/a.mp4" } }),
        ),
    })
    .await;
    assert_eq!(
        (&job["status"], job["outputs"].as_array().unwrap().len()),
        (&json!("succeeded"), 1),
        "{job}"
    );
}

/// The first question after a submission whose answer names these URLs; none where there was none.
async fn asked_at(own: &'static str) -> Option<RecordedRequest> {
    let provider = MockProvider::start(move |asked: RecordedRequest| async move {
        match asked.method.as_str() {
            "POST" => MockResponse::json(
                200,
                &json!({ "request_id": "r1", "status": "IN_QUEUE", "status_url": format!("{own}/status"),
                    "response_url": own, "cancel_url": format!("{own}/cancel") }),
            ),
            _ => MockResponse::json(200, &json!({ "request_id": "r1", "status": "COMPLETED", "error": "no" })),
        }
    })
    .await;
    let app = TestApp::builder()
        .set("providers.fal.spec", "fal")
        .set(
            "providers.fal.base_url",
            format!("{}/gateway", provider.url),
        )
        .set("providers.fal.api_key", "a key")
        .set("providers.fal.poll_after", "50ms")
        .set("providers.fal.poll_every", "50ms")
        .set("providers.fal.deadline", "1s")
        .spawn()
        .await;
    let body = json!({ "provider": "fal", "model": "owner/name", "prompt": "a lighthouse" });
    let request = app.request(Method::POST, "/v1/videos", "alice");
    let answer = send(request.json(&body)).await;
    let id = answer.body["id"].as_str().unwrap().to_owned();
    app.wait_until_final(&id, "alice").await;
    let asked = provider.requests();
    asked.into_iter().find(|asked| asked.method == "GET")
}

#[tokio::test(flavor = "multi_thread")]
async fn urls_of_an_answer_are_followed_at_the_providers_own_address_only() {
    let asked = asked_at("https://queue.fal.run/owner/requests/r1").await;
    let asked = asked.expect("the address that the operator has replaced is the provider's own");
    assert_eq!(asked.path, "/gateway/owner/requests/r1/status?logs=1");
    assert_eq!(asked.header("authorization"), Some("Key a key"));
    assert!(
        asked_at("https://elsewhere.example/requests/r1")
            .await
            .is_none()
    );
}
