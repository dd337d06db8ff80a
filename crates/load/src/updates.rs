//! Updates of a run, sent as worker requests or as signed webhooks.
//!
//! Invariant: every update method sends the same content, so their costs are comparable.

use anyhow::Result;
use jiff::Timestamp;
use progress_hub_auth::signature::{Key, Scheme};
use reqwest::header::CONTENT_TYPE;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::arguments::{ArgumentErrors, Arguments, MAX_METADATA_BYTES, UpdateMethod};
use super::client::send;
use super::context::OWNER;
use super::schedule::{STORM_PROGRESS, Schedule};
use super::target::Target;

/// Registers jobs and sends their updates.
pub(super) struct UpdateSender {
    target: Target,
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

impl UpdateSender {
    /// # Errors
    /// The webhook secret is missing or does not have the format that the update method requires.
    pub fn new(
        target: Target,
        arguments: &Arguments,
        worker_token: SecretString,
        webhook_secret: Option<SecretString>,
    ) -> Result<Self, ArgumentErrors> {
        let padding = arguments.padding as usize;
        let in_metadata = padding.min(MAX_METADATA_BYTES);
        Ok(Self {
            target,
            method: arguments.by,
            provider: arguments.provider.clone(),
            run_id: format!("{:016x}", rand::random::<u64>()),
            signer: signer(arguments.by, webhook_secret)?,
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

    /// Sends a request with the token of a worker.
    async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        let request = self
            .target
            .post(path)
            .bearer_auth(self.worker_token.expose_secret());
        send(request.json(body)).await
    }

    /// Registers a job and returns its id.
    pub async fn register(&self, job: u32) -> Result<String> {
        #[derive(Deserialize)]
        struct Registered {
            id: String,
        }
        let mut body = json!({ "owner": OWNER, "metadata": self.metadata });
        if self.signer.is_some() {
            body["provider"] = json!(self.provider);
            body["provider_task_id"] = json!(self.task_id(job));
        }
        let registered: Registered = self.post("/v1/jobs", &body).await?;
        Ok(registered.id)
    }

    /// Sends an update of the job with number `job` and id `id`. Returns whether it was applied. If not, the hub
    /// already had this or a later state.
    pub async fn send(&self, job: u32, id: &str, kind: UpdateKind) -> Result<bool> {
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
            let request = self.target.post(&format!("/v1/webhooks/{}", self.provider));
            let request = request.header(CONTENT_TYPE, "application/json").body(body);
            let request = headers.into_iter().fold(request, |request, (name, value)| {
                request.header(name, value)
            });
            send(request).await?
        } else {
            self.post(&format!("/v1/jobs/{id}/updates"), &body).await?
        };
        Ok(response.applied)
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

/// Returns the signature scheme of webhooks and its key, or `None` for worker requests.
fn signer(
    method: UpdateMethod,
    secret: Option<SecretString>,
) -> Result<Option<(Scheme, Key)>, ArgumentErrors> {
    let scheme = match method {
        UpdateMethod::Push => return Ok(None),
        UpdateMethod::Webhook => {
            json!({ "scheme": "hmac", "header": "x-ai-signature", "encoding": "hex", "prefix": "sha256=" })
        }
        UpdateMethod::StandardWebhook => json!({ "scheme": "standard_webhooks" }),
    };
    let scheme: Scheme =
        serde_json::from_value(scheme).map_err(|error| ArgumentErrors::one(error.to_string()))?;
    let secret = secret.ok_or_else(|| ArgumentErrors::one("webhooks require a webhook secret"))?;
    let key = Key::from(secret);
    if let Some(problem) = scheme.key_problem(&key) {
        return Err(ArgumentErrors::one(format!("webhook secret: {problem}")));
    }
    Ok(Some((scheme, key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(method: UpdateMethod, secret: &str) -> Result<Vec<(String, String)>, String> {
        let signer = signer(method, Some(secret.into())).map_err(|error| error.to_string())?;
        let (scheme, key) = signer.unwrap();
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
