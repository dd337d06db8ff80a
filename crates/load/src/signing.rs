//! Signatures of webhooks, as a provider makes them.
//!
//! Invariant: the key is never printed.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::RngExt;

use super::arguments::ArgumentErrors;
use super::client::Headers;

/// What webhooks are signed with.
pub(super) enum Signer {
    /// `x-ai-signature: sha256=` and the hex HMAC-SHA256 of the body.
    Hmac(hmac::Key),
    /// Standard Webhooks, version `v1`.
    /// Source: standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
    Standard(hmac::Key),
}

impl Signer {
    pub fn hmac(secret: &str) -> Self {
        Self::Hmac(hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()))
    }

    /// # Errors
    /// When the secret is not `whsec_` and base64 after it.
    pub fn standard(secret: &str) -> Result<Self, ArgumentErrors> {
        let encoded = secret.strip_prefix("whsec_").unwrap_or(secret);
        let key = STANDARD.decode(encoded).ok().filter(|key| !key.is_empty());
        let key = key.ok_or_else(|| {
            ArgumentErrors::one(
                "the webhook secret is not one of Standard Webhooks: whsec_ and base64",
            )
        })?;
        Ok(Self::Standard(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// The headers that prove this body, sent now.
    pub fn sign(&self, body: &[u8]) -> Headers {
        match self {
            Self::Hmac(key) => {
                let tag = hmac::sign(key, body);
                let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
                vec![("x-ai-signature", format!("sha256={hex}"))]
            }
            Self::Standard(key) => {
                let id = format!("msg_{:032x}", rand::rng().random::<u128>());
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let now = now.map_or(0, |now| now.as_secs());
                let mut context = hmac::Context::with_key(key);
                context.update(format!("{id}.{now}.").as_bytes());
                context.update(body);
                vec![
                    ("webhook-id", id),
                    ("webhook-timestamp", now.to_string()),
                    (
                        "webhook-signature",
                        format!("v1,{}", STANDARD.encode(context.sign())),
                    ),
                ]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hmac_is_that_of_rfc_4231() {
        let headers = Signer::hmac("Jefe").sign(b"what do ya want for nothing?");
        let tag = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(headers, [("x-ai-signature", format!("sha256={tag}"))]);
    }

    #[test]
    fn a_standard_secret_is_base64() {
        assert!(Signer::standard("whsec_dGVzdA==").is_ok());
        let error = Signer::standard("whsec_hunter2!")
            .err()
            .unwrap()
            .to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
