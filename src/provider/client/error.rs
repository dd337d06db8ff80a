//! Errors of requests to a provider.
//!
//! A response of a gateway is never taken for a definitive rejection by the provider.

use std::time::Duration;

use minijinja::Value;

use super::http::{Response, SendError};
use super::retry_hints;
use crate::job::{Failure, FailureKind};
use crate::provider::breaker::{AccountVerdict, CircuitOpen, RequestResult};
use crate::provider::spec::Spec;
use crate::telemetry::CallOutcome;
use crate::time::Time;

/// The provider or the hub rejected a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    /// The failure as the job document reports it.
    pub failure: Failure,
    /// Delay that the provider requested.
    pub retry_after: Option<Duration>,
    /// Whether it is certain that the provider did not accept the job. It is not certain for a bare
    /// 500, a 502 of a gateway, or a 200 with an unknown body.
    pub is_definitive: bool,
    /// Whether a retry can succeed, if the provider states it.
    pub provider_retryable: Option<bool>,
    /// Effective status of the response. `None` if there was no response.
    pub http_status: Option<u16>,
    /// Kind by the codes and the status of the response. The text of a response can contain input
    /// of the caller, so it must not affect requests of other owners.
    pub kind_by_code: FailureKind,
}

/// It is unknown whether the provider accepted the job. The text describes the cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownOutcome(pub String);

/// A request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestError {
    /// No connection could be established.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// No complete response.
    #[error("no response: {0}")]
    NoResponse(String),
    /// The provider rejected the request.
    #[error("rejected: {}", .0.failure.message)]
    Rejected(Rejection),
    /// The spec does not yield a valid request or result for this job.
    #[error("invalid spec: {0}")]
    InvalidSpec(String),
    /// The circuit breaker does not allow requests.
    #[error(transparent)]
    CircuitOpen(#[from] CircuitOpen),
}

impl From<SendError> for RequestError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::NotSent(cause) => Self::Unreachable(cause),
            SendError::OutcomeUnknown(cause) => Self::NoResponse(cause),
        }
    }
}

impl RequestError {
    /// Returns the outcome for metrics, or `None` if no request was sent.
    #[must_use]
    pub fn outcome(&self) -> Option<CallOutcome> {
        match self {
            Self::Rejected(rejection) if rejection.failure.kind == FailureKind::RateLimit => {
                Some(CallOutcome::RateLimited)
            }
            Self::Rejected(_) => Some(CallOutcome::Rejected),
            Self::Unreachable(_) | Self::NoResponse(_) | Self::InvalidSpec(_) => {
                Some(CallOutcome::NoResponse)
            }
            Self::CircuitOpen(_) => None,
        }
    }

    /// Returns the result for the circuit breaker.
    pub(super) fn breaker_result(&self) -> RequestResult {
        match self {
            Self::Rejected(rejection) => rejection.breaker_result(),
            Self::Unreachable(_) => RequestResult::Unreachable,
            Self::NoResponse(_) => RequestResult::Failure(FailureKind::Technical, None),
            Self::InvalidSpec(_) | Self::CircuitOpen(_) => RequestResult::NotSent,
        }
    }
}

impl Rejection {
    /// Returns a rejection because the request could not be sent.
    #[must_use]
    pub fn technical(message: impl Into<String>) -> Self {
        Self::without_response(FailureKind::Technical, message)
    }

