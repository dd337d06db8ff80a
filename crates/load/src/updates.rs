//! Updates of a run, sent as worker requests or as signed webhooks.
//!
//! Invariant: every update method sends the same content, so their costs are comparable.

use anyhow::Result;
use jiff::Timestamp;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Value, json};

use super::arguments::MAX_METADATA_BYTES;
use super::context::Context;
use super::schedule::{STORM_PROGRESS, Schedule};
use super::target::send;

/// Content of an update.
#[derive(Clone, Copy)]
pub(super) enum UpdateKind {
    /// Update number `number` of the schedule, with its progress.
    Scheduled { number: u64, progress: f64 },
    /// Change while all sockets are disconnected by a reconnect storm.
    Storm,
    /// Final update.
    Final,
}

impl Context {
    /// Sends an update of a job. Returns whether it was applied. If not, the hub already had this or a later state.
    pub async fn update(&self, job: u32, kind: UpdateKind) -> Result<bool> {
        #[derive(Deserialize)]
        struct Response {
            applied: bool,
        }
        let mut body = match kind {
            UpdateKind::Scheduled { number, progress } => {
                self.running(progress, &Schedule::stage(number))
            }
            UpdateKind::Storm => self.running(STORM_PROGRESS, "storm"),
            UpdateKind::Final => json!({
                "status": "succeeded",
                "outputs": [{ "type": "video", "url": "https://cdn.example.com/clip.mp4" }],
            }),
        };
        let response: Response = if let Some((scheme, key)) = &self.signer {
            // `generic` reads the task id from `task_id`, `kling` from `id`.
            body["task_id"] = json!(self.task_id(job));
            body["id"] = body["task_id"].clone();
            let body = body.to_string();
            let message_id = format!("msg_{:032x}", rand::random::<u128>());
            let headers = scheme.sign(key, &message_id, body.as_bytes(), Timestamp::now())?;
            let path = format!("/v1/webhooks/{}", self.arguments.provider);
            let request = self.target.request(Method::POST, &path);
            let mut request = request.header(CONTENT_TYPE, "application/json");
            for (name, value) in headers {
                request = request.header(name, value);
            }
            send(request.body(body)).await?
        } else {
            let path = format!("/v1/jobs/{}/updates", self.job_id(job));
            self.post(&path, &body).await?
        };
        Ok(response.applied)
    }

    fn running(&self, progress: f64, stage: &str) -> Value {
        let status = if self.signer.is_some() {
            "processing"
        } else {
            "running"
        };
        // Padding that exceeds the metadata.
        let padding = (self.arguments.padding as usize).saturating_sub(MAX_METADATA_BYTES);
        let stage = format!("{stage} {}", "x".repeat(padding));
        json!({ "status": status, "progress": progress, "stage": stage.trim_end() })
    }
}
