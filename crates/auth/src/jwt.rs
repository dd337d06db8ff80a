//! Who is calling, and what may they: a bearer token becomes a [`Principal`].
//!
//! Invariant: nothing else makes a `Principal`. A token is believed only by a key that the operator configured,
//! under an algorithm that belongs to that key; what its header says of keys and algorithms can only narrow the
//! choice. No refusal carries any of the token.
//!
//! One file for each idea: `config`, `keys` (which algorithms a key may use), `jwks` (keys that are fetched),
//! `token` (how one is proven), `claims` (what it must say), `principal` (who may do what), `minter` (the hub's own
//! tokens).

mod claims;
mod config;
mod jwks;
mod keys;
mod minter;
mod principal;
mod provider_token;
#[cfg(test)]
mod tests;
mod token;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use claims::Claims;

pub use claims::ClaimRequirements;
pub use config::AuthConfig;
pub use jwks::{Fetch, FetchError, Jwks, JwksUnavailable};
pub use keys::VerifyingKey;
pub use minter::{MintError, MintedToken, Minter};
pub use principal::{Principal, Scope};
pub use provider_token::hs256;
pub use token::{MAX_TOKEN_BYTES, UnverifiedToken};

/// Why a token was not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is no token.
    #[error("token is missing")]
    Missing,
    /// The token is longer than [`MAX_TOKEN_BYTES`].
    #[error("token is too long")]
    TooLong,
    /// The token is no JWT, or a claim in it has the wrong type.
    #[error("token is malformed")]
    Malformed,
    /// The token asks for an extension (`crit`) that the hub does not know.
    #[error("token needs an unsupported extension")]
    UnsupportedCriticalHeader,
    /// No configured key may be used with the token's algorithm.
    #[error("token algorithm is not accepted")]
    Algorithm,
    /// The token names a key that the hub does not know.
    #[error("token key is unknown")]
    UnknownKey,
    /// No key that fits made the signature.
    #[error("token signature does not match")]
    Signature,
    /// A claim that must be there is not.
    #[error("token claim {0} is missing")]
    MissingClaim(&'static str),
    /// The token has expired.
    #[error("token has expired")]
    Expired,
    /// The token is not valid yet.
    #[error("token is not valid yet")]
    NotYetValid,
    /// The token is from another issuer.
    #[error("token is from another issuer")]
    Issuer,
    /// The token is for another audience.
    #[error("token is for another audience")]
    Audience,
    /// The keys could not be fetched, so the token can be neither believed nor refused: answer 503.
    #[error("token keys are unavailable")]
    KeysUnavailable {
        /// When to try again.
        retry_after: Duration,
    },
}

impl TokenError {
    /// The stable word for problem bodies, logs and metrics.
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

/// Proves tokens with the configured keys. One for the whole process, shared by `Arc`.
pub struct Verifier {
    keys: Vec<VerifyingKey>,
    jwks: Option<Arc<Jwks<VerifyingKey>>>,
    expected: ClaimRequirements,
}

impl Verifier {
    /// Reads the keys of the configuration; `fetch` is asked only when a JWKS URL is configured.
    ///
    /// # Errors
    /// Every problem of the section as (key, problem), the key as in `auth.public_keys[0]`.
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
        })
    }

    /// Proves a token at this moment.
    ///
    /// # Errors
    /// A [`Refused`]; only [`Refused::KeysUnavailable`] may pass by waiting.
    pub async fn verify(&self, token: &str) -> Result<Principal, TokenError> {
        self.verify_at(token, Timestamp::now()).await
    }

    /// Proves a token at the time `now`.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub async fn verify_at(&self, token: &str, now: Timestamp) -> Result<Principal, TokenError> {
        let token = UnverifiedToken::read(token)?;
        let claims = match token.verify_signature(&self.keys) {
            Err(TokenError::Malformed) => Err(TokenError::Malformed),
            Err(refused) => self.verify_with_jwks(&token, refused).await,
            Ok(claims) => Ok(claims),
        }?;
        self.expected.principal(claims, now)
    }

    /// Goes on where the configured keys ended with `refused`.
    async fn verify_with_jwks(
        &self,
        token: &UnverifiedToken<'_>,
        refused: TokenError,
    ) -> Result<Claims, TokenError> {
        // A key set holds public keys only, so a token with a shared secret must not cause a fetch.
        let jwks = self.jwks.as_ref().filter(|_| !token.uses_shared_secret());
        let Some(jwks) = jwks else {
            return Err(refused);
        };
        let held = jwks.current().await?;
        let refused = match token.verify_signature(held.iter()) {
            Err(refused) if token.may_verify_with_newer_keys(&refused) => refused,
            answer => return answer,
        };
        match jwks.newer_than(&held).await {
            Some(newer) => token.verify_signature(newer.iter()),
            None => Err(refused),
        }
    }
}

impl From<JwksUnavailable> for TokenError {
    fn from(unavailable: JwksUnavailable) -> Self {
        Self::KeysUnavailable {
            retry_after: unavailable.retry_after,
        }
    }
}
