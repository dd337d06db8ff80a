//! Proof that a webhook is its sender's: a provider's signature scheme, as data, turns raw bytes into
//! [`Verified`] bytes.
//!
//! Invariant: nothing else makes a `Verified`, so bytes that were not proven cannot be parsed as news. Every
//! comparison is made on the raw bytes, in constant time, before anything in them is believed; the timestamp is
//! believed only after the signature that covers it. No refusal carries a secret or a signature.
//!
//! One file for each idea: `scheme` and `schemes` (how a provider proves, by one way or several), `key` (what
//! proves), `standard` (Standard Webhooks), `detached`, `table` and `template` (signatures described by data), `jwt`,
//! `static_token`, `callback` (the hub's own tokens).

mod callback;
mod detached;
mod jwt;
mod key;
mod scheme;
mod schemes;
mod spec;
mod standard;
mod static_token;
mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;

use crate::jwt::TokenError;

pub use callback::{CallbackKey, EmptySecret};
pub use detached::{Ed25519, Hmac};
pub use jwt::Jwt;
pub use key::Key;
pub use scheme::{CannotSign, Published, Scheme};
pub use schemes::Schemes;
pub use static_token::StaticToken;

/// How far a signed timestamp may lie from the hub's clock, in seconds, either way (Standard Webhooks library,
/// fal, Atlas and OpenRouter all use five minutes).
pub const TOLERANCE_SECONDS: u64 = 300;

/// More signatures in one header than any rotation needs; the rest of a longer list is not looked at.
const MAX_SIGNATURES: usize = 16;

/// The headers of a request, whose names are told apart without regard to case.
pub trait Headers {
    /// The first of this name that is text.
    fn get(&self, name: &str) -> Option<&str>;

    /// All that are text.
    fn pairs(&self) -> Vec<(&str, &str)>;
}

/// Headers in a list: for tools, load and tests.
impl<K: AsRef<str>, V: AsRef<str>> Headers for Vec<(K, V)> {
    fn get(&self, name: &str) -> Option<&str> {
        let found = self
            .iter()
            .find(|(key, _)| key.as_ref().eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_ref())
    }

    fn pairs(&self) -> Vec<(&str, &str)> {
        self.iter()
            .map(|(name, value)| (name.as_ref(), value.as_ref()))
            .collect()
    }
}

/// A webhook as it came in.
#[derive(Clone, Copy)]
pub struct Request<'r> {
    /// Its headers.
    pub headers: &'r dyn Headers,
    /// Its raw body.
    pub body: &'r [u8],
    /// Where it was sent to, as its sender knows the place.
    pub url: &'r str,
}

/// How far a proof goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The sender is proven and so is every byte: the body may be believed.
    Signed,
    /// The sender is proven, by a secret that says nothing of the body: believed only where nobody can be asked.
    SenderOnly,
    /// Nothing covers the body: it may only cause an authenticated read.
    Unsigned,
}

/// Bytes that passed their provider's scheme; made by [`Scheme::verify`] alone.
#[derive(Debug)]
pub struct Verified<'a> {
    body: &'a [u8],
    message_id: Option<String>,
    trust: Trust,
}

impl Verified<'_> {
    /// The raw body, byte for byte as received.
    pub fn body(&self) -> &[u8] {
        self.body
    }

    /// The sender's id of this message, the same on each of its retries; present only where it is signed too.
    pub fn message_id(&self) -> Option<&str> {
        self.message_id.as_deref()
    }

    /// How far the body may be believed.
    pub fn trust(&self) -> Trust {
        self.trust
    }
}

/// Why bytes were not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A header that the scheme needs is absent or not text.
    #[error("header {0} is missing")]
    MissingHeader(Arc<str>),
    /// A header is there and does not have the scheme's form.
    #[error("header {0} is malformed")]
    Malformed(Arc<str>),
    /// The body lacks what is signed of it.
    #[error("the body has nothing to sign at {0}")]
    MissingValue(Arc<str>),
    /// The signature holds, but was made more than [`TOLERANCE_SECONDS`] away from now.
    #[error("timestamp is outside the tolerance")]
    StaleTimestamp,
    /// No signature in the request belongs to any of the keys: a newer set may have one that does.
    #[error("signature does not match")]
    Mismatch,
    /// The key that the sender names did not sign.
    #[error("signature does not match")]
    Forged,
    /// The signed token is not for this webhook, or not whole.
    #[error("{0}")]
    Claim(TokenError),
    /// The sender names a key that is not in the set: a newer set may have it.
    #[error("signing key is unknown")]
    UnknownKey,
    /// None of the configured keys fits the scheme, so nothing can be proven.
    #[error("no usable key is configured")]
    NoKeyConfigured,
}

impl SignatureError {
    /// The stable word for logs, metrics and problem bodies.
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

    /// Whether other keys could turn it round.
    pub fn is_key_error(&self) -> bool {
        match self {
            Self::Mismatch | Self::UnknownKey | Self::NoKeyConfigured => true,
            Self::MissingHeader(_)
            | Self::Malformed(_)
            | Self::MissingValue(_)
            | Self::StaleTimestamp
            | Self::Forged
            | Self::Claim(_) => false,
        }
    }

    /// Whether the request has not even the scheme's form, as one that was meant for another scheme.
    pub fn is_format_error(&self) -> bool {
        match self {
            Self::MissingHeader(_) | Self::Malformed(_) | Self::MissingValue(_) => true,
            Self::StaleTimestamp
            | Self::Mismatch
            | Self::Forged
            | Self::Claim(_)
            | Self::UnknownKey
            | Self::NoKeyConfigured => false,
        }
    }
}

fn required<'r>(headers: &'r dyn Headers, name: &str) -> Result<&'r str, SignatureError> {
    headers
        .get(name)
        .ok_or_else(|| SignatureError::MissingHeader(name.into()))
}

/// Reads a proven timestamp found in the header `name`: digits only, whole Unix seconds, or milliseconds where there
/// are thirteen.
fn check_fresh(text: &str, name: &str, now: Timestamp) -> Result<(), SignatureError> {
    let malformed = || SignatureError::Malformed(name.into());
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    let signed: i64 = text.parse().map_err(|_| malformed())?;
    let (apart, tolerance) = match text.len() {
        13 => (
            signed.abs_diff(now.as_millisecond()),
            TOLERANCE_SECONDS * 1000,
        ),
        _ => (signed.abs_diff(now.as_second()), TOLERANCE_SECONDS),
    };
    if apart > tolerance {
        return Err(SignatureError::StaleTimestamp);
    }
    Ok(())
}

/// SHA-256 over all parts, each with its length before it, as lower-case hex.
#[must_use]
pub fn digest(parts: &[&[u8]]) -> String {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    context
        .finish()
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
