//! The job document, its updates and its state machine.
//!
//! Invariant: the document is the message. Only [`Job::apply`] decides whether an update changes a
//! job, and every change increments `version` by one.

mod bounds;
mod failure;
mod id;
mod internal;
mod output_source;
mod request;
mod topic;
mod transition;
mod update;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

pub use bounds::{
    MAX_ERROR_CODE_CHARS, MAX_ERROR_MESSAGE_CHARS, MAX_MODEL_BYTES, MAX_OUTPUT_TYPE_CHARS,
    MAX_OUTPUTS, MAX_OUTPUTS_BYTES, MAX_STAGE_CHARS, MAX_TASK_ID_BYTES, MAX_URL_BYTES,
};
pub use failure::{Failure, FailureKind};
pub use id::{InvalidJobId, JobId};
pub use internal::{BudgetWindow, InternalState, QueueCharge, Reservation};
pub use output_source::{InlineContent, InvalidDataUrl, OutputSource};
pub use request::{Platform, VideoRequest};
pub use topic::Topic;
pub use update::{JobEvent, StatusReport, Update};

use crate::time::Time;

/// Maximum number of submission attempts of a job.
pub const MAX_ATTEMPTS: u32 = 5;

/// Maximum size of `metadata`, in bytes of JSON.
pub const MAX_METADATA_BYTES: usize = 2048;

/// The status of a job, declared in order of rank. The rank of a job never decreases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Created. The provider is not known to have it.
    Accepted,
    /// Accepted by the provider and waiting there.
    Queued,
    /// In progress.
    Running,
    /// Finished with outputs.
    Succeeded,
    /// Finished without outputs. `error` holds the reason.
    Failed,
    /// Cancelled on request.
    Cancelled,
}

impl Status {
    /// Every status, in order of rank.
    pub const ALL: [Self; 6] = [
        Self::Accepted,
        Self::Queued,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Returns the rank, from 0 to 3. The three terminal states share rank 3.
    #[must_use]
    pub fn rank(self) -> u8 {
        match self {
            Self::Accepted => 0,
            Self::Queued => 1,
            Self::Running => 2,
            Self::Succeeded | Self::Failed | Self::Cancelled => 3,
        }
    }

    /// Returns whether the status is terminal. A job in a terminal state never changes.
    #[must_use]
    pub fn is_final(self) -> bool {
        self.rank() == 3
    }

    /// Returns the name used in documents, URLs and provider definitions.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The text is not a job status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("job status must be one of accepted, queued, running, succeeded, failed, cancelled")]
pub struct InvalidStatus;

impl FromStr for Status {
    type Err = InvalidStatus;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or(InvalidStatus)
    }
}

/// The origin of a job's newest version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A client of the HTTP API or of a WebSocket.
    Api,
    /// The submitter, from the provider's submit response.
    Submit,
    /// A webhook from the provider.
    Webhook,
    /// An authenticated poll of the provider.
    Poll,
    /// An update pushed by a worker.
    Push,
    /// The job's deadline.
    Deadline,
}

impl Source {
    /// Every source.
    pub const ALL: [Self; 6] = [
        Self::Api,
        Self::Submit,
        Self::Webhook,
        Self::Poll,
        Self::Push,
        Self::Deadline,
    ];

    /// Returns the name used in documents, logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Submit => "submit",
            Self::Webhook => "webhook",
            Self::Poll => "poll",
            Self::Push => "push",
            Self::Deadline => "deadline",
        }
    }
}

/// One output of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// `video`, `image`, `audio` or `file`.
    #[serde(rename = "type", default = "Output::default_kind")]
    pub kind: String,
    /// URL of the content.
    pub url: String,
    /// Length in seconds, if the provider reports it.
    #[serde(default)]
    pub duration: Option<f64>,
    /// Expiry of the URL, if the provider reports it.
    #[serde(default)]
    pub expires_at: Option<Time>,
    /// URL of the watermarked variant, if the provider makes both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark_url: Option<String>,
    /// Whether the provider marked the output as not safe for work, if it classifies outputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nsfw: Option<bool>,
}

/// The cost of a job, as reported by the provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Amount in `unit`.
    pub amount: f64,
    /// A currency in lower case (`usd`), or `credits`, `tokens` and similar.
    pub unit: String,
}

impl Output {
    fn default_kind() -> String {
        "video".to_owned()
    }
}

/// A job. It serializes to exactly the public document.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Job {
    /// Unique id.
    pub id: JobId,
    /// Starts at 1 and increases by one with every change.
    pub version: u64,
    /// Current status.
    pub status: Status,
    /// Percentage from 0 to 100, or null if none is reported. A succeeded job has 100; a failed or
    /// cancelled job has null, so the value does not depend on the order of late updates.
    pub progress: Option<f64>,
    /// Number of jobs ahead in the provider's queue, if reported.
    pub queue_position: Option<u32>,
    /// Free-form description of the current step, set by the provider or the worker.
    pub stage: Option<String>,
    /// The `sub` claim of the tokens that may access the job.
    pub owner: String,
    /// Configured name of the provider, or null for a worker's job.
    pub provider: Option<String>,
    /// The provider's id of the task, once known.
    pub provider_task_id: Option<String>,
    /// The provider's name of the model.
    pub model: Option<String>,
    /// Origin of this version.
    pub source: Source,
    /// Creation time.
    pub created_at: Time,
    /// Time of this version.
    pub updated_at: Time,
    /// Time of the first version with status `running`.
    pub started_at: Option<Time>,
    /// Time of the terminal version.
    pub finished_at: Option<Time>,
    /// Time at which an unfinished job fails with `timeout`.
    pub deadline_at: Time,
    /// Estimated seconds until completion, if reported.
    pub eta_seconds: Option<f64>,
    /// Outputs of a succeeded job.
    pub outputs: Vec<Output>,
    /// Reason of a failure, or the error of the last submission attempt.
    pub error: Option<Failure>,
    /// Number of submission attempts started so far.
    pub attempt: u32,
    /// Time of the next submission attempt, if one is scheduled.
    pub next_attempt_at: Option<Time>,
    /// Cost reported by the provider.
    #[serde(default)]
    pub cost: Option<Cost>,
    /// Remarks of the provider's moderation, verbatim.
    #[serde(default)]
    pub moderation: Vec<String>,
    /// Arbitrary data set by the caller.
    pub metadata: Map<String, Value>,
    /// State that is not part of the document.
    #[serde(skip)]
    pub internal: Arc<InternalState>,
}

