//! Keys that verify signatures: shared secrets of the configuration and public keys of a JWKS.
//!
//! `Debug` output contains no secret. A public key is never used as a secret.

use std::sync::Arc;

use aws_lc_rs::{hmac, signature};
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;

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
    /// An Ed25519 public key.
    Ed25519 {
        /// `kid` of the key.
        id: Option<String>,
        /// The 32 bytes of the key.
        public: [u8; 32],
    },
    /// A public key that verifies JWTs.
    Token(Arc<VerifyingKey>),
}

impl From<SecretString> for Key {
    fn from(secret: SecretString) -> Self {
        Self::Secret(secret)
    }
}

impl Key {
    /// Parses a JWKS and returns its Ed25519 signing keys. Skips other keys. Returns `None` if the document is not a
    /// key set.
    pub fn ed25519_of(document: &[u8]) -> Option<Vec<Self>> {
        let set: KeySet = serde_json::from_slice(document).ok()?;
        Some(set.keys.into_iter().filter_map(Self::from_jwk).collect())
    }

    /// Parses a JWKS and returns the keys that verify JWTs, or `None` if the document is not a key set.
    pub fn tokens_of(document: &[u8]) -> Option<Vec<Self>> {
        let keys = VerifyingKey::from_jwks(document)?;
        Some(keys.into_iter().map(Arc::new).map(Self::Token).collect())
    }

    fn from_jwk(jwk: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(jwk).ok()?;
        let signs = jwk.usage.is_none_or(|usage| usage == "sig")
            && jwk.alg.is_none_or(|alg| alg == "EdDSA" || alg == "Ed25519");
        if jwk.kty != "OKP" || jwk.crv != "Ed25519" || !signs {
            return None;
        }
        let public = BASE64URL.decode(jwk.x).ok()?.try_into().ok()?;
        Some(Self::Ed25519 {
            id: jwk.kid,
            public,
        })
    }

    pub(super) fn token(&self) -> Option<&VerifyingKey> {
        match self {
            Self::Token(key) => Some(key),
            Self::Secret(_) | Self::Ed25519 { .. } => None,
        }
    }

    pub(super) fn secret(&self) -> Option<&str> {
        match self {
            Self::Secret(secret) => Some(secret.expose_secret()),
            Self::Ed25519 { .. } | Self::Token(_) => None,
        }
    }
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    crv: String,
    x: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    alg: Option<String>,
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
