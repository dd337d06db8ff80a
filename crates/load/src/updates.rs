//! What a run tells the hub about its jobs, by push or by webhook.
//!
//! Invariant: both ways say the same, so that what they cost can be compared.

use bytes::Bytes;
use hyper::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};

use super::arguments::{ArgumentErrors, Arguments, MAX_METADATA, UpdateMethod};
use super::client::{Headers, HttpClient, RequestError, bearer};
use super::jobs::JobIndex;
use super::schedule::{STORM, Schedule};
use super::signing::Signer;
use super::subscription_state::FinalState;

/// Whose the jobs of a run are.
pub const OWNER: &str = "load";

/// How updates reach the hub, and as whom.
pub(super) struct UpdateSender {
    by: UpdateMethod,
    provider: String,
    /// Tells the tasks of this run from those of all others.
    run: String,
    signer: Option<Signer>,
    worker: Headers,
    metadata: Value,
    /// What follows a stage, so that a document is as long as asked for.
    padding: String,
}

/// What is told of a job.
#[derive(Clone, Copy)]
pub(super) enum UpdateKind {
    /// An update of the schedule.
    Step {
        update: u64,
        progress: f64,
    },
    /// The change while a storm keeps everybody away.
    Storm,
    End,
}

/// What the hub made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UpdateResult {
    Applied,
    Unchanged,
}

#[derive(Deserialize)]
struct Answer {
    applied: bool,
}

#[derive(Deserialize)]
struct Job {
    id: String,
}

#[derive(Deserialize)]
struct Ended {
    version: u32,
    #[serde(rename = "final")]
    is_final: bool,
}

impl UpdateSender {
    /// # Errors
    /// When the secret that webhooks need is missing or is none.
    pub fn new(
        arguments: &Arguments,
        worker: &SecretString,
        webhook_secret: Option<&SecretString>,
    ) -> Result<Self, ArgumentErrors> {
        let secret = || {
            let missing = "webhooks need the secret that signs them";
            webhook_secret
                .map(ExposeSecret::expose_secret)
                .ok_or_else(|| ArgumentErrors::one(missing))
        };
        let signer = match arguments.by {
            UpdateMethod::Push => None,
            UpdateMethod::Webhook => Some(Signer::hmac(secret()?)),
            UpdateMethod::StandardWebhook => Some(Signer::standard(secret()?)?),
        };
        let padding = arguments.padding as usize;
        let metadata = match padding.min(MAX_METADATA) {
            0 => json!({}),
            bytes => json!({ "padding": "x".repeat(bytes) }),
        };
        let rest = padding.saturating_sub(MAX_METADATA);
        Ok(Self {
            by: arguments.by,
            provider: arguments.provider.clone(),
            run: format!("{:016x}", rand::random::<u64>()),
            signer,
            worker: vec![bearer(worker.expose_secret())],
            metadata,
            padding: "x".repeat(rest),
        })
    }

    fn task(&self, number: u32) -> String {
        format!("load-{}-{number}", self.run)
    }

    /// Registers a job: its id.
    pub async fn register(
        &self,
        caller: &mut HttpClient,
        number: u32,
    ) -> Result<String, RequestError> {
        let mut body = json!({ "owner": OWNER, "metadata": self.metadata });
        if self.signer.is_some() {
            body["provider"] = json!(self.provider);
            body["provider_task_id"] = json!(self.task(number));
        }
        let body = body.to_string().into();
        let called = caller.call(Method::POST, "/v1/jobs", &self.worker, body);
        let job: Job = read(called.await?)?;
        Ok(job.id)
    }

    /// Tells news of a job.
    pub async fn tell(
        &self,
        caller: &mut HttpClient,
        jobs: &JobIndex,
        job: u32,
        news: UpdateKind,
    ) -> Result<UpdateResult, RequestError> {
        let mut body = match news {
            UpdateKind::Step { update, progress } => {
                let stage = Schedule::stage(update);
                self.running(progress, &stage)
            }
            UpdateKind::Storm => self.running(STORM, "storm"),
            UpdateKind::End => json!({
                "status": "succeeded",
                "outputs": [{ "type": "video", "url": "https://cdn.example.com/clip.mp4" }],
            }),
        };
        let called = match &self.signer {
            None => {
                let path = format!("/v1/jobs/{}/updates", jobs.id(job));
                let body = body.to_string().into();
                caller.call(Method::POST, &path, &self.worker, body).await?
            }
            Some(signer) => {
                // Each spec has its own name for it, and reads past the other's.
                body["task_id"] = json!(self.task(job));
                body["id"] = body["task_id"].clone();
                let path = format!("/v1/webhooks/{}", self.provider);
                let body = Bytes::from(body.to_string());
                let headers = signer.sign(&body);
                caller.call(Method::POST, &path, &headers, body).await?
            }
        };
        let answer: Answer = read(called)?;
        Ok(match answer.applied {
            true => UpdateResult::Applied,
            false => UpdateResult::Unchanged,
        })
    }

    fn running(&self, progress: f64, stage: &str) -> Value {
        let status = match self.by {
            UpdateMethod::Push => "running",
            UpdateMethod::Webhook | UpdateMethod::StandardWebhook => "processing",
        };
        let gap = if self.padding.is_empty() { "" } else { " " };
        let stage = format!("{stage}{gap}{}", self.padding);
        json!({ "status": status, "progress": progress, "stage": stage })
    }

    /// How a job is now, by the hub's own answer.
    pub async fn truth(
        &self,
        caller: &mut HttpClient,
        jobs: &JobIndex,
        job: u32,
        reader: &Headers,
    ) -> Result<FinalState, RequestError> {
        let path = format!("/v1/jobs/{}", jobs.id(job));
        let called = caller.call(Method::GET, &path, reader, Bytes::new());
        let ended: Ended = read(called.await?)?;
        Ok(FinalState {
            version: ended.version,
            is_final: ended.is_final,
        })
    }
}

/// The answer to what was taken.
pub(super) fn read<T: for<'a> Deserialize<'a>>(
    (status, body): (StatusCode, Bytes),
) -> Result<T, RequestError> {
    if !status.is_success() {
        let code = serde_json::from_slice::<Value>(&body).ok();
        let code = code.and_then(|problem| problem["code"].as_str().map(str::to_owned));
        return Err(RequestError::Refused(status, code.unwrap_or_default()));
    }
    serde_json::from_slice(&body).map_err(|_| RequestError::Body)
}
