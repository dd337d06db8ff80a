//! The `[webhook]` table of a spec.

use std::collections::BTreeMap;

use minijinja::{Value, context};
use progress_hub_auth::signature::{Headers, Request};
use serde::Deserialize;
use serde_json::Value as Json;

use super::expression::Expression;
use super::request_spec::whole_payload;
use super::value::items;

/// Maximum size of the response to a challenge, in bytes of JSON. Anything longer is not a
/// challenge.
const MAX_CHALLENGE_BYTES: usize = 1024;

/// How to read a webhook.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct WebhookSpec {
    /// The task or the list of tasks in the body. Default: the whole body.
    #[serde(alias = "item")]
    items: Expression,
    /// Response to a challenge. Null for any other webhook.
    reply: Option<Expression>,
    /// Condition that a webhook must meet in addition to the signature.
    accept: Option<Expression>,
    /// Maximum size of a body in bytes, if it is less than `server.max_body_bytes`.
    pub(crate) max_body_bytes: Option<usize>,
}

impl Default for WebhookSpec {
    fn default() -> Self {
        Self {
            items: whole_payload(),
            reply: None,
            accept: None,
            max_body_bytes: None,
        }
    }
}

impl WebhookSpec {
    /// Returns whether a webhook meets the `accept` condition. A body that is not JSON is accepted
    /// here, because parsing reports it with a better error.
    pub(crate) fn accepts(&self, request: &Request<'_>) -> bool {
        let Some(accept) = &self.accept else {
            return true;
        };
        let Ok(payload) = serde_json::from_slice::<Json>(request.body) else {
            return true;
        };
        let payload = Value::from_serialize(payload);
        evaluate(accept, &payload, request.headers).is_true()
    }

    /// Returns the response to a challenge, or `None` if the webhook is not a challenge.
    pub(crate) fn challenge_response(
        &self,
        payload: &Value,
        headers: &dyn Headers,
    ) -> Option<Json> {
        let reply = evaluate(self.reply.as_ref()?, payload, headers);
        let reply = serde_json::to_value(reply).ok()?;
        let is_challenge = !reply.is_null() && reply.to_string().len() <= MAX_CHALLENGE_BYTES;
        is_challenge.then_some(reply)
    }

    /// Returns the tasks of a webhook.
    pub(crate) fn tasks(&self, payload: &Value, headers: &dyn Headers) -> Vec<Value> {
        items(&evaluate(&self.items, payload, headers))
    }
}

/// Evaluates an expression over `payload` and `headers`. Headers are converted only if it uses
/// them.
fn evaluate(expression: &Expression, payload: &Value, headers: &dyn Headers) -> Value {
    if !expression.uses_headers() {
        return expression.evaluate(payload);
    }
    let mut by_name = BTreeMap::new();
    for (name, value) in headers.pairs() {
        // Signature verification uses the first of several headers with one name.
        by_name.entry(name.to_ascii_lowercase()).or_insert(value);
    }
    expression.evaluate_in(&context! { payload, headers => by_name })
}
