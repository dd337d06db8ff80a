//! Replicate against its published documentation.

use reqwest::Method;
use serde_json::{Value, json};

use super::super::{Scenario, Status};
use super::dialects::{REPLICATE, fixture, keys};
use super::receiver::Callback;
use super::{SECRET, Stage, answer, in_time};

fn words(callbacks: &[Callback]) -> Vec<(&str, bool)> {
    let story = callbacks.iter();
    story
        .map(|callback| (callback.status(), callback.body["output"].is_string()))
        .collect()
}

#[tokio::test]
async fn webhook_contains_the_whole_prediction() {
    let stage = Stage::set().await;
    let (status, accepted) = REPLICATE.submit(&stage, Scenario::Normal).await;
    assert_eq!(status, 201);
    assert!(keys(&fixture("replicate-submit-accepted")).is_subset(&keys(&accepted)));
    assert_eq!(accepted["status"], "starting");
    assert_eq!(
        (&accepted["logs"], accepted["id"].as_str().unwrap().len()),
        (&json!(""), 26)
    );

    let task = REPLICATE.rest(&stage).await;
    let callbacks = stage.receiver.all();
    assert!(callbacks.iter().all(Callback::is_genuine));
    let mut story = vec![("starting", false)];
    story.extend([("processing", false); 5]);
    story.extend([("processing", true), ("succeeded", true)]);
    assert_eq!(words(&callbacks), story);
    assert!(keys(&fixture("replicate-webhook-starting")).is_subset(&keys(&callbacks[0].body)));
    let last = &callbacks[7].body;
    assert!(keys(&fixture("replicate-webhook-succeeded")).is_subset(&keys(last)));
    assert_eq!(
        keys(&last["metrics"]),
        keys(&fixture("replicate-webhook-succeeded")["metrics"])
    );
    assert_eq!(&REPLICATE.queried(&stage, &task).await, last);
    let logs = callbacks[3].body["logs"].as_str().unwrap();
    assert_eq!(
        logs.lines().last().unwrap(),
        " 40%|████      | 2/5 [00:00<00:00, 20.00it/s]"
    );
    let get = accepted["urls"]["get"].as_str().unwrap();
    let request = stage.client.get(get).bearer_auth("sim-key");
    assert_eq!(in_time(request.send()).await.unwrap().status(), 200);
}

#[tokio::test]
async fn requested_events_and_first_and_last_are_sent() {
    for (filter, reported) in [
        (
            json!(["completed"]),
            vec![("starting", false), ("succeeded", true)],
        ),
        (
            json!(["output"]),
            vec![
                ("starting", false),
                ("processing", true),
                ("succeeded", true),
            ],
        ),
    ] {
        let stage = Stage::set().await;
        let body = json!({
            "input": {"prompt": "a sunrise"},
            "webhook": stage.receiver.url(),
            "webhook_events_filter": filter,
        });
        let path = "/v1/models/a/b/predictions";
        let submit_body = REPLICATE.request(&stage, Method::POST, path).json(&body);
        assert_eq!(in_time(submit_body.send()).await.unwrap().status(), 201);
        REPLICATE.rest(&stage).await;
        assert_eq!(words(&stage.receiver.all()), reported);
    }
    let stage = Stage::set().await;
    let body = json!({"input": {"prompt": "x"}, "webhook_events_filter": ["sometimes"]});
    let submit_body = REPLICATE
        .request(&stage, Method::POST, "/v1/models/a/b/predictions")
        .json(&body);
    assert_eq!(in_time(submit_body.send()).await.unwrap().status(), 422);
}

#[tokio::test]
async fn version_is_required_without_a_model() {
    let stage = Stage::set().await;
    for (body, status) in [
        (
            json!({"version": "5c7d5dc6", "input": {"prompt": "x"}}),
            201,
        ),
        (json!({"input": {"prompt": "x"}}), 422),
        (json!({"version": "5c7d5dc6", "input": {}}), 422),
    ] {
        let submit_body = REPLICATE
            .request(&stage, Method::POST, "/v1/predictions")
            .json(&body);
        assert_eq!(
            in_time(submit_body.send()).await.unwrap().status().as_u16(),
            status,
            "{body}"
        );
    }
}

#[tokio::test]
async fn cancel_ends_the_prediction() {
    let stage = Stage::set().await;
    let submit_body = REPLICATE.order_of(&stage, &json!({"steps": 9000}));
    let (_, accepted) = answer(in_time(submit_body.send()).await.unwrap()).await;
    let cancel = |url: &Value| {
        let request = stage
            .client
            .post(url.as_str().unwrap())
            .bearer_auth("sim-key");
        in_time(request.send())
    };
    assert_eq!(
        cancel(&accepted["urls"]["cancel"]).await.unwrap().status(),
        200
    );
    let task = REPLICATE.rest(&stage).await;
    assert_eq!(task.status, Status::Cancelled);
    let reported = REPLICATE.queried(&stage, &task).await;
    assert_eq!(reported["status"], fixture("replicate-canceled")["status"]);
    assert_eq!(stage.receiver.all().last().unwrap().status(), "canceled");
    assert_eq!(
        cancel(&accepted["urls"]["cancel"]).await.unwrap().status(),
        422
    );
    let unknown = REPLICATE
        .call(&stage, Method::POST, "/v1/predictions/unknown/cancel")
        .await;
    assert_eq!(unknown.0, 404);
}

#[tokio::test]
async fn removed_data_is_removed_from_every_response() {
    let stage = Stage::set().await;
    let task = REPLICATE.play(&stage, Scenario::ExpiredResult).await;
    let reported = REPLICATE.queried(&stage, &task).await;
    assert_eq!(
        (&reported["status"], &reported["data_removed"]),
        (&json!("succeeded"), &json!(true))
    );
    assert_eq!(
        (&reported["output"], &reported["logs"], &reported["input"]),
        (&Value::Null, &Value::Null, &json!({}))
    );

    let stage = Stage::set().await;
    let task = REPLICATE.play(&stage, Scenario::ThinSuccess).await;
    assert_eq!(
        stage.receiver.all().last().unwrap().body["output"],
        Value::Null
    );
    assert!(REPLICATE.queried(&stage, &task).await["output"].is_string());
}

#[tokio::test]
async fn errors_have_the_format_of_replicate() {
    let stage = Stage::set().await;
    let refused = in_time(REPLICATE.submit_body(&stage, Scenario::RateLimited).send())
        .await
        .unwrap();
    assert_eq!(refused.headers()["ratelimit-reset"], "1");
    let (status, body) = answer(refused).await;
    assert_eq!(
        (status.as_u16(), keys(&body)),
        (429, keys(&fixture("replicate-error-429")))
    );
    assert!(body["detail"].as_str().unwrap().contains("resets in ~1s"));
    for (scenario, status) in [
        (Scenario::BadKey, 401),
        (Scenario::Quota, 402),
        (Scenario::ServerErrors, 500),
    ] {
        let stage = Stage::set().await;
        let (refused, body) = REPLICATE.submit(&stage, scenario).await;
        assert_eq!(
            (refused.as_u16(), &body["status"]),
            (status, &json!(status)),
            "{scenario}"
        );
        assert!(body["detail"].is_string() && body["title"].is_string());
    }
}

#[tokio::test]
async fn webhook_secret_requires_the_key() {
    let stage = Stage::set().await;
    let (status, body) = REPLICATE
        .call(&stage, Method::GET, "/v1/webhooks/default/secret")
        .await;
    assert_eq!((status.as_u16(), body), (200, json!({"key": SECRET})));
}
