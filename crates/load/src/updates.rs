//! Updates of a run, sent as worker requests or as signed webhooks.
//!
//! Invariant: every update method sends the same content, so their costs are comparable.

use jiff::Timestamp;
use progress_hub_auth::signature::{Key, Scheme};
use reqwest::header::CONTENT_TYPE;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};

use super::access::OWNER;
use super::arguments::{ArgumentErrors, Arguments, MAX_METADATA_BYTES, UpdateMethod};
use super::client::{HttpClient, send};
use super::error::RequestError;
use super::jobs::JobIndex;
use super::schedule::{STORM_PROGRESS, Schedule};

/// Registers jobs and sends their updates.
pub(super) struct UpdateSender {
    client: HttpClient,
    method: UpdateMethod,
    provider: String,
    /// Distinguishes the provider tasks of this run from those of other runs.
    run_id: String,
    signer: Option<(Scheme, Key)>,
    worker_token: SecretString,
    metadata: Value,
    /// Text after the stage that pads a document to the requested size.
    padding: String,
}

/// Content of an update.
#[derive(Clone, Copy)]
pub(super) enum UpdateKind {
    /// Update number `number` of the schedule.
    Scheduled { number: u64, progress: f64 },
    /// Change while all sockets are disconnected by a reconnect storm.
    Storm,
    /// Final update.
    Final,
}

/// Result of an accepted update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UpdateResult {
    Applied,
    /// The hub already had this or a later state.
    Unchanged,
}

impl UpdateSender {
    /// # Errors
    /// The webhook secret is missing or does not have the format that the update method requires.
    pub fn new(
        client: HttpClient,
        arguments: &Arguments,
        worker_token: SecretString,
        webhook_secret: Option<SecretString>,
    ) -> Result<Self, ArgumentErrors> {
        let signer = scheme(arguments.by)
            .map(|scheme| signer(scheme, webhook_secret))
            .transpose()?;
        let padding = arguments.padding as usize;
        let in_metadata = padding.min(MAX_METADATA_BYTES);
        Ok(Self {
            client,
            method: arguments.by,
            provider: arguments.provider.clone(),
            run_id: format!("{:016x}", rand::random::<u64>()),
            signer,
            worker_token,
            metadata: if in_metadata == 0 {
                json!({})
            } else {
                json!({ "padding": "x".repeat(in_metadata) })
            },
            padding: "x".repeat(padding - in_metadata),
        })
    }

    fn task_id(&self, job: u32) -> String {
        format!("load-{}-{job}", self.run_id)
    }

    /// Registers a job and returns its id.
    pub async fn register(&self, job: u32) -> Result<String, RequestError> {
        #[derive(Deserialize)]
        struct Registered {
            id: String,
        }
        let mut body = json!({ "owner": OWNER, "metadata": self.metadata });
        if self.signer.is_some() {
            body["provider"] = json!(self.provider);
            body["provider_task_id"] = json!(self.task_id(job));
        }
        let request = self.client.post("/v1/jobs", Some(&self.worker_token));
        let registered: Registered = send(request.json(&body)).await?;
        Ok(registered.id)
    }

    /// Sends an update of a job.
    pub async fn send(
        &self,
        jobs: &JobIndex,
        job: u32,
        kind: UpdateKind,
    ) -> Result<UpdateResult, RequestError> {
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
        let request = if let Some((scheme, key)) = &self.signer {
            // `generic` reads the task id from `task_id`, `kling` from `id`.
            body["task_id"] = json!(self.task_id(job));
            body["id"] = body["task_id"].clone();
            let body = body.to_string();
            let message_id = format!("msg_{:032x}", rand::random::<u128>());
            let headers = scheme.sign(key, &message_id, body.as_bytes(), Timestamp::now());
            let headers = headers.map_err(|error| RequestError::Http(error.to_string()))?;
            let path = format!("/v1/webhooks/{}", self.provider);
            let request = self.client.post(&path, None);
            let mut request = request.header(CONTENT_TYPE, "application/json");
            for (name, value) in headers {
                request = request.header(name, value);
            }
            request.body(body)
        } else {
            let path = format!("/v1/jobs/{}/updates", jobs.id(job));
            let request = self.client.post(&path, Some(&self.worker_token));
            request.json(&body)
        };
        let response: Response = send(request).await?;
        Ok(if response.applied {
            UpdateResult::Applied
        } else {
            UpdateResult::Unchanged
        })
    }

    fn running(&self, progress: f64, stage: &str) -> Value {
        let status = if self.method == UpdateMethod::Push {
            "running"
        } else {
            "processing"
        };
        let stage = format!("{stage} {}", self.padding);
        json!({ "status": status, "progress": progress, "stage": stage.trim_end() })
    }
}

/// Returns the signature scheme of webhooks, or `None` for worker requests.
fn scheme(method: UpdateMethod) -> Option<Value> {
    match method {
        UpdateMethod::Push => None,
        UpdateMethod::Webhook => Some(
            json!({ "scheme": "hmac", "header": "x-ai-signature", "encoding": "hex", "prefix": "sha256=" }),
        ),
        UpdateMethod::StandardWebhook => Some(json!({ "scheme": "standard_webhooks" })),
    }
}

fn signer(scheme: Value, secret: Option<SecretString>) -> Result<(Scheme, Key), ArgumentErrors> {
    let secret = secret.ok_or_else(|| ArgumentErrors::one("webhooks require a webhook secret"))?;
    let scheme: Scheme =
        serde_json::from_value(scheme).map_err(|error| ArgumentErrors::one(error.to_string()))?;
    let key = Key::from(secret);
    if let Some(problem) = scheme.key_problem(&key) {
        return Err(ArgumentErrors::one(format!("webhook secret: {problem}")));
    }
    Ok((scheme, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(method: UpdateMethod, secret: &str) -> Result<Vec<(String, String)>, String> {
        let (scheme, key) = signer(scheme(method).unwrap(), Some(secret.into()))
            .map_err(|error| error.to_string())?;
        Ok(scheme
            .sign(
                &key,
                "msg_1",
                b"what do ya want for nothing?",
                Timestamp::now(),
            )
            .unwrap())
    }

    #[test]
    fn hmac_signature_matches_rfc_4231() {
        let tag = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let headers = sign(UpdateMethod::Webhook, "Jefe").unwrap();
        assert_eq!(
            headers,
            [("x-ai-signature".to_owned(), format!("sha256={tag}"))]
        );
    }

    #[test]
    fn standard_webhook_secret_must_be_base64_and_is_not_printed() {
        assert!(
            sign(
                UpdateMethod::StandardWebhook,
                "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
            )
            .is_ok()
        );
        let error = sign(UpdateMethod::StandardWebhook, "whsec_hunter2!").unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
