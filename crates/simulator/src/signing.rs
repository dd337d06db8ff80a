//! Signing keys of the account. They are never printed.

use std::fmt;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rand::RngExt;
use serde_json::{Value, json};

/// `kid` of the public key.
pub(super) const KEY_ID: &str = "key-1";

/// A shared secret for HMAC signatures.
#[derive(Clone)]
pub(super) struct Secret {
    text: String,
    key: hmac::Key,
}

/// The secret is not `whsec_` followed by base64.
#[derive(Debug, thiserror::Error)]
#[error("webhook secret is not whsec_ followed by base64")]
pub(super) struct BadSecret;

/// Generating a key pair failed.
#[derive(Debug, thiserror::Error)]
#[error("no key pair can be made")]
pub(super) struct NoKeyPair;

/// Keys that sign webhooks.
pub(super) struct SigningKeys {
    /// If `None`, webhooks that use the shared secret are not signed.
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

    /// Returns the value of `webhook-signature`: `v1,` and the base64 HMAC-SHA256 of `id.timestamp.body`.
    pub fn sign(&self, id: impl fmt::Display, timestamp: u64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

impl SigningKeys {
    /// Creates the keys of the account: the configured secret and a new key pair.
    pub fn new(secret: Option<Secret>) -> Result<Self, NoKeyPair> {
        let pair = Ed25519KeyPair::generate().map_err(|_| NoKeyPair)?;
        Ok(Self { secret, pair })
    }

    /// Creates keys that receivers do not know, for forged signatures.
    pub fn forged() -> Result<Self, NoKeyPair> {
        Self::new(Some(Secret::random()))
    }

    /// Returns the shared secret as configured.
    pub fn secret(&self) -> Option<&str> {
        self.secret.as_ref().map(|secret| secret.text.as_str())
    }

    /// Returns the headers of Standard Webhooks. Empty without a secret.
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

    /// Returns the Ed25519 signature of `bytes`.
    pub fn ed25519(&self, bytes: &[u8]) -> Vec<u8> {
        self.pair.sign(bytes).as_ref().to_vec()
    }

    /// Returns the public key as a JWKS (RFC 8037).
    pub fn jwks(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": KEY_ID, "x": x}]})
    }
}
