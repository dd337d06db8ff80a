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

use super::Refused;
use super::claims::{Claims, Expected};
use super::keys::VerifyingKey;

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// A JWT with what it says, unproven, of how to prove it.
pub struct Token<'t> {
    text: &'t str,
    algorithm: Algorithm,
    key_id: Option<String>,
}

impl<'t> Token<'t> {
    /// Reads the header; nothing is proven yet.
    ///
    /// # Errors
    /// A [`Refused`] for what is no JWT, or none that any key could prove.
    pub fn read(text: &'t str) -> Result<Self, Refused> {
        if text.is_empty() {
            return Err(Refused::Missing);
        }
        if text.len() > MAX_TOKEN_BYTES {
            return Err(Refused::TooLong);
        }
        let (header, rest) = text.split_once('.').ok_or(Refused::Malformed)?;
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
            text,
            algorithm: Algorithm::from_str(name.ok_or(Refused::Malformed)?)
                .map_err(|_| Refused::Algorithm)?,
            key_id,
        })
    }

    /// Proves that a holder of one of these published keys signed it, and that it says what is expected.
    ///
    /// # Errors
    /// A [`Refused`]; it [may pass](Self::may_pass_later) with other keys.
    pub fn attest<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k VerifyingKey>,
        expected: &Expected,
        now: Timestamp,
    ) -> Result<(), Refused> {
        let claims = self.prove(keys)?;
        expected.check(&claims, now).map(|_| ())
    }

    /// Checks the signature with every key that fits; the claims are not looked at yet.
    pub(super) fn prove<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k VerifyingKey>,
    ) -> Result<Claims, Refused> {
        let mut refused = Refused::Algorithm;
        for key in keys {
            if !key.may_use(self.algorithm) {
                continue;
            }
            if !key.may_be_called(self.key_id.as_deref()) {
                if refused == Refused::Algorithm {
                    refused = Refused::UnknownKey;
                }
                continue;
            }
            match key.open(self.text) {
                Err(Refused::Signature) => refused = Refused::Signature,
                answer => return answer,
            }
        }
        Err(refused)
    }

    /// Whether it wants a shared secret, which no published key set holds.
    #[must_use]
    pub fn wants_a_secret(&self) -> bool {
        self.algorithm.family() == AlgorithmFamily::Hmac
    }

    /// Whether a newer key set could turn this refusal round: a key known by its id that did not sign stays so.
    #[must_use]
    pub fn may_pass_later(&self, refused: &Refused) -> bool {
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
