//! Kling's refusals: HTTP status, `code` and words, in the envelope that Kling uses for all its answers.
//!
//! Invariant: a request that is refused changes nothing but the counts. The pairs of status and code are
//! Kling's own (kling.ai/document-api, "error codes" and "rate limits"); most of the words are ours.

use std::fmt;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, ResponseError};
use serde_json::json;
use uuid::Uuid;

/// An answer other than success.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    code: u16,
    message: String,
    retry_after_seconds: Option<u8>,
}

impl Refusal {
    fn new(status: StatusCode, code: u16, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            retry_after_seconds: None,
        }
    }

    pub fn no_key() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, 1001, "Authorization is empty")
    }

    pub fn bad_key() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, 1002, "Authorization is invalid")
    }

    pub fn pack_exhausted() -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            1102,
            "Resource pack depleted or expired",
        )
    }

    pub fn malformed(why: impl fmt::Display) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            1200,
            format!("Invalid request parameters: {why}"),
        )
    }

    pub fn invalid(why: impl fmt::Display) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            1201,
            format!("Invalid parameters: {why}"),
        )
    }

    pub fn no_such_method() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            1202,
            "The requested method is invalid",
        )
    }

    pub fn no_such_model() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            1203,
            "The requested model does not exist",
        )
    }

    pub fn safety() -> Self {
        let message = "The input content triggered the content safety policy";
        Self::new(StatusCode::BAD_REQUEST, 1301, message)
    }

    /// Kling documents no `Retry-After`; this refusal has one all the same, so that a sender can be seen to obey it.
    pub fn rate_limit() -> Self {
        let refusal = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            1302,
            "API request over rate limit",
        );
        Self {
            retry_after_seconds: Some(1),
            ..refusal
        }
    }

    pub fn concurrency() -> Self {
        let message = "parallel task over resource pack limit";
        Self::new(StatusCode::TOO_MANY_REQUESTS, 1303, message)
    }

    pub fn server() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            5000,
            "Internal server error",
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)
    }
}

impl ResponseError for Refusal {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if let Some(seconds) = self.retry_after_seconds {
            response.insert_header((header::RETRY_AFTER, seconds.to_string()));
        }
        response.json(json!({
            "code": self.code,
            "message": self.message,
            "request_id": Uuid::now_v7().to_string(),
        }))
    }
}
