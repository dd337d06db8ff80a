//! Signing keys of the account. They are never printed.

use std::io;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rand::RngExt;
use serde_json::{Value, json};

/// `kid` of the public key.
pub(super) const KEY_ID: &str = "key-1";

/// Names and values of signature headers.
pub(super) type Headers = Vec<(&'static str, String)>;

/// Keys that sign webhooks.
pub(super) struct SigningKeys {
    /// The shared secret as configured, and its HMAC key. If `None`, webhooks that use it are not signed.
    secret: Option<(String, hmac::Key)>,
    pair: Ed25519KeyPair,
}

impl SigningKeys {
    /// Creates the keys of the account: the configured secret, as `whsec_` and base64, and a new key pair.
    pub fn new(secret: Option<&str>) -> io::Result<Self> {
        let parse = |text: &str| {
            let key = STANDARD.decode(text.strip_prefix("whsec_")?).ok()?;
            let key = (!key.is_empty()).then(|| hmac::Key::new(hmac::HMAC_SHA256, &key))?;
            Some((text.to_owned(), key))
        };
        let malformed = || {
            let message = "webhook secret is not whsec_ followed by base64";
            io::Error::new(io::ErrorKind::InvalidInput, message)
        };
        Ok(Self {
            secret: secret
                .map(|text| parse(text).ok_or_else(malformed))
                .transpose()?,
            pair: Ed25519KeyPair::generate().map_err(io::Error::other)?,
        })
    }

    /// Creates keys that receivers do not know, for forged signatures.
    pub fn forged() -> io::Result<Self> {
        let key = STANDARD.encode(rand::rng().random::<[u8; 32]>());
        Self::new(Some(&format!("whsec_{key}")))
    }

    /// Returns the shared secret as configured.
    pub fn secret(&self) -> Option<&str> {
        self.secret.as_ref().map(|(text, _)| text.as_str())
    }

    /// Returns the headers of Standard Webhooks: the signature is `v1,` and the base64 HMAC-SHA256 of `id.timestamp.body`.
    /// Empty without a secret.
    pub fn standard(&self, id: &str, at: u64, body: &[u8]) -> Headers {
        let Some((_, key)) = &self.secret else {
            return Vec::new();
        };
        let tag = hmac::sign(key, &[format!("{id}.{at}.").as_bytes(), body].concat());
        vec![
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", at.to_string()),
            ("webhook-signature", format!("v1,{}", STANDARD.encode(tag))),
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
