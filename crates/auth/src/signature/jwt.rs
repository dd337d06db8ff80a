//! A token (JWT) that the provider signs for this very webhook, with a key that it publishes.
//!
//! Invariant: whether such a token binds the body is its provider's secret, so it never proves the body. It must
//! expire, and name the webhook's own address as its audience.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use url::Url;

use super::key::Key;
use super::spec::HeaderName;
use super::{Request, SignatureError, required};
use crate::jwt::{ClaimRequirements, TokenError, UnverifiedToken};

/// How far clocks may differ where a token expires.
const LEEWAY: Duration = Duration::from_secs(30);

/// Where the token stands, and whose it is.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    header: HeaderName,
    /// Before the token, as `Bearer `; it may be absent.
    #[serde(default)]
    prefix: String,
    /// The `iss` that it must have. Default: not checked.
    issuer: Option<String>,
    pub(super) jwks_url: Option<Url>,
}

impl Jwt {
    pub(super) fn verify(
        &self,
        request: &Request<'_>,
        keys: &[Key],
        now: Timestamp,
    ) -> Result<(), SignatureError> {
        let malformed = || SignatureError::Malformed((*self.header).into());
        let sent = required(request.headers, &self.header)?;
        let sent = sent.strip_prefix(&self.prefix).unwrap_or(sent);
        // What no key can prove is refused before there is any.
        let token = UnverifiedToken::read(sent).map_err(|_| malformed())?;
        if token.uses_shared_secret() {
            return Err(malformed());
        }
        let keys = || keys.iter().filter_map(Key::token);
        if keys().next().is_none() {
            return Err(SignatureError::NoKeyConfigured);
        }
        let expected = ClaimRequirements {
            issuer: self.issuer.clone(),
            audience: Some(request.url.to_owned()),
            leeway: LEEWAY,
        };
        token
            .verify_with_published_keys(keys(), &expected, now)
            .map_err(|refused| match &refused {
                TokenError::Algorithm | TokenError::UnknownKey => SignatureError::UnknownKey,
                TokenError::Signature if token.may_verify_with_newer_keys(&refused) => {
                    SignatureError::Mismatch
                }
                TokenError::Signature => SignatureError::Forged,
                TokenError::Expired | TokenError::NotYetValid => SignatureError::StaleTimestamp,
                TokenError::Issuer | TokenError::Audience | TokenError::MissingClaim(_) => {
                    SignatureError::Claim(refused)
                }
                TokenError::Missing
                | TokenError::TooLong
                | TokenError::Malformed
                | TokenError::UnsupportedCriticalHeader
                | TokenError::KeysUnavailable { .. } => malformed(),
            })
    }
}
