//! MiniMax against its published documentation.

use reqwest::Method;
use serde_json::{Value, json};

use super::super::{Scenario, Status};
use super::dialects::{MINIMAX, fixture, keys};
use super::{Stage, in_time};

#[tokio::test]
async fn receiver_is_challenged_before_the_first_callback() {
    let stage = Stage::set().await;
    let snapshot = MINIMAX.play(&stage, Scenario::Normal).await;
    let [challenge] = stage.receiver.challenges().try_into().unwrap();
    assert_eq!(
        keys(&challenge),
        keys(&fixture("minimax-callback-challenge"))
    );
    assert_eq!(
        (snapshot.callbacks_sent, snapshot.callbacks_acknowledged),
        (2, 2)
    );
    let callbacks = stage.receiver.all();
    let story: Vec<_> = callbacks.iter().map(|callback| callback.status()).collect();
    assert_eq!(story, ["processing", "success"]);
    let expected = fixture("minimax-callback-success");
    assert_eq!(
        (keys(&callbacks[1].body), &callbacks[1].body["base_resp"]),
        (keys(&expected), &expected["base_resp"])
    );
    let counts = stage.inspector.calls_in("minimax");
    assert_eq!(
        (
            counts.challenges_sent,
            counts.challenges_passed,
            counts.callbacks_sent
        ),
        (1, 1, 2)
    );
}

#[tokio::test]
async fn receiver_without_echo_gets_no_callback() {
    let stage = Stage::set().await;
    stage.receiver.mute();
    let snapshot = MINIMAX.play(&stage, Scenario::Normal).await;
    assert_eq!(
        (snapshot.status, snapshot.callbacks_sent),
        (Status::Succeeded, 0)
    );
    assert_eq!(
        (
            stage.receiver.challenges().len(),
            stage.receiver.all().len()
        ),
        (1, 0)
    );
    let counts = stage.inspector.calls_in("minimax");
    assert_eq!((counts.challenges_sent, counts.challenges_passed), (1, 0));
}

#[tokio::test]
async fn file_is_fetched_in_three_requests() {
    let stage = Stage::set().await;
    let (status, accepted) = MINIMAX.submit(&stage, Scenario::Normal).await;
    assert_eq!(
        (
            status.as_u16(),
            accepted["base_resp"]["status_code"].as_u64()
        ),
        (200, Some(0))
    );
    let task = MINIMAX.rest(&stage).await;
    assert_eq!(accepted["task_id"], task.id);
    let body = MINIMAX.queried(&stage, &task).await;
    let expected = fixture("minimax-query-success");
    assert_eq!(
        (keys(&body), &body["status"]),
        (keys(&expected), &expected["status"])
    );
    assert_eq!(body["file_id"], stage.receiver.all()[1].body["file_id"]);
    let path = format!(
        "/v1/files/retrieve?file_id={}",
        body["file_id"].as_str().unwrap()
    );
    let (_, file) = MINIMAX.call(&stage, Method::GET, &path).await;
    let url = file["file"]["download_url"].as_str().unwrap();
    assert_eq!(
        in_time(stage.client.get(url).send())
            .await
            .unwrap()
            .status(),
        200
    );
    let counts = stage.inspector.calls_in("minimax");
    assert_eq!(
        (
            counts.queries_received,
            counts.results_fetched,
            counts.downloads
        ),
        (1, 1, 1)
    );
}

#[tokio::test]
async fn query_status_is_capitalized() {
    let stage = Stage::set().await;
    let task = MINIMAX.play(&stage, Scenario::Silence).await;
    let body = MINIMAX.queried(&stage, &task).await;
    assert_eq!(keys(&body), keys(&fixture("minimax-query-processing")));
    assert_eq!(body["status"], "Preparing");

    let stage = Stage::set().await;
    in_time(MINIMAX.order_of(&stage, &json!({"steps": 9000})).send())
        .await
        .unwrap();
    let under_way = stage.inspector.until(|inspector| {
        let task = inspector.tasks().into_iter().next()?;
        (task.status == Status::Processing).then_some(task)
    });
    let task = in_time(under_way).await;
    let body = MINIMAX.queried(&stage, &task).await;
    let expected = fixture("minimax-query-processing");
    assert_eq!(
        (keys(&body), &body["status"]),
        (keys(&expected), &expected["status"])
    );
}

#[tokio::test]
async fn every_error_is_http_200() {
    for (scenario, code) in [
        (Scenario::Quota, 1008),
        (Scenario::Safety, 1026),
        (Scenario::BadKey, 1004),
        (Scenario::RateLimited, 1002),
        (Scenario::ConcurrencyLimited, 1041),
        (Scenario::ServerErrors, 1000),
    ] {
        let stage = Stage::set().await;
        let (status, body) = MINIMAX.submit(&stage, scenario).await;
        assert_eq!(
            (status.as_u16(), &body["base_resp"]["status_code"]),
            (200, &json!(code)),
            "{scenario}"
        );
        assert_eq!(keys(&body), keys(&fixture("minimax-error-1008")));
    }
    for (scenario, code) in [(Scenario::SafetyAtEnd, 1027), (Scenario::FailsAtEnd, 1000)] {
        let stage = Stage::set().await;
        let task = MINIMAX.play(&stage, scenario).await;
        let body = MINIMAX.queried(&stage, &task).await;
        assert_eq!(
            (&body["status"], &body["base_resp"]["status_code"]),
            (&json!("Fail"), &json!(code))
        );
        assert_eq!(stage.receiver.all()[1].body["status"], "failed");
    }
}

#[tokio::test]
async fn thin_success_has_its_file_in_the_query_and_an_expired_one_has_none() {
    for (scenario, code) in [(Scenario::ThinSuccess, 0), (Scenario::ExpiredResult, 2013)] {
        let stage = Stage::set().await;
        let task = MINIMAX.play(&stage, scenario).await;
        assert_eq!(stage.receiver.all()[1].body.get("file_id"), None);
        let file: Value = MINIMAX.queried(&stage, &task).await["file_id"].clone();
        let path = format!("/v1/files/retrieve?file_id={}", file.as_str().unwrap());
        let (status, body) = MINIMAX.call(&stage, Method::GET, &path).await;
        assert_eq!(
            (status.as_u16(), &body["base_resp"]["status_code"]),
            (200, &json!(code))
        );
    }
}
