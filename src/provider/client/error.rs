//! What a provider's refusal means, and how long it asks to be left alone.
//!
//! Invariant: a provider's own code decides before the HTTP status does (a 429 can mean that the
//! credit is gone), and a gateway's word is never taken for the provider's refusal.

use std::collections::BTreeMap;
use std::time::Duration;

use minijinja::Value;
use serde::Deserialize;
use serde_json::json;

use crate::job::{Failure, FailureKind};
use crate::provider::breaker::{CircuitOpen, RequestResult};
use crate::provider::client::http::Response;
use crate::provider::client::retry_hints;
use crate::provider::spec::expression::{Expression, text};
use crate::telemetry::CallOutcome;
use crate::time::Time;

/// The provider does not have the job, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    /// As the document will tell it.
    pub failure: Failure,
    /// How long the provider asks to wait.
    pub retry_after: Option<Duration>,
    /// Whether the provider does not have the job, for sure: its own word says so, or the status
    /// can mean nothing else. A bare 500, a gateway's 502 and a 200 that is no answer of the
    /// provider's leave it open.
    pub is_definitive: bool,
    /// Whether the provider says that another try may pass, or may not.
    pub provider_retryable: Option<bool>,
    /// The status of the answer; none where none came.
    pub http_status: Option<u16>,
}

/// The provider may or may not have the job; the text says what happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownOutcome(pub String);

/// Why asking brought nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestError {
    /// No answer, or none that is whole.
    #[error("no answer: {0}")]
    NoResponse(String),
    /// An answer that says no.
    #[error("refused: {}", .0.failure.message)]
    Rejected(Rejection),
    /// The spec makes no request out of this job.
    #[error("the spec makes no request: {0}")]
    InvalidSpec(String),
    /// The provider is left alone for now.
    #[error(transparent)]
    CircuitOpen(#[from] CircuitOpen),
}

impl RequestError {
    /// What it is counted as; nothing where nothing was sent.
    #[must_use]
    pub fn outcome(&self) -> Option<CallOutcome> {
        match self {
            Self::Rejected(refused) if refused.failure.kind == FailureKind::RateLimit => {
                Some(CallOutcome::RateLimited)
            }
            Self::Rejected(_) => Some(CallOutcome::Rejected),
            Self::NoResponse(_) | Self::InvalidSpec(_) => Some(CallOutcome::NoResponse),
            Self::CircuitOpen(_) => None,
        }
    }
}

impl Rejection {
    /// The request could not be delivered; nothing was sent.
    #[must_use]
    pub fn technical(message: impl Into<String>) -> Self {
        Self {
            failure: Failure::new(FailureKind::Technical, message),
            retry_after: None,
            is_definitive: true,
            provider_retryable: None,
            http_status: None,
        }
    }

    /// The hub itself can't make this request.
    #[must_use]
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self {
            failure: Failure::new(FailureKind::InvalidInput, message),
            retry_after: None,
            is_definitive: true,
            provider_retryable: None,
            http_status: None,
        }
    }

    /// Whether the same request may be made again: as the provider says, or else by the kind. What
    /// only a person can mend is never tried again.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self.failure.kind {
            FailureKind::RateLimit | FailureKind::Technical | FailureKind::InvalidInput => {
                let by_kind = self.failure.kind.is_retryable();
                self.provider_retryable.unwrap_or(by_kind)
            }
            FailureKind::Safety
            | FailureKind::Quota
            | FailureKind::Auth
            | FailureKind::Timeout
            | FailureKind::SubmissionUnknown
            | FailureKind::ResultExpired => false,
        }
    }

    /// Whether the provider does not know, or no longer knows, what it was asked for.
    #[must_use]
    pub fn is_task_not_found(&self) -> bool {
        matches!(self.http_status, Some(404 | 410))
            || self.failure.kind == FailureKind::ResultExpired
    }

    /// What it says of the provider.
    pub(in crate::provider) fn breaker_result(&self) -> RequestResult {
        match (self.http_status, self.failure.kind) {
            (None, FailureKind::InvalidInput) => RequestResult::NotSent,
            (None | Some(_), kind) => RequestResult::Failure(kind, self.retry_after),
        }
    }
}

/// What an answer says of itself.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::provider) struct ResponseSpec {
    /// Whether an answer with a 2xx status really is one.
    ok: Option<Expression>,
    /// The status, where an answer with a 2xx tells another one in its body.
    http: Option<Expression>,
    /// These two see the answer's `headers`, too, by their lower-case names.
    code: Option<Expression>,
    message: Option<Expression>,
}

