//! Clients that violate the protocol or do not read. They affect no other client.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::app::{TestApp, send};
use crate::client::TestClient;
use crate::raw_websocket::{BINARY, CLOSE, PING, RawSocket, TEXT, frame, handshake, text};

/// Upper limit for the memory that a hostile client may use. The client sends or declares much more.
const MAX_MEMORY_GROWTH: u64 = 96 << 20;

/// Returns the resident memory in bytes of this process, which includes the hub.
fn resident_memory() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// A well-behaved client that must not be affected.
struct Bystander {
    client: TestClient,
    job: String,
    version: u64,
}

impl Bystander {
    async fn connect(app: &TestApp) -> Self {
        let job = app.register_worker_job("bystander").await;
        let mut client = app.connect("bystander").await;
        client.subscribe(&[(&job, 1)]).await;
        Self {
            client,
            job,
            version: 1,
        }
    }

    async fn assert_served(&mut self, app: &TestApp) {
        let stage = format!("after version {}", self.version);
        app.push_update(&self.job, json!({ "stage": stage })).await;
        self.version += 1;
        assert_eq!(self.client.next_job().await["version"], self.version);
    }
}

/// Writes the bytes repeatedly until the hub stops reading. Returns the number of bytes written.
async fn flood(raw: &mut RawSocket, bytes: &[u8], max: usize) -> usize {
    let mut total = 0;
    while total < max {
        let writing = raw.stream.write(bytes);
        match tokio::time::timeout(Duration::from_secs(2), writing).await {
            Ok(Ok(written)) => total += written,
            Ok(Err(_)) | Err(_) => break,
        }
    }
    total
}

#[tokio::test(flavor = "multi_thread")]
async fn protocol_violation_closes_the_socket_with_its_code() {
    let app = TestApp::spawn().await;
    let mut bystander = Bystander::connect(&app).await;
    let before = resident_memory();
    let tebibyte = [0x81, 0xFF, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4];
    let fragments: Vec<u8> = std::iter::once(frame(0x01, b""))
        .chain((0..100_000).map(|_| frame(0x00, b"")))
        .flatten()
        .collect();
    let half = vec![b' '; 10_000];
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("declared length of one tebibyte", tebibyte.to_vec(), 4009),
        ("100,000 empty fragments", fragments, 4009),
        (
            "message above the limit",
            frame(TEXT, &vec![b' '; 16_385]),
            4009,
        ),
        ("message of 5 MiB", frame(TEXT, &vec![b' '; 5 << 20]), 4009),
        (
            "fragmented message above the limit",
            [frame(0x01, &half), frame(0x00, &half), frame(0x80, b"")].concat(),
            4009,
        ),
        ("binary", frame(BINARY, b"{}"), 1003),
        ("invalid UTF-8", frame(TEXT, &[0xC3, 0x28]), 1007),
        ("unmasked", vec![0x81, 0x02, b'{', b'}'], 1002),
        ("reserved bit", frame(0xC1, b"{}"), 1002),
        ("reserved opcode", frame(0x83, b"{}"), 1002),
        (
            "continuation without a first fragment",
            frame(0x80, b"{}"),
            1002,
        ),
        ("ping above 125 bytes", frame(PING, &[0; 126]), 1002),
        ("fragmented ping", frame(0x09, b""), 1002),
        (
            "message between fragments",
            [frame(0x01, b"{"), frame(TEXT, b"{}")].concat(),
            1002,
        ),
    ];
    for (name, bytes, code) in cases {
        let mut raw = RawSocket::connect_upgraded(&app, "alice").await;
        raw.write(&bytes).await;
        let (closed, texts) = raw.close_code().await;
        assert_eq!(closed, Some(code), "{name}");
        let bye: Value = serde_json::from_str(texts.last().unwrap()).unwrap();
        assert_eq!(
            (&bye["type"], &bye["code"]),
            (&json!("bye"), &json!(code)),
            "{name}"
        );
        bystander.assert_served(&app).await;
    }
    assert!(resident_memory() < before + MAX_MEMORY_GROWTH);
}

