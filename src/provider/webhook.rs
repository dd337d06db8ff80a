//! Webhooks: signature verification and parsing.

pub(in crate::provider) mod parsing;
pub(in crate::provider) mod verifier;
