//! An endpoint of an application that receives webhooks.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::web::{self, Bytes};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use progress_hub_auth::signature::{Key, Request, Scheme};
use serde_json::Value;
use tokio::sync::watch;

use crate::app::TEST_TIMEOUT;

/// A webhook as it arrived.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Path and query.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub raw: Bytes,
}

impl Webhook {
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }

    /// Returns `webhook-id`.
    pub fn id(&self) -> &str {
        self.header("webhook-id")
    }

    pub fn body(&self) -> Value {
        serde_json::from_slice(&self.raw).expect("a JSON body")
    }

    /// Returns the id of the job.
    pub fn job(&self) -> String {
        self.body()["data"]["id"].as_str().unwrap().to_owned()
    }

    /// Returns whether a secret verifies the signature.
    pub fn is_signed_with(&self, secret: &str) -> bool {
        let request = Request {
            headers: &self.headers,
            body: &self.raw,
            url: "",
        };
        let keys = [Key::Secret(secret.into())];
        let now = jiff::Timestamp::now();
        let verified = Scheme::StandardWebhooks {}.verify(&request, &keys, now);
        verified.is_ok()
    }
}

/// A response of a receiver.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl From<u16> for Reply {
    fn from(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: String::new(),
        }
    }
}

impl Reply {
    pub fn with_header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub fn with_body(mut self, body: String) -> Self {
        self.body = body;
        self
    }
}

/// A running receiver. Dropping it stops the server.
pub struct Receiver {
    pub url: String,
    received: watch::Receiver<Vec<Webhook>>,
    handle: actix_web::dev::ServerHandle,
}

impl Receiver {
    /// Starts a receiver that accepts everything.
    pub async fn start() -> Self {
        Self::start_with(|_, _| async { Reply::from(200) }).await
    }

    /// Starts a receiver. `respond` is called with each webhook and the number of earlier ones.
    pub async fn start_with<F, R>(respond: F) -> Self
    where
        F: Fn(Webhook, usize) -> R + Send + Sync + 'static,
        R: Future<Output = Reply> + 'static,
    {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, received) = watch::channel(Vec::new());
        let (respond, sender) = (Arc::new(respond), Arc::new(sender));
        let server = HttpServer::new(move || {
            let (respond, sender) = (Arc::clone(&respond), Arc::clone(&sender));
            App::new()
                .app_data(web::PayloadConfig::new(1 << 20))
                .default_service(web::to(move |request: HttpRequest, raw: Bytes| {
                    let webhook = record(&request, raw);
                    let mut earlier = 0;
                    sender.send_modify(|received| {
                        earlier = received.len();
                        received.push(webhook.clone());
                    });
                    let respond = Arc::clone(&respond);
                    async move { response(respond(webhook, earlier).await) }
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
            received,
            handle,
        }
    }

    /// Returns the host and port.
    pub fn host(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    /// Returns all webhooks so far, oldest first.
    pub fn received(&self) -> Vec<Webhook> {
        self.received.borrow().clone()
    }

    /// Waits until `is_done` accepts the webhooks so far, and returns them.
    pub async fn wait(&self, mut is_done: impl FnMut(&[Webhook]) -> bool) -> Vec<Webhook> {
        let mut received = self.received.clone();
        let wait = received.wait_for(|received| is_done(received));
        let received = tokio::time::timeout(TEST_TIMEOUT, wait).await;
        received
            .expect("timed out waiting for webhooks")
            .unwrap()
            .clone()
    }

    /// Waits for this number of webhooks.
    pub async fn wait_for_count(&self, count: usize) -> Vec<Webhook> {
        self.wait(|received| received.len() >= count).await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // `stop` sends the command when it is called. The future only waits for the end.
        drop(self.handle.stop(false));
    }
}

/// A reply that never comes.
pub async fn never() -> Reply {
    tokio::time::sleep(Duration::MAX).await;
    Reply::from(200)
}

fn record(request: &HttpRequest, raw: Bytes) -> Webhook {
    let headers = request.headers().iter();
    Webhook {
        path: request.uri().to_string(),
        headers: headers
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect(),
        raw,
    }
}

fn response(reply: Reply) -> HttpResponse {
    let mut response = HttpResponse::build(StatusCode::from_u16(reply.status).unwrap());
    for header in reply.headers {
        response.insert_header(header);
    }
    response.body(reply.body)
}