    /// Returns a rejection because the hub cannot make this request.
    #[must_use]
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::without_response(FailureKind::InvalidInput, message)
    }

    fn without_response(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            failure: Failure::new(kind, message),
            retry_after: None,
            is_definitive: true,
            provider_retryable: None,
            http_status: None,
            kind_by_code: kind,
        }
    }

    /// Returns the rejection that a response means, or `None` if the response is a success.
    pub(super) fn from_response(spec: &Spec, response: &Response, payload: &Value) -> Option<Self> {
        let answer = &spec.answer;
        if answer.is_success(response.status, payload) {
            return None;
        }
        let headers = response.headers().collect();
        let status = answer.status(response.status, payload);
        let details = answer.error_details(response.status, &headers, payload);
        let has_code = details.code.is_some();
        let kind_by_code = spec.errors.kind_by_code(&details);
        let (failure, matches_rule) = spec.errors.failure(details, payload);
        let mut rejection = Self {
            failure,
            retry_after: retry_hints::delay(response, Time::now()),
            is_definitive: matches_rule || has_code || is_definitive_status(status),
            provider_retryable: retry_hints::is_retryable(response),
            http_status: Some(status),
            kind_by_code,
        };
        if rejection.provider_retryable.is_some() {
            rejection.failure.retryable = rejection.is_retryable();
        }
        Some(rejection)
    }

    /// Returns whether the same request may be sent again. For kinds that can pass by themselves,
    /// the provider's statement takes precedence over the kind.
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

    /// Returns whether the provider does not have the task, or no longer has it.
    #[must_use]
    pub fn is_task_not_found(&self) -> bool {
        matches!(self.http_status, Some(404 | 410))
            || self.failure.kind == FailureKind::ResultExpired
    }

    /// Returns whether a rejected result request means that the task itself failed.
    pub(super) fn is_about_task(&self) -> bool {
        let is_error_status = self.http_status.is_some_and(|status| status >= 400);
        self.is_definitive
            && match self.failure.kind {
                FailureKind::Safety | FailureKind::InvalidInput | FailureKind::Timeout => true,
                FailureKind::Technical => self.failure.provider_code.is_some() && is_error_status,
                FailureKind::Quota
                | FailureKind::RateLimit
                | FailureKind::Auth
                | FailureKind::SubmissionUnknown
                | FailureKind::ResultExpired => false,
            }
    }

    /// Returns the result for the circuit breaker.
    ///
    /// Rate limits and technical failures affect other owners without confirmation, so they are
    /// determined by codes only. All other kinds may also follow from the text of the response.
    pub(super) fn breaker_result(&self) -> RequestResult {
        let kind = match self.failure.kind {
            FailureKind::RateLimit | FailureKind::Technical => self.kind_by_code,
            kind @ (FailureKind::Safety
            | FailureKind::InvalidInput
            | FailureKind::Quota
            | FailureKind::Auth
            | FailureKind::Timeout
            | FailureKind::SubmissionUnknown
            | FailureKind::ResultExpired) => kind,
        };
        match (self.http_status, kind) {
            (None, FailureKind::InvalidInput) => RequestResult::NotSent,
            (None, _) => RequestResult::Unreachable,
            (Some(_), kind) => RequestResult::Failure(kind, self.retry_after),
        }
    }

    /// Returns the result of an account check that the provider rejected, or `None` if the
    /// rejection does not show the state of the account. A 403 does not: a valid key may lack the
    /// permission for this request.
    pub(super) fn account_verdict(&self) -> Option<AccountVerdict> {
        match self.failure.kind {
            FailureKind::Auth if self.http_status == Some(403) => None,
            FailureKind::Auth => Some(AccountVerdict::KeyRejected),
            FailureKind::Quota => Some(AccountVerdict::NoCredit),
            // The provider accepts the key but has no such task.
            FailureKind::InvalidInput | FailureKind::ResultExpired => {
                Some(AccountVerdict::KeyValid)
            }
            FailureKind::Safety
            | FailureKind::RateLimit
            | FailureKind::Technical
            | FailureKind::Timeout
            | FailureKind::SubmissionUnknown => None,
        }
    }
}

