//! A token (JWT) that the provider signs for this very webhook, with a key that it publishes.
//!
//! Invariant: whether such a token binds the body is its provider's secret, so it never proves the body. It must
//! expire, and name the webhook's own address as its audience.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use url::Url;

use super::key::Key;
use super::table::HeaderName;
use super::{Refusal, Request, required};
use crate::auth::{Expected, Refused, Token};

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
    ) -> Result<(), Refusal> {
        let malformed = || Refusal::Malformed((*self.header).into());
        let sent = required(request.headers, &self.header)?;
        let sent = sent.strip_prefix(&self.prefix).unwrap_or(sent);
        // What no key can prove is refused before there is any.
        let token = Token::read(sent).map_err(|_| malformed())?;
        if token.wants_a_secret() {
            return Err(malformed());
        }
        let keys = || keys.iter().filter_map(Key::token);
        if keys().next().is_none() {
            return Err(Refusal::NoSecret);
        }
        let expected = Expected {
            issuer: self.issuer.clone(),
            audience: Some(request.url.to_owned()),
            leeway: LEEWAY,
        };
        token
            .attest(keys(), &expected, now)
            .map_err(|refused| match &refused {
                Refused::Algorithm | Refused::UnknownKey => Refusal::UnknownKey,
                Refused::Signature if token.may_pass_later(&refused) => Refusal::Mismatch,
                Refused::Signature => Refusal::Forged,
                Refused::Expired | Refused::NotYet => Refusal::StaleTimestamp,
                Refused::Issuer | Refused::Audience | Refused::MissingClaim(_) => {
                    Refusal::Claim(refused)
                }
                Refused::Missing
                | Refused::TooLong
                | Refused::Malformed
                | Refused::Critical
                | Refused::KeysUnavailable { .. } => malformed(),
            })
    }
}
