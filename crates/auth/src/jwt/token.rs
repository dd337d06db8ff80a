//! A token before verification, and the verification of its signature.
//!
//! The unverified header only narrows the choice of keys. Claims are read after the signature is verified.

use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily};
use serde_json::{Map, Value};

use super::TokenError;
use super::claims::Claims;
use super::keys::VerifyingKey;

/// Maximum length of a token in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// A JWT whose header is parsed and whose signature is not verified.
pub(crate) struct UnverifiedToken<'t> {
    text: &'t str,
    algorithm: Algorithm,
    key_id: Option<String>,
}

impl<'t> UnverifiedToken<'t> {
    /// Parses the header. Verifies nothing.
    ///
    /// # Errors
    /// Returns a [`TokenError`] if the text is not a JWT, or if no key could verify it.
    pub(crate) fn read(text: &'t str) -> Result<Self, TokenError> {
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

    /// Verifies the signature with each matching key. Returns the claims, which are not yet validated.
    pub(crate) fn verify_signature<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k VerifyingKey>,
    ) -> Result<Claims, TokenError> {
        let mut error = TokenError::Algorithm;
        for key in keys {
            if !key.may_use(self.algorithm) {
                continue;
            }
            if !key.matches_kid(self.key_id.as_deref()) {
                if error == TokenError::Algorithm {
                    error = TokenError::UnknownKey;
                }
                continue;
            }
            match key.decode(self.text) {
                Err(TokenError::Signature) => error = TokenError::Signature,
                result => return result,
            }
        }
        Err(error)
    }

    /// Returns whether the token is signed with a shared secret, which no published key set contains.
    pub(crate) fn uses_shared_secret(&self) -> bool {
        self.algorithm.family() == AlgorithmFamily::Hmac
    }

    /// Returns whether a newer key set could verify the token after this error. A signature mismatch with a key that
    /// was selected by its id is permanent.
    pub(crate) fn may_verify_with_newer_keys(&self, error: &TokenError) -> bool {
        match self.key_id {
            None if *error == TokenError::Signature => true,
            _ => matches!(error, TokenError::Algorithm | TokenError::UnknownKey),
        }
    }
}
