//! Who is calling, and what may they: a bearer token becomes a [`Principal`].
//!
//! Invariant: nothing else makes a `Principal`. A token is believed only by a key that the operator configured,
//! under an algorithm that belongs to that key; what its header says of keys and algorithms can only narrow the
//! choice. No refusal carries any of the token.
//!
//! One file for each idea: `config`, `keys` (which algorithms a key may use), `jwks` (keys that are fetched),
//! `claims` (what a token must say), `principal` (who may do what), `minter` (the hub's own tokens).

mod claims;
mod config;
mod jwks;
mod keys;
mod minter;
mod outgoing;
mod principal;
#[cfg(test)]
mod tests;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, AlgorithmFamily};
use serde_json::{Map, Value};

use claims::{Claims, Expected};
use keys::VerifyingKey;

pub use config::AuthConfig;
pub use jwks::{Fetch, FetchError, Jwks, Unavailable};
pub use minter::{CannotMint, Minted, Minter};
pub use outgoing::hs256;
pub use principal::{Principal, Scope};

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Why a token was not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
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
    Critical,
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
    NotYet,
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

impl Refused {
    /// The stable word for problem bodies, logs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::TooLong => "token_too_long",
            Self::Malformed => "token_malformed",
            Self::Critical => "token_critical",
            Self::Algorithm => "token_algorithm",
            Self::UnknownKey => "token_key_unknown",
            Self::Signature => "token_signature",
            Self::MissingClaim(_) => "token_claim_missing",
            Self::Expired => "token_expired",
            Self::NotYet => "token_not_yet_valid",
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
    expected: Expected,
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
            jwks: jwks.map(|url| Arc::new(Jwks::new(url, fetch, keys::from_jwks))),
            expected: Expected {
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
    pub async fn verify(&self, token: &str) -> Result<Principal, Refused> {
        self.verify_at(token, Timestamp::now()).await
    }

    /// Proves a token at the time `now`.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub async fn verify_at(&self, token: &str, now: Timestamp) -> Result<Principal, Refused> {
        let header = Header::read(token)?;
        let claims = match prove(&self.keys, token, &header) {
            Err(Refused::Malformed) => Err(Refused::Malformed),
            Err(refused) => self.prove_with_fetched(token, &header, refused).await,
            Ok(claims) => Ok(claims),
        }?;
        self.expected.check(claims, now)
    }

    /// Goes on where the configured keys ended with `refused`.
    async fn prove_with_fetched(
        &self,
        token: &str,
        header: &Header,
        refused: Refused,
    ) -> Result<Claims, Refused> {
        // A key set holds public keys only, so a token with a shared secret must not cause a fetch.
        let jwks = self.jwks.as_ref();
        let Some(jwks) = jwks.filter(|_| header.algorithm.family() != AlgorithmFamily::Hmac) else {
            return Err(refused);
        };
        let held = jwks.current().await?;
        let refused = match prove(&held, token, header) {
            Err(refused) if header.may_be_newer(&refused) => refused,
            answer => return answer,
        };
        match jwks.newer_than(&held).await {
            Some(newer) => prove(&newer, token, header),
            None => Err(refused),
        }
    }
}

/// Checks the signature with every key that fits; the claims are not looked at yet.
fn prove(keys: &[VerifyingKey], token: &str, header: &Header) -> Result<Claims, Refused> {
    let mut refused = Refused::Algorithm;
    for key in keys.iter().filter(|key| key.may_use(header.algorithm)) {
        if !key.may_be_called(header.key_id.as_deref()) {
            if refused == Refused::Algorithm {
                refused = Refused::UnknownKey;
            }
            continue;
        }
        match key.open(token) {
            Err(Refused::Signature) => refused = Refused::Signature,
            answer => return answer,
        }
    }
    Err(refused)
}

/// What an unproven token says of how to prove it.
struct Header {
    algorithm: Algorithm,
    key_id: Option<String>,
}

impl Header {
    fn read(token: &str) -> Result<Self, Refused> {
        if token.is_empty() {
            return Err(Refused::Missing);
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Refused::TooLong);
        }
        let (header, rest) = token.split_once('.').ok_or(Refused::Malformed)?;
        if rest.split('.').count() != 2 {
            return Err(Refused::Malformed);
        }
        let json = URL_SAFE_NO_PAD
            .decode(header)
            .map_err(|_| Refused::Malformed)?;
        let header: Map<String, Value> =
            serde_json::from_slice(&json).map_err(|_| Refused::Malformed)?;
        if header.contains_key("crit") {
            return Err(Refused::Critical);
        }
        let name = header.get("alg").and_then(Value::as_str);
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(_) => return Err(Refused::Malformed),
        };
        Ok(Self {
            algorithm: Algorithm::from_str(name.ok_or(Refused::Malformed)?)
                .map_err(|_| Refused::Algorithm)?,
            key_id,
        })
    }

    /// Whether a newer key set could turn this refusal round: a key known by its id that did not sign stays so.
    fn may_be_newer(&self, refused: &Refused) -> bool {
        match refused {
            Refused::Algorithm | Refused::UnknownKey => true,
            Refused::Signature => self.key_id.is_none(),
            Refused::Missing
            | Refused::TooLong
            | Refused::Malformed
            | Refused::Critical
            | Refused::MissingClaim(_)
            | Refused::Expired
            | Refused::NotYet
            | Refused::Issuer
            | Refused::Audience
            | Refused::KeysUnavailable { .. } => false,
        }
    }
}

impl From<Unavailable> for Refused {
    fn from(unavailable: Unavailable) -> Self {
        Self::KeysUnavailable {
            retry_after: unavailable.retry_after,
        }
    }
}