#[tokio::test(flavor = "multi_thread")]
async fn message_of_maximum_length_is_processed() {
    let app = TestApp::spawn().await;
    let mut raw = RawSocket::connect_upgraded(&app, "alice").await;
    let ping = json!({ "type": "ping", "id": 1 }).to_string();
    let padded = format!("{ping:16384}");
    assert!(raw.write(&frame(TEXT, padded.as_bytes())).await);
    assert!(raw.write(&text(&json!({ "type": "ping", "id": 2 }))).await);
    for id in [1, 2] {
        let pong = format!("{{\"type\":\"pong\",\"id\":{id}}}");
        while raw.read_frame().await.expect("a frame").payload != pong.as_bytes() {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tenth_bad_message_closes_the_socket() {
    let app = TestApp::spawn().await;
    let mut bystander = Bystander::connect(&app).await;
    let mut client = app.connect("alice").await;
    let bad = [
        json!({ "type": "no such thing", "id": 1 }),
        json!({ "id": 1 }),
        json!({ "type": "subscribe", "id": 1, "jobs": "job_a" }),
        json!({ "type": "subscribe", "id": 1, "jobs": [{ "job": "job_a", "version": -1 }] }),
        json!({ "type": "subscribe", "id": 1, "feed": "yours" }),
        json!({ "type": "cancel", "id": 1 }),
        json!({ "type": "auth", "id": 1 }),
        json!({ "type": "ping", "id": 1 }).to_string().into(),
        json!([]),
    ];
    for (index, message) in bad.iter().enumerate() {
        client.send_json(message.clone()).await;
        let error = client.expect_message("error").await;
        assert_eq!(error["code"], "bad_message", "{index}");
        assert_eq!(
            error["id"],
            if index < 7 { json!(1) } else { json!(null) },
            "{index}"
        );
        // Valid messages in between do not reset the count.
        client
            .send_json(json!({ "type": "ping", "id": index }))
            .await;
        client.expect_message("pong").await;
    }
    client.send_json(json!({ "type": "hello" })).await;
    assert_eq!(client.expect_message("bye").await["code"], 4008);
    assert_eq!(client.expect_close().await, Some(4008));
    bystander.assert_served(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deeply_nested_message_is_one_bad_message() {
    let app = TestApp::spawn().await;
    let mut raw = RawSocket::connect_upgraded(&app, "alice").await;
    let nested = format!("{{\"type\":\"ping\",\"id\":{}", "[".repeat(16_000));
    assert!(raw.write(&frame(TEXT, nested.as_bytes())).await);
    assert!(raw.write(&text(&json!({ "type": "ping", "id": 2 }))).await);
    while raw.read_frame().await.expect("a frame").payload != b"{\"type\":\"pong\",\"id\":2}" {}
}

#[tokio::test(flavor = "multi_thread")]
async fn hub_stops_reading_a_ping_flood_whose_pongs_are_not_read() {
    let app = TestApp::spawn().await;
    let mut bystander = Bystander::connect(&app).await;
    let before = resident_memory();
    let mut raw = RawSocket::connect_with_small_buffer(&app)
        .await
        .upgrade(&app, "alice")
        .await;
    let pings = frame(PING, &[b'!'; 125]).repeat(500);
    let written = flood(&mut raw, &pings, 256 << 20).await;
    assert!(written < 64 << 20, "the hub read {written} bytes");
    bystander.assert_served(&app).await;
    assert!(resident_memory() < before + MAX_MEMORY_GROWTH);
}

#[tokio::test(flavor = "multi_thread")]
async fn hub_stops_reading_subscribes_whose_replies_are_not_read() {
    let app = TestApp::spawn().await;
    let mut bystander = Bystander::connect(&app).await;
    let job = app.register_worker_job("alice").await;
    let before = resident_memory();
    let mut raw = RawSocket::connect_with_small_buffer(&app)
        .await
        .upgrade(&app, "alice")
        .await;
    let mut jobs = vec![json!({ "job": job })];
    for n in 0..100 {
        jobs.push(json!({ "job": format!("job_never_was_{n}") }));
    }
    let subscribes = text(&json!({ "type": "subscribe", "id": 1, "jobs": jobs })).repeat(10);
    let written = flood(&mut raw, &subscribes, 256 << 20).await;
    assert!(written < 64 << 20, "the hub read {written} bytes");
    bystander.assert_served(&app).await;
    assert!(resident_memory() < before + MAX_MEMORY_GROWTH);
    drop((raw, bystander));
    app.wait_until_no_connections().await;
}

/// Returns a final update that makes a document of several hundred kilobytes.
fn large_final_update() -> Value {
    let output = |n| json!({ "url": format!("https://cdn.example.com/{n}/{}", "x".repeat(4000)) });
    let outputs: Vec<Value> = (0..100).map(output).collect();
    json!({ "status": "succeeded", "outputs": outputs })
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_reader_is_closed_without_affecting_others() {
    let app = TestApp::builder()
        .set("socket.write_timeout", "1s")
        .spawn()
        .await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(app.register_worker_job("alice").await);
    }
    let busy = app.register_worker_job("alice").await;
    let ids: Vec<(&str, u64)> = jobs
        .iter()
        .chain([&busy])
        .map(|job| (job.as_str(), 1))
        .collect();
    let mut watchers = Vec::new();
    for _ in 0..6 {
        let mut watcher = app.connect("alice").await;
        watcher.subscribe(&ids).await;
        watchers.push(watcher);
    }
    let mut stopped = RawSocket::connect_with_small_buffer(&app)
        .await
        .upgrade(&app, "alice")
        .await;
    let known: Vec<Value> = ids
        .iter()
        .map(|(job, version)| json!({ "job": job, "version": version }))
        .collect();
    stopped
        .write(&text(
            &json!({ "type": "subscribe", "id": 1, "jobs": known }),
        ))
        .await;
    let mut subscribed = false;
    while !subscribed {
        let payload = stopped.read_frame().await.expect("a frame").payload;
        subscribed = payload.starts_with(b"{\"type\":\"subscribed\"");
    }

    let before = resident_memory();
    for job in &jobs {
        app.push_update(job, large_final_update()).await;
        for watcher in &mut watchers {
            let ended = watcher.follow_to_final(job).await;
            assert_eq!(ended["outputs"].as_array().unwrap().len(), 100);
        }
    }
    for progress in 1..=50 {
        app.push_update(&busy, json!({ "progress": progress }))
            .await;
        for watcher in &mut watchers {
            assert_eq!(watcher.next_job().await["progress"], f64::from(progress));
        }
    }
    app.wait_for_metric("websocket_closes_total{code=\"4101\"}", |closed| {
        closed == 1.0
    })
    .await;
    assert!(resident_memory() < before + MAX_MEMORY_GROWTH);

    // Every frame is complete, and the close reason follows.
    let (code, texts) = stopped.close_code().await;
    assert_eq!(code, Some(4101));
    let messages: Vec<Value> = texts
        .iter()
        .map(|text| serde_json::from_str(text).unwrap())
        .collect();
    let bye = messages.last().unwrap();
    assert_eq!(
        (&bye["type"], &bye["code"], &bye["reason"]),
        (&json!("bye"), &json!(4101), &json!("not_reading"))
    );
    for watcher in &mut watchers {
        watcher.assert_no_messages().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_that_never_reads_again_is_dropped() {
    let app = TestApp::builder()
        .set("socket.write_timeout", "500ms")
        .spawn()
        .await;
    let (first, second) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
    );
    let mut stopped = RawSocket::connect_with_small_buffer(&app)
        .await
        .upgrade(&app, "alice")
        .await;
    stopped
        .write(&text(&json!({ "type": "subscribe", "feed": "mine" })))
        .await;
    app.wait_for_metric("subscribed_jobs", |jobs| jobs == 2.0)
        .await;
    for job in [&first, &second] {
        app.push_update(job, large_final_update()).await;
    }
    app.wait_for_metric("websocket_closes_total{code=\"4101\"}", |closed| {
        closed == 1.0
    })
    .await;
    app.wait_until_no_connections().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ping_of_a_slow_reader_is_answered_between_documents() {
    let app = TestApp::spawn().await;
    let mut known = Vec::new();
    for _ in 0..6 {
        let job = app.register_worker_job("alice").await;
        app.push_update(&job, large_final_update()).await;
        known.push(json!({ "job": job }));
    }
    let mut slow = RawSocket::connect_with_small_buffer(&app)
        .await
        .upgrade(&app, "alice")
        .await;
    slow.write(&text(
        &json!({ "type": "subscribe", "id": 1, "jobs": known }),
    ))
    .await;
    let (mut documents, mut answered_after) = (0, None);
    while documents < 6 || answered_after.is_none() {
        let frame = slow.read_frame().await.expect("a frame");
        assert_ne!(frame.first, CLOSE, "after {documents} documents");
        if frame.payload.starts_with(b"{\"type\":\"job\"") {
            documents += 1;
            if documents == 1 {
                // The next document does not fit into the socket buffers, so the hub waits for the client.
                slow.write(&text(&json!({ "type": "ping", "id": 2 }))).await;
            }
        } else if frame.payload.starts_with(b"{\"type\":\"pong\"") {
            answered_after = Some(documents);
        }
    }
    assert!(
        answered_after < Some(6),
        "answered after {answered_after:?} documents"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrade_of_another_path_returns_404() {
    let app = TestApp::spawn().await;
    let token = app.token("alice", "jobs:read");
    for path in [
        "/",
        "/v1/ws2",
        "/v1/ws/x",
        "/v1/events",
        "/v1/jobs",
        "/v1/health/live",
        "//v1/ws",
    ] {
        let mut raw = RawSocket::connect(&app).await;
        raw.write(&handshake(path, &token)).await;
        let head = raw.read_head().await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{path}: {head}");
        assert!(head.contains("application/problem+json"), "{path}: {head}");
        raw.wait_until_closed().await;
    }
    let plain = send(app.request(Method::GET, "/v1/ws", "alice")).await;
    assert_eq!(
        (plain.status.as_u16(), &plain.body["code"]),
        (426, &json!("upgrade_required"))
    );
    app.connect("alice").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_handshake_returns_400() {
    let app = TestApp::spawn().await;
    let valid = String::from_utf8(handshake("/v1/ws", &app.token("alice", "jobs:read"))).unwrap();
    for (header, replacement) in [
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"),
        ("Sec-WebSocket-Version: 13\r\n", ""),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""),
    ] {
        let mut raw = RawSocket::connect(&app).await;
        raw.write(valid.replace(header, replacement).as_bytes())
            .await;
        let head = raw.read_head().await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{replacement}: {head}");
        raw.wait_until_closed().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_above_the_limit_receives_a_retry_time() {
    let app = TestApp::builder()
        .set("server.max_connections", 2)
        .spawn()
        .await;
    let mut first = app.connect("alice").await;
    let second = app.connect("alice").await;
    let mut third = TestClient::connect_unauthenticated(&app.url).await;
    let bye = third.expect_message("bye").await;
    assert_eq!(
        (&bye["code"], &bye["reason"]),
        (&json!(4100), &json!("over_capacity"))
    );
    assert!(
        bye["retry_after_ms"].as_u64().is_some_and(|wait| wait > 0),
        "{bye}"
    );
    assert_eq!(third.expect_close().await, Some(4100));
    first.assert_no_messages().await;

    second.close().await;
    app.wait_for_metric("connections{kind=\"websocket\"}", |open| open == 1.0)
        .await;
    app.connect("alice").await.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_sent_with_the_handshake_are_processed() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let token = app.token("alice", "jobs:read");
    let subscribe = text(&json!({ "type": "subscribe", "id": 1, "jobs": [{ "job": job }] }));
    let unauthenticated = String::from_utf8(handshake("/v1/ws", "")).unwrap();
    let unauthenticated = unauthenticated
        .replace("Authorization: Bearer \r\n", "")
        .into_bytes();
    let auth = text(&json!({ "type": "auth", "token": token }));
    for bytes in [
        [handshake("/v1/ws", &token), subscribe.clone()].concat(),
        [unauthenticated, auth, subscribe].concat(),
    ] {
        let mut raw = RawSocket::connect(&app).await;
        assert!(raw.write(&bytes).await);
        assert!(raw.read_head().await.starts_with("HTTP/1.1 101 "));
        for kind in ["hello", "subscribed", "job"] {
            let message: Value =
                serde_json::from_slice(&raw.read_frame().await.unwrap().payload).unwrap();
            assert_eq!(message["type"], kind);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_close_is_answered() {
    let app = TestApp::spawn().await;
    for code in [1000_u16, 1001, 4999] {
        let mut raw = RawSocket::connect_upgraded(&app, "alice").await;
        raw.write(&frame(CLOSE, &code.to_be_bytes())).await;
        let (reply, texts) = raw.close_code().await;
        assert_eq!(reply, Some(1000));
        assert!(texts.iter().all(|text| !text.contains("bye")), "{texts:?}");
        raw.stream.shutdown().await.unwrap();
        raw.wait_until_closed().await;
    }
    app.wait_until_no_connections().await;
}
