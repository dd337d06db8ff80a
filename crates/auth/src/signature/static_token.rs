//! A shared token that the provider sends with each webhook. It authenticates the sender and does not cover the body.

use aws_lc_rs::constant_time;
use serde::Deserialize;

use super::header_name::HeaderName;
use super::key::Key;
use super::{CannotSign, Request, SignatureError, required};

/// The header that carries the token.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticToken {
    header: HeaderName,
    /// Optional prefix of the token, such as `Bearer `.
    #[serde(default)]
    prefix: String,
}

impl StaticToken {
    pub(super) fn verify(&self, request: &Request<'_>, keys: &[Key]) -> Result<(), SignatureError> {
        let mut tokens = keys
            .iter()
            .filter_map(Key::secret)
            .filter(|token| !token.is_empty())
            .peekable();
        if tokens.peek().is_none() {
            return Err(SignatureError::NoKeyConfigured);
        }
        let sent = required(request.headers, &self.header)?;
        let sent = sent.strip_prefix(&self.prefix).unwrap_or(sent).as_bytes();
        tokens
            .any(|token| constant_time::verify_slices_are_equal(token.as_bytes(), sent).is_ok())
            .then_some(())
            .ok_or(SignatureError::Mismatch)
    }

    pub(super) fn sign(&self, key: &Key) -> Result<Vec<(String, String)>, CannotSign> {
        let token = key.secret().ok_or(CannotSign)?;
        let value = format!("{}{token}", self.prefix);
        Ok(vec![(self.header.to_string(), value)])
    }

    pub(super) fn secret_problem(secret: &Key) -> Option<&'static str> {
        let is_empty = secret.secret().is_none_or(str::is_empty);
        is_empty.then_some("the token is empty")
    }
}
