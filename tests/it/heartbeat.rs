//! Heartbeats and pings in both directions.

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::app::{TEST_TIMEOUT, TestApp};
use crate::raw_websocket::{PING, PONG, RawSocket, TEXT, frame, text};

#[tokio::test(flavor = "multi_thread")]
async fn heartbeat_sends_a_message_and_a_ping() {
    let app = TestApp::builder()
        .set("socket.heartbeat", "1s")
        .spawn()
        .await;
    let mut client = app.connect("alice").await;
    assert_eq!(client.hello["heartbeat_ms"], 1000);
    let (mut heartbeats, mut pings) = (Vec::new(), 0);
    while heartbeats.len() < 3 || pings < 3 {
        let message = tokio::time::timeout(TEST_TIMEOUT, client.socket.next()).await;
        match message
            .expect("a frame within the timeout")
            .unwrap()
            .unwrap()
        {
            Message::Text(text) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(message["type"], "heartbeat");
                heartbeats.push(message["now"].as_str().unwrap().to_owned());
            }
            // The client library sends the pong that keeps the socket open.
            Message::Ping(_) => pings += 1,
            other @ (Message::Binary(_)
            | Message::Pong(_)
            | Message::Close(_)
            | Message::Frame(_)) => panic!("{other:?}"),
        }
    }
    assert!(heartbeats.is_sorted(), "{heartbeats:?}");
    client.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unanswered_pings_close_the_socket() {
    let app = TestApp::builder()
        .set("socket.heartbeat", "1s")
        .spawn()
        .await;
    let mut peer = RawSocket::connect_upgraded(&app, "alice").await;
    let (code, texts) = peer.close_code().await;
    assert_eq!(code, Some(1001));
    let bye: Value = serde_json::from_str(texts.last().unwrap()).unwrap();
    assert_eq!((&bye["type"], &bye["code"]), (&json!("bye"), &json!(1001)));
    // The hub does not wait for a client that does not close its side.
    peer.wait_until_closed().await;
    app.wait_until_no_connections().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unresponsive_peer_is_disconnected() {
    let app = TestApp::builder()
        .set("socket.heartbeat", "1s")
        .spawn()
        .await;
    let job = app.register_worker_job("alice").await;
    let mut peer = RawSocket::connect_upgraded(&app, "alice").await;
    peer.write(&text(
        &json!({ "type": "subscribe", "jobs": [{ "job": job }] }),
    ))
    .await;
    app.wait_for_metric("connections{kind=\"websocket\"}", |open| open == 1.0)
        .await;
    app.wait_until_no_connections().await;
    assert_eq!(
        app.metric("websocket_closes_total{code=\"1001\"}").await,
        1.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pongs_keep_the_socket_open() {
    let app = TestApp::builder()
        .set("socket.heartbeat", "1s")
        .spawn()
        .await;
    let mut peer = RawSocket::connect_upgraded(&app, "alice").await;
    let mut heartbeats = 0;
    while heartbeats < 4 {
        let received = peer.read_frame().await.expect("a frame");
        match received.first {
            PING => assert!(peer.write(&frame(PONG, &received.payload)).await),
            TEXT => {
                heartbeats += usize::from(received.payload.starts_with(b"{\"type\":\"heartbeat\""));
            }
            other => panic!("{other:#x}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_ping_is_answered_with_its_payload() {
    let app = TestApp::spawn().await;
    let mut peer = RawSocket::connect_upgraded(&app, "alice").await;
    for payload in [&b""[..], b"abc", &[0xFF; 125]] {
        assert!(peer.write(&frame(PING, payload)).await);
        loop {
            let received = peer.read_frame().await.expect("a frame");
            if received.first == PONG {
                assert_eq!(received.payload, payload);
                break;
            }
        }
    }
}
