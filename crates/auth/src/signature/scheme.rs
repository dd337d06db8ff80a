//! How a provider proves its webhooks: the kinds there are, told apart by one word of the spec.
//!
//! Invariant: this alone makes [`Verified`] bytes, and only of a request that satisfies the scheme.

use jiff::Timestamp;
use serde::Deserialize;
use url::Url;

use super::detached::{Ed25519, Hmac};
use super::jwt::Jwt;
use super::key::Key;
use super::static_token::StaticToken;
use super::{Request, SignatureError, Trust, Verified, standard};

/// How a provider proves its webhooks: a table of its spec, told apart by the key `scheme`.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "scheme", rename_all = "snake_case", deny_unknown_fields)]
pub enum Scheme {
    /// `webhook-id`, `webhook-timestamp`, `webhook-signature` as in the Standard Webhooks specification, with
    /// `v1` (HMAC-SHA256, `whsec_` secrets) and `v1a` (Ed25519, `whpk_` keys).
    StandardWebhooks {},
    /// An HMAC in a header of the provider's own.
    Hmac(Hmac),
    /// Ed25519 in a header of the provider's own, with public keys of a JWKS.
    Ed25519(Ed25519),
    /// A token that names this webhook, with public keys of a JWKS: [`Trust::Unsigned`].
    Jwt(Jwt),
    /// A shared token that the provider sends back: [`Trust::Sender`].
    StaticToken(StaticToken),
    /// The provider signs nothing: [`Trust::Unsigned`].
    None {},
}

impl Scheme {
    /// Proves a request with any one of `keys` at the time `now`.
    ///
    /// # Errors
    /// A [`Refusal`]. Without a key that fits the scheme it is [`Refusal::NoSecret`], where the request has the
    /// scheme's form.
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

    /// How far a request may be believed that satisfies it.
    pub fn trust(&self) -> Trust {
        match self {
            Self::StandardWebhooks {} => Trust::Signed,
            Self::Hmac(hmac) => hmac.trust(),
            Self::Ed25519(ed25519) => ed25519.trust(),
            Self::StaticToken(_) => Trust::SenderOnly,
            Self::Jwt(_) | Self::None {} => Trust::Unsigned,
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
            Self::StaticToken(token) => token.sign(key),
            Self::None {} => Ok(Vec::new()),
            Self::Ed25519(_) | Self::Jwt(_) => Err(CannotSign),
        }
    }

    /// What keeps `key` from proving anything under this scheme: for the check of the configuration.
    pub fn key_problem(&self, key: &Key) -> Option<&'static str> {
        match self {
            Self::StandardWebhooks {} => standard::key_problem(key),
            Self::Hmac(hmac) => hmac.key_problem(key),
            Self::StaticToken(_) => StaticToken::key_problem(key),
            Self::Ed25519(_) | Self::Jwt(_) => match key {
                Key::Ed25519 { .. } | Key::Token(_) => None,
                Key::Secret(_) => Some("this scheme takes public keys from a JWKS, not a secret"),
            },
            Self::None {} => None,
        }
    }

    /// Whether the scheme can prove nothing without a configured secret.
    pub fn needs_secret(&self) -> bool {
        match self {
            Self::StandardWebhooks {} | Self::Hmac(_) | Self::StaticToken(_) => true,
            Self::Ed25519(_) | Self::Jwt(_) | Self::None {} => false,
        }
    }

    /// How the scheme's keys are published, for schemes whose keys are.
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

/// Where a scheme's public keys are published.
#[derive(Clone, Copy)]
pub struct Published<'s> {
    /// The place that the spec knows.
    pub url: Option<&'s Url>,
    /// How a key set is read; None for a document that is none.
    pub read: fn(&[u8]) -> Option<Vec<Key>>,
}

/// The scheme and the key given cannot make a signature together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this scheme cannot sign with this key")]
pub struct CannotSign;
