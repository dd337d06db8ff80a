//! Validation of claims, after the signature is verified.
//!
//! A claim of the wrong type is an error. It is never treated as absent.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer};
use serde_json::{Number, Value};

use super::TokenError;
use super::principal::{Principal, Scope};

/// The claims that the hub reads. Others are ignored.
#[derive(Deserialize)]
pub(crate) struct Claims {
    #[serde(default, deserialize_with = "present")]
    sub: Option<String>,
    #[serde(default, deserialize_with = "present")]
    exp: Option<Number>,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<Number>,
    iss: Option<Value>,
    aud: Option<Value>,
    /// Used in logs only. A value that is not a string is ignored.
    jti: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    scope: Option<String>,
    #[serde(default, deserialize_with = "present")]
    jobs: Option<BTreeSet<String>>,
    /// Grants nothing. A value that is not a string is ignored.
    email: Option<Value>,
    /// A boolean (OpenID Connect Core 1.0, section 5.1), which some issuers encode as a string.
    email_verified: Option<Value>,
}

impl Claims {
    /// Returns the mail address, unless the issuer says that it has not verified it.
    fn verified_email(&self) -> Option<&str> {
        let is_verified = match &self.email_verified {
            None | Some(Value::Bool(true)) => true,
            Some(Value::String(text)) => text == "true",
            Some(_) => false,
        };
        self.email.as_ref()?.as_str().filter(|_| is_verified)
    }
}

/// Rejects `null`, because treating a null `jobs` as absent would widen the token's access.
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// Requirements on the claims of every token.
pub(crate) struct ClaimRequirements {
    /// Required `iss`. Not checked if `None`.
    pub(crate) issuer: Option<String>,
    /// Value that `aud` must equal or contain. Not checked if `None`.
    pub(crate) audience: Option<String>,
    /// Clock skew that is tolerated for `exp` (required) and `nbf`.
    pub(crate) leeway: Duration,
}

impl ClaimRequirements {
    /// Checks the claims and returns the caller that they describe.
    pub(super) fn principal(
        &self,
        claims: &Claims,
        now: Timestamp,
    ) -> Result<Principal, TokenError> {
        let subject = claims.sub.as_ref().filter(|subject| !subject.is_empty());
        let subject = subject.ok_or(TokenError::MissingClaim("sub"))?;
        let expires_at = self.check(claims, now)?;
        let scopes = match &claims.scope {
            Some(list) => Scope::parse_list(list),
            None => BTreeSet::from([Scope::Read]),
        };
        let token_id = claims.jti.as_ref().and_then(Value::as_str);
        Ok(Principal {
            subject: subject.clone(),
            token_id: token_id.map(str::to_owned),
            scopes,
            jobs: claims.jobs.clone(),
            email: claims.verified_email().map(str::to_owned),
            expires_at,
        })
    }

    /// Checks the claims and returns the time at which they expire.
    pub(crate) fn check(&self, claims: &Claims, now: Timestamp) -> Result<Timestamp, TokenError> {
        let exp = claims.exp.as_ref().ok_or(TokenError::MissingClaim("exp"))?;
        let expires_at = instant(exp).ok_or(TokenError::Malformed)?;
        let leeway = SignedDuration::try_from(self.leeway).unwrap_or(SignedDuration::MAX);
        if now.duration_since(expires_at) >= leeway {
            return Err(TokenError::Expired);
        }
        if let Some(nbf) = &claims.nbf {
            let valid_from = instant(nbf).ok_or(TokenError::Malformed)?;
            if valid_from.duration_since(now) > leeway {
                return Err(TokenError::NotYetValid);
            }
        }
        if let Some(issuer) = &self.issuer {
            let claim = claims.iss.as_ref().ok_or(TokenError::MissingClaim("iss"))?;
            if claim.as_str() != Some(issuer) {
                return Err(TokenError::Issuer);
            }
        }
        if let Some(audience) = &self.audience {
            let claim = claims.aud.as_ref().ok_or(TokenError::MissingClaim("aud"))?;
            if !is_audience(claim, audience) {
                return Err(TokenError::Audience);
            }
        }
        Ok(expires_at)
    }
}

/// Returns whether `aud` equals or contains `expected` (RFC 7519, section 4.1.3). A list with a value that is not a
/// string matches nothing.
fn is_audience(claim: &Value, expected: &str) -> bool {
    let names = match claim.as_array() {
        Some(names) => names,
        None => std::slice::from_ref(claim),
    };
    names.iter().all(Value::is_string) && names.iter().any(|name| name == expected)
}

/// Converts a NumericDate (RFC 7519, section 2), which may have a fraction. Returns `None` beyond the year 9999.
fn instant(seconds: &Number) -> Option<Timestamp> {
    match seconds.as_i64() {
        Some(whole) => Timestamp::from_second(whole).ok(),
        None => Timestamp::from_microsecond((seconds.as_f64()? * 1e6) as i64).ok(),
    }
}
