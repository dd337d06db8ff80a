//! Long polling of a job: conditional requests and `wait`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TEST_TIMEOUT, TestApp, TestResponse, send};

async fn get(app: &TestApp, job: &str, query: &str) -> TestResponse {
    send(app.request(Method::GET, &format!("/v1/jobs/{job}{query}"), "alice")).await
}

/// Waits until this number of long polls is open.
async fn wait_for_long_polls(app: &TestApp, requests: f64) {
    app.wait_for_metric("connections{kind=\"poll\"}", |open| open == requests)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etag_is_the_version() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let response = get(&app, &job, "").await;
    assert_eq!(
        (response.status.as_u16(), &response.headers["etag"]),
        (200, &"\"1\"".parse().unwrap())
    );
    app.push_update(&job, json!({ "progress": 1 })).await;
    let response = get(&app, &job, "").await;
    assert_eq!(response.headers["etag"], "\"2\"");
    assert_eq!(response.body["version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn known_version_returns_304() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    app.push_update(&job, json!({ "progress": 1 })).await;
    for (query, tag, status) in [
        ("?since=2", None, 304),
        ("?since=2&wait=0", None, 304),
        ("?since=1", None, 200),
        ("?since=0&wait=60", None, 200),
        ("?wait=0", None, 200),
        ("?wait=60", None, 200),
        ("", Some("\"2\""), 304),
        ("", Some("W/\"2\""), 304),
        ("", Some("\"1\""), 200),
        ("", Some("\"1\", \"2\""), 304),
        ("", Some("\"other\""), 200),
        ("?wait=60", Some("\"1\""), 200),
        ("?since=1", Some("\"2\""), 200),
    ] {
        let mut request = app.request(Method::GET, &format!("/v1/jobs/{job}{query}"), "alice");
        if let Some(tag) = tag {
            request = request.header("if-none-match", tag);
        }
        let response = send(request).await;
        assert_eq!(response.status, status, "{query} {tag:?}");
        assert_eq!(response.headers["etag"], "\"2\"");
        assert_eq!(response.body.is_object(), status == 200, "{query} {tag:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_poll_returns_the_next_version() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let (by_query, by_tag) = (
        app.request(
            Method::GET,
            &format!("/v1/jobs/{job}?wait=60&since=1"),
            "alice",
        ),
        app.request(Method::GET, &format!("/v1/jobs/{job}?wait=60"), "alice")
            .header("if-none-match", "\"1\""),
    );
    let waiting = [by_query, by_tag].map(|request| tokio::spawn(send(request)));
    wait_for_long_polls(&app, 2.0).await;
    app.push_update(&job, json!({ "progress": 7 })).await;
    for waiting in waiting {
        let response = tokio::time::timeout(TEST_TIMEOUT, waiting)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (response.status.as_u16(), &response.body["progress"]),
            (200, &json!(7.0))
        );
        assert_eq!(response.headers["etag"], "\"2\"");
    }
    app.wait_until_no_connections().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_poll_waits_for_a_version_above_since() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let request = app.request(
        Method::GET,
        &format!("/v1/jobs/{job}?wait=60&since=3"),
        "alice",
    );
    let waiting = tokio::spawn(send(request));
    wait_for_long_polls(&app, 1.0).await;
    for progress in 1..=3 {
        app.push_update(&job, json!({ "progress": progress })).await;
    }
    let response = waiting.await.unwrap();
    assert_eq!(
        (response.status.as_u16(), &response.body["version"]),
        (200, &json!(4))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn long_poll_returns_304_after_its_wait() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let response = get(&app, &job, "?wait=0.2&since=1").await;
    assert_eq!(
        (response.status.as_u16(), response.body),
        (304, Value::String(String::new()))
    );
    app.wait_until_no_connections().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_poll_on_a_final_job_returns_at_once() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    app.push_update(&job, json!({ "status": "succeeded" }))
        .await;
    // The wait exceeds the timeout of the client, so a response shows that the hub does not wait.
    assert_eq!(get(&app, &job, "?wait=60&since=2").await.status, 304);
    assert_eq!(
        get(&app, &job, "?wait=60&since=1").await.body["final"],
        true
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_wait_and_since_are_rejected() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    for query in [
        "?wait=-1",
        "?wait=long",
        "?wait=inf",
        "?wait=NaN",
        "?since=-1",
        "?since=x",
    ] {
        let response = get(&app, &job, query).await;
        assert_eq!(
            (response.status.as_u16(), &response.body["code"]),
            (400, &json!("invalid_request")),
            "{query}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disconnected_long_poll_is_released() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let request = app.request(
        Method::GET,
        &format!("/v1/jobs/{job}?wait=60&since=1"),
        "alice",
    );
    let waiting = tokio::spawn(send(request));
    wait_for_long_polls(&app, 1.0).await;
    waiting.abort();
    app.wait_until_no_connections().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_long_polls_follow_a_job_to_its_final_version() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let following = async {
        let mut versions = vec![1];
        loop {
            let response = get(
                &app,
                &job,
                &format!("?wait=10&since={}", versions[versions.len() - 1]),
            )
            .await;
            assert_eq!(response.status, 200, "{}", response.body);
            versions.push(response.body["version"].as_u64().unwrap());
            if response.body["final"] == true {
                return versions;
            }
        }
    };
    let working = async {
        for progress in 1..100 {
            app.push_update(&job, json!({ "progress": progress })).await;
        }
        app.push_update(&job, json!({ "status": "succeeded" }))
            .await;
    };
    let (versions, ()) = tokio::join!(following, working);
    assert!(
        versions.windows(2).all(|pair| pair[0] < pair[1]),
        "{versions:?}"
    );
    assert_eq!(versions.last(), Some(&101));
}
