//! WebSocket client for the messages of the protocol. Every wait has a timeout.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::{Request, Response};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::app::TEST_TIMEOUT;

pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub struct TestClient {
    pub socket: Socket,
    /// The `hello` message, or null if it has not been received.
    pub hello: Value,
}

/// Returns an upgrade request for `/v1/ws` with additional headers.
pub fn upgrade_request(url: &str, headers: &[(&'static str, &str)]) -> Request {
    let mut request = format!("{}/v1/ws", url.replacen("http", "ws", 1))
        .into_client_request()
        .unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}

/// Sends an upgrade request. Returns the socket, or the HTTP response if the hub rejects the upgrade.
pub async fn try_upgrade(request: Request) -> Result<(Socket, Response), Response> {
    match tokio_tungstenite::connect_async(request).await {
        Ok(upgraded) => Ok(upgraded),
        Err(Error::Http(response)) => Err(*response),
        Err(error) => panic!("no response to the upgrade request: {error}"),
    }
}

impl TestClient {
    /// Connects with a bearer token and waits for `hello`.
    pub async fn connect(url: &str, token: &str) -> Self {
        let bearer = format!("Bearer {token}");
        let (socket, _) = try_upgrade(upgrade_request(url, &[("authorization", &bearer)]))
            .await
            .expect("the hub rejected the upgrade");
        let mut client = Self::new(socket);
        client.hello = client.expect_message("hello").await;
        client
    }

    /// Wraps a socket from which nothing has been read.
    pub fn new(socket: Socket) -> Self {
        Self {
            socket,
            hello: Value::Null,
        }
    }

    /// Connects without a token.
    pub async fn connect_unauthenticated(url: &str) -> Self {
        let (socket, _) = try_upgrade(upgrade_request(url, &[]))
            .await
            .expect("the hub rejected the upgrade");
        Self::new(socket)
    }

    pub async fn send_json(&mut self, message: Value) {
        self.send(Message::text(message.to_string())).await;
    }

    pub async fn send(&mut self, message: Message) {
        self.socket.send(message).await.expect("send a message");
    }

    /// Returns the next message, or the close code if the connection ends.
    pub async fn next_message(&mut self) -> Result<Value, Option<u16>> {
        loop {
            let next = tokio::time::timeout(TEST_TIMEOUT, self.socket.next())
                .await
                .expect("timed out waiting for a message");
            match next {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(frame))) => return Err(frame.map(|frame| frame.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    /// Returns the next message of a type. Skips messages of other types.
    pub async fn expect_message(&mut self, kind: &str) -> Value {
        loop {
            match self.next_message().await {
                Ok(message) if message["type"] == kind => return message,
                Ok(_) => {}
                Err(code) => panic!("connection closed with {code:?} before a '{kind}' message"),
            }
        }
    }

    /// Returns the close code. Skips all messages before it.
    pub async fn expect_close(&mut self) -> Option<u16> {
        loop {
            if let Err(code) = self.next_message().await {
                return code;
            }
        }
    }

    /// Completes the close handshake, as a browser does when the user leaves the page.
    pub async fn close(mut self) {
        self.send(Message::Close(None)).await;
        while self.next_message().await.is_ok() {}
    }

    /// Subscribes to jobs, given as (id, version). Returns the result per job.
    pub async fn subscribe(&mut self, jobs: &[(&str, u64)]) -> Value {
        let jobs: Vec<Value> = jobs
            .iter()
            .map(|(job, version)| json!({ "job": job, "version": version }))
            .collect();
        self.send_json(json!({ "type": "subscribe", "id": 1, "jobs": jobs }))
            .await;
        self.expect_message("subscribed").await["jobs"].clone()
    }

    /// Subscribes to all jobs of the client's owner. Returns the result per job.
    pub async fn subscribe_to_feed(&mut self) -> Value {
        self.send_json(json!({ "type": "subscribe", "id": 1, "feed": "mine" }))
            .await;
        self.expect_message("subscribed").await["jobs"].clone()
    }

    /// Renews the token. Returns `hello`.
    pub async fn authenticate(&mut self, token: &str) -> Value {
        self.send_json(json!({ "type": "auth", "token": token }))
            .await;
        self.expect_message("hello").await
    }

    /// Returns the next job document.
    pub async fn next_job(&mut self) -> Value {
        self.expect_message("job").await["job"].clone()
    }

    /// Returns the final document of a job. Asserts that its versions increase.
    pub async fn follow_to_final(&mut self, id: &str) -> Value {
        let mut last = 0;
        loop {
            let job = self.next_job().await;
            if job["id"] != id {
                continue;
            }
            let version = job["version"].as_u64().unwrap();
            assert!(version > last, "version {version} after {last}");
            last = version;
            if job["final"] == true {
                return job;
            }
        }
    }

    /// Asserts that the hub has sent nothing but heartbeats. Frames keep their order, so the hub sends
    /// any earlier message before the reply to this ping.
    pub async fn assert_no_messages(&mut self) {
        self.send_json(json!({ "type": "ping", "id": "no messages" }))
            .await;
        loop {
            match self.next_message().await {
                Ok(message) if message["type"] == "pong" && message["id"] == "no messages" => {
                    return;
                }
                Ok(message) if message["type"] == "heartbeat" => {}
                other => panic!("unexpected message: {other:?}"),
            }
        }
    }
}
