//! A webhook receiver that records requests and can delay or change its responses.
//!
//! A webhook is recorded before it is answered. A challenge is recorded separately and echoed by default.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use actix_web::http::StatusCode;
use actix_web::web::{self, Bytes, Data};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::sync::watch;

use super::super::{Inspector, Status};
use super::SECRET;

pub struct Receiver {
    url: String,
    inner: Data<Inner>,
    server: actix_web::dev::ServerHandle,
}

struct Inner {
    inspector: Inspector,
    kept: watch::Sender<Vec<Callback>>,
    challenges: Mutex<Vec<Value>>,
    is_mute: AtomicBool,
    answers: Mutex<VecDeque<u16>>,
    held: watch::Sender<bool>,
}

/// A received webhook.
#[derive(Clone, Debug)]
pub struct Callback {
    pub id: Option<String>,
    pub timestamp: Option<String>,
    pub signature: Option<String>,
    /// All headers, by lower-case name.
    pub headers: HashMap<String, String>,
    pub raw: Bytes,
    pub body: Value,
    /// True status of the task at that time.
    pub truth: Status,
}

impl Receiver {
    pub fn start(inspector: Inspector) -> Self {
        let inner = Data::new(Inner {
            inspector,
            kept: watch::Sender::new(Vec::new()),
            challenges: Mutex::default(),
            is_mute: AtomicBool::new(false),
            answers: Mutex::default(),
            held: watch::Sender::new(false),
        });
        let app_inner = inner.clone();
        let app = move || {
            App::new()
                .app_data(app_inner.clone())
                .default_service(web::to(receive))
        };
        let server = HttpServer::new(app)
            .workers(1)
            .disable_signals()
            .bind("127.0.0.1:0")
            .unwrap();
        let url = format!("http://{}/hook", server.addrs()[0]);
        let running = server.run();
        let server = running.handle();
        tokio::spawn(running);
        Self { url, inner, server }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sets the status of the next responses. Later ones are 200.
    pub fn answer_with(&self, statuses: &[u16]) {
        self.inner.answers.lock().unwrap().extend(statuses);
    }

    /// Stops echoing challenges.
    pub fn mute(&self) {
        self.inner.is_mute.store(true, Ordering::SeqCst);
    }

    /// Returns the received challenges.
    pub fn challenges(&self) -> Vec<Value> {
        self.inner.challenges.lock().unwrap().clone()
    }

    pub fn hold(&self) {
        self.inner.held.send_replace(true);
    }

    pub fn release(&self) {
        self.inner.held.send_replace(false);
    }

    /// Returns the received webhooks.
    pub fn all(&self) -> Vec<Callback> {
        self.inner.kept.borrow().clone()
    }

    /// Waits until `count` webhooks have been received.
    pub async fn received(&self, count: usize) -> Vec<Callback> {
        let mut kept = self.inner.kept.subscribe();
        kept.wait_for(|kept| kept.len() >= count)
            .await
            .unwrap()
            .clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.server.stop(false));
    }
}

impl Callback {
    pub fn status(&self) -> &str {
        self.body["status"].as_str().unwrap()
    }

    /// Returns whether the signature over the body is valid for the shared secret.
    pub fn is_genuine(&self) -> bool {
        let (Some(id), Some(timestamp), Some(signature)) =
            (&self.id, &self.timestamp, &self.signature)
        else {
            return false;
        };
        let secret = STANDARD
            .decode(SECRET.strip_prefix("whsec_").unwrap())
            .unwrap();
        let signed = [format!("{id}.{timestamp}.").as_bytes(), &self.raw].concat();
        let tag = STANDARD
            .decode(signature.strip_prefix("v1,").unwrap())
            .unwrap();
        hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &secret), &signed, &tag).is_ok()
    }
}

async fn receive(request: HttpRequest, raw: Bytes, inner: Data<Inner>) -> HttpResponse {
    let text = |value: &actix_web::http::header::HeaderValue| value.to_str().unwrap().to_owned();
    let headers = request.headers().iter();
    let headers: HashMap<_, _> = headers
        .map(|(name, value)| (name.as_str().to_owned(), text(value)))
        .collect();
    let body: Value = serde_json::from_slice(&raw).unwrap();
    if body.get("challenge").is_some() {
        inner.challenges.lock().unwrap().push(body.clone());
        return match inner.is_mute.load(Ordering::SeqCst) {
            true => HttpResponse::Ok().finish(),
            false => HttpResponse::Ok().json(body),
        };
    }
    let ids = ["/id", "/request_id", "/session_id", "/task_id", "/data/id"];
    let tasks = ids.into_iter().filter_map(|id| body.pointer(id)?.as_str());
    let task = tasks.filter_map(|id| inner.inspector.task(id)).next();
    let callback = Callback {
        id: headers.get("webhook-id").cloned(),
        timestamp: headers.get("webhook-timestamp").cloned(),
        signature: headers.get("webhook-signature").cloned(),
        headers,
        truth: task.unwrap().status,
        raw,
        body,
    };
    inner.kept.send_modify(|kept| kept.push(callback));
    inner.held.subscribe().wait_for(|held| !held).await.unwrap();
    let status = inner.answers.lock().unwrap().pop_front().unwrap_or(200);
    HttpResponse::build(StatusCode::from_u16(status).unwrap())
        .insert_header(("location", "/elsewhere"))
        .finish()
}
