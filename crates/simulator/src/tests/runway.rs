//! Runway against its published documentation.

use reqwest::Method;
use serde_json::{Value, json};

use super::super::{Scenario, Status, Task};
use super::dialects::{RUNWAY, fixture, keys};
use super::{API_KEY, Stage, answer, in_time};

/// Waits until the only task has this status.
async fn reached(stage: &Stage, status: Status) -> Task {
    let reached = stage.inspector.until(|inspector| {
        let task = inspector.tasks().into_iter().next()?;
        (task.status == status).then_some(task)
    });
    in_time(reached).await
}

async fn delete(stage: &Stage, task: &Task) -> u16 {
    let path = format!("/v1/tasks/{}", task.id);
    let deleted = RUNWAY.request(stage, Method::DELETE, &path).send();
    in_time(deleted).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn task_has_the_published_shape() {
    let stage = Stage::set().await;
    let (status, accepted) = RUNWAY.submit(&stage, Scenario::Silence).await;
    assert_eq!(
        (status.as_u16(), &accepted["estimatedCost"]),
        (200, &json!({"credits": 25}))
    );
    let body = RUNWAY.queried(&stage, &RUNWAY.rest(&stage).await).await;
    let expected = fixture("runway-task-pending");
    assert_eq!(
        (keys(&body), &body["status"]),
        (keys(&expected), &expected["status"])
    );

    for (scenario, fixed) in [
        (Scenario::Normal, "runway-task-succeeded"),
        (Scenario::FailsAtEnd, "runway-task-failed-internal"),
        (Scenario::SafetyAtEnd, "runway-task-failed-safety"),
    ] {
        let stage = Stage::set().await;
        let task = RUNWAY.play(&stage, scenario).await;
        let (body, expected) = (RUNWAY.queried(&stage, &task).await, fixture(fixed));
        assert_eq!(keys(&body), keys(&expected));
        for key in ["status", "cost", "failure", "failureCode"] {
            assert_eq!(body.get(key), expected.get(key), "{scenario}");
        }
        assert_eq!(stage.receiver.all().len(), 0);
    }

    let stage = Stage::set().await;
    in_time(RUNWAY.order_of(&stage, &json!({"steps": 9000})).send())
        .await
        .unwrap();
    let body = RUNWAY
        .queried(&stage, &reached(&stage, Status::Processing).await)
        .await;
    let expected = fixture("runway-task-running");
    assert_eq!(
        (keys(&body), &body["status"]),
        (keys(&expected), &expected["status"])
    );
    assert!((0.0..1.0).contains(&body["progress"].as_f64().unwrap()));
}

#[tokio::test]
async fn task_over_the_concurrency_limit_is_throttled() {
    let stage = Stage::set().await;
    let (status, _) = RUNWAY.submit(&stage, Scenario::ConcurrencyLimited).await;
    assert_eq!(status, 200);
    let task = stage.inspector.tasks().remove(0);
    let mut seen: Vec<Value> = Vec::new();
    while seen.last() != Some(&json!("SUCCEEDED")) {
        let status = RUNWAY.queried(&stage, &task).await["status"].clone();
        seen.push(status);
        seen.dedup();
        tokio::task::yield_now().await;
    }
    let submit_body = ["THROTTLED", "PENDING", "RUNNING", "SUCCEEDED"];
    let places = seen
        .iter()
        .map(|seen| submit_body.iter().position(|word| seen == word));
    let places: Vec<_> = places.map(Option::unwrap).collect();
    assert!(places.is_sorted(), "{seen:?}");
}

#[tokio::test]
async fn delete_cancels_then_removes() {
    let stage = Stage::set().await;
    in_time(RUNWAY.order_of(&stage, &json!({"steps": 9000})).send())
        .await
        .unwrap();
    let task = reached(&stage, Status::Processing).await;
    assert_eq!(delete(&stage, &task).await, 204);
    reached(&stage, Status::Cancelled).await;
    let body = RUNWAY.queried(&stage, &task).await;
    assert_eq!(
        (&body["status"], &body["cost"]["credits"]),
        (&json!("CANCELLED"), &json!(25))
    );
    assert_eq!(delete(&stage, &task).await, 204);
    assert_eq!(delete(&stage, &task).await, 404);
    let path = format!("/v1/tasks/{}", task.id);
    assert_eq!(RUNWAY.call(&stage, Method::GET, &path).await.0, 404);

    let stage = Stage::set().await;
    let wishes = json!({"scenario": "cancelled-late", "steps": 100});
    in_time(RUNWAY.order_of(&stage, &wishes).send())
        .await
        .unwrap();
    let task = stage.inspector.tasks().remove(0);
    assert_eq!(delete(&stage, &task).await, 204);
    assert_eq!(RUNWAY.rest(&stage).await.status, Status::Succeeded);
}

#[tokio::test]
async fn every_request_requires_the_version_header() {
    let stage = Stage::set().await;
    for version in [None, Some("2023-01-01")] {
        let url = format!("{}/runway/v1/organization", stage.url);
        let mut request = stage.client.get(url).bearer_auth(API_KEY);
        if let Some(version) = version {
            request = request.header("x-runway-version", version);
        }
        let (status, body) = answer(in_time(request.send()).await.unwrap()).await;
        assert_eq!(status, 400);
        assert!(body["error"].as_str().unwrap().contains("X-Runway-Version"));
    }
    let (status, body) = RUNWAY.call(&stage, Method::GET, "/v1/organization").await;
    let expected = fixture("runway-organization");
    assert_eq!(
        (status.as_u16(), keys(&body), keys(&body["tier"])),
        (200, keys(&expected), keys(&expected["tier"]))
    );
}

#[tokio::test]
async fn errors_have_the_format_of_runway() {
    for (scenario, status) in [
        (Scenario::BadKey, 401),
        (Scenario::Quota, 400),
        (Scenario::RateLimited, 429),
        (Scenario::ServerErrors, 502),
    ] {
        let stage = Stage::set().await;
        let (refused, body) = RUNWAY.submit(&stage, scenario).await;
        assert_eq!(refused.as_u16(), status, "{scenario}");
        assert!(body["error"].is_string());
    }
}
