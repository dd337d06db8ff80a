//! Jobs as server-sent events.

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, send};
use crate::sse_client::SseClient;

#[tokio::test(flavor = "multi_thread")]
async fn stream_starts_with_retry_and_event_ids_have_the_version() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let mut stream = SseClient::open(&app, &format!("job={job}"), "alice").await;
    let first = stream.next_event().await.unwrap();
    assert!(first.retry.is_some_and(|retry| retry > 0));
    assert_eq!(
        (first.event.as_str(), first.id),
        ("job", format!("{job}:1"))
    );
    assert_eq!(first.data, app.get_job(&job, "alice").await);
    app.push_update(&job, json!({ "progress": 5 })).await;
    let second = stream.next_event().await.unwrap();
    assert_eq!(
        (second.event.as_str(), second.id),
        ("job", format!("{job}:2"))
    );
    assert_eq!(second.retry, None);
    assert_eq!(second.data, app.get_job(&job, "alice").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_of_jobs_ends_after_the_last_final_version() {
    let app = TestApp::spawn().await;
    let (a, b) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
    );
    let query = format!("job={a}&job={b}");
    let mut stream = SseClient::open(&app, &query, "alice").await;
    stream.next_job().await;
    stream.next_job().await;
    for (job, status) in [(&b, "failed"), (&a, "succeeded")] {
        app.push_update(job, json!({ "progress": 9 })).await;
        app.push_update(job, json!({ "status": status })).await;
        loop {
            let seen = stream.next_job().await;
            assert_eq!(seen["id"], **job);
            if seen["final"] == true {
                assert_eq!(seen["status"], status);
                break;
            }
        }
    }
    assert_eq!(stream.next_event().await.unwrap().event, "end");
    assert_eq!(stream.next_event().await, None);
    app.wait_until_no_connections().await;

    // A later stream delivers the final versions and ends.
    let mut late = SseClient::open(&app, &query, "alice").await;
    for _ in 0..2 {
        assert_eq!(late.next_job().await["final"], true);
    }
    assert_eq!(late.next_event().await.unwrap().event, "end");
    assert_eq!(late.next_event().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn last_event_id_skips_known_versions() {
    let app = TestApp::spawn().await;
    let (a, b) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
    );
    app.push_update(&a, json!({ "progress": 1 })).await;
    let path = format!("/v1/events?job={a}&job={b}");
    let known = format!("{b}:1");
    let by_header = app
        .request(Method::GET, &path, "alice")
        .header("last-event-id", &known);
    let by_query = app.request(
        Method::GET,
        &format!("{path}&last_event_id={known}"),
        "alice",
    );
    for request in [by_header, by_query] {
        let mut stream = SseClient::open_with(request).await;
        assert_eq!(stream.next_job().await["id"], a);
        app.push_update(
            &a,
            json!({ "stage": format!("{:?}", rand::random::<u64>()) }),
        )
        .await;
        assert_eq!(
            stream.next_job().await["id"],
            a,
            "the version of the other job is known"
        );
    }

    let both = format!("{path}&last_event_id={a}:2,{b}:1");
    let mut stream = SseClient::open_with(app.request(Method::GET, &both, "alice")).await;
    let seen = stream.next_job().await;
    assert_eq!((&seen["id"], &seen["version"]), (&json!(a), &json!(4)));
    app.push_update(&b, json!({ "progress": 1 })).await;
    let seen = stream.next_job().await;
    assert_eq!((&seen["id"], &seen["version"]), (&json!(b), &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_last_event_id_is_ignored() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    for id in [
        "",
        ":",
        "1",
        "nonsense",
        &format!("{job}:"),
        &format!("{job}:-1"),
        "job_a:1",
    ] {
        let request = app
            .request(Method::GET, &format!("/v1/events?job={job}"), "alice")
            .header("last-event-id", id);
        assert_eq!(
            SseClient::open_with(request).await.next_job().await["version"],
            1,
            "{id}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_has_every_final_version_is_answered_204() {
    let app = TestApp::spawn().await;
    let (a, b) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
    );
    for job in [&a, &b] {
        app.push_update(job, json!({ "status": "succeeded" })).await;
    }
    let path = format!("/v1/events?job={a}&job={b}&job=job_never_was");
    let mut stream = SseClient::open_with(app.request(Method::GET, &path, "alice")).await;
    let end = loop {
        let event = stream.next_event().await.unwrap();
        if event.event == "end" {
            break event;
        }
    };
    assert_eq!(stream.next_event().await, None);
    let mut versions: Vec<&str> = end.id.split(',').collect();
    versions.sort_unstable();
    assert_eq!(versions, [format!("{a}:2"), format!("{b}:2")]);

    // EventSource sends the last id that it received, which is that of `end`.
    let by_header = app
        .request(Method::GET, &path, "alice")
        .header("last-event-id", &end.id);
    let by_query = format!("{path}&last_event_id={}", end.id);
    for request in [by_header, app.request(Method::GET, &by_query, "alice")] {
        let response = send(request).await;
        assert_eq!(response.status, 204);
        assert_eq!(response.headers["cache-control"], "no-store, no-transform");
    }
    app.wait_until_no_connections().await;

    // An older version, or one job of two, is not enough.
    for known in [format!("{a}:2"), format!("{a}:1,{b}:2")] {
        let request = app
            .request(Method::GET, &path, "alice")
            .header("last-event-id", known);
        let mut stream = SseClient::open_with(request).await;
        loop {
            let event = stream.next_event().await.unwrap();
            if event.event == "end" {
                let mut again: Vec<&str> = event.id.split(',').collect();
                again.sort_unstable();
                assert_eq!(again, versions);
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_must_be_neither_stored_nor_transformed() {
    let app = TestApp::spawn().await;
    let request = app
        .request(Method::GET, "/v1/events?feed=mine", "alice")
        .header("accept-encoding", "gzip, br");
    let response = request.send().await.unwrap();
    let headers = response.headers();
    assert_eq!(headers["content-type"], "text/event-stream");
    assert_eq!(headers["cache-control"], "no-store, no-transform");
    assert_eq!(headers["x-accel-buffering"], "no");
    assert!(!headers.contains_key("content-encoding"));
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeat_is_a_comment_without_a_blank_line() {
    let app = TestApp::builder()
        .set("socket.heartbeat", "1s")
        .spawn()
        .await;
    let mut stream = SseClient::open(&app, "feed=mine", "alice").await;
    assert_eq!(stream.next_line().await.unwrap(), "retry: 2000");
    for _ in 0..3 {
        assert_eq!(stream.next_line().await.unwrap(), ": heartbeat");
    }
    let job = app.register_worker_job("alice").await;
    assert_eq!(stream.next_job().await["id"], job);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_job_does_not_affect_the_others() {
    let app = TestApp::spawn().await;
    let (job, other) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("bob").await,
    );
    let query = format!("job={other}&job={job}&job=job_never_was&job=x%20y");
    let mut stream = SseClient::open(&app, &query, "alice").await;
    let mut bad = Vec::new();
    loop {
        let event = stream.next_event().await.unwrap();
        if event.event == "job" {
            assert_eq!(event.data["id"], job);
            break;
        }
        assert_eq!(
            (event.event.as_str(), &event.data["code"]),
            ("problem", &json!("not_found"))
        );
        bad.push(event.data["job"].as_str().unwrap().to_owned());
    }
    bad.sort_unstable();
    let mut expected = [&other, "job_never_was", "x y"];
    expected.sort_unstable();
    assert_eq!(bad, expected);
    app.push_update(&job, json!({ "status": "cancelled" }))
        .await;
    assert_eq!(stream.next_job().await["status"], "cancelled");
    assert_eq!(stream.next_event().await.unwrap().event, "end");
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_without_a_visible_job_is_rejected() {
    let app = TestApp::spawn().await;
    let other = app.register_worker_job("bob").await;
    let ended = app.register_worker_job("bob").await;
    app.push_update(&ended, json!({ "status": "succeeded" }))
        .await;
    for (query, status, code) in [
        (String::new(), 400, "invalid_request"),
        ("feed=yours".to_owned(), 400, "invalid_request"),
        (format!("job={other}"), 404, "not_found"),
        (format!("job={ended}"), 404, "not_found"),
        (format!("job={other}&job={ended}&job=x"), 404, "not_found"),
        ("job=".to_owned(), 404, "not_found"),
    ] {
        let response =
            send(app.request(Method::GET, &format!("/v1/events?{query}"), "alice")).await;
        assert_eq!(
            (response.status.as_u16(), &response.body["code"]),
            (status, &json!(code)),
            "{query}"
        );
    }
    app.wait_until_no_connections().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn feed_includes_future_jobs() {
    let app = TestApp::spawn().await;
    let ended = app.register_worker_job("alice").await;
    app.push_update(&ended, json!({ "status": "succeeded" }))
        .await;
    let mut stream = SseClient::open(&app, "feed=mine", "alice").await;
    assert_eq!(stream.next_job().await["id"], ended);
    for _ in 0..2 {
        app.register_worker_job("bob").await;
        let job = app.register_worker_job("alice").await;
        assert_eq!(stream.next_job().await["id"], job);
        app.push_update(&job, json!({ "status": "failed" })).await;
        let seen = stream.next_job().await;
        assert_eq!((&seen["id"], &seen["final"]), (&json!(job), &json!(true)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn job_that_is_granted_and_requested_is_delivered_once() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let minute = std::time::Duration::from_secs(60);
    let token = app.token_for("guest", "jobs:read", Some(&[&job]), minute);
    let path = format!("/v1/events?feed=mine&job={job}");
    let mut stream = SseClient::open_with(app.request_with_token(Method::GET, &path, &token)).await;
    assert_eq!(stream.next_job().await["id"], job);
    app.push_update(&job, json!({ "progress": 1 })).await;
    assert_eq!(stream.next_job().await["version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_receive_the_final_version() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let mut streams = tokio::task::JoinSet::new();
    for index in 0..30 {
        let query = if index % 2 == 0 {
            format!("job={job}")
        } else {
            "feed=mine".to_owned()
        };
        let mut stream = SseClient::open(&app, &query, "alice").await;
        streams.spawn(async move {
            let mut version = 0;
            loop {
                let job: Value = stream.next_job().await;
                assert!(
                    job["version"].as_u64().unwrap() > version,
                    "{job} after {version}"
                );
                version = job["version"].as_u64().unwrap();
                if job["final"] == true {
                    return job;
                }
            }
        });
    }
    for progress in 1..100 {
        app.push_update(&job, json!({ "progress": progress })).await;
    }
    app.push_update(&job, json!({ "status": "succeeded" }))
        .await;
    let last = app.get_job(&job, "alice").await;
    for ended in streams.join_all().await {
        assert_eq!(ended, last);
    }
    app.wait_until_no_connections().await;
}
