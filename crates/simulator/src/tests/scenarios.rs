//! Each scenario behaves as named.

use std::collections::HashSet;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::{Scenario, Status};
use super::receiver::Callback;
use super::{API_KEY, Stage, in_time};

fn story(callbacks: &[Callback]) -> Vec<(&str, Option<u64>)> {
    callbacks
        .iter()
        .map(|callback| (callback.status(), callback.body["progress"].as_u64()))
        .collect()
}

const NORMAL: [(&str, Option<u64>); 6] = [
    ("processing", Some(0)),
    ("processing", Some(20)),
    ("processing", Some(40)),
    ("processing", Some(60)),
    ("processing", Some(80)),
    ("succeeded", None),
];

#[test]
fn scenario_names_are_unique_and_round_trip() {
    let mut names = HashSet::new();
    for &scenario in Scenario::ALL {
        let name = scenario.to_string();
        assert_eq!(name.parse::<Scenario>().unwrap(), scenario);
        assert_eq!(serde_json::to_value(scenario).unwrap(), json!(name));
        assert_eq!(
            serde_json::from_value::<Scenario>(json!(name)).unwrap(),
            scenario
        );
        assert!(
            name.chars().all(|c| c.is_ascii_lowercase() || c == '-'),
            "{name}"
        );
        assert!(
            scenario.title().len() <= 40 && scenario.expect().ends_with('.'),
            "{name}"
        );
        assert!(names.insert(name));
    }
    assert!("Normal".parse::<Scenario>().is_err());
}

