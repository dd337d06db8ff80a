//! Error codes and problem responses.
//!
//! Handlers return [`Problem`]. Errors of other modules are converted here, so this file decides which
//! status code and which text a client receives. A response with status 5xx contains no internal
//! details; its cause is logged here, once.

use std::fmt;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::{HttpResponse, HttpResponseBuilder, ResponseError};
use serde_json::{Value, json};

use crate::admission::AdmissionError;
use crate::cancellation::CancelError;
use crate::destinations::UrlNotAllowed;
use crate::destinations::archive::StorageError;
use crate::job::{InvalidDataUrl, Job};
use crate::provider::DownloadError;
use crate::{store, tracker};
use progress_hub_auth::jwt::TokenError;

/// `Retry-After` of a response that failed because of the store.
const STORE_RETRY_AFTER: Duration = Duration::from_secs(2);

/// `Retry-After` of a submission while the queue of its owner is full.
const QUEUE_RETRY_AFTER: Duration = Duration::from_secs(30);

/// `Retry-After` of a download that exceeds the limit of concurrent downloads.
const DOWNLOAD_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Media type of a problem body (RFC 9457).
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Declares [`ErrorCode`] from one table. A row has the meaning, the code, the HTTP status (`None` if
/// the code occurs on WebSockets only), whether it occurs on WebSockets, and whether a repetition of
/// the same request can succeed.
macro_rules! error_codes {
    ($(
        #[doc = $meaning:literal]
        $name:ident: $code:literal, $status:expr, websocket: $websocket:literal, retryable: $retryable:literal;
    )*) => {
        /// The stable code of an error, in problem responses and in WebSocket messages of the type `error`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $(#[doc = $meaning] $name,)*
        }

        impl ErrorCode {
            /// Every code, in alphabetical order.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns the code as clients see it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// Returns the HTTP status, or `None` if the code occurs on WebSockets only.
            #[must_use]
            pub const fn status(self) -> Option<StatusCode> {
                match self { $(Self::$name => $status,)* }
            }

            /// Returns whether the code occurs in WebSocket messages.
            #[must_use]
            pub const fn occurs_on_websocket(self) -> bool {
                match self { $(Self::$name => $websocket,)* }
            }

            /// Returns whether a repetition of the same request can succeed.
            #[must_use]
            pub const fn is_retryable(self) -> bool {
                match self { $(Self::$name => $retryable,)* }
            }

            /// Returns the meaning in one sentence.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning.trim_ascii(),)* }
            }
        }
    };
}

