//! Atlas Cloud against its published documentation.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Method;
use serde_json::json;

use super::super::Scenario;
use super::dialects::{ATLAS, fixture, is_ed25519, keys, public_key};
use super::receiver::Callback;
use super::{Stage, answer, in_time};

const KEYS: &str = "/api/v1/webhooks/jwks.json";

/// Verifies a signature as Atlas's webhooks page describes.
fn is_genuine(callback: &Callback, (kid, key): &(String, Vec<u8>)) -> bool {
    let header = |name: &str| callback.headers[&format!("x-atlascloud-webhook-{name}")].as_str();
    assert_eq!(
        (header("key-id"), header("event")),
        (kid.as_str(), "video.task.terminal")
    );
    assert_eq!(callback.body["session_id"], header("id"));
    let signed = [
        format!("{}.", header("timestamp")).as_bytes(),
        &callback.raw,
    ]
    .concat();
    is_ed25519(
        key,
        &signed,
        &URL_SAFE_NO_PAD.decode(header("signature-ed25519")).unwrap(),
    )
}

#[tokio::test]
async fn prediction_ends_with_one_signed_webhook() {
    let stage = Stage::set().await;
    let (status, accepted) = ATLAS.submit(&stage, Scenario::Normal).await;
    let expected = fixture("atlas-submit-accepted");
    assert_eq!((status.as_u16(), keys(&accepted)), (200, keys(&expected)));
    assert_eq!(keys(&accepted["data"]), keys(&expected["data"]));
    assert_eq!(accepted["data"]["status"], expected["data"]["status"]);

    let task = ATLAS.rest(&stage).await;
    let [callback] = stage.receiver.all().try_into().unwrap();
    assert!(is_genuine(
        &callback,
        &public_key(ATLAS, &stage, KEYS).await
    ));
    let expected = fixture("atlas-webhook-completed");
    assert_eq!(keys(&callback.body), keys(&expected));
    assert_eq!(keys(&callback.body["payload"]), keys(&expected["payload"]));
    for pointer in ["/event_type", "/status", "/payload/status"] {
        assert_eq!(callback.body.pointer(pointer), expected.pointer(pointer));
    }
    assert_eq!(callback.body["session_id"], task.id);

    let get = accepted["data"]["urls"]["get"].as_str().unwrap();
    let request = stage.client.get(get).bearer_auth("sim-key");
    let (_, body) = answer(in_time(request.send()).await.unwrap()).await;
    assert_eq!(
        (&body["code"], &body["data"]["status"]),
        (&json!(200), &json!("completed"))
    );
    assert_eq!(body["data"]["outputs"], callback.body["payload"]["outputs"]);

    let stage = Stage::set().await;
    ATLAS.play(&stage, Scenario::Forged).await;
    let forged = &stage.receiver.all()[0];
    assert!(!is_genuine(forged, &public_key(ATLAS, &stage, KEYS).await));
}

#[tokio::test]
async fn a_failure_comes_as_http_200() {
    for (scenario, code) in [
        (Scenario::SafetyAtEnd, Some(1039)),
        (Scenario::FailsAtEnd, None),
    ] {
        let stage = Stage::set().await;
        let task = ATLAS.play(&stage, scenario).await;
        let path = format!("/api/v1/model/prediction/{}", task.id);
        let (status, body) = ATLAS.call(&stage, Method::GET, &path).await;
        assert_eq!((status.as_u16(), &body["code"]), (200, &json!(200)));
        assert_eq!(body["data"]["status"], "failed");
        assert_eq!(body["data"]["error_code"].as_u64(), code);
        let hook = &stage.receiver.all()[0].body;
        assert_eq!(
            (&hook["status"], &hook["payload"]["status"]),
            (&json!("ERROR"), &json!("failed"))
        );
        if scenario == Scenario::SafetyAtEnd {
            let expected = fixture("atlas-webhook-error-1039");
            assert_eq!(keys(hook), keys(&expected));
            assert_eq!(keys(&hook["payload"]), keys(&expected["payload"]));
            assert_eq!(hook["error"], expected["error"]);
        }
    }
}

#[tokio::test]
async fn thin_success_has_outputs_in_the_query_only() {
    for (scenario, outputs) in [(Scenario::ThinSuccess, 1), (Scenario::ExpiredResult, 0)] {
        let stage = Stage::set().await;
        let task = ATLAS.play(&stage, scenario).await;
        assert_eq!(
            stage.receiver.all()[0].body["payload"]["outputs"],
            json!([])
        );
        let body = ATLAS.queried(&stage, &task).await;
        assert_eq!(body["data"]["outputs"].as_array().unwrap().len(), outputs);
    }
}

#[tokio::test]
async fn errors_have_no_retry_after() {
    let stage = Stage::set().await;
    for (scenario, status) in [
        (Scenario::BadKey, 401),
        (Scenario::Quota, 402),
        (Scenario::RateLimited, 429),
        (Scenario::ServerErrors, 500),
    ] {
        let stage = Stage::set().await;
        let refused = in_time(ATLAS.submit_body(&stage, scenario).send())
            .await
            .unwrap();
        assert!(!refused.headers().contains_key("retry-after"));
        let (refused, body) = answer(refused).await;
        assert_eq!(
            (refused.as_u16(), &body["code"]),
            (status, &json!(status)),
            "{scenario}"
        );
        assert_eq!(keys(&body), keys(&fixture("atlas-error-402")));
    }
    // A wrong path returns the same error as a wrong key.
    let (status, body) = ATLAS.call(&stage, Method::GET, "/api/v1/nothing").await;
    assert_eq!(
        (status.as_u16(), &body["msg"]),
        (401, &fixture("atlas-error-401")["msg"])
    );
    let (status, body) = ATLAS
        .call(&stage, Method::GET, "/api/v1/model/prediction/x")
        .await;
    assert_eq!((status.as_u16(), &body["code"]), (404, &json!(404)));
}

#[tokio::test]
async fn balance_is_a_decimal_string() {
    let stage = Stage::set().await;
    let (status, balance) = ATLAS.call(&stage, Method::GET, "/public/v1/balance").await;
    let expected = fixture("atlas-balance");
    assert_eq!((status.as_u16(), keys(&balance)), (200, keys(&expected)));
    assert_eq!(balance["available"], expected["available"]);
    assert_eq!(stage.inspector.calls_in("atlas").accounts_read, 1);
}

#[tokio::test]
async fn account_is_out_of_credit_until_a_task_is_accepted() {
    let stage = Stage::set().await;
    for (scenario, left) in [
        (Scenario::Quota, "0.000000"),
        (Scenario::Normal, "125.500000"),
    ] {
        in_time(ATLAS.submit_body(&stage, scenario).send())
            .await
            .unwrap();
        let (_, balance) = ATLAS.call(&stage, Method::GET, "/public/v1/balance").await;
        assert_eq!(balance["available"]["value"], left, "{scenario}");
    }
}
