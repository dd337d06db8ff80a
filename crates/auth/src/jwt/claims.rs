//! What a token must say of itself, once its signature holds.
//!
//! Invariant: a claim that is there in the wrong type is refused, never read as absent.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer};
use serde_json::{Number, Value};

use super::TokenError;
use super::principal::{Principal, Scope};

/// The claims the hub knows; others are ignored.
#[derive(Deserialize)]
pub(super) struct Claims {
    #[serde(default, deserialize_with = "present")]
    sub: Option<String>,
    #[serde(default, deserialize_with = "present")]
    exp: Option<Number>,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<Number>,
    iss: Option<Value>,
    aud: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    scope: Option<String>,
    #[serde(default, deserialize_with = "present")]
    jobs: Option<BTreeSet<String>>,
}

/// Reads `null` as a wrong type: as an absent `jobs` it would widen what the token may see.
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// What is expected of every token, besides its signature.
#[derive(Debug, Clone)]
pub struct ClaimRequirements {
    /// The `iss` that it must have; not checked where there is none.
    pub issuer: Option<String>,
    /// What its `aud` must be or hold; not checked where there is none.
    pub audience: Option<String>,
    /// How far clocks may differ when `exp`, which must be there, and `nbf` are checked.
    pub leeway: Duration,
}

impl ClaimRequirements {
    /// Whom the claims make of the caller.
    pub(super) fn principal(
        &self,
        mut claims: Claims,
        now: Timestamp,
    ) -> Result<Principal, TokenError> {
        let subject = claims.sub.take().filter(|subject| !subject.is_empty());
        let subject = subject.ok_or(TokenError::MissingClaim("sub"))?;
        let expires_at = self.check(&claims, now)?;
        let scopes = match &claims.scope {
            Some(words) => Scope::read_list(words),
            None => BTreeSet::from([Scope::Read]),
        };
        Ok(Principal::new(subject, scopes, claims.jobs, expires_at))
    }

    /// When the claims expire, if they are as expected.
    pub(super) fn check(&self, claims: &Claims, now: Timestamp) -> Result<Timestamp, TokenError> {
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
        check_name(
            self.issuer.as_deref(),
            claims.iss.as_ref(),
            "iss",
            is_issuer,
            TokenError::Issuer,
        )?;
        check_name(
            self.audience.as_deref(),
            claims.aud.as_ref(),
            "aud",
            is_audience,
            TokenError::Audience,
        )?;
        Ok(expires_at)
    }
}

fn check_name(
    expected: Option<&str>,
    claim: Option<&Value>,
    name: &'static str,
    is: fn(&Value, &str) -> bool,
    refused: TokenError,
) -> Result<(), TokenError> {
    let Some(expected) = expected else {
        return Ok(());
    };
    let claim = claim.ok_or(TokenError::MissingClaim(name))?;
    is(claim, expected).then_some(()).ok_or(refused)
}

fn is_issuer(claim: &Value, expected: &str) -> bool {
    claim.as_str() == Some(expected)
}

/// One name or a list of names (RFC 7519, 4.1.3); a list with anything else in it names nobody.
fn is_audience(claim: &Value, expected: &str) -> bool {
    match claim {
        Value::String(name) => name == expected,
        Value::Array(names) => {
            names.iter().all(Value::is_string)
                && names.iter().any(|name| name.as_str() == Some(expected))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
    }
}

/// A NumericDate (RFC 7519, 2): seconds, perhaps with a fraction; None beyond the year 9999.
fn instant(seconds: &Number) -> Option<Timestamp> {
    match seconds.as_i64() {
        Some(whole) => Timestamp::from_second(whole).ok(),
        None => Timestamp::from_microsecond((seconds.as_f64()? * 1e6) as i64).ok(),
    }
}