error_codes! {
    /// The bucket or folder with the copies of outputs cannot be used.
    ArchiveUnavailable: "archive_unavailable", Some(StatusCode::SERVICE_UNAVAILABLE), websocket: false, retryable: true;
    /// The message is not valid JSON, or not a client message.
    BadMessage: "bad_message", None, websocket: true, retryable: false;
    /// A budget does not allow the job.
    BudgetExceeded: "budget_exceeded", Some(StatusCode::PAYMENT_REQUIRED), websocket: false, retryable: false;
    /// The destination of the delivery is no longer configured.
    DestinationNotConfigured: "destination_not_configured", Some(StatusCode::CONFLICT), websocket: false, retryable: false;
    /// The node is shutting down.
    Draining: "draining", Some(StatusCode::SERVICE_UNAVAILABLE), websocket: false, retryable: true;
    /// The token lacks a scope.
    Forbidden: "forbidden", Some(StatusCode::FORBIDDEN), websocket: true, retryable: false;
    /// The idempotency key was used for another request.
    IdempotencyConflict: "idempotency_conflict", Some(StatusCode::CONFLICT), websocket: false, retryable: false;
    /// The store contains data that cannot be decoded.
    Internal: "internal", Some(StatusCode::INTERNAL_SERVER_ERROR), websocket: true, retryable: false;
    /// The grant in the link is for another output, or has expired.
    InvalidGrant: "invalid_grant", Some(StatusCode::FORBIDDEN), websocket: false, retryable: false;
    /// The webhook is authentic, but its payload is not in the provider's format.
    InvalidPayload: "invalid_payload", Some(StatusCode::BAD_REQUEST), websocket: false, retryable: false;
    /// A parameter or a field of the body is missing or invalid.
    InvalidRequest: "invalid_request", Some(StatusCode::BAD_REQUEST), websocket: false, retryable: false;
    /// The signature of the webhook is missing, malformed, too old or wrong.
    InvalidSignature: "invalid_signature", Some(StatusCode::UNAUTHORIZED), websocket: false, retryable: false;
    /// The job has reached a terminal status.
    JobFinal: "job_final", Some(StatusCode::CONFLICT), websocket: false, retryable: false;
    /// The public keys for the token or the webhook could not be fetched.
    KeysUnavailable: "keys_unavailable", Some(StatusCode::SERVICE_UNAVAILABLE), websocket: true, retryable: true;
    /// The resource does not support the HTTP method.
    MethodNotAllowed: "method_not_allowed", Some(StatusCode::METHOD_NOT_ALLOWED), websocket: false, retryable: false;
    /// The hub is not configured to mint tokens.
    MintingUnavailable: "minting_unavailable", Some(StatusCode::NOT_IMPLEMENTED), websocket: false, retryable: false;
    /// The job cannot be cancelled in its current state, or its provider does not cancel it.
    NotCancellable: "not_cancellable", Some(StatusCode::CONFLICT), websocket: true, retryable: false;
    /// The resource does not exist, or the caller may not see it.
    NotFound: "not_found", Some(StatusCode::NOT_FOUND), websocket: true, retryable: false;
    /// The destination cannot be tested without a job.
    NotTestable: "not_testable", Some(StatusCode::CONFLICT), websocket: false, retryable: false;
    /// Pages of this origin may not use the hub.
    OriginRefused: "origin_refused", Some(StatusCode::FORBIDDEN), websocket: false, retryable: false;
    /// The node has reached its maximum number of connections or memory for request bodies.
    OverCapacity: "over_capacity", Some(StatusCode::SERVICE_UNAVAILABLE), websocket: false, retryable: true;
    /// Neither the provider nor the archive has the output.
    OutputGone: "output_gone", Some(StatusCode::GONE), websocket: false, retryable: false;
    /// The body of the request is too large.
    PayloadTooLarge: "payload_too_large", Some(StatusCode::PAYLOAD_TOO_LARGE), websocket: false, retryable: false;
    /// The provider failed or could not be reached.
    ProviderError: "provider_error", Some(StatusCode::BAD_GATEWAY), websocket: true, retryable: true;
    /// Too many jobs of the owner wait for submission.
    QueueFull: "queue_full", Some(StatusCode::TOO_MANY_REQUESTS), websocket: false, retryable: true;
    /// The owner, subject or address has reached a rate limit.
    RateLimited: "rate_limited", Some(StatusCode::TOO_MANY_REQUESTS), websocket: false, retryable: true;
    /// The request took longer than `server.request_timeout` allows.
    RequestTimeout: "request_timeout", Some(StatusCode::REQUEST_TIMEOUT), websocket: false, retryable: true;
    /// The store cannot be reached or is overloaded.
    StoreUnavailable: "store_unavailable", Some(StatusCode::SERVICE_UNAVAILABLE), websocket: true, retryable: true;
    /// The new token has another subject.
    SubjectChanged: "subject_changed", None, websocket: true, retryable: false;
    /// The provider task belongs to another job.
    TaskKnown: "task_known", Some(StatusCode::CONFLICT), websocket: false, retryable: false;
    /// The address or subject has reached its maximum number of connections.
    TooManyConnections: "too_many_connections", Some(StatusCode::TOO_MANY_REQUESTS), websocket: false, retryable: true;
    /// The node, owner or link has reached the limit of concurrent downloads.
    TooManyDownloads: "too_many_downloads", Some(StatusCode::SERVICE_UNAVAILABLE), websocket: false, retryable: true;
    /// The connection has too many cancel requests in progress.
    TooManyRequests: "too_many_requests", None, websocket: true, retryable: true;
    /// The connection or subject has reached the limit of subscriptions by id.
    TooManySubscriptions: "too_many_subscriptions", Some(StatusCode::TOO_MANY_REQUESTS), websocket: true, retryable: false;
    /// The token is missing or invalid, or has expired.
    Unauthorized: "unauthorized", Some(StatusCode::UNAUTHORIZED), websocket: true, retryable: false;
    /// The provider is not configured.
    UnknownProvider: "unknown_provider", Some(StatusCode::BAD_REQUEST), websocket: false, retryable: false;
    /// The body is not JSON, or is compressed.
    UnsupportedMediaType: "unsupported_media_type", Some(StatusCode::UNSUPPORTED_MEDIA_TYPE), websocket: false, retryable: false;
    /// The resource is a WebSocket, but the request has no upgrade.
    UpgradeRequired: "upgrade_required", Some(StatusCode::UPGRADE_REQUIRED), websocket: false, retryable: false;
}

/// A failed request: `application/problem+json` (RFC 9457) on HTTP, `error` on a WebSocket.
#[derive(Debug)]
pub struct Problem {
    code: ErrorCode,
    detail: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    job: Option<Value>,
    reason: Option<&'static str>,
}

