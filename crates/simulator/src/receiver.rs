//! A receiver of the hub's outbound webhooks, with faults on request.
//!
//! The query of the URL selects the behavior: `status` (of the response), `times` (only the first responses are faulty),
//! `retry_after` (seconds), `delay` (seconds before the response) and `redirect` (a URL). A webhook whose signature no
//! secret verifies is answered with 401.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderMap, LOCATION, RETRY_AFTER};
use actix_web::web::{Bytes, Data, Json, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::signing::SigningKeys;
use super::task::now_ms;

/// Number of webhooks that are kept.
const MAX_RECEIVED: usize = 10_000;

/// Maximum difference between the timestamp of a webhook and now, in milliseconds.
const TOLERANCE_MS: u64 = 5 * 60 * 1000;

/// Maximum delay of a response.
const MAX_DELAY_SECONDS: f64 = 600.0;

/// Faults of the responses, in the query of the URL.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Faults {
    status: Option<u16>,
    times: Option<u64>,
    retry_after: Option<u64>,
    delay: Option<f64>,
    redirect: Option<String>,
}

/// A received webhook.
#[derive(Clone, Debug, Serialize)]
pub struct Received {
    /// Path and query.
    pub url: String,
    /// `webhook-id`.
    pub id: String,
    /// Whether a secret verified the signature. Null if the receiver has no secrets.
    pub verified: Option<bool>,
    /// Status of the response.
    pub status: u16,
    /// The body, or text if it is not JSON.
    pub body: Value,
}

/// State of the receiver.
#[derive(Default)]
pub(super) struct Receiver {
    /// Secrets of the sender. If there is none, signatures are not verified.
    pub secrets: Vec<SigningKeys>,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    received: Vec<Received>,
    /// Number of webhooks by URL.
    counts: HashMap<String, u64>,
}

impl Receiver {
    /// Returns the webhooks so far, oldest first.
    pub fn received(&self) -> Vec<Received> {
        let log = self.log.lock();
        log.map(|log| log.received.clone()).unwrap_or_default()
    }

    /// Counts a webhook and returns how many came to the same URL before.
    fn count(&self, url: &str) -> u64 {
        let Ok(mut log) = self.log.lock() else {
            return 0;
        };
        let count = log.counts.entry(url.to_owned()).or_default();
        *count += 1;
        *count - 1
    }

    fn record(&self, webhook: Received) {
        if let Ok(mut log) = self.log.lock() {
            if log.received.len() == MAX_RECEIVED {
                log.received.remove(0);
            }
            log.received.push(webhook);
        }
    }

    /// Returns whether a secret verifies the signature, or `None` without secrets.
    fn verify(&self, headers: &HeaderMap, body: &[u8]) -> Option<bool> {
        if self.secrets.is_empty() {
            return None;
        }
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let verified = || {
            let (id, signatures) = (header("webhook-id")?, header("webhook-signature")?);
            let at: u64 = header("webhook-timestamp")?.parse().ok()?;
            let is_fresh = now_ms().abs_diff(at.saturating_mul(1000)) <= TOLERANCE_MS;
            let is_signed_with = |keys: &SigningKeys| {
                let expected = keys.standard(id, at, body);
                let expected = expected
                    .iter()
                    .find(|(name, _)| *name == "webhook-signature");
                expected.is_some_and(|(_, expected)| {
                    signatures.split(' ').any(|signature| signature == expected)
                })
            };
            Some(is_fresh && self.secrets.iter().any(is_signed_with))
        };
        Some(verified().unwrap_or(false))
    }
}

/// `POST /receiver` and `POST /receiver/{name}`.
pub(super) async fn receive(
    request: HttpRequest,
    body: Bytes,
    receiver: Data<Receiver>,
    Query(faults): Query<Faults>,
) -> HttpResponse {
    let url = request.uri().to_string();
    let is_faulty = receiver.count(&url) < faults.times.unwrap_or(u64::MAX);
    let verified = receiver.verify(request.headers(), &body);
    let status = match (verified, &faults.redirect) {
        (Some(false), _) => StatusCode::UNAUTHORIZED,
        _ if !is_faulty => StatusCode::OK,
        (_, Some(_)) => StatusCode::TEMPORARY_REDIRECT,
        (_, None) => {
            let status = faults.status.unwrap_or(200);
            StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST)
        }
    };
    let id = request.headers().get("webhook-id");
    let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
    let webhook = Received {
        id: id.map_or(String::new(), |id| {
            String::from_utf8_lossy(id.as_bytes()).into_owned()
        }),
        verified,
        status: status.as_u16(),
        body: serde_json::from_slice(&body).unwrap_or_else(|_| text()),
        url,
    };
    tracing::info!(
        webhook.id = webhook.id,
        webhook.url = webhook.url,
        verified,
        status = webhook.status,
        "webhook received"
    );
    receiver.record(webhook);
    if let Some(delay) = faults.delay.filter(|_| is_faulty) {
        let delay = delay.clamp(0.0, MAX_DELAY_SECONDS);
        tokio::time::sleep(Duration::from_secs_f64(delay)).await;
    }
    let mut response = HttpResponse::build(status);
    if let Some(seconds) = faults.retry_after.filter(|_| is_faulty) {
        response.insert_header((RETRY_AFTER, seconds));
    }
    if let Some(url) = faults.redirect.filter(|_| is_faulty) {
        response.insert_header((LOCATION, url));
    }
    response.json(json!({ "received": true }))
}

/// `GET /simulator/received`: the webhooks so far.
pub(super) async fn received(receiver: Data<Receiver>) -> Json<Vec<Received>> {
    Json(receiver.received())
}
