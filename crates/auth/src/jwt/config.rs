//! The `[auth]` section of the configuration.
//!
//! An unusable key, or a secret that is too weak, is an error at startup.

use std::collections::BTreeSet;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use super::keys::VerifyingKey;

/// Minimum length of an HS256 secret in bytes: the length of the hash (RFC 7518, section 3.2).
pub(super) const MIN_SECRET_BYTES: usize = 32;

/// Minimum number of different bytes in a secret. A random secret of 32 decimal digits has fewer with a probability
/// below one in ten million.
const MIN_DISTINCT_BYTES: usize = 6;

/// Maximum length, in bytes, of a word whose repetition is rejected as a secret.
const MAX_WORD_BYTES: usize = 8;

/// The `[auth]` section. An empty string counts as unset.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// Secrets for HS256 tokens, at least 32 bytes each. Any of them verifies, the first one signs. Default: none.
    pub hs256_secrets: Vec<SecretString>,
    /// RSA, EC (P-256, P-384) or Ed25519 public keys, as PEM text or the path of a PEM file. Default: none.
    pub public_keys: Vec<String>,
    /// JWKS URL of the issuer; https, or http on loopback. Default: none.
    pub jwks_url: Option<Url>,
    /// Required `iss` of every token. Default: not checked.
    pub issuer: Option<String>,
    /// Required `aud` of every token. Default: not checked.
    pub audience: Option<String>,
    /// Clock skew that is tolerated for `exp` and `nbf`. Default: 5 s.
    pub leeway: Duration,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            hs256_secrets: Vec::new(),
            public_keys: Vec::new(),
            jwks_url: None,
            issuer: None,
            audience: None,
            leeway: Duration::from_secs(5),
        }
    }
}

impl AuthConfig {
    /// Returns the configured keys, or all errors of the section as pairs of configuration key and message.
    pub(super) fn verifying_keys(&self) -> Result<Vec<VerifyingKey>, Vec<(String, String)>> {
        let mut keys = Vec::new();
        let mut errors = Vec::new();
        let mut report = |key: String, message: String| errors.push((key, message));
        for (at, secret) in self.hs256_secrets.iter().enumerate() {
            let secret = secret.expose_secret();
            if let Some(problem) = secret_problem(secret) {
                report(format!("auth.hs256_secrets[{at}]"), problem);
            }
            keys.push(VerifyingKey::from_secret(secret.as_bytes()));
        }
        for (at, entry) in self.public_keys.iter().enumerate() {
            match public_key(entry) {
                Ok(key) => keys.push(key),
                Err(message) => report(format!("auth.public_keys[{at}]"), message),
            }
        }
        let jwks_url = self.jwks_url.as_ref();
        if jwks_url.is_some_and(|url| !is_encrypted_or_local(url)) {
            let message = "must be https, or http on loopback";
            report("auth.jwks_url".to_owned(), message.to_owned());
        }
        if keys.is_empty() && errors.is_empty() && self.jwks_url.is_none() {
            let message = "set one of hs256_secrets, public_keys, jwks_url";
            errors.push(("auth".to_owned(), message.to_owned()));
        }
        if errors.is_empty() {
            Ok(keys)
        } else {
            Err(errors)
        }
    }
}

fn public_key(entry: &str) -> Result<VerifyingKey, String> {
    if entry.contains("-----BEGIN") {
        return Ok(VerifyingKey::from_pem(entry)?);
    }
    let text = std::fs::read_to_string(entry)
        .map_err(|error| format!("neither PEM text nor a readable file: {}", error.kind()))?;
    Ok(VerifyingKey::from_pem(&text)?)
}

/// Returns why a secret is too weak to sign with HMAC-SHA-256, or `None` if it is strong enough.
#[must_use]
pub fn secret_problem(secret: &str) -> Option<String> {
    let (length, distinct) = (secret.len(), secret.bytes().collect::<BTreeSet<u8>>());
    // A secret with a short period repeats a word.
    let has_period = |period| {
        secret
            .bytes()
            .zip(secret.bytes().skip(period))
            .all(|(a, b)| a == b)
    };
    if length < MIN_SECRET_BYTES {
        Some(format!(
            "must have at least {MIN_SECRET_BYTES} bytes, found {length}"
        ))
    } else if distinct.len() < MIN_DISTINCT_BYTES || (1..=MAX_WORD_BYTES).any(has_period) {
        Some("must be random, such as the output of openssl rand -hex 32".to_owned())
    } else {
        None
    }
}

/// Returns whether a connection to `url` is encrypted or stays on this host. Otherwise an attacker on the network could
/// modify the keys that are fetched from it, or read the key that is sent to it.
#[must_use]
pub fn is_encrypted_or_local(url: &Url) -> bool {
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => true,
        "http" => loopback,
        _ => false,
    }
}
