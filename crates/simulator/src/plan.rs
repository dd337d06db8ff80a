//! The plan of a scenario: how the simulator treats a submit and the resulting task, independent of a dialect.
//!
//! To add a behavior, add a field to [`Plan`] and a row to the table of scenarios. A behavior with a value that the caller
//! chooses, such as `steps`, is a key of the submit instead of a row.

use super::api_error::ApiError;

/// How the simulator treats a submit and the resulting task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub submit_behavior: SubmitBehavior,
    /// Tasks ahead in the queue. Each takes one step.
    pub ahead: u16,
    /// Progress steps between start and end.
    pub steps: u16,
    pub ending: FinalOutcome,
    /// Whether an accepted cancellation ends the job with its next step.
    pub honors_cancel: bool,
    pub schedule: Schedule,
    pub signature: SignatureMode,
}

/// Response to a submit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SubmitBehavior {
    Accept,
    /// Rejects this number of submits of a job, then accepts it. `u32::MAX` rejects all.
    Reject(u32, ApiError),
    /// Accepts the job and closes the connection without a response.
    CloseUnanswered,
    /// Accepts the job and responds after the first webhook is delivered.
    AnswerAfterWebhook,
}

/// How an accepted job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FinalOutcome {
    Succeeds,
    /// Succeeds. The webhook has no outputs.
    SucceedsThin,
    /// Succeeds. The outputs are deleted immediately.
    SucceedsExpired,
    Fails(Failure),
    Never,
}

/// Reason for a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Rendering,
    Safety,
}

/// When the webhooks of a job are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Schedule {
    InTime,
    Twice,
    Reversed,
    /// Each one this many steps after its change.
    Late(u32),
    Lost,
}

/// Signature of a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignatureMode {
    Signed,
    Unsigned,
    Forged,
}

impl Plan {
    /// The plan of [`Scenario::Normal`](super::Scenario::Normal).
    pub const NORMAL: Self = Self {
        submit_behavior: SubmitBehavior::Accept,
        ahead: 0,
        steps: 4,
        ending: FinalOutcome::Succeeds,
        honors_cancel: true,
        schedule: Schedule::InTime,
        signature: SignatureMode::Signed,
    };
}
