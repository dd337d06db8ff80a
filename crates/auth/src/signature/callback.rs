//! The hub's own proofs: the token in a job's callback URL, and links that hold until a time.
//!
//! Invariant: every MAC names its purpose, so a proof made for one use never passes for another.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};

/// Keeps this key apart from any other use of the same configured secret.
const DOMAIN: &[u8] = b"progress-hub callback key v1";

const JOB_CALLBACK: &str = "job-callback";

/// Signs what the hub gives away in URLs. Every node of a hub must have the same secret.
#[derive(Clone)]
pub struct CallbackKey(hmac::Key);

/// The configured callback secret is empty, so anybody could make tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("secret is empty")]
pub struct EmptySecret;

impl CallbackKey {
    /// Derives the key from the configured secret, which should have at least 32 random bytes.
    ///
    /// # Errors
    /// [`EmptySecret`].
    pub fn new(secret: &SecretString) -> Result<Self, EmptySecret> {
        let secret = secret.expose_secret().as_bytes();
        if secret.is_empty() {
            return Err(EmptySecret);
        }
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derived = hmac::sign(&root, DOMAIN);
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())))
    }

    /// The last segment of a job's callback URL: `<job id>.<256-bit MAC, url-safe base64>`. It is for this
    /// provider only; its name has no space.
    pub fn callback_token(&self, provider: &str, job_id: &str) -> String {
        let mac = self.mac(JOB_CALLBACK, &bound(provider, job_id));
        format!("{job_id}.{mac}")
    }

    /// The job that a callback token was made for, if this key made it for this provider.
    pub fn verify_callback_token<'t>(&self, provider: &str, token: &'t str) -> Option<&'t str> {
        let (job_id, mac) = token.rsplit_once('.')?;
        self.verify_mac(JOB_CALLBACK, &bound(provider, job_id), mac)
            .then_some(job_id)
    }

    /// A proof (`<unix seconds>.<MAC>`) that `subject` may be used for `purpose` until `until`.
    pub fn sign_grant(&self, purpose: &'static str, subject: &str, until: Timestamp) -> String {
        let until = until.as_second();
        format!("{until}.{}", self.mac(purpose, &timed(subject, until)))
    }

    /// Whether `grant` was made by this key for the same purpose and subject and still holds at `now`.
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
        self.verify_mac(purpose, &timed(subject, until), mac) && now.as_second() < until
    }

    /// The MAC of `message` for `purpose`, in url-safe base64.
    pub fn mac(&self, purpose: &'static str, message: &str) -> String {
        let tag = hmac::sign(&self.0, &content(purpose, message));
        URL_SAFE_NO_PAD.encode(tag)
    }

    /// Whether `mac` is [`seal`](Self::seal)'s answer for the same purpose and message, in constant time.
    pub fn verify_mac(&self, purpose: &'static str, message: &str, mac: &str) -> bool {
        let Ok(tag) = URL_SAFE_NO_PAD.decode(mac) else {
            return false;
        };
        hmac::verify(&self.0, &content(purpose, message), &tag).is_ok()
    }
}

fn bound(provider: &str, job_id: &str) -> String {
    format!("{provider} {job_id}")
}

fn timed(subject: &str, until: i64) -> String {
    format!("{until} {subject}")
}

/// Length first, so that no purpose and message can be read as another pair.
fn content(purpose: &str, message: &str) -> Vec<u8> {
    let length = (purpose.len() as u64).to_be_bytes();
    [&length, purpose.as_bytes(), message.as_bytes()].concat()
}
