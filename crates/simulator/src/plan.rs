//! The plan of a scenario: how the simulator treats a submit and the resulting task, independent of a dialect.

use super::api_error::ApiError;
use super::scenario::Scenario;

/// How the simulator treats a submit and the resulting task.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub submit_behavior: SubmitBehavior,
    /// Tasks ahead in the queue. Each takes one step.
    pub ahead: u16,
    /// Progress steps between start and end.
    pub steps: u16,
    pub ending: FinalOutcome,
    pub cancelling: CancelBehavior,
    pub schedule: Schedule,
    pub signature: SignatureMode,
}

/// Response to a submit.
#[derive(Clone, Debug)]
pub(super) enum SubmitBehavior {
    Accept,
    Reject(ApiError),
    /// Rejects the first submits of a job, then accepts it.
    RejectFirst(u32, ApiError),
    /// Accepts the job and closes the connection without a response.
    CloseUnanswered,
    /// Accepts the job and responds after the first webhook is delivered.
    AnswerAfterWebhook,
}

/// How an accepted job ends.
#[derive(Clone, Copy, Debug)]
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

/// Effect of an accepted cancellation.
#[derive(Clone, Copy, Debug)]
pub(super) enum CancelBehavior {
    /// The job ends with its next step.
    Honored,
    Ignored,
}

/// When the webhooks of a job are delivered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Schedule {
    InTime,
    Twice,
    Reversed,
    /// Each one this many steps after its change.
    Late(u32),
    Lost,
}

/// Signature of a webhook.
#[derive(Clone, Copy, Debug)]
pub(super) enum SignatureMode {
    Signed,
    Unsigned,
    Forged,
}

impl Scenario {
    /// Returns the plan for dialects without a special case.
    pub(super) fn plan(self) -> Plan {
        let plan = Plan {
            submit_behavior: SubmitBehavior::Accept,
            ahead: 0,
            steps: 4,
            ending: FinalOutcome::Succeeds,
            cancelling: CancelBehavior::Honored,
            schedule: Schedule::InTime,
            signature: SignatureMode::Signed,
        };
        match self {
            Self::Normal => plan,
            Self::Slow => Plan { steps: 24, ..plan },
            Self::DuplicateWebhooks => Plan {
                schedule: Schedule::Twice,
                ..plan
            },
            Self::ReorderedWebhooks => Plan {
                schedule: Schedule::Reversed,
                ..plan
            },
            Self::LateWebhooks => Plan {
                schedule: Schedule::Late(20),
                ..plan
            },
            Self::LostWebhooks => Plan {
                schedule: Schedule::Lost,
                ..plan
            },
            Self::WebhookBeforeAnswer => Plan {
                submit_behavior: SubmitBehavior::AnswerAfterWebhook,
                ..plan
            },
            Self::RateLimited => Plan {
                submit_behavior: SubmitBehavior::RejectFirst(2, ApiError::RateLimit),
                ..plan
            },
            Self::ConcurrencyLimited => Plan {
                submit_behavior: SubmitBehavior::RejectFirst(1, ApiError::Concurrency),
                ..plan
            },
            Self::ServerErrors => Plan {
                submit_behavior: SubmitBehavior::RejectFirst(2, ApiError::Server),
                ..plan
            },
            Self::LostAnswer => Plan {
                submit_behavior: SubmitBehavior::CloseUnanswered,
                ..plan
            },
            Self::LostAnswerSilent => Plan {
                submit_behavior: SubmitBehavior::CloseUnanswered,
                schedule: Schedule::Lost,
                ..plan
            },
            Self::Safety => Plan {
                submit_behavior: SubmitBehavior::Reject(ApiError::Safety),
                ..plan
            },
            Self::FailsAtEnd => Plan {
                ending: FinalOutcome::Fails(Failure::Rendering),
                ..plan
            },
            Self::SafetyAtEnd => Plan {
                ending: FinalOutcome::Fails(Failure::Safety),
                ..plan
            },
            Self::ThinSuccess => Plan {
                ending: FinalOutcome::SucceedsThin,
                ..plan
            },
            Self::ExpiredResult => Plan {
                ending: FinalOutcome::SucceedsExpired,
                ..plan
            },
            Self::Quota => Plan {
                submit_behavior: SubmitBehavior::Reject(ApiError::Quota),
                ..plan
            },
            Self::BadKey => Plan {
                submit_behavior: SubmitBehavior::Reject(ApiError::BadKey),
                ..plan
            },
            Self::Unsigned => Plan {
                signature: SignatureMode::Unsigned,
                ..plan
            },
            Self::Forged => Plan {
                signature: SignatureMode::Forged,
                ..plan
            },
            Self::CancelledLate => Plan {
                cancelling: CancelBehavior::Ignored,
                ..plan
            },
            Self::Silence => Plan {
                ending: FinalOutcome::Never,
                schedule: Schedule::Lost,
                ..plan
            },
        }
    }
}
