//! A job and its document: what a browser is shown and what every room of the hub speaks of.
//!
//! Invariant: the document *is* the message. [`Job::apply`] (in `job::law`) is the only place that
//! decides whether news changes a job, and every change raises `version` by one.

mod failure;
mod id;
mod request;
mod topic;
mod transition;
mod update;

use std::sync::Arc;
use std::time::Duration;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

pub use failure::{Failure, FailureKind};
pub use id::{InvalidJobId, JobId};
pub use request::{BudgetWindow, InternalState, Platform, Reservation, VideoRequest};
pub use topic::Topic;
pub use update::{JobEvent, StatusReport, Update};

use crate::time::Time;

/// How often a job is tried at most before its provider has accepted it.
pub const MAX_ATTEMPTS: u32 = 5;

/// The most bytes of JSON that a caller's `metadata` may have.
pub const MAX_METADATA_BYTES: usize = 2048;

/// Where a job is. Declared in the order of its rank: a job never goes to a lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Ours, and not yet known to be at the provider.
    Accepted,
    /// At the provider, not yet begun.
    Queued,
    /// Being worked on.
    Running,
    /// Ended with its outputs.
    Succeeded,
    /// Ended without; `error` says why.
    Failed,
    /// Ended because somebody asked for it.
    Cancelled,
}

impl Status {
    /// Every status, in the order of a job's life.
    pub const ALL: [Self; 6] = [
        Self::Accepted,
        Self::Queued,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// 0 to 3; the three ends share the highest.
    #[must_use]
    pub fn rank(self) -> u8 {
        match self {
            Self::Accepted => 0,
            Self::Queued => 1,
            Self::Running => 2,
            Self::Succeeded | Self::Failed | Self::Cancelled => 3,
        }
    }

    /// Whether this is an end, after which nothing changes a job.
    #[must_use]
    pub fn is_final(self) -> bool {
        self.rank() == 3
    }

    /// The word in documents, URLs and specs.
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

    /// The status that `word` names.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }
}

/// Who brought the newest version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A caller of the HTTP API or of a socket.
    Api,
    /// The submitter, from the provider's answer.
    Submit,
    /// The provider's webhook.
    Webhook,
    /// The watchdog's authenticated read.
    Poll,
    /// A worker.
    Push,
    /// The clock: the job's deadline passed.
    Deadline,
}

/// One result of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// `video`, `image`, `audio` or `file`.
    #[serde(rename = "type", default = "Output::default_kind")]
    pub kind: String,
    /// Where it can be fetched.
    pub url: String,
    /// Length in seconds, where told.
    #[serde(default)]
    pub duration: Option<f64>,
    /// When the URL stops working, where told.
    #[serde(default)]
    pub expires_at: Option<Time>,
    /// The same with the provider's watermark, where it makes both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark_url: Option<String>,
    /// Whether the provider marked it as not safe for work, where it judges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nsfw: Option<bool>,
}

/// What a job cost, in the provider's own words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// How much.
    pub amount: f64,
    /// Of what: a currency in lower case (`usd`), `credits`, `tokens`, `unit` …
    pub unit: String,
}

impl Output {
    fn default_kind() -> String {
        "video".to_owned()
    }
}

