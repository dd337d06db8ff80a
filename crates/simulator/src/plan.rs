//! The plan of a scenario: what the simulator does with one submit and with the job that may come of it.
//!
//! Invariant: a plan speaks no dialect; whoever carries it out asks neither which scenario nor which dialect
//! is playing.

use super::api_error::ApiError;
use super::scenario::Scenario;

/// What the simulator does with one submit and the job that may come of it.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub submit_behavior: SubmitBehavior,
    /// Tasks that wait in the queue before this one; each costs a step.
    pub ahead: u16,
    /// Steps of progress between the start of processing and the end.
    pub steps: u16,
    pub ending: FinalOutcome,
    pub cancelling: CancelBehavior,
    pub schedule: Schedule,
    pub signature: SignatureMode,
}

/// How a submit is received.
#[derive(Clone, Debug)]
pub(super) enum SubmitBehavior {
    Accept,
    Reject(ApiError),
    /// Refuses the first so many submits of a job, then lets it in.
    RejectFirst(u32, ApiError),
    /// Lets the job in and says nothing.
    CloseUnanswered,
    /// Lets the job in, delivers its first webhook, and only then answers.
    AnswerAfterWebhook,
}

/// How a job that was let in ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum FinalOutcome {
    Succeeds,
    /// Succeeds; its webhook names no outputs.
    SucceedsThin,
    /// Succeeds, and the outputs are deleted at once.
    SucceedsExpired,
    Fails(Failure),
    Never,
}

/// Why a job fails in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Rendering,
    Safety,
}

/// What comes of a cancel that is agreed to.
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
    /// Each one so many paces after its change.
    Late(u32),
    Lost,
}

/// What a webhook is signed with.
#[derive(Clone, Copy, Debug)]
pub(super) enum SignatureMode {
    Signed,
    Unsigned,
    Forged,
}

impl Scenario {
    /// As it is played where the dialect has nothing to say to it.
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
