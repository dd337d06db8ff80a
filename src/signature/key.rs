//! What a signature is proven with: a shared secret from the configuration, or a public key of a JWKS.
//!
//! Invariant: `Debug` never shows a secret, and a public key never serves as a secret.

use aws_lc_rs::{hmac, signature};
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;

const PADDING_OPTIONAL: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// Standard alphabet; padded when written, either way when read.
pub(super) const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, PADDING_OPTIONAL);

/// URL-safe alphabet; padded when written, either way when read.
pub(super) const BASE64URL: GeneralPurpose =
    GeneralPurpose::new(&alphabet::URL_SAFE, PADDING_OPTIONAL);

/// One of the keys that may have signed; several at once are how keys rotate.
#[derive(Debug, Clone)]
pub enum Key {
    /// A secret shared with the provider, as written in its console.
    Secret(SecretString),
    /// An Ed25519 public key.
    Ed25519 {
        /// The name that the provider gives it.
        id: Option<String>,
        /// The 32 bytes of the key.
        public: [u8; 32],
    },
}

impl From<SecretString> for Key {
    fn from(secret: SecretString) -> Self {
        Self::Secret(secret)
    }
}

/// A JWKS document that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON web key set")]
pub struct BadKeySet;

impl Key {
    /// The Ed25519 signing keys of a JWKS document; keys of any other kind or use are left out.
    ///
    /// # Errors
    /// [`BadKeySet`] when the document is not a key set at all.
    pub fn from_jwks(document: &[u8]) -> Result<Vec<Self>, BadKeySet> {
        let set: KeySet = serde_json::from_slice(document).map_err(|_| BadKeySet)?;
        let keys = set.keys.into_iter();
        Ok(keys.filter_map(Self::from_jwk).collect())
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

    pub(super) fn secret(&self) -> Option<&str> {
        match self {
            Self::Secret(secret) => Some(secret.expose_secret()),
            Self::Ed25519 { .. } => None,
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

/// A key made ready to check signatures.
pub(super) enum Prover {
    Hmac(Box<hmac::Key>),
    Ed25519([u8; 32]),
}

impl Prover {
    /// None for an empty secret, with which anybody could sign.
    pub(super) fn hmac(secret: &[u8]) -> Option<Self> {
        (!secret.is_empty())
            .then(|| Self::Hmac(Box::new(hmac::Key::new(hmac::HMAC_SHA256, secret))))
    }

    /// Whether `tag` is this key's signature of `content`, in constant time.
    pub(super) fn proves(&self, content: &[u8], tag: &[u8]) -> bool {
        match self {
            Self::Hmac(key) => hmac::verify(key, content, tag).is_ok(),
            Self::Ed25519(public) => signature::UnparsedPublicKey::new(&signature::ED25519, public)
                .verify(content, tag)
                .is_ok(),
        }
    }
}
