//! WebSocket subscriptions, by id and by owner.

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, send};
use crate::client::TestClient;

#[tokio::test(flavor = "multi_thread")]
async fn subscribe_returns_one_result_per_job() {
    let app = TestApp::spawn().await;
    let (known, new, other) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
        app.register_worker_job("bob").await,
    );
    let mut client = app.connect("alice").await;
    let outcome = client
        .subscribe(&[
            (&known, 1),
            (&new, 0),
            (&other, 0),
            ("job_never_was", 3),
            ("not a job id", 0),
            ("", 0),
        ])
        .await;
    let expected = json!({
        &known: "current",
        &new: "sent",
        &other: "not_found",
        "job_never_was": "not_found",
        "not a job id": "not_found",
        "": "not_found",
    });
    assert_eq!(outcome, expected);
    assert_eq!(client.next_job().await["id"], new);
    client.assert_no_messages().await;

    // The invalid jobs do not affect the others.
    for job in [&known, &new] {
        app.push_update(job, json!({ "progress": 5 })).await;
        let received = client.next_job().await;
        assert_eq!(
            (&received["id"], &received["version"]),
            (&json!(job), &json!(2))
        );
    }
    app.push_update(&other, json!({ "progress": 5 })).await;
    client.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reply_repeats_the_id_of_any_json_type() {
    let app = TestApp::spawn().await;
    let mut client = app.connect("alice").await;
    for id in [
        json!(7),
        json!("seven"),
        json!({ "n": [7] }),
        json!(7.5),
        json!(null),
    ] {
        client
            .send_json(json!({ "type": "subscribe", "id": id, "jobs": [] }))
            .await;
        assert_eq!(client.expect_message("subscribed").await["id"], id);
        client.send_json(json!({ "type": "ping", "id": id })).await;
        assert_eq!(client.expect_message("pong").await["id"], id);
        client
            .send_json(json!({ "type": "unsubscribe", "id": id, "jobs": ["job_a"] }))
            .await;
        assert_eq!(client.expect_message("unsubscribed").await["id"], id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn socket_and_http_return_the_same_document() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let mut client = app.connect("alice").await;
    client.subscribe(&[(&job, 0)]).await;
    assert_eq!(client.next_job().await, app.get_job(&job, "alice").await);
    let update = json!({
        "status": "succeeded",
        "outputs": [{ "type": "video", "url": "https://cdn.example.com/ä.mp4", "duration": 5.0 }],
    });
    app.push_update(&job, update).await;
    let received = client.next_job().await;
    assert_eq!(received["final"], true);
    assert_eq!(received, app.get_job(&job, "alice").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn late_subscriber_sees_the_final_version() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    app.push_update(&job, json!({ "progress": 50 })).await;
    app.push_update(
        &job,
        json!({ "status": "failed", "error": { "message": "no more disk" } }),
    )
    .await;
    let mut client = app.connect("alice").await;
    let outcome = client.subscribe(&[(&job, 0)]).await;
    assert_eq!(outcome[&job], "sent");
    let received = client.next_job().await;
    assert_eq!(
        (&received["status"], &received["version"]),
        (&json!("failed"), &json!(3))
    );
    assert_eq!(received["error"]["message"], "no more disk");
    client.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unsubscribed_job_sends_no_frames() {
    let app = TestApp::spawn().await;
    let (ended, kept) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
    );
    let mut client = app.connect("alice").await;
    client.subscribe(&[(&ended, 1), (&kept, 1)]).await;
    client
        .send_json(json!({ "type": "unsubscribe", "id": 3, "jobs": [ended, "job_never_was", "?"] }))
        .await;
    assert_eq!(client.expect_message("unsubscribed").await["id"], 3);
    app.push_update(&ended, json!({ "progress": 1 })).await;
    app.push_update(&kept, json!({ "progress": 1 })).await;
    assert_eq!(client.next_job().await["id"], kept);
    client.assert_no_messages().await;

    // A new subscription resumes from the known version.
    assert_eq!(client.subscribe(&[(&ended, 1)]).await[&ended], "sent");
    assert_eq!(client.next_job().await["version"], 2);
}

async fn subscribe_feed(client: &mut TestClient, known: &[(&str, u64)]) -> Value {
    let jobs: Vec<Value> = known
        .iter()
        .map(|(job, version)| json!({ "job": job, "version": version }))
        .collect();
    client
        .send_json(json!({ "type": "subscribe", "id": 2, "feed": "mine", "jobs": jobs }))
        .await;
    let subscribed = client.expect_message("subscribed").await;
    assert_eq!(subscribed["feed"], "mine");
    subscribed["jobs"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_feed_includes_existing_and_future_jobs() {
    let app = TestApp::spawn().await;
    let present = app.register_worker_job("alice").await;
    let ended = app.register_worker_job("alice").await;
    app.push_update(&ended, json!({ "status": "succeeded" }))
        .await;
    let other = app.register_worker_job("bob").await;
    let mut client = app.connect("alice").await;
    let outcome = subscribe_feed(&mut client, &[]).await;
    assert_eq!(outcome, json!({ &present: "sent", &ended: "sent" }));
    let mut delivered = [
        client.next_job().await["id"].clone(),
        client.next_job().await["id"].clone(),
    ];
    delivered.sort_by_key(Value::to_string);
    assert_eq!(delivered, [json!(present), json!(ended)]);

    let future = app.register_worker_job("alice").await;
    assert_eq!(client.next_job().await["id"], future);
    app.register_worker_job("bob").await;
    app.push_update(&other, json!({ "progress": 1 })).await;
    app.push_update(&future, json!({ "progress": 1 })).await;
    let received = client.next_job().await;
    assert_eq!(
        (&received["id"], &received["version"]),
        (&json!(future), &json!(2))
    );
    client.assert_no_messages().await;

    client
        .send_json(json!({ "type": "unsubscribe", "id": 4, "feed": "mine" }))
        .await;
    client.expect_message("unsubscribed").await;
    app.push_update(&present, json!({ "progress": 1 })).await;
    app.register_worker_job("alice").await;
    client.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn feed_skips_known_versions() {
    let app = TestApp::spawn().await;
    let (known, old, new) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
    );
    app.push_update(&old, json!({ "progress": 1 })).await;
    let mut client = app.connect("alice").await;
    let outcome = subscribe_feed(&mut client, &[(&known, 1), (&old, 1)]).await;
    assert_eq!(
        outcome,
        json!({ &known: "current", &old: "sent", &new: "sent" })
    );
    let mut delivered = [client.next_job().await, client.next_job().await];
    delivered.sort_by_key(|job| job["id"].to_string());
    assert_eq!(
        delivered.map(|job| job["id"].clone()),
        [json!(old), json!(new)]
    );
    client.assert_no_messages().await;

    // The jobs were part of the feed, so their updates end with it.
    client
        .send_json(json!({ "type": "unsubscribe", "id": 4, "feed": "mine" }))
        .await;
    client.expect_message("unsubscribed").await;
    for job in [&known, &old, &new] {
        app.push_update(job, json!({ "progress": 9 })).await;
    }
    client.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn job_in_the_feed_and_by_id_is_delivered_once() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    for feed_first in [true, false] {
        let mut client = app.connect("alice").await;
        let version = app.get_job(&job, "alice").await["version"]
            .as_u64()
            .unwrap();
        for feed in [feed_first, !feed_first] {
            if feed {
                subscribe_feed(&mut client, &[(&job, version)]).await;
            } else {
                client.subscribe(&[(&job, version)]).await;
            }
        }
        app.push_update(&job, json!({ "stage": format!("once {feed_first}") }))
            .await;
        assert_eq!(client.next_job().await["version"], version + 1);
        client.assert_no_messages().await;

        // Each of the two subscriptions has to be ended.
        client
            .send_json(json!({ "type": "unsubscribe", "id": 1, "jobs": [job] }))
            .await;
        client.expect_message("unsubscribed").await;
        app.push_update(&job, json!({ "stage": format!("by feed {feed_first}") }))
            .await;
        assert_eq!(client.next_job().await["version"], version + 2);
        client
            .send_json(json!({ "type": "unsubscribe", "id": 2, "feed": "mine" }))
            .await;
        client.expect_message("unsubscribed").await;
        app.push_update(
            &job,
            json!({ "stage": format!("unsubscribed {feed_first}") }),
        )
        .await;
        client.assert_no_messages().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subscription_by_id_continues_after_the_feed_ends() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let mut client = app.connect("alice").await;
    client.subscribe(&[(&job, 1)]).await;
    subscribe_feed(&mut client, &[(&job, 1)]).await;
    client
        .send_json(json!({ "type": "unsubscribe", "id": 2, "feed": "mine" }))
        .await;
    client.expect_message("unsubscribed").await;
    app.push_update(&job, json!({ "progress": 1 })).await;
    assert_eq!(client.next_job().await["version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_above_the_limit_are_rejected_and_the_others_kept() {
    let app = TestApp::builder()
        .set("socket.max_subscriptions", 3)
        .spawn()
        .await;
    let mut jobs = Vec::new();
    for _ in 0..5 {
        jobs.push(app.register_worker_job("alice").await);
    }
    let mut client = app.connect("alice").await;
    let requested: Vec<(&str, u64)> = jobs.iter().map(|job| (job.as_str(), 1)).collect();
    let outcome = client.subscribe(&requested).await;
    let error = client.expect_message("error").await;
    assert_eq!(error["code"], "too_many_subscriptions");
    let (kept, rejected): (Vec<&String>, Vec<&String>) =
        jobs.iter().partition(|job| outcome[*job] == "current");
    assert_eq!((kept.len(), rejected.len()), (3, 2), "{outcome}");
    assert!(
        rejected.iter().all(|job| outcome[*job] == "too_many"),
        "{outcome}"
    );

    // A repeated subscription does not count, and an ended one makes room.
    assert_eq!(client.subscribe(&[(kept[0], 1)]).await[kept[0]], "current");
    client
        .send_json(json!({ "type": "unsubscribe", "id": 3, "jobs": [kept[1]] }))
        .await;
    assert_eq!(
        client.subscribe(&[(rejected[0], 1)]).await[rejected[0]],
        "current"
    );
    for job in &jobs {
        app.push_update(job, json!({ "progress": 1 })).await;
    }
    let mut delivered = Vec::new();
    for _ in 0..3 {
        delivered.push(client.next_job().await["id"].clone());
    }
    delivered.sort_by_key(Value::to_string);
    let mut expected = vec![json!(kept[0]), json!(kept[2]), json!(rejected[0])];
    expected.sort_by_key(Value::to_string);
    assert_eq!(delivered, expected);
    client.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn feed_does_not_count_towards_the_subscription_limit() {
    let app = TestApp::builder()
        .set("socket.max_subscriptions", 2)
        .spawn()
        .await;
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(app.register_worker_job("alice").await);
    }
    let other = app.register_worker_job("bob").await;
    let admin = app.token("alice", "admin");
    let mut client = TestClient::connect(&app.url, &admin).await;
    let known: Vec<(&str, u64)> = jobs.iter().map(|job| (job.as_str(), 1)).collect();
    let outcome = subscribe_feed(&mut client, &known).await;
    assert!(
        jobs.iter().all(|job| outcome[job] == "current"),
        "{outcome}"
    );
    assert_eq!(client.subscribe(&[(&other, 1)]).await[&other], "current");
    for job in jobs.iter().chain([&other]) {
        app.push_update(job, json!({ "progress": 1 })).await;
        assert_eq!(client.next_job().await["id"], *job);
    }
    client.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_subscribe_with_an_older_version_sends_the_document_again() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let mut client = app.connect("alice").await;
    for _ in 0..3 {
        assert_eq!(client.subscribe(&[(&job, 0)]).await[&job], "sent");
        assert_eq!(client.next_job().await["version"], 1);
        assert_eq!(client.subscribe(&[(&job, 1)]).await[&job], "current");
    }
    client.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_sockets_leave_no_state() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let mut staying = app.connect("alice").await;
    staying.subscribe(&[(&job, 1)]).await;
    staying
        .send_json(json!({ "type": "unsubscribe", "id": 3, "jobs": [job] }))
        .await;
    staying.expect_message("unsubscribed").await;
    let metrics = send(app.request_without_token(Method::GET, "/metrics")).await;
    assert!(
        metrics
            .body
            .to_string()
            .contains("progress_hub_subscribed_jobs 0")
    );

    let mut leaving = app.connect("alice").await;
    leaving.subscribe(&[(&job, 1), ("job_never_was", 0)]).await;
    subscribe_feed(&mut leaving, &[]).await;
    assert_eq!(app.metric("subscribed_jobs").await, 1.0);
    leaving.close().await;
    let mut dropped = app.connect("alice").await;
    subscribe_feed(&mut dropped, &[(&job, 1)]).await;
    drop((dropped, staying));
    app.wait_until_no_connections().await;
}
