//! The scenarios: the ways in which a provider can behave, well or badly, chosen job by job.
//!
//! Invariant: a scenario is nothing but a name and words for people; whatever the simulator does differently
//! for it stands in its [`Plan`](super::plan::Plan), or in the dialect that can't play it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How the simulated provider treats one job. The names are kebab-case, as `FromStr`, `Display` and serde agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scenario {
    /// Queued, several steps of progress, success; every webhook in time.
    #[default]
    Normal,
    /// As normal, in many more steps.
    Slow,
    /// Every webhook is delivered twice.
    DuplicateWebhooks,
    /// The webhooks come in reverse: the last one first.
    ReorderedWebhooks,
    /// The webhooks come in order, but long after the job has ended.
    LateWebhooks,
    /// No webhook ever comes; only a query tells.
    LostWebhooks,
    /// The first webhook is sent and acknowledged before the submit is answered.
    WebhookBeforeAnswer,
    /// The first two submits are refused as too many, with a word on how long to wait where the provider has one.
    RateLimited,
    /// All slots are taken: the first submit is refused without such a word, or the job waits in the queue.
    ConcurrencyLimited,
    /// The first two submits are answered with an error of the provider's own.
    ServerErrors,
    /// The job is taken and runs, but the connection closes without an answer to the submit.
    LostAnswer,
    /// As lost-answer, and no webhook comes either.
    LostAnswerSilent,
    /// Refused at submit by content safety.
    Safety,
    /// Accepted, makes progress, then fails with a message.
    FailsAtEnd,
    /// Accepted, makes progress, then fails with the words of content safety.
    SafetyAtEnd,
    /// Succeeds, but the last webhook names no outputs: only asking has them.
    ThinSuccess,
    /// Succeeds, but the outputs are already gone, however one asks.
    ExpiredResult,
    /// The account is out of credit.
    Quota,
    /// The key is refused, whichever it is.
    BadKey,
    /// Webhooks carry no signature headers.
    Unsigned,
    /// Webhooks carry a signature made with another key.
    Forged,
    /// A cancel is agreed to, and the job succeeds all the same.
    CancelledLate,
    /// Accepted, and then nothing, by webhook or by query, for ever.
    Silence,
}

/// The text is not the name of a scenario.
#[derive(Debug, thiserror::Error)]
#[error("unknown scenario, the known ones are {}", Scenario::all().map(Scenario::name).join(", "))]
pub struct UnknownScenario;

impl Scenario {
    /// All scenarios, in the order in which they are best shown.
    pub const fn all() -> [Self; 23] {
        [
            Self::Normal,
            Self::Slow,
            Self::DuplicateWebhooks,
            Self::ReorderedWebhooks,
            Self::LateWebhooks,
            Self::LostWebhooks,
            Self::WebhookBeforeAnswer,
            Self::RateLimited,
            Self::ConcurrencyLimited,
            Self::ServerErrors,
            Self::LostAnswer,
            Self::LostAnswerSilent,
            Self::Safety,
            Self::FailsAtEnd,
            Self::SafetyAtEnd,
            Self::ThinSuccess,
            Self::ExpiredResult,
            Self::Quota,
            Self::BadKey,
            Self::Unsigned,
            Self::Forged,
            Self::CancelledLate,
            Self::Silence,
        ]
    }

