//! Refusals: why a request is turned away, in no dialect.
//!
//! Invariant: a request that is refused changes nothing but the counts. Each dialect has its own status, code
//! and shape for each of these; the words here are for those that have none.

/// A reason to answer with anything but success.
#[derive(Clone, Debug, thiserror::Error)]
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
    /// The body is not what its form says.
    #[error("invalid request: {0}")]
    Malformed(String),
    /// A value is not among those that are taken.
    #[error("invalid parameters: {0}")]
    Invalid(String),
    /// The caller's own id has a task already.
    #[error("the id is taken")]
    Taken,
    #[error("no such method")]
    NoSuchMethod,
    #[error("no such model")]
    NoSuchModel,
    #[error("not found")]
    NoSuchTask,
}
