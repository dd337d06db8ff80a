//! The signature schemes. Only [`Scheme::verify`] creates [`Verified`] bytes.

use jiff::Timestamp;
use serde::Deserialize;
use url::Url;

use super::detached::{Ed25519, Hmac};
use super::jwt::Jwt;
use super::key::Key;
use super::static_token::StaticToken;
use super::{Request, SignatureError, Trust, Verified, standard};

/// A signature scheme: a table of the provider definition, selected by the key `scheme`.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "scheme", rename_all = "snake_case", deny_unknown_fields)]
pub enum Scheme {
    /// Standard Webhooks: `webhook-id`, `webhook-timestamp` and `webhook-signature` with `v1` (HMAC-SHA256, `whsec_`
    /// secrets) or `v1a` (Ed25519, `whpk_` keys).
    StandardWebhooks {},
    /// An HMAC in a custom header.
    Hmac(Hmac),
    /// An Ed25519 signature in a custom header, verified with the keys of a JWKS.
    Ed25519(Ed25519),
    /// A JWT whose audience is the webhook URL, verified with the keys of a JWKS. [`Trust::Unsigned`].
    Jwt(Jwt),
    /// A shared token that the provider sends with each webhook. [`Trust::SenderOnly`].
    StaticToken(StaticToken),
    /// No signature. [`Trust::Unsigned`].
    None {},
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
            Self::StandardWebhooks {} => Some(standard::verify(request, keys, now)?),
            Self::Hmac(hmac) => hmac.verify(request, keys, now)?,
            Self::Ed25519(ed25519) => ed25519.verify(request, keys, now)?,
            Self::Jwt(jwt) => jwt.verify(request, keys, now).map(|()| None)?,
            Self::StaticToken(token) => token.verify(request, keys).map(|()| None)?,
            Self::None {} => None,
        };
        Ok(Verified {
            body: request.body,
            message_id,
            trust: self.trust(),
        })
    }

    /// Returns how far a request that passes the scheme can be trusted.
    pub fn trust(&self) -> Trust {
        match self {
            Self::StandardWebhooks {} => Trust::Signed,
            Self::Hmac(hmac) => hmac.trust(),
            Self::Ed25519(ed25519) => ed25519.trust(),
            Self::StaticToken(_) => Trust::SenderOnly,
            Self::Jwt(_) | Self::None {} => Trust::Unsigned,
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
            Self::StandardWebhooks {} => standard::sign(key, message_id, body, now),
            Self::Hmac(hmac) => hmac.sign(key, message_id, body, now),
            Self::StaticToken(token) => token.sign(key),
            Self::None {} => Ok(Vec::new()),
            Self::Ed25519(_) | Self::Jwt(_) => Err(CannotSign),
        }
    }

    /// Returns why `key` is not usable with this scheme, or `None` if it is.
    pub fn key_problem(&self, key: &Key) -> Option<&'static str> {
        match self {
            Self::StandardWebhooks {} => standard::key_problem(key),
            Self::Hmac(hmac) => hmac.key_problem(key),
            Self::StaticToken(_) => StaticToken::key_problem(key),
            Self::Ed25519(_) | Self::Jwt(_) => match key {
                Key::Ed25519 { .. } | Key::Token(_) => None,
                Key::Secret(_) => Some("this scheme uses public keys from a JWKS, not a secret"),
            },
            Self::None {} => None,
        }
    }

    /// Returns whether the scheme requires a configured secret.
    pub fn needs_secret(&self) -> bool {
        match self {
            Self::StandardWebhooks {} | Self::Hmac(_) | Self::StaticToken(_) => true,
            Self::Ed25519(_) | Self::Jwt(_) | Self::None {} => false,
        }
    }

    /// Returns where the public keys of the scheme are published, or `None` if it uses no public keys.
    pub fn published(&self) -> Option<Published<'_>> {
        match self {
            Self::Ed25519(ed25519) => Some(Published {
                url: ed25519.jwks_url.as_ref(),
                read: Key::ed25519_of,
            }),
            Self::Jwt(jwt) => Some(Published {
                url: jwt.jwks_url.as_ref(),
                read: Key::tokens_of,
            }),
            Self::StandardWebhooks {} | Self::Hmac(_) | Self::StaticToken(_) | Self::None {} => {
                None
            }
        }
    }
}

/// The published key set of a scheme.
#[derive(Clone, Copy)]
pub struct Published<'s> {
    /// JWKS URL from the provider definition.
    pub url: Option<&'s Url>,
    /// Parses a key set. Returns `None` if the document is not a key set.
    pub read: fn(&[u8]) -> Option<Vec<Key>>,
}

/// The scheme cannot sign with the given key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this scheme cannot sign with this key")]
pub struct CannotSign;