impl ResponseSpec {
    /// Whether an answer is a success, by its status and by its body.
    pub(in crate::provider) fn is_ok(&self, answer: &Response, payload: &Value) -> bool {
        let is_true = |ok: &Expression| ok.evaluate(payload).is_true();
        is_success(self.status(answer, payload)) && self.ok.as_ref().is_none_or(is_true)
    }

    /// The status that counts. A success may be denied by the body, a failure never made good.
    fn status(&self, answer: &Response, payload: &Value) -> u16 {
        let told = || {
            let told = self.http.as_ref()?.evaluate(payload);
            let status = text(&told)?.parse().ok()?;
            (100..600).contains(&status).then_some(status)
        };
        match is_success(answer.status) {
            true => told().unwrap_or(answer.status),
            false => answer.status,
        }
    }
}

/// `when` holds → `kind`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::provider) struct ErrorRule {
    /// Over `code` and `status` (text), `message`, `http` (undefined within a task) and `payload`.
    when: Expression,
    kind: FailureKind,
    /// Whether a fresh submission may succeed, where that does not follow from the kind.
    retryable: Option<bool>,
}

/// A spec's rules; the first that holds decides.
#[derive(Default)]
pub(in crate::provider) struct ErrorRules {
    pub(in crate::provider) rules: Vec<ErrorRule>,
}

/// What a provider said of a failure.
#[derive(Default)]
pub(in crate::provider) struct ErrorDetails {
    pub(in crate::provider) code: Option<String>,
    pub(in crate::provider) status: Option<String>,
    pub(in crate::provider) message: Option<String>,
}

impl ErrorRules {
    /// What failed, of a task that the provider itself has ended.
    pub(in crate::provider) fn failure(&self, complaint: ErrorDetails, payload: &Value) -> Failure {
        let known = self.kind(&complaint, None, payload);
        told(complaint, known, FailureKind::Technical)
    }

    /// What an answer that is no success means.
    pub(in crate::provider) fn refusal(
        &self,
        answer: &Response,
        shape: &ResponseSpec,
        payload: &Value,
    ) -> Rejection {
        let headers: BTreeMap<&str, &str> = answer.headers().collect();
        let names = minijinja::context! { payload, headers };
        let word = |expression: &Option<Expression>| {
            expression
                .as_ref()
                .and_then(|expression| text(&expression.evaluate_in(&names)))
        };
        let http = shape.status(answer, payload);
        let message =
            word(&shape.message).or_else(|| Some(format!("the provider answered {http}")));
        let complaint = ErrorDetails {
            code: word(&shape.code),
            status: None,
            message,
        };
        let known = self.kind(&complaint, Some(http), payload);
        let is_its_own = known.is_some() || complaint.code.is_some();
        let by_status = kind_for_status(http);
        let mut refused = Rejection {
            failure: told(complaint, known, by_status),
            retry_after: retry_hints::wait(answer, Time::now()),
            is_definitive: is_its_own || is_definitive_status(http),
            provider_retryable: retry_hints::may_retry(answer),
            http_status: Some(http),
        };
        if refused.provider_retryable.is_some() {
            refused.failure.retryable = refused.is_retryable();
        }
        refused
    }

    fn kind(
        &self,
        complaint: &ErrorDetails,
        http: Option<u16>,
        payload: &Value,
    ) -> Option<(FailureKind, Option<bool>)> {
        let names = Value::from_serialize(json!({
            "code": complaint.code,
            "status": complaint.status,
            "message": complaint.message,
            "http": http,
        }));
        let names = minijinja::context! { payload, ..names };
        let rule = self
            .rules
            .iter()
            .find(|rule| rule.when.evaluate_in(&names).is_true());
        rule.map(|rule| (rule.kind, rule.retryable))
    }
}

fn told(
    complaint: ErrorDetails,
    known: Option<(FailureKind, Option<bool>)>,
    otherwise: FailureKind,
) -> Failure {
    let (kind, retryable) = known.unwrap_or((otherwise, None));
    let message = complaint
        .message
        .unwrap_or_else(|| "the provider gave no reason".to_owned());
    let mut failure = Failure::new(kind, message.chars().take(500).collect::<String>());
    failure.provider_code = complaint.code;
    failure.retryable = retryable.unwrap_or(failure.retryable);
    failure
}

fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

/// Whether a status alone says that the request was not taken. One that tells of a timeout says that
/// somebody stopped waiting, and no more.
fn is_definitive_status(status: u16) -> bool {
    let is_a_timeout = matches!(status, 408 | 499);
    ((300..500).contains(&status) && !is_a_timeout) || status == 503
}

