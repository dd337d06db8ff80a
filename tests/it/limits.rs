//! Clients that break rules, or do not read: each ends or bounds its own socket, and nobody else's.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::app::{TestApp, send};
use crate::client::TestClient;
use crate::raw_websocket::{BINARY, CLOSE, PING, RawSocket, TEXT, frame, handshake, text};

/// More than all that a hostile client may cost, and far less than what it sends or declares.
const GENEROUS: u64 = 96 << 20;

/// Bytes of memory that this process, and so the hub in it, has in use.
fn memory() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Somebody decent, who must not notice anything.
struct Bystander {
    client: TestClient,
    job: String,
    version: u64,
}

impl Bystander {
    async fn of(app: &TestApp) -> Self {
        let job = app.register_worker_job("bystander").await;
        let mut client = app.connect("bystander").await;
        client.subscribe(&[(&job, 1)]).await;
        Self {
            client,
            job,
            version: 1,
        }
    }

    async fn is_served(&mut self, app: &TestApp) {
        let stage = format!("after version {}", self.version);
        app.push_update(&self.job, json!({ "stage": stage })).await;
        self.version += 1;
        assert_eq!(self.client.next_job().await["version"], self.version);
    }
}

/// Writes the same bytes until the hub takes no more of them; says how many it took.
async fn flood(raw: &mut RawSocket, bytes: &[u8], most: usize) -> usize {
    let mut taken = 0;
    while taken < most {
        let writing = raw.stream.write(bytes);
        match tokio::time::timeout(Duration::from_secs(2), writing).await {
            Ok(Ok(written)) => taken += written,
            Ok(Err(_)) | Err(_) => break,
        }
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn each_broken_rule_ends_that_socket_with_its_code() {
    let app = TestApp::spawn().await;
    let mut bystander = Bystander::of(&app).await;
    let before = memory();
    let tebibyte = [0x81, 0xFF, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4];
    let pieces: Vec<u8> = std::iter::once(frame(0x01, b""))
        .chain((0..100_000).map(|_| frame(0x00, b"")))
        .flatten()
        .collect();
    let half = vec![b' '; 10_000];
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("a declared tebibyte", tebibyte.to_vec(), 4009),
        ("a flood of empty pieces", pieces, 4009),
        ("a long message", frame(TEXT, &vec![b' '; 16_385]), 4009),
        (
            "a very long message",
            frame(TEXT, &vec![b' '; 5 << 20]),
            4009,
        ),
        (
            "a long message in pieces",
            [frame(0x01, &half), frame(0x00, &half), frame(0x80, b"")].concat(),
            4009,
        ),
        ("binary", frame(BINARY, b"{}"), 1003),
        ("bad UTF-8", frame(TEXT, &[0xC3, 0x28]), 1007),
        ("unmasked", vec![0x81, 0x02, b'{', b'}'], 1002),
        ("a reserved bit", frame(0xC1, b"{}"), 1002),
        ("a reserved opcode", frame(0x83, b"{}"), 1002),
        ("a piece of nothing", frame(0x80, b"{}"), 1002),
        ("a long ping", frame(PING, &[0; 126]), 1002),
        ("a ping in pieces", frame(0x09, b""), 1002),
        (
            "a message within a message",
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
        bystander.is_served(&app).await;
    }
    assert!(memory() < before + GENEROUS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_the_longest_length_is_understood() {
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
async fn the_tenth_bad_message_is_the_last() {
    let app = TestApp::spawn().await;
    let mut bystander = Bystander::of(&app).await;
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
    for (at, message) in bad.iter().enumerate() {
        client.send_json(message.clone()).await;
        let error = client.expect_message("error").await;
        assert_eq!(error["code"], "bad_message", "{at}");
        assert_eq!(
            error["id"],
            if at < 7 { json!(1) } else { json!(null) },
            "{at}"
        );
        // Good ones in between do not make up for it.
        client.send_json(json!({ "type": "ping", "id": at })).await;
        client.expect_message("pong").await;
    }
    client.send_json(json!({ "type": "hello" })).await;
    assert_eq!(client.expect_message("bye").await["code"], 4008);
    assert_eq!(client.expect_close().await, Some(4008));
    bystander.is_served(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_nested_without_end_is_one_bad_message() {
    let app = TestApp::spawn().await;
    let mut raw = RawSocket::connect_upgraded(&app, "alice").await;
    let nested = format!("{{\"type\":\"ping\",\"id\":{}", "[".repeat(16_000));
    assert!(raw.write(&frame(TEXT, nested.as_bytes())).await);
    assert!(raw.write(&text(&json!({ "type": "ping", "id": 2 }))).await);
    while raw.read_frame().await.expect("a frame").payload != b"{\"type\":\"pong\",\"id\":2}" {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ping_flood_that_is_not_read_stops_being_read() {
    let app = TestApp::spawn().await;
    let mut bystander = Bystander::of(&app).await;
    let before = memory();
    let mut raw = RawSocket::connect_with_small_buffer(&app)
        .await
        .upgrade(&app, "alice")
        .await;
    let pings = frame(PING, &[b'!'; 125]).repeat(500);
    let taken = flood(&mut raw, &pings, 256 << 20).await;
    assert!(taken < 64 << 20, "it took {taken} bytes");
    bystander.is_served(&app).await;
    assert!(memory() < before + GENEROUS);
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_subscribes_that_are_not_read_stop_being_read() {
    let app = TestApp::spawn().await;
    let mut bystander = Bystander::of(&app).await;
    let job = app.register_worker_job("alice").await;
    let before = memory();
    let mut raw = RawSocket::connect_with_small_buffer(&app)
        .await
        .upgrade(&app, "alice")
        .await;
    let mut jobs = vec![json!({ "job": job })];
    for n in 0..100 {
        jobs.push(json!({ "job": format!("job_never_was_{n}") }));
    }
    let subscribes = text(&json!({ "type": "subscribe", "id": 1, "jobs": jobs })).repeat(10);
    let taken = flood(&mut raw, &subscribes, 256 << 20).await;
    assert!(taken < 64 << 20, "it took {taken} bytes");
    bystander.is_served(&app).await;
    assert!(memory() < before + GENEROUS);
    drop((raw, bystander));
    app.wait_until_no_connections().await;
}

/// An ended job whose document has some hundred kilobytes.
fn large() -> Value {
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
        let heard = stopped.read_frame().await.expect("a frame").payload;
        subscribed = heard.starts_with(b"{\"type\":\"subscribed\"");
    }

    let before = memory();
    for job in &jobs {
        app.push_update(job, large()).await;
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
    assert!(memory() < before + GENEROUS);

    // What it was sent is whole, as far as it goes, and then it is told.
    let (code, texts) = stopped.close_code().await;
    assert_eq!(code, Some(4101));
    let heard: Vec<Value> = texts
        .iter()
        .map(|text| serde_json::from_str(text).unwrap())
        .collect();
    let bye = heard.last().unwrap();
    assert_eq!(
        (&bye["type"], &bye["code"], &bye["reason"]),
        (&json!("bye"), &json!(4101), &json!("not_reading"))
    );
    for watcher in &mut watchers {
        watcher.assert_no_messages().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_never_reads_again_is_dropped() {
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
        app.push_update(job, large()).await;
    }
    app.wait_for_metric("websocket_closes_total{code=\"4101\"}", |closed| {
        closed == 1.0
    })
    .await;
    app.wait_until_no_connections().await;
}

/// While the hub waits to write documents, what the client says is heard, and answered between them.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_is_heard_between_documents() {
    let app = TestApp::spawn().await;
    let mut known = Vec::new();
    for _ in 0..6 {
        let job = app.register_worker_job("alice").await;
        app.push_update(&job, large()).await;
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
        let heard = slow.read_frame().await.expect("it is kept");
        assert_ne!(heard.first, CLOSE, "after {documents} documents");
        if heard.payload.starts_with(b"{\"type\":\"job\"") {
            documents += 1;
            if documents == 1 {
                // The next document is more than the line holds, so the hub is waiting by now.
                slow.write(&text(&json!({ "type": "ping", "id": 2 }))).await;
            }
        } else if heard.payload.starts_with(b"{\"type\":\"pong\"") {
            answered_after = Some(documents);
        }
    }
    assert!(
        answered_after < Some(6),
        "answered after {answered_after:?} documents"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_of_any_other_path_is_a_clean_404() {
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
async fn a_bad_handshake_is_answered_400() {
    let app = TestApp::spawn().await;
    let good = String::from_utf8(handshake("/v1/ws", &app.token("alice", "jobs:read"))).unwrap();
    for (what, instead) in [
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"),
        ("Sec-WebSocket-Version: 13\r\n", ""),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""),
    ] {
        let mut raw = RawSocket::connect(&app).await;
        raw.write(good.replace(what, instead).as_bytes()).await;
        let head = raw.read_head().await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{instead}: {head}");
        raw.wait_until_closed().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_is_told_to_come_back() {
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
    let stranger = String::from_utf8(handshake("/v1/ws", "")).unwrap();
    let stranger = stranger
        .replace("Authorization: Bearer \r\n", "")
        .into_bytes();
    let auth = text(&json!({ "type": "auth", "token": token }));
    for begun in [
        [handshake("/v1/ws", &token), subscribe.clone()].concat(),
        [stranger, auth, subscribe].concat(),
    ] {
        let mut raw = RawSocket::connect(&app).await;
        assert!(raw.write(&begun).await);
        assert!(raw.read_head().await.starts_with("HTTP/1.1 101 "));
        for kind in ["hello", "subscribed", "job"] {
            let heard: Value =
                serde_json::from_slice(&raw.read_frame().await.unwrap().payload).unwrap();
            assert_eq!(heard["type"], kind);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_is_answered() {
    let app = TestApp::spawn().await;
    for code in [1000_u16, 1001, 4999] {
        let mut raw = RawSocket::connect_upgraded(&app, "alice").await;
        raw.write(&frame(CLOSE, &code.to_be_bytes())).await;
        let (answer, texts) = raw.close_code().await;
        assert_eq!(answer, Some(1000));
        assert!(texts.iter().all(|text| !text.contains("bye")), "{texts:?}");
        raw.stream.shutdown().await.unwrap();
        raw.wait_until_closed().await;
    }
    app.wait_until_no_connections().await;
}
