//! Signatures and delivery of webhooks.

use std::time::{SystemTime, UNIX_EPOCH};

use super::super::signing::SigningKeys;
use super::super::{Scenario, Status};
use super::receiver::Callback;
use super::{SECRET, Stage, in_time};

/// The published test vector: klingai.com/document-api, "callbacks", appendix B.
#[test]
fn published_vector_is_reproduced() {
    let body = br#"{"id":"1234567890","status":"succeeded","message":"","create_time":1781080778802,"update_time":1781080794151}"#;
    let keys = SigningKeys::new(Some(SECRET)).unwrap();
    let headers = keys.standard("9876543210", 1781080794, body);
    let signature = "v1,UsKlJP00XoQyOn410NM9xv34sP+Gl0jnOO9Lcpr7NJ4=".to_owned();
    assert_eq!(headers[2], ("webhook-signature", signature));
}

#[tokio::test]
async fn rejected_webhook_is_retried_with_the_same_id() {
    let stage = Stage::set().await;
    stage.receiver.answer_with(&[503, 302, 404]);
    let snapshot = stage.play(Scenario::Normal).await;
    assert_eq!(
        (snapshot.callbacks_sent, snapshot.callbacks_acknowledged),
        (9, 6)
    );
    let callbacks = stage.receiver.all();
    assert_eq!(callbacks.len(), 9, "no redirect is followed");
    assert!(callbacks.iter().all(Callback::is_genuine));
    let same = |callback: &&Callback| {
        (&callback.id, &callback.raw) == (&callbacks[0].id, &callbacks[0].raw)
    };
    assert_eq!(callbacks.iter().take_while(same).count(), 4);
}

#[tokio::test]
async fn undeliverable_webhook_is_dropped_after_max_attempts() {
    let stage = Stage::set().await;
    stage.receiver.answer_with(&[500; 5]);
    let snapshot = stage.play(Scenario::Normal).await;
    assert_eq!(
        (snapshot.callbacks_sent, snapshot.callbacks_acknowledged),
        (10, 5)
    );
    assert_eq!(stage.receiver.all()[5].body["progress"], 20);
}

#[tokio::test]
async fn http_410_stops_webhooks_but_not_the_task() {
    let stage = Stage::set().await;
    stage.receiver.answer_with(&[200, 410]);
    let snapshot = stage.play(Scenario::Normal).await;
    assert_eq!(
        (
            snapshot.status,
            snapshot.callbacks_sent,
            snapshot.callbacks_acknowledged
        ),
        (Status::Succeeded, 2, 1)
    );
}

#[tokio::test]
async fn stalled_receiver_does_not_delay_the_task() {
    let stage = Stage::set().await;
    stage.receiver.hold();
    stage.submit(Scenario::Normal, "job_1").await;
    in_time(stage.inspector.until(|inspector| {
        inspector
            .tasks()
            .first()
            .filter(|task| task.status == Status::Succeeded)
            .map(drop)
    }))
    .await;
    assert!(stage.receiver.all().len() <= 1);
    stage.receiver.release();
    assert_eq!(
        in_time(stage.inspector.settled("job_1"))
            .await
            .callbacks_acknowledged,
        6
    );
}

#[tokio::test]
async fn timestamps_are_current_unix_seconds() {
    let unix_seconds = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.unwrap().as_secs()
    };
    let stage = Stage::set().await;
    let before = unix_seconds();
    stage.play(Scenario::Normal).await;
    let sent = before..=unix_seconds();
    for callback in stage.receiver.all() {
        let timestamp: u64 = callback.timestamp.unwrap().parse().unwrap();
        assert!(sent.contains(&timestamp));
    }
}

#[tokio::test]
async fn webhooks_are_unsigned_without_a_secret() {
    let stage = Stage::set_with(None).await;
    stage.play(Scenario::Normal).await;
    let callbacks = stage.receiver.all();
    assert_eq!(callbacks.len(), 6);
    assert!(
        callbacks
            .iter()
            .all(|callback| callback.id.is_none() && callback.signature.is_none())
    );
}
