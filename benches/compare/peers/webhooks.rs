//! Signed webhooks of the provider `studio`, whose definition is `generic`.

use anyhow::Context;
use progress_hub::time::Time;
use progress_hub_auth::signature::{Key, Scheme};
use secrecy::SecretString;
use serde_json::Value;

use crate::http_connection::post;

/// Name of the provider in the configuration of the hub.
pub const PROVIDER: &str = "studio";

/// Secret that signs the webhooks.
pub const WEBHOOK_SECRET: &str = "a webhook secret for a single benchmark run";

/// Signs webhooks with the scheme of the provider.
pub struct Signer {
    scheme: Scheme,
    key: Key,
}

impl Signer {
    pub fn new() -> anyhow::Result<Self> {
        let scheme = toml::from_str(
            "scheme = 'hmac'\nheader = 'x-ai-signature'\nencoding = 'hex'\nprefix = 'sha256='",
        );
        Ok(Self {
            scheme: scheme.context("signature scheme")?,
            key: Key::from(SecretString::from(WEBHOOK_SECRET)),
        })
    }

    /// Returns the request of a webhook.
    pub fn request(&self, body: &Value) -> anyhow::Result<Vec<u8>> {
        let body = body.to_string();
        let now = Time::now().timestamp();
        let signed = self.scheme.sign(&self.key, "", body.as_bytes(), now)?;
        let headers: Vec<(&str, &str)> = signed
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        Ok(post(&format!("/v1/webhooks/{PROVIDER}"), &headers, &body))
    }
}

/// Returns the task id of a job at the provider.
pub fn task_id(nth: usize) -> String {
    format!("task-{nth}")
}