#[tokio::test]
async fn normal_reports_progress_then_a_clip() {
    let stage = Stage::set().await;
    let (status, accepted) = stage.submit(Scenario::Normal, "job_1").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        (&accepted["code"], &accepted["message"]),
        (&json!(0), &json!("SUCCEED"))
    );
    let data = &accepted["data"];
    assert_eq!(
        (&data["status"], &data["external_id"]),
        (&json!("submitted"), &json!("job_1"))
    );
    assert_eq!(data["create_time"], data["update_time"]);
    assert_eq!(data["id"].as_str().unwrap().len(), 18);

    let snapshot = in_time(stage.inspector.settled("job_1")).await;
    assert_eq!(
        (
            snapshot.status,
            snapshot.callbacks_sent,
            snapshot.callbacks_acknowledged
        ),
        (Status::Succeeded, 6, 6)
    );
    let callbacks = stage.receiver.all();
    assert_eq!(story(&callbacks), NORMAL);
    assert!(callbacks.iter().all(Callback::is_genuine));
    let ids: HashSet<_> = callbacks
        .iter()
        .map(|callback| callback.id.clone())
        .collect();
    assert_eq!(ids.len(), 6);
    let times: Vec<_> = callbacks
        .iter()
        .map(|callback| callback.body["update_time"].as_u64())
        .collect();
    assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
    assert_eq!(callbacks[0].body["outputs"], json!([]));

    let reported = &callbacks[5].body;
    assert_eq!(&stage.queried().await, reported);
    assert_eq!(
        (&reported["id"], &reported["external_id"]),
        (&data["id"], &json!("job_1"))
    );
    assert_eq!(reported["outputs"][0]["duration"], "5.041");
    assert_eq!(
        reported["billing"],
        json!([{"charge_type": "unit", "amount": "2.5", "package_type": "video"}])
    );
    let clip = reported["outputs"][0]["url"].as_str().unwrap();
    assert!(clip.starts_with(&stage.url), "{clip}");
    assert_eq!(
        stage.client.get(clip).send().await.unwrap().status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn slow_has_more_steps() {
    let stage = Stage::set().await;
    stage.play(Scenario::Slow).await;
    let callbacks = stage.receiver.all();
    assert_eq!(callbacks.len(), 26);
    assert_eq!(story(&callbacks)[1], ("processing", Some(4)));
    assert_eq!(callbacks[25].status(), "succeeded");
}

#[tokio::test]
async fn duplicate_webhooks_share_one_id() {
    let stage = Stage::set().await;
    stage.play(Scenario::DuplicateWebhooks).await;
    let callbacks = stage.receiver.all();
    assert_eq!(callbacks.len(), 12);
    for pair in callbacks.chunks(2) {
        assert_eq!((&pair[0].id, &pair[0].raw), (&pair[1].id, &pair[1].raw));
        assert!(pair[0].is_genuine() && pair[1].is_genuine());
    }
    let once: Vec<_> = callbacks.into_iter().step_by(2).collect();
    assert_eq!(story(&once), NORMAL);
}

#[tokio::test]
async fn reordered_webhooks_are_reversed() {
    let stage = Stage::set().await;
    stage.play(Scenario::ReorderedWebhooks).await;
    let mut callbacks = stage.receiver.all();
    callbacks.reverse();
    assert_eq!(story(&callbacks), NORMAL);
}

#[tokio::test]
async fn late_webhooks_follow_the_end() {
    let stage = Stage::set().await;
    stage.play(Scenario::LateWebhooks).await;
    let callbacks = stage.receiver.all();
    assert_eq!(story(&callbacks), NORMAL);
    assert!(
        callbacks
            .iter()
            .all(|callback| callback.truth == Status::Succeeded)
    );
}

#[tokio::test]
async fn lost_webhooks_are_never_sent() {
    let stage = Stage::set().await;
    let snapshot = stage.play(Scenario::LostWebhooks).await;
    assert_eq!(
        (snapshot.status, snapshot.callbacks_sent),
        (Status::Succeeded, 0)
    );
    assert_eq!(stage.queried().await["status"], "succeeded");
}

#[tokio::test]
async fn webhook_before_answer_precedes_the_response() {
    let stage = Stage::set().await;
    stage.receiver.hold();
    let submit_body = stage.submit_body(Scenario::WebhookBeforeAnswer, "job_1");
    let mut submit = Box::pin(stage.try_submit(&submit_body));
    tokio::select! {
        _ = &mut submit => panic!("answered before the webhook"),
        _ = stage.receiver.received(1) => {}
    }
    assert_eq!(stage.receiver.all()[0].status(), "processing");
    let acknowledged = stage.inspector.until(|inspector| {
        (inspector.tasks()[0].status == Status::Succeeded)
            .then(|| inspector.calls().callbacks_acknowledged)
    });
    tokio::select! {
        _ = &mut submit => panic!("answered before the acknowledgement"),
        count = acknowledged => assert_eq!(count, 0),
    }
    stage.receiver.release();
    let answer: Value = submit.await.unwrap().json().await.unwrap();
    assert_eq!(answer["data"]["status"], "submitted");
    assert!(stage.inspector.calls().callbacks_acknowledged >= 1);
    in_time(stage.inspector.settled("job_1")).await;
    assert_eq!(story(&stage.receiver.all()), NORMAL);
}

#[tokio::test]
async fn webhook_before_answer_without_callback_responds() {
    let stage = Stage::set().await;
    let mut submit_body = stage.submit_body(Scenario::WebhookBeforeAnswer, "job_1");
    submit_body["options"]
        .as_object_mut()
        .unwrap()
        .remove("callback_url");
    assert_eq!(
        stage.try_submit(&submit_body).await.unwrap().status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn temporary_errors_are_counted_per_job() {
    for (scenario, times, status, code, retry_after) in [
        (Scenario::RateLimited, 2, 429, 1302, Some("1")),
        (Scenario::ConcurrencyLimited, 1, 429, 1303, None),
        (Scenario::ServerErrors, 2, 500, 5000, None),
    ] {
        let stage = Stage::set().await;
        for round in 1..=times {
            for job in ["job_1", "job_2"] {
                let refused = stage
                    .try_submit(&stage.submit_body(scenario, job))
                    .await
                    .unwrap();
                assert_eq!(refused.status(), status, "{scenario} {round}");
                let waits = refused
                    .headers()
                    .get("retry-after")
                    .map(|value| value.to_str().unwrap());
                assert_eq!(waits, retry_after, "{scenario}");
                let body: Value = refused.json().await.unwrap();
                assert_eq!(body["code"], code, "{scenario}");
                assert!(body["message"].is_string() && body["request_id"].is_string());
            }
        }
        assert_eq!(stage.inspector.task_of("job_1"), None, "{scenario}");
        assert_eq!(stage.play(scenario).await.status, Status::Succeeded);
        let submits = stage.inspector.submits_of("job_1");
        assert_eq!(
            (submits.received, submits.accepted),
            (times + 1, 1),
            "{scenario}"
        );
    }
}

#[tokio::test]
async fn permanent_errors_never_create_a_task() {
    let stage = Stage::set().await;
    for (scenario, status, code) in [
        (Scenario::Safety, 400, 1301),
        (Scenario::Quota, 429, 1102),
        (Scenario::BadKey, 401, 1002),
    ] {
        for _ in 0..4 {
            let (refused, body) = stage.submit(scenario, scenario.name()).await;
            assert_eq!(
                (refused.as_u16(), &body["code"]),
                (status, &json!(code)),
                "{scenario}"
            );
        }
        assert_eq!(stage.inspector.submits_of(scenario.name()).received, 4);
    }
    let calls = stage.inspector.calls();
    assert_eq!((calls.submits_received, calls.submits_accepted), (12, 0));
    assert!(stage.inspector.tasks().is_empty());
}

#[tokio::test]
async fn lost_answer_job_runs() {
    for (scenario, callbacks) in [(Scenario::LostAnswer, 6), (Scenario::LostAnswerSilent, 0)] {
        let stage = Stage::set().await;
        let error = stage
            .try_submit(&stage.submit_body(scenario, "job_1"))
            .await
            .unwrap_err();
        assert!(
            error.is_request() && error.status().is_none() && !error.is_timeout(),
            "{error:?}"
        );
        let snapshot = in_time(stage.inspector.settled("job_1")).await;
        assert_eq!(
            (snapshot.status, snapshot.callbacks_sent),
            (Status::Succeeded, callbacks),
            "{scenario}"
        );
        assert_eq!(stage.queried().await["id"], json!(snapshot.id));
        assert_eq!(stage.inspector.submits_of("job_1").accepted, 1);
    }
}

#[tokio::test]
async fn lost_answer_sends_no_byte() {
    let stage = Stage::set().await;
    let mut stream = TcpStream::connect(stage.url.strip_prefix("http://").unwrap())
        .await
        .unwrap();
    let body = r#"{"prompt":"x","scenario":"lost-answer"}"#;
    let length = body.len();
    let request = format!(
        "POST /text-to-video/kling-2.6 HTTP/1.1\r\nhost: a.test\r\nauthorization: Bearer {API_KEY}\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The kernel decides whether the connection ends with FIN or RST.
    in_time(stream.read_to_end(&mut answer)).await.ok();
    assert_eq!((answer, stage.inspector.tasks().len()), (Vec::new(), 1));
}

#[tokio::test]
async fn failure_follows_progress_with_a_message() {
    for (scenario, words) in [
        (Scenario::FailsAtEnd, "internal rendering error"),
        (Scenario::SafetyAtEnd, "content safety policy"),
    ] {
        let stage = Stage::set().await;
        assert_eq!(stage.play(scenario).await.status, Status::Failed);
        let callbacks = stage.receiver.all();
        assert_eq!(story(&callbacks)[..5], NORMAL[..5]);
        let last = &callbacks[5].body;
        assert_eq!(last["status"], "failed");
        assert!(last["message"].as_str().unwrap().contains(words), "{last}");
        assert_eq!(
            (&last["outputs"], &last["billing"]),
            (&json!([]), &json!([]))
        );
        assert_eq!(&stage.queried().await, last);
    }
}

#[tokio::test]
async fn thin_and_expired_results_differ_in_the_query() {
    for (scenario, outputs) in [(Scenario::ThinSuccess, 1), (Scenario::ExpiredResult, 0)] {
        let stage = Stage::set().await;
        stage.play(scenario).await;
        let last = stage.receiver.all().pop().unwrap().body;
        let keys: HashSet<_> = last
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let thin = ["id", "status", "message", "create_time", "update_time"];
        assert_eq!(keys, HashSet::from(thin), "{scenario}");
        let queried = stage.queried().await;
        assert_eq!(
            (&last["status"], &queried["status"]),
            (&json!("succeeded"), &json!("succeeded"))
        );
        assert_eq!(
            queried["outputs"].as_array().unwrap().len(),
            outputs,
            "{scenario}"
        );
    }
}

#[tokio::test]
async fn unsigned_webhooks_carry_no_signature_headers() {
    let stage = Stage::set().await;
    stage.play(Scenario::Unsigned).await;
    let callbacks = stage.receiver.all();
    assert_eq!(story(&callbacks), NORMAL);
    for callback in callbacks {
        assert_eq!(
            (callback.id, callback.timestamp, callback.signature),
            (None, None, None)
        );
    }
}

#[tokio::test]
async fn forged_webhooks_stay_forged_on_retry() {
    let stage = Stage::set().await;
    stage.receiver.answer_with(&[401; 30]);
    let snapshot = stage.play(Scenario::Forged).await;
    assert_eq!(
        (snapshot.callbacks_sent, snapshot.callbacks_acknowledged),
        (30, 0)
    );
    for callback in stage.receiver.all() {
        assert!(callback.signature.is_some() && !callback.is_genuine());
    }
}

#[tokio::test]
async fn silence_reports_nothing() {
    let stage = Stage::set().await;
    let snapshot = stage.play(Scenario::Silence).await;
    assert_eq!(
        (snapshot.status, snapshot.callbacks_sent),
        (Status::Submitted, 0)
    );
    let queried = stage.queried().await;
    assert_eq!(
        (&queried["status"], &queried["create_time"]),
        (&json!("submitted"), &queried["update_time"])
    );
}
