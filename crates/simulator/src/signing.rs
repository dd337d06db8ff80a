//! Signing: the keys of the account, and the two ways in which providers sign webhooks with them.
//!
//! Invariant: no key is ever printed.

use std::fmt;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rand::RngExt;
use serde_json::{Value, json};

/// The id of the one public key.
pub(super) const KEY_ID: &str = "key-1";

/// A shared key that signs.
#[derive(Clone)]
pub(super) struct Secret {
    text: String,
    key: hmac::Key,
}

/// The secret is not `whsec_` and base64 after it.
#[derive(Debug, thiserror::Error)]
#[error("webhook secret is not whsec_ followed by base64")]
pub(super) struct BadSecret;

/// No key pair could be made.
#[derive(Debug, thiserror::Error)]
#[error("no key pair can be made")]
pub(super) struct NoKeyPair;

/// What webhooks are signed with.
pub(super) struct SigningKeys {
    /// Without one, webhooks that are signed by a shared secret go out unsigned.
    secret: Option<Secret>,
    pair: Ed25519KeyPair,
}

impl Secret {
    pub fn parse(secret: &str) -> Result<Self, BadSecret> {
        let encoded = secret.strip_prefix("whsec_").ok_or(BadSecret)?;
        let key = STANDARD.decode(encoded).map_err(|_| BadSecret)?;
        if key.is_empty() {
            return Err(BadSecret);
        }
        Ok(Self {
            text: secret.to_owned(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
        })
    }

    fn random() -> Self {
        let key = rand::rng().random::<[u8; 32]>();
        Self {
            text: format!("whsec_{}", STANDARD.encode(key)),
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
        }
    }

    /// The value of `webhook-signature`: `v1,` and the base64 HMAC-SHA256 of `id.timestamp.body`.
    pub fn sign(&self, id: impl fmt::Display, timestamp: u64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

impl SigningKeys {
    /// The account's own: the secret as it was set, and a new key pair.
    pub fn new(secret: Option<Secret>) -> Result<Self, NoKeyPair> {
        let pair = Ed25519KeyPair::generate().map_err(|_| NoKeyPair)?;
        Ok(Self { secret, pair })
    }

    /// Somebody else's.
    pub fn forged() -> Result<Self, NoKeyPair> {
        Self::new(Some(Secret::random()))
    }

    /// The shared secret as it is written.
    pub fn secret(&self) -> Option<&str> {
        self.secret.as_ref().map(|secret| secret.text.as_str())
    }

    /// The headers of Standard Webhooks; none without a secret.
    pub fn standard(&self, id: &str, at: u64, body: &[u8]) -> Vec<(&'static str, String)> {
        let Some(secret) = &self.secret else {
            return Vec::new();
        };
        vec![
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", at.to_string()),
            ("webhook-signature", secret.sign(id, at, body)),
        ]
    }

    /// The Ed25519 signature of these bytes.
    pub fn ed25519(&self, bytes: &[u8]) -> Vec<u8> {
        self.pair.sign(bytes).as_ref().to_vec()
    }

    /// The public key as a JSON Web Key Set (RFC 8037).
    pub fn jwks(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": KEY_ID, "x": x}]})
    }
}
