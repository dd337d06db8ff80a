//! A JWT that the provider signs for each webhook with a published key.
//!
//! The token must have `exp`, and the webhook URL as `aud`. It does not cover the body.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use url::Url;

use super::header_name::HeaderName;
use super::key::Key;
use super::{Request, SignatureError, required};
use crate::jwt::{ClaimRequirements, TokenError, UnverifiedToken};

/// Clock skew that is tolerated for `exp` and `nbf`.
const LEEWAY: Duration = Duration::from_secs(30);

/// The header that carries the token, and its issuer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    header: HeaderName,
    /// Optional prefix of the token, such as `Bearer `.
    #[serde(default)]
    prefix: String,
    /// Required `iss`. Default: not checked.
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
        // A malformed token is rejected even if no key is available.
        let token = UnverifiedToken::read(sent).map_err(|_| malformed())?;
        if token.uses_shared_secret() {
            return Err(malformed());
        }
        let keys = || keys.iter().filter_map(Key::published);
        if keys().next().is_none() {
            return Err(SignatureError::NoKeyConfigured);
        }
        let expected = ClaimRequirements {
            issuer: self.issuer.clone(),
            audience: Some(request.url.to_owned()),
            leeway: LEEWAY,
        };
        let claims = token.verify_signature(keys());
        claims
            .and_then(|claims| expected.check(&claims, now))
            .map(|_| ())
            .map_err(|error| match &error {
                TokenError::Algorithm | TokenError::UnknownKey => SignatureError::UnknownKey,
                TokenError::Signature if token.may_verify_with_newer_keys(&error) => {
                    SignatureError::Mismatch
                }
                TokenError::Signature => SignatureError::Forged,
                TokenError::Expired | TokenError::NotYetValid => SignatureError::StaleTimestamp,
                TokenError::Issuer | TokenError::Audience | TokenError::MissingClaim(_) => {
                    SignatureError::Claim(error)
                }
                TokenError::Missing
                | TokenError::TooLong
                | TokenError::Malformed
                | TokenError::UnsupportedCriticalHeader
                | TokenError::KeysUnavailable { .. } => malformed(),
            })
    }
}
