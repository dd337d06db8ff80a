//! How a spec recognizes errors, and the kinds that it assigns to them.
//!
//! A provider's own error code takes precedence over the HTTP status: a 429 can mean that the
//! account has no credit.

use std::collections::BTreeMap;

use minijinja::{Value, context};
use serde::Deserialize;

use super::expression::Expression;
use super::value::text;
use crate::job::{Failure, FailureKind};

/// Maximum length of an error message, in characters. Longer ones are truncated.
const MAX_MESSAGE_CHARS: usize = 500;

/// The `[answer]` table: success and errors of a response.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResponseSpec {
    /// Whether a response with a 2xx status is a success.
    ok: Option<Expression>,
    /// Status in the body of a response with a 2xx status.
    http: Option<Expression>,
    /// Error code, an expression over `payload` and `headers` (by lower-case name).
    code: Option<Expression>,
    /// Error message, over the same names.
    message: Option<Expression>,
}

impl ResponseSpec {
    /// Returns whether a response is a success by its status and its body.
    pub(crate) fn is_success(&self, http_status: u16, payload: &Value) -> bool {
        let is_ok = |ok: &Expression| ok.evaluate(payload).is_true();
        is_success(self.status(http_status, payload)) && self.ok.as_ref().is_none_or(is_ok)
    }

    /// Returns the effective status. The body can turn a success into a failure but not the
    /// reverse.
    pub(crate) fn status(&self, http_status: u16, payload: &Value) -> u16 {
        let in_body = || {
            let status = text(&self.http.as_ref()?.evaluate(payload))?.parse().ok()?;
            (100..600).contains(&status).then_some(status)
        };
        if is_success(http_status) {
            in_body().unwrap_or(http_status)
        } else {
            http_status
        }
    }

    /// Returns the error code and message of a response that is not a success.
    pub(crate) fn error_details(
        &self,
        http_status: u16,
        headers: &BTreeMap<&str, &str>,
        payload: &Value,
    ) -> ErrorDetails {
        let context = context! { payload, headers };
        let evaluate =
            |expression: &Option<Expression>| text(&expression.as_ref()?.evaluate_in(&context));
        let status = self.status(http_status, payload);
        ErrorDetails {
            code: evaluate(&self.code),
            status: None,
            http_status: Some(status),
            message: evaluate(&self.message)
                .or_else(|| Some(format!("provider responded with status {status}"))),
        }
    }
}

/// An `[[errors]]` table: assigns a kind to errors that match a condition.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ErrorRule {
    /// Expression over `code` and `status` (text), `message`, `http` (null for a failed task) and
    /// `payload`.
    when: Expression,
    kind: FailureKind,
    /// Whether submitting again may succeed. Default: by the kind.
    retryable: Option<bool>,
}

/// The rules of a spec. The first that matches decides.
#[derive(Default, Deserialize)]
#[serde(transparent)]
pub(crate) struct ErrorRules(Vec<ErrorRule>);

/// An error as the provider describes it.
#[derive(Default)]
pub(crate) struct ErrorDetails {
    pub(crate) code: Option<String>,
    /// Status of a failed task.
    pub(crate) status: Option<String>,
    /// Effective status of the response. `None` for a failed task.
    pub(crate) http_status: Option<u16>,
    pub(crate) message: Option<String>,
}

impl ErrorRules {
    /// Returns the kind of an error by its codes and status. Its message and the payload are
    /// ignored, because they can contain input of the caller.
    pub(crate) fn kind_by_code(&self, details: &ErrorDetails) -> FailureKind {
        let context = context! {
            code => details.code,
            status => details.status,
            http => details.http_status,
        };
        let by_status = details.http_status.map(kind_for_status);
        let rule = self.find(&context).map(|rule| rule.kind);
        rule.or(by_status).unwrap_or(FailureKind::Technical)
    }

    fn find(&self, context: &Value) -> Option<&ErrorRule> {
        let mut rules = self.0.iter();
        rules.find(|rule| rule.when.evaluate_in(context).is_true())
    }

    /// Returns the failure that an error means, and whether a rule matched. Without a matching rule
    /// the kind follows from the HTTP status, and is `technical` for a failed task.
    pub(crate) fn failure(&self, details: ErrorDetails, payload: &Value) -> (Failure, bool) {
        let context = context! {
            payload,
            code => details.code,
            status => details.status,
            message => details.message,
            http => details.http_status,
        };
        let rule = self.find(&context);
        let by_status = details.http_status.map(kind_for_status);
        let kind = rule.map(|rule| rule.kind).or(by_status);
        let message = details.message.as_deref();
        let message = message.unwrap_or("the provider reported no reason");
        let mut failure = Failure::new(
            kind.unwrap_or(FailureKind::Technical),
            message.chars().take(MAX_MESSAGE_CHARS).collect::<String>(),
        );
        failure.provider_code = details.code;
        if let Some(retryable) = rule.and_then(|rule| rule.retryable) {
            failure.retryable = retryable;
        }
        (failure, rule.is_some())
    }
}

fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

/// Returns the kind of an error that no rule matches.
fn kind_for_status(status: u16) -> FailureKind {
    match status {
        401 | 403 => FailureKind::Auth,
        402 => FailureKind::Quota,
        429 => FailureKind::RateLimit,
        400 | 404 | 405 | 409 | 410 | 413 | 415 | 422 | 451 => FailureKind::InvalidInput,
        _ => FailureKind::Technical,
    }
}
