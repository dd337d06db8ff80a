//! Errors as HTTP tells them; the one file that knows status codes.
//!
//! Invariant: a code is a stable word of the README's table; a 5xx tells nothing internal, and its
//! cause is logged here, once.

use std::fmt;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, HttpResponseBuilder, ResponseError};
use serde_json::{Value, json};

use crate::admission::AdmissionError;
use crate::cancellation::CancelError;
use crate::job::Job;
use crate::provider::DownloadError;
use crate::{store, tracker};
use progress_hub_auth::jwt::TokenError;

/// When to come back after the store failed.
const STORE_RETRY_AFTER: Duration = Duration::from_secs(2);

/// When to come back while all places for downloads are taken.
const DOWNLOAD_RETRY_AFTER: Duration = Duration::from_secs(5);

/// An answer that is not the one asked for: `application/problem+json` (RFC 9457).
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    retry_after: Option<Duration>,
    job: Option<Value>,
}

impl Problem {
    /// A problem of this status and code; `detail` is for a person.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            retry_after: None,
            job: None,
        }
    }

    /// 400 `invalid_request`.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
    }

    /// 404 `not_found`: there is none, or none for this caller.
    pub fn not_found(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            format!("there is no such {what}"),
        )
    }

    /// 403 `forbidden`: the token lacks a scope.
    pub fn forbidden(scope: &str) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            format!("this needs a token with the scope {scope}"),
        )
    }

    /// 409 with the job that is in the way.
    pub fn conflict(code: &'static str, detail: impl Into<String>, job: &Job) -> Self {
        let job = serde_json::to_value(job).ok();
        Self {
            job,
            ..Self::new(StatusCode::CONFLICT, code, detail)
        }
    }

    /// 429 `rate_limited`, with a time to come back.
    pub fn rate_limited(detail: impl Into<String>, wait: Duration) -> Self {
        Self {
            // Rounded up: who comes back on the second must not be early.
            retry_after: Some(Duration::from_secs(wait.as_millis().div_ceil(1000) as u64)),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail)
        }
    }

    /// 503 with a time to come back.
    pub fn unavailable(
        code: &'static str,
        detail: impl Into<String>,
        retry_after: Duration,
    ) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
        }
    }

    /// Its code, and what it says to a person: for those who do not speak HTTP.
    pub fn code_and_detail(&self) -> (&'static str, &str) {
        (self.code, &self.detail)
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Its body.
    pub fn body(&self) -> String {
        let passes = [StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_GATEWAY];
        let retryable = self.retry_after.is_some() || passes.contains(&self.status);
        let mut body = json!({
            "title": self.status.canonical_reason().unwrap_or("Problem"),
            "status": self.status.as_u16(),
            "code": self.code,
            "detail": self.detail,
            "retryable": retryable,
        });
        if let Some(job) = &self.job {
            body["job"] = job.clone();
        }
        body.to_string()
    }

    /// Its headers besides the body's type.
    pub fn headers(&self) -> Vec<(header::HeaderName, HeaderValue)> {
        let mut headers = vec![(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
        if let Some(wait) = self.retry_after {
            headers.push((
                header::RETRY_AFTER,
                HeaderValue::from(wait.as_secs().max(1)),
            ));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.push((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
        }
        headers
    }
}

/// The media type of a problem's body.
pub const PROBLEM_JSON: &str = "application/problem+json";

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponseBuilder::new(self.status);
        for header in self.headers() {
            response.insert_header(header);
        }
        response.content_type(PROBLEM_JSON).body(self.body())
    }
}

impl From<store::Error> for Problem {
    fn from(error: store::Error) -> Self {
        tracing::error!(%error, "the store failed");
        match error {
            store::Error::Unavailable(_) | store::Error::Overloaded => Self::unavailable(
                "store_unavailable",
                "the store is away for a moment; try again",
                STORE_RETRY_AFTER,
            ),
            store::Error::Corrupt(_) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "something went wrong here",
            ),
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

impl From<AdmissionError> for Problem {
    fn from(refusal: AdmissionError) -> Self {
        let detail = refusal.to_string();
        match refusal {
            AdmissionError::Parameters(_)
            | AdmissionError::Inline(_)
            | AdmissionError::Price(_) => Self::invalid(detail),
            AdmissionError::TooLarge(_) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail)
            }
            AdmissionError::Budget(_) => {
                Self::new(StatusCode::PAYMENT_REQUIRED, "budget_exceeded", detail)
            }
            AdmissionError::Rate { retry_after, .. } => Self::rate_limited(detail, retry_after),
        }
    }
}

impl From<CancelError> for Problem {
    fn from(error: CancelError) -> Self {
        match error {
            CancelError::NotFound => Self::not_found("job"),
            CancelError::Forbidden => Self::forbidden("jobs:write"),
            CancelError::NotCancellable(why) => {
                Self::new(StatusCode::CONFLICT, "not_cancellable", why)
            }
            CancelError::Store(error) => error.into(),
            CancelError::Provider(error) => {
                tracing::warn!(%error, "a provider did not cancel");
                Self::new(
                    StatusCode::BAD_GATEWAY,
                    "provider_error",
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
                StatusCode::GONE,
                "output_gone",
                "the provider no longer has this output",
            ),
            DownloadError::Busy => Self::unavailable(
                "too_many_downloads",
                "this node passes on as many outputs as it can; try again",
                DOWNLOAD_RETRY_AFTER,
            ),
            DownloadError::UrlNotAllowed(_) | DownloadError::Failed(_) => {
                tracing::warn!(%error, "a provider did not give an output");
                Self::new(
                    StatusCode::BAD_GATEWAY,
                    "provider_error",
                    "the provider did not give the output",
                )
            }
        }
    }
}

impl From<TokenError> for Problem {
    fn from(refused: TokenError) -> Self {
        if let TokenError::KeysUnavailable { retry_after } = refused {
            let detail = "tokens can't be checked for a moment; try again";
            return Self::unavailable("keys_unavailable", detail, retry_after);
        }
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            refused.to_string(),
        )
    }
}
