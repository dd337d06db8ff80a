//! Webhooks that the hub sends, as Standard Webhooks specifies them.
//!
//! A configured endpoint receives the events that it selects. A submission can also name a URL of its
//! own, on one of the configured hosts. Each such host is a destination, so a host that fails does not
//! delay the others.

mod client;
mod message;

use std::sync::Arc;

use async_trait::async_trait;
use progress_hub_auth::signature::{SigningSecret, webhook_signature};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::Url;

use super::template::{Kind, Template};
use super::{Channel, Destination, Event, Outcome, Route, Verdict};
use crate::config::{Config, ConfigError, WebhookConfig, WebhookDefaults};
use crate::egress::{AddressPolicy, HostAndPort, masked};
use crate::job::{Job, MAX_URL_BYTES};
use crate::outbox::{Delivery, NewDelivery};
use crate::telemetry::DestinationKind;
use crate::time::Time;
use client::{Reply, WebhookClient};

/// Maximum number of attempts at the same time to one endpoint.
const MAX_IN_FLIGHT: usize = 2;

/// Prefix of the name of a destination for the URLs of submissions.
const HOST_PREFIX: &str = "host:";

/// Creates the destinations for all webhooks of a configuration.
pub(super) fn load(config: &Config) -> (Vec<Destination>, Vec<ConfigError>) {
    let defaults = &config.webhook_defaults;
    let client = match WebhookClient::new(defaults) {
        Ok(client) => client,
        Err(error) => {
            let key = "webhooks".to_owned();
            let message = error.to_string();
            return (Vec::new(), vec![ConfigError { key, message }]);
        }
    };
    let mut destinations = Vec::new();
    let mut errors = Vec::new();
    for (name, webhook) in &config.webhooks {
        match Endpoint::new(name, webhook, client.clone()) {
            Ok(endpoint) => {
                let address = masked(&endpoint.url);
                let kind = DestinationKind::Webhook;
                destinations.push(Destination::new(name, kind, address, endpoint));
            }
            Err(error) => errors.push(error),
        }
    }
    let secrets = defaults.secret.iter().chain(&defaults.previous_secrets);
    let secrets: Arc<[SigningSecret]> = signing_secrets(secrets).into();
    for host in &defaults.hosts {
        let channel = SubmittedUrls {
            host: host.clone(),
            sender: Sender {
                client: client.clone(),
                secrets: Arc::clone(&secrets),
                headers: HeaderMap::new(),
            },
        };
        let kind = DestinationKind::Host;
        destinations.push(Destination::new(
            host_destination(host),
            kind,
            host.as_str(),
            channel,
        ));
    }
    (destinations, errors)
}

/// Returns the name of the destination for URLs on `host`.
fn host_destination(host: &HostAndPort) -> String {
    format!("{HOST_PREFIX}{host}")
}

/// Parses secrets that the configuration has checked.
fn signing_secrets<'s>(secrets: impl Iterator<Item = &'s SecretString>) -> Vec<SigningSecret> {
    secrets
        .filter_map(|secret| SigningSecret::parse(secret).ok())
        .collect()
}

/// Signs messages and sends them.
struct Sender {
    client: WebhookClient,
    /// The newest first.
    secrets: Arc<[SigningSecret]>,
    /// Headers of the operator.
    headers: HeaderMap,
}

impl Sender {
    /// Sends a message. Signs it with the current time, so each attempt has its own signature.
    async fn send(&self, url: &Url, message_id: &str, body: String) -> Outcome {
        let timestamp = Time::now().timestamp().as_second();
        let signature = webhook_signature(&self.secrets, message_id, timestamp, body.as_bytes());
        let mut headers = self.headers.clone();
        headers
            .entry(CONTENT_TYPE)
            .or_insert(HeaderValue::from_static("application/json"));
        for (name, value) in [
            ("webhook-id", message_id),
            ("webhook-timestamp", &timestamp.to_string()),
            ("webhook-signature", &signature),
        ] {
            match HeaderValue::try_from(value) {
                Ok(value) => _ = headers.insert(HeaderName::from_static(name), value),
                Err(_) => return rejected(format!("{name} is not a valid header")),
            }
        }
        match self.client.post(url, headers, body).await {
            Ok(reply) => outcome(&reply),
            Err(error) => Outcome {
                status: None,
                verdict: Verdict::Failed {
                    error,
                    retry_after: None,
                },
            },
        }
    }
}

