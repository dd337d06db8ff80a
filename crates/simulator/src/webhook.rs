//! Delivery of webhooks.
//!
//! A message keeps its id and body across attempts. Each attempt has its own timestamp and signature. Redirects are not
//! followed. Secrets and URLs are not logged.

use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use reqwest::{Client, RequestBuilder, StatusCode, Url, redirect};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::field::display;

use super::dialect::uuid;
use super::inspector::Counts;
use super::plan::SignatureMode;
use super::task::now_ms;
use super::worker::Work;

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
    /// Earliest time of delivery.
    pub due: Instant,
}

/// Creates the client that sends webhooks.
pub(super) fn client() -> io::Result<Client> {
    Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .timeout(WEBHOOK_TIMEOUT)
        .build()
        .map_err(io::Error::other)
}

impl Work {
    /// Sends a message until a 2xx, a 410 or the last attempt. Any other status, including 3xx, is retried. Breaks if the
    /// receiver answered 410 and must be sent nothing more.
    pub async fn deliver(&self, url: &Url, message: &Message) -> ControlFlow<()> {
        let (state, task) = (&self.context.state, self.task.number);
        let mut wait = self.context.settings.pace;
        for attempt in 1..=ATTEMPTS {
            state.change(task, |task| task.callbacks_sent += 1);
            state.count(self.dialect.name, |counts| counts.callbacks_sent += 1);
            let error = match self.attempt(url, message).await {
                Ok(status) if status.is_success() => {
                    state.change(task, |task| task.callbacks_acknowledged += 1);
                    let count = |counts: &mut Counts| counts.callbacks_acknowledged += 1;
                    state.count(self.dialect.name, count);
                    return ControlFlow::Continue(());
                }
                Ok(StatusCode::GONE) => return ControlFlow::Break(()),
                Ok(status) => status.to_string(),
                Err(error) => error.without_url().to_string(),
            };
            tracing::debug!(task.id = task, webhook.attempt = attempt, %error, "webhook not delivered");
            if attempt < ATTEMPTS {
                sleep(wait).await;
                wait *= 2;
            }
        }
        ControlFlow::Continue(())
    }

    async fn attempt(&self, url: &Url, message: &Message) -> Result<StatusCode, reqwest::Error> {
        let mut request = self.post(url, message.body.clone());
        let keys = match self.task.plan.signature {
            SignatureMode::Signed => Some(&self.context.keys),
            SignatureMode::Unsigned => None,
            SignatureMode::Forged => Some(&self.context.forged_keys),
        };
        if let Some(keys) = keys {
            for (name, value) in (self.dialect.sign)(keys, message, now_ms() / 1000) {
                request = request.header(name, value);
            }
        }
        Ok(request.send().await?.status())
    }

    /// Sends a challenge if the dialect has one, and returns whether the receiver echoed it.
    pub async fn passes_challenge(&self, url: &Url) -> bool {
        let Some(timeout) = self.dialect.challenge_timeout else {
            return true;
        };
        let (state, dialect) = (&self.context.state, self.dialect.name);
        state.count(dialect, |counts| counts.challenges_sent += 1);
        let challenge = json!({"challenge": uuid()});
        let request = self.post(url, challenge.to_string().into_bytes());
        let echo = async {
            let response = request.timeout(timeout).send().await?;
            response.error_for_status()?.json::<Value>().await
        };
        let echo = echo.await;
        let is_echoed = echo.as_ref().is_ok_and(|echo| *echo == challenge);
        if is_echoed {
            state.count(dialect, |counts| counts.challenges_passed += 1);
        } else {
            let error = echo.err().map(|error| display(error.without_url()));
            tracing::debug!(
                task.id = self.task.number,
                error,
                "webhook challenge not echoed"
            );
        }
        is_echoed
    }

    fn post(&self, url: &Url, body: Vec<u8>) -> RequestBuilder {
        let request = self.context.client.post(url.clone());
        request
            .header("content-type", "application/json")
            .body(body)
    }
}
