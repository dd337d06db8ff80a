//! Minting of tokens: for browsers, and for providers that require one.
//!
//! The verifier of the same configuration accepts every token for a browser.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{EncodingKey, Header, encode};
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::{Value, json};

use super::config::secret_problem;
use super::{AuthConfig, MAX_TOKEN_BYTES, Scope};

/// Signs HS256 tokens with the first configured secret.
pub struct Minter {
    key: EncodingKey,
    issuer: Option<String>,
    audience: Option<String>,
}

/// A new token.
pub struct MintedToken {
    /// The bearer token. It is a secret.
    pub token: String,
    /// Its `jti` claim, which identifies the token in logs.
    pub id: String,
    /// Its `exp` claim.
    pub expires_at: Timestamp,
}

/// Reason for not minting a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// `sub` is empty.
    #[error("sub is empty")]
    EmptySubject,
    /// The scope contains an unknown value.
    #[error("unknown scope {0:?}")]
    UnknownScope(String),
    /// The time to live is less than a second, or the token would expire after the year 9999.
    #[error("time to live is out of range")]
    Ttl,
    /// The token would exceed [`MAX_TOKEN_BYTES`], because the list of jobs is too long.
    #[error("token would be longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    /// The token could not be encoded.
    #[error("token could not be encoded")]
    Encoding,
}

impl Minter {
    /// Creates a minter. Returns `None` if no HS256 secret is configured, or if the first one is too weak.
    pub fn new(config: &AuthConfig) -> Option<Self> {
        let secret = config.hs256_secrets.first()?.expose_secret();
        secret_problem(secret).is_none().then(|| Self {
            key: EncodingKey::from_secret(secret.as_bytes()),
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
        })
    }

    /// Mints a token for `sub` that expires `ttl` after `now`, in whole seconds. Without `scope`, it grants
    /// `jobs:read`. With `jobs`, it grants access to these jobs only.
    ///
    /// # Errors
    /// Returns a [`MintError`] if an argument is invalid or the token would be too long.
    pub fn mint(
        &self,
        sub: &str,
        jobs: Option<Vec<String>>,
        scope: Option<&str>,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<MintedToken, MintError> {
        self.mint_with_email(sub, None, jobs, scope, ttl, now)
    }

    /// As [`Minter::mint`], with an `email` claim, which the caller has verified.
    ///
    /// # Errors
    /// As [`Minter::mint`].
    pub fn mint_with_email(
        &self,
        sub: &str,
        email: Option<&str>,
        jobs: Option<Vec<String>>,
        scope: Option<&str>,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<MintedToken, MintError> {
        if sub.is_empty() {
            return Err(MintError::EmptySubject);
        }
        let mut scopes = scope.unwrap_or_default().split_ascii_whitespace();
        if let Some(unknown) = scopes.find(|scope| Scope::from_name(scope).is_none()) {
            return Err(MintError::UnknownScope(unknown.to_owned()));
        }
        let ttl = SignedDuration::try_from(ttl).map_err(|_| MintError::Ttl)?;
        let expires_at = now.checked_add(ttl).map_err(|_| MintError::Ttl)?;
        let (iat, exp) = (now.as_second(), expires_at.as_second());
        if exp <= iat {
            return Err(MintError::Ttl);
        }
        let id = random_id().ok_or(MintError::Encoding)?;
        let mut claims = json!({
            "jti": id,
            "sub": sub,
            "email": email,
            "iat": iat,
            "exp": exp,
            "iss": self.issuer,
            "aud": self.audience,
            "scope": scope,
            "jobs": jobs.map(Value::from),
        });
        if let Some(claims) = claims.as_object_mut() {
            claims.retain(|_, claim| !claim.is_null());
        }
        let token =
            encode(&Header::default(), &claims, &self.key).map_err(|_| MintError::Encoding)?;
        if token.len() > MAX_TOKEN_BYTES {
            return Err(MintError::TooLong);
        }
        Ok(MintedToken {
            token,
            id,
            expires_at: Timestamp::from_second(exp).map_err(|_| MintError::Ttl)?,
        })
    }
}

/// Returns 128 random bits. Returns `None` if the system has none.
fn random_id() -> Option<String> {
    let mut id = [0; 16];
    aws_lc_rs::rand::fill(&mut id).ok()?;
    Some(URL_SAFE_NO_PAD.encode(id))
}

/// Signs `claims` as an HS256 JWT with the header `{"typ":"JWT","alg":"HS256"}`. Returns `None` if the claims are not
/// a JSON object. Kling's first API requires such a token (klingai.com/document-api: authentication).
pub fn hs256<C: Serialize>(claims: &C, secret: &str) -> Option<String> {
    encode(
        &Header::default(),
        claims,
        &EncodingKey::from_secret(secret.as_bytes()),
    )
    .ok()
}
