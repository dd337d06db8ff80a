//! Mails about jobs, over SMTP.
//!
//! The recipient is determined when the delivery is created, because the address of an owner is kept
//! with the job and not in its document. Addresses appear in no log and in no error.

mod message;
mod recipient;
mod smtp;

use std::time::Duration;

use async_trait::async_trait;
use lettre::message::Mailbox;
use serde_json::Value;
use tokio::time::timeout;

use self::message::MessageTemplates;
use self::recipient::Recipients;
use self::smtp::{MailClient, SendError};
use super::{Channel, Destination, Outcome, Quota, Verdict};
use crate::config::{ConfigError, EmailConfig};
use crate::job::{BudgetWindow, Job};
use crate::outbox::{Delivery, Event, MAX_ATTEMPT_ERROR_CHARS, NewDelivery};
use crate::telemetry::DestinationKind;

pub use self::recipient::is_address;

/// Name of the destination.
pub const EMAIL: &str = "email";

/// Maximum number of connections to the mail server.
const MAX_CONNECTIONS: usize = 2;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Sends mails to the owners of jobs.
pub struct EmailChannel {
    events: Vec<Event>,
    recipients: Recipients,
    sender: Mailbox,
    templates: MessageTemplates,
    client: MailClient,
    per_owner_per_day: usize,
    /// Limits an attempt from outside, because the timeout of the SMTP library covers only the connect.
    timeout: Duration,
}

/// Creates the destination of a configuration, or returns `None` if it has no mail server.
///
/// # Errors
/// As [`EmailChannel::load`].
pub(super) fn load(config: &EmailConfig) -> Result<Option<Destination>, Vec<ConfigError>> {
    let channel = EmailChannel::load(config)?;
    let address = config
        .smtp_url
        .as_ref()
        .map(|server| server.host.to_string());
    let destination = channel.zip(address).map(|(channel, address)| {
        Destination::new(EMAIL, DestinationKind::Email, address, channel)
    });
    Ok(destination)
}

impl EmailChannel {
    /// Creates the channel of a configuration, or returns `None` if it has no mail server.
    ///
    /// # Errors
    /// All invalid addresses and templates, each with its key.
    pub fn load(config: &EmailConfig) -> Result<Option<Self>, Vec<ConfigError>> {
        let (Some(server), Some(from)) = (&config.smtp_url, &config.from) else {
            return Ok(None);
        };
        let error = |key: &str, message: String| {
            let key = format!("email.{key}");
            vec![ConfigError { key, message }]
        };
        let sender = from.parse::<Mailbox>().map_err(|_| {
            let message =
                "must be an address such as videos@example.com, or Name <videos@example.com>";
            error("from", message.to_owned())
        });
        let recipients =
            Recipients::parse(&config.to, &config.allowed_domains).map_err(|it| error("to", it));
        let client = MailClient::new(server).map_err(|it| error("smtp_url", it));
        let templates = MessageTemplates::parse(config);
        match (sender, recipients, client, templates) {
            (Ok(sender), Ok(recipients), Ok(client), Ok(templates)) => Ok(Some(Self {
                events: config.events.clone(),
                recipients,
                sender,
                templates,
                client,
                per_owner_per_day: config.per_owner_per_day,
                timeout: config.timeout,
            })),
            (sender, recipients, client, templates) => {
                let (sender, recipients) = (sender.err(), recipients.err());
                let errors = [sender, recipients, templates.err(), client.err()];
                Err(errors.into_iter().flatten().flatten().collect())
            }
        }
    }

    fn message(&self, delivery: &Delivery) -> Result<lettre::Message, String> {
        let recipient = delivery.target.as_deref().and_then(|it| it.parse().ok());
        let recipient = recipient.ok_or("recipient is not an address")?;
        let recipient = Mailbox::new(None, recipient);
        self.templates.message(&self.sender, recipient, delivery)
    }

    /// Limits the time of an attempt.
    async fn attempt<F>(&self, attempt: F) -> Outcome
    where
        F: Future<Output = Result<Option<u16>, SendError>>,
    {
        let (status, verdict) = match timeout(self.timeout, attempt).await {
            Ok(Ok(status)) => (
                status,
                Verdict::Delivered {
                    result: Value::Null,
                },
            ),
            Ok(Err(error)) => (error.status(), verdict(&error)),
            Err(_) => (
                None,
                Verdict::Failed {
                    error: "mail server did not respond within email.timeout".to_owned(),
                    retry_after: None,
                },
            ),
        };
        Outcome { status, verdict }
    }
}

#[async_trait]
impl Channel for EmailChannel {
    fn deliveries(&self, job: &Job, event: Event) -> Vec<NewDelivery> {
        if !self.events.contains(&event) {
            return Vec::new();
        }
        let recipient = self.recipients.recipient(job, event);
        let recipient = recipient.unwrap_or_else(|reason| {
            tracing::info!(job.id = %job.id, event = event.as_str(), reason, "mail skipped");
            None
        });
        let delivery = recipient.map(|address| NewDelivery {
            destination: EMAIL.to_owned(),
            event: event.as_str().to_owned(),
            target: Some(address),
            is_independent: false,
        });
        delivery.into_iter().collect()
    }

    /// Counts the mail on the day of the job's version.
    fn quota(&self, delivery: &Delivery) -> Option<Quota> {
        Some(Quota {
            setting: "email.per_owner_per_day",
            window: BudgetWindow::containing("mails", &delivery.owner, delivery.created_at, DAY),
            limit: self.per_owner_per_day,
        })
    }

    fn max_in_flight(&self) -> usize {
        MAX_CONNECTIONS
    }

    async fn deliver(&self, delivery: &Delivery) -> Outcome {
        match self.message(delivery) {
            Ok(message) => self.attempt(self.client.send(&message)).await,
            Err(error) => Outcome {
                status: None,
                verdict: Verdict::Rejected { error },
            },
        }
    }

    /// Connects to the mail server and logs in. Sends no mail.
    async fn test(&self) -> Option<Outcome> {
        Some(self.attempt(self.client.check()).await)
    }

    async fn check(&self) -> Result<(), ConfigError> {
        let outcome = self.attempt(self.client.check()).await;
        match outcome.verdict.error() {
            None => Ok(()),
            Some(error) => Err(ConfigError {
                key: "email.smtp_url".to_owned(),
                message: error.to_owned(),
            }),
        }
    }
}

fn verdict(error: &SendError) -> Verdict {
    let text = without_addresses(&error.to_string());
    match error {
        SendError::Rejected { .. } => Verdict::Rejected { error: text },
        SendError::Misconfigured { .. } => Verdict::Misconfigured { error: text },
        SendError::Failed { .. } => Verdict::Failed {
            error: text,
            retry_after: None,
        },
    }
}

/// Removes addresses and control characters from the text of a mail server, and limits its length.
fn without_addresses(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let shown = words.filter(|word| !word.is_empty()).map(|word| {
        if word.contains('@') {
            "<address>"
        } else {
            word
        }
    });
    let text = Vec::from_iter(shown).join(" ");
    text.chars().take(MAX_ATTEMPT_ERROR_CHARS).collect()
}

#[cfg(test)]
mod tests;
