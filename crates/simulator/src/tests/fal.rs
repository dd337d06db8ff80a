//! fal against its published documentation.

use aws_lc_rs::digest;
use reqwest::Method;
use serde_json::{Value, json};

use super::super::{Scenario, Status};
use super::dialects::{FAL, fixture, is_ed25519, keys, public_key};
use super::receiver::Callback;
use super::{Stage, answer, in_time};

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

/// Verifies a signature as fal's webhooks page describes.
fn is_genuine(callback: &Callback, key: &[u8]) -> bool {
    let header = |name: &str| callback.headers[&format!("x-fal-webhook-{name}")].as_str();
    let digest = digest::digest(&digest::SHA256, &callback.raw);
    let digest: String = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let [request, user, time] = ["request-id", "user-id", "timestamp"].map(header);
    assert_eq!(callback.body["request_id"], request);
    let signed = format!("{request}\n{user}\n{time}\n{digest}");
    is_ed25519(key, signed.as_bytes(), &unhex(header("signature")))
}

impl Stage {
    /// Follows a URL of a response.
    async fn follow(&self, method: Method, body: &Value, key: &str) -> (u16, Value) {
        let url = body[key].as_str().unwrap();
        let request = self
            .client
            .request(method, url)
            .header("authorization", "Key sim-key");
        let (status, body) = answer(in_time(request.send()).await.unwrap()).await;
        (status.as_u16(), body)
    }
}

#[tokio::test]
async fn response_urls_lead_from_queue_to_result() {
    let stage = Stage::set().await;
    let (status, accepted) = FAL.submit(&stage, Scenario::ConcurrencyLimited).await;
    assert_eq!(status, 200);
    assert_eq!(keys(&accepted), keys(&fixture("fal-submit-accepted")));
    assert_eq!(
        (&accepted["status"], &accepted["queue_position"]),
        (&json!("IN_QUEUE"), &json!(3))
    );
    let root = format!("{}/fal/fal-ai/kling-video/requests/", stage.url);
    assert!(accepted["status_url"].as_str().unwrap().starts_with(&root));

    let task = FAL.rest(&stage).await;
    assert_eq!(accepted["request_id"], task.id);
    let (status, done) = stage.follow(Method::GET, &accepted, "status_url").await;
    assert_eq!((status, &done["status"]), (200, &json!("COMPLETED")));
    assert!(done.get("logs").is_none(), "logs were not requested");
    assert!(done["metrics"]["inference_time"].is_f64() && done.get("error").is_none());
    let (status, result) = stage.follow(Method::GET, &accepted, "response_url").await;
    assert_eq!(
        (status, keys(&result["video"])),
        (
            200,
            keys(&fixture("fal-webhook-ok-video")["payload"]["video"])
        )
    );
    let counts = stage.inspector.calls_in("fal");
    assert_eq!((counts.queries_received, counts.results_fetched), (1, 1));

    // Not under the full path of the model.
    let path = format!(
        "/fal-ai/kling-video/v2/text-to-video/requests/{}/status",
        task.id
    );
    assert_eq!(FAL.call(&stage, Method::GET, &path).await.0, 404);
}

#[tokio::test]
async fn active_request_reports_queue_position_or_logs() {
    let stage = Stage::set().await;
    FAL.submit(&stage, Scenario::Silence).await;
    let task = FAL.rest(&stage).await;
    assert_eq!(
        keys(&FAL.queried(&stage, &task).await),
        keys(&fixture("fal-status-in-queue"))
    );

    let stage = Stage::set().await;
    let submit_body = FAL.order_of(&stage, &json!({"steps": 9000}));
    in_time(submit_body.send()).await.unwrap();
    let under_way = stage.inspector.until(|inspector| {
        let task = inspector.tasks().into_iter().next()?;
        (task.status == Status::Processing).then_some(task)
    });
    let task = in_time(under_way).await;
    let reported = FAL.queried(&stage, &task).await;
    let expected = fixture("fal-status-in-progress-logs");
    assert_eq!(
        (keys(&reported), &reported["status"]),
        (keys(&expected), &expected["status"])
    );
    assert_eq!(keys(&reported["logs"][0]), keys(&expected["logs"][0]));
    assert!(
        reported["logs"][0]["message"]
            .as_str()
            .unwrap()
            .starts_with("  0%|")
    );
    let path = format!("/fal-ai/kling-video/requests/{}", task.id);
    assert_eq!(FAL.call(&stage, Method::GET, &path).await.0, 400);
}

#[tokio::test]
async fn final_webhook_is_signed_with_the_published_key() {
    let stage = Stage::set().await;
    FAL.play(&stage, Scenario::Normal).await;
    let [callback] = stage.receiver.all().try_into().unwrap();
    let (_, key) = public_key(FAL, &stage, "/.well-known/jwks.json").await;
    assert!(is_genuine(&callback, &key));
    let expected = fixture("fal-webhook-ok-video");
    assert_eq!(
        (keys(&callback.body), &callback.body["status"]),
        (keys(&expected), &json!("OK"))
    );
    assert_eq!(
        keys(&callback.body["payload"]["video"]),
        keys(&expected["payload"]["video"])
    );
    let url = callback.body["payload"]["video"]["url"].as_str().unwrap();
    assert_eq!(
        in_time(stage.client.get(url).send())
            .await
            .unwrap()
            .status(),
        200
    );

    let stage = Stage::set().await;
    FAL.play(&stage, Scenario::Forged).await;
    let (_, key) = public_key(FAL, &stage, "/.well-known/jwks.json").await;
    assert!(!is_genuine(&stage.receiver.all()[0], &key));
}

