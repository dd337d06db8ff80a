//! Scenarios: the provider behavior that a caller selects per job with `input.scenario`.
//!
//! A scenario is a row of one table: its name, its texts for the demo page, and the parts of its [`Plan`] that differ from
//! those of `Normal`. A dialect may be unable to play it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::api_error::ApiError;
use super::plan::Schedule::{Late, Lost, Reversed, Twice};
use super::plan::SubmitBehavior::{AnswerAfterWebhook, CloseUnanswered, Reject};
use super::plan::{Failure, FinalOutcome, Plan, SignatureMode};

/// Declares the scenarios: variant, name in a request, title and expected result on the demo page, and changes of the plan.
macro_rules! scenarios {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $title:literal, $expect:literal, { $($field:ident: $value:expr),* };)*) => {
        /// Behavior of the simulated provider for one job. `FromStr`, `Display` and serde use the kebab-case name.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Scenario {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl Scenario {
            /// All scenarios, in display order.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the kebab-case name, as a request contains it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Returns the title for the demo page.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }

            /// Returns the result that a user of the hub observes, in one or two sentences.
            pub const fn expect(self) -> &'static str {
                match self { $(Self::$variant => $expect,)* }
            }

            /// Returns the plan for dialects without a special case.
            pub(super) fn plan(self) -> Plan {
                match self { $(Self::$variant => Plan { $($field: $value,)* ..Plan::NORMAL },)* }
            }
        }
    };
}

scenarios! {
    #[default]
    /// Queued, several steps of progress, then success. Every webhook arrives in time.
    Normal = "normal", "Success", "Queued, then progress by webhook, then a clip.", {};
    /// As `Normal`, in many more steps.
    Slow = "slow", "Slow success", "Many small progress updates by webhook, then a clip.",
        { steps: 24 };
    /// Delivers every webhook twice.
    DuplicateWebhooks = "duplicate-webhooks", "Duplicate webhooks", "Every webhook is delivered twice. Each change is applied once.",
        { schedule: Twice };
    /// Delivers the webhooks in reverse order.
    ReorderedWebhooks = "reordered-webhooks", "Webhooks in reverse order", "The final webhook arrives first. The older ones that follow change nothing.",
        { schedule: Reversed };
    /// Delivers the webhooks in order, long after the job has ended.
    LateWebhooks = "late-webhooks", "Late webhooks", "Webhooks arrive after the job has ended. The poller reports the result first, and the late webhooks change nothing.",
        { schedule: Late(20) };
    /// Delivers no webhook. Only queries return the state.
    LostWebhooks = "lost-webhooks", "Lost webhooks", "No webhook arrives. The poller completes the job.",
        { schedule: Lost };
    /// Delivers the first webhook, and waits for its acknowledgement, before it answers the submit.
    WebhookBeforeAnswer = "webhook-before-answer", "Webhook before the submit response", "The first webhook arrives before the submit response. The job goes straight to running and never back to queued.",
        { submit_behavior: AnswerAfterWebhook };
    /// Rejects the first two submits with a rate limit, and with a retry delay where the provider's API has one.
    RateLimited = "rate-limited", "Rate limited twice", "The provider rejects two attempts with a retry delay. The third attempt succeeds.",
        { submit_behavior: Reject(2, ApiError::RateLimit) };
    /// Rejects the first submit because all slots are in use, without a retry delay, or queues the job.
    ConcurrencyLimited = "concurrency-limited", "Concurrency limit reached", "The provider rejects the first attempt because all slots are in use. The hub backs off and retries.",
        { submit_behavior: Reject(1, ApiError::Concurrency) };
    /// Answers the first two submits with a server error.
    ServerErrors = "server-errors", "Server error twice", "Two attempts fail with a provider error. The hub retries and the third succeeds.",
        { submit_behavior: Reject(2, ApiError::Server) };
    /// Accepts and runs the job, but closes the connection without a submit response.
    LostAnswer = "lost-answer", "Lost submit response", "The provider accepts the job, but the response is lost. A webhook identifies the job, and it is charged once.",
        { submit_behavior: CloseUnanswered };
    /// As `LostAnswer`, and delivers no webhook.
    LostAnswerSilent = "lost-answer-silent", "Lost submit response, no webhooks", "The response is lost and no webhook arrives. The hub finds the job by polling, and it is charged once.",
        { submit_behavior: CloseUnanswered, schedule: Lost };
    /// Rejects the submit with a content safety error.
    Safety = "safety", "Prompt declined", "The provider's safety filter rejects the prompt at submission. The hub does not retry.",
        { submit_behavior: Reject(u32::MAX, ApiError::Safety) };
    /// Accepts the job, reports progress, then fails with a message.
    FailsAtEnd = "fails-at-end", "Fails while rendering", "The job makes progress, then fails with the provider's error message.",
        { ending: FinalOutcome::Fails(Failure::Rendering) };
    /// Accepts the job, reports progress, then fails with a content safety error.
    SafetyAtEnd = "safety-at-end", "Output declined", "The job runs, then the safety filter withholds the output.",
        { ending: FinalOutcome::Fails(Failure::Safety) };
    /// Succeeds, but the final webhook has no outputs. Only a query returns them.
    ThinSuccess = "thin-success", "Success without outputs in the webhook", "The final webhook has no outputs. The hub fetches them with a poll.",
        { ending: FinalOutcome::SucceedsThin };
    /// Succeeds, but neither webhooks nor queries return outputs.
    ExpiredResult = "expired-result", "Output already deleted", "The job succeeds, but the provider has already deleted the file.",
        { ending: FinalOutcome::SucceedsExpired };
    /// Rejects the submit because the account is out of credit.
    Quota = "quota", "Out of credit", "The job fails and the provider is suspended. New jobs wait until you resume it.",
        { submit_behavior: Reject(u32::MAX, ApiError::Quota) };
    /// Rejects every API key.
    BadKey = "bad-key", "API key rejected", "The job fails and the provider is suspended. New jobs wait until you resume it.",
        { submit_behavior: Reject(u32::MAX, ApiError::BadKey) };
    /// Delivers webhooks without signature headers.
    Unsigned = "unsigned", "Unsigned webhooks", "Webhooks have no signature. The hub does not trust them and polls instead.",
        { signature: SignatureMode::Unsigned };
    /// Signs webhooks with a different key.
    Forged = "forged", "Forged webhooks", "Webhooks have an invalid signature. The hub rejects them and completes the job by polling.",
        { signature: SignatureMode::Forged };
    /// Accepts a cancellation, and the job succeeds nevertheless.
    CancelledLate = "cancelled-late", "Cancelled too late", "The provider accepts the cancellation but finishes the job. The job ends as succeeded.",
        { honors_cancel: false };
    /// Accepts the job, then reports no change by webhook or query.
    Silence = "silence", "No response (timeout)", "The provider accepts the job and never reports again. The job fails at its deadline.",
        { ending: FinalOutcome::Never, schedule: Lost };
}

/// The text is not the name of a scenario.
#[derive(Debug, thiserror::Error)]
#[error("unknown scenario, expected one of {}", Scenario::ALL.iter().map(|scenario| scenario.name()).collect::<Vec<_>>().join(", "))]
pub struct UnknownScenario;

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Scenario {
    type Err = UnknownScenario;

    fn from_str(name: &str) -> Result<Self, UnknownScenario> {
        Self::ALL
            .iter()
            .copied()
            .find(|scenario| scenario.name() == name)
            .ok_or(UnknownScenario)
    }
}
