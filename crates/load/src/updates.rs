//! Jobs and updates of a run, sent as worker requests or as signed webhooks.
//!
//! Invariant: every update method sends the same content, so their costs are comparable.

use anyhow::Result;
use jiff::Timestamp;
use progress_hub_auth::signature::{Key, Scheme};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::arguments::{ArgumentErrors, MAX_METADATA_BYTES, UpdateMethod};
use super::context::{Context, OWNER};
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
    /// Registers a job and returns its id.
    pub async fn register(&self, job: u32) -> Result<Box<str>> {
        #[derive(Deserialize)]
        struct Registered {
            id: Box<str>,
        }
        let mut body = json!({ "owner": OWNER, "metadata": {} });
        let padding = (self.arguments.padding as usize).min(MAX_METADATA_BYTES);
        if padding > 0 {
            body["metadata"]["padding"] = json!("x".repeat(padding));
        }
        if self.signer.is_some() {
            body["provider"] = json!(self.arguments.provider);
            body["provider_task_id"] = json!(self.task_id(job));
        }
        let registered: Registered = self.post("/v1/jobs", &body).await?;
        Ok(registered.id)
    }

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

    /// Sends a request with the token of a worker.
    async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        let request = self.target.request(Method::POST, path).json(body);
        send(request.bearer_auth(self.worker_token.expose_secret())).await
    }

    fn task_id(&self, job: u32) -> String {
        format!("load-{}-{job}", self.run_id)
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

/// Returns the signature scheme of webhooks and its key, or `None` for worker requests.
pub(super) fn signer(
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
