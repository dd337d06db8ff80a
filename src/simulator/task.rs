//! A task: what the provider knows of one job, and how it is written on the wire.
//!
//! Invariant: a task's times never go back and each change has a later `update_time` than the one before,
//! even within a millisecond. Field names and their order are Kling's (klingai.com/document-api, "callbacks"
//! and "query task"), with one exception: `progress`, which the real one does not tell.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::scenario::{Ending, Scenario};

/// Seconds that the clip lasts, as Kling writes them: a string.
const CLIP_DURATION: &str = "5.041";

/// What was asked for, by the first part of the submit path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Product {
    /// A clip from words alone.
    TextToVideo,
    /// A clip from words and at least one frame.
    ImageToVideo,
}

/// Where a task is, in Kling's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Taken, not yet started.
    Submitted,
    /// Being made.
    Processing,
    /// Ended with outputs, for as long as they are kept.
    Succeeded,
    /// Ended without.
    Failed,
}

impl Status {
    /// Whether the task has ended.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Submitted | Self::Processing => false,
            Self::Succeeded | Self::Failed => true,
        }
    }
}

/// The truth about one task.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub id: u64,
    pub external_id: Option<String>,
    pub product: Product,
    pub model: String,
    pub scenario: Scenario,
    /// `http://host:port`, under which whoever submitted the task reaches the clips.
    pub origin: String,
    pub watermark: bool,
    pub status: Status,
    pub progress: Option<u8>,
    pub created_ms: u64,
    pub updated_ms: u64,
    message: &'static str,
    outputs_kept: bool,
}

/// What is asked of a new task.
#[derive(Debug)]
pub(super) struct Seed {
    pub external_id: Option<String>,
    pub product: Product,
    pub model: String,
    pub scenario: Scenario,
    pub origin: String,
    pub watermark: bool,
}

impl Task {
    pub fn new(id: u64, seed: Seed) -> Self {
        let now = now_ms();
        let Seed {
            external_id,
            product,
            model,
            scenario,
            origin,
            watermark,
        } = seed;
        Self {
            id,
            external_id,
            product,
            model,
            scenario,
            origin,
            watermark,
            status: Status::Submitted,
            progress: None,
            created_ms: now,
            updated_ms: now,
            message: "",
            outputs_kept: false,
        }
    }

    pub fn proceed(&mut self, percent: u8) {
        self.status = Status::Processing;
        self.progress = Some(percent);
        self.touch();
    }

    pub fn end(&mut self, ending: Ending) {
        match ending {
            Ending::Never => return,
            Ending::Succeeds | Ending::SucceedsThin => {
                self.status = Status::Succeeded;
                self.outputs_kept = true;
            }
            Ending::SucceedsExpired => self.status = Status::Succeeded,
            Ending::Fails(message) => {
                self.status = Status::Failed;
                self.message = message;
            }
        }
        self.progress = None;
        self.touch();
    }

    fn touch(&mut self) {
        self.updated_ms = now_ms().max(self.updated_ms + 1);
    }

    /// The `data` of a submit's answer.
    pub fn receipt(&self) -> Receipt<'_> {
        Receipt {
            id: self.id.to_string(),
            status: self.status,
            create_time: self.created_ms,
            update_time: self.updated_ms,
            external_id: self.external_id.as_deref(),
        }
    }

    /// The task as a query and a callback tell it.
    pub fn document(&self) -> Document<'_> {
        Document {
            outputs: Some(self.outputs()),
            billing: Some(self.billing()),
            external_id: self.external_id.as_deref(),
            progress: self.progress,
            ..self.thin_document()
        }
    }

    /// The task in the shape of the published test vector: neither outputs nor billing nor the caller's own id.
    pub fn thin_document(&self) -> Document<'_> {
        Document {
            id: self.id.to_string(),
            status: self.status,
            message: self.message,
            create_time: self.created_ms,
            update_time: self.updated_ms,
            external_id: None,
            outputs: None,
            billing: None,
            progress: None,
        }
    }

    fn outputs(&self) -> Vec<Output> {
        if !self.outputs_kept {
            return Vec::new();
        }
        let id = self.id + 1;
        let url = format!("{}/clips/{id}.mp4", self.origin);
        vec![Output {
            kind: "video",
            id: id.to_string(),
            watermark_url: self.watermark.then(|| format!("{url}?watermark=1")),
            url,
            duration: CLIP_DURATION,
        }]
    }

    fn billing(&self) -> Vec<Billing> {
        match self.status {
            Status::Submitted | Status::Processing | Status::Failed => Vec::new(),
            Status::Succeeded => {
                vec![Billing {
                    charge_type: "unit",
                    amount: "2.5",
                    package_type: "video",
                }]
            }
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Receipt<'a> {
    id: String,
    status: Status,
    create_time: u64,
    update_time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_id: Option<&'a str>,
}

#[derive(Debug, Serialize)]
pub(super) struct Document<'a> {
    id: String,
    status: Status,
    message: &'a str,
    create_time: u64,
    update_time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outputs: Option<Vec<Output>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    billing: Option<Vec<Billing>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<u8>,
}

#[derive(Debug, Serialize)]
struct Output {
    #[serde(rename = "type")]
    kind: &'static str,
    id: String,
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    watermark_url: Option<String>,
    duration: &'static str,
}

#[derive(Debug, Serialize)]
struct Billing {
    charge_type: &'static str,
    amount: &'static str,
    package_type: &'static str,
}

fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
