//! What becomes of a subscription.

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, send};
use crate::client::TestClient;

#[tokio::test(flavor = "multi_thread")]
async fn subscribe_returns_one_result_per_job() {
    let app = TestApp::spawn().await;
    let (known, new, his) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
        app.register_worker_job("bob").await,
    );
    let mut client = app.connect("alice").await;
    let outcome = client
        .subscribe(&[
            (&known, 1),
            (&new, 0),
            (&his, 0),
            ("job_never_was", 3),
            ("not a job id", 0),
            ("", 0),
        ])
        .await;
    let expected = json!({
        &known: "current",
        &new: "sent",
        &his: "not_found",
        "job_never_was": "not_found",
        "not a job id": "not_found",
        "": "not_found",
    });
    assert_eq!(outcome, expected);
    assert_eq!(client.next_job().await["id"], new);
    client.assert_no_messages().await;

    // The bad ones did not fail the good ones.
    for job in [&known, &new] {
        app.push_update(job, json!({ "progress": 5 })).await;
        let seen = client.next_job().await;
        assert_eq!((&seen["id"], &seen["version"]), (&json!(job), &json!(2)));
    }
    app.push_update(&his, json!({ "progress": 5 })).await;
    client.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_s_own_id_is_echoed_whatever_it_is() {
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
async fn the_document_on_a_socket_is_the_document_of_http() {
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
    let seen = client.next_job().await;
    assert_eq!(seen["final"], true);
    assert_eq!(seen, app.get_job(&job, "alice").await);
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
    let seen = client.next_job().await;
    assert_eq!(
        (&seen["status"], &seen["version"]),
        (&json!("failed"), &json!(3))
    );
    assert_eq!(seen["error"]["message"], "no more disk");
    client.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unsubscribed_job_sends_no_frames() {
    let app = TestApp::spawn().await;
    let (left, kept) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
    );
    let mut client = app.connect("alice").await;
    client.subscribe(&[(&left, 1), (&kept, 1)]).await;
    client
        .send_json(json!({ "type": "unsubscribe", "id": 3, "jobs": [left, "job_never_was", "?"] }))
        .await;
    assert_eq!(client.expect_message("unsubscribed").await["id"], 3);
    app.push_update(&left, json!({ "progress": 1 })).await;
    app.push_update(&kept, json!({ "progress": 1 })).await;
    assert_eq!(client.next_job().await["id"], kept);
    client.assert_no_messages().await;

    // It can be taken up again where it was left.
    assert_eq!(client.subscribe(&[(&left, 1)]).await[&left], "sent");
    assert_eq!(client.next_job().await["version"], 2);
}

async fn follow(client: &mut TestClient, known: &[(&str, u64)]) -> Value {
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
    let his = app.register_worker_job("bob").await;
    let mut client = app.connect("alice").await;
    let outcome = follow(&mut client, &[]).await;
    assert_eq!(outcome, json!({ &present: "sent", &ended: "sent" }));
    let mut shown = [
        client.next_job().await["id"].clone(),
        client.next_job().await["id"].clone(),
    ];
    shown.sort_by_key(Value::to_string);
    assert_eq!(shown, [json!(present), json!(ended)]);

    let future = app.register_worker_job("alice").await;
    assert_eq!(client.next_job().await["id"], future);
    app.register_worker_job("bob").await;
    app.push_update(&his, json!({ "progress": 1 })).await;
    app.push_update(&future, json!({ "progress": 1 })).await;
    let seen = client.next_job().await;
    assert_eq!((&seen["id"], &seen["version"]), (&json!(future), &json!(2)));
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
async fn a_feed_does_not_repeat_what_the_client_knows() {
    let app = TestApp::spawn().await;
    let (known, old, new) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
    );
    app.push_update(&old, json!({ "progress": 1 })).await;
    let mut client = app.connect("alice").await;
    let outcome = follow(&mut client, &[(&known, 1), (&old, 1)]).await;
    assert_eq!(
        outcome,
        json!({ &known: "current", &old: "sent", &new: "sent" })
    );
    let mut shown = [client.next_job().await, client.next_job().await];
    shown.sort_by_key(|job| job["id"].to_string());
    assert_eq!(shown.map(|job| job["id"].clone()), [json!(old), json!(new)]);
    client.assert_no_messages().await;

    // They came with the feed, so they go with it.
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
async fn a_job_in_the_feed_and_by_id_is_shown_once() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    for feed_first in [true, false] {
        let mut client = app.connect("alice").await;
        let version = app.get_job(&job, "alice").await["version"]
            .as_u64()
            .unwrap();
        for feed in [feed_first, !feed_first] {
            match feed {
                true => drop(follow(&mut client, &[(&job, version)]).await),
                false => drop(client.subscribe(&[(&job, version)]).await),
            }
        }
        app.push_update(&job, json!({ "stage": format!("once {feed_first}") }))
            .await;
        assert_eq!(client.next_job().await["version"], version + 1);
        client.assert_no_messages().await;

        // What was asked for twice has to be left twice.
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
        app.push_update(&job, json!({ "stage": format!("no more {feed_first}") }))
            .await;
        client.assert_no_messages().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_asked_for_by_id_outlives_the_feed() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let mut client = app.connect("alice").await;
    client.subscribe(&[(&job, 1)]).await;
    follow(&mut client, &[(&job, 1)]).await;
    client
        .send_json(json!({ "type": "unsubscribe", "id": 2, "feed": "mine" }))
        .await;
    client.expect_message("unsubscribed").await;
    app.push_update(&job, json!({ "progress": 1 })).await;
    assert_eq!(client.next_job().await["version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_subscriptions_are_told_and_the_others_kept() {
    let app = TestApp::builder()
        .set("socket.max_subscriptions", 3)
        .spawn()
        .await;
    let mut jobs = Vec::new();
    for _ in 0..5 {
        jobs.push(app.register_worker_job("alice").await);
    }
    let mut client = app.connect("alice").await;
    let asked: Vec<(&str, u64)> = jobs.iter().map(|job| (job.as_str(), 1)).collect();
    let outcome = client.subscribe(&asked).await;
    let error = client.expect_message("error").await;
    assert_eq!(error["code"], "too_many_subscriptions");
    let (kept, refused): (Vec<&String>, Vec<&String>) =
        jobs.iter().partition(|job| outcome[*job] == "current");
    assert_eq!((kept.len(), refused.len()), (3, 2), "{outcome}");
    assert!(
        refused.iter().all(|job| outcome[*job] == "too_many"),
        "{outcome}"
    );

    // One that is watched already may be asked for again, and one that is left makes room.
    assert_eq!(client.subscribe(&[(kept[0], 1)]).await[kept[0]], "current");
    client
        .send_json(json!({ "type": "unsubscribe", "id": 3, "jobs": [kept[1]] }))
        .await;
    assert_eq!(
        client.subscribe(&[(refused[0], 1)]).await[refused[0]],
        "current"
    );
    for job in &jobs {
        app.push_update(job, json!({ "progress": 1 })).await;
    }
    let mut shown = Vec::new();
    for _ in 0..3 {
        shown.push(client.next_job().await["id"].clone());
    }
    shown.sort_by_key(Value::to_string);
    let mut expected = vec![json!(kept[0]), json!(kept[2]), json!(refused[0])];
    expected.sort_by_key(Value::to_string);
    assert_eq!(shown, expected);
    client.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_may_hold_more_jobs_than_may_be_watched_by_id() {
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
    let outcome = follow(&mut client, &known).await;
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
async fn subscribing_again_with_an_older_version_sends_it_again() {
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
    let watched = send(app.request_without_token(Method::GET, "/metrics")).await;
    assert!(
        watched
            .body
            .to_string()
            .contains("progress_hub_subscribed_jobs 0")
    );

    let mut leaving = app.connect("alice").await;
    leaving.subscribe(&[(&job, 1), ("job_never_was", 0)]).await;
    follow(&mut leaving, &[]).await;
    assert_eq!(app.metric("subscribed_jobs").await, 1.0);
    leaving.close().await;
    let mut dropped = app.connect("alice").await;
    follow(&mut dropped, &[(&job, 1)]).await;
    drop((dropped, staying));
    app.wait_until_no_connections().await;
}