/// The fields of a new job.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// The `sub` claim of the tokens that may access the job.
    pub owner: String,
    /// Configured name of the provider, or `None` for a worker's job.
    pub provider: Option<String>,
    /// The provider's task id, if another system submitted the job.
    pub provider_task_id: Option<String>,
    /// The provider's name of the model.
    pub model: Option<String>,
    /// Arbitrary data set by the caller.
    pub metadata: Map<String, Value>,
    /// The request to submit, if the hub submits the job.
    pub request: Option<VideoRequest>,
    /// Time from creation to the deadline.
    pub deadline: Duration,
}

impl Job {
    /// Creates version 1 of a job: `queued` if the provider task id is known, otherwise `accepted`.
    #[must_use]
    pub fn new(new: NewJob, now: Time) -> Self {
        let is_submitted_by_hub = new.request.is_some();
        Self {
            id: JobId::new(),
            version: 1,
            status: if new.provider_task_id.is_some() {
                Status::Queued
            } else {
                Status::Accepted
            },
            progress: None,
            queue_position: None,
            stage: None,
            owner: new.owner,
            provider: new.provider,
            provider_task_id: new.provider_task_id,
            model: new.model,
            source: Source::Api,
            created_at: now,
            updated_at: now,
            started_at: None,
            finished_at: None,
            deadline_at: now + new.deadline,
            eta_seconds: None,
            outputs: Vec::new(),
            error: None,
            attempt: u32::from(!is_submitted_by_hub),
            next_attempt_at: None,
            cost: None,
            moderation: Vec::new(),
            metadata: new.metadata,
            internal: Arc::new(InternalState {
                request: new.request,
                ..InternalState::default()
            }),
        }
    }

    /// Returns whether the job is in a terminal state.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.status.is_final()
    }

    /// Derives the submission state from the document.
    #[must_use]
    pub fn submission_state(&self) -> SubmissionState {
        if self.status != Status::Accepted || self.internal.request.is_none() {
            return SubmissionState::Done;
        }
        if let Some(at) = self.next_attempt_at {
            return SubmissionState::Pending(at);
        }
        let error_kind = self.error.as_ref().map(|error| error.kind);
        match (self.attempt, error_kind) {
            (0, _) => SubmissionState::Pending(self.created_at),
            (_, Some(FailureKind::SubmissionUnknown)) => SubmissionState::Unknown,
            (_, _) => SubmissionState::InFlight,
        }
    }
}

/// Progress of a job's submission to its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmissionState {
    /// An attempt is due at this time, or is overdue and waits for a concurrency slot.
    Pending(Time),
    /// An attempt is in flight. If the process crashes now, its outcome is unknown.
    InFlight,
    /// The request was sent but its response was lost. The job is never submitted again.
    Unknown,
    /// The provider has the job, the job is final, or the hub does not submit it.
    Done,
}

impl Serialize for Job {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.serialize_with_outputs(&self.outputs, serializer)
    }
}

impl Job {
    /// Serializes the document with other `outputs`.
    ///
    /// # Errors
    /// The error of the serializer.
    pub fn serialize_with_outputs<S: Serializer>(
        &self,
        outputs: &impl Serialize,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut document = serializer.serialize_struct("Job", 25)?;
        document.serialize_field("id", &self.id)?;
        document.serialize_field("version", &self.version)?;
        document.serialize_field("status", &self.status)?;
        document.serialize_field("final", &self.is_final())?;
        document.serialize_field("progress", &self.progress)?;
        document.serialize_field("queue_position", &self.queue_position)?;
        document.serialize_field("stage", &self.stage)?;
        document.serialize_field("owner", &self.owner)?;
        document.serialize_field("provider", &self.provider)?;
        document.serialize_field("provider_task_id", &self.provider_task_id)?;
        document.serialize_field("model", &self.model)?;
        document.serialize_field("source", &self.source)?;
        document.serialize_field("created_at", &self.created_at)?;
        document.serialize_field("updated_at", &self.updated_at)?;
        document.serialize_field("started_at", &self.started_at)?;
        document.serialize_field("finished_at", &self.finished_at)?;
        document.serialize_field("deadline_at", &self.deadline_at)?;
        document.serialize_field("eta_seconds", &self.eta_seconds)?;
        document.serialize_field("outputs", outputs)?;
        document.serialize_field("error", &self.error)?;
        document.serialize_field("attempt", &self.attempt)?;
        document.serialize_field("next_attempt_at", &self.next_attempt_at)?;
        document.serialize_field("cost", &self.cost)?;
        document.serialize_field("moderation", &self.moderation)?;
        document.serialize_field("metadata", &self.metadata)?;
        document.end()
    }
}