/// A job: serialised, it is exactly the public document.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Job {
    /// Its name everywhere.
    pub id: JobId,
    /// 1, 2, 3 …: raised by one with every change.
    pub version: u64,
    /// Where it is.
    pub status: Status,
    /// Percent, 0–100; null where none is reported, 100 once succeeded, null once failed or
    /// cancelled, so that it does not depend on which late news came in before the end.
    pub progress: Option<f64>,
    /// Jobs ahead of it at the provider, where told.
    pub queue_position: Option<u32>,
    /// A worker's or provider's own word for what is going on.
    pub stage: Option<String>,
    /// The `sub` of those who may see it.
    pub owner: String,
    /// The provider's name in the configuration; null for a worker's own job.
    pub provider: Option<String>,
    /// The provider's own id, once known.
    pub provider_task_id: Option<String>,
    /// The provider's name of the model.
    pub model: Option<String>,
    /// Who brought this version.
    pub source: Source,
    /// When it was registered.
    pub created_at: Time,
    /// When this version came to be.
    pub updated_at: Time,
    /// When it was first known to run.
    pub started_at: Option<Time>,
    /// When it ended.
    pub finished_at: Option<Time>,
    /// When it is given up.
    pub deadline_at: Time,
    /// Seconds it may still take, where told.
    pub eta_seconds: Option<f64>,
    /// Its results, once succeeded.
    pub outputs: Vec<Output>,
    /// Why it failed, or what the last try at submitting ran into.
    pub error: Option<Failure>,
    /// Tries at submitting begun so far: 0 before the first.
    pub attempt: u32,
    /// When the next try is due, while one is.
    pub next_attempt_at: Option<Time>,
    /// What the provider charged, where it tells.
    #[serde(default)]
    pub cost: Option<Cost>,
    /// What the provider's moderation held back or remarked on, in its own words.
    #[serde(default)]
    pub moderation: Vec<String>,
    /// The caller's own.
    pub metadata: Map<String, Value>,
    /// What the hub needs to send the job and to ask about it; never part of the document.
    #[serde(skip)]
    pub internal: Arc<InternalState>,
}

/// What a new job is made from.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Who may see it.
    pub owner: String,
    /// Its provider; none for a worker's own.
    pub provider: Option<String>,
    /// The provider's id when it was submitted elsewhere.
    pub provider_task_id: Option<String>,
    /// The provider's name of the model.
    pub model: Option<String>,
    /// The caller's own.
    pub metadata: Map<String, Value>,
    /// What is to be submitted, when the hub does it.
    pub request: Option<VideoRequest>,
    /// How long until it is given up.
    pub deadline: Duration,
}

impl Job {
    /// Version 1 of a job: `queued` where a provider has it already, else `accepted`.
    #[must_use]
    pub fn new(new: NewJob, now: Time) -> Self {
        let submitted_here = new.request.is_some();
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
            attempt: u32::from(!submitted_here),
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

    /// Whether it has ended.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.status.is_final()
    }

    /// Where the job stands with regard to being submitted; read from the document alone.
    #[must_use]
    pub fn submission_state(&self) -> SubmissionState {
        let ours = self.status == Status::Accepted && self.internal.request.is_some();
        let lost = || {
            self.error
                .as_ref()
                .is_some_and(|e| e.kind == FailureKind::SubmissionUnknown)
        };
        match (ours, self.next_attempt_at) {
            (false, _) => SubmissionState::Done,
            (true, Some(at)) => SubmissionState::Pending(at),
            (true, None) if self.attempt == 0 => SubmissionState::Pending(self.created_at),
            (true, None) if lost() => SubmissionState::Unknown,
            (true, None) => SubmissionState::InFlight,
        }
    }
}

/// Where a job stands with regard to being submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmissionState {
    /// A try is due at this moment, or was and waits for a free place.
    Pending(Time),
    /// A try is under way; should its process die now, the outcome is unknown.
    InFlight,
    /// A try went out and its answer was lost: never sent again.
    Unknown,
    /// The provider has it, or it has ended, or it was never the hub's to submit.
    Done,
}

impl Serialize for Job {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
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
        document.serialize_field("outputs", &self.outputs)?;
        document.serialize_field("error", &self.error)?;
        document.serialize_field("attempt", &self.attempt)?;
        document.serialize_field("next_attempt_at", &self.next_attempt_at)?;
        document.serialize_field("cost", &self.cost)?;
        document.serialize_field("moderation", &self.moderation)?;
        document.serialize_field("metadata", &self.metadata)?;
        document.end()
    }
}
