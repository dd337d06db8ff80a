//! Verification of bearer tokens: [`Verifier::verify`] turns a JWT into a [`Principal`].
//!
//! A [`Principal`] has no other constructor. A token is accepted only if a configured key verifies it with an
//! algorithm that belongs to that key. The `alg` and `kid` headers of the token only narrow the choice of keys.
//! No error contains any part of the token.

mod claims;
mod config;
mod jwks;
mod keys;
mod minter;
mod principal;
#[cfg(test)]
mod tests;
mod token;
mod verified;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

pub(crate) use claims::ClaimRequirements;
pub use config::{AuthConfig, is_encrypted_or_local, secret_problem};
pub use jwks::{Fetch, FetchError, Jwks, JwksUnavailable};
pub use keys::VerifyingKey;
pub use minter::{MintError, MintedToken, Minter, hs256};
pub use principal::{Principal, Scope};
pub use token::MAX_TOKEN_BYTES;
pub(crate) use token::UnverifiedToken;
use verified::{TokenDigest, VerifiedClaims, VerifiedTokens};

/// Reason for rejecting a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The request carries no token.
    #[error("token is missing")]
    Missing,
    /// The token is longer than [`MAX_TOKEN_BYTES`].
    #[error("token is too long")]
    TooLong,
    /// The token is not a JWT, or a claim has the wrong type.
    #[error("token is malformed")]
    Malformed,
    /// The `crit` header requires an extension, and none is supported.
    #[error("token needs an unsupported extension")]
    UnsupportedCriticalHeader,
    /// No configured key allows the algorithm of the token.
    #[error("token algorithm is not accepted")]
    Algorithm,
    /// No configured key has the `kid` of the token.
    #[error("token key is unknown")]
    UnknownKey,
    /// No matching key verifies the signature.
    #[error("token signature does not match")]
    Signature,
    /// A required claim is missing.
    #[error("token claim {0} is missing")]
    MissingClaim(&'static str),
    /// The token has expired.
    #[error("token has expired")]
    Expired,
    /// The token is not valid yet.
    #[error("token is not valid yet")]
    NotYetValid,
    /// The `iss` claim is not the configured issuer.
    #[error("token is from another issuer")]
    Issuer,
    /// The `aud` claim does not contain the configured audience.
    #[error("token is for another audience")]
    Audience,
    /// The key set could not be fetched, so the token can be neither accepted nor rejected. Maps to 503.
    #[error("token keys are unavailable")]
    KeysUnavailable {
        /// Time to wait before the next attempt.
        retry_after: Duration,
    },
}

impl TokenError {
    /// Returns the stable code for problem bodies, logs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::TooLong => "token_too_long",
            Self::Malformed => "token_malformed",
            Self::UnsupportedCriticalHeader => "token_critical",
            Self::Algorithm => "token_algorithm",
            Self::UnknownKey => "token_key_unknown",
            Self::Signature => "token_signature",
            Self::MissingClaim(_) => "token_claim_missing",
            Self::Expired => "token_expired",
            Self::NotYetValid => "token_not_yet_valid",
            Self::Issuer => "token_issuer",
            Self::Audience => "token_audience",
            Self::KeysUnavailable { .. } => "token_keys_unavailable",
        }
    }
}

/// Verifies tokens with the configured keys. A process has one, shared by `Arc`.
pub struct Verifier {
    keys: Vec<VerifyingKey>,
    jwks: Option<Arc<Jwks<VerifyingKey>>>,
    expected: ClaimRequirements,
    verified: VerifiedTokens,
}

impl Verifier {
    /// Creates a verifier from the configured keys. `fetch` is used only if a JWKS URL is configured.
    ///
    /// # Errors
    /// All errors of the section as pairs of configuration key (`auth.public_keys[0]`) and message.
    pub fn new(config: &AuthConfig, fetch: Arc<dyn Fetch>) -> Result<Self, Vec<(String, String)>> {
        let keys = config.verifying_keys()?;
        let jwks = config.jwks_url.clone();
        Ok(Self {
            keys,
            jwks: jwks.map(|url| Arc::new(Jwks::new(url, fetch, VerifyingKey::from_jwks))),
            expected: ClaimRequirements {
                issuer: config.issuer.clone(),
                audience: config.audience.clone(),
                leeway: config.leeway,
            },
            verified: VerifiedTokens::default(),
        })
    }

    /// Verifies a token at the current time.
    ///
    /// # Errors
    /// Returns a [`TokenError`]. Only [`TokenError::KeysUnavailable`] is temporary.
    pub async fn verify(&self, token: &str) -> Result<Principal, TokenError> {
        self.verify_at(token, Timestamp::now()).await
    }

    /// Verifies a token at the time `now`.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub async fn verify_at(&self, token: &str, now: Timestamp) -> Result<Principal, TokenError> {
        let digest = TokenDigest::of(token);
        let verified = match self.verified_before(&digest).await? {
            Some(verified) => verified,
            None => {
                let verified = self.verify_signature(token).await?;
                self.verified.insert(digest, verified.clone());
                verified
            }
        };
        self.expected.principal(&verified.claims, now)
    }

    /// Returns the cached claims of a token. Returns `None` if its signature has not been verified
    /// yet, or if the key set that verified it has changed.
    async fn verified_before(
        &self,
        digest: &TokenDigest,
    ) -> Result<Option<VerifiedClaims>, TokenError> {
        let Some(verified) = self.verified.get(digest) else {
            return Ok(None);
        };
        let is_current = match (&verified.key_set, &self.jwks) {
            (None, _) => true,
            (Some(keys), Some(jwks)) => Arc::ptr_eq(keys, &current_keys(jwks).await?),
            (Some(_), None) => false,
        };
        Ok(is_current.then_some(verified))
    }

    async fn verify_signature(&self, token: &str) -> Result<VerifiedClaims, TokenError> {
        let token = UnverifiedToken::read(token)?;
        match token.verify_signature(&self.keys) {
            Err(TokenError::Malformed) => Err(TokenError::Malformed),
            Err(error) => self.verify_with_jwks(&token, error).await,
            Ok(claims) => Ok(VerifiedClaims {
                claims: Arc::new(claims),
                key_set: None,
            }),
        }
    }

    /// Verifies a token with the key set, after the configured keys have rejected it with `error`.
    async fn verify_with_jwks(
        &self,
        token: &UnverifiedToken<'_>,
        error: TokenError,
    ) -> Result<VerifiedClaims, TokenError> {
        // A key set contains public keys only, so an HMAC token must not cause a fetch.
        let jwks = self.jwks.as_ref().filter(|_| !token.uses_shared_secret());
        let Some(jwks) = jwks else {
            return Err(error);
        };
        let verify = |keys: Arc<[VerifyingKey]>| {
            let claims = Arc::new(token.verify_signature(keys.iter())?);
            let key_set = Some(keys);
            Ok(VerifiedClaims { claims, key_set })
        };
        let current = current_keys(jwks).await?;
        let error = match verify(Arc::clone(&current)) {
            Err(error) if token.may_verify_with_newer_keys(&error) => error,
            result => return result,
        };
        match jwks.newer_than(&current).await {
            Some(newer) => verify(newer),
            None => Err(error),
        }
    }
}

async fn current_keys(jwks: &Arc<Jwks<VerifyingKey>>) -> Result<Arc<[VerifyingKey]>, TokenError> {
    let unavailable = |JwksUnavailable { retry_after }| TokenError::KeysUnavailable { retry_after };
    jwks.current().await.map_err(unavailable)
}
