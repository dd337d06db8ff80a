//! Proof that a webhook is its sender's: a provider's signature scheme, as data, turns raw bytes into
//! [`Verified`] bytes.
//!
//! Invariant: nothing else makes a `Verified`, so bytes that were not proven cannot be parsed as news. Every
//! comparison is made on the raw bytes, in constant time, before anything in them is read; the timestamp is
//! believed only after the signature that covers it. No refusal carries a secret or a signature.
//!
//! One file for each idea: `key` (what proves), `template` (what is signed), `standard` (Standard
//! Webhooks), `detached` and `table` (schemes described by data), `callback` (the hub's own tokens).

mod callback;
mod detached;
mod key;
mod standard;
mod table;
mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use aws_lc_rs::constant_time;
use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde::Deserialize;
use url::Url;

pub use callback::{CallbackKey, EmptySecret};
pub use detached::{Ed25519, Hmac};
pub use key::{BadKeySet, Key};

/// How far a signed timestamp may lie from the hub's clock, in seconds, either way (Standard Webhooks library,
/// fal, Atlas and OpenRouter all use five minutes).
pub const TOLERANCE_SECONDS: u64 = 300;

/// More signatures in one header than any rotation needs; the rest of a longer list is not looked at.
const MAX_SIGNATURES: usize = 16;

/// Reads one request header by its lower-case name; whatever holds the headers must ignore their case.
pub type Headers<'h> = dyn Fn(&str) -> Option<&'h str> + 'h;

/// Headers that lie in a list of pairs, read in any case: for tools, load and tests.
pub fn headers_of<'h, K: AsRef<str>, V: AsRef<str>>(
    pairs: &'h [(K, V)],
) -> impl Fn(&str) -> Option<&'h str> + 'h {
    |name| {
        let found = pairs
            .iter()
            .find(|(key, _)| key.as_ref().eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_ref())
    }
}

/// Whether a proof covers the bytes themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The sender is proven and so is every byte: the body may be believed.
    Signed,
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
pub enum Refusal {
    /// A header that the scheme needs is absent or not text.
    #[error("header {0} is missing")]
    MissingHeader(Arc<str>),
    /// A header is there and does not have the scheme's form.
    #[error("header {0} is malformed")]
    Malformed(Arc<str>),
    /// The signature holds, but was made more than [`TOLERANCE_SECONDS`] away from now.
    #[error("timestamp is outside the tolerance")]
    StaleTimestamp,
    /// No signature in the request belongs to any of the keys.
    #[error("signature does not match")]
    Mismatch,
    /// The sender names a key that is not in the set: a newer set may have it.
    #[error("signing key is unknown")]
    UnknownKey,
    /// None of the configured keys fits the scheme, so nothing can be proven.
    #[error("no usable key is configured")]
    NoSecret,
}

impl Refusal {
    /// The stable word for logs, metrics and problem bodies.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MissingHeader(_) => "signature_missing",
            Self::Malformed(_) => "signature_malformed",
            Self::StaleTimestamp => "signature_stale",
            Self::Mismatch => "signature_mismatch",
            Self::UnknownKey => "signature_key_unknown",
            Self::NoSecret => "signature_key_missing",
        }
    }
}

/// How a provider proves its webhooks: a table of its spec, told apart by the key `scheme`.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "scheme", rename_all = "snake_case", deny_unknown_fields)]
pub enum Scheme {
    /// `webhook-id`, `webhook-timestamp`, `webhook-signature` as in the Standard Webhooks specification, with
    /// `v1` (HMAC-SHA256, `whsec_` secrets) and `v1a` (Ed25519, `whpk_` keys).
    StandardWebhooks {},
    /// HMAC-SHA256 in a header of the provider's own.
    Hmac(Hmac),
    /// Ed25519 in a header of the provider's own, with public keys of a JWKS.
    Ed25519(Ed25519),
    /// A shared token that the provider sends back. It shows who calls and covers no byte: [`Trust::Unsigned`].
    StaticToken {
        /// The header that carries the token.
        header: String,
    },
    /// The provider signs nothing: [`Trust::Unsigned`].
    None {},
}

