//! A task of the provider, independent of a dialect.
//!
//! Times never decrease, and each change has a later `updated_ms` than the one before. A finished task never changes.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::plan::{Failure, FinalOutcome};
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

/// True state of a task.
#[derive(Clone, Debug)]
pub(super) struct Task {
    /// Increases from task to task.
    pub number: u64,
    /// The provider's id.
    pub id: String,
    pub request: NewTask,
    pub status: Status,
    /// Tasks ahead in the queue.
    pub ahead: u16,
    /// Completed steps, of [`NewTask::steps`] + 1.
    pub step: u16,
    pub created_ms: u64,
    pub started_ms: Option<u64>,
    pub updated_ms: u64,
    pub failure: Option<Failure>,
    /// A cancellation was requested.
    pub cancel_requested: bool,
    /// Deleted by the client. No request finds it.
    pub deleted: bool,
    /// The final webhook has no outputs.
    pub omits_outputs: bool,
    /// Outputs exist.
    pub has_outputs: bool,
}

/// Properties of a new task.
#[derive(Clone, Debug)]
pub(super) struct NewTask {
    pub dialect: &'static str,
    pub handle: String,
    pub external_id: Option<String>,
    pub product: Product,
    pub model: String,
    pub scenario: Scenario,
    pub ahead: u16,
    pub steps: u16,
    /// Base URL of the dialect as the client reaches it.
    pub origin: String,
    /// Base URL of clips.
    pub clip_origin: String,
    /// Data that the dialect needs for later responses.
    pub notes: Value,
}

impl Task {
    pub fn new(number: u64, id: String, request: NewTask) -> Self {
        let now = now_ms();
        Self {
            number,
            id,
            status: Status::Submitted,
            ahead: request.ahead,
            step: 0,
            created_ms: now,
            started_ms: None,
            updated_ms: now,
            failure: None,
            cancel_requested: false,
            deleted: false,
            omits_outputs: false,
            has_outputs: false,
            request,
        }
    }

    /// Moves the task ahead by one in the queue.
    pub fn advance(&mut self) {
        self.ahead = self.ahead.saturating_sub(1);
        self.touch();
    }

    pub fn proceed(&mut self, step: u16) {
        self.status = Status::Processing;
        self.step = step;
        self.touch();
        self.started_ms.get_or_insert(self.updated_ms);
    }

    pub fn end(&mut self, ending: FinalOutcome) {
        match ending {
            FinalOutcome::Never => return,
            FinalOutcome::Succeeds => self.has_outputs = true,
            FinalOutcome::SucceedsThin => (self.has_outputs, self.omits_outputs) = (true, true),
            FinalOutcome::SucceedsExpired => self.omits_outputs = true,
            FinalOutcome::Fails(failure) => self.failure = Some(failure),
        }
        self.status = match self.failure {
            None => Status::Succeeded,
            Some(_) => Status::Failed,
        };
        self.touch();
    }

    pub fn cancel(&mut self) {
        self.status = Status::Cancelled;
        self.touch();
    }

    fn touch(&mut self) {
        self.updated_ms = now_ms().max(self.updated_ms + 1);
    }

    /// Returns the percentage while processing.
    pub fn progress(&self) -> Option<u8> {
        let percent = u32::from(self.step) * 100 / (u32::from(self.request.steps) + 1);
        // Less than 100, because a step is less than the number of steps.
        (self.status == Status::Processing).then(|| u8::try_from(percent).unwrap_or(100))
    }

    /// Returns the time at which the task ended.
    pub fn ended_ms(&self) -> Option<u64> {
        self.status.is_final().then_some(self.updated_ms)
    }

    /// Returns the URL of the clip.
    pub fn clip(&self) -> String {
        format!("{}/clips/{}.mp4", self.request.clip_origin, self.number + 1)
    }

    /// Returns the log of the task: a progress bar line for each step.
    pub fn log(&self) -> Vec<String> {
        let of = self.request.steps + 1;
        let last = match self.status {
            Status::Submitted => return Vec::new(),
            Status::Processing | Status::Failed | Status::Cancelled => self.step,
            Status::Succeeded => of,
        };
        let line = |step: u16| {
            let percent = u32::from(step) * 100 / u32::from(of);
            let done = usize::from(step) * 10 / usize::from(of);
            format!(
                "{percent:3}%|{:<10}| {step}/{of} [00:00<00:00, 20.00it/s]",
                "█".repeat(done)
            )
        };
        (0..=last).map(line).collect()
    }
}

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
