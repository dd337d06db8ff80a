//! Authentication primitives of progress-hub: bearer tokens and webhook signatures.
//!
//! - [`jwt`] verifies bearer tokens (HS256, RSA, ECDSA, Ed25519, JWKS) and mints the hub's own.
//! - [`signature`] verifies the signatures of providers' webhooks, and signs the hub's callback tokens.
//!
//! The crate performs no I/O: the caller passes in the current time and fetches key sets through [`jwt::Fetch`].

pub mod jwt;
pub mod signature;