#[tokio::test]
async fn failure_completes_with_an_error() {
    for (scenario, status, kind, retryable) in [
        (
            Scenario::SafetyAtEnd,
            422,
            "content_policy_violation",
            "false",
        ),
        (Scenario::FailsAtEnd, 500, "internal_server_error", "true"),
    ] {
        let stage = Stage::set().await;
        let task = FAL.play(&stage, scenario).await;
        let reported = FAL.queried(&stage, &task).await;
        assert_eq!(
            (&reported["status"], &reported["error_type"]),
            (&json!("COMPLETED"), &json!(kind))
        );
        let path = format!("/fal-ai/kling-video/requests/{}", task.id);
        let result = in_time(FAL.request(&stage, Method::GET, &path).send())
            .await
            .unwrap();
        assert_eq!(
            (
                result.status().as_u16(),
                &result.headers()["x-fal-retryable"]
            ),
            (status, &retryable.parse().unwrap())
        );
        let result: Value = result.json().await.unwrap();
        assert_eq!(result["detail"][0]["type"], kind);
        let hook = &stage.receiver.all()[0].body;
        let expected = fixture("fal-webhook-error-422");
        assert_eq!(
            (keys(hook), &hook["status"]),
            (keys(&expected), &json!("ERROR"))
        );
        assert_eq!(
            keys(&hook["payload"]["detail"][0]),
            keys(&expected["payload"]["detail"][0])
        );
        assert_eq!(hook["error"], format!("Invalid status code: {status}"));
    }
}

#[tokio::test]
async fn thin_result_can_be_fetched_and_expired_result_is_gone() {
    for (scenario, status) in [(Scenario::ThinSuccess, 200), (Scenario::ExpiredResult, 404)] {
        let stage = Stage::set().await;
        let task = FAL.play(&stage, scenario).await;
        let hook = &stage.receiver.all()[0].body;
        assert_eq!(
            (&hook["status"], &hook["payload"]),
            (&json!("OK"), &Value::Null)
        );
        assert!(hook["payload_error"].is_string());
        let path = format!("/fal-ai/kling-video/requests/{}", task.id);
        assert_eq!(FAL.call(&stage, Method::GET, &path).await.0, status);
    }
}

#[tokio::test]
async fn cancel_has_three_responses() {
    let stage = Stage::set().await;
    let submit_body = FAL.order_of(&stage, &json!({"steps": 9000}));
    let (_, accepted) = answer(in_time(submit_body.send()).await.unwrap()).await;
    let (status, body) = stage.follow(Method::PUT, &accepted, "cancel_url").await;
    assert_eq!(
        (status, body),
        (202, json!({"status": "CANCELLATION_REQUESTED"}))
    );
    let task = FAL.rest(&stage).await;
    assert_eq!(task.status, Status::Cancelled);
    assert_eq!(
        FAL.queried(&stage, &task).await["error_type"],
        "client_cancelled"
    );
    assert_eq!(
        stage.receiver.all()[0].body["payload"]["error_type"],
        "client_cancelled"
    );
    let (status, body) = stage.follow(Method::PUT, &accepted, "cancel_url").await;
    assert_eq!(
        (status, body),
        (400, fixture("fal-cancel-already-completed"))
    );
    let path = "/fal-ai/kling-video/requests/unknown/cancel";
    let (status, body) = FAL.call(&stage, Method::PUT, path).await;
    assert_eq!(
        (status.as_u16(), body),
        (404, json!({"status": "NOT_FOUND"}))
    );
    assert_eq!(stage.inspector.calls_in("fal").cancels_received, 3);
}

#[tokio::test]
async fn late_cancel_is_accepted_without_effect() {
    let stage = Stage::set().await;
    let submit_body = FAL.order_of(&stage, &json!({"scenario": "cancelled-late", "steps": 100}));
    let (_, accepted) = answer(in_time(submit_body.send()).await.unwrap()).await;
    let (status, _) = stage.follow(Method::PUT, &accepted, "cancel_url").await;
    assert_eq!(status, 202);
    assert_eq!(FAL.rest(&stage).await.status, Status::Succeeded);
    assert_eq!(stage.receiver.all()[0].body["status"], "OK");
}

#[tokio::test]
async fn errors_have_the_format_of_fal() {
    for (scenario, status, header) in [
        (Scenario::Safety, 422, Some(("x-fal-retryable", "false"))),
        (Scenario::Quota, 403, None),
        (Scenario::BadKey, 401, None),
        (Scenario::RateLimited, 429, Some(("retry-after", "1"))),
        (
            Scenario::ServerErrors,
            500,
            Some(("x-fal-error-type", "internal_error")),
        ),
    ] {
        let stage = Stage::set().await;
        let refused = in_time(FAL.submit_body(&stage, scenario).send())
            .await
            .unwrap();
        assert_eq!(refused.status().as_u16(), status, "{scenario}");
        if let Some((name, value)) = header {
            assert_eq!(refused.headers()[name], value, "{scenario}");
        }
        let body: Value = refused.json().await.unwrap();
        assert!(body.get("detail").is_some(), "{scenario}");
        if scenario == Scenario::ServerErrors {
            assert_eq!(keys(&body), keys(&fixture("fal-error-request-timeout")));
        }
    }
}