/// Returns whether the status alone shows that the request was not accepted. A timeout status (408,
/// 499) does not: the provider may have accepted the request.
fn is_definitive_status(status: u16) -> bool {
    let is_timeout = matches!(status, 408 | 499);
    ((300..500).contains(&status) && !is_timeout) || status == 503
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Returns a spec that has a code, a message and a rule for the code 1102.
    fn spec(answer: &str) -> Spec {
        toml::from_str(&format!(
            "title = 'Test'\nsignature = {{ scheme = 'none' }}\nanswer = {{ {answer} }}\n\
             [read]\nstatus = 'payload.status'\nstatuses = {{}}\n\
             [[errors]]\nwhen = \"code == '1102'\"\nkind = 'quota'\nretryable = true"
        ))
        .unwrap()
    }

    fn rejection_of(response: &Response) -> Rejection {
        let spec = spec("ok = 'false', code = 'payload.code', message = 'payload.message'");
        Rejection::from_response(&spec, response, &response.json()).unwrap()
    }

    fn rejection(status: u16, body: &str) -> Rejection {
        rejection_of(&Response::for_test(status, body))
    }

    #[test]
    fn only_definitive_responses_are_rejections() {
        for (status, body, is_definitive) in [
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
            let rejection = rejection(status, body);
            assert_eq!(rejection.is_definitive, is_definitive, "{status} {body}");
        }
    }

    #[test]
    fn body_status_can_turn_success_into_failure_only() {
        let spec = spec("http = 'payload.code'");
        for (status, body, expected) in [
            (
                200,
                r#"{"code": 402}"#,
                Some((402, FailureKind::Quota, true)),
            ),
            (
                201,
                r#"{"code": "429"}"#,
                Some((429, FailureKind::RateLimit, true)),
            ),
            (
                200,
                r#"{"code": 500}"#,
                Some((500, FailureKind::Technical, false)),
            ),
            (200, r#"{"code": 200}"#, None),
            (200, r#"{"code": 1039}"#, None),
            (200, r#"{"code": null}"#, None),
            (200, "<html>", None),
            (
                500,
                r#"{"code": 200}"#,
                Some((500, FailureKind::Technical, false)),
            ),
            (
                503,
                r#"{"code": 402}"#,
                Some((503, FailureKind::Technical, true)),
            ),
        ] {
            let response = Response::for_test(status, body);
            let rejection = Rejection::from_response(&spec, &response, &response.json());
            let rejection =
                rejection.map(|it| (it.http_status.unwrap(), it.failure.kind, it.is_definitive));
            assert_eq!(rejection, expected, "{status} {body}");
        }
    }

    #[test]
    fn provider_error_code_takes_precedence_over_http_status() {
        let quota = rejection(429, r#"{"code": 1102, "message": "empty"}"#).failure;
        assert_eq!((quota.kind, quota.retryable), (FailureKind::Quota, true));
        assert_eq!(quota.provider_code.as_deref(), Some("1102"));
        assert_eq!(quota.message, "empty");
        let busy = rejection(429, "").failure;
        assert_eq!((busy.kind, busy.retryable), (FailureKind::RateLimit, true));
        assert_eq!(busy.message, "provider responded with status 429");
    }

    #[test]
    fn provider_retry_header_applies_to_retryable_kinds() {
        for (status, body, header, is_retryable, is_definitive) in [
            (500, r#"{"code": 5000}"#, "false", false, true),
            (500, r#"{"code": 5000}"#, "true", true, true),
            (429, "", "false", false, true),
            (422, "", "true", true, true),
            (401, "", "true", false, true),
            (402, "", "true", false, true),
            (500, "oops", "true", true, false),
        ] {
            let response = Response::for_test(status, body).with_header("x-fal-retryable", header);
            let rejection = rejection_of(&response);
            assert_eq!(rejection.is_retryable(), is_retryable, "{status} {header}");
            let documented = rejection.failure.retryable;
            assert_eq!(documented, is_retryable, "{status} {header}");
            assert_eq!(rejection.is_definitive, is_definitive, "{status} {header}");
        }
        assert!(rejection(429, "").is_retryable());
        assert!(!rejection(422, "").is_retryable());
    }

    #[test]
    fn long_error_messages_are_truncated() {
        let body = json!({ "code": 1, "message": "é".repeat(2000) }).to_string();
        let message = rejection(400, &body).failure.message;
        assert_eq!(message.chars().count(), 500);
    }
}
