//! Errors of the API, independent of a dialect. Each dialect has its own status, code and body for them.

/// Reason for an error response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    #[error("no credentials were sent")]
    NoKey,
    #[error("the credentials are invalid")]
    BadKey,
    #[error("insufficient balance")]
    Quota,
    #[error("the input content triggered the content safety policy")]
    Safety,
    #[error("too many requests")]
    RateLimit,
    #[error("too many tasks at a time")]
    Concurrency,
    #[error("internal server error")]
    Server,
    /// The request does not have the expected format.
    #[error("invalid request: {0}")]
    Malformed(String),
    /// A value is not allowed.
    #[error("invalid parameters: {0}")]
    Invalid(String),
    #[error("no such method")]
    NoSuchMethod,
    #[error("no such model")]
    NoSuchModel,
    #[error("not found")]
    NoSuchTask,
}

impl From<serde_json::Error> for ApiError {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}
