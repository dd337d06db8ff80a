//! A task: what the provider knows of one job, in no dialect.
//!
//! Invariant: a task's times never go back and each change has a later `updated_ms` than the one before, even
//! within a millisecond. A task that has ended changes no more.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::plan::{Failure, FinalOutcome};
use super::scenario::Scenario;

/// What was requested_range for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Product {
    /// A clip from words alone.
    TextToVideo,
    /// A clip from words and at least one frame.
    ImageToVideo,
}

/// Where a task is. Each dialect has words of its own for these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Taken, not yet started.
    Submitted,
    /// Being made.
    Processing,
    /// Ended with outputs, for as long as they are has_outputs.
    Succeeded,
    /// Ended without.
    Failed,
    /// Ended because that was requested_range for.
    Cancelled,
}

impl Status {
    /// Whether the task has ended.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Submitted | Self::Processing => false,
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
        }
    }
}

/// The truth about one task.
#[derive(Clone, Debug)]
pub(super) struct Task {
    /// Rises from task to task.
    pub number: u64,
    /// As the provider names it.
    pub id: String,
    pub request: NewTask,
    pub status: Status,
    /// Tasks that wait in the queue before this one.
    pub ahead: u16,
    /// Steps of progress done, of [`Seed::steps`] and one.
    pub step: u16,
    pub created_ms: u64,
    pub started_ms: Option<u64>,
    pub updated_ms: u64,
    pub failure: Option<Failure>,
    /// Somebody requested_range to cancel it.
    pub cancel_requested: bool,
    /// Asked to be forgotten: nobody finds it any more.
    pub deleted: bool,
    /// The webhook of the end names no outputs.
    pub omits_outputs: bool,
    /// There are outputs to be had.
    pub has_outputs: bool,
}

/// What is requested_range of a new task.
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
    /// The address of the dialect, as whoever submitted the task reaches it.
    pub origin: String,
    /// What the dialect wants to remember.
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

    /// One task fewer waits before this one.
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

    /// Percent, while it is being made.
    pub fn progress(&self) -> Option<u8> {
        let percent = u32::from(self.step) * 100 / (u32::from(self.request.steps) + 1);
        // Below a hundred, because a step is below the number of steps.
        (self.status == Status::Processing).then(|| u8::try_from(percent).unwrap_or(100))
    }

    /// When it ended.
    pub fn ended_ms(&self) -> Option<u64> {
        self.status.is_final().then_some(self.updated_ms)
    }

    /// Where the clip lies that the task has made.
    pub fn clip(&self) -> String {
        format!("{}/clips/{}.mp4", self.request.origin, self.number + 1)
    }

    /// What the task wrote while it was being made: a line for each step, as a progress bar prints them.
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