/// Returns the outcome of a request that was answered.
fn outcome(reply: &Reply) -> Outcome {
    let failed = |error, retry_after| Verdict::Failed { error, retry_after };
    let status = reply.status;
    let verdict = match status {
        200..=299 => Verdict::Delivered {
            result: Value::Null,
        },
        300..=399 => failed(format!("status {status}; redirects are not followed"), None),
        410 => Verdict::Gone,
        _ => failed(format!("status {status}"), reply.retry_after),
    };
    Outcome {
        status: Some(status),
        verdict,
    }
}

fn rejected(error: String) -> Outcome {
    Outcome {
        status: None,
        verdict: Verdict::Rejected { error },
    }
}

/// A configured endpoint.
struct Endpoint {
    name: String,
    url: Url,
    route: Route,
    /// The body, if it is not that of Standard Webhooks.
    body: Option<Template>,
    sender: Sender,
}

impl Endpoint {
    fn new(
        name: &str,
        settings: &WebhookConfig,
        client: WebhookClient,
    ) -> Result<Self, ConfigError> {
        let error = |setting: &str, message: &str| ConfigError {
            key: format!("webhooks.{name}.{setting}"),
            message: message.to_owned(),
        };
        let url = settings.url.clone();
        let url = url.ok_or_else(|| error("url", "required: the URL of the endpoint"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &settings.headers {
            let name = HeaderName::try_from(name).ok();
            let header = name.zip(HeaderValue::try_from(value.expose_secret()).ok());
            let (name, mut value) =
                header.ok_or_else(|| error("headers", "has invalid headers"))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let kind = template_kind(&headers);
        let body = settings.body.as_deref();
        let body = body.map(|source| Template::parse(source, kind)).transpose();
        Ok(Self {
            name: name.to_owned(),
            url,
            route: Route::new(&settings.events, &settings.owners),
            body: body.map_err(|problem| error("body", &problem.to_string()))?,
            sender: Sender {
                client,
                secrets: signing_secrets(settings.secrets.iter()).into(),
                headers,
            },
        })
    }
}

/// Returns the format of a templated body: JSON, unless the operator sets another content type.
fn template_kind(headers: &HeaderMap) -> Kind {
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let is_json = |value: &[u8]| {
        value
            .windows(4)
            .any(|part| part.eq_ignore_ascii_case(b"json"))
    };
    if content_type.is_none_or(is_json) {
        Kind::Json
    } else {
        Kind::Text
    }
}

#[async_trait]
impl Channel for Endpoint {
    fn deliveries(&self, job: &Job, event: Event) -> Vec<NewDelivery> {
        if !self.route.selects(job, event) {
            return Vec::new();
        }
        vec![NewDelivery {
            destination: self.name.clone(),
            event: event.as_str().to_owned(),
            target: None,
            is_independent: false,
        }]
    }

    fn max_in_flight(&self) -> usize {
        MAX_IN_FLIGHT
    }

    async fn deliver(&self, delivery: &Delivery) -> Outcome {
        let body = match &self.body {
            Some(template) => template.render(&delivery.document, &delivery.id.event),
            None => Ok(message::body(delivery)),
        };
        match body {
            Ok(body) => {
                let id = delivery.id.to_string();
                self.sender.send(&self.url, &id, body).await
            }
            Err(error) => rejected(format!("body: {error}")),
        }
    }

    async fn test(&self) -> Option<Outcome> {
        let delivery = message::test(&self.name);
        Some(self.deliver(&delivery).await)
    }

    async fn check(&self) -> Result<(), ConfigError> {
        let resolved = self.sender.client.resolve(&self.url).await;
        resolved.map_err(|message| ConfigError {
            key: format!("webhooks.{}.url", self.name),
            message,
        })
    }
}

/// The URLs of submissions on one host.
struct SubmittedUrls {
    host: HostAndPort,
    sender: Sender,
}

#[async_trait]
impl Channel for SubmittedUrls {
    fn deliveries(&self, job: &Job, event: Event) -> Vec<NewDelivery> {
        let url = job.internal.webhook_url.as_ref();
        let url = url.filter(|url| HostAndPort::of(url).as_ref() == Some(&self.host));
        match url {
            Some(url) if Event::FINAL.contains(&event) => vec![NewDelivery {
                destination: host_destination(&self.host),
                event: event.as_str().to_owned(),
                target: Some(url.to_string()),
                is_independent: false,
            }],
            Some(_) | None => Vec::new(),
        }
    }

    fn max_in_flight(&self) -> usize {
        MAX_IN_FLIGHT
    }

    async fn deliver(&self, delivery: &Delivery) -> Outcome {
        let url = delivery.target.as_deref().map(Url::parse);
        let Some(Ok(url)) = url else {
            return rejected("the delivery has no URL".to_owned());
        };
        let id = delivery.id.to_string();
        let outcome = self.sender.send(&url, &id, message::body(delivery)).await;
        if outcome.verdict != Verdict::Gone {
            return outcome;
        }
        // The host may have other URLs.
        Outcome {
            verdict: Verdict::Rejected {
                error: "status 410".to_owned(),
            },
            ..outcome
        }
    }

    async fn test(&self) -> Option<Outcome> {
        None
    }

    async fn check(&self) -> Result<(), ConfigError> {
        let resolved = match Url::parse(&format!("https://{}", self.host)) {
            Ok(url) => self.sender.client.resolve(&url).await,
            Err(error) => Err(error.to_string()),
        };
        resolved.map_err(|message| ConfigError {
            key: "webhook_defaults.hosts".to_owned(),
            message: format!("{}: {message}", self.host),
        })
    }
}

/// Checks the URLs that submissions name for their webhooks.
#[derive(Clone, Debug)]
pub struct WebhookHosts {
    hosts: Arc<[HostAndPort]>,
    policy: AddressPolicy,
}

/// A submission must not name this URL. The text does not contain it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("webhook_url {0}")]
pub struct UrlNotAllowed(String);

impl WebhookHosts {
    /// Creates the check for the hosts and networks of a configuration.
    #[must_use]
    pub fn new(defaults: &WebhookDefaults) -> Self {
        Self {
            hosts: defaults.hosts.clone().into(),
            policy: AddressPolicy::new(defaults.allow.clone()),
        }
    }

    /// Parses the URL of a submission.
    ///
    /// # Errors
    /// [`UrlNotAllowed`] if it is not a URL, or not on one of the configured hosts.
    pub fn parse(&self, text: &str) -> Result<Url, UrlNotAllowed> {
        let not_allowed = |reason: &str| Err(UrlNotAllowed(reason.to_owned()));
        if text.len() > MAX_URL_BYTES {
            return not_allowed(&format!("must have at most {MAX_URL_BYTES} bytes"));
        }
        let url = match Url::parse(text) {
            Ok(url) if !text.contains(char::is_control) => url,
            Ok(_) | Err(_) => return not_allowed("must be a URL"),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return not_allowed("must not contain a user name or password");
        }
        if let Err(error) = self.policy.check(&url) {
            return not_allowed(&error.to_string());
        }
        match HostAndPort::of(&url) {
            Some(host) if self.hosts.contains(&host) => Ok(url),
            Some(host) => not_allowed(&format!(
                "must not be on {host}; see webhook_defaults.hosts"
            )),
            None => not_allowed("must have a host"),
        }
    }
}

#[cfg(test)]
mod tests;
