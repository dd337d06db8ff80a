//! The signature schemes. Only [`Scheme::verify`] creates [`Verified`] bytes.

use jiff::Timestamp;
use serde::Deserialize;
use url::Url;

use super::detached::{Detached, STANDARD_WEBHOOKS};
use super::jwt::Jwt;
use super::key::Key;
use super::static_token::StaticToken;
use super::{Request, SignatureError, Trust, Verified, spec};

/// A signature scheme: a table of the provider definition, selected by the key `scheme`.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "scheme", rename_all = "snake_case", deny_unknown_fields)]
pub enum Scheme {
    /// Standard Webhooks: `webhook-id`, `webhook-timestamp` and `webhook-signature` with `v1` (HMAC-SHA256, `whsec_`
    /// secrets) or `v1a` (Ed25519, `whpk_` keys).
    StandardWebhooks {},
    /// An HMAC in a custom header.
    #[serde(deserialize_with = "spec::hmac")]
    Hmac(Detached),
    /// An Ed25519 signature in a custom header, verified with the keys of a JWKS.
    #[serde(deserialize_with = "spec::ed25519")]
    Ed25519(Detached),
    /// A JWT whose audience is the webhook URL, verified with the keys of a JWKS. [`Trust::Unsigned`].
    Jwt(Jwt),
    /// A shared token that the provider sends with each webhook. [`Trust::SenderOnly`].
    StaticToken(StaticToken),
    /// No signature. [`Trust::Unsigned`].
    None {},
}

/// Where the keys of a scheme come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySource<'s> {
    /// The configured secrets.
    Secrets,
    /// A published key set, with its URL if the provider definition contains it.
    Jwks(Option<&'s Url>),
    /// The scheme uses no keys.
    None,
}

impl Scheme {
    /// Verifies a request with any of `keys` at the time `now`.
    ///
    /// # Errors
    /// Returns a [`SignatureError`]. If no key is usable with the scheme and the request has its format, the error is
    /// [`SignatureError::NoKeyConfigured`].
    pub fn verify<'a>(
        &self,
        request: &Request<'a>,
        keys: &[Key],
        now: Timestamp,
    ) -> Result<Verified<'a>, SignatureError> {
        let message_id = match self {
            Self::StandardWebhooks {} => STANDARD_WEBHOOKS.verify(request, keys, now)?,
            Self::Hmac(table) | Self::Ed25519(table) => table.verify(request, keys, now)?,
            Self::Jwt(jwt) => jwt.verify(request, keys, now).map(|()| None)?,
            Self::StaticToken(token) => token.verify(request, keys).map(|()| None)?,
            Self::None {} => None,
        };
        Ok(Verified {
            body: request.body,
            message_id,
            trust: self.trust(),
            is_sender_known: !matches!(self, Self::None {}),
        })
    }

    /// Returns how far a request that passes the scheme can be trusted.
    pub fn trust(&self) -> Trust {
        match self {
            Self::StandardWebhooks {} => Trust::Signed,
            Self::Hmac(table) | Self::Ed25519(table) if table.signed.covers_body() => Trust::Signed,
            Self::StaticToken(_) => Trust::SenderOnly,
            Self::Hmac(_) | Self::Ed25519(_) | Self::Jwt(_) | Self::None {} => Trust::Unsigned,
        }
    }

    /// Signs `body` and returns the headers to send with it. For tools and tests.
    ///
    /// # Errors
    /// Returns [`CannotSign`] if the scheme does not sign with a secret, if `key` is not usable with it, or if the
    /// signed content contains a header other than the message id and the timestamp.
    pub fn sign(
        &self,
        key: &Key,
        message_id: &str,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Vec<(String, String)>, CannotSign> {
        match self {
            Self::StandardWebhooks {} => STANDARD_WEBHOOKS.sign(key, message_id, body, now),
            Self::Hmac(table) => table.sign(key, message_id, body, now),
            Self::StaticToken(token) => token.sign(key),
            Self::None {} => Ok(Vec::new()),
            Self::Ed25519(_) | Self::Jwt(_) => Err(CannotSign),
        }
    }

    /// Returns why `key` is not usable with this scheme, or `None` if it is.
    pub fn key_problem(&self, key: &Key) -> Option<&'static str> {
        match (self.key_source(), key) {
            (KeySource::Secrets, Key::Published(_)) => {
                Some("this scheme uses a secret, not a public key")
            }
            (KeySource::Jwks(_), Key::Secret(_)) => {
                Some("this scheme uses public keys from a JWKS, not a secret")
            }
            (_, _) => match self {
                Self::StandardWebhooks {} => STANDARD_WEBHOOKS.secret_problem(key),
                Self::Hmac(table) => table.secret_problem(key),
                Self::StaticToken(_) => StaticToken::secret_problem(key),
                Self::Ed25519(_) | Self::Jwt(_) | Self::None {} => None,
            },
        }
    }

    /// Returns the signed header that names the account at the provider. Keys that a provider publishes sign for all
    /// of its accounts.
    pub fn account_header(&self) -> Option<&str> {
        match self {
            Self::Hmac(table) | Self::Ed25519(table) => table.account_header.as_deref(),
            Self::StandardWebhooks {} | Self::StaticToken(_) | Self::Jwt(_) | Self::None {} => None,
        }
    }

    /// Returns where the keys of the scheme come from.
    pub fn key_source(&self) -> KeySource<'_> {
        match self {
            Self::StandardWebhooks {} | Self::Hmac(_) | Self::StaticToken(_) => KeySource::Secrets,
            Self::Ed25519(table) => KeySource::Jwks(table.jwks_url.as_ref()),
            Self::Jwt(jwt) => KeySource::Jwks(jwt.jwks_url.as_ref()),
            Self::None {} => KeySource::None,
        }
    }
}

/// The scheme cannot sign with the given key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this scheme cannot sign with this key")]
pub struct CannotSign;
