//! Standard Webhooks: `id.timestamp.body`, signed with HMAC-SHA256 (`v1`) or Ed25519 (`v1a`).
//! Source: standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
//!
//! A signature is checked only with keys of its version.

use aws_lc_rs::hmac;
use base64::Engine;
use jiff::Timestamp;

use super::key::{BASE64, Key, VerificationKey};
use super::{CannotSign, MAX_SIGNATURES, Request, SignatureError, check_fresh, required};

const ID: &str = "webhook-id";
const TIMESTAMP: &str = "webhook-timestamp";
const SIGNATURE: &str = "webhook-signature";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V1a,
}

pub(super) fn verify(
    &Request { headers, body, .. }: &Request<'_>,
    keys: &[Key],
    now: Timestamp,
) -> Result<String, SignatureError> {
    let keys: Vec<(Version, VerificationKey)> = keys.iter().filter_map(verification_key).collect();
    if keys.is_empty() {
        return Err(SignatureError::NoKeyConfigured);
    }
    let id = required(headers, ID)?;
    let timestamp = required(headers, TIMESTAMP)?;
    let listed = required(headers, SIGNATURE)?;
    if id.is_empty() {
        return Err(SignatureError::Malformed(ID.into()));
    }
    let content = content(id, timestamp, body);
    let signatures: Vec<(Version, Vec<u8>)> = listed
        .split_ascii_whitespace()
        .filter_map(signature)
        .take(MAX_SIGNATURES)
        .collect();
    let is_verified = signatures.iter().any(|(version, tag)| {
        keys.iter()
            .any(|(of, key)| of == version && key.verify(&content, tag))
    });
    if !is_verified {
        return Err(SignatureError::Mismatch);
    }
    check_fresh(timestamp, TIMESTAMP, now)?;
    Ok(id.to_owned())
}

pub(super) fn sign(
    key: &Key,
    id: &str,
    body: &[u8],
    now: Timestamp,
) -> Result<Vec<(String, String)>, CannotSign> {
    let Some((Version::V1, VerificationKey::Hmac(key))) = verification_key(key) else {
        return Err(CannotSign);
    };
    let timestamp = now.as_second().to_string();
    let tag = hmac::sign(&key, &content(id, &timestamp, body));
    Ok(vec![
        (ID.to_owned(), id.to_owned()),
        (TIMESTAMP.to_owned(), timestamp),
        (SIGNATURE.to_owned(), format!("v1,{}", BASE64.encode(tag))),
    ])
}

pub(super) fn key_problem(key: &Key) -> Option<&'static str> {
    verification_key(key).is_none().then_some(
        "not a Standard Webhooks secret; expected whsec_ and base64, or whpk_ and the base64 of 32 bytes",
    )
}

fn content(id: &str, timestamp: &str, body: &[u8]) -> Vec<u8> {
    [id.as_bytes(), timestamp.as_bytes(), body].join(&b'.')
}

/// Parses one entry of the list. Returns `None` for an unknown version or invalid base64.
fn signature(entry: &str) -> Option<(Version, Vec<u8>)> {
    let (version, tag) = entry.split_once(',')?;
    let version = match version {
        "v1" => Version::V1,
        "v1a" => Version::V1a,
        _ => return None,
    };
    Some((version, BASE64.decode(tag).ok()?))
}

fn verification_key(key: &Key) -> Option<(Version, VerificationKey)> {
    match key {
        Key::Ed25519 { public, .. } => Some((Version::V1a, VerificationKey::Ed25519(*public))),
        Key::Secret(_) => {
            let text = key.secret()?;
            if let Some(public) = text.strip_prefix("whpk_") {
                let public = BASE64.decode(public).ok()?.try_into().ok()?;
                return Some((Version::V1a, VerificationKey::Ed25519(public)));
            }
            let secret = text.strip_prefix("whsec_").unwrap_or(text);
            let secret = BASE64.decode(secret).ok()?;
            Some((
                Version::V1,
                VerificationKey::hmac(hmac::HMAC_SHA256, &secret)?,
            ))
        }
        Key::Token(_) => None,
    }
}
