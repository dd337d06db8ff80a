//! Requests that arrive slowly or incompletely, and webhooks that are rejected before their body.

use std::time::Duration;

use progress_hub_simulator::Scenario;
use reqwest::Method;
use serde_json::json;

use crate::app::{TestApp, send};
use crate::raw_websocket::RawSocket;
use crate::webhook_signatures;

/// Time between two bytes of a slow client.
const PAUSE: Duration = Duration::from_millis(20);

async fn hub_with_short_request_timeout() -> TestApp {
    TestApp::builder()
        .set("server.request_timeout", "2s")
        .spawn()
        .await
}

/// Returns a request from a loopback address, on a new connection.
fn post_from(address: [u8; 4], app: &TestApp, path: &str) -> reqwest::RequestBuilder {
    let client = reqwest::Client::builder()
        .no_proxy()
        .local_address(Some(address.into()))
        .build();
    client.unwrap().post(format!("{}{path}", app.url))
}

/// Returns the head of a request as `alice`. `length` is the header that frames the body.
fn post(app: &TestApp, length: &str) -> String {
    let token = app.token("alice", "jobs:read jobs:write jobs:publish");
    format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\n{length}\r\n\r\n"
    )
}

/// Sends `bytes` repeatedly until the hub responds or closes the connection.
async fn trickle(raw: &mut RawSocket, bytes: &[u8]) {
    loop {
        let response = tokio::time::timeout(PAUSE, raw.stream.readable()).await;
        if response.is_ok() || !raw.write(bytes).await {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn late_head_is_answered_with_408() {
    let app = hub_with_short_request_timeout().await;
    let first = "GET /v1/health/live HTTP/1.1\r\nHost: hub\r\n\r\n";
    let half = "GET /v1/health/live HTTP/1.1\r\nX-Half: ";
    // The head of a first and of a later request.
    for (sent, responses) in [("", 0), (first, 1)] {
        for is_slow in [false, true] {
            let mut raw = RawSocket::connect(&app).await;
            raw.write(sent.as_bytes()).await;
            for _ in 0..responses {
                let head = raw.read_head().await;
                assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
                // Reads the body `{"status":"ok"}`.
                raw.discard(15).await;
            }
            raw.write(half.as_bytes()).await;
            if is_slow {
                trickle(&mut raw, b"x").await;
            }
            let head = raw.read_head().await;
            assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
            assert!(head.contains("application/problem+json"), "{head}");
            raw.wait_until_closed().await;
        }
    }
    app.wait_for_metric("limits_reached_total{limit=\"request_time\"}", |count| {
        count == 4.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connection_outlives_the_timeout_of_a_head() {
    let app = TestApp::builder()
        .set("server.request_timeout", "2s")
        .spawn()
        .await;
    let job = app.register_worker_job("alice").await;
    let token = app.token("alice", "jobs:read");
    let mut raw = RawSocket::connect(&app).await;
    // The long poll lasts longer than `server.request_timeout`.
    let request = format!(
        "GET /v1/jobs/{job}?wait=3&since=1 HTTP/1.1\r\nHost: hub\r\n\
         Authorization: Bearer {token}\r\n\r\n"
    );
    for _ in 0..2 {
        raw.write(request.as_bytes()).await;
        let head = raw.read_head().await;
        assert!(head.starts_with("HTTP/1.1 304 "), "{head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn late_body_is_answered_with_408() {
    let app = hub_with_short_request_timeout().await;
    let fixed = post(&app, "Content-Length: 10000");
    let chunked = post(&app, "Transfer-Encoding: chunked");
    for (head, begin, more) in [
        (&fixed, "{\"owner\"", "x"),
        (&chunked, "1\r\n{\r\n", "1\r\nx\r\n"),
    ] {
        for is_slow in [false, true] {
            let mut raw = RawSocket::connect(&app).await;
            raw.write(format!("{head}{begin}").as_bytes()).await;
            if is_slow {
                trickle(&mut raw, more.as_bytes()).await;
            }
            let response = raw.read_head().await;
            assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
            raw.wait_until_closed().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_is_rejected_before_its_body() {
    let app = TestApp::spawn().await;
    let announced = "Content-Length: 1000000";
    for (path, headers, status) in [
        ("/v1/webhooks/unknown", "", 404),
        ("/v1/webhooks/generic/job_1.forged", "", 404),
        ("/v1/webhooks/generic", "", 401),
        ("/v1/webhooks/generic", "x-ai-signature: zz\r\n", 401),
    ] {
        let mut raw = RawSocket::connect(&app).await;
        let head = format!("POST {path} HTTP/1.1\r\nHost: hub\r\n{headers}{announced}\r\n\r\n");
        raw.write(head.as_bytes()).await;
        let response = raw.read_head().await;
        let expected = format!("HTTP/1.1 {status} ");
        assert!(response.starts_with(&expected), "{path}: {response}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_definition_limits_the_size_of_webhooks() {
    let app = TestApp::builder()
        .with_simulator(Scenario::Normal)
        .spawn()
        .await;
    let mut raw = RawSocket::connect(&app).await;
    let head = "POST /v1/webhooks/simulated HTTP/1.1\r\nHost: hub\r\nwebhook-id: m1\r\n\
                webhook-timestamp: 1\r\nwebhook-signature: v1,AAAA\r\n\
                Content-Length: 262145\r\n\r\n";
    raw.write(head.as_bytes()).await;
    let response = raw.read_head().await;
    assert!(response.starts_with("HTTP/1.1 413 "), "{response}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unverified_webhooks_share_the_memory_of_the_node() {
    let app = TestApp::builder()
        .set("limits.unverified_body_bytes", 4096)
        .spawn()
        .await;
    let signature = "a".repeat(64);
    let mut waiting = RawSocket::connect(&app).await;
    let head = format!(
        "POST /v1/webhooks/generic HTTP/1.1\r\nHost: hub\r\nx-ai-signature: {signature}\r\n\
         Content-Length: 8000\r\n\r\n{}",
        "x".repeat(4096)
    );
    waiting.write(head.as_bytes()).await;

    let body = json!({ "task_id": "t1", "status": "running" }).to_string();
    let signature = webhook_signatures::hex("hub_test_secret", body.as_bytes());
    let webhook = || {
        let request = app.request_without_token(Method::POST, "/v1/webhooks/generic");
        send(
            request
                .header("x-ai-signature", &signature)
                .body(body.clone()),
        )
    };
    crate::wait::wait_until("the memory is used", async || {
        let response = webhook().await;
        if response.status == 200 {
            return false;
        }
        assert_eq!(response.status, 503, "{}", response.body);
        assert_eq!(response.body["code"], "over_capacity");
        assert!(response.headers.contains_key("retry-after"));
        true
    })
    .await;
    drop(waiting);
    crate::wait::wait_until("the memory is free", async || webhook().await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_cannot_use_all_memory_for_unverified_webhooks() {
    let app = TestApp::builder()
        .set("server.trusted_proxies", "192.0.2.1")
        .set("server.max_body_bytes", 1024)
        .set("limits.unverified_body_bytes", 8192)
        .spawn()
        .await;
    let signature = "a".repeat(64);
    let mut waiting = RawSocket::connect(&app).await;
    let head = format!(
        "POST /v1/webhooks/generic HTTP/1.1\r\nHost: hub\r\nx-ai-signature: {signature}\r\n\
         Content-Length: 1024\r\n\r\n{}",
        "x".repeat(1023)
    );
    waiting.write(head.as_bytes()).await;

    let body = json!({ "task_id": "t1", "status": "running" }).to_string();
    let signature = webhook_signatures::hex("hub_test_secret", body.as_bytes());
    let webhook_from = async |address: [u8; 4]| {
        let request = post_from(address, &app, "/v1/webhooks/generic")
            .header("x-ai-signature", &signature)
            .body(body.clone());
        send(request).await.status
    };
    crate::wait::wait_until("the share of the address is used", async || {
        webhook_from([127, 0, 0, 1]).await == 503
    })
    .await;
    assert_eq!(webhook_from([127, 0, 0, 2]).await, 200);
    drop(waiting);
    crate::wait::wait_until("the share is free", async || {
        webhook_from([127, 0, 0, 1]).await == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_cannot_use_all_memory_for_bodies() {
    const MAX_BODY_BYTES: usize = 1 << 20;
    const SHARE: usize = 8 * MAX_BODY_BYTES;
    let app = TestApp::builder()
        .set("server.trusted_proxies", "192.0.2.1")
        .set("server.max_body_bytes", MAX_BODY_BYTES)
        .spawn()
        .await;
    let unfinished = format!(
        "{}{}",
        post(&app, &format!("Content-Length: {MAX_BODY_BYTES}")),
        " ".repeat(MAX_BODY_BYTES - 1)
    );
    let mut waiting = Vec::new();
    for _ in 0..SHARE / MAX_BODY_BYTES {
        let mut raw = RawSocket::connect(&app).await;
        raw.write(unfinished.as_bytes()).await;
        waiting.push(raw);
    }
    let submit_from = async |address: [u8; 4]| {
        let token = app.token("alice", "jobs:write");
        let request = post_from(address, &app, "/v1/videos").bearer_auth(token);
        send(request.json(&json!({ "model": "m" }))).await
    };
    crate::wait::wait_until("the share of the address is used", async || {
        submit_from([127, 0, 0, 1]).await.body["code"] == "over_capacity"
    })
    .await;
    let other = submit_from([127, 0, 0, 2]).await;
    assert_ne!(other.body["code"], "over_capacity");
}
