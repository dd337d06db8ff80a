//! Delivery of webhooks.
//!
//! A message keeps its id and body across attempts. Each attempt has its own timestamp and signature. Redirects are not
//! followed. Secrets and URLs are not logged.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, StatusCode, Url, redirect};
use serde_json::Value;
use tokio::time::sleep;
use uuid::Uuid;

use super::dialect::Dialect;
use super::plan::SignatureMode;
use super::signing::SigningKeys;
use super::state::SimulatorState;
use super::task::now_ms;

/// Attempts per message. The delay between them doubles, starting at one step.
const ATTEMPTS: u32 = 5;
/// Timeout of an attempt: the lower end of the range that Standard Webhooks recommends.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(15);

/// A webhook: a body with an id.
pub(super) struct Message {
    /// Numeric id.
    pub id: String,
    /// The provider's id of the task.
    pub task: String,
    pub body: Vec<u8>,
}

/// Destination and signature of the webhooks of a task.
pub(super) struct Recipient {
    /// Number of the task.
    pub task: u64,
    pub dialect: &'static dyn Dialect,
    pub url: Url,
    pub signature: SignatureMode,
}

/// Result of delivering a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    Acknowledged,
    Failed,
    /// The receiver answered 410 and is sent nothing more.
    Gone,
}

/// Delivers messages. Cheap to clone.
#[derive(Clone)]
pub(super) struct WebhookSender {
    client: Client,
    keys: Arc<SigningKeys>,
    wrong_keys: Arc<SigningKeys>,
    pace: Duration,
    state: SimulatorState,
}

impl WebhookSender {
    pub fn new(keys: Arc<SigningKeys>, pace: Duration, state: SimulatorState) -> io::Result<Self> {
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(WEBHOOK_TIMEOUT)
            .build()
            .map_err(io::Error::other)?;
        Ok(Self {
            client,
            keys,
            wrong_keys: Arc::new(SigningKeys::forged().map_err(io::Error::other)?),
            pace,
            state,
        })
    }

    /// Sends a message until a 2xx, a 410 or the last attempt. Any other status, including 3xx, is retried.
    pub async fn deliver(&self, message: &Message, to: &Recipient) -> Delivery {
        let mut wait = self.pace;
        for attempt in 1..=ATTEMPTS {
            self.state.callback_sent(to.dialect.name(), to.task);
            match self.attempt(message, to).await {
                Ok(status) if status.is_success() => {
                    self.state.callback_acknowledged(to.dialect.name(), to.task);
                    return Delivery::Acknowledged;
                }
                Ok(StatusCode::GONE) => return Delivery::Gone,
                Ok(status) => {
                    let status = status.as_u16();
                    tracing::debug!(
                        task.id = to.task,
                        webhook.attempt = attempt,
                        http.status = status,
                        "webhook rejected"
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
        Delivery::Failed
    }

    async fn attempt(
        &self,
        message: &Message,
        to: &Recipient,
    ) -> Result<StatusCode, reqwest::Error> {
        let mut request = self.post(to, message.body.clone());
        let keys = match to.signature {
            SignatureMode::Signed => Some(&self.keys),
            SignatureMode::Unsigned => None,
            SignatureMode::Forged => Some(&self.wrong_keys),
        };
        if let Some(keys) = keys {
            for (name, value) in to.dialect.sign(keys, message, now_ms() / 1000) {
                request = request.header(name, value);
            }
        }
        Ok(request.send().await?.status())
    }

    /// Sends the challenge of the dialect and returns whether the receiver echoed it.
    pub async fn challenge_receiver(&self, to: &Recipient) -> bool {
        let word = Uuid::now_v7().to_string();
        let Some(challenge) = to.dialect.challenge(&word) else {
            return true;
        };
        self.state.challenge_sent(to.dialect.name());
        let body = challenge.body.to_string().into_bytes();
        let response = async {
            let response = self.post(to, body).timeout(challenge.timeout).send();
            let response = response.await?.error_for_status()?;
            response.json::<Value>().await
        };
        match response.await {
            Ok(response) if response == challenge.body => {
                self.state.challenge_passed(to.dialect.name());
                true
            }
            Ok(_) => {
                tracing::debug!(task.id = to.task, "webhook challenge not echoed");
                false
            }
            Err(error) => {
                let error = error.without_url();
                tracing::debug!(task.id = to.task, %error, "webhook challenge failed");
                false
            }
        }
    }

    fn post(&self, to: &Recipient, body: Vec<u8>) -> reqwest::RequestBuilder {
        let request = self.client.post(to.url.clone());
        request
            .header("content-type", "application/json")
            .body(body)
    }
}
