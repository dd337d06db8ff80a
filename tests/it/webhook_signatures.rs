//! Creates webhook signatures from their specifications, without code of the hub.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Headers of a webhook.
pub type Headers = Vec<(&'static str, String)>;

/// Returns the Standard Webhooks headers for a body. `secret` is base64 with the prefix `whsec_`.
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

/// Returns one entry of `webhook-signature`: the base64 HMAC-SHA256 of `id.timestamp.body`.
pub fn standard_signature(secret: &str, id: &str, timestamp: i64, body: &[u8]) -> String {
    let key = STANDARD
        .decode(secret.strip_prefix("whsec_").unwrap())
        .unwrap();
    let content = [id.as_bytes(), timestamp.to_string().as_bytes(), body].join(&b'.');
    format!("v1,{}", STANDARD.encode(tag(&key, &content)))
}

/// Returns the HMAC-SHA256 of a body in lower-case hex, the format of `x-ai-signature`.
pub fn hex(secret: &str, body: &[u8]) -> String {
    to_hex(tag(secret.as_bytes(), body).as_ref())
}

/// Returns bytes in lower-case hex.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the HMAC-SHA256 of `content` in base64.
pub fn base64(secret: &str, content: &[u8]) -> String {
    STANDARD.encode(tag(secret.as_bytes(), content))
}

/// Returns the Unix time in seconds.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn tag(key: &[u8], content: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), content)
}
