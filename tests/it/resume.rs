//! Resuming subscriptions after a reconnect.

use serde_json::json;

use crate::app::TestApp;

#[tokio::test(flavor = "multi_thread")]
async fn reconnect_sends_only_newer_versions() {
    let app = TestApp::spawn().await;
    let (unchanged, changed, ended) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
    );
    let mut before = app.connect("alice").await;
    before
        .subscribe(&[(&unchanged, 0), (&changed, 0), (&ended, 0)])
        .await;
    for _ in 0..3 {
        assert_eq!(before.next_job().await["version"], 1);
    }
    drop(before);

    for progress in [10, 20, 30] {
        app.push_update(&changed, json!({ "progress": progress }))
            .await;
    }
    app.push_update(&ended, json!({ "status": "succeeded" }))
        .await;
    let mut after = app.connect("alice").await;
    let outcome = after
        .subscribe(&[(&unchanged, 1), (&changed, 1), (&ended, 1)])
        .await;
    let expected = json!({ &unchanged: "current", &changed: "sent", &ended: "sent" });
    assert_eq!(outcome, expected);
    let mut jobs = [after.next_job().await, after.next_job().await];
    jobs.sort_by_key(|job| job["id"].to_string());
    assert_eq!(
        (&jobs[0]["id"], &jobs[0]["version"]),
        (&json!(changed), &json!(4))
    );
    assert_eq!(
        (&jobs[1]["id"], &jobs[1]["final"]),
        (&json!(ended), &json!(true))
    );
    after.assert_no_messages().await;

    app.push_update(&unchanged, json!({ "progress": 1 })).await;
    assert_eq!(after.next_job().await["version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_client_version_counts_as_current() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let mut client = app.connect("alice").await;
    assert_eq!(client.subscribe(&[(&job, 3)]).await[&job], "current");
    app.push_update(&job, json!({ "progress": 1 })).await;
    app.push_update(&job, json!({ "progress": 2 })).await;
    client.assert_no_messages().await;
    app.push_update(&job, json!({ "progress": 3 })).await;
    assert_eq!(client.next_job().await["version"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn known_final_version_counts_as_current() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    app.push_update(&job, json!({ "status": "cancelled" }))
        .await;
    let mut client = app.connect("alice").await;
    assert_eq!(client.subscribe(&[(&job, 2)]).await[&job], "current");
    client.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_continue_after_restart() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    app.push_update(&job, json!({ "progress": 10 })).await;
    let mut client = app.connect("alice").await;
    client.subscribe(&[(&job, 0)]).await;
    assert_eq!(client.next_job().await["version"], 2);
    let stopped = tokio::spawn(app.shut_down());
    assert_eq!(client.expect_close().await, Some(1012));
    let folder = stopped.await.unwrap().unwrap();

    let app = TestApp::builder().data_dir(folder).spawn().await;
    let mut client = app.connect("alice").await;
    assert_eq!(client.subscribe(&[(&job, 2)]).await[&job], "current");
    app.push_update(&job, json!({ "progress": 20 })).await;
    let job = client.next_job().await;
    assert_eq!(
        (&job["version"], &job["progress"]),
        (&json!(3), &json!(20.0))
    );
}
