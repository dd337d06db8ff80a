//! A token that is still to be proven, and what proves it.
//!
//! Invariant: what an unproven header says of keys and algorithms only narrows the choice of keys; claims are
//! read once the signature holds.

use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, AlgorithmFamily};
use serde_json::{Map, Value};

use super::TokenError;
use super::claims::{ClaimRequirements, Claims};
use super::keys::VerifyingKey;

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// A JWT with what it says, unproven, of how to prove it.
pub struct UnverifiedToken<'t> {
    text: &'t str,
    algorithm: Algorithm,
    key_id: Option<String>,
}

impl<'t> UnverifiedToken<'t> {
    /// Reads the header; nothing is proven yet.
    ///
    /// # Errors
    /// A [`Refused`] for what is no JWT, or none that any key could prove.
    pub fn read(text: &'t str) -> Result<Self, TokenError> {
        if text.is_empty() {
            return Err(TokenError::Missing);
        }
        if text.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let (header, rest) = text.split_once('.').ok_or(TokenError::Malformed)?;
        if rest.split('.').count() != 2 {
            return Err(TokenError::Malformed);
        }
        let json = URL_SAFE_NO_PAD
            .decode(header)
            .map_err(|_| TokenError::Malformed)?;
        let header: Map<String, Value> =
            serde_json::from_slice(&json).map_err(|_| TokenError::Malformed)?;
        if header.contains_key("crit") {
            return Err(TokenError::UnsupportedCriticalHeader);
        }
        let name = header.get("alg").and_then(Value::as_str);
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(_) => return Err(TokenError::Malformed),
        };
        Ok(Self {
            text,
            algorithm: Algorithm::from_str(name.ok_or(TokenError::Malformed)?)
                .map_err(|_| TokenError::Algorithm)?,
            key_id,
        })
    }

    /// Proves that a holder of one of these published keys signed it, and that it says what is expected.
    ///
    /// # Errors
    /// A [`Refused`]; it [may pass](Self::may_pass_later) with other keys.
    pub fn verify_with_published_keys<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k VerifyingKey>,
        expected: &ClaimRequirements,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        let claims = self.verify_signature(keys)?;
        expected.check(&claims, now).map(|_| ())
    }

    /// Checks the signature with every key that fits; the claims are not looked at yet.
    pub(super) fn verify_signature<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k VerifyingKey>,
    ) -> Result<Claims, TokenError> {
        let mut refused = TokenError::Algorithm;
        for key in keys {
            if !key.may_use(self.algorithm) {
                continue;
            }
            if !key.matches_kid(self.key_id.as_deref()) {
                if refused == TokenError::Algorithm {
                    refused = TokenError::UnknownKey;
                }
                continue;
            }
            match key.decode(self.text) {
                Err(TokenError::Signature) => refused = TokenError::Signature,
                answer => return answer,
            }
        }
        Err(refused)
    }

    /// Whether it wants a shared secret, which no published key set holds.
    #[must_use]
    pub fn uses_shared_secret(&self) -> bool {
        self.algorithm.family() == AlgorithmFamily::Hmac
    }

    /// Whether a newer key set could turn this refusal round: a key known by its id that did not sign stays so.
    #[must_use]
    pub fn may_verify_with_newer_keys(&self, refused: &TokenError) -> bool {
        match refused {
            TokenError::Algorithm | TokenError::UnknownKey => true,
            TokenError::Signature => self.key_id.is_none(),
            TokenError::Missing
            | TokenError::TooLong
            | TokenError::Malformed
            | TokenError::UnsupportedCriticalHeader
            | TokenError::MissingClaim(_)
            | TokenError::Expired
            | TokenError::NotYetValid
            | TokenError::Issuer
            | TokenError::Audience
            | TokenError::KeysUnavailable { .. } => false,
        }
    }
}
