//! Signatures as a provider makes them, by the letter of their specifications and without the hub.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A webhook's headers.
pub type Headers = Vec<(&'static str, String)>;

/// Standard Webhooks: base64 HMAC-SHA256 of `id.timestamp.body`, the key base64 after `whsec_`.
pub fn standard(secret: &str, id: &str, timestamp: i64, body: &[u8]) -> Headers {
    vec![
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", timestamp.to_string()),
        (
            "webhook-signature",
            standard_signature(secret, id, timestamp, body),
        ),
    ]
}

/// One entry of `webhook-signature`.
pub fn standard_signature(secret: &str, id: &str, timestamp: i64, body: &[u8]) -> String {
    let key = STANDARD
        .decode(secret.strip_prefix("whsec_").unwrap())
        .unwrap();
    let content = [id.as_bytes(), timestamp.to_string().as_bytes(), body].join(&b'.');
    format!("v1,{}", STANDARD.encode(tag(&key, &content)))
}

/// Lower-case hex HMAC-SHA256 of the body, as `x-ai-signature` has it.
pub fn hex(secret: &str, body: &[u8]) -> String {
    tag(secret.as_bytes(), body)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Base64 HMAC-SHA256 of anything.
pub fn base64(secret: &str, content: &[u8]) -> String {
    STANDARD.encode(tag(secret.as_bytes(), content))
}

/// Seconds since the epoch.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn tag(key: &[u8], content: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), content)
}
