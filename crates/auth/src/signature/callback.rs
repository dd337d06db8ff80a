//! Tokens that the hub signs for itself: callback tokens and time-limited grants.
//!
//! Every MAC covers its purpose, so a token for one purpose is never valid for another.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};

/// Domain separation from other uses of the same configured secret.
const DOMAIN: &[u8] = b"progress-hub callback key v1";

const JOB_CALLBACK: &str = "job-callback";

/// Signs callback tokens and grants. All nodes of a cluster must have the same secrets.
#[derive(Clone)]
pub struct CallbackKey {
    current: hmac::Key,
    /// Keys of earlier secrets, which verify only.
    previous: Vec<hmac::Key>,
}

/// The configured callback secret is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("secret is empty")]
pub struct EmptySecret;

impl CallbackKey {
    /// Derives the key from the configured secret, which should have at least 32 random bytes.
    ///
    /// # Errors
    /// Returns [`EmptySecret`] if the secret is empty.
    pub fn new(secret: &SecretString) -> Result<Self, EmptySecret> {
        Ok(Self {
            current: derive(secret)?,
            previous: Vec::new(),
        })
    }

    /// Also accepts tokens and grants that these earlier secrets have signed, so that the secret can be rotated.
    ///
    /// # Errors
    /// Returns [`EmptySecret`] if one of the secrets is empty.
    pub fn with_previous(mut self, secrets: &[SecretString]) -> Result<Self, EmptySecret> {
        self.previous = secrets.iter().map(derive).collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// Returns the last segment of a job's callback URL: `<job id>.<256-bit MAC, url-safe base64>`. The token is valid
    /// for this provider only. `provider` must not contain a space.
    pub fn callback_token(&self, provider: &str, job_id: &str) -> String {
        let mac = self.mac(JOB_CALLBACK, &callback_message(provider, job_id));
        format!("{job_id}.{mac}")
    }

    /// Verifies a callback token and returns its job id. Returns `None` if this key did not sign it for `provider`.
    pub fn verify_callback_token<'t>(&self, provider: &str, token: &'t str) -> Option<&'t str> {
        let (job_id, mac) = token.rsplit_once('.')?;
        self.verify_mac(JOB_CALLBACK, &callback_message(provider, job_id), mac)
            .then_some(job_id)
    }

    /// Returns a grant (`<unix seconds>.<MAC>`) for `subject` and `purpose` that expires at `until`.
    pub fn sign_grant(&self, purpose: &'static str, subject: &str, until: Timestamp) -> String {
        let until = until.as_second();
        format!(
            "{until}.{}",
            self.mac(purpose, &grant_message(subject, until))
        )
    }

    /// Returns whether this key signed `grant` for the same purpose and subject, and it has not expired at `now`.
    pub fn verify_grant(
        &self,
        purpose: &'static str,
        subject: &str,
        grant: &str,
        now: Timestamp,
    ) -> bool {
        let Some((until, mac)) = grant.split_once('.') else {
            return false;
        };
        let Ok(until) = until.parse::<i64>() else {
            return false;
        };
        self.verify_mac(purpose, &grant_message(subject, until), mac) && now.as_second() < until
    }

    /// Returns the MAC of `message` for `purpose`, in url-safe base64.
    pub fn mac(&self, purpose: &'static str, message: &str) -> String {
        let tag = hmac::sign(&self.current, &content(purpose, message));
        URL_SAFE_NO_PAD.encode(tag)
    }

    /// Returns whether `mac` is the [`mac`](Self::mac) of the same purpose and message with the current or a previous
    /// secret, in constant time.
    pub fn verify_mac(&self, purpose: &'static str, message: &str, mac: &str) -> bool {
        let Ok(tag) = URL_SAFE_NO_PAD.decode(mac) else {
            return false;
        };
        let content = content(purpose, message);
        let mut keys = std::iter::once(&self.current).chain(&self.previous);
        keys.any(|key| hmac::verify(key, &content, &tag).is_ok())
    }
}

fn derive(secret: &SecretString) -> Result<hmac::Key, EmptySecret> {
    let secret = secret.expose_secret().as_bytes();
    if secret.is_empty() {
        return Err(EmptySecret);
    }
    let root = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let derived = hmac::sign(&root, DOMAIN);
    Ok(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
}

fn callback_message(provider: &str, job_id: &str) -> String {
    format!("{provider} {job_id}")
}

fn grant_message(subject: &str, until: i64) -> String {
    format!("{until} {subject}")
}

/// Encodes purpose and message with a length prefix, so that no two pairs have the same encoding.
fn content(purpose: &str, message: &str) -> Vec<u8> {
    let length = (purpose.len() as u64).to_be_bytes();
    [&length, purpose.as_bytes(), message.as_bytes()].concat()
}
