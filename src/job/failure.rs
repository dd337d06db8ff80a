//! Why a job failed, in the hub's terms and the provider's.
//!
//! Invariant: whether a try may be repeated follows from its kind alone, unless its provider says no.

use serde::{Deserialize, Serialize};

/// Why a job failed, or why a try at submitting it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The provider's moderation declined the input or the result.
    Safety,
    /// The provider can't make sense of a parameter.
    InvalidInput,
    /// The provider account has no credit left.
    Quota,
    /// The provider is busy; a later try may pass.
    RateLimit,
    /// The provider refuses the hub's key.
    Auth,
    /// A fault on the way or at the provider; a later try may pass.
    Technical,
    /// The deadline passed without an end.
    Timeout,
    /// The request may have been received, but its answer was lost.
    SubmissionUnknown,
    /// Succeeded, but an authenticated read no longer has the outputs.
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

    /// Whether the submitter may try the same job again, as long as no provider has accepted it.
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

/// A failure as the document tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What went wrong, in the hub's terms.
    pub kind: FailureKind,
    /// For a person; the provider's own words where it has some.
    pub message: String,
    /// The provider's code, as text.
    #[serde(default)]
    pub provider_code: Option<String>,
    /// Whether a fresh submission may succeed.
    #[serde(default)]
    pub retryable: bool,
}

impl Failure {
    /// A failure whose `retryable` follows from its kind.
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
