//! The document of a job and the report that changes it. The document has the same fields as a document of the hub, so
//! that the sizes are equal.

use bytestring::ByteString;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::message::{OWNER, metadata};

/// Report of a worker.
#[derive(Deserialize)]
pub struct Report {
    status: String,
    stage: Option<String>,
    progress: Option<f64>,
}

/// A job as it is stored and delivered.
#[derive(Serialize, Deserialize)]
pub struct Document {
    pub id: String,
    pub version: u64,
    pub status: String,
    progress: Option<f64>,
    queue_position: Option<u32>,
    stage: Option<String>,
    pub owner: String,
    provider: Option<String>,
    provider_task_id: Option<String>,
    model: Option<String>,
    source: String,
    created_at: Timestamp,
    pub updated_at: Timestamp,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    deadline_at: Timestamp,
    eta_seconds: Option<f64>,
    outputs: Vec<Value>,
    error: Option<Value>,
    attempt: u32,
    next_attempt_at: Option<Timestamp>,
    cost: Option<Value>,
    moderation: Vec<String>,
    metadata: Map<String, Value>,
}

impl Document {
    /// Creates the document of a job without reports.
    pub fn new(channel: &str) -> Self {
        let now = now();
        Self {
            id: format!("job_{channel:0>32}"),
            version: 1,
            status: "accepted".to_owned(),
            progress: None,
            queue_position: None,
            stage: None,
            owner: OWNER.to_owned(),
            provider: None,
            provider_task_id: None,
            model: None,
            source: "push".to_owned(),
            created_at: now,
            updated_at: now,
            started_at: None,
            finished_at: None,
            deadline_at: now + 30.minutes(),
            eta_seconds: None,
            outputs: Vec::new(),
            error: None,
            attempt: 1,
            next_attempt_at: None,
            cost: None,
            moderation: Vec::new(),
            metadata: metadata(0),
        }
    }

    /// Applies a report.
    pub fn apply(&mut self, report: &Report) {
        let now = now();
        self.version += 1;
        self.status.clone_from(&report.status);
        self.stage.clone_from(&report.stage);
        self.progress = report.progress;
        self.updated_at = now;
        self.started_at.get_or_insert(now);
    }

    /// Returns the message for the sockets.
    pub fn message(&self) -> serde_json::Result<ByteString> {
        #[derive(Serialize)]
        struct Message<'a> {
            r#type: &'static str,
            job: &'a Document,
        }
        let message = Message {
            r#type: "job",
            job: self,
        };
        Ok(serde_json::to_string(&message)?.into())
    }
}

/// Returns the current time with the precision of the hub's documents, milliseconds.
fn now() -> Timestamp {
    Timestamp::from_millisecond(Timestamp::now().as_millisecond()).unwrap_or_default()
}
