//! An HTTP server that plays a provider: a closure answers the requests, and they are recorded.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use actix_web::http::StatusCode;
use actix_web::web::{self, Bytes};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use serde_json::Value;
use tokio::sync::watch;

use crate::app::TEST_TIMEOUT;

/// A running mock provider. Dropping it stops the server.
pub struct MockProvider {
    pub url: String,
    requests: watch::Receiver<Vec<RecordedRequest>>,
    handle: actix_web::dev::ServerHandle,
}

/// A request that the mock provider received.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    pub method: String,
    /// Path and query.
    pub path: String,
    pub headers: Vec<(String, String)>,
    /// Null if the body is not JSON.
    pub body: Value,
}

/// A response of the mock provider.
#[derive(Clone, Debug)]
pub struct MockResponse {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    is_disconnect: bool,
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
            is_disconnect: false,
        }
    }

    /// Closes the connection instead of sending a response.
    pub fn disconnect() -> Self {
        Self {
            is_disconnect: true,
            ..Self::text(200, "")
        }
    }

    /// Replaces `{n}` in the body with this number.
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
    /// Starts a mock provider on a free port.
    pub async fn start<F, R>(respond: F) -> Self
    where
        F: Fn(RecordedRequest) -> R + Send + Sync + 'static,
        R: Future<Output = MockResponse> + 'static,
    {
        Self::start_at(([127, 0, 0, 1], 0).into(), respond).await
    }

    /// Starts a mock provider on a free address.
    pub async fn start_at<F, R>(address: SocketAddr, respond: F) -> Self
    where
        F: Fn(RecordedRequest) -> R + Send + Sync + 'static,
        R: Future<Output = MockResponse> + 'static,
    {
        let listener = std::net::TcpListener::bind(address).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, requests) = watch::channel(Vec::new());
        let (respond, sender) = (Arc::new(respond), Arc::new(Mutex::new(sender)));
        let server = HttpServer::new(move || {
            let (respond, sender) = (Arc::clone(&respond), Arc::clone(&sender));
            App::new().default_service(web::to(move |request: HttpRequest, body: Bytes| {
                let request = record(&request, &body);
                let push = |requests: &mut Vec<RecordedRequest>| requests.push(request.clone());
                sender.lock().unwrap().send_modify(push);
                let response = respond(request);
                async move { response.await.into_http_response() }
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
        Self {
            url,
            requests,
            handle,
        }
    }

    /// Returns all requests so far, oldest first.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.requests.borrow().clone()
    }

    /// Waits until `is_done` accepts the requests so far, and returns them.
    pub async fn wait_for_requests(
        &self,
        mut is_done: impl FnMut(&[RecordedRequest]) -> bool,
    ) -> Vec<RecordedRequest> {
        let mut requests = self.requests.clone();
        let wait = requests.wait_for(|requests| is_done(requests));
        let requests = tokio::time::timeout(TEST_TIMEOUT, wait).await;
        requests
            .expect("timed out waiting for requests")
            .unwrap()
            .clone()
    }
}

impl Drop for MockProvider {
    fn drop(&mut self) {
        // `stop` sends the command when it is called. The future only waits for the end.
        drop(self.handle.stop(false));
    }
}

impl MockResponse {
    fn into_http_response(self) -> HttpResponse {
        let status = StatusCode::from_u16(self.status).unwrap();
        let mut response = HttpResponse::build(status);
        response.content_type("application/json");
        for header in self.headers {
            response.insert_header(header);
        }
        if self.is_disconnect {
            let error = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
            return response.streaming(futures_util::stream::iter([Err::<Bytes, _>(error)]));
        }
        response.body(self.body)
    }
}

fn record(request: &HttpRequest, body: &[u8]) -> RecordedRequest {
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
