//! Reasons why a job or a submission attempt failed.
//!
//! Invariant: the kind alone decides whether an attempt may be repeated, unless the provider rules
//! it out.

use serde::{Deserialize, Serialize};

/// The category of a failure, independent of the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The provider's moderation declined the input or the result.
    Safety,
    /// The provider rejected a parameter.
    InvalidInput,
    /// The provider account has no credit left.
    Quota,
    /// The provider limits the rate of requests. A later attempt may succeed.
    RateLimit,
    /// The provider rejected the hub's API key.
    Auth,
    /// A network error or an internal error of the provider. A later attempt may succeed.
    Technical,
    /// The deadline passed before the job finished.
    Timeout,
    /// The provider may have received the request, but the response was lost.
    SubmissionUnknown,
    /// The job succeeded, but the provider no longer has its outputs.
    ResultExpired,
}

impl FailureKind {
    /// Returns the name used in documents and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Safety => "safety",
            Self::InvalidInput => "invalid_input",
            Self::Quota => "quota",
            Self::RateLimit => "rate_limit",
            Self::Auth => "auth",
            Self::Technical => "technical",
            Self::Timeout => "timeout",
            Self::SubmissionUnknown => "submission_unknown",
            Self::ResultExpired => "result_expired",
        }
    }

    /// Returns whether the submitter may attempt the job again.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        match self {
            Self::RateLimit | Self::Technical => true,
            Self::Safety
            | Self::InvalidInput
            | Self::Quota
            | Self::Auth
            | Self::Timeout
            | Self::SubmissionUnknown
            | Self::ResultExpired => false,
        }
    }
}

/// A failure as part of the job document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Category of the failure.
    pub kind: FailureKind,
    /// Human-readable message, from the provider if it gives one.
    pub message: String,
    /// The provider's error code, as text.
    #[serde(default)]
    pub provider_code: Option<String>,
    /// Whether a new submission may succeed.
    #[serde(default)]
    pub retryable: bool,
}

impl Failure {
    /// Creates a failure with `retryable` derived from `kind`.
    #[must_use]
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        let retryable = kind.is_retryable();
        Self {
            kind,
            message: message.into(),
            provider_code: None,
            retryable,
        }
    }
}
