//! Graceful shutdown, as after SIGTERM.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::app::{TEST_TIMEOUT, TestApp, send};
use crate::client::{try_upgrade, upgrade_request};
use crate::raw_websocket::{RawSocket, handshake, text};
use crate::sse_client::SseClient;

/// Starts a hub that still accepts requests for a while after the shutdown begins.
async fn spawn() -> TestApp {
    TestApp::builder().set("server.drain", "5s").spawn().await
}

/// Asserts that the hub shuts down within its drain time and one second.
async fn assert_stops_within(drain: Duration, app: TestApp) {
    let started_at = Instant::now();
    app.shut_down().await;
    let took = started_at.elapsed();
    assert!(
        took < drain + Duration::from_secs(1),
        "shutdown took {took:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_hub_shuts_down() {
    assert_stops_within(Duration::from_secs(5), spawn().await).await;
}

/// Sends a request on a new connection, because the hub may close an idle one during the request.
async fn get_on_new_connection(app: &TestApp, path: &str) -> reqwest::Response {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client
        .get(format!("{}{path}", app.url))
        .timeout(TEST_TIMEOUT);
    request.send().await.expect("a response")
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_fails_readiness_but_not_liveness() {
    let app = TestApp::builder().set("server.drain", "60s").spawn().await;
    assert_eq!(
        get_on_new_connection(&app, "/v1/health/ready")
            .await
            .status(),
        200
    );
    app.begin_shutdown();
    let ready = loop {
        let ready = get_on_new_connection(&app, "/v1/health/ready").await;
        if ready.status() != 200 {
            break ready;
        }
    };
    assert_eq!(ready.status(), 503);
    let body: Value = ready.json().await.unwrap();
    assert_eq!(body["status"], "draining");
    assert_eq!(
        get_on_new_connection(&app, "/v1/health/live")
            .await
            .status(),
        200
    );
    let health = get_on_new_connection(&app, "/v1/health").await;
    assert_eq!(health.status(), 200);
    let body: Value = health.json().await.unwrap();
    assert_eq!(body["status"], "draining");
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_sends_each_socket_its_own_retry_time() {
    let app = spawn().await;
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(app.connect("alice").await);
    }
    app.begin_shutdown();
    let mut waits = BTreeSet::new();
    for socket in &mut sockets {
        let bye = socket.expect_message("bye").await;
        assert_eq!(
            (&bye["code"], &bye["reason"]),
            (&json!(1012), &json!("restart"))
        );
        waits.insert(bye["retry_after_ms"].as_u64().unwrap());
        assert_eq!(socket.expect_close().await, Some(1012));
    }
    // 20 random values out of more than 1,000 may contain a few duplicates.
    assert!(waits.len() > 10, "{waits:?}");
    assert!(
        waits.iter().all(|wait| (1..10_000).contains(wait)),
        "{waits:?}"
    );
    assert_stops_within(Duration::from_secs(5), app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_frames_are_flushed_before_close() {
    let app = spawn().await;
    let job = app.register_worker_job("alice").await;
    let mut client = app.connect("alice").await;
    client.subscribe(&[(&job, 1)]).await;
    app.push_update(&job, json!({ "status": "succeeded" }))
        .await;
    app.begin_shutdown();
    assert_eq!(client.next_job().await["final"], true);
    assert_eq!(client.expect_close().await, Some(1012));
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_ends_streams_and_long_polls() {
    let app = spawn().await;
    let job = app.register_worker_job("alice").await;
    let mut of_job = SseClient::open(&app, &format!("job={job}"), "alice").await;
    let mut of_feed = SseClient::open(&app, "feed=mine", "alice").await;
    for stream in [&mut of_job, &mut of_feed] {
        assert_eq!(stream.next_job().await["id"], job);
    }
    let request = app.request(
        Method::GET,
        &format!("/v1/jobs/{job}?wait=60&since=1"),
        "alice",
    );
    let waiting = tokio::spawn(send(request));
    app.wait_for_metric("connections{kind=\"poll\"}", |open| open == 1.0)
        .await;
    app.begin_shutdown();
    // There is no `end` event, because the jobs are not final.
    assert_eq!(of_job.next_event().await, None);
    assert_eq!(of_feed.next_event().await, None);
    assert_eq!(waiting.await.unwrap().status, 304);
    assert_stops_within(Duration::from_secs(5), app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_rejects_new_sockets() {
    let app = spawn().await;
    let address = app.address().to_owned();
    let token = app.token("alice", "jobs:read");
    let mut last = app.connect("alice").await;
    app.begin_shutdown();
    assert_eq!(last.expect_close().await, Some(1012));
    // New sockets are rejected while the hub listens. Later it does not listen.
    let mut rejections = 0;
    while let Ok(mut late) = RawSocket::try_connect(&app).await {
        late.write(&handshake("/v1/ws", &token)).await;
        let Some(head) = late.try_read_head().await else {
            continue;
        };
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(head.to_lowercase().contains("\r\nretry-after: "), "{head}");
        rejections += 1;
    }
    assert!(rejections > 0, "no socket was rejected");
    assert_stops_within(Duration::from_secs(5), app).await;
    assert!(
        TcpStream::connect(address).await.is_err(),
        "the hub still listens"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_never_closes_does_not_delay_shutdown() {
    let app = spawn().await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(RawSocket::connect_upgraded(&app, "alice").await);
    }
    app.begin_shutdown();
    for client in &mut clients {
        let (code, texts) = client.close_code().await;
        assert_eq!(code, Some(1012));
        let bye: Value = serde_json::from_str(texts.last().unwrap()).unwrap();
        assert_eq!(bye["type"], "bye");
    }
    assert_stops_within(Duration::from_secs(5), app).await;
    for client in &mut clients {
        client.wait_until_closed().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_never_reads_does_not_delay_shutdown() {
    let app = spawn().await;
    let job = app.register_worker_job("alice").await;
    let mut stopped = RawSocket::connect_with_small_buffer(&app)
        .await
        .upgrade(&app, "alice")
        .await;
    let known = json!([{ "job": job, "version": 1 }]);
    stopped
        .write(&text(&json!({ "type": "subscribe", "jobs": known })))
        .await;
    let request = app.request(Method::GET, &format!("/v1/events?job={job}"), "alice");
    let unread = request.send().await.unwrap();
    app.wait_for_metric("subscribed_jobs", |jobs| jobs == 1.0)
        .await;
    let output = json!({ "url": format!("https://cdn.example.com/{}", "x".repeat(4000)) });
    let update = json!({ "status": "succeeded", "outputs": vec![output; 100] });
    assert_eq!(app.push_update(&job, update).await.status, 200);
    assert_stops_within(Duration::from_secs(5), app).await;
    drop((stopped, unread));
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_do_not_delay_shutdown() {
    let app = spawn().await;
    // A connection without a request, one with a finished request, and an unauthenticated socket.
    let silent = RawSocket::connect(&app).await;
    send(app.request_without_token(Method::GET, "/v1/health")).await;
    let unauthenticated = try_upgrade(upgrade_request(&app.url, &[])).await.unwrap();
    assert_stops_within(Duration::from_secs(5), app).await;
    drop((silent, unauthenticated));
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_drain_time_still_sends_bye() {
    let app = TestApp::builder().set("server.drain", "0s").spawn().await;
    let mut client = app.connect("alice").await;
    let stopping = tokio::spawn(app.shut_down());
    // There may be no time for the close frame, but the connection ends.
    assert!(matches!(client.expect_close().await, Some(1012) | None));
    stopping.await.unwrap();
}
