//! What a proven webhook is taken for: news of one task or several, or a question to be answered.
//!
//! Invariant: a body is read only once it is [`Verified`]; news that is not wholly its sender's is marked so.

use std::collections::BTreeMap;

use minijinja::Value;
use serde::{Deserialize, Deserializer, de};
use serde_json::Value as Json;

use crate::provider::spec::expression::{Expression, items};
use crate::provider::spec::request_spec::whole_payload;
use crate::provider::{PayloadError, Provider, TaskReport};
use progress_hub_auth::signature::{Headers, Request, Trust, Verified};

/// Bytes of an answer to a handshake at most; what asks for more is no handshake.
const MAX_CHALLENGE_BYTES: usize = 1024;

/// Tasks that one body nobody vouches for can make the hub look at; the watchdog comes to the others by itself.
const MAX_UNTRUSTED_TASKS: usize = 100;

/// What a webhook says.
#[derive(Debug)]
pub enum WebhookContent {
    /// News of tasks; there is at least one.
    Tasks(Vec<TaskReport>),
    /// Nothing of any task: the sender wants exactly this answer.
    Challenge(Json),
}

/// The `[webhook]` table of a spec.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(in crate::provider) struct Webhook {
    /// Where in the body the task or the list of tasks stands.
    #[serde(alias = "item")]
    items: HeaderExpression,
    /// Gives the answer that a handshake wants, and nothing for news.
    reply: Option<HeaderExpression>,
    /// Must be true besides the signature.
    accept: Option<HeaderExpression>,
}

impl Default for Webhook {
    fn default() -> Self {
        Self {
            items: HeaderExpression {
                expression: whole_payload(),
                reads_headers: false,
            },
            reply: None,
            accept: None,
        }
    }
}

/// An expression over `payload` and `headers`.
struct HeaderExpression {
    expression: Expression,
    reads_headers: bool,
}

impl<'de> Deserialize<'de> for HeaderExpression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let source = String::deserialize(deserializer)?;
        Ok(Self {
            expression: Expression::new(&source).map_err(de::Error::custom)?,
            reads_headers: source.contains("headers"),
        })
    }
}

impl HeaderExpression {
    fn evaluate(&self, payload: &Value, headers: &dyn Headers) -> Value {
        if !self.reads_headers {
            return self.expression.evaluate(payload);
        }
        let mut mapping = BTreeMap::new();
        for (name, value) in headers.pairs() {
            // The one that the signature was checked with.
            mapping.entry(name.to_ascii_lowercase()).or_insert(value);
        }
        let names = [
            ("payload", payload.clone()),
            ("headers", Value::from_serialize(mapping)),
        ];
        self.expression.evaluate_in(&Value::from_iter(names))
    }
}

impl Webhook {
    /// Whether the spec's condition holds. What is not JSON is for [`Provider::parse`] to refuse.
    pub(in crate::provider) fn accepts(&self, request: &Request<'_>) -> bool {
        let Some(accept) = &self.accept else {
            return true;
        };
        let payload = serde_json::from_slice::<Json>(request.body);
        payload.map_or(true, |payload| {
            let payload = Value::from_serialize(payload);
            accept.evaluate(&payload, request.headers).is_true()
        })
    }

    fn reply(&self, payload: &Value, headers: &dyn Headers) -> Option<Json> {
        let reply = self.reply.as_ref()?.evaluate(payload, headers);
        let reply = serde_json::to_value(reply).ok()?;
        let fits = !reply.is_null() && reply.to_string().len() <= MAX_CHALLENGE_BYTES;
        fits.then_some(reply)
    }
}

impl Provider {
    /// Reads a proven webhook: which tasks it is about, and what it says of them. Elements of a list that name no
    /// task or have no status are passed over where others do.
    ///
    /// # Errors
    /// [`NotItsShape`] when the body is not what this provider sends.
    pub fn parse(
        &self,
        proof: &Verified<'_>,
        headers: &dyn Headers,
    ) -> Result<WebhookContent, PayloadError> {
        let payload: Json =
            serde_json::from_slice(proof.body()).map_err(|_| PayloadError::NotJson)?;
        let payload = Value::from_serialize(&payload);
        let webhook = &self.spec.webhook;
        if let Some(reply) = webhook.reply(&payload, headers) {
            return Ok(WebhookContent::Challenge(reply));
        }
        let can_be_asked = self.poll_policy.poll_after.is_some();
        let is_trusted = match proof.trust() {
            Trust::Signed => true,
            Trust::SenderOnly => !can_be_asked,
            Trust::Unsigned => false,
        };
        let listed = items(&webhook.items.evaluate(&payload, headers));
        let most = if is_trusted {
            usize::MAX
        } else {
            MAX_UNTRUSTED_TASKS
        };
        let mut named = listed
            .iter()
            .take(most)
            .filter_map(|item| self.spec.read.read(item))
            .peekable();
        if named.peek().is_none() {
            return Err(PayloadError::NoTask);
        }
        let mut news: Vec<TaskReport> = named
            .filter(|told| told.report.status.is_some() || told.has_status)
            .collect();
        if news.is_empty() {
            return Err(PayloadError::NoStatus);
        }
        for told in &mut news {
            told.report.is_authoritative = !can_be_asked;
            told.is_trusted = is_trusted;
        }
        Ok(WebhookContent::Tasks(news))
    }
}