    /// The kebab-case name, as it is written in a request.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Slow => "slow",
            Self::DuplicateWebhooks => "duplicate-webhooks",
            Self::ReorderedWebhooks => "reordered-webhooks",
            Self::LateWebhooks => "late-webhooks",
            Self::LostWebhooks => "lost-webhooks",
            Self::WebhookBeforeAnswer => "webhook-before-answer",
            Self::RateLimited => "rate-limited",
            Self::ConcurrencyLimited => "concurrency-limited",
            Self::ServerErrors => "server-errors",
            Self::LostAnswer => "lost-answer",
            Self::LostAnswerSilent => "lost-answer-silent",
            Self::Safety => "safety",
            Self::FailsAtEnd => "fails-at-end",
            Self::SafetyAtEnd => "safety-at-end",
            Self::ThinSuccess => "thin-success",
            Self::ExpiredResult => "expired-result",
            Self::Quota => "quota",
            Self::BadKey => "bad-key",
            Self::Unsigned => "unsigned",
            Self::Forged => "forged",
            Self::CancelledLate => "cancelled-late",
            Self::Silence => "silence",
        }
    }

    /// A few plain words for a person who chooses.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Normal => "All goes well",
            Self::Slow => "Slow, in many steps",
            Self::DuplicateWebhooks => "Every webhook twice",
            Self::ReorderedWebhooks => "Webhooks in reverse order",
            Self::LateWebhooks => "Webhooks far too late",
            Self::LostWebhooks => "No webhook ever comes",
            Self::WebhookBeforeAnswer => "Webhook overtakes the answer",
            Self::RateLimited => "Too many requests, twice",
            Self::ConcurrencyLimited => "All slots taken, once",
            Self::ServerErrors => "Server errors, twice",
            Self::LostAnswer => "The answer gets lost",
            Self::LostAnswerSilent => "The answer gets lost, and no webhook",
            Self::Safety => "Prompt declined",
            Self::FailsAtEnd => "Fails at the end",
            Self::SafetyAtEnd => "Result declined at the end",
            Self::ThinSuccess => "Success without a result",
            Self::ExpiredResult => "Result already deleted",
            Self::Quota => "Out of credit",
            Self::BadKey => "Key refused",
            Self::Unsigned => "Webhooks without a signature",
            Self::Forged => "Webhooks with a forged signature",
            Self::CancelledLate => "Cancelled, and done all the same",
            Self::Silence => "Silence for ever",
        }
    }

    /// One sentence: what the person will see in the hub.
    pub const fn expect(self) -> &'static str {
        match self {
            Self::Normal => {
                "Queued, then a few steps of progress by webhook, then a clip that plays."
            }
            Self::Slow => "A long ride: many small steps of progress by webhook before the clip.",
            Self::DuplicateWebhooks => "Every webhook comes twice: watch each change counted once.",
            Self::ReorderedWebhooks => {
                "The last webhook comes first and the older ones after it: watch the finished job stay finished."
            }
            Self::LateWebhooks => {
                "The webhooks trail far behind the job: watch the poller tell the news first, and the late ones change nothing."
            }
            Self::LostWebhooks => "The webhook never comes: watch the poller rescue the job.",
            Self::WebhookBeforeAnswer => {
                "The first webhook comes before the submit is answered: watch the job run at once and never step back to queued."
            }
            Self::RateLimited => {
                "Refused twice as too many requests, with a second to wait: watch the third try go through."
            }
            Self::ConcurrencyLimited => {
                "Refused once because all slots are taken, with no word on how long: watch the hub wait and try again."
            }
            Self::ServerErrors => {
                "The provider answers with an error of its own twice: watch the hub wait, try again and get through."
            }
            Self::LostAnswer => {
                "The job runs, but the answer to the submit is lost: watch a webhook bring the job back, paid for once."
            }
            Self::LostAnswerSilent => {
                "The job runs, the answer is lost and no webhook comes: watch the hub find its job by asking, paid for once."
            }
            Self::Safety => "The provider declines the prompt at once, and nobody tries again.",
            Self::FailsAtEnd => {
                "Progress as usual, then the job fails with the provider's own words."
            }
            Self::SafetyAtEnd => {
                "Progress as usual, then the provider declines to hand out what it made."
            }
            Self::ThinSuccess => {
                "The last webhook says success and nothing more: watch the hub fetch the clip by a query."
            }
            Self::ExpiredResult => {
                "The job succeeds, but its clip is already deleted at the provider."
            }
            Self::Quota => {
                "The account is out of credit: the job fails, and later ones wait until you try the provider again."
            }
            Self::BadKey => {
                "The provider refuses the key: the job fails, and later ones wait until you try the provider again."
            }
            Self::Unsigned => {
                "Webhooks come without a signature: watch the hub take none of them at its word, and ask."
            }
            Self::Forged => {
                "Webhooks carry a wrong signature: watch the hub turn them away and the poller tell the truth."
            }
            Self::CancelledLate => {
                "The provider agrees to cancel and finishes all the same: watch the truth win."
            }
            Self::Silence => {
                "Accepted, and then nothing, however often one asks: watch the deadline end it."
            }
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Scenario {
    type Err = UnknownScenario;

    fn from_str(name: &str) -> Result<Self, UnknownScenario> {
        Self::all()
            .into_iter()
            .find(|scenario| scenario.name() == name)
            .ok_or(UnknownScenario)
    }
}

impl Serialize for Scenario {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Scenario {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}
