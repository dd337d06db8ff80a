//! What becomes of a subscription.

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, send};
use crate::client::TestClient;

#[tokio::test(flavor = "multi_thread")]
async fn subscribe_returns_one_result_per_job() {
    let app = TestApp::spawn().await;
    let (known, new, his) = (
        app.worker_job("alice").await,
        app.worker_job("alice").await,
        app.worker_job("bob").await,
    );
    let mut client = app.socket("alice").await;
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
    assert_eq!(client.job().await["id"], new);
    client.hears_nothing().await;

    // The bad ones did not fail the good ones.
    for job in [&known, &new] {
        app.push(job, json!({ "progress": 5 })).await;
        let seen = client.job().await;
        assert_eq!((&seen["id"], &seen["version"]), (&json!(job), &json!(2)));
    }
    app.push(&his, json!({ "progress": 5 })).await;
    client.hears_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_s_own_id_is_echoed_whatever_it_is() {
    let app = TestApp::spawn().await;
    let mut client = app.socket("alice").await;
    for id in [
        json!(7),
        json!("seven"),
        json!({ "n": [7] }),
        json!(7.5),
        json!(null),
    ] {
        client
            .say(json!({ "type": "subscribe", "id": id, "jobs": [] }))
            .await;
        assert_eq!(client.hear("subscribed").await["id"], id);
        client.say(json!({ "type": "ping", "id": id })).await;
        assert_eq!(client.hear("pong").await["id"], id);
        client
            .say(json!({ "type": "unsubscribe", "id": id, "jobs": ["job_a"] }))
            .await;
        assert_eq!(client.hear("unsubscribed").await["id"], id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_on_a_socket_is_the_document_of_http() {
    let app = TestApp::spawn().await;
    let job = app.worker_job("alice").await;
    let mut client = app.socket("alice").await;
    client.subscribe(&[(&job, 0)]).await;
    assert_eq!(client.job().await, app.job(&job, "alice").await);
    let update = json!({
        "status": "succeeded",
        "outputs": [{ "type": "video", "url": "https://cdn.example.com/ä.mp4", "duration": 5.0 }],
    });
    app.push(&job, update).await;
    let seen = client.job().await;
    assert_eq!(seen["final"], true);
    assert_eq!(seen, app.job(&job, "alice").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn late_subscriber_sees_the_final_version() {
    let app = TestApp::spawn().await;
    let job = app.worker_job("alice").await;
    app.push(&job, json!({ "progress": 50 })).await;
    app.push(
        &job,
        json!({ "status": "failed", "error": { "message": "no more disk" } }),
    )
    .await;
    let mut client = app.socket("alice").await;
    let outcome = client.subscribe(&[(&job, 0)]).await;
    assert_eq!(outcome[&job], "sent");
    let seen = client.job().await;
    assert_eq!(
        (&seen["status"], &seen["version"]),
        (&json!("failed"), &json!(3))
    );
    assert_eq!(seen["error"]["message"], "no more disk");
    client.hears_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unsubscribed_job_sends_no_frames() {
    let app = TestApp::spawn().await;
    let (left, kept) = (app.worker_job("alice").await, app.worker_job("alice").await);
    let mut client = app.socket("alice").await;
    client.subscribe(&[(&left, 1), (&kept, 1)]).await;
    client
        .say(json!({ "type": "unsubscribe", "id": 3, "jobs": [left, "job_never_was", "?"] }))
        .await;
    assert_eq!(client.hear("unsubscribed").await["id"], 3);
    app.push(&left, json!({ "progress": 1 })).await;
    app.push(&kept, json!({ "progress": 1 })).await;
    assert_eq!(client.job().await["id"], kept);
    client.hears_nothing().await;

    // It can be taken up again where it was left.
    assert_eq!(client.subscribe(&[(&left, 1)]).await[&left], "sent");
    assert_eq!(client.job().await["version"], 2);
}

async fn follow(client: &mut TestClient, known: &[(&str, u64)]) -> Value {
    let jobs: Vec<Value> = known
        .iter()
        .map(|(job, version)| json!({ "job": job, "version": version }))
        .collect();
    client
        .say(json!({ "type": "subscribe", "id": 2, "feed": "mine", "jobs": jobs }))
        .await;
    let subscribed = client.hear("subscribed").await;
    assert_eq!(subscribed["feed"], "mine");
    subscribed["jobs"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_feed_includes_existing_and_future_jobs() {
    let app = TestApp::spawn().await;
    let present = app.worker_job("alice").await;
    let ended = app.worker_job("alice").await;
    app.push(&ended, json!({ "status": "succeeded" })).await;
    let his = app.worker_job("bob").await;
    let mut client = app.socket("alice").await;
    let outcome = follow(&mut client, &[]).await;
    assert_eq!(outcome, json!({ &present: "sent", &ended: "sent" }));
    let mut shown = [
        client.job().await["id"].clone(),
        client.job().await["id"].clone(),
    ];
    shown.sort_by_key(Value::to_string);
    assert_eq!(shown, [json!(present), json!(ended)]);

    let future = app.worker_job("alice").await;
    assert_eq!(client.job().await["id"], future);
    app.worker_job("bob").await;
    app.push(&his, json!({ "progress": 1 })).await;
    app.push(&future, json!({ "progress": 1 })).await;
    let seen = client.job().await;
    assert_eq!((&seen["id"], &seen["version"]), (&json!(future), &json!(2)));
    client.hears_nothing().await;

    client
        .say(json!({ "type": "unsubscribe", "id": 4, "feed": "mine" }))
        .await;
    client.hear("unsubscribed").await;
    app.push(&present, json!({ "progress": 1 })).await;
    app.worker_job("alice").await;
    client.hears_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_does_not_repeat_what_the_client_knows() {
    let app = TestApp::spawn().await;
    let (known, old, new) = (
        app.worker_job("alice").await,
        app.worker_job("alice").await,
        app.worker_job("alice").await,
    );
    app.push(&old, json!({ "progress": 1 })).await;
    let mut client = app.socket("alice").await;
    let outcome = follow(&mut client, &[(&known, 1), (&old, 1)]).await;
    assert_eq!(
        outcome,
        json!({ &known: "current", &old: "sent", &new: "sent" })
    );
    let mut shown = [client.job().await, client.job().await];
    shown.sort_by_key(|job| job["id"].to_string());
    assert_eq!(shown.map(|job| job["id"].clone()), [json!(old), json!(new)]);
    client.hears_nothing().await;

    // They came with the feed, so they go with it.
    client
        .say(json!({ "type": "unsubscribe", "id": 4, "feed": "mine" }))
        .await;
    client.hear("unsubscribed").await;
    for job in [&known, &old, &new] {
        app.push(job, json!({ "progress": 9 })).await;
    }
    client.hears_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_the_feed_and_by_id_is_shown_once() {
    let app = TestApp::spawn().await;
    let job = app.worker_job("alice").await;
    for feed_first in [true, false] {
        let mut client = app.socket("alice").await;
        let version = app.job(&job, "alice").await["version"].as_u64().unwrap();
        for feed in [feed_first, !feed_first] {
            match feed {
                true => drop(follow(&mut client, &[(&job, version)]).await),
                false => drop(client.subscribe(&[(&job, version)]).await),
            }
        }
        app.push(&job, json!({ "stage": format!("once {feed_first}") }))
            .await;
        assert_eq!(client.job().await["version"], version + 1);
        client.hears_nothing().await;

        // What was asked for twice has to be left twice.
        client
            .say(json!({ "type": "unsubscribe", "id": 1, "jobs": [job] }))
            .await;
        client.hear("unsubscribed").await;
        app.push(&job, json!({ "stage": format!("by feed {feed_first}") }))
            .await;
        assert_eq!(client.job().await["version"], version + 2);
        client
            .say(json!({ "type": "unsubscribe", "id": 2, "feed": "mine" }))
            .await;
        client.hear("unsubscribed").await;
        app.push(&job, json!({ "stage": format!("no more {feed_first}") }))
            .await;
        client.hears_nothing().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_asked_for_by_id_outlives_the_feed() {
    let app = TestApp::spawn().await;
    let job = app.worker_job("alice").await;
    let mut client = app.socket("alice").await;
    client.subscribe(&[(&job, 1)]).await;
    follow(&mut client, &[(&job, 1)]).await;
    client
        .say(json!({ "type": "unsubscribe", "id": 2, "feed": "mine" }))
        .await;
    client.hear("unsubscribed").await;
    app.push(&job, json!({ "progress": 1 })).await;
    assert_eq!(client.job().await["version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_subscriptions_are_told_and_the_others_kept() {
    let app = TestApp::builder()
        .set("socket.max_subscriptions", 3)
        .spawn()
        .await;
    let mut jobs = Vec::new();
    for _ in 0..5 {
        jobs.push(app.worker_job("alice").await);
    }
    let mut client = app.socket("alice").await;
    let asked: Vec<(&str, u64)> = jobs.iter().map(|job| (job.as_str(), 1)).collect();
    let outcome = client.subscribe(&asked).await;
    let error = client.hear("error").await;
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
        .say(json!({ "type": "unsubscribe", "id": 3, "jobs": [kept[1]] }))
        .await;
    assert_eq!(
        client.subscribe(&[(refused[0], 1)]).await[refused[0]],
        "current"
    );
    for job in &jobs {
        app.push(job, json!({ "progress": 1 })).await;
    }
    let mut shown = Vec::new();
    for _ in 0..3 {
        shown.push(client.job().await["id"].clone());
    }
    shown.sort_by_key(Value::to_string);
    let mut expected = vec![json!(kept[0]), json!(kept[2]), json!(refused[0])];
    expected.sort_by_key(Value::to_string);
    assert_eq!(shown, expected);
    client.hears_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_may_hold_more_jobs_than_may_be_watched_by_id() {
    let app = TestApp::builder()
        .set("socket.max_subscriptions", 2)
        .spawn()
        .await;
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(app.worker_job("alice").await);
    }
    let other = app.worker_job("bob").await;
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
        app.push(job, json!({ "progress": 1 })).await;
        assert_eq!(client.job().await["id"], *job);
    }
    client.hears_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribing_again_with_an_older_version_sends_it_again() {
    let app = TestApp::spawn().await;
    let job = app.worker_job("alice").await;
    let mut client = app.socket("alice").await;
    for _ in 0..3 {
        assert_eq!(client.subscribe(&[(&job, 0)]).await[&job], "sent");
        assert_eq!(client.job().await["version"], 1);
        assert_eq!(client.subscribe(&[(&job, 1)]).await[&job], "current");
    }
    client.hears_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_sockets_leave_no_state() {
    let app = TestApp::spawn().await;
    let job = app.worker_job("alice").await;
    let mut staying = app.socket("alice").await;
    staying.subscribe(&[(&job, 1)]).await;
    staying
        .say(json!({ "type": "unsubscribe", "id": 3, "jobs": [job] }))
        .await;
    staying.hear("unsubscribed").await;
    let watched = send(app.anonymous(Method::GET, "/metrics")).await;
    assert!(
        watched
            .body
            .to_string()
            .contains("progress_hub_watched_jobs 0")
    );

    let mut leaving = app.socket("alice").await;
    leaving.subscribe(&[(&job, 1), ("job_never_was", 0)]).await;
    follow(&mut leaving, &[]).await;
    assert_eq!(app.metric("watched_jobs").await, 1.0);
    leaving.leave().await;
    let mut dropped = app.socket("alice").await;
    follow(&mut dropped, &[(&job, 1)]).await;
    drop((dropped, staying));
    app.until_nobody_is_left().await;
}