impl Scheme {
    /// Proves `body` with any one of `keys` at the time `now`.
    ///
    /// # Errors
    /// A [`Refusal`]. Without a key that fits the scheme it is always [`Refusal::NoSecret`].
    pub fn verify<'a>(
        &self,
        headers: &Headers<'_>,
        body: &'a [u8],
        keys: &[Key],
        now: Timestamp,
    ) -> Result<Verified<'a>, Refusal> {
        let verified = |trust, message_id| Verified {
            body,
            message_id,
            trust,
        };
        match self {
            Self::StandardWebhooks {} => standard::verify(headers, body, keys, now)
                .map(|id| verified(Trust::Signed, Some(id))),
            Self::Hmac(hmac) => hmac
                .verify(headers, body, keys, now)
                .map(|id| verified(hmac.trust(), id)),
            Self::Ed25519(ed25519) => ed25519
                .verify(headers, body, keys, now)
                .map(|id| verified(ed25519.trust(), id)),
            Self::StaticToken { header } => {
                verify_token(headers, header, keys).map(|()| verified(Trust::Unsigned, None))
            }
            Self::None {} => Ok(verified(Trust::Unsigned, None)),
        }
    }

    /// The headers with which the holder of `key` would send `body`: for tools, load and tests.
    ///
    /// # Errors
    /// [`CannotSign`] where the scheme has no secret to sign with, `key` does not fit it, or the signed content
    /// has a header that is neither the message id nor the timestamp.
    pub fn sign(
        &self,
        key: &Key,
        message_id: &str,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Vec<(String, String)>, CannotSign> {
        match self {
            Self::StandardWebhooks {} => standard::sign(key, message_id, body, now),
            Self::Hmac(hmac) => hmac.sign(key, message_id, body, now),
            Self::StaticToken { header } => match key {
                Key::Secret(token) => Ok(vec![(header.clone(), token.expose_secret().to_owned())]),
                Key::Ed25519 { .. } => Err(CannotSign),
            },
            Self::None {} => Ok(Vec::new()),
            Self::Ed25519(_) => Err(CannotSign),
        }
    }

    /// What keeps `key` from proving anything under this scheme: for the check of the configuration.
    pub fn problem_with(&self, key: &Key) -> Option<&'static str> {
        match self {
            Self::StandardWebhooks {} => standard::problem_with(key),
            Self::Hmac(hmac) => hmac.problem_with(key),
            Self::Ed25519(_) => match key {
                Key::Ed25519 { .. } => None,
                Key::Secret(_) => Some("this scheme takes public keys from a JWKS, not a secret"),
            },
            Self::StaticToken { .. } => match key {
                Key::Secret(token) => token
                    .expose_secret()
                    .is_empty()
                    .then_some("the token is empty"),
                Key::Ed25519 { .. } => Some("this scheme takes a token, not a public key"),
            },
            Self::None {} => None,
        }
    }

    /// Whether the scheme can prove nothing without a configured secret.
    pub fn needs_secret(&self) -> bool {
        match self {
            Self::StandardWebhooks {} | Self::Hmac(_) | Self::StaticToken { .. } => true,
            Self::Ed25519(_) | Self::None {} => false,
        }
    }

    /// Where the scheme's public keys are published, for schemes that have such a place.
    pub fn jwks_url(&self) -> Option<&Url> {
        match self {
            Self::Ed25519(ed25519) => ed25519.jwks_url(),
            Self::StandardWebhooks {}
            | Self::Hmac(_)
            | Self::StaticToken { .. }
            | Self::None {} => None,
        }
    }
}

/// The scheme and the key given cannot make a signature together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this scheme cannot sign with this key")]
pub struct CannotSign;

fn required<'h>(headers: &Headers<'h>, name: &str) -> Result<&'h str, Refusal> {
    headers(name).ok_or_else(|| Refusal::MissingHeader(name.into()))
}

/// Reads a proven timestamp (whole Unix seconds, digits only) found in the header `name`.
fn check_fresh(text: &str, name: &str, now: Timestamp) -> Result<(), Refusal> {
    let malformed = || Refusal::Malformed(name.into());
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    let signed: i64 = text.parse().map_err(|_| malformed())?;
    if signed.abs_diff(now.as_second()) > TOLERANCE_SECONDS {
        return Err(Refusal::StaleTimestamp);
    }
    Ok(())
}

fn verify_token(headers: &Headers<'_>, header: &str, keys: &[Key]) -> Result<(), Refusal> {
    let mut tokens = keys
        .iter()
        .filter_map(Key::secret)
        .filter(|token| !token.is_empty())
        .peekable();
    if tokens.peek().is_none() {
        return Err(Refusal::NoSecret);
    }
    let sent = required(headers, header)?.as_bytes();
    tokens
        .any(|token| constant_time::verify_slices_are_equal(token.as_bytes(), sent).is_ok())
        .then_some(())
        .ok_or(Refusal::Mismatch)
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
