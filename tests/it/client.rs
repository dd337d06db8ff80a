//! A WebSocket client that says and hears messages; every wait has an end.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::{Request, Response};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::app::TEST_TIMEOUT;

pub struct TestClient {
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub hello: Value,
}

/// A request for `/v1/ws` with these headers.
pub fn upgrade_request(url: &str, headers: &[(&'static str, &str)]) -> Request {
    let mut request = format!("{}/v1/ws", url.replacen("http", "ws", 1))
        .into_client_request()
        .unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}

/// The upgraded socket, or the HTTP answer that refused it.
pub async fn try_upgrade(
    request: Request,
) -> Result<(WebSocketStream<MaybeTlsStream<TcpStream>>, Response), Response> {
    match tokio_tungstenite::connect_async(request).await {
        Ok(opened) => Ok(opened),
        Err(Error::Http(response)) => Err(*response),
        Err(error) => panic!("no answer: {error}"),
    }
}

impl TestClient {
    /// Connects with a bearer token and hears `hello`.
    pub async fn connect(url: &str, token: &str) -> Self {
        let bearer = format!("Bearer {token}");
        let (socket, _) = try_upgrade(upgrade_request(url, &[("authorization", &bearer)]))
            .await
            .expect("an upgrade");
        let mut client = Self::new(socket);
        client.hello = client.expect_message("hello").await;
        client
    }

    /// A client that has heard nothing yet.
    pub fn new(socket: WebSocketStream<MaybeTlsStream<TcpStream>>) -> Self {
        Self {
            socket,
            hello: Value::Null,
        }
    }

    /// Connects without a word of who it is.
    pub async fn connect_unauthenticated(url: &str) -> Self {
        let (socket, _) = try_upgrade(upgrade_request(url, &[]))
            .await
            .expect("an upgrade");
        Self::new(socket)
    }

    pub async fn send_json(&mut self, message: Value) {
        self.send(Message::text(message.to_string())).await;
    }

    pub async fn send(&mut self, message: Message) {
        self.socket.send(message).await.expect("it is sent");
    }

    /// The next message, whatever it is, or the close code.
    pub async fn next_message(&mut self) -> Result<Value, Option<u16>> {
        loop {
            let next = tokio::time::timeout(TEST_TIMEOUT, self.socket.next())
                .await
                .expect("something comes in time");
            match next {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(frame))) => return Err(frame.map(|frame| frame.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    /// The next message of a type; heartbeats and others before it are passed over.
    pub async fn expect_message(&mut self, kind: &str) -> Value {
        loop {
            match self.next_message().await {
                Ok(message) if message["type"] == kind => return message,
                Ok(_) => {}
                Err(code) => panic!("closed with {code:?} instead of {kind}"),
            }
        }
    }

    /// The code that ends it; what comes before is passed over.
    pub async fn expect_close(&mut self) -> Option<u16> {
        loop {
            if let Err(code) = self.next_message().await {
                return code;
            }
        }
    }

    /// Says so and goes, as a page that is left does.
    pub async fn close(mut self) {
        self.send(Message::Close(None)).await;
        while self.next_message().await.is_ok() {}
    }

    /// Subscribes to jobs, given as (id, version), and hears what became of each.
    pub async fn subscribe(&mut self, jobs: &[(&str, u64)]) -> Value {
        let jobs: Vec<Value> = jobs
            .iter()
            .map(|(job, version)| json!({ "job": job, "version": version }))
            .collect();
        self.send_json(json!({ "type": "subscribe", "id": 1, "jobs": jobs }))
            .await;
        self.expect_message("subscribed").await["jobs"].clone()
    }

    /// The next version of any job.
    pub async fn next_job(&mut self) -> Value {
        self.expect_message("job").await["job"].clone()
    }

    /// Follows a job to its end; versions must rise.
    #[expect(clippy::wrong_self_convention, reason = "it goes there")]
    pub async fn follow_to_final(&mut self, id: &str) -> Value {
        let mut version = 0;
        loop {
            let job = self.next_job().await;
            if job["id"] != id {
                continue;
            }
            let next = job["version"].as_u64().unwrap();
            assert!(next > version, "{next} after {version}");
            version = next;
            if job["final"] == true {
                return job;
            }
        }
    }

    /// Asserts that nothing but heartbeats has come by the time the hub answers a ping: whatever it
    /// had to say before, it would have said first.
    pub async fn assert_no_messages(&mut self) {
        self.send_json(json!({ "type": "ping", "id": "quiet?" }))
            .await;
        loop {
            match self.next_message().await {
                Ok(message) if message["type"] == "pong" && message["id"] == "quiet?" => return,
                Ok(message) if message["type"] == "heartbeat" => {}
                other => panic!("heard {other:?}"),
            }
        }
    }
}
