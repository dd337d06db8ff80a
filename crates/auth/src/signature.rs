//! Verification of webhook signatures: a [`Scheme`] from a provider definition turns raw bytes into
//! [`Verified`] bytes.
//!
//! [`Verified`] has no other constructor, so unverified bytes cannot be parsed as an update. Signatures are compared
//! in constant time over the raw bytes. A timestamp is read only after the signature that covers it is verified. No
//! error contains a secret or a signature.

mod callback;
mod detached;
mod header_name;
mod jwt;
mod key;
mod scheme;
mod schemes;
mod signing;
mod spec;
mod static_token;
mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;

use crate::jwt::TokenError;

pub use callback::{CallbackKey, EmptySecret};
pub use detached::Detached;
pub use jwt::Jwt;
pub use key::Key;
pub use scheme::{CannotSign, KeySource, Scheme};
pub use schemes::Schemes;
pub use signing::{InvalidSigningSecret, SigningSecret, webhook_signature};
pub use static_token::StaticToken;

/// Maximum difference between a signed timestamp and the hub's clock in seconds, in either direction. The Standard
/// Webhooks library, fal, Atlas and OpenRouter all use five minutes.
pub const TOLERANCE_SECONDS: u64 = 300;

/// Maximum number of signatures that are checked in one header. Key rotation needs fewer.
const MAX_SIGNATURES: usize = 16;

/// The headers of a request. Names are case-insensitive.
pub trait Headers {
    /// Returns the first value of this name that is valid text.
    fn get(&self, name: &str) -> Option<&str> {
        let mut pairs = self.pairs().into_iter();
        let found = pairs.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }

    /// Returns all headers whose values are valid text.
    fn pairs(&self) -> Vec<(&str, &str)>;
}

/// Headers in a list, for tools and tests.
impl<K: AsRef<str>, V: AsRef<str>> Headers for Vec<(K, V)> {
    fn pairs(&self) -> Vec<(&str, &str)> {
        self.iter()
            .map(|(name, value)| (name.as_ref(), value.as_ref()))
            .collect()
    }
}

/// A webhook as received.
#[derive(Clone, Copy)]
pub struct Request<'r> {
    /// The request headers.
    pub headers: &'r dyn Headers,
    /// The raw body.
    pub body: &'r [u8],
    /// The URL that the sender called.
    pub url: &'r str,
}

/// What a verified request guarantees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The signature covers the sender and every byte of the body. The body is trusted.
    Signed,
    /// A shared secret authenticates the sender but does not cover the body. The body is trusted only if the
    /// provider cannot be polled.
    SenderOnly,
    /// Nothing authenticates the body. It may only trigger a poll.
    Unsigned,
}

/// A body that passed the scheme of its provider. Only [`Scheme::verify`] creates one.
#[derive(Debug)]
pub struct Verified<'a> {
    body: &'a [u8],
    message_id: Option<String>,
    trust: Trust,
    is_sender_known: bool,
}

impl Verified<'_> {
    /// Returns the raw body as received.
    pub fn body(&self) -> &[u8] {
        self.body
    }

    /// Returns the sender's message id, which is stable across retries. `None` unless the signature covers it.
    pub fn message_id(&self) -> Option<&str> {
        self.message_id.as_deref()
    }

    /// Returns how far the body can be trusted.
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// Returns whether a key authenticates the sender, even if no signature covers the body.
    pub fn is_sender_known(&self) -> bool {
        self.is_sender_known
    }
}

/// Reason for rejecting a webhook.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A required header is missing or not valid text.
    #[error("header {0} is missing")]
    MissingHeader(Arc<str>),
    /// A header does not have the format of the scheme.
    #[error("header {0} is malformed")]
    Malformed(Arc<str>),
    /// The body lacks a signed value.
    #[error("signed field {0} is missing from the body")]
    MissingValue(Arc<str>),
    /// The signature is valid, but its timestamp differs from now by more than [`TOLERANCE_SECONDS`].
    #[error("timestamp is outside the tolerance")]
    StaleTimestamp,
    /// No key verifies any signature of the request. A newer key set may.
    #[error("signature does not match")]
    Mismatch,
    /// The key that the request names does not verify the signature.
    #[error("signature does not match")]
    Forged,
    /// A claim of the signed token is missing or wrong.
    #[error("{0}")]
    Claim(TokenError),
    /// The request names a key that is not in the key set. A newer key set may contain it.
    #[error("signing key is unknown")]
    UnknownKey,
    /// No configured key is usable with the scheme.
    #[error("no usable key is configured")]
    NoKeyConfigured,
}

impl SignatureError {
    /// Returns the stable code for logs, metrics and problem bodies.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MissingHeader(_) => "signature_missing",
            Self::Malformed(_) | Self::MissingValue(_) => "signature_malformed",
            Self::StaleTimestamp => "signature_stale",
            Self::Mismatch | Self::Forged => "signature_mismatch",
            Self::Claim(_) => "signature_claim",
            Self::UnknownKey => "signature_key_unknown",
            Self::NoKeyConfigured => "signature_key_missing",
        }
    }

    /// Returns whether other keys could verify the request.
    pub fn is_key_error(&self) -> bool {
        matches!(
            self,
            Self::Mismatch | Self::UnknownKey | Self::NoKeyConfigured
        )
    }

    /// Returns whether the request lacks the format of the scheme, as a request for another scheme does.
    pub fn is_format_error(&self) -> bool {
        matches!(
            self,
            Self::MissingHeader(_) | Self::Malformed(_) | Self::MissingValue(_)
        )
    }
}

fn required<'r>(headers: &'r dyn Headers, name: &str) -> Result<&'r str, SignatureError> {
    headers
        .get(name)
        .ok_or_else(|| SignatureError::MissingHeader(name.into()))
}

/// Checks a verified timestamp from the header `name` against [`TOLERANCE_SECONDS`]. The text must be Unix seconds, or
/// milliseconds if it has 13 digits.
fn check_fresh(text: &str, name: &str, now: Timestamp) -> Result<(), SignatureError> {
    let malformed = || SignatureError::Malformed(name.into());
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    let signed: i64 = text.parse().map_err(|_| malformed())?;
    let (difference, tolerance) = match text.len() {
        13 => (
            signed.abs_diff(now.as_millisecond()),
            TOLERANCE_SECONDS * 1000,
        ),
        _ => (signed.abs_diff(now.as_second()), TOLERANCE_SECONDS),
    };
    if difference > tolerance {
        return Err(SignatureError::StaleTimestamp);
    }
    Ok(())
}

/// Returns the SHA-256 of all parts, each prefixed with its length, as lower-case hex.
#[must_use]
pub fn digest(parts: &[&[u8]]) -> String {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    hex::encode(context.finish())
}