/// What a status means where no rule knows better.
fn kind_for_status(status: u16) -> FailureKind {
    match status {
        401 | 403 => FailureKind::Auth,
        402 => FailureKind::Quota,
        429 => FailureKind::RateLimit,
        400 | 404 | 405 | 409 | 410 | 413 | 415 | 422 | 451 => FailureKind::InvalidInput,
        _ => FailureKind::Technical,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, body: &str) -> Rejection {
        refused_by(&Response::for_test(status, body))
    }

    fn refused_by(answer: &Response) -> Rejection {
        let shape: ResponseSpec =
            toml::from_str("code = 'payload.code'\nmessage = 'payload.message'").unwrap();
        let rules = "[[rules]]\nwhen = \"code == '1102'\"\nkind = 'quota'\nretryable = true";
        let rules: BTreeMap<String, Vec<ErrorRule>> = toml::from_str(rules).unwrap();
        let rules = ErrorRules {
            rules: rules.into_values().flatten().collect(),
        };
        rules.refusal(answer, &shape, &answer.json())
    }

    #[test]
    fn only_definitive_responses_are_rejections() {
        for (status, body, is_certain) in [
            (400, "", true),
            (404, "<html>", true),
            (429, "", true),
            (503, "", true),
            (500, r#"{"code": 5000}"#, true),
            (200, r#"{"code": "1102"}"#, true),
            (502, r#"{"code": 1102}"#, true),
            (200, "", false),
            (200, "<html>", false),
            (500, "oops", false),
            (502, "", false),
            (504, "{}", false),
            (408, "", false),
            (408, r#"{"code": 1102}"#, true),
            (499, "", false),
        ] {
            assert_eq!(
                refused(status, body).is_definitive,
                is_certain,
                "{status} {body}"
            );
        }
    }

    #[test]
    fn body_status_can_turn_success_into_failure_only() {
        let shape: ResponseSpec = toml::from_str("http = 'payload.code'").unwrap();
        for (status, body, counts) in [
            (200, r#"{"code": 402}"#, 402),
            (201, r#"{"code": "429"}"#, 429),
            (200, r#"{"code": 500}"#, 500),
            (200, r#"{"code": 200}"#, 200),
            (200, r#"{"code": 1039}"#, 200),
            (200, r#"{"code": null}"#, 200),
            (200, "<html>", 200),
            (500, r#"{"code": 200}"#, 500),
            (503, r#"{"code": 402}"#, 503),
        ] {
            let answer = Response::for_test(status, body);
            let payload = answer.json();
            assert_eq!(shape.status(&answer, &payload), counts, "{status} {body}");
            assert_eq!(shape.is_ok(&answer, &payload), counts == 200, "{body}");
            let refused = ErrorRules::default().refusal(&answer, &shape, &payload);
            assert_eq!(
                refused.failure.kind,
                kind_for_status(counts),
                "{status} {body}"
            );
            assert_eq!(
                refused.is_definitive,
                is_definitive_status(counts),
                "{status} {body}"
            );
        }
    }

    #[test]
    fn provider_error_code_takes_precedence_over_http_status() {
        let quota = refused(429, r#"{"code": 1102, "message": "empty"}"#).failure;
        assert_eq!((quota.kind, quota.retryable), (FailureKind::Quota, true));
        assert_eq!(quota.provider_code.as_deref(), Some("1102"));
        assert_eq!(quota.message, "empty");
        let busy = refused(429, "").failure;
        assert_eq!((busy.kind, busy.retryable), (FailureKind::RateLimit, true));
        assert_eq!(busy.message, "the provider answered 429");
    }

    #[test]
    fn provider_retry_header_applies_to_retryable_kinds() {
        for (status, body, word, is_retried, is_certain) in [
            (500, r#"{"code": 5000}"#, "false", false, true),
            (500, r#"{"code": 5000}"#, "true", true, true),
            (429, "", "false", false, true),
            (422, "", "true", true, true),
            (401, "", "true", false, true),
            (402, "", "true", false, true),
            (500, "oops", "true", true, false),
        ] {
            let answer = Response::for_test(status, body).with("x-fal-retryable", word);
            let refused = refused_by(&answer);
            assert_eq!(refused.is_retryable(), is_retried, "{status} {word}");
            assert_eq!(refused.failure.retryable, is_retried, "{status} {word}");
            assert_eq!(refused.is_definitive, is_certain, "{status} {word}");
        }
        assert!(refused(429, "").is_retryable());
        assert!(!refused(422, "").is_retryable());
    }

    #[test]
    fn long_error_messages_are_truncated() {
        let body = json!({ "code": 1, "message": "é".repeat(2000) }).to_string();
        assert_eq!(refused(400, &body).failure.message.chars().count(), 500);
    }
}
