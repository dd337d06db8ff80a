//! Tokens that the hub makes itself: for browsers, by an admin's leave.
//!
//! Invariant: a minted token passes the verifier of the same configuration.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{EncodingKey, Header, encode};
use secrecy::ExposeSecret;
use serde::Serialize;

use super::config::MIN_SECRET_BYTES;
use super::{AuthConfig, MAX_TOKEN_BYTES, Scope};

/// Makes HS256 tokens with the first configured secret.
pub struct Minter {
    key: EncodingKey,
    issuer: Option<String>,
    audience: Option<String>,
}

/// A new token.
pub struct MintedToken {
    /// The bearer token: a secret of whom it is for.
    pub token: String,
    /// Its `exp` claim.
    pub expires_at: Timestamp,
}

/// Why a token was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// Every token needs a subject.
    #[error("sub is empty")]
    EmptySubject,
    /// A word of the scope means nothing to the hub.
    #[error("unknown scope {0:?}")]
    UnknownScope(String),
    /// The time to live is under a second, or ends beyond the year 9999.
    #[error("time to live is out of range")]
    Ttl,
    /// With so many jobs the token would be longer than the verifier reads.
    #[error("token would be longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    /// The token could not be encoded.
    #[error("token could not be encoded")]
    Encoding,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    iat: i64,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jobs: Option<Vec<String>>,
}

impl Minter {
    /// None when no HS256 secret is configured, or the first is one that the verifier refuses.
    pub fn new(config: &AuthConfig) -> Option<Self> {
        let secret = config.hs256_secrets.first()?.expose_secret().as_bytes();
        (secret.len() >= MIN_SECRET_BYTES).then(|| Self {
            key: EncodingKey::from_secret(secret),
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
        })
    }

    /// A token for `sub` that expires `ttl` after `now`, in whole seconds. Without `scope` it may read; with `jobs`
    /// it reaches these jobs alone.
    ///
    /// # Errors
    /// [`CannotMint`].
    pub fn mint(
        &self,
        sub: &str,
        jobs: Option<Vec<String>>,
        scope: Option<&str>,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<MintedToken, MintError> {
        if sub.is_empty() {
            return Err(MintError::EmptySubject);
        }
        let mut words = scope.unwrap_or_default().split_ascii_whitespace();
        if let Some(unknown) = words.find(|word| Scope::read(word).is_none()) {
            return Err(MintError::UnknownScope(unknown.to_owned()));
        }
        let ttl = SignedDuration::try_from(ttl).map_err(|_| MintError::Ttl)?;
        let expires_at = now.checked_add(ttl).map_err(|_| MintError::Ttl)?;
        let (iat, exp) = (now.as_second(), expires_at.as_second());
        if exp <= iat {
            return Err(MintError::Ttl);
        }
        let claims = Claims {
            sub,
            iat,
            exp,
            iss: self.issuer.as_deref(),
            aud: self.audience.as_deref(),
            scope,
            jobs,
        };
        let token =
            encode(&Header::default(), &claims, &self.key).map_err(|_| MintError::Encoding)?;
        if token.len() > MAX_TOKEN_BYTES {
            return Err(MintError::TooLong);
        }
        Ok(MintedToken {
            token,
            expires_at: Timestamp::from_second(exp).map_err(|_| MintError::Ttl)?,
        })
    }
}
