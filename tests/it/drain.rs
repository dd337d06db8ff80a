//! Going away, as by SIGTERM.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::app::{TEST_TIMEOUT, TestApp, send};
use crate::client::{try_upgrade, upgrade_request};
use crate::raw_websocket::{RawSocket, handshake, text};
use crate::sse_client::SseClient;

/// A hub that stays long enough, after the word to stop, to be asked about it.
async fn spawn() -> TestApp {
    TestApp::builder().set("server.drain", "5s").spawn().await
}

/// Stops within its drain time, and the moment that it takes to put everything away.
async fn stops_in_time(app: TestApp, drain: Duration) {
    let begun = Instant::now();
    app.shut_down().await;
    let took = begun.elapsed();
    assert!(took < drain + Duration::from_secs(1), "it took {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_hub_stops() {
    stops_in_time(spawn().await, Duration::from_secs(5)).await;
}

/// An answer over a connection of its own: one that was kept may be closed under the request.
async fn fresh(app: &TestApp, path: &str) -> reqwest::Response {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client
        .get(format!("{}{path}", app.url))
        .timeout(TEST_TIMEOUT);
    request.send().await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_fails_readiness_but_not_liveness() {
    let app = TestApp::builder().set("server.drain", "60s").spawn().await;
    assert_eq!(fresh(&app, "/v1/health/ready").await.status(), 200);
    app.begin_shutdown();
    let ready = loop {
        let ready = fresh(&app, "/v1/health/ready").await;
        if ready.status() != 200 {
            break ready;
        }
    };
    assert_eq!(ready.status(), 503);
    let told: Value = ready.json().await.unwrap();
    assert_eq!(told["status"], "draining");
    assert_eq!(fresh(&app, "/v1/health/live").await.status(), 200);
    let health = fresh(&app, "/v1/health").await;
    assert_eq!(health.status(), 200);
    let told: Value = health.json().await.unwrap();
    assert_eq!(told["status"], "draining");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_socket_is_told_when_to_come_back() {
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
    // Of 20 draws out of a thousand and more, some are the same only rarely, and half of them never.
    assert!(waits.len() > 10, "{waits:?}");
    assert!(
        waits.iter().all(|wait| (1..10_000).contains(wait)),
        "{waits:?}"
    );
    stops_in_time(app, Duration::from_secs(5)).await;
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
async fn streams_end_and_held_requests_are_answered() {
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
    // Without `end`: the jobs go on, and so does who comes back elsewhere.
    assert_eq!(of_job.next_event().await, None);
    assert_eq!(of_feed.next_event().await, None);
    assert_eq!(waiting.await.unwrap().status, 304);
    stops_in_time(app, Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_rejects_new_sockets() {
    let app = spawn().await;
    let address = app.address().to_owned();
    let token = app.token("alice", "jobs:read");
    let mut last = app.connect("alice").await;
    app.begin_shutdown();
    assert_eq!(last.expect_close().await, Some(1012));
    // While it still listens, it says no; then it does not even listen.
    let mut refusals = 0;
    while let Ok(mut late) = RawSocket::try_connect(&app).await {
        late.write(&handshake("/v1/ws", &token)).await;
        let Some(head) = late.try_read_head().await else {
            continue;
        };
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(head.to_lowercase().contains("\r\nretry-after: "), "{head}");
        refusals += 1;
    }
    assert!(refusals > 0, "it never said no");
    stops_in_time(app, Duration::from_secs(5)).await;
    assert!(
        TcpStream::connect(address).await.is_err(),
        "it still listens"
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
    stops_in_time(app, Duration::from_secs(5)).await;
    for client in &mut clients {
        client.wait_until_closed().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_does_not_hold_it_up() {
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
    stops_in_time(app, Duration::from_secs(5)).await;
    drop((stopped, unread));
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_do_not_hold_it_up() {
    let app = spawn().await;
    // One that never said anything, one that was answered and is kept, and a stranger's socket.
    let silent = RawSocket::connect(&app).await;
    send(app.request_without_token(Method::GET, "/v1/health")).await;
    let stranger = try_upgrade(upgrade_request(&app.url, &[])).await.unwrap();
    stops_in_time(app, Duration::from_secs(5)).await;
    drop((silent, stranger));
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_drain_time_still_sends_bye() {
    let app = TestApp::builder().set("server.drain", "0s").spawn().await;
    let mut client = app.connect("alice").await;
    let stopping = tokio::spawn(app.shut_down());
    // There may be no time for it, but the connection ends.
    assert!(matches!(client.expect_close().await, Some(1012) | None));
    stopping.await.unwrap();
}
