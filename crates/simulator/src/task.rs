//! A task of the provider, independent of a dialect.
//!
//! Times never decrease, and each change has a later `updated_ms` than the one before. A finished task never changes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::plan::{Failure, FinalOutcome, Plan};
use super::scenario::Scenario;

/// Kind of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Product {
    /// A clip from a prompt.
    TextToVideo,
    /// A clip from a prompt and at least one frame.
    ImageToVideo,
}

/// Status of a task. Each dialect maps it to its own values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Accepted, not started.
    Submitted,
    /// Rendering.
    Processing,
    /// Ended with outputs.
    Succeeded,
    /// Ended without outputs.
    Failed,
    /// Ended by a cancellation.
    Cancelled,
}

impl Status {
    /// Returns whether the task has ended.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Submitted | Self::Processing => false,
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
        }
    }
}

/// Actual state of a task, independent of its webhooks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Task {
    /// The provider's id.
    pub id: String,
    /// Dialect of the submit.
    pub dialect: &'static str,
    /// Identity of the job: the external id, otherwise the webhook URL, otherwise a digest of the body.
    pub handle: String,
    /// External id, chosen by the client.
    pub external_id: Option<String>,
    /// Kind of output.
    pub product: Product,
    /// Model name in the submit.
    pub model: String,
    /// Scenario of the task.
    pub scenario: Scenario,
    /// Status of the task.
    pub status: Status,
    /// Percentage while processing.
    pub progress: Option<u8>,
    /// Webhook attempts, including retries.
    pub callbacks_sent: u64,
    /// Webhook attempts that were answered with 2xx.
    pub callbacks_acknowledged: u64,
    /// Whether the task has ended and all its webhooks are done.
    pub is_settled: bool,
    /// Increases from task to task.
    #[serde(skip)]
    pub(super) number: u64,
    #[serde(skip)]
    pub(super) plan: Plan,
    /// Base URL of the dialect as the client reaches it.
    #[serde(skip)]
    pub(super) origin: String,
    /// Base URL of clips.
    #[serde(skip)]
    pub(super) clip_origin: String,
    /// Data that the dialect needs for later responses.
    #[serde(skip)]
    pub(super) notes: Value,
    /// Tasks ahead in the queue.
    #[serde(skip)]
    pub(super) ahead: u16,
    /// Completed steps, of [`Plan::steps`] + 1.
    #[serde(skip)]
    pub(super) step: u16,
    #[serde(skip)]
    pub(super) created_ms: u64,
    #[serde(skip)]
    pub(super) started_ms: Option<u64>,
    #[serde(skip)]
    pub(super) updated_ms: u64,
    #[serde(skip)]
    pub(super) failure: Option<Failure>,
    /// A cancellation was requested.
    #[serde(skip)]
    pub(super) cancel_requested: bool,
    /// Deleted by the client. No request finds it.
    #[serde(skip)]
    pub(super) deleted: bool,
    /// The final webhook has no outputs.
    #[serde(skip)]
    pub(super) omits_outputs: bool,
    /// Outputs exist.
    #[serde(skip)]
    pub(super) has_outputs: bool,
}

impl Task {
    /// Moves the task ahead by one in the queue.
    pub(super) fn advance(&mut self) {
        self.ahead = self.ahead.saturating_sub(1);
        self.touch();
    }

    pub(super) fn proceed(&mut self, step: u16) {
        self.status = Status::Processing;
        self.step = step;
        self.progress = u8::try_from(self.percent(step)).ok();
        self.touch();
        self.started_ms.get_or_insert(self.updated_ms);
    }

    /// Ends the task as planned.
    pub(super) fn end(&mut self) {
        match self.plan.ending {
            FinalOutcome::Never => return,
            FinalOutcome::Succeeds => self.has_outputs = true,
            FinalOutcome::SucceedsThin => (self.has_outputs, self.omits_outputs) = (true, true),
            FinalOutcome::SucceedsExpired => self.omits_outputs = true,
            FinalOutcome::Fails(failure) => self.failure = Some(failure),
        }
        self.finish(match self.failure {
            None => Status::Succeeded,
            Some(_) => Status::Failed,
        });
    }

    pub(super) fn finish(&mut self, status: Status) {
        self.status = status;
        self.progress = None;
        self.touch();
    }

    /// Returns whether requests to this dialect find the task.
    pub(super) fn is_in(&self, dialect: &str) -> bool {
        self.dialect == dialect && !self.deleted
    }

    fn touch(&mut self) {
        self.updated_ms = now_ms().max(self.updated_ms + 1);
    }

    fn percent(&self, step: u16) -> u32 {
        u32::from(step) * 100 / (u32::from(self.plan.steps) + 1)
    }

    /// Returns the time at which the task ended.
    pub(super) fn ended_ms(&self) -> Option<u64> {
        self.status.is_final().then_some(self.updated_ms)
    }

    /// Returns the URL of the clip.
    pub(super) fn clip(&self) -> String {
        format!("{}/clips/{}.mp4", self.clip_origin, self.number + 1)
    }

    /// Returns the log of the task: a progress bar line for each step.
    pub(super) fn log(&self) -> Vec<String> {
        let of = self.plan.steps + 1;
        let last = match self.status {
            Status::Submitted => return Vec::new(),
            Status::Processing | Status::Failed | Status::Cancelled => self.step,
            Status::Succeeded => of,
        };
        let line = |step: u16| {
            let percent = self.percent(step);
            let bar = "█".repeat(usize::from(step) * 10 / usize::from(of));
            format!("{percent:3}%|{bar:<10}| {step}/{of} [00:00<00:00, 20.00it/s]")
        };
        (0..=last).map(line).collect()
    }
}

pub(super) fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default()
}
