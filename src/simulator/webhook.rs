//! Webhooks: how a message is signed and delivered.
//!
//! Invariant: a message keeps its id and its body over all attempts, and each attempt has its own time and
//! signature (Standard Webhooks; Kling's headers are the same). No redirect is followed, and neither secret
//! nor address is logged.

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fmt, io};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::RngExt;
use reqwest::{Client, StatusCode, Url, redirect};
use tokio::time::sleep;

use super::ledger::Ledger;
use super::scenario::Seal;

/// Attempts for one message; the waits between them double, from one pace.
const ATTEMPTS: u32 = 5;
/// How long a receiver may take to answer: the lower end of what Standard Webhooks recommends.
const PATIENCE: Duration = Duration::from_secs(15);

/// A key that signs.
#[derive(Clone)]
pub(super) struct Secret(hmac::Key);

/// The secret is not `whsec_` and base64 after it.
#[derive(Debug, thiserror::Error)]
#[error("webhook secret is not whsec_ followed by base64")]
pub(super) struct BadSecret;

impl Secret {
    pub fn parse(secret: &str) -> Result<Self, BadSecret> {
        let encoded = secret.strip_prefix("whsec_").ok_or(BadSecret)?;
        let key = STANDARD.decode(encoded).map_err(|_| BadSecret)?;
        if key.is_empty() {
            return Err(BadSecret);
        }
        Ok(Self::from_key(&key))
    }

    fn random() -> Self {
        Self::from_key(&rand::rng().random::<[u8; 32]>())
    }

    fn from_key(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The value of `webhook-signature`: `v1,` and the base64 HMAC-SHA256 of `id.timestamp.body`.
    pub fn sign(&self, id: impl fmt::Display, timestamp: u64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

/// What is sent: a body under an id.
pub(super) struct Message {
    pub id: u64,
    pub body: Vec<u8>,
}

/// Where the messages of one task go, and signed with what.
pub(super) struct Recipient {
    pub task: u64,
    pub url: Url,
    pub seal: Seal,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    Acknowledged,
    GivenUp,
    /// The recipient is gone (410) and wants no more.
    Unwanted,
}

/// Delivers messages, one attempt after the other. Cheap to clone.
#[derive(Clone)]
pub(super) struct Postman {
    client: Client,
    secret: Option<Secret>,
    wrong_secret: Secret,
    pace: Duration,
    ledger: Ledger,
}

impl Postman {
    pub fn new(secret: Option<Secret>, pace: Duration, ledger: Ledger) -> io::Result<Self> {
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(PATIENCE)
            .build()
            .map_err(io::Error::other)?;
        Ok(Self {
            client,
            secret,
            wrong_secret: Secret::random(),
            pace,
            ledger,
        })
    }

    /// Tries until a 2xx, a 410 or the end of patience. Anything else, a 3xx too, is tried again.
    pub async fn deliver(&self, message: &Message, to: &Recipient) -> Delivery {
        let mut wait = self.pace;
        for attempt in 1..=ATTEMPTS {
            self.ledger.callback_sent(to.task);
            match self.attempt(message, to).await {
                Ok(status) if status.is_success() => {
                    self.ledger.callback_acknowledged(to.task);
                    return Delivery::Acknowledged;
                }
                Ok(StatusCode::GONE) => return Delivery::Unwanted,
                Ok(status) => {
                    let status = status.as_u16();
                    tracing::debug!(
                        task.id = to.task,
                        webhook.attempt = attempt,
                        http.status = status,
                        "webhook refused"
                    );
                }
                Err(error) => {
                    let error = error.without_url();
                    tracing::debug!(task.id = to.task, webhook.attempt = attempt, %error, "webhook not delivered");
                }
            }
            if attempt < ATTEMPTS {
                sleep(wait).await;
                wait *= 2;
            }
        }
        Delivery::GivenUp
    }

    async fn attempt(
        &self,
        message: &Message,
        to: &Recipient,
    ) -> Result<StatusCode, reqwest::Error> {
        let mut request = self
            .client
            .post(to.url.clone())
            .header("content-type", "application/json")
            .body(message.body.clone());
        let secret = match to.seal {
            Seal::Signed => self.secret.as_ref(),
            Seal::Unsigned => None,
            Seal::Forged => Some(&self.wrong_secret),
        };
        if let Some(secret) = secret {
            let timestamp = now_seconds();
            request = request
                .header("webhook-id", message.id.to_string())
                .header("webhook-timestamp", timestamp.to_string())
                .header(
                    "webhook-signature",
                    secret.sign(message.id, timestamp, &message.body),
                );
        }
        Ok(request.send().await?.status())
    }
}

fn now_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
