//! Webhooks: how a message is delivered.
//!
//! Invariant: a message keeps its id and its body over all attempts, and each attempt has its own time and
//! signature. No redirect is followed, and neither secret nor address is logged.

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

/// Attempts for one message; the waits between them double, from one pace.
const ATTEMPTS: u32 = 5;
/// How long a receiver may take to answer: the lower end of what Standard Webhooks recommends.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(15);

/// What is sent: a body under an id.
pub(super) struct Message {
    /// Digits.
    pub id: String,
    /// The provider's id of the task that it tells of.
    pub task: String,
    pub body: Vec<u8>,
}

/// Where the messages of one task go, and signed with what.
pub(super) struct Recipient {
    /// The task's number.
    pub task: u64,
    pub dialect: &'static dyn Dialect,
    pub url: Url,
    pub signature: SignatureMode,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    Acknowledged,
    Failed,
    /// The recipient is gone (410) and wants no more.
    Gone,
}

/// Delivers messages, one attempt after the other. Cheap to clone.
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

    /// Tries until a 2xx, a 410 or the end of timeout. Anything else, a 3xx too, is tried again.
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

    /// Whether the receiver has passed the dialect's test, which is made once.
    pub async fn challenge_receiver(&self, to: &Recipient) -> bool {
        let word = Uuid::now_v7().to_string();
        let Some(challenge) = to.dialect.challenge(&word) else {
            return true;
        };
        self.state.challenge_sent(to.dialect.name());
        let body = challenge.body.to_string().into_bytes();
        let answer = async {
            let response = self.post(to, body).timeout(challenge.timeout).send();
            let response = response.await?.error_for_status()?;
            response.json::<Value>().await
        };
        match answer.await {
            Ok(answer) if answer == challenge.body => {
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
