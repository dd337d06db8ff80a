//! A provider that does what a test tells it to, over real HTTP, and remembers what it was asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use actix_web::http::StatusCode;
use actix_web::web::{self, Bytes};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use serde_json::Value;
use tokio::sync::watch;

use crate::app::TEST_TIMEOUT;

/// A running stand-in. Dropping it stops it.
pub struct MockProvider {
    pub url: String,
    asked: watch::Receiver<Vec<RecordedRequest>>,
    handle: actix_web::dev::ServerHandle,
}

/// One request.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    pub method: String,
    /// With its query.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Value,
}

/// What is answered.
#[derive(Clone, Debug)]
pub struct MockResponse {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    is_broken: bool,
}

impl RecordedRequest {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl MockResponse {
    pub fn json(status: u16, body: &Value) -> Self {
        Self::text(status, body.to_string())
    }

    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self::bytes(status, body.into())
    }

    pub fn bytes(status: u16, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            is_broken: false,
        }
    }

    /// The connection closes before anything is answered.
    pub fn disconnect() -> Self {
        Self {
            is_broken: true,
            ..Self::text(200, "")
        }
    }

    /// With this number wherever its body says `{n}`.
    pub fn numbered(mut self, n: usize) -> Self {
        if let Ok(text) = std::str::from_utf8(&self.body) {
            self.body = text.replace("{n}", &n.to_string()).into();
        }
        self
    }

    pub fn with_header(mut self, header: &'static str, value: impl ToString) -> Self {
        self.headers.push((header, value.to_string()));
        self
    }
}

impl MockProvider {
    pub async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(RecordedRequest) -> R + Send + Sync + 'static,
        R: Future<Output = MockResponse> + 'static,
    {
        Self::start_at(([127, 0, 0, 1], 0).into(), answer).await
    }

    /// At an address that is free, or was left by one that is no more.
    pub async fn start_at<F, R>(address: SocketAddr, answer: F) -> Self
    where
        F: Fn(RecordedRequest) -> R + Send + Sync + 'static,
        R: Future<Output = MockResponse> + 'static,
    {
        let listener = std::net::TcpListener::bind(address).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (note, asked) = watch::channel(Vec::new());
        let (answer, note) = (Arc::new(answer), Arc::new(Mutex::new(note)));
        let server = HttpServer::new(move || {
            let (answer, note) = (Arc::clone(&answer), Arc::clone(&note));
            App::new().default_service(web::to(move |request: HttpRequest, body: Bytes| {
                let asked = read(&request, &body);
                let is_noted = |noted: &mut Vec<RecordedRequest>| noted.push(asked.clone());
                note.lock().unwrap().send_modify(is_noted);
                let reply = answer(asked);
                async move { reply.await.response() }
            }))
        });
        let server = server
            .workers(1)
            .disable_signals()
            .listen(listener)
            .unwrap()
            .run();
        let handle = server.handle();
        tokio::spawn(server);
        Self { url, asked, handle }
    }

    /// All requests so far, oldest first.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.asked.borrow().clone()
    }

    /// Waits until the requests are as wished.
    pub async fn wait_for_requests(
        &self,
        mut wish: impl FnMut(&[RecordedRequest]) -> bool,
    ) -> Vec<RecordedRequest> {
        let mut asked = self.asked.clone();
        let waiting = asked.wait_for(|all| wish(all));
        let all = tokio::time::timeout(TEST_TIMEOUT, waiting).await;
        all.expect("it is asked in time").unwrap().clone()
    }
}

impl Drop for MockProvider {
    fn drop(&mut self) {
        // The stop is on its way once the future is made; nobody waits for its end.
        drop(self.handle.stop(false));
    }
}

impl MockResponse {
    fn response(self) -> HttpResponse {
        let status = StatusCode::from_u16(self.status).unwrap();
        let mut response = HttpResponse::build(status);
        response.content_type("application/json");
        for header in self.headers {
            response.insert_header(header);
        }
        if self.is_broken {
            let broken = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
            return response.streaming(futures_util::stream::iter([Err::<Bytes, _>(broken)]));
        }
        response.body(self.body)
    }
}

fn read(request: &HttpRequest, body: &[u8]) -> RecordedRequest {
    let headers = request.headers().iter();
    RecordedRequest {
        method: request.method().to_string(),
        path: request.uri().to_string(),
        headers: headers
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect(),
        body: serde_json::from_slice(body).unwrap_or(Value::Null),
    }
}