impl Problem {
    /// Creates a problem. `detail` is a text for people, in lower case and without a final period.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            headers: Vec::new(),
            job: None,
            reason: None,
        }
    }

    /// Sets the stable code of the cause, for logs.
    pub fn with_reason(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Adds a header to the response.
    pub fn with_header(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Sets the time after which the client should repeat the request.
    pub fn with_retry_after(self, wait: Duration) -> Self {
        self.with_header(header::RETRY_AFTER, wait.as_secs().max(1))
    }

    /// Adds the job that conflicts with the request.
    pub fn with_job(mut self, job: &Job) -> Self {
        self.job = serde_json::to_value(job).ok();
        self
    }

    /// `invalid_request`. `detail` begins with the name of the parameter or field.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, detail)
    }

    /// `method_not_allowed`. `allowed` lists the methods that the resource supports.
    pub fn method_not_allowed(allowed: &'static str) -> Self {
        let detail = format!("this resource supports only {allowed}");
        Self::new(ErrorCode::MethodNotAllowed, detail)
            .with_header(header::ALLOW, HeaderValue::from_static(allowed))
    }

    /// `not_found`, for a missing resource and for one that the caller may not see.
    pub fn not_found(resource: &str) -> Self {
        Self::new(ErrorCode::NotFound, format!("{resource} not found"))
    }

    /// `forbidden`: the token lacks `scope`.
    pub fn forbidden(scope: &str) -> Self {
        Self::new(
            ErrorCode::Forbidden,
            format!("this request requires a token with the scope {scope}"),
        )
    }

    /// Returns the code.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// Returns the text for people.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Returns the stable code of the cause, or `None` if the code of the problem identifies the
    /// cause.
    pub fn reason(&self) -> Option<&'static str> {
        self.reason
    }

    /// Returns the HTTP status.
    pub fn status(&self) -> StatusCode {
        let status = self.code.status();
        status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// Returns the JSON body.
    pub fn body(&self) -> String {
        let status = self.status();
        let mut body = json!({
            "title": status.canonical_reason().unwrap_or("Problem"),
            "status": status.as_u16(),
            "code": self.code.as_str(),
            "detail": self.detail,
            "retryable": self.code.is_retryable(),
        });
        if let Some(job) = &self.job {
            body["job"] = job.clone();
        }
        body.to_string()
    }

    /// Returns the headers, except for the content type.
    pub fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = vec![(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
        headers.extend(self.headers.iter().cloned());
        if self.status() == StatusCode::UNAUTHORIZED {
            headers.push((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
        }
        headers
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.status()
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponseBuilder::new(self.status());
        for header in self.headers() {
            response.insert_header(header);
        }
        if self.code == ErrorCode::RequestTimeout {
            // The rest of the request can still arrive on the connection.
            response.force_close();
        }
        response.content_type(PROBLEM_JSON).body(self.body())
    }
}

impl From<store::Error> for Problem {
    fn from(error: store::Error) -> Self {
        tracing::error!(%error, "store error");
        match error {
            store::Error::Unavailable(_) | store::Error::Overloaded => Self::new(
                ErrorCode::StoreUnavailable,
                "the store is temporarily unavailable; try again",
            )
            .with_retry_after(STORE_RETRY_AFTER),
            store::Error::Corrupt(_) => Self::new(ErrorCode::Internal, "internal error"),
        }
    }
}

impl From<tracker::Error> for Problem {
    fn from(error: tracker::Error) -> Self {
        match error {
            tracker::Error::NotFound => Self::not_found("job"),
            tracker::Error::Store(error) => error.into(),
        }
    }
}

impl From<UrlNotAllowed> for Problem {
    fn from(error: UrlNotAllowed) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<AdmissionError> for Problem {
    fn from(error: AdmissionError) -> Self {
        let detail = error.to_string();
        match error {
            AdmissionError::Parameters(_)
            | AdmissionError::Inline(_)
            | AdmissionError::Price(_) => Self::invalid(detail),
            AdmissionError::TooLarge(_) => Self::new(ErrorCode::PayloadTooLarge, detail),
            AdmissionError::Budget(_) => Self::new(ErrorCode::BudgetExceeded, detail),
            AdmissionError::QueueFull { .. } => {
                Self::new(ErrorCode::QueueFull, detail).with_retry_after(QUEUE_RETRY_AFTER)
            }
            AdmissionError::Rate { retry_after, .. } => {
                // Rounded up, so that a retry after exactly this many seconds is not too early.
                let seconds = retry_after.as_millis().div_ceil(1000) as u64;
                Self::new(ErrorCode::RateLimited, detail)
                    .with_retry_after(Duration::from_secs(seconds))
            }
        }
    }
}

impl From<CancelError> for Problem {
    fn from(error: CancelError) -> Self {
        match error {
            CancelError::NotFound => Self::not_found("job"),
            CancelError::Forbidden => Self::forbidden("jobs:write"),
            CancelError::NotCancellable(reason) => Self::new(ErrorCode::NotCancellable, reason),
            CancelError::Store(error) => error.into(),
            CancelError::Provider(error) => {
                tracing::warn!(%error, "provider cancel failed");
                Self::new(
                    ErrorCode::ProviderError,
                    "the provider did not cancel the job",
                )
            }
        }
    }
}

impl From<DownloadError> for Problem {
    fn from(error: DownloadError) -> Self {
        match error {
            DownloadError::Gone => Self::new(
                ErrorCode::OutputGone,
                "the provider no longer has this output",
            ),
            DownloadError::Busy => Self::new(
                ErrorCode::TooManyDownloads,
                "too many concurrent downloads on this node; try again",
            )
            .with_retry_after(DOWNLOAD_RETRY_AFTER),
            DownloadError::UrlNotAllowed(_)
            | DownloadError::Refused(_)
            | DownloadError::Failed(_) => {
                tracing::warn!(%error, "output download failed");
                Self::new(
                    ErrorCode::ProviderError,
                    "the provider did not return the output",
                )
            }
        }
    }
}

impl From<InvalidDataUrl> for Problem {
    fn from(error: InvalidDataUrl) -> Self {
        Self::new(ErrorCode::OutputGone, error.to_string())
    }
}

impl From<StorageError> for Problem {
    fn from(error: StorageError) -> Self {
        tracing::warn!(%error, "archived output not available");
        match error {
            StorageError::Missing(_) => Self::new(
                ErrorCode::OutputGone,
                "the archive no longer has this output",
            ),
            StorageError::Refused(_) | StorageError::Failed(_) => Self::new(
                ErrorCode::ArchiveUnavailable,
                "the archive is temporarily unavailable; try again",
            )
            .with_retry_after(DOWNLOAD_RETRY_AFTER),
        }
    }
}

impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Self {
        if let TokenError::KeysUnavailable { retry_after } = error {
            let detail = "the keys that verify tokens are temporarily unavailable; try again";
            return Self::new(ErrorCode::KeysUnavailable, detail).with_retry_after(retry_after);
        }
        let problem = Self::new(ErrorCode::Unauthorized, error.to_string());
        if error == TokenError::Missing {
            // A request without a token is not logged as a rejected token.
            return problem;
        }
        problem.with_reason(error.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(problem: &Problem) -> String {
        let headers = problem.headers().into_iter();
        let headers = headers.map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()));
        format!("{}{}", headers.collect::<String>(), problem.body())
    }

    #[test]
    fn every_code_has_a_problem_body() {
        let with_status = ErrorCode::ALL.iter().filter(|code| code.status().is_some());
        let problems = with_status.map(|code| describe(&Problem::new(*code, code.meaning())));
        insta::assert_snapshot!(problems.collect::<Vec<_>>().join("\n\n"));
    }

    #[test]
    fn errors_of_other_modules_become_problems() {
        let problems: [Problem; 13] = [
            store::Error::Unavailable("connection refused".to_owned()).into(),
            store::Error::Overloaded.into(),
            store::Error::Corrupt("invalid document".to_owned()).into(),
            tracker::Error::NotFound.into(),
            AdmissionError::Parameters("duration must be 5 or 10".to_owned()).into(),
            AdmissionError::Budget("budgets.per_job: 1 is left".to_owned()).into(),
            CancelError::NotCancellable("the job has ended").into(),
            CancelError::Forbidden.into(),
            DownloadError::Gone.into(),
            DownloadError::Busy.into(),
            StorageError::Refused("status 403".to_owned()).into(),
            DownloadError::Failed("connection refused".to_owned()).into(),
            TokenError::KeysUnavailable {
                retry_after: Duration::from_secs(30),
            }
            .into(),
        ];
        let described: Vec<String> = problems.iter().map(describe).collect();
        insta::assert_snapshot!(described.join("\n\n"));
    }

    #[test]
    fn rate_limit_is_rounded_up_to_seconds() {
        let retry_after = Duration::from_millis(6001);
        let problem = Problem::from(AdmissionError::Rate {
            limit: 10,
            retry_after,
        });
        assert_eq!(problem.code(), ErrorCode::RateLimited);
        assert!(describe(&problem).contains("retry-after: 7\n"));
    }
}
