//! Keys that verify signatures: shared secrets of the configuration and public keys of a JWKS.
//!
//! `Debug` output contains no secret. A public key is never used as a secret.

use std::sync::Arc;

use aws_lc_rs::{hmac, signature};
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use secrecy::{ExposeSecret, SecretString};

use crate::jwt::VerifyingKey;

const PADDING_OPTIONAL: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// Standard alphabet. Encodes with padding, decodes with or without.
pub(super) const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, PADDING_OPTIONAL);

/// URL-safe alphabet. Encodes with padding, decodes with or without.
pub(super) const BASE64URL: GeneralPurpose =
    GeneralPurpose::new(&alphabet::URL_SAFE, PADDING_OPTIONAL);

/// A key that may have signed a webhook. Several keys are valid at once during rotation.
#[derive(Debug, Clone)]
pub enum Key {
    /// A secret shared with the provider, as shown in its console.
    Secret(SecretString),
    /// A public key of the provider's JWKS.
    Published(Arc<VerifyingKey>),
}

impl From<SecretString> for Key {
    fn from(secret: SecretString) -> Self {
        Self::Secret(secret)
    }
}

impl Key {
    /// Parses a JWKS and returns its signing keys. Skips other keys. Returns `None` if the document is not a key set.
    pub fn from_jwks(document: &[u8]) -> Option<Vec<Self>> {
        let keys = VerifyingKey::from_jwks(document)?;
        let keys = keys.into_iter().map(Arc::new);
        Some(keys.map(Self::Published).collect())
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.published()?.id()
    }

    pub(super) fn published(&self) -> Option<&VerifyingKey> {
        match self {
            Self::Published(key) => Some(key),
            Self::Secret(_) => None,
        }
    }

    pub(super) fn secret(&self) -> Option<&str> {
        match self {
            Self::Secret(secret) => Some(secret.expose_secret()),
            Self::Published(_) => None,
        }
    }
}

/// A decoded key that verifies signatures.
pub(super) enum VerificationKey {
    Hmac(Box<hmac::Key>),
    Ed25519([u8; 32]),
}

impl VerificationKey {
    /// Creates an HMAC key. Returns `None` for an empty secret, which anyone could sign with.
    pub(super) fn hmac(algorithm: hmac::Algorithm, secret: &[u8]) -> Option<Self> {
        (!secret.is_empty()).then(|| Self::Hmac(Box::new(hmac::Key::new(algorithm, secret))))
    }

    /// Returns whether `tag` is a signature of `content` with this key, in constant time.
    pub(super) fn verify(&self, content: &[u8], tag: &[u8]) -> bool {
        match self {
            Self::Hmac(key) => hmac::verify(key, content, tag).is_ok(),
            Self::Ed25519(public) => signature::UnparsedPublicKey::new(&signature::ED25519, public)
                .verify(content, tag)
                .is_ok(),
        }
    }
}
