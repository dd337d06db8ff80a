//! The `[auth]` section: with which keys tokens are proven, and for whom they must be made.
//!
//! Invariant: a key that cannot prove anything, or that anybody could guess, is a problem at the start.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use super::keys::VerifyingKey;

/// The shortest HS256 secret, in bytes: the length of the hash (RFC 7518, 3.2).
pub(super) const MIN_SECRET_BYTES: usize = 32;

/// The `[auth]` section. An empty string counts as absent everywhere.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// Secrets of HS256 tokens, at least 32 bytes each; any may have signed, the first one mints. Default: none.
    pub hs256_secrets: Vec<SecretString>,
    /// RSA, EC (P-256, P-384) or Ed25519 public keys: PEM text, or the path of a PEM file. Default: none.
    pub public_keys: Vec<String>,
    /// Where the issuer publishes its keys; https, or http on loopback. Default: none.
    pub jwks_url: Option<Url>,
    /// The `iss` that every token must have. Default: not checked.
    pub issuer: Option<String>,
    /// The `aud` that every token must have. Default: not checked.
    pub audience: Option<String>,
    /// How far clocks may differ when `exp` and `nbf` are checked. Default: 5 s.
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
    /// The configured keys, or every problem of the section as (key, problem).
    pub(super) fn verifying_keys(&self) -> Result<Vec<VerifyingKey>, Vec<(String, String)>> {
        let mut keys = Vec::new();
        let mut problems = Vec::new();
        for (at, secret) in self.hs256_secrets.iter().enumerate() {
            let secret = secret.expose_secret().as_bytes();
            if secret.len() < MIN_SECRET_BYTES {
                problems.push((
                    format!("auth.hs256_secrets[{at}]"),
                    format!("must have at least {MIN_SECRET_BYTES} bytes"),
                ));
            } else {
                keys.push(VerifyingKey::from_secret(secret));
            }
        }
        for (at, entry) in self.public_keys.iter().enumerate() {
            match public_key(entry) {
                Ok(key) => keys.push(key),
                Err(problem) => problems.push((format!("auth.public_keys[{at}]"), problem)),
            }
        }
        if self.jwks_url.as_ref().is_some_and(|url| !is_safe(url)) {
            problems.push((
                "auth.jwks_url".to_owned(),
                "must be https, or http on loopback".to_owned(),
            ));
        }
        if keys.is_empty() && problems.is_empty() && self.jwks_url.is_none() {
            problems.push((
                "auth".to_owned(),
                "no key: set hs256_secrets, public_keys or jwks_url".to_owned(),
            ));
        }
        if problems.is_empty() {
            Ok(keys)
        } else {
            Err(problems)
        }
    }
}

fn public_key(entry: &str) -> Result<VerifyingKey, String> {
    let key = if entry.contains("-----BEGIN") {
        VerifyingKey::from_pem(entry)
    } else {
        let text = std::fs::read_to_string(entry)
            .map_err(|error| format!("neither PEM text nor a readable file: {}", error.kind()))?;
        VerifyingKey::from_pem(&text)
    };
    key.map_err(str::to_owned)
}

/// Whoever can change the answer can sign tokens, so it must not travel in the clear.
fn is_safe(url: &Url) -> bool {
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
