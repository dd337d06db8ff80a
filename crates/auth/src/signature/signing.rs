//! Signatures of webhooks that the hub sends, as Standard Webhooks specifies them.
//! Source: standard-webhooks/standard-webhooks, spec/standard-webhooks.md.

use aws_lc_rs::hmac;
use base64::Engine;
use secrecy::{ExposeSecret, SecretString};

use super::key::BASE64;

/// Prefix of a secret in text form.
const PREFIX: &str = "whsec_";

/// Minimum length of a secret in bytes, as the specification requires.
const MIN_SECRET_BYTES: usize = 24;

/// A secret that signs webhooks. `Debug` output does not contain it.
#[derive(Clone, Debug)]
pub struct SigningSecret(hmac::Key);

/// A text is not a usable secret. The error does not contain the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSigningSecret {
    /// The text is not `whsec_` followed by base64.
    #[error("must be whsec_ followed by base64")]
    Form,
    /// The secret is too short.
    #[error("must have at least {MIN_SECRET_BYTES} bytes after whsec_ and base64, found {0}")]
    TooShort(usize),
}

impl SigningSecret {
    /// Parses `whsec_` followed by the base64 of the secret.
    ///
    /// # Errors
    /// [`InvalidSigningSecret`].
    pub fn parse(text: &SecretString) -> Result<Self, InvalidSigningSecret> {
        let encoded = text.expose_secret().strip_prefix(PREFIX);
        let encoded = encoded.ok_or(InvalidSigningSecret::Form)?;
        let decoded = BASE64.decode(encoded);
        let secret = decoded.map_err(|_| InvalidSigningSecret::Form)?;
        if secret.len() < MIN_SECRET_BYTES {
            return Err(InvalidSigningSecret::TooShort(secret.len()));
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &secret)))
    }
}

/// Returns the value of `webhook-signature`: one signature for each secret, in their order.
/// `timestamp` is the value of `webhook-timestamp` in Unix seconds.
#[must_use]
pub fn webhook_signature(
    secrets: &[SigningSecret],
    message_id: &str,
    timestamp: i64,
    body: &[u8],
) -> String {
    let prefix = format!("{message_id}.{timestamp}.");
    let signature = |secret: &SigningSecret| {
        let mut context = hmac::Context::with_key(&secret.0);
        context.update(prefix.as_bytes());
        context.update(body);
        format!("v1,{}", BASE64.encode(context.sign()))
    };
    let signatures: Vec<String> = secrets.iter().map(signature).collect();
    signatures.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SigningSecret {
        SigningSecret::parse(&text.into()).unwrap()
    }

    /// The vector of the specification's libraries.
    #[test]
    fn signature_matches_the_published_vector() {
        let secrets = [secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")];
        let body = br#"{"test": 2432232314}"#;
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        assert_eq!(
            webhook_signature(&secrets, id, 1_614_265_330, body),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn each_secret_signs_in_order() {
        let [new, old] = [
            secret("whsec_bmV3IHNlY3JldCBuZXcgc2VjcmV0IG5ldyBzZWNyZXQ="),
            secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        ];
        let sign = |secrets: &[SigningSecret]| webhook_signature(secrets, "id", 1, b"body");
        let alone = |secret| sign(std::slice::from_ref(secret));
        let both = format!("{} {}", alone(&new), alone(&old));
        assert_eq!(sign(&[new, old]), both);
    }

    #[test]
    fn short_and_malformed_secrets_are_refused() {
        for (text, expected) in [
            ("", InvalidSigningSecret::Form),
            (
                "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
                InvalidSigningSecret::Form,
            ),
            ("whsec_not base64", InvalidSigningSecret::Form),
            ("whsec_", InvalidSigningSecret::TooShort(0)),
            ("whsec_c2hvcnQ=", InvalidSigningSecret::TooShort(5)),
        ] {
            let parsed = SigningSecret::parse(&text.into());
            assert_eq!(parsed.err(), Some(expected), "{text}");
        }
    }
}
